"""Schedules by hand, the average by hand, weight decay where it belongs."""

import pytest
import torch
from torch import nn

from retinanet.errors import ConfigError
from retinanet.training.optim import EMA, build_optimizer, lr_factor, scaled_rate


def test_the_paper_drops_its_rate_at_60k_and_80k_of_90k():
    at = {
        i: lr_factor(i, 90_000, 500, "drops") for i in (0, 499, 500, 59_999, 60_000, 79_999, 80_000, 89_999)
    }
    assert at[0] == pytest.approx(1 / 501)
    assert at[499] == pytest.approx(500 / 501)
    assert at[500] == at[59_999] == 1
    assert at[60_000] == at[79_999] == pytest.approx(0.1)
    assert at[80_000] == at[89_999] == pytest.approx(0.01)


def test_a_cosine_starts_at_1_passes_a_half_and_ends_at_0():
    assert lr_factor(100, 1100, 100, "cosine") == pytest.approx(1)
    assert lr_factor(600, 1100, 100, "cosine") == pytest.approx(0.5)
    assert lr_factor(1099, 1100, 100, "cosine") < 1e-5


def test_warm_up_takes_at_most_a_tenth_of_a_short_run():
    assert lr_factor(10, 100, 500, "cosine") == pytest.approx(1)


def test_an_unknown_schedule_names_the_known():
    with pytest.raises(ConfigError, match="cosine"):
        lr_factor(0, 10, 0, "cosin")


def test_biases_and_normalisation_layers_do_not_decay():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8))
    decayed, free = build_optimizer(model, "adamw", 1e-3, 0.9, 0.05).param_groups
    assert [list(p.shape) for p in decayed["params"]] == [[8, 3, 3, 3]]
    assert decayed["weight_decay"] == 0.05
    assert [p.ndim for p in free["params"]] == [1, 1, 1]
    assert free["weight_decay"] == 0


def test_frozen_parameters_are_not_optimised():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    groups = build_optimizer(model, "sgd", 0.1, 0.9, 1e-4).param_groups
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in model[1].parameters()}


def test_the_average_follows_weights_and_buffers():
    source, target = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
    average = EMA(source, target, decay=0.5)
    with torch.no_grad():
        source.weight.fill_(3.0)
        source.running_mean.fill_(4.0)
    average.update()  # the decay of the first step is 1 - 9/11
    assert target.weight.item() == pytest.approx(1 + 2 * 9 / 11)
    assert target.running_mean.item() == pytest.approx(4 * 9 / 11)
    for _ in range(100):
        average.update()
    assert target.weight.item() == pytest.approx(3.0)
    assert not target.training


def test_the_rate_goes_with_the_batch_for_sgd_and_with_its_root_for_adamw():
    assert scaled_rate(0.01, 4, 16, "sgd") == pytest.approx(0.0025)
    assert scaled_rate(0.01, 4, 16, "adamw") == pytest.approx(0.005)
