"""The class loss of training: from integer labels, value and closed-form gradient in one pass.

Equal to summing the dense losses of `losses` over one-hot targets (a test holds it so), without the one-hot targets and
without autograd's intermediate tensors: one gradient tensor is all that is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, unknown
from .assign import IGNORE
from .losses import check_margin

LOSSES = ("cross_entropy", "balanced", "focal", "focal_star", "hinge")
CHUNK = {"cpu": 1 << 18, "cuda": 1 << 25}
"""Elements worked on at a time. On a CPU they fit its second-level cache, so that the dozen steps below cost one trip to memory;
on a GPU every chunk costs a dozen launches, so they are as many as memory bears."""

Curve = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x_t -> the loss without alpha and its derivative by x_t."""


def class_loss(
    logits: Tensor,
    labels: Tensor,
    loss: str = "focal",
    alpha: float | Tensor | None = 0.25,
    gamma: float = 2.0,
    beta: float = 1.0,
    margin: float = 0.5,
) -> Tensor:
    """Sum of the class loss over anchors and classes, as a float32 number.

    logits  [..., K]  any float type; computed in float32 (float64 stays)
    labels  [...]     0..K-1, BACKGROUND (-1): all classes absent, or IGNORE (-2): no loss
    loss    cross_entropy (Eq. 1), balanced (Eq. 3: alpha), focal (Eq. 5: alpha, gamma), focal_star (Eq. 8: alpha, gamma, beta),
            hinge (Sec. 5.1: alpha, margin)
    alpha   weight of the positives, 1 - alpha that of the negatives: a number, a tensor [K], or None for 1 and 1
    """
    curve, weight = _curve(loss, gamma, beta, margin), _weight(loss, alpha, logits)
    total: Tensor = _ClassLoss.apply(logits.flatten(0, -2), labels.flatten(), weight, curve)
    return total


@torch.no_grad()
def anchor_losses(
    logits: Tensor,
    labels: Tensor,
    loss: str = "focal",
    alpha: float | Tensor | None = 0.25,
    gamma: float = 2.0,
    beta: float = 1.0,
    margin: float = 0.5,
) -> Tensor:
    """The class loss of each anchor, summed over classes: [...], float32 (float64 stays), no gradient. Arguments as in `class_loss`."""
    curve, weight = _curve(loss, gamma, beta, margin), _weight(loss, alpha, logits)
    parts = _chunks(logits.flatten(0, -2), labels.flatten(), weight, curve)
    sums = [value.sum(dim=1) + change[:, 0] for _, _, (value, change), _ in parts]
    return torch.cat(sums).reshape(labels.shape) if sums else logits.new_zeros(labels.shape, dtype=torch.float32)


class _ClassLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, weight: Tensor | None, curve: Curve) -> Tensor:
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        exact = logits.dtype == torch.float64
        total = logits.new_zeros((), dtype=torch.float64 if exact or logits.device.type == "cpu" else torch.float32)
        for part, column, (value, value_change), (slope, slope_change) in _chunks(logits, labels, weight, curve):
            total += value.sum() + value_change.sum()
            if gradient is not None:
                gradient[part] = slope.scatter_add_(1, column, slope_change)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total if exact else total.float()

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None, None  # upstream is one number: it stays float32 in the product


Chunk = tuple[slice, Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def _chunks(logits: Tensor, labels: Tensor, weight: Tensor | None, curve: Curve) -> Iterator[Chunk]:
    """Some n of the rows [N, K] at a time: which; the column [n, 1] of each one's class; and of the loss, then of its derivative by the
    logits, what every class would have if it were absent [n, K], and what the one class that is there changes about that [n, 1].
    """
    rows = max(1, CHUNK.get(logits.device.type, 1 << 25) // logits.shape[1])
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        x = logits[part] if logits.dtype == torch.float64 else logits[part].float()
        label = labels[part]
        counted = (label != IGNORE).to(x.dtype)[:, None]
        column = label.clamp(min=0)[:, None]
        present = (label >= 0).to(x.dtype)[:, None]

        # every class as absent (y = -1), then the one present class of each matched anchor in its place
        value, slope = curve(-x)
        negative = counted if weight is None else counted * (1 - weight)
        value, slope = value.mul_(negative), slope.mul_(-negative)
        value_at, slope_at = curve(x.gather(1, column))
        positive = 1.0 if weight is None else weight[column]
        value_change = present * (positive * value_at - value.gather(1, column))
        slope_change = present * (positive * slope_at - slope.gather(1, column))
        yield part, column, (value, value_change), (slope, slope_change)


def _weight(loss: str, alpha: float | Tensor | None, logits: Tensor) -> Tensor | None:
    """[K] alpha of each class, or None for 1 and 1."""
    if alpha is None or loss == "cross_entropy":
        return None
    if isinstance(alpha, Tensor):
        return alpha.to(logits.device, torch.float32).expand(logits.shape[-1])
    return torch.full((logits.shape[-1],), float(alpha), device=logits.device)  # made on the device; `as_tensor` would wait for a copy


def _curve(loss: str, gamma: float, beta: float, margin: float) -> Curve:
    """The loss of that name; ConfigError for one that is not known, or numbers without meaning."""
    if loss not in LOSSES:
        raise unknown("class loss", loss, LOSSES)
    if gamma < 0 or (loss == "focal_star" and gamma == 0):
        raise ConfigError(f"gamma must be {'above' if loss == 'focal_star' else 'at least'} 0 for the loss {loss}, not {gamma}")
    if loss == "hinge":
        check_margin(margin)
        return partial(_hinge, margin=margin)
    if loss == "focal_star":
        return partial(_focal_star, gamma=gamma, beta=beta)
    return _cross_entropy if gamma == 0 or loss in ("cross_entropy", "balanced") else partial(_focal, gamma=gamma)


def _cross_entropy(x_t: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 1 and 9."""
    return -F.logsigmoid(x_t), -torch.sigmoid(-x_t)


def _focal(x_t: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Eq. 4 and 10, in log space."""
    minus_log_p = -F.logsigmoid(x_t)
    p = torch.sigmoid(x_t)
    focus = torch.exp(gamma * F.logsigmoid(-x_t))  # (1 - p_t)^gamma
    # Eq. 10: (1 - p_t)^gamma (gamma p_t log p_t + p_t - 1); 1 - p_t is taken as sigmoid(-x_t), which does not cancel
    slope = -focus * (gamma * p * minus_log_p + torch.sigmoid(-x_t))
    return focus * minus_log_p, slope


def _focal_star(x_t: Tensor, gamma: float, beta: float) -> tuple[Tensor, Tensor]:
    """Eq. 8 and 11."""
    z = gamma * x_t + beta
    return F.softplus(-z) / gamma, -torch.sigmoid(-z)


def _hinge(x_t: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """max(0, margin - p_t), and -p_t (1 - p_t) below the margin."""
    p = torch.sigmoid(x_t)
    return F.relu(margin - p), torch.where(p < margin, -p * torch.sigmoid(-x_t), 0)
