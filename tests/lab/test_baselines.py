"""The baselines of Table 2: our backbone, images and schedule, and detections in pixels of the original."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import CPU, config_of, model_config
from torch import nn

from retinanet.config.schema import ModelConfig
from retinanet.data.loader import Batch
from retinanet.data.splits import open_training
from retinanet.errors import ConfigError, DivergenceError
from retinanet.evaluation.coco import NUMBERS
from retinanet.evaluation.evaluate import evaluate
from retinanet.lab import baselines
from retinanet.lab.baseline_models import BASELINES, build_baseline
from retinanet.lab.baselines import (
    FILE,
    as_torchvision,
    detector_of,
    load_baseline,
    setup,
    step,
    timings,
    train_baseline,
)
from retinanet.model.backbone import Backbone
from retinanet.model.preprocess import Preprocess
from retinanet.structures import Detections, Targets
from retinanet.training.setup import build_state


def small(**changes):
    return config_of(**{"backbone": "resnet18", "log_every": 1, **changes})


@pytest.fixture(scope="module")
def data(scenes):
    return open_training(scenes, 0)


def batch(boxes=((10.0, 12.0, 40.0, 44.0),), labels=(1,)):
    """Two images in a canvas of 64 x 96: one of 60 x 90 with the boxes, one of 64 x 70 without any."""
    images = torch.randint(
        0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    found = torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.long)
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    targets = Targets.pad([found[0], nothing[0]], [found[1], nothing[1]], [(60, 90), (64, 70)])
    return Batch(images, targets, torch.arange(2))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", BASELINES)
def test_a_step_with_an_empty_image_reaches_every_weight(name, precision, data):
    state = setup(name, data, small(precision=precision, ema=None), CPU)
    before = {key: value.clone() for key, value in state.model.state_dict().items()}
    numbers = step(state, batch(), 0, 1e-3)
    assert all(torch.isfinite(value) for value in numbers.values())
    assert float(numbers["loss"]) == pytest.approx(
        float(numbers["class_loss"] + numbers["box_loss"]), rel=1e-5
    )
    assert float(numbers["box_loss"]) > 0
    for key, parameter in state.model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key
    assert any(not torch.equal(before[key], value) for key, value in state.model.state_dict().items())


@pytest.mark.parametrize("name", BASELINES)
def test_a_step_without_any_box_is_finite(name, data):
    state = setup(name, data, small(ema=None), CPU)
    numbers = step(state, batch((), ()), 0, 1e-3)
    assert all(torch.isfinite(value) for value in numbers.values())
    assert float(numbers["box_loss"]) == 0


@pytest.mark.parametrize("name", BASELINES)
def test_the_network_sees_our_padded_batch_and_nothing_is_resized_again(name, data):
    state = setup(name, data, small(ema=None), CPU)
    seen = []
    state.model.get_submodule("backbone.body").register_forward_hook(
        lambda module, given, made: seen.append((given[0], made))
    )
    one = batch()
    step(state, one, 0, 0.0)
    expected = state.preprocess.normalize(one.images, one.targets.sizes)
    assert torch.equal(seen[0][0], expected)
    strides = [4, 8, 16, 32] if name == "faster_rcnn_fpn" else [8, 16, 32]
    assert [tuple(level.shape[2:]) for level in seen[0][1]] == [
        (64 // stride, 96 // stride) for stride in strides
    ]
    detector_of(state.model, state.config.model, data[0].names, CPU).predict_batch(
        one.images, one.targets.sizes, [(120, 180), (128, 140)]
    )
    assert torch.equal(seen[1][0], expected)


@pytest.mark.parametrize("name", BASELINES)
def test_the_backbone_begins_with_our_weights(name, data):
    ours = build_state(small(), *data, CPU).model.backbone.state_dict()
    theirs = setup(name, data, small(), CPU).model.get_submodule("backbone.body").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", BASELINES)
def test_pretrained_backbones_are_frozen_as_ours(name, data, monkeypatch):
    monkeypatch.setattr(Backbone, "load_imagenet", lambda backbone: None)
    config = small(init="imagenet", backbone_norm="frozen", ema=None)
    ours = build_state(config, *data, CPU).model.backbone
    theirs = setup(name, data, config, CPU).model.get_submodule("backbone.body")
    trained = [
        {key for key, value in body.named_parameters() if value.requires_grad} for body in (ours, theirs)
    ]
    assert trained[0] == trained[1]
    assert not any("bn" in key or key.startswith("body.conv1") for key in trained[0])


@pytest.mark.parametrize("norm", ["frozen", "batch", "group"])
def test_the_finer_backbone_adds_c2_and_changes_nothing_else(norm):
    torch.manual_seed(0)
    body = build_baseline(
        "faster_rcnn_fpn", model_config(backbone="resnet26", backbone_norm=norm, backbone_stride="1x1"), 1
    )
    torch.manual_seed(0)
    ours = Backbone("resnet26", norm, 1e-5, "1x1").eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        maps, expected = body.eval().backbone.body(images), ours(images)
    assert maps[0].shape == (1, 256, 16, 16)
    assert all(torch.equal(one, other) for one, other in zip(maps[1:], expected, strict=True))


def test_labels_begin_after_the_background_and_padding_goes():
    targets = batch(((1.0, 2.0, 30.0, 40.0), (5.0, 6.0, 20.0, 30.0)), (0, 4)).targets
    first, second = as_torchvision(targets)
    assert first["labels"].tolist() == [1, 5]
    assert first["boxes"].tolist() == [[1, 2, 30, 40], [5, 6, 20, 30]]
    assert second["labels"].tolist() == [] and second["boxes"].shape == (0, 4)


class Fixed(nn.Module):
    """Predicts the same for every image, in pixels of the network."""

    def forward(self, images):
        found = {
            "boxes": torch.tensor([[30.0, 15.0, 60.0, 45.0], [0.0, 0.0, 90.0, 60.0]]),
            "scores": torch.tensor([0.9, 0.4]),
            "labels": torch.tensor([2, 1]),
        }
        return [found] * len(images.image_sizes)


def test_detections_are_in_pixels_of_the_original_with_our_labels():
    detector = detector_of(Fixed(), ModelConfig(), ("a", "b", "c"), CPU)
    one = batch()
    first, second = detector.predict_batch(one.images, one.targets.sizes, [(120, 270), (128, 210)])
    assert first.boxes.tolist() == [[90, 30, 180, 90], [0, 0, 270, 120]]
    assert second.boxes[0].tolist() == pytest.approx([90, 30, 180, 90])
    assert second.boxes[1].tolist() == pytest.approx([0, 0, 210, 120])
    assert first.labels.tolist() == [1, 0]


@pytest.mark.parametrize("name", BASELINES)
def test_anchors_and_offsets_stay_in_fp32_under_bf16(name):
    model = build_baseline(name, small().model, 3)
    made = []
    for part in ("backbone", "rpn.head" if name == "faster_rcnn_fpn" else "head"):
        model.get_submodule(part).register_forward_hook(lambda module, given, out: made.append(out))
    detector = detector_of(model, small().model, ("a", "b", "c"), CPU, "bf16")
    one = batch()
    detector.predict_batch(one.images, one.targets.sizes, [(60, 90), (64, 70)])
    maps, predicted = made
    parts = [
        *maps.values(),
        *(predicted.values() if isinstance(predicted, dict) else (x for level in predicted for x in level)),
    ]
    assert {part.dtype for part in parts} == {torch.float32}


@pytest.mark.parametrize("name", BASELINES)
def test_a_short_training_leaves_its_numbers_and_its_weights(name, data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        baselines, "timings", lambda detectors, data: timings(detectors, data.subset(np.arange(1)), 1)
    )
    result = train_baseline(name, data, small(), 1, tmp_path / "run")
    assert tuple(result["metrics"]) == NUMBERS and result["iterations"] == 1
    assert result["milliseconds"] > 0 and result["images_per_second"] > 0 and 10 < result["parameters"] < 20
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["iteration"]) for row in rows] == [("train", 1), ("val", 1)]
    assert {"loss", "class_loss", "box_loss", "gradient_norm", "lr", "images_per_second"} <= rows[0].keys()
    again = evaluate(load_baseline(tmp_path / "run" / FILE, "cpu"), data[1])
    assert again.metrics.numbers == result["metrics"]


def test_samples_follow_from_the_seed_and_the_iteration(data):
    state, losses = setup("faster_rcnn_fpn", data, small(ema=None), CPU), []
    for seed, iteration in ((0, 0), (0, 0), (0, 1), (1, 0)):
        torch.rand(len(losses) + 1)  # what others draw does not matter
        state.config = replace(state.config, seed=seed)
        # the rate is 0: nothing is learned
        losses.append(float(step(state, batch(), iteration, 0.0)["loss"]))
    assert losses[0] == losses[1] and len(set(losses)) == 3


def test_a_loss_that_is_not_finite_stops_the_training(data, tmp_path):
    with pytest.raises(DivergenceError, match=r"ssd, iteration \d: .*not finite"):
        train_baseline("ssd", data, small(lr=1e30, max_grad_norm=None, ema=None), 8, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] > 0 and rows[-1]["loss"] is None


def test_what_a_baseline_cannot_do_is_told(data, tmp_path):
    with pytest.raises(ConfigError, match="faster_rcnn_fpn"):
        build_baseline("faster_rcnn", ModelConfig(), 3)
    for changes in ({"init": tmp_path}, {"batch": "auto"}):
        with pytest.raises(ConfigError, match="baselines start"):
            train_baseline("ssd", data, replace(small(), **changes), 1, tmp_path / "x")


class Clocked:
    """A detector that notes when it is asked."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls
        self.preprocess, self.device = Preprocess(scale=64), CPU

    def predict_batch(self, images, sizes, originals):
        self.calls.append((self.name, tuple(images.shape), originals[0]))
        return [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))]


def test_timed_detectors_take_turns_on_at_least_ten_images(data):
    calls = []
    times = timings([Clocked("a", calls), Clocked("b", calls)], data[0])
    assert len(times) == 2 and min(times) > 0
    assert [name for name, _, _ in calls] == ["a", "b"] * (len(calls) // 2)
    images = len(data[0])
    assert len(calls) == 2 * (images + int(np.ceil(10 / images)) * images)  # once each to warm up
    assert calls[0] == ("a", (1, 3, 64, 96), (96, 128))


def test_our_detector_is_timed_in_the_same_way(data):
    model, names = small().model, data[0].names
    baseline = detector_of(build_baseline("ssd", model, len(names)), model, names, CPU)
    assert min(timings([build_state(small(), *data, CPU).detector(), baseline], data[1], 1)) > 0
