"""Answers: hand-made cases, and a slow restatement of the rule."""

import pytest
import torch
from torchvision.ops import nms

from retinanet.errors import ConfigError
from retinanet.model.postprocess import Postprocess
from retinanet.ops.anchors import grid_anchors, inside
from retinanet.ops.boxes import clip, decode

SIZES = torch.tensor([[64.0, 96], [60, 50]])


def predictions(classes=4, seed=0, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    anchors = grid_anchors([(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)])
    logits = [torch.randn(2, len(level), classes, generator=generator) * spread - 2 for level in anchors]
    offsets = [torch.randn(2, len(level), 4, generator=generator) * 0.3 for level in anchors]
    return logits, offsets, anchors


def restated(logits, offsets, anchors, sizes, threshold, topk_candidates, overlap, most):
    """One picture, one level, one class at a time."""
    answers = []
    for b in range(len(sizes)):
        found = []
        for x, d, a in zip(logits, offsets, anchors, strict=True):
            scores = x[b].sigmoid() * inside(a, sizes)[b][:, None]
            pairs = [(scores[i, k].item(), i, k) for i, k in (scores > threshold).nonzero().tolist()]
            for score, i, k in sorted(pairs, reverse=True)[:topk_candidates]:
                found.append((score, k, clip(decode(d[b, i], a[i])[None, None], sizes[b : b + 1])[0, 0]))
        kept = []
        for k in range(x.shape[2]):
            mine = [entry for entry in found if entry[1] == k]
            if mine:
                boxes, scores = (
                    torch.stack([box for _, _, box in mine]),
                    torch.tensor([score for score, _, _ in mine]),
                )
                kept += [mine[i] for i in nms(boxes, scores, overlap).tolist()]
        answers.append(sorted(kept, key=lambda entry: -entry[0])[:most])
    return answers


@pytest.mark.parametrize(
    ("threshold", "topk_candidates", "most"), [(0.05, 1000, 100), (0.3, 20, 10), (0.05, 7, 100)]
)
def test_it_equals_the_rule_restated_one_class_at_a_time(threshold, topk_candidates, most):
    logits, offsets, anchors = predictions()
    found = Postprocess(threshold, topk_candidates, 0.5, most)(logits, offsets, anchors, SIZES)
    expected = restated(logits, offsets, anchors, SIZES, threshold, topk_candidates, 0.5, most)
    for (boxes, scores, labels), answer in zip(found, expected, strict=True):
        assert len(scores) == len(answer) > 0
        torch.testing.assert_close(scores, torch.tensor([score for score, _, _ in answer]))
        assert labels.tolist() == [k for _, k, _ in answer]
        torch.testing.assert_close(boxes, torch.stack([box for _, _, box in answer]))


def test_scores_descend_and_boxes_stay_in_their_picture():
    for (boxes, scores, _), (height, width) in zip(
        Postprocess()(*predictions(), SIZES), SIZES.tolist(), strict=True
    ):
        assert (scores.diff() <= 0).all()
        assert (boxes >= 0).all()
        assert (boxes[:, [0, 2]] <= width).all()
        assert (boxes[:, [1, 3]] <= height).all()


def test_a_picture_without_anything_has_no_answers():
    logits, offsets, anchors = predictions()
    for boxes, scores, labels in Postprocess()([x - 100 for x in logits], offsets, anchors, SIZES):
        assert (boxes.shape, scores.shape, labels.shape) == ((0, 4), (0,), (0,))


def test_boxes_of_two_classes_never_suppress_each_other():
    anchors = [torch.tensor([[0.0, 0, 30, 30]])]
    found = Postprocess()(
        [torch.tensor([[[3.0, 2.0]]])], [torch.zeros(1, 1, 4)], anchors, torch.tensor([[40.0, 40]])
    )
    assert found[0][2].tolist() == [0, 1]


def test_one_image_more_in_the_batch_changes_nothing():
    logits, offsets, anchors = predictions()
    together = Postprocess()(logits, offsets, anchors, SIZES)
    for b in range(2):
        alone = Postprocess()(
            [x[b : b + 1] for x in logits], [x[b : b + 1] for x in offsets], anchors, SIZES[b : b + 1]
        )[0]
        for mine, theirs in zip(alone, together[b], strict=True):
            assert torch.equal(mine, theirs)


def test_anchors_in_the_padding_never_answer():
    logits, offsets, anchors = predictions()
    certain = [torch.full_like(x, -10.0) for x in logits]
    certain[0][:, -1] = (
        10.0  # the last cell of P3, at (92, 60): in the first picture, in the padding of the second
    )
    found = Postprocess()(certain, offsets, anchors, SIZES)
    assert [len(scores) > 0 for _, scores, _ in found] == [True, False]


def answers(**settings):
    """Two boxes that overlap less than half only while they reach beyond the image, and one outside of it."""
    anchors = [torch.tensor([[0.0, 10, 30, 20], [-25, 10, 15, 20], [50, 50, 60, 60]])]
    logits = [torch.tensor([[[3.0], [2.0], [1.0]]])]
    ((boxes, _, _),) = Postprocess(filter_padding=False, **settings)(
        logits, [torch.zeros(1, 3, 4)], anchors, torch.tensor([[30.0, 40]])
    )
    return boxes.tolist()


def test_boxes_can_be_cut_after_nms_and_those_left_without_area_dropped():
    first, second, outside = [0, 10, 30, 20], [0, 10, 15, 20], [40, 30, 40, 30]
    assert answers(nms_threshold=0.4) == [first, outside]
    assert answers(nms_threshold=0.4, clip_boxes="after") == [first, second, outside]
    assert answers(nms_threshold=0.4, empty_boxes="dropped") == [first]
    assert answers(nms_threshold=0.4, clip_boxes="after", empty_boxes="dropped") == [first, second]


def test_boxes_without_area_take_no_place_unless_they_are_cut_after_nms():
    """MMDetection drops them before it counts, Detectron2 afterwards."""
    anchors = [torch.tensor([[50.0, 50, 60, 60], [0, 10, 30, 20]])]
    logits, sizes = [torch.tensor([[[3.0], [2.0]]])], torch.tensor([[30.0, 40]])
    for when, expected in (("before", 1), ("after", 0)):
        one = Postprocess(max_detections=1, filter_padding=False, empty_boxes="dropped", clip_boxes=when)
        assert len(one(logits, [torch.zeros(1, 2, 4)], anchors, sizes)[0][0]) == expected


@pytest.mark.parametrize("setting", ["clip_boxes", "empty_boxes"])
def test_an_unknown_word_is_refused(setting):
    with pytest.raises(ConfigError, match=setting):
        Postprocess(**{setting: "sometimes"})
