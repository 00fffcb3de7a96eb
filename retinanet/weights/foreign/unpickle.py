"""A pickle read as data: every opcode has a meaning of ours, so nothing that the file names is imported or
called.

`pickletools` takes the pickle apart, `Machine` puts it together; neither `pickle` nor `torch.load` sees it.
Even with `weights_only=True` torch 2.15 hangs for ever on a key of nested tuples, and makes the gigabytes
that a few bytes ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pickletools import genops
from typing import IO, Any

from ...errors import CheckpointError
from .arrays import DTYPES, Array, Dtype, Placeholder, Storage, Storages, Stored, array

# opcodes, keys and values of the answer: a checkpoint has some ten thousand, what doubles sixty times never
# ends
STEPS = 2_000_000

DEPTH = 100  # of containers in containers; a cycle is deeper than any number

# keys that are no text: hashes of tuples can be chosen to collide, and n such keys take n^2 comparisons
ODD_KEYS = 10_000

# how often a file's bytes may be used: tied weights are used twice, a storage seen through a million tensors
# ends here
COPIES = 8

FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}

LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
"""What pickletools hands over as a value; it takes the text of Python 2 for latin1."""


class Machine:
    """A pickle's stack machine, which builds plain values, tensors and placeholders within the bounds above,
    and can do nothing else.
    """

    def __init__(self, size: int, storages: Storages) -> None:
        self.storages = storages
        self.left = COPIES * size + 2**20  # bytes
        self.steps = self.odd_keys = 0

    def run(self, file: IO[bytes]) -> Any:
        """What the pickle at the file's position describes, to be made `plain`; the file is left behind its
        end.
        """
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}
        for opcode, argument, _ in genops(file):
            self.count()
            self.step(opcode.name, argument)
        return self.stack.pop()

    def step(self, name: str, argument: Any) -> None:
        """One opcode."""
        stack = self.stack
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _ if name in LITERALS:
                stack.append(argument)
            case _ if name in FRESH:
                stack.append(FRESH[name]())
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT" if 0 <= argument < 2**32:
                self.memo[argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "MARK":
                self.below.append(stack)
                self.stack = []
            case "POP" if stack:
                stack.pop()
            case "POP" | "POP_MARK":
                self.above()
            case "DUP":
                stack.append(stack[-1])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(name[-1]))]
                stack.append(tuple(reversed(items)))
            case "TUPLE":
                items = self.above()
                self.stack.append(tuple(items))
            case "LIST":
                items = self.above()
                self.stack.append(items)
            case "DICT":
                items = self.above()
                self.stack.append(self.fill({}, items))
            case "FROZENSET":
                items = self.above()
                self.stack.append(frozenset(map(self.key, items)))
            case "APPEND":
                item = stack.pop()
                self.fill(stack[-1], [item])
            case "SETITEM":
                item, key = stack.pop(), stack.pop()
                self.fill(stack[-1], [key, item])
            case "APPENDS" | "SETITEMS" | "ADDITEMS":
                items = self.above()
                self.fill(self.stack[-1], items)
            case "GLOBAL":
                stack.append(named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                last, module = stack.pop(), stack.pop()
                stack.append(named(module, last))
            case "INST":
                items = self.above()
                self.stack.append(self.make(named(*argument.split(" ", 1)), tuple(items)))
            case "OBJ":
                maker, *items = self.above()
                self.stack.append(self.make(maker, tuple(items)))
            case "REDUCE" | "NEWOBJ":
                arguments, maker = stack.pop(), stack.pop()
                stack.append(self.make(maker, arguments))
            case "NEWOBJ_EX":
                _keywords, arguments, maker = stack.pop(), stack.pop(), stack.pop()
                stack.append(self.make(maker, arguments))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Array | Dtype):  # the attributes of anything else are swallowed
                    stack[-1].state = state
            case "BINPERSID":
                stack.append(self.persistent(stack.pop()))
            case _:
                raise CheckpointError(f"its pickle has the opcode {name}, which no checkpoint needs")

    def count(self) -> None:
        self.steps += 1
        if self.steps > STEPS:
            raise CheckpointError(f"it holds more than {STEPS} values, or repeats some without end")

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise CheckpointError(f"it makes more than {COPIES} times its size out of its bytes")

    def above(self) -> list[Any]:
        """What lies above the last mark, taken off together with it."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def fill(self, target: Any, items: Iterable[Any]) -> Any:
        """Put items into a container, keys and values in turn into a dict; a placeholder swallows them."""
        if type(target) is dict:
            turns = iter(items)
            target.update((self.key(name), value) for name, value in zip(turns, turns, strict=True))
        elif type(target) is list:
            target.extend(items)
        elif type(target) is set:
            target.update(map(self.key, items))
        elif type(target) is not Placeholder:
            raise CheckpointError(f"its pickle puts items into a {type(target).__name__}")
        return target

    def key(self, value: Any) -> Any:
        """A key of a dict or a member of a set: refused if its hash or its comparisons could take long."""
        self.count()
        self.odd_keys += not isinstance(value, str)
        parts = value if isinstance(value, tuple) and len(value) <= 10 else (value,)
        if not all(map(is_small, parts)) or self.odd_keys > ODD_KEYS:
            raise CheckpointError(
                f"its pickle has a {type(value).__name__} for a key, too long or one of too many"
            )
        return value

    def make(self, maker: Any, arguments: Any) -> Any:
        """What calling a name gives: a value for the few in BUILDERS, else the name itself, uncalled."""
        if type(maker) is not Placeholder or type(arguments) is not tuple:
            raise CheckpointError(f"its pickle calls a {type(maker).__name__}")
        if maker.name not in BUILDERS:
            return maker
        self.spend(sum(len(part) for part in arguments if isinstance(part, str | bytes | bytearray)))
        return BUILDERS[maker.name](self, *arguments)

    def persistent(self, identity: Any) -> Any:
        """What torch keeps outside the pickle: storages; in its old files also the source code of a class,
        which is left there.
        """
        match identity:
            case ("storage", kind, key, device, count, *view) if len(view) < 2:
                return self.storages.declare(kind, key, device, count, *view)
            case ("module", kind, *_):
                return kind
        raise CheckpointError("its pickle refers to something outside that is no storage")

    def plain(self, value: Any, depth: int = 0) -> Any:
        """The answer: containers copied, so that none holds itself, and tensors at last made of their
        bytes.
        """
        self.count()
        if depth > DEPTH:
            raise CheckpointError(f"its containers nest deeper than {DEPTH}, or hold themselves")
        if isinstance(value, dict):
            return {name: self.plain(item, depth + 1) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.plain(item, depth + 1) for item in value)
        if isinstance(value, Storage | Dtype):
            return Placeholder("torch.Storage" if isinstance(value, Storage) else "numpy.dtype")
        if not isinstance(value, Stored | Array):
            return value
        if value.tensor is None:
            value.tensor = self.storages.tensor(value) if isinstance(value, Stored) else array(value.state)
            self.spend(0 if isinstance(value.tensor, Placeholder) else value.tensor.nbytes)
        return value.tensor


def is_small(value: Any) -> bool:
    """Whether hashing and comparing it take no time."""
    if isinstance(value, str | bytes):
        return len(value) <= 1000
    return (
        value is None
        or isinstance(value, float | complex | Placeholder)
        or (isinstance(value, int) and value.bit_length() <= 64)
    )


def named(module: Any, name: Any) -> Placeholder:
    """A global: its name only, as the Python and numpy of today spell it, or of yesterday."""
    if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > 1000:
        raise CheckpointError("its pickle has a global without a name")
    return Placeholder(
        f"{module.replace('__builtin__', 'builtins').replace('numpy._core', 'numpy.core')}.{name}"
    )


def tensor(
    _machine: Machine, storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any
) -> Stored | Placeholder:
    """A tensor; a placeholder if its storage is of a kind that is none of ours, as those of quantised
    tensors.
    """
    return (
        Stored(storage, offset, size, stride)
        if isinstance(storage, Storage)
        else Placeholder("torch._utils._rebuild_tensor")
    )


def tensor_of_dtype(
    machine: Machine,
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    _grad: Any,
    _hooks: Any,
    dtype: Any,
    *_rest: Any,
) -> Any:
    """A tensor whose dtype has no storage class of its own, as uint16."""
    known = DTYPES.get(dtype.name) if isinstance(dtype, Placeholder) else None
    typed = Storage(storage.key, known, 0) if known and isinstance(storage, Storage) else None
    return tensor(machine, typed, offset, size, stride)


def scalar(_machine: Machine, dtype: Any, data: Any = b"") -> Any:
    """A scalar of numpy as a number of Python."""
    return (
        dtype.read(data).item()
        if isinstance(dtype, Dtype) and dtype.of_numbers
        else Placeholder("numpy.generic")
    )


def octets(_machine: Machine, data: Any = b"", coding: Any = "latin1") -> bytes:
    """Bytes, which protocol 2 writes as text."""
    if coding not in ("latin1", "latin-1"):
        raise CheckpointError("its pickle encodes text by something other than latin1")
    return data.encode("latin-1") if isinstance(data, str) else bytes(memoryview(data))


BUILDERS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": octets,
    "builtins.bytes": octets,
    "builtins.bytearray": lambda machine, *data: bytearray(octets(machine, *data)),
    "builtins.complex": lambda machine, real, imaginary: complex(real, imaginary),
    "builtins.set": lambda machine, items=(): machine.fill(set(), items),
    "builtins.frozenset": lambda machine, items=(): frozenset(machine.fill(set(), items)),
    "collections.OrderedDict": lambda machine, pairs=(): machine.fill(
        {}, (part for name, value in pairs for part in (name, value))
    ),
    "numpy.dtype": lambda machine, code, *_: Dtype(code),
    "numpy.core.multiarray.scalar": scalar,
    "numpy.core.multiarray._reconstruct": lambda machine, *_: Array(),
    "numpy.core.numeric._frombuffer": lambda machine, data, dtype, shape, order: Array(
        (shape, dtype, order == "F", data)
    ),
    "torch._utils._rebuild_tensor": tensor,
    "torch._utils._rebuild_tensor_v2": tensor,
    "torch._utils._rebuild_tensor_v3": tensor_of_dtype,
    "torch._utils._rebuild_parameter": lambda machine, data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda machine, data, *_: data,
    "torch._tensor._rebuild_from_type_v2": lambda machine, maker, kind, arguments, state: machine.make(
        maker, arguments
    ),
}
"""All that a pickle can have done; whatever else it names stays a name."""
