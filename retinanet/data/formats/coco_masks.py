"""The box around a COCO mask: polygons, or runs of a mask that is read column by column."""

from __future__ import annotations

from typing import Any

from .json import NUMBERS, as_int

Box = tuple[float, float, float, float]


def box_of_mask(mask: Any) -> Box | None:
    """x, y, width, height of a `segmentation`; None where it covers nothing or is none."""
    if isinstance(mask, dict):
        return _of_runs(mask.get("counts"), mask.get("size"))
    polygons = [mask] if isinstance(mask, list) and mask and not isinstance(mask[0], list) else mask or []
    if not isinstance(polygons, list) or not all(
        isinstance(one, list) and len(one) >= 6 and len(one) % 2 == 0 and NUMBERS.issuperset(map(type, one))
        for one in polygons
    ):
        return None
    xs, ys = ([value for one in polygons for value in one[start::2]] for start in (0, 1))
    return (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)) if xs else None


def _of_runs(counts: Any, size: Any) -> Box | None:
    """Of run lengths, background and object in turn, down the columns of a mask of `size` height, width."""
    runs = _unpacked(counts) if isinstance(counts, str) else counts
    sides = [as_int(side) for side in size] if isinstance(size, list) else []
    if not isinstance(runs, list) or len(sides) != 2 or any(type(run) is not int or run < 0 for run in runs):
        return None
    height, width = sides
    if not height or not width or height < 0 or sum(runs) != height * width:
        return None
    place, left, right, top, bottom = 0, width, -1, height, -1
    for number, run in enumerate(runs):
        if number % 2 and run:
            first, last = divmod(place, height), divmod(place + run - 1, height)
            left, right = min(left, first[0]), max(right, last[0])
            one_column = first[0] == last[0]
            top = min(top, first[1] if one_column else 0)
            bottom = max(bottom, last[1] if one_column else height - 1)
        place += run
    return (left, top, right + 1 - left, bottom + 1 - top) if right >= 0 else None


def _unpacked(text: str) -> list[int] | None:
    """The run lengths of COCO's packed text: five bits a character, each run from the third on as the
    difference to the one two before."""
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs if shift == 0 else None
