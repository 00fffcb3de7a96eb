"""Exported files beside torchvision's eager model, RetinaNet-R50 at 800 px with the same weights: from a file
on disk to boxes.

    python benchmarks/exporting.py

The weights are those of `prediction.py`: torchvision's, untrained, shaped so that dozens of boxes are found.
They are imported and exported for one size, opened by `retinanet.load` as a user would, and each side answers
the same JPEG in turn.

A matrix product in each precision has its turns too: how much faster than torchvision a file could be, if all
that its convolutions multiply were done at that speed and nothing else took any time.

Targets: OpenVINO in bf16 at least 3x as fast as torchvision, in int8 5.5x, onnxruntime in fp32 1.5x. What
int8 costs in AP is not asked here: `retinanet export` measures it on a trained model.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import torch
from measure import arithmetic, product, ratio, record, take_turns
from PIL import Image
from prediction import agreement, read, run, untrained

import retinanet
from retinanet.config.commands import ExportConfig
from retinanet.data.scenes import scene
from retinanet.export.graph import Graph
from retinanet.export.write import described, write
from retinanet.inference.detector import Detector
from retinanet.inference.load import detector_of, load_checkpoint

FILES = {
    "onnx-fp32": ("onnx", "fp32"),
    "onnx-int8": ("onnx", "int8"),
    "openvino-fp32": ("openvino", "fp32"),
    "openvino-bf16": ("openvino", "bf16"),
    "openvino-int8": ("openvino", "int8"),
}
"""Side -> format and precision."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--side",
        type=int,
        default=800,
        help="pixels of the picture and of what the network sees; a multiple of 32",
    )
    parser.add_argument(
        "--files", nargs="+", choices=FILES, default=list(FILES), help="the sides beside torchvision and ours"
    )
    parser.add_argument("--calibration", type=int, default=20, help="generated pictures that int8 looks at")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights, model, picture = (
            Path(folder) / "theirs.pth",
            Path(folder) / "ours.safetensors",
            Path(folder) / "picture.jpg",
        )
        Image.fromarray(scene(0, (options.side, options.side)).image).save(picture, quality=90)
        theirs = untrained(options.side, picture)
        torch.save(theirs.state_dict(), weights)
        run("import", str(weights), "--out", str(model))

        def torchvision() -> dict[str, torch.Tensor]:
            with torch.inference_mode():
                answers: list[dict[str, torch.Tensor]] = theirs([read(picture)])
            return answers[0]

        detectors = {
            f"ours {name}": retinanet.load(model, "cpu", name, options.side) for name in ("fp32", "bf16")
        }
        detectors |= {name: exported(model, name, options) for name in options.files}
        expected, ids = torchvision(), torch.tensor(detectors["ours fp32"].category_ids)
        same = {
            name: agreement(expected, detector.predict(picture), ids) for name, detector in detectors.items()
        }
        sides: dict[str, Callable[[], object]] = {"torchvision fp32": torchvision}
        sides |= {name: partial(detector.predict, picture) for name, detector in detectors.items()}
        work = arithmetic(torchvision)
        products = {precision: product(precision) for precision in ("fp32", "bf16", "int8")}
        seconds = take_turns(
            sides | {f"product {precision}": call for precision, (call, _) in products.items()},
            options.repeats,
        )
    ratios = {name: ratio(seconds["torchvision fp32"], seconds[name]) for name in detectors}
    print(f"torchvision fp32    {1000 * median(seconds['torchvision fp32']):8.0f} ms")
    for name, value in ratios.items():
        print(
            f"{name:20s}{1000 * median(seconds[name]):8.0f} ms  x {value:.2f}  {same[name]['shared']:.0%} "
            f"of torchvision's boxes"
        )
    limits = {
        precision: ratio(seconds["torchvision fp32"], seconds[f"product {precision}"]) * count / work
        for precision, (_, count) in products.items()
    }
    print(
        "as matrix products: "
        + ", ".join(f"{precision} x {limit:.2f}" for precision, limit in limits.items())
    )
    record(
        __file__,
        {"side": options.side, "seconds": seconds, "ratios": ratios, "limits": limits, "boxes": same},
        "cpu",
        options.out,
    )


def exported(model: Path, name: str, options: argparse.Namespace) -> Detector:
    """A file of that kind, opened again."""
    kind, precision = FILES[name]
    size = (options.side, options.side)
    settings = {"format": kind, "precision": precision, "size": size, "calibration": options.calibration}
    config = ExportConfig(**settings)
    network, card = load_checkpoint(model)
    source = detector_of(network, card, torch.device("cpu"), canvas=size)
    file = model.with_name(f"{precision}.{'onnx' if kind == 'onnx' else 'xml'}")
    about = {"precision": precision, "size": size}
    write(file, Graph(source), described(card, config, about), config, pictures(source, options))
    return retinanet.load(file, "cpu")


def pictures(source: Detector, options: argparse.Namespace) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Generated pictures as the model takes them."""
    for number in range(options.calibration):
        shown = torch.from_numpy(scene((1, number), (options.side, options.side)).image).permute(2, 0, 1)
        yield source.preprocess.stack([source.preprocess.resized(shown)])


if __name__ == "__main__":
    main()
