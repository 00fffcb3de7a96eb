"""A model as the start of another: what fits is kept, classes by name, and the log says so."""

import re

import pytest
import torch
from helpers import TRAINING, model_config

import retinanet
from retinanet.config.io import override
from retinanet.data.scenes import write_scenes
from retinanet.errors import CheckpointError
from retinanet.inference.load import read_pretrained
from retinanet.weights.checkpoint import ModelInfo, build, load_model, save_model
from retinanet.weights.transfer import load_pretrained

CONFIG = model_config(
    backbone="test_resnet", backbone_norm="batch", channels=32, num_convs=1, subnet_norm="group"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model of three classes whose class rows hold their own numbers."""
    torch.manual_seed(1)
    model = build(CONFIG, 3)
    with torch.no_grad():
        model.class_subnet[-1].bias.copy_(torch.arange(3.0).repeat(9))
    path = tmp_path_factory.mktemp("source") / "model.safetensors"
    save_model(path, model.state_dict(), ModelInfo(CONFIG, ("cat", "dog", "cow"), (1, 2, 3)))
    return path


def started(source, names, config=CONFIG):
    torch.manual_seed(2)
    model = build(config, len(names))
    load_pretrained(model, names, read_pretrained(source))
    return model


def test_everything_but_the_class_rows_is_copied(source):
    model, _ = load_model(source)
    other = started(source, ("cow", "hen"))
    theirs = model.state_dict()
    for name, value in other.state_dict().items():
        if not name.startswith("class_subnet.3."):
            assert torch.equal(value, theirs[name]), name


def test_class_rows_go_by_name_and_new_classes_start_fresh(source, caplog):
    with caplog.at_level("INFO", "retinanet"):
        rows = started(source, ("cow", "hen", "cat")).class_subnet[-1].bias.detach().unflatten(0, (9, 3))
    prior = build(CONFIG, 1).class_subnet[-1].bias[0].item()
    assert rows[:, 0].tolist() == [2.0] * 9
    assert rows[:, 1].tolist() == pytest.approx([prior] * 9)
    assert rows[:, 2].tolist() == [0.0] * 9
    assert "kept by name: cow, cat; new: hen" in caplog.text


@pytest.mark.parametrize(
    "written",
    ["gro\u0308\u00dfe", "Gr\u00f6\u00dfe", " gr\u00f6\u00dfe"],
    ids=["decomposed", "case", "blank"],
)
def test_a_class_that_is_only_written_otherwise_is_kept_and_told(tmp_path, caplog, written):
    model = build(CONFIG, 2)
    with torch.no_grad():
        model.class_subnet[-1].bias.copy_(torch.arange(2.0).repeat(9))
    save_model(
        tmp_path / "m.safetensors", model.state_dict(), ModelInfo(CONFIG, ("cat", "gr\u00f6\u00dfe"), (1, 2))
    )
    with caplog.at_level("INFO", "retinanet"):
        rows = started(tmp_path / "m.safetensors", (written, "cat")).class_subnet[-1].bias.detach()
    assert rows.tolist() == [1.0, 0.0] * 9
    assert f"kept by name: {written} (there 'gr\u00f6\u00dfe'), cat" in caplog.text


def test_a_name_with_two_of_its_kind_is_matched_only_with_its_equal(source, tmp_path, caplog):
    model = build(CONFIG, 2)
    save_model(tmp_path / "m.safetensors", model.state_dict(), ModelInfo(CONFIG, ("car", "Car"), (1, 2)))
    with caplog.at_level("INFO", "retinanet"):
        started(tmp_path / "m.safetensors", ("CAR", "Car"))  # CAR is car, since Car is taken
        started(tmp_path / "m.safetensors", ("CAR", "hen"))
        started(source, ("Cat", "CAT", "dog"))
    kept = [
        record.message.strip() for record in caplog.records if "class" in record.message.partition(",")[0]
    ]
    assert kept == [
        "classes kept by name: CAR (there 'car'), Car",
        "the class layer starts fresh: no class has a name that the model knows",
        "classes kept by name: dog; new: Cat, CAT",
    ]


def test_without_a_common_name_the_class_layer_starts_fresh(source, caplog):
    with caplog.at_level("INFO", "retinanet"):
        started(source, ("hen",))
    assert "no class has a name that the model knows" in caplog.text


def test_tensors_of_another_shape_start_fresh_and_are_named(source, caplog):
    with caplog.at_level("INFO", "retinanet"):
        started(source, ("cat",), override(CONFIG, {"anchor_ratios": (1.0,)}))
    assert "box_subnet.3.weight" in caplog.text
    assert "its shape differs" in caplog.text


@pytest.mark.usefixtures("undrawn")
def test_a_training_may_start_from_a_run_of_other_classes(trained, tmp_path, caplog):
    data = write_scenes(tmp_path / "data", {"train": 4, "val": 2}, size=(64, 96), seed=3, across=(16, 48))
    with caplog.at_level("INFO", "retinanet"):
        run = retinanet.train(data, "tiny", init=trained, out=tmp_path / "run", **TRAINING)
    assert "disc" in caplog.text
    assert re.search(r"validation: AP over \d of 6 classes; no objects of", caplog.text)
    (theirs, card), (mine, own) = (load_model(folder / "model.safetensors") for folder in (trained, run))
    assert own.model == card.model  # the network of the file, not the preset's
    assert torch.equal(mine.pyramid.lateral[0].weight, theirs.pyramid.lateral[0].weight)


def test_a_model_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError):
        retinanet.train(tmp_path, "tiny", init=tmp_path / "nothing")
