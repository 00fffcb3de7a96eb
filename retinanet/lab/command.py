"""From an experiment's name to what the user sees: its table and its figures, printed and in the folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config.commands import LabConfig
from ..config.io import from_json, reading
from ..config.schema import TrainConfig
from ..data.splits import open_training
from ..errors import ConfigError
from ..files import write_atomically
from ..inference.load import load
from ..model.criterion import Criterion
from . import figures
from .cumulative import cumulative_losses
from .paper import speed_points
from .run import run
from .tables import EXPERIMENTS, FORMULAS
from .verdicts import Line, read, text, words

log = logging.getLogger("retinanet")


def experiment(name: str, source: str, config: LabConfig) -> Path:
    """Run an experiment, print its table and verdicts, draw its figures; returns the study's folder."""
    path = run(name, source, config)
    content, lines = read(path)
    log.info("\n%s\n", text(content, lines))
    folder = path.parent
    title = EXPERIMENTS[name].title
    if name == "fig4":
        save(folder, name, title, *cumulated(folder, source, lines))
    elif name == "fig7":
        save(folder, name, title, *grid(folder, lines))
    elif name in ("prior", "hinge"):
        save(folder, name, f"{title}: losses", *losses(folder, name, lines))
    log.info("%s; all of the study on one page: retinanet lab report %s", path, folder)
    return folder


def formula(name: str, folder: Path) -> None:
    """A figure that needs no training; fig2 needs the results of table1e or table2."""
    out = folder / "figures"
    if name == "fig2":
        caption, numbers = speed(folder)
    else:
        numbers = {"fig1": figures.fig1, "fig5": figures.fig5, "fig6": figures.fig6}[name](out)
        caption = CAPTIONS[name].format(**numbers)
    save(folder, name, FORMULAS[name], caption, numbers)


CAPTIONS = {
    "fig1": "The focal loss down-weights what is already right: at gamma 0 it is cross entropy.",
    "fig5": "FL and FL* are both low for well classified examples (x_t above 0).",
    "fig6": "Closed forms of the derivatives; autograd's differ by at most {difference:.1e}.",
}

Drawn = tuple[str, Mapping[str, Any]]
"""The caption of a figure, and the numbers that it drew."""


def save(folder: Path, name: str, title: str, caption: str, numbers: Mapping[str, Any]) -> None:
    """Write what the report needs beside the image."""
    path = folder / "figures" / f"{name}.json"
    content = {"title": title, "caption": caption, "numbers": numbers}
    write_atomically(path, json.dumps(content, indent=1).encode())
    log.info("%s: %s (and .svg, .json)", caption, path.with_suffix(".png"))


def speed(folder: Path) -> Drawn:
    """Figure 2: milliseconds and AP of all timed rows."""
    points, machine = [], ""
    for path in (folder / "table1e.json", folder / "table2.json"):
        content, lines = read(path) if path.exists() else ({}, [])
        for line in lines:
            if line.milliseconds is not None:
                machine = content["machine"]
                series = str(line.values.get("backbone", line.values.get("method")))
                scale = str(line.values.get("scale", ""))
                points.append((series, scale, line.milliseconds, line.average().value))
    if not points:
        raise ConfigError(
            f"{folder} holds neither table1e nor table2; run one of them with --out {folder} first"
        )
    caption = (
        "Milliseconds of an image, batch 1, against AP. The paper's were measured on another machine and "
        "data set."
    )
    return caption, figures.fig2(points, speed_points(), folder / "figures", machine)


def cumulated(folder: Path, source: str, lines: Sequence[Line]) -> Drawn:
    """Figure 4: of the model with the study's first seed, on the validation split."""
    result = lines[0].results[0]
    if result["state"] == "diverged":
        raise ConfigError("the training of figure 4's model diverged, so there is no model to look at")
    if not (folder / "rows" / result["key"] / "model.safetensors").exists():
        raise ConfigError("the weights of this seed were not kept; a study keeps those of its first seed")
    detector = load(folder / "rows" / result["key"])
    config = from_json(TrainConfig, result["config"])
    validation = open_training(source, config.seed, **reading(config))[1]
    shares = cumulative_losses(detector, validation, Criterion(**asdict(config.criterion)))
    figures.fig4(shares, folder / "figures")
    parts = []
    for kind in ("negatives", "positives"):
        hardest = [line["hardest_fifth"] for line in shares[kind]["lines"]]
        fifths = ", ".join(f"{100 * share:.0f} %" for share in hardest if share is not None)
        parts.append(
            f"the hardest fifth of the {shares[kind]['found']:,} {kind} holds {fifths} of their loss"
        )
    gammas = ", ".join(f"{line['gamma']:g}" for line in shares["negatives"]["lines"])
    return f"For gamma {gammas}: {'; '.join(parts)}. {concentrated(shares)}", shares


def concentrated(shares: Mapping[str, Any]) -> str:
    """Figure 4's two findings for this one model: "nearly all" means 95 %, "hardly" less than 15 points."""
    negatives, positives = (
        [line["hardest_fifth"] for line in shares[kind]["lines"]] for kind in ("negatives", "positives")
    )
    if None in (negatives[-1], positives[0], positives[-1]):
        return "There is too little to judge the paper's findings."
    holds = "holds" if negatives[-1] >= 0.95 else "does not hold"
    stays = "stays" if abs(positives[-1] - positives[0]) < 0.15 else "does not stay"
    return (
        f"In this model the negatives' hardest fifth {holds} 95 % at the last gamma, and the positives' "
        f"share {stays} within 15 points."
    )


def grid(folder: Path, lines: Sequence[Line]) -> Drawn:
    """Figure 7: FL* over gamma and beta, beside cross entropy."""
    (reference,) = [line.average().value for line in lines if line.values["beta"] is None]
    cells = [
        (
            line.values["gamma"],
            line.values["beta"],
            None if "diverged" in line.failed else line.average().value,
        )
        for line in lines
        if line.values["beta"] is not None
    ]
    numbers = figures.fig7(cells, folder / "figures", reference)
    better = sum(cell["effective"] for cell in numbers["cells"])
    caption = (
        f"{better} of {len(cells)} settings of FL* reach a higher AP than balanced cross entropy "
        f"(AP {reference:.1f})."
    )
    return caption, numbers


def losses(folder: Path, name: str, lines: Sequence[Line]) -> Drawn:
    """The loss curves of an experiment's rows, at the study's first seed."""
    named = {}
    for line in lines:
        record = folder / "rows" / line.results[0]["key"] / "metrics.jsonl"
        if record.exists():
            named[words(line.values)] = [json.loads(row) for row in record.read_text().splitlines()]
    return "Training loss against iterations.", figures.curves(named, folder / "figures", name)
