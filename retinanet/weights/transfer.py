"""The weights of one model as the start of another: tensors by name, classes by their names."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.dataset import match_names
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
    meant = match_names(names, card.names)
    place = {position: card.names.index(meant[name]) for position, name in enumerate(names) if name in meant}
    counts = len(names), len(card.names)
    fits = all(copy_rows(mine[name], theirs.get(name), *counts, place) for name in last)
    kept = len(body) - len(fresh)
    log.info("from %s: %d of %d tensors, the class layer aside", init.source, kept, len(body))
    if fresh:
        log.info("  fresh, since the file has none of their shape: %s", ", ".join(fresh))
    if fits and meant:
        both = [name + f" (there {meant[name]!r})" * (name != meant[name]) for name in names if name in meant]
        new = [name for name in names if name not in meant]
        log.info("  classes kept by name: %s%s", ", ".join(both), f"; new: {', '.join(new)}" if new else "")
    else:
        reason = "its shape differs" if meant else "no class has a name that the model knows"
        log.info("  the class layer starts fresh: %s", reason)


@torch.no_grad()
def copy_rows(
    mine: Tensor, theirs: Tensor | None, count: int, their_count: int, place: Mapping[int, int]
) -> bool:
    """Copy rows [A * K, ...] of classes: K is `count`, and `their_count`; `place` has the class of theirs for
    one of mine. False when anchors or widths differ."""
    if theirs is None or theirs.shape[0] % their_count or theirs.shape[1:] != mine.shape[1:]:
        return False
    rows, their_rows = mine.unflatten(0, (-1, count)), theirs.unflatten(0, (-1, their_count))  # [A, K, ...]
    if len(their_rows) != len(rows):
        return False
    rows[:, [*place]] = their_rows[:, [*place.values()]].to(rows)
    return True
