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
from ..distributed import all_reduce_sum, is_main_process
from ..errors import CheckpointError, DivergenceError
from ..weights.checkpoint import load_plain, save_plain
from .pace import Pace
from .setup import TrainState


def save_first_batch(path: Path, state: TrainState, batch: Batch) -> None:
    """Draw the images of a batch as the network sees them, with their boxes and their positive anchors."""
    from ..view.draw import anchors_picture, save, sheet  # fonts and colours, once in a run

    anchors = state.model.anchors(batch.images)
    matched = state.criterion.match(anchors, batch.targets)
    flat = torch.cat(anchors)
    views = []
    for row in range(min(8, len(batch))):
        real = batch.targets.labels[row] >= 0
        height, width = (int(side) for side in batch.targets.sizes[row])
        boxes, labels = batch.targets.boxes[row][real], batch.targets.labels[row][real]
        positive = flat[matched.labels[row] >= 0]
        image = batch.images[row, :, :height, :width]
        views.append(anchors_picture(image, boxes, labels, state.training.names, positive))
    save(path, sheet(views, columns=2))


WATCHED = ("class_loss", "box_loss", "gradient_norm")

FORMAT = 1


class NonFiniteWatch:
    """Remembers on the device the first step whose loss or gradient was not finite."""

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

    def check(self, state: TrainState, folder: Path, pace: Pace) -> None:
        """Write a dump and raise DivergenceError if there was such a step; all processes ask together."""
        if not self.seen():
            return
        iteration = int(self.first)
        values = dict(zip(WATCHED, self.values.tolist(), strict=True))
        (share,) = state.batches(iteration, iteration + 1)
        (whole,) = state.batches(iteration, iteration + 1, whole=True)
        levels = level_losses(state, share)
        files = [str(state.training.files[i]) for i in whole.indices.tolist()]
        dump = folder / f"dump-{iteration + 1}.pt"
        if is_main_process():
            rate = state.rate * pace.factor(iteration, state.config)
            about = {"iteration": iteration, "lr": rate, "files": files}
            write_dump(dump, state, whole, about | {"numbers": values, "levels": levels})
        wrong = " and ".join(not_finite([*values], [*values.values()]))
        bad = {name: not_finite(state.model.levels, row) for name, row in levels.items()}
        where = "; ".join(f"{name} at {', '.join(at)}" for name, at in bad.items() if at)
        saved = (folder / "model.safetensors").exists()
        keeps = f"; --init {folder} keeps the weights of the last validation" if saved else ""
        raise DivergenceError(
            f"iteration {iteration + 1}: {wrong} not finite ({where or 'the losses of all levels are'}), "
            f"with the images {', '.join(files)}.\nThe step was not taken, and the files of {folder} are "
            f"those of before. Look at it with 'retinanet replay {dump}', then start a new run with a lower "
            f"--lr or with --set max_grad_norm=1{keeps}."
        )


def not_finite(names: list[str], values: list[float]) -> list[str]:
    """The names whose number is not finite."""
    return [name for name, value in zip(names, values, strict=True) if not math.isfinite(value)]


def level_losses(state: TrainState, share: Batch) -> dict[str, list[float]]:
    """The class and box losses of each level over all processes, without a step, from each one's `share`."""
    sums = torch.zeros(2, len(state.model.levels), device=state.device)
    with torch.no_grad():
        for levels, _ in state.losses(share, state.model):
            sums += torch.stack([torch.stack(levels["class_loss"]), torch.stack(levels["box_loss"])])
    class_losses, box_losses = all_reduce_sum(sums).tolist()
    return {"class_loss": class_losses, "box_loss": box_losses}


def write_dump(path: Path, state: TrainState, batch: Batch, numbers: dict[str, Any]) -> None:
    """Write what repeats a step elsewhere: the whole batch, the weights before it, settings, `numbers`.

    The running statistics of live batch norm have moved since; a step does not read them.
    """
    weights = {name: tensor.detach().cpu() for name, tensor in state.model.state_dict().items()}
    alpha = state.criterion.alpha
    content = {
        **numbers,
        "format": FORMAT,
        "config": to_json(state.config),
        "names": list(state.training.names),
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


def read_dump(path: Path) -> dict[str, Any]:
    """The content of a dump whose weights are those that were written."""
    content = load_plain(path, FORMAT)
    if "checksum" not in content:
        raise CheckpointError(f"{path} is not the dump of a training step")
    if checksum(content["weights"]) != content["checksum"]:
        raise CheckpointError(f"{path}: the weights are not those that were written; the file is damaged")
    return content


def checksum(weights: Mapping[str, Tensor]) -> str:
    """16 hex digits of all parameters, buffers and their names; the same on every machine."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class Advice:
    """Warns once for each reason when a run goes wrong without failing, from the numbers of the log alone."""

    EMPTY = 100
    """Iterations without a single positive anchor after which it warns."""
    WINDOW = 5
    """Rows of the log that are compared: the first after the warm-up with the last."""

    def __init__(self, rate: float, batch: int, optimizer: str, warmup: int, iterations: int) -> None:
        self.rate, self.batch, self.optimizer = rate, batch, optimizer
        self.warmup, self.iterations = warmup, iterations
        self.losses: list[float] = []
        self.positives = 0.0
        self.given: set[str] = set()

    def begin(self) -> list[str]:
        """Compare the learning rate with what is usual (SGD: Goyal et al. 2017; 0.01 for 16, Sec. 4.1)."""
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
            f"paper's 0.01 for 16 images would be {usual:.3g} here. --lr is scaled with the batch by itself; "
            f"leave lr_batch at the batch that --lr is meant for"
        ]

    def row(self, done: int, loss: float, positives: float) -> list[str]:
        """New advice at the log row after iteration `done`; `positives` of all steps since the last row."""
        self.positives += positives
        if done > min(self.warmup, self.iterations // 10):
            self.losses.append(loss)
        advice = {}
        if done >= self.EMPTY and self.positives == 0:
            advice["positives"] = (
                f"no anchor has matched an object in {done} iterations, so there is nothing to learn from: "
                "'retinanet check DATA' says which boxes are out of reach, and which --anchor-size or "
                "--scale reaches them"
            )
        elif len(self.losses) >= 2 * self.WINDOW:
            before = statistics.median(self.losses[: self.WINDOW])
            after = statistics.median(self.losses[-self.WINDOW :])
            if after > 2 * before:
                advice["rate"] = (
                    f"the loss has risen from {before:.3g} to {after:.3g}: the learning rate "
                    f"{self.rate:.3g} is too high for {self.batch} images a step, or --set max_grad_norm=1 "
                    f"is needed"
                )
            elif done >= max(200, 0.25 * self.iterations) and after > 0.95 * before:
                advice["falls"] = (
                    f"the loss does not fall ({before:.3g} after the warm-up, {after:.3g} now): look at "
                    f"plots/first_batch.jpg (do the boxes sit on the objects?), and try another --lr than "
                    f"{self.rate:.3g}"
                )
        new = [text for kind, text in advice.items() if kind not in self.given]
        self.given |= advice.keys()
        return new
