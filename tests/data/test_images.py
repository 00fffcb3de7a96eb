from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinanet.data.images import image_size, read_image, read_pixels
from retinanet.errors import DataError

# A picture that differs from each of its seven turned copies: 2 rows, 3 columns.
CORNERS = np.array([[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[250, 250, 0], [250, 250, 250], [0, 0, 0]]], dtype=np.uint8)
# What a viewer does for each EXIF orientation, written out with Pillow's own words.
TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
RAMP16 = np.array([[0, 128, 129, 256, 257, 32768, 65534, 65535]], dtype=np.uint16)
RAMP8 = [0, 0, 1, 1, 1, 128, 255, 255]  # divided by 257 and rounded


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def png(path: Path, array: np.ndarray, colour: int) -> Path:
    """A 16-bit PNG of [H, W, C], written by hand since Pillow cannot write colour of 16 bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, colour, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


def grey_of(path: Path) -> list[int]:
    pixels = read_pixels(path)
    assert (pixels == pixels[:, :, :1]).all()
    return pixels[0, :, 0].tolist()


def test_a_png_comes_back_as_three_planes_of_its_own_pixels(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.png", Image.fromarray(CORNERS)))
    assert image.shape == (3, 2, 3)
    assert image.permute(1, 2, 0).tolist() == CORNERS.tolist()


@pytest.mark.parametrize("suffix", ["bmp", "tiff", "webp", "gif", "ppm"])
def test_other_formats_give_the_same_pixels(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(CORNERS), **({"lossless": True} if suffix == "webp" else {}))
    assert read_pixels(path).tolist() == CORNERS.tolist()
    assert image_size(path) == (2, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "lzw.tiff"])
@pytest.mark.parametrize("orientation", TURNS)
def test_every_exif_orientation_is_shown_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    large = Image.fromarray(CORNERS).resize((48, 32), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[274] = orientation
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}, "lzw.tiff": {"compression": "tiff_lzw"}}.get(
        suffix, {}
    )
    path = save(tmp_path / f"a.{suffix}", large, exif=exif, **options)
    turn = TURNS[orientation]
    expected = np.asarray(large if turn is None else large.transpose(turn)).astype(int)
    pixels = read_pixels(path)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= 4
    assert image_size(path) == expected.shape[:2]


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\xff", b"nonsense"])
def test_a_broken_exif_block_is_no_rotation(tmp_path: Path, exif: bytes) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(CORNERS), exif=exif)
    assert read_pixels(path).tolist() == CORNERS.tolist()


def test_grey_is_repeated_over_the_channels(tmp_path: Path) -> None:
    grey = Image.fromarray(np.array([[0, 7, 255]], dtype=np.uint8))
    assert grey_of(save(tmp_path / "a.png", grey)) == [0, 7, 255]
    assert grey_of(save(tmp_path / "a.tif", grey)) == [0, 7, 255]
    assert grey_of(save(tmp_path / "one_bit.png", grey.convert("1", dither=Image.Dither.NONE))) == [0, 0, 255]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_grey_keeps_its_full_range(tmp_path: Path, name: str) -> None:
    assert grey_of(save(tmp_path / name, Image.fromarray(RAMP16))) == RAMP8


def test_16_bit_grey_whose_zero_is_white_is_turned_around(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(RAMP16), tiffinfo={262: 0})
    data = bytearray(path.read_bytes())  # Pillow's writer sets the tag itself: put the 0 back
    at = data.index(struct.pack("<HHI", 262, 3, 1))
    data[at + 8] = 0
    path.write_bytes(data)
    assert grey_of(path) == [255 - value for value in RAMP8]


def test_16_bit_colour_is_right_to_one_step(tmp_path: Path) -> None:
    colour = np.stack([RAMP16, RAMP16[:, ::-1], RAMP16 // 2], axis=2)
    pixels = read_pixels(png(tmp_path / "a.png", colour, colour=2)).astype(float)
    assert np.abs(pixels - colour / 257).max() <= 1
    grey_alpha = np.stack([RAMP16, RAMP16[:, ::-1]], axis=2)
    pixels = read_pixels(png(tmp_path / "b.png", grey_alpha, colour=4)).astype(float)
    assert np.abs(pixels[:, :, 0] - RAMP16 / 257).max() <= 1


def test_alpha_is_dropped_and_not_blended(tmp_path: Path) -> None:
    rgba = np.concatenate([CORNERS, np.full((2, 3, 1), 10, dtype=np.uint8)], axis=2)
    assert read_pixels(save(tmp_path / "a.png", Image.fromarray(rgba))).tolist() == CORNERS.tolist()
    planes = [Image.fromarray(np.array([row], dtype=np.uint8)) for row in ([9, 200], [0, 255])]
    assert grey_of(save(tmp_path / "b.png", Image.merge("LA", planes))) == [9, 200]


@pytest.mark.parametrize("transparency", [None, 1, b"\0\x80\xff"])
def test_a_palette_is_looked_up(tmp_path: Path, transparency: int | bytes | None) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8))
    image.putpalette([1, 2, 3, 40, 50, 60, 255, 254, 253])
    path = save(tmp_path / "a.png", image, **({} if transparency is None else {"transparency": transparency}))
    assert read_pixels(path).tolist() == [[[1, 2, 3], [40, 50, 60], [255, 254, 253]]]


def test_a_cmyk_jpeg_has_the_colours_that_were_put_in(tmp_path: Path) -> None:
    cmyk = Image.new("CMYK", (16, 16), (255, 0, 0, 0))  # full cyan
    red, green, blue = read_pixels(save(tmp_path / "a.jpg", cmyk, quality=100))[8, 8].tolist()
    assert red < 5
    assert min(green, blue) > 250


def test_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert read_pixels(path)[0, 0].tolist() == [255, 0, 0]


def test_the_first_bytes_decide_and_not_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(CORNERS).save(path, format="PNG")
    assert read_pixels(path).tolist() == CORNERS.tolist()


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp", "webp", "gif"])
def test_a_truncated_picture_is_an_error_that_names_it(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"cut.{suffix}", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"cut\."):
        read_image(path)


def test_what_is_no_picture_is_an_error_that_says_so(tmp_path: Path) -> None:
    for name, data, reason in [
        ("a.jpg", b"", "empty"),
        ("b.jpg", b"<html>not found</html>", "not a JPEG"),
        ("c.png", b"\x89PNG\r\n\x1a\n", "cannot be read"),
    ]:
        (tmp_path / name).write_bytes(data)
        for read in (image_size, read_pixels):
            with pytest.raises(DataError, match=f"{name}.*{reason}"):
                read(tmp_path / name)
    with pytest.raises(DataError, match=r"nowhere\.jpg: no such file"):
        image_size(tmp_path / "nowhere.jpg")


@pytest.mark.parametrize("array", [np.ones((2, 2), dtype=np.float32), np.ones((2, 2), dtype=np.int32)])
def test_numbers_without_an_agreed_range_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(DataError, match="8 or 16 bits"):
        read_pixels(save(tmp_path / "a.tif", Image.fromarray(array)))


def test_a_picture_above_the_limit_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(CORNERS))
    assert read_pixels(path, max_pixels=6).shape == (2, 3, 3)
    with pytest.raises(DataError, match="3 x 2 pixels"):
        read_pixels(path, max_pixels=5)


def test_a_huge_header_gives_no_warning_of_pillow(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("1", (20000, 12000)).save(buffer, format="PNG")
    path = tmp_path / "huge.png"
    path.write_bytes(buffer.getvalue())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(path) == (12000, 20000)
        with pytest.raises(DataError, match="--max-pixels"):
            read_pixels(path)
