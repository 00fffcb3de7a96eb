"""Batches are a pure function of (seed, epoch, index), whoever loads them."""

import pickle
from multiprocessing import resource_sharer
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

from retinanet.data.augment import Augment, crop
from retinanet.data.formats.coco import read_coco
from retinanet.data.loader import _Samples, evaluation_batches, training_batches
from retinanet.data.sampler import Entry, Sampler
from retinanet.model.preprocess import Preprocess

PREPROCESS = Preprocess(64)
STRONG = Augment(flip=0.5, jitter=(0.7, 1.4), photometric=1.0)


@pytest.fixture
def data(scenes):
    return read_coco(scenes / "annotations" / "train.json", split="train")


def batches(data, start, stop, workers=0, seed=0):
    return list(
        training_batches(
            data, PREPROCESS, STRONG, Sampler(data.sizes, 2, seed, PREPROCESS), start, stop, workers
        )
    )


def same(one, other):
    return (
        torch.equal(one.images, other.images)
        and torch.equal(one.targets.boxes, other.targets.boxes)
        and torch.equal(one.indices, other.indices)
    )


def test_the_number_of_workers_does_not_change_what_is_learned_from(data):
    assert all(map(same, batches(data, 0, 4), batches(data, 0, 4, workers=1)))


def test_a_run_begun_in_the_middle_sees_what_the_whole_run_would(data):
    assert all(map(same, batches(data, 0, 7)[4:], batches(data, 4, 7)))


def test_loading_leaves_the_global_generator_alone(data):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    _Samples(data, PREPROCESS, STRONG, 0, 10**8)[Entry(0, [0, 1], [0, 0], (64, 96))]
    assert torch.equal(torch.rand(1), expected)


def test_a_picture_shown_twice_in_an_epoch_is_changed_in_two_ways(data):
    samples = _Samples(data, PREPROCESS, STRONG, 0, 10**8)
    once, again = (samples[Entry(0, [0], [turn], (64, 96))] for turn in (0, 1))
    assert not same(once, again)


def test_seeds_differ(data):
    assert not same(batches(data, 0, 1)[0], batches(data, 0, 1, seed=1)[0])


def test_processes_share_a_step_without_changing_it(data):
    (whole,) = training_batches(data, PREPROCESS, STRONG, Sampler(data.sizes, 4, 0, PREPROCESS), 0, 1)
    shares = [
        next(
            training_batches(
                data, PREPROCESS, STRONG, Sampler(data.sizes, 4, 0, PREPROCESS, None, rank, 2), 0, 1
            )
        )
        for rank in (0, 1)
    ]
    assert torch.equal(torch.cat([share.images for share in shares]), whole.images)
    assert torch.cat([share.indices for share in shares]).tolist() == whole.indices.tolist()


def test_the_seed_of_a_picture_follows_from_seed_epoch_and_index_whoever_loads_it(data):
    def seeds(start, stop, seed=0, batch=2, rank=0, world=1):
        sampler = Sampler(data.sizes, batch, seed, PREPROCESS, None, rank, world)
        batches = training_batches(data, PREPROCESS, STRONG, sampler, start, stop)
        return {
            (index, seed)
            for batch in batches
            for index, seed in zip(batch.indices.tolist(), batch.targets.seeds.tolist(), strict=True)
        }

    steps = Sampler(data.sizes, 2, 0, PREPROCESS).steps_per_epoch
    whole = seeds(0, 2 * steps)
    assert whole == seeds(0, 1) | seeds(1, 2 * steps)
    assert whole == seeds(0, 2 * steps, rank=0, world=2) | seeds(0, 2 * steps, rank=1, world=2)
    assert len(whole) == 2 * len(data)  # each picture has another one in each epoch
    assert not whole & seeds(0, 2 * steps, seed=1)


def test_evaluation_boxes_are_those_of_the_file_at_network_scale(data):
    for batch in evaluation_batches(data, PREPROCESS, 2):
        for row, index in enumerate(batch.indices.tolist()):
            height, width = data.sizes[index]
            real = batch.targets.labels[row] >= 0
            factor = batch.targets.sizes[row].flip(0).repeat(2) / torch.tensor([width, height] * 2)
            expected = torch.from_numpy(data.boxes[data.rows(index)]).float() * factor
            torch.testing.assert_close(batch.targets.boxes[row][real], expected)


def test_crowds_are_not_for_training(data):
    from dataclasses import replace

    crowded = replace(data, crowd=np.ones_like(data.crowd))
    (batch,) = training_batches(crowded, PREPROCESS, STRONG, Sampler(data.sizes, 2, 0, PREPROCESS), 0, 1)
    assert batch.targets.labels.shape[1] == 0


def test_a_flip_moves_boxes_with_their_pixels():
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    image[:, 10:20, 5:25] = 255
    boxes, labels = torch.tensor([[5.0, 10, 25, 20]]), torch.tensor([0])
    flipped, moved, _ = Augment(flip=1.0)(image, boxes, labels, PREPROCESS, (64, 64))
    assert moved.tolist() == [[39, 10, 59, 20]]
    assert flipped[:, 10:20, 39:59].min() == 255
    assert flipped.sum() == image.sum()


def test_jitter_resizes_boxes_with_their_picture():
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    small, boxes, _ = Augment(flip=0, jitter=(0.5, 0.5))(
        image, torch.tensor([[8.0, 16, 24, 32]]), torch.tensor([0]), PREPROCESS, (64, 64)
    )
    assert small.shape == (3, 32, 32)
    assert boxes.tolist() == [[4, 8, 12, 16]]


def test_a_crop_drops_what_all_but_vanishes_and_cuts_the_rest():
    torch.manual_seed(0)
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0, 100, 100], [0, 0, 1, 1], [99, 99, 100, 100]])
    cut, kept, labels = crop(image, boxes, torch.tensor([0, 1, 2]), (50, 100))
    assert cut.shape == (3, 50, 100)
    assert labels.tolist() == [0]
    assert kept.tolist() == [[0, 0, 100, 50]]


def test_whatever_the_draw_boxes_stay_inside_their_picture(data):
    for batch in batches(data, 0, 12):
        real = batch.targets.labels >= 0
        for row in range(len(batch.targets)):
            boxes, (height, width) = batch.targets.boxes[row][real[row]], batch.targets.sizes[row].tolist()
            assert (boxes >= 0).all()
            assert (boxes[:, [0, 2]] <= width + 1e-3).all()
            assert (boxes[:, [1, 3]] <= height + 1e-3).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_the_network_is_given_the_formula_to_the_bit(data, order):
    preprocess = Preprocess(64, pixel_order=order)
    for batch in evaluation_batches(data, preprocess, 2):
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        images = batch.images.contiguous().flip(1) if order == "bgr" else batch.images.contiguous()
        steps = slice(None, None, -1 if order == "bgr" else 1)
        mean, std = (
            torch.tensor([255 * one for one in values][steps])[:, None, None]
            for values in (preprocess.pixel_mean, preprocess.pixel_std)
        )
        expected = (images.float() - mean) / std
        for picture, (height, width) in zip(expected, batch.targets.sizes.int().tolist(), strict=True):
            picture[:, height:] *= 0
            picture[:, :, width:] *= 0
        for given in (batch.images, batch.images.contiguous()):
            found = preprocess.normalize(given, batch.targets.sizes)
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(found.contiguous().view(torch.int32), expected.view(torch.int32))


def test_normalising_leaves_the_batch_as_it_was():
    # floats, as `resize` plain gives them
    batch = torch.full((1, 3, 32, 32), 7.0).to(memory_format=torch.channels_last)
    PREPROCESS.normalize(batch, torch.tensor([[32.0, 32.0]]))
    assert (batch == 7).all()


def test_a_worker_that_is_not_forked_opens_the_same_memory(data):
    samples = _Samples(data, PREPROCESS, STRONG, 0, 10**8)
    try:
        theirs = pickle.loads(ForkingPickler.dumps(samples)).data
        again = pickle.loads(ForkingPickler.dumps(samples)).data
    finally:
        resource_sharer.stop()
    assert theirs.fingerprint() == data.fingerprint()
    for name in ("files", "first", "boxes", "labels", "crowd"):
        one, other = getattr(theirs, name), getattr(again, name)
        assert one.dtype == getattr(data, name).dtype
        one.view(np.uint8)[...] = 1
        assert (other.view(np.uint8) == 1).all()
