"""The errors that a user can cause: each says where, what, how many, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class RetinaNetError(Exception):
    """The base of all errors that a user can cause and repair. The message says what to do.

    A wrong setting, data set or file is a ValueError too.

    Example:
        >>> try:
        ...     retinanet.train("cells", preset="tiny")
        ... except retinanet.RetinaNetError as error:
        ...     print(error)
    """


class ConfigError(RetinaNetError, ValueError):
    """A setting, preset, class or file name that is unknown or out of its range.

    Example:
        >>> retinanet.focal_loss(logits, targets, gamma=-1)
        ConfigError: gamma must be at least 0, not -1
    """


class DataError(RetinaNetError, ValueError):
    """A data set or image that cannot be used as it is.

    Args:
        message: What is wrong and what to do.
        problems: Each problem, with its file.

    Example:
        >>> files = {problem.file for problem in error.problems}
    """

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = list(problems)


class CheckpointError(RetinaNetError, ValueError):
    """A checkpoint that is missing, truncated, or of an unknown kind. No code of it was executed.

    Example:
        >>> retinanet.load("notes.txt")
        CheckpointError: ...
    """


class DivergenceError(RetinaNetError):
    """The loss is not finite. The last checkpoint is complete; the run folder has a dump of the step.

    Example:
        >>> retinanet.train("cells", init="runs/cells", lr=0.001)  # from the last weights
    """


class ProcessError(RetinaNetError):
    """Another process of the same run has ended. The files on disk are complete.

    Example:
        >>> retinanet.resume("runs/cells")  # once the cause is repaired
    """


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a data set."""

    kind: str
    """What is wrong, in the plural: "boxes without area". Problems of one kind are listed together."""
    file: str
    """The annotation file or image that holds it, relative to the data set."""
    detail: str
    """Which one: 'annotation 31, image 7 (shelf_017.jpg): [x, y, w, h] = [412.0, 96.5, 0.0, 31.2]'."""
    image: str = ""
    """The image, relative to the data set, that lacks an object without it: both are left out together."""


def report(
    problems: Iterable[Problem], limit: int | None = None, all_in: str = "retinanet check lists all"
) -> str:
    """All problems as text, grouped by kind and file; `limit` shortens each group and says by how much."""
    groups: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        groups.setdefault((problem.file, problem.kind), []).append(problem.detail)
    lines = []
    for (file, kind), details in groups.items():
        lines.append(f"{file}: {len(details)} {kind}")
        shown = details if limit is None else details[:limit]
        lines += [f"  {detail}" for detail in shown if detail]
        if len(shown) < len(details):
            lines.append(f"  ... and {len(details) - len(shown)} more ({all_in})")
    return "\n".join(lines)


def unknown_name_error(kind: str, name: object, known: Iterable[str]) -> ConfigError:
    """The error for an unknown name, with the nearest known ones."""
    choices = sorted(known)
    hint = nearest(name, choices) or f"; choose one of: {', '.join(choices)}"
    return ConfigError(f"unknown {kind} {name!r}{hint}")


def nearest(name: object, known: Iterable[str]) -> str:
    """'; did you mean ...?' for the end of a message; empty where no known name is near."""
    near = difflib.get_close_matches(str(name), list(known), n=3)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
