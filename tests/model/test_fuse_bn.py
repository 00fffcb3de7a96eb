import copy

import pytest
import torch
from timm.layers import BatchNormAct2d, freeze_batch_norm_2d
from torch import nn

from retinanet.model.backbone import Backbone
from retinanet.model.fuse_bn import FrozenConv, FrozenNorm, fused_copy, pairs
from retinanet.model.retinanet import RetinaNet


def lived(module):
    """Statistics and factors as a trained network has them: none is 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(getattr(layer, "running_var", None), torch.Tensor):
            for name, low, high in (
                ("weight", 0.5, 1.5),
                ("bias", -0.5, 0.5),
                ("running_mean", -0.5, 0.5),
                ("running_var", 0.5, 2.0),
            ):
                value = getattr(layer, name).data
                value.copy_(torch.rand(value.shape, generator=generator) * (high - low) + low)
    return module


def unfolded(backbone):
    """The same frozen network as timm computes it."""
    plain = Backbone(backbone.name, "batch")
    plain.body.load_state_dict(backbone.body.state_dict(), strict=False)
    plain.body = freeze_batch_norm_2d(plain.body)
    return plain


@pytest.mark.parametrize(
    "name, norms", [("resnet18", 20), ("resnext50_32x4d", 53), ("mobilenetv3_small_100", 34)]
)
def test_a_frozen_backbone_computes_and_learns_what_it_does_unfolded(name, norms):
    ours = lived(Backbone(name, "frozen")).double()
    assert sum(isinstance(layer, FrozenConv) for layer in ours.modules()) == norms
    theirs = unfolded(ours).double()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for one, other in zip(ours(images), theirs(images), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    sum(level.square().mean() for level in ours(images)).backward()
    sum(level.square().mean() for level in theirs(images)).backward()
    expected = {key: parameter.grad for key, parameter in theirs.body.named_parameters()}
    for key, parameter in ours.body.named_parameters():
        if expected[key] is not None:
            torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-6, atol=1e-9)
    assert expected.keys() == dict(ours.body.named_parameters()).keys()


def test_folding_keeps_the_names_of_all_weights():
    names = set(Backbone("resnet18", "frozen").state_dict())
    assert names == {
        name
        for name in Backbone("resnet18", "batch").state_dict()
        if not name.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize("norm", ["frozen", "batch", "group"])
def test_a_folded_copy_answers_as_the_network_does(norm):
    torch.manual_seed(0)
    model = lived(RetinaNet(2, "resnet18", norm, channels=16, num_convs=1)).double().eval()
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    copied = fused_copy(model)
    for ours, theirs in zip(copied(images), model(images), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    kinds = {type(layer) for layer in copied.modules()}
    assert not kinds & {FrozenConv, FrozenNorm, nn.BatchNorm2d}


def test_folding_leaves_the_network_itself_alone_and_shares_what_does_not_change():
    model = RetinaNet(2, "resnet18", "batch", channels=16, num_convs=1)
    before = copy.deepcopy(model.state_dict())
    copied = fused_copy(model, precision="bf16")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert copied.class_subnet[0].weight.dtype == torch.bfloat16
    assert model.class_subnet[0].weight.dtype == torch.float32
    assert fused_copy(model).class_subnet[0].weight is model.class_subnet[0].weight


def test_in_bf16_norms_that_cannot_be_folded_keep_their_precision():
    model = RetinaNet(2, "resnet18", "group", channels=16, num_convs=1, subnet_norm="group")
    kept = {
        value.dtype
        for layer in fused_copy(model, precision="bf16").modules()
        if isinstance(layer, nn.GroupNorm)
        for value in layer.parameters()
    }
    assert kept == {torch.float32}


class Shared(nn.Module):
    """A convolution used beside its norm, one that is called twice, a norm with its activation inside."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.twice, self.after = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.good, self.active = nn.Conv2d(3, 3, 1), BatchNormAct2d(3)

    def forward(self, x):
        x = self.conv(x)
        x = x + self.norm(x)
        x = self.after(self.twice(self.twice(x)))
        return self.active(self.good(x))


def test_only_a_convolution_that_nobody_else_listens_to_is_folded():
    body = lived(Shared()).eval()
    assert pairs(body) == [("good", "active")]
    holder = nn.ModuleDict({"body": body}).double()
    images = torch.randn(1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fused_copy(holder, "body")["body"](images), body(images))


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x)) if x.sum() > 0 else x


def test_a_network_that_cannot_be_traced_is_computed_as_it_stands():
    assert pairs(Untraceable()) == []
