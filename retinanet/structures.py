"""What goes into training and what comes out of prediction: checked, indexable, movable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np


BOX_DIGITS, SCORE_DIGITS = 2, 4
"""Decimals of pixels and scores in every file and answer. The last digits of float32 depend on the batch and
the machine: of 48,925 numbers 31 % differed between batches of 1 and 8, with these decimals 0.02 %."""


@dataclass(frozen=True)
class Targets:
    """The ground truth of a batch of B images, padded to G, the number of objects in the fullest image.

    Attributes:
        boxes: [B, G, 4] float32, xyxy in pixels of the padded batch; zeros where padded.
        labels: [B, G] int64, 0..K-1; -1 where padded.
        sizes: [B, 2] float32, height and width of each image inside the padded batch.
        seeds: [B] int64 on the CPU, one seed per image for random sampling; None uses torch's generator.

    Raises:
        ValueError: The shapes do not fit together.

    Example:
        >>> boxes, labels = [torch.tensor([[4.0, 4, 20, 30]])], [torch.tensor([2])]
        >>> targets = Targets.pad(boxes, labels, sizes=[(64, 96)])
        >>> len(targets)
        1
    """

    boxes: Tensor
    labels: Tensor
    sizes: Tensor
    seeds: Tensor | None = None

    def __post_init__(self) -> None:
        batch, count = self.labels.shape
        if self.boxes.shape != (batch, count, 4):
            raise ValueError(
                f"boxes must be [{batch}, {count}, 4] to go with the labels, not {list(self.boxes.shape)}"
            )
        if self.sizes.shape != (batch, 2):
            raise ValueError(f"sizes must be [{batch}, 2] (height, width), not {list(self.sizes.shape)}")

    @classmethod
    def pad(
        cls, boxes: Sequence[Tensor], labels: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> Targets:
        """Boxes [G_i, 4] and labels [G_i] of each image -> one structure. G_i may be 0."""
        count = max((len(one) for one in labels), default=0)
        padded = torch.zeros(len(boxes), count, 4)
        classes = torch.full((len(boxes), count), -1, dtype=torch.long)
        for row, (box, label) in enumerate(zip(boxes, labels, strict=True)):
            padded[row, : len(box)] = box
            classes[row, : len(label)] = label
        return cls(padded, classes, torch.tensor(sizes, dtype=torch.float32).reshape(-1, 2))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice) -> Targets:
        seeds = None if self.seeds is None else self.seeds[index]
        return Targets(self.boxes[index], self.labels[index], self.sizes[index], seeds)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Targets:
        """The same targets on another device."""
        boxes, labels, sizes = (
            part.to(device, non_blocking=non_blocking) for part in (self.boxes, self.labels, self.sizes)
        )
        return Targets(boxes, labels, sizes, self.seeds)

    def pin_memory(self) -> Targets:
        """The same targets in page-locked memory (called by the data loader)."""
        return Targets(self.boxes.pin_memory(), self.labels.pin_memory(), self.sizes.pin_memory(), self.seeds)


@dataclass(frozen=True)
class Detections:
    """The detections of one image, best first.

    Attributes:
        boxes: [N, 4] float32, xyxy in pixels of the original image.
        scores: [N] descending, in 0..1.
        labels: [N] int64, 0..K-1; `names[label]` is the class.
        names: The K class names.

    Raises:
        ValueError: The shapes do not agree on N.

    Example:
        >>> detections = retinanet.load("runs/cells").predict("slide.jpg")
        >>> detections
        Detections(13: 9 RBC, 3 WBC, 1 Platelets; best score 0.98)
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.boxes.shape != (count, 4) or self.labels.shape != (count,) or self.scores.shape != (count,):
            shapes = [list(part.shape) for part in (self.boxes, self.scores, self.labels)]
            raise ValueError(f"boxes [N, 4], scores [N] and labels [N] must agree on N, not {shapes}")

    def __repr__(self) -> str:
        if not len(self):
            return "Detections(0)"
        labels = Counter(self.labels.tolist()).most_common()
        counts = ", ".join(f"{n} {self.names[label] if self.names else label}" for label, n in labels)
        return f"Detections({len(self)}: {counts}; best score {float(self.scores.max()):.2f})"

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Any) -> Detections:
        """A slice, a mask or a list of positions."""
        if isinstance(index, int):
            index = [range(len(self))[index]]
        return replace(self, boxes=self.boxes[index], scores=self.scores[index], labels=self.labels[index])

    def __iter__(self) -> Iterator[tuple[str, float, list[float]]]:
        """(name, score, [x1, y1, x2, y2]) of each detection."""
        rows = zip(self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        for label, score, box in rows:
            yield (self.names[label] if self.names else str(label)), score, box

    def above(self, threshold: float | Tensor) -> Detections:
        """Those with a score of at least `threshold`, a number or one number per class [K]."""
        limit = threshold[self.labels] if isinstance(threshold, Tensor) else threshold
        return self[self.scores >= limit]

    def to(self, device: torch.device | str) -> Detections:
        """The same detections on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("boxes", "scores", "labels")}
        return replace(self, **moved)

    def numpy(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """boxes [N, 4], scores [N], labels [N] as arrays."""
        return self.boxes.cpu().numpy(), self.scores.cpu().numpy(), self.labels.cpu().numpy()

    def to_supervision(self) -> Any:
        """As `supervision.Detections`; needs `pip install supervision`."""
        try:
            import supervision  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise ImportError("to_supervision needs a package: pip install supervision") from error
        boxes, scores, labels = self.numpy()
        names = [self.names[label] if self.names else str(label) for label in labels]
        data = {"class_name": names}
        return supervision.Detections(xyxy=boxes, confidence=scores, class_id=labels, data=data)
