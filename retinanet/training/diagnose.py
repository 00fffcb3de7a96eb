"""Finds out what went wrong in a step: the first batch as an image, losses that are not finite, advice."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.io import to_json
from ..data.loader import Batch
from ..device import autocast
from ..distributed import all_reduce_sum, is_main_process
from ..errors import CheckpointError, DivergenceError
from ..weights.checkpoint import load_plain, save_plain
from .setup import TrainState


def read_dump(path: Path) -> dict[str, Any]:
    """The content of a dump whose weights are those that were written."""
    content = load_plain(path, FORMAT)
    if "checksum" not in content:
        raise CheckpointError(f"{path} is not the dump of a training step")
    if checksum(content["weights"]) != content["checksum"]:
        raise CheckpointError(f"{path}: the weights are not those that were written; the file is damaged")
    return content


def save_first_batch(path: Path, session: TrainState, batch: Batch) -> None:
    """Draw the images of a batch as the network sees them, with their boxes and the anchors matched to them."""
    from ..view.draw import anchors_picture, save, sheet  # fonts and colours, once in a run

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
    save(path, sheet(pictures, columns=2))


WATCHED = ("class_loss", "box_loss", "gradient_norm")

FORMAT = 1


class NonFiniteWatch:
    """Remembers the first step whose loss or gradient was not finite, on the device, so that it is asked
    about only now and then.
    """

    def __init__(self, device: torch.device) -> None:
        self.first = torch.full((), -1, dtype=torch.long, device=device)
        self.values = torch.zeros(len(WATCHED), device=device)

    def note(self, iteration: int, numbers: Mapping[str, Tensor]) -> None:
        """Look at a step without waiting for it."""
        values = torch.stack([numbers[name].float() for name in WATCHED])
        new = ~values.isfinite().all() & (self.first < 0)
        self.values = torch.where(new, values, self.values)
        self.first = torch.where(new, iteration, self.first)

    def seen(self) -> bool:
        """Whether there was such a step; waits for the device, and talks to no other process."""
        return int(self.first) >= 0

    def check(self, session: TrainState, folder: Path, rates: Mapping[int, float]) -> None:
        """DivergenceError if there was such a step, once it is written down; all processes have to ask at the
        same time.

        rates  iteration -> its learning rate, for those since the last check
        """
        if not self.seen():
            return
        iteration = int(self.first)
        values = dict(zip(WATCHED, self.values.tolist(), strict=True))
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        (share,), (whole,) = (
            session.batches(iteration, iteration + 1),
            session.batches(iteration, iteration + 1, whole=True),
        )
        levels = level_losses(session, share)
        at = [
            f"{name} at {', '.join(bad)}"
            for name, row in levels.items()
            if (bad := not_finite(session.model.levels, row))
        ]
        files = [str(session.training.files[i]) for i in whole.indices.tolist()]
        dump = folder / f"dump-{iteration + 1}.pt"
        keeps = (
            f"; --init {folder} keeps the weights of the last validation"
            if (folder / "model.safetensors").exists()
            else ""
        )
        if is_main_process():
            numbers = {
                "iteration": iteration,
                "lr": rates[iteration],
                "numbers": values,
                "levels": levels,
                "files": files,
            }
            write_dump(dump, session, whole, numbers)
        raise DivergenceError(
            f"iteration {iteration + 1}: {' and '.join(wrong)} not finite "
            f"({'; '.join(at) or 'the losses of all levels are'}), with the "
            f"images {', '.join(files)}.\nThe step was not taken, and the files of {folder} are those of "
            f"before. Look at it with "
            f"'retinanet replay {dump}', then start a new run with a lower --lr or with --set max_grad_norm=1{keeps}."
        )


def not_finite(names: list[str], values: list[float]) -> list[str]:
    """The names of the levels whose number is not finite."""
    return [name for name, value in zip(names, values, strict=True) if not math.isfinite(value)]


def level_losses(session: TrainState, share: Batch) -> dict[str, list[float]]:
    """The class loss and the box loss of each level over all processes, without a step; `share` is this
    process's.
    """
    batch = share.to(session.device)
    anchors = session.model.anchors(batch.images)
    matched = session.criterion.match(anchors, batch.targets)
    positives = all_reduce_sum(matched.positives.sum())
    sums = torch.zeros(2, len(session.model.levels), device=session.device)
    with torch.no_grad():
        for rows, _ in session.micro_batches(batch):
            images = session.preprocess.normalize(batch.images[rows], batch.targets.sizes[rows])
            with autocast(session.config.precision, session.device):
                logits, offsets = session.model(images)
            parts = session.criterion.per_level(
                logits, offsets, anchors, matched[rows], positives, session.sampler.batch
            )
            sums += torch.stack([torch.stack(parts["class_loss"]), torch.stack(parts["box_loss"])])
    class_losses, box_losses = all_reduce_sum(sums).tolist()
    return {"class_loss": class_losses, "box_loss": box_losses}


def write_dump(path: Path, session: TrainState, batch: Batch, numbers: dict[str, Any]) -> None:
    """All that is needed to repeat a step elsewhere: the whole batch, the weights before it, settings, and
    the `numbers` it had.

    Running statistics of live batch norm have moved since; a step does not read them.
    """
    weights = {name: tensor.detach().cpu().clone() for name, tensor in session.model.state_dict().items()}
    alpha = session.criterion.alpha
    content = {
        **numbers,
        "format": FORMAT,
        "config": to_json(session.config),
        "names": list(session.training.names),
        "alpha": alpha.tolist() if isinstance(alpha, Tensor) else alpha,
        "images": batch.images,
        "boxes": batch.targets.boxes,
        "labels": batch.targets.labels,
        "sizes": batch.targets.sizes,
        "seeds": batch.targets.seeds,
        "weights": weights,
        "checksum": checksum(weights),
    }
    save_plain(path, content)


def checksum(weights: Mapping[str, Tensor]) -> str:
    """16 hex digits of all parameters and buffers, names included; equal bits give equal digits on every
    machine.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class Advice:
    """What a run that goes wrong without failing is told, each thing once.

    Looks at the numbers that the log shows anyway: it costs nothing and knows nothing else.
    """

    EMPTY = 100
    """Iterations without a single positive anchor after which it is told."""
    WINDOW = 5
    """Rows of the log that are compared: the first after the warm-up with the last."""

    def __init__(self, rate: float, batch: int, optimizer: str, warmup: int, iterations: int) -> None:
        self.rate, self.batch, self.optimizer, self.warmup, self.iterations = (
            rate,
            batch,
            optimizer,
            warmup,
            iterations,
        )
        self.losses: list[float] = []
        self.positives = 0.0
        self.told: set[str] = set()

    def begin(self) -> list[str]:
        """What can be said before the first step: SGD's rate against the linear rule (Goyal et al. 2017; 0.01
        for 16 images, Sec. 4.1).
        """
        usual = 0.01 * self.batch / 16
        if self.optimizer == "adamw" and self.rate >= 5e-3:
            return [
                f"the learning rate {self.rate:.3g} is high for AdamW: 1e-4 (pretrained) to 2e-3 (from "
                f"scratch) are usual"
            ]
        if self.optimizer != "sgd" or usual / 10 <= self.rate <= 3 * usual:
            return []
        which = "high" if self.rate > usual else "low"
        return [
            f"the learning rate {self.rate:.3g} is {which} for SGD with {self.batch} images a step: the "
            f"paper's 0.01 for 16 images would "
            f"be {usual:.3g} here. --lr is scaled with the batch by itself; leave lr_batch at the batch "
            f"that --lr is meant for"
        ]

    def row(self, done: int, loss: float, positives: float) -> list[str]:
        """What the log row after iteration `done` gives reason to say; `positives` of all steps since the row
        before.
        """
        self.positives += positives
        said = {}
        if done >= self.EMPTY and self.positives == 0:
            said["positives"] = (
                f"no anchor has matched an object in {done} iterations, so there is nothing to learn from: "
                "'retinanet check DATA' says which boxes are out of reach, and which --anchor-size or "
                "--scale reaches them"
            )
        if done > min(self.warmup, self.iterations // 10):
            self.losses.append(loss)
        begun, now = self.losses[: self.WINDOW], self.losses[-self.WINDOW :]
        if len(self.losses) >= 2 * self.WINDOW and "positives" not in said:
            before, after = statistics.median(begun), statistics.median(now)
            if after > 2 * before:
                said["rate"] = (
                    f"the loss has risen from {before:.3g} to {after:.3g}: the learning rate "
                    f"{self.rate:.3g} is too high for "
                    f"{self.batch} images a step, or --set max_grad_norm=1 is needed"
                )
            elif done >= 0.25 * self.iterations and done >= 200 and after > 0.95 * before:
                said["falls"] = (
                    f"the loss does not fall ({before:.3g} after the warm-up, {after:.3g} now): look at "
                    f"plots/first_batch.jpg (do the "
                    f"boxes sit on the objects?), and try another --lr than {self.rate:.3g}"
                )
        new = [text for kind, text in said.items() if kind not in self.told]
        self.told |= said.keys()
        return new
