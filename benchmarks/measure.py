"""What the scripts beside this one share: sides that take turns, medians, and a record of what was measured
where."""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from retinanet.device import describe, versions

RESULTS = Path(__file__).parent / "results"
"""Where a script leaves its record, by the script's own name."""


def take_turns(
    sides: Mapping[str, Callable[[], object]], repeats: int, device: torch.device | str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of every call of every side: one unmeasured round, then `repeats` rounds in which each side has
    its turn.

    The machine's speed changes from minute to minute, so the sides are interleaved; compare them by `ratio`,
    round by round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(-1, repeats):
        for name, call in sides.items():
            gc.collect()
            wait(device)
            start = time.perf_counter()
            result = call()
            wait(device)
            spent = time.perf_counter() - start
            del result
            if round_ >= 0:
                seconds[name].append(spent)
    return seconds


def wait(device: torch.device | str) -> None:
    """Until a GPU has done what it was told."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def ratio(slow: list[float], fast: list[float]) -> float:
    """How many times faster: the median over the rounds of one side's time over the other's."""
    return median(one / other for one, other in zip(slow, fast, strict=True))


def arithmetic(call: Callable[[], object]) -> int:
    """The multiplications and additions of the matrix products and convolutions of a call, forward and
    backward."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def product(
    precision: str, device: torch.device | str = "cpu", side: int = 4096
) -> tuple[Callable[[], object], int]:
    """A square matrix product in fp32, bf16 or int8, the most that a machine is made for, and its
    arithmetic."""
    if precision == "int8":
        whole, other_whole = (
            torch.randint(-127, 128, (side, side), device=device, dtype=torch.int8) for _ in range(2)
        )
        return lambda: torch._int_mm(whole, other_whole), 2 * side**3
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    one, other = (torch.rand(side, side, device=device, dtype=kind) for _ in range(2))
    return lambda: one @ other, 2 * side**3


def record(
    script: str, figures: Mapping[str, Any], device: torch.device | str = "cpu", out: Path | None = None
) -> Path:
    """Write what a script (`__file__`) measured, with date, machine and versions, to results/SCRIPT.json or
    to `out`."""
    path = out or RESULTS / f"{Path(script).stem}.json"
    about = {
        "script": f"benchmarks/{Path(script).name}",
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": describe(torch.device(device)),
        "load": os.getloadavg()[0],
        "versions": versions(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | dict(figures), indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")
    return path
