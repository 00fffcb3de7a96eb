"""Training: one visible loop. Everything that a run needs is decided before it, printed, and written to config.json."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..config import TrainConfig, preset
from ..data.dataset import Dataset
from ..data.layout import hold_out, open_dataset
from ..data.loader import steps_per_epoch
from ..data.validate import validate
from ..errors import ConfigError, DataError
from ..settings import check, override, to_json
from ..view.draw import save
from ..weights.checkpoint import Card, save_model, versions, write_whole
from .evaluate import Evaluation, evaluate, write_evaluation
from .machine import describe, pick_device, pick_precision, pick_workers
from .optim import lr_factor
from .plan import plan
from .record import Record, duration, log_file, new_folder, show_log
from .step import Session, Watch, batch_picture, new_session, train_step

log = logging.getLogger("retinanet")


def train(data: str | Path, preset: str | None = None, **settings: Any) -> Path:
    """Train a detector; the verb `train` as a function.

    data      a folder or file of annotated pictures: COCO, VOC or YOLO
    preset    tiny, r50-600 or r50-modern; None: tiny on a CPU, r50-modern on a GPU
    settings  any setting of `TrainConfig` and its parts, by name: budget="7min", out="runs/cells", gamma=1.0
    returns   the folder of the run, which `load` takes

    ConfigError, DataError, CheckpointError or DivergenceError say what is wrong and what to do.
    """
    show_log()
    config = preset_config(preset, str(settings.get("device", "auto")))
    for name in ("out", "images"):
        if settings.get(name) is not None:
            settings[name] = Path(settings[name])
    return run(data, override(config, settings), preset or default_preset(str(settings.get("device", "auto"))))


def preset_config(name: str | None, device: str = "auto") -> TrainConfig:
    """The preset of that name, or the one for this machine."""
    return preset(name or default_preset(device))


def default_preset(device: str = "auto") -> str:
    """The preset that a machine can carry: a step of ResNet-50 at 800 px takes 10 s on two cores."""
    return "tiny" if pick_device(device).type == "cpu" else "r50-modern"


def run(source: str | Path, config: TrainConfig, preset_name: str | None = None) -> Path:
    """Train on the data set at `source`; returns the folder of the run."""
    started = time.perf_counter()
    device = pick_device(config.device)
    config = settled(config, device)
    training, validation = open_training(source, config)
    fallback = f"{Path(source).resolve().stem}-{preset_name or default_preset(config.device)}"
    folder = new_folder(config.out, fallback)
    with log_file(folder):
        log.info("preset: %s", preset_name or "none, all settings were given")
        try:
            return _run(source, config, training, validation, folder, device, started)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"{config.batch} images of {config.model.scale} px do not fit in the GPU's memory; lower --batch or --scale"
            ) from error


def settled(config: TrainConfig, device: torch.device) -> TrainConfig:
    """The config with everything decided that the machine decides."""
    check(config)
    model = config.model
    if config.weights == "none" and model.backbone_norm == "frozen":
        model = replace(model, backbone_norm="batch")
        log.info("from scratch: the backbone's batch norm is live, not frozen")
    precision, workers = pick_precision(config.precision, device), pick_workers(config.workers, device)
    return replace(config, model=model, precision=precision, workers=workers)


def open_training(source: str | Path, config: TrainConfig) -> tuple[Dataset, Dataset]:
    """Training and validation split, both validated; without a validation split a seeded tenth of train is held out."""
    splits = open_dataset(source, config.layout, config.images)
    name = next((name for name in ("train", "all") if name in splits), None)
    if name is None:
        raise DataError(f"{source} has no training split, only {' and '.join(splits)}, which are not for training")
    chosen = {"train": splits[name]} | ({"val": splits["val"]} if "val" in splits else {})
    checked = {}
    problems = []
    for split, data in chosen.items():
        try:
            checked[split], found = validate(data, config.invalid, max_pixels=config.max_pixels)
        except DataError as error:
            problems.append(error)
            continue
        if found:
            log.info("%s: %d problems met with --invalid %s (retinanet check lists them)", split, len(found), config.invalid)
    if problems:
        raise DataError("\n".join(map(str, problems)), [problem for error in problems for problem in error.problems])
    if "val" not in checked:
        checked["train"], checked["val"] = hold_out(checked["train"], config.seed)
        log.info("no validation split: %d images (a tenth, by seed %d) are held out of train", len(checked["val"]), config.seed)
        for data in checked.values():
            if data.crowd.all():
                raise DataError(f"{source}: too few boxes to hold some out for validation; give a validation split")
    return checked["train"], checked["val"]


def _run(
    source: str | Path, config: TrainConfig, training: Dataset, validation: Dataset, folder: Path, device: torch.device, started: float
) -> Path:
    session = new_session(config, training, validation, device)
    rate = config.lr * config.batch / config.lr_batch
    iterations, every = plan(session, started)
    about = {
        "data": str(source),
        "data_hash": training.fingerprint(),
        "training_images": len(training),
        "training_boxes": int((~training.crowd).sum()),
        "iterations": iterations,
        "config": to_json(config),
        "versions": versions(),
        "machine": describe(device),
    }
    write_whole(folder / "config.json", json.dumps(about, indent=1).encode())
    log.info(
        "%d images of %d classes, %d boxes to train on; %d images to validate on",
        len(training),
        len(training.names),
        about["training_boxes"],
        len(validation),
    )
    log.info("%s, %d px, %s, on %s", config.model.backbone, config.model.scale, config.precision, about["machine"])
    log.info("learning rate %.3g (%.3g for %d images, scaled to %d)", rate, config.lr, config.lr_batch, config.batch)
    epochs = iterations / steps_per_epoch(training, config.batch)
    log.info("%d iterations (%.1f epochs), validation every %d; %s", iterations, epochs, every, folder)

    record, watch = Record(folder), Watch(device)
    best = -1.0
    seen, clock = 0, time.perf_counter()
    for iteration, batch in enumerate(session.batches(0, iterations)):
        if iteration == 0:
            save(folder / "plots" / "first_batch.jpg", batch_picture(session, batch))
        factor = lr_factor(iteration, iterations, config.warmup, config.schedule)
        numbers = train_step(session, batch, rate * factor)
        watch.note(iteration, numbers)
        seen += len(batch.targets)
        done = iteration + 1
        if done % config.log_every == 0 or done == iterations or done % every == 0:
            values = {name: float(value) for name, value in numbers.items()}  # the one place that waits for the device
            speed = seen / (time.perf_counter() - clock)
            seen, clock = 0, time.perf_counter()
            record.row("train", done, **values, lr=rate * factor, images_per_second=speed)
            watch.check(session, folder)
            left = (iterations - done) * len(batch.targets) / speed
            text = f"loss {values['loss']:.3f} (class {values['class_loss']:.3f}, box {values['box_loss']:.3f})"
            log.info(
                "%d/%d  %s  lr %.2g  positives %.1f  %.1f images/s  %s left",
                *(done, iterations, text, rate * factor, values["positives"], speed, duration(left)),
            )
        if done % every == 0 or done == iterations:
            evaluation = validate_and_save(session, record, done, best, about, folder)
            best = max(best, evaluation.metrics["AP"] or 0.0)
            seen, clock = 0, time.perf_counter()
    record.plot()
    write_evaluation(folder, validation, evaluation, {**about, "split": validation.split, "iteration": iterations})
    log.info("done in %s: AP %.3f in validation; %s", duration(time.perf_counter() - started), evaluation.metrics["AP"] or 0.0, folder)
    return folder


def validate_and_save(session: Session, record: Record, done: int, best: float, about: dict[str, Any], folder: Path) -> Evaluation:
    """Validation loss and AP of the shipped model; it is saved as model.safetensors, and as best.safetensors when it is."""
    config, data = session.config, session.validation
    detector = session.detector()
    evaluation = evaluate(detector, data, 2 * config.batch, config.workers or 0, session.criterion, config.max_pixels)
    session.model.train()
    metrics = evaluation.metrics
    numbers = {name: metrics[name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
    record.row("val", done, loss=sum(evaluation.losses.values()), **evaluation.losses, **numbers, threshold=metrics.threshold)
    shown = "  ".join(f"{name} {'-' if value is None else format(value, '.3f')}" for name, value in numbers.items())
    log.info("%d  validation: loss %.3f  %s", done, sum(evaluation.losses.values()), shown)
    card = Card(
        model=config.model,
        names=data.names,
        category_ids=data.category_ids,
        threshold=0.5 if metrics.threshold is None else metrics.threshold,
        about={**about, "iteration": done, "validation": numbers},
    )
    save_model(folder / "model.safetensors", session.shipped.state_dict(), card)
    if (metrics["AP"] or 0.0) > best:
        save_model(folder / "best.safetensors", session.shipped.state_dict(), card)
    record.plot()
    return evaluation
