"""The class loss of training: a loss of `losses` summed over all anchors and classes, and its gradient.

A large call goes through torch.compile. Where that fails, the log says so and the plain path does the work,
chunk by chunk.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import unknown_name_error
from . import losses
from .assign import IGNORE
from .losses import Alpha, at_least_float32

log = logging.getLogger("retinanet")

COMPILER = {"works": True}
"""False from the first failure on: without a compiler every trial would cost seconds and fail again."""

COMPILE_FROM = {"cpu": 1 << 19, "cuda": 1 << 20}
"""A call with at least this many logits is compiled. On two cores such a call is then 2.5 ms faster, but each
loss costs 2 s with a warm cache of torch.compile and 10 s or more with an empty one: a training repays that.
The number for a GPU is a guess. Only the size of the call decides: a rule that counted earlier calls would
let a resumed training differ in the last bits from one that was never stopped."""

CHUNK = {"cpu": 1 << 16, "cuda": 1 << 25}
"""Logits worked on at a time, on a CPU by each thread: there they fit its second-level cache, and the dozen
steps below cost one trip to memory. On a GPU every chunk costs a dozen launches, so it is as large as memory
bears."""

LossAndGrad = Callable[..., tuple[Tensor, Tensor]]
"""(neg_logit, **parameters) -> the loss without alpha, and its derivative by neg_logit. neg_logit = -x_t is
the logit of an absent class, and minus the logit of a present one."""


@dataclass(frozen=True, eq=False)
class ClassLoss:
    """A class loss: an entry of `CLASS_LOSSES`.

    dense          (logits [..., K], targets [..., K] of 0 or 1, **parameters) -> [..., K], without alpha; it
                   raises ConfigError for parameters without meaning
    parameters     its parameters and their defaults; `Criterion` takes settings of the same names
    loss_and_grad  the same loss and its derivative in closed form. None: autograd differentiates `dense`,
                   which takes several times the memory
    weighted       whether alpha is a factor of it
    """

    dense: Callable[..., Tensor]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    loss_and_grad: LossAndGrad | None = None
    weighted: bool = True


def class_loss(
    logits: Tensor, labels: Tensor, loss: str = "focal", alpha: Alpha = 0.25, **parameters: Any
) -> Tensor:
    """Sum of the class loss over anchors and classes, as a float32 number.

    logits  [..., K]  any float type; computed in float32 (float64 stays)
    labels  [...]     0..K-1, BACKGROUND (-1): all classes absent, or IGNORE (-2): no loss
    loss    a key of `CLASS_LOSSES`: cross_entropy (Eq. 1), balanced (Eq. 3: alpha), focal (Eq. 5: alpha,
            gamma), focal_star (Eq. 8: alpha, gamma, beta), hinge (Sec. 5.1: alpha, margin)
    alpha   weight of the positives, 1 - alpha that of the negatives: a number, a tensor [K], or None for 1
            and 1
    parameters  of the loss; those of other losses have no effect
    """
    entry, own = _entry_of(loss, parameters)
    loss_and_grad, weight = _with_parameters(entry, **own), _weight(entry, alpha, logits.device)
    if loss_and_grad is None:
        return _dense(logits, labels, entry, weight, own).sum()
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return _value_and_grad(logits.detach(), labels, weight, loss_and_grad)
    total: Tensor = _ClassLoss.apply(logits, labels, weight, loss_and_grad)
    return total


@torch.no_grad()
def anchor_losses(
    logits: Tensor, labels: Tensor, loss: str = "focal", alpha: Alpha = 0.25, **parameters: Any
) -> Tensor:
    """The class loss of each anchor [...], summed over classes; as `class_loss`, but without gradient."""
    entry, own = _entry_of(loss, parameters)
    loss_and_grad, weight = _with_parameters(entry, **own), _weight(entry, alpha, logits.device)
    if loss_and_grad is None:
        return _dense(logits, labels, entry, weight, own).sum(dim=-1)
    sums = [
        _of_a_chunk(x, label, weight, loss_and_grad)[0].sum(dim=1) for x, label in _chunks(logits, labels)
    ]
    return torch.cat(sums).reshape(labels.shape)


class _ClassLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, weight: Tensor | None, loss_and_grad: LossAndGrad
    ) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.others = labels, weight, loss_and_grad
        ctx.gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
        return _value_and_grad(logits, labels, weight, loss_and_grad, ctx.gradient)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:  # the graph was retained, and the caller has the first gradient
            (logits,) = ctx.saved_tensors
            gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
            labels, weight, loss_and_grad = ctx.others
            _value_and_grad(logits, labels, weight, loss_and_grad, gradient)
        if upstream.device.type != "cpu" or upstream != 1:  # a look at the number would wait for a GPU
            gradient.mul_(upstream)  # in place: a second tensor would double the memory
        return gradient, None, None, None


def _value_and_grad(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    loss_and_grad: LossAndGrad,
    gradient: Tensor | None = None,
) -> Tensor:
    """The sum of the loss. Its derivative by the logits is written to `gradient`, unless that is None."""
    exact, device = logits.dtype == torch.float64, logits.device.type
    if gradient is not None and not exact and logits.numel() >= COMPILE_FROM.get(device, math.inf):
        total = _compiled(logits, labels, weight, loss_and_grad, gradient)
        if total is not None:
            return total
    total = logits.new_zeros((), dtype=torch.float64 if exact or device == "cpu" else torch.float32)
    rows = (logits, labels) if gradient is None else (logits, labels, gradient)
    for x, label, *written in _chunks(*rows):
        value, slope = _of_a_chunk(x, label, weight, loss_and_grad)
        if written:
            written[0].copy_(slope)
        total += value.sum()
        del value, slope  # before the next chunk takes memory
    return total if exact else total.float()


def _of_a_chunk(
    x: Tensor, label: Tensor, weight: Tensor | None, loss_and_grad: LossAndGrad
) -> tuple[Tensor, Tensor]:
    """Logits [n, K], labels [n] -> losses [n, K] and their derivatives by the logits [n, K]."""
    x = at_least_float32(x)
    counted = (label != IGNORE).to(x.dtype)[:, None]
    column = label.clamp(min=0)[:, None]
    present = (label >= 0)[:, None]

    # every class as absent (y = -1), then the one present class of each matched anchor in its place
    value, slope = loss_and_grad(x)
    negative = counted if weight is None else counted * (1 - weight)
    value, slope = value.mul_(negative), slope.mul_(negative)
    value_at, slope_at = loss_and_grad(-x.gather(1, column))
    positive = 1.0 if weight is None else weight.expand(x.shape[1])[column]
    value.scatter_(1, column, torch.where(present, value_at * positive, value.gather(1, column)))
    slope.scatter_(1, column, torch.where(present, -slope_at * positive, slope.gather(1, column)))
    return value, slope


def _compiled(
    logits: Tensor, labels: Tensor, weight: Tensor | None, loss_and_grad: LossAndGrad, gradient: Tensor
) -> Tensor | None:
    """What `_value_and_grad` does, in one compiled loop. None where compiling fails, has failed in this
    process, or is under way already; then `gradient` holds nothing of use."""
    if not COMPILER["works"] or torch.compiler.is_compiling():
        return None
    if weight is not None:
        weight = weight.expand(logits.shape[-1]).contiguous()  # a number and one for each class share a graph
    parts = []
    try:
        for rows in _pieces(logits, labels, gradient):
            rows = tuple(tensor.detach() for tensor in rows)  # the caller's tensors get no marks
            if len(rows[0]) < 2:  # 0 and 1 would be graphs of their own
                return None
            for tensor in rows:
                torch._dynamo.mark_dynamic(tensor, 0)
            parts.append(_compile(loss_and_grad)(*rows, weight))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler that is missing, old or switched off fails in many ways
        COMPILER["works"] = False
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        log.info("%s: not compiled, since %s: %s", _name(loss_and_grad), type(error).__name__, reason)
        return None
    return torch.stack(parts).sum().float()


@cache
def _compile(loss_and_grad: LossAndGrad) -> Callable[..., Tensor]:
    """The loop of one loss, compiled once for any number of rows."""

    def value_and_gradient(logits: Tensor, labels: Tensor, gradient: Tensor, weight: Tensor | None) -> Tensor:
        if not torch.compiler.is_compiling():  # it would need memory for every step
            raise RuntimeError("torch.compile is switched off")
        x = logits.float()
        label = labels.int()[:, None]
        present = label == torch.arange(x.shape[1], dtype=torch.int32, device=x.device)
        value, slope = loss_and_grad(torch.where(present, -x, x))
        counted = torch.where(label == IGNORE, 0.0, 1.0)
        share = counted if weight is None else counted * torch.where(present, weight, 1 - weight)
        gradient.copy_(torch.where(present, -slope, slope) * share)
        # float32 bears the sum over some classes, not that over all anchors
        return (value * share).sum(dim=1).double().sum()

    # torch.compile counts graphs, and learns which sizes vary, by code object: so each loss has its own
    name, closure = _name(loss_and_grad), value_and_gradient.__closure__
    own = FunctionType(value_and_gradient.__code__.replace(co_name=name), globals(), name, closure=closure)
    compiled: Callable[..., Tensor] = torch.compile(own, fullgraph=True)
    return compiled


def _name(loss_and_grad: Any) -> str:
    """For the log: the loss and its parameters."""
    numbers = ", ".join(f"{name} {value}" for name, value in loss_and_grad.keywords.items())
    return f"class loss {loss_and_grad.func.__name__.strip('_')} {numbers}".rstrip()


def _dense(
    logits: Tensor, labels: Tensor, entry: ClassLoss, weight: Tensor | None, parameters: Mapping[str, Any]
) -> Tensor:
    """Logits [..., K], labels [...] -> losses [..., K] by the dense form, for autograd."""
    present = labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)
    x = at_least_float32(logits)
    value = entry.dense(x, present.to(x.dtype), **parameters)
    share = 1.0 if weight is None else torch.where(present, weight, 1 - weight)
    return torch.where((labels == IGNORE)[..., None], 0, value * share)


def _chunks(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors [..., K] or [...] -> views [n, K] or [n] of some rows at a time, so many as CHUNK allows."""
    threads = max(2, torch.get_num_threads()) if logits.device.type == "cpu" else 1
    rows = max(1, threads * CHUNK.get(logits.device.type, 1 << 25) // logits.shape[-1])
    for piece in _pieces(logits, *others):
        yield from zip(*(tensor.split(rows) for tensor in piece), strict=True)


def _pieces(logits: Tensor, *others: Tensor) -> list[tuple[Tensor, ...]]:
    """Tensors [B, N, ...] -> views [B N, ...]; those of each image where the logits would be copied."""
    tensors = (logits, *others)
    if logits.dim() == 3 and not logits.is_contiguous():
        return list(zip(*tensors, strict=True))
    return [tuple(tensor.flatten(0, logits.dim() - 2) for tensor in tensors)]


def _weight(entry: ClassLoss, alpha: Alpha, device: torch.device) -> Tensor | None:
    """Alpha, [1] or [K], or None for 1 and 1."""
    if alpha is None or not entry.weighted:
        return None
    if isinstance(alpha, Tensor):
        return alpha.to(device, torch.float32).reshape(-1)
    return torch.full((1,), float(alpha), device=device)  # `as_tensor` would wait for a copy


def _entry_of(loss: str, parameters: Mapping[str, Any]) -> tuple[ClassLoss, dict[str, Any]]:
    """The loss of that name, and its parameters or their defaults; ConfigError for an unknown name."""
    if loss not in CLASS_LOSSES:
        raise unknown_name_error("class loss", loss, CLASS_LOSSES)
    check_parameter_names(parameters)
    entry = CLASS_LOSSES[loss]
    return entry, {name: parameters.get(name, default) for name, default in entry.parameters.items()}


@cache
def _with_parameters(entry: ClassLoss, **parameters: Any) -> LossAndGrad | None:
    """`loss_and_grad` with its parameters, always the same object; None where the loss has none."""
    nothing = torch.zeros(1)
    entry.dense(nothing, nothing, **parameters)  # refuses parameters without meaning
    return None if entry.loss_and_grad is None else partial(entry.loss_and_grad, **parameters)


def check_parameter_names(parameters: Mapping[str, Any]) -> None:
    """ConfigError for a parameter that no class loss has."""
    known = {name for entry in CLASS_LOSSES.values() for name in entry.parameters}
    for name in parameters:
        if name not in known:
            raise unknown_name_error("parameter of a class loss", name, sorted(known))


def _cross_entropy(neg_logit: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 1 and 9."""
    miss, loss = _sigmoid_and_softplus(neg_logit)
    return loss, miss


def _focal(neg_logit: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Eq. 4 and 10. 1 - p_t = sigmoid(neg_logit) is exact when it is small. When it is large,
    p_t = 1 - (1 - p_t) loses digits, but then adds almost nothing to the gradient. Autograd differentiates
    nothing here, so any gamma is safe at 1 - p_t = 0."""
    if gamma == 0:
        return _cross_entropy(neg_logit)
    miss, loss = _sigmoid_and_softplus(neg_logit)  # 1 - p_t and -log p_t
    focus = miss**gamma
    slope = torch.addcmul(loss, miss, loss, value=-1).mul_(gamma).add_(miss)  # gamma p_t (-log p_t) + 1 - p_t
    return loss.mul_(focus), slope.mul_(focus)


def _focal_star(neg_logit: Tensor, gamma: float, beta: float) -> tuple[Tensor, Tensor]:
    """Eq. 8 and 11."""
    miss, loss = _sigmoid_and_softplus(gamma * neg_logit - beta)
    return loss / gamma, miss


def _hinge(neg_logit: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """max(0, margin - p_t), and p_t (1 - p_t) below the margin."""
    p = torch.sigmoid(-neg_logit)
    return F.relu(margin - p), torch.where(p < margin, p * torch.sigmoid(neg_logit), 0)


def _sigmoid_and_softplus(neg_logit: Tensor) -> tuple[Tensor, Tensor]:
    """sigmoid(neg_logit) and log(1 + exp(neg_logit)) from one exponential, exact at both ends."""
    small = neg_logit.abs().neg_().exp_()  # in place: a chunk's steps should stay in the cache
    softplus = _log1p(small).add_(F.relu(neg_logit))
    return torch.where(neg_logit < 0, small, 1.0).div_(small.add_(1)), softplus


def _log1p(small: Tensor) -> Tensor:
    """log(1 + small) for 0..1."""
    if not torch.compiler.is_compiling():
        return torch.log1p(small)
    # 2 artanh(s) with s at most 1/3: in a compiled loop, which waits for arithmetic, twice as fast; what is
    # left out is below 2e-8
    s = small / (2 + small)
    series = torch.full_like(s, 1 / 13)
    for odd in (11, 9, 7, 5, 3, 1):
        series = series * (s * s) + 1 / odd
    return 2 * s * series


CLASS_LOSSES: dict[str, ClassLoss] = {
    "cross_entropy": ClassLoss(losses.cross_entropy, {}, _cross_entropy, weighted=False),
    "balanced": ClassLoss(losses.cross_entropy, {}, _cross_entropy),
    "focal": ClassLoss(partial(losses.focal_loss, alpha=None), {"gamma": 2.0}, _focal),
    "focal_star": ClassLoss(losses.focal_loss_star, {"gamma": 2.0, "beta": 1.0}, _focal_star),
    "hinge": ClassLoss(losses.hinge_loss, {"margin": 0.5}, _hinge),
}
"""Name -> class loss. A new one is its dense form and an entry here; with `loss_and_grad` it is fast."""
