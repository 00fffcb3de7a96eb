from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from retinanet.data.images import image_size, is_image, missing_reader, read_image, read_pixels
from retinanet.errors import DataError

# A picture that differs from each of its seven turned copies: 2 rows, 3 columns.
CORNERS = np.array(
    [[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[250, 250, 0], [250, 250, 250], [0, 0, 0]]], dtype=np.uint8
)
# What a viewer does for each EXIF orientation, written out with Pillow's own words.
TURNS = {1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180}
TURNS |= {4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270}
TURNS |= {7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}
RAMP16 = np.array([[0, 128, 129, 256, 257, 32768, 65534, 65535]], dtype=np.uint16)
RAMP8 = [0, 0, 1, 1, 1, 128, 255, 255]  # divided by 257 and rounded
# The first box of a file of these brands (ISO 14496-12), and nothing behind it.
HEIC, MIF1, MP4, AVIF = (
    struct.pack(">I4s4sI4s", 20, b"ftyp", major, 0, other) + bytes(100)
    for major, other in ((b"heic", b"mif1"), (b"mif1", b"heix"), (b"mp42", b"isom"), (b"mif1", b"avif"))
)
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def png(path: Path, array: np.ndarray, colour: int) -> Path:
    """A 16-bit PNG of [H, W, C], written by hand since Pillow cannot write colour of 16 bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


def grey_of(path: Path) -> list[int]:
    pixels = read_pixels(path)
    assert (pixels == pixels[:, :, :1]).all()
    return pixels[0, :, 0].tolist()


def test_a_png_comes_back_as_three_planes_of_its_own_pixels(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.png", Image.fromarray(CORNERS)))
    assert image.shape == (3, 2, 3)
    assert image.permute(1, 2, 0).tolist() == CORNERS.tolist()


@pytest.mark.parametrize("suffix", ["bmp", "tiff", "webp", "gif", "ppm", "jp2", "j2k", "tga"])
def test_other_formats_give_the_same_pixels(tmp_path: Path, suffix: str) -> None:
    path = save(
        tmp_path / f"a.{suffix}", Image.fromarray(CORNERS), **({"lossless": True} if suffix == "webp" else {})
    )
    assert read_pixels(path).tolist() == CORNERS.tolist()
    assert image_size(path) == (2, 3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("orientation", TURNS)
def test_an_uncompressed_tiff_is_upright_in_every_mode(tmp_path: Path, mode: str, orientation: int) -> None:
    flat = (
        Image.fromarray(np.arange(6, dtype=np.uint16).reshape(2, 3) * 9000)
        if mode == "I;16"
        else Image.fromarray(CORNERS).convert(mode)
    )
    upright = Image.fromarray(read_pixels(save(tmp_path / "a.tiff", flat)))
    exif = Image.Exif()
    exif[274] = orientation
    turned = read_pixels(save(tmp_path / "b.tiff", flat, exif=exif))
    turn = TURNS[orientation]
    assert turned.tolist() == np.array(upright if turn is None else upright.transpose(turn)).tolist()
    assert image_size(tmp_path / "b.tiff") == turned.shape[:2]


@pytest.mark.parametrize(
    "suffix", ["jpg", "png", "webp", "tiff", "lzw.tiff", pytest.param("avif", marks=needs_avif), "heic"]
)
@pytest.mark.parametrize("orientation", TURNS)
def test_every_exif_orientation_is_shown_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    if suffix == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    large = Image.fromarray(CORNERS).resize((48, 32), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[274] = orientation
    options = {
        "jpg": {"quality": 100, "subsampling": 0},
        "webp": {"lossless": True},
        "lzw.tiff": {"compression": "tiff_lzw"},
        "avif": {"quality": 100, "subsampling": "4:4:4"},
        "heic": {"quality": 100, "chroma": 444},
    }.get(suffix, {})
    path = save(tmp_path / f"a.{suffix}", large, exif=exif.tobytes(), **options)
    turn = TURNS[orientation]
    expected = np.asarray(large if turn is None else large.transpose(turn)).astype(int)
    pixels = read_pixels(path)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= 4
    assert image_size(path) == expected.shape[:2]


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\xff", b"nonsense"]
)
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


@pytest.mark.parametrize(
    "suffix",
    ["jpg", "png", "tif", "bmp", "webp", "gif", "jp2", "tga", pytest.param("avif", marks=needs_avif)],
)
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


@pytest.mark.parametrize("name", ["a.jpg", "A.TGA", "a.HEIC"])
def test_a_suffix_chooses_only_what_has_no_signature(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    Image.fromarray(CORNERS).save(path, format="TGA")
    if name == "A.TGA":
        assert read_pixels(path).tolist() == CORNERS.tolist()
    else:
        with pytest.raises(DataError, match="not a JPEG"):
            read_pixels(path)
    Image.fromarray(CORNERS).save(path, format="PNG")
    assert read_pixels(path).tolist() == CORNERS.tolist()


@pytest.mark.parametrize(
    ("content", "module", "line"),
    [
        (HEIC, "pillow_heif", "pip install pillow-heif"),
        (MIF1, "pillow_heif", "pip install pillow-heif"),
        (AVIF, "PIL.AvifImagePlugin", "pip install -U pillow"),
    ],
)
def test_a_reader_that_is_not_installed_is_named_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, content: bytes, module: str, line: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not there
    with pytest.raises(DataError, match=r"^a\.heic: (HEIC|AVIF) needs a reader: ") as error:
        read_pixels("a.heic", content=content)
    assert missing_reader(str(error.value)) == line
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(SUPPORTED=False))  # built without its library
    with pytest.raises(DataError, match=line):
        read_pixels("a.heic", content=content)


def test_a_reader_that_is_installed_is_imported_when_such_a_file_is_met(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = []

    class Plugin(ImageFile.ImageFile):
        def _open(self) -> None:
            opened.append(self.filename)
            self._size, self._mode, self.tile = (3, 2), "RGB", [("raw", (0, 0, 3, 2), 0, ("RGB", 0, 1))]
            self.info["exif"] = None  # as pillow-heif has it; the image is upright

    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(HeifImageFile=Plugin))
    assert read_pixels("a.jpg", content=HEIC).shape == (2, 3, 3)
    with pytest.raises(DataError, match=r"3 x 2 pixels are more than the limit of 5"):
        read_pixels("a.jpg", max_pixels=5, content=HEIC)
    assert opened == ["a.jpg", "a.jpg"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\xff\x0a" + bytes(20), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\x1f\x8b\x08", "gzip"),
        (MP4, "not a JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "not a JPEG"),
    ],
)
def test_what_often_stands_in_the_place_of_an_image_is_named(content: bytes, what: str) -> None:
    with pytest.raises(DataError, match=f"^a.jpg: .*{what}") as error:
        read_pixels("a.jpg", content=content)
    assert not missing_reader(str(error.value))


def test_files_of_all_kinds_that_people_call_images_are_counted() -> None:
    assert all(map(is_image, ["a.HEIC", "b.Avif", "c.jp2", "d.TGA", "e.jxl", "f.JPG", "g.heif"]))
    assert not any(map(is_image, ["a.eps", "b.svg", "c.pdf", "heic", ".png", "d.xml"]))


def test_16_bit_grey_is_not_cut_off_as_pillow_does_it(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RAMP16))
    by_pillow = np.asarray(Image.open(path).convert("RGB"))[0, :, 0].tolist()
    assert by_pillow == [0, 128, 129, 255, 255, 255, 255, 255]
    assert grey_of(path) == RAMP8


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


def jpeg_of(scans: int, path: Path) -> Path:
    """A progressive JPEG whose last scan comes again and again."""
    content = save(path, Image.fromarray(CORNERS), progressive=True).read_bytes()
    last = content[content.rindex(b"\xff\xda") : -2]
    path.write_bytes(content[:-2] + last * (scans - content.count(b"\xff\xda")) + b"\xff\xd9")
    return path


def test_a_jpeg_of_so_many_scans_that_it_would_take_hours_is_refused(tmp_path: Path) -> None:
    assert read_pixels(jpeg_of(100, tmp_path / "a.jpg")).shape == (2, 3, 3)
    assert image_size(jpeg_of(101, tmp_path / "b.jpg")) == (2, 3)
    with pytest.raises(DataError, match=r"b\.jpg: a JPEG of more than 100 scans"):
        read_pixels(tmp_path / "b.jpg")


def test_no_scan_is_what_only_looks_like_one(tmp_path: Path) -> None:
    looks = b"\xff\xda" * 1000
    path = save(
        tmp_path / "a.jpg",
        Image.fromarray(CORNERS),
        progressive=True,
        comment=looks,
        exif=b"Exif\0\0" + looks,
    )
    wanted = read_pixels(save(tmp_path / "b.jpg", Image.fromarray(CORNERS), progressive=True)).tolist()
    assert path.read_bytes().count(b"\xff\xda") > 2000
    assert read_pixels(path).tolist() == wanted
    path.write_bytes(path.read_bytes() + looks)  # as a film behind a photograph may
    assert read_pixels(path).tolist() == wanted


@pytest.mark.parametrize(
    "hiding",
    [b"\xff\x01\xff\xff", b"\xff\x02\xff\xff", b"\xff\xd0\xff\xff", b"\xff\x00\xff\xff", b"\xff\xff\xff\xff"],
)
def test_scans_cannot_be_hidden_behind_what_is_no_segment(tmp_path: Path, hiding: bytes) -> None:
    content = jpeg_of(150, tmp_path / "a.jpg").read_bytes()
    place = content.index(b"\xff\xda") + 14  # after the header, among the pixels
    (tmp_path / "a.jpg").write_bytes(content[:place] + hiding + content[place:])
    with pytest.raises(DataError, match="more than 100 scans"):
        read_pixels(tmp_path / "a.jpg")


@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp", "gif", "bmp", "ppm", "jpeg2000"])
def test_the_bytes_of_a_file_are_read_as_the_file_is(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    Image.fromarray(CORNERS).resize((48, 32)).save(path, format=kind)
    content = path.read_bytes()
    wanted = read_pixels(path)
    path.unlink()
    assert (read_pixels(path, content=content) == wanted).all()
    with pytest.raises(DataError, match=r"^b/ c: 48 x 32 pixels are more"):
        read_pixels("b/ c", max_pixels=9, content=content)
    with pytest.raises(DataError, match=r"^b: the file is empty"):
        read_pixels("b", content=b"")


@pytest.mark.parametrize("size", [(5, 2**31), (2**32 - 1, 2**32 - 1)])
def test_a_header_that_promises_what_no_picture_has_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    content = save(tmp_path / "a.png", Image.fromarray(CORNERS)).read_bytes()
    header = b"IHDR" + struct.pack(">II", *size) + content[24:29]
    (tmp_path / "a.png").write_bytes(
        content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    )
    for read in (image_size, read_pixels):
        with pytest.raises(DataError, match=rf"a\.png.*{size[0]} x {size[1]}"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["tif", "gif"])
def test_the_limit_on_pixels_is_ours_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = save(
        tmp_path / f"a.{suffix}",
        Image.fromarray(CORNERS),
        **({"compression": "tiff_lzw"} if suffix == "tif" else {}),
    )
    if suffix == "gif":
        data = bytearray(path.read_bytes())
        data[6:10] = struct.pack("<HH", 1, 1)  # the screen, which grows to the frame
        path.write_bytes(data)
    # Pillow warns above it, and refuses above twice as much
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    assert read_pixels(path, max_pixels=6).tolist() == CORNERS.tolist()
    assert Image.MAX_IMAGE_PIXELS == 1


def test_a_gif_of_43_bytes_does_not_get_a_gigabyte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled, fill = [], Image.core.fill
    monkeypatch.setattr(
        Image.core, "fill", lambda mode, size, colour: filled.append(size) or fill(mode, (1, 1), colour)
    )
    side = struct.pack("<HH", 30000, 30000)
    # "restore to background", for which Pillow makes a canvas when it opens the file
    after = b"\x21\xf9\x04\x08\0\0\0\0"
    path = tmp_path / "a.gif"
    path.write_bytes(
        b"GIF89a"
        + side
        + b"\x80\0\0"
        + bytes(6)
        + after
        + b"\x2c\0\0\0\0"
        + side
        + b"\0\x02\x02\x4c\x01\0\x3b"
    )
    with pytest.raises(
        DataError, match=r"a\.gif: more pixels than the limit of 50000000; --max-pixels raises it"
    ):
        read_pixels(path, max_pixels=50_000_000)
    assert filled == []


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1)])
def test_a_picture_of_one_row_or_column_is_turned_too(
    tmp_path: Path, orientation: int, size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    width, height = size if orientation < 5 else size[::-1]
    assert read_image(save(tmp_path / "a.png", Image.new("RGB", size, "red"), exif=exif)).shape == (
        3,
        height,
        width,
    )


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: is no file"):
        image_size(tmp_path / "a.png")


def test_what_pillow_skips_in_the_metadata_is_not_told_to_the_user(tmp_path: Path) -> None:
    data = bytearray(save(tmp_path / "a.tif", Image.fromarray(CORNERS)).read_bytes())
    at = data.index(struct.pack("<HHI", 258, 3, 3))  # bits of each channel: 3 numbers, now promised far more
    data[at + 4 : at + 8] = struct.pack("<I", 1 << 20)
    (tmp_path / "a.tif").write_bytes(data)
    code = "from retinanet.data.images import image_size; from pathlib import Path; "
    code += f"image_size(Path({str(tmp_path / 'a.tif')!r}))"
    error = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
    assert "Warning" not in error
