"""What a user imports, and how fast the first answer comes."""

import subprocess
import sys
from dataclasses import fields
from inspect import signature

import pytest
import torch

import retinanet
from retinanet.config.io import flat
from retinanet.config.presets import PRESETS, preset
from retinanet.config.schema import (
    CriterionConfig,
    NetworkConfig,
    PostprocessConfig,
    PreprocessConfig,
    TrainConfig,
)
from retinanet.data.augment import Augment
from retinanet.model.criterion import Criterion
from retinanet.model.postprocess import Postprocess
from retinanet.model.preprocess import Preprocess
from retinanet.model.retinanet import RetinaNet


def test_every_public_name_exists_and_the_list_is_sorted():
    assert retinanet.__all__ == sorted(retinanet.__all__)
    for name in retinanet.__all__:
        assert getattr(retinanet, name) is not None
    assert set(retinanet.__all__) == set(retinanet._MODULES)
    with pytest.raises(AttributeError, match="nothing"):
        _ = retinanet.nothing


def test_importing_the_package_and_its_help_load_neither_torch_nor_the_parser_of_flags():
    code = """
import sys, retinanet, retinanet.config
from retinanet import cli
cli.main(["--help"])
print({"torch", "numpy", "tyro"} & {*sys.modules})
"""
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "predict" in text
    assert text.endswith("set()\n")


@pytest.mark.parametrize(
    ("config", "function"),
    [
        (NetworkConfig, RetinaNet),
        (PreprocessConfig, Preprocess),
        (PostprocessConfig, Postprocess),
        (CriterionConfig, Criterion),
    ],
)
def test_defaults_of_the_config_are_those_of_the_function(config, function):
    parameters = signature(function).parameters
    assert vars(config()) == {entry.name: parameters[entry.name].default for entry in fields(config)}


def test_augmentation_defaults_agree_too():
    config = TrainConfig()
    for name, parameter in signature(Augment).parameters.items():
        assert getattr(config, name) == parameter.default


def test_a_setting_has_one_name_in_the_whole_config():
    kinds = (NetworkConfig, PreprocessConfig, PostprocessConfig, CriterionConfig, TrainConfig)
    names = [entry.name for kind in kinds for entry in fields(kind)]
    assert len(names) == len(set(names))
    assert flat(TrainConfig()).keys() == set(names) - {"model", "criterion"}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_what_it_configures(name):
    from dataclasses import asdict

    from retinanet.weights.checkpoint import build

    config = preset(name)
    with torch.device("meta"):  # shapes without values
        assert build(config.model, 2).num_classes == 2
    assert Criterion(**asdict(config.criterion)).gamma == 2


def test_the_papers_preset_is_the_papers_recipe():
    config = preset("r50-600")
    assert (config.batch, config.lr, config.momentum, config.weight_decay, config.budget) == (
        16,
        0.01,
        0.9,
        1e-4,
        "1440000im",
    )
    assert (
        config.criterion.gamma,
        config.criterion.alpha,
        config.model.preprocess.scale,
        config.flip,
        config.jitter,
    ) == (2.0, 0.25, 600, 0.5, (1.0, 1.0))


def test_a_mistake_of_the_user_is_a_value_error_and_a_run_that_fails_is_none():
    mistakes = (retinanet.ConfigError, retinanet.DataError, retinanet.CheckpointError)
    failures = (retinanet.DivergenceError, retinanet.ProcessError)
    assert all(issubclass(kind, retinanet.RetinaNetError) for kind in mistakes + failures)
    assert all(issubclass(kind, ValueError) for kind in mistakes)
    assert not any(issubclass(kind, ValueError) for kind in failures)
