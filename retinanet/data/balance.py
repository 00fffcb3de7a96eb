"""Rare classes: shown more often, or weighted more."""

from __future__ import annotations

import numpy as np

from .dataset import Dataset, Floats

BOUND = 10.0
"""A class is weighted at most this many times more, or less, than its like share would be: one box does not
rule the loss.
"""


def repeat_factors(data: Dataset, threshold: float) -> Floats:
    """[N] how often each image should be shown in an epoch, so that rare classes are met more often.

    r_i = max over its classes c of max(1, sqrt(threshold / f_c)), f_c being the share of images that hold
    class c
    (Gupta et al., "LVIS", 2019, Sec. 5.1). An image without objects is shown once.
    """
    image = data.image_of_box()[~data.crowd]
    pairs = np.unique(
        np.stack([image, data.labels[~data.crowd]], axis=1), axis=0
    )  # an image counts once for a class
    share = np.bincount(pairs[:, 1], minlength=len(data.names)) / max(1, len(data))
    factor = np.sqrt(np.maximum(1.0, threshold / np.maximum(share, 1e-12)))
    repeats = np.ones(len(data))
    np.maximum.at(repeats, pairs[:, 0], factor[pairs[:, 1]])
    return repeats


def inverse_frequency(data: Dataset, alpha: float = 0.25) -> list[float]:
    """[K] an alpha for each class, larger for rare ones ("inverse class frequency", Sec. 3.2).

    The odds alpha_c / (1 - alpha_c), by which positives outweigh negatives, are those of `alpha` times M / (K
    M_c): M boxes, M_c of
    class c. So a class with its like share of the boxes gets `alpha` itself, and every alpha stays between 0
    and 1.
    """
    counts = np.bincount(data.labels[~data.crowd], minlength=len(data.names))
    share = counts * len(counts) / max(1, counts.sum())
    odds = alpha / (1 - alpha) * np.clip(1 / np.maximum(share, 1e-12), 1 / BOUND, BOUND)
    weights: list[float] = (odds / (1 + odds)).tolist()
    return weights
