"""From an experiment's name to what the user sees: the table printed, its figures drawn, everything kept in
the study's folder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
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
from .paper import speed_points
from .run import run
from .tables import EXPERIMENTS, FORMULAS
from .verdicts import Line, read, text

log = logging.getLogger("retinanet")


def experiment(name: str, source: str, config: LabConfig) -> Path:
    """Run an experiment, print its table and verdicts, draw its figures; returns the study's folder."""
    path = run(name, source, config)
    content, lines = read(path)
    log.info("\n%s\n", text(content, lines))
    folder = path.parent
    (folder / "figures").mkdir(exist_ok=True)
    if name in DRAWN:
        title, caption, numbers = DRAWN[name](folder, source, lines)
        keep(folder, name, title, caption, numbers)
    log.info("%s; all of the study on one page: retinanet lab report %s", path, folder)
    return folder


def formula(name: str, folder: Path) -> None:
    """A figure that needs no training; fig2 needs the results of table1e or table2."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    out = folder / "figures"
    if name == "fig2":
        caption, numbers = speed(folder, out)
    else:
        numbers = {"fig1": figures.fig1, "fig5": figures.fig5, "fig6": figures.fig6}[name](out)
        caption = CAPTIONS[name].format(**numbers)
    keep(folder, name, FORMULAS[name], caption, numbers)


CAPTIONS = {
    "fig1": "The focal loss down-weights what is already right: at gamma 0 it is cross entropy.",
    "fig5": "FL and FL* are both low for well classified examples (x_t above 0).",
    "fig6": "Closed forms of the derivatives; autograd's differ by at most {difference:.1e}.",
}


def keep(folder: Path, name: str, title: str, caption: str, numbers: Mapping[str, Any]) -> None:
    """What the report needs beside the picture."""
    path = folder / "figures" / f"{name}.json"
    write_atomically(
        path, json.dumps({"title": title, "caption": caption, "numbers": numbers}, indent=1).encode()
    )
    log.info("%s: %s (and .svg, .json)", caption, path.with_suffix(".png"))


def speed(folder: Path, out: Path) -> tuple[str, dict[str, Any]]:
    """Figure 2: milliseconds and AP of all timed rows."""
    points, machine = [], ""
    for name in ("table1e", "table2"):
        if (folder / f"{name}.json").exists():
            content, lines = read(folder / f"{name}.json")
            for line in lines:
                if line.milliseconds is not None:
                    machine = content["machine"]
                    series = str(line.values.get("backbone", line.values.get("method")))
                    points.append(
                        (series, str(line.values.get("scale", "")), line.milliseconds, line.average().value)
                    )
    if not points:
        raise ConfigError(
            f"{folder} holds neither table1e nor table2; run one of them with --out {folder} first"
        )
    caption = (
        "Milliseconds of an image, batch 1, against AP. The paper's were measured on another machine and "
        "data set."
    )
    return caption, figures.fig2(points, speed_points(), out, machine)


def cumulated(folder: Path, source: str, lines: Sequence[Line]) -> tuple[str, str, dict[str, Any]]:
    """Figure 4: of the model with the study's first seed, on the validation split."""
    result = lines[0].results[0]
    if result["state"] == "diverged":
        raise ConfigError("the training of figure 4's model diverged, so there is no model to look at")
    if not (folder / "rows" / result["key"] / "model.safetensors").exists():
        raise ConfigError("the weights of this seed were not kept; a study keeps those of its first seed")
    detector = load(folder / "rows" / result["key"])
    config = from_json(TrainConfig, result["config"])
    validation = open_training(source, config.seed, **reading(config))[1]
    shares = figures.cumulative_losses(detector, validation, Criterion(**asdict(config.criterion)))
    figures.fig4(shares, folder / "figures")
    told = []
    for kind in ("negatives", "positives"):
        fifths = [
            f"{100 * line['hardest_fifth']:.0f} %"
            for line in shares[kind]["lines"]
            if line["hardest_fifth"] is not None
        ]
        told.append(
            f"the hardest fifth of the {shares[kind]['found']:,} {kind} holds {', '.join(fifths)} of their "
            f"loss"
        )
    gammas = ", ".join(f"{line['gamma']:g}" for line in shares["negatives"]["lines"])
    return EXPERIMENTS["fig4"].title, f"For gamma {gammas}: {'; '.join(told)}. {concentrated(shares)}", shares


def concentrated(shares: Mapping[str, Any]) -> str:
    """Figure 4's two findings as numbers of this one model: "nearly all" is taken as 95 %, "hardly" as less
    than 15 points.
    """
    negatives, positives = (
        [line["hardest_fifth"] for line in shares[kind]["lines"]] for kind in ("negatives", "positives")
    )
    if None in (negatives[-1], positives[0], positives[-1]):
        return "There is too little to judge the paper's findings."
    nearly, hardly = negatives[-1] >= 0.95, abs(positives[-1] - positives[0]) < 0.15
    told = f"the negatives' hardest fifth does {'' if nearly else 'not '}hold 95 % at the last gamma"
    stays = "stays" if hardly else "does not stay"
    return f"In this model {told}, and the positives' share {stays} within 15 points."


def grid(folder: Path, source: str, lines: Sequence[Line]) -> tuple[str, str, dict[str, Any]]:
    """Figure 7: FL* over gamma and beta, beside cross entropy."""
    (reference,) = [line.average().value for line in lines if line.values["beta"] is None]
    stars = [line for line in lines if line.values["beta"] is not None]
    cells = [
        (
            line.values["gamma"],
            line.values["beta"],
            None if "diverged" in line.failed else line.average().value,
        )
        for line in stars
    ]
    numbers = figures.fig7(cells, folder / "figures", reference)
    better = sum(cell["effective"] for cell in numbers["cells"])
    caption = (
        f"{better} of {len(cells)} settings of FL* reach a higher AP than balanced cross entropy "
        f"(AP {reference:.1f})."
    )
    return EXPERIMENTS["fig7"].title, caption, numbers


def losses(name: str) -> Callable[[Path, str, Sequence[Line]], tuple[str, str, dict[str, Any]]]:
    """The loss curves of an experiment's rows, at the study's first seed."""

    def draw(folder: Path, source: str, lines: Sequence[Line]) -> tuple[str, str, dict[str, Any]]:
        named = {}
        for line in lines:
            record = folder / "rows" / line.results[0]["key"] / "metrics.jsonl"
            if record.exists():
                title = ", ".join(f"{key} {value}" for key, value in line.values.items())
                named[title] = [json.loads(row) for row in record.read_text().splitlines()]
        return (
            f"{EXPERIMENTS[name].title}: losses",
            "Training loss against iterations.",
            figures.curves(named, folder / "figures", name),
        )

    return draw


DRAWN: dict[str, Callable[[Path, str, Sequence[Line]], tuple[str, str, dict[str, Any]]]] = {
    "fig4": cumulated,
    "fig7": grid,
    "prior": losses("prior"),
    "hinge": losses("hinge"),
}
