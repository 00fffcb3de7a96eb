from __future__ import annotations

from pathlib import Path

import pytest

from retinanet.data.formats.detect import open_dataset
from retinanet.data.validate import validate
from retinanet.errors import DataError

BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd"


def thing(name: str = "cat", corners: tuple[object, ...] = (10, 20, 40, 25), difficult: object = 0) -> str:
    box = "".join(
        f"<{key}>{value}</{key}>"
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"


def xml(
    *objects: str, filename: str = "a.jpg", size: str = "<size><width>100</width><height>50</height></size>"
) -> str:
    return f"<annotation><filename>{filename}</filename>{size}{''.join(objects)}</annotation>"


def tree(root: Path, files: dict[str, str], **lists: str) -> Path:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for stem, text in files.items():
        (root / "Annotations" / f"{stem}.xml").write_text(text)
        (root / "JPEGImages" / f"{stem}.jpg").write_bytes(b"")
    for name, stems in lists.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(stems.split()) + "\n")
    return root


def test_corners_are_taken_as_printed_and_difficult_ones_are_crowds(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", {"a": xml(thing(corners=(1, 2.5, 40, 25)), thing(difficult=1))}, train="a")
    data = open_dataset(root)["train"]
    assert data.boxes.tolist() == [[1, 2.5, 40, 25], [10, 20, 40, 25]]
    assert data.crowd.tolist() == [False, True]
    assert data.areas.tolist() == [39 * 22.5, 150]
    assert (data.files.tolist(), data.sizes.tolist()) == (["JPEGImages/a.jpg"], [[50, 100]])


def test_splits_share_classes_and_image_ids_though_each_knows_only_some(tmp_path: Path) -> None:
    files = {"c": xml(thing("zebra")), "a": xml(thing("ant")), "b": xml(thing("cat"), thing("ant"))}
    data = open_dataset(
        tree(tmp_path / "set", files, train="c a", val="b", trainval="a b c", ant_train="a 1")
    )
    assert list(data) == ["train", "val"]
    assert data["train"].names == data["val"].names == ("ant", "cat", "zebra")
    assert data["train"].category_ids == (1, 2, 3)
    assert dict(zip(data["train"].files.tolist(), data["train"].image_ids.tolist(), strict=True)) == {
        "JPEGImages/c.jpg": 3,
        "JPEGImages/a.jpg": 1,
    }
    assert data["val"].image_ids.tolist() == [2]
    assert data["val"].labels.tolist() == [1, 0]


def test_trainval_is_train_where_there_is_no_other(tmp_path: Path) -> None:
    data = open_dataset(tree(tmp_path / "set", {"a": xml(thing()), "b": xml()}, trainval="a", test="b"))
    assert [(split, len(one)) for split, one in data.items()] == [("train", 1), ("test", 1)]


UNREADABLE, TWO = "XML files that cannot be read", "objects with two names or boxes"
NOT_FINITE = "boxes that are not four finite numbers"


@pytest.mark.parametrize(
    "text, kind, words",
    [
        ("<annotation>", UNREADABLE, "no element found"),
        ('<!DOCTYPE x [<!ENTITY e "boom">]><annotation>&e;</annotation>', UNREADABLE, "Entit"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', UNREADABLE, "klingon"),
        ("<html/>", "XML files that are no VOC annotations", "<html>"),
        (xml("<object><name>cat</name></object>", thing()), "objects without bndbox", "object 1 (cat)"),
        (xml(thing(corners=(1, 2, "x", 4)), thing()), NOT_FINITE, "object 1 (cat)"),
        (xml(thing(corners=(1, 2, "nan", 4)), thing()), NOT_FINITE, "object 1 (cat)"),
        (xml(thing(corners=(1, 2, "1_0", 4)), thing()), NOT_FINITE, "object 1 (cat)"),
        (xml(thing().replace("</bndbox>", "</bndbox><bndbox/>"), thing()), TWO, "object 1 (cat)"),
        (xml(thing().replace("<name>", "<name>dog</name><name>"), thing()), TWO, "object 1 (dog)"),
        (xml(thing(name=""), thing()), "objects without a name", "object 1"),
    ],
)
def test_what_cannot_be_a_row_is_told_with_its_file(tmp_path: Path, text: str, kind: str, words: str) -> None:
    data = open_dataset(tree(tmp_path / "set", {"a": xml(thing()), "b": text}, train="a b"))["train"]
    (problem,) = data.problems
    assert problem.kind == kind
    assert "Annotations/b.xml" in problem.detail
    assert words in problem.detail


NO_SIZE = "XML files without a size, which is taken from the image"
IN_ORDER, AS_ZERO = (
    "boxes whose corners were put in order",
    "objects whose difficult is neither 0 nor 1, read as 0",
)
AROUND = "boxes around polygons, since there is no bndbox"
CORNERS = "<polygon><x1>10</x1><y1>25</y1><x2>40</x2><y2>20</y2><x3>30</x3><y3>22</y3></polygon>"
POINTS = "<polygon><username>x</username><pt><x>10</x><y>20</y></pt><pt><x>40</x><y>25</y></pt></polygon>"


@pytest.mark.parametrize(
    "text, kind, detail",
    [
        (xml(thing(), size=""), NO_SIZE, ""),
        (xml(thing(), size="<size><width>0</width><height>0</height></size>"), NO_SIZE, ""),
        (xml(thing(), size="<size><width>100</width><height>-50</height></size>"), NO_SIZE, ""),
        (xml(thing(corners=(40, 25, 10, 20))), IN_ORDER, ": object 1 (cat)"),
        (xml(thing(corners=(40, 20, 10, 25))), IN_ORDER, ": object 1 (cat)"),
        (xml(thing(corners=(10, 25, 40, 20))), IN_ORDER, ": object 1 (cat)"),
        (xml(thing(difficult="")), AS_ZERO, ": object 1 (cat): "),
        (xml(thing(difficult="Unspecified")), AS_ZERO, ": object 1 (cat): unspecified"),
        (xml(thing(difficult=2)), AS_ZERO, ": object 1 (cat): 2"),
        (xml(f"<object><name>cat</name>{CORNERS}</object>"), AROUND, ": object 1 (cat)"),
        (xml(f"<object><name>cat</name>{POINTS}</object>"), AROUND, ": object 1 (cat)"),
    ],
)
def test_what_has_one_meaning_is_read_and_told(tmp_path: Path, text: str, kind: str, detail: str) -> None:
    data = open_dataset(tree(tmp_path / "set", {"b": text}))["all"]
    assert (data.boxes.tolist(), data.crowd.tolist()) == ([[10, 20, 40, 25]], [False])
    assert data.sizes.tolist() == [[0, 0] if kind == NO_SIZE else [50, 100]]
    assert [(one.kind, one.detail) for one in data.repairs] == [(kind, f"Annotations/b.xml{detail}")]
    assert data.problems == ()


PART = (
    "<part><name>ear</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
)


@pytest.mark.parametrize(
    "text",
    [
        xml(thing().replace("<name>", f"{PART}<name>")),
        xml(thing().replace("</object>", f"{PART}{PART}</object>")),
        xml(thing(corners=("10.0", " 20 ", "4e1", "+25"))),
        xml(thing(), thing().replace("<name>", "<deleted>1</deleted><name>")),
        xml(thing().replace("<bndbox>", "<truncated>0.0597</truncated><bndbox>")),
    ],
)
def test_parts_are_no_objects_and_numbers_are_numbers(tmp_path: Path, text: str) -> None:
    data = open_dataset(tree(tmp_path / "set", {"b": text}))["all"]
    assert (data.boxes.tolist(), data.names) == ([[10, 20, 40, 25]], ("cat",))
    assert (data.problems, data.repairs) == ((), ())


@pytest.mark.parametrize(
    "text",
    [
        "<annotation>",
        xml(thing(corners=("(88, 100)", 20, 40, 25))),
        xml(thing(), "<object><name>cat</name></object>"),
        xml(f"<object><name>cat</name>{CORNERS.replace('40', 'x')}</object>"),
        xml(thing().replace("</bndbox>", "<xmin>3</xmin></bndbox>")),
    ],
)
def test_an_image_that_lacks_an_object_is_named(tmp_path: Path, text: str) -> None:
    data = open_dataset(tree(tmp_path / "set", {"a": xml(thing()), "b": text}))["all"]
    assert [problem.image for problem in data.problems] == ["JPEGImages/b.jpg"]


@pytest.mark.parametrize("encoding", ["gb2312", "Shift_JIS", "utf-16"])
def test_an_xml_file_may_have_any_encoding_that_it_names(tmp_path: Path, encoding: str) -> None:
    root = tree(tmp_path / "set", {"a": ""})
    text = f"<?xml version='1.0' encoding='{encoding}'?>" + xml(thing("人"))
    (root / "Annotations" / "a.xml").write_bytes(text.encode(encoding))
    assert open_dataset(root)["all"].names == ("人",)


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "cp1254"])
def test_only_names_of_files_may_be_in_another_encoding(tmp_path: Path, encoding: str) -> None:
    root = tree(tmp_path / "set", {"a": "", "b": ""})
    text = "\n<?xml version='1.0' encoding='utf-8'?>" + xml(thing(), filename="größe.jpg")
    (root / "Annotations" / "a.xml").write_bytes(text.encode(encoding))
    (root / "Annotations" / "b.xml").write_bytes(xml(thing("kübel")).encode(encoding))
    data = open_dataset(root)["all"]
    assert (data.files.tolist(), data.names) == (["JPEGImages/a.jpg"], ("cat",))
    assert [one.kind for one in data.repairs] == ["XML files that are not in the encoding that they name"]
    assert [one.kind for one in data.problems] == [UNREADABLE]


def test_a_listed_picture_without_xml_is_told(tmp_path: Path) -> None:
    data = open_dataset(tree(tmp_path / "set", {"a": xml(thing())}, train="a lost a ../a"))["train"]
    assert sorted((problem.kind, problem.detail) for problem in data.problems) == [
        ("file names that leave the data folder", "../a"),
        ("images that are listed twice", "a"),
        ("images without an XML file", "Annotations/lost.xml"),
    ]
    assert len(data) == 1


def test_a_list_may_have_a_byte_order_mark_spaces_and_the_second_column_of_a_class_list(
    tmp_path: Path,
) -> None:
    files = {"a": xml(thing()), "b c": xml(thing()), "d": xml(thing()), "e 1": xml(thing())}
    root = tree(tmp_path / "set", files)
    (root / "ImageSets" / "Main" / "train.txt").write_text(
        "a -1\r\nb c\r\nb c  1\r\nd a\r\ne 1", encoding="utf-8-sig"
    )
    data = open_dataset(root)["train"]
    assert data.files.tolist() == ["JPEGImages/a.jpg", "JPEGImages/b c.jpg", "JPEGImages/e 1.jpg"]
    assert [(problem.kind, problem.detail) for problem in data.problems] == [
        ("images that are listed twice", "b c"),
        ("images without an XML file", "Annotations/d a.xml"),
    ]


def test_without_lists_the_pictures_of_the_tree_are_still_in_jpegimages(tmp_path: Path) -> None:
    assert open_dataset(tree(tmp_path / "set", {"a": xml(thing())}))["all"].files.tolist() == [
        "JPEGImages/a.jpg"
    ]


def test_a_file_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", {"a": xml(thing())})
    try:
        (root / "Annotations" / "\udcff.xml").write_text(xml(thing()))
    except (OSError, UnicodeError):
        pytest.skip("this disk has no such names")
    (problem,) = open_dataset(root)["all"].problems
    assert (problem.kind, problem.detail) == ("file names that are no text", r"'Annotations/\udcff.xml'")


def test_a_box_without_area_is_a_row_for_validate_to_report(tmp_path: Path) -> None:
    data = open_dataset(tree(tmp_path / "set", {"a": xml(thing(corners=(5, 5, 5, 9)))}, train="a"))["train"]
    assert data.boxes.tolist() == [[5, 5, 5, 9]]


def test_xml_files_beside_their_pictures_are_a_set_with_or_without_splits(tmp_path: Path) -> None:
    for folder in ("flat", "split/train", "split/valid"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.png").write_bytes(b"")
        (tmp_path / folder / "x.xml").write_text(xml(thing(), filename="stale.jpg"))
    assert open_dataset(tmp_path / "flat")["all"].files.tolist() == ["x.png"]
    assert [one.files.tolist() for one in open_dataset(tmp_path / "split").values()] == [
        ["train/x.png"],
        ["valid/x.png"],
    ]


def test_pictures_may_lie_elsewhere(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", {"a": xml(thing())}, train="a")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.png").write_bytes(b"")
    data = open_dataset(root, images=tmp_path / "far")["train"]
    assert data.path(0) == tmp_path / "far" / "a.png"


@pytest.mark.skipif(not BCCD.exists(), reason="the real data sets are not on this machine")
def test_of_the_blood_cells_exactly_the_two_boxes_without_area_are_reported() -> None:
    splits = open_dataset(BCCD, layout="voc")
    found = []
    for split in ("train", "val"):
        with pytest.raises(DataError) as raised:
            validate(splits[split])
        clean, problems = validate(splits[split], invalid="drop")
        assert problems == raised.value.problems
        assert len(clean.labels) == len(splits[split].labels) - 1
        found += problems
    assert validate(splits["test"])[1] == []
    assert [problem.kind for problem in found] == ["boxes without area"] * 2
    assert sorted("BloodImage_00338" in problem.detail for problem in found) == [False, True]
    assert sorted("BloodImage_00343" in problem.detail for problem in found) == [False, True]


def test_lists_of_classes_that_name_the_same_images_are_those_of_splits(tmp_path: Path) -> None:
    lists = {f"{name}_{split}": "" for name in ("cat", "dog") for split in ("train", "val")}
    root = tree(tmp_path / "set", {one: xml(thing()) for one in "abc"}, **lists)
    for name, flag in (("cat", "1"), ("dog", "-1")):
        for split, images in (("train", "ab"), ("val", "c")):
            text = "".join(f"{one} {flag}\n" for one in images)
            (root / "ImageSets" / "Main" / f"{name}_{split}.txt").write_text(text)
    splits = open_dataset(root)
    assert {split: len(data) for split, data in splits.items()} == {"train": 2, "val": 1}
    # lists of the images of a class alone are none of a split
    (root / "ImageSets" / "Main" / "dog_train.txt").write_text("a 1\n")
    assert list(open_dataset(root)) == ["all"]


def test_a_test_list_without_annotations_is_left_out_and_told(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", {"a": xml(thing())}, train="a", test="x y")
    splits = open_dataset(root)
    assert list(splits) == ["train"] and not splits["train"].problems
    assert "no image of ImageSets/Main/test.txt has an XML file: left out" in splits["train"].notes
