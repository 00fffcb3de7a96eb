"""How long for the class loss of a training step and its gradient, against torchvision's head, and against a
copy of the logits?

    python benchmarks/class_loss.py

All sides get the same logits of all anchors and the same matched labels, and end with the gradient by the
logits.
ours         `class_loss` over all anchors in one call, divided by the positives, as it comes: large calls are
             compiled
levels       the same, called once for each level of the pyramid, as the criterion does
chunks       `class_loss` without a compiler
torchvision  what its classification head does: one-hot targets, the anchors that count picked out by a mask,
             `sigmoid_focal_loss`, summed
             picture by picture
copy         a copy of the logits: the least that reads all of them and leaves a new tensor
overwrite    a copy into a tensor that is already there. A gradient cannot have it so cheap: most of a copy is
             the system's work to hand
             out new memory, page by page
Targets for 2 x 120,087 anchors and 80 classes in float32 on two CPU cores: ours at most 2.2 times a copy and
at least 16x against torchvision, chunks at least 4x; memory at most 1.1 times the gradient; 1e-5 from
float64, where the gradient is above 1e-6.

`memory` is what a process has more at its peak than before the call, in sizes of the gradient (Linux only).
`first_call_s` is by how much the first call takes longer than a later one: `cold` with an empty cache of
torch.compile, `warm` with what another process left there.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import ratio, record, take_turns
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from retinanet.ops import fused
from retinanet.ops.anchors import STRIDES
from retinanet.ops.assign import BACKGROUND, IGNORE
from retinanet.ops.fused import COMPILER

ALPHA = 0.25
Side = Callable[[], object]


def matched(options: argparse.Namespace, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[int]]:
    """Logits [B, A, K] about a prior of 2 %, labels [B, A] (0.1 % positives, 0.5 % ignored) and the anchors
    of each level."""
    counts = [9 * (-(-options.side // stride)) ** 2 for stride in STRIDES]
    generator = torch.Generator().manual_seed(0)
    shape = options.batch, sum(counts)
    logits = torch.empty(*shape, options.classes).normal_(-4, 1.5, generator=generator)
    draw = torch.rand(shape, generator=generator)
    labels = torch.randint(options.classes, shape, generator=generator)
    labels[draw > 0.001] = BACKGROUND
    labels[draw > 0.995] = IGNORE
    return logits.to(options.device, dtype), labels.to(options.device), counts


def sides_of(options: argparse.Namespace, dtype: torch.dtype, gamma: float) -> dict[str, Side]:
    """What is measured: each makes value and gradient once."""
    logits, labels, counts = matched(options, dtype)
    levels = [level.contiguous() for level in logits.split(counts, dim=1)]
    weight = 1 / (labels >= 0).sum().clamp(min=1)
    there = torch.empty_like(logits)

    def ours() -> Tensor | None:
        x = logits.detach().requires_grad_()
        (fused.class_loss(x, labels, "focal", ALPHA, gamma=gamma) * weight).backward()
        return x.grad

    def by_level() -> list[Tensor | None]:
        xs = [level.detach().requires_grad_() for level in levels]
        parts = zip(xs, labels.split(counts, dim=1), strict=True)
        torch.stack(
            [fused.class_loss(x, label, "focal", ALPHA, gamma=gamma) * weight for x, label in parts]
        ).sum().backward()
        return [x.grad for x in xs]

    def chunks() -> Tensor | None:
        with uncompiled():
            return ours()

    def torchvision() -> Tensor | None:
        x = logits.detach().requires_grad_()
        losses = []
        for picture, label in zip(x, labels, strict=True):
            foreground, counted = label >= 0, label != IGNORE
            target = torch.zeros_like(picture)
            target[foreground, label[foreground]] = 1.0
            loss = sigmoid_focal_loss(picture[counted], target[counted], ALPHA, gamma, reduction="sum")
            losses.append(loss / foreground.sum().clamp(min=1))
        (torch.stack(losses).sum() / len(losses)).backward()
        return x.grad

    copies: dict[str, Side] = {"copy": logits.clone, "overwrite": lambda: there.copy_(logits)}
    return {"ours": ours, "levels": by_level, "chunks": chunks, "torchvision": torchvision} | copies


@contextmanager
def uncompiled() -> Iterator[None]:
    """The region in which every call is too small to be compiled."""
    kept = dict(fused.COMPILE_FROM)
    fused.COMPILE_FROM.clear()
    try:
        yield
    finally:
        fused.COMPILE_FROM.update(kept)


def errors(options: argparse.Namespace, gamma: float) -> dict[str, float]:
    """How far value and gradient of float32 logits are from those of float64, relative."""
    logits, labels, _ = matched(options, torch.float32)
    x, exact = logits.requires_grad_(), logits.detach().double().requires_grad_()
    one, other = (fused.class_loss(z, labels, "focal", ALPHA, gamma=gamma) for z in (x, exact))
    one.backward()
    other.backward()
    assert x.grad is not None and exact.grad is not None
    worst = 0.0
    for some, others in zip(
        x.grad.flatten().split(1 << 22), exact.grad.flatten().split(1 << 22), strict=True
    ):
        seen = others.abs() > 1e-6
        worst = max(worst, float(((some - others).abs() / others.abs())[seen].max()))
    return {"value": abs(float(one.detach().double() / other.detach()) - 1), "gradient": worst}


def memory(options: argparse.Namespace, side: str) -> float | None:
    """Bytes that the process has more at its peak than before, over those of the gradient."""
    dtype = getattr(torch, options.dtype)
    call = sides_of(options, dtype, 2.0)[side]
    call()
    gradient = matched(options, dtype)[0].nbytes
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident("VmRSS")
        call()
        return (resident("VmHWM") - before) / gradient
    except (OSError, AttributeError):  # another system
        return None


def resident(name: str) -> int:
    """Bytes, of the process's own account."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def first_call(options: argparse.Namespace) -> float:
    """Seconds."""
    call = sides_of(options, torch.float32, 2.0)["ours"]
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds[0] - seconds[1]


def alone(options: argparse.Namespace, what: str, dtype: str, cache: str | None = None) -> Any:
    """A figure that a process of its own finds."""
    sizes = [f"--{name}={getattr(options, name)}" for name in ("side", "batch", "classes", "device")]
    environment = os.environ | ({"TORCHINDUCTOR_CACHE_DIR": cache} if cache else {})
    command = [sys.executable, __file__, *sizes, f"--alone={what}", f"--dtype={dtype}"]
    return json.loads(
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    )


def measured(options: argparse.Namespace, dtype: str, gamma: float) -> dict[str, Any]:
    """Seconds of every side and what the targets are about."""
    seconds = take_turns(sides_of(options, getattr(torch, dtype), gamma), options.repeats, options.device)
    figures: dict[str, Any] = {
        "dtype": dtype,
        "gamma": gamma,
        "seconds": {name: median(times) for name, times in seconds.items()},
    }
    for name in ("ours", "levels", "chunks"):
        figures[name] = {other: ratio(seconds[name], seconds[other]) for other in ("copy", "overwrite")}
        figures[name]["torchvision"] = ratio(seconds["torchvision"], seconds[name])
    if dtype == "float32":
        figures["errors"] = errors(options, gamma)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=800, help="of the square pictures, in pixels")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--timings-only",
        action="store_true",
        help="leave out what needs processes of its own: memory and the first call",
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(first_call(options) if options.alone == "first" else memory(options, options.alone)))
        return

    rows = [measured(options, dtype, gamma) for dtype in ("float32", "bfloat16") for gamma in (2.0, 0.5)]
    print("times slower than a copy (than overwriting), times faster than torchvision")
    for row in rows:
        print(
            f"{row['dtype']}, gamma {row['gamma']:g}: "
            + ", ".join(f"{name} {1000 * s:.1f} ms" for name, s in row["seconds"].items())
        )
        for name in ("ours", "levels", "chunks"):
            print(
                f"  {name:8}{row[name]['copy']:6.2f} "
                f"({row[name]['overwrite']:.2f}){row[name]['torchvision']:8.1f}"
            )
        if "errors" in row:
            print(
                f"  from float64: value {row['errors']['value']:.1e}, gradient "
                f"{row['errors']['gradient']:.1e}"
            )
    figures: dict[str, Any] = {
        name: getattr(options, name) for name in ("side", "batch", "classes", "repeats")
    }
    elements = (
        options.batch * options.classes * sum(9 * (-(-options.side // stride)) ** 2 for stride in STRIDES)
    )
    compiled = COMPILER["works"] and elements >= fused.COMPILE_FROM.get(
        torch.device(options.device).type, elements + 1
    )
    figures |= {"threads": torch.get_num_threads(), "compiled": compiled, "rows": rows}
    if not options.timings_only and options.device == "cpu":
        sides = ("ours", "levels", "chunks", "torchvision")
        figures["memory"] = {
            dtype: {side: alone(options, side, dtype) for side in sides} for dtype in ("float32", "bfloat16")
        }
        with tempfile.TemporaryDirectory() as cache:
            figures["first_call_s"] = {
                name: alone(options, "first", "float32", cache) for name in ("cold", "warm")
            }
        print(json.dumps({name: figures[name] for name in ("memory", "first_call_s")}, indent=1))
    record(__file__, figures, options.device, options.out)


if __name__ == "__main__":
    main()
