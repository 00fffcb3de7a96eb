from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval.core import mask as mask_tools
from PIL import Image

from retinanet.data.dataset import Dataset
from retinanet.data.formats import coco
from retinanet.data.formats.coco import read_coco
from retinanet.data.formats.coco_masks import box_of_mask
from retinanet.data.formats.coco_repairs import FROM_MASK
from retinanet.data.validate import validate
from retinanet.errors import DataError

MINI = Path(__file__).parents[3] / "shared" / "data" / "coco_mini"


def image(number: Any = 1, name: Any = "a.jpg", **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name, "height": 50, "width": 100, **more}


def box(
    number: Any = 1, image_id: Any = 1, category_id: Any = 1, bbox: Any = (10, 20, 30, 5), **more: Any
) -> dict[str, Any]:
    return {"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox, **more}


def read(
    folder: Path, images: list[Any], annotations: list[Any], categories: list[Any] | None = None
) -> Dataset:
    categories = [{"id": 1, "name": "cat"}] if categories is None else categories
    file = folder / "train.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return read_coco(file)


def kinds(dataset: Dataset) -> list[str]:
    return [problem.kind for problem in dataset.problems]


@pytest.mark.parametrize("ids", [(0, 1, 2), (1, 2, 3), (7, 18, 90)])
def test_category_ids_go_in_and_come_back_out(tmp_path: Path, ids: tuple[int, ...]) -> None:
    categories = [{"id": number, "name": f"class of {number}"} for number in reversed(ids)]
    data = read(
        tmp_path, [image()], [box(place, category_id=number) for place, number in enumerate(ids)], categories
    )
    assert data.labels.tolist() == [0, 1, 2]
    assert [data.category_ids[label] for label in data.labels] == list(ids)
    assert [data.names[label] for label in data.labels] == [f"class of {number}" for number in ids]
    assert data.problems == ()


def test_boxes_become_corners_and_keep_their_ids_area_and_crowd(tmp_path: Path) -> None:
    annotations = [box(5, bbox=[0.1, 0.2, 10.4, 20.5]), box(9, iscrowd=1, area=12.5)]
    data = read(tmp_path, [image()], annotations)
    assert data.boxes.tolist() == [[0.1, 0.2, 0.1 + 10.4, 0.2 + 20.5], [10, 20, 40, 25]]
    assert data.areas.tolist() == [10.4 * 20.5, 12.5]
    assert data.crowd.tolist() == [False, True]
    assert data.annotation_ids.tolist() == [5, 9]
    assert data.sizes.tolist() == [[50, 100]]


def test_annotations_in_any_order_come_to_their_images_in_the_order_of_the_file(tmp_path: Path) -> None:
    images = [image(30, "c.jpg"), image(10, "a.jpg"), image(20, "b.jpg")]
    data = read(tmp_path, images, [box(1, 20), box(2, 30), box(3, 20), box(4, 30)])
    assert data.image_ids.tolist() == [30, 10, 20]
    assert data.first.tolist() == [0, 2, 2, 4]
    assert data.annotation_ids.tolist() == [2, 4, 1, 3]


def test_missing_sizes_are_zero_until_they_are_read_from_the_pictures(tmp_path: Path) -> None:
    data = read(tmp_path, [{"id": 1, "file_name": "a.jpg"}, image(2, "b.jpg", width=None)], [box()])
    assert data.sizes.tolist() == [[0, 0], [50, 0]]
    assert data.problems == ()


def test_ids_that_pandas_made_floats_are_the_same_ids(tmp_path: Path) -> None:
    data = read(tmp_path, [image(1.0)], [box(4.0, 1.0, 1.0)])
    assert (data.image_ids.tolist(), data.annotation_ids.tolist(), data.problems) == ([1], [4], ())


SECOND = "annotation 2, image 1 (a.jpg)"


@pytest.mark.parametrize(
    "faulty, kind, words",
    [
        (box(2, image_id=9), "annotations of unknown images", "annotation 2, image 9"),
        (box(2, category_id=3), "annotations of unknown categories", f"{SECOND}: category 3"),
        (box(2, category_id=[1]), "annotations of unknown categories", "category [1]"),
        ({"id": 2, "image_id": 1, "category_id": 1}, "annotations without bbox", SECOND),
        (box(2, bbox=[1, 2, 3]), "boxes that are not four numbers", f"{SECOND}: bbox [1, 2, 3]"),
        (box(2, bbox="1234"), "boxes that are not four numbers", '"1234"'),
        (box(2, bbox={"x": 1, "y": 2, "w": 3, "h": 4}), "boxes that are not four numbers", "annotation 2"),
        (
            box(2, bbox=[1, 2, math.nan, 4]),
            "boxes or areas that are not finite",
            f"{SECOND}: bbox [1, 2, NaN",
        ),
        (box(2, bbox=[1, 2, 10**400, 4]), "boxes or areas that are not finite", "annotation 2"),
        (box(2, image_id=True), "annotations of unknown images", "image true"),
        (box(2, image_id="1.5"), "annotations of unknown images", 'image "1.5"'),
        (box(2, category_id=None), "annotations without category_id", SECOND),
        (box(2, bbox=["1", "2", "1_0", "4"]), "boxes or areas that are not finite", '"1_0"'),
        (box(2, area="12 px"), "boxes or areas that are not finite", 'area "12 px"'),
        (box(2, category_id=True), "annotations of unknown categories", "category true"),
        (box(2, bbox=[True, 2, 3, 4]), "boxes that are not four numbers", "[true, 2, 3, 4]"),
        (box(2, area=True), "boxes or areas that are not finite", "area true"),
        (box(2, area=-1.5), "areas below 0", "area -1.5"),
        (box(2, area=float("inf")), "boxes or areas that are not finite", "area Infinity"),
        (box(2, iscrowd=2), "annotations whose iscrowd is neither 0 nor 1", "iscrowd 2"),
        ("nothing", "annotations that are no objects", "entry 1"),
    ],
)
def test_an_annotation_that_cannot_be_a_row_is_told_and_left_out(
    tmp_path: Path, faulty: Any, kind: str, words: str
) -> None:
    data = read(tmp_path, [image()], [box(1), faulty, box(3)])
    assert [problem.kind for problem in data.problems] == [kind]
    assert data.problems[0].file == "train.json"
    assert words in data.problems[0].detail
    assert data.annotation_ids.tolist() == [1, 3]


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../a.jpg", "x/../../a.jpg", "..\\a.jpg", "C:\\a.jpg", "..", "a\0.jpg", "\ud800.jpg"],
)
def test_a_file_name_that_leaves_the_data_folder_is_refused_with_its_boxes(tmp_path: Path, name: str) -> None:
    data = read(tmp_path, [image(), image(2, name)], [box(1), box(2, image_id=2)])
    assert "file names that leave the data folder" in kinds(data)
    assert (data.files.tolist(), data.annotation_ids.tolist()) == (["a.jpg"], [1])


def test_names_inside_the_folder_are_tidied(tmp_path: Path) -> None:
    data = read(tmp_path, [image(1, "./x/../images/a.jpg"), image(2, "images\\b.jpg")], [])
    assert data.files.tolist() == ["images/a.jpg", "images/b.jpg"]


@pytest.mark.parametrize(
    "faulty, kind",
    [
        (image(1, "b.jpg"), "duplicate image ids"),
        (image(2, None), "images without a file name"),
        (image(""), "images without an id"),
        (image(True), "images without an id"),
        (image(2, height="50.5"), "images whose height or width is no whole number"),
        (image(2, width=-1), "images whose height or width is no whole number"),
        (None, "images without an id"),
    ],
)
def test_an_image_that_cannot_be_a_row_is_told_and_left_out(tmp_path: Path, faulty: Any, kind: str) -> None:
    data = read(tmp_path, [image(), faulty], [box()])
    assert kinds(data) == [kind]
    assert data.files.tolist() == ["a.jpg"]


@pytest.mark.parametrize(
    "faulty, kind",
    [
        ({"id": 1, "name": "dog"}, "duplicate category ids"),
        ({"id": 2, "name": "cat"}, "duplicate category names"),
        ({"id": 2}, "categories without an id or without a name"),
        ({"id": 2, "name": "half a letter \ud800"}, "categories without an id or without a name"),
    ],
)
def test_a_category_that_cannot_be_a_class_is_told(tmp_path: Path, faulty: dict[str, Any], kind: str) -> None:
    data = read(tmp_path, [image()], [box()], [{"id": 1, "name": "cat"}, faulty])
    assert kinds(data) == [kind]
    assert data.names == ("cat",)


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "not valid JSON"),
        ("[" * 200_000, "not valid JSON"),
        ("[1]", "a list, as result files are"),
        ('{"images": [], "annotations": []}', "no list 'categories'"),
        ('{"images": {}, "annotations": [], "categories": []}', "no list 'images'"),
        ('{"\\ud800": []}', r'found: "\\ud800"'),
        (
            '{"images": [], "annotations": [{"id": 1}], "categories": [], "annotations": []}',
            'the key "annotations" twice',
        ),
    ],
)
def test_what_is_no_coco_file_is_an_error_that_says_why(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=rf"x\.json.*{words}"):
        read_coco(tmp_path / "x.json")


@pytest.mark.parametrize(
    "annotations, pictures",
    [
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/val.json", "."),
        ("annotations/val.json", "images"),
        ("annotations/val.json", "images/val"),
        ("annotations/val.json", "valid"),
        ("annotations/val.json", "JPEGImages"),
        ("labels.json", "data"),
        ("valid/_annotations.coco.json", "valid"),
    ],
)
def test_the_folder_of_the_pictures_is_found(tmp_path: Path, annotations: str, pictures: str) -> None:
    for name in (annotations, f"{pictures}/a.jpg", "train/other.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / pictures / "a.jpg").write_bytes(b"")
    (tmp_path / annotations).write_text(
        json.dumps({"images": [image()], "annotations": [], "categories": []})
    )
    assert (
        read_coco(tmp_path / annotations, split="val").path(0).resolve()
        == (tmp_path / pictures / "a.jpg").resolve()
    )


def test_pictures_elsewhere_are_named_by_hand_and_need_not_exist_for_an_evaluation(tmp_path: Path) -> None:
    (tmp_path / "set" / "annotations").mkdir(parents=True)
    (tmp_path / "far" / "val2017").mkdir(parents=True)
    (tmp_path / "far" / "val2017" / "a.jpg").write_bytes(b"")
    file = tmp_path / "set" / "annotations" / "instances_val2017.json"
    file.write_text(json.dumps({"images": [image()], "annotations": [], "categories": []}))
    assert read_coco(file).root == tmp_path / "set"
    assert read_coco(file, images=tmp_path / "far").root == tmp_path / "far" / "val2017"
    with pytest.raises(DataError, match="no such folder"):
        read_coco(file, images=tmp_path / "nowhere")


@pytest.mark.skipif(not MINI.exists(), reason="the real data sets are not on this machine")
def test_original_coco_annotations_keep_sparse_ids_and_crowds() -> None:
    data = read_coco(MINI / "annotations" / "instances_val2017.json")
    assert (len(data), len(data.names), data.category_ids[-1]) == (25, 80, 90)
    assert data.path(0).is_file()
    assert data.problems == ()


def test_a_file_name_that_is_too_long_for_the_disk_is_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    Image.new("RGB", (100, 50)).save(tmp_path / "a.png")
    data = read(tmp_path, [image(1, "x" * 300), image(2, "a.png")], [box(image_id=2)])
    with pytest.raises(DataError, match=r"images that cannot be read\n  image 1 \(xxx.*too long"):
        validate(data)


def test_a_value_nested_just_deep_enough_to_be_read_is_shown_all_the_same(tmp_path: Path) -> None:
    for depth in range(800, 1000, 5):
        text = f'{{"images": [], "annotations": [{"[" * depth}{"]" * depth}], "categories": []}}'
        (tmp_path / "x.json").write_text(text)
        with suppress(DataError):
            assert kinds(read_coco(tmp_path / "x.json")) == ["annotations that are no objects"]


def test_a_folder_that_may_not_be_listed_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    assert read(tmp_path, [image()], [box()]).root == tmp_path


# what has one meaning although it is not as the format says


def repairs(data):
    return sorted({repair.kind for repair in data.repairs})


@pytest.mark.parametrize(
    "ids", [[0, 0, 0], [1, 1, 2], [None, None, None], ["a", "b", "c"], [1, 2, 2**70], [1, 2, 1.5]]
)
def test_annotations_without_ids_of_their_own_are_numbered_by_their_place(
    tmp_path: Path, ids: list[Any]
) -> None:
    entries = [box(number, bbox=[place, 2, 3, 4]) for place, number in enumerate(ids)]
    data = read(tmp_path, [image()], entries)
    assert (data.annotation_ids.tolist(), data.problems) == ([1, 2, 3], ())
    assert [repair.kind for repair in data.repairs] == [coco.ANEW]


@pytest.mark.parametrize("ids", [["4", "5", "6"], [4.0, 5.0, 6.0], [-3, 0, 9]])
def test_annotation_ids_that_differ_stay_where_they_are_numbers(tmp_path: Path, ids: list[Any]) -> None:
    data = read(tmp_path, [image()], [box(number, bbox=[place, 2, 3, 4]) for place, number in enumerate(ids)])
    known = [1, 2, 3] if isinstance(ids[0], str) else ids
    assert data.annotation_ids.tolist() == known


@pytest.mark.parametrize(
    "images, boxes",
    [
        ({"id": "7"}, {"image_id": 7}),
        ({"id": 7}, {"image_id": "7"}),
        ({"id": "007"}, {"image_id": "007"}),
        ({"id": 7}, {"image_id": " 7.0"}),
        ({"id": "scene"}, {"image_id": "scene"}),
        ({"height": "50", "width": "100.0"}, {}),
        ({}, {"category_id": "1"}),
        ({}, {"category_id": "1.0"}),
        ({}, {"bbox": ["1", "2.0", ".3e1", "4"]}),
        ({}, {"area": "12.0"}),
    ],
)
def test_what_is_written_as_text_is_read_where_it_means_one_thing(
    tmp_path: Path, images: dict[str, Any], boxes: dict[str, Any]
) -> None:
    data = read(tmp_path, [image() | images], [box(3, images.get("id", 1), bbox=[1, 2, 3, 4]) | boxes])
    assert data.problems == ()
    assert data.boxes.tolist() == [[1, 2, 4, 6]]
    assert (data.sizes.tolist(), data.areas.tolist()) == ([[50, 100]], [12])
    assert repairs(data)


@pytest.mark.parametrize("ids", [("1", 1), ("01", "1"), (1.0, "1")])
def test_two_images_whose_ids_are_one_number_are_a_problem(tmp_path: Path, ids: tuple[Any, Any]) -> None:
    data = read(tmp_path, [image(ids[0], "a.jpg"), image(ids[1], "b.jpg")], [box()])
    assert kinds(data) == ["duplicate image ids"]
    assert data.problems[0].image == "a.jpg"  # its boxes may be those of the other


@pytest.mark.parametrize(
    "entry, name",
    [
        ({"file_name": 12}, "12"),
        ({"coco_url": "http://images.example.org/train2017/000000000009.jpg"}, "000000000009.jpg"),
        ({"file_name": "", "coco_url": "https://example.org/a%20b.jpg?size=large"}, "a b.jpg"),
    ],
)
def test_an_image_is_named_by_a_number_or_its_address(
    tmp_path: Path, entry: dict[str, Any], name: str
) -> None:
    data = read(tmp_path, [{"id": 1, "height": 50, "width": 100} | entry], [box()])
    assert (data.files.tolist(), data.problems) == ([name], ())


SQUARE = [10, 20, 40, 20, 40, 60, 10, 60]


@pytest.mark.parametrize(
    "mask",
    [
        [SQUARE],
        SQUARE,
        [[10, 20, 25, 20, 25, 60], [20, 30, 40, 50, 40, 60]],
        {"size": [100, 80], "counts": [1020] + [40, 60] * 29 + [40, 4040]},
    ],
)
@pytest.mark.parametrize("missing", [{"bbox": None}, {"bbox": []}])
def test_a_box_that_is_not_given_is_the_one_around_the_mask(
    tmp_path: Path, mask: Any, missing: dict[str, Any]
) -> None:
    data = read(
        tmp_path, [image(height=100, width=80)], [box() | missing | {"segmentation": mask, "area": 9}]
    )
    assert (data.boxes.tolist(), data.areas.tolist()) == ([[10, 20, 40, 60]], [9])
    assert repairs(data) == [FROM_MASK]


@pytest.mark.parametrize("seed", range(8))
def test_the_box_of_packed_runs_is_that_of_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.random((37, 53)) < rng.choice([0.002, 0.2, 0.9])
    packed = mask_tools.encode(np.asfortranarray(pixels[:, :, None], dtype=np.uint8))[0]
    text = packed["counts"].decode()
    assert box_of_mask({"size": [37, 53], "counts": text}) == tuple(mask_tools.toBbox([packed])[0])


@pytest.mark.parametrize(
    "mask",
    [
        [],
        [[1, 2, 3]],
        [[1, 2, 3, "4", 5, 6]],
        {"size": [9, 9], "counts": [80]},
        {"counts": "x"},
        7,
        "abc",
        [[], []],
    ],
)
def test_without_box_and_mask_an_annotation_is_a_problem_that_its_image_feels(
    tmp_path: Path, mask: Any
) -> None:
    for missing, image_lost in ((None, "a.jpg"), ([], "")):  # [] says that nothing is there
        data = read(tmp_path, [image()], [box() | {"bbox": missing, "segmentation": mask}])
        assert kinds(data) == ["annotations without bbox"]
        assert data.problems[0].image == image_lost


@pytest.mark.parametrize(
    "listed, there",
    [
        ("a.jpg", "a.JPG"),
        ("GRÖSSE.jpg", "größe.jpg"),
        ("my%20photo.jpg", "my photo.jpg"),
        ("train/a.jpg", "a.jpg"),
        ("/data/upload/1/a.jpg", "a.jpg"),
        ("../../media/upload/1/a.jpg", "a.jpg"),
        ("C:\\images\\a.jpg", "a.jpg"),
        ("sub\\a.jpg", "sub/a.jpg"),
    ],
)
def test_a_file_name_in_another_form_or_of_another_machine_is_found(
    tmp_path: Path, listed: str, there: str
) -> None:
    (tmp_path / "images" / there).parent.mkdir(parents=True)
    (tmp_path / "images" / there).touch()
    data = read(tmp_path, [image(1, listed)], [box()])
    assert data.path(0).is_file()
    assert data.problems == ()
    assert bool(data.repairs) == ("\\" not in listed or ":" in listed)


def test_a_name_that_two_files_have_in_another_form_is_a_problem(tmp_path: Path) -> None:
    for name in ("A.jpg", "a.JPG", "b.jpg"):
        (tmp_path / name).touch()
    data = read(tmp_path, [image(1, "a.jpg"), image(2, "b.jpg")], [box()])
    assert kinds(data) == ["file names that several files have in another form"]
    assert data.problems[0].image == "a.jpg"


@pytest.mark.parametrize("name", ["标注.json", "разметка.json", "instances_(1).json", "train].json"])
def test_the_name_of_the_file_chooses_no_folder_by_its_last_letter(tmp_path: Path, name: str) -> None:
    for folder in ("depth", "images"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jpg").touch()
    content = {"images": [image()], "annotations": [], "categories": []}
    (tmp_path / name).write_text(json.dumps(content))
    assert read_coco(tmp_path / name).root == tmp_path / "images"


def test_the_folder_that_holds_most_of_the_names_is_taken(tmp_path: Path) -> None:
    for name in ("images/a.jpg", "data/a.jpg", "data/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert read(tmp_path, [image(1, "a.jpg"), image(2, "b.jpg")], []).root == tmp_path / "data"


@pytest.mark.parametrize(
    "names, merged",
    [
        (["car", "car "], ["car"]),
        (["Gro\u0308\u00dfe", "Gr\u00f6\u00dfe"], ["Gr\u00f6\u00dfe"]),
        (["stop  sign", "stop sign"], ["stop sign"]),
        (["car", "Car"], ["car", "Car"]),
        (["a", "A"], ["a", "A"]),
    ],
)
def test_class_names_that_differ_only_in_form_are_one_class_and_in_case_a_problem(
    tmp_path: Path, names: list[str], merged: list[str]
) -> None:
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=3)]
    data = read(
        tmp_path, [image()], [box(1, category_id=3), box(2, category_id=4, bbox=[5, 5, 5, 5])], categories
    )
    assert list(data.names) == merged
    assert data.labels.tolist() == ([0, 0] if len(merged) == 1 else [0, 1])
    assert data.category_ids == (3, 4)[: len(merged)]
    assert kinds(data) == (["classes whose names differ by case only"] if merged == ["car", "Car"] else [])
    assert bool(data.repairs) == (len(merged) == 1)


@pytest.mark.parametrize(
    "content",
    [
        {"categories": [{"id": 0, "name": "a"}], "info": {"year": 2024}},
        {"name": "mine", "images": 6, "annotations": 12},
        {"images": None, "config": {"annotations": "x"}},
        {"categories": ["a", "b"]},
        [{"images": [], "annotations": []}],
    ],
)
def test_other_json_files_are_not_taken_for_annotations(tmp_path: Path, content: Any) -> None:
    (tmp_path / "notes.json").write_text(json.dumps(content))
    assert coco.recognise_coco(tmp_path, None) is None
    long = {"categories": [{"id": 1, "name": "x" * 100_000}], "images": [image()], "annotations": [box()]}
    (tmp_path / "notes.json").write_text(json.dumps(long))
    assert coco.recognise_coco(tmp_path, None) is not None


def test_a_number_is_a_name_of_a_category(tmp_path: Path) -> None:
    data = read(tmp_path, [image()], [box()], [{"id": 1, "name": 7}])
    assert data.names == ("7",) and len(data.labels) == 1
    assert [repair.kind for repair in data.repairs] == ["categories whose name is a number"]
