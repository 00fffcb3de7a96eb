"""A training from the data set to the finished run folder: it starts here, or is resumed."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config.commands import ResumeConfig
from ..config.io import reading, to_json
from ..config.presets import PRESETS, default_preset
from ..config.schema import TrainConfig
from ..data.reach import too_narrow
from ..data.splits import account, open_training
from ..device import describe, explain_errors, pick_device, versions
from ..distributed import broadcast_from_main, is_main_process, process_group, world
from ..errors import DataError
from ..evaluation.doubts import more_objects
from ..files import new_folder, write_atomically
from ..inference.load import read_pretrained
from ..text import listed, many
from ..weights.transfer import Pretrained
from .log import log_file
from .loop import loop
from .pace import Pace
from .resume import Counters, load_state, read_run, save_state
from .schedule import plan
from .setup import TrainState, build_state, resolve_config

log = logging.getLogger("retinanet")


def run(
    source: str | Path,
    config: TrainConfig,
    preset_name: str | None = None,
    init: Pretrained | None = None,
    started: float | None = None,
) -> Path:
    """Train on the data set at `source`; returns the folder of the run.

    `init` is the model that `config.init` names, where it has been read already. `started` is the time of
    `perf_counter` at which a budget of minutes begins, where that was before now.
    """
    started = time.perf_counter() if started is None else started
    device = pick_device(config.device)
    with process_group():
        config = resolve_config(config, device)
        training, validation = open_training(source, config.seed, **reading(config))
        fallback = f"{Path(source).resolve().stem}-{preset_name or default_preset(config.device)}"
        folder = broadcast_from_main(lambda: new_folder(config.out, fallback))
        with explain_errors(), log_file(folder):
            log.info("preset: %s", describe_preset(preset_name))
            if config.batch == "auto":
                from .autobatch import resolve_auto_batch

                config = resolve_auto_batch(config, training, validation, device)
            if config.init_model is not None and init is None:
                init = read_pretrained(config.init)
            state = build_state(config, training, validation, device, init)
            pace = plan(state, started)
            progress, about = Counters(pace=pace), run_metadata(state, source, preset_name, pace)
            from .card import origins  # an annex: a run without it would train as well

            about["init"] = origins(config, None if init is None else init.info)
            save_state(state, progress, folder)
            if is_main_process():
                write_atomically(folder / "config.json", json.dumps(about, indent=1).encode())
            return loop(state, about, progress, folder)


def resume_run(folder: Path, changes: ResumeConfig, started: float | None = None) -> Path:
    """Continue a run from its last state to its end; what is used of its minutes stays used."""
    started = time.perf_counter() if started is None else started
    about, config = read_run(folder)
    config = replace(config, workers=changes.workers)  # their number depends on the machine, not on the run
    for name in ("device", "micro_batch", "images"):
        if getattr(changes, name) is not None:
            config = replace(config, **{name: getattr(changes, name)})
    device = pick_device(config.device)
    with process_group():
        config = resolve_config(config, device)
        source = changes.data or Path(about["data"])
        if not source.exists():
            raise DataError(
                f"the data set {source} of {folder} is not here; say where it lies now with --data"
            )
        training, validation = open_training(source, config.seed, **reading(config))
        for data, known in ((training, about["data_hash"]), (validation, about["validation_hash"])):
            if data.fingerprint() != known:
                raise DataError(
                    f"{source}: the {data.split} annotations are not those that {folder} was begun with "
                    f"({data.fingerprint()}, then {known}), so it cannot go on; start a new run, with --init "
                    f"{folder} to keep its weights"
                )
        with explain_errors(), log_file(folder):
            state = build_state(config, training, validation, device, load_weights=False)
            progress = load_state(state, folder)
            if progress.pace.seconds is None:
                progress.pace = Pace(about["iterations"], about["validate_every"])
            progress.pace.began += started
            where = progress.done, progress.pace, describe(device)
            log.info("resumed after iteration %d of %s, on %s", *where)
            then, now = about["versions"], versions()
            if then != now:
                log.info("other versions than before: bits may differ (%s, now %s)", then, now)
            return loop(state, about, progress, folder)


def describe_preset(name: str | None) -> str:
    """What is known about a preset before it is run."""
    if name is None:
        return "none, all settings were given"
    known = PRESETS[name]
    return f"{name}, for {known.hardware}; expect {known.expected} ({known.source}); {known.measured}"


def doubts(state: TrainState) -> list[str]:
    """What the data sets lack for a training that can be judged."""
    training, validation = state.training, state.validation
    seen = set(validation.labels[~validation.crowd].tolist())
    unseen = [name for label, name in enumerate(validation.names) if label not in seen]
    narrow = too_narrow(training, state.preprocess, min(state.model.strides))
    texts = []
    if unseen:
        texts.append(f"validation has no object of {listed(unseen)}: its AP says nothing about them")
    texts += more_objects(training, validation, limit=state.config.model.postprocess.max_detections)
    if narrow:
        height, width = state.preprocess.size(*training.sizes[narrow[0]].tolist())
        texts.append(
            f"{many(len(narrow), 'image')} too narrow for any anchor, as {training.files[narrow[0]]} at "
            f"{width} x {height} px: nothing is learned from them; cut them into pieces, or raise --scale"
        )
    return texts


def run_metadata(
    state: TrainState, source: str | Path, preset_name: str | None, pace: Pace
) -> dict[str, Any]:
    """Print the plan of a run, and return it as it goes into config.json and the files of weights."""
    config, training, validation, batch = state.config, state.training, state.validation, state.sampler.batch
    boxes, machine = int((~training.crowd).sum()), describe(state.device)
    sizes = len(training), len(training.names), boxes, len(validation)
    log.info("%d images of %d classes, %d boxes to train on; %d images to validate on", *sizes)
    several = f" and {world() - 1} more processes" if world() > 1 else ""
    network, scale = config.model.network.backbone, config.model.preprocess.scale
    log.info("%s, %d px, %s, on %s%s", network, scale, config.precision, machine, several)
    rates = state.rate, config.lr, config.lr_batch, batch
    log.info("learning rate %.3g (%.3g for %d images, scaled to %d)", *rates)
    epochs = pace.iterations / state.sampler.steps_per_epoch
    log.info("%s iterations (%.1f epochs), validation every %d", pace, epochs, pace.every)
    for text in doubts(state):
        log.warning("%s", text)
    return {
        "data": str(source),
        "data_hash": training.fingerprint(),
        "validation_hash": validation.fingerprint(),
        "data_notes": {"train": account(training), "val": account(validation)},
        "training_images": len(training),
        "training_boxes": boxes,
        "iterations": pace.iterations,
        "validate_every": pace.every,
        "preset": preset_name,
        "config": to_json(config),
        "versions": versions(),
        "machine": machine,
        "processes": world(),
    }
