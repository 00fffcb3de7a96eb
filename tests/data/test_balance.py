"""Rare classes, by hand: three pictures, one of which holds the rare class."""

import numpy as np
import pytest

from retinanet.data.dataset import Columns
from retinanet.data.sampler import repeat_factors
from retinanet.training.setup import inverse_frequency


def data(*pictures, names=("common", "rare")):
    columns = Columns()
    for number, labels in enumerate(pictures, 1):
        columns.image(f"{number}.png", number, 10, 10)
        for label in labels:
            columns.box((0, 0, 5, 5), label, 1)
    return columns.build("here", "here", "train", names, range(1, len(names) + 1))


def test_a_picture_is_repeated_for_its_rarest_class():
    factors = repeat_factors(data([0, 0], [0], [0, 1], []), 1.0)
    # common is on 3 of 4 pictures, rare on 1 of 4
    np.testing.assert_allclose(factors, [np.sqrt(4 / 3), np.sqrt(4 / 3), 2.0, 1.0])


def test_classes_above_the_threshold_are_not_repeated():
    assert repeat_factors(data([0], [0], [0, 1], [0]), 0.2).tolist() == [1.0, 1.0, 1.0, 1.0]


def test_balanced_classes_get_the_alpha_they_would_have_anyway():
    assert inverse_frequency(data([0, 1], [1, 0])) == pytest.approx([0.25, 0.25])


def test_the_odds_of_alpha_go_with_the_inverse_of_the_frequency():
    common, rare = inverse_frequency(data([0, 0, 0], [1]))  # 3 to 1
    assert (rare / (1 - rare)) / (common / (1 - common)) == pytest.approx(3)
    assert rare / (1 - rare) == pytest.approx(1 / 3 * 2)


def test_a_class_without_boxes_is_weighted_at_most_tenfold():
    _, absent = inverse_frequency(data([0, 0]))
    assert absent / (1 - absent) == pytest.approx(10 / 3)
