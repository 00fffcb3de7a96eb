"""How far a run has come: by its iterations, or by the share of its minutes that is used."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

from ..config.schema import TrainConfig
from ..distributed import AnyRank, broadcast_from_main, is_main_process, world
from .optim import lr_factor

STRETCH = 0.02
"""Share of a budget of minutes after which the log has its next row, and with it a new look at the clock."""

NEAR = 0.1
"""Share of a budget of minutes over which `Pace.steady` averages."""

VALIDATING = 0.05
"""Share of a budget of minutes that all validations before the last one may take."""


@dataclass
class Pace:
    """How long a run is, when it validates, and how much of it each step has used.

    By iterations all this is known before the first step. By the clock the number of iterations is an
    estimate. It is made anew at each row of the log, together with the share of the training time that is
    used; between two rows every step uses the same share. So all that a rate depends on is in the row before
    its step, and the processes, which go by the clock of the first, agree on it.

    iterations   of the whole run; by the clock an estimate until its end
    every        iterations between validations; by the clock an estimate
    seconds      the budget; None by iterations
    began        the clock when the budget began; the other fields count by the clock only
    validations  how many there are, the last one included, at equal shares
    step         seconds of a step, as it was lately
    steady, near the same as a mean over the last tenth of the budget, of so many steps: the time that is kept
                 for the end follows it, so that one slow step does not end the schedule
    cost, ending how many steps a validation takes the time of, and the files that are written after the last
    row, share   the iterations of the last row of the log, and the share that was used then
    trained      seconds of all steps
    validated    validations before the last one whose turn has come, and the seconds in `validating`
    room         whether one more of them fits
    """

    iterations: int
    every: int
    seconds: float | None = None
    began: float = 0.0
    validations: int = 1
    step: float = 0.0
    steady: float = 0.0
    near: float = 4.0
    cost: float = 0.0
    ending: float = 0.0
    row: int = 0
    share: float = 0.0
    trained: float = 0.0
    validated: int = 0
    validating: float = 0.0
    room: bool = True

    def __post_init__(self) -> None:
        self.looked, self._settled = time.perf_counter(), False
        self._late = AnyRank() if self.seconds is not None else None

    @property
    def estimated(self) -> bool:
        """Whether the number of iterations is an estimate: by the clock, until the end."""
        return self.seconds is not None and self.row < self.iterations

    def __str__(self) -> str:
        """The number of iterations; an estimate is marked."""
        return f"{'~' if self.estimated else ''}{self.iterations}"

    def used(self) -> float:
        """Seconds since the budget began."""
        return time.perf_counter() - self.began

    def left(self, done: int, speed: float) -> float:
        """Seconds until the end, at `speed` iterations a second."""
        if self.seconds is None:
            return (self.iterations - done) / speed
        return max(0.0, self.seconds - self.used())

    def share_at(self, iteration: int) -> float:
        """The share that is used before an iteration (0-based) that follows the last row."""
        ahead = (iteration - self.row) / max(1, self.iterations - self.row)
        return self.share + min(STRETCH, (1 - self.share) * ahead)

    def factor(self, iteration: int, config: TrainConfig) -> float:
        """The learning rate of an iteration (0-based) as a share of the base rate."""
        place = iteration if self.seconds is None else self.share_at(iteration) * self.iterations
        return lr_factor(place, self.iterations, config.warmup, config.schedule)

    def late(self) -> bool:
        """By the clock: whether a row of the log is due; to be asked once a step."""
        if self.seconds is None or self._late is None:
            return False
        passed = time.perf_counter() - self.looked
        late = self._late.any(is_main_process() and passed >= STRETCH * self.seconds)
        # several processes answer the question of the step before, which a row since then has settled
        settled, self._settled = self._settled and world() > 1, False
        return late and not settled

    def look(self, done: int, steps: int, seconds: float) -> None:
        """By the clock: take in the steps since the last row, and the time left after iteration `done`."""
        if self.seconds is None:
            return
        self.trained += seconds
        self.step += (seconds / steps - self.step) / 2  # half of it is the newest: noise is damped
        before = self.near * math.exp(-seconds / (NEAR * self.seconds))
        self.near = before + steps
        self.steady = (before * (self.steady or self.step) + seconds) / self.near
        self.share, self.iterations, self.room = broadcast_from_main(lambda: self.measured(done))
        self.row, self.looked, self._settled = done, time.perf_counter(), True

    def measured(self, done: int) -> tuple[float, int, bool]:
        """The share that is used after iteration `done`, the estimate of all, and the `room`."""
        assert self.seconds is not None
        once, most = self.cost * self.step, VALIDATING * self.seconds - self.validating
        step = self.steady or self.step
        between = min((self.validations - 1 - self.validated) * self.cost * step, max(0.0, most))
        left = max(0.0, self.seconds - self.used() - (self.ending + self.cost) * step - between)
        share = max(self.share_at(done), self.trained / (self.trained + left)) if left else 1.0
        return share, done + int(left / max(self.step, 1e-9)), once <= most

    def validation_due(self, done: int) -> bool:
        """Whether the turn of a validation before the last one comes after iteration `done`."""
        if self.seconds is None:
            return done % self.every == 0 and done < self.iterations
        turns = min(int(self.share_at(done) * self.validations), self.validations - 1)
        due, self.validated = turns > self.validated, max(turns, self.validated)
        return due

    def took(self, seconds: float) -> None:
        """Note how long a validation took, its files included."""
        self.validating += seconds
        self.cost += (seconds / max(self.step, 1e-9) - self.cost) / 2
        self.looked = time.perf_counter()

    def goes_on(self, done: int, seconds: float) -> bool:
        """Whether time is left after the last validation, because it took less than was kept for it."""
        if self.seconds is None:
            return False
        self.step = self.steady = seconds / max(self.cost, 1e-9)  # the machine is quicker than it was
        self.row, self.share = done, 0.0  # it was 1 for the time that was expected
        self.share, iterations, self.room = broadcast_from_main(lambda: self.measured(done))
        worth = (iterations - done) * self.step >= STRETCH * self.seconds
        self.iterations = iterations if broadcast_from_main(lambda: worth) else done
        self.looked = time.perf_counter()
        return self.iterations > done

    def row_values(self) -> dict[str, float]:
        """What a row of metrics.jsonl holds of it: by the clock all that the next steps depend on."""
        return {} if self.seconds is None else {"share": self.share, "iterations": self.iterations}

    def saved(self) -> dict[str, Any] | None:
        """By the clock: the fields as values for state.pt, `began` from now on."""
        return None if self.seconds is None else {**asdict(self), "began": -self.used()}
