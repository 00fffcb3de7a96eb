"""The exported graph answers as the detector does, under every convention of a setting."""

import pytest
import torch

from retinanet.export.graph import Graph
from retinanet.inference.detector import Detector
from retinanet.model.postprocess import Postprocess
from retinanet.model.preprocess import Preprocess
from retinanet.model.retinanet import RetinaNet
from retinanet.ops.nms import exact_nms, nms_mask


def detector(preprocess=None, precision="fp32", network=None, **answers):
    """Random weights that say many things."""
    torch.manual_seed(3)
    model = RetinaNet(3, "resnet18", "batch", channels=32, num_convs=1, **(network or {}))
    for subnet, spread in ((model.class_subnet, 0.2), (model.box_subnet, 0.05)):
        torch.nn.init.normal_(subnet[-1].weight, std=spread)
    torch.nn.init.constant_(model.class_subnet[-1].bias, -2.0)
    settings = {"topk_candidates": 50, "max_detections": 30, **answers}
    return Detector(
        model,
        preprocess or Preprocess(64),
        Postprocess(**settings),
        ["a", "b", "c"],
        [1, 2, 3],
        precision=precision,
    )


def batch(count=3, height=96, width=160):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([[height - 7.0 * row, width - 30.0 * row] for row in range(count)])
    return images, sizes


def assert_same(one, images, sizes):
    """The graph's answers are the detector's."""
    with torch.inference_mode():
        boxes, scores, labels, counts = Graph(one).eval()(images, sizes)
        logits, offsets, normalized = one.forward(images, sizes)
        expected = one.postprocess(logits, offsets, one.model.anchors(normalized), sizes)
    assert counts.tolist() == [len(kinds) for _, _, kinds in expected]
    for row, (found, x, kinds) in enumerate(expected):
        count = len(kinds)
        assert torch.equal(labels[row, :count], kinds)
        torch.testing.assert_close(boxes[row, :count], found, rtol=0, atol=1e-3)
        torch.testing.assert_close(scores[row, :count], x, rtol=0, atol=1e-6)
        assert (
            not scores[row, count:].any() and not boxes[row, count:].any() and not labels[row, count:].any()
        )
    return counts


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"filter_padding": False},
        {"clip_boxes": "after"},
        {"clip_boxes": "before", "empty_boxes": "dropped", "filter_padding": False},
        {"clip_boxes": "after", "empty_boxes": "dropped", "filter_padding": False},
        {"clip_dwh_below": True},
        {"topk_candidates": 1000, "max_detections": 100},
        {"nms_threshold": 0.2, "score_threshold": 0.1},
    ],
    ids=str,
)
def test_the_graph_answers_as_the_post_processor_does(answers):
    assert assert_same(detector(**answers), *batch()).sum() > 20


@pytest.mark.parametrize(
    "network",
    [
        {"anchor_rounding": True, "anchor_center": 0.0},
        {"anchor_steps": "image"},
        {"p6": "p5", "p7_relu": False},
        {"pyramid": "single"},
        {"pyramid": "finest"},
        {"subnet_norm": "group"},
    ],
    ids=str,
)
def test_the_graph_has_the_anchors_of_the_network(network):
    assert assert_same(detector(network=network), *batch(2, 64, 96)).sum() > 0


def test_the_graph_normalises_as_the_preprocessor_does():
    assert (
        assert_same(
            detector(
                Preprocess(64, pixel_order="bgr", pixel_mean=(0.4, 0.5, 0.6), pixel_std=(1.0, 0.5, 0.2))
            ),
            *batch(2),
        ).sum()
        > 0
    )


def test_a_picture_where_nothing_is_found_has_no_answers_and_its_neighbours_have_theirs():
    counts = assert_same(detector(score_threshold=0.2), *batch(4))
    assert counts.min() == 0 and counts.max() > 0
    assert assert_same(detector(score_threshold=0.999), *batch(2)).tolist() == [0, 0]


def test_a_map_of_one_cell_is_answered():
    assert_same(detector(), *batch(2, 32, 32))


@pytest.mark.parametrize("sides", [(50, 75), (33, 64), (64, 33), (1, 1)])
def test_sides_that_are_no_multiples_of_the_padding_are_padded(sides):
    height, width = sides
    images = torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(2)).byte()
    sizes = torch.tensor([[height, width], [max(1, height - 7), width]], dtype=torch.float32)
    graph = Graph(detector()).eval()
    by_hand = torch.nn.functional.pad(images, (0, -width % 32, 0, -height % 32))
    with torch.inference_mode():
        for one, other in zip(graph(images, sizes), graph(by_hand, sizes), strict=True):
            assert torch.equal(one, other)


def test_keep_decides_as_one_nms_over_each_picture_does():
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(2, 40, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 5 + torch.rand(2, 40, 2, generator=generator) * 40], dim=2)
    x, labels = torch.randn(2, 40, generator=generator), torch.randint(0, 3, (2, 40), generator=generator)
    x[1, 5:] = -torch.inf
    left = nms_mask(boxes, x, labels, 3, 0.5, 100)
    for row in range(2):
        order = x[row].sort(descending=True, stable=True).indices
        order = order[x[row][order] > -torch.inf]
        expected = order[exact_nms(boxes[row][order], labels[row][order], 0.5, 100)]
        assert sorted(left[row].nonzero().flatten().tolist()) == sorted(expected.tolist())
    assert 0 < left.sum() < 45
