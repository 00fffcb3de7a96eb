"""How the focal loss of a trained model is distributed over its anchors: what Figure 4 draws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.dataset import Dataset
from ..data.loader import evaluation_batches
from ..data.sampler import random_seed
from ..data.splits import in_model_classes
from ..inference.detector import Detector
from ..model.criterion import Criterion
from ..ops import losses
from ..ops.assign import BACKGROUND
from ..ops.fused import anchor_losses

GAMMAS = (0.0, 0.5, 1.0, 2.0)

FRACTIONS = np.linspace(0, 1, 201)

LIMIT = 10_000_000
"""Of more negatives than this, so many are drawn at random; twice as many are held in memory."""

BATCH, SEED = 4, 0


@torch.inference_mode()
def cumulative_losses(detector: Detector, data: Dataset, criterion: Criterion) -> dict[str, Any]:
    """How the focal loss of a trained model is distributed over its anchors (Sec. 5.1, Fig. 4), by gamma.

    The losses of all positives, and of all negatives, are divided by their sum, sorted from the lowest and
    accumulated. alpha would cancel and is left out. For a negative anchor the losses of all classes are
    summed, as in training. For a positive anchor only the loss of its own class counts: the paper samples one
    probability per anchor, and the sum would bury the true class under K - 1 negatives.

    data       a validated split; classes are matched by name
    criterion  says which anchors are positives and negatives

    returns {"images", "seed", "x": [201] fractions of the anchors, "positives", "negatives"}, the last two
    each {"found": anchors, "used": those of LIMIT, "lines": [{"label", "gamma", "y": [201] their share of the
    loss, "hardest_fifth": share of the hardest 20 %}]}; y and hardest_fifth are None without a finite loss
    above 0.
    """
    data = in_model_classes(data, detector.names)
    positives: list[Tensor] = []
    negatives: list[tuple[Tensor, Tensor]] = []
    found = 0
    for loaded in evaluation_batches(data, detector.preprocess, BATCH, 0, detector.device.type == "cuda"):
        levels, _, normalized = detector.forward(loaded.images, loaded.targets.sizes)
        targets = loaded.targets.to(detector.device)
        labels = criterion.match(detector.model.anchors(normalized), targets).labels
        logits, present = torch.cat(levels, dim=1), labels >= 0
        own = logits[present].gather(1, labels[present][:, None])[:, 0]
        ones = torch.ones_like(own)
        positives.append(torch.stack([losses.focal_loss(own, ones, None, g) for g in GAMMAS]).cpu())
        sums = [anchor_losses(logits, labels, "focal", None, gamma=gamma) for gamma in GAMMAS]
        absents = (labels == BACKGROUND).cpu()
        for row, absent, index in zip(
            torch.stack(sums, dim=1).cpu(), absents, loaded.indices.tolist(), strict=True
        ):
            generator = torch.Generator().manual_seed(random_seed(SEED, index))
            keys = torch.rand(len(absent), dtype=torch.float64, generator=generator)
            negatives.append((row[:, absent], keys[absent]))
            found += len(negatives[-1][1])
        if sum(len(keys) for _, keys in negatives) > 2 * LIMIT:
            negatives = [_smallest(negatives)]
    return {
        "images": len(data),
        "seed": SEED,
        "x": FRACTIONS.tolist(),
        "positives": _shares(torch.cat(positives, dim=1)),
        "negatives": _shares(_smallest(negatives)[0]) | {"found": found},
    }


def _smallest(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Values [G, n] with random keys [n], in parts -> those of the LIMIT smallest keys: a fair draw."""
    values, keys = torch.cat([values for values, _ in parts], dim=1), torch.cat([keys for _, keys in parts])
    kept = keys.argsort()[:LIMIT]
    return values[:, kept], keys[kept]


def _shares(values: Tensor) -> dict[str, Any]:
    """Losses [G, N] -> a line for each gamma."""
    lines: list[dict[str, Any]] = []
    for gamma, row in zip(GAMMAS, values, strict=True):
        y = cumulative(row.numpy())
        hardest = None if y is None else 1 - y[160]
        lines.append({"label": f"γ = {gamma:g}", "gamma": gamma, "y": y, "hardest_fifth": hardest})
    return {"found": values.shape[1], "used": values.shape[1], "lines": lines}


def cumulative(values: NDArray[Any]) -> list[float] | None:
    """Losses [N] -> [201]: the share of their sum that the easiest 0, 0.5, ... 100 % of them hold; None
    without a finite sum above 0."""
    sums = np.concatenate([[0.0], np.cumsum(np.sort(values), dtype=np.float64)])
    if not (0 < sums[-1] < math.inf):
        return None
    shares: list[float] = np.interp(FRACTIONS, np.linspace(0, 1, len(sums)), sums / sums[-1]).tolist()
    return shares
