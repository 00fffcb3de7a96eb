"""Every setting of the commands other than `train`: the dataclasses are the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .schema import DataOptions, SourceOptions, TrainConfig, setting


@dataclass(frozen=True)
class ResumeConfig:
    """What may change when a run goes on; everything else is as it was."""

    data: Path | None = None
    """Where the data set lies now, if it has been moved."""
    images: Path | None = None
    """Where the pictures lie now, if they are elsewhere."""
    device: str | None = None
    """cpu, cuda, cuda:1, auto. None: as before."""
    workers: int | None = setting(None, 0, 1 << 10)
    """Loader processes; their number changes nothing that is learned. None: one on a CPU, up to eight beside
    a GPU.
    """
    micro_batch: int | None = setting(None, 1)
    """Images that a process works on at a time. None: as before."""


@dataclass(frozen=True)
class ImportConfig:
    """Another project's weights as ours."""

    out: Path | None = None
    """File to write. None: beside theirs, ending in .safetensors."""
    names: Path | None = None
    """Text file with the class names, one a line, when they are not COCO's."""
    bn_eps: float | None = setting(None, 0, 1)
    """eps of the backbone's batch norm, which no file tells. None: 0 for torchvision's own first file, else
    1e-5.
    """
    style: Literal["pytorch", "caffe"] | None = None
    """What the backbone came from: caffe means BGR, deviation 1 and the stride in the 1x1. None: as the file
    tells.
    """


@dataclass(frozen=True)
class ReplayConfig:
    """A step of training that went wrong, once more."""

    device: str = "cpu"
    """cpu, cuda, cuda:1."""
    precision: Literal["fp32", "bf16"] | None = None
    """Another number format than the step had: bf16 or fp32, to see whether it is to blame."""


@dataclass(frozen=True)
class RunConfig(DataOptions):
    """How a model is run: shared by eval and predict."""

    device: str = "auto"
    """cpu, cuda, cuda:1; auto: a GPU if there is one."""
    batch: int = setting(8, 1)
    """Pictures per batch; only pictures of the same padded shape share one."""
    workers: int | None = setting(None, 0, 1 << 10)
    """Loader processes. None: one on a CPU, up to eight beside a GPU."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is faster and costs a little AP."""
    scale: int | None = setting(None, 32, 1 << 16)
    """Short side in pixels, when it is not to be the model's own."""
    scales: tuple[int, ...] | None = setting(None, 32, 1 << 16)
    """Several of these instead: every picture is answered at each, and the answers are merged (400 600
    800).
    """


@dataclass(frozen=True)
class TilesConfig(RunConfig):
    """How large pictures are looked at: shared by eval and predict."""

    tiles: int | None = setting(None, 32, 1 << 16)
    """Side in pixels of the tiles that larger pictures are answered in, for small objects. None: pictures are
    answered whole.
    """
    overlap: float = setting(0.25, 0, 1 - 1e-9)
    """Share of a tile that the next one sees too. An object that is larger than this may be cut by both; its
    pieces are joined.
    """


@dataclass(frozen=True)
class EvalConfig(TilesConfig):
    """An evaluation."""

    split: str | None = None
    """train, val or test. None: val if there is one, else the only one."""
    out: Path | None = None
    """Folder for metrics.json, predictions.json and plots. None: nothing is written."""


@dataclass(frozen=True)
class PredictConfig(TilesConfig):
    """Answers for pictures."""

    out: Path | None = None
    """Folder for predictions.json and pictures, and for each video. None: the answers are printed."""
    split: str | None = None
    """For a data set: which split."""
    threshold: float | None = setting(None, 0, 1)
    """Score from which a box is drawn and printed. None: the model's own (best F1 in validation).
    predictions.json has all.
    """
    save_images: bool = True
    """Save each image with labelled boxes, and each video too."""


@dataclass(frozen=True)
class ServeConfig:
    """A server."""

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0: all that this machine has; others than loopback want a token or
    --no-auth.
    """
    port: int = setting(8000, 0, 65535)
    """Port to listen on. 0: any free one, which is printed."""
    token: str | None = None
    """What requests must show (Authorization: Bearer TOKEN). None: the variable RETINANET_TOKEN, which no
    list of processes shows.
    """
    auth: bool = True
    """--no-auth: anybody who reaches the address is served."""
    hosts: tuple[str, ...] = ()
    """Other names by which the server is called (Host header), for instance by a proxy."""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto: a GPU if there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is faster and costs a little AP."""
    scale: int | None = setting(None, 32, 1 << 16)
    """Short side in pixels, when it is not to be the model's own."""
    max_batch: int = setting(8, 1)
    """Pictures that the detector is given at once; only pictures of the same padded shape share a batch."""
    max_wait: float = setting(4.0, 0)
    """Milliseconds that a batch waits for pictures that are being decoded."""
    queue: int = setting(32, 1)
    """Pictures that may wait or be at work; beyond it requests get 503 with Retry-After."""
    decoders: int = setting(2, 1)
    """Threads that decode and resize."""
    max_images: int = setting(16, 1)
    """Pictures in one request."""
    max_bytes: int = setting(33_554_432, 1)
    """Bytes of one request."""
    max_pixels: int = setting(50_000_000, 1)
    """Pictures with more pixels are refused."""


@dataclass(frozen=True)
class ExportConfig(DataOptions):
    """A model as a file that others can run, proved against its source."""

    format: Literal["onnx", "openvino"] = "onnx"
    """onnx (.onnx) or openvino (.xml and .bin)."""
    out: Path | None = None
    """File to write. None: beside the model, under its name."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """onnx: fp32 or int8; openvino: all three. int8 needs --data, to see what numbers occur."""
    size: tuple[int, int] | None = None
    """Height and width, the only ones then, into which pictures are fitted. None: any, as the model has
    it.
    """
    scale: int | None = setting(None, 32, 1 << 16)
    """Short side in pixels, when it is not to be the model's own."""
    data: str | None = None
    """Data set on which source and file are both measured. None: they answer generated pictures."""
    split: str | None = None
    """What AP is measured on. None: val if there is one, else the only one."""
    calibration: int = setting(300, 1)
    """int8: pictures of the split train (else of --split) that are looked at."""
    max_drop: float | None = setting(None, 0, 1)
    """AP that the file may have less than its source. None: 0.003, int8 0.010."""
    workers: int | None = setting(None, 0, 1 << 10)
    """Loader processes for AP. None: one."""


@dataclass(frozen=True)
class CheckConfig(SourceOptions):
    """A look at a data set before anything is trained on it."""

    deep: bool = False
    """Decode every picture too."""
    preset: str | None = None
    """Whose anchors and scale the boxes are compared with. None: the preset that `train` would choose
    here.
    """
    scale: int | None = setting(None, 32, 1 << 16)
    """Short side in pixels instead of the preset's."""
    anchor_size: float | None = setting(None, 1e-3, 1e6)
    """Side of a level's smallest anchor, in strides, instead of the preset's."""
    anchor_scales: tuple[float, ...] | None = setting(None, 1e-3, 1e3)
    """Octave steps of the anchors instead of the preset's."""
    anchor_ratios: tuple[float, ...] | None = setting(None, 1e-3, 1e3)
    """Height over width of the anchors instead of the preset's."""


@dataclass(frozen=True)
class LabConfig:
    """A table or figure of the paper on one's own data: a training a row. `out` is the study's folder,
    `budget` is that of a row.
    """

    train: TrainConfig = field(default_factory=TrainConfig)

    seeds: int = setting(1, 1, group="study")
    """Trainings of every row, from `seed` on; two or more give 95 % intervals."""
    alphas: Literal["paper", "search"] = setting("paper", group="study")
    """table1b: alpha for each gamma as printed, or the best of 0.25, 0.5 and 0.75 in validation."""


@dataclass(frozen=True)
class AuditConfig(RunConfig):
    """Which examples produce a model's loss, and which labels look wrong."""

    split: str | None = None
    """train, val or test. None: val if there is one, else the only one; labels are best examined on train."""
    out: Path | None = None
    """Folder for audit.json, suspects.json and the page. None: runs/audit-<data>, numbered."""
    count: int = setting(100, 1)
    """Suspicious labels that are listed and shown."""


@dataclass(frozen=True)
class FigureConfig:
    """A figure that needs no training, or what is made of a study's results."""

    out: Path = Path("runs/lab")
    """Folder of the study."""


@dataclass(frozen=True)
class DemoConfig:
    """The offline first run."""

    out: Path = Path("runs/demo")
    """Folder for scenes, run and page; a number is added when it exists."""
    budget: str = "4.2min"
    """How long to train: 4.2min, 300it."""
    device: str = "auto"
    """cpu, cuda; auto: a GPU if there is one."""
    seed: int = setting(0, 0, (1 << 63) - 1)
    """Scenes and training follow from it."""
