"""Batches are a pure function of (seed, epoch, index), whoever loads them."""

import numpy as np
import pytest
import torch

from retinanet.data.augment import Augment, crop
from retinanet.data.coco import read_coco
from retinanet.data.loader import _Samples, evaluation_batches, evaluation_plan, steps_per_epoch, training_batches, training_plan
from retinanet.model.preprocess import Preprocess

PREPROCESS = Preprocess(64)
STRONG = Augment(flip=0.5, jitter=(0.7, 1.4), photometric=1.0)


@pytest.fixture
def data(scenes):
    return read_coco(scenes / "annotations" / "train.json", split="train")


def batches(data, start, stop, workers=0, seed=0):
    return list(training_batches(data, PREPROCESS, STRONG, 2, seed, start, stop, workers))


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
    _Samples(data, PREPROCESS, STRONG, 0, 10**8)[(0, [0, 1], (64, 96))]
    assert torch.equal(torch.rand(1), expected)


def test_seeds_and_epochs_differ(data):
    assert not same(batches(data, 0, 1)[0], batches(data, 0, 1, seed=1)[0])
    sizes = np.full((50, 2), 100)
    orders = [[i for indices, _ in training_plan(sizes, 5, 0, epoch, PREPROCESS) for i in indices] for epoch in range(2)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))


@pytest.mark.parametrize(("tall", "wide", "batch"), [(7, 12, 4), (1, 2, 4), (0, 8, 8), (3, 0, 2), (5, 5, 1)])
def test_an_epoch_holds_every_picture_and_always_the_same_number_of_full_batches(tall, wide, batch):
    sizes = np.array([[200, 100]] * tall + [[100, 200]] * wide)

    class Data:
        pass

    fake = Data()
    fake.sizes = sizes
    fake.__class__.__len__ = lambda self: len(self.sizes)
    for epoch in range(3):
        plan = training_plan(sizes, batch, 0, epoch, PREPROCESS)
        assert {len(indices) for indices, _ in plan} == {batch}
        assert {i for indices, _ in plan for i in indices} == set(range(tall + wide))
        assert len(plan) == steps_per_epoch(fake, batch)


def test_tall_and_wide_pictures_share_a_batch_only_at_the_end():
    sizes = np.array([[200, 100]] * 9 + [[100, 200]] * 9)
    mixed = [indices for indices, _ in training_plan(sizes, 4, 0, 0, PREPROCESS) if 0 < sum(i < 9 for i in indices) < len(indices)]
    assert len(mixed) <= 1


def test_a_batch_is_as_large_as_its_pictures_before_jitter():
    ((_, canvas),) = training_plan(np.array([[100, 200], [100, 130]]), 2, 0, 0, PREPROCESS)
    assert canvas == (64, 128)


def test_in_evaluation_only_pictures_of_one_padded_shape_share_a_batch():
    sizes = np.array([[100, 200], [200, 100], [100, 198], [100, 130], [100, 200]])
    plan = evaluation_plan(sizes, 2, PREPROCESS)
    assert sorted(i for indices, _ in plan for i in indices) == [0, 1, 2, 3, 4]
    for indices, canvas in plan:
        for i in indices:
            assert PREPROCESS.padded([PREPROCESS.size(*map(int, sizes[i]))]) == canvas


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
    (batch,) = training_batches(crowded, PREPROCESS, STRONG, 2, 0, 0, 1)
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
    small, boxes, _ = Augment(flip=0, jitter=(0.5, 0.5))(image, torch.tensor([[8.0, 16, 24, 32]]), torch.tensor([0]), PREPROCESS, (64, 64))
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
