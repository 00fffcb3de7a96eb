"""The curves of a run as images. Matplotlib is imported on use, without pyplot and global state."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Row = Mapping[str, Any]

Floats = NDArray[np.float64]

# Okabe and Ito's colours, distinguishable with any colour blindness and in grey print
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"

INK, QUIET = "#222831", "#6b7280"

PARTS = (("loss", "total", INK), ("class_loss", "class", BLUE), ("box_loss", "box", ORANGE))

STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # class names may hold dollar signs
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": INK,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "savefig.dpi": 144,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.15,
}


def plot_losses(rows: Sequence[Row], path: Path) -> None:
    """The parts of the loss by iteration, raw and smoothed, with the validation loss and learning rate."""
    train, val = _kind(rows, "train"), _kind(rows, "val")
    with _figure(path, (8, 5.4)) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        shown: list[Floats] = []
        for key, label, colour in PARTS:
            x, y = _column(train, key)
            if len(x):
                top.plot(x, y, color=colour, alpha=0.22, linewidth=0.9)
                shown.append(_smooth(y))
                top.plot(x, shown[-1], color=colour, label=label, marker="o" if len(x) == 1 else None)
        x, y = _column(val, "loss")
        if len(x):
            shown.append(y)
            top.plot(x, y, color=RED, marker="o", markersize=5, linewidth=1.2, label="total, validation")
        top.set(title="Loss", ylabel="loss per positive anchor")
        values = np.concatenate([np.empty(0), *shown])
        if len(values) and values.max() > 0:
            # the first steps may be a hundred times higher than all that follows, which matters more
            top.set_ylim(0, 1.1 * max(float(np.percentile(values, 99)), float(values[-1])))
        _legend(top)
        x, y = _column(train, "lr")
        bottom.plot(x, y, color=QUIET, linewidth=1.4, marker="o" if len(x) == 1 else None)
        bottom.set(xlabel="iteration", ylabel="learning rate")
        bottom.set_ylim(bottom=0)
        bottom.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
        _whole_numbers(bottom)
        _nothing(top, bool(shown))


def plot_ap(rows: Sequence[Row], path: Path) -> None:
    """AP, AP50 and AP75 on the validation split against the iteration; the best AP is marked."""
    val = _kind(rows, "val")
    with _figure(path, (8, 4.2)) as figure:
        axes = figure.subplots()
        highest = 0.0
        for key, colour, width in (("AP50", SKY, 1.4), ("AP", BLUE, 2.4), ("AP75", GREEN, 1.4)):
            x, y = _column(val, key)
            if len(x):
                highest = max(highest, float(y.max()))
                label = f"{key}   {y[-1]:.3f}"
                axes.plot(x, y, color=colour, linewidth=width, marker="o", markersize=4, label=label)
        x, y = _column(val, "AP")
        if len(x):
            best = int(y.argmax())
            ring = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "linestyle": "none"}
            axes.plot(x[best], y[best], markeredgecolor=RED, **ring)
            side = "right" if x[best] > x.mean() else "left"
            text = f"best AP {y[best]:.3f} at {x[best]:.0f}"
            _note(axes, text, (x[best], y[best]), side, (10, -16))
        axes.set(title="Average precision on validation", xlabel="iteration", ylabel="AP")
        # the next tenth above all values, so that a curve at 0.2 is not flat and one at 0.9 is not cut
        axes.set_ylim(0, min(1.0, max(0.1, math.ceil((highest or 1.0) * 10 + 0.5) / 10)) + 0.01)
        _legend(axes)
        _whole_numbers(axes)
        _nothing(axes, len(x) > 0)


def plot_precision_recall(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], path: Path) -> None:
    """Precision against recall at IoU 0.5: name -> (recall [R], precision [R]), and their mean.

    Up to twelve classes have a colour each; of more, which no legend could hold, all lines are grey and the
    best and worst are named.
    """
    data = {name: _pair(*curve) for name, curve in curves.items()}
    data = {name: (x, y) for name, (x, y) in data.items() if len(x)}
    sampled = {name: _at(x, y, GRID) for name, (x, y) in data.items()}
    area = {name: float(np.mean(y)) for name, y in sampled.items()}
    ranked = sorted(area, key=area.__getitem__, reverse=True)
    named = ranked if len(ranked) <= len(CYCLE) else [*ranked[:3], *ranked[-3:]]
    with _figure(path, (7.6, 5)) as figure:
        axes = figure.subplots()
        for name in ranked:
            if name not in named:
                axes.plot(*data[name], color="#cbd0d8", linewidth=0.7, zorder=1)
        for i, name in enumerate(named):
            style = {"color": CYCLE[i % 6], "linestyle": "-" if i < 6 else "--", "linewidth": 1.3}
            axes.plot(*data[name], label=f"{_short(name)}   {area[name]:.2f}", **style)
        if sampled:
            mean = np.mean([*sampled.values()], axis=0)
            axes.plot(GRID, mean, color=INK, linewidth=2.6, label=f"mean   {float(np.mean(mean)):.2f}")
        axes.set(title="Precision and recall at IoU 0.5", xlabel="recall", ylabel="precision")
        axes.set(xlim=(0, 1), ylim=(0, 1.03))
        title = "AP50" if len(named) == len(ranked) else f"AP50, best and worst of {len(ranked)}"
        _legend(axes, title=title, loc="upper left", bbox_to_anchor=(1.01, 1))
        _nothing(axes, bool(data))


def plot_confusion(matrix: ArrayLike, names: Sequence[str], path: Path) -> None:
    """[K+1, K+1] counts: rows are the truth, columns the prediction, the last of both is the background."""
    counts = np.asarray(matrix, dtype=np.float64)
    size = len(names) + 1
    if counts.shape != (size, size):
        raise ValueError(
            f"a confusion matrix of {len(names)} classes is [{size}, {size}], not {list(counts.shape)}"
        )
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    labels = [*map(_short, names), "background"]
    side = min(max(4.2, 0.62 * size), 17)
    small = max(3.5, min(9.5, 0.55 * 72 * side / size / 2.2))  # points: a text has to fit into its cell
    with _figure(path, (side + 1.9, side + 1.2)) as figure:
        axes = figure.subplots()
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="equal")
        axes.grid(False)
        ticks = {"fontsize": max(4.5, min(10, small * 1.1)), "color": INK}
        slant = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        upright = {"rotation": 90, "ha": "center", "rotation_mode": "default"}
        axes.set_xticks(range(size), labels, **(upright if size > 8 else slant), **ticks)
        axes.set_yticks(range(size), labels, **ticks)
        axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=min(1.5, 24 / size))
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        for row, column in np.argwhere(counts > 0).tolist():
            if size > 30 and share[row, column] < 0.02:
                continue  # the colour of a rare mistake among eighty classes says as much as a tiny number
            value = counts[row, column]
            text = f"{value:.0f}" if value < 10_000 else f"{value / 1000:.0f}k"
            colour = "white" if share[row, column] > 0.55 else INK
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=small)
        axes.set(title="Confusion", xlabel="predicted", ylabel="true")
        bar = figure.colorbar(image, ax=axes, shrink=0.5, aspect=18, pad=0.02)
        bar.set_label("share of the row")
        bar.outline.set_visible(False)


def plot_f1(thresholds: ArrayLike, f1: ArrayLike, best: float | None, path: Path) -> None:
    """F1 [T] against the score threshold [T]; `best` is the threshold to use, if there is one."""
    x, y = _pair(thresholds, f1)
    with _figure(path, (7, 4)) as figure:
        axes = figure.subplots()
        axes.fill_between(x, y, color=BLUE, alpha=0.08, linewidth=0)
        axes.plot(x, y, color=BLUE, marker="o" if len(x) == 1 else None)
        if best is not None and len(x):
            height = float(_at(x, y, np.array([best]))[0])
            axes.axvline(best, color=RED, linewidth=1.2, linestyle="--")
            axes.plot(best, height, color=RED, marker="o", markersize=6)
            side = "right" if best > 0.55 else "left"
            _note(axes, f"F1 {height:.3f} at threshold {best:.2f}", (best, 0.04), side, (8, 0))
        axes.set(title="F1 against the score threshold", xlabel="score threshold", ylabel="F1")
        axes.set(xlim=(0, 1), ylim=(0, 1.03))
        _nothing(axes, len(x) > 0)


GRID = np.linspace(0, 1, 101)  # COCO's recall points

CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY) * 2


@contextmanager
def _figure(path: Path, size: tuple[float, float]) -> Iterator[Any]:
    """A figure in our style, written to `path` at the end; its folder is made."""
    import matplotlib
    from matplotlib.figure import Figure

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # names in a script that the font lacks are drawn as boxes, without a warning for each
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        figure.savefig(path)


def _kind(rows: Sequence[Row], kind: str) -> list[Row]:
    return [row for row in rows if row.get("kind") == kind]


def _column(rows: Sequence[Row], key: str) -> tuple[Floats, Floats]:
    """Iteration and value of the rows that have both as finite numbers."""
    return _pair([_number(row.get("iteration")) for row in rows], [_number(row.get(key)) for row in rows])


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    """Two columns of one length without the rows that are not finite."""
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    good = np.isfinite(first) & np.isfinite(second)
    return first[good], second[good]


def _smooth(values: Floats) -> Floats:
    """A centred running mean over a fiftieth of the curve: a lag would show a turn later than it came."""
    reach = len(values) // 50
    if not reach:
        return values
    total = np.concatenate([[0.0], np.cumsum(values)])
    here = np.arange(len(values))
    low, high = np.maximum(here - reach, 0), np.minimum(here + reach + 1, len(values))
    smooth: Floats = (total[high] - total[low]) / (high - low)
    return smooth


def _at(x: Floats, y: Floats, points: Floats) -> Floats:
    """y at some points; 0 beyond the last x, which for a precision is what was never recalled."""
    order = np.argsort(x, kind="stable")
    values: Floats = np.interp(points, x[order], y[order], right=0.0)
    return values


def _short(name: str) -> str:
    name = " ".join(str(name).split())
    return name if len(name) <= 22 else name[:21] + "…"


def _note(axes: Any, text: str, place: tuple[float, float], side: str, offset: tuple[int, int]) -> None:
    """A red text whose left or right `side` is beside a point."""
    shift = (offset[0] if side == "left" else -offset[0], offset[1])
    axes.annotate(text, place, shift, textcoords="offset points", ha=side, color=RED)


def _legend(axes: Any, **options: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**options)


def _whole_numbers(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _nothing(axes: Any, anything: bool) -> None:
    """Say so when there is nothing to show: an empty frame looks like a fault."""
    if not anything:
        style = {"ha": "center", "va": "center", "color": QUIET, "fontsize": 12}
        axes.text(0.5, 0.5, "no data yet", transform=axes.transAxes, **style)
