"""Mining, in tiny hand-made cases and against NMS over everything."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import nms

from retinanet.ops import mining
from retinanet.ops.anchors import grid_anchors
from retinanet.ops.assign import BACKGROUND, IGNORE
from retinanet.ops.mining import hardest, ohem, ohem_one_to_three, random_sample


def everything(scores, boxes, threshold):
    """The survivors of NMS over all boxes, best first; of equal scores the first is the better."""
    order = sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))
    if threshold is None:
        return order
    ranked = torch.tensor([float(-place) for place in range(len(order))])
    return [order[i] for i in nms(boxes[order].reshape(-1, 4), ranked, threshold).tolist()]


def apart(count):
    """Boxes that do not touch."""
    corner = torch.arange(count) * 20.0
    return torch.stack([corner, torch.zeros(count), corner + 10, torch.full((count,), 10.0)], dim=1)


def grid(shapes=((16, 16), (8, 8), (4, 4), (2, 2), (1, 1))):
    return torch.cat(grid_anchors(shapes))


def smooth(boxes, generator):
    """Scores that are high around a few points, as losses are."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    points = torch.rand(3, 2, generator=generator) * 128
    distance = (centers[:, None] - points).square().sum(dim=2)
    return torch.exp(-distance / 800).sum(dim=1) + 0.05 * torch.rand(len(boxes), generator=generator)


def test_the_hardest_without_nms_are_the_highest_scores():
    assert hardest(torch.tensor([0.1, 0.9, 0.5]), apart(3), 2, None).tolist() == [1, 2]


def test_nms_leaves_out_the_easier_of_two_that_overlap():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [30, 0, 40, 10]])
    scores = torch.tensor([0.5, 0.9, 0.1])
    assert hardest(scores, boxes, 2, 0.5).tolist() == [1, 2]
    assert hardest(scores, boxes, 2, 0.95).tolist() == [1, 0]


def test_of_equal_scores_the_first_counts_as_the_higher():
    assert hardest(torch.zeros(100), apart(100), 30, 0.5).tolist() == list(range(30))


def test_fewer_are_left_than_wanted():
    assert hardest(torch.rand(7), torch.tensor([[0.0, 0, 10, 10]]).expand(7, 4), 3, 0.5).shape == (1,)
    assert hardest(torch.zeros(0), torch.zeros(0, 4), 3, 0.5).tolist() == []


@st.composite
def examples(draw):
    """Scores of few values, hence ties, and boxes of whole pixels that overlap often, some without area."""
    size = draw(st.integers(0, 80))
    numbers = st.lists(st.integers(0, 12), min_size=4 * size, max_size=4 * size)
    corners = torch.tensor(draw(numbers), dtype=torch.float32).reshape(size, 2, 2)
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    scores = torch.tensor(
        draw(st.lists(st.integers(0, 6), min_size=size, max_size=size)), dtype=torch.float32
    )
    labels = torch.tensor(
        draw(st.lists(st.sampled_from([IGNORE, BACKGROUND, BACKGROUND, 0, 1]), min_size=size, max_size=size))
    )
    return scores, boxes, labels.long(), draw(st.sampled_from([None, 0.0, 0.3, 0.5, 0.7, 1.0]))


@settings(max_examples=80, deadline=None)
@given(examples(), st.integers(1, 20))
def test_the_hardest_are_those_of_nms_over_everything(drawn, count):
    scores, boxes, _, threshold = drawn
    assert hardest(scores, boxes, count, threshold).tolist() == everything(scores, boxes, threshold)[:count]


@pytest.mark.parametrize("threshold", [0.5, 0.7])
@pytest.mark.parametrize("kind", ["random", "smooth", "ties"])
def test_so_they_are_on_a_grid_of_anchors(kind, threshold):
    generator = torch.Generator().manual_seed(1)
    boxes = grid()
    scores = smooth(boxes, generator) if kind == "smooth" else torch.rand(len(boxes), generator=generator)
    if kind == "ties":
        scores = (scores * 8).floor()
    expected = everything(scores, boxes, threshold)
    for count in (1, 16, 128):
        assert hardest(scores, boxes, count, threshold).tolist() == expected[:count]


def test_nms_over_few_is_enough_when_most_survive(monkeypatch):
    seen = []
    monkeypatch.setattr(
        mining,
        "nms",
        lambda boxes, scores, threshold: seen.append(len(boxes)) or nms(boxes, scores, threshold),
    )
    hardest(torch.rand(1000, generator=torch.Generator().manual_seed(0)), apart(1000), 10, 0.5)
    assert seen == [40]


def test_what_nms_does_to_the_papers_anchors_is_what_is_said():
    """Equal scores: at 0.7 only equal anchors of neighbouring cells go; at 0.5 most go."""
    boxes = grid([(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)])
    share = [
        1 - len(hardest(torch.zeros(len(boxes)), boxes, len(boxes), threshold)) / len(boxes)
        for threshold in (0.7, 0.5)
    ]
    assert share[0] == pytest.approx(0.28, abs=0.01)
    assert share[1] == pytest.approx(0.86, abs=0.01)
    assert len(hardest(torch.rand(9), grid([(1, 1)] + [(0, 0)] * 4), 9, 0.7)) == 9


def test_ohem_takes_the_hardest_whatever_they_are_but_none_that_is_ignored():
    labels = torch.tensor([IGNORE, 0, BACKGROUND, BACKGROUND, 1])
    scores = torch.tensor([9.0, 1, 3, 0.5, 2])
    assert ohem(scores, labels, apart(5), 2, 0.5).tolist() == [2, 4]
    assert ohem(scores, labels, apart(5), 10, 0.5).tolist() == [2, 4, 1, 3]


def test_an_ignored_anchor_suppresses_no_other():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9]])
    assert ohem(torch.tensor([9.0, 1]), torch.tensor([IGNORE, BACKGROUND]), boxes, 4, 0.5).tolist() == [1]


def test_one_to_three_keeps_the_hardest_positives_and_three_times_as_many_negatives():
    labels = torch.tensor([0] * 3 + [BACKGROUND] * 10)
    scores = torch.tensor([1.0, 3, 2, *range(10)])
    eight, many = (ohem_one_to_three(scores, labels, apart(13), size, 0.5).tolist() for size in (8, 400))
    assert eight == [1, 2, 12, 11, 10, 9, 8, 7]  # 2 + 6
    assert many == [1, 2, 0, 12, 11, 10, 9, 8, 7, 6, 5, 4]  # 3 + 9


def test_one_to_three_goes_down_to_the_easiest_positive():
    labels = torch.full((500,), BACKGROUND)
    labels[[3, 499]] = 0
    scores = torch.arange(500.0).flip(0)
    assert ohem_one_to_three(scores, labels, apart(500), 8, 0.5).tolist() == [3, 499, 0, 1, 2, 4, 5, 6]


def test_one_to_three_does_not_go_down_to_positives_that_are_suppressed_already(monkeypatch):
    boxes = torch.cat([apart(499), torch.tensor([[0.0, 0, 10, 9]])])
    labels = torch.full((500,), BACKGROUND)
    labels[[3, 499]] = 0
    seen = []
    monkeypatch.setattr(
        mining,
        "nms",
        lambda boxes, scores, threshold: seen.append(len(boxes)) or nms(boxes, scores, threshold),
    )
    assert ohem_one_to_three(torch.arange(500.0).flip(0), labels, boxes, 8, 0.5).tolist() == [3, 0, 1, 2]
    assert seen == [32]


def test_a_positive_that_overlaps_a_harder_negative_goes():
    boxes = torch.cat([torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9]]), apart(9)[1:]])
    labels = torch.tensor([BACKGROUND, 0, 0] + [BACKGROUND] * 7)
    scores = torch.tensor([5.0, 4, 3, 2, 1, 1, 1, 1, 1, 1])
    assert ohem_one_to_three(scores, labels, boxes, 8, 0.5).tolist() == [2, 0, 3, 4]


@pytest.mark.parametrize("choose", [ohem_one_to_three, ohem])
def test_an_image_without_positives_gives_negatives(choose):
    scores = torch.arange(20.0)
    wanted = 8 if choose is ohem else 6  # of a full minibatch of 8, three quarters are negatives
    assert choose(scores, torch.full((20,), BACKGROUND), apart(20), 8, 0.5).tolist() == list(
        range(19, 19 - wanted, -1)
    )
    assert choose(scores, torch.full((20,), IGNORE), apart(20), 8, 0.5).tolist() == []


@settings(max_examples=80, deadline=None)
@given(examples(), st.integers(4, 12))
def test_one_to_three_is_chosen_from_nms_over_everything(drawn, count):
    scores, boxes, labels, threshold = drawn
    real = torch.nonzero(labels != IGNORE)[:, 0].tolist()
    kept = [real[i] for i in everything(scores[real], boxes[real], threshold)]
    positives = [i for i in kept if labels[i] >= 0][: count // 4]
    negatives = [i for i in kept if labels[i] == BACKGROUND][: 3 * (len(positives) or count // 4)]
    assert ohem_one_to_three(scores, labels, boxes, count, threshold).tolist() == positives + negatives


def many(positives, negatives, ignored):
    return torch.tensor([0] * positives + [BACKGROUND] * negatives + [IGNORE] * ignored)


@pytest.mark.parametrize(
    ("labels", "positives", "negatives"),
    [
        (many(100, 900, 50), 64, 192),
        (many(5, 900, 50), 5, 251),
        (many(0, 900, 0), 0, 256),
        (many(3, 10, 500), 3, 10),
        (many(0, 0, 9), 0, 0),
    ],
)
def test_a_quarter_of_a_random_minibatch_are_positives_at_most(labels, positives, negatives):
    chosen = random_sample(labels, 256)
    assert len(set(chosen.tolist())) == len(chosen)
    assert (labels[chosen] >= 0).sum() == positives
    assert (labels[chosen] == BACKGROUND).sum() == negatives


def test_a_generator_decides_what_is_drawn():
    labels = many(100, 900, 0)
    draws = [random_sample(labels, 64, torch.Generator().manual_seed(seed)).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_every_anchor_is_drawn_equally_often():
    labels, generator = many(8, 40, 0), torch.Generator().manual_seed(0)
    counts = (
        sum(torch.bincount(random_sample(labels, 16, generator), minlength=48) for _ in range(2000)) / 2000
    )
    torch.testing.assert_close(counts, torch.tensor([4 / 8] * 8 + [12 / 40] * 40), atol=0.05, rtol=0)
