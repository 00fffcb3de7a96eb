"""Means over seeds and what may be concluded from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

T_975 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
    2.120,
    2.110,
    2.101,
    2.093,
)
"""97.5 % points of Student's t for 1 to 19 degrees of freedom; the last is kept for more, where it is a
little too wide.
"""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with the half width of its 95 % interval; None where one seed allows none."""

    value: float
    half: float | None
    count: int

    @property
    def sign(self) -> int:
        """1 or -1 when the whole interval lies above or below 0, else 0: one cannot tell."""
        if self.half is None or abs(self.value) <= self.half:
            return 0
        return 1 if self.value > 0 else -1


def mean(values: Sequence[float]) -> Mean:
    """Mean and 95 % interval of independent runs (Student's t)."""
    count = len(values)
    average = sum(values) / count
    if count < 2:
        return Mean(average, None, count)
    deviation = math.sqrt(sum((value - average) ** 2 for value in values) / (count - 1))
    factor = T_975[min(count - 2, len(T_975) - 1)]
    return Mean(average, factor * deviation / math.sqrt(count), count)


def paired(high: dict[int, float], low: dict[int, float]) -> Mean | None:
    """The difference of two rows over the seeds that both have; None when there is none."""
    seeds = sorted(high.keys() & low.keys())
    return mean([high[seed] - low[seed] for seed in seeds]) if seeds else None
