"""The verb check: problems, and the boxes out of the anchors' reach."""

import json

import numpy as np
import pytest

from retinanet.commands import check as engine
from retinanet.config.commands import CheckConfig
from retinanet.config.schema import ModelConfig, NetworkConfig, TrainConfig
from retinanet.data.dataset import Columns
from retinanet.data.scenes import write_scenes
from retinanet.model.retinanet import NECKS


def boxes_of(*sides):
    columns = Columns()
    columns.image("a.jpg", 1, 600, 600)
    for i, (width, height) in enumerate(sides):
        columns.box((100.0, 100.0, 100.0 + width, 100.0 + height), i % 2, i + 1)
    from pathlib import Path

    return columns.build(Path("a.json"), Path(), "train", ["even", "odd"], [1, 2])


def test_a_clean_set_is_clean(scenes, caplog):
    with caplog.at_level("INFO", "retinanet"):
        assert engine.run(str(scenes), CheckConfig(deep=True))
    assert "no problem found" in caplog.text
    assert "train: 6 images" in caplog.text


def test_all_problems_are_listed_with_file_and_id(tmp_path, caplog):
    data = write_scenes(tmp_path / "data", {"train": 8}, size=(64, 64), seed=1, across=(16, 48))
    file = data / "annotations" / "train.json"
    index = json.loads(file.read_text())
    for i in range(4):
        index["annotations"][i]["bbox"][2] = 0
    file.write_text(json.dumps(index))
    with caplog.at_level("INFO", "retinanet"):
        assert not engine.run(str(data), CheckConfig())
    for i in range(4):
        assert f"annotation {index['annotations'][i]['id']}" in caplog.text


def test_boxes_of_the_anchors_own_size_are_matched_and_tiny_ones_are_not():
    found = engine.reach(boxes_of((32, 32), (6, 6), (64, 128), (100, 3)), ModelConfig())
    assert found.best[0] > 0.5
    assert found.best[1] < 0.1
    assert found.best[2] > 0.5
    assert found.best[3] < 0.4
    np.testing.assert_allclose(found.sides[:2], [32, 6])


@pytest.mark.parametrize(("size", "stride"), [(40, 8), (90, 16), (200, 32)])
def test_the_reach_is_what_assignment_gives_at_the_mean_distance(size, stride):
    """Restated with real anchors: a box shifted by a quarter of a stride from a cell's centre."""
    import torch

    from retinanet.ops.anchors import grid_anchors
    from retinanet.ops.boxes import iou

    centre = 300 // stride * stride + stride / 2 + stride / 4
    box = torch.tensor([centre - size / 2, centre - size / 2, centre + size / 2, centre + size / 2])
    levels = grid_anchors([(-(-600 // s), -(-600 // s)) for s in (8, 16, 32, 64, 128)])
    best_of_level = max(iou(level, box[None]).max().item() for level in levels)
    assert engine.reach(boxes_of((size, size)), ModelConfig()).best[0] == pytest.approx(
        best_of_level, abs=0.12
    )


def test_check_knows_where_the_anchors_of_a_design_stand():
    data = boxes_of((34, 34), (60, 60), (500, 500))
    best = {name: engine.reach(data, ModelConfig(NetworkConfig(pyramid=name))).best for name in NECKS}
    np.testing.assert_array_equal(best["hierarchy"], best["fpn"])
    assert (best["single"] <= best["finest"]).all()
    assert (
        best["single"][0] < 0.5 < best["fpn"][0]
    )  # cells 32 px apart: a quarter of that is much for a box of 34 px
    assert best["finest"][2] > best["fpn"][2]


def test_small_objects_get_advice_on_anchors(caplog):
    text = engine.reach_table(
        engine.reach(boxes_of((10, 10), (12, 12), (14, 14), (40, 40)), ModelConfig()), TrainConfig()
    )
    assert "--anchor-size" in text
    assert "8-16 px: 3 of 3 boxes are matched by no anchor" in text


def test_the_real_cells_without_area_are_named(shared_data, caplog):
    with caplog.at_level("INFO", "retinanet"):
        assert not engine.run(str(shared_data / "bccd"), CheckConfig(layout="voc"))
    assert "BloodImage_00338" in caplog.text
    assert "BloodImage_00343" in caplog.text
    assert "\n2 problems" in caplog.text
