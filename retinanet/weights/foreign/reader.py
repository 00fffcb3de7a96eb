"""Other projects' checkpoint files, read without running anything of theirs.

torch reads what holds tensors and plain values. Files that hold more (MMDetection's objects, Detectron2's
arrays) are unpickled by `inert`, which imports nothing.
"""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ...errors import CheckpointError
from .inert import Array, Placeholder, Unpickler

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Where projects keep the weights, first choice first. Their averages (such as "model_ema") are not read."""

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a torch file before torch 1.6


def read_foreign(path: Path) -> dict[str, Any]:
    """The content of a .pth, .pt, .bin, .pkl or .safetensors file, on the CPU, as plain values and tensors.

    Objects of any other class are a `Placeholder`; nothing is imported for them. CheckpointError when the
    file is no checkpoint or is truncated.
    """
    try:
        content = plain(load_file(path) if path.suffix == ".safetensors" else read_any(path))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except Exception as error:  # a broken file makes zipfile, pickle and torch raise anything
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise CheckpointError(
            f"{path} is no checkpoint that can be read ({reason}); is it truncated? Download or save it again"
        ) from error
    if isinstance(content, Placeholder):
        raise CheckpointError(
            f"{path}: a whole object of {content.name[:100]}; save its state_dict() instead"
        )
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise CheckpointError(f"{path}: it holds no dict of named things, so no state dict")
    return content


def read_any(path: Path) -> Any:
    """What a pickle or a file of torch holds. Its first bytes say which it is."""
    data = path.read_bytes()
    if not data:
        raise CheckpointError("the file is empty")
    if data[257:262] == b"ustar":
        raise CheckpointError(
            "a tar file, as torch wrote before 0.2; load it there and save it with a torch of today"
        )
    if data.startswith((b"<", b"version https://git-lfs")):
        raise CheckpointError("a web page or a pointer of Git LFS, not the weights; download the file itself")
    if data.startswith(b"PK\x03\x04"):
        return read_zip(io.BytesIO(data))
    content = Unpickler(io.BytesIO(data), encoding="latin1").load()
    return load(io.BytesIO(data)) if content == MAGIC else content


def load(file: io.BytesIO, **how: Any) -> Any:
    """By torch, which warns about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", **{"weights_only": True, **how})


def read_zip(file: io.BytesIO) -> Any:
    """A file of torch since 1.6: a zip of one pickle, data.pkl, and of one record per storage."""
    with zipfile.ZipFile(file) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
        if "data.pkl" not in names:
            raise CheckpointError("a zip archive without its data.pkl, so no checkpoint of torch")
        if "constants.pkl" in names:
            how = "torch.save(torch.jit.load(FILE).state_dict(), OTHER)"
            raise CheckpointError(f"a TorchScript archive; give the state dict: {how}")
        for entry in archive.infolist():
            if entry.CRC:  # torch can be told to write 0; it never looks at those that are there
                archive.read(entry)
    file.seek(0)
    try:
        return load(file)
    except pickle.UnpicklingError:  # a name that torch does not know; TorchScript it has refused otherwise
        file.seek(0)
        inert = SimpleNamespace(Unpickler=Unpickler, __name__="inert")
        return load(file, weights_only=False, pickle_module=inert)


def plain(value: Any) -> Any:
    """The same with plain containers, tensors and numbers."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Array):
        return plain(value.value)
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    return value() if isinstance(value, type) and issubclass(value, Placeholder) else value


def state_dict_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights by name, out of the usual wrappers and without the "module." in front of all names.

    CheckpointError when there are none, or when a tensor is no plain one.
    """
    top = content
    while inner := next((content[name] for name in WRAPPERS if isinstance(content.get(name), dict)), None):
        content = inner
    if odd := [name for name, value in content.items() if is_odd(value)]:
        raise CheckpointError(
            f"{len(odd)} of its tensors are sparse, quantised or pickled without torch.save, the first being "
            f"{str(odd[0])[:100]}; save plain tensors by torch.save"
        )
    weights = {
        name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not weights:
        kinds = [
            f"{str(name)[:60]!r}" + (f" (a {value.name[:100]})" if isinstance(value, Placeholder) else "")
            for name, value in top.items()
        ]
        found = ", ".join(kinds[:20]) or "nothing"
        raise CheckpointError(f"no state dict at the top, where there is: {found}; save model.state_dict()")
    while all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return weights


def is_odd(value: Any) -> bool:
    """Whether a value is a tensor that is not plain numbers in memory."""
    if isinstance(value, Tensor):
        return value.layout != torch.strided or value.is_quantized
    return isinstance(value, Placeholder) and value.name.startswith("torch._utils.")
