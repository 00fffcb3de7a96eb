"""Settings: found wherever they live, refused with their neighbours, and read back from JSON."""

import json
from pathlib import Path

import pytest

from retinanet.config.io import check, flat, from_json, from_text, override, parse_budget, to_json
from retinanet.config.presets import PRESETS, preset
from retinanet.config.schema import ModelConfig, TrainConfig
from retinanet.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7min", (420, "s")),
        ("90s", (90, "s")),
        ("1.5h", (5400, "s")),
        ("300it", (300, "it")),
        ("12ep", (12, "ep")),
        (" 2 min ", (120, "s")),
    ],
)
def test_budgets(text, expected):
    assert parse_budget(text) == expected


@pytest.mark.parametrize("text", ["7", "min", "-3it", "0min", "7 minutes", "1d", ""])
def test_what_is_no_budget_is_refused_with_examples(text):
    with pytest.raises(ConfigError, match="7min"):
        parse_budget(text)


def test_override_reaches_into_the_parts():
    config = override(TrainConfig(), {"gamma": 1.0, "scale": 800, "lr": 0.02})
    assert (config.criterion.gamma, config.model.preprocess.scale, config.lr) == (1.0, 800, 0.02)
    assert config.criterion.alpha == 0.25


@pytest.mark.parametrize(
    ("name", "near"), [("gama", "gamma"), ("learning_rate", "choose one of"), ("batchsize", "batch")]
)
def test_an_unknown_setting_names_the_nearest(name, near):
    with pytest.raises(ConfigError, match=near):
        override(TrainConfig(), {name: 1})


def test_what_keeps_the_boxes_of_imported_weights_is_not_a_users_setting():
    with pytest.raises(ConfigError, match="`retinanet import` sets it"):
        override(TrainConfig(), {"p6": "p5"})


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("max_grad_norm=None", None),
        ("max_grad_norm=1", 1.0),
        ("alpha=inverse-frequency", "inverse-frequency"),
        ("anchor-scales=1 1.5", (1.0, 1.5)),
        ("compile=true", True),
        ("batch=auto", "auto"),
        ("images=None", None),
        ("loss=focl", "focl"),
    ],
)
def test_a_setting_as_words_is_read_by_its_type(pair, value):
    assert [*from_text(TrainConfig(), [pair]).values()] == [value]


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="'r50-600'"):
        preset("r50_600")


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_survives_json(name):
    written = json.loads(json.dumps(to_json(preset(name))))
    assert from_json(ModelConfig, written["model"]) == preset(name).model


def test_flat_names_every_setting_once():
    names = flat(TrainConfig())
    assert {"gamma", "backbone", "lr", "scale", "seed"} <= names.keys()
    assert not {"model", "criterion"} & names.keys()


def test_presets_differ_from_the_paper_only_where_they_say():
    assert preset("r50-600") == override(TrainConfig(), {"budget": "1440000im"})


@pytest.mark.parametrize("name", PRESETS)
def test_the_documentation_says_of_a_preset_what_it_says_of_itself(name):
    one = PRESETS[name]
    row = f"| `{name}` | {one.hardware} | {one.expected} | {one.source} | {one.measured} |"
    assert row in (Path(__file__).parents[2] / "docs" / "training.md").read_text()


@pytest.mark.parametrize("name", PRESETS)
def test_a_whole_config_survives_json(name):
    config = override(preset(name), {"out": Path("runs/x"), "alpha": "inverse-frequency", "batch": "auto"})
    assert from_json(TrainConfig, json.loads(json.dumps(to_json(config)))) == config


def test_the_papers_length_counts_images_so_that_it_goes_with_the_batch():
    assert parse_budget(preset("r101-600").budget) == (90_000 * 16, "im")
    assert parse_budget(preset("x101-800").budget) == (1.5 * 90_000 * 16, "im")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"batch": "all"}, "did you mean|choose one of"),
        ({"batch": True}, "batch must be"),
        ({"alpha": "inverse"}, "inverse-frequency"),
        ({"lr": "fast"}, "lr must be at least 0"),
        ({"prior": 1.0}, "prior must be above 0 and below 1"),
        ({"positive": 0.0}, "positive must be above 0 and at most 1"),
        ({"micro_batch": 0}, "micro_batch"),
        ({"save_every": "now"}, "save_every 'now' is not a length"),
        ({"budget": 4}, "budget 4 has no unit; is it '4it' .* or '4min'"),
        ({"budget": "4.5"}, "budget 4.5 has no unit"),
        ({"save_every": 300}, "save_every 300 has no unit"),
        ({"budget": True}, "budget True is not a length"),
        ({"repeat_threshold": 2.0}, "repeat_threshold"),
        ({"warmup": -1}, "warmup"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"seed": -1, "workers": -1}, "seed must be between"),
        ({"loss": "cross_entropy", "alpha": "inverse-frequency"}, "has no alpha"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        check(override(TrainConfig(), settings))
