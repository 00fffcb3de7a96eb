"""The assignment, in tiny hand-made cases and against a dense restatement."""

import pytest
import torch

from retinanet.ops.assign import BACKGROUND, IGNORE, assign
from retinanet.ops.boxes import iou


def strip(*widths):
    """Anchors that overlap the box (0, 0, 100, 10) with an IoU of width / 100."""
    return torch.tensor([[0.0, 0, width, 10] for width in widths])


BOX = torch.tensor([[[0.0, 0, 100, 10]]])


def test_thresholds_are_closed_on_the_left():
    assert assign(strip(50, 49, 40, 39), BOX, force_above=None)[0].tolist() == [0, IGNORE, IGNORE, BACKGROUND]


def test_image_without_objects_is_all_background():
    assert assign(strip(10, 20), torch.zeros(1, 0, 4))[0].tolist() == [BACKGROUND] * 2


def test_padding_rows_match_nothing():
    assert assign(strip(100), torch.cat([torch.zeros(1, 2, 4), BOX], dim=1))[0].tolist() == [2]


def test_a_box_that_touches_no_anchor_leaves_all_of_them_background():
    far = torch.tensor([[[1000.0, 1000, 1010, 1010]]])
    for force_above in (0.4, 0.0, None):
        assert assign(strip(10, 50, 100), far, force_above=force_above)[0].tolist() == [BACKGROUND] * 3


@pytest.mark.parametrize(("force_above", "expected"), [(0.4, 0), (None, IGNORE), (0.0, 0), (0.46, IGNORE)])
def test_the_best_anchor_of_a_box_is_forced_from_force_above(force_above, expected):
    assert assign(strip(45, 30), BOX, force_above=force_above)[0].tolist() == [expected, BACKGROUND]


def test_at_any_overlap_a_poor_best_anchor_is_forced_too():
    assert assign(strip(5, 3), BOX, force_above=0.0)[0].tolist() == [0, BACKGROUND]
    assert assign(strip(5, 3), BOX, force_above=0.4)[0].tolist() == [BACKGROUND, BACKGROUND]


def test_all_anchors_that_tie_are_forced():
    assert assign(strip(45, 45), BOX)[0].tolist() == [0, 0]


def test_a_forced_anchor_is_matched_with_the_box_that_it_overlaps_most():
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    # IoU 0.45 and 0.9; the anchor is the best of both
    boxes = torch.tensor([[[0.0, 0, 10, 22], [0, 0, 10, 9]]])
    assert assign(anchors, boxes)[0].tolist() == [1]


def test_anchors_in_the_padding_are_ignored_and_never_forced():
    valid = torch.tensor([[False, True]])
    assert assign(strip(45, 41), BOX, valid)[0].tolist() == [IGNORE, 0]


def dense(anchors, boxes, positive, negative, force_above):
    """The same rule over the whole [G, A] matrix."""
    matrix = iou(boxes[:, None], anchors[None])
    best, match = matrix.max(dim=0)
    result = torch.where(best >= positive, match, torch.where(best < negative, BACKGROUND, IGNORE))
    if force_above is not None:
        top = matrix.max(dim=1, keepdim=True).values
        forced = ((matrix == top) & (top >= force_above) & (top > 0)).any(dim=0)
        result = torch.where(forced, match, result)
    return result


@pytest.mark.parametrize("force_above", [0.4, 0.0, None])
def test_streaming_equals_the_dense_matrix(force_above):
    generator = torch.Generator().manual_seed(1)
    anchors = torch.rand(400, 4, generator=generator) * 60
    anchors[:, 2:] += anchors[:, :2] + 4
    boxes = torch.rand(3, 30, 4, generator=generator) * 60
    boxes[..., 2:] += boxes[..., :2] + 4
    found = assign(anchors, boxes, force_above=force_above)
    for image in range(3):
        assert torch.equal(found[image], dense(anchors, boxes[image], 0.5, 0.4, force_above))
