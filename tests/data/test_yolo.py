from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from retinanet.data.formats.detect import open_dataset
from retinanet.data.formats.yolo_files import read_yaml
from retinanet.data.formats.yolo_pairs import label_file
from retinanet.errors import DataError


def picture(path: Path, width: int = 100, height: int = 50) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def one(root: Path, labels: str, names: str = "[cat, dog]", more: str = "") -> Path:
    picture(root / "images" / "train" / "a.png")
    write(root / "labels" / "train" / "a.txt", labels)
    write(root / "data.yaml", f"train: images/train\nnames: {names}\n{more}")
    return root


def test_a_line_is_a_box_in_fractions_of_the_picture(tmp_path: Path) -> None:
    data = open_dataset(one(tmp_path / "set", "1 0.5 0.5 0.2 0.4\n\n0 0.1 0.2 0.2 0.4\n"))["train"]
    assert data.boxes.round(9).tolist() == [[40, 15, 60, 35], [0, 0, 20, 20]]
    assert data.labels.tolist() == [1, 0]
    assert (data.names, data.category_ids) == (("cat", "dog"), (0, 1))
    assert data.sizes.tolist() == [[50, 100]]
    assert data.files.tolist() == ["images/train/a.png"]


def test_a_polygon_stands_for_the_box_around_it(tmp_path: Path) -> None:
    data = open_dataset(one(tmp_path / "set", "0 0.1 0.2 0.5 0.4 0.3 0.8\n"))["train"]
    assert data.boxes.round(9).tolist() == [[10, 10, 50, 40]]


def test_key_points_are_no_polygon(tmp_path: Path) -> None:
    root = one(tmp_path / "set", "0 0.5 0.5 0.2 0.4 0.9 0.9 0.1 0.1\n", more="kpt_shape: [2, 2]\n")
    assert open_dataset(root)["train"].boxes.round(9).tolist() == [[40, 15, 60, 35]]


@pytest.mark.parametrize(
    "line, kind",
    [
        ("0 0.5 0.5 0.2", "lines that are neither a box"),
        ("0 0.5 0.5 0.2 0.4 1.9", "lines that are neither a box"),
        ("fish 0.5 0.5 0.2 0.4", "lines that are not numbers"),
        ("2 0.5 0.5 0.2 0.4", "lines of an unknown class"),
        ("-1 0.5 0.5 0.2 0.4", "lines of an unknown class"),
        ("0.5 0.5 0.5 0.2 0.4", "lines of an unknown class"),
        ("nan 0.5 0.5 0.2 0.4", "lines of an unknown class"),
        ("0 50 25 20 20", "lines that are not fractions"),
        ("0 nan 0.5 0.2 0.4", "lines that are not fractions"),
        ("0 0.5 0.5 0.2 0.4_1", "lines that are not numbers"),
    ],
)
def test_a_bad_line_is_told_with_its_file_and_number(tmp_path: Path, line: str, kind: str) -> None:
    data = open_dataset(one(tmp_path / "set", f"0 0.5 0.5 0.2 0.4\n{line}\n1 0.5 0.5 0.2 0.4\n"))["train"]
    (problem,) = data.problems
    assert problem.kind.startswith(kind)
    assert problem.detail.startswith(f"labels/train/a.txt, line 2: {line}")
    assert data.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "line, kind",
    [
        ("1 0.5 0.5 0.2 0.4", ""),
        ("1.0 0.5 0.5 0.2 0.4", ""),
        ("1\t0.5\t0.5\t0.2\t0.4\r", ""),
        (" 1  .5 5e-1 0.2 0.4 ", ""),
        ("\ufeff1 0.5 0.5 0.2 0.4", ""),
        ("1 0.5 0.5 0.2 0.4 0.97", "label files with confidences, which are not used"),
        ("1 0.4 0.3 0.6 0.3 0.6 0.7 0.4 0.7 1", "label files with confidences, which are not used"),
        ("1 0,5 0,5 0,2 0,4", "label files with decimal commas"),
        ("1 0,5 0,5 0,2 0,4\r", "label files with decimal commas"),
        ("1,0.5,0.5,0.2,0.4", "label files with commas between the numbers"),
        ("1, 0.5, 0.5, 0.2, 0.4", "label files with commas between the numbers"),
        ("traffic light 2 0.5 0.5 0.2 0.4", "label files with class names in place of numbers"),
        ("Traffic Light 2\t0.5 0.5 0.2 0.4", "label files with class names in place of numbers"),
    ],
)
def test_a_line_with_only_one_meaning_is_read_and_told(tmp_path: Path, line: str, kind: str) -> None:
    data = open_dataset(one(tmp_path / "set", f"{line}\n", "[cat, traffic light 2, tree]"))["train"]
    assert data.boxes.round(9).tolist() == [[40, 15, 60, 35]]
    assert (data.labels.tolist(), data.problems) == ([1], ())
    assert [repair.kind for repair in data.repairs] == [kind] * bool(kind)


@pytest.mark.parametrize(
    "text, kind",
    [
        ("1 0,0 0.5 0.5 0.2", "lines that are not numbers"),
        ("1;0.5;0.5;0.2;0.4", "lines that are not numbers"),
        ("0,5,0,5,0,2,0,4", "lines that are not numbers"),
        ("hen 0.5 0.5 0.2 0.4", "lines that are not numbers"),
        ("\0" * 40, "lines that are not numbers"),
        ("1 64 48 20 20", "lines that are not fractions of the image (0..1)"),
        ("7 0.5 0.5 0.2 0.4", "lines of an unknown class (there are 0..1)"),
        ("1 0.5 0.5 0.2 0.4 97", "lines that are neither a box"),
    ],
)
def test_an_image_that_lacks_an_object_for_a_bad_line_is_named(tmp_path: Path, text: str, kind: str) -> None:
    data = open_dataset(one(tmp_path / "set", f"{text}\n1 0.5 0.5 0.2 0.4\n"))["train"]
    (problem,) = data.problems
    assert problem.kind.startswith(kind)
    assert (problem.image, len(data.labels)) == ("images/train/a.png", 1)
    assert problem.detail.isprintable()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_label_file_that_is_no_text_names_its_image(tmp_path: Path, encoding: str) -> None:
    root = one(tmp_path / "set", "")
    (root / "labels" / "train" / "a.txt").write_bytes("1 0.5 0.5 0.2 0.4\n".encode(encoding))
    (problem,) = open_dataset(root)["train"].problems
    assert (problem.kind, problem.image) == ("label files that cannot be read", "images/train/a.png")
    assert problem.detail.startswith("labels/train/a.txt: cannot be read")


def test_repairs_of_a_label_file_are_told_once(tmp_path: Path) -> None:
    data = open_dataset(one(tmp_path / "set", "".join(f"0 0.5 0.5 0.2 0.{n} 0.9\n" for n in "456")))["train"]
    assert len(data.labels) == 3
    assert [repair.detail for repair in data.repairs] == ["labels/train/a.txt, line 1: 0 0.5 0.5 0.2 0.4 0.9"]


def test_a_picture_without_a_label_file_is_an_image_without_objects(tmp_path: Path) -> None:
    root = one(tmp_path / "set", "0 0.5 0.5 0.2 0.4\n")
    picture(root / "images" / "train" / "empty.jpg")
    data = open_dataset(root)["train"]
    assert data.files.tolist() == ["images/train/a.png", "images/train/empty.jpg"]
    assert data.first.tolist() == [0, 1, 1]


def test_a_picture_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    root = one(tmp_path / "set", "0 0.5 0.5 0.2 0.4\n")
    write(root / "images" / "train" / "b.jpg", "no picture")
    data = open_dataset(root)["train"]
    assert [(problem.kind, problem.detail[:18]) for problem in data.problems] == [
        ("images that cannot be read", "images/train/b.jpg")
    ]
    assert len(data) == 1


@pytest.mark.parametrize("train", ["../train/images", "train/images"])
def test_the_folders_of_roboflow_are_found(tmp_path: Path, train: str) -> None:
    root = tmp_path / "set"
    for split in ("train", "valid"):
        picture(root / split / "images" / f"{split}.jpg")
        write(root / split / "labels" / f"{split}.txt", "0 0.5 0.5 0.2 0.4\n")
    write(
        root / "data.yaml",
        f"train: {train}\nval: {train.replace('train', 'valid')}\ntest: ../test/images\nnc: 1\nnames: "
        f"['cat']\n",
    )
    data = open_dataset(root)
    assert {split: one.files.tolist() for split, one in data.items()} == {
        "train": ["train/images/train.jpg"],
        "val": ["valid/images/valid.jpg"],
    }
    assert [len(one.labels) for one in data.values()] == [1, 1]


def test_a_text_file_may_list_the_pictures_and_path_may_name_the_folder(tmp_path: Path) -> None:
    root = one(tmp_path / "set", "0 0.5 0.5 0.2 0.4\n")
    write(
        root / "train.txt",
        f"./images/train/a.png\n{root}/images/train/a.png\n\n/etc/passwd\nimages/train/lost.png\n",
    )
    file = write(
        tmp_path / "elsewhere" / "my.yaml", "path: ../set\ntrain: train.txt\nnames: {0: cat, 1: dog}\n"
    )
    data = open_dataset(file)["train"]
    assert data.files.tolist() == ["images/train/a.png"]
    assert [(problem.kind, problem.detail) for problem in data.problems] == [
        ("file names that leave the data folder", "line 4: /etc/passwd"),
        ("images that are missing", "images/train/lost.png"),
    ]


@pytest.mark.parametrize("classes", [None, "cat\ndog\nfish\n"])
def test_without_a_yaml_the_folders_are_enough(tmp_path: Path, classes: str | None) -> None:
    root = one(tmp_path / "set", "2 0.5 0.5 0.2 0.4\n")
    (root / "data.yaml").unlink()
    if classes:
        write(root / "classes.txt", classes)
    data = open_dataset(root)["train"]
    assert data.names == (("cat", "dog", "fish") if classes else ("0", "1", "2"))
    assert data.labels.tolist() == [2]


def test_class_names_that_yaml_would_take_for_something_else_stay_words(tmp_path: Path) -> None:
    assert read_yaml(one(tmp_path / "set", "", "[no, on, 1e3, 07]") / "data.yaml").names == (
        "no",
        "on",
        "1e3",
        "07",
    )


@pytest.mark.parametrize(
    "text, words",
    [
        ("train: [", "not valid YAML"),
        ("train: images", "no entry 'names'"),
        ("names: [a, a]", "a class twice: a"),
        ("names: {1: a, 2: b}", r"must be 0\.\.1"),
        ("names: [a]\nnc: 2", "'nc' is 2, but there are 1"),
        ("names: cat", "must be a list"),
        ("names: [a]\ntrain: nowhere", "are not there"),
        ("names: [a]\ntrain: .\nval: nowhere", "val are not there: .*take the entry out of the file"),
        ("names: [a]", "names no split"),
        ('names: ["\\UFFFFFFFF"]', "not valid YAML"),
        ('names: ["\\ud800"]', "must be a list of class names"),
        ("names: {0: cat, 0: dog, 1: fish}", "the key '0' stands there twice"),
        ("names: [a]\nnames: [b]", "the key 'names' stands there twice"),
        ("names: [a]\npath: [x]", "'path' must be a path"),
        ("names: [a]\ntrain: [images, [images]]", "'train' must be a path, or a list of paths"),
        ("names: [a]\ntrain: /", "above the data folder"),
        ("names: [a]\ntrain: ../..", "above the data folder"),
        ("names: [a]\npath: /\ntrain: .", "above the data folder"),
        (f"names: [a]\ntrain: {'x' * 5000}", "are not there"),
    ],
)
def test_a_data_yaml_that_does_not_fit_is_an_error_that_says_why(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        open_dataset(write(tmp_path / "data.yaml", text))


def test_a_tag_that_asks_for_code_is_no_more_than_its_words(tmp_path: Path) -> None:
    file = write(tmp_path / "data.yaml", f"names: !!python/object/apply:os.mkdir [{tmp_path}/made]")
    assert read_yaml(file).names == (f"{tmp_path}/made",)
    assert not (tmp_path / "made").exists()


def test_the_last_folder_called_images_becomes_labels() -> None:
    assert label_file("images/x/images/train/a.b.jpg") == "images/x/labels/train/a.b.txt"
    assert label_file("train/a.jpg") == "train/a.txt"


@pytest.mark.parametrize("key", ["names", "nc", "path", "train"])
def test_aliases_that_stand_for_gigabytes_are_never_put_into_words(tmp_path: Path, key: str) -> None:
    bomb = "a: &a [x]\n" + "".join(
        f"{two}: &{two} [{', '.join([f'*{one}'] * 9)}]\n" for one, two in pairwise("abcdefghij")
    )
    start = "" if key == "names" else "names: [a]\n"
    with pytest.raises(DataError) as raised:
        read_yaml(write(tmp_path / "data.yaml", f"{start}{bomb}{key}: *j"))
    assert len(str(raised.value)) < 1000


def test_byte_order_marks_are_no_part_of_the_words(tmp_path: Path) -> None:
    root = one(tmp_path / "set", "\ufeff1 0.5 0.5 0.2 0.4\n")
    (root / "data.yaml").unlink()
    assert open_dataset(root)["train"].names == ("0", "1")
    write(root / "classes.txt", "\ufeffcat\ndog\n")
    data = open_dataset(root)["train"]
    assert (data.names, data.labels.tolist(), data.problems) == (("cat", "dog"), [1], ())


def test_a_label_file_that_is_a_dead_link_or_a_folder_is_told(tmp_path: Path) -> None:
    root = one(tmp_path / "set", "0 0.5 0.5 0.2 0.4\n")
    for name in ("b", "c"):
        picture(root / "images" / "train" / f"{name}.png")
    (root / "labels" / "train" / "b.txt").symlink_to("nowhere")
    (root / "labels" / "train" / "c.txt").mkdir()
    problems = open_dataset(root)["train"].problems
    assert [problem.kind for problem in problems] == ["label files that cannot be read"] * 2
    (root / "data.yaml").unlink()
    assert open_dataset(root)["train"].names == ("0",)


def test_a_listed_name_too_long_for_the_disk_is_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    root = one(tmp_path / "set", "0 0.5 0.5 0.2 0.4\n")
    write(root / "train.txt", f"images/train/a.png\n{'x' * 300}.png\n")
    write(root / "data.yaml", "train: train.txt\nnames: [cat]\n")
    (problem,) = open_dataset(root)["train"].problems
    assert problem.kind == "images that cannot be read"


def test_a_file_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    root = one(tmp_path / "set", "0 0.5 0.5 0.2 0.4\n")
    try:
        picture(root / "images" / "train" / "\udcff.png")
    except (OSError, UnicodeError):
        pytest.skip("this disk has no such names")
    (problem,) = open_dataset(root)["train"].problems
    assert (problem.kind, problem.detail) == ("file names that are no text", r"'images/train/\udcff.png'")
