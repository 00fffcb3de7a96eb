"""What a training costs on this machine, known before anything is trained: memory, time, the anchors of every
object.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config.io import reading
from ..config.schema import TrainConfig
from ..data.dataset import Dataset, Floats, Integers
from ..data.loader import Batch
from ..data.splits import open_training
from ..device import describe, explain_errors, pick_device
from ..distributed import all_gather, process_group, world
from ..errors import ConfigError
from ..ops.anchors import inside
from ..ops.assign import assign
from ..structures import Targets
from ..text import aligned, duration
from .loop import train_step
from .optim import scaled_rate
from .schedule import plan, probe
from .setup import TrainState, build_state, resolve_config

log = logging.getLogger("retinanet")

SHARE, SHARE_ELSEWHERE = 0.9, 0.7
"""Of the free memory that may be used: under CUDA, and elsewhere, where the figure is an estimate and other
programs live there too.
"""

SCRATCH = 1.5
"""On a CPU: what an image adds to a step over what it keeps for the backward pass (measured: 1.14 to 1.46,
ResNet-18 and 50).
"""

LARGEST = 16
"""Times `lr_batch`: beyond, the rules for scaling the learning rate are not known to hold for detectors (Peng
et al. 2018: 16 to 256).
"""

FEWEST = 8
"""Steps that an epoch keeps."""

SIDES = ((0, 8), (8, 16), (16, 32), (32, 64), (64, 128), (128, 256), (256, 512), (512, 1 << 30))
"""Bins of object size at network scale, in pixels (the root of the area)."""

LOOKED_AT = 2000
"""Pictures whose boxes are held against the anchors."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a process: what a step needs whatever its images, what each image adds, what there is."""

    fixed: int
    image: int
    free: int

    def step(self, images: int) -> int:
        """Bytes of a step of so many images."""
        return self.fixed + images * self.image


def dry_run(source: str | Path, config: TrainConfig) -> None:
    """Print memory, time and anchors of a training, and train nothing."""
    device = pick_device(config.device)
    with process_group(), explain_errors():
        config = resolve_config(config, device)
        training, validation = open_training(source, config.seed, **reading(config))
        config = resolve_auto_batch(config, training, validation, device)
        log.info(
            "%d images to train on, %d to validate on; %s", len(training), len(validation), describe(device)
        )
        session = build_state(config, training, validation, device, load_weights=False)
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in session.model.parameters()]
        parameters, trained = (
            sum(count for count, _ in sizes) / 1e6,
            sum(count for count, live in sizes if live) / 1e6,
        )
        log.info(
            "%s, %d classes: %.1f million parameters, %.1f trained",
            config.model.network.backbone,
            len(training.names),
            parameters,
            trained,
        )
        log.info("%s", anchor_table(session))
        share = session.sampler.batch // world()
        alike = min(config.micro_batch or share, share)
        memory = measure(
            build_state(
                replace(config, micro_batch=None, compile=False),
                training,
                validation,
                device,
                load_weights=False,
            )
        )
        log.info(
            "memory: %s, and %s for each image of the largest shape: %s for %d at a time, of %s free",
            *(gib(memory.fixed), gib(memory.image), gib(memory.step(alike)), alike, gib(memory.free)),
        )
        if min(all_gather(memory.free - memory.step(alike))) < 0:
            raise ConfigError(
                "that does not fit; set --micro-batch (less memory, the same result) or --batch auto, or "
                "lower --scale"
            )
        step, picture = probe(session)
        per_epoch = session.sampler.steps_per_epoch
        log.info(
            "time: %.2f s a step, %d steps an epoch: %s an epoch", step, per_epoch, duration(step * per_epoch)
        )
        iterations, every = plan(session, time.perf_counter())
        looks = -(-iterations // every)
        whole = duration(step * iterations + looks * picture * len(validation))
        log.info(
            "  %d iterations (%.1f epochs) and %d validations: %s",
            iterations,
            iterations / per_epoch,
            looks,
            whole,
        )


def resolve_auto_batch(
    config: TrainConfig, training: Dataset, validation: Dataset, device: torch.device
) -> TrainConfig:
    """The config with `batch` decided if it is to be: as many images as fit in memory. The reasoning is
    printed.
    """
    if config.batch != "auto":
        return config
    trial = replace(config, batch=world(), micro_batch=None, compile=False)
    session = build_state(trial, training, validation, device, load_weights=False)
    memory = measure(session)
    most = max(1, min(LARGEST * config.lr_batch, len(training) // FEWEST) // world())
    room = (memory.free * (SHARE if device.type == "cuda" else SHARE_ELSEWHERE) - memory.fixed) / max(
        1, memory.image
    )
    share = max(0, min(int(room), most))
    if (
        device.type == "cuda" and world() == 1
    ):  # with several, one that runs out would leave the others waiting
        share = largest_that_runs(session, share)
    share = min(all_gather(share))
    if share < 1:
        raise ConfigError(
            f"not one image fits: a step needs {gib(memory.step(1))} of {gib(memory.free)} free; lower "
            f"--scale or take a smaller --backbone"
        )
    batch = share * world()
    limit = (
        "memory"
        if share < most
        else f"not memory: at most {LARGEST} x {config.lr_batch} images, and {FEWEST} steps an epoch"
    )
    log.info(
        "batch auto: %s and %s an image, %s free: %d images%s (the limit is %s)",
        *(
            gib(memory.fixed),
            gib(memory.image),
            gib(memory.free),
            batch,
            f" on {world()} processes" if world() > 1 else "",
            limit,
        ),
    )
    rate = scaled_rate(config.lr, batch, config.lr_batch, config.optimizer)
    rule = "the square root of the batch (AdamW)" if config.optimizer == "adamw" else "the batch (SGD)"
    log.info(
        "  the learning rate goes with %s: %.3g for %d images, so %.3g",
        rule,
        config.lr,
        config.lr_batch,
        rate,
    )
    log.info(
        "  the schedule counts images, so a larger batch has fewer steps; a --budget in iterations stays as "
        "it is"
    )
    return replace(config, batch=batch)


def measure(session: TrainState) -> Memory:
    """Memory of steps on made-up images of the largest shape: measured on a GPU, estimated on a CPU. It
    spoils the session.
    """
    device = session.device
    if device.type == "cuda":
        peaks: list[int] = []
        for images in (1, 1, 2):  # the first step makes the optimiser's moments
            fixed = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            try:
                train_step(session, dummy_batch(session, images), 0.0)
            except torch.OutOfMemoryError:
                if not peaks:
                    raise
                peaks.append(
                    2 * peaks[-1] - fixed
                )  # two do not fit: an image is all that the first one added
                break
            peaks.append(torch.cuda.max_memory_allocated(device))
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        return Memory(2 * peaks[-2] - peaks[-1], peaks[-1] - peaks[-2], free)
    kept = []
    for images in (1, 2):  # weights are kept too: only the difference is the image's
        with kept_bytes() as storages:
            train_step(session, dummy_batch(session, images), 0.0)
        kept.append(sum(storages.values()))
    parameters = sum(parameter.numel() for parameter in session.model.parameters() if parameter.requires_grad)
    states = sum(
        tensor.numel()
        for state in session.optimizer.state.values()
        for tensor in state.values()
        if isinstance(tensor, Tensor)
    )
    weights = sum(tensor.numel() for tensor in session.model.state_dict().values()) * (
        2 if session.average else 1
    )
    return Memory(4 * (parameters + states + weights), int(SCRATCH * (kept[1] - kept[0])), free_memory())


def largest_that_runs(session: TrainState, images: int) -> int:
    """The largest number up to `images` with which a step truly runs on the GPU."""
    while images > 0:
        try:
            train_step(session, dummy_batch(session, images), 0.0)
            return images
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            images = images * 9 // 10
    return 0


def dummy_batch(session: TrainState, images: int) -> Batch:
    """Grey images of the largest padded shape of the data set, each with as many boxes as its fullest one."""
    shapes = np.unique(
        session.training.sizes, axis=0
    ).tolist()  # a step of tall and wide pictures is as tall and as wide as any
    height, width = session.preprocess.padded([session.preprocess.size(*shape) for shape in shapes])
    boxes = int(np.diff(session.training.first).max(initial=1))
    side = torch.tensor([0.0, 0.0, width / 4, height / 4])
    targets = Targets(
        side.expand(images, boxes, 4),
        torch.zeros(images, boxes, dtype=torch.long),
        torch.tensor([[height, width]] * images),
    )
    return Batch(
        torch.full((images, 3, height, width), 128, dtype=torch.uint8),
        targets,
        torch.zeros(images, dtype=torch.long),
    )


@contextmanager
def kept_bytes() -> Iterator[dict[int, int]]:
    """Storage -> bytes of all that autograd keeps for the backward pass inside the region, each storage
    once.
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def free_memory() -> int:
    """Bytes of main memory that a program may still take, by the system and by the limit of a container."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
        limit, used = (
            Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current")
        )
        free = min(free, int(limit) - int(used))
    except (OSError, ValueError, KeyError):  # another system, or no limit ("max")
        pass
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # the processes of this machine share it


def gib(count: float) -> str:
    """Bytes in words."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def anchors_of_objects(session: TrainState, pictures: int = LOOKED_AT) -> tuple[Integers, Floats, Integers]:
    """How many anchors answer for each object of the first `pictures`, before jitter: counts [M], root of the
    area [M], labels [M].
    """
    data, criterion = session.training, session.criterion
    counts, sides, labels = [], [], []
    for entry in session.sampler.epoch(0)[: max(1, pictures // session.sampler.batch)]:
        anchors = torch.cat(session.model.anchors(torch.empty(0, 3, *entry.canvas)))
        for index in entry.indices:
            rows = data.rows(index)
            single = ~data.crowd[rows]
            height, width = map(int, data.sizes[index])
            new_height, new_width = session.preprocess.size(height, width)
            factor = np.array([new_width / width, new_height / height] * 2)
            boxes = torch.from_numpy(data.boxes[rows][single] * factor).float()
            valid = inside(anchors, torch.tensor([[new_height, new_width]], dtype=torch.float32))
            match = assign(
                anchors, boxes[None], valid, criterion.positive, criterion.negative, criterion.force_above
            )[0]
            counts.append(torch.bincount(match[match >= 0], minlength=len(boxes)).numpy())
            sides.append((boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt().numpy().astype(np.float64))
            labels.append(data.labels[rows][single])
    return np.concatenate(counts), np.concatenate(sides), np.concatenate(labels)


def anchor_table(session: TrainState) -> str:
    """Anchors per object by size and by class, by the rules of the training, without its jitter."""
    counts, sides, labels = anchors_of_objects(session)
    seen = "" if len(session.training) <= LOOKED_AT else f" (of {LOOKED_AT} pictures)"
    lines = [("anchors per object" + seen, "objects", "anchors", "none")]

    def row(title: str, where: np.ndarray) -> None:
        if where.any():
            mean, none = counts[where].mean(), (counts[where] == 0).mean()
            lines.append((f"  {title}", str(where.sum()), f"{mean:.1f}", f"{none:.1%}"))

    row("all", np.ones(len(counts), dtype=np.bool_))
    for low, high in SIDES:
        row(f"{low}-{high} px" if high < 1 << 30 else f"above {low} px", (sides >= low) & (sides < high))
    for label, name in enumerate(session.training.names):
        row(name, labels == label)
    return aligned(lines)
