"""Training: one step, and one visible loop over steps."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.loader import Batch
from ..device import autocast
from ..distributed import all_reduce_sum, is_main_process, world
from ..errors import DataError
from ..evaluation.evaluate import Evaluation, write_evaluation
from ..text import duration
from ..weights.checkpoint import ModelInfo, save_model
from .diagnose import Advice, NonFiniteWatch, save_first_batch
from .log import TrainLog
from .optim import lr_factor
from .resume import Counters, Timer, save_state, stop_signals
from .setup import TrainState

log = logging.getLogger("retinanet")


def train_step(session: TrainState, batch: Batch, rate: float) -> dict[str, Tensor]:
    """One optimiser step; returns its losses, positives and gradient norm as tensors, so that nothing waits
    for a GPU.

    `batch` is this process's share. All of it is matched first and the positives of all processes are
    counted, so that neither the
    number of processes nor that of micro-batches changes what is divided by.
    """
    config = session.config
    for group in session.optimizer.param_groups:
        group["lr"] = rate
    batch = batch.to(session.device)
    anchors = session.model.anchors(batch.images)
    matched = session.criterion.match(anchors, batch.targets)
    positives = all_reduce_sum(matched.positives.sum())
    session.optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros(2, device=session.device)
    for rows, context in session.micro_batches(batch):
        with context:
            images = session.preprocess.normalize(batch.images[rows], batch.targets.sizes[rows])
            with autocast(config.precision, session.device):
                logits, offsets = session.network(images)
            losses = session.criterion(
                logits, offsets, anchors, matched[rows], positives, session.sampler.batch
            )
            # the processes' gradients are averaged, but ours are shares of a sum
            ((losses["class_loss"] + losses["box_loss"]) * world()).backward()
        sums += torch.stack([losses["class_loss"], losses["box_loss"]]).detach()
    class_loss, box_loss = all_reduce_sum(sums)
    gradients = [parameter.grad for parameter in session.model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if config.max_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(session.model.parameters(), config.max_grad_norm, norm)
    # the fused optimisers read this flag on the device: a step that is not finite changes nothing, and nobody
    # waits to know. It stays up, so that the weights are still those of that step when it is found out
    session.broken = torch.maximum(session.broken, (~torch.isfinite(norm + class_loss + box_loss)).float())
    session.optimizer.found_inf = session.broken  # type: ignore[attr-defined]
    session.optimizer.step()
    if session.average is not None:
        session.average.update()
    numbers = {"loss": class_loss + box_loss, "class_loss": class_loss, "box_loss": box_loss}
    return numbers | {"positives": positives / session.sampler.batch, "gradient_norm": norm.detach()}


def loop(
    session: TrainState, about: dict[str, Any], progress: Counters, folder: Path, started: float
) -> Path:
    """From `progress` to the end; what it writes is the same whether it began at 0 or in the middle."""
    config, iterations, every = session.config, about["iterations"], about["validate_every"]
    record, watch = TrainLog(folder, progress.rows, config.tensorboard), NonFiniteWatch(session.device)
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
            if iteration == 0 and is_main_process():
                save_first_batch(folder / "plots" / "first_batch.jpg", session, batch)
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
            if validating or (is_main_process() and timer.due(done)):
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
    if is_main_process():
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
    session: TrainState, record: TrainLog, progress: Counters, about: dict[str, Any], folder: Path
) -> Evaluation:
    """Validation loss and AP of the shipped model; saved as model.safetensors, and as best.safetensors when
    it is, with a card.
    """
    config, data, done = session.config, session.validation, progress.done
    evaluation = session.evaluate(data, config.workers or 0)
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
    if is_main_process():
        card = ModelInfo(
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
        from .card import model_card, write_card  # an annex: a run without it would train as well

        write_card(folder, model_card(folder.resolve().name, session, about, progress, metrics, record.rows))
    return evaluation
