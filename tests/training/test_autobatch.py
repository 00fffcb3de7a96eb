"""The cost of a training is known before it: memory, time, anchors; the largest batch, its rate."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import CPU, SMALL, session_of

from retinanet.cli import main
from retinanet.config.io import override, reading
from retinanet.config.presets import preset
from retinanet.data.scenes import write_scenes
from retinanet.data.splits import open_training
from retinanet.errors import ConfigError
from retinanet.training import autobatch as cost
from retinanet.training.loop import train_step
from retinanet.training.setup import resolve_config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_scenes(
        tmp_path_factory.mktemp("data"), {"train": 40, "val": 2}, size=(64, 96), seed=3, across=(16, 48)
    )


def fitted(data, **settings):
    config = resolve_config(override(preset("tiny"), {**SMALL, "batch": "auto", **settings}), CPU)
    return cost.resolve_auto_batch(config, *open_training(data, config.seed, **reading(config)), CPU)


def test_what_autograd_keeps_is_counted_once_each():
    weight = torch.ones(1000, requires_grad=True)
    with cost.kept_bytes() as kept:
        value = torch.ones(1000)
        (value * weight + value * weight.sin()).sum()
    assert sum(kept.values()) == 4 * 1000 * 2  # value and weight, each for two products


def test_an_image_of_four_times_the_area_needs_about_four_times_the_memory(data):
    small, large = (cost.measure(session_of(data, scale=scale, train_scale=scale)) for scale in (64, 128))
    assert 3 < large.image / small.image < 5
    assert large.fixed == small.fixed


def test_the_fixed_memory_is_that_of_weights_gradients_moments_and_average(data):
    session = session_of(data)
    parameters = sum(parameter.numel() for parameter in session.model.parameters())
    buffers = sum(buffer.numel() for buffer in session.model.buffers())
    memory = cost.measure(session)
    # weights and their average, gradients, two moments (and Adam's counters)
    assert memory.fixed == pytest.approx(4 * (2 * (parameters + buffers) + 3 * parameters), rel=0.01)


def test_the_largest_batch_is_the_one_that_fits(data, monkeypatch, caplog):
    memory = cost.Memory(fixed=1000, image=100, free=2100)  # 0.7 x 2100 leaves room for 4
    monkeypatch.setattr(cost, "measure", lambda session: memory)
    with caplog.at_level("INFO", "retinanet"):
        assert fitted(data).batch == 4
    assert "the limit is memory" in caplog.text


def test_the_batch_stays_where_the_learning_rate_can_follow(data, monkeypatch, caplog):
    monkeypatch.setattr(cost, "measure", lambda session: cost.Memory(0, 1, 1 << 40))
    with caplog.at_level("INFO", "retinanet"):
        assert fitted(data).batch == 5  # 40 images, 8 steps an epoch
    assert "the square root of the batch (AdamW): 0.002 for 4 images, so 0.00224" in caplog.text
    monkeypatch.setattr(cost, "LARGEST", 1)
    assert fitted(data).batch == 4  # 1 x lr_batch


def test_a_machine_without_room_for_one_image_says_so(data, monkeypatch):
    monkeypatch.setattr(cost, "measure", lambda session: cost.Memory(1000, 100, 500))
    with pytest.raises(ConfigError, match="not one image fits"):
        fitted(data)


def test_anchors_of_objects_are_those_that_training_assigns(data):
    session = session_of(data, jitter=(1.0, 1.0), flip=0.0)
    counts, sides, labels = cost.anchors_of_objects(session)
    steps = session.sampler.steps_per_epoch
    positives = sum(
        float(train_step(session, batch, 0.0)["positives"]) * 2 for batch in session.batches(0, steps)
    )
    assert counts.sum() == positives
    assert len(counts) == len(sides) == len(labels) == len(session.training.labels)
    assert np.bincount(labels).tolist() == np.bincount(session.training.labels).tolist()


def test_a_dry_run_prints_memory_time_and_anchors_and_leaves_nothing(
    data, tmp_path, monkeypatch, capsys, caplog
):
    monkeypatch.chdir(tmp_path)
    words = [
        "--set",
        "channels=32",
        "--set",
        "num_convs=1",
        "--scale",
        "64",
        "--train-scale",
        "64",
        "--device",
        "cpu",
        "--budget",
        "500im",
    ]
    with caplog.at_level("INFO", "retinanet"):
        assert main(["train", str(data), "--dry-run", "--preset", "tiny", *words]) == 0
    for expected in (
        "memory: ",
        "s a step, 10 steps an epoch",
        "125 iterations",
        "anchors per object",
        "32-64 px",
        "triangle",
    ):
        assert expected in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_memory_is_measured_for_a_step_of_tall_and_wide_pictures(data):
    session = session_of(data)
    sizes = session.training.sizes.copy()
    sizes[0] = sizes[0][::-1]
    tall_and_wide = dataclasses.replace(session.training, sizes=sizes)
    assert shape_of(dataclasses.replace(session, training=tall_and_wide)) == (96, 96)
    assert shape_of(session) == (64, 96)


def shape_of(session):
    return tuple(cost.dummy_batch(session, 1).images.shape[-2:])


def test_a_dry_run_of_what_does_not_fit_says_so_before_it_tries(data, monkeypatch):
    monkeypatch.setattr(cost, "measure", lambda session: cost.Memory(1000, 1000, 1500))
    with pytest.raises(ConfigError, match="--micro-batch"):
        cost.dry_run(data, override(preset("tiny"), SMALL))
