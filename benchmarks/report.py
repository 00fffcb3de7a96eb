"""Writes docs/performance.md from what the scripts beside it left in results/.

python benchmarks/report.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from measure import RESULTS

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
HEAD = """# Speed

This page compares the speed of this package with torchvision's. `python benchmarks/report.py` writes it.

Each script runs both sides in one process, and the sides take turns. The tables give ratios. The speed of the
machine changes from hour to hour, so do not compare seconds of different tables. The command above a table
measured it. `benchmarks/README.md` says how the scripts deal with noise.

Missed targets stay in the tables. Training and inference spend most of their time in convolutions, which
torchvision runs too. "Arithmetic a second" is compared with a matrix product: at 1.00 the processor can do no
more.
"""
PICTURES = {"growth": "![Seconds and bytes of a training step, beside the expected slopes](growth.svg)\n"}
Line = tuple[str, str, str]


def main() -> None:
    PAGE.write_text(page(RESULTS), encoding="utf-8")
    print(f"written to {PAGE}")


def page(results: Path) -> str:
    """The whole page, from the records that are there."""
    parts = [HEAD]
    for name, (title, lines) in SECTIONS.items():
        path = results / f"{name}.json"
        if path.exists():
            parts.append(section(title, json.loads(path.read_text(encoding="utf-8")), lines))
        if name in PICTURES and path.exists():
            parts.append(PICTURES[name])
    return "\n".join(parts)


def section(title: str, found: dict[str, Any], lines: Callable[[dict[str, Any]], list[Line]]) -> str:
    """One script's table, with where and when it ran."""
    versions = found["versions"]
    about = f"{found['date'][:10]}, {found['machine']}, torch {versions['torch']}"
    about += f", torchvision {versions['torchvision']}"
    rows = "\n".join(f"| {what} | {goal} | {value} |" for what, goal, value in lines(found))
    command = f"```sh\npython {found['script']}\n```"
    return f"## {title}\n\n{command}\n\n| | target | measured |\n|---|---|---|\n{rows}\n\n{about}.\n"


def class_loss(found: dict[str, Any]) -> list[Line]:
    lines = []
    for row in found["rows"]:
        what = f"{row['dtype']}, gamma {row['gamma']:g}"
        plain = row["dtype"] == "float32" and row["gamma"] == 2
        compiled, eager = row["ours"], row["chunks"]
        lines += [
            (f"{what}: torchvision over ours", "16" if plain else "", f"**{compiled['torchvision']:.1f}**"),
            (
                f"{what}: ours over a copy of the logits",
                "at most 2.2" if plain else "",
                f"{compiled['copy']:.2f}",
            ),
            (
                f"{what}: torchvision over ours, without a compiler",
                "4" if plain else "",
                f"{eager['torchvision']:.1f}",
            ),
        ]
        if "errors" in row:
            errors = row["errors"]
            lines.append(
                (
                    f"{what}: relative error of value, gradient",
                    "1e-5",
                    f"{errors['value']:.0e}, {errors['gradient']:.0e}",
                )
            )
    for dtype, parts in found.get("memory", {}).items():
        goal = "at most 1.1" if dtype == "float32" else ""
        lines.append(
            (
                f"{dtype}: memory over that of the gradient",
                goal,
                f"{parts['ours']:.2f} (torchvision {parts['torchvision']:.1f})",
            )
        )
    for how, seconds in found.get("first_call_s", {}).items():
        lines.append((f"the first call, with compiling ({how} cache)", "", f"{seconds:.1f} s"))
    return lines


def assignment(found: dict[str, Any]) -> list[Line]:
    lines = []
    for row in found["rows"]:
        boxes, goal = f"{row['boxes']} boxes an image", f"{row['target']:g}" if row["target"] else ""
        lines.append((f"{boxes}: torchvision over ours", goal, f"**{row['ratio']:.0f}**"))
        lines.append(
            (
                f"{boxes}: torchvision's memory over ours",
                "",
                f"{row['bytes']['torchvision'] / row['bytes']['ours']:.0f}",
            )
        )
    return lines


def postprocessing(found: dict[str, Any]) -> list[Line]:
    kinds = {
        "many": "batch of 8, many candidates",
        "even": "the same, equally many on all levels",
        "one": "one image, many candidates",
    }
    lines = [
        (f"{text}: torchvision over ours", "" if kind == "one" else "6", f"**{found[kind]['ratio']:.1f}**")
        for kind, text in kinds.items()
    ]
    for precision in ("fp32", "bf16"):
        share = found[f"normal_{precision}"]["share"]
        lines.append(
            (
                f"share of the network's time, R50 at {found['side']} px, {precision}",
                "at most 4 %",
                f"{share:.1%}",
            )
        )
    return lines


def training_step(found: dict[str, Any]) -> list[Line]:
    goals = {
        "torchvision fp32 over ours fp32": "1.6",
        "torchvision fp32 over ours bf16": "3.2",
        "torchvision bf16 over ours bf16": "1.4",
        "ours fp32 over bare fp32": "at most 1.15",
        "ours bf16 over bare bf16": "at most 1.15",
        "arithmetic a second: bare fp32 over a matrix product": "",
        "arithmetic a second: bare bf16 over a matrix product": "",
        "memory: ours fp32 over torchvision fp32": "at most 0.85",
        "memory: ours bf16 over torchvision bf16": "at most 0.85",
        "memory: ours bf16 over torchvision fp32": "at most 0.6",
    }
    lines = [
        (name, goal, f"**{found['ratios'][name]:.2f}**")
        for name, goal in goals.items()
        if name in found["ratios"]
    ]
    sides = {name: seconds for name, seconds in found["seconds"].items() if not name.startswith("product")}
    return lines + [
        (f"{name}, seconds a step", "", f"{median(seconds):.2f}") for name, seconds in sides.items()
    ]


def prediction(found: dict[str, Any]) -> list[Line]:
    goals = {"torchvision fp32 over ours fp32": "1.3", "torchvision fp32 over ours bf16": "2.6"}
    lines = [(name, goals.get(name, ""), f"**{value:.2f}**") for name, value in found["ratios"].items()]
    lines.append(
        ("share of torchvision's boxes that are ours in fp32", "all", f"{found['boxes']['shared']:.1%}")
    )
    for precision, parts in found["cold"].items():
        listed = ", ".join(f"{name} {spent:.1f} s" for name, spent in list(parts.items())[1:])
        listed = listed.replace("picture", "image")
        lines.append(
            (
                f"`retinanet predict` from the start, {precision}",
                "",
                f"{parts['retinanet predict']:.1f} s: {listed}",
            )
        )
    return lines


def predicting(found: dict[str, Any]) -> list[Line]:
    height, width = found["size"]
    names = {"this": "", "other": ", the commit before"}
    lines = [
        (
            f"images a second, {found['images']} JPEG files of {width} x {height}{names[side]}",
            "",
            f"{speed:.1f}",
        )
        for side, speed in found["images_per_second"].items()
    ]
    lines += [
        (f"seconds of the command{names[side]}", "", f"{median(seconds):.1f}")
        for side, seconds in found["seconds"].items()
    ]
    if "ratio" in found:
        lines.append(("images a second over those of the commit before", "1.3", f"**{found['ratio']:.2f}**"))
    return lines


def exporting(found: dict[str, Any]) -> list[Line]:
    goals = {"onnx-fp32": "1.5", "openvino-bf16": "3", "openvino-int8": "5.5"}
    lines = [
        (f"torchvision over {name}", goals.get(name, ""), f"**{value:.2f}**")
        for name, value in found["ratios"].items()
    ]
    lines += [
        (f"torchvision over its arithmetic as {name} matrix products", "", f"{value:.2f}")
        for name, value in found["limits"].items()
    ]
    exact = {name: box["shared"] for name, box in found["boxes"].items() if name.endswith("fp32")}
    return [
        *lines,
        *(
            (f"share of torchvision's boxes that are {name}'s", "all", f"{share:.1%}")
            for name, share in exact.items()
        ),
    ]


def serving(found: dict[str, Any]) -> list[Line]:
    memory, half = found["memory"], found["half_load"]
    lines = [
        (
            "images a second at saturation, the server's over the bare detector's in batches",
            "0.9",
            f"**{found['ratio']:.2f}**",
        ),
        ("the same, with decoding on both sides", "", f"{found['ratio_with_decoding']:.2f}"),
        (
            "memory in the last fifth of the time over that of the second",
            "at most 1.05",
            f"{1 + memory['growth']:.3f}",
        ),
        ("responses that differ from the bare detector's", "0", f"{found['wrong']}"),
    ]
    statuses = ", ".join(f"{count} with {status}" for status, count in sorted(found["statuses"].items()))
    lines.append(
        (
            f"responses in {found['minutes']:g} minutes at saturation and half as long at half load",
            "only 200 and 503",
            statuses,
        )
    )
    pace = f"{half['rate']:.1f} a second, {half['requests']} requests"
    return [
        *lines,
        (
            f"latency at half load ({pace}): median, p99",
            "",
            f"{half['median_ms']:.0f} ms, {half['p99_ms']:.0f} ms",
        ),
    ]


def loading(found: dict[str, Any]) -> list[Line]:
    lines = [
        (
            f"images a second of one core at {found['scale']} px, batch of {row['batch']}: ours over "
            f"torchvision's",
            "1.5",
            f"**{row['ratio']:.1f}** ({row['images_per_second_per_core']['ours']:.0f} a second)",
        )
        for row in found["loading"]
    ]
    index, workers = found["index"], found["index"]["workers"]
    what = f"index of {index['images']:,} images, {index['boxes']:,} boxes"
    lines += [
        (f"{what}: opened from its cache", "0.5 s", f"**{index['warm_s']:.2f} s**"),
        (
            f"{what}: opened the first time",
            "",
            f"{index['cold']['s']:.1f} s, peak {index['cold']['peak_MB'] / 1000:.1f} GB",
        ),
    ]
    for kind, memory in workers.items():
        private, shared = memory["private_for_the_index_MB"], memory["shared_for_the_index_MB"]
        lines.append(
            (
                f"{what}: memory of a worker ({kind})",
                "shared",
                f"{private:.1f} MB private, {shared:.0f} MB shared",
            )
        )
    return lines


def precision(found: dict[str, Any]) -> list[Line]:
    apart, answers = found["apart"], found["AP"]
    what = f"smoothed losses of {found['iterations']} steps, mean distance from fp32's"
    return [
        (f"{what}: bf16", "that of the next line", f"{apart['bf16']:.1%}"),
        (f"{what}: fp32 from weights moved by 1e-6", "", f"{apart['fp32 moved']:.1%}"),
        (
            f"AP of the same weights, {answers['fp32']:.3f} in fp32: its fall in bf16",
            "at most 0.002",
            f"**{found['drop']:.4f}**",
        ),
    ]


def growth(found: dict[str, Any]) -> list[Line]:
    lines = []
    for name, powers in found["exponents"].items():
        by = "pixels" if name == "side" else name
        for kind in ("seconds", "bytes"):
            lines.append(
                (
                    f"{kind}: exponent of the {by}",
                    "at most 1",
                    f"{powers[kind]:.2f}",
                )
            )
    return lines


def whole_run(found: dict[str, Any]) -> list[Line]:
    lines = []
    for side in ("torchvision", "ours"):
        run = found[side]
        speed = f"{run['images_per_second']:.1f} images a second, {run['steps']} steps"
        goal = "ahead" if side == "ours" else ""
        lines.append(
            (
                f"{side}: AP on {found['split']} after {found['budget_s'] / 60:g} minutes",
                goal,
                f"**{run['AP']:.3f}** ({speed})",
            )
        )
    return lines


def gpu(found: dict[str, Any]) -> list[Line]:
    lines = [
        (
            "class loss, share of the bandwidth of a copy",
            "60 %",
            f"{found['class_loss']['share of copy bandwidth']:.0%}",
        )
    ]
    parts = {"training": "training"} | {
        name: f"inference, batch of {name[10:]}" for name in found if name.startswith("answering_")
    }
    for part, text in parts.items():
        for name, value in found[part].items():
            if isinstance(value, float):
                goal = "2.5" if name.startswith("torchvision over") else ""
                lines.append((f"{text}: {name}", goal, f"{value:.3g}"))
    return lines


SECTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], list[Line]]]] = {
    "class_loss": ("The class loss", class_loss),
    "assignment": ("Which anchor matches which box", assignment),
    "postprocessing": ("From the network's output to detections", postprocessing),
    "training_step": ("A training step", training_step),
    "prediction": ("From a file on disk to boxes", prediction),
    "predicting": ("A folder of images, predicted and drawn", predicting),
    "exporting": ("Exported files", exporting),
    "serving": ("The server under load", serving),
    "loading": ("Data", loading),
    "precision": ("What bf16 costs", precision),
    "growth": ("Growth of a training step", growth),
    "train_bccd": ("A complete run on blood cells", whole_run),
    "train_dice": ("A complete run on dice", whole_run),
    "gpu": ("On a GPU", gpu),
}


if __name__ == "__main__":
    main()
