"""Resizing as other libraries do it, against the libraries themselves."""

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet.model.resize import resize, target_size

PAIRS = [((480, 640), (800, 1067)), ((150, 210), (80, 112)), ((97, 201), (50, 104))]
PAIRS += [((1, 40), (33, 333)), ((40, 1), (7, 9)), ((64, 64), (32, 32))]


def noise(height, width):
    return torch.randint(
        0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(height)
    )


@pytest.mark.parametrize(("source", "size"), PAIRS)
def test_opencv_is_cv2_to_the_bit(source, size):
    cv2 = pytest.importorskip("cv2")
    image = noise(*source)
    expected = cv2.resize(image.permute(1, 2, 0).numpy(), size[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(resize(image, size, "opencv").permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(("source", "size"), PAIRS)
def test_pillow_is_pillow_and_antialias_differs_by_one_grey_level_at_most(source, size):
    image = noise(*source)
    expected = np.asarray(
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
    )
    assert np.array_equal(resize(image, size, "pillow").permute(1, 2, 0).numpy(), expected)
    other = resize(image, size, "antialias").permute(1, 2, 0).numpy()
    assert np.abs(other.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["antialias", "plain", "pillow", "opencv"])
def test_a_picture_of_the_right_size_keeps_its_values(kind):
    image = noise(20, 30)
    assert torch.equal(resize(image, (20, 30), kind).byte(), image)


@pytest.mark.parametrize(
    ("kind", "height", "width", "expected"),
    [
        ("antialias", 480, 640, (800, 1067)),
        ("plain", 480, 640, (800, 1066)),
        ("antialias", 27, 2666, (14, 1333)),  # exactly 13.5 rows
        ("pillow", 27, 2666, (13, 1333)),  # 800 / 27 * 2666 and then 1333 by that: a little less
        ("pillow", 640, 480, (1067, 800)),
        ("antialias", 1, 5000, (1, 1333)),
    ],
)
def test_sides_are_rounded_as_each_library_does(kind, height, width, expected):
    assert target_size(height, width, 800, 1333, kind) == expected
