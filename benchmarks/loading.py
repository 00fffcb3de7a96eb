"""From a JPEG on disk to what the network is given, against torchvision's reference transforms; and the index
of a COCO-sized data set.

    python benchmarks/loading.py                               # about a minute
    python benchmarks/loading.py --data DATA                   # a real data set's training pictures instead
    of generated ones
    python benchmarks/loading.py --pictures 8 --images 2000    # a quick look

Pictures: one process, one thread. Both sides decode with Pillow, flip by chance, resize to a short side of
800 (at most 1333), subtract the mean, divide by the deviation and pad to a batch [B, 3, H, W] of float32,
boxes going along. torchvision's side is what its references/detection does for training:
RandomHorizontalFlip, PILToTensor and ToDtype by transforms.v2, then the model's own GeneralizedRCNNTransform.
Ours is what a loader's worker does (which ends with bytes), and the normalisation, which in training happens
on the device; here it is counted in. Target: at least 1.5 times as many pictures a second, at every size of
batch.

Index: an annotation file of 118,000 images and 860,000 boxes is written, opened by `open_dataset` as on the
first day and from its cache (target: 0.5 s), and handed to workers of a data loader, forked and started
afresh (spawn), which touch every column: what they then hold that no other process has, beyond what a worker
with an empty index holds, is their copy (target: none).
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measure import ratio, record, take_turns
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import tv_tensors
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

from retinanet.data import cache as index
from retinanet.data.augment import Augment
from retinanet.data.dataset import Dataset
from retinanet.data.formats.coco import read_coco
from retinanet.data.formats.detect import open_dataset
from retinanet.data.loader import _Samples
from retinanet.data.sampler import Entry, Sampler
from retinanet.data.scenes import scene
from retinanet.data.validate import validate
from retinanet.model.preprocess import MEAN, STD, Preprocess

COLUMNS = ("files", "image_ids", "sizes", "first", "boxes", "labels", "crowd", "areas", "annotation_ids")


# -------------------------------------------------------------------------------------------------- pictures


def generated(folder: Path, count: int) -> Dataset:
    """Busy scenes of 640 x 480 as JPEG of quality 90 (40 to 120 kB, as photographs have), with their
    boxes."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        picture, boxes, labels = scene(number, (480, 640))
        Image.fromarray(picture).save(folder / f"{number}.jpg", quality=90)
        images.append({"id": number, "file_name": f"{number}.jpg", "height": 480, "width": 640})
        for label, (left, top, right, bottom) in zip(labels.tolist(), boxes.tolist(), strict=True):
            box = [left, top, right - left, bottom - top]
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": label, "bbox": box}
            )
    categories = [
        {"id": label, "name": str(label)}
        for label in range(1 + max(one["category_id"] for one in annotations))
    ]
    file = folder / "train.json"
    file.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories}), encoding="utf-8"
    )
    return read_coco(file)


def real(source: Path, count: int) -> Dataset:
    """The first pictures of a data set's training split."""
    splits = open_dataset(source)
    data, _ = validate(splits.get("train", next(iter(splits.values()))), invalid="drop")
    return data.subset(np.arange(min(count, len(data))))


REFERENCE = v2.Compose(
    [
        v2.RandomHorizontalFlip(0.5),
        v2.PILToTensor(),
        v2.ToDtype(torch.float, scale=True),
        v2.ConvertBoundingBoxFormat(tv_tensors.BoundingBoxFormat.XYXY),
        v2.SanitizeBoundingBoxes(),
        v2.ToPureTensor(),
    ]
)


def torchvision_sample(data: Dataset, number: int) -> tuple[Tensor, dict[str, Tensor]]:
    """A picture [3, H, W] in 0..1 and its target, as torchvision's reference training has them."""
    picture = Image.open(data.path(number)).convert("RGB")
    rows = data.rows(number)
    framed = tv_tensors.BoundingBoxes(
        torch.from_numpy(data.boxes[rows]).float(), format="XYXY", canvas_size=picture.size[::-1]
    )
    sample: tuple[Tensor, dict[str, Tensor]] = REFERENCE(
        picture, {"boxes": framed, "labels": torch.from_numpy(data.labels[rows].copy())}
    )
    return sample


def measure_pictures(data: Dataset, batch: int, scale: int, repeats: int) -> dict[str, Any]:
    """Seconds of all pictures of `data` in batches of `batch`, by both sides, and by the loader's part of
    each."""
    preprocess = Preprocess(scale)
    samples = _Samples(data, preprocess, Augment(flip=0.5), 0, 10**9)
    sampler = Sampler(data.sizes, batch, 0, preprocess)
    largest = round(scale * 1333 / 800)
    resize: Any = GeneralizedRCNNTransform(scale, largest, [*MEAN], [*STD])  # type: ignore[no-untyped-call, unused-ignore]
    entries = sampler.epoch(0)

    def ours(entry: Entry) -> None:
        loaded = samples[entry]
        assert not isinstance(loaded, Exception), loaded
        preprocess.normalize(loaded.images, loaded.targets.sizes)

    def theirs(entry: Entry) -> None:
        pictures, targets = zip(*(torchvision_sample(data, number) for number in entry.indices), strict=True)
        resize(list(pictures), list(targets))

    def every(work: Callable[[Entry], object]) -> Callable[[], None]:
        def run() -> None:
            for entry in entries:
                work(entry)

        return run

    sides = {
        "ours": every(ours),
        "torchvision": every(theirs),
        "ours_without_normalisation": every(lambda entry: samples[entry]),
        "torchvision_without_resizing": every(
            lambda entry: [torchvision_sample(data, number) for number in entry.indices]
        ),
    }
    seconds = take_turns(sides, repeats)
    pictures = len(entries) * batch
    speeds = {name: pictures / median(values) for name, values in seconds.items()}
    return {
        "batch": batch,
        "images_per_second_per_core": speeds,
        "ratio": ratio(seconds["torchvision"], seconds["ours"]),
    }


# ----------------------------------------------------------------------------------------------------- index


def write_index(folder: Path, images: int, boxes: int) -> Path:
    """A COCO file with images that do not exist, in a few seconds: boxes in no order, ids with gaps, areas of
    masks."""
    rng = np.random.default_rng(0)
    ids = np.sort(rng.choice(5 * images, images, replace=False)).tolist()
    image, label = rng.integers(0, images, boxes).tolist(), rng.integers(1, 81, boxes).tolist()
    left, top = (rng.random((boxes, 2)) * [400, 300]).round(2).T.tolist()
    width, height = (rng.random((boxes, 2)) * [230, 170] + 5).round(2).T.tolist()
    pictures = (f'{{"id":{one},"file_name":"{one:012d}.jpg","height":480,"width":640}}' for one in ids)
    rows = (
        f'{{"id":{place},"image_id":{ids[i]},"category_id":{k},"bbox":[{x},{y},{w},{h}],'
        f'"area":{0.6 * w * h:.2f},"iscrowd":0}}'
        for place, (i, k, x, y, w, h) in enumerate(zip(image, label, left, top, width, height, strict=True))
    )
    categories = json.dumps([{"id": one, "name": f"class {one}"} for one in range(1, 81)])
    file = folder / "annotations" / "instances_train2017.json"
    file.parent.mkdir()
    text = f'{{"images":[{",".join(pictures)}],"annotations":[{",".join(rows)}],"categories":{categories}}}'
    file.write_text(text, encoding="utf-8")
    return file


def measure_index(folder: Path, images: int, boxes: int, repeats: int, workers: int) -> dict[str, Any]:
    """Seconds and memory of opening it, and what comes after that before a training's first step."""
    file = write_index(folder, images, boxes)
    index.LARGE = 0  # a small one for a quick look has a cache too
    told = subprocess.run(
        [sys.executable, "-c", FIRST_OPENING, str(folder)], capture_output=True, text=True, check=True
    ).stdout
    cold = dict(zip(("s", "peak_MB", "peak_before_MB"), map(float, told.split()), strict=True))
    warm = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        data = open_dataset(folder)["train"]
        warm.append(time.perf_counter() - start)
    assert len(data) == images and len(data.labels) == boxes
    assert not data.boxes.flags.owndata, "it did not come from the cache"
    figures: dict[str, Any] = {"images": images, "boxes": boxes, "file_MB": file.stat().st_size / 1e6}
    figures |= {
        "cold": cold,
        "warm_s": median(warm[1:]),
        "columns_MB": sum(getattr(data, name).nbytes for name in COLUMNS) / 1e6,
    }
    steps: dict[str, Callable[[], object]] = {
        "validate_s": lambda: validate(data, headers=False),
        "fingerprint_s": data.fingerprint,
        "first_entry_s": lambda: next(Sampler(data.sizes, 16, 0, Preprocess(800)).entries(0, 1)),
    }
    figures["after_opening"] = {name: median(values) for name, values in take_turns(steps, repeats).items()}
    figures["workers"] = {way: measure_workers(data, way, workers) for way in ("fork", "spawn") if workers}
    return figures


FIRST_OPENING = """
import sys, time
from retinanet.data import cache
from retinanet.data.formats.detect import open_dataset

def peak():
    try:
        lines = open("/proc/self/status")
        return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM"))
    except OSError:
        return float("nan")

cache.LARGE, before, start = 0, peak(), time.perf_counter()
open_dataset(sys.argv[1])
print(time.perf_counter() - start, peak(), before)
"""
"""In a process of its own without torch, whose peak of memory is told (on Linux)."""


# --------------------------------------------------------------------------------------------------- workers


class Probe(TorchDataset[dict[str, float]]):
    """Asked in a worker, it touches every column and tells the worker's memory in MB."""

    def __init__(self, samples: _Samples) -> None:
        self.samples = samples

    def __getitem__(self, _: int) -> dict[str, float]:
        for name in COLUMNS:
            column = getattr(self.samples.data, name)
            np.bitwise_xor.reduce(np.ascontiguousarray(column).view(np.uint8), axis=None)
        gc.collect()
        time.sleep(0.5)  # until the other workers have touched them too
        memory: dict[str, float] = {}
        for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
            name, value = line.split()[:2]
            memory[name.rstrip(":")] = float(value) / 1e3
        return {
            "private": memory["Private_Clean"] + memory["Private_Dirty"],
            "shared": memory["Shared_Clean"] + memory["Shared_Dirty"],
        }


def measure_workers(data: Dataset, way: str, workers: int) -> dict[str, float] | None:
    """What a worker of a data loader holds after it touched the whole index: its own, and together with
    others, in MB."""
    if not os.path.exists("/proc/self/smaps_rollup") or way not in multiprocessing.get_all_start_methods():
        return None
    told = []
    for one in (data.subset(np.arange(0)), data):
        probe = Probe(_Samples(one, Preprocess(800), None, 0, 10**9))
        loader = DataLoader(
            probe, None, sampler=range(workers), num_workers=workers, multiprocessing_context=way
        )
        answers: Sequence[dict[str, float]] = list(loader)
        told.append({name: median(answer[name] for answer in answers) for name in ("private", "shared")})
    empty, whole = told
    return {
        "private_MB": whole["private"],
        "shared_MB": whole["shared"],
        "private_for_the_index_MB": whole["private"] - empty["private"],
        "shared_for_the_index_MB": whole["shared"] - empty["shared"],
    }


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that goes away, with a cache of its own."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RETINANET_CACHE"] = str(Path(folder) / "cache")
        yield Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="a data set whose pictures are loaded; else some are generated"
    )
    parser.add_argument("--pictures", type=int, default=32, help="how many are loaded in a round")
    parser.add_argument(
        "--batch",
        type=int,
        nargs="+",
        default=[2, 8],
        help="pictures of a batch (torchvision's references: 2)",
    )
    parser.add_argument("--scale", type=int, default=800, help="short side after resizing")
    parser.add_argument("--images", type=int, default=118_000, help="of the index; 0 leaves it out")
    parser.add_argument("--boxes", type=int, help="of the index; default: 860,000 of 118,000 images")
    parser.add_argument(
        "--workers", type=int, default=2, help="processes that share the index; 0 leaves them out"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="where the record goes; default: results/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {
        "data": options.data.name if options.data else "generated, 640 x 480, JPEG quality 90",
        "scale": options.scale,
    }
    with scratch() as folder:
        data = real(options.data, options.pictures) if options.data else generated(folder, options.pictures)
        figures["loading"] = [
            measure_pictures(data, batch, options.scale, options.repeats) for batch in options.batch
        ]
        print(
            f"pictures a second on one core, short side {options.scale}   ours   torchvision   ratio   "
            f"(target 1.5)"
        )
        for row in figures["loading"]:
            speeds = row["images_per_second_per_core"]
            print(
                f"  batches of {row['batch']:<2} {speeds['ours']:41.1f} {speeds['torchvision']:13.1f} "
                f"{row['ratio']:7.2f}"
            )
    if options.images:
        with scratch() as folder:
            boxes = options.boxes or round(options.images * 860 / 118)
            figures["index"] = found = measure_index(
                folder, options.images, boxes, options.repeats, options.workers
            )
        cold = found["cold"]
        print(
            f"index of {found['images']:,} images, {found['boxes']:,} boxes: {found['file_MB']:.0f} MB as "
            f"JSON"
        )
        print(
            f"  first opening {cold['s']:.2f} s, peak {cold['peak_MB']:.0f} MB; from its cache "
            f"{found['warm_s']:.3f} s (target 0.5)"
        )
        print(
            "  then "
            + ", ".join(
                f"{name.removesuffix('_s')} {spent:.3f} s" for name, spent in found["after_opening"].items()
            )
        )
        for way, memory in found["workers"].items():
            if memory:
                own, common = memory["private_for_the_index_MB"], memory["shared_for_the_index_MB"]
                print(
                    f"  a worker by {way}: {own:.1f} MB of its own for {found['columns_MB']:.1f} MB of "
                    f"columns, {common:.1f} MB shared"
                )
    record(__file__, figures, out=options.out)


if __name__ == "__main__":
    main()
