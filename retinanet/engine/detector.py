"""A trained model with its preprocessing, its answers and its class names: what a user holds in the hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..data.images import MAX_PIXELS, from_pillow, read_image
from ..errors import CheckpointError, ConfigError, DataError
from ..model.postprocess import Postprocess
from ..model.preprocess import Preprocess
from ..model.retinanet import RetinaNet
from ..structures import Detections
from ..weights.checkpoint import Card, postprocess_of, preprocess_of
from ..weights.convert import load_any
from ..weights.hub import resolve
from .machine import autocast, pick_device, pick_workers

Picture = str | Path | np.ndarray | Tensor | Any


class Detector:
    """Pictures in, `Detections` out, in pixels of the original picture.

    names          the K class names: `names[label]`
    category_ids   the ids that the training data used for them
    threshold      the score of best F1 in validation: use it to draw; `predict` itself never applies it
    """

    def __init__(
        self,
        model: RetinaNet,
        preprocess: Preprocess,
        postprocess: Postprocess,
        names: Sequence[str],
        category_ids: Sequence[int],
        threshold: float = 0.5,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.preprocess, self.postprocess = preprocess, postprocess
        self.names, self.category_ids, self.threshold = list(names), list(category_ids), threshold
        self.precision = precision

    @overload
    def predict(self, images: str | Path, batch: int = 8) -> Detections: ...
    @overload
    def predict(self, images: Any, batch: int = 8) -> Any: ...
    def predict(self, images: Any, batch: int = 8) -> Detections | list[Detections]:
        """The objects in one picture, or a list of `Detections` for several.

        images   a path; an array [H, W, 3] or [H, W], uint8, RGB; a tensor [3, H, W], uint8 or float in 0..1; a Pillow image;
                 or a list of these, or an array [B, H, W, 3] or tensor [B, 3, H, W]
        batch    pictures per batch; those of one padded shape share one, so the answers do not depend on their neighbours
        returns  everything above the model's own score threshold, best first

        DataError for a picture that cannot be read.
        """
        if isinstance(images, (list, tuple)) or (isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4):
            answers: dict[int, Detections] = {}
            pictures = enumerate(map(as_picture, images))  # one by one: a thousand full-size pictures need not fit in memory
            prepared = ((i, self.preprocess.resized(picture), (picture.shape[1], picture.shape[2])) for i, picture in pictures)
            answers.update(self._in_batches(prepared, batch))
            return [answers[index] for index in range(len(images))]
        picture = as_picture(images)
        resized, sizes = self.preprocess.stack([self.preprocess.resized(picture)])
        return self.answer(resized, sizes, [(picture.shape[1], picture.shape[2])])[0]

    def stream(
        self, paths: Sequence[Path], batch: int = 8, workers: int | None = None, max_pixels: int = MAX_PIXELS
    ) -> Iterator[tuple[int, Detections | DataError]]:
        """(position in `paths`, answer) as they come, not in order; a picture that cannot be read gives its error and hurts no other."""
        loader: DataLoader[Any] = DataLoader(
            _Pictures(paths, self.preprocess, max_pixels), batch_size=None, num_workers=pick_workers(workers, self.device)
        )
        failed: list[tuple[int, DataError]] = []

        def prepared() -> Iterator[tuple[int, Tensor, tuple[int, int]]]:
            for index, image, size in loader:
                if isinstance(image, str):
                    failed.append((index, DataError(image)))
                else:
                    yield index, image, size

        yield from self._in_batches(prepared(), batch)
        yield from failed

    def _in_batches(self, prepared: Iterator[tuple[int, Tensor, tuple[int, int]]], batch: int) -> Iterator[tuple[int, Detections]]:
        """Gather resized pictures by padded shape; run a shape when it has a full batch, and what is left at the end."""
        if batch < 1:
            raise ConfigError(f"batch must be at least 1, not {batch}")
        waiting: dict[tuple[int, int], list[tuple[int, Tensor, tuple[int, int]]]] = {}
        for entry in prepared:
            shape = self.preprocess.padded([(entry[1].shape[1], entry[1].shape[2])])
            group = waiting.setdefault(shape, [])
            group.append(entry)
            if len(group) == batch:
                yield from self._run(waiting.pop(shape))
        for group in waiting.values():
            yield from self._run(group)

    def _run(self, group: list[tuple[int, Tensor, tuple[int, int]]]) -> Iterator[tuple[int, Detections]]:
        images, sizes = self.preprocess.stack([image for _, image, _ in group])
        answers = self.answer(images, sizes, [size for _, _, size in group])
        yield from zip((index for index, _, _ in group), answers, strict=True)

    def answer(self, images: Tensor, sizes: Tensor, originals: Sequence[tuple[int, int]]) -> list[Detections]:
        """A padded uint8 batch [B, 3, H, W] of resized pictures, sizes [B, 2] -> detections in pixels of the originals (height, width)."""
        with torch.inference_mode():
            logits, offsets, normalized = self.forward(images, sizes)
            return self.select(logits, offsets, normalized, sizes, originals)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """The network's logits and offsets per level for a padded uint8 batch, and the normalised pictures."""
        normalized = self.preprocess.normalize(images.to(self.device), sizes.to(self.device))
        with autocast(self.precision, self.device):
            logits, offsets = self.model(normalized)
        return logits, offsets, normalized

    def select(
        self, logits: list[Tensor], offsets: list[Tensor], normalized: Tensor, sizes: Tensor, originals: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """The answers for a batch, in pixels of the originals."""
        found = self.postprocess(logits, offsets, self.model.anchors(normalized), sizes.to(self.device))
        answers = []
        for (boxes, scores, labels), size, (height, width) in zip(found, sizes.tolist(), originals, strict=True):
            limit = torch.tensor([width, height] * 2, dtype=torch.float32)
            # both sides of the picture were rounded to whole pixels, so each has its own factor
            scaled = boxes.cpu() * (limit / torch.tensor([size[1], size[0]] * 2))
            answers.append(Detections(torch.minimum(scaled, limit), scores.cpu(), labels.cpu(), self.names))
        return answers


class _Pictures(TorchDataset[Any]):
    """(position, resized picture, original size), or (position, reason, size) for one that cannot be read."""

    def __init__(self, paths: Sequence[Path], preprocess: Preprocess, max_pixels: int) -> None:
        self.paths, self.preprocess, self.max_pixels = list(paths), preprocess, max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str, tuple[int, int]]:
        try:
            image = read_image(self.paths[index], self.max_pixels)
        except DataError as error:
            return index, str(error), (0, 0)
        return index, self.preprocess.resized(image), (image.shape[1], image.shape[2])


def as_picture(image: Picture) -> Tensor:
    """Whatever a user calls a picture -> uint8 [3, H, W] RGB."""
    if isinstance(image, (str, Path)):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return from_pillow(image)
    if isinstance(image, np.ndarray):
        if image.ndim == 2:
            image = image[:, :, None]
        if image.ndim != 3 or image.shape[2] not in (1, 3):
            raise DataError(f"an array must be [H, W, 3] or [H, W], not {list(image.shape)}")
        image = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    if not isinstance(image, Tensor):
        raise DataError(f"a picture is a path, an array, a tensor or a Pillow image, not {type(image).__name__}")
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        raise DataError(f"a tensor must be [3, H, W], not {list(image.shape)}")
    if image.is_floating_point():
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):
            raise DataError(f"a float picture must lie in 0..1, not {low:.3g}..{high:.3g}; give uint8 for 0..255")
        image = (image * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise DataError(f"a picture must be uint8, or float in 0..1, not {image.dtype}")
    return image.expand(3, -1, -1).cpu()


def load(model: str | Path, device: str = "auto", precision: str = "fp32", scale: int | None = None) -> Detector:
    """A detector from a run folder, a file of weights or a published name.

    model      runs/cells (its model.safetensors), a .safetensors file of ours, a .pth or .pkl file of torchvision's, Detectron2's or
               MMDetection's RetinaNet, a name that `retinanet models` lists (torchvision/retinanet_resnet50_fpn_v2), or
               hf:OWNER/NAME: a model of ours on Hugging Face
    device     cpu, cuda, cuda:1; auto: a GPU if there is one
    precision  fp32 or bf16
    scale      short side in pixels, when it is not to be the model's own

    CheckpointError when there is no such model or the file is not whole; ConfigError for an unknown device.
    """
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"precision is fp32 or bf16, not {precision!r}")
    network, card = load_any(find_model(model))
    return detector_of(network, card, pick_device(device), precision, scale)


def detector_of(network: RetinaNet, card: Card, device: torch.device, precision: str = "fp32", scale: int | None = None) -> Detector:
    """A detector from a network and the card of its file."""
    settings = (preprocess_of(card.model, scale), postprocess_of(card.model), card.names, card.category_ids, card.threshold)
    return Detector(network, *settings, device, precision)


def find_model(model: str | Path) -> Path:
    """The file of weights that a run folder, a path, a published name or hf:OWNER/NAME means; what is on the disk always wins."""
    path = Path(model)
    if path.is_dir():
        if not (path / "model.safetensors").exists():
            raise CheckpointError(f"{path} is a folder without model.safetensors; is it a finished run?")
        return path / "model.safetensors"
    found = path if path.exists() else resolve(model)
    if found is None:
        raise CheckpointError(f"no model {str(model)!r}: neither a run folder nor a file of weights, nor a name of `retinanet models`")
    return found
