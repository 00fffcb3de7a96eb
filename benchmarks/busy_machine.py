"""What a budget of minutes is worth while another program keeps all cores busy: in its first half, in its
second half, not at all.

    python benchmarks/busy_machine.py DATA --budget 2min

The same training runs three times, one after the other. The other program is a Python loop for each core.

Target: each run ends within 5 % of the budget, from the start of its process to the end of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from measure import record

from retinanet.config.io import parse_budget

BUSY = {"not at all": (0.0, 0.0), "in the first half": (0.0, 0.5), "in the second half": (0.5, 1.0)}
"""From which share of the budget to which the machine is busy."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--budget", default="2min", help="20s, 7min or 1h")
    parser.add_argument("--out", type=Path, help="a JSON file for the record")
    options, more = parser.parse_known_args()  # the rest is for `retinanet train`
    seconds, unit = parse_budget(options.budget)
    if unit != "s":
        raise SystemExit(f"--budget {options.budget!r} is no time; write 20s, 7min or 1h")
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", str(options.data), "--budget", options.budget, *more, "--out"]
        runs = [
            {"busy": when, **timed([*words, f"{folder}/{place}"], start * seconds, stop * seconds)}
            for place, (when, (start, stop)) in enumerate(BUSY.items())
        ]
    for run in runs:
        print(
            f"busy {run['busy']}: {run['seconds']:.1f} s ({run['seconds'] / seconds - 1:+.1%}), "
            f"{run['iterations']} iterations, AP {run['AP']:.3f}"
        )
    if options.out:
        record(__file__, {"budget_s": seconds, "settings": more, "runs": runs}, out=options.out)


def timed(words: list[str], start: float, stop: float) -> dict[str, Any]:
    """A run of the command, with all cores busy from second `start` to second `stop` of it."""
    other = threading.Thread(target=keep_busy, args=(start, stop))
    began = time.perf_counter()
    other.start()
    subprocess.run([sys.executable, "-m", "retinanet", *words], check=True)
    took = time.perf_counter() - began
    other.join()
    found = json.loads((Path(words[-1]) / "metrics.json").read_text())
    return {"seconds": took, "iterations": found["iteration"], "AP": found["AP"] or 0.0}


def keep_busy(start: float, stop: float) -> None:
    time.sleep(start)
    cores = os.cpu_count() or 1
    loops = [subprocess.Popen([sys.executable, "-c", "while 1: pass"]) for _ in range(cores * (stop > start))]
    time.sleep(stop - start)
    for loop in loops:
        loop.kill()


if __name__ == "__main__":
    main()
