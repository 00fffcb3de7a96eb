"""COCO's numbers against the published ones and against cases worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from retinanet.data.dataset import Columns, Dataset
from retinanet.data.formats.coco import read_coco
from retinanet.errors import DataError
from retinanet.evaluation.coco import NUMBERS, best_f1, coco_metrics, format_table
from retinanet.evaluation.read import read_results
from retinanet.evaluation.results import Results, collect, write_results
from retinanet.structures import Detections

Box = tuple[float, float, float, float]
Truth = tuple[Box, int]
Found = tuple[Box, int, float]

PUBLISHED = Path(__file__).parents[3] / "shared/data/coco_eval/cocoapi_val2014_100"
needs_published = pytest.mark.skipif(
    not PUBLISHED.exists(), reason="no published detections beside the repository (../shared/data/coco_eval)"
)
A: Box = (0, 0, 10, 10)
B: Box = (50, 50, 60, 60)
FAR: Box = (200, 200, 210, 210)


def dataset(
    *images: Sequence[Truth], names: Sequence[str] = ("cat", "dog"), crowd: Sequence[Box] = ()
) -> Dataset:
    """Images of (box, label) with sparse, descending ids; boxes named in `crowd` are crowds."""
    columns = Columns()
    for index, truths in enumerate(images):
        columns.image(f"{index}.jpg", 1000 - 7 * index, 300, 300)
        for box, label in truths:
            columns.box(box, label, len(columns.labels), crowd=box in crowd)
    return columns.build(
        Path("data.json"), Path(), "val", names, [3 + 10 * label for label in range(len(names))]
    )


def results(*images: Sequence[Found]) -> Results:
    rows = [(index, box, label, score) for index, found in enumerate(images) for box, label, score in found]
    return Results(
        np.array([row[0] for row in rows], dtype=np.int64),
        np.array([row[1] for row in rows], dtype=np.float64).reshape(-1, 4),
        np.array([row[3] for row in rows], dtype=np.float64),
        np.array([row[2] for row in rows], dtype=np.int64),
    )


@needs_published
def test_published_detections_give_the_published_numbers():
    data = read_coco(PUBLISHED / "instances_val2014_100.json")
    metrics = coco_metrics(data, read_results(PUBLISHED / "instances_val2014_fakebbox100_results.json", data))
    published = (
        "0.504581 0.696973 0.572982 0.585626 0.519400 0.501398 "
        "0.386813 0.593680 0.595353 0.639811 0.566421 0.564291"
    )
    assert list(metrics.numbers) == list(NUMBERS)
    assert list(metrics.numbers.values()) == pytest.approx(
        [float(one) for one in published.split()], abs=1e-6
    )


@needs_published
def test_the_order_of_images_and_rows_does_not_matter():
    data = read_coco(PUBLISHED / "instances_val2014_100.json")
    found = read_results(PUBLISHED / "instances_val2014_fakebbox100_results.json", data)
    order = np.random.default_rng(0).permutation(len(data))
    back = np.argsort(order)
    shuffled = Results(back[found.images], found.boxes, found.scores, found.labels)[
        np.argsort(back[found.images], kind="stable")
    ]
    assert coco_metrics(data.subset(order), shuffled).numbers == coco_metrics(data, found).numbers


def test_one_of_two_boxes_found_is_51_of_101_recalls():
    metrics = coco_metrics(dataset([(A, 0), (B, 0)], names=["cat"]), results([(A, 0, 0.9)]))
    assert metrics["AP"] == pytest.approx(51 / 101)  # precision 1 at the recalls 0, 0.01 .. 0.50
    assert metrics["AR100"] == pytest.approx(0.5)
    assert metrics["APs"] == pytest.approx(51 / 101)
    assert metrics["APm"] is None
    assert metrics["APl"] is None


def test_a_better_scored_stray_halves_the_precision():
    metrics = coco_metrics(dataset([(A, 0), (B, 0)], names=["cat"]), results([(FAR, 0, 0.95), (A, 0, 0.9)]))
    assert metrics["AP"] == pytest.approx(0.5 * 51 / 101)


def test_an_overlap_of_0_62_counts_at_three_of_the_ten_thresholds():
    metrics = coco_metrics(dataset([(A, 0)], names=["cat"]), results([((0, 0, 6.2, 10), 0, 0.9)]))
    assert [metrics["AP"], metrics["AP50"], metrics["AP75"]] == pytest.approx([0.3, 1.0, 0.0])


def test_strays_in_an_image_without_objects_count():
    data = dataset([(A, 0)], [], names=["cat"])
    assert coco_metrics(data, results([(A, 0, 0.8)], []))["AP"] == pytest.approx(1.0)
    assert coco_metrics(data, results([(A, 0, 0.8)], [(A, 0, 0.9)]))["AP"] == pytest.approx(0.5)


def test_an_image_in_which_nothing_was_found_counts():
    data = dataset([(A, 0)], [(A, 0)], names=["cat"])
    assert coco_metrics(data, results([(A, 0, 0.8)], []))["AP"] == pytest.approx(51 / 101)


def test_detections_of_a_crowd_are_neither_right_nor_wrong():
    data = dataset([(A, 0), ((100, 100, 290, 290), 0)], names=["cat"], crowd=[(100, 100, 290, 290)])
    inside = [((120.0 + 20 * i, 120.0, 130.0 + 20 * i, 130.0), 0, 0.9) for i in range(3)]
    metrics = coco_metrics(data, results([*inside, (A, 0, 0.5)]))
    assert metrics["AP"] == pytest.approx(1.0)
    assert (metrics.boxes, metrics.threshold, metrics.f1) == (1, 0.5, 1.0)
    assert metrics.confusion.tolist() == [[1, 0], [0, 0]]


def test_ap_counts_the_best_hundred_of_an_image_and_the_threshold_all():
    strays = [((200.0, 2.0 * i, 210.0, 2.0 * i + 1), 0, 0.9) for i in range(100)]
    metrics = coco_metrics(dataset([(A, 0)], names=["cat"]), results([*strays, (A, 0, 0.1)]))
    assert (metrics["AP"], metrics.threshold, metrics.detections) == (0.0, 0.1, 101)
    assert metrics.f1 == pytest.approx(2 / (101 + 1))


def grid(count: int) -> list[Box]:
    return [
        (12.0 * (i % 20), 12.0 * (i // 20), 12.0 * (i % 20) + 10, 12.0 * (i // 20) + 10) for i in range(count)
    ]


def test_more_than_a_hundred_objects_of_a_class_bound_ap_and_are_told():
    boxes = grid(150)
    found = results([(box, 0, 0.9 - i / 1000) for i, box in enumerate(boxes)])
    metrics = coco_metrics(dataset([(box, 0) for box in boxes], [(A, 0)], names=["cat"]), found)
    assert metrics["AR100"] == pytest.approx(100 / 151)
    assert metrics.threshold == pytest.approx(0.9 - 149 / 1000)
    assert metrics.f1 == pytest.approx(2 * 150 / (150 + 151))
    (told,) = metrics.remarks()
    assert told.startswith("1 image with more than 100 objects of a class: COCO's AP counts the best 100")
    assert told in format_table(metrics)
    assert told in metrics.to_json()["remarks"]


@pytest.mark.parametrize("crowd", [[], grid(150)[100:]], ids=["a hundred of each class", "crowds"])
def test_a_hundred_objects_of_a_class_are_not_too_many(crowd: list[Box]):
    boxes = grid(150)
    label = [0 if crowd else i % 2 for i in range(150)]
    metrics = coco_metrics(
        dataset(
            list(zip(boxes, label, strict=True)), crowd=crowd, names=["cat"] if crowd else ["cat", "dog"]
        ),
        results([(A, 0, 0.9)]),
    )
    assert metrics.remarks() == []


@pytest.mark.parametrize(
    ("truths", "told"),
    [
        ([(A, 0), (B, 1)], []),
        ([(A, 0)], ["AP over 1 of 2 classes; no objects of dog"]),
        ([], ["AP over 0 of 2 classes; no objects of cat, dog"]),
    ],
)
def test_classes_without_objects_are_told(truths: list[Truth], told: list[str]):
    metrics = coco_metrics(dataset(truths), results([(A, 0, 0.9)]))
    assert metrics.remarks() == told
    assert all(line in format_table(metrics).splitlines() for line in told)


def test_an_ap_of_zero_for_want_of_detections_says_so():
    assert coco_metrics(dataset([(A, 0), (B, 1)]), results()).remarks() == ["no detections"]
    assert coco_metrics(dataset([(A, 0), (B, 1)]), results([(FAR, 0, 0.5)])).remarks() == []


@pytest.mark.parametrize("found", [[], [(A, 0, 0.9)]], ids=["nothing found", "strays"])
def test_without_objects_every_number_is_none(found: list[Found], capfd: pytest.CaptureFixture[str]):
    metrics = coco_metrics(dataset([], []), results(found))
    assert set(metrics.numbers.values()) == {None}
    assert (metrics.threshold, metrics.f1, metrics.curves.precision) == (None, None, (None, None))
    assert metrics.confusion.tolist() == [[0, 0, 0], [0, 0, 0], [len(found), 0, 0]]
    assert "-" in format_table(metrics)
    assert capfd.readouterr() == ("", "")


def test_without_detections_the_numbers_are_zero(capfd: pytest.CaptureFixture[str]):
    metrics = coco_metrics(dataset([(A, 0), (B, 1)], []), results())
    assert (metrics["AP"], metrics["AR100"], metrics["APl"]) == (0.0, 0.0, None)
    assert (metrics.threshold, metrics.f1) == (None, 0.0)
    assert metrics.confusion.tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 0]]
    assert capfd.readouterr() == ("", "")


def test_a_data_set_without_images_has_no_numbers():
    assert set(coco_metrics(dataset(), results()).numbers.values()) == {None}
    assert coco_metrics(dataset([], names=[]), results()).confusion.tolist() == [[0]]


def test_a_class_that_never_occurs_is_left_out_of_the_mean():
    metrics = coco_metrics(dataset([(A, 0)]), results([(A, 0, 0.9), (B, 1, 0.9)]))
    cat, dog = metrics.per_class
    assert metrics["AP"] == pytest.approx(1.0)
    assert (cat.name, cat.boxes, cat.AP, cat.threshold, cat.f1) == ("cat", 1, 1.0, 0.9, 1.0)
    assert (dog.name, dog.boxes, dog.AP, dog.AP50, dog.AP75, dog.threshold, dog.f1) == (
        "dog",
        0,
        None,
        None,
        None,
        None,
        None,
    )
    assert metrics.curves.precision[1] is None
    assert next(line for line in format_table(metrics).splitlines() if line.startswith("dog")).split() == [
        "dog",
        "0",
        *"-----",
    ]


def test_confusion_by_hand():
    data = dataset([(A, 0), (B, 1)], [(A, 1)])
    #           right          dog taken for cat    stray dog         too weak to be shown
    found = results([(A, 0, 0.9), (B, 0, 0.8), (FAR, 1, 0.7)], [(A, 1, 0.85), (B, 1, 0.1)])
    metrics = coco_metrics(data, found)
    assert metrics.threshold == 0.85  # 2 of 2 right, 3 objects: F1 0.8
    assert metrics.f1 == pytest.approx(0.8)
    assert metrics.confusion.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    sure = coco_metrics(data, results([(B, 0, 0.8), (FAR, 1, 0.7), (A, 0, 0.6)], [(A, 1, 0.6)]))
    assert sure.threshold == 0.6
    assert sure.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]


def test_each_object_is_found_once_and_by_the_best_score():
    metrics = coco_metrics(dataset([(A, 0)], names=["cat"]), results([(A, 0, 0.5), ((0, 0, 10, 9), 0, 0.9)]))
    assert (metrics.threshold, metrics.f1) == (0.9, 1.0)
    assert metrics["AP50"] == 1.0


def test_best_threshold_by_hand():
    scores = np.array([0.2, 0.9, 0.6, 0.8, 0.4])
    right = np.array([True, True, True, False, False])
    # kept 1: 2/(1+4); 2: 2/(2+4); 3: 4/(3+4) = 0.571; 4: 4/(4+4); 5: 6/(5+4) = 0.667
    assert best_f1(scores, right, 4) == (0.2, pytest.approx(2 / 3))
    assert best_f1(scores, right & (scores > 0.2), 2) == (0.6, pytest.approx(4 / 5))


def test_equal_scores_stand_or_fall_together():
    assert best_f1(np.array([0.5, 0.5]), np.array([True, False]), 1) == (0.5, pytest.approx(2 / 3))


def test_f1_curve_by_hand():
    metrics = coco_metrics(dataset([(A, 0), (B, 0)], names=["cat"]), results([(A, 0, 0.9), (FAR, 0, 0.5)]))
    at = dict(zip(metrics.curves.thresholds.round(2).tolist(), metrics.curves.f1.tolist(), strict=True))
    assert (at[0.0], at[0.5], at[0.51], at[0.9], at[0.91]) == pytest.approx((0.5, 0.5, 2 / 3, 2 / 3, 0.0))


def test_json_holds_plain_values_and_no_nan():
    metrics = coco_metrics(dataset([(A, 0)]), results([(A, 0, 0.9)]))
    content = json.loads(json.dumps(metrics.to_json(), allow_nan=False))
    assert content["AP"] == 1.0
    assert content["APl"] is None
    assert content["per_class"][0]["name"] == "cat"
    assert content["per_class"][1]["AP"] is None
    assert len(content["curves"]["recall"]) == len(content["curves"]["precision"][0]) == 101


def test_detections_become_columns_image_by_image():
    none = Detections(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.long))
    two = Detections(torch.tensor([A, B]), torch.tensor([0.9, 0.25]), torch.tensor([1, 0]))
    columns = collect(dataset([], [(A, 1)], []), [none, two, none])
    assert (columns.images.tolist(), columns.labels.tolist(), columns.scores[1]) == ([1, 1], [1, 0], 0.25)
    assert columns.boxes.tolist() == [list(A), list(B)]
    assert columns.boxes.dtype == columns.scores.dtype == np.float64
    assert len(collect(dataset(), [])) == 0
    with pytest.raises(ValueError, match="3 images need as many"):
        collect(dataset([], [], []), [none])


def test_sparse_ids_go_out_and_come_back(tmp_path: Path):
    data = dataset([(A, 0)], [(B, 1)])
    found = results([((1.00004, 2, 10.33333, 20), 0, 0.1234567)], [(B, 1, 0.5)])
    file = tmp_path / "predictions.json"
    write_results(file, data, found)
    rows = json.loads(file.read_text())
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(1000, 3), (993, 13)]
    assert (rows[0]["score"], rows[0]["bbox"]) == (0.1235, [1.0, 2.0, 9.33, 18.0])
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.json"]
    back = read_results(file, data)
    assert (back.images.tolist(), back.labels.tolist()) == ([0, 1], [0, 1])
    assert back.boxes == pytest.approx(found.boxes, abs=0.01)


def test_no_results_go_out_and_come_back(tmp_path: Path):
    write_results(tmp_path / "none.json", dataset([(A, 0)]), results())
    assert len(read_results(tmp_path / "none.json", dataset([(A, 0)]))) == 0


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path):
    file = tmp_path / "predictions.json"
    file.write_text("[]")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(file, dataset([(A, 0)]), results([((0, 0, 1, float("nan")), 0, 0.5)]))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("predictions.json", "[]")]


def test_unknown_ids_are_named_and_counted(tmp_path: Path):
    good = {"image_id": 1000, "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.5}
    rows = [good, {**good, "image_id": 7}, {**good, "image_id": 7}, {**good, "category_id": 4}]
    rows += [{**good, "bbox": [1, 2]}, {"image_id": 1}]
    file = tmp_path / "predictions.json"
    file.write_text(json.dumps(rows))
    with pytest.raises(DataError) as caught:
        read_results(file, dataset([(A, 0)]))
    for words in (
        "1 unknown image ids",
        "image_id 7 (2 detections)",
        "category_id 4 (1 detections)",
        "2 entries without a usable",
        "entry 5",
    ):
        assert words in str(caught.value)
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize("text", ["{", '{"annotations": []}'])
def test_what_is_no_result_file_is_said_so(tmp_path: Path, text: str):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=r"x\.json"):
        read_results(tmp_path / "x.json", dataset([(A, 0)]))


def test_labels_beyond_the_classes_are_an_error():
    with pytest.raises(DataError, match=r"class 2 \(from 0\), but data.json has 2"):
        coco_metrics(dataset([(A, 0)]), results([(A, 2, 0.5)]))
