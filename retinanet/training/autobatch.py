"""What a training costs on this machine, known before it begins: memory, time, anchors, the batch."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..config.io import reading
from ..config.schema import TrainConfig
from ..data.dataset import Dataset
from ..data.loader import Batch
from ..data.reach import anchor_reach, reach_table
from ..data.splits import open_training
from ..device import describe, explain_errors, pick_device
from ..distributed import all_gather, process_group, world
from ..errors import ConfigError
from ..structures import Targets
from ..text import duration
from .loop import train_step
from .optim import scaled_rate
from .schedule import plan, probe
from .setup import TrainState, build_state, resolve_config

log = logging.getLogger("retinanet")

SHARE = 0.9
"""Of the free memory of a GPU that may be used."""

CPU_BATCHES = (1, 2, 4, 8)
"""What --batch auto chooses from on a CPU, where larger steps are no faster and memory is not measured."""

LARGEST = 16
"""Times `lr_batch`: beyond, the rules for scaling the learning rate are not known to hold for detectors (Peng
et al. 2018: 16 to 256)."""

FEWEST = 8
"""Steps that an epoch keeps."""


@dataclass(frozen=True)
class Memory:
    """Bytes on a GPU: what a step needs whatever its images, what each image adds, what there is."""

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
        size = len(training), len(validation)
        log.info("%d images to train on, %d to validate on; %s", *size, describe(device))
        state = build_state(config, training, validation, device, load_weights=False)
        weights = list(state.model.parameters())
        log.info(
            "%s, %d classes: %.1f million parameters, %.1f trained",
            config.model.network.backbone,
            len(training.names),
            sum(weight.numel() for weight in weights) / 1e6,
            sum(weight.numel() for weight in weights if weight.requires_grad) / 1e6,
        )
        reach = anchor_reach(training, state.model, state.criterion, state.preprocess)
        log.info("%s", reach_table(reach, training))
        check_memory(config, training, validation, device)
        step, image = probe(state)
        epoch = state.sampler.steps_per_epoch
        log.info("time: %.2f s a step, %d steps an epoch: %s an epoch", step, epoch, duration(step * epoch))
        pace = plan(state, time.perf_counter())
        iterations, looks = pace.iterations, -(-pace.iterations // pace.every)
        whole = duration(step * iterations + looks * image * len(validation))
        text = "  %d iterations (%.1f epochs) and %d validations: %s"
        log.info(text, iterations, iterations / epoch, looks, whole)


def check_memory(config: TrainConfig, training: Dataset, validation: Dataset, device: torch.device) -> None:
    """Print the memory of a step on a GPU; ConfigError when there is less."""
    if device.type != "cuda":
        log.info("memory: measured on a GPU only")
        return
    assert isinstance(config.batch, int)
    share = config.batch // world()
    alike = min(config.micro_batch or share, share)
    trial = replace(config, micro_batch=None, compile=False)
    memory = measure(build_state(trial, training, validation, device, load_weights=False))
    log.info(
        "memory: %s, and %s for each image of the largest shape: %s for %d at a time, of %s free",
        *(gib(memory.fixed), gib(memory.image), gib(memory.step(alike)), alike, gib(memory.free)),
    )
    if min(all_gather(memory.free - memory.step(alike))) < 0:
        raise ConfigError(
            "that does not fit; set --micro-batch (less memory, the same result) or --batch auto, or lower "
            "--scale"
        )


def resolve_auto_batch(
    config: TrainConfig, training: Dataset, validation: Dataset, device: torch.device
) -> TrainConfig:
    """Decide on `batch` if it is "auto", and print why.

    It is at most LARGEST x `lr_batch` and leaves FEWEST steps an epoch. On a GPU it is as many images as fit
    in memory, elsewhere one of CPU_BATCHES.
    """
    if config.batch != "auto":
        return config
    most = max(1, min(LARGEST * config.lr_batch, len(training) // FEWEST) // world())
    if device.type == "cuda":
        trial = replace(config, batch=world(), micro_batch=None, compile=False)
        state = build_state(trial, training, validation, device, load_weights=False)
        share, reason = largest_on_gpu(state, most)
    else:
        share = max(size for size in CPU_BATCHES if size <= most)
        reason = f"on a CPU the largest of {', '.join(map(str, CPU_BATCHES))}"
    share = min(all_gather(share))
    batch, several = share * world(), f" on {world()} processes" if world() > 1 else ""
    limits = f"at most {LARGEST} x {config.lr_batch} images, and {FEWEST} steps an epoch"
    log.info("batch auto: %d images%s (%s; %s)", batch, several, reason, limits)
    rate = scaled_rate(config.lr, batch, config.lr_batch, config.optimizer)
    rule = "the square root of the batch (AdamW)" if config.optimizer == "adamw" else "the batch (SGD)"
    text = "  the learning rate goes with %s: %.3g for %d images, so %.3g"
    log.info(text, rule, config.lr, config.lr_batch, rate)
    log.info(
        "  the schedule counts images, so a larger batch has fewer steps; a --budget in iterations stays as "
        "it is"
    )
    return replace(config, batch=batch)


def largest_on_gpu(state: TrainState, most: int) -> tuple[int, str]:
    """The largest share of a step up to `most` that fits in memory, and the numbers behind it."""
    memory = measure(state)
    share = min(most, int((memory.free * SHARE - memory.fixed) / max(1, memory.image)))
    if world() == 1:  # with several, one that runs out would leave the others waiting
        share = largest_that_runs(state, share)
    if min(all_gather(share)) < 1:
        raise ConfigError(
            f"not one image fits: a step needs {gib(memory.step(1))} of {gib(memory.free)} free; lower "
            f"--scale or take a smaller --backbone"
        )
    return share, f"{gib(memory.fixed)} and {gib(memory.image)} an image of {gib(memory.free)} free"


def measure(state: TrainState) -> Memory:
    """Memory of steps on made-up images of the largest shape on a GPU. It spoils the state."""
    device, peaks = state.device, list[int]()
    for images in (1, 1, 2):  # the first step makes the optimiser's moments
        fixed = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        try:
            train_step(state, dummy_batch(state, images), 0.0)
        except torch.OutOfMemoryError:
            if not peaks:
                raise
            peaks.append(2 * peaks[-1] - fixed)  # two do not fit: an image is all that the first one added
            break
        peaks.append(torch.cuda.max_memory_allocated(device))
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return Memory(2 * peaks[-2] - peaks[-1], peaks[-1] - peaks[-2], free)


def largest_that_runs(state: TrainState, images: int) -> int:
    """The largest number up to `images` with which a step truly runs on the GPU."""
    while images > 0:
        try:
            train_step(state, dummy_batch(state, images), 0.0)
            return images
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            images = images * 9 // 10
    return 0


def dummy_batch(state: TrainState, images: int) -> Batch:
    """Grey images of the largest padded shape of the data set, each with as many boxes as its fullest one."""
    # a step of tall and wide images is as tall and as wide as any
    shapes = np.unique(state.training.sizes, axis=0).tolist()
    height, width = state.preprocess.padded([state.preprocess.size(*shape) for shape in shapes])
    boxes = int(np.diff(state.training.first).max(initial=1))
    side = torch.tensor([0.0, 0.0, width / 4, height / 4])
    targets = Targets(
        side.expand(images, boxes, 4),
        torch.zeros(images, boxes, dtype=torch.long),
        torch.tensor([[height, width]] * images),
    )
    pixels = torch.full((images, 3, height, width), 128, dtype=torch.uint8)
    return Batch(pixels, targets, torch.zeros(images, dtype=torch.long))


def gib(count: float) -> str:
    """Bytes in words."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
