"""What the files of a data set say, read a second time, strictly and without the product. Used by fuzz.py."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote
from xml.etree import ElementTree

import yaml
from PIL import Image

if TYPE_CHECKING:
    from retinanet.data.dataset import Dataset

Row = tuple[str, str, float, float, float, float]
"""picture, class, xyxy"""
Truth = tuple[list[str], list[Row]]
"""All pictures, and all boxes."""


class Wrong(Exception):
    """A result that is not what the files say."""


def require(condition: Any, what: str) -> None:
    """An assert that says what is wrong."""
    if not condition:
        raise Wrong(what)


def is_text(message: str) -> bool:
    """Whether it can be printed."""
    try:
        message.encode()
    except UnicodeEncodeError:
        return False
    return True


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which no key may stand twice."""
    require(len(dict(pairs)) == len(pairs), f"keys twice: {pairs}")
    return dict(pairs)


def whole(value: Any) -> int:
    """An id; True and "7" are none."""
    require(type(value) is int or (type(value) is float and value.is_integer()), f"{value!r} is no id")
    return int(value)


def plain_id(value: Any) -> int | str:
    """An id of a COCO file: a number however it is written, or another text."""
    require(type(value) in (int, float, str), f"{value!r} is no id")
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+(\.0*)?", value.strip()):
        value = float(value) if len(value) < 15 else int(value.partition(".")[0])
    if isinstance(value, str):
        require(value.strip() and is_text(value), f"{value!r} is no id")
        return value.strip()
    return whole(value)


def coco_file(place: Path) -> Path:
    """The only COCO file below a folder, which is not hidden and has its lists."""
    if place.is_file():
        return place
    files = [file for file in place.rglob("*.json") if file.name not in ("notes.json", "stats.json")]
    (file,) = [file for file in files if not file.name.startswith(".")]
    return file


def coco_truth(place: Path) -> Truth:
    """A COCO file, or the only one below a folder."""
    file = coco_file(place)
    content = json.loads(file.read_bytes(), object_pairs_hook=unique)
    names = {plain_id(one["id"]): " ".join(nfc(one["name"]).split()) for one in content["categories"]}
    listed = {plain_id(entry["id"]): listed_name(entry) for entry in content["images"]}
    require(len(names) == len(content["categories"]) and len(listed) == len(content["images"]), "ids twice")
    top = file.parents[1 if "annotations" in file.parts else 0]
    there = [path for path in top.rglob("*.*") if path.suffix.lower() in (".png", ".jpg", ".bmp")]
    there = [path for path in there if not any(part[0] == "." for part in path.relative_to(top).parts)]
    pictures = {number: meant(name, there) for number, name in listed.items()}
    rows: list[Row] = []
    for entry in content["annotations"]:
        x, y, w, h = map(number_of, entry.get("bbox") or around(entry["segmentation"]))
        require(
            entry.get("iscrowd") in (None, False, "") or plain_id(int(entry["iscrowd"])) in (0, 1), f"{entry}"
        )
        require(entry.get("area") is None or number_of(entry["area"]) >= 0, f"{entry}")
        picture, name = pictures[plain_id(entry["image_id"])], names[plain_id(entry["category_id"])]
        rows.append((picture, name, x, y, x + w, y + h))
    return list(pictures.values()), rows


def nfc(text: str) -> str:
    """The composed Unicode form."""
    return unicodedata.normalize("NFC", text)


def listed_name(entry: dict[str, Any]) -> str:
    """The file name of an image, or the end of its address."""
    name = entry.get("file_name")
    require(name is None or type(name) in (str, int), f"{name!r} is no name")
    return str(name) if name else unquote(entry["coco_url"].partition("?")[0].rpartition("/")[2])


def number_of(value: Any) -> float:
    """A number, also as a text."""
    require(type(value) in (int, float, str) and "_" not in str(value), f"{value!r} is no number")
    return float(value)


def around(polygons: list[list[float]]) -> list[float]:
    """x, y, width, height around polygons."""
    xs, ys = [[value for one in polygons for value in one[start::2]] for start in (0, 1)]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def meant(name: str, there: list[Path]) -> str:
    """The path that a name ends with, in any form; exactly if several do."""
    tidied = os.path.normpath(name.replace("\\", "/"))
    for form in (str, lambda text: folded(unquote(text))):
        ends = [form("/" + part) for part in (tidied, os.path.basename(tidied))]
        for end in ends:
            found = [path for path in there if form(str(path)).endswith(end)]
            if len(found) == 1:
                return str(found[0])
    raise Wrong(f"{name} means none of {there}")


def coco_account(place: Path, splits: dict[str, Dataset]) -> None:
    """Every entry of the annotations is a row, or a problem speaks of it or of its image."""
    content = json.loads(coco_file(place).read_bytes())
    told = 0
    for problem in (problem for data in splits.values() for problem in data.problems):
        lost = re.search(r", with (\d+) box", problem.detail)
        told += int(lost[1]) if lost else problem.kind.startswith(("annotations", "boxes", "areas"))
    rows = sum(len(data.labels) for data in splits.values())
    require(rows + told == len(content["annotations"]), f"{rows} rows and {told} problems of {content}")


def plain(path: str) -> str:
    """The stem of a path in one Unicode form and case."""
    name = path.strip().replace("\\", "/").rpartition("/")[2]
    stem = re.sub(r"\.(xml|png|jpg|bmp)$", "", name, flags=re.IGNORECASE)
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold())


def voc_truth(place: Path) -> Truth:
    """The XML files of a VOC folder, or of its list. Their stems differ by more than form."""
    rows: list[Row] = []
    pictures = []
    seen = voc_files(place)
    images = [path for path in seen if path.suffix in (".png", ".jpg", ".bmp")]
    xmls = {plain(path.name): path for path in seen if path.suffix.lower() == ".xml"}
    require(len(xmls) == sum(path.suffix.lower() == ".xml" for path in seen), "two XML files of one name")
    stems = list(xmls)
    for listing in (place / "ImageSets" / "Main").glob("*.txt"):
        stems = listed_stems(listing.read_bytes(), xmls)
    require(len(set(stems)) == len(stems), "stems twice")
    for stem in stems:
        tree = voc_root(xmls[stem].read_bytes().lstrip())
        near = [path for path in images if plain(path.name) == stem]
        near = near or [path for path in images if path.name == tree.findtext("filename")]
        (picture,) = near
        pictures.append(str(picture))
        for entry in tree.findall("object"):
            (name,), (box,) = entry.findall("name"), entry.findall("bndbox")
            corners = [
                [one.text or "" for one in box.findall(key)] for key in ("xmin", "ymin", "xmax", "ymax")
            ]
            require(all(len(texts) == 1 and "_" not in texts[0] for texts in corners), f"{corners}")
            x1, y1, x2, y2 = (float(text) for (text,) in corners)
            (x1, x2), (y1, y2) = sorted((x1, x2)), sorted((y1, y2))
            text = unicodedata.normalize("NFC", " ".join((name.text or "").split()))
            rows.append((str(picture), text, x1, y1, x2, y2))
    return pictures, rows


def voc_files(place: Path) -> list[Path]:
    """All files that are not hidden."""
    below = [path for path in place.rglob("*.*") if path.is_file()]
    return [path for path in below if not any(part[0] == "." for part in path.relative_to(place).parts)]


def voc_account(place: Path, splits: dict[str, Dataset]) -> None:
    """Every object of every XML file is a row of its image or is told, or its file is."""
    problems = [problem for data in splits.values() for problem in data.problems]
    if any("in no split" in note for data in splits.values() for note in data.notes):
        return
    rows, written = Counter[str](), Counter[str]()
    for data in splits.values():
        for index, file in enumerate(data.files.tolist()):
            rows[plain(file)] += int(data.first[index + 1] - data.first[index])
    for path in voc_files(place):
        name = path.relative_to(place).as_posix()
        about = [one for one in problems if one.detail.startswith(f"{name}:") or one.detail == name]
        if path.suffix.lower() != ".xml" or any(one.kind.startswith("XML files") for one in about):
            continue
        tree = voc_root(path.read_bytes().lstrip())
        stems = [plain(name), plain(plain(name)), plain(tree.findtext("filename") or "")]
        stem = next((stem for stem in stems if stem in rows), None)
        require(stem is not None, f"nobody speaks of {name}")
        written[stem] += len(tree.findall("object")) - len(about)
    require(rows == written, f"{rows} are not {written}")


def voc_root(content: bytes) -> ElementTree.Element:
    """The outermost element. In a file that is not UTF-8 all class names are ASCII."""
    try:
        return ElementTree.fromstring(content)
    except ElementTree.ParseError:
        tree = ElementTree.fromstring(content.decode("latin-1"))
        require(all((name.text or "").isascii() for name in tree.iter("name")), "class names in no encoding")
        return tree


def listed_stems(content: bytes, known: dict[str, Any]) -> list[str]:
    """The stems in a list of XML files, in the first encoding in which all of them are known."""
    for encoding in ("utf-8-sig", "utf-16", "latin-1"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        lines = [line.strip() for line in text.splitlines() if line.strip() and line.strip()[0] != "#"]
        short = [re.sub(r"\s+(-1|0|1)$", "", line) for line in lines]
        stems = [
            plain(line if plain(line) in known else less) for line, less in zip(lines, short, strict=True)
        ]
        if set(stems) <= known.keys() or encoding == "utf-8-sig":
            return stems
    raise Wrong("a list in no encoding")


def folded(name: str) -> str:
    """A name without its Unicode form and case."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def yolo_files(place: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """The pictures, the label files and the lists of class names of a YOLO folder."""
    files = [file for file in sorted(place.rglob("*")) if file.is_file()]
    names = [file for file in files if file.name == "classes.txt" or file.suffix == ".names"]
    texts = [file for file in files if file.suffix.lower() == ".txt" and file.name != "train.txt"]
    pictures = [file for file in files if file.suffix in (".png", ".jpg", ".bmp")]
    labels = [file for file in texts if file not in names]
    return pictures, labels, [file for file in names if file.stat().st_size]


def yolo_key(file: Path, place: Path) -> str:
    """What a picture and its label file have in common."""
    parts = folded(str(file.relative_to(place).with_suffix(""))).split("/")
    return "/".join(part for part in parts if part not in ("images", "labels"))


def yolo_line(line: str, names: list[str]) -> tuple[str, list[float]]:
    """Class and xyxy in fractions of a line of a label file."""
    words = line.split()
    if "," in line:
        words = line.split(",") if "." in line else line.replace(",", ".").split()
    try:
        first = float(words[0])
    except ValueError:
        first = [folded(name) for name in names].index(folded(words[0].strip()))
    require("_" not in "".join(words[1:]) and float(first).is_integer() and 0 <= first < len(names), line)
    values = [float(word) for word in words[1:]]
    if len(values) % 2 and len(values) > 4 and 0 <= values[-1] <= 1:  # a confidence
        values.pop()
    require(len(values) >= 4 and len(values) % 2 == 0, line)
    if len(values) == 4:
        x, y, w, h = values
        values = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    xs, ys = values[0::2], values[1::2]
    return names[int(first)], [min(xs), min(ys), max(xs), max(ys)]


def yolo_listed(place: Path, pictures: list[Path]) -> list[Path]:
    """The pictures that train.txt names: of each line that whose path it ends with, in any encoding."""
    content = (place / "train.txt").read_bytes()
    ends = {folded(picture.relative_to(place).as_posix()): picture for picture in pictures}
    readings = []
    for encoding in ("utf-8-sig", "utf-16", "gbk", "latin-1"):
        with contextlib.suppress(ValueError):
            lines = [line.strip() for line in content.decode(encoding).splitlines()]
            lines = [unquote(line.replace("\\", "/")) for line in lines if line and line[0] != "#"]
            lines = ["/" + folded(os.path.normpath(line)) for line in lines]
            found = [[ends[end] for end in ends if line.endswith(f"/{end}")] for line in lines]
            readings.append([max(some, key=lambda one: len(str(one)), default=None) for some in found])
    best = max(readings, key=lambda one: len(one) - one.count(None))
    require(None not in best, f"{content!r} names what is not there")
    return sorted(set(best))


def yolo_truth(place: Path) -> Truth:
    """The label files of a YOLO folder: of the pictures in train.txt if there is one, else of all."""
    pictures, labels, lists = yolo_files(place)
    names: list[str] = [str(number) for number in range(10)]
    file = place / "data.yaml"
    if file.exists():
        content = yaml.load(file.read_bytes(), yaml.BaseLoader)
        names = content["names"] if isinstance(content["names"], list) else list(content["names"].values())
    elif lists:
        names = [line for line in lists[0].read_text("utf-8-sig").splitlines() if line.strip()]
    names = [" ".join(unicodedata.normalize("NFC", name).split()) for name in names]
    by_key = {yolo_key(label, place): label for label in labels}
    rows: list[Row] = []
    pictures = yolo_listed(place, pictures) if (place / "train.txt").exists() else pictures
    for picture in pictures:
        label = by_key.get(yolo_key(picture, place))
        with Image.open(picture) as image:
            width, height = image.size
        for line in (label.read_text("utf-8-sig") if label else "").splitlines():
            if line.strip():
                name, (x1, y1, x2, y2) = yolo_line(line, names)
                rows.append((str(picture), name, x1 * width, y1 * height, x2 * width, y2 * height))
    return [str(picture) for picture in pictures], rows


def yolo_account(place: Path, splits: dict[str, Dataset]) -> None:
    """Every line of every label file is a row or is told: with its number, or with its file or picture."""
    pictures, labels, _ = yolo_files(place)
    problems = [problem for data in splits.values() for problem in data.problems]
    rows = {
        str(data.path(index)): data.first[index + 1] - data.first[index]
        for data in splits.values()
        for index in range(len(data))
    }
    by_key = {yolo_key(picture, place): picture for picture in pictures}
    for label in labels:
        about = [one for one in problems if f"{label.relative_to(place).as_posix()}" in one.detail]
        if any(" files " in one.kind for one in about):
            continue
        picture = by_key.get(yolo_key(label, place))
        require(picture, f"nobody speaks of {label}, which has no picture")
        if str(picture) in rows:
            written = sum(bool(line.strip()) for line in label.read_text("utf-8-sig").splitlines())
            require(rows[str(picture)] + len(about) == written, f"{label}: lines that became nothing")
        else:
            told = [note for data in splits.values() for note in data.notes if "in no split" in note]
            told += [one.detail for one in problems if picture.name in one.detail]
            require(told, f"nobody speaks of {picture}")


def result_truth(entry: dict[str, Any], data: Dataset) -> tuple[int, int, list[float], float]:
    """Image id, category id, xyxy and score of an entry of a COCO results file. An id may be a name."""
    require(isinstance(entry["bbox"], list), f"{entry}")
    x, y, w, h, score = numbers = [number(value) for value in [*entry["bbox"], entry["score"]]]
    require(all(map(math.isfinite, numbers)) and min(w, h) >= 0 and -1e-4 <= score <= 1 + 1e-4, f"{entry}")
    files = {Path(str(file)).stem: int(one) for file, one in zip(data.files, data.image_ids, strict=True)}
    classes = {folded(name): one for name, one in zip(data.names, data.category_ids, strict=True)}
    image, category = (
        known[key] if isinstance(given, str) and (key := form(given)) in known else whole(number(given))
        for given, known, form in (
            (entry["image_id"], files, lambda text: Path(text).stem),
            (entry["category_id"], classes, lambda text: folded(" ".join(text.split()))),
        )
    )
    return image, category, [float(x), float(y), float(x + w), float(y + h)], score


def number(value: Any) -> Any:
    """A number, also where it is written as text in digits; True is none."""
    if isinstance(value, str):
        require(set(value.strip()) <= set("0123456789.+-eE"), f"{value!r} is no number")
        value = float(value) if set(value) & set(".eE") else int(value)
    require(type(value) in (int, float), f"{value!r} is no number")
    return value
