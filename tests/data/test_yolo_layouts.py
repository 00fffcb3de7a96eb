"""YOLO sets as tools leave them: where the images, the label files and the names of the classes are."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from retinanet.data.dataset import Dataset
from retinanet.data.formats.detect import open_dataset
from retinanet.errors import DataError

LINE = "1 0.5 0.5 0.2 0.4\n"
NAMES = "cat\ndog\n"


def make(root: Path, files: dict[str, str | bytes]) -> Path:
    """A folder with these files: images where the suffix says so, else texts."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".jpg", ".png"):
            Image.new("RGB", (100, 50)).save(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def pairs(images: str, labels: str, *stems: str) -> dict[str, str | bytes]:
    """Images and label files of these names in two folders."""
    stems = stems or ("a", "b")
    return {f"{images}/{one}.jpg": "" for one in stems} | {f"{labels}/{one}.txt": LINE for one in stems}


def found(data: dict[str, Dataset]) -> dict[str, list[str]]:
    """The images of each split, of which each has its object; nothing is wrong with them."""
    assert [one.problems for one in data.values()] == [()] * len(data)
    assert all(one.first.tolist() == list(range(len(one) + 1)) for one in data.values())
    return {split: one.files.tolist() for split, one in data.items()}


def kinds(data: dict[str, Dataset]) -> set[str]:
    return {repair.kind for one in data.values() for repair in one.repairs}


@pytest.mark.parametrize(
    "files, splits",
    [
        # Label Studio
        (
            {
                **pairs("images", "labels"),
                "classes.txt": NAMES,
                "notes.json": '{"categories": [], "info": 1}',
            },
            {"all": ["images/a.jpg", "images/b.jpg"]},
        ),
        # Darknet, labelImg: the label files beside the images
        ({**pairs(".", "."), "classes.txt": NAMES}, {"all": ["a.jpg", "b.jpg"]}),
        ({**pairs("images", "images"), "classes.txt": NAMES}, {"all": ["images/a.jpg", "images/b.jpg"]}),
        (
            {**pairs("images/train", "images/train"), "images/classes.txt": NAMES},
            {"train": ["images/train/a.jpg", "images/train/b.jpg"]},
        ),
        # Roboflow's Darknet
        (
            {
                **pairs("train", "train"),
                **pairs("valid", "valid", "c"),
                "train/_darknet.labels": NAMES,
                "valid/_darknet.labels": NAMES,
                "README.roboflow.txt": "cells - v1\nhttps://example.org\n",
            },
            {"train": ["train/a.jpg", "train/b.jpg"], "val": ["valid/c.jpg"]},
        ),
        # labelImg: the names in the folders of the labels, with the classes met so far
        (
            {
                **pairs("images/train", "labels/train"),
                **pairs("images/val", "labels/val", "c"),
                "labels/train/classes.txt": NAMES,
                "labels/val/classes.txt": "cat\n",
            },
            {"train": ["images/train/a.jpg", "images/train/b.jpg"], "val": ["images/val/c.jpg"]},
        ),
        # CVAT without its obj.data, and lists without a description
        (
            {
                **pairs("obj_train_data", "obj_train_data"),
                "obj.names": NAMES,
                "train.txt": "data/obj_train_data/a.jpg\n",
            },
            {"train": ["obj_train_data/a.jpg", "obj_train_data/b.jpg"]},
        ),
        (
            {
                **pairs("images", "labels"),
                "names.txt": NAMES,
                "train.txt": "images/a.jpg\n",
                "val.txt": "images/b.jpg\n",
            },
            {"train": ["images/a.jpg"], "val": ["images/b.jpg"]},
        ),
        # Darknet's VOC
        (
            {**pairs("JPEGImages", "labels"), "voc.names": NAMES},
            {"all": ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]},
        ),
    ],
)
def test_what_tools_export_is_read_with_its_names(tmp_path: Path, files, splits) -> None:
    data = open_dataset(make(tmp_path, files))
    assert found(data) == splits
    assert {one.names for one in data.values()} == {("cat", "dog")}


@pytest.mark.parametrize("images, labels", [("Images", "Labels"), ("IMAGES", "labels"), ("images", "Labels")])
@pytest.mark.parametrize("order", ["{kind}/{split}", "{split}/{kind}"])
def test_the_folders_may_be_written_in_any_case(tmp_path: Path, order: str, images: str, labels: str) -> None:
    files = {"classes.txt": NAMES}
    for split, stem in (("train", "a"), ("valid", "b")):
        files |= pairs(order.format(kind=images, split=split), order.format(kind=labels, split=split), stem)
    assert {split: len(names) for split, names in found(open_dataset(make(tmp_path, files))).items()} == {
        "train": 1,
        "val": 1,
    }


DATA = "classes = 2\ntrain = {0}train.txt\nvalid = {0}valid.txt\nnames = {0}obj.names\nbackup = backup/\n"


@pytest.mark.parametrize(
    "inside, start", [("", "data/"), ("", ""), ("data/", "data/"), ("cfg/", "build/x64/")]
)
def test_darknets_file_of_paths_is_read_wherever_they_start(tmp_path: Path, inside: str, start: str) -> None:
    files = pairs(f"{inside}obj", f"{inside}obj") | pairs(f"{inside}obj", f"{inside}obj", "c")
    files |= {f"{inside}obj.data": DATA.format(start), f"{inside}obj.names": NAMES}
    files |= {f"{inside}train.txt": f"{start}obj/a.jpg\r\n{start}obj/b.jpg\r\n"}
    files |= {f"{inside}valid.txt": f"{start}obj/c.jpg\r\n", "backup/notes": ""}
    data = open_dataset(make(tmp_path, files))
    assert found(data) == {"train": ["obj/a.jpg", "obj/b.jpg"], "val": ["obj/c.jpg"]}
    assert data["val"].names == ("cat", "dog")
    assert found(open_dataset(tmp_path / inside / "obj.data")) == found(data)


@pytest.mark.parametrize(
    "text, words",
    [
        ("classes = 3\ntrain = train.txt\nnames = obj.names", "'classes' is 3, but there are 2"),
        ("backup = x", "describes no YOLO set"),
        ("train = lost/lost.txt\nnames = obj.names", "the images of train are not there"),
    ],
)
def test_a_file_of_paths_that_does_not_fit_is_refused(tmp_path: Path, text: str, words: str) -> None:
    make(tmp_path, {"obj.data": text, "obj.names": NAMES, "train.txt": "a/a.jpg"})
    with pytest.raises(DataError, match=words):
        open_dataset(tmp_path / "obj.data")


@pytest.mark.parametrize(
    "path, train, val",
    [
        ("", "/content/data/train/images", "/content/data/valid/images"),
        ("", "C:\\Users\\x\\train\\images", "C:\\Users\\x\\valid\\images"),
        ("/content/drive/My Drive/x", "train/images", "valid/images"),
        ("../datasets/cells", "./train/images/", "Valid/Images"),
    ],
)
def test_folders_of_another_machine_are_those_beside_the_file(
    tmp_path: Path, path: str, train: str, val: str
) -> None:
    files = {**pairs("train/images", "train/labels"), **pairs("valid/images", "valid/labels", "c")}
    text = f"path: '{path}'\ntrain: '{train}'\nval: '{val}'\nnames: [cat, dog]\n"
    data = open_dataset(make(tmp_path, files | {"data.yaml": text}))
    assert found(data) == {
        "train": ["train/images/a.jpg", "train/images/b.jpg"],
        "val": ["valid/images/c.jpg"],
    }
    assert kinds(data) == {"paths of another machine, of which the end is found here"}


def test_a_path_of_another_machine_may_end_in_a_folder_beside_the_file(tmp_path: Path) -> None:
    text = "path: ../datasets/cells\ntrain: images/train\nnames: [cat, dog]\n"
    files = {
        **pairs("images/train", "labels/train", "x"),
        **pairs("cells/images/train", "cells/labels/train"),
    }
    data = open_dataset(make(tmp_path, files | {"cells.yaml": text}))
    assert found(data) == {"train": ["cells/images/train/a.jpg", "cells/images/train/b.jpg"]}


@pytest.mark.parametrize(
    "text",
    [
        "nc: 2",
        "train: /content/t\nval: /content/v",
        "train: /x/train/images\nval: /x/valid/images",
        "test: t",
    ],
)
def test_of_a_description_without_a_split_that_is_here_the_folders_beside_it_are_read(
    tmp_path: Path, text: str
) -> None:
    files = {**pairs("images", "labels"), "data.yaml": f"{text}\nnames: [cat, dog]\n"}
    data = open_dataset(make(tmp_path, files))
    assert found(data) == {"all": ["images/a.jpg", "images/b.jpg"]}
    assert data["all"].names == ("cat", "dog")
    assert kinds(data) == {"descriptions that name no split that is here; the folders beside them are read"}


@pytest.mark.parametrize("split", ["/content/x/images", "../valid/images", "D:\\x\\labels\\..\\images"])
def test_the_end_of_a_path_is_no_folder_that_holds_another_split(tmp_path: Path, split: str) -> None:
    text = "train: images/train\nnames: [cat, dog]\n"
    make(tmp_path, {**pairs("images/train", "labels/train"), "data.yaml": f"{text}test: {split}\n"})
    data = open_dataset(tmp_path)
    assert found(data) == {"train": ["images/train/a.jpg", "images/train/b.jpg"]}
    assert data["train"].notes[0].startswith("data.yaml names a test split that is not there")
    make(tmp_path, {"data.yaml": f"{text}val: {split}\n"})
    with pytest.raises(DataError, match="the images of val are not there"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "name, text",
    [
        ("docker-compose.yaml", "services:\n  lab:\n    names: [a]\n    train: x\n"),
        ("mkdocs.yml", "site_name: x\nnav:\n- names: x\n"),
        ("dataset.yaml", "license: CC\n"),
        ("models.yaml", "names: [a, b]\n"),
        ("._data.yaml", "\0names: x"),
    ],
)
def test_another_yaml_file_is_no_description(tmp_path: Path, name: str, text: str) -> None:
    data = open_dataset(make(tmp_path, {**pairs("images", "labels"), "classes.txt": NAMES, name: text}))
    assert found(data) == {"all": ["images/a.jpg", "images/b.jpg"]}


@pytest.mark.parametrize("inside", ["", "data.yaml"])
@pytest.mark.parametrize("described", [True, False])
def test_a_folder_of_images_beside_a_yolo_set_is_refused(
    tmp_path: Path, described: bool, inside: str
) -> None:
    make(tmp_path, pairs("images", "labels"))
    if described:
        make(tmp_path, {"data.yaml": "train: images\nnames: [cat, dog]\n"})
    with pytest.raises(
        DataError, match="says itself where its images are" if described or not inside else "no"
    ):
        open_dataset(tmp_path / inside, images=tmp_path / "images")


def test_captions_beside_images_are_no_label_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set was recognised"):
        open_dataset(make(tmp_path, {"a.jpg": "", "a.txt": "a photo of a cat, 4 years old\n"}))


# lists of images

GREEK = unicodedata.normalize("NFC", "Größe")


@pytest.mark.parametrize(
    "line, image",
    [
        ("images/train/a.jpg", "a.jpg"),
        ("/content/cells/images/train/a.jpg", "a.jpg"),
        ("C:\\x\\images\\train\\a.jpg", "a.jpg"),
        ("images\\train\\a.jpg", "a.jpg"),
        ("IMAGES/Train/A.JPG", "a.jpg"),
        ("images/train/my%20cat.jpg", "my cat.jpg"),
        (f"images/train/{unicodedata.normalize('NFD', GREEK)}.jpg", f"{GREEK}.jpg"),
    ],
)
def test_a_line_of_a_list_is_the_file_that_it_means(tmp_path: Path, line: str, image: str) -> None:
    files = pairs("images/train", "labels/train", "a", "my cat", GREEK)
    files |= {"train.txt": f"\ufeff# the list\r\n\r\n{line}\r\n"}
    data = open_dataset(make(tmp_path, files | {"data.yaml": "train: train.txt\nnames: [cat, dog]\n"}))
    assert found(data) == {"train": [f"images/train/{image}"]}
    assert len(data["train"].repairs) == (line not in ("images/train/a.jpg", "images\\train\\a.jpg"))
    (note,) = data["train"].notes
    assert note.startswith("2 images in no split, left out, as images/train/")


@pytest.mark.parametrize(
    "encoding, stem", [("cp1252", "Größe"), ("gbk", "图片一"), ("cp1251", "Снимок"), ("utf-16", "사진")]
)
def test_a_list_is_read_in_the_encoding_in_which_it_names_files(
    tmp_path: Path, encoding: str, stem: str
) -> None:
    text = f"images/{stem}.jpg\nimages/b.jpg\n".encode(encoding)
    files = {**pairs("images", "labels", stem, "b"), "train.txt": text}
    data = open_dataset(make(tmp_path, files | {"data.yaml": "train: train.txt\nnames: [cat, dog]\n"}))
    assert found(data) == {"train": sorted([f"images/{stem}.jpg", "images/b.jpg"])}
    assert [repair.detail for repair in data["train"].repairs] == [f"read as {encoding}"]


def test_a_list_in_no_encoding_that_names_files_is_refused(tmp_path: Path) -> None:
    files = {**pairs("images", "labels"), "train.txt": b"images/\xfc.jpg\n"}
    with pytest.raises(DataError, match=r"train\.txt: cannot be read.*save it as UTF-8"):
        open_dataset(make(tmp_path, files | {"data.yaml": "train: train.txt\nnames: [cat, dog]\n"}))


@pytest.mark.parametrize("again", ["images/a.jpg", "./images/a.jpg", "IMAGES/a.jpg"])
def test_an_image_that_a_list_names_again_is_read_once_and_told(tmp_path: Path, again: str) -> None:
    files = {**pairs("images", "labels"), "train.txt": f"images/a.jpg\nimages/b.jpg\n{again}\n"}
    data = open_dataset(make(tmp_path, files | {"data.yaml": "train: train.txt\nnames: [cat, dog]\n"}))
    assert found(data) == {"train": ["images/a.jpg", "images/b.jpg"]}
    (repair,) = data["train"].repairs
    assert (repair.kind, repair.detail) == ("images listed again, read once", f"line 3: {again}, as line 1")


def test_a_line_that_several_files_fit_is_told(tmp_path: Path) -> None:
    files = {**pairs("images", "labels", "Ab", "aB", "c"), "train.txt": "images/ab.jpg\nimages/c.jpg\n"}
    data = open_dataset(make(tmp_path, files | {"data.yaml": "train: train.txt\nnames: [cat, dog]\n"}))[
        "train"
    ]
    (problem,) = data.problems
    assert problem.kind == "names in lists that several files have in another form"
    assert problem.detail == "line 1: images/ab.jpg: images/Ab.jpg, images/aB.jpg"


# names of the classes


@pytest.mark.parametrize("other", ["dog\ncat\n", "cat\nfish\nox\n"])
def test_lists_of_names_that_contradict_each_other_are_refused(tmp_path: Path, other: str) -> None:
    files = {**pairs("images", "labels"), "classes.txt": NAMES, "labels/classes.txt": other}
    with pytest.raises(DataError, match=r"contradict each other: classes\.txt, labels/classes\.txt"):
        open_dataset(make(tmp_path, files))


@pytest.mark.parametrize(
    "label, names, note",
    [
        ("2", 3, "nothing names the classes: they are called 0..2; the label files use only 1, 2 of them"),
        ("0", 2, "nothing names the classes: they are called 0..1; give classes.txt"),
    ],
)
def test_classes_without_names_are_called_by_their_numbers_and_it_is_told(
    tmp_path: Path, label: str, names: int, note: str
) -> None:
    files = {**pairs("images", "labels"), "labels/b.txt": f"{label} .5 .5 .1 .1"}
    data = open_dataset(make(tmp_path, files))["all"]
    assert data.names == tuple(map(str, range(names)))
    assert data.notes[0].startswith(note)


@pytest.mark.parametrize("digits", ["7\n8\n", "0 1\n2 3\n"])
def test_the_lines_of_a_names_file_are_no_objects(tmp_path: Path, digits: str) -> None:
    data = open_dataset(make(tmp_path, {**pairs("images", "labels"), "labels/classes.txt": digits}))["all"]
    assert data.names == tuple(digits.split("\n")[:2])
    assert data.labels.tolist() == [1, 1]


def test_names_may_lie_above_the_folder(tmp_path: Path) -> None:
    make(tmp_path, {**pairs("train", "train"), "classes.txt": NAMES, "other/x": ""})
    data = open_dataset(tmp_path / "train")["all"]
    assert data.names == ("cat", "dog")
    assert data.notes == (f"the names of the classes are those of a file in {tmp_path}",)


def test_labelimgs_proposals_are_used_last_and_told(tmp_path: Path) -> None:
    make(tmp_path, {**pairs("images", "labels"), "predefined_classes.txt": "ox\nfish\nhen\n"})
    data = open_dataset(tmp_path)["all"]
    assert data.names == ("ox", "fish", "hen")
    assert "labelImg's proposals" in data.notes[0]
    make(tmp_path, {"classes.txt": NAMES})
    assert open_dataset(tmp_path)["all"].names == ("cat", "dog")


def test_a_label_file_called_as_a_list_of_names_is_a_label_file(tmp_path: Path) -> None:
    data = open_dataset(make(tmp_path, pairs("images", "labels", "labels", "classes")))
    assert found(data) == {"all": ["images/classes.jpg", "images/labels.jpg"]}


def test_a_list_of_names_that_contradicts_the_description_is_told(tmp_path: Path) -> None:
    files = {**pairs("images", "labels"), "data.yaml": "train: images\nnames: [cat, dog]\n"}
    assert open_dataset(make(tmp_path, files | {"classes.txt": NAMES}))["train"].notes == ()
    (note,) = open_dataset(make(tmp_path, {"classes.txt": "dog\ncat\n"}))["train"].notes
    assert note.startswith("a list of class names at the top says otherwise")


@pytest.mark.parametrize("names", ["classes.txt", "obj.names", "_darknet.labels"])
def test_a_description_without_names_takes_those_of_a_list_beside_it(tmp_path: Path, names: str) -> None:
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    Image.new("RGB", (10, 10)).save(tmp_path / "images" / "a.png")
    (tmp_path / "labels" / "a.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("train: images\nnc: 2\n")
    (tmp_path / names).write_text("cat\ndog\n")
    data = open_dataset(tmp_path)["train"]
    assert data.names == ("cat", "dog") and data.labels.tolist() == [1]
    (repair,) = data.repairs
    assert repair.kind.startswith("descriptions without class names")
    (tmp_path / names).write_text("cat\n")
    with pytest.raises(DataError, match="'nc' is 2, but there are 1 names"):
        open_dataset(tmp_path)


def test_a_comment_in_a_list_of_names_is_no_class(tmp_path: Path) -> None:
    files = {"images/a.png": "", "labels/a.txt": LINE, "classes.txt": f"# of May\n{NAMES}#3\n"}
    data = open_dataset(make(tmp_path, files))["all"]
    assert data.names == ("cat", "dog", "#3")


@pytest.mark.parametrize("name", ["labels/a.txt", "classes.txt"])
def test_a_text_file_in_another_encoding_is_to_be_saved_as_utf_8(tmp_path: Path, name: str) -> None:
    make(tmp_path, {"images/a.png": "", "labels/a.txt": LINE, "classes.txt": NAMES})
    (tmp_path / name).write_bytes("0.5 Käfer\n".encode("cp1252"))
    try:
        words = " ".join(problem.detail for problem in open_dataset(tmp_path)["all"].problems)
    except DataError as error:
        words = str(error)
    assert name in words and words.endswith("; save it as UTF-8")
