"""Builds everything a training run needs: model, optimiser, EMA, criterion, sampler."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
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
from ..distributed import rank, world
from ..errors import ConfigError
from ..evaluation.evaluate import Evaluation, evaluate
from ..inference.detector import Detector
from ..model.criterion import Criterion
from ..model.preprocess import Preprocess
from ..model.retinanet import RetinaNet
from ..weights.checkpoint import build, postprocess_of, preprocess_of
from ..weights.transfer import Pretrained, load_pretrained
from .log import board_writer
from .optim import EMA, build_optimizer, scaled_rate

log = logging.getLogger("retinanet")


@dataclass
class TrainState:
    """What the loop works on."""

    config: TrainConfig
    training: Dataset
    validation: Dataset
    device: torch.device
    model: RetinaNet
    network: Callable[[Tensor], tuple[list[Tensor], list[Tensor]]]
    """What a step calls: the model, compiled if asked for, its gradients summed over the processes if there
    are several.
    """
    shipped: RetinaNet
    """The model that is evaluated and saved: the running average, or the model itself."""
    average: EMA | None
    criterion: Criterion
    preprocess: Preprocess
    """How training wants its pictures; the detector has its own."""
    sampler: Sampler
    optimizer: torch.optim.Optimizer
    broken: Tensor
    """1 from the first step on whose loss or gradient is not finite, else 0. On the device, where it stops
    all updates.
    """

    @property
    def rate(self) -> float:
        """The base learning rate, scaled with the batch."""
        return scaled_rate(self.config.lr, self.sampler.batch, self.config.lr_batch, self.config.optimizer)

    def detector(self) -> Detector:
        """The shipped model, as a user will hold it, in eval mode: `evaluate` restores train mode."""
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
        try:
            return evaluate(
                self.detector(),
                data,
                batch=self.evaluation_batch,
                workers=workers,
                criterion=self.criterion,
                max_pixels=self.config.max_pixels,
            )
        finally:
            self.model.train()

    def batches(self, start: int, stop: int, whole: bool = False) -> Iterator[Batch]:
        """This process's share of the batches of iterations start..stop-1, on the CPU; or the whole of
        each.
        """
        config = self.config
        augment = Augment(config.flip, config.jitter, config.photometric)
        sampler = replace(self.sampler, rank=0, world=1) if whole else self.sampler
        pin = self.device.type == "cuda"
        return training_batches(
            self.training,
            self.preprocess,
            augment,
            sampler,
            start,
            stop,
            config.workers or 0,
            pin,
            config.max_pixels,
        )

    @property
    def evaluation_batch(self) -> int:
        """Pictures of a batch in validation. Not by the number of processes, so that any number computes the
        same bits.
        """
        return min(8, 2 * (self.config.micro_batch or 4))

    def micro_batches(self, batch: Batch) -> Iterator[tuple[slice, AbstractContextManager[Any]]]:
        """The rows of each micro-batch, and where to work on it: only the last one lets the processes
        exchange their gradients.
        """
        size = min(self.config.micro_batch or len(batch), len(batch))
        for start in range(0, len(batch), size):
            alone = start + size < len(batch) and isinstance(self.network, DistributedDataParallel)
            context: AbstractContextManager[Any] = self.network.no_sync() if alone else nullcontext()  # type: ignore[attr-defined]
            yield slice(start, start + size), context


def resolve_config(config: TrainConfig, device: torch.device) -> TrainConfig:
    """The config with everything decided that the machine decides."""
    check(config)
    model = config.model
    if config.init == "none" and model.network.backbone_norm == "frozen":
        model = replace(model, network=replace(model.network, backbone_norm="batch"))
        log.info("from scratch: the backbone's batch norm is live, not frozen")
    if config.train_scale is not None and config.train_scale > model.preprocess.scale:
        log.info(
            "training at %d px too: the preset's %d would be more than the model's own scale",
            model.preprocess.scale,
            config.train_scale,
        )
        config = replace(config, train_scale=None)
    if config.tensorboard:
        board_writer()
    share = config.batch // world() if isinstance(config.batch, int) else config.micro_batch
    if (
        model.network.backbone_norm == "batch"
        and (config.micro_batch or 0) < (share or 0)
        and config.micro_batch is not None
    ):
        raise ConfigError(
            "with live batch norm every micro-batch would have statistics of its own, and the result would "
            "not be that of the whole batch; "
            "use --backbone-norm group, or a smaller --batch without --micro-batch"
        )
    if world() > 1:
        if isinstance(config.batch, int) and config.batch % world():
            raise ConfigError(
                f"batch {config.batch} cannot be shared equally by {world()} processes; it counts the "
                f"images of all of them"
            )
        if device.type == "cpu" and model.network.backbone_norm == "batch":
            raise ConfigError(
                "batch norm cannot be synchronised between processes on a CPU, and without that their "
                "number would change what is "
                "learned; use --backbone-norm group, or one process"
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
    """Weights, optimiser and average from the seed.

    `init` is the model that `config.init` names, already read. `load_weights=False` leaves out its weights
    and ImageNet's, because a saved state follows.
    """
    torch.manual_seed(config.seed)
    model = build(config.model, len(training.names))
    if config.init_model is not None:
        if load_weights:
            assert init is not None, "the model that --init names is read by the command"
            load_pretrained(model, training.names, init)
        if config.model.network.backbone_norm == "frozen":
            model.backbone.freeze()
    elif config.init == "imagenet":
        if load_weights:
            model.backbone.load_imagenet()
        model.backbone.freeze()
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    if world() > 1 and device.type == "cuda":
        # timm's, since some of its layers are a norm and an activation in one
        model = convert_sync_batchnorm(model)
    average = EMA(model, copy.deepcopy(model), config.ema) if config.ema else None
    assert isinstance(config.batch, int)
    optimizer = build_optimizer(model, config.optimizer, config.lr, config.momentum, config.weight_decay)
    shipped = average.model if average else model
    assert isinstance(shipped, RetinaNet)
    preprocess = preprocess_of(config.model, config.train_scale)
    repeats = repeat_factors(training, config.repeat_threshold) if config.repeat_threshold else None
    sampler = Sampler(training.sizes, config.batch, config.seed, preprocess, repeats, rank(), world())
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
    """The losses of a config; alpha by inverse frequency is computed from the training split, and told."""
    settings = asdict(config.criterion)
    if settings["alpha"] == "inverse-frequency":
        settings["alpha"] = inverse_frequency(training)
        told = (
            f"{name} {weight:.2f}" for name, weight in zip(training.names, settings["alpha"], strict=True)
        )
        log.info("alpha by inverse frequency: %s", ", ".join(told))
    return Criterion(**settings)


def wrap_ddp(network: Any, device: torch.device) -> Any:
    """The network as one of several processes: its gradients become the mean over them."""
    if world() == 1:
        return network
    where = [device.index] if device.type == "cuda" else None
    known = inspect.signature(DistributedDataParallel).parameters
    # buffers are equal everywhere already: frozen, or synchronised; the setting was renamed after torch 2.11
    settings: dict[str, Any] = {
        name: False for name in ("forward_sync_buffers", "broadcast_buffers") if name in known
    }
    if len(settings) == 2:
        del settings["broadcast_buffers"]
    return DistributedDataParallel(network, device_ids=where, gradient_as_bucket_view=True, **settings)


def try_compile(model: RetinaNet, config: TrainConfig, sampler: Sampler) -> Any:
    """The model through torch.compile, for pictures of any shape; the model itself where compiling fails,
    with a line that says why.
    """
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
        log.info(
            "--compile: not compiled, since %s: %s", type(error).__name__, str(error).strip().splitlines()[0]
        )
        network = model
    model.load_state_dict(saved)
    model.zero_grad(set_to_none=True)
    return network


BOUND = 10.0
"""A class is weighted at most this many times more, or less, than its like share would be: one box does not
rule the loss.
"""


def inverse_frequency(data: Dataset, alpha: float = 0.25) -> list[float]:
    """[K] an alpha for each class, larger for rare ones ("inverse class frequency", Sec. 3.2).

    The odds alpha_c / (1 - alpha_c), by which positives outweigh negatives, are those of `alpha` times M / (K
    M_c): M boxes, M_c of
    class c. So a class with its like share of the boxes gets `alpha` itself, and every alpha stays between 0
    and 1.
    """
    counts = np.bincount(data.labels[~data.crowd], minlength=len(data.names))
    share = counts * len(counts) / max(1, counts.sum())
    odds = alpha / (1 - alpha) * np.clip(1 / np.maximum(share, 1e-12), 1 / BOUND, BOUND)
    weights: list[float] = (odds / (1 + odds)).tolist()
    return weights
