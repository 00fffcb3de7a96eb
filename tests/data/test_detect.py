from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinanet.data.dataset import Columns, Dataset
from retinanet.data.formats.detect import open_dataset
from retinanet.data.formats.format import split_of
from retinanet.data.splits import hold_out
from retinanet.errors import ConfigError, DataError


def coco(file: Path, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    images = [{"id": 1, "file_name": "a.png", "height": 50, "width": 100}]
    annotations = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def yolo(root: Path) -> Path:
    for folder in ("images/train", "labels/train"):
        (root / folder).mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(root / "images" / "train" / "a.png")
    (root / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    return root


def images(count: int) -> Dataset:
    columns = Columns()
    for index in range(count):
        columns.image(f"{index}.jpg", index + 1, 10, 10)
        columns.box((0, 0, 1 + index, 1), 0, index + 1)
    return columns.build(Path("x.json"), Path("."), "train", ["cat"], [1])


@pytest.mark.parametrize(
    "name, split",
    [
        ("train", "train"),
        ("instances_train2017", "train"),
        ("training", "train"),
        ("val2017", "val"),
        ("Valid", "val"),
        ("validation", "val"),
        ("instances_minival2014", "val"),
        ("test-dev2017", "test"),
        ("image_info_test-dev2017", "test"),
        ("testing", "test"),
        ("_annotations.coco", None),
        ("strain", None),
        ("trainval", None),
    ],
)
def test_usual_names_of_splits_are_understood(name: str, split: str | None) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    "files",
    [
        [
            "annotations/instances_train2017.json",
            "annotations/instances_val2017.json",
            "annotations/instances_test2017.json",
        ],
        ["annotations/train.json", "annotations/valid.json", "annotations/test.json"],
        ["train.json", "val.json", "test.json"],
        ["train/_annotations.coco.json", "valid/_annotations.coco.json", "test/_annotations.coco.json"],
    ],
)
def test_coco_files_are_found_where_people_put_them(tmp_path: Path, files: list[str]) -> None:
    for file in files:
        coco(tmp_path / file)
    data = open_dataset(tmp_path)
    assert list(data) == ["train", "val", "test"]
    assert [one.split for one in data.values()] == ["train", "val", "test"]
    assert [one.source.relative_to(tmp_path).as_posix() for one in data.values()] == files


def test_the_other_files_of_an_original_coco_folder_do_not_disturb(tmp_path: Path) -> None:
    for name in (
        "instances_val2017",
        "person_keypoints_val2017",
        "captions_val2017",
        "stuff_val2017",
        "panoptic_val2017",
    ):
        coco(tmp_path / "annotations" / f"{name}.json")
    coco(tmp_path / "annotations" / "image_info_test2017.json")
    coco(tmp_path / "annotations" / "mine_val.json")
    (tmp_path / "annotations" / "val_answers.json").write_text('[{"image_id": 1}]')
    (tmp_path / "package.json").write_text('{"name": "x"}')
    data = open_dataset(tmp_path)
    assert [(split, one.source.name) for split, one in data.items()] == [("val", "instances_val2017.json")]


def test_a_single_file_and_a_single_file_without_a_split_are_all(tmp_path: Path) -> None:
    file = coco(tmp_path / "cells.json")
    assert list(open_dataset(file)) == list(open_dataset(tmp_path)) == ["all"]
    assert list(open_dataset(coco(tmp_path / "x" / "val.json"))) == ["all"]


def test_several_files_without_a_split_are_an_error_that_lists_them(tmp_path: Path) -> None:
    coco(tmp_path / "a.json")
    coco(tmp_path / "annotations" / "b.json")
    with pytest.raises(DataError, match=r"a\.json, annotations/b\.json; pass one of them"):
        open_dataset(tmp_path)


def test_two_files_of_one_split_are_an_error_that_lists_them(tmp_path: Path) -> None:
    coco(tmp_path / "train_a.json")
    coco(tmp_path / "train_b.json")
    with pytest.raises(DataError, match=r"split train: train_a\.json, train_b\.json"):
        open_dataset(tmp_path)


def test_splits_with_other_classes_are_an_error_that_names_them(tmp_path: Path) -> None:
    coco(tmp_path / "train.json")
    coco(tmp_path / "val.json", ("cat", "fish"))
    with pytest.raises(DataError, match=r"only in train\.json: 'dog'; only in val\.json: 'fish'"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "names, label, ids", [(("cat",), 0, (1, 2)), (("dog", "cat"), 1, (2, 1)), (("dog",), 1, (2, 1))]
)
def test_a_split_that_numbers_the_classes_otherwise_is_matched_by_name_and_keeps_its_ids(
    tmp_path: Path, names: tuple[str, ...], label: int, ids: tuple[int, ...]
) -> None:
    coco(tmp_path / "train.json")
    coco(tmp_path / "val.json", names)  # its only box has the category 1
    val = open_dataset(tmp_path)["val"]
    assert val.names == ("cat", "dog") and val.labels.tolist() == [label] and val.category_ids == ids
    assert [repair.kind.partition(" whose")[0] for repair in val.repairs] == ["files"]


def test_data_sets_further_below_are_named(tmp_path: Path) -> None:
    yolo(tmp_path / "kit" / "one")
    yolo(tmp_path / "kit" / "two")
    coco(tmp_path / "third" / "train.json")
    with pytest.raises(DataError, match="in its folders kit/one, kit/two, third: pass one of them"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.json", '{"version": "5.0", "shapes": []}', "a.json is of labelme"),
        ("train/_via.json", '{"a.jpg12": {"regions": [{"region_attributes": {}}]}}', "VGG Image Annotator"),
        ("annotations/default.json", '{"info": {}, "items": []}', "of Datumaro"),
        ("project-1.json", '[{"annotations": [{"result": [{"from_name": "x"}]}]}]', "of Label Studio"),
        ("person_keypoints.json", '{"images": [{"id": 1}], "annotations": [{}]}', "pass it itself"),
        ("annotations.xml", "<annotations><version>1.1</version></annotations>", "of CVAT's own format"),
        ("boxes.csv", "file,xmin,ymin,xmax,ymax,class", "boxes.csv is a table"),
        ("labels_of_me/a.txt", "0 0.5 0.5 1 0.25\n", "call its folder labels"),
        ("_annotations.txt", "a.jpg 1,2,3,4,0 5,6,7,8,1\n", "a list of images with boxes"),
        ("annotations.zip", "PK", "Unpack first: annotations.zip"),
    ],
)
def test_annotations_of_other_formats_are_named_with_what_to_do(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "a.jpg")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words):
        open_dataset(tmp_path)


def test_of_several_layouts_coco_wins_and_a_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    coco(yolo(tmp_path) / "annotations" / "train.json")
    with caplog.at_level(logging.INFO, logger="retinanet"):
        assert open_dataset(tmp_path)["train"].names == ("cat", "dog")
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path} holds several layouts (coco, yolo); reading coco, --layout chooses"
    ]
    caplog.clear()
    assert open_dataset(tmp_path, layout="yolo")["train"].names == ("0",)
    assert not caplog.records


def test_an_unknown_layout_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'yolo'"):
        open_dataset(tmp_path, layout="yolov8")


def test_nothing_recognised_is_an_error_that_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(DataError, match=r"(?s)COCO.*VOC.*YOLO.*It holds: readme\.txt"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match="no VOC data set"):
        open_dataset(tmp_path, layout="voc")
    with pytest.raises(DataError, match="no such file or folder"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is no annotation file"):
        open_dataset(tmp_path / "readme.txt")


def test_a_description_without_classes_is_told_and_not_passed_over(tmp_path: Path) -> None:
    (yolo(tmp_path) / "data.yaml").write_text("nc: 3\n")
    with pytest.raises(DataError, match=r"data\.yaml: has no entry 'names'"):
        open_dataset(tmp_path)


def test_strange_things_in_the_folder_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "self").symlink_to("self")
    for name in ("a.json", "b.yaml", "c.xml"):
        (tmp_path / name).mkdir()
    assert open_dataset(yolo(tmp_path))["train"].names == ("0",)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_path_that_cannot_be_is_no_such_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        open_dataset(f"{tmp_path}/{name}")


def test_images_elsewhere_go_with_coco_and_not_with_yolo(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    coco(tmp_path / "set" / "train.json")
    assert open_dataset(tmp_path / "set", images=tmp_path / "far")["train"].root == tmp_path / "far"
    with pytest.raises(DataError, match="--images"):
        open_dataset(yolo(tmp_path / "other"), images=tmp_path / "far")


def test_a_tenth_is_held_out_by_the_seed_alone() -> None:
    data = images(50)
    train, val = hold_out(data, seed=3)
    assert (len(train), len(val), train.split, val.split) == (45, 5, "train", "val")
    assert sorted(train.image_ids.tolist() + val.image_ids.tolist()) == list(range(1, 51))
    assert val.boxes[:, 2].tolist() == val.image_ids.tolist()
    assert hold_out(data, seed=3)[1].files.tolist() == val.files.tolist()
    assert hold_out(data, seed=4)[1].files.tolist() != val.files.tolist()
    shuffled = data.subset(np.random.default_rng(0).permutation(50))
    assert sorted(hold_out(shuffled, seed=3)[1].files.tolist()) == sorted(val.files.tolist())


def test_at_least_one_image_is_held_out_and_one_is_left() -> None:
    assert [len(part) for part in hold_out(images(3), seed=0)] == [2, 1]
    assert [len(part) for part in hold_out(images(3), seed=0, fraction=1.0)] == [1, 2]
    with pytest.raises(DataError, match="cannot be split"):
        hold_out(images(1), seed=0)


@pytest.mark.parametrize("name", ["annotations", "Annotation", "labels"])
def test_coco_files_may_lie_in_a_folder_of_annotations_however_it_is_called(
    tmp_path: Path, name: str
) -> None:
    yolo(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").unlink()
    coco(tmp_path / name / "train.json")
    splits = open_dataset(tmp_path)
    assert splits["train"].layout == "coco" and len(splits["train"].labels) == 1
