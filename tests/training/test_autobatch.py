"""The cost of a training is known before it: memory, time, anchors; the largest batch, its rate."""

import dataclasses

import pytest
from helpers import CPU, SMALL, session_of, words

from retinanet.cli import main
from retinanet.config.io import override, reading
from retinanet.config.presets import preset
from retinanet.data.scenes import write_scenes
from retinanet.data.splits import open_training
from retinanet.training import autobatch as cost
from retinanet.training.setup import resolve_config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_scenes(
        tmp_path_factory.mktemp("data"), {"train": 40, "val": 2}, size=(64, 96), seed=3, across=(16, 48)
    )


def fitted(data, **settings):
    config = resolve_config(override(preset("tiny"), {**SMALL, "batch": "auto", **settings}), CPU)
    return cost.resolve_auto_batch(config, *open_training(data, config.seed, **reading(config)), CPU)


def test_the_largest_batch_is_the_one_that_fits(data, monkeypatch):
    memory = cost.Memory(fixed=1000, image=100, free=1600)  # 0.9 x 1600 leaves room for 4
    monkeypatch.setattr(cost, "measure", lambda state: memory)
    monkeypatch.setattr(cost, "largest_that_runs", lambda state, images: images)
    assert cost.largest_on_gpu(None, 16)[0] == 4
    assert cost.largest_on_gpu(None, 2)[0] == 2


def test_a_gpu_without_room_for_one_image_says_so(monkeypatch):
    monkeypatch.setattr(cost, "measure", lambda state: cost.Memory(1000, 100, 500))
    monkeypatch.setattr(cost, "largest_that_runs", lambda state, images: images)
    with pytest.raises(cost.ConfigError, match="not one image fits"):
        cost.largest_on_gpu(None, 16)


def test_the_batch_stays_where_the_learning_rate_can_follow(data, monkeypatch, caplog):
    with caplog.at_level("INFO", "retinanet"):
        assert fitted(data).batch == 4  # 40 images, 8 steps an epoch
    assert "batch auto: 4 images" in caplog.text
    assert "8 steps an epoch" in caplog.text
    assert fitted(data, lr_batch=2).batch == 4
    assert "the square root of the batch (AdamW): 0.002 for 4 images, so 0.002" in caplog.text
    with caplog.at_level("INFO", "retinanet"):
        fitted(data, lr_batch=1)
    assert "0.002 for 1 images, so 0.004" in caplog.text
    monkeypatch.setattr(cost, "LARGEST", 1)
    assert fitted(data, lr_batch=2).batch == 2  # 1 x lr_batch


def test_a_dry_run_prints_memory_time_and_anchors_and_leaves_nothing(
    data, tmp_path, monkeypatch, capsys, caplog
):
    monkeypatch.chdir(tmp_path)
    small = words(
        "--preset tiny --set channels=32 --set num_convs=1 --scale 64 --train-scale 64 --device cpu"
    )
    expected = ["memory: ", "s a step, 10 steps an epoch", "125 iterations", "anchors per object", "32-64 px"]
    with caplog.at_level("INFO", "retinanet"):
        assert main(words("train --dry-run --budget 500im", data, *small)) == 0
    assert all(text in caplog.text for text in [*expected, "triangle"])
    assert list(tmp_path.iterdir()) == []


def test_memory_is_measured_for_a_step_of_tall_and_wide_images(data):
    state = session_of(data)
    sizes = state.training.sizes.copy()
    sizes[0] = sizes[0][::-1]
    tall_and_wide = dataclasses.replace(state.training, sizes=sizes)
    assert shape_of(dataclasses.replace(state, training=tall_and_wide)) == (96, 96)
    assert shape_of(state) == (64, 96)


def shape_of(state):
    return tuple(cost.dummy_batch(state, 1).images.shape[-2:])
