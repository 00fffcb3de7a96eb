"""Reading JSON that others wrote: duplicate keys, whole numbers, short quotations."""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import Any

from ..dataset import is_text

WHOLE = 2**63
"""Ids are kept as int64."""

ONLY_INT, NUMBERS = frozenset([int]), frozenset([int, float])  # isinstance would let True and False in


def reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys all differ: of two lists of annotations json would silently keep the last."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        twice = next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place]))
        raise ValueError(f"an object has the key {shorten(twice)} twice")
    return entry


PLAIN = re.compile(r"[+-]?(\d{1,20}(\.\d{0,40})?|\.\d{1,40})(e[+-]?\d{1,2})?", re.ASCII | re.IGNORECASE)

DIGITS = re.compile(r"[+-]?\d{1,18}(\.0*)?")


def as_id(value: Any) -> int | str | None:
    """An id as one thing however it is written: 7, 7.0, "7" and "007" are 7; another text is itself."""
    if not isinstance(value, str):
        return as_int(value)
    text = value.strip()
    if DIGITS.fullmatch(text) and text.isascii():
        return int(text.partition(".")[0])
    return text if text and is_text(text) and len(text) < 1024 else None


def as_number(value: Any) -> float | None:
    """A finite number, also as a text ("12.5"), where no other reading of it exists."""
    if isinstance(value, str) and PLAIN.fullmatch(value.strip()):
        value = float(value)
    try:
        return value if type(value) in NUMBERS and isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def as_int(value: Any) -> int | None:
    """An id as an int; 7.0 counts (pandas writes such), True and "7" do not."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and -WHOLE <= value < WHOLE else None


def shorten(value: Any) -> str:
    """A value of the file as it stands there, shortened."""
    try:
        text = json.dumps(value)
    except RecursionError:  # it may be nested just deep enough to have been read
        return f"a very deep {type(value).__name__}"
    return text if len(text) <= 120 else text[:117] + "..."
