"""The command `models`: the published weights that can be named in place of a file."""

from __future__ import annotations

from ..text import aligned
from ..weights.hub import KNOWN, UNTESTED, converted, original


def run() -> None:
    """Print all published weights."""
    print(table())


def table() -> str:
    """All published weights in columns."""
    rows = [("name", "AP as stated", "classes", "here", "licence")]
    for entry in KNOWN.values():
        here = "converted" if converted(entry).exists() else "fetched" if original(entry).exists() else "-"
        rows.append((entry.name, f"{entry.ap:.1f}", str(entry.classes), here, entry.licence))
    return f"{aligned(rows, left=None)}\n\n{UNTESTED}"
