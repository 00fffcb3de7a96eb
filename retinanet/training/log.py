"""What a run leaves behind while it goes: log.txt, metrics.jsonl, the terminal, the plots."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..distributed import is_main_process
from ..errors import ConfigError
from ..files import may_fail, write_atomically

log = logging.getLogger("retinanet")


def show_log() -> None:
    """Print the log as plain lines, unless the program that uses us has arranged its own."""
    if not log.hasHandlers():
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


@contextmanager
def log_file(folder: Path) -> Iterator[None]:
    """Copy the log into the run's log.txt; only the first of several processes writes."""
    if not is_main_process():
        yield
        return
    handler = logging.FileHandler(folder / "log.txt")
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # metrics.jsonl tells
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    level = log.level
    log.setLevel(min(log.getEffectiveLevel(), logging.INFO))  # for a complete file
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        handler.close()


class TrainLog:
    """The numbers of a run, as they come."""

    def __init__(self, folder: Path, rows: int = 0, tensorboard: bool = False) -> None:
        """Keep the first `rows` of an existing record; a run that goes on writes the later ones again."""
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        path = folder / "metrics.jsonl"
        if is_main_process() and path.exists():
            for line in path.read_text().splitlines()[:rows]:
                try:
                    self.rows.append(json.loads(line))
                except ValueError:
                    text = "%s is damaged after %d lines; the others are lost, the training is not"
                    log.warning(text, path, len(self.rows))
                    break
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
        done = self.rows[-1]["iteration"] if self.rows else 0
        self._board = None
        if tensorboard and is_main_process():
            self._board = board_writer()(str(folder / "tensorboard"), purge_step=done + 1)

    def row(self, kind: str, iteration: int, **values: Any) -> None:
        """One line of metrics.jsonl; only the first of several processes writes."""
        if not is_main_process():
            return
        odd = {
            name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)
        }
        numbers = values | dict.fromkeys(odd)  # null, since JSON knows no NaN
        entry = {"kind": kind, "iteration": iteration, **numbers}
        self.rows.append(entry)
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())  # the state counts these lines: a power cut must not take them
        if self._board is not None:
            for name, value in numbers.items():
                if value is not None:
                    self._board.add_scalar(f"{kind}/{name}", value, iteration)
            self._board.flush()

    def plot(self) -> None:
        """Losses and AP against iterations, as far as they have come."""
        if not is_main_process():
            return
        with may_fail(folder := self.folder / "plots"):
            from ..view import plots  # matplotlib, only when there is something to plot

            plots.plot_losses(self.rows, folder / "losses.png")
            plots.plot_ap(self.rows, folder / "ap.png")


def board_writer() -> Any:
    """TensorBoard's writer, a class; ConfigError with the pip line when the package is absent."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "--tensorboard needs the package tensorboard: pip install 'retinanet[tensorboard]'"
        ) from error
    return SummaryWriter
