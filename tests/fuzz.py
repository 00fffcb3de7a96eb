"""Bad input by the thousand: `python tests/fuzz.py 10000 --seed 0` prints what became of each kind, and exits
1 if anything went wrong.

A case follows from its number alone: `python tests/fuzz.py 1 --seed 4711 --keep somewhere` does case 4711
again and leaves its files.

read      a result, which is held against an independent reading of the same files: nothing lost, nothing
          changed
refused   one of our own errors, whose text names the file
wrong     a result that is not what the files say
crash     any other exception, a warning, more than 10 s, more than 1 GB
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_inputs import bytes_damaged, json_bytes, value_damaged, write_coco, write_voc, write_yolo
from fuzz_pictures import make_picture, promising
from fuzz_truth import (
    Truth,
    Wrong,
    coco_account,
    coco_truth,
    is_text,
    require,
    result_truth,
    unique,
    voc_account,
    voc_truth,
    yolo_account,
    yolo_truth,
)
from helpers import model_config
from PIL import Image
from safetensors.torch import save

from retinanet.data.dataset import Dataset
from retinanet.data.formats.coco import read_coco
from retinanet.data.formats.detect import open_dataset
from retinanet.data.images import image_size, read_image
from retinanet.data.validate import validate
from retinanet.errors import Problem, RetinaNetError
from retinanet.evaluation.read import read_results
from retinanet.weights.checkpoint import ModelInfo, build, load_model, read_weights, save_model

SECONDS, KILOBYTES = 10, 1 << 20
Case = Callable[[Path, random.Random, bool], None]
"""Makes files in a folder, damaged ones or not, and reads them."""


def run_case(number: int, folder: Path) -> tuple[str, str, str]:
    """(kind, outcome, what happened) of one case, whose files go into the empty folder."""
    rng = random.Random(number)
    kind, odd = rng.choice(list(KINDS)), rng.random() < 0.9
    started, memory = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", append=True)  # whatever the product does not silence on purpose
        try:
            KINDS[kind](folder, rng, odd)
            outcome, detail = "read", ""
        except RetinaNetError as error:
            outcome, detail = "refused", str(error)
            if folder.name not in detail or len(detail) > 20_000 or not is_text(detail):
                outcome = "wrong"
                detail = f"a message that names no file, or is too long, or no text: {detail[:500]!r}"
            elif not odd:
                outcome, detail = "wrong", f"refused what is right: {detail}"
        except Wrong as error:
            outcome, detail = "wrong", str(error)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome, detail = "crash", traceback.format_exc()[-3000:]
    seconds, grown = (
        time.perf_counter() - started,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory,
    )
    if caught and outcome != "crash":
        outcome, detail = "crash", f"warning: {caught[0].category.__name__} {caught[0].message}"
    if seconds > SECONDS or grown > KILOBYTES:
        outcome, detail = "crash", f"{seconds:.1f} s, {grown >> 10} MB more than before; {outcome} {detail}"
    return kind, outcome, detail


def data_case(
    write: Callable[[Path, random.Random, bool], Path],
    truth: Callable[[Path], Truth],
    account: Callable[[Path, dict[str, Dataset]], None] = lambda place, splits: None,
) -> Case:
    """A data set that `write` makes, opened and validated, and held against what `truth` reads there.
    `account` looks for what was read and is neither a row nor told."""

    def run(folder: Path, rng: random.Random, odd: bool) -> None:
        place = write(folder, rng, odd)
        invalid = rng.choice(("error", "error", "drop", "clip"))
        if rng.random() < 0.5:
            place = folder
        splits = open_dataset(place)
        account(place, splits)
        for split in splits.values():
            data, problems = validate(split, invalid, deep=rng.random() < 0.2)
            check_columns(data)
            lacking = {problem.image for problem in split.problems} & set(data.files.tolist())
            require(not lacking, f"{lacking} lack objects and are kept, as if they had none")
            check_kept(split, data, problems)
            if not problems:
                check_rows(data, place, truth)

    return run


def check_kept(split: Dataset, data: Dataset, problems: list[Problem]) -> None:
    """An image that is kept lacks no object: only boxes without area, repeated ones and those outside go."""
    lost = {problem.image for problem in split.problems} & set(data.files.tolist())
    require(not lost, f"kept, though an object of theirs could not be read: {lost}")
    gone = ("boxes without area", "duplicate boxes", "boxes outside the image")
    left_out = sum(problem.kind in gone for problem in problems)
    kept = set(data.files.tolist())
    before = [split.first[index + 1] - split.first[index] for index in range(len(split))]
    rows = sum(count for count, file in zip(before, split.files.tolist(), strict=True) if file in kept)
    require(
        rows - len(data.labels) <= left_out, f"{rows} boxes of the images that stay, {len(data.labels)} left"
    )


def check_boxes(data: Dataset) -> None:
    """What holds even where no picture was looked at."""
    require(
        np.isfinite(data.boxes).all() and np.isfinite(data.areas).all(), "boxes or areas that are not finite"
    )
    require((data.boxes[:, 2:] > data.boxes[:, :2]).all(), "boxes without area")
    require(((data.labels >= 0) & (data.labels < len(data.names))).all(), "labels without a class")
    require(
        len(set(data.names)) == len(data.names) and len(set(data.category_ids)) == len(data.names),
        "classes twice",
    )
    require(len(set(data.image_ids.tolist())) == len(data) == len(set(data.files.tolist())), "images twice")
    require((data.areas >= 0).all(), "areas below 0")
    require(all(is_text(name) for name in (*data.names, *data.files.tolist())), "names that are no text")


def check_columns(data: Dataset) -> None:
    """What a training relies on."""
    check_boxes(data)
    limit = np.tile(data.sizes[data.image_of_box()][:, ::-1], 2)
    require(
        (data.boxes >= 0).all() and (data.boxes <= limit).all() and (data.sizes > 0).all(),
        "boxes outside, or sizes of 0",
    )
    for index in range(len(data)):
        path = data.path(index)
        require(path.is_file() and path.is_relative_to(data.root), f"{path} is no picture of the data set")
        with Image.open(path) as image:
            require(data.sizes[index].tolist() == [image.height, image.width], f"{path} has another size")


def check_rows(data: Dataset, place: Path, truth: Callable[[Path], Truth]) -> None:
    """Without a problem every picture and box of the files is there, as it stands there, and no other."""
    try:
        pictures, expected = map(sorted, truth(place))
    except Exception as error:
        raise Wrong(f"read without a word what cannot be read: {type(error).__name__} {error}") from error
    require(
        sorted(str(data.path(index)) for index in range(len(data))) == pictures,
        f"{data.files} are not the pictures {pictures}",
    )
    files = [str(data.path(index)) for index in data.image_of_box().tolist()]
    names = [data.names[label] for label in data.labels]
    found = sorted(
        (file, name, *box) for file, name, box in zip(files, names, data.boxes.tolist(), strict=True)
    )
    require(
        [row[:2] for row in found] == [row[:2] for row in expected],
        f"{found} are not the boxes of the files, {expected}",
    )
    moved = np.abs(np.array([row[2:] for row in found]) - np.array([row[2:] for row in expected]))
    require(not moved.size or moved.max() <= 1 + 1e-6, f"{found} are not where the files say, {expected}")


def picture_case(folder: Path, rng: random.Random, odd: bool) -> None:
    """A picture, held against the pixels that went into it if it is whole."""
    suffix, content, shown = make_picture(rng)
    path = folder / f"picture.{suffix}"
    path.write_bytes(
        (promising if suffix == "png" and rng.random() < 0.3 else bytes_damaged)(content, rng)
        if odd
        else content
    )
    size = image_size(path)
    require(all(type(side) is int and side > 0 for side in size), f"a size of {size}")
    pixels = read_image(path)
    require(
        pixels.dtype == torch.uint8 and pixels.shape == (3, *size),
        f"{pixels.shape} {pixels.dtype} for {size}",
    )
    if not odd or path.read_bytes() == content:
        require(
            pixels.permute(1, 2, 0).numpy().tolist() == shown.tolist(),
            "pixels that are not those of the picture",
        )


CONFIG = model_config(backbone="test_resnet", backbone_norm="batch", channels=8, num_convs=0)


@cache
def weights() -> dict[str, torch.Tensor]:
    """Of a small network."""
    return dict(build(CONFIG, 2).state_dict())


def weights_case(folder: Path, rng: random.Random, odd: bool) -> None:
    """A file of weights with a changed description, header, tensor or byte."""
    made = weights()
    path = folder / "model.safetensors"
    save_model(path, made, ModelInfo(CONFIG, ("cat", "dög"), (17, 18), 0.31, {"data": "pets"}))
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    kind = rng.choice(("card", "card", "card", "header", "header", "bytes", "tensors")) if odd else "whole"
    if kind == "card":
        header = json.loads(content[8 : 8 + length])
        card = value_damaged(json.loads(header["__metadata__"]["retinanet"]), rng)
        text = json_bytes(card, rng, True).decode("utf-8", "replace")
        path.write_bytes(save(made, {"retinanet": text}))
    elif kind == "header":
        header = bytes_damaged(content[8 : 8 + length], rng)
        path.write_bytes(
            (len(header) if rng.random() < 0.8 else length).to_bytes(8, "little")
            + header
            + content[8 + length :]
        )
    elif kind == "bytes":
        path.write_bytes(bytes_damaged(content, rng))
    elif kind == "tensors":
        tensors = dict(made)
        name = rng.choice(list(tensors))
        changes = (
            torch.float64,
            torch.int8,
            torch.bool,
            torch.complex64,
            torch.bfloat16,
            torch.float8_e4m3fn,
        )
        tensors[name] = rng.choice(
            [tensors[name].to(kind) for kind in changes] + [tensors[name] * torch.nan, tensors[name][None]]
        )
        path.write_bytes(save(tensors, json.loads(content[8 : 8 + length])["__metadata__"]))
    tensors, card = read_weights(path)
    model, again = load_model(path)
    require(
        card == again and len(card.names) == len(card.category_ids) == model.num_classes,
        "names, ids and classes disagree",
    )
    require(
        0 <= card.threshold <= 1 and all(isinstance(name, str) and is_text(name) for name in card.names),
        f"{card}",
    )
    require(
        all(value.isfinite().all() for value in model.state_dict().values()), "weights that are not finite"
    )
    require(
        kind != "whole" or all(torch.equal(value, made[name]) for name, value in tensors.items()),
        "other weights",
    )


def results_case(folder: Path, rng: random.Random, odd: bool) -> None:
    """A COCO results file for a sound data set."""
    data = read_coco(write_coco(folder, rng, False))
    ids, categories = data.image_ids.tolist(), data.category_ids
    rows = [
        {
            "image_id": rng.choice(ids),
            "category_id": rng.choice(categories),
            "bbox": [1, 2.5, 3, 4],
            "score": rng.random(),
        }
        for _ in range(4)
    ]
    content: Any = value_damaged(rows, rng) if odd else rows
    file = folder / "results.json"
    file.write_bytes(json_bytes(content, rng, odd))
    results = read_results(file, data)
    try:
        entries = json.loads(file.read_bytes(), object_pairs_hook=unique)
        expected = [result_truth(entry, data) for entry in entries]
    except Exception as error:
        raise Wrong(f"read without a word what cannot be read: {type(error).__name__} {error}") from error
    numbers = zip(
        results.images.tolist(),
        results.labels.tolist(),
        results.boxes.tolist(),
        results.scores.tolist(),
        strict=True,
    )
    require(
        [(ids[i], categories[k], box, score) for i, k, box, score in numbers] == expected,
        f"{results} is not {expected}",
    )


KINDS: dict[str, Case] = {
    "coco": data_case(write_coco, coco_truth, coco_account),
    "voc": data_case(write_voc, voc_truth, voc_account),
}
KINDS |= {
    "yolo": data_case(write_yolo, yolo_truth, yolo_account),
    "picture": picture_case,
    "weights": weights_case,
}
KINDS |= {"results": results_case}


def run_cases(numbers: range, keep: Path | None = None) -> tuple[Counter[tuple[str, str]], list[str]]:
    """How often each kind had each outcome, and what went wrong, by case."""
    counts: Counter[tuple[str, str]] = Counter()
    faults = []
    top = keep or Path(tempfile.mkdtemp(prefix="fuzz"))
    for number in numbers:
        folder = top / f"case{number}"
        folder.mkdir(parents=True)
        kind, outcome, detail = run_case(number, folder)
        counts[kind, outcome] += 1
        if outcome in ("wrong", "crash"):
            faults.append(f"case {number} ({kind}): {outcome}: {detail}")
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    if keep is None:
        shutil.rmtree(top, ignore_errors=True)
    return counts, faults


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("cases", type=int)
    words.add_argument("--seed", type=int, default=0, help="number of the first case")
    words.add_argument(
        "--keep", type=Path, help="folder for the files of the cases, which are else taken away"
    )
    asked = words.parse_args()
    torch.set_num_threads(1)
    counts: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["RETINANET_CACHE"] = cache
        for number in range(asked.seed, asked.seed + asked.cases):
            faulthandler.dump_traceback_later(6 * SECONDS, exit=True)  # a hang ends all, and says where
            one, faults = run_cases(range(number, number + 1), asked.keep)
            counts += one
            print(*faults, sep="\n", end="\n" if faults else "", flush=True)
    print(f"{'':9s}" + "".join(f"{outcome:>9s}" for outcome in ("read", "refused", "wrong", "crash")))
    for kind in KINDS:
        print(
            f"{kind:9s}"
            + "".join(f"{counts[kind, outcome]:9d}" for outcome in ("read", "refused", "wrong", "crash"))
        )
    return 1 if any(outcome in ("wrong", "crash") for _, outcome in counts) else 0


if __name__ == "__main__":
    sys.exit(main())
