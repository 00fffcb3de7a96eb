"""The command check: problems, and the boxes out of the anchors' reach."""

import json

import numpy as np
from helpers import session_of

from retinanet.commands import check as engine
from retinanet.config.commands import CheckConfig
from retinanet.config.io import override
from retinanet.config.schema import ModelConfig, TrainConfig
from retinanet.data.dataset import Columns
from retinanet.data.reach import anchor_reach
from retinanet.data.scenes import write_scenes
from retinanet.model.criterion import Criterion
from retinanet.model.preprocess import Preprocess
from retinanet.model.retinanet import NECKS
from retinanet.training.loop import train_step
from retinanet.weights.checkpoint import build


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


def reach_of(data, pyramid="fpn", positive=0.5):
    """What a small network of the paper's anchors reaches."""
    model = build(override(ModelConfig(), {"backbone": "resnet18", "pyramid": pyramid}), len(data.names))
    return anchor_reach(data, model, Criterion(positive=positive), Preprocess(600))


def test_boxes_of_the_anchors_own_size_are_matched_and_tiny_ones_are_not():
    found = reach_of(boxes_of((32, 32), (6, 6), (64, 128), (100, 3)))
    assert found.missed.tolist() == [False, True, False, True]
    np.testing.assert_allclose(found.sides[:2], [32, 6])
    assert found.labels.tolist() == [0, 1, 0, 1]


def test_the_reach_is_what_training_assigns(scenes):
    state = session_of(scenes, jitter=(1.0, 1.0), flip=0.0)
    found = anchor_reach(state.training, state.model, state.criterion, state.preprocess)
    batches = state.batches(0, state.sampler.steps_per_epoch)
    positives = sum(float(train_step(state, batch, 0.0)["positives"]) * len(batch) for batch in batches)
    assert found.anchors.sum() == positives
    assert np.bincount(found.labels).tolist() == np.bincount(state.training.labels).tolist()


def test_a_box_between_the_thresholds_is_reached_by_force_alone():
    data = boxes_of((40, 40), (45, 45))
    assert not reach_of(data).forced.any()
    found = reach_of(data, positive=0.99)
    assert found.forced.all()
    assert not found.missed.any()


def test_the_reach_knows_where_the_anchors_of_a_design_stand():
    found = {name: reach_of(boxes_of((34, 34), (60, 60), (500, 500)), name) for name in NECKS}
    assert found["hierarchy"].anchors.tolist() == found["fpn"].anchors.tolist()
    assert found["single"].anchors[0] < found["fpn"].anchors[0]  # cells 32 px apart
    assert found["finest"].anchors[2] > found["fpn"].anchors[2]


def test_small_objects_get_advice_on_anchors():
    config = override(TrainConfig(), {"backbone": "resnet18"})
    text = engine.describe_reach(boxes_of((10, 10), (12, 12), (14, 14), (40, 40)), config)
    assert "--anchor-size" in text
    assert ["8-16", "px", "3", "0.0", "0.0%", "100.0%"] in [line.split() for line in text.splitlines()]


def test_the_real_cells_without_area_are_named(shared_data, caplog):
    with caplog.at_level("INFO", "retinanet"):
        assert not engine.run(str(shared_data / "bccd"), CheckConfig(layout="voc"))
    assert "BloodImage_00338" in caplog.text
    assert "BloodImage_00343" in caplog.text
    assert "2 problems. Fix them" in caplog.text
