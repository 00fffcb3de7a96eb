"""NMS down to the wanted number of survivors, against NMS over everything and against the rule itself."""

import pytest
import torch
from torchvision.ops import nms

from retinanet.ops import nms as module
from retinanet.ops.boxes import iou
from retinanet.ops.nms import exact_nms


def crowd(count, classes, seed=0, side=100.0, spread=10.0):
    """Boxes around a few places, some of them more than once."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(5, 2, generator=generator) * side
    centers = (
        places[torch.randint(0, 5, (count,), generator=generator)]
        + torch.randn(count, 2, generator=generator) * spread
    )
    sides = 5 + 30 * torch.rand(count, 2, generator=generator)
    boxes = torch.cat([centers - sides / 2, centers + sides / 2], dim=1)
    boxes[count // 2 :] = boxes[
        torch.randint(0, max(count // 2, 1), (count - count // 2,), generator=generator)
    ]
    return boxes, torch.randint(0, classes, (count,), generator=generator)


def one_by_one(boxes, labels, threshold, most):
    """A box stays when none of its class that stays before it overlaps it too much."""
    kept = []
    for i in range(len(boxes)):
        if all(
            labels[i] != labels[j] or iou(boxes[i].double(), boxes[j].double()) <= threshold for j in kept
        ):
            kept.append(i)
    return kept[:most]


def all_survivors(boxes, labels, threshold, most):
    """NMS over all boxes of a class at once, class by class."""
    ranks, kept = torch.arange(len(boxes), 0, -1, dtype=torch.float64), [torch.zeros(0, dtype=torch.long)]
    for label in labels.unique():
        own = (labels == label).nonzero()[:, 0]
        kept.append(own[nms(boxes[own].double(), ranks[own], threshold)])
    return torch.cat(kept).sort().values[:most]


@pytest.mark.parametrize("most", [0, 1, 3, 10, 1000])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_it_keeps_what_the_rule_keeps(threshold, most):
    boxes, labels = crowd(60, 2)
    expected = one_by_one(boxes, labels, threshold, most)
    assert (
        exact_nms(boxes, labels, threshold, most).tolist()
        == all_survivors(boxes, labels, threshold, most).tolist()
        == expected
    )


@pytest.mark.parametrize("seed", range(20))
def test_looking_at_the_best_first_changes_nothing(seed):
    boxes, labels = crowd(500, 1 + seed % 7, seed, spread=1.0 + seed)
    for most in (1, 7, 40, 200, 499, 500, 10**6):
        assert torch.equal(exact_nms(boxes, labels, 0.5, most), all_survivors(boxes, labels, 0.5, most))


def looked_at(monkeypatch, *arguments):
    """How many boxes each NMS was given."""
    counts, real = [], module.nms
    monkeypatch.setattr(module, "nms", lambda boxes, *rest: counts.append(len(boxes)) or real(boxes, *rest))
    kept = exact_nms(*arguments)
    return counts, len(kept)


def test_boxes_that_cannot_count_any_more_are_not_looked_at(monkeypatch):
    corner = 20.0 * torch.arange(1000)
    boxes = torch.stack([corner, torch.zeros(1000), corner + 10, torch.full((1000,), 10.0)], dim=1)
    assert looked_at(monkeypatch, boxes, torch.zeros(1000), 0.5, 50) == ([100], 50)


def test_where_few_survive_it_goes_on_with_them_and_twice_as_many_more(monkeypatch):
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(700, 1)
    boxes[-1] += 100
    assert looked_at(monkeypatch, boxes, torch.zeros(700), 0.5, 50) == ([100, 1 + 200, 1 + 400], 2)


def test_boxes_of_two_classes_never_suppress_each_other():
    boxes = torch.tensor([[-5.0, -5, 3000, 3000]]).repeat(80, 1)
    assert exact_nms(boxes, torch.arange(80), 0.5, 100).tolist() == list(range(80))


def test_the_shift_of_a_class_does_not_eat_the_fraction_of_a_pixel():
    """The overlap is 0.5 + 1e-7; in float32, 79 x 4001 pixels away, it is 0.5."""
    boxes = torch.tensor([[0.0, 0, 1, 1], [0.0, 0, 1, 0.5000001], [0.0, 0, 4000, 4000]])
    assert exact_nms(boxes, torch.tensor([79, 79, 0]), 0.5, 10).tolist() == [0, 2]


def test_of_nothing_nothing_is_left():
    assert exact_nms(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 0.5, 10).tolist() == []
