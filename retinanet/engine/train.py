"""Training: one visible loop. Everything that a run needs is decided before it, printed, and written to
config.json.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import TrainConfig
from ..distributed import first, from_first, together, world
from ..errors import DataError
from ..presets import PRESETS
from ..settings import override, to_json
from ..verbs import ResumeConfig
from ..view.draw import save
from ..weights.checkpoint import Card, save_model, versions, write_whole
from ..weights.convert import load_any
from ..weights.origin import origins
from .cost import fitted
from .detector import find_model
from .evaluate import Evaluation, evaluate, write_evaluation
from .machine import describe, pick_device, told
from .modelcard import model_card, write_card
from .optim import lr_factor
from .plan import plan, tell_left_over
from .record import Record, duration, log_file, new_folder, show_log
from .session import Session, default_preset, new_session, open_training, preset_config, settled
from .state import Progress, Timer, load_state, read_run, save_state, stop_signals
from .step import batch_picture, train_step
from .watch import Advice, Watch

log = logging.getLogger("retinanet")


def train(data: str | Path, preset: str | None = None, **settings: Any) -> Path:
    """Train a detector; the verb `train` as a function.

    data      a folder or file of annotated pictures: COCO, VOC or YOLO
    preset    a name of `PRESETS`; None: tiny on a CPU, r50-modern on a GPU
    settings  any setting of `TrainConfig` and its parts, by name: budget="7min", out="runs/cells", gamma=1.0
    returns   the folder of the run, which `load` takes

    ConfigError, DataError, CheckpointError or DivergenceError say what is wrong and what to do.
    """
    show_log()
    name = preset or default_preset(str(settings.get("device", "auto")))
    for path in ("out", "images", "init"):
        if settings.get(path) is not None:
            settings[path] = Path(settings[path])
    return run(data, override(start_config(name, settings.get("init")), settings), name)


def start_config(preset: str, init: Path | None = None) -> TrainConfig:
    """The preset of that name; with `init` the network of that model, whatever the preset says of it."""
    config = preset_config(preset)
    return (
        config
        if init is None
        else replace(config, model=load_any(find_model(init))[1].model, train_scale=None)
    )


def run(source: str | Path, config: TrainConfig, preset_name: str | None = None) -> Path:
    """Train on the data set at `source`; returns the folder of the run."""
    started = time.perf_counter()
    device = pick_device(config.device)
    with together():
        config = settled(config, device)
        training, validation = open_training(source, config)
        fallback = f"{Path(source).resolve().stem}-{preset_name or default_preset(config.device)}"
        folder = from_first(lambda: new_folder(config.out, fallback))
        with told(), log_file(folder):
            log.info("preset: %s", told_preset(preset_name))
            config = fitted(config, training, validation, device)
            session = new_session(config, training, validation, device)
            about = planned(session, source, preset_name, started)
            save_state(session, Progress(), folder)
            if first():
                write_whole(folder / "config.json", json.dumps(about, indent=1).encode())
            loop(session, about, Progress(), folder, started)
            tell_left_over(config.budget, time.perf_counter() - started)
            return folder


def resume(folder: str | Path, **changes: Any) -> Path:
    """Go on with a run that was stopped, from its last state, as if it had not been; the verb `train
    --resume` as a function.

    changes  what may differ, by name (`ResumeConfig`): data, images, device, workers, micro_batch

    ConfigError when there is no run or it is finished; DataError when the data have changed; CheckpointError
    when the state is not whole.
    """
    show_log()
    for path in ("data", "images"):
        if changes.get(path) is not None:
            changes[path] = Path(changes[path])
    return go_on(Path(folder), override(ResumeConfig(), changes))


def go_on(folder: Path, changes: ResumeConfig) -> Path:
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
    with together():
        current = settled(current, device)
        source = changes.data or Path(about["data"])
        if not source.exists():
            raise DataError(
                f"the data set {source} of {folder} is not here; say where it lies now with --data"
            )
        training, validation = open_training(source, current)
        for data, known in ((training, "data_hash"), (validation, "validation_hash")):
            if data.fingerprint() != about[known]:
                raise DataError(
                    f"{source}: the {data.split} annotations are not those that {folder} was begun with "
                    f"({data.fingerprint()}, then "
                    f"{about[known]}), so it cannot go on; start a new run, with --init {folder} to keep "
                    f"its weights"
                )
        with told(), log_file(folder):
            session = new_session(current, training, validation, device, filled=False)
            progress = load_state(session, folder)
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
            return loop(session, about, progress, folder, started)


def told_preset(name: str | None) -> str:
    """What is known about a preset before it is run."""
    if name is None:
        return "none, all settings were given"
    known = PRESETS[name]
    return f"{name}, for {known.hardware}; expect {known.expected} ({known.source}); {known.measured}"


def planned(session: Session, source: str | Path, preset_name: str | None, started: float) -> dict[str, Any]:
    """The plan of a run, printed and as it goes into config.json and the files of weights."""
    config, training = session.config, session.training
    iterations, every = plan(session, started)
    about = {
        "data": str(source),
        "data_hash": training.fingerprint(),
        "validation_hash": session.validation.fingerprint(),
        "training_images": len(training),
        "training_boxes": int((~training.crowd).sum()),
        "iterations": iterations,
        "validate_every": every,
        "preset": preset_name,
        "init": origins(config, session.donor),
        "config": to_json(config),
        "versions": versions(),
        "machine": describe(session.device),
        "processes": world(),
    }
    classes, boxes = len(training.names), about["training_boxes"]
    log.info(
        "%d images of %d classes, %d boxes to train on; %d images to validate on",
        len(training),
        classes,
        boxes,
        len(session.validation),
    )
    several = f" and {world() - 1} more processes" if world() > 1 else ""
    log.info(
        "%s, %d px, %s, on %s%s",
        config.model.backbone,
        config.model.scale,
        config.precision,
        about["machine"],
        several,
    )
    log.info(
        "learning rate %.3g (%.3g for %d images, scaled to %d)",
        session.rate,
        config.lr,
        config.lr_batch,
        session.sampler.batch,
    )
    epochs = iterations / session.sampler.steps_per_epoch
    log.info("%d iterations (%.1f epochs), validation every %d", iterations, epochs, every)
    return about


def loop(session: Session, about: dict[str, Any], progress: Progress, folder: Path, started: float) -> Path:
    """From `progress` to the end; what it writes is the same whether it began at 0 or in the middle."""
    config, iterations, every = session.config, about["iterations"], about["validate_every"]
    record, watch = Record(folder, progress.rows, config.tensorboard), Watch(session.device)
    advice = Advice(session.rate, session.sampler.batch, config.optimizer, config.warmup, iterations)
    timer = Timer(config.save_every, session.sampler.steps_per_epoch, session.sampler.batch)
    for text in advice.begin():
        log.warning("%s", text)
    log.info("%s", folder)
    rates: dict[int, float] = {}

    def keep() -> None:
        if not watch.seen():  # once a step went wrong, what was before it stays
            progress.rows = len(record.rows)
            save_state(session, progress, folder)
        timer.saved()

    for row in record.rows:  # a run that goes on is not judged anew
        if row["kind"] == "train":
            advice.row(row["iteration"], row["loss"] or 0.0, row["positives"])
    positives: Tensor | float = 0.0  # of all steps since the last row, on the device
    seen, clock = 0, time.perf_counter()
    with stop_signals() as stop:
        batches = session.batches(progress.done, iterations)
        for iteration in range(progress.done, iterations):
            try:
                batch = next(batches)
            except (
                DataError
            ):  # a picture that cannot be decoded: once it is mended, the run goes on from here
                keep()
                log.info(
                    "stopped after iteration %d; go on with: retinanet train --resume %s",
                    progress.done,
                    folder,
                )
                raise
            if iteration == 0 and first():
                save(folder / "plots" / "first_batch.jpg", batch_picture(session, batch))
            rates[iteration] = session.rate * lr_factor(iteration, iterations, config.warmup, config.schedule)
            numbers = train_step(session, batch, rates[iteration])
            watch.note(iteration, numbers)
            positives = positives + numbers["positives"]
            seen += session.sampler.batch
            progress.done = done = iteration + 1
            validating = done % every == 0 and done < iterations
            if done % config.log_every == 0 or done == iterations or validating:
                values = {
                    name: float(value) for name, value in numbers.items()
                }  # the one place that waits for the device
                speed = seen / (time.perf_counter() - clock)
                seen, clock = 0, time.perf_counter()
                record.row("train", done, **values, lr=rates[iteration], images_per_second=speed)
                watch.check(session, folder, rates)
                left = (iterations - done) * session.sampler.batch / speed
                text = f"loss {values['loss']:.3f} (class {values['class_loss']:.3f}, box {values['box_loss']:.3f})"
                log.info(
                    "%d/%d  %s  lr %.2g  positives %.1f  %.1f images/s  %s left",
                    *(done, iterations, text, rates[iteration], values["positives"], speed, duration(left)),
                )
                for text in advice.row(done, values["loss"], float(positives)):
                    log.warning("%s", text)
                rates.clear()
                positives = 0.0
            if validating:
                validate_and_save(session, record, progress, about, folder)
            if validating or (first() and timer.due(done)):
                keep()
                clock = time.perf_counter() if validating else clock
            if stop.asked() and done < iterations:
                watch.check(session, folder, rates)
                keep()
                log.info(
                    "stopped after iteration %d of %d; go on with: retinanet train --resume %s",
                    done,
                    iterations,
                    folder,
                )
                stop.leave()
        keep()
        evaluation = validate_and_save(session, record, progress, about, folder)
    if first():
        write_evaluation(
            folder,
            session.validation,
            evaluation,
            {**about, "split": session.validation.split, "iteration": iterations},
        )
    log.info(
        "done in %s: AP %.3f in validation; %s",
        duration(time.perf_counter() - started),
        evaluation.metrics["AP"] or 0.0,
        folder,
    )
    if (
        stop.asked()
    ):  # during the last validation: this run is whole, but whatever would come after it is not wanted
        stop.leave()
    return folder


def validate_and_save(
    session: Session, record: Record, progress: Progress, about: dict[str, Any], folder: Path
) -> Evaluation:
    """Validation loss and AP of the shipped model; saved as model.safetensors, and as best.safetensors when
    it is, with a card.
    """
    config, data, done = session.config, session.validation, progress.done
    detector = session.detector()
    evaluation = evaluate(
        detector, data, session.evaluation_batch, config.workers or 0, session.criterion, config.max_pixels
    )
    session.model.train()
    metrics = evaluation.metrics
    numbers = {name: metrics[name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
    record.row(
        "val",
        done,
        loss=sum(evaluation.losses.values()),
        **evaluation.losses,
        **numbers,
        threshold=metrics.threshold,
    )
    shown = "  ".join(
        f"{name} {'-' if value is None else format(value, '.3f')}" for name, value in numbers.items()
    )
    log.info("%d  validation: loss %.3f  %s", done, sum(evaluation.losses.values()), shown)
    best = (metrics["AP"] or 0.0) > progress.best
    progress.best = max(progress.best, metrics["AP"] or 0.0)
    if first():
        card = Card(
            model=config.model,
            names=data.names,
            category_ids=data.category_ids,
            threshold=0.5 if metrics.threshold is None else metrics.threshold,
            about={**about, "iteration": done, "validation": numbers},
        )
        save_model(folder / "model.safetensors", session.shipped.state_dict(), card)
        if best:
            save_model(folder / "best.safetensors", session.shipped.state_dict(), card)
        record.plot()
        write_card(folder, model_card(folder.resolve().name, session, about, progress, metrics, record.rows))
    return evaluation
