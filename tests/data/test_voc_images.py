"""Which images, XML files and splits belong together in the folders that tools write."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from retinanet.data.dataset import Dataset
from retinanet.data.formats.detect import open_dataset
from retinanet.data.formats.format import decoded
from retinanet.errors import DataError

XML = (
    "<annotation><filename>{}</filename><size><width>100</width><height>50</height></size><object>"
    "<name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>"
    "</annotation>"
)


def put(root: Path, *files: str, filename: str = "", **texts: str) -> Path:
    """Empty images, and XML files with one box; `texts` are lists in ImageSets/Main."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(XML.format(filename) if file.lower().endswith(".xml") else "")
    for name, text in texts.items():
        place = root / "ImageSets" / "Main"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.txt").write_text(text)
    return root


def files(splits: dict[str, Dataset]) -> dict[str, list[str]]:
    return {split: data.files.tolist() for split, data in splits.items()}


def told(data: Dataset) -> tuple[list[str], list[str], list[str]]:
    return [one.kind for one in data.problems], [one.kind for one in data.repairs], list(data.notes)


@pytest.mark.parametrize(
    "xml, image",
    [
        ("annotations/a.xml", "images/a.png"),
        ("Annotations/a.xml", "images/a.jpg"),
        ("ANNOTATIONS/a.XML", "JPEGImages/a.JPG"),
        ("Annotations/cam1/a.xml", "JPEGImages/cam1/a.jpg"),
        ("annotations/xmls/a.xml", "images/a.jpg"),
        ("Annotations/a.xml", "photos/a.jpg"),
        ("Annotations/batch 1/a.xml", "images/part 1/a.jpg"),
        ("labels/a.xml", "images/a.jpg"),
        ("images/a.xml", "images/a.jpg"),
        ("images/a.jpg.xml", "images/a.jpg"),
        ("a.xml", "a.jpg"),
        ("a.xml", "images/a.jpg"),
        ("cam1/a.xml", "cam1/a.jpg"),
        ("boxes/a.xml", "images/a.jpg"),
        ("boxes/a.xml", "photos/a.jpg"),
    ],
)
def test_xml_files_and_images_lie_where_tools_put_them(tmp_path: Path, xml: str, image: str) -> None:
    data = open_dataset(put(tmp_path / "set", xml, image))["all"]
    assert (data.root, data.files.tolist(), data.boxes.tolist()) == (
        tmp_path / "set",
        [image],
        [[1, 2, 30, 40]],
    )
    assert told(data) == ([], [], [])


@pytest.mark.parametrize("other", ["sub/b", "sub/day/b", "images/b"])
def test_folders_below_a_flat_one_are_read_too(tmp_path: Path, other: str) -> None:
    root = put(tmp_path / "set", "a.xml", "a.jpg", f"{other}.xml", f"{other}.jpg", "sub/c.xml", "sub/c.jpg")
    assert sorted(open_dataset(root)["all"].files.tolist()) == sorted(["a.jpg", "sub/c.jpg", f"{other}.jpg"])


@pytest.mark.parametrize(
    "folders",
    [
        "{}/annotations {}/images",
        "{}/Annotations {}/JPEGImages",
        "{} {}",
        "Annotations/{} JPEGImages/{}",
        "images/{} images/{}",
        "{}_zip/{} {}_zip/{}",
        "annotations {}",
    ],
)
def test_folders_named_for_splits_are_splits(tmp_path: Path, folders: str) -> None:
    expected = {}
    for split, name, stem in (("train", "train", "a"), ("val", "valid", "b"), ("test", "test", "c")):
        xml, image = (f"{one.replace('{}', name)}/{stem}" for one in folders.split())
        put(tmp_path / "set", f"{xml}.xml", f"{image}.jpg")
        expected[split] = [f"{image}.jpg"]
    assert files(open_dataset(tmp_path / "set")) == expected


def test_what_lies_in_no_split_is_for_training_or_told(tmp_path: Path) -> None:
    root = put(tmp_path / "set", "annotations/a.xml", "images/a.jpg", "test/b.xml", "test/b.jpg")
    assert files(open_dataset(root)) == {"train": ["images/a.jpg"], "test": ["test/b.jpg"]}
    data = open_dataset(put(root, "train/c.xml", "train/c.jpg"))
    assert files(data) == {"train": ["train/c.jpg"], "test": ["test/b.jpg"]}
    assert data["train"].notes == ("1 XML file in no split, left out, as annotations/a.xml",)


@pytest.mark.parametrize("given", ["annotations", "annotations/cam1", "Annotation"])
def test_the_folder_of_the_xml_files_stands_for_the_set(tmp_path: Path, given: str) -> None:
    root = put(tmp_path / "set", f"{given}/a.xml", "images/a.jpg")
    data = open_dataset(root / given)["all"]
    assert (data.root, data.files.tolist()) == (root, ["images/a.jpg"])


@pytest.mark.parametrize(
    "given, images", [("boxes", "photos"), ("annotations", "pics"), ("x/xml", "x/frames 1")]
)
def test_images_of_a_folder_of_xml_files_may_lie_in_the_only_folder_beside_it_with_these_names(
    tmp_path: Path, given: str, images: str
) -> None:
    root = put(tmp_path / "set", f"{given}/a.xml", f"{images}/a.jpg", f"{given}_2/b.jpg")
    data = open_dataset(root / given)["all"]
    assert (data.path(0), data.root) == (root / images / "a.jpg", root / images)
    put(root, f"{given}_2/a.jpg")  # now there are two
    assert not open_dataset(root / given)["all"].path(0).exists()


@pytest.mark.parametrize("place", ["", "more/", "Annotation/"])
def test_an_xml_file_in_another_folder_names_its_image(tmp_path: Path, place: str) -> None:
    root = put(tmp_path / "set", "Annotations/a.xml", "images/a.jpg", f"{place}b.xml", "images/b.jpg")
    data = open_dataset(root)["all"]
    (problem,) = data.problems
    assert data.files.tolist() == ["images/a.jpg"]
    assert problem.kind == "XML files in another folder than the others"
    assert f"{place}b.xml: it is probably that of images/b.jpg" in problem.detail


@pytest.mark.parametrize(
    "xml, image",
    [("a.xml", "a.jpg"), ("Annotations/a.xml", "x/a.jpg"), ("train/annotations/a.xml", "train/a.jpg")],
)
def test_images_may_lie_elsewhere_in_any_folders(tmp_path: Path, xml: str, image: str) -> None:
    root, far = put(tmp_path / "set", xml), put(tmp_path / "far", image)
    (data,) = open_dataset(root, images=far).values()
    assert data.path(0) == far / image
    with pytest.raises(DataError, match="nowhere: no such folder of images"):
        open_dataset(root, images=tmp_path / "nowhere")


def test_files_of_the_system_are_passed_over(tmp_path: Path) -> None:
    root = put(tmp_path / "set", "Annotations/a.xml", "JPEGImages/a.jpg", "__MACOSX/Annotations/a.xml")
    put(root, "Annotations/._a.xml", "JPEGImages/._a.jpg", "Annotations/.ipynb_checkpoints/a.xml")
    data = open_dataset(root)["all"]
    assert data.files.tolist() == ["JPEGImages/a.jpg"]
    assert told(data) == ([], [], [])


def test_a_few_xml_files_beside_the_labels_of_yolo_are_not_the_set(tmp_path: Path) -> None:
    root = put(tmp_path / "set", "images/a.xml", "images/a.jpg", "images/b.jpg")
    assert open_dataset(root)["all"].layout == "voc"
    put(root, "labels/a.txt", "labels/b.txt")
    with pytest.raises(DataError, match="no VOC data set"):
        open_dataset(root, layout="voc")
    assert open_dataset(put(root, "Annotations/a.xml"), layout="voc")["all"].files.tolist() == [
        "images/a.jpg"
    ]


@pytest.mark.parametrize(
    "xml, image",
    [
        (unicodedata.normalize("NFD", "Größe"), unicodedata.normalize("NFC", "Größe")),
        ("IMG_1", "img_1"),
        ("my%20cat", "my cat"),
    ],
)
def test_a_name_in_another_form_is_the_same_name(tmp_path: Path, xml: str, image: str) -> None:
    data = open_dataset(put(tmp_path / "set", f"Annotations/{xml}.xml", f"JPEGImages/{image}.jpg"))["all"]
    assert data.files.tolist() == [f"JPEGImages/{image}.jpg"]
    assert told(data) == ([], ["images whose XML file has the name in another form"], [])


def test_two_images_that_differ_by_form_only_are_a_problem(tmp_path: Path) -> None:
    root = put(tmp_path / "set", "Annotations/a.xml", "JPEGImages/a.jpg", "JPEGImages/A.jpg")
    data = open_dataset(root)["all"]
    assert (data.files.tolist(), [one.detail for one in data.problems]) == (
        ["JPEGImages/a.jpg"],
        ["JPEGImages/A.jpg"],
    )
    root = put(
        tmp_path / "other",
        "Annotations/Ab.xml",
        "JPEGImages/ab.jpg",
        "JPEGImages/AB.jpg",
        "Annotations/c.xml",
        "JPEGImages/c.jpg",
    )
    data = open_dataset(root)["all"]
    assert data.files.tolist() == ["JPEGImages/c.jpg"]
    assert data.problems[0].detail == "Annotations/Ab.xml: JPEGImages/AB.jpg, JPEGImages/ab.jpg"


def test_of_two_images_of_one_name_the_xml_file_says_which(tmp_path: Path) -> None:
    root = put(tmp_path / "set", "a.xml", "a.jpg", "a.png", filename="C:\\photos\\a.png")
    assert open_dataset(root)["all"].files.tolist() == ["a.png"]
    put(root, "a.xml", filename="old.jpg")
    put(root, "b.xml", "b.jpg")
    data = open_dataset(root)["all"]
    assert (data.files.tolist(), told(data)[0]) == (["b.jpg"], ["XML files that several images fit"])


@pytest.mark.parametrize("second", ["Annotations/x/a.xml", "Annotations/A.xml", "Annotations/a.jpg.xml"])
def test_an_image_with_two_xml_files_lacks_objects(tmp_path: Path, second: str) -> None:
    data = open_dataset(put(tmp_path / "set", "Annotations/a.xml", "images/a.jpg", second))["all"]
    (problem,) = data.problems
    assert (data.files.tolist(), problem.image) == (["images/a.jpg"], "images/a.jpg")
    assert problem.kind == "XML files whose image has another XML file"
    root = put(tmp_path / "set", train="a")
    kind = "names that several XML files have" if second == "Annotations/a.jpg.xml" else problem.kind
    assert told(open_dataset(root)["train"])[0] == [kind]


@pytest.mark.parametrize("copy", ["labels/a.xml", "Annotations_old/a.xml", "images/a.xml", "a.xml"])
def test_copies_of_the_xml_files_elsewhere_are_left_out_and_told(tmp_path: Path, copy: str) -> None:
    data = open_dataset(put(tmp_path / "set", "Annotations/a.xml", "images/a.jpg", copy))["all"]
    assert data.files.tolist() == ["images/a.jpg"]
    assert told(data) == ([], [], [f"1 XML file in no split, left out, as {copy}"])


@pytest.mark.parametrize("copy", ["images/a.jpg", "SegmentationClass/a.png", "masks/a.jpg"])
def test_copies_of_the_images_elsewhere_are_no_matter(tmp_path: Path, copy: str) -> None:
    root = put(tmp_path / "set", "Annotations/a.xml", "JPEGImages/a.jpg", copy, filename="b.jpg")
    (root / "Images").symlink_to("JPEGImages")
    data = open_dataset(root)["all"]
    assert (data.files.tolist(), told(data)) == (["JPEGImages/a.jpg"], ([], [], []))


@pytest.mark.parametrize("line", ["{}", "/data/JPEGImages/{}.jpg", "JPEGImages/{}.jpg Annotations/{}.xml"])
def test_lists_may_lie_beside_the_folders(tmp_path: Path, line: str) -> None:
    names = [f"{folder}.{kind}" for folder, kind in (("Annotations/{}", "xml"), ("JPEGImages/{}", "jpg"))]
    root = put(tmp_path / "set", *(name.format(stem) for stem in "abc" for name in names))
    for name, stem in (("train", "a"), ("val", "b"), ("test", "c")):
        (root / f"{name}.txt").write_text(line.replace("{}", stem))
    expected = {"train": ["JPEGImages/a.jpg"], "val": ["JPEGImages/b.jpg"], "test": ["JPEGImages/c.jpg"]}
    assert files(open_dataset(root)) == expected
    (root / "train.txt").write_text("cat\ndog\na\n")  # something else
    (root / "val.txt").write_bytes(b"\xff")
    assert list(open_dataset(root)) == ["test"]


def test_the_file_name_inside_counts_where_the_own_name_finds_nothing(tmp_path: Path) -> None:
    root = put(tmp_path / "set", "Annotations/7f3a.xml", "images/a.jpg", filename="D:/x/a.jpg")
    assert open_dataset(root)["all"].files.tolist() == ["images/a.jpg"]
    stale = put(
        tmp_path / "stale",
        "Annotations/a.xml",
        "Annotations/b.xml",
        "images/a.jpg",
        "images/b.jpg",
        filename="a.jpg",
    )
    assert open_dataset(stale)["all"].files.tolist() == ["images/a.jpg", "images/b.jpg"]
    (stale / "images" / "b.jpg").unlink()  # it does not take the image of the other
    assert open_dataset(stale)["all"].files.tolist() == ["images/a.jpg", "images/b.jpg"]


@pytest.mark.parametrize("xml", ["img_a.xml", "a_copy.xml", "a.b.xml"])
def test_an_xml_file_without_an_image_names_the_one_that_it_probably_belongs_to(
    tmp_path: Path, xml: str
) -> None:
    root = put(
        tmp_path / "set", f"Annotations/{xml}", "JPEGImages/a.jpg", "Annotations/1.xml", "JPEGImages/1.jpg"
    )
    data = open_dataset(root)["all"]
    (problem,) = data.problems
    assert data.files.tolist() == ["JPEGImages/1.jpg"]
    assert problem.kind == "XML files without an image"
    assert f"Annotations/{xml}: it is probably that of JPEGImages/a.jpg" in problem.detail


def test_of_two_images_that_an_xml_file_may_belong_to_it_names_that_of_its_folder(tmp_path: Path) -> None:
    names = [
        f"{place}/{cam}/1.{kind}"
        for cam in "xy"
        for place, kind in (("annotations", "xml"), ("images", "jpg"))
    ]
    root = put(tmp_path / "set", *names, "images/x/7.jpg", "images/y/7.jpg", "annotations/y/img_7.xml")
    (problem,) = open_dataset(root)["all"].problems
    assert "annotations/y/img_7.xml: it is probably that of images/y/7.jpg" in problem.detail


def test_a_name_in_another_folder_is_not_another_image(tmp_path: Path) -> None:
    names = [
        "Annotations/x/a.xml",
        "images/x/a.jpg",
        "Annotations/y/b.xml",
        "images/y/b.jpg",
        "images/z/b.jpg",
    ]
    data = open_dataset(put(tmp_path / "set", *names, "Annotations/x/b.xml"))["all"]
    assert data.files.tolist() == ["images/x/a.jpg", "images/y/b.jpg"]
    assert told(data)[0] == ["XML files without an image"]


def test_without_any_image_all_are_missing_under_their_names(tmp_path: Path) -> None:
    root = put(tmp_path / "set", "Annotations/a.xml", "Annotations/c/b.xml", filename="x.png")
    (root / "JPEGImages").mkdir()
    assert open_dataset(root)["all"].files.tolist() == ["JPEGImages/a.png", "JPEGImages/c/b.png"]


def test_images_without_an_xml_file_are_left_out_and_counted(tmp_path: Path) -> None:
    root = put(
        tmp_path / "set", "Annotations/b.xml", "JPEGImages/a.jpg", "JPEGImages/b.jpg", "JPEGImages/c.jpg"
    )
    data = open_dataset(root)["all"]
    assert data.files.tolist() == ["JPEGImages/b.jpg"]
    assert told(data) == ([], [], ["2 images without an XML file, left out, as JPEGImages/a.jpg"])
    put(root, train="b\n")
    assert open_dataset(root)["train"].notes == data.notes


@pytest.mark.parametrize(
    "line",
    [
        "a.jpg",
        "JPEGImages/a.jpg",
        "/data/b/JPEGImages/a.jpg",
        "C:\\set\\JPEGImages\\a.jpg",
        "../../JPEGImages/a.jpg",
        "Annotations/a.xml",
        "A",
        "a.jpg 1",
    ],
)
def test_a_list_names_xml_files_in_many_ways(tmp_path: Path, line: str) -> None:
    root = put(tmp_path / "set", "Annotations/a.xml", "JPEGImages/a.jpg", train=f"# of x/a\n\n{line}\n")
    data = open_dataset(root)["train"]
    assert data.files.tolist() == ["JPEGImages/a.jpg"]
    assert told(data) == ([], ["names in lists that are not just those of XML files"], [])


def test_a_name_in_a_list_means_one_file(tmp_path: Path) -> None:
    names = [
        f"{place}/{cam}/a.{kind}"
        for cam in "xy"
        for place, kind in (("Annotations", "xml"), ("images", "jpg"))
    ]
    data = open_dataset(put(tmp_path / "set", *names, train="x/a", val="a\n/far/images/y/a.jpg"))
    assert files(data) == {"train": ["images/x/a.jpg"], "val": ["images/y/a.jpg"]}
    assert told(data["val"])[0] == ["names that several XML files have"]


def test_a_list_of_another_name_is_all_or_left_out(tmp_path: Path) -> None:
    root = put(
        tmp_path / "set",
        "Annotations/a.xml",
        "JPEGImages/a.jpg",
        "Annotations/b.xml",
        "JPEGImages/b.jpg",
        default="a",
    )
    data = open_dataset(root)
    assert files(data) == {"all": ["JPEGImages/a.jpg"]}
    assert data["all"].notes == ("1 XML file in no split, left out, as Annotations/b.xml",)
    (root / "ImageSets" / "Main" / "default.txt").rename(root / "ImageSets" / "Main" / "mine.txt")
    data = open_dataset(root)
    assert files(data) == {"all": ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]}
    assert data["all"].notes == (
        "no list is named for a split, so all are left out, as ImageSets/Main/mine.txt",
    )


@pytest.mark.parametrize(
    "name, encoding",
    [("größe", "cp1252"), ("照片", "gbk"), ("写真", "shift_jis"), ("фото", "cp1251"), ("größe", "utf-16")],
)
def test_a_list_is_in_the_encoding_in_which_its_names_are_there(
    tmp_path: Path, name: str, encoding: str
) -> None:
    root = put(
        tmp_path / "set", f"Annotations/{name}.xml", f"JPEGImages/{name}.jpg", "Annotations/b.xml", train=""
    )
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(f"b\r\n{name}\r\n".encode(encoding))
    data = open_dataset(root)["train"]
    assert f"JPEGImages/{name}.jpg" in data.files.tolist()
    assert told(data)[1] == ["lists that are not in UTF-8"]


def test_a_list_in_an_unknown_encoding_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff\x80")
    with pytest.raises(DataError, match=r"list\.txt: cannot be read"):
        decoded(tmp_path / "list.txt", lambda line: line == "a")
