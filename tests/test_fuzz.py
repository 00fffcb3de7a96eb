"""Damaged input: a right result or a clear error. Ten thousand cases: python tests/fuzz.py 10000."""

import contextlib
import json
import tempfile
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import fuzz
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from retinanet.data.formats.coco import read_coco
from retinanet.data.formats.detect import open_dataset
from retinanet.data.formats.yolo_files import read_yaml
from retinanet.data.validate import validate
from retinanet.errors import DataError

near = settings(derandomize=True, deadline=None, max_examples=150)

numbers = st.one_of(
    st.integers(-2, 4), st.integers(), st.floats(), st.sampled_from([2**63, 10**400, 1e308, True, None, "1"])
)
anything = st.recursive(
    numbers | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
ids = st.integers(1, 4) | numbers | anything
names = st.sampled_from(["a.png", "b.png", "../a.png", "/a.png", "a\0", "\ud800", ""]) | st.text() | anything
images = st.fixed_dictionaries({}, optional={"id": ids, "file_name": names, "width": ids, "height": ids})
annotations = st.fixed_dictionaries(
    {},
    optional={
        "id": ids,
        "image_id": st.integers(1, 2) | ids,
        "category_id": st.integers(1, 2) | ids,
        "bbox": st.lists(numbers, min_size=4, max_size=4) | anything,
        "iscrowd": st.integers(0, 1) | anything,
        "area": numbers,
    },
)
categories = st.fixed_dictionaries(
    {}, optional={"id": ids, "name": st.sampled_from(["cat", "dog"]) | anything}
)
documents = st.fixed_dictionaries(
    {
        "images": st.lists(images | anything, max_size=4).map(
            lambda some: [{"id": 1, "file_name": "a.png"}, *some]
        ),
        "annotations": st.lists(annotations | anything, max_size=5),
        "categories": st.lists(categories | anything, max_size=3).map(
            lambda some: [{"id": 1, "name": "x"}, *some]
        ),
    }
)


def test_three_hundred_damaged_inputs_are_read_right_or_refused(tmp_path):
    counts, faults = fuzz.run_cases(range(300), tmp_path)
    assert faults == []
    assert all(counts[kind, "read"] and counts[kind, "refused"] for kind in fuzz.KINDS)


@near
@given(documents)
def test_of_a_coco_file_every_entry_becomes_a_row_or_a_problem(document):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.json"
        file.write_text(json.dumps(document))
        data = read_coco(file)
    lost = sum(map(len, document.values())) - len(data) - len(data.labels) - len(data.names)
    assert lost == len(data.problems)
    with contextlib.suppress(DataError):
        fuzz.check_boxes(validate(data, "clip", headers=False)[0])


@near
@given(
    st.text()
    | documents.map(json.dumps).flatmap(lambda text: st.integers(0, len(text)).map(lambda end: text[:end]))
)
def test_what_is_not_json_to_its_end_is_refused(text):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.json"
        file.write_text(text, encoding="utf-8", errors="replace")
        try:
            complete = (
                isinstance(json.loads(text), dict)
                and {"images", "annotations", "categories"} <= json.loads(text).keys()
            )
        except ValueError:
            complete = False
        if complete:
            read_coco(file)
        else:
            with pytest.raises(DataError, match=r"train\.json"):
                read_coco(file)


words = st.sampled_from(
    ["1", "20", "30.5", "0", "-1", "nan", "inf", "1e400", "1_0", "", " 7 ", "cat"]
) | st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"),
    max_size=4,
)
corners = st.lists(st.tuples(st.sampled_from(["xmin", "ymin", "xmax", "ymax", "x"]), words), max_size=5).map(
    lambda some: (
        [*zip(("xmin", "ymin", "xmax", "ymax"), ("1", "2", "9", "9"), strict=True)]
        if len(some) == 5
        else some
    )
)
objects = st.lists(st.tuples(st.lists(words, max_size=2), corners, words, st.integers(1, 2)), max_size=4)


@near
@given(objects, words, words)
def test_of_an_xml_file_every_object_becomes_a_row_or_a_problem(objects, width, height):
    def element(tag, text):
        return f"<{tag}>{text}</{tag}>"

    text = element("size", element("width", escape(width)) + element("height", escape(height)))
    for titles, box, difficult, boxes in objects:
        inner = "".join(element("name", escape(title)) for title in titles) + element(
            "difficult", escape(difficult)
        )
        inner += element("bndbox", "".join(element(tag, escape(value)) for tag, value in box)) * boxes
        text += element("object", inner)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("Annotations", "JPEGImages"):
            (root / name).mkdir()
        Image.new("RGB", (40, 30)).save(root / "JPEGImages" / "a.png")
        (root / "Annotations" / "a.xml").write_text(element("annotation", text), encoding="utf-8")
        written = len(ElementTree.parse(root / "Annotations" / "a.xml").getroot().findall("object"))
        data = open_dataset(root)["all"]
    told = [problem for problem in data.problems if "size of the image" not in problem.kind]
    assert len(data.labels) + len(told) == written == len(objects)
    assert data.sizes.min() >= 0


@near
@given(
    st.lists(
        st.lists(
            st.sampled_from(["0", "1", "2", "0.5", ".2", "nan", "-0", "1e9", "0_1", "x"])
            | st.floats().map(str)
        ).map(" ".join)
    )
)
def test_of_a_label_file_every_line_becomes_a_row_or_a_problem(lines):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("images", "labels"):
            (root / name / "train").mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(root / "images" / "train" / "a.png")
        (root / "labels" / "train" / "a.txt").write_text("\n".join(lines))
        (root / "data.yaml").write_text("train: images/train\nnames: [a, b]")
        data = open_dataset(root)["train"]
        with contextlib.suppress(DataError):
            fuzz.check_columns(validate(data, "drop")[0])
    assert len(data.labels) + len(data.problems) == sum(map(bool, map(str.split, lines)))


@near
@given(
    st.dictionaries(st.sampled_from(["names", "nc", "path", "train", "val"]), anything).map(json.dumps)
    | st.text()
)
def test_what_is_no_description_of_a_yolo_set_is_refused(text):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.yaml"
        file.write_text(text, encoding="utf-8", errors="replace")
        message, found = str(file), ("one",)
        try:
            found = read_yaml(file).names
        except DataError as error:
            message = str(error)
        assert message.startswith(str(file)) and fuzz.is_text(message)
        assert len(set(found)) == len(found) > 0
