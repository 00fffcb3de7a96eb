"""One step of a training."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.loader import Batch
from ..distributed import total, world
from ..view.draw import anchors_picture, sheet
from .machine import autocast
from .session import Session


def train_step(session: Session, batch: Batch, rate: float) -> dict[str, Tensor]:
    """One optimiser step; returns its losses, positives and gradient norm as tensors, so that nothing waits
    for a GPU.

    `batch` is this process's share. All of it is matched first and the positives of all processes are
    counted, so that neither the
    number of processes nor that of micro-batches changes what is divided by.
    """
    config = session.config
    for group in session.optimizer.param_groups:
        group["lr"] = rate
    batch = batch.to(session.device)
    anchors = session.model.anchors(batch.images)
    matched = session.criterion.match(anchors, batch.targets)
    positives = total(matched.positives.sum())
    session.optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros(2, device=session.device)
    for rows, context in session.micro_batches(batch):
        with context:
            images = session.preprocess.normalize(batch.images[rows], batch.targets.sizes[rows])
            with autocast(config.precision, session.device):
                logits, offsets = session.network(images)
            losses = session.criterion(
                logits, offsets, anchors, matched[rows], positives, session.sampler.batch
            )
            # the processes' gradients are averaged, but ours are shares of a sum
            ((losses["class_loss"] + losses["box_loss"]) * world()).backward()
        sums += torch.stack([losses["class_loss"], losses["box_loss"]]).detach()
    class_loss, box_loss = total(sums)
    gradients = [parameter.grad for parameter in session.model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if config.clip is not None:
        torch.nn.utils.clip_grads_with_norm_(session.model.parameters(), config.clip, norm)
    # the fused optimisers read this flag on the device: a step that is not finite changes nothing, and nobody
    # waits to know. It stays up, so that the weights are still those of that step when it is found out
    session.broken = torch.maximum(session.broken, (~torch.isfinite(norm + class_loss + box_loss)).float())
    session.optimizer.found_inf = session.broken  # type: ignore[attr-defined]
    session.optimizer.step()
    if session.average is not None:
        session.average.update()
    numbers = {"loss": class_loss + box_loss, "class_loss": class_loss, "box_loss": box_loss}
    return numbers | {"positives": positives / session.sampler.batch, "gradient_norm": norm.detach()}


def batch_picture(session: Session, batch: Batch) -> Tensor:
    """The pictures of a batch as the network sees them, with their boxes and the anchors that answer for
    them.
    """
    anchors = session.model.anchors(batch.images)
    matched = session.criterion.match(anchors, batch.targets)
    flat = torch.cat(anchors)
    pictures = []
    for row in range(min(8, len(batch))):
        real = batch.targets.labels[row] >= 0
        height, width = (int(side) for side in batch.targets.sizes[row])
        boxes, labels = batch.targets.boxes[row][real], batch.targets.labels[row][real]
        positive = flat[matched.labels[row] >= 0]
        pictures.append(
            anchors_picture(
                batch.images[row, :, :height, :width], boxes, labels, session.training.names, positive
            )
        )
    return sheet(pictures, columns=2)
