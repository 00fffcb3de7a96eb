"""What a user adds from outside, without a change to the package: a format."""

import typing

import pytest
from helpers import SMALL
from PIL import Image

import retinanet
from retinanet.config.schema import Layout
from retinanet.data.dataset import Columns
from retinanet.data.formats.detect import FORMATS, open_dataset
from retinanet.data.formats.format import Format
from retinanet.data.images import image_size
from retinanet.errors import DataError


def read_csv(file, images):
    rows = [line.split(",") for line in file.read_text().split()[1:]]
    names, columns = sorted({row[5] for row in rows}), Columns()
    for number, name in enumerate(sorted({row[0] for row in rows}), start=1):
        height, width = image_size(file.parent / name)
        columns.image(name, number, height, width)
        for place, (image, *corners, label) in enumerate(rows, start=1):
            if image == name:
                columns.box(tuple(map(float, corners)), names.index(label), place)
    return {"all": columns.build(file, images or file.parent, "all", names, range(1, len(names) + 1))}


def recognise_csv(root, images):
    files = sorted(root.glob("*.csv"))
    return (lambda: read_csv(files[0], images)) if files else None


@pytest.fixture
def csv_set(tmp_path, monkeypatch):
    """Four images with boxes in a CSV file, and the format to read it."""
    rows = ["image,xmin,ymin,xmax,ymax,label"]
    for number in range(4):
        Image.new("RGB", (64, 64), (60 * number, 80, 90)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,8,8,40,{40 + number},cat")
    (tmp_path / "boxes.csv").write_text("\n".join(rows))
    with pytest.raises(DataError, match="no data set was recognised"):
        open_dataset(tmp_path)
    csv = Format(recognise_csv, "one *.csv beside the images", (".csv",), read_csv)
    monkeypatch.setitem(FORMATS, "csv", csv)
    return tmp_path


def test_a_format_is_two_functions_and_an_entry(csv_set):
    for path, layout in ((csv_set, None), (csv_set / "boxes.csv", None), (csv_set, "csv")):
        data = open_dataset(path, layout)["all"]
        assert data.names == ("cat",)
        assert data.boxes.tolist() == [[8, 8, 40, bottom] for bottom in (40, 41, 42, 43)]


def test_a_new_format_is_named_where_none_is_recognised(csv_set):
    (csv_set / "boxes.csv").unlink()
    with pytest.raises(DataError, match=r"(?s)CSV   one .*beside the images\nIt holds"):
        open_dataset(csv_set)
    with pytest.raises(DataError, match=r"a COCO \.json, a YOLO \.yaml, a CSV \.csv, or the folder"):
        open_dataset(csv_set / "0.png")


def test_a_new_format_trains(csv_set, tmp_path_factory):
    out = tmp_path_factory.mktemp("csv") / "run"
    run = retinanet.train(csv_set, "tiny", out=out, **SMALL | {"budget": "2it", "validations": 1})
    assert retinanet.load(run).names == ["cat"]


def test_the_layouts_of_the_command_line_are_the_formats():
    assert typing.get_args(Layout) == tuple(FORMATS)
