"""Every setting of the commands other than `train`: the dataclasses are the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .schema import DataOptions, SourceOptions, TrainConfig, setting


@dataclass(frozen=True)
class ResumeConfig:
    """What may change when a run is resumed. Everything else stays as it was."""

    data: Path | None = None
    """Where the data set is now, if it has moved."""
    images: Path | None = None
    """Where the images are now, if they are elsewhere."""
    device: str | None = None
    """cpu, cuda, cuda:1 or auto. None: as before."""
    workers: int | None = setting(None, 0, 1 << 10)
    """Loader processes, which do not change the result. None: one on a CPU, up to eight beside a GPU."""
    micro_batch: int | None = setting(None, 1)
    """Images that a process computes at a time. None: as before."""


@dataclass(frozen=True)
class ImportConfig:
    """Weights of another project, converted to ours."""

    out: Path | None = None
    """File to write. None: beside the source file, ending in .safetensors."""
    names: Path | None = None
    """Text file of class names, one a line, if they are not COCO's."""
    bn_eps: float | None = setting(None, 0, 1)
    """eps of the backbone's batch norm (not in files). None: 0 for torchvision's first file, else 1e-5."""
    style: Literal["pytorch", "caffe"] | None = None
    """Origin of the backbone. caffe: BGR, deviation 1, stride in the 1x1. None: read from the file."""


@dataclass(frozen=True)
class ReplayConfig:
    """A training step that failed, computed once more."""

    device: str = "cpu"
    """cpu, cuda or cuda:1."""
    precision: Literal["fp32", "bf16"] | None = None
    """Number format. None: that of the step. Another one shows whether the format is the cause."""


@dataclass(frozen=True)
class RunConfig(DataOptions):
    """How a model runs. eval and predict share this."""

    device: str = "auto"
    """cpu, cuda or cuda:1. auto: a GPU if there is one."""
    batch: int = setting(8, 1)
    """Images per batch. Only images of the same padded shape share one."""
    workers: int | None = setting(None, 0, 1 << 10)
    """Loader processes. None: one on a CPU, up to eight beside a GPU."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is faster and costs a little AP."""
    scale: int | None = setting(None, 32, 1 << 16)
    """Short side in pixels. None: the model's own."""
    scales: tuple[int, ...] | None = setting(None, 32, 1 << 16)
    """Several short sides (400 600 800). The model runs at each, and the detections are merged."""


@dataclass(frozen=True)
class TilesConfig(RunConfig):
    """How large images are split into tiles. eval and predict share this."""

    tiles: int | None = setting(None, 32, 1 << 16)
    """Side in pixels of the tiles of larger images, for small objects. None: no tiles."""
    overlap: float = setting(0.25, 0, 1 - 1e-9)
    """Share of its side that a tile shares with the next. Larger objects are cut, and their pieces joined."""


@dataclass(frozen=True)
class EvalConfig(TilesConfig):
    """An evaluation."""

    split: str | None = None
    """train, val or test. None: val if there is one, else the only one."""
    out: Path | None = None
    """Folder for metrics.json, predictions.json and plots. None: nothing is written."""


@dataclass(frozen=True)
class PredictConfig(TilesConfig):
    """Detections of images."""

    out: Path | None = None
    """Folder for predictions.json, images and videos. None: the detections are printed."""
    split: str | None = None
    """The split, for a data set."""
    threshold: float | None = setting(None, 0, 1)
    """Lowest score of a drawn or printed box. None: the model's own (best F1). predictions.json has all."""
    save_images: bool = True
    """Save each image, and each video, with labelled boxes."""


@dataclass(frozen=True)
class ServeConfig:
    """A server."""

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0: all addresses. Addresses beyond loopback need a token or --no-auth."""
    port: int = setting(8000, 0, 65535)
    """Port to listen on. 0: a free one, which is printed."""
    token: str | None = None
    """Token that requests must send (Authorization: Bearer TOKEN). None: the variable RETINANET_TOKEN, which
    process lists do not show."""
    auth: bool = True
    """--no-auth: everybody who reaches the address is served."""
    hosts: tuple[str, ...] = ()
    """Other names of the server (Host header), for instance behind a proxy."""
    device: str = "auto"
    """cpu, cuda or cuda:1. auto: a GPU if there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is faster and costs a little AP."""
    scale: int | None = setting(None, 32, 1 << 16)
    """Short side in pixels. None: the model's own."""
    max_batch: int = setting(8, 1)
    """Images that the detector gets at once. Only images of the same padded shape share a batch."""
    max_wait: float = setting(4.0, 0)
    """Milliseconds that a batch waits for images that are being decoded."""
    queue: int = setting(32, 1)
    """Images that may wait or be processed. Beyond it requests get 503 with Retry-After."""
    decoders: int = setting(2, 1)
    """Threads that decode and resize."""
    max_images: int = setting(16, 1)
    """Images in one request."""
    max_bytes: int = setting(33_554_432, 1)
    """Bytes of one request."""
    max_pixels: int = setting(50_000_000, 1)
    """Images with more pixels are refused."""


@dataclass(frozen=True)
class ExportConfig(DataOptions):
    """A model as a file for another runtime, compared with its source."""

    format: Literal["onnx", "openvino"] = "onnx"
    """onnx (.onnx) or openvino (.xml and .bin)."""
    out: Path | None = None
    """File to write. None: beside the model, under its name."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """onnx: fp32 or int8. openvino: all three. int8 needs --data to measure the ranges of the activations."""
    size: tuple[int, int] | None = None
    """The only height and width, into which images are fitted. None: any, as in the model."""
    scale: int | None = setting(None, 32, 1 << 16)
    """Short side in pixels. None: the model's own."""
    data: str | None = None
    """Data set on which the source and the file are measured. None: they are compared on generated images."""
    split: str | None = None
    """Split for AP. None: val if there is one, else the only one."""
    calibration: int = setting(300, 1)
    """int8: images of the split train (else of --split) that set the ranges."""
    max_drop: float | None = setting(None, 0, 1)
    """AP that the file may lose against its source. None: 0.003, int8 0.010."""
    workers: int | None = setting(None, 0, 1 << 10)
    """Loader processes for AP. None: one."""


@dataclass(frozen=True)
class CheckConfig(SourceOptions):
    """A check of a data set before training."""

    deep: bool = False
    """Also decode every image."""
    out: Path | None = None
    """Text file of all problems, if there are more than ten of a kind. None: runs/<data>-check.txt."""
    preset: str | None = None
    """Preset of the anchors and scale for the boxes. None: the one that `train` would choose here."""
    scale: int | None = setting(None, 32, 1 << 16)
    """Short side in pixels. None: the preset's."""
    anchor_size: float | None = setting(None, 1e-3, 1e6)
    """Side of the smallest anchor of a level in strides. None: the preset's."""
    anchor_scales: tuple[float, ...] | None = setting(None, 1e-3, 1e3)
    """Factors on the anchor sides of a level. None: the preset's."""
    anchor_ratios: tuple[float, ...] | None = setting(None, 1e-3, 1e3)
    """Height over width of the anchors. None: the preset's."""


@dataclass(frozen=True)
class LabConfig:
    """A table or figure of the paper on your own data. Each row is a training. `out` is the folder of the
    study, `budget` that of one row."""

    train: TrainConfig = field(default_factory=TrainConfig)

    seeds: int = setting(1, 1, group="study")
    """Trainings of each row, from `seed` on. Two or more give 95 % intervals."""
    alphas: Literal["paper", "search"] = setting("paper", group="study")
    """table1b: alpha for each gamma as printed, or the best of 0.25, 0.5 and 0.75 in validation."""


@dataclass(frozen=True)
class AuditConfig(RunConfig):
    """Which examples produce the loss of a model, and which labels look wrong."""

    split: str | None = None
    """train, val or test. None: val if there is one, else the only one. Labels are best examined on train."""
    out: Path | None = None
    """Folder for audit.json, suspects.json and the page. None: runs/audit-<data>, numbered."""
    count: int = setting(100, 1)
    """Number of suspicious labels that are listed and shown."""


@dataclass(frozen=True)
class FigureConfig:
    """A figure without training, or one from the results of a study."""

    out: Path = Path("runs/lab")
    """Folder of the study."""


@dataclass(frozen=True)
class DemoConfig:
    """The offline first run."""

    out: Path = Path("runs/demo")
    """Folder for scenes, run and page. A number is added if it exists."""
    budget: str = "4.2min"
    """Length of training: 4.2min, 300it."""
    device: str = "auto"
    """cpu or cuda. auto: a GPU if there is one."""
    seed: int = setting(0, 0, (1 << 63) - 1)
    """The seed of the scenes and of the training."""
