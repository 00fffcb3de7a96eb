"""Every setting of a model and of its training: type, default, range and help. tyro makes them flags.

The other commands have theirs in `commands`. Nothing here imports torch, so that `retinanet --help` is quick.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Literal

Precision = Literal["auto", "fp32", "bf16"]

Invalid = Literal["error", "drop", "clip"]

Layout = Literal["coco", "voc", "yolo"]


TITLES = {
    "study": "study",
    "run": "run",
    "data": "data",
    "schedule": "length and schedule",
    "network": "network",
    "loss": "loss",
    "augmentation": "augmentation",
    "machine": "machine",
    "log": "log",
}
"""The headings of `train --help`, the most used first."""


def setting(
    default: Any,
    low: float | None = None,
    high: float | None = None,
    group: str | None = None,
    foreign: bool = False,
) -> Any:
    """A field of an options dataclass: its default, and its metadata for the command line and `check`.

    low, high  range of its number, or of each of its numbers, both ends included
    group      its heading in `train --help`; None: it is no flag, but --set and Python reach it
    foreign    it keeps the boxes of imported weights; only `import` sets it
    """
    return field(default=default, metadata={"low": low, "high": high, "group": group, "foreign": foreign})


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Where a data set is and how it is read. All commands that open one share this."""

    layout: Layout | None = setting(None, group="data")
    """Annotation format of the data set. None: recognised."""
    images: Path | None = setting(None, group="data")
    """Folder of the images, if they are not with the annotations."""
    max_pixels: int = setting(178_956_970, 1, 1 << 40)
    """Images with more pixels are refused."""
    strict: bool = setting(False, group="data")
    """What is not as the format says is a problem even where it has only one meaning."""


@dataclass(frozen=True, kw_only=True)
class DataOptions(SourceOptions):
    """Also what happens to the errors of a data set."""

    invalid: Invalid = setting("error", group="data")
    """Bad annotations and images: error lists them and stops, drop removes them, clip cuts boxes."""


@dataclass(frozen=True)
class NetworkConfig:
    """The arguments of `RetinaNet`. The defaults are the paper's."""

    backbone: str = setting("resnet50", group="network")
    """A timm model with feature maps at 1/8, 1/16 and 1/32."""
    backbone_norm: Literal["frozen", "batch", "group"] = setting("frozen", group="network")
    """Norm of the backbone. From scratch frozen becomes batch: frozen random statistics do not learn."""
    channels: int = setting(256, 8, 1 << 20)
    """Width of the pyramid and of the subnets."""
    num_convs: int = setting(4, 0, 64)
    """3x3 convolutions of a subnet before its last one."""
    subnet_norm: Literal["none", "group"] = "none"
    """Normalisation of the subnets."""
    prior: float = setting(0.01, 1e-9, 1 - 1e-9)
    """pi: the probability of an object that every anchor predicts at the start."""
    pyramid: Literal["fpn", "single", "hierarchy", "finest"] = setting("fpn", group="network")
    """fpn: P3..P7; single: C5; hierarchy: no top-down path; finest: P3. One map has all anchors."""
    anchor_size: float = setting(4.0, 1e-3, 1e6, group="network")
    """Side of the smallest anchor of a level in strides. 4 is 32 px on P3. Lower it for small objects."""
    anchor_scales: tuple[float, ...] = setting((1.0, 2 ** (1 / 3), 2 ** (2 / 3)), 1e-3, 1e3)
    """Factors on the anchor sides of a level (octave steps)."""
    anchor_ratios: tuple[float, ...] = setting((0.5, 1.0, 2.0), 1e-3, 1e3)
    """Height over width of the anchors."""
    anchor_center: float = setting(0.5, 0, 1, foreign=True)
    """Position of an anchor in its cell; 0.5 is the middle."""
    anchor_rounding: bool = setting(False, foreign=True)
    """Round anchors to whole pixels, as torchvision does."""
    anchor_steps: Literal["stride", "image"] = setting("stride", foreign=True)
    """Distance of the anchors: the level's stride, or the padded image over the map (torchvision)."""
    p6: Literal["c5", "p5"] = setting("c5", foreign=True)
    """Source of P6: C5, as printed in the paper, or P5."""
    p7_relu: bool = setting(True, foreign=True)
    """A ReLU between P6 and P7. MMDetection has none."""
    backbone_stride: Literal["3x3", "1x1"] = setting("3x3", foreign=True)
    """The convolution of a bottleneck that halves the map. It is the 1x1 in ResNets from Caffe."""
    backbone_eps: float = setting(1e-5, 0, 1, foreign=True)
    """Added to the variance in the batch norm of the backbone. It is 0 in torchvision's first weights."""


@dataclass(frozen=True)
class PreprocessConfig:
    """The arguments of `Preprocess`: how an image becomes the network's input."""

    scale: int = setting(600, 32, 1 << 16, group="network")
    """Short side of an image in pixels after resizing."""
    max_side: int | None = setting(None, 32, 1 << 20)
    """Limit of the long side in pixels; it wins over the scale. None: 5/3 of the scale."""
    padding_multiple: int = setting(32, 1, 1 << 12)
    """The sides of a batch are padded to a multiple of this."""
    resize: Literal["antialias", "plain", "pillow", "opencv"] = setting("antialias", foreign=True)
    """antialias: bytes; plain: floats, sides cut (torchvision); pillow (Detectron2); opencv (MMDetection)."""
    pixel_order: Literal["rgb", "bgr"] = setting("rgb", foreign=True)
    """Colour order that the network gets."""
    pixel_mean: tuple[float, float, float] = setting((0.485, 0.456, 0.406), -1e3, 1e3, foreign=True)
    """Mean of red, green and blue in 0..1, which is subtracted (ImageNet's)."""
    pixel_std: tuple[float, float, float] = setting((0.229, 0.224, 0.225), 1e-6, 1e3, foreign=True)
    """Deviation of red, green and blue in 0..1, by which they are divided (ImageNet's)."""


@dataclass(frozen=True)
class PostprocessConfig:
    """The arguments of `Postprocess`: how the network's output becomes detections."""

    score_threshold: float = setting(0.05, 0, 1 - 1e-9)
    """Detections must score above this."""
    topk_candidates: int = setting(1000, 1, 1 << 30)
    """Candidates of each pyramid level that are decoded."""
    nms_threshold: float = setting(0.5, 0, 1)
    """IoU above which the lower of two boxes of one class is removed."""
    max_detections: int = setting(100, 1, 1 << 30)
    """Largest number of detections of an image."""
    filter_padding: bool = setting(True, foreign=True)
    """Remove detections of anchors whose centre is in the padding."""
    clip_boxes: Literal["before", "after"] = setting("before", foreign=True)
    """Boxes are cut at the image border before or after NMS (Detectron2: after)."""
    empty_boxes: Literal["kept", "dropped"] = setting("kept", foreign=True)
    """Boxes that the cut leaves without area."""
    clip_dwh_below: bool = setting(False, foreign=True)
    """A box is at least 16/1000 of its anchor wide and high, as it is at most 1000/16 (MMDetection)."""


@dataclass(frozen=True)
class ModelConfig:
    """What a checkpoint stores of a model: the network, what comes before it and what comes after.

    Example:
        >>> config = ModelConfig(network=NetworkConfig(backbone="resnet18"))
        >>> model = RetinaNet(num_classes=3, **vars(config.network))
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)


@dataclass(frozen=True)
class CriterionConfig:
    """The arguments of `Criterion`: the losses and the assignment. The defaults are the paper's.

    Example:
        >>> criterion = Criterion(**vars(CriterionConfig(gamma=1.0)))
    """

    loss: Literal["cross_entropy", "balanced", "focal", "focal_star", "hinge"] = setting(
        "focal", group="loss"
    )
    """Class loss: Eq. 1, 3, 5 or 8, or the hinge loss on p_t."""
    alpha: float | Literal["inverse-frequency"] | None = setting(0.25, 0, 1, group="loss")
    """Weight of positives; negatives: 1 - alpha. None: 1 and 1. inverse-frequency: one for each class."""
    gamma: float = setting(2.0, 0, 1000, group="loss")
    """Focusing parameter of the focal loss."""
    beta: float = 1.0
    """Shift of focal_star."""
    margin: float = setting(0.5, 1e-9, 1)
    """The hinge loss is 0 where the probability of the truth is above this."""
    mining: Literal["none", "ohem", "ohem-1:3", "random"] = setting("none", group="loss")
    """Anchors in the class loss: all, the hardest, the hardest at 3 negatives a positive, or random ones."""
    mining_batch: int = setting(512, 4, 1 << 30)
    """Anchors of an image that mining takes. With ohem-1:3 and random at most a quarter are positives."""
    mining_nms: float | None = setting(0.7, 0, 1)
    """IoU above which OHEM removes the easier of two anchors. None: never."""
    box_loss: Literal["smooth_l1", "l1", "giou"] = setting("smooth_l1", group="loss")
    """Loss of the boxes of positives."""
    smooth_l1_beta: float = setting(1 / 9, 1e-9, 1e6)
    """Error at which smooth_l1 changes from square to linear."""
    box_weight: float = setting(1.0, 0, 1e6)
    """Factor of the box loss."""
    positive: float = setting(0.5, 1e-9, 1)
    """An anchor is positive from this IoU on."""
    negative: float = setting(0.4, 0, 1)
    """An anchor is background below this IoU. Between the two it is ignored."""
    force_above: float | None = setting(0.4, 0, 1)
    """The best anchor of a box is positive from this IoU on. 0: at any overlap. None: never."""
    normalize: Literal["step", "image"] = "step"
    """Divide by the positives of the whole step, or of each image."""


@dataclass(frozen=True)
class TrainConfig(DataOptions):
    """A training run. The defaults are the paper's ResNet-50 row of Table 1. Presets change them.

    Example:
        >>> config = retinanet.PRESETS["tiny"].config
        >>> config.lr, config.model.preprocess.scale
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    criterion: CriterionConfig = field(default_factory=CriterionConfig)

    out: Path | None = setting(None, group="run")
    """Folder of the run, which is never overwritten. None: runs/<data>-<preset>, numbered."""
    budget: str | None = setting(None, group="run")
    """Length: 7min, 2h, 300it, 12ep or 1440000im (images shown). None: a length that fits the data."""
    held_out: float = setting(0.1, 0, 0.9)
    """Share of the images that is held out where there is no validation split. 0: none, all are both."""
    init: str = setting("imagenet", group="run")
    """Start of training: imagenet (backbone weights, through timm), none (from scratch), or a model: a run, a
    file or a name of `retinanet models`. Its network is used; class rows are matched by name."""
    batch: int | Literal["auto"] = setting(16, 1, 1 << 30, group="schedule")
    """Images per optimiser step over all processes. auto: as many as fit on a GPU; the rate follows."""
    micro_batch: int | None = setting(None, 1, 1 << 30, group="schedule")
    """Images that a process computes at a time. The step's result is the same. None: all of its share."""
    lr: float = setting(0.01, 0, inf, group="schedule")
    """Learning rate for `lr_batch` images. It scales with the batch: linearly (SGD), by the root (AdamW)."""
    lr_batch: int = setting(16, 1, 1 << 30)
    """The batch that `lr` refers to."""
    optimizer: Literal["sgd", "adamw"] = setting("sgd", group="schedule")
    """SGD with momentum, or AdamW."""
    momentum: float = setting(0.9, 0, 1)
    """Momentum of SGD."""
    weight_decay: float = setting(1e-4, 0, 1e6)
    """Weight decay. Biases and normalisation layers have none."""
    schedule: Literal["drops", "cosine"] = setting("drops", group="schedule")
    """drops: rate divided by 10 after 2/3 and 8/9 of the run (60k and 80k of 90k). cosine: down to 0."""
    warmup: int = setting(500, 0, 1 << 30)
    """Iterations of linear warm-up, at most a tenth of the run."""
    max_grad_norm: float | None = setting(None, 1e-9, inf)
    """Largest norm of the gradient. None: no clipping."""
    ema: float | None = setting(None, group="schedule")
    """Decay of the running average of the weights, which is evaluated and saved. None: no average."""
    train_scale: int | None = setting(None, 32, 1 << 16, group="network")
    """Short side in training, if it is smaller than `scale`. None: the same."""
    flip: float = setting(0.5, 0, 1, group="augmentation")
    """Probability of a horizontal flip."""
    jitter: tuple[float, float] = setting((1.0, 1.0), group="augmentation")
    """Range of the factor on the scale. Above 1, images are cropped at random to the usual size."""
    photometric: float = setting(0.0, 0, 1, group="augmentation")
    """Probability of a change of brightness, contrast, saturation and hue."""
    repeat_threshold: float | None = setting(None, 0, 1, group="augmentation")
    """Classes on a smaller share of images are shown more often (repeat-factor sampling). None: off."""
    compile: bool = setting(False, group="machine")
    """Use torch.compile on the network, once for all shapes. Without a compiler a log line says so."""
    precision: Precision = setting("auto", group="machine")
    """bf16: autocast with the losses in fp32. auto: bf16 where the machine computes in it."""
    device: str = setting("auto", group="machine")
    """cpu, cuda or cuda:1. auto: a GPU if there is one."""
    workers: int | None = setting(None, 0, 1 << 10, group="machine")
    """Loader processes. None: one on a CPU, up to eight beside a GPU."""
    seed: int = setting(0, 0, (1 << 63) - 1, group="run")
    """The same seed, data and settings give the same run on the same machine."""
    validations: int = setting(8, 1, 1 << 30, group="log")
    """How many times validation loss and AP are measured, the end included."""
    log_every: int = setting(20, 1, 1 << 30, group="log")
    """Iterations between two log lines."""
    save_every: str = "3min"
    """How often state.pt is saved for --resume, besides at each validation: 3min, 500it or 1ep."""
    tensorboard: bool = setting(False, group="log")
    """Also write the numbers of metrics.jsonl for TensorBoard, into the run folder."""

    @property
    def init_model(self) -> str | None:
        """The model that training starts from; None for imagenet and none."""
        return None if self.init in ("imagenet", "none") else self.init
