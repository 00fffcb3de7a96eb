"""The figures of the paper, drawn for print: 3.5 inches wide (one column), text of 8 points, each as NAME.svg
and NAME.png.

A figure takes plain values and returns the numbers that it drew, ready for JSON. Equal values give equal
bytes. Lines differ in colour and in dashes, so that they can be told apart in grey. With y = 1 for a present
class and -1 else, x the logit: x_t = y x and p_t = sigmoid(x_t). AP is in percent, as the paper prints it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ops import losses
from ..view.plots import BLUE, GREEN, INK, ORANGE, PURPLE, QUIET, RED, SKY, STYLE

Curve = Callable[[Tensor], Tensor]
"""x_t [N] -> the loss, or its derivative by x, for y = 1 [N]."""

Point = tuple[str, str, float, float]
"""A detector in Figure 2: series, label, milliseconds per image, AP in percent."""

PRINT: Any = STYLE | {
    "font.size": 8,
    "axes.titlesize": 8,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.handlelength": 2.8,
    "savefig.dpi": 300,
    "savefig.bbox": None,
    "svg.hashsalt": "retinanet",  # else the names inside an SVG are random
}

SHADE = "#eef1f5"

LOOKS: Any = (
    (INK, "-"),
    (BLUE, "--"),
    (ORANGE, "-."),
    (GREEN, ":"),
    (RED, (0, (6, 1.5))),
    (PURPLE, (0, (4, 1, 1, 1, 1, 1))),
    (SKY, "-"),
)

MARKERS = "osD^vP*"

GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)

X_T = torch.arange(-100, 101, dtype=torch.float64) / 20


def fig1(out: Path) -> dict[str, Any]:
    """Figure 1: FL = -(1 - p_t)^gamma log p_t against p_t, for gamma 0 (cross entropy), 0.5, 1, 2 and 5.

    returns {"x": p_t [199], "lines": [{"label", "gamma", "y" [199]}]}
    """
    p = torch.arange(1, 200, dtype=torch.float64) / 200
    lines = []
    for gamma in GAMMAS:
        loss = losses.focal_loss(torch.logit(p), torch.ones_like(p), alpha=None, gamma=gamma)
        label = f"γ = {gamma:g}" + (" (CE)" if gamma == 0 else "")
        lines.append({"label": label, "gamma": gamma, "y": loss.tolist()})
    with _figure(out, "fig1", 2.5) as figure:
        axes = figure.subplots()
        axes.text(0.75, 1.25, "well-classified\nexamples", ha="center", va="center")
        axes.text(0.235, 4.55, "CE(pₜ) = −log(pₜ)\nFL(pₜ) = −(1 − pₜ)ᵞ log(pₜ)", va="center")
        _draw(axes, p.tolist(), lines, (0.5, 1), loc="upper right", bbox_to_anchor=(1, 0.86))
        axes.set(xlabel="probability of ground truth class", ylabel="loss", xlim=(0, 1), ylim=(0, 5))
    return {"x": p.tolist(), "lines": lines}


def focal_slope(x_t: Tensor, gamma: float) -> Tensor:
    """Eq. 10 for y = 1: dFL/dx = (1 - p_t)^gamma (gamma p_t log p_t + p_t - 1). Gamma 0: Eq. 9, p_t - 1."""
    p_t = torch.sigmoid(x_t)
    return (1 - p_t) ** gamma * (gamma * p_t * p_t.log() + p_t - 1)


def focal_star_slope(x_t: Tensor, gamma: float, beta: float) -> Tensor:
    """Eq. 11 for y = 1: dFL*/dx = p_t* - 1, with p_t* = sigmoid(gamma x_t + beta)."""
    return torch.sigmoid(gamma * x_t + beta) - 1


def _variant(
    name: str, loss: Callable[..., Tensor], slope: Callable[..., Tensor], **parameters: float
) -> Any:
    return name, partial(loss, alpha=None, **parameters), partial(slope, **parameters)


VARIANTS: tuple[tuple[str, Callable[..., Tensor], Curve], ...] = (
    ("CE", losses.cross_entropy, partial(focal_slope, gamma=0.0)),
    _variant("FL, γ = 2", losses.focal_loss, focal_slope, gamma=2.0),
    _variant("FL*, γ = 2, β = 1", losses.focal_loss_star, focal_star_slope, gamma=2.0, beta=1.0),
    _variant("FL*, γ = 4, β = 0", losses.focal_loss_star, focal_star_slope, gamma=4.0, beta=0.0),
)
"""Figures 5 and 6: name; loss of (logits, targets); its derivative in closed form. Settings of Table 3."""


def fig5(out: Path) -> dict[str, Any]:
    """Figure 5: CE, FL and FL* (Eq. 7 and 8) against x_t. Right of 0 an example is well classified.

    returns {"x": x_t [201], "lines": [{"label", "y" [201]}]}
    """
    lines = [{"label": name, "y": loss(X_T, torch.ones_like(X_T)).tolist()} for name, loss, _ in VARIANTS]
    drawn = {"x": X_T.tolist(), "lines": lines}
    return _over_x_t(out, "fig5", drawn, "upper right", ylabel="loss", ylim=(0, 5))


def fig6(out: Path) -> dict[str, Any]:
    """Figure 6: the derivatives by x of the losses of Figure 5, for y = 1, in closed form (Eq. 9 to 11).

    returns {"x": x_t [201], "lines": [{"label", "y" [201], "difference"}], "difference"}: by how much
    autograd differs from the closed form, at the worst x_t for both values of y; all float64, below 1e-10.
    """
    lines: list[dict[str, Any]] = [
        {"label": name, "y": slope(X_T).tolist(), "difference": _difference(loss, slope)}
        for name, loss, slope in VARIANTS
    ]
    difference = max(line["difference"] for line in lines)
    assert difference < 1e-10, f"our losses and the paper's derivatives differ by {difference:g}"
    drawn = {"x": X_T.tolist(), "lines": lines, "difference": difference}
    return _over_x_t(out, "fig6", drawn, "lower right", ylabel="derivative by x", ylim=(-1.2, 0.05))


def _over_x_t(out: Path, name: str, drawn: dict[str, Any], corner: str, **settings: Any) -> dict[str, Any]:
    with _figure(out, name, 2.4) as figure:
        axes = figure.subplots()
        _draw(axes, drawn["x"], drawn["lines"], (0, 5), loc=corner)
        axes.set(xlabel="xₜ = yx", xlim=(-5, 5), **settings)
    return drawn


def _difference(loss: Callable[..., Tensor], slope: Curve) -> float:
    """The largest difference between autograd and a closed form (given for y = 1), for y = 1 and y = -1."""
    worst = 0.0
    for y in (1, -1):
        x = (y * X_T).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x, torch.full_like(x, y > 0)).sum(), x)
        worst = max(worst, float((gradient - y * slope(X_T)).abs().max()))
    return worst


def fig2(points: Sequence[Point], paper_points: Sequence[Point], out: Path, machine: str) -> dict[str, Any]:
    """Figure 2: AP against the time of an image. Ours above, timed on `machine`; the paper's below, timed on
    an Nvidia M40, so the two axes are not comparable.

    The points of a series are joined, from the fastest to the slowest. The legend has the first and the last
    label of each. returns {"ours", "paper"}, each a list of {"series", "label", "milliseconds", "AP"}
    """
    panels = [(f"ours, on {machine}", points, "AP")] if points else []
    panels.append(("the paper, on an Nvidia M40: another machine", paper_points, "COCO AP"))
    with _figure(out, "fig2", 0.3 + 2.1 * len(panels)) as figure:
        for axes, (title, shown, score) in zip(
            figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True
        ):
            best_first = sorted(shown, key=lambda point: -point[3])
            for number, name in enumerate(dict.fromkeys(point[0] for point in best_first)):
                own = sorted((time, ap, label) for kind, label, time, ap in shown if kind == name)
                ends = " … ".join(dict.fromkeys((own[0][2], own[-1][2])))
                colour, dashes = LOOKS[1 + number % 6]
                look = {"color": colour, "linestyle": dashes, "marker": MARKERS[number % 7]}
                times, aps = [one[0] for one in own], [one[1] for one in own]
                axes.plot(times, aps, label=f"{name}: {ends}" if ends else name, **look)
            axes.margins(0.06, 0.1)
            axes.legend(loc="best")
            axes.set_title(title, wrap=True)
            axes.set(xlabel="inference time (ms per image)", ylabel=score)
    keys = ("series", "label", "milliseconds", "AP")
    return {
        name: [dict(zip(keys, point, strict=True)) for point in some]
        for name, some in (("ours", points), ("paper", paper_points))
    }


def fig4(shares: Mapping[str, Any], out: Path) -> None:
    """Figure 4: the share of the loss that the easiest anchors hold, from what `cumulative_losses` returns.

    Positives are left, negatives right, and the hardest fifth is shaded.
    """
    with _figure(out, "fig4", 2.3) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, name, what in zip(
            panels, ("positives", "negatives"), ("foreground", "background"), strict=True
        ):
            lines = [line for line in shares[name]["lines"] if line["y"] is not None]
            _draw(axes, shares["x"], lines, (0.8, 1), loc="upper left")
            axes.set(xlabel=f"fraction of\n{what} examples", xlim=(0, 1), ylim=(0, 1))
        panels[0].set_ylabel("cumulative normalized error")


STAR_LOOKS: Any = {  # the last on top
    "diverged": (QUIET, ":", 1.0),
    "other": (ORANGE, "--", 0.8),
    "effective": (BLUE, "-", 1.4),
}


def fig7(cells: Sequence[tuple[float, float, float | None]], out: Path, reference: float) -> dict[str, Any]:
    """Figure 7: FL* against x_t for many settings, by whether they are effective; below, their AP over gamma
    and beta.

    cells      (gamma, beta, AP), AP None where the training diverged
    reference  above this AP a setting is effective (33.5 in the paper)

    returns {"limit": `reference`, "cells": [{"gamma", "beta", "AP", "effective"}]}
    """
    kinds = [
        "diverged" if score is None else "effective" if score > reference else "other"
        for _, _, score in cells
    ]
    with _figure(out, "fig7", 4.4) as figure:
        top, bottom = figure.subplots(2, 1, height_ratios=(1.15, 1))
        for kind, (colour, dashes, width) in STAR_LOOKS.items():
            label: str | None = f"AP > {reference:.1f}" if kind == "effective" else kind
            for gamma, beta, _ in [cell for cell, its in zip(cells, kinds, strict=True) if its == kind]:
                y = losses.focal_loss_star(X_T, torch.ones_like(X_T), gamma, beta)
                top.plot(X_T, y, color=colour, linestyle=dashes, linewidth=width, label=label)
                label = None
        top.set(xlabel="xₜ = yx", ylabel="loss", xlim=(-5, 5), ylim=(0, 5))
        top.legend(loc="upper right")
        _draw_grid(bottom, cells, kinds)
    drawn = [
        {"gamma": gamma, "beta": beta, "AP": score, "effective": kind == "effective"}
        for (gamma, beta, score), kind in zip(cells, kinds, strict=True)
    ]
    return {"limit": reference, "cells": drawn}


def _draw_grid(axes: Any, cells: Sequence[tuple[float, float, float | None]], kinds: Sequence[str]) -> None:
    """AP by gamma (rows) and beta (columns); the effective are bold, the diverged crosses."""
    gammas, betas = sorted({gamma for gamma, _, _ in cells}), sorted({beta for _, beta, _ in cells})
    grid = np.full((len(gammas), len(betas)), np.nan)
    for gamma, beta, score in cells:
        grid[gammas.index(gamma), betas.index(beta)] = math.nan if score is None else score
    axes.imshow(np.ma.masked_invalid(grid), cmap="cividis", aspect="auto", origin="lower")
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2 if np.isfinite(grid).any() else 0.0
    for (gamma, beta, score), kind in zip(cells, kinds, strict=True):
        text, colour = ("×", INK) if score is None else (f"{score:.1f}", INK if score > middle else "white")
        look = {"ha": "center", "va": "center", "weight": "bold" if kind == "effective" else "normal"}
        axes.text(betas.index(beta), gammas.index(gamma), text, color=colour, **look)
    axes.set_xticks(range(len(betas)), [f"{beta:g}".replace("-", "−") for beta in betas])
    axes.set_yticks(range(len(gammas)), [f"{gamma:g}" for gamma in gammas])
    axes.grid(False)
    axes.set(title="AP; bold: effective, ×: diverged", xlabel="β", ylabel="γ")


def curves(named_rows: Mapping[str, Sequence[Mapping[str, Any]]], out: Path, name: str) -> dict[str, Any]:
    """Training loss against the iteration of several runs, smoothed over a fiftieth of each.

    named_rows  run -> rows of its metrics.jsonl, of which those of kind "train" count; a curve ends with a
                cross at its first row without a finite loss
    returns {run: {"x": iterations, "y": smoothed losses, "cut": iteration of that row, or None}}
    """
    drawn = {
        run: _until_cut([row for row in rows if row.get("kind") == "train"])
        for run, rows in named_rows.items()
    }
    heights = [value for line in drawn.values() for value in line["y"]]
    columns = 1 if max(map(len, drawn), default=0) > 18 else 2
    with _figure(out, name, 2.2 + 0.15 * -(-len(drawn) // columns)) as figure:
        axes = figure.subplots()
        for number, (run, line) in enumerate(drawn.items()):
            colour, dashes = LOOKS[number % len(LOOKS)]
            marker = "o" if len(line["x"]) == 1 else None
            axes.plot(line["x"], line["y"], color=colour, linestyle=dashes, label=run, marker=marker)
            if line["cut"] is not None and line["x"]:
                look = {"marker": "X", "markersize": 8, "markeredgecolor": "white", "clip_on": False}
                axes.plot(line["x"][-1], line["y"][-1], color=colour, **look)
        if heights and 0 < 20 * min(heights) < max(heights):
            axes.set_yscale("log")
            # matplotlib's own formatter needs mathematical text, which would garble the name of a run
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        axes.set(xlabel="iteration", ylabel="training loss")
        if drawn:
            figure.legend(loc="outside upper center", ncols=columns)
    return drawn


def _until_cut(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = [math.nan if row["loss"] is None else float(row["loss"]) for row in rows]
    end = next((i for i, value in enumerate(values) if not math.isfinite(value)), len(values))
    y: list[float] = []
    if end:
        window = np.ones(end // 50 + 1)
        counts = np.convolve(np.ones(end), window, "same")
        y = (np.convolve(values[:end], window, "same") / counts).tolist()
    return {
        "x": [int(row["iteration"]) for row in rows[:end]],
        "y": y,
        "cut": int(rows[end]["iteration"]) if end < len(rows) else None,
    }


def _draw(
    axes: Any,
    x: Sequence[float],
    lines: Sequence[Mapping[str, Any]],
    shade: tuple[float, float],
    **legend: Any,
) -> None:
    """Lines of {"label", "y"} over one x, each with its look, and a part of x shaded."""
    axes.axvspan(*shade, color=SHADE, linewidth=0, zorder=0)
    for line, (colour, dashes) in zip(lines, LOOKS, strict=False):
        axes.plot(x, line["y"], color=colour, linestyle=dashes, label=line["label"])
    if lines:
        axes.legend(**legend)


@contextmanager
def _figure(out: Path, name: str, height: float) -> Iterator[Any]:
    """A figure as wide as a column and so many inches high; it is written as NAME.svg and NAME.png."""
    import matplotlib
    from matplotlib.figure import Figure

    out.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(PRINT), warnings.catch_warnings():
        # the name of a run may be in any script
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=(3.5, height), layout="constrained")
        yield figure
        figure.savefig(out / f"{name}.svg", metadata={"Date": None})
        figure.savefig(out / f"{name}.png")
