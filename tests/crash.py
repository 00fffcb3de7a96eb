"""Kill -9 at random moments, resume, and compare with the run that nobody killed: bit for bit.

python tests/crash.py --kills 20      prints each kill and what came of it; exit status 1 when a bit differs
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from helpers import words
from safetensors.torch import load_file

from retinanet import cli
from retinanet.data.scenes import write_scenes

SMALL = words("--preset tiny --backbone test_resnet --set channels=32 --set num_convs=1 --scale 64 --batch 4")
SMALL += words("--train-scale 64 --log-every 3 --device cpu")


def finish(words):
    """Run to the end, in this process."""
    assert cli.main(["train", *map(str, words)]) == 0


def kill_once(words, folder, longest, chance):
    """Start, wait for a random moment, kill -9; true when it was finished before."""
    command = [sys.executable, "-m", "retinanet", "train", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # as in `finish`
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (folder / "config.json").exists() and process.poll() is None:
        time.sleep(0.01)  # before that there is no run to resume
    moment = time.monotonic() + chance.uniform(0, longest)
    while time.monotonic() < moment and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    status = process.wait()
    assert status in (0, -signal.SIGKILL), f"ended by itself with status {status}"
    return status == 0


def recorded(folder):
    """The iteration of the last row that is whole."""
    file = folder / "metrics.jsonl"
    rows = [line for line in file.read_text().split("\n")[:-1] if line] if file.exists() else []
    return json.loads(rows[-1])["iteration"] if rows else 0


def differences(one, other):
    """What is not equal between two finished runs."""
    found = []
    for name in ("model.safetensors", "best.safetensors"):
        mine, theirs = load_file(one / name), load_file(other / name)
        found += [f"{name}: {key}" for key in mine if not torch.equal(mine[key], theirs[key])]
    timeless = [
        [
            {key: value for key, value in json.loads(line).items() if key != "images_per_second"}
            for line in lines.splitlines()
        ]
        for lines in ((run / "metrics.jsonl").read_text() for run in (one, other))
    ]
    return found + (["metrics.jsonl"] if timeless[0] != timeless[1] else [])


def torture(root, kills, iterations, seed=0, longest=12.0, report=print):
    """Kill runs `kills` times and resume each to its end; returns the differences that were found."""
    chance = random.Random(seed)
    data = write_scenes(root / "scenes", {"train": 16, "val": 4}, size=(96, 128), seed=5, across=(16, 64))
    settings = [*SMALL, "--budget", f"{iterations}it", "--validations", 3, "--set", "save_every=7it"]
    finish([data, *settings, "--out", root / "whole", "--workers", 0])
    found, done, run = [], 0, 0
    while done < kills:
        run += 1
        folder = root / f"killed-{run}"
        words = [data, *settings, "--out", folder, "--workers", 1]
        finished = False
        while not finished and done < kills:
            finished = kill_once(words, folder, longest, chance)
            done += not finished
            report(
                f"run {run}: {'finished' if finished else f'kill {done}'}, last recorded iteration "
                f"{recorded(folder)}"
            )
            words = ["--resume", folder, "--workers", chance.choice((0, 1, 2))]
        if not finished:
            finish(words)
        new = differences(root / "whole", folder)
        report(f"run {run}: {new or 'equal to the run that nobody killed'}")
        found += new
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        wrong = torture(Path(scratch), options.kills, options.iterations, options.seed)
    print(f"{options.kills} kills: {'all equal, bit for bit' if not wrong else f'{len(wrong)} differences'}")
    sys.exit(bool(wrong))
