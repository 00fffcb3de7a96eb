"""Reading a .pt2 that may be anybody's: torch unpickles parts of one, evaluates its expressions and calls what its graph names.

So the archive is looked through first. What is left is a graph of torch's own operators and ours, arithmetic on sizes, and plain tensors.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError

OPERATORS = re.compile(
    r"torch\.ops\.(aten|retinanet)\.\w+\.\w+|torch\.ops\.higher_order\.wrap_with_autocast"
    r"|_operator\.(add|sub|mul|floordiv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_)|torch\.sym_(min|max|not|int|float)"
)
"""What a graph may call."""
EXPRESSION = re.compile(
    r"(?:Add|Mul|Pow|Mod|PythonMod|FloorDiv|CleanDiv|Max|Min|Integer|Rational|Symbol|positive|nonnegative|integer|real|True|False|true|false"
    r"|Equality|Unequality|(?:Strict)?(?:Less|Greater)Than|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|'[a-z]+[0-9]+'|-?[0-9]+|[=(), ])*"
)
"""What an expression about sizes may say: sympy would evaluate any Python."""
LARGEST = 100_000_000
"""Bytes of a description; ours have a few million."""


def look_through(path: Path) -> None:
    """CheckpointError when loading this .pt2 could run anything but operators on tensors, or when it is no such file."""
    try:
        with zipfile.ZipFile(path) as archive:
            for reason in suspicious(archive):
                raise CheckpointError(f"{path} is refused: {reason}")
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not a readable .pt2 ({type(error).__name__}: {error}); is it truncated?") from error


def suspicious(archive: zipfile.ZipFile) -> Iterator[str]:
    """Why an archive is not loaded."""
    for entry in archive.infolist():
        name = entry.filename.split("/", 1)[-1]
        if re.fullmatch(r"models/[^/]+\.json", name):
            yield from in_graph(description(archive, entry))
        elif re.fullmatch(r"data/(weights|constants)/[^/]*config\.json", name):
            for key, payload in description(archive, entry)["config"].items():
                if payload["use_pickle"]:
                    yield f"{key} is a pickle"
        elif name.startswith("data/sample_inputs/"):
            try:
                torch.load(io.BytesIO(archive.read(entry)), weights_only=True)
            except Exception as error:  # whatever a hostile pickle is refused with
                yield f"its sample inputs are no plain tensors ({type(error).__name__})"
        elif not re.fullmatch(r"data/(weights/weight|constants/tensor)_\d+|extra/\w+|archive_\w+|byteorder|\.data/\w+|version", name):
            yield f"it holds {name}, which no file of ours does"


def description(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Any:
    """One of the archive's JSON files."""
    if entry.file_size > LARGEST:
        raise ValueError(f"{entry.filename} has {entry.file_size} bytes")
    return json.loads(archive.read(entry))


def in_graph(model: Any) -> Iterator[str]:
    """What a graph must not hold."""
    if model.get("guards_code"):
        yield "it brings code that checks its input"
    waiting = [model]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            waiting += one.values()
            target, expression = one.get("target"), one.get("expr_str")
            if isinstance(target, str) and not OPERATORS.fullmatch(target):
                yield f"its graph calls {target[:100]}"
            if isinstance(expression, str) and not EXPRESSION.fullmatch(expression):
                yield f"it evaluates {expression[:100]!r}"
            if one.get("as_custom_obj") or one.get("as_opaque_obj"):
                yield "it holds objects"
