"""Exported files as callables: an ONNX file by onnxruntime, an OpenVINO model by OpenVINO.

Both take what `export.graph` takes and return what it returns. What the file says about itself is one JSON
string, as in our own files: under the key `retinanet` in ONNX's metadata and in OpenVINO's rt_info.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError
from ..weights.checkpoint import KEY, ModelInfo, parse_info

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]

Call = Callable[[Tensor, Tensor], Outputs]

SUFFIXES = (".onnx", ".xml")


@dataclass(frozen=True)
class ExportedModel:
    """An exported model; its call takes and returns what `export.graph.Graph` does."""

    call: Call
    card: ModelInfo
    precision: str
    """fp32, bf16 or int8."""
    size: tuple[int, int] | None
    """The only height and width that it takes; None: any."""

    def run(self, images: Tensor, sizes: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Boxes, scores and labels of each image of a batch, as `Postprocess` returns them."""
        boxes, scores, labels, counts = self.call(images.contiguous(), sizes.contiguous())
        rows = zip(boxes, scores, labels, counts.tolist(), strict=True)
        return [(box[:count], score[:count], label[:count]) for box, score, label, count in rows]


def open_runtime(path: Path, device: str = "cpu", gpu: int = 0) -> ExportedModel:
    """An exported file, ready to run; device as in `load`: a GPU (of that number) only for ONNX.

    CheckpointError when the file is missing, broken or not one of ours; ConfigError when the package that
    runs it is missing.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if device not in ("auto", "cpu") and path.suffix != ".onnx":
        raise ConfigError(f"{path} runs on the CPU, not on {device}")
    call, text = open_onnx(path, device, gpu) if path.suffix == ".onnx" else open_openvino(path)
    card = parse_info(path, text)
    try:
        about = json.loads(text)["export"]
        precision, size = str(about["precision"]), about["size"]
        return ExportedModel(call, card, precision, None if size is None else (int(size[0]), int(size[1])))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: it does not say how it was exported ({error})") from error


def open_onnx(path: Path, device: str, gpu: int) -> tuple[Call, str]:
    """By onnxruntime."""
    onnxruntime = extra("onnxruntime")
    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    there = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if device not in ("auto", "cpu") and not there:
        raise ConfigError(f"this onnxruntime has no {device}: pip install onnxruntime-gpu in its place")
    wanted = [("CUDAExecutionProvider", {"device_id": gpu})] if there and device != "cpu" else []
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=[*wanted, "CPUExecutionProvider"]
        )
        text = session.get_modelmeta().custom_metadata_map.get(KEY)
    except Exception as error:  # onnxruntime raises classes of its own
        raise broken(path, "onnxruntime", error) from error

    def call(images: Tensor, sizes: Tensor) -> Outputs:
        boxes, scores, labels, counts = map(
            torch.from_numpy, session.run(None, {"images": images.numpy(), "sizes": sizes.numpy()})
        )
        return boxes, scores, labels, counts

    return call, ours(path, text)


def open_openvino(path: Path) -> tuple[Call, str]:
    """By OpenVINO on the CPU, in the precision of the export: by default it computes in bf16 where it can."""
    openvino = extra("openvino")
    try:
        core = openvino.Core()
        model = core.read_model(str(path))
        place = ["retinanet", "card"]
        card = ours(path, model.get_rt_info(place).astype(str) if model.has_rt_info(place) else None)
        about = json.loads(card).get("export", {})
        hint = "bf16" if about.get("precision") == "bf16" else "f32"
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        several = single = core.compile_model(model, "CPU", settings).create_infer_request()
        if about.get("size"):  # known shapes are planned better: one image takes 6 % less in int8
            model.reshape({"images": [1, 3, *about["size"]], "sizes": [1, 2]})
            single = core.compile_model(model, "CPU", settings).create_infer_request()
    except CheckpointError:
        raise
    except Exception as error:
        raise broken(path, "OpenVINO", error) from error

    def call(images: Tensor, sizes: Tensor) -> Outputs:
        request = single if len(images) == 1 else several
        found = request.infer({"images": images.numpy(), "sizes": sizes.numpy()})
        boxes, scores, labels, counts = (
            torch.from_numpy(found[name].copy()) for name in ("boxes", "scores", "labels", "counts")
        )
        return boxes, scores, labels, counts

    return call, card


def extra(name: str) -> Any:
    """A package of the extra [export]; ConfigError with the line that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"this needs {name}: pip install 'retinanet[export]'") from error


def ours(path: Path, text: Any) -> str:
    """The file's JSON, or CheckpointError when it has none."""
    if not text or not isinstance(text, str):
        raise CheckpointError(
            f"{path} is no file that `retinanet export` wrote: it has no {KEY!r} entry in its metadata"
        )
    return text


def broken(path: Path, by: str, error: Exception) -> CheckpointError:
    """The error for a file that its own runtime refuses."""
    reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
    return CheckpointError(f"{path} cannot be read by {by} ({reason})")
