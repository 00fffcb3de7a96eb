"""What was stopped goes on as if it had not been: bit for bit, whatever stopped it."""

import json
import os
import resource
import signal
import subprocess
import sys

import helpers
import pytest
import torch
from crash import SMALL as SMALL_WORDS
from crash import differences
from helpers import words
from PIL import Image

import retinanet
from retinanet.data.scenes import write_scenes
from retinanet.errors import CheckpointError, ConfigError, DataError
from retinanet.evaluation import evaluate
from retinanet.training import loop, setup
from retinanet.training import resume as state

SMALL = helpers.SMALL | {"train_scale": 64, "log_every": 2, "budget": "8it", "validations": 2}
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five images: with two a step, an epoch ends in the middle of the run and fills up its last step."""
    return write_scenes(
        tmp_path_factory.mktemp("data"), {"train": 5, "val": 3}, size=(64, 96), seed=3, across=(16, 48)
    )


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The run that nobody stopped."""
    return retinanet.train(data, "tiny", out=tmp_path_factory.mktemp("whole") / "run", **SMALL)


def stopped(data, folder, monkeypatch, after, how, **settings):
    """A run to which `how` happens in the step after iteration `after`."""
    true_step, steps = loop.train_step, iter(range(1000))

    def step(*arguments):
        numbers = true_step(*arguments)
        if next(steps) == after:
            how()
        return numbers

    monkeypatch.setattr(loop, "train_step", step)
    try:
        retinanet.train(data, "tiny", out=folder, **{**SMALL, **settings})
    finally:
        monkeypatch.undo()


def interrupt():
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("after", [0, 3, 4, 7])  # 3: at the validation; 7: after the last step
def test_a_run_that_was_interrupted_ends_like_one_that_was_not(data, whole, tmp_path, monkeypatch, after):
    with pytest.raises(KeyboardInterrupt):
        stopped(data, tmp_path / "run", monkeypatch, after, interrupt)
    if after < 7:  # else nothing was left but to validate: that is done, and then the interrupt is told
        retinanet.resume(tmp_path / "run")
    assert differences(whole, tmp_path / "run") == []


def test_another_recipe_is_resumed_as_exactly(data, tmp_path, monkeypatch):
    """SGD, no average, clipping, group norm, micro-batches, repeated images, inverse frequencies."""
    recipe = {"optimizer": "sgd", "lr": 0.01, "ema": None, "max_grad_norm": 1.0, "micro_batch": 1}
    recipe |= {"schedule": "drops", "backbone": "resnet18", "backbone_norm": "group", "repeat_threshold": 1.0}
    recipe |= {"alpha": "inverse-frequency", "normalize": "image", "photometric": 1.0}
    settings = SMALL | recipe
    expected = retinanet.train(data, "tiny", out=tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        stopped(data, tmp_path / "run", monkeypatch, 4, interrupt, **settings)
    assert differences(expected, retinanet.resume(tmp_path / "run")) == []


def test_the_number_of_loader_processes_may_change_on_the_way(data, whole, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        stopped(data, tmp_path / "run", monkeypatch, 4, interrupt, workers=1)
    assert differences(whole, retinanet.resume(tmp_path / "run", workers=2)) == []


def test_sigterm_ends_the_program_with_its_status_after_a_whole_step(data, whole, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as caught:
        stopped(data, tmp_path / "run", monkeypatch, 2, lambda: signal.raise_signal(signal.SIGTERM))
    assert caught.value.code == 143
    assert "--resume" in (tmp_path / "run" / "log.txt").read_text()
    assert differences(whole, retinanet.resume(tmp_path / "run")) == []


def test_a_second_interrupt_does_not_wait(data, tmp_path, monkeypatch):
    def twice():
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        stopped(data, tmp_path / "run", monkeypatch, 2, twice)
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["done"] == 0


def test_what_was_recorded_after_the_last_state_is_recorded_once(data, whole, tmp_path, monkeypatch):
    def crash():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        # the last state is that of the validation, after iteration 4
        stopped(data, tmp_path / "run", monkeypatch, 6, crash)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "itera')  # killed while it wrote
    assert differences(whole, retinanet.resume(tmp_path / "run")) == []


@pytest.mark.parametrize("where", ["write_evaluation", "write_results"])
def test_a_run_that_was_stopped_after_its_last_step_is_finished_once(
    data, whole, tmp_path, monkeypatch, where
):
    def crash(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(loop if where == "write_evaluation" else evaluate, where, crash)
    with pytest.raises(ZeroDivisionError):
        retinanet.train(data, "tiny", out=tmp_path / "run", **SMALL)
    monkeypatch.undo()
    assert differences(whole, retinanet.resume(tmp_path / "run")) == []


def test_a_picture_of_validation_that_cannot_be_decoded_costs_no_validation(
    data, whole, tmp_path, monkeypatch
):
    true, calls = setup.evaluate, iter(range(10))

    def fails_once(*arguments, **settings):
        if next(calls) == 0:
            raise DataError("val/000001.jpg: cannot be read")
        return true(*arguments, **settings)

    monkeypatch.setattr(setup, "evaluate", fails_once)
    with pytest.raises(DataError):
        retinanet.train(data, "tiny", out=tmp_path / "run", **SMALL)
    assert differences(whole, retinanet.resume(tmp_path / "run")) == []


def test_a_record_that_is_damaged_costs_its_end_and_not_the_run(data, whole, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        stopped(data, tmp_path / "run", monkeypatch, 4, interrupt)
    file = tmp_path / "run" / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-20] + b"\0" * 20)
    assert differences(whole, retinanet.resume(tmp_path / "run")) == ["metrics.jsonl"]


def test_a_picture_that_cannot_be_decoded_stops_the_run_which_goes_on_when_it_is_mended(
    data, whole, tmp_path
):
    broken = tmp_path / "data"
    broken.mkdir()
    for name in ("annotations", "val"):
        (broken / name).symlink_to(data / name)
    (broken / "train").mkdir()
    for picture in (data / "train").iterdir():
        (broken / "train" / picture.name).write_bytes(picture.read_bytes())
    victim = sorted((broken / "train").iterdir())[2]
    content = victim.read_bytes()
    Image.open(victim).save(victim, format="png")
    damaged = bytearray(victim.read_bytes())
    damaged[len(damaged) // 2] ^= 255  # begin and end are whole, so that validation passes
    victim.write_bytes(damaged)
    with pytest.raises(DataError, match=victim.name):
        retinanet.train(broken, "tiny", out=tmp_path / "run", **SMALL)
    victim.write_bytes(content)
    assert differences(whole, retinanet.resume(tmp_path / "run")) == []


def test_a_full_disk_leaves_the_last_state_whole(data, whole, tmp_path, monkeypatch):
    """As with a disk that is full, no file may grow beyond a limit that the state exceeds."""

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, before[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError):
            stopped(data, tmp_path / "run", monkeypatch, 5, fill, save_every="1it")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert not [name for name in names if name.endswith(".tmp")]
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["done"] == 5
    assert retinanet.load(tmp_path / "run")  # the weights of the validation before
    assert differences(whole, retinanet.resume(tmp_path / "run")) == []


def test_data_that_have_moved_are_found_and_data_that_have_changed_are_refused(
    data, whole, tmp_path, monkeypatch
):
    with pytest.raises(KeyboardInterrupt):
        stopped(data, tmp_path / "run", monkeypatch, 2, interrupt)
    moved = tmp_path / "elsewhere"
    moved.symlink_to(data)
    other = write_scenes(tmp_path / "other", {"train": 5, "val": 3}, size=(64, 96), seed=4, across=(16, 48))
    with pytest.raises(DataError, match="not those that"):
        retinanet.resume(tmp_path / "run", data=other)
    assert differences(whole, retinanet.resume(tmp_path / "run", data=moved)) == []


def test_a_finished_run_is_not_resumed(whole):
    with pytest.raises(ConfigError, match="--init"):
        retinanet.resume(whole)


def test_a_folder_without_a_run_is_not_resumed(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        retinanet.resume(tmp_path)


@pytest.mark.parametrize("what", ["missing", "truncated", "foreign", "hostile"])
def test_a_state_that_is_not_whole_or_not_ours_is_refused(whole, data, tmp_path, monkeypatch, what):
    with pytest.raises(KeyboardInterrupt):
        stopped(data, tmp_path / "run", monkeypatch, 1, interrupt)
    path = tmp_path / "run" / "state.pt"
    content = path.read_bytes()
    if what == "missing":
        path.unlink()
    elif what == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif what == "foreign":
        torch.save({"format": state.FORMAT, "model": {}}, path)
    else:
        import pickle

        class Hostile:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "it ran"),)

        path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError):
        retinanet.resume(tmp_path / "run")
    assert not (tmp_path / "it ran").exists()


def test_a_config_of_another_version_is_refused_with_its_path(whole, tmp_path):
    about = json.loads((whole / "config.json").read_text())
    about["config"]["batches"] = 3
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError, match=r"config\.json"):
        retinanet.resume(tmp_path)


@pytest.mark.parametrize(("every", "due"), [("3it", [3, 6]), ("1ep", [5]), ("8im", [4])])
def test_states_by_iterations_epochs_and_images(every, due):
    timer = state.Timer(every, steps_per_epoch=5, batch=2)
    assert [done for done in range(1, 8) if timer.due(done)] == due


def test_states_by_the_clock(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(state.time, "monotonic", lambda: clock[0])
    timer = state.Timer("1min", 5, 2)
    clock[0] = 59.0
    assert not timer.due(1)
    clock[0] = 60.0
    assert timer.due(2)
    timer.saved()
    assert not timer.due(3)


def test_a_loader_process_that_is_killed_ends_the_run_with_a_message(data, tmp_path):
    """In a program of its own, since torch looks after its loaders by a signal handler."""
    long = words("--budget 3000it --set save_every=1it --workers 1 --out", tmp_path / "run")
    program = [sys.executable, "-m", "retinanet", "train", data, *SMALL_WORDS, *long]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if line.startswith("6/3000"):
            break
    children = subprocess.run(
        ["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)  # the first one keeps count of semaphores
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a loader process was ended from outside" in printed
    assert "Traceback" not in printed
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["done"] >= 5


def test_data_that_are_gone_are_asked_for(data, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        stopped(data, tmp_path / "run", monkeypatch, 1, interrupt)
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(about | {"data": str(tmp_path / "gone")}))
    with pytest.raises(DataError, match="--data"):
        retinanet.resume(tmp_path / "run")
    with pytest.raises(ConfigError, match="--resume"):
        retinanet.train(data, "tiny", out=tmp_path / "run", **SMALL)
