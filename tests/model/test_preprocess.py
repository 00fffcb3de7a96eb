"""Resize, normalise, pad."""

import pytest
import torch

from retinanet.model.preprocess import MEAN, STD, Preprocess


@pytest.mark.parametrize(
    ("scale", "size", "expected"),
    [
        (800, (480, 640), (800, 1067)),
        (800, (400, 1600), (333, 1333)),
        (600, (500, 500), (600, 600)),
        (320, (1764, 430), (533, 130)),
    ],
)
def test_the_short_side_decides_unless_the_long_one_would_be_too_long(scale, size, expected):
    assert Preprocess(scale).size(*size) == expected


def test_batches_are_padded_to_a_multiple_of_32():
    images, sizes = Preprocess(64).stack(
        [torch.ones(3, 64, 70, dtype=torch.uint8), torch.ones(3, 60, 64, dtype=torch.uint8)]
    )
    assert images.shape == (2, 3, 64, 96)
    assert sizes.tolist() == [[64, 70], [60, 64]]
    assert images[0, 0, :, 70:].sum() == 0


def test_pixels_become_zero_mean_unit_deviation_and_padding_zero():
    image = torch.tensor([255 * m for m in MEAN]).round().to(torch.uint8)[:, None, None].expand(3, 32, 20)
    images, sizes = Preprocess(32).stack([image])
    out = Preprocess(32).normalize(images, sizes)
    assert out[:, :, :, 20:].abs().max() == 0
    assert out[:, :, :, :20].abs().max() < 0.01
    white = Preprocess(32).normalize(
        torch.full((1, 3, 32, 32), 255, dtype=torch.uint8), torch.tensor([[32.0, 32]])
    )
    torch.testing.assert_close(white[0, :, 0, 0], (1 - torch.tensor(MEAN)) / torch.tensor(STD))


def test_a_picture_of_the_right_size_is_left_alone():
    image = torch.randint(0, 255, (3, 64, 80), dtype=torch.uint8)
    assert Preprocess(64).resized(image) is image


def test_shrinking_averages_instead_of_picking_pixels():
    stripes = torch.zeros(3, 256, 256, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    small = Preprocess(64).resized(stripes).float()
    assert (small - 127.5).abs().max() < 30


def test_the_network_is_given_bgr_when_it_wants_it():
    image = torch.randint(0, 256, (2, 3, 32, 40), dtype=torch.uint8)
    sizes = torch.tensor([[32.0, 40], [20, 30]])
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    rgb = Preprocess(32, pixel_mean=mean, pixel_std=std).normalize(image, sizes)
    bgr = Preprocess(32, pixel_mean=mean, pixel_std=std, pixel_order="bgr").normalize(image, sizes)
    assert torch.equal(bgr, rgb[:, [2, 1, 0]])
    assert bgr.is_contiguous(memory_format=torch.channels_last)


def test_a_canvas_takes_every_picture_as_large_as_it_fits():
    canvas = Preprocess(600, canvas=(64, 96))
    assert [canvas.size(*size) for size in [(64, 96), (640, 960), (100, 50), (30, 300), (2, 2)]] == [
        (64, 96),
        (64, 96),
        (64, 32),
        (10, 96),
        (64, 64),
    ]
    batch, sizes = canvas.stack(
        [torch.ones(3, 64, 32, dtype=torch.uint8), torch.ones(3, 10, 96, dtype=torch.uint8)]
    )
    assert batch.shape == (2, 3, 64, 96) and sizes.tolist() == [[64, 32], [10, 96]]
