"""Folders as users leave them: hidden files, links, names in other forms, labels that lost their image."""

import os
import unicodedata

import pytest

from retinanet.data.folder import Folder, is_hidden, pair
from retinanet.errors import DataError

NFC, NFD = (unicodedata.normalize(form, "Größe") for form in ("NFC", "NFD"))


def filled(top, *names):
    """Empty files with these names."""
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()
    return Folder(top)


@pytest.mark.parametrize(
    "name", [".ipynb_checkpoints", "._a.jpg", "__MACOSX", "@eaDir", ".trash", "Thumbs.db", "#recycle", ".git"]
)
def test_what_a_system_puts_beside_the_files_is_hidden(name):
    assert is_hidden(name)


@pytest.mark.parametrize("name", ["a.jpg", "_a.jpg", "MACOSX", "eaDir", "trash", "a..jpg", "#1.jpg"])
def test_other_names_are_not(name):
    assert not is_hidden(name)


def test_hidden_files_are_left_out_and_counted(tmp_path):
    hidden = ["._a.jpg", ".ipynb_checkpoints/e", "@eaDir/a.jpg/x.jpg", "b/.trash/d.jpg"]
    folder = filled(tmp_path, "a.jpg", "b/c.txt", *hidden)
    assert list(folder.walk()) == ["a.jpg", "b/c.txt"]
    assert sorted(folder.hidden()) == hidden


def test_links_to_folders_are_followed_once_and_in_no_circle(tmp_path):
    folder = filled(tmp_path / "set", "b/a.jpg")
    filled(tmp_path / "far", "x.jpg", "y/z.jpg")
    (tmp_path / "set" / "c").symlink_to(tmp_path / "far")
    (tmp_path / "set" / "d").symlink_to(tmp_path / "far")
    (tmp_path / "set" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "b" / "self").symlink_to(tmp_path / "set" / "b" / "self")
    assert list(folder.walk()) == ["b/self", "b/a.jpg", "c/x.jpg", "c/y/z.jpg"] or list(folder.walk()) == [
        "b/a.jpg",
        "b/self",
        "c/x.jpg",
        "c/y/z.jpg",
    ]


def test_a_link_that_leads_nowhere_is_a_file_so_that_it_is_missed(tmp_path):
    folder = filled(tmp_path, "a.jpg")
    (tmp_path / "b.jpg").symlink_to(tmp_path / "gone.jpg")
    assert list(folder.walk()) == ["a.jpg", "b.jpg"]


def test_a_folder_that_may_not_be_listed_is_an_error_that_names_it(tmp_path, monkeypatch):
    folder = filled(tmp_path, "sub/a.jpg")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="sub: cannot be listed: Permission denied"):
        list(folder.walk())


@pytest.mark.parametrize(
    "name, meant",
    [
        ("images/IMG 1.JPG", ["images/IMG 1.JPG"]),
        ("images/img%201.jpg", ["images/IMG 1.JPG"]),
        ("Images/IMG 1.jpg", ["images/IMG 1.JPG"]),
        (f"images/{NFD}.png", [f"images/{NFC}.png"]),
        (f"images/{NFC.upper()}.PNG", [f"images/{NFC}.png"]),
        ("images/a.png", ["images/a.png"]),
        ("images/b.PNG", ["images/B.png", "images/b.png"]),
        ("images/c.png", []),
        ("images/a.png/x", []),
        ("../images/a.png", []),
        ("images/.x.png", ["images/.x.png"]),
    ],
)
def test_a_name_means_the_file_that_differs_only_in_form(tmp_path, name, meant):
    names = ["IMG 1.JPG", f"{NFC}.png", "a.png", "A.png", "b.png", "B.png", ".x.png"]
    folder = filled(tmp_path, *(f"images/{one}" for one in names))
    assert folder.find(name) == meant


def labels_of(image):
    return f"labels/{os.path.splitext(image)[0]}.txt"


def test_labels_are_paired_by_name_and_else_by_form(tmp_path):
    found = pair(
        ["a.jpg", "b.jpg", f"{NFC}.jpg", "d.jpg"],
        ["labels/a.txt", "Labels/B.TXT", f"labels/{NFD}.txt"],
        labels_of,
    )
    assert found.label_of == {
        "a.jpg": "labels/a.txt",
        "b.jpg": "Labels/B.TXT",
        f"{NFC}.jpg": f"labels/{NFD}.txt",
    }
    assert found.renamed == ["b.jpg", f"{NFC}.jpg"]
    assert (found.alone, found.twins, found.orphans) == (["d.jpg"], [], {})


@pytest.mark.parametrize(
    "label", ["labels/a.jpg.txt", "labels/img_a.txt", "a.txt", "other/train/a.txt", "labels/A_1.txt"]
)
def test_a_label_without_an_image_names_the_image_it_probably_belongs_to(label):
    found = pair(["a.jpg", "zebra.jpg"], ["labels/zebra.txt", label], labels_of)
    assert found.orphans == {label: "a.jpg"}


def test_a_label_that_may_belong_to_two_images_names_none():
    assert pair(["a.jpg", "b.jpg"], ["labels/a_b.txt"], labels_of).orphans == {"labels/a_b.txt": ""}


def test_of_two_images_of_a_name_the_folder_of_the_label_says_which_it_is():
    images = ["train/a.jpg", "val/a.jpg"]
    orphans = {
        "labels/val/img_a.txt": "val/a.jpg",
        "labels/train/a.jpg.txt": "train/a.jpg",
        "labels/a.txt": "",
    }
    assert pair(images, orphans, labels_of).orphans == orphans


@pytest.mark.parametrize("label", ["img_{}", "{}_v2", "labels-{}-new", "frame{}"])
def test_the_longest_number_in_a_name_says_which_image_it_is(label):
    images = [f"{number}.jpg" for number in range(120)]
    labels = {f"labels/{label.format(number)}.txt": f"{number}.jpg" for number in range(120)}
    if "v2" in label:
        images.remove("2.jpg")
        labels.pop("labels/2_v2.txt")
    assert pair(images, labels, labels_of).orphans == labels


@pytest.mark.parametrize("twin", [f"{NFD}.jpg", f"{NFC.upper()}.jpg", f"{NFC.lower()}.jpg"])
def test_two_images_that_differ_only_in_form_share_no_label_in_silence(twin):
    found = pair([f"{NFC}.jpg", twin], [f"labels/{NFC}.txt"], labels_of)
    assert (found.label_of, found.twins) == ({f"{NFC}.jpg": f"labels/{NFC}.txt"}, [twin])
