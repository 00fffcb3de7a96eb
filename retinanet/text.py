"""Plain text for people: tables, durations, a progress bar."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells that others wrote must be `escaped` already."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] | None = (0,)) -> str:
    """Rows of cells as aligned plain text: columns `left` to the left (None: all), others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if left is None or column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def escaped(text: object) -> str:
    """Foreign text on one line, with nothing in it that Markdown or HTML would take for itself."""
    line = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", str(text)).split())
    return re.sub(r"[\\`*{}\[\]<>|#~&$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)


def shown(value: float | None) -> str:
    """Three digits; "-" where there is no value."""
    return "-" if value is None else f"{value:.3f}"


def many(count: int, one: str, more: str | None = None) -> str:
    """1 image, 1,200 images."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def listed(names: Sequence[str], limit: int = 10) -> str:
    """cat, dog and 12 more."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


@contextmanager
def progress_bar(total: int, title: str) -> Iterator[Any]:
    """A function (done, text) that moves a bar with the time left; silent where stderr is no terminal."""
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
