"""Every setting of a model and of its training: its type, its default, its help. These dataclasses are the
command line (tyro reads them).

Those of the other commands are in `commands`. Nothing here imports torch, so that `retinanet --help`
is quick.
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
"""The headings of `train --help`, the everyday ones first."""


def setting(
    default: Any,
    low: float | None = None,
    high: float | None = None,
    group: str | None = None,
    foreign: bool = False,
) -> Any:
    """A field of an options dataclass: its default, and what else the command line and `check` know of it.

    low, high  what its number, or each of its numbers, may be, both ends included
    group      the heading in `train --help` under which it is a flag; None: reached by --set and in Python
    foreign    exists so that imported weights keep their boxes; `import` alone sets it
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


@dataclass(frozen=True, kw_only=True)
class DataOptions(SourceOptions):
    """Also what happens to the errors of a data set."""

    invalid: Invalid = setting("error", group="data")
    """Bad annotations and images: error lists them and stops, drop removes them, clip cuts boxes."""


@dataclass(frozen=True)
class NetworkConfig:
    """The arguments of `RetinaNet`. The defaults are the paper's."""

    backbone: str = setting("resnet50", group="network")
    """A timm model with maps at 1/8, 1/16 and 1/32."""
    backbone_norm: Literal["frozen", "batch", "group"] = setting("frozen", group="network")
    """Normalisation of the backbone; from scratch frozen becomes batch, since frozen random statistics do not
    learn.
    """
    channels: int = setting(256, 8, 1 << 20)
    """Width of the pyramid and of the subnets."""
    num_convs: int = setting(4, 0, 64)
    """3x3 convolutions of a subnet before its last."""
    subnet_norm: Literal["none", "group"] = "none"
    """Normalisation of the subnets."""
    prior: float = setting(0.01, 1e-9, 1 - 1e-9)
    """pi: the probability with which every anchor first says "object"."""
    pyramid: Literal["fpn", "single", "hierarchy", "finest"] = setting("fpn", group="network")
    """P3..P7 of FPN, C5 alone (single), no top-down path (hierarchy), or P3 alone (finest); a single map has
    the anchors of all levels.
    """
    anchor_size: float = setting(4.0, 1e-3, 1e6, group="network")
    """Side of a level's smallest anchor, in strides: 4 gives 32 px on P3; lower it for small objects."""
    anchor_scales: tuple[float, ...] = setting((1.0, 2 ** (1 / 3), 2 ** (2 / 3)), 1e-3, 1e3)
    """Octave steps of the anchors' sides."""
    anchor_ratios: tuple[float, ...] = setting((0.5, 1.0, 2.0), 1e-3, 1e3)
    """Height over width of the anchors."""
    anchor_center: float = setting(0.5, 0, 1, foreign=True)
    """Where in its cell an anchor stands."""
    anchor_rounding: bool = setting(False, foreign=True)
    """Anchors of whole pixels, as torchvision's weights expect them."""
    anchor_steps: Literal["stride", "image"] = setting("stride", foreign=True)
    """Distance of the anchors: the level's stride, or the padded image over the map (torchvision)."""
    p6: Literal["c5", "p5"] = setting("c5", foreign=True)
    """What the sixth pyramid level is computed from: C5, as printed, or P5."""
    p7_relu: bool = setting(True, foreign=True)
    """A ReLU between P6 and P7; MMDetection has none."""
    backbone_stride: Literal["3x3", "1x1"] = setting("3x3", foreign=True)
    """Which convolution of a bottleneck halves the map; the 1x1 in ResNets that come from Caffe."""
    backbone_eps: float = setting(1e-5, 0, 1, foreign=True)
    """Added to the variance in the backbone's batch norm; torchvision's first weights have 0."""


@dataclass(frozen=True)
class PreprocessConfig:
    """The arguments of `Preprocess`: how an image becomes the network's input."""

    scale: int = setting(600, 32, 1 << 16, group="network")
    """Short side of an image in pixels after resizing ..."""
    max_side: int | None = setting(None, 32, 1 << 20)
    """... unless the long side would exceed this. None: 5/3 of the scale."""
    padding_multiple: int = setting(32, 1, 1 << 12)
    """Batches are padded to a multiple of this."""
    resize: Literal["antialias", "plain", "pillow", "opencv"] = setting("antialias", foreign=True)
    """antialias: on bytes; plain: on floats, sides cut (torchvision); pillow: its own (Detectron2); opencv:
    to the bit (MMDetection).
    """
    pixel_order: Literal["rgb", "bgr"] = setting("rgb", foreign=True)
    """Order in which the network is given the colours."""
    pixel_mean: tuple[float, float, float] = setting((0.485, 0.456, 0.406), -1e3, 1e3, foreign=True)
    """Subtracted from red, green and blue in 0..1: ImageNet's."""
    pixel_std: tuple[float, float, float] = setting((0.229, 0.224, 0.225), 1e-6, 1e3, foreign=True)
    """Then red, green and blue are divided by this: ImageNet's."""


@dataclass(frozen=True)
class PostprocessConfig:
    """The arguments of `Postprocess`: how the network's output becomes detections."""

    score_threshold: float = setting(0.05, 0, 1 - 1e-9)
    """Scores of detections are above this."""
    topk_candidates: int = setting(1000, 1, 1 << 30)
    """Candidates of each pyramid level that are decoded."""
    nms_threshold: float = setting(0.5, 0, 1)
    """IoU above which the lower of two boxes of a class goes."""
    max_detections: int = setting(100, 1, 1 << 30)
    """Most detections of an image."""
    filter_padding: bool = setting(True, foreign=True)
    """Drop detections of anchors whose centre lies in the padding."""
    clip_boxes: Literal["before", "after"] = setting("before", foreign=True)
    """Boxes are cut at the image border before NMS or after it (Detectron2)."""
    empty_boxes: Literal["kept", "dropped"] = setting("kept", foreign=True)
    """Boxes that are left without area by the cut."""
    clip_dwh_below: bool = setting(False, foreign=True)
    """A box is at least 16/1000 of its anchor wide and high, as it is at most 1000/16 (MMDetection)."""


@dataclass(frozen=True)
class ModelConfig:
    """What a file of weights stores of a model: the network, what comes before it and what comes after."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)


@dataclass(frozen=True)
class CriterionConfig:
    """The losses and the assignment. The defaults are the paper's."""

    loss: Literal["cross_entropy", "balanced", "focal", "focal_star", "hinge"] = setting(
        "focal", group="loss"
    )
    """Class loss: Eq. 1, 3, 5 or 8, or the hinge loss on p_t."""
    alpha: float | Literal["inverse-frequency"] | None = setting(0.25, 0, 1, group="loss")
    """Weight of the positives in the class loss, 1 - alpha that of the negatives; None: 1 and 1;
    inverse-frequency: a class each.
    """
    gamma: float = setting(2.0, 0, 1000, group="loss")
    """Focusing parameter of the focal loss."""
    beta: float = 1.0
    """Shift of focal_star."""
    margin: float = setting(0.5, 1e-9, 1)
    """Probability of the truth above which hinge asks for no more."""
    mining: Literal["none", "ohem", "ohem-1:3", "random"] = setting("none", group="loss")
    """Anchors in the class loss: all, the hardest, these with 3 negatives a positive, or drawn; it is then
    their mean in each image.
    """
    mining_batch: int = setting(512, 4, 1 << 30)
    """Anchors that mining takes of an image; of ohem-1:3 and random at most a quarter are positives."""
    mining_nms: float | None = setting(0.7, 0, 1)
    """IoU above which OHEM leaves out the easier of two anchors; None: never."""
    box_loss: Literal["smooth_l1", "l1", "giou"] = setting("smooth_l1", group="loss")
    """Loss of the positives' boxes."""
    smooth_l1_beta: float = setting(1 / 9, 1e-9, 1e6)
    """Where smooth_l1 turns from square to straight."""
    box_weight: float = setting(1.0, 0, 1e6)
    """Factor of the box loss."""
    positive: float = setting(0.5, 1e-9, 1)
    """IoU from which an anchor is a positive."""
    negative: float = setting(0.4, 0, 1)
    """IoU below which it is background; between the two it is ignored."""
    force_above: float | None = setting(0.4, 0, 1)
    """A box's best anchor is a positive from this IoU; 0: at any, None: never."""
    normalize: Literal["step", "image"] = "step"
    """Divide by the positives of the whole step, or of each image."""


@dataclass(frozen=True)
class TrainConfig(DataOptions):
    """A training run. The defaults are the paper's ResNet-50 row of Table 1; presets change them."""

    model: ModelConfig = field(default_factory=ModelConfig)
    criterion: CriterionConfig = field(default_factory=CriterionConfig)

    out: Path | None = setting(None, group="run")
    """Folder of the run; an existing run is never overwritten. None: runs/<data>-<preset>, numbered."""
    budget: str | None = setting(None, group="run")
    """How long: 7min, 2h, 300it, 12ep or 1440000im (images shown). None: a length that fits the data."""
    init: str = setting("imagenet", group="run")
    """Where training starts: imagenet (the backbone's weights, through timm), none (from scratch, everything
    live), or a model: a run, a file or a name of `retinanet models`; its network is used, class rows by name.
    """
    batch: int | Literal["auto"] = setting(16, 1, 1 << 30, group="schedule")
    """Images per optimiser step, over all processes; auto: as many as fit in memory, the learning rate going
    along.
    """
    micro_batch: int | None = setting(None, 1, 1 << 30, group="schedule")
    """Images that a process works on at a time; a step of several gives the same as a large one. None: all of
    its share.
    """
    lr: float = setting(0.01, 0, inf, group="schedule")
    """Learning rate for `lr_batch` images per step; scaled with the batch: linearly for SGD, by the square
    root for AdamW.
    """
    lr_batch: int = setting(16, 1, 1 << 30)
    """The batch that `lr` is meant for."""
    optimizer: Literal["sgd", "adamw"] = setting("sgd", group="schedule")
    """SGD with momentum, or AdamW."""
    momentum: float = setting(0.9, 0, 1)
    """Momentum of SGD."""
    weight_decay: float = setting(1e-4, 0, 1e6)
    """Weight decay; none on biases and normalisation layers."""
    schedule: Literal["drops", "cosine"] = setting("drops", group="schedule")
    """Learning rate divided by 10 after 2/3 and 8/9 of the run (60k and 80k of 90k), or a cosine to 0."""
    warmup: int = setting(500, 0, 1 << 30)
    """Iterations of linear warm-up, at most a tenth of the run."""
    max_grad_norm: float | None = setting(None, 1e-9, inf)
    """Largest norm of the gradient; None: no clipping."""
    ema: float | None = setting(None, group="schedule")
    """Decay of the running average of the weights, which is then what is evaluated and shipped; None: no
    average.
    """
    train_scale: int | None = setting(None, 32, 1 << 16, group="network")
    """Short side in training, when it is to be less than the model's own `scale`; None: the same."""
    flip: float = setting(0.5, 0, 1, group="augmentation")
    """Probability of a horizontal flip."""
    jitter: tuple[float, float] = setting((1.0, 1.0), group="augmentation")
    """Range of the factor on the scale; above 1 images are cropped at random to the usual size."""
    photometric: float = setting(0.0, 0, 1, group="augmentation")
    """Probability of a change of brightness, contrast, saturation and hue."""
    repeat_threshold: float | None = setting(None, 0, 1, group="augmentation")
    """Classes on a smaller share of the images than this are shown more often (repeat-factor sampling; LVIS
    takes 0.001). None: off.
    """
    compile: bool = setting(False, group="machine")
    """torch.compile the network, once for all shapes; where there is no compiler a line says so and nothing
    else changes.
    """
    precision: Precision = setting("auto", group="machine")
    """bf16: autocast with the losses in fp32; auto: bf16 where the machine computes in it."""
    device: str = setting("auto", group="machine")
    """cpu, cuda, cuda:1; auto: a GPU if there is one."""
    workers: int | None = setting(None, 0, 1 << 10, group="machine")
    """Loader processes. None: one on a CPU, up to eight beside a GPU."""
    seed: int = setting(0, 0, (1 << 63) - 1, group="run")
    """The same seed, data and settings give the same run on the same machine."""
    validations: int = setting(8, 1, 1 << 30, group="log")
    """How often validation loss and AP are measured, the end included."""
    log_every: int = setting(20, 1, 1 << 30, group="log")
    """Iterations between two lines of the log."""
    save_every: str = "3min"
    """How often state.pt, which --resume needs, is written besides at every validation: 3min, 500it or
    1ep.
    """
    tensorboard: bool = setting(False, group="log")
    """Write the numbers of metrics.jsonl for TensorBoard too, into the run folder."""

    @property
    def init_model(self) -> str | None:
        """The model that training starts from, if it is one."""
        return None if self.init in ("imagenet", "none") else self.init
