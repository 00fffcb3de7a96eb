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

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..distributed import first
from ..errors import ConfigError
from ..view import plots
from ..weights.checkpoint import write_whole

log = logging.getLogger("retinanet")


def new_folder(out: Path | None, fallback: str) -> Path:
    """The folder of a run: `out`, which must not hold a run already, or the first free runs/<fallback>[-2, -3
    ...].
    """
    if out is not None:
        refuse_run(out)
        folder = out
    else:
        names = (
            Path("runs") / (fallback if number == 1 else f"{fallback}-{number}")
            for number in range(1, 1_000_000)
        )
        folder = next(name for name in names if not name.exists())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plots").mkdir(exist_ok=True)
    return folder


def refuse_run(out: Path | None) -> None:
    """ConfigError when `out` holds a training run: neither another run nor an evaluation overwrites it."""
    if out is not None and any((out / name).exists() for name in ("config.json", "model.safetensors")):
        stopped = (out / "state.pt").exists() and not (out / "metrics.json").exists()
        hint = f", or go on with it: retinanet train --resume {out}" if stopped else ""
        raise ConfigError(
            f"{out} holds a run already, and runs are never overwritten; choose another --out{hint}"
        )


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
    if not first():
        yield
        return
    handler = logging.FileHandler(folder / "log.txt")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    level = log.level
    log.setLevel(
        min(log.getEffectiveLevel(), logging.INFO)
    )  # the file is complete, whatever the terminal shows
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        handler.close()


class Record:
    """The numbers of a run, as they come."""

    def __init__(self, folder: Path, rows: int = 0, tensorboard: bool = False) -> None:
        """Begin after so many `rows`: what a run that was stopped has written beyond them is cut off, since
        it comes again.
        """
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        path = folder / "metrics.jsonl"
        if first() and path.exists():
            for line in path.read_text().splitlines()[:rows]:
                try:
                    self.rows.append(json.loads(line))
                except ValueError:
                    log.warning(
                        "%s is damaged after %d lines; the others are lost, the training is not",
                        path,
                        len(self.rows),
                    )
                    break
            write_whole(path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
        done = self.rows[-1]["iteration"] if self.rows else 0
        self._board = (
            board_writer()(str(folder / "tensorboard"), purge_step=done + 1)
            if tensorboard and first()
            else None
        )

    def row(self, kind: str, iteration: int, **values: Any) -> None:
        """One line of metrics.jsonl; only the first of several processes writes."""
        if not first():
            return
        numbers = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        entry = {"kind": kind, "iteration": iteration, **numbers}  # null, since JSON knows no NaN
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
        if not first():
            return
        plots.plot_losses(self.rows, self.folder / "plots" / "losses.png")
        plots.plot_ap(self.rows, self.folder / "plots" / "ap.png")


def board_writer() -> Any:
    """TensorBoard's writer, a class; ConfigError with the pip line when the package is absent."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "--tensorboard needs the package tensorboard: pip install 'retinanet[tensorboard]'"
        ) from error
    return SummaryWriter


@contextmanager
def progress_bar(total: int, title: str) -> Iterator[Any]:
    """A function (done, text) that moves a bar with the time left; silent where nobody watches, since the log
    tells the same.
    """
    if not (total and sys.stderr.isatty()):
        yield lambda done, text=title: None
        return
    from rich.console import Console

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done, text=title: bar.update(task, completed=done, description=text)


def duration(seconds: float) -> str:
    """426.3 -> '7 min 06 s'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
