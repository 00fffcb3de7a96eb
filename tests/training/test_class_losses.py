"""Every class loss and way of mining in a training: it runs, it splits without a change, it resumes."""

import json
import math
from functools import partial

import helpers
import pytest
import torch
from helpers import CPU

import retinanet
from retinanet.commands import replay
from retinanet.config.commands import ReplayConfig
from retinanet.config.io import override
from retinanet.config.presets import preset
from retinanet.errors import ConfigError
from retinanet.evaluation.evaluate import evaluate
from retinanet.model.criterion import MINING
from retinanet.training.diagnose import level_losses, write_dump
from retinanet.training.loop import train_step
from retinanet.training.resume import Counters, load_state, save_state
from retinanet.training.setup import resolve_config

SMALL = helpers.SMALL | {"train_scale": 64, "mining_batch": 32}
pytestmark = pytest.mark.usefixtures("undrawn")
session_of = partial(helpers.session_of, **SMALL)


def steps_of(session, start, stop, rate=1e-3):
    """The numbers of these steps."""
    return [
        {name: float(value) for name, value in train_step(session, batch, rate).items()}
        for batch in session.batches(start, stop)
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "hinge", "mining": "ohem"},
        {"loss": "balanced", "mining": "ohem-1:3", "mining_nms": None},
        {"mining": "random"},
    ],
    ids=str,
)
def test_a_run(scenes, tmp_path, settings):
    length = {"budget": "3it", "log_every": 1, "validations": 1}
    run = retinanet.train(scenes, "tiny", out=tmp_path / "run", **SMALL, **length, **settings)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["train"] * 3 + ["val"]
    made = json.loads((run / "config.json").read_text())["config"]["criterion"]
    assert {name: made[name] for name in settings} == settings


@pytest.mark.parametrize("mining", MINING[1:])
def test_micro_batches_give_the_losses_and_gradients_of_the_whole_step(scenes, mining):
    settings = {"mining": mining, "backbone": "resnet18", "backbone_norm": "group", "batch": 3}
    (expected,) = steps_of(session_of(scenes, **settings), 0, 1)
    assert steps_of(session_of(scenes, **settings, micro_batch=2), 0, 1) == [
        pytest.approx(expected, rel=1e-4)
    ]


def test_random_minibatches_are_the_same_after_a_stop(scenes, tmp_path):
    whole = steps_of(session_of(scenes, mining="random"), 0, 4)
    first, second = session_of(scenes, mining="random"), session_of(scenes, mining="random")
    before = steps_of(first, 0, 2)
    save_state(first, Counters(2), tmp_path)
    load_state(second, tmp_path)
    torch.manual_seed(99)
    assert [*before, *steps_of(second, 2, 4)] == whole


@pytest.mark.parametrize("mining", MINING)
def test_the_losses_of_a_split_do_not_depend_on_the_batch(scenes, mining):
    session = session_of(scenes, mining=mining)
    one, three = (
        evaluate(session.detector(), session.validation, size, criterion=session.criterion).losses
        for size in (1, 3)
    )
    assert one == pytest.approx(three, rel=1e-4)
    assert set(one) == {"class_loss", "box_loss"}


@pytest.mark.parametrize("mining", MINING[1:])
def test_a_dump_reproduces_a_mined_step(scenes, tmp_path, mining):
    session = session_of(scenes, mining=mining)
    (batch,) = session.batches(3, 4)
    levels = level_losses(session, batch)
    about = {"iteration": 3, "lr": 0.0, "levels": levels, "files": ["a.jpg", "b.jpg"]}
    write_dump(tmp_path / "early.pt", session, batch, about)
    numbers = {name: float(value) for name, value in train_step(session, batch, 0.0).items()}
    assert {name: sum(parts) for name, parts in levels.items()} == pytest.approx(
        {name: numbers[name] for name in levels}, rel=1e-5
    )
    content = torch.load(tmp_path / "early.pt", weights_only=True)
    torch.save({**content, "numbers": numbers}, tmp_path / "dump.pt")
    assert replay.run(tmp_path / "dump.pt", ReplayConfig())


@pytest.mark.parametrize(
    "settings", [{"gamma": 0.1}, {"gamma": 0.2}, {"gamma": 0.5}, {"loss": "hinge"}], ids=str
)
def test_20_steps_in_bf16_are_finite(scenes, settings):
    """By then some logits exceed 6.25, where the usual form of the focal loss has NaN gradients in bf16."""
    session = session_of(scenes, precision="bf16", **settings)
    numbers = steps_of(session, 0, 20, rate=1e-2)
    assert all(math.isfinite(value) for step in numbers for value in step.values())
    (batch,) = session.batches(0, 1)
    with torch.no_grad():
        logits, _ = session.model(session.preprocess.normalize(batch.images, batch.targets.sizes))
    assert min(float(level.min()) for level in logits) < -6.25


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"mining": "ohem-1-3"}, "did you mean 'ohem-1:3'"),
        ({"mining_batch": 3}, "mining_batch must be between 4"),
        ({"mining_nms": 1.5}, "mining_nms must be between 0 and 1"),
        ({"loss": "hinge", "margin": 0.0}, "margin must be above 0 and at most 1"),
        ({"loss": "hing"}, "did you mean 'hinge'"),
    ],
)
def test_settings_without_meaning_are_refused(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        resolve_config(override(preset("tiny"), settings), CPU)
