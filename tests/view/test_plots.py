"""Plots are written for every kind of run, without a warning (the test run makes warnings errors)."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retinanet.view.plots import plot_ap, plot_confusion, plot_f1, plot_losses, plot_precision_recall

Rows = list[dict[str, Any]]
RUN: Rows = [
    {
        "kind": "train",
        "iteration": i,
        "loss": 3 / i,
        "class_loss": 2 / i,
        "box_loss": 1 / i,
        "lr": 1e-3,
        "positives": 31.2,
    }
    for i in range(1, 120)
] + [
    {"kind": "val", "iteration": i, "loss": 0.1, "AP": i / 500, "AP50": i / 300, "AP75": i / 600}
    for i in (40, 80, 120)
]
ODD: dict[str, Rows] = {
    "empty": [],
    "one point": [RUN[0], RUN[-1]],
    "not a number": [
        {"kind": "train", "iteration": 1, "loss": math.nan, "lr": math.inf},
        {"kind": "val", "iteration": 1, "AP": math.nan, "AP50": None},
    ],
    "keys missing": [
        {"kind": "train", "iteration": 5},
        {"kind": "val"},
        {"loss": 1.0},
        {"kind": "train", "loss": 2.0},
    ],
    "all zero": [
        {"kind": "train", "iteration": 0, "loss": 0.0, "lr": 0.0},
        {"kind": "val", "iteration": 0, "AP": 0.0},
    ],
    "a whole run": RUN,
}


def looks_like_a_picture(path: Path) -> bool:
    with Image.open(path) as picture:
        return min(picture.size) > 300 and len(np.unique(np.asarray(picture.convert("L")))) > 5


@pytest.mark.parametrize("rows", ODD.values(), ids=ODD)
def test_losses_and_ap_are_plotted_from_any_rows(rows: Rows, tmp_path: Path):
    plot_losses(rows, tmp_path / "plots" / "losses.png")
    plot_ap(rows, tmp_path / "plots" / "ap.png")
    assert looks_like_a_picture(tmp_path / "plots" / "losses.png")
    assert looks_like_a_picture(tmp_path / "plots" / "ap.png")


@pytest.mark.parametrize("count", [0, 1, 3, 80])
def test_precision_and_recall_are_plotted_for_any_number_of_classes(count: int, tmp_path: Path):
    recall = np.linspace(0, 1, 101)
    curves = {f"$class_{i}": (recall, np.clip(1.2 - recall - i / 200, 0, 1)) for i in range(count)}
    plot_precision_recall(curves, tmp_path / "pr.png")
    assert looks_like_a_picture(tmp_path / "pr.png")


def test_precision_and_recall_of_one_point_of_none_and_of_nan(tmp_path: Path):
    plot_precision_recall(
        {"a": ([0.5], [0.5]), "b": ([], []), "c": ([0, 1], [math.nan, math.nan])}, tmp_path / "pr.png"
    )
    assert looks_like_a_picture(tmp_path / "pr.png")


@pytest.mark.parametrize("classes", [0, 1, 3, 80])
def test_confusion_is_plotted_for_any_number_of_classes(classes: int, tmp_path: Path):
    matrix = np.diag(np.arange(classes + 1) * 7000)
    plot_confusion(matrix, [f"class {i}" for i in range(classes)], tmp_path / "confusion.png")
    assert looks_like_a_picture(tmp_path / "confusion.png")


def test_confusion_tolerates_any_names_but_not_the_wrong_number_of_them(tmp_path: Path):
    plot_confusion([[1, 0, 0], [0, 2, 0], [1, 1, 0]], ["$x_$ \\frac", "猫" * 40], tmp_path / "confusion.png")
    with pytest.raises(ValueError, match=r"of 1 classes is \[2, 2\], not \[3, 3\]"):
        plot_confusion(np.zeros((3, 3)), ["a"], tmp_path / "confusion.png")


@pytest.mark.parametrize(
    "thresholds, f1, best",
    [
        ([], [], None),
        ([0.2, 0.3], [0.1, 0.2], None),
        ([0.5], [0.4], 0.5),
        ([0.1, 0.5, 0.9], [0.2, math.nan, 0.1], 0.9),
    ],
)
def test_f1_is_plotted(thresholds: list[float], f1: list[float], best: float | None, tmp_path: Path):
    plot_f1(thresholds, f1, best, tmp_path / "f1.png")
    assert looks_like_a_picture(tmp_path / "f1.png")


def test_the_suffix_chooses_the_format(tmp_path: Path):
    plot_f1([0, 1], [0, 1], 0.5, tmp_path / "f1.svg")
    assert "<svg" in (tmp_path / "f1.svg").read_text()


@pytest.fixture
def axes(monkeypatch, tmp_path: Path):
    """The first axes of what a function draws."""
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path: figures.append(figure))

    def drawn(plot, *content):
        plot(*content, tmp_path / "plot.png")
        return figures[-1].axes[0]

    return drawn


def test_smoothing_is_a_centred_mean_that_keeps_the_length(axes):
    rows = [{"kind": "train", "iteration": number, "loss": float(number)} for number in range(100)]
    raw, smooth = (line.get_ydata() for line in axes(plot_losses, rows).lines)
    assert raw.tolist() == list(range(100))
    assert smooth[2:-2] == pytest.approx(raw[2:-2])
    assert (smooth[0], smooth[-1]) == (1.0, 98.0)
    assert axes(plot_losses, rows[:2]).lines[1].get_ydata().tolist() == [0.0, 1.0]


def test_precision_beyond_the_last_recall_is_zero(axes):
    (line, *_) = axes(plot_precision_recall, {"cat": ([0.0, 0.5], [1.0, 0.6])}).lines
    assert "0.40" in line.get_label()  # 51 of 101 points with 0.8 on average; 0.70 if it went on


def test_the_axis_of_ap_ends_above_the_highest_value(axes):
    for value in (0.0, 0.04, 0.21, 0.5, 0.99, 1.0):
        row = {"kind": "val", "iteration": 1, "AP": value}
        assert value < axes(plot_ap, [row]).get_ylim()[1] <= 1.01
    assert axes(plot_ap, []).get_ylim()[1] == pytest.approx(1.01)


def test_importing_the_module_does_not_import_matplotlib():
    code = "import sys, retinanet.view.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
