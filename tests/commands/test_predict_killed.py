"""A long prediction that is killed with -9 goes on where it was: nothing is lost or done twice."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from retinanet.data.scenes import scene

COUNT, BLOCK = 12, 2
PREDICT = f"""
import sys
from retinanet.inference import shards as parts
parts.LARGEST = parts.SMALLEST = {BLOCK}
from retinanet.cli import main
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    for number in range(COUNT):
        Image.fromarray(scene((2, number), (64, 96)).image).save(folder / f"{number:02d}.png")
    return folder


def start(trained, pictures, out, rank=0, world=1):
    words = [
        "predict",
        str(trained),
        str(pictures),
        "--out",
        str(out),
        "--no-save-images",
        "--workers",
        "0",
        "--batch",
        "1",
    ]
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", PREDICT, *words], env=environment, stdout=subprocess.PIPE, text=True
    )


def test_kill_9_loses_and_repeats_nothing(trained, pictures, tmp_path):
    out, other = tmp_path / "killed", tmp_path / "whole"
    process = start(trained, pictures, out)
    whole = start(trained, pictures, other)
    parts, patience = out / "parts", time.monotonic() + 60
    while len(list(parts.glob("*.jsonl"))) < 2 and process.poll() is None and time.monotonic() < patience:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = {part.name: (part.stat().st_mtime_ns, part.read_bytes()) for part in parts.glob("*.jsonl")}
    assert 2 <= len(done) < COUNT // BLOCK and not (out / "predictions.json").exists()

    # two processes go on, without talking to each other; the first is ready before the second begins
    late = start(trained, pictures, out, 1, 2)
    late.communicate()
    assert late.returncode == 0
    kept = {part.name: (part.stat().st_mtime_ns, part.read_bytes()) for part in parts.glob("*.jsonl")}
    assert {name: kept[name] for name in done} == done  # not answered again
    process = start(trained, pictures, out, 0, 2)
    told, _ = process.communicate()
    whole.communicate()
    assert process.returncode == 0 and whole.returncode == 0
    assert f"{BLOCK * len(kept)} of {COUNT} images are done already" in told
    for name in ("predictions.json", "images.json"):
        assert (out / name).read_bytes() == (other / name).read_bytes()
    assert len(json.loads((out / "images.json").read_text())) == COUNT
