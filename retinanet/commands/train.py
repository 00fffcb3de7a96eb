"""The commands `train` and `resume` as functions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config.commands import ResumeConfig
from ..config.io import override
from ..config.presets import default_preset
from ..config.presets import preset as preset_config
from ..config.schema import TrainConfig
from ..files import as_path
from ..inference.load import read_pretrained
from ..training.log import show_log
from ..training.run import resume_run, run
from ..weights.transfer import Pretrained


def train(data: str | Path, preset: str | None = None, **settings: Any) -> Path:
    """Train a detector; the command `train` as a function.

    Args:
        data: A folder or file of annotated images: COCO, VOC or YOLO.
        preset: A name of `PRESETS`; None: tiny on a CPU, r50-modern on a GPU.
        settings: Any setting of `TrainConfig` and its parts, by name.

    Returns:
        The folder of the run, which `load` takes.

    Raises:
        ConfigError: A setting is unknown or out of range.
        DataError: The data set cannot be used as it is.
        CheckpointError: The initial weights cannot be read.
        DivergenceError: The loss is not finite.

    Example:
        >>> run = retinanet.train("cells", preset="tiny", budget="7min", out="runs/cells")
        >>> detector = retinanet.load(run)
        >>> detector.predict("slide.jpg")
    """
    show_log()
    name = preset or default_preset(str(settings.get("device", "auto")))
    if settings.get("init") is not None:
        settings["init"] = str(settings["init"])
    for path in ("out", "images"):
        if settings.get(path) is not None:
            settings[path] = as_path(settings[path], path)
    config, init = start_config(name, settings.get("init"))
    return run(as_path(data, "data"), override(config, settings), name, init)


def start_config(preset: str, init: str | None = None) -> tuple[TrainConfig, Pretrained | None]:
    """The preset of that name, and the model that `init` names, read once.

    With `init` the network is that model's, whatever the preset says of it.
    """
    config = preset_config(preset)
    if init in (None, "imagenet", "none"):
        return config, None
    pretrained = read_pretrained(init)
    return replace(config, model=pretrained.info.model, train_scale=None), pretrained


def resume(folder: str | Path, **changes: Any) -> Path:
    """Resume a stopped run from its last state, as if it had not been stopped.

    Args:
        folder: The folder of the run.
        changes: What may differ, by name (`ResumeConfig`): data, images, device, workers, micro_batch.

    Returns:
        The folder of the run.

    Raises:
        ConfigError: There is no run, or it is finished.
        DataError: The data have changed.
        CheckpointError: The state is not complete.

    Example:
        >>> run = retinanet.resume("runs/cells", device="cpu")
        >>> detector = retinanet.load(run)
        >>> detector.predict("slide.jpg")
    """
    show_log()
    for path in ("data", "images"):
        if changes.get(path) is not None:
            changes[path] = as_path(changes[path], path)
    return resume_run(as_path(folder, "a run"), override(ResumeConfig(), changes))
