"""The verb `export`: a model as a file for another runtime, written only when it has been proved against its
source.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.commands import ExportConfig
from ..config.io import check, reading
from ..data.dataset import Dataset
from ..data.formats.detect import open_dataset
from ..data.images import read_image
from ..data.splits import in_model_classes, open_split
from ..data.validate import validate
from ..device import describe, pick_workers, versions
from ..errors import ConfigError, DataError
from ..export.graph import Graph, traced
from ..export.onnx import to_int8 as onnx_int8
from ..export.onnx import to_onnx, write_onnx
from ..export.openvino import to_int8 as openvino_int8
from ..export.openvino import to_openvino, write_openvino
from ..export.proof import Proof, prove, show
from ..files import sha256, write_atomically
from ..inference.detector import Detector
from ..inference.load import detector_of, load, load_checkpoint, resolve_weights
from ..inference.runtimes import SUFFIXES, extra
from ..model.preprocess import with_scale
from ..weights.checkpoint import FORMAT, ModelInfo

log = logging.getLogger("retinanet")

FORMATS = {
    "onnx": (".onnx", ("fp32", "int8"), "its runtimes compute bf16 on few CPUs"),
    "openvino": (".xml", ("fp32", "bf16", "int8"), ""),
}
"""Suffix, precisions, and why the others are refused."""

NEEDS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}


def run(model: str, config: ExportConfig) -> bool:
    """Write, prove, and keep what passes; true when it does. FILE.report.json is written either way."""
    path, out = resolve_weights(model), checked(model, config)
    network, card = load_checkpoint(path)
    device = torch.device("cpu")
    source = detector_of(network, card, device, scale=config.scale, canvas=config.size)
    data = split_of(config, source) if config.data is not None else None
    known = None if config.data is None else Path(config.data).resolve().name
    about: dict[str, Any] = {
        "format": config.format,
        "precision": config.precision,
        "size": config.size,
        "source": path.name,
        "source_sha256": sha256(path),
        "inputs": "images [B, 3, H, W] RGB, sizes [B, 2]: height and width of each picture inside the batch",
        "outputs": "boxes [B, N, 4] xyxy in pixels of the batch, scores [B, N], labels [B, N], counts [B]",
        "versions": versions(),
    }
    if config.precision == "int8":
        about |= {"calibrated_on": known, "calibration": config.calibration}
    text = described(card, config, about)
    log.info("tracing %s", path)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        made = Path(folder) / out.name
        write(made, Graph(source), text, config, calibration(config, data, source))
        unfitted = (
            detector_of(network, card, device) if config.size is not None and data is not None else None
        )
        workers = pick_workers(config.workers, device)
        proof = prove(
            source,
            load(made, "cpu"),
            config.precision,
            data,
            config.max_drop,
            workers,
            config.max_pixels,
            unfitted,
        )
        show(proof)
        report = {
            **about,
            "file": out.name,
            "sha256": sha256(made),
            "bytes": sum(file.stat().st_size for file in made.parent.iterdir()),
        }
        report |= {
            "machine": describe(device),
            "data": known,
            "split": None if data is None else data.split,
            **proof.to_json(),
        }
        write_atomically(out.with_name(f"{out.name}.report.json"), json.dumps(report, indent=1).encode())
        return kept(made, out, proof)


def checked(model: str, config: ExportConfig) -> Path:
    """Where the file goes; ConfigError for what cannot be made or must not be overwritten, before anything is
    loaded.
    """
    check(config)
    suffix, precisions, why = FORMATS[config.format]
    if config.precision not in precisions:
        raise ConfigError(
            f"--format {config.format} is written in {' or '.join(precisions)}, not in {config.precision}: "
            f"{why}"
        )
    for name in (*NEEDS[config.format], *(["nncf"] if config.precision == "int8" else [])):
        extra(name)
    if config.precision == "int8" and config.data is None:
        raise ConfigError("int8 needs --data: pictures show which numbers occur, and AP what it costs")
    path = resolve_weights(model)
    if path.suffix in SUFFIXES:
        raise ConfigError(f"{path} was exported itself; give the model that it was made of")
    out = config.out or path.with_suffix(suffix)
    if out.suffix != suffix:
        raise ConfigError(
            f"--out for {config.format} ends in {suffix}, not in {out.suffix or 'nothing'}: {out}"
        )
    taken = [file for file in (out, out.with_suffix(".bin") if suffix == ".xml" else out) if file.exists()]
    if taken:
        raise ConfigError(f"{taken[0]} exists, and nothing is overwritten; choose another --out")
    if not out.parent.is_dir():
        out.parent.mkdir(parents=True)
    if config.size is not None and config.scale is not None:
        raise ConfigError("either --size or --scale, not both: into one size all pictures are fitted")
    if config.size is not None and any(side < 32 or side % 32 for side in config.size):
        nearest = " ".join(str(max(32, round(side / 32) * 32)) for side in config.size)
        raise ConfigError(
            f"--size must be multiples of 32 pixels, as the pyramid's maps are: not {config.size[0]} "
            f"{config.size[1]} but {nearest}"
        )
    return out


def described(card: ModelInfo, config: ExportConfig, about: dict[str, Any]) -> str:
    """What the file says about itself: its card, like any file of ours, without the paths of who trained it,
    and how it was exported.
    """
    model = card.model if config.scale is None else scaled(card, config.scale)
    told = dict(card.about)
    if "data" in told:
        told["data"] = Path(told["data"]).name
    if "config" in told:
        told["config"] = {
            name: value for name, value in told["config"].items() if name not in ("out", "images", "init")
        }
    return json.dumps(
        {"format": FORMAT, **asdict(replace(card, model=model, about=told)), "export": about}, sort_keys=True
    )


def scaled(card: ModelInfo, scale: int) -> Any:
    """The card's settings for another short side."""
    return replace(card.model, preprocess=with_scale(card.model.preprocess, scale))


def split_of(config: ExportConfig, detector: Detector) -> Dataset:
    """What AP is measured on."""
    assert config.data is not None
    data = open_split(config.data, config.split, **reading(config))
    return in_model_classes(data, detector.names)


def write(
    made: Path, graph: Graph, text: str, config: ExportConfig, pictures: Iterable[tuple[Tensor, Tensor]]
) -> None:
    """The file (OpenVINO: and its .bin), unproved. `pictures` are `config.calibration` batches for int8, read
    when they are needed.
    """
    program, int8 = traced(graph.eval(), config.size), config.precision == "int8"
    proto = to_onnx(program, text)
    if config.format == "onnx":
        write_onnx(onnx_int8(proto, pictures, config.calibration) if int8 else proto, made)
        return
    onnx = made.with_suffix(".onnx")
    write_onnx(proto, onnx)
    model = to_openvino(onnx, text)
    write_openvino(openvino_int8(model, pictures, config.calibration) if int8 else model, made)
    onnx.unlink()


def calibration(
    config: ExportConfig, data: Dataset | None, detector: Detector
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures of the split train, from all over it, each as a batch; where there is none, of what AP is
    measured on.
    """
    assert config.data is not None and data is not None
    splits = open_dataset(config.data, config.layout, config.images)
    shown = (
        validate(splits["train"], config.invalid, max_pixels=config.max_pixels)[0]
        if "train" in splits
        else data
    )
    if not len(shown):
        raise DataError(f"{config.data} has no pictures to set the ranges of int8 by")
    count = min(config.calibration, len(shown))
    log.info("int8: looking at %d pictures", count)
    for index in range(0, len(shown) // count * count, len(shown) // count):
        picture = read_image(shown.path(index), config.max_pixels)
        yield detector.preprocess.stack([detector.preprocess.resized(picture)])


def kept(made: Path, out: Path, proof: Proof) -> bool:
    """Move what passes to its place; say why not, otherwise."""
    report = f"{out.name}.report.json"
    if proof.reasons:
        log.error(
            "not written, since it is not what its source is (%s):\n  %s", report, "\n  ".join(proof.reasons)
        )
        return False
    for file in sorted(made.parent.iterdir()):  # .bin before .xml
        file.replace(out.with_suffix(file.suffix))
    if proof.ap is None:
        log.info("AP was not measured: give --data")
    log.info("%s is proved: %s", out, report)
    return True
