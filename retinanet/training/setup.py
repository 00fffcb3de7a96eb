"""Builds everything a training run needs: model, optimiser, EMA, criterion, sampler."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..config.io import check
from ..config.schema import TrainConfig
from ..data.augment import Augment
from ..data.dataset import Dataset
from ..data.loader import Batch, training_batches
from ..data.sampler import Sampler, repeat_factors
from ..device import autocast, pick_precision, pick_workers
from ..distributed import all_reduce_sum, rank, world
from ..errors import ConfigError
from ..evaluation.evaluate import Evaluation, evaluate
from ..inference.detector import Detector
from ..model.criterion import Criterion, forward_losses
from ..model.preprocess import Preprocess
from ..model.retinanet import RetinaNet
from ..weights.checkpoint import build, postprocess_of, preprocess_of
from ..weights.transfer import Pretrained, load_pretrained
from .log import board_writer
from .optim import EMA, build_optimizer, scaled_rate

log = logging.getLogger("retinanet")

Network = Callable[[Tensor], tuple[list[Tensor], list[Tensor]]]


@dataclass
class TrainState:
    """What the loop works on.

    network    what a step calls: the model, compiled if asked for, and one of several processes
    shipped    the model that is evaluated and saved: the running average, or the model itself
    broken     1 from the first step on whose loss or gradient is not finite, else 0; on the device, where
               it stops all updates
    """

    config: TrainConfig
    training: Dataset
    validation: Dataset
    device: torch.device
    model: RetinaNet
    network: Network
    shipped: RetinaNet
    average: EMA | None
    criterion: Criterion
    preprocess: Preprocess
    sampler: Sampler
    optimizer: torch.optim.Optimizer
    broken: Tensor

    @property
    def rate(self) -> float:
        """The base learning rate, scaled with the batch."""
        return scaled_rate(self.config.lr, self.sampler.batch, self.config.lr_batch, self.config.optimizer)

    def detector(self) -> Detector:
        """The shipped model as a user will hold it, in eval mode."""
        return Detector(
            self.shipped,
            preprocess_of(self.config.model),
            postprocess_of(self.config.model),
            self.validation.names,
            self.validation.category_ids,
            device=self.device,
            precision=self.config.precision,
        )

    def evaluate(self, data: Dataset, workers: int) -> Evaluation:
        """Losses and AP of the shipped model on `data`; the model is in train mode again after it."""
        # the batch does not depend on the number of processes, so that any number computes the same bits
        batch = min(8, 2 * (self.config.micro_batch or 4))
        try:
            return evaluate(
                self.detector(),
                data,
                batch=batch,
                workers=workers,
                criterion=self.criterion,
                max_pixels=self.config.max_pixels,
            )
        finally:
            self.model.train()

    def batches(self, start: int, stop: int, whole: bool = False) -> Iterator[Batch]:
        """The batches of iterations start..stop-1, on the CPU: this process's share, or the `whole`."""
        config = self.config
        return training_batches(
            self.training,
            self.preprocess,
            Augment(config.flip, config.jitter, config.photometric),
            replace(self.sampler, rank=0, world=1) if whole else self.sampler,
            start=start,
            stop=stop,
            workers=config.workers or 0,
            pin=self.device.type == "cuda",
            max_pixels=config.max_pixels,
        )

    def losses(self, batch: Batch, network: Network) -> Iterator[tuple[dict[str, list[Tensor]], Tensor]]:
        """For each micro-batch the class and box loss of every level, and the positives of the whole step.

        `batch` is this process's share. All of it is matched first and the positives of all processes are
        counted, so that neither the number of processes nor that of micro-batches changes the divisor.
        The gradients of the processes are exchanged in the last micro-batch only.
        """
        batch = batch.to(self.device)
        anchors = self.model.anchors(batch.images)
        matched = self.criterion.match(anchors, batch.targets)
        positives = all_reduce_sum(matched.positives.sum())
        size = self.config.micro_batch or len(batch)
        for start in range(0, len(batch), size):
            rows, last = slice(start, start + size), start + size >= len(batch)
            split = isinstance(network, DistributedDataParallel) and not last
            with network.no_sync() if split else nullcontext():  # type: ignore[attr-defined]
                scored = forward_losses(
                    network,
                    self.criterion,
                    batch.images[rows],
                    batch.targets[rows],
                    anchors=anchors,
                    preprocess=self.preprocess,
                    precision=self.config.precision,
                    matched=matched[rows],
                    normalizer=positives,
                    count=self.sampler.batch,
                )
                yield scored.levels, positives


def resolve_config(config: TrainConfig, device: torch.device) -> TrainConfig:
    """Check a config and decide what depends on the machine."""
    check(config)
    model = config.model
    if config.init == "none" and model.network.backbone_norm == "frozen":
        model = replace(model, network=replace(model.network, backbone_norm="batch"))
        log.info("from scratch: the backbone's batch norm is live, not frozen")
    if config.train_scale is not None and config.train_scale > model.preprocess.scale:
        text = "training at %d px too: the preset's %d would be more than the model's own scale"
        log.info(text, model.preprocess.scale, config.train_scale)
        config = replace(config, train_scale=None)
    if config.tensorboard:
        board_writer()
    live = model.network.backbone_norm == "batch"
    share = config.batch // world() if isinstance(config.batch, int) else config.micro_batch
    if live and config.micro_batch is not None and config.micro_batch < (share or 0):
        raise ConfigError(
            "with live batch norm every micro-batch would have statistics of its own, and the result would "
            "not be that of the whole batch; "
            "use --backbone-norm group, or a smaller --batch without --micro-batch"
        )
    if isinstance(config.batch, int) and config.batch % world():
        raise ConfigError(
            f"batch {config.batch} cannot be shared equally by {world()} processes; it counts the "
            f"images of all of them"
        )
    if live and world() > 1 and device.type == "cpu":
        raise ConfigError(
            "batch norm cannot be synchronised between processes on a CPU, and without that their "
            "number would change what is learned; use --backbone-norm group, or one process"
        )
    precision, workers = pick_precision(config.precision, device), pick_workers(config.workers, device)
    return replace(config, model=model, precision=precision, workers=workers)


def build_state(
    config: TrainConfig,
    training: Dataset,
    validation: Dataset,
    device: torch.device,
    init: Pretrained | None = None,
    load_weights: bool = True,
) -> TrainState:
    """Make weights, optimiser and average from the seed.

    `init` is the model that `config.init` names, already read. `load_weights=False` leaves out its weights
    and ImageNet's, because a saved state follows.
    """
    torch.manual_seed(config.seed)
    model = build(config.model, len(training.names))
    if load_weights and config.init_model is not None:
        assert init is not None, "the model that --init names is read by the command"
        load_pretrained(model, training.names, init)
    elif load_weights and config.init == "imagenet":
        model.backbone.load_imagenet()
    if config.init == "imagenet" or (config.init_model and config.model.network.backbone_norm == "frozen"):
        model.backbone.freeze()
    return state_of(model, config, training, validation, device)


def state_of(
    model: RetinaNet, config: TrainConfig, training: Dataset, validation: Dataset, device: torch.device
) -> TrainState:
    """Put optimiser, average and batches around a model that has its first weights."""
    assert isinstance(config.batch, int)
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    if world() > 1 and device.type == "cuda":
        # timm's, since some of its layers are a norm and an activation in one
        model = convert_sync_batchnorm(model)
    shipped = copy.deepcopy(model) if config.ema else model
    preprocess = preprocess_of(config.model, config.train_scale)
    repeats = repeat_factors(training, config.repeat_threshold) if config.repeat_threshold else None
    sampler = Sampler(
        training.sizes, config.batch, config.seed, preprocess, repeats=repeats, rank=rank(), world=world()
    )
    average = EMA(model, shipped, config.ema) if config.ema else None
    optimizer = build_optimizer(model, config.optimizer, config.lr, config.momentum, config.weight_decay)
    network = wrap_ddp(try_compile(model, config, sampler) if config.compile else model, device)
    return TrainState(
        config=config,
        training=training,
        validation=validation,
        device=device,
        model=model,
        network=network,
        shipped=shipped,
        average=average,
        criterion=build_criterion(config, training),
        preprocess=preprocess,
        sampler=sampler,
        optimizer=optimizer,
        broken=torch.zeros((), device=device),
    )


def build_criterion(config: TrainConfig, training: Dataset) -> Criterion:
    """The losses of a config; alpha by inverse frequency is computed from the training split and logged."""
    settings = asdict(config.criterion)
    if settings["alpha"] == "inverse-frequency":
        settings["alpha"] = alphas = inverse_frequency(training)
        shown = [f"{name} {alpha:.2f}" for name, alpha in zip(training.names, alphas, strict=True)]
        log.info("alpha by inverse frequency: %s", ", ".join(shown))
    return Criterion(**settings)


def wrap_ddp(network: Any, device: torch.device) -> Any:
    """The network as one of several processes: its gradients become the mean over them."""
    if world() == 1:
        return network
    # buffers are equal everywhere already: frozen, or synchronised; torch 2.12 renamed the setting
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    settings: dict[str, Any] = {buffers: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(network, [device.index] if device.type == "cuda" else None, **settings)


def try_compile(model: RetinaNet, config: TrainConfig, sampler: Sampler) -> Any:
    """The model through torch.compile, for images of any shape; the model itself where compiling fails."""
    network = torch.compile(model, dynamic=True)
    device = next(model.parameters()).device
    saved = copy.deepcopy(model.state_dict())
    share = sampler.batch // sampler.world
    height, width = max((entry.canvas for entry in sampler.epoch(0)), key=lambda shape: shape[0] * shape[1])
    try:
        images = torch.zeros(min(config.micro_batch or share, share), 3, height, width, device=device)
        with autocast(config.precision, device):
            logits, offsets = network(images.to(memory_format=torch.channels_last))
        sum(level.float().sum() for level in logits + offsets).backward()
    except Exception as error:  # whatever a missing or old compiler makes of it
        reason = str(error).strip().splitlines()[0]
        log.info("--compile: not compiled, since %s: %s", type(error).__name__, reason)
        network = model
    model.load_state_dict(saved)
    model.zero_grad(set_to_none=True)
    return network


BOUND = 10.0
"""The odds of a class are raised or lowered at most this many times: one box does not rule the loss."""


def inverse_frequency(data: Dataset, alpha: float = 0.25) -> list[float]:
    """[K] an alpha for each class, larger for rare ones ("inverse class frequency", Sec. 3.2).

    The odds alpha_c / (1 - alpha_c), by which positives outweigh negatives, are those of `alpha` times
    M / (K M_c): M boxes, M_c of class c. A class with its equal share of the boxes gets `alpha` itself, and
    every alpha stays between 0 and 1.
    """
    counts = np.bincount(data.labels[~data.crowd], minlength=len(data.names))
    share = counts * len(counts) / max(1, counts.sum())
    odds = alpha / (1 - alpha) * np.clip(1 / np.maximum(share, 1e-12), 1 / BOUND, BOUND)
    weights: list[float] = (odds / (1 + odds)).tolist()
    return weights
