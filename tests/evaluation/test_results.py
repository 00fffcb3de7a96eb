"""COCO result files that are nearly right."""

import json

import numpy as np
import pytest

from retinanet.data.formats.coco import read_coco
from retinanet.errors import DataError
from retinanet.evaluation.results import read_results

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
        {"image_id": "1"},
        {"image_id": 1.5},
        {"image_id": True},
        {"image_id": float("inf")},
        {"category_id": 2**63},
        {"bbox": "1234"},
        {"bbox": [1, 2, 3, "4"]},
        {"bbox": [1, 2, 3, True]},
        {"bbox": [1, 2, 3, 10**400]},
        {"bbox": [1e308, 2, 1e308, 4]},
        {"score": True},
        {"score": "0.5"},
        {"score": [[[]]]},
    ],
    ids=str,
)
def test_an_entry_that_is_not_what_it_should_be_is_told_and_never_converted(data, tmp_path, change):
    (tmp_path / "x.json").write_text(json.dumps([GOOD, GOOD | change]))
    with pytest.raises(DataError, match=r"1 entries without a usable.*\n  entry 1: \{\"image_id"):
        read_results(tmp_path / "x.json", data)


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
