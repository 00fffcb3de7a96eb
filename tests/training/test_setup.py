"""What a training works on: everything that a setting asks for is there, and nothing else changes."""

from functools import partial

import helpers
import pytest
import torch

from retinanet.errors import ConfigError
from retinanet.training import setup as engine
from retinanet.training.loop import train_step
from retinanet.training.setup import inverse_frequency

session_of = partial(helpers.session_of, train_scale=64, batch=4)


def step_of(session):
    (batch,) = session.batches(0, 1)
    return {name: float(value) for name, value in train_step(session, batch, 1e-3).items()}


@pytest.mark.parametrize("normalize", ["step", "image"])
def test_micro_batches_give_the_losses_and_gradients_of_the_whole_step(scenes, normalize):
    settings = {"backbone": "resnet18", "backbone_norm": "group", "normalize": normalize}
    expected = step_of(session_of(scenes, **settings))
    for size in (1, 2, 3):
        assert step_of(session_of(scenes, **settings, micro_batch=size)) == pytest.approx(expected, rel=1e-4)


def test_micro_batches_are_refused_where_they_would_change_the_result(scenes):
    with pytest.raises(ConfigError, match="--backbone-norm group"):
        session_of(scenes, micro_batch=2)
    assert session_of(scenes, micro_batch=4).config.micro_batch == 4


def test_the_same_weights_whatever_the_other_settings(scenes):
    one, other = (
        session_of(scenes).model.state_dict(),
        session_of(scenes, repeat_threshold=0.5).model.state_dict(),
    )
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_alpha_by_inverse_frequency_is_that_of_the_training_boxes(scenes, caplog):
    with caplog.at_level("INFO", "retinanet"):
        session = session_of(scenes, alpha="inverse-frequency")
    assert session.criterion.alpha.tolist() == pytest.approx(inverse_frequency(session.training))
    assert "disc 0." in caplog.text
    assert step_of(session)["class_loss"] > 0


def test_repeats_reach_the_sampler(scenes):
    assert session_of(scenes).sampler.repeats is None
    repeated = session_of(scenes, repeat_threshold=1.0).sampler
    assert repeated.repeats.min() >= 1
    assert repeated.repeats.max() > 1


def test_where_compiling_fails_the_plain_network_is_used_and_a_line_says_why(scenes, monkeypatch, caplog):
    def no_compiler(model, dynamic):
        def network(images):
            raise RuntimeError("no C++ compiler\nwas found")

        return network

    monkeypatch.setattr(engine.torch, "compile", no_compiler)
    with caplog.at_level("INFO", "retinanet"):
        session = session_of(scenes, compile=True)
    assert session.network is session.model
    assert "not compiled, since RuntimeError: no C++ compiler" in caplog.text
    assert step_of(session) == step_of(session_of(scenes))


@pytest.mark.slow
def test_a_compiled_network_has_the_same_losses_and_is_not_compiled_for_each_shape(scenes):
    """Minutes, for the C++ compiler is slow. More than two graphs for six shapes: compiled one by one."""
    from torch._dynamo import reset
    from torch._dynamo.utils import counters

    from retinanet.training.autobatch import dummy_batch

    reset()
    counters.clear()
    settings = {"scale": 288, "train_scale": 288, "batch": 2, "backbone": "resnet18"}
    settings |= {"backbone_norm": "group"}
    plain, fast = session_of(scenes, **settings), session_of(scenes, **settings, compile=True)
    for height, width in [(288, 384), (384, 288), (288, 288), (288, 480), (416, 288), (320, 320)]:
        batch = dummy_batch(plain, 2)
        batch = type(batch)(
            batch.images[..., :1, :1].expand(2, 3, height, width).contiguous(), batch.targets, batch.indices
        )
        one, other = (train_step(session, batch, 0.0) for session in (plain, fast))
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=1e-3)
    assert fast.network is not fast.model
    assert counters["stats"]["unique_graphs"] <= 2
