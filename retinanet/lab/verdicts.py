"""What may be concluded from the rows of a table: means, intervals, verdicts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..text import aligned
from .tables import EXPERIMENTS, Claim, Values, cell

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093,
)  # fmt: skip
"""97.5 % points of Student's t for 1 to 19 degrees of freedom; for more the last one serves."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with the half width of its 95 % interval; None where one seed allows none."""

    value: float
    half: float | None
    count: int

    @property
    def sign(self) -> int:
        """1 or -1 when the whole interval lies above or below 0, else 0: one cannot tell."""
        if self.half is None or abs(self.value) <= self.half:
            return 0
        return 1 if self.value > 0 else -1


def mean(values: Sequence[float]) -> Mean:
    """Mean and 95 % interval of independent runs (Student's t)."""
    count = len(values)
    average = sum(values) / count
    if count < 2:
        return Mean(average, None, count)
    deviation = math.sqrt(sum((value - average) ** 2 for value in values) / (count - 1))
    factor = T_975[min(count - 2, len(T_975) - 1)]
    return Mean(average, factor * deviation / math.sqrt(count), count)


def paired(high: dict[int, float], low: dict[int, float]) -> Mean | None:
    """The difference of two rows over the seeds that both have; None when there is none."""
    seeds = sorted(high.keys() & low.keys())
    return mean([high[seed] - low[seed] for seed in seeds]) if seeds else None


HOLDS, CONTRADICTED, OPEN = "holds here", "does not hold here", "cannot tell"


@dataclass(frozen=True)
class Line:
    """A row of a table over its seeds.

    values        the row's columns in the paper's table
    results       of each training: seed, state, metrics, ...
    paper         AP as printed, in percent
    group         of the rows of one group only the best counts
    milliseconds  of an image, where rows were timed together
    chosen        False: another alpha of the same gamma was better in validation
    """

    values: Values
    results: Sequence[Mapping[str, Any]]
    paper: float | None
    group: str = ""
    milliseconds: float | None = None
    chosen: bool = True

    @property
    def scores(self) -> dict[int, float]:
        """AP in percent by seed. A training that diverged left no detector: 0."""
        return {result["seed"]: 100 * (result["metrics"].get("AP") or 0.0) for result in self.results}

    @property
    def failed(self) -> list[str]:
        """What became of the trainings that did not succeed: diverged, stalled."""
        return [result["state"] for result in self.results if result["state"] != "trained"]

    def average(self, metric: str = "AP") -> Mean:
        """A number in percent over the seeds."""
        return mean([100 * (result["metrics"].get(metric) or 0.0) for result in self.results])

    def fits(self, values: Values) -> bool:
        """Whether a claim means this row."""
        return self.chosen and values.items() <= self.values.items()


@dataclass(frozen=True)
class Verdict:
    """A conclusion of the paper, and whether the intervals here support it."""

    text: str
    word: str
    why: str

    def __str__(self) -> str:
        return f"{self.text}: {self.word} ({self.why})"


def read(path: Path) -> tuple[dict[str, Any], list[Line]]:
    """A study's NAME.json and its rows; of a group only the best is chosen."""
    try:
        content = json.loads(path.read_text())
        lines = [
            Line(row["values"], row["results"], row["paper"], row["group"], row.get("milliseconds"))
            for row in content["rows"]
        ]
        if not all(line.results for line in lines):
            raise ValueError("a row without results")
        best: dict[str, Line] = {}
        for line in lines:
            if line.group not in best or line.average().value > best[line.group].average().value:
                best[line.group] = line
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no result of retinanet lab ({type(error).__name__}: {error})"
        ) from error
    return content, [replace(line, chosen=not line.group or best[line.group] is line) for line in lines]


def verdicts(name: str, lines: Sequence[Line]) -> list[Verdict]:
    """All that the paper concludes from this table."""
    claims = EXPERIMENTS[name].claims
    return [failing(claim, lines) if claim.fails else beating(claim, lines) for claim in claims]


def beating(claim: Claim, lines: Sequence[Line]) -> Verdict:
    """Whether `high` beats every row of `low`: the intervals of the paired differences lie above 0."""
    signs, reasons = [], []
    for low in claim.low:
        difference = paired(scores(claim.high, lines), scores(low, lines))
        signs.append(0 if difference is None else difference.sign)
        if difference is not None:
            over = "" if len(claim.low) == 1 else f" over {words(low)}"
            reasons.append((difference.value, f"{shown(difference, '+.1f')} AP{over}"))
    word = HOLDS if min(signs) == 1 else CONTRADICTED if -1 in signs else OPEN
    return Verdict(claim.text, word, min(reasons)[1] if reasons else "not all rows were run")


def failing(claim: Claim, lines: Sequence[Line]) -> Verdict:
    """Whether the rows fail at every seed, of two or more, while the control trains at each."""
    meant = [line for line in lines if any(line.fits(values) for values in claim.fails)]
    control = [line for line in lines if line.fits(claim.control)]
    states = [state for line in meant for state in line.failed]
    total = sum(len(line.results) for line in meant)
    counts = f"{states.count('diverged')} diverged and {states.count('stalled')} stalled of {total} trainings"
    if not meant or not control or any(line.failed for line in control):
        return Verdict(claim.text, OPEN, f"{counts}, but {words(claim.control)} did not train either")
    if len(meant[0].results) < 2:
        return Verdict(claim.text, OPEN, f"{counts}, at one seed")
    word = HOLDS if len(states) == total else OPEN if states else CONTRADICTED
    best = max(line.average().value for line in meant)
    return Verdict(claim.text, word, f"{counts}; the best row reaches AP {best:.1f}")


def scores(values: Values, lines: Sequence[Line]) -> dict[int, float]:
    """AP by seed of the one row that is meant; nothing where it was not run."""
    meant = [line.scores for line in lines if line.fits(values)]
    return meant[0] if len(meant) == 1 else {}


def table(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Head and cells as text: the rows' columns, our numbers with half of their interval, the paper's AP."""
    names = list(lines[0].values)
    timed = any(line.milliseconds is not None for line in lines)
    head = [*names, "AP", "AP50", "AP75", *(["ms"] if timed else []), "paper's AP", "remarks"]
    rows = []
    for line in lines:
        cells = [cell(line.values[name]) for name in names]
        cells += [shown(line.average(metric)) for metric in ("AP", "AP50", "AP75")]
        cells += ["-" if line.milliseconds is None else f"{line.milliseconds:.0f}"] if timed else []
        remarks = [f"{line.failed.count(state)} x {state}" for state in sorted(set(line.failed))]
        remarks += [] if line.chosen else ["not its best alpha"]
        rows.append([*cells, "-" if line.paper is None else f"{line.paper:.1f}", ", ".join(remarks)])
    return head, rows


def text(content: Mapping[str, Any], lines: Sequence[Line]) -> str:
    """The table and the verdicts for a terminal."""
    head, rows = table(lines)
    title, found = f"{content['title']}, {conditions(content, lines)}", verdicts(content["name"], lines)
    return "\n".join([title, "", aligned([head, *rows], left=None), "", *map(str, found)])


def conditions(content: Mapping[str, Any], lines: Sequence[Line]) -> str:
    """On what data, for how long, how often."""
    seeds = max(len(line.results) for line in lines)
    often = f"{seeds} seeds, with 95 % intervals" if seeds > 1 else "one seed, so differences prove nothing"
    return f"{content['data']}: {content['iterations']} iterations a row, {often}"


def shown(value: Mean, form: str = ".1f") -> str:
    """31.2 +- 0.4, in percent."""
    return f"{value.value:{form}}" + ("" if value.half is None else f" +- {value.half:.1f}")


def words(values: Values) -> str:
    """gamma 2, beta 0."""
    return ", ".join(f"{name} {cell(value)}" for name, value in values.items())
