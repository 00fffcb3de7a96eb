"""Functions through torch.compile where that works. Where it does not, one line in the log says so and the
plain path does the work.

Compiling costs seconds and may fail, so whoever comes here has a plain path too, and takes it where little is
to be done.
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
from .losses import at_least_float32

log = logging.getLogger("retinanet")

COMPILER = {"works": True}
"""False from the first failure on: without a compiler every trial would cost seconds and fail again."""

Function = Callable[..., Tensor]


def attempt(function: Function, name: str, rows: tuple[Tensor, ...], *others: Tensor | None) -> Tensor | None:
    """function(*rows, *others), compiled; None where compiling fails, has failed in this process, or is under
    way already.

    function  takes and returns tensors, and is the same object from call to call: a new one would be compiled
              anew
    name      what the log calls it; of several made by one `def`, each has its own
    rows      [N, ...] each, N may vary from call to call without a further compilation, other dimensions
              rarely should; None below 2

    After None, what the function may have written to its arguments is not to be relied on.
    """
    if (
        not COMPILER["works"] or torch.compiler.is_compiling() or min(map(len, rows)) < 2
    ):  # 0 and 1 would be graphs of their own
        return None
    try:
        rows = tuple(tensor.detach() for tensor in rows)  # the marks are left on these, not on the caller's
        for tensor in rows:
            torch._dynamo.mark_dynamic(tensor, 0)
        return _compile_once(function, name)(*rows, *others)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a missing, old or switched off compiler makes of it
        COMPILER["works"] = False
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        log.info("%s: not compiled, since %s: %s", name, type(error).__name__, reason)
        return None


@cache
def _compile_once(function: Function, name: str) -> Function:
    """Through torch.compile, which counts graphs, and learns which numbers vary, by code object: so each
    function has one of its own.
    """

    assert isinstance(function, FunctionType)
    code = function.__code__.replace(co_name=name)
    alone = FunctionType(code, function.__globals__, name, function.__defaults__, function.__closure__)
    fast: Function = torch.compile(alone, fullgraph=True)
    return fast


COMPILE_FROM = {"cpu": 1 << 19, "cuda": 1 << 20}
"""Logits of a call from which on it is compiled. On two cores such a call is then 2.5 ms faster, but each
loss costs 2 s with a warm cache
of torch.compile and 10 s or more with an empty one: a training repays that. On a GPU the number is a guess,
not measured. Only the call decides: a rule that counted earlier calls would let a resumed training differ, in
the last bits, from one that was never stopped."""

CHUNK = {"cpu": 1 << 16, "cuda": 1 << 25}
"""Logits worked on at a time, on a CPU by each thread: there they fit its second-level cache, so that the
dozen steps below cost one trip
to memory; on a GPU every chunk costs a dozen launches, so they are as many as memory bears."""

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
    logits: Tensor,
    labels: Tensor,
    loss: str = "focal",
    alpha: float | Tensor | None = 0.25,
    **parameters: Any,
) -> Tensor:
    """Sum of the class loss over anchors and classes, as a float32 number.

    logits  [..., K]  any float type; computed in float32 (float64 stays)
    labels  [...]     0..K-1, BACKGROUND (-1): all classes absent, or IGNORE (-2): no loss
    loss    a key of `CLASS_LOSSES`: cross_entropy (Eq. 1), balanced (Eq. 3: alpha), focal (Eq. 5: alpha,
            gamma), focal_star (Eq. 8: alpha, gamma, beta), hinge (Sec. 5.1: alpha, margin)
    alpha   weight of the positives, 1 - alpha that of the negatives: a number, a tensor [K], or None for 1
            and 1
    parameters  of the loss; those of other losses have no effect

    It is the sum of the loss's dense form, in one pass that also writes the gradient.
    """
    loss_and_grad, weight = _curve_of(loss, parameters), _weight(loss, alpha, logits)
    if loss_and_grad is None:
        return _dense(logits, labels, loss, weight, parameters).sum()
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return _value_and_grad(logits.detach(), labels, weight, loss_and_grad, None)
    total: Tensor = _ClassLoss.apply(logits, labels, weight, loss_and_grad)
    return total


@torch.no_grad()
def anchor_losses(
    logits: Tensor,
    labels: Tensor,
    loss: str = "focal",
    alpha: float | Tensor | None = 0.25,
    **parameters: Any,
) -> Tensor:
    """The class loss of each anchor, summed over classes: [...], float32 (float64 stays), no gradient.
    Arguments as in `class_loss`.
    """
    loss_and_grad, weight = _curve_of(loss, parameters), _weight(loss, alpha, logits)
    if loss_and_grad is None:
        return _dense(logits, labels, loss, weight, parameters).sum(dim=-1)
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
        if gradient is None:  # the graph was retained, and the first gradient is in other hands
            (logits,) = ctx.saved_tensors
            gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
            labels, weight, loss_and_grad = ctx.others
            _value_and_grad(logits, labels, weight, loss_and_grad, gradient)
        if upstream.device.type != "cpu" or upstream != 1:  # to look at it would make the step wait for a GPU
            # in place, or there would be two; one number, it stays float32 in the product
            gradient.mul_(upstream)
        return gradient, None, None, None


def _value_and_grad(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    loss_and_grad: LossAndGrad,
    gradient: Tensor | None,
) -> Tensor:
    """The sum of the loss. Its derivative by the logits is written to `gradient`, unless that is None.
    Compiled where that pays and works; else chunk by chunk, in the memory of a few chunks.
    """
    exact = logits.dtype == torch.float64
    large = logits.numel() >= COMPILE_FROM.get(logits.device.type, math.inf)
    if gradient is not None and large and not exact:
        total = _compiled(logits, labels, weight, loss_and_grad, gradient)
        if total is not None:
            return total
    total = logits.new_zeros(
        (), dtype=torch.float64 if exact or logits.device.type == "cpu" else torch.float32
    )
    rows = (logits, labels) if gradient is None else (logits, labels, gradient)
    for x, label, *written in _chunks(*rows):
        value, slope = _of_a_chunk(x, label, weight, loss_and_grad)
        if written:
            written[0].copy_(slope)
        total += value.sum()
        del value, slope  # before the next chunk takes memory
    return total if exact else total.float()


def _compiled(
    logits: Tensor, labels: Tensor, weight: Tensor | None, loss_and_grad: LossAndGrad, gradient: Tensor
) -> Tensor | None:
    """The sum of the loss in one loop, which also writes the gradient; None where compiling fails."""
    if weight is not None:
        weight = weight.expand(logits.shape[-1]).contiguous()  # a number and one for each class share a graph
    parts = []
    for rows in _pieces(logits, labels, gradient):
        part = attempt(_one_loop(loss_and_grad), _name(loss_and_grad), rows, weight)
        if part is None:
            return None
        parts.append(part)
    return torch.stack(parts).sum().float()


@cache
def _one_loop(loss_and_grad: LossAndGrad) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]:
    """What is compiled for a loss."""

    def value_and_gradient(logits: Tensor, labels: Tensor, gradient: Tensor, weight: Tensor | None) -> Tensor:
        if not torch.compiler.is_compiling():
            raise RuntimeError(
                "torch.compile is switched off"
            )  # or memory for every step of it would be needed
        x = logits.float()
        label = labels.int()[:, None]
        present = label == torch.arange(x.shape[1], dtype=torch.int32, device=x.device)
        value, slope = loss_and_grad(torch.where(present, -x, x))
        counted = torch.where(label == IGNORE, 0.0, 1.0)
        share = counted if weight is None else counted * torch.where(present, weight, 1 - weight)
        gradient.copy_(torch.where(present, -slope, slope) * share)
        return (
            (value * share).sum(dim=1).double().sum()
        )  # float32 bears the sum over some classes, not that over all anchors

    return value_and_gradient


def _name(loss_and_grad: LossAndGrad) -> str:
    """For the log: the loss and its parameters."""
    assert isinstance(loss_and_grad, partial)
    numbers = ", ".join(f"{name} {value}" for name, value in loss_and_grad.keywords.items())
    return f"class loss {loss_and_grad.func.__name__.strip('_')} {numbers}".rstrip()


def _of_a_chunk(
    x: Tensor, label: Tensor, weight: Tensor | None, loss_and_grad: LossAndGrad
) -> tuple[Tensor, Tensor]:
    """Logits [n, K], labels [n] -> losses [n, K] and their derivatives by the logits [n, K]."""
    x = x if x.dtype == torch.float64 else x.float()
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


def _dense(
    logits: Tensor, labels: Tensor, loss: str, weight: Tensor | None, parameters: Mapping[str, Any]
) -> Tensor:
    """Logits [..., K], labels [...] -> losses [..., K] by the dense form, for autograd."""
    entry = CLASS_LOSSES[loss]
    present = labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)
    x = at_least_float32(logits)
    value = entry.dense(x, present.to(x.dtype), **_own(entry, parameters))
    share = 1.0 if weight is None else torch.where(present, weight, 1 - weight)
    return torch.where((labels == IGNORE)[..., None], 0, value * share)


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors [B, N, ...] -> views [n, ...] of some rows at a time, that many as the first may have."""
    logits = tensors[0]
    threads = max(2, torch.get_num_threads()) if logits.device.type == "cpu" else 1
    rows = max(1, threads * CHUNK.get(logits.device.type, 1 << 25) // logits.shape[-1])
    for piece in _pieces(*tensors):
        yield from zip(*(tensor.split(rows) for tensor in piece), strict=True)


def _pieces(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Tensors [B, n, ...] -> views [B n, ...] of them; B times those of a picture where the first, which is
    large, would be copied.
    """
    logits = tensors[0]
    if logits.dim() == 3 and not logits.is_contiguous():
        return list(zip(*tensors, strict=True))
    return [tuple(tensor.flatten(0, logits.dim() - 2) for tensor in tensors)]


def _weight(loss: str, alpha: float | Tensor | None, logits: Tensor) -> Tensor | None:
    """Alpha, [1] or [K], or None for 1 and 1."""
    if alpha is None or not CLASS_LOSSES[loss].weighted:
        return None
    if isinstance(alpha, Tensor):
        return alpha.to(logits.device, torch.float32).reshape(-1)
    return torch.full(
        (1,), float(alpha), device=logits.device
    )  # made on the device; `as_tensor` would wait for a copy


def _own(entry: ClassLoss, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Of the parameters those of this loss, or their defaults."""
    return {name: parameters.get(name, default) for name, default in entry.parameters.items()}


def _curve_of(loss: str, parameters: Mapping[str, Any]) -> LossAndGrad | None:
    """`loss_and_grad` with its parameters, the same object from call to call; None where the loss has none.
    ConfigError for a loss that is not known, or parameters without meaning.
    """
    if loss not in CLASS_LOSSES:
        raise unknown_name_error("class loss", loss, CLASS_LOSSES)
    check_parameter_names(parameters)
    entry = CLASS_LOSSES[loss]
    return _with_parameters(entry, **_own(entry, parameters))


@cache
def _with_parameters(entry: ClassLoss, **parameters: Any) -> LossAndGrad | None:
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
    """Eq. 4 and 10. 1 - p_t is computed as sigmoid(neg_logit), which does not cancel where it is small; where it is
    large, p_t = 1 - (1 - p_t) does, but then its term is small beside the other. Nothing here is
    differentiated by autograd, so any gamma is safe at 1 - p_t = 0.
    """
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
    """sigmoid(neg_logit) and log(1 + exp(neg_logit)), of one exponential, exact to the last bits at both ends."""
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
