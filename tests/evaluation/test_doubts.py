"""Numbers that would mislead are told to: other classes, other boxes, too many objects, trained on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import session_of

from retinanet.data.dataset import Columns
from retinanet.evaluation.coco import coco_metrics
from retinanet.evaluation.doubts import misread, more_objects, trained_on
from retinanet.evaluation.results import Results
from retinanet.training.run import doubts as doubts_of_training


def scattered(count=40, classes=3, size=100, width=400):
    """Images with one object each, somewhere; and the results that find them all."""
    columns, random = Columns(), np.random.default_rng(0)
    for number in range(count):
        columns.image(f"{number}.jpg", number, size, width)
        x, y = random.uniform(0, width * 0.8), random.uniform(0, size * 0.8)
        columns.box((x, y, x + width * 0.15, y + size * 0.15), number % classes, number)
    data = columns.build(Path("data.json"), Path(), "val", [f"c{i}" for i in range(classes)], range(classes))
    return data, Results(np.arange(count), data.boxes, np.linspace(0.2, 0.9, count), data.labels)


def doubts(data, found):
    return misread(data, found, coco_metrics(data, found))


def as_xywh(rows):
    """What is read from a file with these rows."""
    return np.hstack([rows[:, :2], rows[:, :2] + rows[:, 2:]])


def centred(boxes):
    return np.hstack([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]])


def cornered(boxes):
    return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])


def test_right_results_and_hopeless_ones_are_not_doubted():
    data, found = scattered()
    assert doubts(data, found) == []
    assert doubts(data, replace(found, boxes=found.boxes[:, [0, 1, 0, 1]] * 0.9 + [0, 0, 9, 9])) == []
    assert doubts(data, found[:0]) == []


@pytest.mark.parametrize(
    "order", [[1, 2, 0], [1, 0, 2], [0, 0, 0]], ids=["turned", "two swapped", "one class"]
)
def test_labels_of_another_order_are_doubted(order):
    data, found = scattered()
    (told,) = doubts(data, replace(found, labels=np.array(order)[found.labels]))
    assert told.endswith("but 1.000 without regard to class: are the category ids those of data.json?")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (lambda boxes: boxes, "[x0, y0, x1, y1]:"),
        (centred, "[centre x, centre y, width, height]:"),
        (
            lambda boxes: cornered(boxes) / [400, 100, 400, 100],
            "[x, y, width, height] in fractions of the image:",
        ),
        (lambda boxes: boxes / [400, 100, 400, 100], "[x0, y0, x1, y1] in fractions of the image:"),
        (
            lambda boxes: centred(boxes) / [400, 100, 400, 100],
            "[centre x, centre y, width, height] in fractions of the image:",
        ),
    ],
    ids=["corners", "centres", "fractions", "corners in fractions", "centres in fractions"],
)
def test_boxes_of_another_form_are_doubted(rows, told):
    data, found = scattered()
    wrong = replace(found, boxes=as_xywh(rows(found.boxes)))
    (said,) = doubts(data, wrong)
    assert f"but 1.000 if the boxes are {told}" in said
    both = doubts(data, replace(wrong, labels=(found.labels + 1) % 3))
    assert told in both[0] and "without regard to class" in both[1]


@pytest.mark.parametrize(
    ("boxes", "told"),
    [
        (
            lambda boxes: as_xywh(boxes[:, [2, 3, 2, 3]]),
            "boxes leave the image: are they [x, y, width, height]",
        ),
        (lambda boxes: boxes[:, [0, 1, 0, 1]] % 0.4 + [0, 0, 0.5, 0.5], "all boxes lie in the first pixel"),
    ],
    ids=["outside", "first pixel"],
)
def test_boxes_that_lie_nowhere_are_doubted_though_no_form_makes_them_right(boxes, told):
    data, found = scattered()
    (said,) = doubts(data, replace(found, boxes=boxes(found.boxes)))
    assert told in said
    unknown = replace(data, sizes=np.zeros_like(data.sizes))
    assert doubts(unknown, replace(found, boxes=boxes(found.boxes))) == []


def test_images_with_more_objects_than_detections_are_counted():
    data, _ = scattered(3, 1)
    full = replace(
        data,
        first=np.array([0, 5, 6, 9]),
        **{
            name: np.repeat(getattr(data, name), 3, axis=0)
            for name in ("boxes", "labels", "crowd", "areas", "annotation_ids")
        },
    )
    assert more_objects(full, data, limit=5) == []
    (told,) = more_objects(full, full, limit=4)
    assert told.startswith("2 images with more objects (up to 5) than the 4 detections of an image")
    assert "--set max_detections=7" in told
    assert more_objects(replace(full, crowd=np.ones(9, dtype=bool)), limit=1) == []
    assert more_objects(data.subset(np.arange(0)), limit=1) == []


def test_a_training_begins_with_the_images_that_have_more_objects_than_detections(scenes):
    told = [
        [text for text in doubts_of_training(session_of(scenes, **few)) if "max_detections" in text]
        for few in ({"max_detections": 2}, {})
    ]
    assert [len(texts) for texts in told] == [1, 0]


def test_the_images_of_the_training_are_known_again(tmp_path):
    data, _ = scattered()
    assert "trained on these images" in trained_on(data, "elsewhere", {"data_hash": data.fingerprint()})[0]
    about = {
        "data": str(tmp_path / "x" / ".." / "set"),
        "data_hash": "of the nine tenths that were not held out",
    }
    assert trained_on(replace(data, split="train"), tmp_path / "set", about)
    assert trained_on(data, tmp_path / "set", about) == []
    assert trained_on(replace(data, split="train"), tmp_path / "other", about) == []
    assert trained_on(data, "imported", {}) == []
