"""What is given as an image: each form that has one meaning gives the same pixels, each other names the call
that works."""

import io
import pathlib

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet.errors import DataError
from retinanet.inference.inputs import as_image, as_images

HWC = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
CHW = np.ascontiguousarray(HWC.transpose(2, 0, 1))
TENSOR = torch.from_numpy(CHW)
GREY = HWC[:, :, 0]


@pytest.fixture
def file(tmp_path):
    Image.fromarray(HWC).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def stacked(*images):
    """Several images as as_images gives them out."""
    several, found = as_images(*images)
    assert several
    return list(found)


@pytest.mark.parametrize(
    "form",
    [
        HWC,
        CHW,
        TENSOR,
        TENSOR.permute(1, 2, 0),
        TENSOR / 255,
        (TENSOR.double() / 255).requires_grad_(),
        HWC / 255,
        HWC.astype(np.uint16) * 257,
        HWC.astype(">u2") * 257,
        torch.from_numpy(CHW.astype(np.uint16) * 257),
        HWC[::-1][::-1],
        HWC.astype(np.longdouble) / 255,
        Image.fromarray(HWC),
    ],
    ids=lambda form: type(form).__name__,
)
def test_what_has_one_meaning_gives_the_same_pixels(form):
    several, (image,) = as_images(form)
    assert not several
    assert image.dtype == torch.uint8 and torch.equal(image, TENSOR)


def test_bytes_and_files_are_read_like_the_path(file, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    content = file.read_bytes()
    written = io.BytesIO()
    written.write(content)  # which leaves it at its end
    with file.open("rb") as opened:
        for form in (
            file,
            str(file),
            "~/a.png",
            content,
            bytearray(content),
            memoryview(content),
            written,
            opened,
        ):
            several, (image,) = as_images(form)
            assert not several and torch.equal(image, TENSOR)


def test_what_comes_in_a_stream_is_read_once():
    class Answer:  # of urllib.request.urlopen: no seek, no name
        def read(self):
            return content.getvalue()

    content = io.BytesIO()
    Image.fromarray(HWC).save(content, format="PNG")
    assert torch.equal(as_image(Answer()), TENSOR)


@pytest.mark.parametrize("alpha", [0, 255])
def test_alpha_is_dropped_as_from_a_file(alpha):
    rgba = np.dstack([HWC, np.full((5, 7), alpha, np.uint8)])
    for form in (rgba, rgba.transpose(2, 0, 1), torch.from_numpy(rgba), Image.fromarray(rgba)):
        assert torch.equal(as_image(form), TENSOR)


def test_grey_is_repeated():
    for form in (GREY, GREY[:, :, None], GREY[None], torch.from_numpy(GREY.copy()), Image.fromarray(GREY)):
        image = as_image(form)
        assert image.shape == (3, 5, 7)
        assert all(channel.tolist() == GREY.tolist() for channel in image)


def test_16_bits_are_read_as_those_of_a_file(tmp_path):
    ramp = np.array([[0, 128, 129, 256, 257, 32768, 65534, 65535]] * 2, dtype=np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert torch.equal(as_image(ramp), as_image(tmp_path / "a.png"))
    assert as_image(ramp)[0, 0].tolist() == [0, 0, 1, 1, 1, 128, 255, 255]


@pytest.mark.parametrize(
    "several",
    [
        [HWC, HWC],
        (HWC, TENSOR),
        iter([HWC, HWC]),
        (one for one in [HWC, HWC]),
        map(np.asarray, [HWC, HWC]),
        dict.fromkeys([0, 1], HWC).values(),
        np.stack([HWC, HWC]),
        np.stack([CHW, CHW]),
        torch.stack([TENSOR, TENSOR]),
        torch.stack([TENSOR, TENSOR]).permute(0, 2, 3, 1),
    ],
    ids=lambda form: type(form).__name__,
)
def test_several_are_several_in_whatever_they_come(several):
    first, second = stacked(several)
    assert torch.equal(first, TENSOR) and torch.equal(second, TENSOR)


def test_the_images_of_an_iterator_are_taken_one_by_one():
    taken = []
    _, images = as_images(taken.append(number) or HWC for number in range(3))
    next(images)
    assert taken == [0]


def test_one_row_or_column_is_read_as_the_kind_usually_lies():
    assert as_image(np.zeros((1, 1, 3), np.uint8)).shape == (3, 1, 1)
    assert as_image(np.zeros((1, 9, 3), np.uint8)).shape == (3, 1, 9)
    assert as_image(torch.zeros(3, 9, 1, dtype=torch.uint8)).shape == (3, 9, 1)


@pytest.mark.parametrize("shape", [(3, 5, 3), (4, 5, 3), (3, 5, 4), (3, 5, 1)])
def test_where_the_channels_are_is_not_guessed(shape):
    for form in (np.zeros(shape, np.uint8), torch.zeros(shape[::-1], dtype=torch.uint8)):
        with pytest.raises(DataError, match=r"may be \[3, H, W\] or \[H, W, 3\].*Image.fromarray"):
            as_image(form)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (HWC > 100, "mask"),
        (TENSOR.bool(), "mask"),
        (HWC.astype(np.int64), r"image\.astype\('uint8'\)"),
        (TENSOR.int(), r"image\.to\(torch\.uint8\)"),
        (HWC.astype(np.float32), "uint8 for 0..255"),
        ((TENSOR / 255 - 0.45) / 0.22, "normalised as it was before"),
        (torch.full((3, 9, 9), torch.nan), "0..1, not nan"),
        (np.zeros((5, 7, 2), np.uint8), r"not \[5, 7, 2\]"),
        (np.zeros((0, 7, 3), np.uint8), r"not \[0, 7, 3\]"),
        (torch.zeros(0, 5), r"not \[0, 5\]"),
        (torch.zeros(4, 0, 3, dtype=torch.uint16), r"not \[4, 0, 3\]"),
        (np.zeros(7, np.uint8), r"list\(array\)"),
        (np.array(["a.jpg", "b.jpg"]), r"list\(array\)"),
        (np.array([HWC, None], dtype=object), r"list\(array\)"),
        (np.zeros((5, 7, 3), complex), "complex"),
        (None, "cv2.imread"),
        (0, "not 0; for a camera"),
        (1.5, "not float"),
        ({"image": HWC}, "not dict"),
        ({"a.jpg"}, "not set"),
        ("https://example.org/a.jpg", "download it first"),
        (pathlib.Path("https://example.org/a.jpg"), "download it first"),
        ("data:image/png;base64,AAAA", "b64decode"),
        ("shots/*.png", r"sorted\(glob\.glob\('shots/\*\.png'\)\)"),
        ("nowhere.jpg", "^nowhere.jpg: no such file$"),
        (".", r"is a folder.*glob"),
        ("a\0b.jpg", "cannot be read"),
        (b"", "empty"),
        (b"hello", "image of 5 bytes: not a JPEG"),
        (io.StringIO("hello"), "mode 'rb'"),
    ],
    ids=lambda one: None if isinstance(one, str) else type(one).__name__,
)
def test_what_has_no_meaning_is_told_with_the_call_that_works(wrong, sentence):
    several, images = as_images(wrong)
    assert not several
    with pytest.raises(DataError, match=sentence):
        next(images)


@pytest.mark.parametrize("nested", [[[HWC, HWC]], [(HWC,)], [HWC.tolist()]])
def test_a_list_in_a_list_is_told(nested):
    with pytest.raises(DataError, match="one flat list"):
        stacked(nested)


def test_files_that_cannot_be_read_are_told_whoever_opened_them(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with Image.open(file) as opened, pytest.raises(DataError, match=r"a\.png: cannot be read"):
        as_image(opened)
    closed = file.open("rb")
    closed.close()
    with pytest.raises(DataError, match=r"a\.png: cannot be read: .*closed"):
        as_image(closed)
