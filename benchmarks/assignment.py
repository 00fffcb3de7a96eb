"""How long to find which anchor answers for which object, and how much memory, against torchvision's
`box_iou` and `Matcher`?

    python benchmarks/assignment.py

Both sides get the same anchors and the same boxes, whose sides are drawn log-uniformly from 8 to 600 px with
ratios from 1:3 to 3:1, and answer for every anchor of every picture. torchvision matches one picture after
the other over its [G, A] matrix, with the thresholds of its RetinaNet (0.5, 0.4, every box's best anchor
forced). Ours is the training's: it also finds out which anchors lie in the padding. `reference` is
`ops.assign.assign`, plain and dense, whose answers ours must have bit for bit, and has. Targets, two pictures
of 800 x 800 with 5, 50 and 500 boxes each, two threads: at least 2x, 4x and 10x.

Memory is what the tensors that live at the same time hold, at most, beyond the anchors and the boxes.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import ratio, record, take_turns
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from retinanet.ops.anchors import STRIDES, GridAnchors, grid_anchors, inside
from retinanet.ops.assign import assign
from retinanet.ops.assign_fast import assign_near

TARGETS = {5: 2.0, 50: 4.0, 500: 10.0}
SMALLEST, LARGEST, LONGEST = 8.0, 600.0, 3.0


class Alive(TorchDispatchMode):
    """Bytes of all tensors made under it: those that live now, and the most that ever did at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.now = self.most = 0
        self.known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                key = storage._cdata
                if key not in self.known and key not in given:
                    self.known[key] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self.gone, key)
        return result

    def gone(self, key: int) -> None:
        """One storage less."""
        self.now -= self.known.pop(key)


def most_alive(call: Callable[[], object]) -> int:
    """Bytes."""
    alive = Alive()
    with alive:
        call()
    return alive.most


def drawn(batch: int, count: int, side: int, seed: int) -> Tensor:
    """Boxes [B, G, 4] inside pictures of side x side pixels."""
    generator = torch.Generator().manual_seed(seed)
    size = SMALLEST * (LARGEST / SMALLEST) ** torch.rand(batch, count, 1, generator=generator)
    stretch = LONGEST ** (torch.rand(batch, count, 1, generator=generator) - 0.5)  # its square is the ratio
    sides = torch.cat([size * stretch, size / stretch], dim=2).clamp(max=side)
    corner = torch.rand(batch, count, 2, generator=generator) * (side - sides)
    return torch.cat([corner, corner + sides], dim=2)


def compared(anchors: GridAnchors, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds, ratios and bytes for pictures of `count` boxes each."""
    boxes = drawn(options.batch, count, options.side, seed=count)
    sizes = torch.full((options.batch, 2), float(options.side))
    flat, matcher = torch.cat(anchors), Matcher(0.5, 0.4, allow_low_quality_matches=True)
    sides: dict[str, Callable[[], object]] = {
        "torchvision": lambda: [matcher(box_iou(picture, flat)) for picture in boxes],
        "reference": lambda: assign(torch.cat(anchors), boxes, inside(torch.cat(anchors), sizes)),
        "ours": lambda: assign_near(anchors, boxes, inside(torch.cat(anchors), sizes)),
    }
    plain, ours = sides["reference"](), sides["ours"]()
    assert isinstance(plain, Tensor) and isinstance(ours, Tensor) and torch.equal(plain, ours)
    seconds = take_turns(sides, options.repeats)
    return {
        "boxes": count,
        "seconds": {name: median(each) for name, each in seconds.items()},
        "ratio": ratio(seconds["torchvision"], seconds["ours"]),
        "ratio_to_reference": ratio(seconds["reference"], seconds["ours"]),
        "bytes": {name: most_alive(call) for name, call in sides.items()},
        "positives": int((ours >= 0).sum()),
        "target": TARGETS.get(count),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--boxes", type=int, nargs="+", default=list(TARGETS), help="ground truths of each picture"
    )
    parser.add_argument("--side", type=int, default=800, help="of the square pictures, in pixels")
    parser.add_argument("--batch", type=int, default=2, help="pictures")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="where the figures go, instead of results/assignment.json")
    options = parser.parse_args()
    anchors = grid_anchors([(-(-options.side // stride), -(-options.side // stride)) for stride in STRIDES])
    rows = [compared(anchors, count, options) for count in options.boxes]
    print(f"{'boxes':>5} {'torchvision':>16} {'reference':>16} {'ours':>16} {'ratio':>7}  target")
    for row in rows:
        cells = [
            f"{row['seconds'][name] * 1e3:7.1f} ms {row['bytes'][name] / 2**20:4.0f} M"
            for name in row["seconds"]
        ]
        print(
            f"{row['boxes']:>5} {cells[0]:>16} {cells[1]:>16} {cells[2]:>16} {row['ratio']:>6.1f}x  "
            f"{row['target'] or ''}"
        )
    about = {
        "anchors": sum(map(len, anchors)),
        "side": options.side,
        "batch": options.batch,
        "repeats": options.repeats,
    }
    record(__file__, {**about, "threads": torch.get_num_threads(), "rows": rows}, out=options.out)


if __name__ == "__main__":
    main()
