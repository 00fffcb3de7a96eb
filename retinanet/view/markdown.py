"""Markdown from values: tables, numbers, and text of others that must not be taken for markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells that others wrote must be `escaped` already."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


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
