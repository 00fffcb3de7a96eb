"""How long a training is: minutes, iterations, epochs, or what fits the size of the data."""

from __future__ import annotations

import copy
import logging
import math
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from ..config.io import parse_budget
from ..distributed import all_gather, is_main_process
from ..errors import ConfigError
from ..evaluation.evaluate import write_evaluation
from .loop import train_step
from .pace import VALIDATING, Pace
from .setup import TrainState

log = logging.getLogger("retinanet")

PROBE_STEPS = 8
"""Steps that are timed for a first estimate of what minutes hold; the first half only warms up."""

PROBING = 0.05
"""Share of a budget of minutes after which no further step is timed: a busy machine may need it all."""

TRAINED = 1.5
"""How much longer than that of the probe a later validation takes: a trained model finds more."""


def plan(state: TrainState, started: float) -> Pace:
    """The length of a run whose budget began when `started` was the clock; a probe says what minutes hold."""
    config, sampler = state.config, state.sampler
    amount, unit = parse_budget(config.budget) if config.budget else (fitting_length(state), "it")
    if unit != "s":
        steps = {"it": 1.0, "ep": float(sampler.steps_per_epoch), "im": 1 / sampler.batch}[unit]
        iterations = max(1, round(amount * steps))
        return Pace(iterations, math.ceil(iterations / min(config.validations, iterations)), began=started)
    # the clock of the first process counts
    probed = probe(state, PROBING * amount), probe_files(state), time.perf_counter() - started
    (step, image), files, spent = all_gather(probed)[0]
    once, left = TRAINED * image * len(state.validation) + files, amount - spent - 2 * files
    validations = min(config.validations, 8, 1 + max(0, int(VALIDATING * left / once)))
    iterations = int((left - validations * once) / step)
    if iterations < 1:
        raise ConfigError(
            f"a budget of {config.budget} does not hold one step: {spent:.0f} s to start, "
            f"{once + 2 * files:.0f} s to validate and save, {step:.1f} s a step. Give it more, "
            f"or wait until the machine has less else to do"
        )
    log.info(
        "budget %s: %.2f s a step and %.1f s a validation make about %d iterations and %d validations",
        *(config.budget, step, once, iterations, validations),
    )
    return Pace(
        iterations,
        math.ceil(iterations / validations),
        seconds=amount,
        began=started,
        validations=validations,
        step=step,
        cost=once / step,
        ending=2 * files / step,  # the program has to end, too
    )


def fitting_length(state: TrainState) -> float:
    """Without a budget: 12 epochs, more for a small data set, at most the paper's 90k steps of 16 images.

    All three count images, so that a larger batch has fewer steps.
    """
    config, batch = state.config, state.sampler.batch
    shortest = (3000 if config.init == "none" else 1500) * config.lr_batch // batch
    twelve = 12 * state.sampler.steps_per_epoch
    return max(1, min(max(twelve, shortest), 90_000 * 16 // batch))


def probe(state: TrainState, most: float = math.inf) -> tuple[float, float]:
    """Seconds of a training step, data included, and of an image in validation; the state stays as it was.

    It times fewer steps and images when `most` seconds are over, and at least one.
    """
    saved = copy.deepcopy((state.model.state_dict(), state.optimizer.state_dict()))
    average = copy.deepcopy(state.average.model.state_dict()) if state.average else None
    times = []
    began = clock = time.perf_counter()
    for batch in state.batches(0, PROBE_STEPS):
        train_step(state, batch, 0.0)
        if state.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - clock)
        clock = time.perf_counter()
        if all_gather(clock - began)[0] > most:
            break
    state.model.load_state_dict(saved[0])
    state.optimizer.load_state_dict(saved[1])
    state.broken.zero_()
    if state.average is not None and average is not None:
        state.average.model.load_state_dict(average)
        state.average.updates = 0
    for few in (4, 12):  # the first time warms up
        few = min(few, len(state.validation))
        clock = time.perf_counter()
        state.evaluate(state.validation.subset(np.arange(few)), workers=0)
        took = time.perf_counter() - clock
        if all_gather(took)[0] > most:
            break
    times = times[len(times) // 2 :]
    return sum(times) / len(times), took / few


def probe_files(state: TrainState) -> float:
    """Seconds to write what a validation leaves; the first time loads what draws."""
    few = state.validation.subset(np.arange(min(4, len(state.validation))))
    evaluation = state.evaluate(few, workers=0)
    clock = time.perf_counter()
    if is_main_process():
        with TemporaryDirectory() as folder:
            write_evaluation(Path(folder), few, evaluation, {})
    return time.perf_counter() - clock
