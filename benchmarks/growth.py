"""How a training step grows with the pictures' side, the batch, the classes and the boxes: nothing may be
worse than linear.

    python benchmarks/growth.py --plot docs/growth.svg

One setting grows at a time, the others stay at the base: one picture of 400 px, 80 classes, 8 boxes, on a
ResNet-18. The time of a step is the median of some; the memory is the peak of the process during a step above
what it had before (Linux; on a GPU the allocator's). The expected line is proportional to the pixels and to
the batch; by classes and boxes it is the base plus what a proportional part may add, so there the slope of
the last doubling is what counts: the exponent of growth from the last but one point to the last.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import record, wait
from training_step import RATE, ours, pictures_with, resident

from retinanet.training.loop import train_step

BASE = {"side": 400, "batch": 1, "classes": 80, "boxes": 8}
GROWTH = {
    "side": [400, 560, 800, 1120, 1600],
    "batch": [1, 2, 4, 8, 16],
    "classes": [1, 10, 80, 300, 1000],
    "boxes": [0, 1, 10, 100, 1000],
}
SLACK = 0.1
"""Of an exponent: what caches and noise may add to 1."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--points", type=int, default=5, help="of each setting, the smallest first")
    parser.add_argument("--side", type=int, default=BASE["side"], help="pixels of the base")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plot", type=Path, help="where the picture goes: .svg or .png")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    curves: dict[str, list[dict[str, float]]] = {}
    for name, values in GROWTH.items():
        curves[name] = []
        for value in values[: options.points]:
            scaled = value * options.side // BASE["side"] if name == "side" else value
            sizes = BASE | {"side": options.side} | {name: scaled}
            seconds, memory = measured(sizes, options)
            curves[name].append({name: scaled, "seconds": seconds, "bytes": memory})
            print(f"{name:8s}{scaled:6d}{seconds:9.3f} s{memory / 2**20:9.0f} MiB", flush=True)
    exponents = {
        name: {kind: exponent(name, points, kind) for kind in ("seconds", "bytes")}
        for name, points in curves.items()
    }
    worse = [
        f"{kind} by {name}"
        for name, kinds in exponents.items()
        for kind, value in kinds.items()
        if value > 1 + SLACK
    ]
    for name, kinds in exponents.items():
        print(
            f"{name:8s}" + "  ".join(f"{kind} grow as the power {value:.2f}" for kind, value in kinds.items())
        )
    print("worse than linear: " + (", ".join(worse) or "nothing"))
    if options.plot:
        plot(curves, options.plot)
    setting = {
        "backbone": options.backbone,
        "precision": options.precision,
        "base": BASE | {"side": options.side},
    }
    record(
        __file__,
        {**setting, "curves": curves, "exponents": exponents, "worse": worse},
        options.device,
        options.out,
    )


def measured(sizes: dict[str, int], options: argparse.Namespace) -> tuple[float, int]:
    """Seconds of a step, and bytes that it needs for a while."""
    torch.manual_seed(0)
    side, count = sizes["side"], sizes["boxes"]
    state = ours(options.precision, side, sizes["batch"], options.backbone, options.device, sizes["classes"])
    corners = torch.rand(count, 2) * side * 0.8
    boxes = torch.cat([corners, corners + 16 + torch.rand(count, 2) * side * 0.2], dim=1)
    batch = pictures_with(boxes, torch.arange(count) % sizes["classes"], side, sizes["batch"])
    train_step(state, batch, RATE)
    seconds = []
    for _ in range(options.repeats):
        wait(options.device)
        start = time.perf_counter()
        train_step(state, batch, RATE)
        wait(options.device)
        seconds.append(time.perf_counter() - start)
    state.optimizer.zero_grad(set_to_none=True)
    return median(seconds), needed(lambda: train_step(state, batch, RATE), options.device)


def needed(call: Any, device: str) -> int:
    """The peak of memory during a call, above what there was before."""
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return int(torch.cuda.max_memory_allocated() - before)
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the allocator keeps for later would hide what a step needs
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (proc(5))
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def exponent(name: str, points: list[dict[str, float]], kind: str) -> float:
    """p of time ~ size^p over the last doubling or more; by side it is that of the pixels."""
    first, last = points[-2:]
    size = math.log(last[name] / max(first[name], 0.5)) * (2 if name == "side" else 1)
    return math.log(last[kind] / max(first[kind], 1e-9)) / size if last[kind] > 0 else 0.0


def plot(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Time above, memory below, with the line of what is expected: proportional from the largest point
    down."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        2, len(curves), figsize=(3 * len(curves), 5), sharey="row", layout="constrained"
    )
    for column, (name, points) in enumerate(curves.items()):
        for axis, kind, unit in zip(axes[:, column], ("seconds", "bytes"), (1, 2**30), strict=True):
            x, y = [point[name] for point in points], [point[kind] / unit for point in points]
            power = 2 if name == "side" else 1
            axis.plot(
                x,
                [y[-1] * (value / x[-1]) ** power for value in x],
                color="0.7",
                linestyle="--",
                label="proportional",
            )
            axis.plot(x, y, color="black", marker="o", markersize=4)
            axis.set_xscale("symlog", linthresh=1)
            axis.set_yscale("log")
            axis.set_xticks(x, [f"{value:g}" for value in x])
            axis.minorticks_off()
        axes[1, column].set_xlabel(
            {"side": "side of the pictures, px", "boxes": "boxes of a picture"}.get(name, name)
        )
    axes[0, 0].set_ylabel("seconds of a step")
    axes[1, 0].set_ylabel("GiB of a step")
    axes[0, 0].legend(frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    main()
