"""Splits: nothing is trained on that is measured on, and what is held out resembles the rest."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from retinanet.data.dataset import Columns
from retinanet.data.formats.detect import open_dataset
from retinanet.data.splits import hold_out, in_both, open_training
from retinanet.errors import DataError


def images(*classes, names=None):
    """An image for each list of classes, with one box of each."""
    columns = Columns()
    for index, labels in enumerate(classes):
        columns.image(names[index] if names else f"{index * 100:05d}.jpg", index + 1, 50, 100)
        for label in labels:
            columns.box((0, 0, 5, 5), label, len(columns.labels) + 1)
    return columns.build(Path("a.json"), Path(), "all", ["common", "rare", "single"], [1, 2, 3])


def test_every_class_and_the_images_without_objects_are_held_out_by_their_share():
    data = images(*[[0]] * 60, *[[1]] * 4, *[[0, 0]] * 16, *[[]] * 20)
    train, val = hold_out(data, seed=0)
    assert len(train) + len(val) == 100
    has = Counter(tuple(sorted(set(val.labels[val.rows(index)].tolist()))) for index in range(len(val)))
    assert has == {(0,): 8, (1,): 1, (): 2}  # a tenth of 76, of 4 (at least one), of 20


@pytest.mark.parametrize("seed", range(5))
def test_a_class_that_a_single_image_has_stays_in_train(seed, caplog):
    with caplog.at_level("INFO", "retinanet"):
        train, val = hold_out(images(*[[0]] * 20, [0, 2]), seed)
    assert 2 in train.labels and 2 not in val.labels
    assert "are held out of train by seed" in caplog.text and "none of them has single" in caplog.text


@pytest.mark.parametrize("seed", range(5))
def test_few_images_with_objects_are_split_whatever_the_seed(seed):
    train, val = hold_out(images(*[[0]] * 3, *[[]] * 40), seed)
    assert len(train.labels) == 2 and len(val.labels) == 1


@pytest.mark.parametrize(
    "name", ["cam/{:04d}.jpg", "frame{:06d}_left.png", "a 2021/{}.jpg", "clip_{:03d}.rf.8a7b6c.jpg"]
)
def test_neighbouring_frames_stay_together(name):
    data = images(*[[0]] * 400, names=[name.format(index) for index in range(400)])
    _, val = hold_out(data, seed=1)
    tens = Counter(((val.image_ids - 1) // 10).tolist())
    assert len(val) == 40
    assert set(tens.values()) == {10}


def test_copies_of_one_image_stay_together():
    names = [f"{name}_jpg.rf.{copy}{copy}.jpg" for name in map(chr, range(97, 117)) for copy in "123"]
    _, val = hold_out(images(*[[0]] * 60, names=names), seed=0)
    assert set(Counter(file[0] for file in val.files.tolist()).values()) == {3}


@pytest.mark.parametrize("classes", [[[0]], [[0], [], []], [[0, 1, 2], []]])
def test_what_cannot_be_split_says_how_to_train_without_validation(classes, caplog):
    data = images(*classes)
    with pytest.raises(DataError, match=r"1 image with objects cannot be split.*--set held_out=0"):
        hold_out(data, 0)
    with caplog.at_level("INFO", "retinanet"):
        train, val = hold_out(data, 0, fraction=0)
    assert len(train) == len(val) == len(classes)
    assert "AP says nothing about other images" in caplog.text


# the same image in two splits


def coco(folder, split, *names):
    """Annotations of these images, of which each is drawn with a colour of its own."""
    entries = []
    for number, name in enumerate(names, start=1):
        file = folder / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            Image.new("RGB", (40, 30), (len(list(folder.rglob("*"))) * 7 % 256, 9, 9)).save(file)
        entries.append({"id": number, "file_name": name, "width": 40, "height": 30})
    boxes = [
        {"id": one["id"], "image_id": one["id"], "category_id": 1, "bbox": [1, 1, 9, 9]} for one in entries
    ]
    content = {"images": entries, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))


def test_an_image_of_both_splits_is_a_problem_and_dropped_from_train(tmp_path):
    coco(tmp_path, "train", "a.png", "b.png", "c.png")
    coco(tmp_path, "val", "b.png", "d.png")
    with pytest.raises(
        DataError, match=r"1 images that stand in two splits\n  b\.png of train is b\.png of val"
    ):
        open_training(tmp_path, 0)
    train, val = open_training(tmp_path, 0, invalid="drop")
    assert (train.files.tolist(), val.files.tolist()) == (["a.png", "c.png"], ["b.png", "d.png"])
    assert train.notes == ("1 image of val left out (--invalid drop)",)


@pytest.mark.parametrize("invalid", ["error", "drop", "clip"])
def test_splits_of_the_same_images_cannot_be_trained_on(tmp_path, invalid):
    coco(tmp_path, "train", "a.png", "b.png")
    coco(tmp_path, "val", "a.png", "b.png")
    with pytest.raises(DataError, match="all 2 images for training stand in val too"):
        open_training(tmp_path, 0, invalid=invalid)


@pytest.mark.parametrize("how", ["path", "link", "copy"])
def test_the_same_image_is_known_by_its_path_its_linked_folder_and_its_content(tmp_path, how):
    coco(tmp_path, "train", "train/a.png", "train/b.png")
    folder = tmp_path / "images"
    if how == "link":
        os.symlink(folder / "train", folder / "val")
    elif how == "copy":
        (folder / "val").mkdir()
        shutil.copy(folder / "train" / "a.png", folder / "val" / "a.png")
    coco(tmp_path, "val", "train/a.png" if how == "path" else "val/a.png", "val2/c.png")
    splits = open_dataset(tmp_path)
    found = {content: in_both(splits["train"], splits["val"], content) for content in (False, True)}
    assert [problem.image for problem in found[True]] == ["train/a.png"]
    assert len(found[False]) == (how != "copy")
