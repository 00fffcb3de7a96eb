"""Where and how to compute: device, number format, loader processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Literal

import torch

from .distributed import local_rank, world
from .errors import ConfigError, ProcessError

Precision = Literal["auto", "fp32", "bf16"]


def gpu_number(name: str) -> int:
    """The number of the GPU that auto, cuda or cuda:1 means; each process of several takes its own."""
    if world() > 1:
        return local_rank()
    return int(name[5:]) if name.startswith("cuda:") and name[5:].isdigit() else 0


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU if there is one, and each process of several takes its own.

    Raises ConfigError for a device that is absent.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}; choose auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and world() > 1:
        device = torch.device("cuda", local_rank())
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name!r} is not there: this machine has {torch.cuda.device_count()} CUDA devices; use "
            f"--device cpu or auto"
        )
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


@contextmanager
def explain_errors() -> Iterator[None]:
    """The region in which a lack of memory, of the GPU or of the loaders, becomes an error that helps."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            "the step does not fit in the GPU's memory; set --micro-batch (less memory, the same result) or "
            "--batch auto, or lower --scale"
        ) from error
    except RuntimeError as error:
        # torch raises it from a signal handler, perhaps in the middle of a step, so nothing is saved
        text = str(error)
        ended = "killed by signal" in text or "exited unexpectedly" in text
        if "DataLoader worker" not in text or not ended:
            raise
        raise ProcessError(
            f"a loader process was ended from outside ({text.splitlines()[0]}), as a system does that is "
            f"short of memory: lower --workers; a training goes on from its last state with --resume"
        ) from error
    except (ConnectionError, EOFError) as error:  # the same, met while its batch was being fetched
        with suppress(RuntimeError):  # torch's handler may raise its error only now
            time.sleep(0.5)
        raise ProcessError(
            "a loader process was ended from outside; a training goes on from its last state with --resume"
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
