"""Running an experiment: every row at every seed once, kept under the hash of what it is, and a table of what
came out.

A study's folder holds rows/KEY/ (the runs and their result.json, shared by all experiments), NAME.json (a
table and its verdicts) and figures/.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config.commands import LabConfig, ResumeConfig
from ..config.io import check, flat, override, reading, to_json
from ..config.schema import TrainConfig
from ..data.dataset import Dataset
from ..data.splits import open_training
from ..device import describe, pick_device, versions
from ..distributed import world
from ..errors import ConfigError, DivergenceError
from ..files import sha256, write_atomically
from ..inference.detector import Detector
from ..inference.load import load, read_pretrained, resolve_weights
from ..text import duration
from ..training.run import resume_run
from ..training.run import run as train
from ..training.schedule import plan
from ..training.setup import build_state, resolve_config
from .baselines import FILE as BASELINE_FILE
from .baselines import load_baseline, timings, train_baseline
from .paper import TABLES, ap
from .tables import Row, experiment

log = logging.getLogger("retinanet")

BUDGET = "10min"
"""Of a row, when none is given."""

NOT_LEARNED = {
    *("out", "device", "workers", "micro_batch", "log_every", "save_every", "tensorboard", "layout"),
    *("images", "max_pixels", "compile", "budget", "validations", "seed"),
}
"""Settings that are no part of what a row is; its length and seed are written beside."""

FORMAT = 1
"""Raised when the same settings come to mean another training: older rows are then trained anew."""

STALLED = 0.001
"""AP below which a model has learned nothing."""


@dataclass(frozen=True)
class Study:
    """What all rows of an experiment share.

    base  the settings, with everything that the machine decides
    """

    folder: Path
    source: str
    base: TrainConfig
    iterations: int


def run(name: str, source: str, config: LabConfig) -> Path:
    """Run an experiment; returns the file of its results. Rows that were finished before are not repeated."""
    found = experiment(name)
    study = begin(source, config)
    rows = found.rows(study.base, config.alphas)
    seeds = range(study.base.seed, study.base.seed + config.seeds)
    sizes = (len(rows), len(seeds), study.iterations)
    log.info("%s: %d rows x %d seeds of %d iterations, in %s", found.title, *sizes, study.folder)
    network = vars(study.base.model.network).keys() - {"prior"}
    if study.base.init_model is not None and any(
        row.baseline or row.changes.keys() & network for row in rows
    ):
        raise ConfigError(f"{name} changes the network from row to row, so its rows cannot begin from --init")
    path = study.folder / f"{name}.json"
    results: list[list[dict[str, Any]]] = [[] for _ in rows]
    times: list[float | None] = [None] * len(rows)
    for seed in seeds:  # all rows of one seed first, so that a study which is stopped has a table
        with quiet():  # without a validation split the seed draws one
            data = open_training(source, seed, **reading(study.base))
        for row, kept in zip(rows, results, strict=True):
            kept.append(once(study, row, seed, data))
        if found.timed and seed == seeds[0]:
            times = timed(study, [kept[0] for kept in results], data[1])
        entries = [
            {
                "values": dict(row.values),
                "group": row.group,
                "paper": printed(name, row),
                "results": kept,
                "milliseconds": time_of_row,
            }
            for row, kept, time_of_row in zip(rows, results, times, strict=True)
        ]
        about = {
            "name": name,
            "title": found.title,
            "iterations": study.iterations,
            "alphas": config.alphas,
            "data": Path(source).name,
            "machine": " and ".join(sorted({result["machine"] for kept in results for result in kept})),
            "rows": entries,
        }
        write_atomically(path, json.dumps(about, indent=1).encode())
    return path


def timed(study: Study, results: list[dict[str, Any]], validation: Dataset) -> list[float | None]:
    """Milliseconds of an image for each row, the rows taking turns; None for one that left no weights."""
    detectors: list[Detector | None] = []
    for result in results:
        folder = study.folder / "rows" / result["key"]
        if (folder / BASELINE_FILE).exists():
            detectors.append(load_baseline(folder / BASELINE_FILE, study.base.device))
        elif (folder / "model.safetensors").exists():
            detectors.append(load(folder / "model.safetensors", study.base.device))
        else:
            detectors.append(None)
    found = iter(timings([detector for detector in detectors if detector is not None], validation))
    return [None if detector is None else next(found) for detector in detectors]


def printed(name: str, row: Row) -> float | None:
    """The AP that the paper prints for a row, in percent."""
    return ap(name, **(row.values if row.printed is None else row.printed)) if name in TABLES else None


def begin(source: str, config: LabConfig) -> Study:
    """The base row's settings and its length: minutes become iterations once for all rows and later runs."""
    check(config)
    if config.train.batch == "auto" or world() > 1:
        raise ConfigError("a study wants a number for --batch, the same for all rows, and one process")
    base = replace(config.train, budget=config.train.budget or BUDGET, validations=1, out=None)
    folder = config.train.out or Path("runs") / f"lab-{Path(source).resolve().stem}"
    device = pick_device(base.device)
    base = resolve_config(base, device)
    training, validation = open_training(source, base.seed, **reading(base))
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / "budgets.json"
    budgets: dict[str, int] = json.loads(known.read_text()) if known.exists() else {}
    entry = identity(replace(base, seed=0), 0, 0, (training, validation)) + f" {base.budget}"
    if entry not in budgets:
        with quiet():
            init = None if base.init_model is None else read_pretrained(base.init_model)
            state = build_state(base, training, validation, device, init)
            budgets[entry] = plan(state, time.perf_counter()).iterations
        write_atomically(known, json.dumps(budgets, indent=1).encode())
        log.info("budget %s of a row: %d iterations for every row", base.budget, budgets[entry])
    return Study(folder, source, base, budgets[entry])


def once(study: Study, row: Row, seed: int, data: tuple[Dataset, Dataset]) -> dict[str, Any]:
    """The result of a row with a seed. A finished row is read, a stopped one goes on, others are trained.

    A finished row needs no state. Of the weights those of the study's first seed are kept.
    """
    config = override(replace(study.base, seed=seed), row.changes)
    key = identity(config, seed, study.iterations, data, row.baseline)
    folder = study.folder / "rows" / key
    path = folder / "result.json"
    if path.exists():
        result: dict[str, Any] = json.loads(path.read_text())
        log_result(row, seed, result, "kept")
        return result
    started = time.perf_counter()
    result = trained(study, replace(config, out=folder, budget=f"{study.iterations}it"), row, data)
    result |= {
        "seconds": time.perf_counter() - started,
        "seed": seed,
        "iterations": study.iterations,
        "key": key,
        "data_hash": data[0].fingerprint(),
        "validation_hash": data[1].fingerprint(),
        "versions": versions(),
        "config": to_json(config),
        "machine": describe(pick_device(config.device)),
        "baseline": row.baseline,
    }
    write_atomically(path, json.dumps(result, indent=1, default=str).encode())
    weights = [] if seed == study.base.seed else ["model.safetensors", BASELINE_FILE]
    for name in ("state.pt", "best.safetensors", *weights):
        (folder / name).unlink(missing_ok=True)
    log_result(row, seed, result, duration(result["seconds"]))
    return result


def trained(study: Study, config: TrainConfig, row: Row, data: tuple[Dataset, Dataset]) -> dict[str, Any]:
    """Train a row and say what became of it: trained, stalled (AP below STALLED), or diverged."""
    folder = config.out
    assert folder is not None
    result: dict[str, Any] = {}
    try:
        with quiet():
            if row.baseline is not None:
                result = train_baseline(row.baseline, data, config, study.iterations, folder)
            elif not (folder / "metrics.json").exists():
                if (folder / "config.json").exists() and (folder / "state.pt").exists():
                    source = Path(study.source)
                    resume_run(folder, ResumeConfig(source, config.images, config.device, config.workers))
                else:
                    train(study.source, config)
    except DivergenceError as error:
        return {"state": "diverged", "reason": str(error).splitlines()[0], "metrics": {}}
    numbers = result.pop("metrics", None) or json.loads((folder / "metrics.json").read_text())
    metrics = {name: numbers.get(name) for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
    state = "trained" if (metrics["AP"] or 0.0) >= STALLED else "stalled"
    return {**result, "state": state, "metrics": metrics}


def identity(
    config: TrainConfig,
    seed: int,
    iterations: int,
    data: tuple[Dataset, Dataset],
    baseline: str | None = None,
) -> str:
    """The key of a row: a hash of its settings, seed, length and data. Experiments share equal rows.

    Settings at their defaults are left out, so that a new setting of a later version changes no old key.
    """
    usual = flat(TrainConfig())
    settings = {
        name: value
        for name, value in flat(config).items()
        if name not in NOT_LEARNED and value != usual[name]
    }
    if config.init_model is not None:  # its content, not its name
        settings["init"] = sha256(resolve_weights(config.init))
    content = {
        "format": FORMAT,
        "config": settings,
        "seed": seed,
        "iterations": iterations,
        "data": [split.fingerprint() for split in data],
        "baseline": baseline,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def log_result(row: Row, seed: int, result: Mapping[str, Any], how: str) -> None:
    """One line for one training."""
    value = result["metrics"].get("AP")
    what = f"AP {100 * value:.1f}" if result["state"] == "trained" and value is not None else result["state"]
    log.info("  %-40s seed %d  %-10s (%s)", row.name, seed, what, how)


@contextmanager
def quiet() -> Iterator[None]:
    """Only warnings reach the terminal. A study prints a line a row; each training has its own log.txt."""
    handlers = [handler for logger in (log, logging.getLogger()) for handler in logger.handlers]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(max(handler.level, logging.WARNING))
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
