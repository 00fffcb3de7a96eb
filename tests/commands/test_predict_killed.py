"""A long prediction that is killed with -9 goes on where it was: nothing is lost or done twice."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import words
from PIL import Image

from retinanet.cli import main
from retinanet.data.scenes import scene
from retinanet.inference import shards

COUNT, BLOCK = 12, 2
SLOWLY = f"""
import sys, time
from retinanet.cli import main
from retinanet.inference import shards
from retinanet.commands import predict

def slowly(*arguments, stream=predict.stream_with_images, **settings):
    for answer in stream(*arguments, **settings):
        yield answer
        time.sleep(0.3)

shards.LARGEST = shards.SMALLEST = {BLOCK}
predict.stream_with_images = slowly
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    for number in range(COUNT):
        Image.fromarray(scene((2, number), (64, 96)).image).save(folder / f"{number:02d}.png")
    return folder


def test_kill_9_loses_and_repeats_nothing(trained, pictures, tmp_path, monkeypatch, caplog):
    out, other = tmp_path / "killed", tmp_path / "whole"
    command = words("predict --no-save-images --workers 0 --batch 1", trained, pictures, "--out")
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, *command, str(out)], env=environment)
    parts = out / "parts"
    while len(list(parts.glob("*.jsonl"))) < 2 and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = {part.name: (part.stat().st_mtime_ns, part.read_bytes()) for part in parts.glob("*.jsonl")}
    assert 2 <= len(done) < COUNT // BLOCK and not (out / "predictions.json").exists()

    monkeypatch.setattr(shards, "SMALLEST", BLOCK)
    monkeypatch.setattr(shards, "LARGEST", BLOCK)
    assert main([*command, str(other)]) == 0
    # two processes go on, without talking to each other; the second is ready before the first begins
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main([*command, str(out)]) == 0
    kept = {part.name: (part.stat().st_mtime_ns, part.read_bytes()) for part in parts.glob("*.jsonl")}
    assert {name: kept[name] for name in done} == done  # not answered again
    monkeypatch.setenv("RANK", "0")
    assert main([*command, str(out)]) == 0
    assert f"{BLOCK * len(kept)} of {COUNT} images are done already" in caplog.text
    for name in ("predictions.json", "images.json"):
        assert (out / name).read_bytes() == (other / name).read_bytes()
    assert len(json.loads((out / "images.json").read_text())) == COUNT
