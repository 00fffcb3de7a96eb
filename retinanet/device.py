"""Where and how to compute: device, number format, loader processes."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from multiprocessing.queues import Queue
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from .distributed import local_rank, world
from .errors import ConfigError, ProcessError

log = logging.getLogger("retinanet")

SHARED_MEMORY = "/dev/shm"
"""Where Linux keeps the memory that processes share. A container of Docker has 64 MB of it."""
SEMAPHORES = 1 << 20
"""Bytes of it that the loader processes need at least, for what they wait on."""

Precision = Literal["auto", "fp32", "bf16"]


def gpu_number(name: str) -> int:
    """The number of the GPU that auto, cuda or cuda:1 means; each process of several takes its own."""
    kind, _, number = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and not number.isdigit()):
        raise ConfigError(f"unknown device {name!r}; choose auto, cpu, cuda or cuda:N")
    return local_rank() if world() > 1 else int(number or 0)


def pick_device(name: str | torch.device) -> torch.device:
    """`auto` is a GPU if there is one, and each process of several takes its own.

    Raises ConfigError for a device that is absent or that the package does not compute on.
    """
    count = torch.cuda.device_count()
    device = None
    with suppress(RuntimeError, TypeError):  # no name of a device
        device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    if device is not None and device.type == "cuda" and world() > 1:
        device = torch.device("cuda", local_rank())
    if device is None or (device.index or 0) >= {"cpu": 1, "cuda": count}.get(device.type, 0):
        known = ["cpu", "auto", *(["cuda"] if count else []), *(f"cuda:{one}" for one in range(count))]
        raise ConfigError(f"there is no device {str(name)!r} here; use --device {' or '.join(known)}")
    return device


def pick_precision(name: Precision, device: torch.device) -> Precision:
    """`auto` is bf16 where the machine computes in it rather than emulating it."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = (
        getattr(torch.cpu, test, None) for test in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return "bf16" if device.type == "cpu" and any(test() for test in native if test) else "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The region in which matrix products run in bf16; the weights stay fp32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def pick_workers(workers: int | None, device: torch.device) -> int:
    """None: one process beside a training on the CPU, whose cores are taken; up to eight beside a GPU."""
    if workers is not None:
        return workers
    cores = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    return min(8, cores) if device.type == "cuda" else min(1, cores - 1)


def shared_memory() -> float:
    """Free bytes of the memory that processes share, for each training process; inf without a limit."""
    try:
        free = os.statvfs(SHARED_MEMORY)
    except (AttributeError, OSError):  # not Linux
        return float("inf")
    return free.f_bavail * free.f_frsize / int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def load_items(dataset: Any, workers: int, size: int, *, pin: bool = False, **order: Any) -> Iterator[Any]:
    """The items of a dataset, each of at most about `size` bytes, loaded by `workers` processes.

    The processes start at once. They hand tensors over in shared memory. Where none is left, a process is
    killed or the main process waits for ever. So where two loaders might not fit, items go through pipes.
    """
    free = shared_memory()
    if workers and free < SEMAPHORES:
        _tell_small("the main process loads the images itself, which is slower")
        workers = 0
    # each process prepares two items, and two more are on their way
    piped = workers > 0 and 2 * (2 * workers + 2) * size > free
    if piped:
        _tell_small("the loader processes send images through pipes, which is a little slower")
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin and not piped,
        collate_fn=pickle.dumps if piped else _as_it_is,
        worker_init_fn=_start_worker,
        **order,
    )
    items = iter(loader)
    if workers:
        _raise_once()
    return (_unpacked(item, pin) for item in items) if piped else items


@cache
def _tell_small(instead: str) -> None:
    log.warning(
        "%s, the memory that processes share, is too small for the loader processes: %s. A container gets "
        "more with docker run --shm-size 4g; --workers 0 does without such processes",
        SHARED_MEMORY,
        instead,
    )


def _raise_once() -> None:
    """Torch's signal handler raises when a loader process was killed, wherever the main process is.

    For a second process it would raise again, where the first error is told. That process is found later, by
    whoever waits for it. The next loaders set a new handler.
    """
    handler = getattr(signal, "SIGCHLD", None) and signal.getsignal(signal.SIGCHLD)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        return
    if getattr(handler, "__name__", "") == "raise_once":
        return

    def raise_once(number: int, frame: Any) -> None:
        try:
            handler(number, frame)
        except RuntimeError:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal_handling._SIGCHLD_handler_set = False
            raise

    signal.signal(signal.SIGCHLD, raise_once)


def _as_it_is(item: Any) -> Any:
    """Keeps the loader from turning tuples into lists of tensors."""
    return item


def _unpacked(item: bytes, pin: bool) -> Any:
    found = pickle.loads(item)
    return found.pin_memory() if pin and hasattr(found, "pin_memory") else found


def _start_worker(worker: int) -> None:
    """A worker ends when its parent does, not on Ctrl-C, which the terminal sends to all processes.

    It ends too when an item cannot be sent, for lack of shared memory: the parent would wait for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Queue._on_queue_feeder_error = staticmethod(lambda error, item: os._exit(1))  # type: ignore[attr-defined]


@contextmanager
def explain_errors() -> Iterator[None]:
    """The region in which a lack of memory, of the GPU or of the loaders, becomes an error that helps."""
    try:
        with explain_lost_loaders():
            yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            "the step does not fit in the GPU's memory; set --micro-batch (less memory, the same result) or "
            "--batch auto, or lower --scale"
        ) from error


@contextmanager
def explain_lost_loaders() -> Iterator[None]:
    """The region in which the end of a loader process becomes an error that helps."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        # torch raises from a signal handler, perhaps in the middle of a step, so nothing is saved
        text = str(error).partition("\n")[0].strip()
        lost = "killed by signal" in text or "exited unexpectedly" in text
        if isinstance(error, RuntimeError) and not (lost and "DataLoader worker" in text):
            raise
        raise ProcessError(
            f"a loader process was ended from outside ({text or 'its pipe is closed'}), as a system does "
            f"that is short of memory: lower --workers, or in a container raise --shm-size; a training goes "
            f"on from its last state with --resume"
        ) from error


def describe(device: torch.device) -> str:
    """The device in words, for logs and result files."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{cpu_name()}, {torch.get_num_threads()} threads"


def cpu_name() -> str:
    """The processor's name where the system tells it."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        import platform

        return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """What made a file."""
    import platform

    import timm
    import torchvision

    from ._version import __version__

    return {
        "retinanet": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }
