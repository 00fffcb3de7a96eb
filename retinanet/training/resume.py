"""Exact resume: one file, complete at any moment, holds all that the next step depends on.

Randomness is a pure function of seed, epoch and index, so neither a generator nor the loader is saved.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from ..config.io import from_json, parse_budget
from ..config.schema import TrainConfig
from ..distributed import AnyRank, is_main_process
from ..errors import CheckpointError, ConfigError
from ..weights.checkpoint import load_plain, save_plain
from .pace import Pace
from .setup import TrainState

FORMAT = 1

NAME = "state.pt"


@dataclass
class Counters:
    """How far a training has come."""

    done: int = 0
    """Iterations."""
    best: float = -1.0
    """AP of the best validation; -1 before the first."""
    rows: int = 0
    """Lines of metrics.jsonl: what was written after them comes again."""
    pace: Pace = field(default_factory=lambda: Pace(1, 1))
    """How long it is; state.pt has it for a run by the clock, config.json for others."""


def save_state(state: TrainState, progress: Counters, folder: Path) -> None:
    """Write state.pt in the first process: weights, average, optimiser, counters, the clock of its budget."""
    if not is_main_process():
        return
    average = state.average
    content = {
        "format": FORMAT,
        "done": progress.done,
        "best": progress.best,
        "rows": progress.rows,
        "pace": progress.pace.saved(),
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "average": average.model.state_dict() if average else None,
        "updates": average.updates if average else 0,
    }
    save_plain(folder / NAME, content)


def load_state(state: TrainState, folder: Path) -> Counters:
    """Read state.pt; CheckpointError when it is missing, not complete, or of another model."""
    path = folder / NAME
    if not path.exists():
        raise CheckpointError(f"{folder} has no {NAME}, so there is nothing to go on from")
    content = load_plain(path, FORMAT)
    try:
        # from the CPU: `load_state_dict` copies to where the parameters are
        state.model.load_state_dict(content["model"])
        state.optimizer.load_state_dict(content["optimizer"])
        if state.average is not None:
            state.average.model.load_state_dict(content["average"])
            state.average.updates = int(content["updates"])
        counts = int(content["done"]), float(content["best"]), int(content["rows"])
        clock = content.get("pace")  # older states have none: their runs go by iterations
        return Counters(*counts, Pace(**clock)) if clock else Counters(*counts)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path} is not a state of this run ({reason[0]})") from error


def read_run(folder: Path) -> tuple[dict[str, Any], TrainConfig]:
    """config.json of a run that is to go on; ConfigError when there is no run, or when it is finished."""
    path = folder / "config.json"
    if not path.exists():
        raise ConfigError(f"{folder} holds no run: there is no {path.name} in it")
    try:
        about = json.loads(path.read_text())
        config = from_json(TrainConfig, about["config"])
        about["iterations"], about["validate_every"] = int(about["iterations"]), int(about["validate_every"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); was the run made by another version?") from error
    if (folder / "metrics.json").exists():
        raise ConfigError(
            f"{folder} is finished, all {about['iterations']} iterations; to train on from its weights "
            f"start a new run with --init {folder}"
        )
    return about, config


class Timer:
    """Says when the next state is due, by the clock or by iterations."""

    def __init__(self, every: str, steps_per_epoch: int, batch: int) -> None:
        amount, unit = parse_budget(every, "save_every")
        self.seconds = amount if unit == "s" else None
        factor = {"it": 1.0, "ep": steps_per_epoch, "im": 1 / batch}.get(unit, 1.0)
        self.iterations = max(1, round(amount * factor))
        self.last = time.monotonic()

    def due(self, done: int) -> bool:
        """Whether the state should be written after iteration `done`."""
        if self.seconds is None:
            return done % self.iterations == 0
        return time.monotonic() - self.last >= self.seconds

    def saved(self) -> None:
        """It has been written just now."""
        self.last = time.monotonic()


class Stop:
    """SIGINT or SIGTERM, noted when it comes and obeyed by all processes after the same step."""

    def __init__(self) -> None:
        self.signal = 0
        self._agreement = AnyRank()

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler. A second Ctrl-C does not wait for the step to end."""
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def asked(self) -> bool:
        """Whether to stop here; to be asked once a step."""
        return self._agreement.any(self.signal != 0)

    def leave(self) -> None:
        """End as the signal asks for: KeyboardInterrupt, or SystemExit with 143."""
        if self.signal == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """The region in which SIGINT and SIGTERM are obeyed between two steps."""
    stop = Stop()
    try:
        before = {number: signal.signal(number, stop.note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only a program's main thread may
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
