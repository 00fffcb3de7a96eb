"""Tensors and arrays that a pickle describes: built if their bytes are there, refused if not."""

import io
import struct

import numpy as np
import pytest
import torch

from retinanet.errors import CheckpointError
from retinanet.weights.foreign.arrays import Placeholder, Storages
from retinanet.weights.foreign.unpickle import Machine

HUGE = b"\x8a\x06" + (1 << 40).to_bytes(6, "little")
FEW = dict(size=b"K\x04\x85", stride=b"K\x01\x85", offset=b"K\x00", count=b"K\x04", kind=b"FloatStorage")


def tensor(size: bytes, stride: bytes, offset: bytes, count: bytes, kind: bytes) -> bytes:
    """The pickle of a tensor of storage "0"."""
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\n"
        + kind
        + b"\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        + count
        + b"tQ"
    )
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + size + stride + b"\x89)tR"


def read(data: bytes, storage: bytes):
    machine = Machine(len(data) + len(storage), Storages())
    content = machine.run(io.BytesIO(data))
    for key in machine.storages.claims:
        machine.storages.supply(key, storage)
    return machine.plain(content)


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        (dict(size=b"K\x02\x85", stride=b"K\x02\x85", offset=b"K\x01"), [1, 3]),
        (dict(size=b"K\x02K\x02\x86", stride=b"K\x01K\x02\x86"), [[0, 2], [1, 3]]),
        (dict(size=b"K\x02K\x02\x86", stride=b"K\x01K\x01\x86"), [[0, 1], [1, 2]]),
        (dict(size=b")", stride=b")", offset=b"K\x03"), 3),
        (dict(size=b"K\x00K\x03\x86", stride=b"K\x03K\x01\x86"), []),
    ],
)
def test_a_tensor_is_a_view_of_its_storage(claim, expected):
    assert read(tensor(**FEW | claim) + b".", np.arange(4, dtype="f4").tobytes()).tolist() == expected


@pytest.mark.parametrize(
    "claim",
    [
        dict(size=b"K\x05\x85"),
        dict(size=HUGE + b"\x85"),
        dict(size=HUGE + b"\x85", stride=b"K\x00\x85"),
        dict(size=HUGE * 3 + b"\x87", stride=b"K\x00K\x00K\x00\x87"),
        dict(stride=b"K\x02\x85"),
        dict(stride=b"J\xff\xff\xff\xff\x85", offset=b"K\x03"),
        dict(stride=b"K\x01K\x01\x86"),
        dict(offset=b"K\x01"),
        dict(offset=b"J\xff\xff\xff\xff"),
        dict(offset=b"G" + bytes(8)),
        dict(size=b"N"),
        dict(size=b"X\x01\x00\x00\x00a"),
        dict(count=b"K\x05"),
        dict(count=HUGE),
        dict(count=b"N"),
        dict(kind=b"DoubleStorage"),
    ],
    ids=str,
)
def test_a_tensor_cannot_claim_more_than_its_storage_holds(claim):
    with pytest.raises((CheckpointError, ValueError)):
        read(tensor(**FEW | claim) + b".", bytes(16))


def test_a_tensor_whose_storage_is_not_there_is_refused():
    data = tensor(**FEW) + b"."
    machine = Machine(len(data), Storages())
    with pytest.raises(CheckpointError, match="lacks the bytes of storage 0"):
        machine.plain(machine.run(io.BytesIO(data)))


def test_one_storage_under_a_thousand_tensors_is_refused():
    row = b"J" + struct.pack("<i", 100_000)
    data = b"](" + tensor(**FEW | dict(size=row + b"\x85", count=row)) * 1000 + b"e."
    with pytest.raises(CheckpointError, match="times its size"):
        read(data, bytes(400_000))


def test_the_part_of_a_storage_that_old_torch_calls_a_view_starts_where_it_says():
    data = tensor(**FEW | dict(size=b"K\x02\x85", count=b"K\x04(X\x01\x00\x00\x001K\x02K\x02t")) + b"."
    assert read(data, np.arange(4, dtype="f4").tobytes()).tolist() == [2, 3]


def test_a_bool_is_one_or_nothing():
    values = read(tensor(**FEW | dict(kind=b"BoolStorage")) + b".", b"\x00\x01\x02\xff")
    assert values.dtype == torch.bool and values.view(torch.uint8).tolist() == [0, 1, 1, 1]


def test_storages_of_other_kinds_are_placeholders():
    assert read(tensor(**FEW | dict(kind=b"QUInt8Storage")) + b".", bytes(4)) == Placeholder(
        "torch._utils._rebuild_tensor"
    )


def test_a_dtype_whose_code_is_no_text_is_none_of_numbers():
    doubled = b")" + b"q\x00h\x00\x86" * 60  # its hash would take for ever
    data = b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n" + doubled + b"\x85RU\x00tR."
    assert read(data, b"") == Placeholder("numpy.generic")
