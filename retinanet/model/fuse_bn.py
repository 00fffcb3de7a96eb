"""Folds batch norm with fixed statistics into the convolution before it."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

Network = TypeVar("Network", bound=nn.Module)


class FrozenNorm(nn.Module):
    """What is left of a fixed batch norm that `FrozenConv` computes: its numbers and its activation."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(norm, name)
            if value is None:  # without factors of its own
                fill = torch.ones_like if name == "weight" else torch.zeros_like
                value = fill(norm.get_buffer("running_mean"))
            self.register_buffer(name, value.detach())
        self.num_features, self.eps = len(self.running_mean), norm.eps
        self.act = activation_of(norm)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W], normalised already -> the same, activated."""
        activated: Tensor = self.act(x)
        return activated


class FrozenConv(nn.Conv2d):
    """A convolution that also computes the `FrozenNorm` after it. Its weight keeps its value and name."""

    def __init__(self, conv: nn.Conv2d, norm: FrozenNorm) -> None:
        super().__init__(**shape_of(conv), bias=False)
        self.weight, self.bias = conv.weight, conv.bias
        self.norm = [norm]  # in a list: it is the network's, at its own place, and no part of this module

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the normalised convolution."""
        normalized: Tensor = self._conv_forward(x, *folded_weights(self, self.norm[0]))
        return normalized


def pairs(body: nn.Module) -> list[tuple[str, str]]:
    """Names of each convolution and the batch norm that alone sees its output.

    They are found by tracing. A network that cannot be traced has none, and is computed as it stands.
    """
    modules = dict(body.named_modules())
    try:
        nodes = [node for node in _Tracer().trace(body).nodes if node.op == "call_module"]
    except Exception:  # whatever Python the network's author wrote
        return []
    calls = [node.target for node in nodes]
    found = []
    for node in nodes:
        source = node.args[0] if node.args else None
        if is_norm(modules[node.target]) and isinstance(source, fx.Node) and source.op == "call_module":
            plain = type(modules[source.target]) in (
                nn.Conv2d,
                FrozenConv,
            )  # others may change their weights before they use them
            if (
                plain
                and len(source.users) == 1
                and calls.count(source.target) == calls.count(node.target) == 1
            ):
                found.append((str(source.target), str(node.target)))
    return found


def freeze_folded(body: nn.Module) -> None:
    """Fold the norms of `body` in each training step; parameters keep their names."""
    for conv_name, norm_name in pairs(body):
        conv, norm = body.get_submodule(conv_name), body.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        frozen = FrozenNorm(norm)
        body.set_submodule(norm_name, frozen)
        body.set_submodule(conv_name, FrozenConv(conv, frozen))


@torch.no_grad()
def fused_copy(model: Network, body: str = "backbone", precision: str = "fp32") -> Network:
    """A copy for inference, in eval mode: the batch norms of `body` folded, with bf16 also bf16 weights.

    A bf16 copy runs under autocast. Weights that do not change are shared with `model`.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    network = copy.deepcopy(model, dict(shared)).eval()
    inner = network.get_submodule(body)
    for conv_name, norm_name in pairs(inner):
        conv, norm = inner.get_submodule(conv_name), inner.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        plain = nn.Conv2d(**shape_of(conv), bias=True)
        weight, bias = folded_weights(conv, norm)
        plain.weight, plain.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
        inner.set_submodule(conv_name, plain.eval())
        inner.set_submodule(norm_name, activation_of(norm))
    if precision == "bf16":
        for layer in network.modules():
            if type(layer) in (nn.Conv2d, nn.Linear):  # norms and the like keep their precision
                for name, value in list(layer.named_parameters(recurse=False)):
                    setattr(layer, name, nn.Parameter(value.to(torch.bfloat16), False))
    return network


def folded_weights(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight [C, ...] and bias [C] of a convolution with its norm: w x scale, and b x scale + shift."""
    weight, bias, mean, variance = (
        getattr(norm, name) for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = (variance + norm.eps).rsqrt() if weight is None else weight * (variance + norm.eps).rsqrt()
    start = 0 - mean if conv.bias is None else conv.bias - mean
    shift = start * scale if bias is None else bias + start * scale
    return conv.weight * scale[:, None, None, None], shift


def shape_of(conv: nn.Conv2d) -> dict[str, Any]:
    """The arguments of a convolution like this one, without memory yet."""
    names = (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    )
    return {name: getattr(conv, name) for name in names} | {"device": "meta"}


def is_norm(module: nn.Module) -> bool:
    """Whether it is a batch norm, timm's or torch's, frozen or live."""
    return isinstance(getattr(module, "running_var", None), Tensor)


def activation_of(norm: nn.Module) -> nn.Module:
    """The activation inside a timm norm, if it has one (drop blocks do nothing in eval mode)."""
    layers = [
        layer
        for name in ("drop", "act")
        for layer in [getattr(norm, name, None)]
        if isinstance(layer, nn.Module)
    ]
    layers = [layer for layer in layers if not isinstance(layer, nn.Identity)]
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not list(m.children()) or is_norm(m)
