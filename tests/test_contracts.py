"""What must stay: the flags of every command, and the names under which weights are stored."""

import hashlib

import pytest
import torch
from closures import flags

from retinanet import cli
from retinanet.model.retinanet import RetinaNet

FLAGS = """
demo: --out --budget --device --seed

check: --layout --images --max-pixels --strict --deep --out --preset --scale --anchor-size
    --anchor-scales --anchor-ratios

train: --preset --resume --dry-run --set --out --budget --init --seed --layout --images --strict
    --invalid --batch --micro-batch --lr --optimizer --schedule --ema --backbone --backbone-norm
    --pyramid --anchor-size --scale --train-scale --loss --alpha --gamma --mining --box-loss --flip
    --jitter --photometric --repeat-threshold --compile --precision --device --workers --validations
    --log-every --tensorboard

train --resume RUN: --preset --resume --dry-run --data --images --device --workers --micro-batch

replay: --device --precision

eval: --layout --images --max-pixels --strict --invalid --device --batch --workers --precision --scale
    --scales --tiles --overlap --split --out

predict: --layout --images --max-pixels --strict --invalid --device --batch --workers --precision --scale
    --scales --tiles --overlap --out --split --threshold --save-images

audit: --split --layout --images --max-pixels --strict --invalid --device --batch --workers --precision
    --scale --scales --out --count

export: --layout --images --max-pixels --strict --invalid --format --out --precision --size --scale
    --data --split --calibration --max-drop --workers

import: --out --names --bn-eps --style

serve: --host --port --token --auth --hosts --device --precision --scale --max-batch --max-wait --queue
    --decoders --max-images --max-bytes --max-pixels
"""
"""Scripts of users hold these: a flag that goes or comes is a decision."""
PYRAMIDS = ("fpn", "single", "hierarchy", "finest")
DIGESTS = {
    "resnet18 none": "4da0bf1d667779d1 93da26e1268ebb2d 4da0bf1d667779d1 3a03c01c833889a5",
    "resnet18 group": "341c2eb73ad3efce 3bd81263cf1beaf7 341c2eb73ad3efce 0d02ec0619e345a9",
    "resnet50 none": "42b2f35fcad3c8f6 0ad4464ac6b7355c 42b2f35fcad3c8f6 40f0c0e612da74ed",
    "resnet50 group": "dba9df6ccbaa86f3 cfd4f8733ee44496 dba9df6ccbaa86f3 013309446e36a60f",
    "convnext_tiny none": "5a91d96411137907 f07cfca5c4b08056 5a91d96411137907 9052e098fd8924f1",
    "convnext_tiny group": "e2b3fce7d200db0d 054d60502a247b8e e2b3fce7d200db0d 0ab27b4ded05adc8",
}
"""Backbone and norm of the subnets -> a digest for each design of the pyramid."""


@pytest.mark.parametrize("entry", FLAGS.strip().split("\n\n"), ids=lambda entry: entry.split(":")[0])
def test_the_flags_of_a_command_are_the_frozen_ones(entry):
    command, frozen = entry.split(":")
    assert flags(command) == frozen.split()


def test_every_command_with_flags_is_frozen_and_train_has_at_most_40():
    frozen = {entry.split(":")[0] for entry in FLAGS.strip().split("\n\n")}
    assert {name for name in cli.COMMANDS if name not in ("models", "lab")} == frozen - {"train --resume RUN"}
    assert len(flags("train")) <= 40
    assert flags("models") == flags("lab") == []


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "convnext_tiny"])
@pytest.mark.parametrize("norm", ["none", "group"])
@pytest.mark.parametrize("pyramid", PYRAMIDS)
def test_the_keys_of_the_state_dict_are_those_of_every_file_so_far(backbone, norm, pyramid):
    with torch.device("meta"):
        model = RetinaNet(3, backbone, "batch", subnet_norm=norm, pyramid=pyramid)
    expected = DIGESTS[f"{backbone} {norm}"].split()[PYRAMIDS.index(pyramid)]
    keys = "\n".join(f"{name} {list(value.shape)}" for name, value in sorted(model.state_dict().items()))
    assert hashlib.sha256(keys.encode()).hexdigest()[:16] == expected
