"""The criterion: hand-made cases and independent formulas."""

import math
from dataclasses import replace

import pytest
import torch

from retinanet.errors import ConfigError
from retinanet.model.criterion import MINING, Criterion
from retinanet.ops import losses
from retinanet.ops.anchors import grid_anchors
from retinanet.ops.assign import BACKGROUND, IGNORE
from retinanet.ops.fused import CLASS_LOSSES
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


@pytest.mark.parametrize("count", [0, 1, 6])
def test_anchors_on_grids_are_matched_as_a_plain_list_is(count):
    anchors = grid_anchors([(8, 8), (4, 4)], (8, 16))
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(2, count, 2, generator=generator).mul(40).repeat(1, 1, 2) + torch.tensor(
        [0.0, 0, 25, 30]
    )
    wanted = Targets(boxes, torch.arange(count).repeat(2, 1), torch.tensor([[64.0, 64], [40, 50]]))
    found, plain = (Criterion().match(levels, wanted) for levels in (anchors, list(anchors)))
    assert torch.equal(found.labels, plain.labels)
    assert torch.equal(found.boxes, plain.boxes)
    assert (found.positives > 0).tolist() == [count > 0] * 2


def test_every_picture_has_its_own_boxes_and_the_anchor_where_there_is_none():
    boxes = [torch.tensor([[0.0, 0, 20, 19], [0, 0, 10, 9]]), torch.tensor([[10.0, 0, 20, 9]])]
    both = Targets.pad(boxes, [torch.tensor([0, 1]), torch.tensor([2])], [(20, 20)] * 2)
    matched = Criterion().match(ANCHORS, both)
    assert matched.labels.tolist() == [[1, BACKGROUND, 0], [BACKGROUND, 2, BACKGROUND]]
    assert matched.boxes[0].tolist() == [[0, 0, 10, 9], [10, 0, 20, 10], [0, 0, 20, 19]]
    assert matched.boxes[1].tolist() == [[0, 0, 10, 10], [10, 0, 20, 9], [0, 0, 20, 20]]


def test_anchors_over_padding_are_ignored():
    assert Criterion().match(ANCHORS, targets(size=(20, 12))).labels.tolist() == [[1, IGNORE, BACKGROUND]]


def test_both_losses_are_sums_divided_by_the_positives():
    logits, offsets = outputs()
    criterion = Criterion()
    found = criterion(
        logits,
        offsets,
        ANCHORS,
        criterion.match(ANCHORS, targets(((0.0, 0, 10, 9), (10.0, 0, 20, 10)), (1, 0))),
    )
    one_hot = torch.tensor([[[0.0, 1], [1, 0]]])
    expected = losses.focal_loss(logits[0], one_hot, reduction="sum") + losses.focal_loss(
        logits[1], torch.zeros(1, 1, 2), reduction="sum"
    )
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
        apart.append(
            criterion(
                [x[i : i + 1] for x in logits],
                [x[i : i + 1] for x in offsets],
                ANCHORS,
                criterion.match(ANCHORS, one),
            )
        )
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
    # IoU 0.9, no empty hull
    torch.testing.assert_close(found["box_loss"], torch.tensor(2 * 0.1), rtol=1e-4, atol=1e-5)


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
    high = criterion(
        [x.bfloat16().float() for x in logits], [x.bfloat16().float() for x in offsets], ANCHORS, matched
    )
    assert all(value.dtype == torch.float32 for value in low.values())
    for name in low:
        torch.testing.assert_close(low[name], high[name])


@pytest.mark.parametrize("loss", CLASS_LOSSES)
def test_every_class_loss_is_its_dense_form_over_the_positives(loss):
    logits, offsets = outputs()
    criterion = Criterion(loss=loss, gamma=1.5, beta=0.5, margin=0.4)
    found = criterion(logits, offsets, ANCHORS, criterion.match(ANCHORS, targets()))["class_loss"]
    dense = {
        "cross_entropy": losses.cross_entropy,
        "balanced": losses.balanced_cross_entropy,
        "focal": lambda x, y: losses.focal_loss(x, y, 0.25, 1.5),
        "focal_star": lambda x, y: losses.focal_loss_star(x, y, 1.5, 0.5, 0.25),
        "hinge": lambda x, y: losses.hinge_loss(x, y, 0.4, 0.25),
    }
    one_hot = torch.tensor([[0.0, 1], [0, 0], [0, 0]])
    torch.testing.assert_close(found, dense[loss](torch.cat(logits, dim=1)[0], one_hot).sum())


GRID = [
    torch.tensor([[x, y, x + 10.0, y + 10] for y in range(0, side, 10) for x in range(0, side, 10)])
    for side in (100, 30)
]


def crowd(pictures=3, classes=2):
    """Logits, offsets with gradients, and targets, over 100 and 9 anchors; the last image has no target."""
    generator = torch.Generator().manual_seed(0)
    logits = [
        torch.randn(pictures, len(level), classes, generator=generator).mul(3).requires_grad_()
        for level in GRID
    ]
    offsets = [torch.randn(pictures, len(level), 4, generator=generator).requires_grad_() for level in GRID]
    boxes = [torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])] * (pictures - 1) + [torch.zeros(0, 4)]
    labels = [torch.tensor([0, 1])] * (pictures - 1) + [torch.zeros(0, dtype=torch.long)]
    return (
        logits,
        offsets,
        replace(Targets.pad(boxes, labels, [(100, 100)] * pictures), seeds=torch.arange(pictures)),
    )


def learned_from(logits):
    """[B, A] where the class loss has a gradient."""
    return torch.cat([level.grad.any(dim=2) for level in logits], dim=1)


def test_ohem_is_the_mean_over_the_hardest_and_nothing_else_has_a_gradient():
    logits, offsets, wanted = crowd()
    criterion = Criterion(loss="cross_entropy", mining="ohem", mining_batch=8, mining_nms=None)
    matched = criterion.match(GRID, wanted)
    found = criterion(logits, offsets, GRID, matched)["class_loss"]
    found.backward()
    one_hot = torch.nn.functional.one_hot(matched.labels.clamp(min=0), 2) * (matched.labels >= 0)[..., None]
    every = losses.cross_entropy(torch.cat(logits, dim=1), one_hot.float()).sum(dim=2)
    hardest = every.topk(8, dim=1)
    torch.testing.assert_close(found, hardest.values.mean())
    assert torch.equal(learned_from(logits), torch.zeros_like(every).scatter(1, hardest.indices, 1).bool())


def test_nms_compares_anchors():
    """Both levels have an anchor of (0, 0, 10, 10): NMS can choose only the harder of the two."""
    logits, offsets, wanted = crowd()
    criterion = Criterion(mining="ohem", mining_batch=100)
    criterion(logits, offsets, GRID, criterion.match(GRID, wanted))["class_loss"].backward()
    chosen = learned_from(logits)
    small = chosen[:, :100].reshape(3, 10, 10)[:, :3, :3].flatten(1)
    assert torch.equal(small, ~chosen[:, 100:])
    assert chosen.sum().item() == 300


@pytest.mark.parametrize(
    ("mining", "positives", "negatives"),
    [("ohem-1:3", [2, 2, 0], [6, 6, 9]), ("random", [2, 2, 0], [10, 10, 12])],
)
def test_positives_and_negatives_of_a_minibatch(mining, positives, negatives):
    logits, offsets, wanted = crowd()
    criterion = Criterion(mining=mining, mining_batch=12, mining_nms=None, force_above=None)
    matched = criterion.match(GRID[:1], wanted)
    criterion(logits[:1], offsets[:1], GRID[:1], matched)["class_loss"].backward()
    chosen = learned_from(logits[:1])
    assert (chosen & (matched.labels >= 0)).sum(dim=1).tolist() == positives
    assert (chosen & (matched.labels == BACKGROUND)).sum(dim=1).tolist() == negatives


@pytest.mark.parametrize("mining", MINING)
@pytest.mark.parametrize("normalize", ["step", "image"])
def test_parts_of_a_step_add_up_to_the_whole(mining, normalize):
    logits, offsets, wanted = crowd()
    criterion = Criterion(mining=mining, mining_batch=16, normalize=normalize)
    matched = criterion.match(GRID, wanted)
    whole = criterion(logits, offsets, GRID, matched)
    slices = (slice(0, 2), slice(2, 3))
    parts = [
        criterion(
            [x[rows] for x in logits],
            [x[rows] for x in offsets],
            GRID,
            matched[rows],
            matched.positives.sum(),
            3,
        )
        for rows in slices
    ]
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value)


@pytest.mark.parametrize("mining", MINING[1:])
def test_mining_leaves_the_box_loss_and_a_minibatch_of_everything_alone(mining):
    logits, offsets, wanted = crowd()
    plain, mined = Criterion(), Criterion(mining=mining, mining_batch=1000, mining_nms=None)
    one, other = (
        criterion(logits, offsets, GRID, criterion.match(GRID, wanted)) for criterion in (plain, mined)
    )
    torch.testing.assert_close(one["box_loss"], other["box_loss"])
    if mining != "ohem-1:3":  # the others hold all 109 anchors of each of the three pictures
        positives = plain.match(GRID, wanted).positives.sum()
        torch.testing.assert_close(one["class_loss"] * positives, other["class_loss"] * 3 * 109)


def test_a_picture_is_drawn_from_by_its_seed_alone():
    criterion = Criterion(mining="random", mining_batch=16)
    _, _, wanted = crowd()
    drawn = criterion.match(GRID, wanted).drawn
    assert torch.equal(criterion.match(GRID, wanted[1:]).drawn, drawn[1:])
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(criterion.match(GRID, replace(wanted, seeds=wanted.seeds + 9)).drawn, drawn)


def test_without_seeds_torch_draws():
    criterion = Criterion(mining="random", mining_batch=16)
    wanted = replace(crowd()[2], seeds=None)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(criterion.match(GRID, wanted).drawn)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("mining", MINING[1:])
def test_where_all_is_ignored_there_is_no_class_loss(mining):
    logits, offsets, wanted = crowd()
    criterion = Criterion(mining=mining)
    found = criterion(logits, offsets, GRID, criterion.match(GRID, replace(wanted, sizes=torch.zeros(3, 2))))
    found["class_loss"].backward()
    assert found["class_loss"].item() == 0
    assert not learned_from(logits).any()


def test_a_minibatch_too_small_for_a_positive_is_refused():
    with pytest.raises(ConfigError, match="mining_batch must be at least 4"):
        Criterion(mining="ohem", mining_batch=3)


@pytest.mark.parametrize(
    "setting", [{"loss": "focl"}, {"box_loss": "l3"}, {"normalize": "batch"}, {"mining": "ohem 1:3"}]
)
def test_unknown_names_are_refused(setting):
    with pytest.raises(ConfigError, match="unknown"):
        Criterion(**setting)
