"""Reading a .pt2 that may be anybody's: torch unpickles parts of one, evaluates its expressions and calls
what its graph names.

So the archive is looked through first, and torch is given another one, of nothing but what passed: a graph of
operators that compute with tensors, arithmetic on sizes, and plain tensors.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError

ATEN = """
abs adaptive_avg_pool2d adaptive_max_pool2d add add_ addcdiv addcmul addmm alias all amax amin __and__ any arange
_assert_tensor_metadata avg_pool2d batch_norm bitwise_and bitwise_not bitwise_or bmm cat ceil chunk clamp clamp_ clamp_min clone
constant_pad_nd contiguous conv1d conv2d conv_transpose2d cumsum detach detach_ div div_ dropout dropout_ elu eq exp expand expand_as
flatten flip floor floor_divide full full_like gather ge gelu group_norm gt hardsigmoid hardsigmoid_ hardswish hardswish_ hardtanh
hardtanh_ index_select instance_norm isfinite layer_norm le leaky_relu leaky_relu_ lift_fresh_copy linalg_vector_norm linear log
logical_and logical_not logical_or logsumexp lt masked_fill matmul max max_pool2d maximum mean min minimum mish mish_ mm mul mul_ narrow
ne neg new_ones new_zeros ones ones_like __or__ pad permute pixel_shuffle pixel_unshuffle pow prelu reciprocal relu relu_ relu6 relu6_
remainder repeat reshape reshape_as roll round rsqrt rsub scaled_dot_product_attention select sigmoid sigmoid_ silu silu_ slice softmax
softplus sort split split_with_sizes sqrt square squeeze stack std std_mean sub sub_ sum sym_size t tanh tanh_ to topk transpose type_as
unbind unflatten unsqueeze upsample_bilinear2d upsample_nearest2d var var_mean view view_as where zeros zeros_like
"""

# What a detector is made of, with any of timm's convolutional backbones. Left out is what reads or maps files
# (from_file), takes memory as it is told (set_, as_strided), or trusts its indices (_unsafe_index,
# embedding).
OPERATORS = re.compile(
    rf"torch\.ops\.aten\.({'|'.join(ATEN.split())})\.\w+|torch\.ops\.retinanet\.\w+\.\w+|torch\.ops\.higher_order\.wrap_with_autocast"
    r"|_operator\.(add|sub|mul|floordiv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_)|torch\.sym_(min|max|not|int|float)"
)
"""What a graph may call."""

ARGUMENT = re.compile(
    r"as_((optional_)?tensors?|none|name|(sym_)?(int|bool|float)s?|expr|graph|string|device|layout|memory_format|scalar_type)"
)
"""What it may be called with: no functions, and no objects."""

EXPRESSION = re.compile(
    r"(?:Add|Mul|Pow|Mod|PythonMod|FloorDiv|CleanDiv|Max|Min|Integer|Rational|Symbol|positive|nonnegative|integer|real|True|False|true|false"
    r"|Equality|Unequality|(?:Strict)?(?:Less|Greater)Than|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|'[a-z]+[0-9]+'|-?[0-9]+|[=(), ])*"
)
"""What an expression about sizes may say: sympy would evaluate any Python."""

WORD = re.compile(r"[\w.+*-]*")
"""All else that a graph says. Its names become Python code, which torch runs."""

SPOKEN = {"target": OPERATORS, "expr_str": EXPRESSION}

CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")
"""What inputs and outputs may be nested in: for other types torch imports the modules that are named."""

LARGEST = 100_000_000
"""Bytes of a description; ours have a few million."""


def looked_through(path: Path) -> io.BytesIO:
    """The archive again, of the entries that were looked at; CheckpointError when one could run code, or when
    it is no such file.

    A new archive, because torch reads archives in another way than Python, and in a crafted one might find
    other entries.
    """
    found = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(found, "w") as new:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
                raise _Refused("parts of it are packed, which torch does not do")
            names = {entry: entry.filename.split("/", 1)[-1] for entry in entries}
            if (
                len(set(names.values())) < len(entries)
                or sum(entry.file_size for entry in entries) > path.stat().st_size
            ):
                raise _Refused("its parts overlap")
            for entry, name in names.items():
                new.writestr(f"archive/{name}", vetted(name, archive.read(entry)))
    except _Refused as error:
        raise CheckpointError(f"{path} is refused: {error}") from error
    except (
        zipfile.BadZipFile,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        OSError,
    ) as error:
        raise CheckpointError(
            f"{path} is not a readable .pt2 ({type(error).__name__}: {error}); is it truncated?"
        ) from error
    found.seek(0)
    return found


def vetted(name: str, content: bytes) -> bytes:
    """An entry as torch may have it; _Refused with the reason when it may not."""
    if re.fullmatch(r"models/\w+\.json", name):
        model = description(name, content)
        look_at_graph(model)
        return json.dumps(model).encode()
    if re.fullmatch(r"data/(weights|constants)/\w*config\.json", name):
        for key, payload in description(name, content)["config"].items():
            if payload["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", payload["path_name"]):
                raise _Refused(f"{key} is a pickle")
            if not WORD.fullmatch(key):
                raise _Refused(f"a weight is named {key[:100]!r}")
    elif re.fullmatch(r"data/sample_inputs/\w+\.pt", name):
        try:
            torch.load(io.BytesIO(content), weights_only=True)
        except Exception as error:  # whatever a hostile pickle is refused with
            raise _Refused(f"its sample inputs are no plain tensors ({type(error).__name__})") from error
    elif not re.fullmatch(
        r"data/(weights/weight|constants/tensor)_\d+|extra/\w+|archive_\w+|byteorder|\.data/\w+", name
    ):
        raise _Refused(f"it holds {name}, which no file of ours does")
    return content


def description(name: str, content: bytes) -> Any:
    """One of the archive's JSON files."""
    if len(content) > LARGEST:
        raise ValueError(f"{name} has {len(content)} bytes")
    return json.loads(content)


def look_at_graph(model: Any) -> None:
    """_Refused for what a graph must not hold; what it tells about the code that it was made of is emptied,
    which nobody needs.
    """
    if model.get("guards_code"):
        raise _Refused("it brings code that checks its input")
    waiting = [("", model)]
    while waiting:
        key, one = waiting.pop()
        if isinstance(one, list):
            waiting += [(key, each) for each in one]
        elif isinstance(one, dict):
            if "metadata" in one:
                one["metadata"] = {}
            for kind in one:
                if kind.startswith("as_") and not ARGUMENT.fullmatch(kind):
                    raise _Refused(f"its graph holds objects ({kind})")
                if not WORD.fullmatch(kind):
                    raise _Refused(f"it names something {kind[:100]!r}")
            waiting += one.items()
        elif isinstance(one, str) and key in ("in_spec", "out_spec") and one:
            look_at_nesting(json.loads(one)[1])
        elif isinstance(one, str) and not SPOKEN.get(key, WORD).fullmatch(one):
            does = {"target": "calls", "expr_str": "evaluates"}.get(key, "names something")
            raise _Refused(f"its graph {does} {one[:100]!r}")


def look_at_nesting(spec: Any) -> None:
    """_Refused for what the description of nested inputs or outputs must not hold."""
    if spec["type"] not in CONTAINERS or spec["context"] not in (None, "null", "[]"):
        raise _Refused(f"its inputs or outputs are {str(spec['type'])[:100]}")
    for child in spec["children_spec"]:
        look_at_nesting(child)


class _Refused(Exception):
    """Why an archive is not loaded."""
