"""Records what a short run computes, so that two commits can be compared to the bit.

    python benchmarks/recorded_run.py before.json                      # in a checkout of the old commit
    python benchmarks/recorded_run.py after.json --compare before.json # in the new one, on the same machine

One thread, fp32, generated scenes: the weights after 30 steps of `tiny`, the losses of each step, the answers
of the trained model for a validation split, and the rows of one table of the paper. Exit status 1 when
anything differs.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from safetensors.torch import load_file

import retinanet
from retinanet import cli
from retinanet.data.scenes import write_scenes

SETTINGS = ["--preset", "tiny", "--device", "cpu", "--precision", "fp32", "--workers", "0", "--scale", "160"]
TIMES = ("images_per_second", "seconds", "started", "date")


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def weights(file: Path) -> str:
    tensors = load_file(file)
    return digest(b"".join(name.encode() + tensors[name].numpy().tobytes() for name in sorted(tensors)))


def run(*words: str) -> None:
    status = cli.main(list(words))
    assert status == 0, f"retinanet {' '.join(words)} ended with {status}"


def record(folder: Path) -> dict[str, object]:
    """Everything that must not change."""
    data = write_scenes(folder / "scenes", {"train": 24, "val": 12}, size=(120, 160), seed=3, across=(16, 80))
    out = folder / "run"
    run(
        "train",
        str(data),
        *SETTINGS,
        "--budget",
        "30it",
        "--batch",
        "4",
        "--log-every",
        "1",
        "--out",
        str(out),
    )
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    run(
        "predict",
        str(out),
        str(data),
        "--split",
        "val",
        "--device",
        "cpu",
        "--workers",
        "0",
        "--out",
        str(folder / "found"),
    )
    study = folder / "study"
    run("lab", "table1b", str(data), *SETTINGS, "--budget", "4it", "--batch", "4", "--out", str(study))
    kept = [
        json.loads(line) for file in sorted(study.rglob("*.jsonl")) for line in file.read_text().splitlines()
    ]
    numbers = re.findall(
        r'"(?:loss|class_loss|box_loss|AP\w*)": [-\d.e]+',
        "\n".join(json.dumps(row, sort_keys=True) for row in kept),
    )
    return {
        "weights": weights(out / "model.safetensors"),
        "steps": [{name: value for name, value in row.items() if name not in TIMES} for row in rows],
        "predictions": digest((folder / "found" / "predictions.json").read_bytes()),
        "lab": sorted(numbers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--compare", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = json.loads(json.dumps(record(Path(folder))))
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(
        f"retinanet {retinanet.__version__}: weights {found['weights']}, predictions {found['predictions']}"
    )
    if options.compare:
        before = json.loads(options.compare.read_text())
        different = [name for name in before if before[name] != found.get(name)]
        print(f"different: {', '.join(different)}" if different else "equal to the bit")
        sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
