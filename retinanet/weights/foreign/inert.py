"""Pickles read without importing what they name: tensors, arrays, plain values, placeholders for the rest."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from functools import partial
from types import FunctionType
from typing import Any

import numpy as np
import torch


class Placeholder:
    """An object of a class, or the result of a function, that is not known: only its name is kept."""

    name: str

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def swallow(self, *_: Any) -> Placeholder:
        return self

    __call__ = __setstate__ = __setitem__ = append = extend = add = swallow


def placeholder(name: str) -> type[Placeholder]:
    """The class that stands for a global of that name."""
    return type("Placeholder", (Placeholder,), {"name": name})


class Dtype:
    """A dtype of numpy; its state says the byte order. numpy's own takes a state that crashes the process."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def array(self, data: Any, shape: tuple[int, ...], order: Any = "C") -> Any:
        """The numbers in some bytes, which Python 2 wrote as text; of objects or text a placeholder."""
        if self.code[0] not in "biufc":
            return placeholder("numpy.ndarray")()
        raw, kind = data.encode("latin1") if isinstance(data, str) else data, np.dtype(self.code)
        found = np.ndarray(shape, kind.newbyteorder(self.order), raw, order=order)  # type: ignore[arg-type]
        return found.astype(kind, order="C")


class Array:
    """An array of numpy; its state ends in (shape, dtype, whether the first axis is the fastest, bytes)."""

    value: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, dtype, fortran, data = state[-4:]
        self.value = dtype.array(data, shape, "F" if fortran else "C")


class UntypedStorage:
    """Stands for torch's: of a storage's class torch.load asks its dtype alone."""

    dtype = torch.uint8

    def __setstate__(self, state: Any) -> None:
        """So that a pickle cannot set attributes of the class: it would have to call this without `self`."""


def item(array: Any) -> Any:
    """A scalar of numpy as a number of Python."""
    return array if isinstance(array, Placeholder) else array.item()


REBUILD = ("tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state")

KNOWN: dict[str, Any] = {
    "_codecs.encode": lambda text, _coding="latin1": text.encode("latin1"),  # protocol 2's bytes
    **{f"builtins.{kind.__name__}": kind for kind in (bytes, bytearray, complex, set, frozenset)},
    "collections.OrderedDict": OrderedDict,
    "numpy.dtype": Dtype,
    "numpy.core.multiarray._reconstruct": lambda *_: Array(),
    "numpy.core.multiarray.scalar": lambda dtype, data=b"": item(dtype.array(data, ())),
    "numpy.core.numeric._frombuffer": lambda data, dtype, shape, order: dtype.array(data, shape, order),
    **{f"torch._utils._rebuild_{kind}": getattr(torch._utils, f"_rebuild_{kind}") for kind in REBUILD},
    "torch._tensor._rebuild_from_type_v2": lambda maker, _kind, arguments, _state: maker(*arguments),
    "torch.storage.UntypedStorage": UntypedStorage,
    **{str(kind): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)},
}
"""All that a pickle can call or name: what makes arrays and tensors of bytes."""


class Unpickler(pickle.Unpickler):
    """Imports nothing: a name is one of KNOWN or a placeholder."""

    def find_class(self, module: str, name: str) -> Any:
        name = f"{module.replace('__builtin__', 'builtins').replace('numpy._core', 'numpy.core')}.{name}"
        known = KNOWN.get(name) or placeholder(name)
        # a pickle may set attributes of what it names, so each function is wrapped anew
        return partial(known) if isinstance(known, FunctionType) else known
