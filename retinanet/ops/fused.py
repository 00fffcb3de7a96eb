"""The class loss of training: from integer labels, value and closed-form gradient in one pass.

Equal to summing the dense losses of `losses` over one-hot targets (a test holds it so), without the one-hot targets and
without autograd's intermediate tensors: one gradient tensor is all that is kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, unknown
from .assign import IGNORE

LOSSES = ("cross_entropy", "balanced", "focal", "focal_star")
CHUNK = {"cpu": 1 << 18, "cuda": 1 << 25}
"""Elements worked on at a time. On a CPU they fit its second-level cache, so that the dozen steps below cost one trip to memory;
on a GPU every chunk costs a dozen launches, so they are as many as memory bears."""


def class_loss(
    logits: Tensor,
    labels: Tensor,
    loss: str = "focal",
    alpha: float | Tensor | None = 0.25,
    gamma: float = 2.0,
    beta: float = 1.0,
) -> Tensor:
    """Sum of the class loss over anchors and classes, as a float32 number.

    logits  [..., K]  any float type; computed in float32 (float64 stays)
    labels  [...]     0..K-1, BACKGROUND (-1): all classes absent, or IGNORE (-2): no loss
    loss    cross_entropy (Eq. 1), balanced (Eq. 3: alpha), focal (Eq. 5: alpha, gamma), focal_star (Eq. 8: alpha, gamma, beta)
    alpha   weight of the positives, 1 - alpha that of the negatives: a number, a tensor [K], or None for 1 and 1
    """
    if loss not in LOSSES:
        raise unknown("class loss", loss, LOSSES)
    if gamma < 0 or (loss == "focal_star" and gamma == 0):
        raise ConfigError(f"gamma must be {'above' if loss == 'focal_star' else 'at least'} 0 for the loss {loss}, not {gamma}")
    if loss == "cross_entropy":
        alpha = None
    if loss in ("cross_entropy", "balanced"):
        gamma = 0.0
    weight: Tensor | None = None
    if isinstance(alpha, Tensor):
        weight = alpha.to(logits.device, torch.float32).expand(logits.shape[-1])
    elif alpha is not None:  # `full` is made on the device; `as_tensor` would wait for a copy
        weight = torch.full((logits.shape[-1],), float(alpha), device=logits.device)
    total: Tensor = _ClassLoss.apply(logits.flatten(0, -2), labels.flatten(), weight, loss == "focal_star", gamma, beta)
    return total


class _ClassLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, weight: Tensor | None, star: bool, gamma: float, beta: float) -> Tensor:
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        exact = logits.dtype == torch.float64
        total = logits.new_zeros((), dtype=torch.float64 if exact or logits.device.type == "cpu" else torch.float32)
        rows = max(1, CHUNK.get(logits.device.type, 1 << 25) // logits.shape[1])
        for start in range(0, len(logits), rows):
            part = slice(start, start + rows)
            x = logits[part] if exact else logits[part].float()
            label = labels[part]
            counted = (label != IGNORE).to(x.dtype)[:, None]
            column = label.clamp(min=0)[:, None]
            present = (label >= 0).to(x.dtype)[:, None]

            # every class as absent (y = -1), then the one present class of each matched anchor in its place
            value, slope = _loss_and_slope(-x, star, gamma, beta)
            negative = counted if weight is None else counted * (1 - weight)
            value, slope = value.mul_(negative), slope.mul_(-negative)
            value_at, slope_at = _loss_and_slope(x.gather(1, column), star, gamma, beta)
            positive = 1.0 if weight is None else weight[column]
            total += value.sum() + (present * (positive * value_at - value.gather(1, column))).sum()
            if gradient is not None:
                change = present * (positive * slope_at - slope.gather(1, column))
                gradient[part] = slope.scatter_add_(1, column, change)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total if exact else total.float()

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None, None, None, None  # upstream is one number: it stays float32 in the product


def _loss_and_slope(x_t: Tensor, star: bool, gamma: float, beta: float) -> tuple[Tensor, Tensor]:
    """The loss and its derivative by x_t, without alpha. Eq. 9 (gamma 0), Eq. 10 and Eq. 11, all in log space."""
    if star:
        z = gamma * x_t + beta
        return F.softplus(-z) / gamma, -torch.sigmoid(-z)
    minus_log_p = -F.logsigmoid(x_t)
    if gamma == 0:
        return minus_log_p, -torch.sigmoid(-x_t)
    p = torch.sigmoid(x_t)
    focus = torch.exp(gamma * F.logsigmoid(-x_t))  # (1 - p_t)^gamma
    # Eq. 10: (1 - p_t)^gamma (gamma p_t log p_t + p_t - 1); 1 - p_t is taken as sigmoid(-x_t), which does not cancel
    slope = -focus * (gamma * p * minus_log_p + torch.sigmoid(-x_t))
    return focus * minus_log_p, slope
