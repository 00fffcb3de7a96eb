"""The optimiser, its schedule and the running average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..errors import unknown_name_error

OPTIMIZERS = ("sgd", "adamw")

SCHEDULES = ("drops", "cosine")


def build_optimizer(
    model: nn.Module, name: str, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters; biases and norms (one dimension) have no weight decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=True)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    raise unknown_name_error("optimizer", name, OPTIMIZERS)


def scaled_rate(lr: float, batch: int, lr_batch: int, optimizer: str) -> float:
    """The learning rate for `batch` images a step, when `lr` is meant for `lr_batch`.

    Linear for SGD (Goyal et al. 2017), by the square root for AdamW, whose steps do not grow with the
    gradient (Malladi et al. 2022).
    """
    factor = batch / lr_batch
    return lr * (math.sqrt(factor) if optimizer == "adamw" else factor)


def lr_factor(iteration: float, iterations: int, warmup: int, schedule: str) -> float:
    """The learning rate of an iteration (0-based) as a share of the base rate, after a linear warm-up.

    By the clock a share of the time stands for that share of the iterations, so they may be fractions.

    drops   divided by 10 after 2/3 and again after 8/9 of the run, the paper's 60k and 80k of 90k (Sec. 4.1)
    cosine  to 0
    """
    warmup = min(warmup, iterations // 10)
    start = min(1.0, (iteration + 1) / (warmup + 1))
    if schedule == "drops":
        return start * 0.1 ** ((iteration >= iterations * 2 / 3) + (iteration >= iterations * 8 / 9))
    if schedule == "cosine":
        done = max(0.0, (iteration - warmup) / max(1, iterations - warmup))
        return start * 0.5 * (1 + math.cos(math.pi * done))
    raise unknown_name_error("schedule", schedule, SCHEDULES)


class EMA:
    """An exponential running average of a model's weights and buffers, in `model`.

    The decay grows from 0 to `decay` as 1 - 9 / (t + 10), so that the random start is soon forgotten.
    """

    def __init__(self, source: nn.Module, average: nn.Module, decay: float) -> None:
        self.model = average.requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0
        pairs = list(zip(_values(average), _values(source), strict=True))
        self._averaged = [mine for mine, _ in pairs if mine.is_floating_point()]
        self._current = [theirs for mine, theirs in pairs if mine.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Move a step towards the current weights."""
        self.updates += 1
        decay = min(self.decay, 1 - 9 / (self.updates + 10))
        torch._foreach_lerp_(self._averaged, self._current, 1 - decay)


def _values(model: nn.Module) -> Iterable[Tensor]:
    return (*model.parameters(), *model.buffers())
