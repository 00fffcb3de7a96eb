"""What bf16 costs: the losses of the same training in fp32 and in bf16, and the AP of the same weights
answering in both.

    python benchmarks/precision.py DATA --iterations 200

The same training (preset `tiny`, from scratch, same seed, so the same pictures in the same order) runs in
fp32 and in bf16. What two runs may differ by without any bf16 is shown by a third, fp32 again, that starts
from weights moved by 1e-6 of their size: rounding decides the rest. Losses are smoothed over 20 steps. Then
the fp32 run's best weights answer the validation split in fp32 and in bf16.

Targets: the curves of fp32 and bf16 differ as those of the two fp32 runs do; AP falls by at most 0.002.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import record
from safetensors import safe_open
from safetensors.torch import save_file

from retinanet.config.io import override
from retinanet.config.presets import preset
from retinanet.data.splits import open_training
from retinanet.evaluation.evaluate import evaluate
from retinanet.inference.load import load
from retinanet.training.run import run

SMOOTH = 20  # steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--scale", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layout", help="of the data, if several are found")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        curves = {name: trained(Path(folder), name, options) for name in ("fp32", "bf16", "fp32 moved")}
        answers = {precision: ap(Path(folder) / "fp32", precision, options) for precision in ("fp32", "bf16")}
    smooth = {
        name: np.convolve(losses, np.ones(SMOOTH) / SMOOTH, mode="valid") for name, losses in curves.items()
    }
    apart = {name: float(np.abs(smooth[name] / smooth["fp32"] - 1).mean()) for name in ("bf16", "fp32 moved")}
    drop = answers["fp32"] - answers["bf16"]
    print(
        f"mean distance of the smoothed losses from fp32's: bf16 {apart['bf16']:.2%}, fp32 from moved "
        f"weights {apart['fp32 moved']:.2%}"
    )
    print(
        f"AP of the same weights: fp32 {answers['fp32']:.4f}, bf16 {answers['bf16']:.4f}, a drop of "
        f"{drop:.4f}"
    )
    setting = {"data": options.data.name, "iterations": options.iterations, "scale": options.scale}
    losses = {name: [round(float(value), 5) for value in curve] for name, curve in curves.items()}
    record(
        __file__, {**setting, "apart": apart, "AP": answers, "drop": drop, "losses": losses}, out=options.out
    )


def configured(options: argparse.Namespace) -> Any:
    """The training of all sides, but for its precision."""
    base = preset("tiny")
    settings: dict[str, Any] = {
        "budget": f"{options.iterations}it",
        "train_scale": options.scale,
        "seed": options.seed,
    }
    settings |= {"device": "cpu", "workers": 0, "log_every": 1, "validations": 1, "layout": options.layout}
    return replace(base, model=override(base.model, {"scale": options.scale}), **settings)


def trained(folder: Path, name: str, options: argparse.Namespace) -> list[float]:
    """The loss of each step of a side."""
    first = (moved if name == "fp32 moved" else start)(folder, options)
    run(
        options.data,
        replace(
            configured(options), precision="bf16" if name == "bf16" else "fp32", init=first, out=folder / name
        ),
    )
    rows = [
        json.loads(line)
        for line in (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def start(folder: Path, options: argparse.Namespace) -> Path:
    """The weights that all sides begin with: random, after one step."""
    path = folder / "start" / "model.safetensors"
    if not path.exists():
        run(options.data, replace(configured(options), budget="1it", precision="fp32", out=folder / "start"))
    return path


def moved(folder: Path, options: argparse.Namespace) -> Path:
    """The same, each weight by about 1e-6 of its size elsewhere."""
    source, path = start(folder, options), folder / "moved.safetensors"
    torch.manual_seed(1)
    with safe_open(source, "pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    floats = {name: value for name, value in tensors.items() if value.is_floating_point()}
    save_file(
        tensors | {name: value * (1 + 1e-6 * torch.randn_like(value)) for name, value in floats.items()},
        path,
        about,
    )
    return path


def ap(folder: Path, precision: str, options: argparse.Namespace) -> float:
    """AP of the best weights of a run on its validation split."""
    validation = open_training(options.data, options.seed, layout=options.layout)[1]
    return evaluate(load(folder / "best.safetensors", "cpu", precision), validation).metrics["AP"] or 0.0


if __name__ == "__main__":
    main()
