"""What many tests need: small settings, a state of training, the record of a run, what is the same."""

import json
import sys

import torch

from retinanet.config.io import override, reading
from retinanet.config.presets import preset
from retinanet.config.schema import ModelConfig
from retinanet.data.splits import open_training
from retinanet.training.setup import build_state, resolve_config

CPU = torch.device("cpu")
SMALL = {"backbone": "test_resnet", "channels": 32, "num_convs": 1, "scale": 64, "train_scale": None}
SMALL |= {"batch": 2, "workers": 0, "device": "cpu", "precision": "fp32"}
"""A network of half a million parameters: its step and its files take milliseconds."""


TRAINING = {"budget": "1it", "batch": 2, "workers": 0, "device": "cpu", "validations": 1, "lr": 0.0}
"""A training from given weights that leaves them as they are."""


def words(line, *more):
    """The words of a command line."""
    return [*line.split(), *map(str, more)]


def torchrun(processes, *command):
    """The words that start a command of ours in several processes."""
    run = words("-m torch.distributed.run --standalone --nproc-per-node", processes)
    return [sys.executable, *run, "-m", "retinanet", *map(str, command)]


def config_of(**settings):
    """The small settings, with changes, of the preset `tiny`."""
    config = override(preset("tiny"), SMALL | settings)
    return resolve_config(config, torch.device(config.device))


def session_of(data, **settings):
    """A state of training before its first step."""
    config = config_of(**settings)
    return build_state(
        config, *open_training(data, config.seed, **reading(config)), torch.device(config.device)
    )


def rows(run):
    """The record of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same(one, other):
    """Detections are those of the other within the rounding of float32."""
    torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-4, atol=1e-2)
    assert torch.equal(one.labels, other.labels)


def equal(one, other):
    """Detections are those of the other to the bit."""
    return all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("boxes", "scores", "labels")
    )


def model_config(**settings):
    """A ModelConfig from settings by name, wherever among its parts they live."""
    return override(ModelConfig(), settings, foreign=True)
