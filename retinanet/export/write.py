"""Writes a model as a file for another runtime, and keeps it only if it gives the model's detections."""

from __future__ import annotations

import copy
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
from ..files import sha256, write_atomically
from ..inference.detector import Detector
from ..inference.load import detector_of, load
from ..inference.runtimes import extra
from ..model.preprocess import with_scale
from ..model.retinanet import RetinaNet
from ..weights.checkpoint import FORMAT, ModelInfo
from .graph import Graph, traced
from .onnx import to_int8 as onnx_int8
from .onnx import to_onnx, write_onnx
from .openvino import to_int8 as openvino_int8
from .openvino import to_openvino, write_openvino
from .proof import compare, show

log = logging.getLogger("retinanet")

FORMATS = {
    "onnx": (".onnx", ("fp32", "int8"), "its runtimes compute bf16 on few CPUs"),
    "openvino": (".xml", ("fp32", "bf16", "int8"), ""),
}
"""Suffix, precisions, and why the others are refused."""

NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}


def export(detector: Detector, path: str | Path, format: str | None = None) -> Path:
    """What `Detector.export` does."""
    out = Path(path)
    known = {suffix: name for name, (suffix, _, _) in FORMATS.items()}
    info = detector.info
    if info is None or detector.runtime is not None:
        raise ConfigError("only a detector that `load` made from weights can be exported")
    scale = detector.preprocess.scale
    config = ExportConfig(
        format=format or known.get(out.suffix, "onnx"),  # type: ignore[arg-type]
        out=out,
        scale=None if scale == info.model.preprocess.scale else scale,
    )
    check_export(config, out)
    network = copy.deepcopy(detector.model).cpu()
    if reasons := write_and_compare(network, info, out, config):
        raise ConfigError(f"{out} does not give the detector's detections: {'; '.join(reasons)}")
    return out


def write_and_compare(
    network: RetinaNet, info: ModelInfo, out: Path, config: ExportConfig, source: Path | None = None
) -> list[str]:
    """Write a file beside its place, compare it with its source, and move it there if it passes.

    Returns why it does not pass. `source` is the file of the network. FILE.report.json is written either way.
    """
    device = torch.device("cpu")
    detector = detector_of(network, info, device, scale=config.scale, canvas=config.size)
    data = None
    if config.data is not None:
        data = in_model_classes(open_split(config.data, config.split, **reading(config)), detector.names)
    known = None if config.data is None else Path(config.data).resolve().name
    about: dict[str, Any] = {
        "format": config.format,
        "precision": config.precision,
        "size": config.size,
        "source": source and source.name,
        "source_sha256": source and sha256(source),
        "inputs": "images [B, 3, H, W] RGB, sizes [B, 2]: height and width of each image inside the batch",
        "outputs": "boxes [B, N, 4] xyxy in pixels of the batch, scores [B, N], labels [B, N], counts [B]",
        "versions": versions(),
    }
    if config.precision == "int8":
        about |= {"calibrated_on": known, "calibration": config.calibration}
    log.info("tracing %s", source or "the detector")
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        made = Path(folder) / out.name
        images = calibration(config, data, detector)
        write(made, Graph(detector), described(info, config, about), config, images)
        unfitted = None if config.size is None or data is None else detector_of(network, info, device)
        proof = compare(
            *(detector, load(made, "cpu"), config.precision, data, config.max_drop),
            *(pick_workers(config.workers, device), config.max_pixels, unfitted),
        )
        show(proof)
        report = {
            **about,
            "file": out.name,
            "sha256": sha256(made),
            "bytes": sum(file.stat().st_size for file in made.parent.iterdir()),
            "machine": describe(device),
            "data": known,
            "split": None if data is None else data.split,
            **proof.to_json(),
        }
        place = out.with_name(f"{out.name}.report.json")
        write_atomically(place, json.dumps(report, indent=1).encode())
        if not proof.reasons:
            for file in sorted(made.parent.iterdir()):  # .bin before .xml
                file.replace(out.with_suffix(file.suffix))
            if data is None:
                log.info("AP was not measured: give --data")
            log.info("%s gives the detections of its source: %s", out, place.name)
        return proof.reasons


def check_export(config: ExportConfig, out: Path) -> None:
    """ConfigError for what cannot be made or must not be overwritten, before anything is loaded."""
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
        raise ConfigError("int8 needs --data: images set the ranges, and AP shows the cost")
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
        raise ConfigError("either --size or --scale, not both: --size fits all images into one size")
    if config.size is not None and any(side < 32 or side % 32 for side in config.size):
        nearest = " ".join(str(max(32, round(side / 32) * 32)) for side in config.size)
        raise ConfigError(
            f"--size must be multiples of 32 pixels, as the pyramid's maps are: not {config.size[0]} "
            f"{config.size[1]} but {nearest}"
        )


def described(card: ModelInfo, config: ExportConfig, about: dict[str, Any]) -> str:
    """The file's metadata as JSON: the card of its weights without local paths, and how it was exported."""
    model = card.model
    if config.scale is not None:
        model = replace(model, preprocess=with_scale(model.preprocess, config.scale))
    public = dict(card.about)
    if "data" in public:
        public["data"] = Path(public["data"]).name
    if "config" in public:
        local = ("out", "images", "init")
        public["config"] = {name: value for name, value in public["config"].items() if name not in local}
    card = replace(card, model=model, about=public)
    return json.dumps({"format": FORMAT, **asdict(card), "export": about}, sort_keys=True)


def write(
    made: Path, graph: Graph, text: str, config: ExportConfig, images: Iterable[tuple[Tensor, Tensor]]
) -> None:
    """The file, for OpenVINO with its .bin. `images`: `config.calibration` batches for int8, read late."""
    program, int8 = traced(graph.eval(), config.size), config.precision == "int8"
    proto = to_onnx(program, text)
    if config.format == "onnx":
        write_onnx(onnx_int8(proto, images, config.calibration) if int8 else proto, made)
        return
    onnx = made.with_suffix(".onnx")
    write_onnx(proto, onnx)
    model = to_openvino(onnx, text)
    write_openvino(openvino_int8(model, images, config.calibration) if int8 else model, made)
    onnx.unlink()


def calibration(
    config: ExportConfig, data: Dataset | None, detector: Detector
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images from all over the split train, each as a batch; where there is none, of the split for AP."""
    assert config.data is not None and data is not None
    splits = open_dataset(config.data, config.layout, config.images)
    shown = (
        validate(splits["train"], config.invalid, max_pixels=config.max_pixels)[0]
        if "train" in splits
        else data
    )
    if not len(shown):
        raise DataError(f"{config.data} has no images to set the ranges of int8")
    count = min(config.calibration, len(shown))
    log.info("int8: the ranges are set by %d images", count)
    for index in range(0, len(shown) // count * count, len(shown) // count):
        image = read_image(shown.path(index), config.max_pixels)
        yield detector.preprocess.stack([detector.preprocess.resized(image)])
