"""The losses of the paper, each from its equation. Dense targets, any shape; see `fused` for the training
path.

With y = 1 where the class is present and -1 elsewhere, x the logit and x_t = y x:  p_t = sigmoid(x_t).
All are computed in float32 (float64 stays float64) and in log space. The usual `(1 - p_t) ** gamma` has a NaN
gradient for 0 < gamma < 1 as soon as p_t rounds to 1, at a logit of 16.75 in float32 and of 6.25 in bfloat16;
these are finite at +-200.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, unknown_name_error
from .boxes import giou

Alpha = float | Tensor | None


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "none") -> Tensor:
    """Eq. 1: CE = -log p_t, one independent sigmoid per class.

    logits, targets [..., K], targets 0 or 1; returns [..., K], or a number when `reduction` is "sum" or
    "mean".
    """
    return reduce(-F.logsigmoid(logit_of_truth(logits, targets)), reduction)


def balanced_cross_entropy(
    logits: Tensor, targets: Tensor, alpha: Alpha = 0.25, reduction: str = "none"
) -> Tensor:
    """Eq. 3: CE = -alpha_t log p_t, with alpha_t = alpha where the target is 1 and 1 - alpha elsewhere.

    alpha: a number in 0..1, a tensor [K] of them, or None for no weights. Shapes as in `cross_entropy`.
    """
    loss = -F.logsigmoid(logit_of_truth(logits, targets))
    return reduce(loss * alpha_t(loss, targets, alpha), reduction)


def focal_loss(
    logits: Tensor, targets: Tensor, alpha: Alpha = 0.25, gamma: float = 2.0, reduction: str = "none"
) -> Tensor:
    """Focal loss, Eq. 4 and 5: FL = -alpha_t (1 - p_t)^gamma log p_t.

    Args:
        logits: [..., K] raw scores x, with p = sigmoid(x).
        targets: [..., K] 1 where the anchor holds the class, else 0.
        alpha: Weight of the positives, 1 - alpha of the negatives. A number, a tensor [K] or None (Eq. 4).
        gamma: At least 0; how strongly easy examples are discounted. 0: `balanced_cross_entropy`.
        reduction: "none", "sum" or "mean". RetinaNet sums and divides by the positives (Sec. 4.1).

    Returns:
        [..., K], or a number when `reduction` is "sum" or "mean".

    Raises:
        ConfigError: A negative gamma or an unknown reduction.

    Example:
        >>> logits, targets = torch.randn(8, 80), torch.zeros(8, 80)
        >>> targets[0, 3] = 1
        >>> loss = focal_loss(logits, targets, reduction="sum")
    """
    check(logits, targets, gamma)
    x_t = logit_of_truth(logits, targets)
    loss = -torch.exp(gamma * F.logsigmoid(-x_t)) * F.logsigmoid(x_t)
    return reduce(loss * alpha_t(loss, targets, alpha), reduction)


def focal_loss_star(
    logits: Tensor,
    targets: Tensor,
    gamma: float = 2.0,
    beta: float = 1.0,
    alpha: Alpha = None,
    reduction: str = "none",
) -> Tensor:
    """Eq. 7 and 8 (Appendix A): FL* = -log(p_t*) / gamma, with p_t* = sigmoid(gamma x_t + beta). Shapes as in
    `focal_loss`; gamma > 0."""
    if gamma <= 0:
        raise ConfigError(f"gamma must be above 0 for FL*, not {gamma}")
    loss = -F.logsigmoid(gamma * logit_of_truth(logits, targets) + beta) / gamma
    return reduce(loss * alpha_t(loss, targets, alpha), reduction)


def softmax_focal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None = None,
    gamma: float = 2.0,
    reduction: str = "none",
) -> Tensor:
    """Focal loss over classes that exclude each other (Sec. 3.2): p_t is the softmax of the true class.

    logits   [..., K], K >= 2 (a background class, if wanted, is one of them)
    targets  [..., K]  one-hot
    alpha    a factor, a tensor [K] of one factor per true class, or None
    returns  [...], or a number when `reduction` is "sum" or "mean"
    """
    if logits.shape[-1] < 2:
        raise ConfigError("softmax_focal_loss needs at least two classes that exclude each other")
    check(logits, targets, gamma)
    x, present = at_least_float32(logits), targets > 0
    total = x.logsumexp(dim=-1)
    log_p = x.masked_fill(~present, 0).sum(dim=-1) - total
    log_rest = x.masked_fill(present, -torch.inf).logsumexp(dim=-1) - total  # log(1 - p_t), exact
    loss = -torch.exp(gamma * log_rest) * log_p
    if alpha is not None:
        loss = loss * (torch.as_tensor(alpha, dtype=x.dtype, device=x.device) * targets).sum(dim=-1)
    return reduce(loss, reduction)


def hinge_loss(
    logits: Tensor, targets: Tensor, margin: float = 0.5, alpha: Alpha = None, reduction: str = "none"
) -> Tensor:
    """max(0, margin - p_t): no loss above that probability of the truth (Sec. 5.1, where it did not train).

    margin above 0 and at most 1; the rest as in `balanced_cross_entropy`.
    """
    if not 0 < margin <= 1:
        raise ConfigError(f"margin must be above 0 and at most 1, not {margin}")
    loss = F.relu(margin - torch.sigmoid(logit_of_truth(logits, targets)))
    return reduce(loss * alpha_t(loss, targets, alpha), reduction)


def smooth_l1(prediction: Tensor, target: Tensor, beta: float = 1 / 9, reduction: str = "none") -> Tensor:
    """0.5 d^2 / beta where |d| < beta, else |d| - beta / 2 (Fast R-CNN), of offsets [..., 4]."""
    if beta == 0:
        return l1(prediction, target, reduction)
    prediction, target = at_least_float32(prediction), at_least_float32(target)
    return reduce(F.smooth_l1_loss(prediction, target, beta=beta, reduction="none"), reduction)


def l1(prediction: Tensor, target: Tensor, reduction: str = "none") -> Tensor:
    """|d| of offsets [..., 4]."""
    return reduce((at_least_float32(prediction) - at_least_float32(target)).abs(), reduction)


def giou_loss(prediction: Tensor, target: Tensor, reduction: str = "none") -> Tensor:
    """1 - GIoU of boxes [..., 4] (xyxy, not offsets) -> [...] in 0..2."""
    return reduce(1 - giou(at_least_float32(prediction), at_least_float32(target)), reduction)


BOX_LOSSES: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "smooth_l1": ("offsets", smooth_l1),
    "l1": ("offsets", l1),
    "giou": ("boxes", giou_loss),
}
"""Name -> what it compares, and (prediction [..., 4], target [..., 4]) -> [..., 4] or [...]: offsets from the
anchors, or boxes xyxy."""


def at_least_float32(values: Tensor) -> Tensor:
    """float32 at least: a loss summed over 100,000 easy anchors is lost in half precision."""
    return values if values.dtype == torch.float64 else values.float()


def logit_of_truth(logits: Tensor, targets: Tensor) -> Tensor:
    """x_t = y x, with y = 1 where the target is 1 and -1 where it is 0."""
    check(logits, targets)
    x = at_least_float32(logits)
    return torch.where(targets > 0, x, -x)


def check(logits: Tensor, targets: Tensor, gamma: float = 0.0) -> None:
    """Targets that would broadcast, and a gamma without meaning, are ConfigErrors."""
    if logits.shape != targets.shape:
        raise ConfigError(
            f"targets must be dense, of the logits' shape {list(logits.shape)}, not {list(targets.shape)}"
        )
    if gamma < 0:
        raise ConfigError(f"gamma must be at least 0, not {gamma}")


def alpha_t(like: Tensor, targets: Tensor, alpha: Alpha) -> Tensor | float:
    """alpha where the target is 1, 1 - alpha where it is 0; 1 everywhere when alpha is None."""
    if alpha is None:
        return 1.0
    weight = torch.as_tensor(alpha, dtype=like.dtype, device=like.device)
    return torch.where(targets > 0, weight, 1 - weight)


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """none, sum or mean."""
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.mean()
    raise unknown_name_error("reduction", reduction, ("none", "sum", "mean"))
