"""The printed numbers are those of the paper, and found by what stands in their row."""

import json
from pathlib import Path

import pytest

from retinanet.errors import ConfigError
from retinanet.lab import paper

PRINTED = Path(__file__).parents[3] / "shared" / "paper.json"


@pytest.fixture(scope="module")
def printed():
    if not PRINTED.exists():
        pytest.skip(f"{PRINTED} is not here")
    return json.loads(PRINTED.read_text())


def test_the_tables_are_those_of_the_paper(printed):
    assert {name for name in printed if name.startswith("table")} == set(paper.TABLES)
    for name, table in paper.TABLES.items():
        assert list(table.columns) == printed[name]["columns"]
        assert [list(row) for row in table.rows] == printed[name]["rows"]


def test_the_other_detectors_time_is_that_of_the_text(printed):
    assert f"against {paper.FASTER_RCNN_MILLISECONDS:.0f} ms" in " ".join(map(str, printed["text"].values()))


def test_every_row_has_every_column_and_ap_in_percent():
    for table in paper.TABLES.values():
        for row in table.rows:
            assert len(row) == len(table.columns)
            scores = [value for name, value in zip(table.columns, row, strict=True) if name.startswith("AP")]
            assert all(isinstance(score, float) and 0 <= score <= 100 for score in scores)


@pytest.mark.parametrize(
    "table, columns, score",
    [
        ("table1a", {"alpha": 0.1}, 0.0),
        ("table1b", {"gamma": 2, "alpha": 0.25}, 34.0),
        ("table1b", {"gamma": 2.0, "alpha": 0.75}, None),
        ("table1d", {"method": "FL"}, 36.0),
        ("table1d", {"method": "OHEM", "batch_size": 128, "nms_threshold": 0.5}, 32.8),
        ("table1e", {"depth": 101, "scale": 800}, 37.8),
        ("table2", {"method": "RetinaNet", "backbone": "ResNet-101-FPN"}, 39.1),
        ("table3", {"loss": "CE", "gamma": None, "beta": None}, 31.1),
    ],
)
def test_ap_is_found_by_the_values_of_its_row(table, columns, score):
    assert paper.ap(table, **columns) == score


def test_what_names_no_row_or_several_is_an_error_that_says_so():
    with pytest.raises(ConfigError, match="unknown table 'table4'"):
        paper.ap("table4")
    with pytest.raises(ConfigError, match="unknown column of table1a 'gamma'"):
        paper.ap("table1a", gamma=2.0)
    with pytest.raises(ConfigError, match="6 rows of table1d"):
        paper.ap("table1d", method="OHEM")


def test_the_points_with_a_time_are_table_1e_and_one_detector_of_table_2():
    points = paper.speed_points()
    assert len(points) == 11
    assert ("RetinaNet-101", "600", 122.0, 36.0) in points
    assert points[-1] == ("Faster R-CNN w FPN", "", 172.0, 36.2)
