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

from ..commands.train import resume_run
from ..commands.train import run as train
from ..config.commands import LabConfig, ResumeConfig
from ..config.io import check, flat, override, reading, to_json
from ..config.schema import TrainConfig
from ..data.dataset import Dataset
from ..data.splits import open_training
from ..device import describe, pick_device, versions
from ..distributed import world
from ..errors import ConfigError, DivergenceError
from ..files import sha256, write_atomically
from ..inference.load import load, read_pretrained, resolve_weights
from ..text import duration
from ..training.schedule import plan
from ..training.setup import build_state, resolve_config
from .baselines import load_rival, timings, train_rival
from .paper import ap
from .tables import Experiment, Row, experiment

log = logging.getLogger("retinanet")

BUDGET = "10min"
"""Of a row, when none is given."""

NEVER = {
    "out",
    "device",
    "workers",
    "micro_batch",
    "log_every",
    "save_every",
    "tensorboard",
    "layout",
    "images",
    "max_pixels",
    "compile",
}

NEVER |= {"budget", "validations", "seed"}
"""Settings that are no part of what a row is; its length and seed are written beside."""

FORMAT = 1
"""Raised when the same settings come to mean another training: rows of before are then trained anew."""

STALLED = 0.001
"""AP below which a model has learned nothing: a finished training that answers as if it had not been."""


@dataclass(frozen=True)
class Study:
    """What all rows of an experiment share."""

    folder: Path
    source: str
    base: TrainConfig
    """With everything that the machine decides."""
    iterations: int


def run(name: str, source: str, config: LabConfig) -> Path:
    """Run an experiment; returns the file of its results. Rows that were finished before are not repeated."""
    found = experiment(name)
    study = begin(source, config)
    rows = found.rows(study.base, config.alphas)
    seeds = range(study.base.seed, study.base.seed + config.seeds)
    log.info(
        "%s: %d rows x %d seeds of %d iterations, in %s",
        found.title,
        len(rows),
        len(seeds),
        study.iterations,
        study.folder,
    )
    if study.base.init_model is not None and any(
        row.rival or row.changes.keys() & vars(study.base.model.network).keys() - {"prior"} for row in rows
    ):
        raise ConfigError(f"{name} changes the network from row to row, so its rows cannot begin from --init")
    path = study.folder / f"{name}.json"
    results: list[list[dict[str, Any]]] = [[] for _ in rows]
    for seed in seeds:  # all rows of one seed first, so that a study which is stopped has a table
        with quiet():
            data = open_training(source, seed, **reading(study.base))
        for row, kept in zip(rows, results, strict=True):
            kept.append(once(study, row, seed, data))
        about = {
            "name": name,
            "title": found.title,
            "iterations": study.iterations,
            "alphas": config.alphas,
            "data": Path(source).name,
        }
        entries = [
            {"values": dict(row.values), "group": row.group, "paper": printed(found, row), "results": kept}
            for row, kept in zip(rows, results, strict=True)
        ]
        if found.timed and seed == seeds[0]:
            times = timed(study, [kept[0] for kept in results], data[1])
        for entry, time_of_row in zip(entries, times if found.timed else [None] * len(rows), strict=True):
            entry["milliseconds"] = time_of_row
        machine = " and ".join(sorted({result["machine"] for kept in results for result in kept}))
        write_atomically(path, json.dumps({**about, "machine": machine, "rows": entries}, indent=1).encode())
    return path


def timed(study: Study, results: list[dict[str, Any]], validation: Dataset) -> list[float | None]:
    """Milliseconds of a picture for each row, the rows taking turns; None for one that left no weights."""
    detectors: list[Any] = []
    for result in results:
        rival, ours = (
            study.folder / "rows" / result["key"] / name for name in ("rival.pt", "model.safetensors")
        )
        there = rival if rival.exists() else ours if ours.exists() else None
        detectors.append(
            None if there is None else (load_rival if there is rival else load)(there, study.base.device)
        )
    found = iter(timings([detector for detector in detectors if detector is not None], validation))
    return [None if detector is None else next(found) for detector in detectors]


def printed(found: Experiment, row: Row) -> float | None:
    """The AP that the paper prints for a row, in percent."""
    return ap(found.paper, **(row.values if row.printed is None else row.printed)) if found.paper else None


def begin(source: str, config: LabConfig) -> Study:
    """The base row's settings and length: minutes become iterations here, once for all rows and for all later
    runs of this study.
    """
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
            session = build_state(base, training, validation, device, init)
            budgets[entry] = plan(session, time.perf_counter())[0]
        write_atomically(known, json.dumps(budgets, indent=1).encode())
        log.info("budget %s of a row: %d iterations for every row", base.budget, budgets[entry])
    return Study(folder, source, base, budgets[entry])


def once(study: Study, row: Row, seed: int, data: tuple[Dataset, Dataset]) -> dict[str, Any]:
    """The result of a row with a seed: read when it is there, else trained, or gone on with when it was
    stopped.

    Of the weights those of the study's first seed are kept, and no state: the row is finished.
    """
    config = override(replace(study.base, seed=seed), row.changes)
    key = identity(config, seed, study.iterations, data, row.rival)
    folder = study.folder / "rows" / key
    path = folder / "result.json"
    if path.exists():
        result: dict[str, Any] = json.loads(path.read_text())
        log_result(row, seed, result, "kept")
    else:
        started = time.perf_counter()
        result = trained(
            study, replace(config, out=folder, budget=f"{study.iterations}it"), row, folder, data
        )
        result |= {
            "seconds": time.perf_counter() - started,
            "seed": seed,
            "iterations": study.iterations,
            "key": key,
        }
        result |= {
            "data_hash": data[0].fingerprint(),
            "validation_hash": data[1].fingerprint(),
            "versions": versions(),
        }
        result |= {
            "config": to_json(config),
            "machine": describe(pick_device(config.device)),
            "rival": row.rival,
        }
        write_atomically(path, json.dumps(result, indent=1, default=str).encode())
        for name in (
            "state.pt",
            "best.safetensors",
            *(["model.safetensors", "rival.pt"] if seed != study.base.seed else []),
        ):
            (folder / name).unlink(missing_ok=True)
        log_result(row, seed, result, duration(result["seconds"]))
    return result


def trained(
    study: Study, config: TrainConfig, row: Row, folder: Path, data: tuple[Dataset, Dataset]
) -> dict[str, Any]:
    """Train a row, and say what became of it: trained, stalled (AP below 0.001), or diverged, which is never
    tried again.
    """
    try:
        with quiet():
            if row.rival is not None:
                result = train_rival(row.rival, data, config, study.iterations, folder)
                numbers = result.pop("metrics")
            else:
                if not (folder / "metrics.json").exists():
                    if (folder / "config.json").exists() and (folder / "state.pt").exists():
                        resume_run(
                            folder,
                            ResumeConfig(Path(study.source), config.images, config.device, config.workers),
                        )
                    else:
                        train(study.source, config)
                result, numbers = {}, json.loads((folder / "metrics.json").read_text())
    except DivergenceError as error:
        return {"state": "diverged", "reason": str(error).splitlines()[0], "metrics": {}}
    metrics = {name: numbers.get(name) for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
    return {
        **result,
        "state": "trained" if (metrics["AP"] or 0.0) >= STALLED else "stalled",
        "metrics": metrics,
    }


def identity(
    config: TrainConfig, seed: int, iterations: int, data: tuple[Dataset, Dataset], rival: str | None = None
) -> str:
    """The key of a row: a hash of its settings, seed, length and data. Two experiments that train the same
    share it.

    Settings at their defaults are left out, so that a new setting of a later version does not make old rows
    strangers.
    """
    usual, hashes = flat(TrainConfig()), [split.fingerprint() for split in data]
    settings = {
        name: value for name, value in flat(config).items() if name not in NEVER and value != usual[name]
    }
    if config.init_model is not None:  # its content, not its name
        settings["init"] = sha256(resolve_weights(config.init))
    content = {
        "format": FORMAT,
        "config": settings,
        "seed": seed,
        "iterations": iterations,
        "data": hashes,
        "rival": rival,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def log_result(row: Row, seed: int, result: Mapping[str, Any], how: str) -> None:
    """One line for one training."""
    value = result["metrics"].get("AP")
    what = f"AP {100 * value:.1f}" if result["state"] == "trained" and value is not None else result["state"]
    log.info("  %-40s seed %d  %-10s (%s)", row.name, seed, what, how)


@contextmanager
def quiet() -> Iterator[None]:
    """A study prints a line a row: what a training tells goes to its own log.txt only."""
    handlers = [handler for logger in (log, logging.getLogger()) for handler in logger.handlers]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(max(handler.level, logging.WARNING))
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
