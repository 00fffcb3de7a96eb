"""Training: one step, and one visible loop over steps."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.loader import Batch
from ..distributed import all_reduce_sum, is_main_process, world
from ..errors import DataError
from ..evaluation.evaluate import Evaluation, write_evaluation
from ..files import may_fail, write_atomically
from ..model.criterion import sum_levels
from ..text import duration, shown
from ..weights.checkpoint import ModelInfo, save_model
from .diagnose import Advice, NonFiniteWatch, save_first_batch
from .log import TrainLog
from .pace import Pace
from .resume import Counters, Timer, save_state, stop_signals
from .setup import TrainState

log = logging.getLogger("retinanet")


def train_step(state: TrainState, batch: Batch, rate: float) -> dict[str, Tensor]:
    """One optimiser step on this process's share of a batch.

    Returns losses, positives and gradient norm as tensors, so that nothing waits for a GPU.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros(2, device=state.device)
    for levels, positives in state.losses(batch, state.network):  # noqa: B007
        losses = sum_levels(levels)
        # DDP averages the gradients of the processes, but each loss is a share of a sum
        ((losses["class_loss"] + losses["box_loss"]) * world()).backward()
        sums += torch.stack([losses["class_loss"], losses["box_loss"]]).detach()
    class_loss, box_loss = all_reduce_sum(sums)
    norm = update(state, class_loss + box_loss)
    numbers = {"loss": class_loss + box_loss, "class_loss": class_loss, "box_loss": box_loss}
    return numbers | {"positives": positives / state.sampler.batch, "gradient_norm": norm.detach()}


def update(state: TrainState, loss: Tensor) -> Tensor:
    """Change the weights by their gradients; returns the gradient norm."""
    config = state.config
    gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if config.max_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(state.model.parameters(), config.max_grad_norm, norm)
    # The fused optimisers read this flag on the device: a step that is not finite changes nothing, and no
    # process waits for the flag. It stays up, so the weights stay those of that step until `check` sees it.
    state.broken = torch.maximum(state.broken, (~torch.isfinite(norm + loss)).float())
    state.optimizer.found_inf = state.broken  # type: ignore[attr-defined]
    state.optimizer.step()
    if state.average is not None:
        state.average.update()
    return norm


def loop(state: TrainState, about: dict[str, Any], progress: Counters, folder: Path) -> Path:
    """From `progress` to the end; what it writes is the same whether it began at 0 or in the middle."""
    config, pace = state.config, progress.pace
    record = TrainLog(folder, progress.rows, config.tensorboard)
    steps = StepLog(state, record, pace, folder)
    timer = Timer(config.save_every, state.sampler.steps_per_epoch, state.sampler.batch)

    def keep() -> None:
        if not steps.watch.seen():  # once a step went wrong, the last good state stays
            progress.rows = len(record.rows)
            save_state(state, progress, folder)
        timer.saved()

    def pause() -> None:
        keep()
        text = "stopped after iteration %d of %s; go on with: retinanet train --resume %s"
        log.info(text, progress.done, pace, folder)

    with stop_signals() as stop:
        batches = state.batches(progress.done, pace.iterations if pace.seconds is None else sys.maxsize)
        while True:
            if progress.done >= pace.iterations:
                keep()
                clock = time.perf_counter()
                evaluation = validate_and_save(state, record, progress, about, folder)
                if not pace.goes_on(progress.done, time.perf_counter() - clock):
                    break
                steps.clock = time.perf_counter()
            try:
                batch = next(batches)
            except DataError:  # an image cannot be decoded: once it is repaired, the run goes on from here
                pause()
                raise
            if progress.done == 0 and is_main_process():
                with may_fail(file := folder / "plots" / "first_batch.jpg"):
                    save_first_batch(file, state, batch)
            rate = state.rate * pace.factor(progress.done, config)
            steps.note(progress.done, train_step(state, batch, rate))
            progress.done = done = progress.done + 1
            validate = pace.validation_due(done)
            if validate or done % config.log_every == 0 or done == pace.iterations or pace.late():
                steps.write(done, rate)
            if validate and pace.room and done < pace.iterations:
                clock = time.perf_counter()
                validate_and_save(state, record, progress, about, folder)
                pace.took(time.perf_counter() - clock)
                keep()
                steps.clock = time.perf_counter()  # the speed is that of training
            elif is_main_process() and timer.due(done):
                keep()
            if stop.asked() and done < pace.iterations:
                steps.watch.check(state, folder, pace)
                pause()
                stop.leave()
    if is_main_process():
        write_atomically(folder / "config.json", json.dumps(about, indent=1).encode())
        final = {**about, "split": state.validation.split, "iteration": progress.done}
        write_evaluation(folder, state.validation, evaluation, final)
    for text in evaluation.metrics.remarks():
        log.info("validation: %s", text)
    spent, ap = duration(pace.used()), evaluation.metrics["AP"] or 0.0
    log.info("done in %s: AP %.3f in validation; %s", spent, ap, folder)
    if stop.asked():  # during the last validation: this run is complete, but what follows it must not start
        stop.leave()
    return folder


class StepLog:
    """Collects the numbers of steps on the device; `write` alone waits for it."""

    def __init__(self, state: TrainState, record: TrainLog, pace: Pace, folder: Path) -> None:
        self.state, self.record, self.pace, self.folder = state, record, pace, folder
        config, batch = state.config, state.sampler.batch
        self.watch = NonFiniteWatch(state.device)
        self.advice = Advice(state.rate, batch, config.optimizer, config.warmup, pace.iterations)
        for text in self.advice.begin():
            log.warning("%s", text)
        log.info("%s", folder)
        for row in record.rows:  # a run that goes on is not judged anew
            if row["kind"] == "train":
                self.advice.row(row["iteration"], row["loss"] or 0.0, row["positives"])
        self.positives: Tensor | float = 0.0  # of all steps since the last row
        self.seen, self.clock = 0, time.perf_counter()

    def note(self, iteration: int, numbers: dict[str, Tensor]) -> None:
        """Take in what a step returned."""
        self.numbers = numbers
        self.watch.note(iteration, numbers)
        self.positives = self.positives + numbers["positives"]
        self.seen += self.state.sampler.batch

    def write(self, done: int, rate: float) -> None:
        """A row of the record, a line of the log, and advice; DivergenceError if a step was not finite."""
        values = {name: float(value) for name, value in self.numbers.items()}  # waits for the device
        pace, batch, now = self.pace, self.state.sampler.batch, time.perf_counter()
        speed = self.seen / (now - self.clock)
        if not self.watch.seen():  # else the rate of that step is asked for
            pace.look(done, self.seen // batch, now - self.clock)
        self.seen, self.clock, self.advice.iterations = 0, now, pace.iterations
        self.record.row("train", done, **values, lr=rate, images_per_second=speed, **pace.row_values())
        self.watch.check(self.state, self.folder, pace)
        log.info(
            "%d/%s  loss %.3f (class %.3f, box %.3f)  lr %.2g  positives %.1f  %.1f images/s  %s left",
            *(done, pace, *(values[name] for name in ("loss", "class_loss", "box_loss"))),
            *(rate, values["positives"], speed),
            duration(pace.left(done, speed / batch)),
        )
        for text in self.advice.row(done, values["loss"], float(self.positives)):
            log.warning("%s", text)
        self.positives = 0.0


def validate_and_save(
    state: TrainState, record: TrainLog, progress: Counters, about: dict[str, Any], folder: Path
) -> Evaluation:
    """Evaluate the shipped model and save it with its card; also as best.safetensors when it is the best."""
    config, data, done = state.config, state.validation, progress.done
    about["iterations"] = progress.pace.iterations  # by the clock an estimate, until the last validation
    evaluation = state.evaluate(data, config.workers or 0)
    metrics, loss = evaluation.metrics, sum(evaluation.losses.values())
    numbers = {name: metrics[name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
    record.row("val", done, loss=loss, **evaluation.losses, **numbers, threshold=metrics.threshold)
    text = "  ".join(f"{name} {shown(value)}" for name, value in numbers.items())
    log.info(
        "%d  validation: loss %.3f  %s%s", done, loss, text, "" if metrics.detections else "  no detections"
    )
    best = (metrics["AP"] or 0.0) > progress.best
    progress.best = max(progress.best, metrics["AP"] or 0.0)
    if is_main_process():
        info = ModelInfo(
            model=config.model,
            names=data.names,
            category_ids=data.category_ids,
            threshold=0.5 if metrics.threshold is None else metrics.threshold,
            about={**about, "iteration": done, "validation": numbers},
        )
        save_model(folder / "model.safetensors", state.shipped.state_dict(), info)
        if best:
            save_model(folder / "best.safetensors", state.shipped.state_dict(), info)
        record.plot()
        from .card import model_card, write_card  # an annex: a run without it would train as well

        write_card(folder, model_card(folder.resolve().name, state, about, progress, metrics, record.rows))
    return evaluation
