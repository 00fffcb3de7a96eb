"""`retinanet predict` over a folder, with saved images: images a second from JPEG files to drawn ones.

    python benchmarks/predicting.py
    python benchmarks/predicting.py --other ../old    # beside another checkout, taking turns

The model is a small one, so decoding, drawing and encoding count as much as the network. It is trained for
three iterations on generated scenes and answers every image with ten boxes. Each call is a fresh process,
which tells the seconds of the command itself, without the imports. The files of both checkouts must be equal.

Target: at least 1.3x the images a second of the commit before images were decoded once and drawn aside.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

from measure import ratio, record

from retinanet.config.io import override
from retinanet.data.scenes import write_scenes
from retinanet.weights.checkpoint import read_weights, save_model

HERE = Path(__file__).resolve().parents[1]
PREDICT = """
import importlib.util, sys, time
from retinanet.cli import main
new = importlib.util.find_spec("retinanet.commands") is not None
importlib.import_module("retinanet.commands.predict" if new else "retinanet.engine.predict")
start = time.perf_counter()
status = main(sys.argv[1:])
print("seconds", time.perf_counter() - start)
sys.exit(status)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), help="height and width of an image")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, help="loader processes; as many as predict would take without")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--other", type=Path, help="another checkout of this repository, to compare with")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sides = {"this": HERE} | ({"other": options.other.resolve()} if options.other else {})
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scenes(folder / "data", {"train": options.images}, tuple(options.size))
        model = talkative(folder, options.device)
        words = [str(model), str(folder / "data" / "train"), "--threshold", "0", "--device", options.device]
        words += [] if options.workers is None else ["--workers", str(options.workers)]
        for turn in range(options.repeats):
            for side, checkout in sides.items():
                out = folder / f"{side}-{turn}"
                seconds[side].append(predict(checkout, [*words, "--out", str(out)]))
        equal = all(same(folder / "this-0", folder / f"{side}-0") for side in sides)
    speeds = {side: options.images / median(values) for side, values in seconds.items()}
    figures = {
        "images": options.images,
        "size": options.size,
        "seconds": seconds,
        "images_per_second": speeds,
    }
    for side, speed in speeds.items():
        print(f"{side:8s}{speed:8.1f} images a second")
    if options.other:
        figures |= {"ratio": ratio(seconds["other"], seconds["this"]), "equal": equal}
        print(f"{figures['ratio']:.2f} times as fast; the files are {'equal' if equal else 'NOT equal'}")
    record(__file__, figures, options.device, options.out)


def talkative(folder: Path, device: str) -> Path:
    """A small model that has ten answers for every image."""
    write_scenes(folder / "small", {"train": 8, "val": 4}, (48, 64))
    words = [
        "--preset",
        "tiny",
        "--budget",
        "3it",
        "--scale",
        "64",
        "--set",
        "channels=32",
        "--workers",
        "0",
        "--init",
        "none",
    ]
    run(HERE, ["train", str(folder / "small"), *words, "--device", device, "--out", str(folder / "run")])
    weights, card = read_weights(folder / "run" / "model.safetensors")
    file = folder / "model.safetensors"
    save_model(
        file,
        weights,
        replace(card, model=override(card.model, {"score_threshold": 0.0, "max_detections": 10})),
    )
    return file


def predict(checkout: Path, words: list[str]) -> float:
    """Seconds of the command in a fresh process."""
    return float(run(checkout, ["predict", *words]).split("seconds ")[-1])


def run(checkout: Path, words: list[str]) -> str:
    """What a command of a checkout prints, the seconds last."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, *words], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"retinanet {' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same answers and the same drawn images."""
    names = [file.relative_to(one) for file in one.rglob("*") if file.is_file() and file.name != "about.json"]
    return bool(names) and all(filecmp.cmp(one / name, other / name, shallow=False) for name in names)


if __name__ == "__main__":
    main()
