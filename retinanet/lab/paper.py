"""The numbers that the paper prints: Lin, Goyal, Girshick, He, Dollar, "Focal Loss for Dense Object
Detection", 2017.

COCO box AP in percent, milliseconds per image on an Nvidia M40, both as printed. Tables 1a to 1c and 3 are
ResNet-50 at 600 px, Table 1d ResNet-101, all on minival; Tables 1e and 2 are on test-dev.
"""

from __future__ import annotations

from typing import NamedTuple

from ..errors import ConfigError, unknown_name_error

Value = float | str | None
"""A cell: a number, a name, or None where the paper leaves it empty."""


class Table(NamedTuple):
    """A printed table: columns [C], of which those before AP say which experiment a row is; rows [R, C]."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]


SCORES = ("AP", "AP50", "AP75")

BY_SIZE = (*SCORES, "APS", "APM", "APL")

TABLES = {
    "table1a": Table(
        ("alpha", *SCORES),
        (
            (0.10, 0.0, 0.0, 0.0),
            (0.25, 10.8, 16.0, 11.7),
            (0.50, 30.2, 46.7, 32.8),
            (0.75, 31.1, 49.4, 33.0),
            (0.90, 30.8, 49.7, 32.3),
            (0.99, 28.7, 47.4, 29.9),
            (0.999, 25.1, 41.7, 26.1),
        ),
    ),
    "table1b": Table(
        ("gamma", "alpha", *SCORES),
        (
            (0, 0.75, 31.1, 49.4, 33.0),
            (0.1, 0.75, 31.4, 49.9, 33.1),
            (0.2, 0.75, 31.9, 50.7, 33.4),
            (0.5, 0.50, 32.9, 51.7, 35.2),
            (1.0, 0.25, 33.7, 52.0, 36.2),
            (2.0, 0.25, 34.0, 52.5, 36.5),
            (5.0, 0.25, 32.2, 49.6, 34.8),
        ),
    ),
    "table1c": Table(
        ("scales", "aspect_ratios", *SCORES),
        (
            (1, 1, 30.3, 49.0, 31.8),
            (2, 1, 31.9, 50.0, 34.0),
            (3, 1, 31.8, 49.4, 33.7),
            (1, 3, 32.4, 52.3, 33.9),
            (2, 3, 34.2, 53.1, 36.5),
            (3, 3, 34.0, 52.5, 36.5),
            (4, 3, 33.8, 52.1, 36.2),
        ),
    ),
    "table1d": Table(
        ("method", "batch_size", "nms_threshold", *SCORES),
        (
            ("OHEM", 128, 0.7, 31.1, 47.2, 33.2),
            ("OHEM", 256, 0.7, 31.8, 48.8, 33.9),
            ("OHEM", 512, 0.7, 30.6, 47.0, 32.6),
            ("OHEM", 128, 0.5, 32.8, 50.3, 35.1),
            ("OHEM", 256, 0.5, 31.0, 47.4, 33.0),
            ("OHEM", 512, 0.5, 27.6, 42.0, 29.2),
            ("OHEM 1:3", 128, 0.5, 31.1, 47.2, 33.2),
            ("OHEM 1:3", 256, 0.5, 28.3, 42.4, 30.3),
            ("OHEM 1:3", 512, 0.5, 24.0, 35.5, 25.8),
            ("FL", None, None, 36.0, 54.9, 38.7),
        ),
    ),
    "table1e": Table(
        ("depth", "scale", *BY_SIZE, "milliseconds"),
        (
            (50, 400, 30.5, 47.8, 32.7, 11.2, 33.8, 46.1, 64),
            (50, 500, 32.5, 50.9, 34.8, 13.9, 35.8, 46.7, 72),
            (50, 600, 34.3, 53.2, 36.9, 16.2, 37.4, 47.4, 98),
            (50, 700, 35.1, 54.2, 37.7, 18.0, 39.3, 46.4, 121),
            (50, 800, 35.7, 55.0, 38.5, 18.9, 38.9, 46.3, 153),
            (101, 400, 31.9, 49.5, 34.1, 11.6, 35.8, 48.5, 81),
            (101, 500, 34.4, 53.1, 36.8, 14.7, 38.5, 49.1, 90),
            (101, 600, 36.0, 55.2, 38.7, 17.4, 39.6, 49.7, 122),
            (101, 700, 37.1, 56.6, 39.8, 19.1, 40.6, 49.4, 154),
            (101, 800, 37.8, 57.5, 40.8, 20.2, 41.1, 49.2, 198),
        ),
    ),
    "table2": Table(
        ("method", "stages", "backbone", *BY_SIZE),
        (
            ("Faster R-CNN+++", 2, "ResNet-101-C4", 34.9, 55.7, 37.4, 15.6, 38.7, 50.9),
            ("Faster R-CNN w FPN", 2, "ResNet-101-FPN", 36.2, 59.1, 39.0, 18.2, 39.0, 48.2),
            ("Faster R-CNN by G-RMI", 2, "Inception-ResNet-v2", 34.7, 55.5, 36.7, 13.5, 38.1, 52.0),
            ("Faster R-CNN w TDM", 2, "Inception-ResNet-v2-TDM", 36.8, 57.7, 39.2, 16.2, 39.8, 52.1),
            ("YOLOv2", 1, "DarkNet-19", 21.6, 44.0, 19.2, 5.0, 22.4, 35.5),
            ("SSD513", 1, "ResNet-101-SSD", 31.2, 50.4, 33.3, 10.2, 34.5, 49.8),
            ("DSSD513", 1, "ResNet-101-DSSD", 33.2, 53.3, 35.2, 13.0, 35.4, 51.1),
            ("RetinaNet", 1, "ResNet-101-FPN", 39.1, 59.1, 42.3, 21.8, 42.7, 50.2),
            ("RetinaNet", 1, "ResNeXt-101-FPN", 40.8, 61.1, 44.1, 24.1, 44.2, 51.2),
        ),
    ),
    "table3": Table(
        ("loss", "gamma", "beta", *SCORES),
        (
            ("CE", None, None, 31.1, 49.4, 33.0),
            ("FL", 2.0, None, 34.0, 52.5, 36.5),
            ("FL*", 2.0, 1.0, 33.8, 52.7, 36.3),
            ("FL*", 4.0, 0.0, 33.9, 51.8, 36.4),
        ),
    ),
}

FASTER_RCNN_MILLISECONDS = 172.0
"""Faster R-CNN with FPN on ResNet-101, against 122 ms for RetinaNet-101-600 (Sec. 5.2)."""


def ap(table: str, **columns: Value) -> float | None:
    """The printed AP, in percent, of the row with these values: ap("table1b", gamma=2, alpha=0.25).

    None when no row has them; ConfigError for an unknown table or column, and for several such rows.
    """
    if table not in TABLES:
        raise unknown_name_error("table", table, TABLES)
    found = TABLES[table]
    for name in columns:
        if name not in found.columns:
            raise unknown_name_error(f"column of {table}", name, found.columns)
    rows = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
    scores = [row["AP"] for row in rows if all(row[name] == value for name, value in columns.items())]
    if len(scores) > 1:
        raise ConfigError(
            f"{len(scores)} rows of {table} have {columns}; name more of its columns: "
            f"{', '.join(found.columns)}"
        )
    return float(scores[0]) if scores and scores[0] is not None else None


def speed_points() -> list[tuple[str, str, float, float]]:
    """(series, label, milliseconds on an M40, AP in percent) of all detectors that have a time: Table 1e, and
    the sentence of Sec. 5.2."""
    points = []
    for row in TABLES["table1e"].rows:
        depth, scale, score, milliseconds = row[0], row[1], row[2], row[-1]
        points.append((f"RetinaNet-{depth}", str(scale), float(milliseconds or 0), float(score or 0)))
    faster = ap("table2", method="Faster R-CNN w FPN")
    assert faster is not None
    return [*points, ("Faster R-CNN w FPN", "", FASTER_RCNN_MILLISECONDS, faster)]
