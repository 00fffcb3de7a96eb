"""Several processes, as torchrun starts them, work as one: rank, sum, gather. One process does nothing.

torch is imported only where it is needed, so that `--help` stays quick.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import ConfigError, ProcessError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Value = TypeVar("Value")

PATIENCE = timedelta(minutes=60)
"""How long one process waits for another: the others wait while the first computes AP and writes files."""


def rank() -> int:
    """The number of this process, 0..world()-1."""
    return _number("RANK") if "WORLD_SIZE" in os.environ else 0


def world() -> int:
    """How many processes work together."""
    return max(1, _number("WORLD_SIZE")) if "RANK" in os.environ else 1


def local_rank() -> int:
    """The number of this process on its machine: which GPU is its own."""
    return _number("LOCAL_RANK")


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def _number(name: str) -> int:
    value = os.environ.get(name, "0")
    if not value.isdecimal():
        text = f"the environment variable {name} is {value!r}, not a number"
        raise ConfigError(f"{text}; start several processes with torchrun")
    return int(value)


@contextmanager
def process_group() -> Iterator[None]:
    """The region in which several processes communicate, unless the caller has arranged that already."""
    import torch
    from torch import distributed

    if world() == 1 or distributed.is_initialized():
        yield
        return
    if local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    # objects and control travel over gloo, so that they never wait for a GPU
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE
    )
    try:
        yield
        distributed.barrier()  # no process leaves while another still needs it
        # not after an error: NCCL would wait for the process that is gone
        distributed.destroy_process_group()
    except RuntimeError as error:
        # gloo's errors have no class of their own
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise ProcessError(
            f"another of the {world()} processes has ended, so this one cannot go on. What that one printed "
            f"says why; what is on disk is whole, and a training goes on from there with --resume"
        ) from error


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum of a tensor over the processes, on its device; nothing waits for it."""
    if world() == 1:
        return value
    from torch import distributed

    value = value.clone()
    distributed.all_reduce(value)
    return value


def all_gather(value: Value) -> list[Value]:
    """The value of every process, in the order of their ranks, on every process."""
    if world() == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * world()
    distributed.all_gather_object(values, value)
    return values


def broadcast_from_main(make: Callable[[], Value]) -> Value:
    """What the first process makes, on every process; its exception is raised on every process too."""
    if world() == 1:
        return make()
    from torch import distributed

    result: list[Any] = [None, None]
    if is_main_process():
        try:
            result[0] = make()
        except Exception as error:
            result[1] = error
    distributed.broadcast_object_list(result)
    if result[1] is not None:
        raise result[1]
    value: Value = result[0]
    return value


class AnyRank:
    """Whether any process says yes, asked at every step and known one step later, so that none waits."""

    def __init__(self) -> None:
        self._pending: tuple[Any, torch.Tensor] | None = None
        self._group: Any = None
        if world() > 1:
            from torch import distributed

            self._group = distributed.new_group(backend="gloo")

    def any(self, here: bool) -> bool:
        """Whether one said yes at the step before (on one process: at this one); all ask equally often."""
        if world() == 1:
            return here
        import torch
        from torch import distributed

        said = False
        if self._pending is not None:
            work, flag = self._pending
            work.wait()
            said = bool(flag)
        flag = torch.tensor(float(here))
        self._pending = distributed.all_reduce(flag, group=self._group, async_op=True), flag
        return said
