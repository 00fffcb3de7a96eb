"""Which label file of a YOLO set belongs to which image: what is left over on either side is told."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from test_yolo_layouts import LINE, NAMES, found, make, pairs

from retinanet.data.formats.detect import open_dataset
from retinanet.data.validate import validate

YAML = {"data.yaml": "train: images/train\nval: images/val\nnames: [cat, dog]\n"}
NFC, NFD = (unicodedata.normalize(form, "Größe_사진") for form in ("NFC", "NFD"))


def a_set(root: Path, *stems: str) -> Path:
    """images/ and labels/ with train and val, and a data.yaml."""
    files = pairs("images/train", "labels/train", *stems) | pairs("images/val", "labels/val", "v")
    return make(root, files | YAML)


def moved(root: Path, old: str, new: str) -> None:
    (root / new).parent.mkdir(parents=True, exist_ok=True)
    (root / old).rename(root / new)


@pytest.mark.parametrize(
    "label, owner",
    [
        ("labels/train/a.jpg.txt", "images/train/a.jpg"),
        ("labels/train/img_a.txt", "images/train/a.jpg"),
        ("labels/train/a_1.txt", "images/train/a.jpg"),
        ("labels/a.txt", "images/train/a.jpg"),
        ("labels/val/a.txt", "images/train/a.jpg"),
        ("labels/other/a.txt", "images/train/a.jpg"),
        ("images/train/a.txt", "images/train/a.jpg"),
        ("images/a.txt", "images/train/a.jpg"),
        ("labels/train/zzz.txt", ""),
    ],
)
def test_a_label_file_without_an_image_is_a_problem_that_names_its_image(
    tmp_path: Path, label: str, owner: str
) -> None:
    moved(a_set(tmp_path, "a", "b", "c"), "labels/train/a.txt", label)
    data = open_dataset(tmp_path)["train"]
    (problem,) = data.problems
    assert problem.kind == "label files without an image"
    known = (
        f"it probably belongs to {owner}: call it labels/train/a.txt" if owner else "no image has its name"
    )
    assert (problem.detail, problem.image) == (f"{label}: {known}", owner)
    assert len(data.labels) == 2
    kept, _ = validate(data, "drop")  # and no negative
    assert ("images/train/a.jpg" in kept.files.tolist()) == (not owner)


@pytest.mark.parametrize(
    "old, new",
    [
        ("labels/train/a.txt", "labels/train/a.TXT"),
        ("labels/train/a.txt", "labels/train/A.txt"),
        ("labels/train", "labels/Train"),
        ("labels", "Labels"),
    ],
)
def test_a_label_file_under_another_form_of_its_name_is_read_and_told(
    tmp_path: Path, old: str, new: str
) -> None:
    moved(a_set(tmp_path, "a"), old, new)
    data = open_dataset(tmp_path)
    assert found(data) == {"train": ["images/train/a.jpg"], "val": ["images/val/v.jpg"]}
    kinds = [repair.kind for repair in data["train"].repairs]
    assert kinds == ["label files found under another form of their name"]


@pytest.mark.parametrize("image, label", [(NFC, NFD), (NFD, NFC)])
def test_names_decomposed_by_a_mac_keep_their_labels(tmp_path: Path, image: str, label: str) -> None:
    data = open_dataset(make(tmp_path, {f"images/{image}.jpg": "", f"labels/{label}.txt": LINE}))
    assert found(data) == {"all": [f"images/{image}.jpg"]}
    assert len(data["all"].repairs) == 1


@pytest.mark.parametrize(
    "first, second, label", [("Ab", "ab", "ab"), ("aB", "Ab", "AB"), (NFC, NFD, NFC), (NFD, NFC, NFC)]
)
def test_two_images_that_differ_only_in_form_cannot_share_a_label_file(
    tmp_path: Path, first: str, second: str, label: str
) -> None:
    files = {f"images/{first}.jpg": "", f"images/{second}.jpg": "", f"labels/{label}.txt": LINE}
    data = open_dataset(make(tmp_path, files | pairs("images", "labels", "x", "y", "z")))["all"]
    wrong = {problem.image for problem in data.problems if "differ only in form" in problem.kind}
    assert wrong == {f"images/{one}.jpg" for one in (first, second) if one != label}


def test_two_suffixes_of_one_name_share_the_label_file_but_for_case(tmp_path: Path) -> None:
    files = {**pairs("images", "labels", "a", "b"), "images/a.png": "", "images/b.JPG": ""}
    data = open_dataset(make(tmp_path, files))["all"]
    assert [problem.image for problem in data.problems] == ["images/b.jpg"]
    assert data.notes[0] == "1 image read with the label file of another, as images/a.png"


@pytest.mark.parametrize("lacking, told", [(1, "note"), (2, "note"), (3, "problem"), (4, "none")])
def test_an_image_without_a_label_file_has_no_objects_if_that_is_the_exception(
    tmp_path: Path, lacking: int, told: str
) -> None:
    root, stems = a_set(tmp_path, *"abcd"), "abcd"[:lacking]
    for stem in stems:
        (root / "labels" / "train" / f"{stem}.txt").unlink()
    data = open_dataset(root)["train"]
    images = [f"images/train/{stem}.jpg" for stem in stems] if told == "problem" else []
    assert [problem.image for problem in data.problems] == images
    have = "has" if lacking == 1 else "have"
    assert data.notes == {
        "note": (f"{lacking} of 4 images of train {have} no label file: no objects there",),
        "problem": (),
        "none": ("no image of train has a label file: it is not labelled",),
    }.get(told)
    assert len(data) == 4


def test_an_empty_label_file_says_that_nothing_is_there(tmp_path: Path) -> None:
    root = a_set(tmp_path, *"abcd")
    for stem in "abc":
        (root / "labels" / "train" / f"{stem}.txt").write_text("")
    data = open_dataset(root)["train"]
    assert (data.problems, data.notes, len(data)) == ((), (), 4)


@pytest.mark.parametrize(
    "name",
    [
        "README.txt",
        "labels/README.txt",
        "labels/classes.txt",
        "labels/all.txt",
        "train.txt",
        "x.txt",
        "labels/train/labels.txt",
    ],
)
def test_lists_names_and_prose_are_no_label_files(tmp_path: Path, name: str) -> None:
    text = {
        "classes.txt": NAMES,
        "labels.txt": NAMES,
        "all.txt": "images/a.jpg\n",
        "train.txt": "images/a.jpg\n",
    }
    root = make(tmp_path, pairs("images/train", "labels/train") | {"classes.txt": NAMES})
    make(root, {name: text.get(Path(name).name, "three words each\n")})
    assert found(open_dataset(root)) == {"train": ["images/train/a.jpg", "images/train/b.jpg"]}


@pytest.mark.parametrize("content", ["", "\0" * 20, "1 0.5\n", "\n\n1 0.5 0.5 0.2 0.4\n"])
def test_a_broken_or_empty_label_file_beside_its_image_is_told_too(tmp_path: Path, content: str) -> None:
    files = {**pairs("train", "train", "x", "y"), "train/a.jpg": "", "train/img_a.txt": content}
    data = open_dataset(make(tmp_path, files | {"classes.txt": NAMES}))["train"]
    assert [problem.image for problem in data.problems] == ["train/a.jpg"]


@pytest.mark.parametrize("content, problems", [(LINE, 0), ("0 0.1 0.1 0.1 0.1\n", 1)])
def test_a_copy_of_a_label_file_beside_the_image_is_none_unless_it_differs(
    tmp_path: Path, content: str, problems: int
) -> None:
    data = open_dataset(make(a_set(tmp_path), {"images/train/a.txt": content}))["train"]
    assert [problem.detail for problem in data.problems] == [
        "images/train/a.txt: images/train/a.jpg has another label file, labels/train/a.txt"
    ] * problems
    assert data.labels.tolist() == [1, 1]


def test_labels_of_images_that_no_split_names_are_no_orphans(tmp_path: Path) -> None:
    data = open_dataset(make(a_set(tmp_path), pairs("images/extra", "labels/extra", "x", "y", "z")))["train"]
    assert data.problems == ()
    assert data.notes == ("3 images in no split, left out, as images/extra/x.jpg",)


@pytest.mark.parametrize("folder", ["pics", "train", "photos/2024"])
def test_labels_of_a_folder_that_is_not_called_images_are_told(tmp_path: Path, folder: str) -> None:
    files = {**pairs(folder, "labels"), "data.yaml": f"train: {folder}\nnames: [cat, dog]\n"}
    data = open_dataset(make(tmp_path, files))["train"]
    assert [problem.image for problem in data.problems] == [f"{folder}/a.jpg", f"{folder}/b.jpg"]


def test_hidden_and_system_folders_are_skipped(tmp_path: Path) -> None:
    root = a_set(tmp_path)
    for folder in (".ipynb_checkpoints", "@eaDir/a.jpg", ".trash", "__MACOSX"):
        make(root / "images" / "train" / folder, {"a.jpg": ""})
    make(root, {"images/train/._a.jpg": "", "labels/train/._a.txt": "\0\5\x16\7", "._data.yaml": "names"})
    assert found(open_dataset(root))["train"] == ["images/train/a.jpg", "images/train/b.jpg"]


@pytest.mark.parametrize("what", ["images", "images/train", "labels/train"])
def test_links_to_folders_are_followed_once(tmp_path: Path, what: str) -> None:
    root = a_set(tmp_path / "set")
    moved(tmp_path, f"set/{what}", f"elsewhere/{what}")
    (root / what).symlink_to(tmp_path / "elsewhere" / what, target_is_directory=True)
    (root / "images" / "train" / "loop").symlink_to(root / "images" / "train", target_is_directory=True)
    assert found(open_dataset(root)) == {
        "train": ["images/train/a.jpg", "images/train/b.jpg"],
        "val": ["images/val/v.jpg"],
    }


def test_the_folder_images_may_be_the_data_folder(tmp_path: Path) -> None:
    root = a_set(tmp_path)
    (root / "data.yaml").write_text("path: images\ntrain: train\nval: val\nnames: [cat, dog]\n")
    assert found(open_dataset(root)) == {
        "train": ["images/train/a.jpg", "images/train/b.jpg"],
        "val": ["images/val/v.jpg"],
    }


def test_names_that_are_no_text_are_told_on_both_sides(tmp_path: Path) -> None:
    root = a_set(tmp_path)
    try:
        os.rename(root / "labels" / "train" / "a.txt", root / "labels" / "train" / "\udcff.txt")
        os.rename(root / "images" / "train" / "a.jpg", root / "images" / "train" / "\udcff.jpg")
    except (OSError, UnicodeError):
        pytest.skip("this disk has no such names")
    problems = open_dataset(root)["train"].problems
    assert {problem.detail for problem in problems} == {
        r"'images/train/\udcff.jpg'",
        r"'labels/train/\udcff.txt'",
    }
