"""The weights of one model as the start of another: tensors by name, the rows of the classes by the classes'
names.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..inference.load import load_checkpoint
from ..model.retinanet import RetinaNet
from .checkpoint import ModelInfo

log = logging.getLogger("retinanet")


def load_pretrained(model: RetinaNet, names: Sequence[str], source: Path) -> ModelInfo:
    """Fill `model`, whose K classes are `names`, with the weights of a file as far as they fit; the log says
    what was kept.

    Returns the card of that file.

    CheckpointError when the file cannot be read. A tensor of another shape keeps its fresh values, as do the
    rows of new classes.
    """
    donor, card = load_checkpoint(source)
    theirs = donor.state_dict()
    mine = model.state_dict()
    last = [f"class_subnet.{len(model.class_subnet) - 1}.{part}" for part in ("weight", "bias")]
    fresh = []
    for name, tensor in mine.items():
        other = theirs.get(name)
        if name in last:
            continue
        if other is None or other.shape != tensor.shape:
            fresh.append(name)
        else:
            tensor.copy_(other)
    shared = [name for name in names if name in card.names]
    fits = all(copy_rows(mine[name], theirs, name, names, card.names) for name in last)
    log.info(
        "from %s: %d of %d tensors, the class layer aside",
        source,
        len(mine) - len(last) - len(fresh),
        len(mine) - len(last),
    )
    if fresh:
        log.info("  fresh, since the file has none of their shape: %s", ", ".join(fresh))
    if fits and shared:
        new = [name for name in names if name not in card.names]
        log.info("  classes kept by name: %s%s", ", ".join(shared), f"; new: {', '.join(new)}" if new else "")
    else:
        log.info(
            "  the class layer starts fresh: %s",
            "its shape differs" if shared else "no class has a name that the model knows",
        )
    return card


@torch.no_grad()
def copy_rows(
    mine: Tensor, theirs: Mapping[str, Tensor], name: str, names: Sequence[str], their_names: Sequence[str]
) -> bool:
    """Copy the rows of the classes that both know, [A * K, ...] being anchors, then classes; false when
    anchors or widths differ.
    """
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
