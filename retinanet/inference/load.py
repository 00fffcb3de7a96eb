"""Opens a detector from a run folder, a file of weights, an exported file or a published name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..config.io import limits
from ..config.schema import PreprocessConfig
from ..device import gpu_number, pick_device
from ..errors import CheckpointError, ConfigError, nearest
from ..files import as_path
from ..model.retinanet import RetinaNet
from ..weights.checkpoint import ModelInfo, build, load_model, postprocess_of, preprocess_of
from ..weights.transfer import Pretrained
from .detector import Detector, Runtime


def load(
    model: str | Path,
    device: str = "auto",
    precision: str = "fp32",
    scale: int | None = None,
    scales: Sequence[int] | None = None,
) -> Detector:
    """Load a detector from a run folder, a file of weights or a published name.

    Args:
        model: runs/cells (its model.safetensors); a .safetensors file; a .pth or .pkl file of a RetinaNet of
            torchvision, Detectron2 or MMDetection; a name that `retinanet models` lists; hf:OWNER/NAME; or a
            file that `retinanet export` wrote.
        device: cpu, cuda, cuda:1; auto: a GPU if there is one.
        precision: fp32 or bf16; an exported file has its own.
        scale: Short side in pixels; None: the model's own.
        scales: Several short sides. The detections of all are merged; the time is that of all together.

    Raises:
        CheckpointError: There is no such model, or the file is not complete.
        ConfigError: An unknown device or precision, or scale and scales at once.

    Example:
        >>> detector = retinanet.load("runs/cells", device="cpu")
        >>> detector.names
        ['RBC', 'WBC', 'Platelets']
    """
    from .runtimes import SUFFIXES  # an annex: only an exported file needs the rest of it

    short_sides(scale, scales)
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"precision is fp32 or bf16, not {precision!r}")
    path = resolve_weights(model)
    if path.suffix in SUFFIXES:
        return exported(path, device, precision, scale, scales)
    network, card = load_checkpoint(path)
    return detector_of(network, card, pick_device(device), precision, scale, scales)


def exported(
    path: Path, device: str, precision: str, scale: int | None, scales: Sequence[int] | None
) -> Detector:
    """A detector that runs an exported file; see `load`."""
    if scales is not None:
        raise ConfigError(
            f"{path} gives boxes and no candidates, so --scales cannot merge them; use the "
            f"model it was made of"
        )
    from .runtimes import open_runtime

    runtime = open_runtime(path, device, gpu_number(device))
    if precision == "bf16" != runtime.precision:
        raise ConfigError(
            f"{path} was exported in {runtime.precision}, so --precision bf16 has no say; export it in bf16"
        )
    if scale is not None and runtime.size is not None:
        raise ConfigError(
            f"{path} was exported for images of {runtime.size[0]} x {runtime.size[1]}, so --scale has no say"
        )
    return detector_of(
        runtime, runtime.card, torch.device("cpu"), runtime.precision, scale, canvas=runtime.size
    )


def detector_of(
    network: RetinaNet | Runtime,
    card: ModelInfo,
    device: torch.device,
    precision: str = "fp32",
    scale: int | None = None,
    scales: Sequence[int] | None = None,
    canvas: tuple[int, int] | None = None,
) -> Detector:
    """A detector from a network and the card of its file."""
    preprocess, *others = (
        replace(preprocess_of(card.model, side), canvas=canvas) for side in short_sides(scale, scales)
    )
    settings = (preprocess, postprocess_of(card.model), card.names, card.category_ids, card.threshold)
    detector = Detector(network, *settings, device, precision, others)
    detector.info = card
    return detector


def short_sides(scale: int | None, scales: Sequence[int] | None) -> Sequence[int | None]:
    """The short sides, each once; None is the model's own. ConfigError when both are given."""
    if scales is None:
        return [scale]
    if scale is not None:
        several = " ".join(map(str, scales))
        raise ConfigError(f"either one scale or several, not both: --scale {scale} and --scales {several}")
    low, high = limits(PreprocessConfig, "scale")
    if not scales or not all(low <= side <= high for side in scales):
        raise ConfigError(
            f"scales must be one or more numbers of pixels from {low:g} to {high:g}, not {list(scales)}"
        )
    return sorted(set(scales))


def resolve_weights(model: str | Path, also: Sequence[str] = ()) -> Path:
    """The file of weights that a run folder, a path, a published name or hf:OWNER/NAME means; what is on the
    disk always wins. `also` are words that may have been meant."""
    path = as_path(model, "a model")
    if path.is_dir():
        if not (path / "model.safetensors").exists():
            raise CheckpointError(f"{path} is a folder without model.safetensors; is it a finished run?")
        return path / "model.safetensors"
    if path.exists():
        return path
    from ..weights.hub import KNOWN, resolve  # an annex: only a published name needs it

    found = resolve(model)
    if found is None:
        raise CheckpointError(
            f"no model {str(model)!r}: neither a run folder nor a file of weights, nor a name of `retinanet "
            f"models`{nearest(model, (*also, *KNOWN))}"
        )
    return found


FOREIGN = (".pth", ".pt", ".pkl", ".bin")
"""Ours end in .safetensors."""


def load_checkpoint(path: Path) -> tuple[RetinaNet, ModelInfo]:
    """The network and card of a file of ours, or of another project's, which is converted on the way."""
    if path.suffix not in FOREIGN:
        return load_model(path)
    from ..weights.foreign.convert import import_weights  # an annex: only a foreign file needs it

    weights, card = import_weights(path)
    model = build(card.model, len(card.names))
    model.load_state_dict(weights)
    return model, card


def read_pretrained(source: str | Path) -> Pretrained:
    """The model that `--init` names, read and converted once: for its settings, then for its weights."""
    path = resolve_weights(source, ("imagenet", "none"))
    model, info = load_checkpoint(path)
    return Pretrained(str(path), model.state_dict(), info)
