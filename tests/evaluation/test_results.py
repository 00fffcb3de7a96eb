"""COCO result files that are nearly right."""

import json
from pathlib import Path

import numpy as np
import pytest

from retinanet.data.dataset import Columns
from retinanet.data.formats.coco import read_coco
from retinanet.errors import DataError
from retinanet.evaluation.read import read_results
from retinanet.evaluation.results import Results, result_rows, write_results

GOOD = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.fixture
def data(tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [],
        "categories": [{"id": 3, "name": "cat"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    return read_coco(tmp_path / "train.json")


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": ""},
        {"image_id": 1.5},
        {"image_id": True},
        {"image_id": float("inf")},
        {"category_id": 2**63},
        {"bbox": "1234"},
        {"bbox": [1, 2, 3, "4 px"]},
        {"bbox": [1, 2, 3, True]},
        {"bbox": [1, 2, 3, 10**400]},
        {"bbox": [1e308, 2, 1e308, 4]},
        {"score": True},
        {"score": "high"},
        {"score": [[[]]]},
    ],
    ids=str,
)
def test_an_entry_that_is_not_what_it_should_be_is_told_and_never_converted(data, tmp_path, change):
    (tmp_path / "x.json").write_text(json.dumps([GOOD, GOOD | change]))
    with pytest.raises(DataError, match=r"1 entries without a usable.*\n  entry 1: \{\"image_id"):
        read_results(tmp_path / "x.json", data)


@pytest.mark.parametrize(
    "change", [{"image_id": "1"}, {"category_id": "3.0"}, {"bbox": [1, "2", 3, 4]}], ids=str
)
def test_ids_and_numbers_as_text_with_one_meaning_are_used_and_told(data, tmp_path, caplog, change):
    (tmp_path / "x.json").write_text(json.dumps([GOOD, GOOD | change]))
    with caplog.at_level("INFO", "retinanet"):
        found = read_results(tmp_path / "x.json", data)
    assert np.array_equal(found.boxes[0], found.boxes[1])
    assert (found.images.tolist(), found.labels.tolist()) == ([0, 0], [0, 0])
    assert "1 entry with ids or numbers as text" in caplog.text


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        (
            [93.5, 0.4, 12],
            "2 entries whose score is not in 0..1 (divide percent by 100, give logits a sigmoid)",
        ),
        ([-2.5, 0.1], "1 entries whose score is not in 0..1"),
        ([float("nan"), float("inf"), 0.5], "2 entries whose score is NaN or infinite"),
    ],
    ids=["percent", "logits", "NaN"],
)
def test_scores_that_are_none_are_counted_with_what_to_do(data, tmp_path, scores, told):
    (tmp_path / "x.json").write_text(json.dumps([GOOD | {"score": score} for score in scores]))
    with pytest.raises(DataError) as caught:
        read_results(tmp_path / "x.json", data)
    assert told in str(caught.value)


@pytest.mark.parametrize("one", [0, 4, "dog"])
def test_an_unknown_category_is_told_with_those_that_are_known(data, tmp_path, one):
    (tmp_path / "x.json").write_text(json.dumps([GOOD | {"category_id": one}]))
    with pytest.raises(
        DataError, match=rf"category_id {one} \(1 .*\nthe category ids of .*train.json are 3 cat$"
    ):
        read_results(tmp_path / "x.json", data)


def test_a_score_just_beyond_one_is_rounding(data, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([GOOD | {"score": 1.0000001}]))
    assert len(read_results(tmp_path / "x.json", data)) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_whole_floats_are_ids_in_any_encoding_of_json(data, tmp_path, encoding):
    (tmp_path / "x.json").write_text(
        json.dumps([GOOD | {"image_id": 1.0, "category_id": 3.0}]), encoding=encoding
    )
    found = read_results(tmp_path / "x.json", data)
    assert np.array_equal(found.boxes, [[1, 2, 4, 6]]) and found.labels.tolist() == [0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "cannot be read"),
        ('[{"image_id": 1, "image_id": 2}]', "twice"),
        ('[{"x": ' + "9" * 5000 + "}]", ""),
    ],
)
def test_json_that_python_cannot_hold_is_an_error_of_ours(data, tmp_path, text, reason):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=rf"x\.json.*{reason}"):
        read_results(tmp_path / "x.json", data)


def boxes_of(*images, names=("cat", "dog", "cow"), ids=(1, 2, 3), size=100):
    """A data set of files, each with (box, label)s."""
    columns = Columns()
    for number, (file, truths) in enumerate(images, 1):
        columns.image(file, number, size, size)
        for box, label in truths:
            columns.box(box, label, len(columns.labels))
    return columns.build(Path("data.json"), Path(), "val", names, ids)


def written(folder, beside, name, *rows):
    """A predictions.json with (image id, category id) rows, and what is beside it."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(beside))
    entries = [GOOD | {"image_id": image, "category_id": category} for image, category in rows]
    (folder / "predictions.json").write_text(json.dumps(entries))
    return folder / "predictions.json"


NAMED = {"categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cow"}, {"id": 9, "name": "Cat"}]}


@pytest.mark.parametrize("name", ["about.json", "metrics.json"])
def test_our_own_results_are_matched_by_the_names_of_classes_and_this_is_told(tmp_path, caplog, name):
    file = written(tmp_path, NAMED, name, (1, 1), (1, 2), (1, 9))
    with caplog.at_level("INFO", "retinanet"):
        assert read_results(file, boxes_of(("a.jpg", []))).labels.tolist() == [1, 2, 0]
    assert "numbers its classes otherwise than data.json: they are matched by name" in caplog.text
    caplog.clear()
    same = boxes_of(("a.jpg", []), names=("dog", "cow", "cat"), ids=(1, 2, 9))
    assert read_results(file, same).labels.tolist() == [0, 1, 2]
    assert not caplog.text


def test_our_own_results_of_classes_that_the_data_lack_are_an_error_that_names_them(tmp_path):
    file = written(tmp_path, NAMED, "about.json", (1, 1), (1, 9))
    with pytest.raises(DataError, match=r"has detections of dog, and the classes of data.json are Cat, hen"):
        read_results(file, boxes_of(("a.jpg", []), names=("Cat", "hen", "pig")))
    only = written(tmp_path, NAMED, "about.json", (1, 9))
    assert read_results(only, boxes_of(("a.jpg", []), names=("hen", "Cat"), ids=(1, 2))).labels.tolist() == [
        1
    ]


@pytest.mark.parametrize("text", ["{", "[]", '{"categories": 3}', '{"categories": [{"id": []}]}'])
def test_what_lies_beside_a_results_file_and_is_not_ours_plays_no_part(tmp_path, text):
    file = written(tmp_path, NAMED, "about.json", (1, 3))
    (tmp_path / "about.json").write_text(text)
    assert read_results(file, boxes_of(("a.jpg", []))).labels.tolist() == [2]


def test_our_own_results_are_matched_by_the_files_of_images_and_this_is_told(tmp_path, caplog):
    images = [{"id": 1, "file_name": "/photos/b/1.png"}, {"id": 2, "file_name": "/photos/a/1.png"}]
    file = written(tmp_path, images, "images.json", (1, 1), (2, 1))
    with caplog.at_level("INFO", "retinanet"):
        assert read_results(file, boxes_of(("a/1.jpg", []), ("b/1.jpg", []))).images.tolist() == [1, 0]
    assert "matched by file name" in caplog.text
    caplog.clear()
    for others in (("b/1.jpg", "a/1.jpg"), ("x.jpg", "y.jpg")):  # alike, or renamed: nothing says otherwise
        assert read_results(file, boxes_of(*((name, []) for name in others))).images.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"unknown image ids\n  image_id 2"):
        read_results(file, boxes_of(("x.jpg", []), ("b/1.jpg", [])))
    assert read_results(file, boxes_of(("q/1.jpg", []), ("r/1.jpg", []))).images.tolist() == [0, 1]


@pytest.mark.parametrize("one", ["cow", "Cow", " cow "])
def test_category_ids_that_are_names_are_matched_with_the_classes(tmp_path, one):
    file = written(tmp_path, [], "nothing.json", (1, one), (1, 1))
    assert read_results(file, boxes_of(("a.jpg", []))).labels.tolist() == [2, 0]


@pytest.mark.parametrize("one", ["b", "b.jpg", "deep/b.jpg", "set/deep/b"])
def test_image_ids_that_are_file_names_are_matched_with_the_files(tmp_path, one):
    file = written(tmp_path, [], "nothing.json", (one, 1), (1, 1))
    assert read_results(file, boxes_of(("deep/a.jpg", []), ("deep/b.jpg", []))).images.tolist() == [1, 0]


def test_what_only_rounding_parts_is_written_alike_and_read_back_near(data, tmp_path):
    """Batches of 1 and of 8 differ by up to 0.0001 px and 0.000001."""
    boxes, scores = np.array([[10.4, 20.6, 33.1, 47.7], [0.0, 0.0, 9.98, 5.0]]), np.array([0.91234, 0.05006])
    zeros = np.zeros(2, dtype=np.int64)
    one = Results(zeros, boxes, scores, zeros)
    other = Results(zeros, boxes + np.array([1e-4, -1e-4, -1e-4, 1e-4]), scores - 1e-6, zeros)
    rows = list(result_rows(data, one))
    assert rows == list(result_rows(data, other))
    assert json.loads(rows[0])["bbox"] == [10.4, 20.6, 22.7, 27.1]
    assert [json.loads(row)["score"] for row in rows] == [0.9123, 0.0501]
    write_results(tmp_path / "x.json", data, one)
    found = read_results(tmp_path / "x.json", data)
    assert np.abs(found.boxes - boxes).max() <= 0.01 and np.abs(found.scores - scores).max() <= 5e-5


@pytest.mark.parametrize(("box", "score"), [([0, 0, 9, 5.02], 0.5), ([0, 0, 9, 5], 0.5002)])
def test_what_differs_by_more_is_not_written_alike(data, box, score):
    zero = np.zeros(1, dtype=np.int64)
    plain = Results(zero, np.array([[0.0, 0, 9, 5]]), np.array([0.5]), zero)
    other = Results(zero, np.array([box], dtype=np.float64), np.array([score]), zero)
    assert list(result_rows(data, plain)) != list(result_rows(data, other))
