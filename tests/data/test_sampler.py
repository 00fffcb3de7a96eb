"""Which images make which step: a pure function of seed and iteration, also where images are repeated."""

from itertools import chain

import numpy as np
import pytest

from retinanet.data.sampler import Sampler, evaluation_entries
from retinanet.model.preprocess import Preprocess

PREPROCESS = Preprocess(64)


def shapes(tall, wide):
    return np.array([[200, 100]] * tall + [[100, 200]] * wide)


def shown(entries):
    return list(chain.from_iterable(entry.indices for entry in entries))


def test_every_epoch_has_another_order_of_the_same_pictures():
    sampler = Sampler(np.full((50, 2), 100), 5, 0, PREPROCESS)
    orders = [shown(sampler.epoch(epoch)) for epoch in range(2)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))


@pytest.mark.parametrize(("tall", "wide", "batch"), [(7, 12, 4), (1, 2, 4), (0, 8, 8), (3, 0, 2), (5, 5, 1)])
@pytest.mark.parametrize("repeats", [None, 1.7])
def test_an_epoch_holds_every_picture_and_always_the_same_number_of_full_steps(tall, wide, batch, repeats):
    factors = None if repeats is None else np.linspace(1, repeats, tall + wide)
    sampler = Sampler(shapes(tall, wide), batch, 0, PREPROCESS, factors)
    for epoch in range(5):
        entries = sampler.epoch(epoch)
        assert {len(entry.indices) for entry in entries} == {batch}
        assert set(shown(entries)) == set(range(tall + wide))
        assert len(entries) == sampler.steps_per_epoch


def test_tall_and_wide_pictures_share_a_step_only_at_the_end():
    entries = Sampler(shapes(9, 9), 4, 0, PREPROCESS).epoch(0)
    assert sum(0 < sum(i < 9 for i in entry.indices) < len(entry.indices) for entry in entries) <= 1


def test_a_step_is_as_large_as_its_pictures_before_jitter():
    (entry,) = Sampler(np.array([[100, 200], [100, 130]]), 2, 0, PREPROCESS).epoch(0)
    assert entry.canvas == (64, 128)


def test_a_training_may_begin_anywhere():
    sampler = Sampler(shapes(5, 6), 2, 0, PREPROCESS)
    assert list(sampler.entries(0, 20))[7:] == list(sampler.entries(7, 20))


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_every_step_and_its_padding(world):
    whole = list(Sampler(shapes(5, 6), 4, 0, PREPROCESS).entries(0, 9))
    shares = [
        list(Sampler(shapes(5, 6), 4, 0, PREPROCESS, None, rank, world).entries(0, 9))
        for rank in range(world)
    ]
    for step, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert shown(parts) == step.indices
        assert {part.canvas for part in parts} == {step.canvas}


def test_a_picture_is_repeated_as_often_as_its_factor_says():
    factors = np.array([1.0, 1.0, 2.0, 2.5, 1.25, 1.25])
    sampler = Sampler(np.full((6, 2), 100), 1, 0, PREPROCESS, factors)
    counts = np.zeros(6)
    for epoch in range(400):
        here = np.bincount(shown(sampler.epoch(epoch)), minlength=6)
        assert (np.floor(factors) <= here).all()
        assert (here <= np.ceil(factors)).all()
        counts += here
    np.testing.assert_allclose(counts / 400, factors, atol=0.1)


def test_the_turns_of_a_repeated_picture_are_counted():
    entries = Sampler(np.full((2, 2), 100), 1, 0, PREPROCESS, np.array([1.0, 3.0])).epoch(0)
    assert sorted((entry.indices[0], entry.turns[0]) for entry in entries) == [(0, 0), (1, 0), (1, 1), (1, 2)]


def test_in_evaluation_only_pictures_of_one_padded_shape_share_a_batch():
    sizes = np.array([[100, 200], [200, 100], [100, 198], [100, 130], [100, 200]])
    entries = evaluation_entries(sizes, 2, PREPROCESS)
    assert sorted(shown(entries)) == [0, 1, 2, 3, 4]
    for entry in entries:
        assert {PREPROCESS.padded([PREPROCESS.size(*map(int, sizes[i]))]) for i in entry.indices} == {
            entry.canvas
        }


def test_in_evaluation_processes_share_whole_batches():
    sizes = shapes(5, 6)
    whole = evaluation_entries(sizes, 2, PREPROCESS)
    dealt = [evaluation_entries(sizes, 2, PREPROCESS, rank, 3) for rank in range(3)]
    assert sorted(map(tuple, (entry.indices for entry in whole))) == sorted(
        tuple(entry.indices) for part in dealt for entry in part
    )
