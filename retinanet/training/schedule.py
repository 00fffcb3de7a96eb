"""How long a training is: iterations from minutes, epochs, or the size of the data."""

from __future__ import annotations

import copy
import logging
import math
import time

import numpy as np
import torch

from ..config.io import parse_budget
from ..distributed import all_gather
from ..errors import ConfigError
from ..text import duration
from .loop import train_step
from .setup import TrainState

log = logging.getLogger("retinanet")

PROBE_STEPS = 10
"""Steps that are timed to turn minutes into iterations; the first four only warm up."""

MARGIN = 0.94
"""Share of a budget of minutes that is planned: other programs on the machine take the rest."""


def plan(state: TrainState, started: float) -> tuple[int, int]:
    """The number of iterations, and how many lie between validations; minutes are converted after a probe."""
    config, sampler = state.config, state.sampler
    amount, unit = parse_budget(config.budget) if config.budget else (fitting_length(state), "it")
    if unit != "s":
        steps = {"it": 1.0, "ep": float(sampler.steps_per_epoch), "im": 1 / sampler.batch}[unit]
        iterations = max(1, round(amount * steps))
        return iterations, math.ceil(iterations / min(config.validations, iterations))
    # the clock of the first process counts
    step, image, spent = all_gather((*probe(state), time.perf_counter() - started))[0]
    left = amount * MARGIN - spent
    once = image * len(state.validation)
    # validation takes at most a twentieth of the time
    validations = max(1, min(config.validations, 8, int(0.05 * left / once)))
    iterations = int((left - validations * once) / step)
    if iterations < 1:
        raise ConfigError(
            f"a budget of {config.budget} does not hold one step: {spent:.0f} s to start, {once:.0f} s to "
            f"validate, {step:.1f} s a step"
        )
    log.info(
        "budget %s: %.2f s a step and %.1f s a validation make %d iterations and %d validations",
        *(config.budget, step, once, iterations, validations),
    )
    return iterations, math.ceil(iterations / validations)


def tell_left_over(budget: str | None, spent: float) -> None:
    """Warn when a run used little of its minutes: something else slowed its probe, so it learned less."""
    amount, unit = parse_budget(budget) if budget else (0.0, "it")
    if unit == "s" and spent < 0.7 * amount:
        log.warning(
            "only %s of %s were used: the machine was busier when its speed was measured; the same command "
            "in quiet gives a better model",
            *(duration(spent), budget),
        )


def fitting_length(state: TrainState) -> float:
    """Without a budget: 12 epochs, more for a small data set, at most the paper's 90k steps of 16 images.

    All three count images, so that a larger batch has fewer steps.
    """
    config, batch = state.config, state.sampler.batch
    shortest = (3000 if config.init == "none" else 1500) * config.lr_batch // batch
    twelve = 12 * state.sampler.steps_per_epoch
    return max(1, min(max(twelve, shortest), 90_000 * 16 // batch))


def probe(state: TrainState) -> tuple[float, float]:
    """Seconds of a training step, data included, and of an image in validation; the state stays as it was."""
    saved = copy.deepcopy((state.model.state_dict(), state.optimizer.state_dict()))
    average = copy.deepcopy(state.average.model.state_dict()) if state.average else None
    times = []
    clock = time.perf_counter()
    for batch in state.batches(0, PROBE_STEPS):
        train_step(state, batch, 0.0)
        if state.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - clock)
        clock = time.perf_counter()
    state.model.load_state_dict(saved[0])
    state.optimizer.load_state_dict(saved[1])
    state.broken.zero_()
    if state.average is not None and average is not None:
        state.average.model.load_state_dict(average)
        state.average.updates = 0
    few = state.validation.subset(np.arange(min(32, len(state.validation))))
    for last in (False, True):  # the first time warms up
        clock = time.perf_counter()
        state.evaluate(few if last else few.subset(np.arange(min(4, len(few)))), workers=0)
    image = (time.perf_counter() - clock) / len(few)
    return sum(times[4:]) / len(times[4:]), image
