"""The criterion: hand-made cases and independent formulas."""

import math

import pytest
import torch

from retinanet.errors import ConfigError
from retinanet.model.criterion import Criterion
from retinanet.ops import losses
from retinanet.ops.assign import BACKGROUND, IGNORE
from retinanet.structures import Targets

ANCHORS = [torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10]]), torch.tensor([[0.0, 0, 20, 20]])]


def targets(boxes=((0.0, 0, 10, 9),), labels=(1,), size=(20, 20)):
    return Targets.pad([torch.tensor(boxes).reshape(-1, 4)], [torch.tensor(labels, dtype=torch.long)], [size])


def outputs(classes=2, batch=1):
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(batch, len(level), classes, generator=generator) for level in ANCHORS]
    offsets = [torch.randn(batch, len(level), 4, generator=generator) * 0.2 for level in ANCHORS]
    return logits, offsets


def test_match_says_class_background_or_ignore_and_the_box():
    matched = Criterion().match(ANCHORS, targets())
    assert matched.labels.tolist() == [[1, BACKGROUND, BACKGROUND]]
    assert matched.positives.tolist() == [1]
    assert matched.boxes[0, 0].tolist() == [0, 0, 10, 9]


def test_anchors_over_padding_are_ignored():
    assert Criterion().match(ANCHORS, targets(size=(20, 12))).labels.tolist() == [[1, IGNORE, BACKGROUND]]


def test_both_losses_are_sums_divided_by_the_positives():
    logits, offsets = outputs()
    criterion = Criterion()
    found = criterion(logits, offsets, ANCHORS, criterion.match(ANCHORS, targets(((0.0, 0, 10, 9), (10.0, 0, 20, 10)), (1, 0))))
    one_hot = torch.tensor([[[0.0, 1], [1, 0]]])
    expected = losses.focal_loss(logits[0], one_hot, reduction="sum") + losses.focal_loss(logits[1], torch.zeros(1, 1, 2), reduction="sum")
    torch.testing.assert_close(found["class_loss"], expected / 2)
    offset_of_first = torch.tensor([0.0, -0.05, 0.0, math.log(0.9)])
    want = torch.stack([offset_of_first, torch.zeros(4)])
    torch.testing.assert_close(found["box_loss"], losses.smooth_l1(offsets[0][0], want, reduction="sum") / 2)


def test_the_step_is_divided_by_the_positives_of_all_its_batches():
    logits, offsets = outputs()
    criterion = Criterion()
    matched = criterion.match(ANCHORS, targets())
    alone = criterion(logits, offsets, ANCHORS, matched)
    shared = criterion(logits, offsets, ANCHORS, matched, normalizer=torch.tensor(5.0))
    for name in alone:
        torch.testing.assert_close(shared[name] * 5, alone[name])


def test_per_image_division_averages_over_pictures():
    logits, offsets = outputs(batch=2)
    boxes = [torch.tensor([[0.0, 0, 10, 9]]), torch.zeros(0, 4)]
    both = Targets.pad(boxes, [torch.tensor([1]), torch.zeros(0, dtype=torch.long)], [(20, 20)] * 2)
    criterion = Criterion(normalize="image")
    found = criterion(logits, offsets, ANCHORS, criterion.match(ANCHORS, both))
    apart = []
    for i in range(2):
        one = Targets.pad([boxes[i]], [both.labels[i][: len(boxes[i])]], [(20, 20)])
        apart.append(criterion([x[i : i + 1] for x in logits], [x[i : i + 1] for x in offsets], ANCHORS, criterion.match(ANCHORS, one)))
    for name in found:
        torch.testing.assert_close(found[name], (apart[0][name] + apart[1][name]) / 2)


def test_a_batch_without_objects_is_divided_by_1_and_has_no_box_loss():
    logits, offsets = outputs()
    criterion = Criterion()
    found = criterion(logits, offsets, ANCHORS, criterion.match(ANCHORS, targets((), ())))
    expected = sum(losses.focal_loss(level, torch.zeros_like(level), reduction="sum") for level in logits)
    torch.testing.assert_close(found["class_loss"], expected)
    assert found["box_loss"].item() == 0


def test_giou_compares_decoded_boxes():
    logits, offsets = outputs()
    zeros = [torch.zeros_like(level) for level in offsets]
    criterion = Criterion(box_loss="giou", box_weight=2.0)
    found = criterion(logits, zeros, ANCHORS, criterion.match(ANCHORS, targets()))
    torch.testing.assert_close(found["box_loss"], torch.tensor(2 * 0.1), rtol=1e-4, atol=1e-5)  # IoU 0.9, no empty hull


@pytest.mark.parametrize("box_loss", ["smooth_l1", "l1", "giou"])
def test_infinite_offsets_of_unmatched_anchors_hurt_nobody(box_loss):
    logits, offsets = outputs()
    offsets[0][0, 1] = math.inf
    offsets = [level.requires_grad_() for level in offsets]
    criterion = Criterion(box_loss=box_loss)
    loss = criterion(logits, offsets, ANCHORS, criterion.match(ANCHORS, targets()))["box_loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(level.grad.isfinite().all() for level in offsets)


def test_bf16_predictions_are_scored_in_float32():
    logits, offsets = outputs()
    criterion = Criterion()
    matched = criterion.match(ANCHORS, targets())
    low = criterion([x.bfloat16() for x in logits], [x.bfloat16() for x in offsets], ANCHORS, matched)
    high = criterion([x.bfloat16().float() for x in logits], [x.bfloat16().float() for x in offsets], ANCHORS, matched)
    assert all(value.dtype == torch.float32 for value in low.values())
    for name in low:
        torch.testing.assert_close(low[name], high[name])


@pytest.mark.parametrize("setting", [{"loss": "focl"}, {"box_loss": "l3"}, {"normalize": "batch"}])
def test_unknown_names_are_refused(setting):
    with pytest.raises(ConfigError, match="unknown"):
        Criterion(**setting)
