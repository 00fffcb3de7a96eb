"""Boxes: overlap by hand, and the parameterisation there and back."""

import math

import torch

from retinanet.ops import boxes


def test_iou_of_hand_made_pairs():
    one = torch.tensor([[0.0, 0, 10, 10]]).expand(4, 4)
    other = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [2, 2, 4, 4]])
    torch.testing.assert_close(boxes.iou(one, other), torch.tensor([1.0, 1 / 3, 0.0, 0.04]))


def test_a_box_without_area_overlaps_nothing():
    empty = torch.tensor([[3.0, 3, 3, 3], [0, 0, 0, 0]])
    torch.testing.assert_close(boxes.iou(empty, torch.tensor([[0.0, 0, 10, 10]])), torch.zeros(2))
    torch.testing.assert_close(boxes.iou(empty, empty), torch.zeros(2))


def test_giou_is_iou_minus_the_empty_share_of_the_hull():
    one, other = torch.tensor([0.0, 0, 10, 10]), torch.tensor([20.0, 0, 30, 10])
    torch.testing.assert_close(boxes.giou(one, other), torch.tensor(-1 / 3))
    torch.testing.assert_close(boxes.giou(one, torch.tensor([5.0, 0, 15, 10])), torch.tensor(1 / 3))


def test_encode_by_hand():
    anchor, box = torch.tensor([0.0, 0, 10, 20]), torch.tensor([5.0, 10, 25, 20])
    torch.testing.assert_close(
        boxes.encode(box, anchor), torch.tensor([1.0, 0.25, math.log(2), math.log(0.5)])
    )


def test_decode_is_the_inverse_of_encode():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 100, 4, generator=generator) * 100
    corners[..., 2:] += corners[..., :2] + 5
    there = boxes.encode(corners[0], corners[1])
    torch.testing.assert_close(boxes.decode(there, corners[1]), corners[0], rtol=1e-4, atol=1e-3)


def test_a_wild_offset_stays_a_box_of_at_most_62_anchors():
    decoded = boxes.decode(torch.tensor([0.0, 0, 50, 50]), torch.tensor([0.0, 0, 16, 16]))
    torch.testing.assert_close(decoded[2] - decoded[0], torch.tensor(1000.0))


def test_offsets_in_bf16_decode_in_float32():
    assert (
        boxes.decode(torch.zeros(4, dtype=torch.bfloat16), torch.tensor([0.0, 0, 16, 16])).dtype
        == torch.float32
    )


def test_clip_cuts_each_image_at_its_own_size():
    wild = torch.tensor([[-5.0, -5, 500, 500]]).expand(2, 1, 4)
    cut = boxes.clip(wild, torch.tensor([[100.0, 200], [50, 60]]))
    assert cut[:, 0].tolist() == [[0, 0, 200, 100], [0, 0, 60, 50]]


def test_a_clip_dwh_below_keeps_boxes_above_a_62nd_of_their_anchor():
    offsets, anchor = torch.tensor([0.0, 0, -50, 50]), torch.tensor([0.0, 0, 1000, 16])
    limited = boxes.decode(offsets, anchor, clip_dwh_below=True)
    torch.testing.assert_close(limited[2:] - limited[:2], torch.tensor([16.0, 1000.0]), atol=1e-3, rtol=0)
    free = boxes.decode(offsets, anchor)
    torch.testing.assert_close(free[2:] - free[:2], torch.tensor([0.0, 1000.0]), atol=1e-3, rtol=0)
