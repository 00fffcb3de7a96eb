"""The search near each box misses no anchor, equals the plain reference, and stores nothing of size G x A."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from retinanet.ops.anchors import STRIDES, grid_anchors, inside
from retinanet.ops.assign import BACKGROUND, assign
from retinanet.ops.assign_fast import assign_near, candidate_pairs_cpu, candidate_pairs_gpu, windows
from retinanet.ops.boxes import iou

module = importlib.import_module("retinanet.ops.assign_fast")

CPU = torch.device("cpu")
GRIDS = {
    "three levels": grid_anchors([(12, 12), (6, 6), (3, 3)], (8, 16, 32)),
    "a strip": grid_anchors([(2, 30), (1, 15)], (8, 16)),
    "torchvision's": grid_anchors([(13, 10), (7, 5)], (8, 16), center=0.0, rounded=True, image=(100, 75)),
    "crooked": grid_anchors([(9, 7)], (16,), size=2.5, scales=(1.0, 1.7), ratios=(0.2, 3.0), center=0.3),
    "one map": grid_anchors([(8, 10)], (8,), bases=[STRIDES]),
}
RULES = [(0.5, 0.4, 0.4), (0.5, 0.4, None), (0.5, 0.4, 0.0), (0.5, 0.4, 0.1), (0.7, 0.3, 0.5)]
RULES += [(0.7, 0.3, 0.7), (0.5, 0.5, 0.45), (0.4, 0.6, 0.2), (0.6, 0.02, None), (1.0, 0.95, 0.99)]
RULES += [(0.5, 1.5, None), (0.5, 0.0, 0.4)]


def crowd(flat, seed, batch, count):
    """Boxes [B, G, 4]: like anchors, between two, tiny, huge, far away, without area, upside down, equal."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(len(flat), (batch, count), generator=generator)
    own, other = flat[draw], flat[(draw + 1) % len(flat)]
    side = (own[..., 2:] - own[..., :2]).repeat(1, 1, 2)
    like = own + side * torch.randn(batch, count, 4, generator=generator) * 0.15
    kinds = torch.stack(
        [
            like,
            own,
            (own + other) / 2,
            own[..., :2].repeat(1, 1, 2) + torch.tensor([0, 0, 1e-3, 1e-3]),
            own + torch.tensor([-1e4, -1e4, 1e4, 1e4]),
            own + 5e3,
            own[..., :2].repeat(1, 1, 2),
            own[..., [2, 3, 0, 1]],
            like[:, :1].expand(-1, count, -1),
        ]
    )
    often = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 8])
    kind = often[torch.randint(len(often), (batch * count,), generator=generator)]
    return kinds.flatten(1, 2)[kind, torch.arange(batch * count)].view(batch, count, 4)


@pytest.fixture(params=["as on a CPU", "as on a GPU"])
def find(request, monkeypatch):
    """Both ways of looking for pairs, in the place of the one for this machine."""
    chosen = candidate_pairs_cpu if request.param == "as on a CPU" else candidate_pairs_gpu
    monkeypatch.setattr(module, "candidate_pairs_cpu", chosen)
    return chosen


@pytest.mark.parametrize("grid", GRIDS)
def test_the_matches_are_those_of_the_reference(grid, find):
    anchors, flat = GRIDS[grid], torch.cat(GRIDS[grid])
    for case in range(3 * len(RULES)):
        batch, count = case % 3 + 1, (0, 1, 4, 9)[case % 4]
        boxes = crowd(flat, case, batch, count)
        valid = None if case % 5 == 0 else inside(flat, torch.linspace(30, 90, 2 * batch).view(batch, 2))
        rule = RULES[case % len(RULES)]
        assert torch.equal(assign_near(anchors, boxes, valid, *rule), assign(flat, boxes, valid, *rule)), (
            case,
            rule,
        )


def test_a_crowd_has_all_matches_and_forced_ones():
    """The cases above would show little if hardly anything were matched."""
    flat = torch.cat(GRIDS["three levels"])
    boxes = crowd(flat, 0, 3, 9)
    assert {-2, -1, 0, 4} < set(assign(flat, boxes).flatten().tolist())
    assert not torch.equal(
        assign(flat, boxes, None, 0.95, 0.3, 0.3), assign(flat, boxes, None, 0.95, 0.3, None)
    )


def test_a_large_image_has_the_matches_of_the_reference(find):
    anchors = grid_anchors([(-(-800 // stride), -(-800 // stride)) for stride in STRIDES])
    flat = torch.cat(anchors)
    boxes = crowd(flat, 5, 2, 12)
    valid = inside(flat, torch.tensor([[800.0, 640], [600, 800]]))
    matches = assign_near(anchors, boxes, valid)
    assert torch.equal(matches, assign(flat, boxes, valid))
    assert (matches >= 0).sum() > 100


corner = st.floats(-60, 200, width=32)


@given(
    st.tuples(corner, corner, corner, corner),
    st.sampled_from([0.02, 0.3, 0.4, 0.7]),
    st.sampled_from(list(GRIDS)),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_no_anchor_that_matters_is_missed(corners, least, grid):
    boxes, flat = torch.tensor([corners]), torch.cat(GRIDS[grid])
    near = windows(GRIDS[grid].grids, least, CPU)
    matter = (iou(flat, boxes) >= least).nonzero()[:, 0]
    exact, fixed = candidate_pairs_cpu(boxes, near)[1], candidate_pairs_gpu(boxes, near)[1]
    assert set(matter.tolist()) <= set(exact.tolist()) <= set(fixed.tolist())
    assert len(exact) == len(set(exact.tolist())) <= near.most == len(fixed)


@pytest.mark.parametrize("shape", [(1, 60), (60, 1)])
def test_a_box_that_reaches_furthest_has_all_that_matter(shape):
    """As high (or wide) as an anchor, the other side 1 / 0.4 times: each anchor within overlaps it by 0.4."""
    anchors = grid_anchors([shape], (8,))
    flat = torch.cat(anchors)
    middle = flat[30 * 9 : 31 * 9]
    sides, centers = middle[:, 2:] - middle[:, :2], (middle[:, 2:] + middle[:, :2]) / 2
    sides = sides * torch.tensor([1.0, 2.49] if shape[1] == 1 else [2.49, 1.0])
    for shift in torch.arange(8):
        boxes = torch.cat([centers - sides / 2, centers + sides / 2], dim=1) + shift
        for find in (candidate_pairs_cpu, candidate_pairs_gpu):
            box, anchor = find(boxes, windows(anchors.grids, 0.4, CPU))
            matter = (iou(boxes[:, None], flat) >= 0.4).nonzero()
            assert set(map(tuple, matter.tolist())) <= set(zip(box.tolist(), anchor.tolist(), strict=True))


def test_few_anchors_are_looked_at():
    anchors = grid_anchors([(-(-800 // stride), -(-800 // stride)) for stride in STRIDES])
    near = windows(anchors.grids, 0.4, CPU)
    boxes = crowd(torch.cat(anchors), 0, 1, 200)[0]
    assert len(candidate_pairs_cpu(boxes, near)[0]) < 100 * len(boxes)
    assert near.most < 0.03 * 120_087


@pytest.mark.parametrize("limit", [1, 5000])
def test_boxes_in_several_parts_have_the_same_matches(limit, find, monkeypatch):
    anchors, flat = GRIDS["three levels"], torch.cat(GRIDS["three levels"])
    boxes = crowd(flat, 3, 2, 15)
    monkeypatch.setattr(module, "CANDIDATES", limit)
    assert torch.equal(assign_near(anchors, boxes), assign(flat, boxes))


def test_thresholds_are_compared_as_the_reference_compares_them():
    """0.7 and 0.1 are no float32 numbers, and lie on either side of the nearest."""
    for threshold in (0.1, 0.7, 0.4, 1.0, 0.0):
        for value in (torch.tensor(threshold), torch.nextafter(torch.tensor(threshold), torch.tensor(0.0))):
            key = int(value.view(torch.int32)) << 32
            assert (key >= module.key(threshold)) == bool(value >= threshold)


def test_no_images_and_no_boxes_have_no_matches_and_background():
    anchors = GRIDS["a strip"]
    assert assign_near(anchors, torch.zeros(0, 3, 4)).shape == (0, sum(map(len, anchors)))
    assert assign_near(anchors, torch.zeros(2, 0, 4)).unique().tolist() == [BACKGROUND]


def test_anchors_without_grids_go_to_the_reference():
    anchors = [torch.tensor([[0.0, 0, 50, 10]]), torch.tensor([[0.0, 0, 30, 10]])]
    assert assign_near(anchors, torch.tensor([[[0.0, 0, 100, 10]]]))[0].tolist() == [0, BACKGROUND]


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operation returns, and how many operations there were."""

    numbers = calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        parts = result if isinstance(result, tuple | list) else [result]
        self.numbers = max(
            [self.numbers, *(part.numel() for part in parts if isinstance(part, torch.Tensor))]
        )
        self.calls += 1
        return result


def test_no_tensor_of_boxes_times_anchors_exists_and_operations_do_not_grow():
    anchors = grid_anchors([(-(-256 // stride), -(-256 // stride)) for stride in STRIDES])
    flat, calls = torch.cat(anchors), []
    windows(anchors.grids, 0.4, CPU)  # made once
    for count in (5, 100):
        boxes = crowd(flat, 1, 2, count)
        with Largest() as seen:
            assign_near(anchors, boxes, inside(flat, torch.full((2, 2), 256.0)))
        assert seen.numbers <= 4 * len(flat)  # the anchors themselves
        calls.append(seen.calls)
    assert calls[0] == calls[1]


def test_on_a_gpu_the_host_need_not_know_the_boxes(monkeypatch):
    """Fake tensors have shapes and no numbers: asking for a number, as a wait for a GPU does, fails."""
    anchors, boxes = GRIDS["three levels"], torch.zeros(2, 5, 4)
    near = windows(anchors.grids, 0.4, CPU)
    with FakeTensorMode() as mode:
        fake = {
            name: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
            for name, value in vars(near).items()
        }
        monkeypatch.setattr(module, "windows", lambda *_: type(near)(**fake))
        levels = type(anchors)(map(mode.from_tensor, anchors), anchors.grids)
        boxes = mode.from_tensor(boxes)
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            assign_near(levels, boxes)
        monkeypatch.setattr(module, "candidate_pairs_cpu", candidate_pairs_gpu)
        assert assign_near(levels, boxes).shape == (2, sum(map(len, anchors)))
