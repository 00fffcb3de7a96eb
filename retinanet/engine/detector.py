"""A trained model with its preprocessing, its answers and its class names: what a user holds in the hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
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
from ..model.folding import folded
from ..model.postprocess import Postprocess
from ..model.preprocess import Preprocess
from ..model.retinanet import RetinaNet
from ..settings import RANGES
from ..structures import Detections
from ..weights.checkpoint import Card, postprocess_of, preprocess_of
from ..weights.convert import load_any
from ..weights.hub import resolve
from ..weights.runtimes import SUFFIXES, Runtime, open_runtime
from .machine import autocast, gpu_number, pick_device, pick_workers

Picture = str | Path | np.ndarray | Tensor | Any
Prepared = tuple[int, list[Tensor], tuple[int, int]]
"""A picture's position, the picture [3, h, w] at each scale, its original height and width."""


class Detector:
    """Pictures in, `Detections` out, in pixels of the original picture.

    names          the K class names: `names[label]`
    category_ids   the ids that the training data used for them
    threshold      the score of best F1 in validation: use it to draw; `predict` itself never applies it
    model          the network as it was trained; `network` is what answers: its weights as they were when the
                   detector was made, batch
                   norms folded into the convolutions, in bf16 if that is the precision
    scales         how each picture is prepared, once for every scale at which it is answered; usually
                   `preprocess` alone
    runtime        an exported file, which answers in place of a network; then there is no `model`
    """

    def __init__(
        self,
        model: RetinaNet | Runtime,
        preprocess: Preprocess,
        postprocess: Postprocess,
        names: Sequence[str],
        category_ids: Sequence[int],
        threshold: float = 0.5,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        others: Sequence[Preprocess] = (),
    ) -> None:
        self.device = torch.device(device)
        self.runtime = model if isinstance(model, Runtime) else None
        if isinstance(model, RetinaNet):
            self.model = model.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
            self.network = folded(self.model, precision=precision)
        self.preprocess, self.postprocess = preprocess, postprocess
        self.scales = (preprocess, *others)
        self.names, self.category_ids, self.threshold = list(names), list(category_ids), threshold
        self.precision = precision

    @overload
    def predict(self, images: str | Path, batch: int = 8) -> Detections: ...
    @overload
    def predict(self, images: Any, batch: int = 8) -> Any: ...
    def predict(self, images: Any, batch: int = 8) -> Detections | list[Detections]:
        """The objects in one picture, or a list of `Detections` for several.

        images   a path; an array [H, W, 3] or [H, W], uint8, RGB; a tensor [3, H, W], uint8 or float in 0..1;
                 a Pillow image;
                 or a list of these, or an array [B, H, W, 3] or tensor [B, 3, H, W]
        batch    pictures per batch; those of one padded shape share one, so the answers do not depend on
                 their neighbours
        returns  everything above the model's own score threshold, best first

        DataError for a picture that cannot be read.
        """
        several = isinstance(images, (list, tuple)) or (
            isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4
        )
        # one by one: a thousand full-size pictures need not fit in memory
        pictures = enumerate(map(as_picture, images if several else [images]))
        answers = dict(
            self._in_batches((prepare(index, picture, self.scales) for index, picture in pictures), batch)
        )
        return [answers[index] for index in range(len(answers))] if several else answers[0]

    def stream(
        self, paths: Sequence[Path], batch: int = 8, workers: int | None = None, max_pixels: int = MAX_PIXELS
    ) -> Iterator[tuple[int, Detections | DataError]]:
        """(position in `paths`, answer) as they come, not in order; a picture that cannot be read gives its
        error and hurts no other.
        """
        loader: DataLoader[Any] = DataLoader(
            _Pictures(paths, self.scales, max_pixels),
            batch_size=None,
            num_workers=pick_workers(workers, self.device),
        )
        failed: list[tuple[int, DataError]] = []

        def prepared() -> Iterator[Prepared]:
            for index, images, size in loader:
                if isinstance(images, str):
                    failed.append((index, DataError(images)))
                else:
                    yield index, images, size

        yield from self._in_batches(prepared(), batch)
        yield from failed

    def _in_batches(self, prepared: Iterator[Prepared], batch: int) -> Iterator[tuple[int, Detections]]:
        """Gather resized pictures by padded shape (at every scale); run a shape when it has a full batch, and
        what is left at the end.
        """
        if batch < 1:
            raise ConfigError(f"batch must be at least 1, not {batch}")
        waiting: dict[tuple[tuple[int, int], ...], list[Prepared]] = {}
        for entry in prepared:
            shapes = tuple(self.preprocess.padded([(image.shape[1], image.shape[2])]) for image in entry[1])
            group = waiting.setdefault(shapes, [])
            group.append(entry)
            if len(group) == batch:
                yield from self._run(waiting.pop(shapes))
        for group in waiting.values():
            yield from self._run(group)

    def _run(self, group: list[Prepared]) -> Iterator[tuple[int, Detections]]:
        indices, images, originals = zip(*group, strict=True)
        batches = [self.preprocess.stack(scale) for scale in zip(*images, strict=True)]
        answers = (
            self.answer(*batches[0], originals) if len(batches) == 1 else self.merged(batches, originals)
        )
        yield from zip(indices, answers, strict=True)

    def answer(self, images: Tensor, sizes: Tensor, originals: Sequence[tuple[int, int]]) -> list[Detections]:
        """A padded uint8 batch [B, 3, H, W] of resized pictures, sizes [B, 2] -> detections in pixels of the
        originals (height, width).
        """
        with torch.inference_mode():
            if self.runtime is not None:
                return self.in_originals(self.runtime.answer(images, sizes), sizes, originals)
            logits, offsets, normalized = self.forward(images, sizes)
            return self.select(logits, offsets, normalized, sizes, originals)

    def merged(
        self, batches: Sequence[tuple[Tensor, Tensor]], originals: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """One answer for each picture from several scales: of every scale the batch and sizes that `answer`
        takes.

        An image pyramid (Lin et al. 2017, "Feature Pyramid Networks", Fig. 1a).
        The candidates of all scales go through one NMS, in pixels of the originals, with the scores that they
        have. With an NMS for each
        scale and another over what these leave, a box could go because of one that goes itself.
        """
        limits = torch.tensor(originals, dtype=torch.float32, device=self.device)  # [B, 2] height, width
        parts = []
        with torch.inference_mode():
            for images, sizes in batches:
                logits, offsets, normalized = self.forward(images, sizes)
                sizes = sizes.to(self.device)
                boxes, x, labels = self.postprocess.candidates(
                    logits, offsets, self.model.anchors(normalized), sizes
                )
                factors = (limits / sizes).flip(1).repeat(1, 2)  # [B, 4] of x, y, x, y
                parts.append((boxes * factors[:, None], x, labels))
            boxes, x, labels = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
            found = self.postprocess.suppress(boxes, x, labels, limits)
        corners = limits.flip(1).repeat(1, 2)[:, None].cpu()  # rounding may have gone beyond these
        return [
            Detections(torch.minimum(boxes.cpu(), corner), scores.cpu(), labels.cpu(), self.names)
            for (boxes, scores, labels), corner in zip(found, corners, strict=True)
        ]

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """The network's logits and offsets per level for a padded uint8 batch, and the normalised
        pictures.
        """
        normalized = self.preprocess.normalize(images.to(self.device), sizes.to(self.device))
        with autocast(self.precision, self.device):
            logits, offsets = self.network(normalized)
        return logits, offsets, normalized

    def select(
        self,
        logits: list[Tensor],
        offsets: list[Tensor],
        normalized: Tensor,
        sizes: Tensor,
        originals: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """The answers for a batch, in pixels of the originals."""
        found = self.postprocess(logits, offsets, self.model.anchors(normalized), sizes.to(self.device))
        return self.in_originals(found, sizes, originals)

    def in_originals(
        self,
        found: Sequence[tuple[Tensor, Tensor, Tensor]],
        sizes: Tensor,
        originals: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """Boxes, scores and labels of each picture of a batch, in pixels of the originals."""
        answers = []
        for (boxes, scores, labels), size, (height, width) in zip(
            found, sizes.tolist(), originals, strict=True
        ):
            limit = torch.tensor([width, height] * 2, dtype=torch.float32)
            # both sides of the picture were rounded to whole pixels, so each has its own factor
            scaled = boxes.cpu() * (limit / torch.tensor([size[1], size[0]] * 2))
            answers.append(Detections(torch.minimum(scaled, limit), scores.cpu(), labels.cpu(), self.names))
        return answers


class _Pictures(TorchDataset[Any]):
    """What `prepare` gives, or (position, reason, size) for a picture that cannot be read."""

    def __init__(self, paths: Sequence[Path], scales: Sequence[Preprocess], max_pixels: int) -> None:
        self.paths, self.scales, self.max_pixels = list(paths), scales, max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Prepared | tuple[int, str, tuple[int, int]]:
        try:
            image = read_image(self.paths[index], self.max_pixels)
        except DataError as error:
            return index, str(error), (0, 0)
        return prepare(index, image, self.scales)


def prepare(index: int, picture: Tensor, scales: Sequence[Preprocess]) -> Prepared:
    """A picture [3, H, W] uint8 at every scale."""
    return index, [one.resized(picture) for one in scales], (picture.shape[1], picture.shape[2])


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
        raise DataError(
            f"a picture is a path, an array, a tensor or a Pillow image, not {type(image).__name__}"
        )
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        raise DataError(f"a tensor must be [3, H, W], not {list(image.shape)}")
    if image.is_floating_point():
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"a float picture must lie in 0..1, not {low:.3g}..{high:.3g}; give uint8 for 0..255"
            )
        image = (image * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise DataError(f"a picture must be uint8, or float in 0..1, not {image.dtype}")
    return image.expand(3, -1, -1).cpu()


def load(
    model: str | Path,
    device: str = "auto",
    precision: str = "fp32",
    scale: int | None = None,
    scales: Sequence[int] | None = None,
) -> Detector:
    """A detector from a run folder, a file of weights or a published name.

    model      runs/cells (its model.safetensors), a .safetensors file of ours, a .pth or .pkl file of
               torchvision's, Detectron2's or
               MMDetection's RetinaNet, a name that `retinanet models` lists
               (torchvision/retinanet_resnet50_fpn_v2),
               hf:OWNER/NAME: a model of ours on Hugging Face, or what `retinanet export` wrote: .onnx, .xml
               or .pt2
    device     cpu, cuda, cuda:1; auto: a GPU if there is one
    precision  fp32 or bf16; an exported file has its own
    scale      short side in pixels, when it is not to be the model's own
    scales     several of these instead: every picture is answered at each, and the answers are merged; it
               takes as long as all of them

    CheckpointError when there is no such model or the file is not whole; ConfigError for an unknown device,
    or scale and scales at once.
    """
    short_sides(scale, scales)
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"precision is fp32 or bf16, not {precision!r}")
    path = find_model(model)
    if path.suffix in SUFFIXES:
        return exported(path, device, precision, scale, scales)
    network, card = load_any(path)
    return detector_of(network, card, pick_device(device), precision, scale, scales)


def exported(
    path: Path, device: str, precision: str, scale: int | None, scales: Sequence[int] | None
) -> Detector:
    """A detector that an exported file answers for; see `load`."""
    if scales is not None:
        raise ConfigError(
            f"{path} answers with boxes and not with candidates, so --scales cannot merge them; use the "
            f"model it was made of"
        )
    runtime = open_runtime(path, device, gpu_number(device))
    if precision == "bf16" != runtime.precision:
        raise ConfigError(
            f"{path} was exported in {runtime.precision}, so --precision bf16 has no say; export it in bf16"
        )
    if scale is not None and runtime.size is not None:
        raise ConfigError(
            f"{path} was exported for pictures of {runtime.size[0]} x {runtime.size[1]}, so --scale has no "
            f"say"
        )
    return detector_of(
        runtime, runtime.card, torch.device("cpu"), runtime.precision, scale, canvas=runtime.size
    )


def detector_of(
    network: RetinaNet | Runtime,
    card: Card,
    device: torch.device,
    precision: str = "fp32",
    scale: int | None = None,
    scales: Sequence[int] | None = None,
    canvas: tuple[int, int] | None = None,
) -> Detector:
    """A detector from a network and the card of its file."""
    preprocess, *others = (
        replace(preprocess_of(card.model, side), canvas=canvas) for side in short_sides(scale, scales)
    )
    settings = (preprocess, postprocess_of(card.model), card.names, card.category_ids, card.threshold)
    return Detector(network, *settings, device, precision, others)


def short_sides(scale: int | None, scales: Sequence[int] | None) -> Sequence[int | None]:
    """The short sides that are meant, each once, None being the model's own; ConfigError when both are
    told.
    """
    if scales is None:
        return [scale]
    if scale is not None:
        raise ConfigError(
            f"either one scale or several, not both: --scale {scale} and --scales "
            f"{' '.join(map(str, scales))}"
        )
    low, high = RANGES["scale"]
    if not scales or not all(low <= side <= high for side in scales):
        raise ConfigError(
            f"scales must be one or more numbers of pixels from {low:g} to {high:g}, not {list(scales)}"
        )
    return sorted(set(scales))


def find_model(model: str | Path) -> Path:
    """The file of weights that a run folder, a path, a published name or hf:OWNER/NAME means; what is on the
    disk always wins.
    """
    path = Path(model)
    if path.is_dir():
        if not (path / "model.safetensors").exists():
            raise CheckpointError(f"{path} is a folder without model.safetensors; is it a finished run?")
        return path / "model.safetensors"
    found = path if path.exists() else resolve(model)
    if found is None:
        raise CheckpointError(
            f"no model {str(model)!r}: neither a run folder nor a file of weights, nor a name of `retinanet "
            f"models`"
        )
    return found
