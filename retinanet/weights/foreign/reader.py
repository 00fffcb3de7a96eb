"""Other projects' checkpoint files, read without running anything of theirs."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from ...errors import CheckpointError
from .arrays import Placeholder, Storages
from .unpickle import Machine

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Where projects keep the weights, first choice first; an average of them ("ema_state_dict", "model_ema") is
not looked for.
"""

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a torch file before torch 1.6


def read_foreign(path: Path) -> dict[str, Any]:
    """The content of a .pth, .pt, .pkl or .safetensors file as plain containers on the CPU, arrays as
    tensors, numpy's scalars as numbers.

    Objects of any other class are a `Placeholder`; nothing is imported for them. CheckpointError when the
    file is no checkpoint, is
    truncated, or asks for more than it holds.
    """
    try:
        content = read_any(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except Exception as error:  # a broken or hostile file makes zipfile, pickletools and torch raise anything
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
    """What a file of any of the formats holds, the format being told by its first bytes."""
    if path.suffix == ".safetensors":
        with safe_open(str(path), framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (not a dict)
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise CheckpointError("the file is empty")
    if head.startswith(b"PK\x03\x04"):
        return read_zip(path)
    if head[257:262] == b"ustar":
        raise CheckpointError(
            "a tar file, as torch wrote before 0.2; load it there and save it with a torch of today"
        )
    if head.startswith((b"<", b"version https://git-lfs")):
        raise CheckpointError("a web page or a pointer of Git LFS, not the weights; download the file itself")
    return read_pickle(path.read_bytes())


def read_zip(path: Path) -> Any:
    """A file of torch since 1.6: a zip of one pickle, data.pkl, and of one record per storage, data/<key>."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        roots = [
            name.removesuffix("data.pkl")
            for name in entries
            if name.endswith("/data.pkl") and name.count("/") == 1
        ]
        if len(roots) != 1:
            raise CheckpointError("a zip archive without its data.pkl, so no checkpoint of torch")
        root = roots[0]
        if f"{root}constants.pkl" in entries:
            raise CheckpointError(
                "a TorchScript archive; give the state dict: torch.save(torch.jit.load(FILE).state_dict(), "
                "OTHER)"
            )
        plain = all(
            entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
            for entry in entries.values()
        )
        if (
            not plain or sum(entry.file_size for entry in entries.values()) > size
        ):  # else a small file could unpack to any size
            raise CheckpointError(
                "its records are compressed or overlap, as torch writes none; save it again with torch.save"
            )
        for entry in entries.values():
            if not entry.CRC:
                del (
                    entry.CRC
                )  # torch can be told to compute none and then writes 0; zipfile checks those that are there
        order = archive.read(entries[f"{root}byteorder"]) if f"{root}byteorder" in entries else b"little"
        if order not in (b"little", b"big"):
            raise CheckpointError(f"unknown byte order {order[:20]!r}")
        machine = Machine(size, Storages(big_endian=order == b"big"))
        content = machine.run(io.BytesIO(archive.read(entries[f"{root}data.pkl"])))
        for key in machine.storages.claims:
            machine.storages.supply(key, archive.read(entries[f"{root}data/{key}"]))
    return machine.plain(content)


def read_pickle(data: bytes) -> Any:
    """A single pickle, or a file of torch before 1.6: five of them, then each storage's length and bytes,
    always little-endian.
    """
    file, machine = io.BytesIO(data), Machine(len(data), Storages())
    content = machine.run(file)
    if content != MAGIC:
        return machine.plain(content)
    _version, _types, content, keys = (machine.run(file) for _ in range(4))
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError("its storages have no names")
    for key in keys:
        width = machine.storages.widths[key]
        machine.storages.supply(key, file.read(int.from_bytes(file.read(8), "little") * width))
    return machine.plain(content)


def state_dict_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights by name, out of the usual wrappers and without the "module." in front of all; what is no
    tensor is left out.

    CheckpointError when there are none, or when one is a tensor of a kind that `read_foreign` does not build.
    """
    top = content
    while inner := next((content[name] for name in WRAPPERS if isinstance(content.get(name), dict)), None):
        content = inner
    if odd := [
        name
        for name, value in content.items()
        if isinstance(value, Placeholder) and value.name.startswith("torch._utils.")
    ]:
        raise CheckpointError(
            f"{len(odd)} of its tensors are sparse, quantised or pickled without torch.save, the first "
            f"being {str(odd[0])[:100]}; "
            "save plain tensors by torch.save"
        )
    weights = {
        name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not weights:
        kinds = [
            f"{str(name)[:60]!r}"
            + (f" (a {top[name].name[:100]})" if isinstance(top[name], Placeholder) else "")
            for name in top
        ]
        raise CheckpointError(
            f"no state dict at the top, where there is: {', '.join(kinds[:20]) or 'nothing'}; save "
            f"model.state_dict()"
        )
    while all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return weights
