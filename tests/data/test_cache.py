"""The cache of an index is the index, or nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy

from retinanet.data import cache as index
from retinanet.data.cache import cache_path, write_cache
from retinanet.data.dataset import Dataset
from retinanet.data.formats import coco
from retinanet.data.formats.coco import read_coco
from retinanet.errors import DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, which takes small files too."""
    monkeypatch.setenv("RETINANET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "LARGE", 0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The annotation files that were really read."""
    seen: list[Path] = []
    monkeypatch.setattr(coco, "_load", lambda file, load=coco._load: seen.append(file) or load(file))
    return seen


def written(folder: Path, width: int = 3) -> Path:
    """Annotations with names beyond ASCII, a crowd, an area, an image without boxes, problems, repairs."""
    images = [
        {"id": number, "file_name": name, "height": 50, "width": 100}
        for number, name in ((7, "sub/ä.jpg"), (3, "b.jpg"), (9, "c.jpg"))
    ]
    annotations: list[dict[str, Any]] = [
        {"id": 5, "image_id": 9, "category_id": 4, "bbox": [0.1, 0.2, width, 4]},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 2.5, "iscrowd": 1},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4]},
        {"id": 8, "image_id": 7, "category_id": 77, "bbox": [1, 2, 3, 4]},
    ]
    images.append({"id": 11})
    categories = [{"id": 4, "name": "Käfer"}, {"id": 1, "name": "cat"}]
    file = folder / "annotations" / "train.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def same(one: Dataset, other: Dataset) -> bool:
    """To the type of every column."""
    for field in fields(Dataset):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, np.ndarray):
            if left.dtype != right.dtype or not np.array_equal(left, right):
                return False
        elif left != right or type(left) is not type(right):
            return False
    return True


def cache_of(file: Path) -> Path:
    return cache_path("index", file, ".npy")


def signed(*blocks: bytes) -> bytes:
    """What would pass for a cache if only its digest counted."""
    return b"".join(blocks) + hashlib.sha256(b"".join(blocks)).digest()


def block(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def forged(file: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], None]) -> bytes:
    """The cache of a file with its text and columns changed, and signed again."""
    stream = io.BytesIO(cache_of(file).read_bytes())
    text, *columns = (np.load(stream) for _ in range(1 + len(index.COLUMNS)))
    about, named = json.loads(text.tobytes()), dict(zip(index.COLUMNS, columns, strict=True))
    change(about, named)
    return signed(
        block(np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)), *map(block, named.values())
    )


def test_an_index_from_the_cache_is_the_one_that_was_read(tmp_path: Path, reads: list[Path]) -> None:
    file = written(tmp_path)
    fresh, again = read_coco(file, split="train"), read_coco(file, split="train")
    assert reads == [file]
    assert (len(fresh.problems), len(fresh.repairs)) == (2, 1)
    assert same(fresh, again)
    assert fresh.fingerprint() == again.fingerprint()


def test_columns_from_the_cache_are_the_memory_of_the_file_and_writing_to_them_does_not_change_it(
    tmp_path: Path,
) -> None:
    file = written(tmp_path)
    fresh, data = read_coco(file), read_coco(file)
    for name in index.COLUMNS:
        column = getattr(data, name)
        assert not column.flags.owndata and column.flags.aligned and column.flags.c_contiguous, name
    data.boxes[...] = 0
    assert same(read_coco(file), fresh)


def test_where_the_pictures_lie_is_looked_up_every_time(tmp_path: Path, reads: list[Path]) -> None:
    file = written(tmp_path)
    assert read_coco(file, split="train").root == tmp_path
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "b.jpg").touch()
    assert read_coco(file, split="train").root == tmp_path / "images"
    with pytest.raises(DataError, match="no such folder of images"):
        read_coco(file, images=tmp_path / "nowhere")
    assert reads == [file]


def test_a_file_of_another_size_or_time_is_read_again(tmp_path: Path, reads: list[Path]) -> None:
    file = written(tmp_path)
    status = os.stat(file)
    read_coco(file)
    written(tmp_path, width=4)  # as many bytes, and later
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert read_coco(file).boxes[-1, 2] == 4.1
    written(tmp_path, width=12)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert read_coco(file).boxes[-1, 2] == 12.1
    assert len(reads) == 3
    assert same(read_coco(file), read_coco(file))
    assert len(reads) == 3


def test_a_cache_of_another_version_is_passed_over(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path)
    read_coco(file)
    monkeypatch.setattr(index, "FORMAT", index.FORMAT + 1)
    read_coco(file)
    assert len(reads) == 2


@pytest.mark.parametrize("damage", ["empty", "short", "cut", "longer", "bit", "foreign", "folder"])
def test_a_damaged_cache_is_passed_over_and_written_anew(
    tmp_path: Path, reads: list[Path], damage: str
) -> None:
    file = written(tmp_path)
    fresh, cache = read_coco(file), cache_of(file)
    content = cache.read_bytes()
    middle = len(content) // 2
    broken = {
        "empty": b"",
        "short": content[:10],
        "cut": content[:middle],
        "longer": content + b"x",
        "bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "foreign": b"PK\x03\x04" + content,
    }
    cache.unlink()
    if damage == "folder":
        cache.mkdir()
    else:
        cache.write_bytes(broken[damage])
    assert same(read_coco(file), fresh)
    assert len(reads) == 2
    assert damage == "folder" or cache.read_bytes() == content


class Trap:
    """Unpickled, it would leave a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_a_pickle_in_the_cache_is_not_opened(tmp_path: Path, reads: list[Path]) -> None:
    file, trace = written(tmp_path), tmp_path / "trace"
    fresh = read_coco(file)
    trap = block(np.array([Trap(trace)], dtype=object))
    np.load(io.BytesIO(trap), allow_pickle=True)
    assert trace.exists()  # so the trap works
    trace.unlink()

    def boxes_are_a_trap(about: dict[str, Any], columns: dict[str, np.ndarray]) -> None:
        columns["boxes"] = np.array([Trap(trace)], dtype=object)

    for content in (trap, signed(trap), forged(file, boxes_are_a_trap)):
        cache_of(file).write_bytes(content)
        assert same(read_coco(file), fresh)
    assert len(reads) == 4
    assert not trace.exists()


def test_a_column_of_negative_length_does_not_turn_the_reader_round(
    tmp_path: Path, reads: list[Path]
) -> None:
    file = written(tmp_path)
    fresh, stream = read_coco(file), io.BytesIO()
    npy.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (-128,)})
    cache_of(file).write_bytes(signed(stream.getvalue(), bytes(128)))
    assert same(read_coco(file), fresh)
    assert len(reads) == 2


def test_a_cache_whose_text_does_not_fit_is_passed_over(tmp_path: Path, reads: list[Path]) -> None:
    file = written(tmp_path)
    fresh = read_coco(file)
    cache_of(file).write_bytes(forged(file, lambda about, columns: about.update(problems=[["kind"]])))
    assert same(read_coco(file), fresh)
    assert len(reads) == 2


def test_without_a_folder_to_write_to_nothing_is_remembered_and_nothing_fails(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path)
    (tmp_path / "taken").write_text("no folder")
    monkeypatch.setenv("RETINANET_CACHE", str(tmp_path / "taken" / "cache"))
    assert same(read_coco(file), read_coco(file))
    assert len(reads) == 2


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path)
    monkeypatch.setattr(coco, "_load", lambda file, load=coco._load: (load(file), os.utime(file, (1, 1)))[0])
    read_coco(file)
    assert not cache_of(file).exists()


def test_small_files_are_read_and_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path)
    monkeypatch.setattr(index, "LARGE", file.stat().st_size + 1)
    read_coco(file)
    assert not cache_of(file).exists()


def test_an_index_without_a_single_box_can_be_remembered(tmp_path: Path, reads: list[Path]) -> None:
    file = tmp_path / "test.json"
    file.write_text(
        json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": []})
    )
    assert same(read_coco(file), read_coco(file))
    assert len(reads) == 1


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    write_cache(tmp_path / "cache" / "x", b"content")
    assert list((tmp_path / "cache").iterdir()) == []
