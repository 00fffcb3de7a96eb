"""Our file: round trip, the same bytes, and what is no checkpoint of ours."""

import json
import os
import pickle
from dataclasses import asdict, replace

import pytest
import torch
from helpers import model_config
from safetensors.torch import save_file

from retinanet.config.io import override
from retinanet.errors import CheckpointError
from retinanet.weights.checkpoint import ModelInfo, build, load_model, read_weights, save_model

CONFIG = model_config(backbone="test_resnet", backbone_norm="batch", channels=32, num_convs=1)
CONFIG = override(CONFIG, {"subnet_norm": "group", "anchor_ratios": (0.5, 1.0)})
CARD = ModelInfo(CONFIG, ("cat", "dög"), (17, 18), 0.31, {"data": "pets", "validation": {"AP": 0.5}})


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


def test_a_setting_that_a_file_lacks_has_its_default(model, saved):
    description = asdict(CARD)
    del description["model"]["network"]["pyramid"]
    save_file(
        dict(model.state_dict()), saved, metadata={"retinanet": json.dumps({"format": 2, **description})}
    )
    assert load_model(saved)[1] == CARD


def test_the_same_model_gives_the_same_bytes(model, saved, tmp_path):
    save_model(tmp_path / "again.safetensors", model.state_dict(), CARD)
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_nothing_but_the_file_is_left_behind(saved):
    assert [path.name for path in saved.parent.iterdir()] == ["model.safetensors"]


def test_a_failing_save_leaves_the_old_file_whole(model, saved, monkeypatch):
    before = saved.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        save_model(saved, model.state_dict(), CARD)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == ["model.safetensors"]


@pytest.mark.parametrize("keep", [0, 5, 100, 5000, -1])
def test_a_truncated_file_is_a_checkpoint_error(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated"):
        read_weights(saved)


def test_a_pickle_is_refused_without_running_it(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError):
        read_weights(tmp_path / "model.safetensors")
    assert not (tmp_path / "owned").exists()


def test_another_projects_safetensors_is_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="not one of retinanet"):
        read_weights(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 99}, "format 99"),
        ({"model": {"network": {"bacbone": "resnet18"}}}, "did you mean 'backbone'"),
        ({"names": None}, "no list of class names"),
        ({"names": "a"}, "no list of class names"),
        ({"names": [7]}, "no list of class names"),
        ({"names": ["half a letter \ud800"]}, "no list of class names"),
        ({"names": ["a", "a"], "category_ids": [1, 2]}, "not all different"),
        ({"category_ids": [1, 2]}, "not as many"),
        ({"category_ids": ["1"]}, "no list of whole numbers"),
        ({"category_ids": [2**63]}, "no list of whole numbers"),
        ({"threshold": "high"}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"about": 7}, "cannot be read"),
        ({"model": {"network": {"channels": "256"}}}, "channels"),
        ({"model": {"network": {"channels": True}}}, "channels"),
        ({"model": {"network": {"channels": 2**40}}}, "channels must be between"),
        ({"model": {"network": {"num_convs": 10**9}}}, "num_convs must be between"),
        ({"model": {"network": {"prior": float("nan")}}}, "prior"),
        ({"model": {"network": {"anchor_scales": []}}}, "anchor_scales"),
        ({"model": {"network": {"anchor_ratios": [1, -1]}}}, "anchor_ratios must be numbers"),
        ({"model": {"network": {"backbone_norm": "layer"}}}, "backbone_norm"),
        ({"model": {"network": {"backbone": None, "channels": 1.5}}}, "backbone and channels"),
        ({"model": [1]}, "cannot be read"),
    ],
    ids=str,
)
def test_a_description_that_is_not_ours_is_told(tmp_path, change, reason):
    card = {"format": 2, "model": {}, "names": ["a"], "category_ids": [1], "threshold": 0.5, "about": {}}
    metadata = {"retinanet": json.dumps(card | change)}
    save_file({"weight": torch.zeros(2)}, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=reason):
        read_weights(tmp_path / "x.safetensors")


def test_weights_that_do_not_fit_the_description_are_told(model, tmp_path):
    weights = dict(model.state_dict())
    weights.pop("class_subnet.3.bias")
    save_model(tmp_path / "x.safetensors", weights, CARD)
    with pytest.raises(CheckpointError, match="class_subnet"):
        load_model(tmp_path / "x.safetensors")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_weights(tmp_path / "nothing.safetensors")


def test_a_description_nested_too_deep_is_told(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "x.safetensors", metadata={"retinanet": "[" * 100_000})
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"channels": 1 << 20, "num_convs": 64}, "Missing key"),  # some terabytes, were it built
        ({"backbone": "resnet5O"}, "did you mean"),
        ({"backbone": "hf-hub:somebody/something"}, "unknown backbone"),
        ({"channels": 30}, "divide by 8"),
    ],
)
def test_a_description_that_its_weights_do_not_bear_out_costs_no_memory(model, tmp_path, change, reason):
    save_model(tmp_path / "x.safetensors", model.state_dict(), replace(CARD, model=override(CONFIG, change)))
    with pytest.raises(CheckpointError, match=reason) as raised:
        load_model(tmp_path / "x.safetensors")
    assert len(str(raised.value)) < 3000


@pytest.mark.parametrize(
    "spoil", [torch.Tensor.char, torch.Tensor.cfloat, lambda x: x * torch.nan, lambda x: x + torch.inf]
)
def test_weights_that_are_no_finite_numbers_are_told(model, tmp_path, spoil):
    weights = dict(model.state_dict())
    weights["pyramid.p6.weight"] = spoil(weights["pyramid.p6.weight"])
    save_model(tmp_path / "x.safetensors", weights, CARD)
    with pytest.raises(CheckpointError, match=r"pyramid\.p6\.weight"):
        load_model(tmp_path / "x.safetensors")


def test_weights_of_half_precision_are_welcome(model, tmp_path):
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_model(tmp_path / "x.safetensors", half, CARD)
    assert load_model(tmp_path / "x.safetensors")[0].pyramid.p6.weight.dtype == torch.float32
