"""Our file: round trip, the same bytes, and what is no checkpoint of ours."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from retinanet.config import ModelConfig
from retinanet.errors import CheckpointError
from retinanet.weights import checkpoint
from retinanet.weights.checkpoint import Card, build, load_model, read, save_model

CONFIG = ModelConfig(backbone="resnet18", backbone_norm="batch", channels=32, depth=1, subnet_norm="group", anchor_ratios=(0.5, 1.0))
CARD = Card(CONFIG, ("cat", "dög"), (17, 18), 0.31, {"data": "pets", "validation": {"AP": 0.5}})


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build(CONFIG, 2).eval()


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(path, model.state_dict(), CARD)
    return path


def test_what_is_loaded_is_what_was_saved(model, saved):
    loaded, card = load_model(saved)
    assert card == CARD
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert loaded.state_dict().keys() == model.state_dict().keys()


def test_the_same_model_gives_the_same_bytes(model, saved, tmp_path):
    save_model(tmp_path / "again.safetensors", model.state_dict(), CARD)
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_nothing_but_the_file_is_left_behind(saved):
    assert [path.name for path in saved.parent.iterdir()] == ["model.safetensors"]


def test_a_failing_save_leaves_the_old_file_whole(model, saved, monkeypatch):
    before = saved.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        save_model(saved, model.state_dict(), CARD)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == ["model.safetensors"]


@pytest.mark.parametrize("keep", [0, 5, 100, 5000, -1])
def test_a_truncated_file_is_a_checkpoint_error(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated"):
        read(saved)


def test_a_pickle_is_refused_without_running_it(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError):
        read(tmp_path / "model.safetensors")
    assert not (tmp_path / "owned").exists()


def test_another_projects_safetensors_is_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="not one of retinanet"):
        read(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 99}, "format 99"),
        ({"model": {"bacbone": "resnet18"}}, "did you mean 'backbone'"),
        ({"names": None}, "cannot be read"),
        ({"threshold": "high"}, "cannot be read"),
    ],
)
def test_a_description_that_is_not_ours_is_told(tmp_path, change, reason):
    card = {"format": 1, "model": {}, "names": ["a"], "category_ids": [1], "threshold": 0.5, "about": {}}
    save_file({"weight": torch.zeros(2)}, tmp_path / "x.safetensors", metadata={"retinanet": json.dumps(card | change)})
    with pytest.raises(CheckpointError, match=reason):
        read(tmp_path / "x.safetensors")


def test_weights_that_do_not_fit_the_description_are_told(model, tmp_path):
    weights = dict(model.state_dict())
    weights.pop("class_subnet.3.bias")
    save_model(tmp_path / "x.safetensors", weights, CARD)
    with pytest.raises(CheckpointError, match="class_subnet"):
        load_model(tmp_path / "x.safetensors")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read(tmp_path / "nothing.safetensors")
