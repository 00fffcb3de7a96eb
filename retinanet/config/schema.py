"""Every setting of a model and of its training: its type, its default, its help. These dataclasses are the
command line (tyro reads them).

Those of the other verbs are in `verbs`. Nothing here imports torch, so that `retinanet --help` answers at
once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Precision = Literal["auto", "fp32", "bf16"]

Invalid = Literal["error", "drop", "clip"]

Layout = Literal["coco", "voc", "yolo"]


@dataclass(frozen=True)
class ModelConfig:
    """The network, what happens before it and what after: all of it is stored in the checkpoint. The defaults
    are the paper's.
    """

    backbone: str = "resnet50"
    """A timm model with maps at 1/8, 1/16 and 1/32."""
    backbone_norm: Literal["frozen", "batch", "group"] = "frozen"
    """Normalisation of the backbone; from scratch frozen becomes batch, since frozen random statistics do not
    learn.
    """
    channels: int = 256
    """Width of the pyramid and of the subnets."""
    depth: int = 4
    """3x3 convolutions of a subnet before its last."""
    subnet_norm: Literal["none", "group"] = "none"
    """Normalisation of the subnets."""
    prior: float = 0.01
    """pi: the probability with which every anchor first says "object"."""
    pyramid: Literal["fpn", "single", "hierarchy", "finest"] = "fpn"
    """P3..P7 of FPN, C5 alone (single), no top-down path (hierarchy), or P3 alone (finest); a single map has
    the anchors of all levels.
    """
    anchor_size: float = 4.0
    """Side of a level's smallest anchor, in strides: 4 gives 32 px on P3; lower it for small objects."""
    anchor_scales: tuple[float, ...] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    """Octave steps of the anchors' sides."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width of the anchors."""
    anchor_center: float = 0.5
    """Where in its cell an anchor stands."""
    anchor_rounding: bool = False
    """Anchors of whole pixels, as torchvision's weights expect them."""
    anchor_steps: Literal["stride", "picture"] = "stride"
    """How far apart the anchors stand: the level's stride, or the padded picture's side over the map's
    (torchvision).
    """
    padding_anchors: Literal["dropped", "kept"] = "dropped"
    """Answers of anchors whose centre lies in the padding."""
    p6: Literal["c5", "p5"] = "c5"
    """What the sixth pyramid level is computed from: C5, as printed, or P5."""
    p7_relu: bool = True
    """A ReLU between P6 and P7; MMDetection has none."""
    backbone_stride: Literal["3x3", "1x1"] = "3x3"
    """Which convolution of a bottleneck halves the map; the 1x1 in ResNets that come from Caffe."""
    backbone_eps: float = 1e-5
    """Added to the variance in the backbone's batch norm; torchvision's first weights have 0."""
    resize: Literal["antialias", "plain", "pillow", "opencv"] = "antialias"
    """antialias: on bytes; plain: on floats, sides cut (torchvision); pillow: its own (Detectron2); opencv:
    to the bit (MMDetection).
    """
    pixel_order: Literal["rgb", "bgr"] = "rgb"
    """Order in which the network is given the colours."""
    pixel_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from red, green and blue in 0..1: ImageNet's."""
    pixel_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Then red, green and blue are divided by this: ImageNet's."""
    padding_multiple: int = 32
    """Batches are padded to a multiple of this."""
    scale: int = 600
    """Short side of a picture in pixels after resizing ..."""
    max_side: int | None = None
    """... unless the long side would exceed this. None: 5/3 of the scale."""
    score_threshold: float = 0.05
    """Answers must score above this."""
    per_level: int = 1000
    """Candidates of each pyramid level that are decoded."""
    nms_threshold: float = 0.5
    """IoU above which the lower of two boxes of a class goes."""
    max_detections: int = 100
    """Answers of one picture at most."""
    clip_boxes: Literal["before", "after"] = "before"
    """Boxes are cut at the picture's border before NMS or after it (Detectron2)."""
    empty_boxes: Literal["kept", "dropped"] = "kept"
    """Boxes that are left without area by the cut."""
    shrink_limit: bool = False
    """A box is at least 16/1000 of its anchor wide and high, as it is at most 1000/16 (MMDetection)."""


@dataclass(frozen=True)
class CriterionConfig:
    """The losses and the assignment. The defaults are the paper's."""

    loss: Literal["cross_entropy", "balanced", "focal", "focal_star", "hinge"] = "focal"
    """Class loss: Eq. 1, 3, 5 or 8, or the hinge loss on p_t."""
    alpha: float | Literal["inverse-frequency"] | None = 0.25
    """Weight of the positives in the class loss, 1 - alpha that of the negatives; None: 1 and 1;
    inverse-frequency: a class each.
    """
    gamma: float = 2.0
    """Focusing parameter of the focal loss."""
    beta: float = 1.0
    """Shift of focal_star."""
    margin: float = 0.5
    """Probability of the truth above which hinge asks for no more."""
    mining: Literal["none", "ohem", "ohem-1:3", "random"] = "none"
    """Anchors in the class loss: all, the hardest, these with 3 negatives a positive, or drawn; it is then
    their mean in each picture.
    """
    mining_batch: int = 512
    """Anchors that mining takes of a picture; of ohem-1:3 and random at most a quarter are positives."""
    mining_nms: float | None = 0.7
    """IoU above which OHEM leaves out the easier of two anchors; None: never."""
    box_loss: Literal["smooth_l1", "l1", "giou"] = "smooth_l1"
    """Loss of the positives' boxes."""
    smooth_l1_beta: float = 1 / 9
    """Where smooth_l1 turns from square to straight."""
    box_weight: float = 1.0
    """Factor of the box loss."""
    positive: float = 0.5
    """IoU from which an anchor is a positive."""
    negative: float = 0.4
    """IoU below which it is background; between the two it is ignored."""
    force_above: float | None = 0.4
    """A box's best anchor is a positive from this IoU; 0: at any, None: never."""
    normalize: Literal["step", "image"] = "step"
    """Divide by the positives of the whole step, or of each picture."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run. The defaults are the paper's ResNet-50 row of Table 1; presets change them."""

    model: ModelConfig = field(default_factory=ModelConfig)
    criterion: CriterionConfig = field(default_factory=CriterionConfig)

    out: Path | None = None
    """Folder of the run; an existing run is never overwritten. None: runs/<data>-<preset>, numbered."""
    budget: str | None = None
    """How long: 7min, 2h, 300it, 12ep or 1440000im (images shown). None: a length that fits the data."""
    weights: Literal["imagenet", "none"] = "imagenet"
    """Where the backbone starts: ImageNet weights through timm, or from scratch with everything live."""
    init: Path | None = None
    """Start from a model instead, a run, a file or a name of `retinanet models`: its network is taken, class
    rows by name.
    """
    batch: int | Literal["auto"] = 16
    """Images per optimiser step, over all processes; auto: as many as fit in memory, the learning rate going
    along.
    """
    micro_batch: int | None = None
    """Images that a process works on at a time; a step of several gives the same as a large one. None: all of
    its share.
    """
    lr: float = 0.01
    """Learning rate for `lr_batch` images per step; scaled with the batch: linearly for SGD, by the square
    root for AdamW.
    """
    lr_batch: int = 16
    """The batch that `lr` is meant for."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay; none on biases and normalisation layers."""
    schedule: Literal["drops", "cosine"] = "drops"
    """Learning rate divided by 10 after 2/3 and 8/9 of the run (60k and 80k of 90k), or a cosine to 0."""
    warmup: int = 500
    """Iterations of linear warm-up, at most a tenth of the run."""
    clip: float | None = None
    """Largest norm of the gradient; None: no clipping."""
    ema: float | None = None
    """Decay of the running average of the weights, which is then what is evaluated and shipped; None: no
    average.
    """
    train_scale: int | None = None
    """Short side in training, when it is to be less than the model's own `scale`; None: the same."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: tuple[float, float] = (1.0, 1.0)
    """Range of the factor on the scale; above 1 pictures are cropped at random to the usual size."""
    photometric: float = 0.0
    """Probability of a change of brightness, contrast, saturation and hue."""
    repeat_threshold: float | None = None
    """Classes on a smaller share of the images than this are shown more often (repeat-factor sampling; LVIS
    takes 0.001). None: off.
    """
    compile: bool = False
    """torch.compile the network, once for all shapes; where there is no compiler a line says so and nothing
    else changes.
    """
    precision: Precision = "auto"
    """bf16: autocast with the losses in fp32; auto: bf16 where the machine computes in it."""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto: a GPU if there is one."""
    workers: int | None = None
    """Loader processes. None: one on a CPU, up to eight beside a GPU."""
    seed: int = 0
    """The same seed, data and settings give the same run on the same machine."""
    validations: int = 8
    """How often validation loss and AP are measured, the end included."""
    log_every: int = 20
    """Iterations between two lines of the log."""
    save_every: str = "3min"
    """How often state.pt, which --resume needs, is written besides at every validation: 3min, 500it or
    1ep.
    """
    tensorboard: bool = False
    """Write the numbers of metrics.jsonl for TensorBoard too, into the run folder."""
    layout: Layout | None = None
    """Annotation format; None: recognised."""
    images: Path | None = None
    """Folder of the pictures, when it is elsewhere."""
    invalid: Invalid = "error"
    """What bad annotations and pictures get: error lists all and stops, drop leaves them out, clip cuts boxes
    at the border.
    """
    max_pixels: int = 178_956_970
    """Pictures with more pixels are refused."""
