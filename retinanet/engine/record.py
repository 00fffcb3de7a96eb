"""What a run leaves behind while it goes: log.txt, metrics.jsonl, the terminal, the plots."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..errors import ConfigError
from ..view import plots

log = logging.getLogger("retinanet")


def new_folder(out: Path | None, fallback: str) -> Path:
    """The folder of a run: `out`, which must not hold a run already, or the first free runs/<fallback>[-2, -3 ...]."""
    if out is not None:
        refuse_run(out)
        folder = out
    else:
        names = (Path("runs") / (fallback if number == 1 else f"{fallback}-{number}") for number in range(1, 1_000_000))
        folder = next(name for name in names if not name.exists())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plots").mkdir(exist_ok=True)
    return folder


def refuse_run(out: Path | None) -> None:
    """ConfigError when `out` holds a training run: neither another run nor an evaluation overwrites it."""
    if out is not None and any((out / name).exists() for name in ("config.json", "model.safetensors")):
        raise ConfigError(f"{out} holds a run already, and runs are never overwritten; choose another --out")


def show_log() -> None:
    """Print the log as plain lines, unless the program that uses us has arranged its own."""
    if not log.hasHandlers():
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


@contextmanager
def log_file(folder: Path) -> Iterator[None]:
    """Copy the log into the run's log.txt."""
    handler = logging.FileHandler(folder / "log.txt")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    level = log.level
    log.setLevel(min(log.getEffectiveLevel(), logging.INFO))  # the file is complete, whatever the terminal shows
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        handler.close()


class Record:
    """The numbers of a run, as they come."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []

    def row(self, kind: str, iteration: int, **values: Any) -> None:
        """One line of metrics.jsonl."""
        numbers = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()}
        entry = {"kind": kind, "iteration": iteration, **numbers}  # null, since JSON knows no NaN
        self.rows.append(entry)
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def plot(self) -> None:
        """Losses and AP against iterations, as far as they have come."""
        plots.plot_losses(self.rows, self.folder / "plots" / "losses.png")
        plots.plot_ap(self.rows, self.folder / "plots" / "ap.png")


@contextmanager
def progress_bar(total: int, title: str) -> Iterator[Any]:
    """A function (done, text) that moves a bar with the time left; silent where nobody watches, since the log tells the same."""
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
