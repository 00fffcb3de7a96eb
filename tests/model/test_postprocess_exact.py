"""The fast postprocess equals a plain restatement to the bit, ties and broken numbers included."""

import itertools

import pytest
import torch
from torchvision.ops import nms

from retinanet.model import postprocess
from retinanet.model.postprocess import WORDS, Postprocess, best_class, padding, rows
from retinanet.ops.anchors import grid_anchors, inside
from retinanet.ops.boxes import area, clip, decode

ANCHORS = grid_anchors([(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)])
SIZES = torch.tensor([[64.0, 96], [60, 50], [33, 96]])


def predictions(seed=0, classes=5, mean=-2.0, ties=False, kind=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(3, len(level), classes, generator=generator) * 2 + mean for level in ANCHORS]
    if ties:
        logits = [(x * 2).round() / 2 for x in logits]
    return [x.to(kind) for x in logits], [
        (torch.randn(3, len(level), 4, generator=generator) * 0.4).to(kind) for level in ANCHORS
    ]


def plain_candidates(post, logits, offsets, anchors, sizes):
    """Every anchor's best class, the best anchors, their best pairs, the boxes of these: in few words."""
    levels = []
    for x, d, a in zip(logits, offsets, anchors, strict=True):
        best = x.amax(dim=2).float()
        if post.filter_padding:
            best = best.masked_fill(~inside(a, sizes), -torch.inf)
        kept = best.topk(min(post.topk_candidates, x.shape[1]), dim=1).indices
        pairs = x.gather(1, kept[..., None].expand(-1, -1, x.shape[2])).float()
        pairs = pairs.masked_fill(best.gather(1, kept)[..., None] == -torch.inf, -torch.inf).flatten(1)
        found, index = pairs.topk(min(post.topk_candidates, pairs.shape[1]), dim=1)
        anchor = kept.gather(1, index // x.shape[2])
        chosen = d.gather(1, anchor[..., None].expand(-1, -1, 4))
        levels.append((decode(chosen, a[anchor], post.clip_dwh_below), found, index % x.shape[2]))
    boxes, x, labels = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
    return clip(boxes, sizes) if post.clip_boxes == "before" else boxes, x, labels


def plain_suppress(post, boxes, x, labels, sizes):
    """One picture at a time, NMS over all that is left of it."""
    answers = []
    for b, size in enumerate(sizes):
        alive = (x[b] > post.logit_threshold) & boxes[b].isfinite().all(dim=1)
        if (post.clip_boxes, post.empty_boxes) == ("before", "dropped"):
            alive &= area(boxes[b]) > 0
        mine, scores, classes = boxes[b][alive], x[b][alive], labels[b][alive]
        apart = classes.double() * (mine.max().double() - mine.min() + 1 if len(mine) else 1)
        kept = nms(mine.double() + apart[:, None], scores.double(), post.nms_threshold)[: post.max_detections]
        if post.clip_boxes == "after":
            mine = clip(mine[None], size[None])[0]
            if post.empty_boxes == "dropped":
                kept = kept[area(mine[kept]) > 0]
        answers.append((mine[kept], scores[kept].sigmoid(), classes[kept]))
    return answers


def assert_equal(post, logits, offsets, anchors=ANCHORS, sizes=SIZES):
    """Bit for bit, in order; returns how many answers each picture has."""
    candidates = post.candidates(logits, offsets, anchors, sizes)
    plain = plain_candidates(post, logits, offsets, anchors, sizes)
    for mine, theirs in zip(candidates, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
    found = post(logits, offsets, anchors, sizes)
    for answer, expected in zip(found, plain_suppress(post, *plain, sizes), strict=True):
        for mine, theirs in zip(answer, expected, strict=True):
            assert torch.equal(mine, theirs)
    return [len(scores) for _, scores, _ in found]


@pytest.mark.parametrize("words", list(itertools.product(*WORDS.values())), ids="-".join)
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_the_answers_are_those_of_the_plain_way_in_every_setting(words, ties):
    settings = dict(zip(WORDS, words, strict=True))
    for seed, (topk_candidates, most) in enumerate([(1000, 100), (50, 3), (7, 1), (1000, 10**6)]):
        counts = assert_equal(
            Postprocess(0.05, topk_candidates, 0.5, most, **settings), *predictions(seed, ties=ties)
        )
        assert max(counts) == most or (most >= 100 and max(counts) > 10)


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_number_formats_and_overlaps_change_nothing(kind, overlap):
    assert (
        min(assert_equal(Postprocess(nms_threshold=overlap, max_detections=20), *predictions(3, kind=kind)))
        > 0
    )


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.5, 0.999])
def test_thresholds_that_leave_all_or_nothing_change_nothing(threshold):
    counts = assert_equal(Postprocess(threshold), *predictions(4))
    assert (min(counts) == 100) if threshold <= 0.05 else (max(counts) <= 100)
    assert assert_equal(Postprocess(threshold or 0.05), *predictions(4, mean=-50)) == [0, 0, 0]


@pytest.mark.parametrize(
    "words",
    [("before", "kept"), ("before", "dropped"), ("after", "kept"), ("after", "dropped")],
    ids="-".join,
)
def test_numbers_that_are_none_change_nothing(words):
    generator = torch.Generator().manual_seed(5)
    logits, offsets = predictions(5, ties=True)
    for broken, kind in itertools.product((torch.nan, torch.inf, -torch.inf), (logits, offsets)):
        for level in kind:
            level[torch.rand(level.shape, generator=generator) < 0.05] = broken
    post = Postprocess(max_detections=30, clip_boxes=words[0], empty_boxes=words[1])
    assert sum(assert_equal(post, logits, offsets)) > 0


def test_pictures_that_fill_the_batch_have_no_padding_to_look_for():
    level, sizes = ANCHORS[0], torch.tensor([[64.0, 96], [64, 96]])
    assert padding(level, sizes) is None
    assert torch.equal(padding(level, SIZES), ~inside(level, SIZES))
    assert (
        min(assert_equal(Postprocess(), *(([x[:2] for x in kind]) for kind in predictions()), sizes=sizes))
        > 0
    )


def test_a_batch_without_pictures_has_no_answers():
    logits, offsets = predictions()
    for kind in (torch.float32, torch.bfloat16):
        assert (
            Postprocess()([x[:0].to(kind) for x in logits], [x[:0] for x in offsets], ANCHORS, SIZES[:0])
            == []
        )


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_the_best_class_is_the_same_in_pieces(monkeypatch, kind, chunk):
    monkeypatch.setattr(postprocess, "CHUNK", chunk)
    logits = torch.randn(3, 40, 6, generator=torch.Generator().manual_seed(0)).to(kind)
    logits[0, 3, 2] = torch.nan
    torch.testing.assert_close(best_class(logits), logits.amax(dim=2).float(), rtol=0, atol=0, equal_nan=True)


def test_rows_are_those_of_their_own_picture():
    values = torch.arange(2 * 3 * 2).reshape(2, 3, 2)
    assert rows(values, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
