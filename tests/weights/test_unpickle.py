"""Pickles that ask for what they do not hold: each ends in an error, soon, and for the reason that stops
it.
"""

import io
import pickle
import pickletools
import resource
import struct
import time

import numpy as np
import pytest

from retinanet.errors import CheckpointError
from retinanet.weights.foreign import unpickle
from retinanet.weights.foreign.arrays import Placeholder, Storages
from retinanet.weights.foreign.unpickle import BUILDERS, FRESH, LITERALS, Machine


def read(data: bytes):
    machine = Machine(len(data), Storages())
    return machine.plain(machine.run(io.BytesIO(data)))


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def doubled(times: int) -> bytes:
    """A tuple of twice the same tuple, and so on: 2^times leaves, of three bytes each time."""
    return b")" + b"q\x00h\x00\x86" * times


def array(shape: bytes, data: bytes, code: bytes = b"f4") -> bytes:
    kind = b"cnumpy\ndtype\n(U\x02" + code + b"K\x00K\x01tR"
    return ARRAY + b"(K\x01" + shape + kind + b"\x89" + data + b"tb"


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n)R"
HUGE = b"\x8a\x06" + (1 << 40).to_bytes(6, "little")
TERABYTES = struct.pack("<Q", 1 << 42)
MEGABYTE = text("x" * 10**6) + b"q\x000]("
NUMBERS = b"".join(b"J" + struct.pack("<i", number) + b"N" for number in range(20_000))
GREEDY = {
    "doubled tuples": (doubled(60), "200000 values"),
    "doubled lists": (b")" + b"q\x000](h\x00h\x00e" * 60, "200000 values"),
    "a doubled key": (b"}" + doubled(60) + b"Ns", "tuple for a key"),
    "a doubled member": (b"\x8f(" + doubled(60) + b"\x90", "tuple for a key"),
    "a doubled identity": (doubled(60) + b"Q", "no storage"),
    "a list in itself": (b"]q\x00h\x00a", "hold themselves"),
    "a dict in itself": (b"}q\x00" + text("a") + b"h\x00s", "hold themselves"),
    "deep lists": (b"]" * 60_000 + b"a" * 59_999, "nest deeper"),
    "deep tuples": (b")" + b"\x85" * 150_000, "nest deeper"),
    "deep states": (ARRAY * 20_000 + b"b" * 19_999, ""),
    "deep calls": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(" * 20_000 + b"cx\ny\nN)Nt" + b"N)Nt" * 19_999 + b"R",
        "",
    ),
    "keys of numbers": (b"}(" + NUMBERS + b"u", "one of too many"),
    "members of numbers": (b"(" + NUMBERS + b"\x91", "one of too many"),
    "a huge key": (b"}\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"Ns", "int for a key"),
    "a list for a key": (b"}]Ns", "list for a key"),
    "an array for a key": (b"}" + ARRAY + b"Ns", "Array for a key"),
    "nothing but marks": (b"(" * 250_000, "200000 values"),
    "a memo index of gigabytes": (b"Np99999999999999\n", "opcode PUT"),
    "bytes of terabytes": (b"\x8e" + TERABYTES + b"x", "only 2 remain"),
    "a bytearray of terabytes": (b"\x96" + TERABYTES + b"x", "only 2 remain"),
    "text of terabytes": (b"\x8d" + TERABYTES + b"x", "only 2 remain"),
    "a bytearray of a number": (b"cbuiltins\nbytearray\n" + HUGE + b"\x85R", "bytes-like"),
    "bytes of a number": (b"cbuiltins\nbytes\n" + HUGE + b"\x85R", "bytes-like"),
    "ten million digits": (b"L" + b"9" * 10_000_000 + b"L\n", "4300 digits"),
    "bytes encoded again and again": (
        MEGABYTE + (b"c_codecs\nencode\nh\x00" + text("latin1") + b"\x86R") * 1000 + b"e",
        "times its size",
    ),
    "names of megabytes": (MEGABYTE + b"h\x00h\x00\x93" * 1000 + b"e", "global without a name"),
    "a set made again and again": (
        b"](" + b"K\x01" * 10**5 + b"eq\x000](" + b"cbuiltins\nset\nh\x00\x85R" * 1000 + b"e",
        "for a key|values",
    ),
    "an array of more than it has": (array(HUGE + b"\x85", b"U\x04abcd"), "does not fit"),
    "an array of no size": (array(b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86", b"U\x04abcd"), "shape"),
    "an array without bytes": (array(b"K\x02\x85", b"K\x02"), "bytes-like"),
    "a thousand arrays of the same bytes": (
        MEGABYTE + array(HUGE[:0] + b"J\x40\x42\x0f\x00\x85", b"h\x00", b"u1") * 1000 + b"e",
        "times its size",
    ),
    "an extension": (b"\x82\x01", "opcode EXT1"),
    "a buffer from outside": (b"\x97", "opcode NEXT_BUFFER"),
    "an identity of text": (b"P0\n", "opcode PERSID"),
    "items in text": (text("a") + b"Na", "items into a str"),
    "a call of text": (text("a") + b")R", "calls a str"),
    "an odd dict": (b"(Nd", ""),
    "an empty stack": (b"0", ""),
    "other codings": (b"c_codecs\nencode\n" + text("00") + text("hex") + b"\x86R", "latin1"),
}


@pytest.mark.parametrize("name", GREEDY)
def test_what_a_pickle_asks_for_too_much_ends_in_an_error(name, monkeypatch):
    monkeypatch.setattr(unpickle, "STEPS", 200_000)  # a second for two million
    payload, reason = GREEDY[name]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Exception, match=reason or None) as raised:
        read(b"\x80\x05" + payload + b".")
    assert isinstance(raised.value, CheckpointError | ValueError | TypeError | IndexError | RecursionError)
    assert time.perf_counter() - start < 10  # half a second at most, on a machine that is not shared
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


def test_every_opcode_has_a_meaning_or_is_refused_by_name():
    unknown = set()
    for opcode in pickletools.opcodes:
        machine = Machine(0, Storages())
        machine.run(io.BytesIO(b"N."))
        try:
            machine.step(opcode.name, 0)
        except CheckpointError as error:
            unknown |= {opcode.name} if "no checkpoint needs" in str(error) else set()
        except (IndexError, AttributeError, KeyError):
            pass  # an empty stack
    assert unknown == {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER", "PERSID"}
    assert FRESH.keys() | LITERALS <= {opcode.name for opcode in pickletools.opcodes}


def test_a_placeholder_swallows_arguments_state_items_and_attributes():
    for data in (
        b"\x80\x02ca.b\nC\n)\x81}b(NNe(NNu.",
        b"\x80\x04" + text("a.b") + text("C") + b"\x93(K\x01tR}b(NN\x90.",
        b"(K\x01ia.b\nC\n}b.",
        b"(ca.b\nC\nK\x01o(N}tb.",
        b"\x80\x04ca.b\nC\n)}\x92)R.",
    ):
        assert read(data) == Placeholder("a.b.C")


def test_plain_values_of_every_protocol_are_those_of_pickle():
    values = [
        None,
        True,
        0,
        -1,
        255,
        65536,
        1 << 40,
        -(1 << 100),
        0.5,
        "",
        "ä" * 300,
        b"",
        b"x" * 300,
        bytearray(b"x"),
        1j,
        (),
        (1,),
        (1, 2, 3, 4),
    ]
    values += [[[]], {"a": {1: {(1, "b"): None}}}, {1, "a"}, frozenset({2.5, None}), np.float32(1).item()]
    for protocol in range(6):
        answer = read(pickle.dumps(values, protocol))
        assert answer == values and list(map(type, answer)) == list(map(type, values))


def test_only_these_names_are_ever_called():
    assert {name.split(".")[0] for name in BUILDERS} == {
        "_codecs",
        "builtins",
        "collections",
        "numpy",
        "torch",
    }
    assert not any(
        word in name for name in BUILDERS for word in ("eval", "exec", "import", "attr", "open", "load")
    )
