"""Generated scenes: the same for a seed, exactly annotated, and an ordinary COCO data set on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinanet.data import scenes
from retinanet.data.scenes import (
    ACROSS,
    MIN_VISIBLE,
    NAMES,
    SHAPES,
    Placed,
    overlap,
    place,
    render,
    scene,
    write_scenes,
)
from retinanet.errors import ConfigError

SMALL = (160, 192)


def some_placements(count: int) -> list[list[Placed]]:
    return [place(np.random.default_rng(seed), *SMALL, 12, 100) for seed in range(count)]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_scene_is_a_function_of_its_seed():
    one, same, other = scene(3, SMALL), scene(3, SMALL), scene(4, SMALL)
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one.image, other.image)


def test_a_scene_has_the_promised_types_and_stays_in_its_size_range():
    sizes = set()
    for seed in range(12):
        picture, boxes, labels = scene(seed, ((96, 104), (120, 150)))
        assert picture.dtype == np.uint8
        assert boxes.dtype == np.float32
        assert labels.dtype == np.int64
        assert boxes.shape == (len(labels), 4)
        assert 96 <= picture.shape[0] <= 104
        assert 120 <= picture.shape[1] <= 150
        sizes.add(picture.shape)
    assert len(sizes) > 6


def test_every_box_is_tight_around_the_mask_of_its_object():
    for placed in some_placements(30):
        for one in placed:
            whole = np.zeros(SMALL, dtype=bool)
            tall, wide = one.mask.shape
            whole[one.top : one.top + tall, one.left : one.left + wide] = one.mask >= 128
            left, top, right, bottom = one.box
            assert whole[top:bottom, left:right].sum() == whole.sum() > 0
            for edge in (
                whole[top, left:right],
                whole[bottom - 1, left:right],
                whole[top:bottom, left],
                whole[top:bottom, right - 1],
            ):
                assert edge.any()


def test_a_box_is_where_the_picture_changes(monkeypatch: pytest.MonkeyPatch):
    # Light and noise come last and from the same stream of numbers: without them only the objects differ.
    monkeypatch.setattr(
        scenes, "develop", lambda _, canvas: np.clip(canvas, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    )
    painted = scene(11, SMALL)
    monkeypatch.setattr(scenes, "paint", lambda *_: None)
    bare = scene(11, SMALL)
    change = np.abs(painted.image.astype(int) - bare.image).max(axis=2)
    outside = np.ones(SMALL, dtype=bool)
    for left, top, right, bottom in painted.boxes.astype(int):
        outside[top:bottom, left:right] = False
        assert (change[top:bottom, left:right] > 40).mean() > 0.15
    assert len(painted.boxes) > 0
    assert change[outside].max() <= 128  # pixels that an object covers by less than half


def test_hidden_objects_can_still_be_told_and_no_two_boxes_nearly_coincide():
    for placed in some_placements(40):
        owner = np.full(SMALL, -1)
        for i, one in enumerate(placed):
            solid = one.mask >= 128
            owner[one.top : one.top + solid.shape[0], one.left : one.left + solid.shape[1]][solid] = i
        for i, one in enumerate(placed):
            assert (owner == i).sum() >= MIN_VISIBLE * (one.mask >= 128).sum()
            assert all(overlap(one.box, other.box) <= scenes.MAX_OVERLAP for other in placed[:i])


def test_the_overlap_of_two_boxes_is_their_iou():
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 2, 2), (2, 0, 4, 2)) == 0


@pytest.mark.parametrize("label", range(len(SHAPES)), ids=NAMES)
def test_every_shape_is_as_long_as_asked_and_none_vanishes(label: int):
    for seed in range(8):
        for span in (8, 12, 40, 120):
            rows, columns = np.nonzero(render(np.random.default_rng(seed), label, span) >= 128)
            longest = max(np.ptp(rows), np.ptp(columns)) + 1
            assert 0.6 * span <= longest <= span + 1


def test_classes_are_balanced_sizes_spread_and_some_scenes_are_empty():
    placements = [place(np.random.default_rng((7, seed)), 320, 384, *ACROSS) for seed in range(300)]
    labels = np.array([one.label for placed in placements for one in placed])
    share = np.bincount(labels, minlength=len(NAMES)) / len(labels)
    assert share.min() > 0.7 / len(NAMES)
    assert share.max() < 1.4 / len(NAMES)
    longest = np.array(
        [max(one.box[2] - one.box[0], one.box[3] - one.box[1]) for placed in placements for one in placed]
    )
    assert longest.min() < 16
    assert longest.max() > 200
    doublings = np.histogram(longest, bins=[12, 24, 48, 96, 257])[0] / len(longest)
    assert doublings.min() > 0.03  # small ones are few, but there
    assert 0.005 < np.mean([not placed for placed in placements]) < 0.08


def test_a_picture_too_small_for_its_objects_is_refused():
    with pytest.raises(ConfigError, match="change `size` or `across`"):
        scene(0, (12, 200))


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path):
    for name in ("one", "two"):
        write_scenes(tmp_path / name, {"train": 3, "val": 2}, SMALL, seed=5)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    write_scenes(tmp_path / "three", {"train": 3, "val": 2}, SMALL, seed=6)
    assert tree(tmp_path / "one") != tree(tmp_path / "three")


def test_splits_differ_and_a_larger_one_begins_with_the_smaller(tmp_path: Path):
    few = tree(write_scenes(tmp_path / "few", {"train": 2, "val": 2}, SMALL))
    many = tree(write_scenes(tmp_path / "many", {"train": 4}, SMALL))
    assert few["train/000001.jpg"] != few["val/000001.jpg"]
    assert few["train/000002.jpg"] == many["train/000002.jpg"]


def test_what_is_written_is_coco(tmp_path: Path):
    folder = write_scenes(tmp_path, {"train": 4, "test": 2}, ((96, 128), (96, 160)), seed=1)
    index = json.loads((folder / "annotations" / "train.json").read_text())
    assert [category["name"] for category in index["categories"]] == list(NAMES)
    assert [category["id"] for category in index["categories"]] == list(range(1, len(NAMES) + 1))
    sizes = {image["id"]: (image["width"], image["height"]) for image in index["images"]}
    for image in index["images"]:
        with Image.open(folder / "train" / image["file_name"]) as picture:
            assert picture.size == sizes[image["id"]]
    assert [annotation["id"] for annotation in index["annotations"]] == list(
        range(1, len(index["annotations"]) + 1)
    )
    for annotation in index["annotations"]:
        x, y, width, height = annotation["bbox"]
        assert min(x, y) >= 0
        assert min(width, height) > 0
        assert x + width <= sizes[annotation["image_id"]][0]
        assert y + height <= sizes[annotation["image_id"]][1]
        assert annotation["area"] == width * height
    assert (folder / "annotations" / "test.json").exists()


def test_a_data_set_that_exists_is_not_overwritten(tmp_path: Path):
    write_scenes(tmp_path, {"val": 1}, SMALL)
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match=r"val\.json: exists already"):
        write_scenes(tmp_path, {"train": 1, "val": 1}, SMALL, seed=9)
    assert tree(tmp_path) == before
