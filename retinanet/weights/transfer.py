"""The weights of one model as the start of another: tensors by name, classes by their names."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.retinanet import RetinaNet
from .checkpoint import ModelInfo

log = logging.getLogger("retinanet")


@dataclass(frozen=True)
class Pretrained:
    """A model that a training starts from, read once."""

    source: str
    """Where it was read from, for the log."""
    weights: Mapping[str, Tensor]
    info: ModelInfo


def load_pretrained(model: RetinaNet, names: Sequence[str], init: Pretrained) -> None:
    """Fill `model`, whose K classes are `names`, with the weights of `init` as far as they fit.

    The log says what was kept. Tensors of another shape and rows of new classes keep their fresh values.
    """
    theirs, card = init.weights, init.info
    mine = model.state_dict()
    last = [f"class_subnet.{len(model.class_subnet) - 1}.{part}" for part in ("weight", "bias")]
    body = [name for name in mine if name not in last]
    fresh = [name for name in body if name not in theirs or theirs[name].shape != mine[name].shape]
    for name in set(body).difference(fresh):
        mine[name].copy_(theirs[name])
    shared = [name for name in names if name in card.names]
    fits = all(copy_rows(mine[name], theirs, name, names, card.names) for name in last)
    kept = len(body) - len(fresh)
    log.info("from %s: %d of %d tensors, the class layer aside", init.source, kept, len(body))
    if fresh:
        log.info("  fresh, since the file has none of their shape: %s", ", ".join(fresh))
    if fits and shared:
        new = [name for name in names if name not in card.names]
        log.info("  classes kept by name: %s%s", ", ".join(shared), f"; new: {', '.join(new)}" if new else "")
    else:
        reason = "its shape differs" if shared else "no class has a name that the model knows"
        log.info("  the class layer starts fresh: %s", reason)


@torch.no_grad()
def copy_rows(
    mine: Tensor, theirs: Mapping[str, Tensor], name: str, names: Sequence[str], their_names: Sequence[str]
) -> bool:
    """Copy the rows [A * K, ...] of the classes that both know; false when anchors or widths differ."""
    other = theirs.get(name)
    rows = mine.unflatten(0, (-1, len(names)))  # [A, K, ...], a view
    if other is None or other.shape[0] % len(their_names) or other.shape[1:] != mine.shape[1:]:
        return False
    their_rows = other.unflatten(0, (-1, len(their_names)))
    if len(their_rows) != len(rows):
        return False
    for position, title in enumerate(names):
        if title in their_names:
            rows[:, position] = their_rows[:, list(their_names).index(title)]
    return True
