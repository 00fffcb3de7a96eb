"""Several processes as one, as torchrun starts them: who am I, add up, collect. On one process there is
nothing to do.

Nothing here imports torch before it is needed, so that a process can ask for its rank while `--help` stays
quick.
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
"""How long one process waits for another: the first computes AP and writes files while the others have
nothing to do.
"""


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
        raise ConfigError(
            f"the environment variable {name} is {value!r}, not a number; start several processes with "
            f"torchrun"
        )
    return int(value)


@contextmanager
def process_group() -> Iterator[None]:
    """The region in which the processes talk to each other; nothing on one process, or where the caller has
    arranged it already.
    """
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
        distributed.barrier()  # nobody leaves while another still asks for something
        # not after an error: NCCL would wait for the process that is gone
        distributed.destroy_process_group()
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo" in str(
            error
        ):  # gloo's errors have no class of their own
            raise ProcessError(
                f"another of the {world()} processes has ended, so this one cannot go on. What that one "
                f"printed says why; what is on disk "
                "is whole, and a training goes on from there with --resume"
            ) from error
        raise


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
    """What the first process makes, on every process; an exception of the first is everybody's."""
    if world() == 1:
        return make()
    from torch import distributed

    answer: list[Any] = [None, None]
    if is_main_process():
        try:
            answer[0] = make()
        except Exception as error:
            answer[1] = error
    distributed.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    value: Value = answer[0]
    return value


class AnyRank:
    """A yes or no of all processes, asked at every step and answered one step later, so that nobody waits for
    it.
    """

    def __init__(self) -> None:
        self._pending: tuple[Any, torch.Tensor] | None = None
        self._group: Any = None
        if world() > 1:
            from torch import distributed

            self._group = distributed.new_group(backend="gloo")

    def any(self, here: bool) -> bool:
        """Whether some process said yes at the step before this one (on one process: at this one). All must
        ask equally often.
        """
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
