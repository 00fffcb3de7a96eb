from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retinanet.data import cache as known
from retinanet.data import validate as validation
from retinanet.data.dataset import Columns, Dataset
from retinanet.data.formats.coco import read_coco
from retinanet.data.validate import validate
from retinanet.errors import ConfigError, DataError, report


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETINANET_CACHE", str(tmp_path / "cache"))


def picture(path: Path, width: int = 100, height: int = 50, **options: Any) -> Path:
    Image.new("RGB", (width, height)).save(path, **options)
    return path


def boxes(
    folder: Path, *corners: tuple[float, float, float, float], size: tuple[int, int] = (50, 100)
) -> Dataset:
    """One picture of 100 x 50 with these boxes of one class; annotation ids from 1."""
    picture(folder / "a.png")
    columns = Columns()
    columns.image("a.png", 7, *size)
    for number, box in enumerate(corners, start=1):
        columns.box(box, 0, number)
    return columns.build(folder / "train.json", folder, "train", ["cat"], [1])


def kinds(problems: list[Any]) -> list[str]:
    return [problem.kind for problem in problems]


def every_fault(folder: Path) -> Dataset:
    """A COCO file with each fault once, and one image with two boxes that are right."""
    exif = Image.Exif()
    exif[274] = 6
    for name in ("good.png", "small.png", "unlabelled.png", "fine.png", "edge.png"):
        picture(folder / name)
    picture(folder / "turned.jpg", exif=exif)
    picture(folder / "large.png", 300, 300)
    (folder / "broken.jpg").write_bytes(b"<html>")
    names = ["good.png", "small.png", "turned.jpg", "large.png", "broken.jpg", "missing.png", "good.png"]
    names += ["../outside.png", "unlabelled.png", "fine.png", "edge.png"]
    images = [
        {"id": number, "file_name": name, "width": 100, "height": 50}
        for number, name in enumerate(names, start=1)
    ]
    images[1] |= {"width": 200}
    images[3] |= {"width": 300, "height": 300}
    images.append({"id": 2, "file_name": "unlabelled.png"})
    rows: list[tuple[int, int, list[float]]] = [
        (10, 1, [10, 10, 20, 20]),
        (10, 1, [10, 10, 0, 20]),  # no area
        (1, 1, [10, 10, float("nan"), 20]),
        (11, 1, [90, 10, 20, 20]),  # leaves the image
        (1, 9, [10, 10, 20, 20]),  # unknown category
        (99, 1, [10, 10, 20, 20]),  # unknown image
        (10, 1, [10, 10, 20, 20]),  # the first one again
        (10, 1, [40, 10, 20, 20]),
    ]
    annotations: list[dict[str, Any]] = [
        {"id": number, "image_id": image, "category_id": category, "bbox": box}
        for number, (image, category, box) in enumerate(rows, start=1)
    ]
    annotations.append({"id": 20, "image_id": 1, "category_id": 1})
    categories = [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]
    (folder / "train.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return read_coco(folder / "train.json")


EVERY_KIND = {
    "duplicate category ids": "category 1",
    "duplicate image ids": "image 2 (unlabelled.png)",
    "file names that leave the data folder": "image 8",
    "boxes or areas that are not finite": "annotation 3, image 1 (good.png)",
    "annotations of unknown categories": "annotation 5, image 1 (good.png): category 9",
    "annotations of unknown images": "annotation 6, image 99",
    "annotations without bbox": "annotation 20, image 1 (good.png)",
    "images that are listed twice": "image 7 (good.png)",
    "images that cannot be read": "image 5 (broken.jpg): not a JPEG",
    "images that are missing": "image 6 (missing.png)",
    "images above the limit of pixels": "image 4 (large.png): 300 x 300",
    "boxes without area": "annotation 2, image 10 (fine.png): [x, y, w, h] = [10, 10, 0, 20]",
    "boxes outside the image": "annotation 4, image 11 (edge.png) of 100 x 50: [x, y, w, h] = [90, 10, 20, "
    "20]",
    "duplicate boxes": "annotation 7, image 10 (fine.png)",
}


def test_every_fault_of_a_data_set_is_told_in_one_go(tmp_path: Path) -> None:
    data = every_fault(tmp_path)
    with pytest.raises(DataError) as raised:
        validate(data, max_pixels=89_999)
    found = {problem.kind: problem.detail for problem in raised.value.problems}
    for kind, words in EVERY_KIND.items():
        assert words in found[kind]
        assert kind in str(raised.value)
    sizes = [
        problem.detail
        for problem in raised.value.problems
        if problem.kind == "images whose size disagrees with the annotation"
    ]
    assert sizes == [
        "image 2 (small.png): the annotation says 200 x 50, the image is 100 x 50",
        "image 3 (turned.jpg): the annotation says 100 x 50, the image is 50 x 100 (the sides are "
        "swapped, as where the EXIF rotation is ignored)",
    ]
    assert len(raised.value.problems) == len(EVERY_KIND) + 2
    assert str(raised.value).endswith("and leave out the rest.")
    assert "--invalid drop" in str(raised.value)


@pytest.mark.parametrize(
    "invalid, files, boxes",
    [
        ("drop", ["unlabelled.png", "fine.png"], [[10, 10, 30, 30], [40, 10, 60, 30]]),
        (
            "clip",
            ["unlabelled.png", "fine.png", "edge.png"],
            [[10, 10, 30, 30], [40, 10, 60, 30], [90, 10, 100, 30]],
        ),
    ],
)
def test_drop_and_clip_go_on_with_what_is_right_and_count_the_rest(
    tmp_path: Path, invalid: Any, files: list[str], boxes: list[list[float]]
) -> None:
    data = every_fault(tmp_path)
    clean, problems = validate(data, invalid, max_pixels=89_999)
    assert clean.files.tolist() == files  # an image that would lack an object goes along with it
    assert clean.boxes.tolist() == boxes
    assert len(problems) == len(EVERY_KIND) + 2
    lost = len(data) - len(files), len(data.labels) - len(boxes)
    left_out = f"{lost[0]} images and {lost[1]} boxes left out (--invalid {invalid})"
    assert clean.notes == (f"{len(problems)} problems met: {left_out}",)
    assert validate(clean)[1] == []


def test_a_clean_set_comes_back_as_it_went_in(tmp_path: Path) -> None:
    data = boxes(tmp_path, (0, 0, 100, 50), (10.5, 10.25, 20, 20))
    clean, problems = validate(data)
    assert problems == []
    assert clean.fingerprint() == data.fingerprint()
    assert clean.areas.tolist() == data.areas.tolist()


def test_an_image_without_objects_is_kept_as_a_negative(tmp_path: Path) -> None:
    data = boxes(tmp_path, (0, 0, 5, 5))
    picture(tmp_path / "empty.png")
    data = replace(
        data,
        files=np.array(["a.png", "empty.png"]),
        image_ids=np.array([7, 8]),
        sizes=np.array([[50, 100], [50, 100]]),
        first=np.array([0, 1, 1]),
    )
    clean, problems = validate(data)
    assert (len(clean), problems) == (2, [])


def test_one_pixel_over_the_border_is_rounding_and_is_cut_without_a_word(tmp_path: Path) -> None:
    clean, problems = validate(boxes(tmp_path, (-1, -0.5, 101, 50.7)))
    assert problems == []
    assert clean.boxes.tolist() == [[0, 0, 100, 50]]
    assert clean.areas.tolist() == [5000]


def test_a_box_that_lies_within_the_pixel_over_the_border_has_no_area(tmp_path: Path) -> None:
    _, problems = validate(boxes(tmp_path, (100, 10, 100.9, 20), (0, 0, 5, 5)), "clip")
    assert kinds(problems) == ["boxes without area"]


def test_clip_drops_a_box_that_lies_wholly_outside(tmp_path: Path) -> None:
    clean, problems = validate(boxes(tmp_path, (200, 10, 220, 20), (90, 40, 120, 60)), "clip")
    assert kinds(problems) == ["boxes outside the image"] * 2
    assert clean.boxes.tolist() == [[90, 40, 100, 50]]
    assert clean.areas.tolist() == [100]


def test_the_area_of_a_mask_stays_when_its_box_is_cut(tmp_path: Path) -> None:
    data = replace(boxes(tmp_path, (90, 40, 120, 60)), areas=np.array([123.0]))
    assert validate(data, "clip")[0].areas.tolist() == [123]


@pytest.mark.parametrize(
    "bad",
    [(np.nan, 0, 5, 5), (0, 0, np.inf, 5), (-np.inf, 0, np.inf, 5), (5, 5, 4, 9), (1e308, 0, -1e308, 5)],
)
def test_an_image_with_a_box_that_is_not_finite_or_inside_out_is_left_out(
    tmp_path: Path, bad: tuple[float, float, float, float]
) -> None:
    columns = Columns()
    for name, corners in (("a.png", [(0, 0, 5, 5), bad]), ("b.png", [(1, 1, 6, 6)])):
        picture(tmp_path / name)
        columns.image(name, len(columns.files) + 1, 50, 100)
        for box in corners:
            columns.box(box, 0, len(columns.boxes) + 1)
    data = columns.build(tmp_path / "train.json", tmp_path, "train", ["cat"], [1])
    clean, problems = validate(data, "drop")
    assert len(problems) == 1
    assert (clean.files.tolist(), clean.annotation_ids.tolist()) == (["b.png"], [3])


def test_equal_boxes_of_two_classes_or_images_are_no_duplicates(tmp_path: Path) -> None:
    data = boxes(tmp_path, (0, 0, 5, 5), (0, 0, 5, 5), (0, 0, 5, 5))
    data = replace(data, names=("cat", "dog"), category_ids=(1, 2), labels=np.array([0, 1, 0]))
    clean, problems = validate(data, "drop")
    assert kinds(problems) == ["duplicate boxes"]
    assert clean.annotation_ids.tolist() == [1, 2]


def test_sizes_that_the_annotations_do_not_give_come_from_the_pictures(tmp_path: Path) -> None:
    clean, _ = validate(boxes(tmp_path, (0, 0, 5, 5), size=(0, 0)))
    assert clean.sizes.tolist() == [[50, 100]]
    clean, _ = validate(boxes(tmp_path, (0, 0, 500, 500), size=(0, 0)), headers=False)
    assert clean.boxes.tolist() == [[0, 0, 500, 500]]


def test_without_headers_no_picture_is_needed(tmp_path: Path) -> None:
    data = boxes(tmp_path, (0, 0, 5, 5))
    (tmp_path / "a.png").unlink()
    assert validate(data, headers=False)[1] == []
    with pytest.raises(DataError, match=r"none of its 1 images was found.*a\.png.*--images"):
        validate(data, "drop")


def test_no_box_and_no_image_are_errors_whatever_is_asked(tmp_path: Path) -> None:
    for data, words in [
        (boxes(tmp_path), "no boxes"),
        (boxes(tmp_path, (5, 5, 5, 5)), r"(?s)no boxes.*\[5, 5, 0, 0\]"),
    ]:
        with pytest.raises(DataError, match=words):
            validate(data, "drop")
    with pytest.raises(DataError, match="no images"):
        validate(boxes(tmp_path, (0, 0, 5, 5)).subset(np.empty(0, dtype=np.int64)), "drop")


def noisy(path: Path, **options: Any) -> bytes:
    """An image whose file is long for its size."""
    noise = np.random.default_rng(0).integers(0, 255, (50, 100, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_an_image_that_breaks_off_in_the_middle_is_found_and_dropped(tmp_path: Path, kind: str) -> None:
    data = boxes(tmp_path, (0, 0, 5, 5))
    whole = noisy(tmp_path / "a.png", format=kind)
    assert validate(data)[1] == []
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"image 7 \(a\.png\): cannot be read"):
        validate(data)
    (tmp_path / "a.png").write_bytes(whole + b"what a camera adds")
    assert validate(data)[1] == []


def test_only_a_deep_look_finds_an_image_that_is_damaged_inside(tmp_path: Path) -> None:
    data = boxes(tmp_path, (0, 0, 5, 5))
    content = bytearray(noisy(tmp_path / "a.png"))
    content[1000:1100] = bytes(100)
    (tmp_path / "a.png").write_bytes(content)
    assert validate(data)[1] == []
    with pytest.raises(DataError, match=r"image 7 \(a\.png\): cannot be read"):
        validate(data, deep=True)


def test_a_long_list_is_shortened_in_the_message_and_whole_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        validate(boxes(tmp_path, *[(x, 5, x, 9) for x in range(30)]))
    assert len(raised.value.problems) == 30
    assert str(raised.value).count("annotation ") == 10
    assert "20 more" in str(raised.value)
    assert report(raised.value.problems).count("annotation ") == 30


def test_an_unknown_way_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'drop'"):
        validate(boxes(tmp_path, (0, 0, 5, 5)), "drops")  # type: ignore[arg-type]


def test_headers_are_read_once_and_again_when_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = known.image_size
    monkeypatch.setattr(known, "image_size", lambda path: read.append(path.name) or real(path))
    path = picture(tmp_path / "a.png")
    for _ in range(2):
        assert known.read_sizes(tmp_path, ["a.png"])[0].tolist() == [[50, 100]]
    assert read == ["a.png"]
    picture(path, 30, 20)
    os.utime(path, ns=(1, 1))
    assert known.read_sizes(tmp_path, ["a.png"])[0].tolist() == [[20, 30]]
    assert read == ["a.png", "a.png"]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"sizes": 3}', '{"sizes": {"a.png": "x"}}', '{"sizes": {"a.png": [1, 2, -5, 9]}}'],
)
def test_a_corrupt_cache_is_ignored_and_replaced(tmp_path: Path, content: str) -> None:
    picture(tmp_path / "a.png")
    cache = known.sizes_file(tmp_path)
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    assert known.read_sizes(tmp_path, ["a.png"])[0].tolist() == [[50, 100]]
    assert json.loads(cache.read_text())["sizes"]["a.png"][2:] == [50, 100]
    assert [file.name for file in cache.parent.iterdir()] == [cache.name]


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RETINANET_CACHE", str(tmp_path / "file" / "below"))
    assert known.read_sizes(tmp_path, ["a.png", "b.png"])[1] == {1: (known.MISSING, "")}


def test_the_cache_lies_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RETINANET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/mine")
    assert known.sizes_file(Path("/data")).parent == Path("/var/mine/retinanet")


@pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1), (2**32 - 1, 2**32 - 1)])
def test_no_picture_passes_whatever_its_header_promises(tmp_path: Path, size: tuple[int, int]) -> None:
    data = boxes(tmp_path, (0, 0, 5, 5), size=(0, 0))
    content = (tmp_path / "a.png").read_bytes()
    header = b"IHDR" + struct.pack(">II", *size) + content[24:29]
    (tmp_path / "a.png").write_bytes(
        content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    )
    with pytest.raises(DataError, match=rf"image 7 \(a\.png\).*{size[0]} x {size[1]}"):
        validate(data)


def test_boxes_repeat_by_value_whatever_the_bits_and_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image, labels = rng.integers(0, 3, 400), rng.integers(0, 2, 400)
    corners = rng.integers(-1, 2, (400, 4)) * rng.choice([1.0, -1.0], (400, 4))  # 0.0 and -0.0 among them
    rows = [(image[row], labels[row], *corners[row]) for row in range(400)]
    expected = [row in rows[:place] for place, row in enumerate(rows)]
    assert 50 < sum(expected) < 350
    assert validation._repeated(image, labels, corners).tolist() == expected
    # the plain way: all rows are sorted
    monkeypatch.setattr(validation, "_of_equal_hash", lambda keys: np.arange(len(keys[0])))
    assert validation._repeated(image, labels, corners).tolist() == expected


def test_a_hash_is_shared_by_equal_rows_and_hardly_by_others() -> None:
    one, other = np.array([0.0, -0.0, 1.5, 1.5, 2.5]), np.array([3, 3, 1, 1, 1])
    assert validation._of_equal_hash((one, other)).tolist() == [0, 1, 2, 3]
    many = np.arange(100_000)
    assert len(validation._of_equal_hash((many % 317, many // 317, many * 0.5))) == 0


def test_what_is_sound_is_not_copied(tmp_path: Path) -> None:
    data = boxes(tmp_path, (10, 10, 20, 20))
    clean, _ = validate(data)
    assert clean.boxes is data.boxes and clean.files is data.files


def test_boxes_in_fractions_of_the_image_are_problems_if_all_are(tmp_path: Path) -> None:
    corners = [(0.1, 0.2, 0.5, 0.6), (0.0, 0.0, 1.0, 1.0)]
    dataset = boxes(tmp_path, *corners)
    with pytest.raises(DataError, match="2 boxes in fractions of the image and not in pixels"):
        validate(dataset)
    _, problems = validate(boxes(tmp_path, *corners, (10, 10, 20, 20)))
    assert problems == []  # a box of a pixel is not wrong beside others


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_of_crowds_alone_cannot_be_used(tmp_path: Path, split: str) -> None:
    dataset = boxes(tmp_path, (10, 10, 20, 20))
    crowds = replace(dataset, split=split, crowd=np.array([True]))
    with pytest.raises(DataError, match=f"no boxes but crowds .* in {split}"):
        validate(crowds)
    assert len(validate(crowds, need_boxes=False)[0]) == 1


def test_boxes_that_all_fit_as_corners_are_told_to_be_corners(tmp_path: Path) -> None:
    kind = "files whose boxes seem to be corners"
    wrong = [(x1, y1, x1 + x2, y1 + y2) for x1, y1, x2, y2 in [(40, 10, 90, 40), (5, 5, 30, 20)]]
    dataset = replace(boxes(tmp_path, *wrong), layout="coco")
    assert kinds(validate(dataset, "clip")[1]) == ["boxes outside the image", kind]
    # a box that leaves the image and is no pair of corners
    one = replace(boxes(tmp_path, (40, 10, 50, 70)), layout="coco")
    assert kinds(validate(one, "clip")[1]) == ["boxes outside the image"]
