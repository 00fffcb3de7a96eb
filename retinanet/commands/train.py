"""The command `train`: opens data, resolves settings, makes the run folder, starts or resumes the loop."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config.commands import ResumeConfig
from ..config.io import override, reading, to_json
from ..config.presets import PRESETS, default_preset
from ..config.presets import preset as preset_config
from ..config.schema import TrainConfig
from ..data.splits import open_training
from ..device import describe, explain_errors, pick_device, versions
from ..distributed import broadcast_from_main, is_main_process, process_group, world
from ..errors import DataError
from ..files import new_folder, write_atomically
from ..inference.load import read_pretrained
from ..training.autobatch import resolve_auto_batch
from ..training.card import origins
from ..training.log import log_file, show_log
from ..training.loop import loop
from ..training.resume import Counters, load_state, read_run, save_state
from ..training.schedule import plan, tell_left_over
from ..training.setup import TrainState, build_state, resolve_config
from ..weights.transfer import Pretrained

log = logging.getLogger("retinanet")


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
            settings[path] = Path(settings[path])
    config, init = start_config(name, settings.get("init"))
    return run(data, override(config, settings), name, init)


def start_config(preset: str, init: str | None = None) -> tuple[TrainConfig, Pretrained | None]:
    """The preset of that name, and the model that `init` names, read once.

    With `init` the network is that model's, whatever the preset says of it.
    """
    config = preset_config(preset)
    if init in (None, "imagenet", "none"):
        return config, None
    pretrained = read_pretrained(init)
    return replace(config, model=pretrained.info.model, train_scale=None), pretrained


def run(
    source: str | Path,
    config: TrainConfig,
    preset_name: str | None = None,
    init: Pretrained | None = None,
) -> Path:
    """Train on the data set at `source`; returns the folder of the run.

    `init` is the model that `config.init` names, where it has been read already.
    """
    started = time.perf_counter()
    device = pick_device(config.device)
    with process_group():
        config = resolve_config(config, device)
        training, validation = open_training(source, config.seed, **reading(config))
        fallback = f"{Path(source).resolve().stem}-{preset_name or default_preset(config.device)}"
        folder = broadcast_from_main(lambda: new_folder(config.out, fallback))
        with explain_errors(), log_file(folder):
            log.info("preset: %s", describe_preset(preset_name))
            config = resolve_auto_batch(config, training, validation, device)
            if config.init_model is not None and init is None:
                init = read_pretrained(config.init)
            state = build_state(config, training, validation, device, init)
            about = run_metadata(state, source, preset_name, started)
            about["init"] = origins(config, None if init is None else init.info)
            save_state(state, Counters(), folder)
            if is_main_process():
                write_atomically(folder / "config.json", json.dumps(about, indent=1).encode())
            loop(state, about, Counters(), folder, started)
            tell_left_over(config.budget, time.perf_counter() - started)
            return folder


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
            changes[path] = Path(changes[path])
    return resume_run(Path(folder), override(ResumeConfig(), changes))


def resume_run(folder: Path, changes: ResumeConfig) -> Path:
    """From the last state of a run to its end."""
    started = time.perf_counter()
    about, before = read_run(folder)
    current = replace(
        before, workers=changes.workers
    )  # their number is the machine's business, not the run's
    for name in ("device", "micro_batch", "images"):
        if getattr(changes, name) is not None:
            current = replace(current, **{name: getattr(changes, name)})
    device = pick_device(current.device)
    with process_group():
        current = resolve_config(current, device)
        source = changes.data or Path(about["data"])
        if not source.exists():
            raise DataError(
                f"the data set {source} of {folder} is not here; say where it lies now with --data"
            )
        training, validation = open_training(source, current.seed, **reading(current))
        for data, known in ((training, "data_hash"), (validation, "validation_hash")):
            if data.fingerprint() != about[known]:
                raise DataError(
                    f"{source}: the {data.split} annotations are not those that {folder} was begun with "
                    f"({data.fingerprint()}, then "
                    f"{about[known]}), so it cannot go on; start a new run, with --init {folder} to keep "
                    f"its weights"
                )
        with explain_errors(), log_file(folder):
            state = build_state(current, training, validation, device, load_weights=False)
            progress = load_state(state, folder)
            log.info(
                "resumed after iteration %d of %d, on %s",
                progress.done,
                about["iterations"],
                describe(device),
            )
            if about["versions"] != versions():
                log.info(
                    "other versions than before: bits may differ (%s, now %s)", about["versions"], versions()
                )
            return loop(state, about, progress, folder, started)


def describe_preset(name: str | None) -> str:
    """What is known about a preset before it is run."""
    if name is None:
        return "none, all settings were given"
    known = PRESETS[name]
    return f"{name}, for {known.hardware}; expect {known.expected} ({known.source}); {known.measured}"


def run_metadata(
    state: TrainState, source: str | Path, preset_name: str | None, started: float
) -> dict[str, Any]:
    """The plan of a run, printed and as it goes into config.json and the files of weights."""
    config, training = state.config, state.training
    iterations, every = plan(state, started)
    about = {
        "data": str(source),
        "data_hash": training.fingerprint(),
        "validation_hash": state.validation.fingerprint(),
        "training_images": len(training),
        "training_boxes": int((~training.crowd).sum()),
        "iterations": iterations,
        "validate_every": every,
        "preset": preset_name,
        "config": to_json(config),
        "versions": versions(),
        "machine": describe(state.device),
        "processes": world(),
    }
    classes, boxes = len(training.names), about["training_boxes"]
    log.info(
        "%d images of %d classes, %d boxes to train on; %d images to validate on",
        len(training),
        classes,
        boxes,
        len(state.validation),
    )
    several = f" and {world() - 1} more processes" if world() > 1 else ""
    log.info(
        "%s, %d px, %s, on %s%s",
        config.model.network.backbone,
        config.model.preprocess.scale,
        config.precision,
        about["machine"],
        several,
    )
    log.info(
        "learning rate %.3g (%.3g for %d images, scaled to %d)",
        state.rate,
        config.lr,
        config.lr_batch,
        state.sampler.batch,
    )
    epochs = iterations / state.sampler.steps_per_epoch
    log.info("%d iterations (%.1f epochs), validation every %d", iterations, epochs, every)
    return about
