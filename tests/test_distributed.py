"""Several processes equal one: losses, AP, detections; and one that dies leaves a whole state."""

import json
import os
import signal
import subprocess
from functools import cache

import pytest
import torch
from helpers import rows, torchrun
from safetensors.torch import load_file

import retinanet
import retinanet.cli
from retinanet import distributed
from retinanet.data.scenes import write_scenes
from retinanet.errors import ConfigError

SETTINGS = """--preset tiny --set channels=32 --set num_convs=1 --scale 64 --train-scale 64
--backbone-norm group --optimizer sgd --lr 0.01 --set lr_batch=4 --ema None --budget 10it --batch 4
--log-every 1 --validations 2
--precision fp32 --workers 0 --device cpu"""


SAME = ("micro", *(pytest.param(count, marks=pytest.mark.slow) for count in (2, 4)), "2 micro")


def several(processes, *words):
    """The command of a user, under torchrun."""
    return torchrun(processes, *words), {**os.environ, "OMP_NUM_THREADS": "1"}


def finish(processes, *words):
    """What they print; they must end well. One process is this one, with one thread."""
    if processes == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        assert retinanet.cli.main([*map(str, words)]) == 0
        torch.set_num_threads(threads)
        return None
    command, environment = several(processes, *words)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_scenes(
        tmp_path_factory.mktemp("data"), {"train": 10, "val": 7}, size=(64, 96), seed=3, across=(16, 48)
    )


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """From a name to its run, made on first use: how many processes; "micro": one image at a time."""
    root = tmp_path_factory.mktemp("runs")

    @cache
    def run(name):
        processes, micro = (int(str(name).split()[0]) if name != "micro" else 1), "micro" in str(name)
        words = ["train", data, *SETTINGS.split(), *(["--micro-batch", "1"] if micro else [])]
        finish(processes, *words, "--out", root / str(name))
        return root / str(name)

    return run


@pytest.mark.parametrize("name", SAME)
def test_the_losses_of_10_steps_are_those_of_one_process(runs, name):
    for mine, theirs in zip(rows(runs(1)), rows(runs(name)), strict=True):
        for number in ("loss", "class_loss", "box_loss", "positives"):
            if number in mine:
                assert mine[number] == pytest.approx(theirs[number], abs=1e-4), (mine["iteration"], number)
    assert sum(row["kind"] == "train" for row in rows(runs(name))) == 10


@pytest.mark.parametrize("name", SAME)
def test_the_weights_are_those_of_one_process(runs, name):
    mine, theirs = (load_file(runs(which) / "model.safetensors") for which in (1, name))
    assert max(float((mine[key] - theirs[key]).abs().max()) for key in mine) < 1e-4


@pytest.mark.parametrize("name", SAME)
def test_validation_finds_the_ap_of_one_process(runs, name):
    found = [[row["AP"] for row in rows(run) if row["kind"] == "val"] for run in (runs(1), runs(name))]
    assert found[0] == pytest.approx(found[1], abs=1e-4)


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_eval_gives_the_numbers_and_detections_of_one_process(runs, data, tmp_path, processes):
    command = ["eval", runs(1), data, "--device", "cpu", "--batch", "2", "--out"]
    finish(1, *command, tmp_path / "one")
    printed = finish(processes, *command, tmp_path / "several")
    assert printed.count("evaluating") == 1  # only the first process prints
    one, several = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "several"))
    assert {**one, "config": None} == {**several, "config": None}
    one, several = ((tmp_path / name / "predictions.json").read_bytes() for name in ("one", "several"))
    assert one == several


def running(data, folder):
    """A training of two processes that has begun, and the ids of the two."""
    settings = SETTINGS.replace("--budget 10it", "--budget 2000it")
    words = ["train", data, *settings.split(), "--set", "save_every=1it", "--out", folder]
    command, environment = several(2, *words)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    for line in process.stdout:
        if line.startswith("5/2000"):
            break
    children = subprocess.run(
        ["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True, check=True
    )
    return process, [int(number) for number in children.stdout.split()]


def test_a_process_that_dies_ends_the_run_with_a_message_and_a_whole_state(data, runs, tmp_path):
    process, ranks = running(data, tmp_path / "run")
    os.kill(ranks[-1], signal.SIGKILL)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "another of the 2 processes has ended" in printed
    assert "--resume" in printed
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["done"] >= 5


def test_a_run_of_two_stops_at_one_step_and_goes_on_with_any_number(data, runs, tmp_path):
    process, _ = running(data, tmp_path / "run")
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert "go on with: retinanet train --resume" in printed
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    done = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["done"]
    assert about["processes"] == 2
    # the rest would take a while
    (tmp_path / "run" / "config.json").write_text(json.dumps(about | {"iterations": done + 2}))
    retinanet.resume(tmp_path / "run", workers=0)
    assert [row["iteration"] for row in rows(tmp_path / "run") if row["kind"] == "train"] == list(
        range(1, done + 3)
    )


def test_a_batch_that_cannot_be_shared_is_refused(data, monkeypatch):
    from retinanet.config.io import override
    from retinanet.config.presets import preset
    from retinanet.training.setup import resolve_config

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="shared equally by 3"):
        resolve_config(override(preset("tiny"), {"backbone_norm": "group"}), torch.device("cpu"))
    with pytest.raises(ConfigError, match="--backbone-norm group"):
        resolve_config(override(preset("tiny"), {"batch": 3}), torch.device("cpu"))


def test_alone_there_is_nothing_to_do():
    assert (distributed.rank(), distributed.world(), distributed.is_main_process()) == (0, 1, True)
    value = torch.ones(2)
    assert distributed.all_reduce_sum(value) is value
    assert distributed.all_gather(3) == [3]
    assert distributed.broadcast_from_main(lambda: 4) == 4
    assert distributed.AnyRank().any(True)
    with distributed.process_group():
        assert not torch.distributed.is_initialized()


def test_a_rank_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "first")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun"):
        distributed.rank()
