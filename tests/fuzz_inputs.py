"""Small data sets, images and files of weights, whole or damaged, made at random. Used by fuzz.py."""

from __future__ import annotations

import copy
import json
import random
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

NAMES = ("cat", "dög", "no", "1e3", "traffic light")
DEEP, DIGITS = "@deep@", "@digits@"
HOSTILE_NAMES = ["../a.png", "/etc/passwd", "..", ".", "", " ", "a\0.png", "\ud800.png", "x/../../a.png"]
HOSTILE_NAMES += ["..\\a.png", "C:\\a.png", "a" * 300, "x/" * 600, "images", "a.png/", "a.png/b.png"]
HOSTILE_NAMES += ["\N{RIGHT-TO-LEFT OVERRIDE}gnp.a", "~/a.png", "con", "a\n.png", "\ufeffa.png"]
STRANGE: list[Any] = [None, True, False, 0, 1, -1, 2, 0.5, -0.0, 7.0, 1e9, 1e300, -1e308, 2**31, 2**53 + 1]
STRANGE += [2**63, -(2**63), 2**70, 10**400, float("nan"), float("inf"), float("-inf"), "", "1", "nan", "x"]
STRANGE += ["\0", "\ud800", "\u202e", [], {}, [[]], [1], ["1"], {"a": 1}, [1, 2, 3, 4], [0, 0, 0, 0]]
STRANGE += [[1e308, 1, 1e308, 1], [True, True, True, True], [5, 5, -2, -2], "1234"]
STRANGE += [{"0": 1, "1": 2, "2": 3, "3": 4}, [1, 2, 3, 10**400], [0, 0, 1e-320, 1e-320], [1, 1, 2, 2, 2]]
STRANGE += [[[1, 1, 2, 2]], DEEP, DIGITS, [DEEP], *HOSTILE_NAMES]


def bytes_damaged(data: bytes, rng: random.Random) -> bytes:
    """Truncated, flipped, with bytes put in, taken out or moved; or empty."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        if not content:
            break
        at = rng.randrange(min(len(content), rng.choice((16, 64, 1 << 30))))
        kind = rng.choice(("flip", "flip", "flip", "byte", "insert", "remove", "cut", "move", "empty"))
        if kind == "flip":
            content[at] ^= 1 << rng.randrange(8)
        elif kind == "byte":
            content[at] = rng.choice((0, 1, 127, 128, 254, 255))
        elif kind == "insert":
            content[at:at] = rng.choice(
                (
                    b"\0",
                    b"\xff",
                    b"\xef\xbb\xbf",
                    b"\r\n",
                    b"_",
                    rng.randbytes(rng.randrange(1, 9)),
                    content[:at][-64:],
                )
            )
        elif kind == "remove":
            del content[at : at + rng.choice((1, 4, 100))]
        elif kind == "cut":
            del content[at:]
        elif kind == "move":
            other = rng.randrange(len(content))
            content[at : at + 4], content[other : other + 4] = (
                content[other : other + 4],
                content[at : at + 4],
            )
        elif rng.random() < 0.1:
            content.clear()
    return bytes(content)


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside a JSON value."""
    found: list[tuple[Any, Any]] = []
    keys = range(len(value)) if isinstance(value, list) else list(value) if isinstance(value, dict) else []
    for key in keys:
        found += [(value, key), *places(value[key])]
    return found


def value_damaged(value: Any, rng: random.Random) -> Any:
    """A JSON value with one to three of its parts changed, taken out or doubled."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        found = places(value)
        if not found:
            return rng.choice(STRANGE)
        container, key = rng.choice(found)
        old = container[key]
        near: list[Any] = [str(old), [old], {"x": old}, old, bool(old)]
        if isinstance(old, (int, float)):
            near += [-old, old + 1, old - 1, float(min(old, 1e300)) + 0.5, float(min(old, 1e300))]
        kind = rng.choice(("strange", "strange", "near", "near", "remove", "double", "rename"))
        if kind == "remove":
            del container[key]
        elif kind == "double" and isinstance(container, list):
            container.insert(rng.randrange(len(container) + 1), copy.deepcopy(old))
        elif kind == "rename" and isinstance(container, dict):
            container[rng.choice(("x", "", "Id", "\ud800", "a\0"))] = container.pop(key)
        else:
            container[key] = copy.deepcopy(rng.choice(STRANGE if kind == "strange" else near))
    return value


def json_bytes(value: Any, rng: random.Random, odd: bool) -> bytes:
    """JSON as a file; an odd one: strange encoding, a key twice, very deep, long numbers, damaged bytes."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, 1)))
    depth = rng.choice((10, 900, 930, 960, 990, 5000, 100_000)) if odd else 0
    text = text.replace(f'"{DEEP}"', "[" * depth + "]" * depth).replace(
        f'"{DIGITS}"', "9" * rng.choice((400, 5000))
    )
    if odd and rng.random() < 0.1:
        key = rng.choice(("images", "annotations", "id", "bbox", "name"))
        text = text.replace(f'"{key}":', f'"{key}": [], "{key}":', rng.choice((1, -1)))
    if rng.random() < 0.1:
        text = text.replace("\n", "\r\n")
    encoding = (
        rng.choice(("utf-8-sig", "utf-16", "utf-32", "latin-1") if odd else ("utf-8-sig",))
        if rng.random() < 0.1
        else "utf-8"
    )
    data = text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")
    return bytes_damaged(data, rng) if odd and rng.random() < 0.3 else data


def small_picture(path: Path, rng: random.Random) -> tuple[int, int]:
    """Any picture of a few pixels; (width, height)."""
    size = rng.choice(((40, 30), (30, 40), (64, 64), (100, 50)))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (rng.randrange(256), 40, 90)).save(path)
    return size


def random_box(size: tuple[int, int], rng: random.Random) -> tuple[float, float, float, float]:
    """xyxy inside a picture of this width and height, different for each call."""
    (x1, x2), (y1, y2) = (sorted(round(rng.uniform(0, side), 3) for _ in range(2)) for side in size)
    return (
        min(x1, size[0] - 2),
        min(y1, size[1] - 2),
        max(x2, min(x1, size[0] - 2) + 1),
        max(y2, min(y1, size[1] - 2) + 1),
    )


def picture_names(rng: random.Random) -> list[str]:
    """A few names of pictures."""
    known = ["a.png", "b.jpg", "ü c.png", "d.bmp", "sub/e.png"]
    return rng.sample(known, rng.randrange(1, 4))


def write_coco(root: Path, rng: random.Random, odd: bool) -> Path:
    """train.json beside its pictures or in annotations/; returns the file."""
    place, pictures = rng.choice(
        (
            ("train.json", "."),
            ("annotations/train.json", "train"),
            ("annotations/instances_train2017.json", "images"),
        )
    )
    images, annotations = [], []
    for number, name in enumerate(picture_names(rng), start=rng.choice((0, 1, 100))):
        width, height = small_picture(root / pictures / name, rng)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for _ in range(rng.randrange(1, 4)):
            x1, y1, x2, y2 = random_box((width, height), rng)
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": rng.choice((3, 18))}
            entry |= {"bbox": [x1, y1, x2 - x1, y2 - y1]}
            crowd = {"iscrowd": bool(annotations)}  # crowds alone are nothing to learn
            annotations.append(entry | rng.choice(({}, {"iscrowd": 0, "area": 12.5}, crowd)))
    categories = [{"id": 3, "name": rng.choice(NAMES[:2])}, {"id": 18, "name": rng.choice(NAMES[2:])}]
    content: Any = {"images": images, "annotations": annotations, "categories": categories}
    if rng.random() < 0.5:
        written_otherwise(content, rng)
    if odd and rng.random() < 0.8:
        content = value_damaged(content, rng)
    file = root / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(json_bytes(content, rng, odd))
    if rng.random() < 0.2:
        (root / "notes.json").write_text('{"categories": ["a"], "images": 3}')
        (file.parent / f"._{file.name}").write_bytes(b"\0\5\x16\7")
        small_picture(root / pictures / ".trash" / "a.png", rng)
    return file


def written_otherwise(content: dict[str, Any], rng: random.Random) -> None:
    """What tools write that is not as the format says, and means the same."""
    images, boxes = content["images"], content["annotations"]
    ids = rng.choice(("same", "zero", "none", "text"))
    as_text = rng.choice((str, "{:.1f}".format, "{:03d}".format))
    for entry in boxes:
        if ids == "none":
            del entry["id"]
        elif ids != "same":
            entry["id"] = 0 if ids == "zero" else f"a{entry['id']}"
    kind = rng.choice(("image id", "category id", "box", "polygon", "form", "folder", "address", "stem"))
    if kind == "image id":
        for entry in boxes:
            entry["image_id"] = as_text(entry["image_id"])
    elif kind == "category id":
        for entry in content["categories"]:
            entry["id"], entry["name"] = str(entry["id"]), f" {entry['name']}"
    elif kind == "box":
        for entry in boxes:
            entry["bbox"] = list(map(str, entry["bbox"]))
    elif kind == "polygon":
        for entry in boxes:
            x, y, w, h = entry.pop("bbox")
            entry["segmentation"] = [[x, y, x + w, y, x + w, y + h], [x, y + h, x, y, x + w, y + h]]
    elif kind == "stem":
        for entry in [*images, *boxes]:
            key = "image_id" if "image_id" in entry else "id"
            entry[key] = f"image {entry[key]}"
    for entry in images:
        name = entry["file_name"]
        if kind == "form":
            change = rng.choice((str.upper, quote, lambda text: unicodedata.normalize("NFD", text)))
            entry["file_name"] = change(name)
        elif kind == "folder":
            entry["file_name"] = rng.choice(("/content/data/", "../up/", "D:\\data\\", "train/")) + name
        elif kind == "address" and "/" not in name:
            entry["coco_url"] = "http://localhost/x/" + quote(entry.pop("file_name").rpartition("/")[2])


WORDS = ["nan", "inf", "-1", "1e9", "1e999", "1_0", "0x10", "१", "", " ", "x", "9" * 400, "1,5", "\u202e"]
WORDS += ["1 2", "true", "2"]


def text_damaged(text: str, rng: random.Random) -> str:
    """A text with words changed, lines lost, doubled or joined."""
    lines = text.split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        kind = rng.choice(("word", "word", "word", "lose", "double", "join", "tabs"))
        words = lines[at].replace(">", "> ").replace("<", " <").split(" ")
        if kind == "word":
            words[rng.randrange(len(words))] = rng.choice(WORDS)
            lines[at] = " ".join(words)
        elif kind == "lose" and len(lines) > 1:
            del lines[at]
        elif kind == "double":
            lines.insert(at, lines[at])
        elif kind == "join":
            lines[at : at + 2] = [" ".join(lines[at : at + 2])]
        elif kind == "tabs":
            lines[at] = "\t" + lines[at].replace(" ", "\t")
    return "\n".join(lines)


def text_bytes(text: str, rng: random.Random, odd: bool) -> bytes:
    """A text as a file, in the encodings and with the line ends that editors give it."""
    text = text.replace("\n", "\r\n") if rng.random() < 0.2 else text
    encoding = (
        rng.choice(("utf-8-sig", "utf-16", "latin-1") if odd else ("utf-8-sig",))
        if rng.random() < 0.1
        else "utf-8"
    )
    data = text.encode(encoding, "replace")
    return bytes_damaged(data, rng) if odd and rng.random() < 0.3 else data


DOCTYPES = [
    '<!DOCTYPE a [<!ENTITY e "boom">]>',
    '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>',
    '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY e '
    '"&b;&b;&b;&b;&b;&b;&b;&b;">]>',
    '<?xml version="1.0" encoding="bogus"?>',
    '<?xml version="1.0" encoding="utf-7"?>',
    '<?xml version="1.0" encoding="rot13"?>',
    '<?xml version="1.0" encoding="utf-16"?>',
    '<?xml version="9.9"?>',
    "<a>" * 50_000,
]


VOC_FOLDERS = [
    ("Annotations", "JPEGImages"),
    ("annotations", "images"),
    ("train/annotations", "train/images"),
]
VOC_FOLDERS += [("train", "train"), (".", "."), ("images", "images"), (".", "images"), ("labels", "photos")]
PART = (
    "<part><name>ear</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>3</ymax></bndbox></part>"
)


def write_voc(root: Path, rng: random.Random, odd: bool) -> Path:
    """XML files and images in the folders and under the names that tools and systems give them, with a list
    or without; returns the folder."""
    xmls, pictures = rng.choice(VOC_FOLDERS)
    lines, chosen = [], picture_names(rng)
    damaged = rng.choice(chosen) if odd else ""
    for name in chosen:
        size = small_picture(root / pictures / name, rng)
        text = voc_text(Path(name).name, size, rng)
        if name == damaged and rng.random() < 0.7:
            text = text_damaged(text, rng)
        if name == damaged and rng.random() < 0.2:
            text = rng.choice(DOCTYPES) + text.replace("cat", "&e;")
        stem = Path(name).with_suffix("").as_posix()
        stem = rng.choice((stem, stem, Path(stem).name))  # in the folder of the image, or in none
        lines.append(list_line(stem, f"{pictures}/{name}", rng))
        stem = rng.choice((stem, stem, unicodedata.normalize("NFD", stem), stem.upper()))
        file = root / xmls / f"{stem}{rng.choice(('.xml', '.xml', '.XML'))}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text_bytes(text, rng, name == damaged))
        if rng.random() < 0.2:
            (file.parent / f"._{file.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    if rng.random() < 0.2:
        small_picture(
            root / pictures / rng.choice(("._a.png", ".ipynb_checkpoints/a.png", "unlabelled.png")), rng
        )
    if odd and rng.random() < 0.2:  # of no image, or of one that has an XML file
        name = rng.choice(("lost", f"img_{stem}", f"{stem}_copy", stem.title(), Path(chosen[0]).name))
        file = root / xmls / f"{Path(name).name}.xml"
        near = [other for other in root.rglob("*.[xX]*") if other.name.lower() == file.name.lower()]
        if all(other.parent == file.parent and other != file for other in near):
            file.write_text(voc_text(rng.choice(("", "lost.png", chosen[0])), (30, 30), rng))
    if rng.random() < 0.4:
        (root / "ImageSets" / "Main").mkdir(parents=True)
        text = rng.choice(("", "# images\n")) + "\n".join(lines)
        listing = text_bytes(
            text_damaged(text, rng) if odd and rng.random() < 0.3 else text, rng, odd and rng.random() < 0.1
        )
        (root / "ImageSets" / "Main" / rng.choice(("train.txt", "default.txt"))).write_bytes(listing)
    return root


def voc_text(filename: str, size: tuple[int, int], rng: random.Random) -> str:
    """An XML file with a few objects: also with reversed corners, parts, and without the size."""
    width, height = rng.choice((size, size, (0, 0)))
    lines = ["<annotation>", f"<filename>{filename}</filename>"]
    lines.append(f"<size><width>{width}</width><height>{height}</height></size>")
    for _ in range(rng.randrange(1, 4)):
        x1, y1, x2, y2 = random_box(size, rng)
        corners = rng.choice(((x1, y1, x2, y2), (x1, y1, x2, y2), (x2, y1, x1, y2), (x2, y2, x1, y1)))
        pairs = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        box = "".join(f"<{key}>{value}</{key}>" for key, value in pairs)
        difficult, part = rng.choice(("0", "1", "", "Unspecified")), rng.choice(("", "", PART))
        lines.append(
            f"<object>{part}<name>{rng.choice(NAMES)}</name><difficult>{difficult}</difficult>"
            f"<bndbox>{box}</bndbox></object>"
        )
    return "\n".join([*lines, "</annotation>"])


def list_line(stem: str, picture: str, rng: random.Random) -> str:
    """An entry of a list: mostly just a stem."""
    ways = (stem, f"{stem} 1", f"{Path(stem).name}.jpg", picture, f"/data/set/{picture}")
    return rng.choice((stem, stem, *ways, picture.replace("/", "\\")))


YAML = [
    "a: &a [x]\n"
    + "".join(f"{two}: &{two} [{', '.join([f'*{one}'] * 9)}]\n" for one, two in pairwise("abcdefghi"))
    + "{} : *i"
]
YAML += ["train: &x [*x]", "path: !!python/object/apply:os.system [true]", 'train: "\\UFFFFFFFF"']
YAML += ['names: ["\\ud800", "a\\0b"]', "names: {0: cat, 0: dog, 1: no}", "train: " + "[" * 3000]
YAML += ["nc: {a: [1]}", "train: [../../.., /nowhere]", "path: " + "a" * 5000, "? [a, b]\n: c"]
YAML += ["<<: {train: images/train}", "%YAML 9.9\n---", "val: 2020-01-01"]
YAML += ["train: [images/train, [images/train]]", "names: {0: cat, 1: {2: dog}}"]


YOLO_FOLDERS = (
    ("images/train", "labels/train"),
    ("images/train", "labels/train"),
    ("train/images", "train/labels"),
    ("Images/train", "Labels/train"),
    ("train", "train"),
    ("images/train", "images/train"),
)


def yolo_label(text: str, rng: random.Random) -> str:
    """A label file as other tools write it, with the same meaning."""
    kind = rng.choice(("plain",) * 6 + ("confidence", "comma", "csv", "names", "float", "tabs"))
    lines = text.splitlines()
    if kind == "confidence":
        lines = [f"{line} {rng.random():.3f}" for line in lines]
    elif kind == "comma":
        lines = [line.replace(".", ",") for line in lines]
    elif kind == "csv":
        lines = [line.replace(" ", rng.choice((",", ", "))) for line in lines]
    elif kind == "names":
        lines = [NAMES[int(line[0])] + line[1:] for line in lines]
    elif kind == "float":
        lines = [f"{line[0]}.0{line[1:]}" for line in lines]
    elif kind == "tabs":
        lines = [line.replace(" ", "\t") for line in lines]
    return "\n".join(lines) + "\n"


def yolo_list(listed: list[str], rng: random.Random) -> bytes:
    """A list of pictures as other machines write it, with the same meaning."""
    kind = rng.choice(("plain",) * 3 + ("data", "windows", "content", "percent", "mac", "upper", "comments"))
    starts = {"data": "data/", "content": "/content/set/", "windows": "C:\\set\\"}
    lines = [starts.get(kind, "") + name for name in listed]
    if kind == "windows":
        lines = [line.replace("/", "\\") for line in lines]
    elif kind == "percent":
        lines = [quote(line) for line in lines]
    elif kind == "mac":
        lines = [unicodedata.normalize("NFD", line) for line in lines]
    elif kind == "upper":
        lines = [line.upper() for line in lines]
    elif kind == "comments":
        lines = ["# pictures", "", *lines, lines[0]]
    encoding = rng.choice(("utf-8",) * 5 + ("utf-8-sig", "gbk", "latin-1"))
    text = rng.choice(("\n", "\n", "\r\n")).join(lines)
    try:
        return text.encode(encoding)
    except UnicodeEncodeError:
        return text.encode()


def write_yolo(root: Path, rng: random.Random, odd: bool) -> Path:
    """Pictures and label files in the folders of some tool, described by a data.yaml, a list, an obj.data or
    nothing; returns the folder."""
    where = rng.choice(("images", "label", "label", "yaml", "list", "orphan", "orphan")) if odd else ""
    names, listed = NAMES[:3], []
    image_folder, label_folder = rng.choice(YOLO_FOLDERS)
    kind = (
        rng.choice(("list", "dark"))
        if where == "list"
        else rng.choice(("yaml", "yaml", "list", "dark", "none"))
    )
    for name in picture_names(rng):
        small_picture(root / image_folder / name, rng)
        listed.append(f"{image_folder}/{name}")
        lines = []
        for _ in range(rng.randrange(1, 4)):
            x1, y1, x2, y2 = random_box((1000, 1000), rng)
            box, polygon = (
                ((x1 + x2) / 2e3, (y1 + y2) / 2e3, (x2 - x1) / 1e3, (y2 - y1) / 1e3),
                (x1 / 1e3, y1 / 1e3, x2 / 1e3, y1 / 1e3, x2 / 1e3, y2 / 1e3),
            )
            values = rng.choice((box, box, polygon))
            lines.append(" ".join([str(rng.randrange(3)), *(f"{value:.6f}" for value in values)]))
        text = "\n".join(lines) + "\n"
        text = yolo_label(text, rng) if kind != "none" else text
        label = (root / label_folder / name).with_suffix(rng.choice((".txt",) * 5 + (".TXT",)))
        label = label.with_name(
            rng.choice((label.name, label.name, unicodedata.normalize("NFD", label.name)))
        )
        if where == "orphan" and rng.random() < 0.5:
            label = rng.choice(
                (
                    label.with_name(f"{Path(name).name}.txt"),
                    label.with_name(f"img_{label.name}"),
                    label.parent.parent / label.name,
                    label.parent / "more" / label.name,
                )
            )
        label.parent.mkdir(parents=True, exist_ok=True)
        if where == "orphan" and rng.random() < 0.2:
            continue
        damaged = text_damaged(text, rng) if where == "label" and rng.random() < 0.8 else text
        label.write_bytes(text_bytes(damaged, rng, where == "label"))
    if where == "images":
        (root / image_folder / rng.choice(("x.png", "y.jpg"))).write_bytes(
            bytes_damaged(b"\x89PNG\r\n\x1a\nIHDR", rng)
        )
    if kind in ("list", "dark"):
        content = yolo_list(listed, rng)
        if where == "list":
            text = "\n".join(listed + [rng.choice(HOSTILE_NAMES) for _ in range(2)])
            content = text.encode("utf-8", "surrogatepass")
        (root / "train.txt").write_bytes(content)
    if kind == "dark":
        start = rng.choice(("", "data/", "/content/x/"))
        (root / "obj.data").write_text(f"classes = 3\ntrain = {start}train.txt\nnames = {start}obj.names\n")
        (root / "obj.names").write_text("\n".join(names), encoding="utf-8")
    if kind == "none" and rng.random() < 0.5:
        text = "\n".join(names)
        file = root / rng.choice(("classes.txt", f"{label_folder}/classes.txt", "obj.names"))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(
            text_bytes(text_damaged(text, rng) if odd and rng.random() < 0.5 else text, rng, odd)
        )
    if kind in ("yaml", "list"):
        start = rng.choice(("", "", "", "/content/x/", "../", "C:\\x\\"))
        path = rng.choice((".", ".", "../datasets/x", "/content/x"))
        place = "train.txt" if kind == "list" else image_folder
        text = f"path: {path}\ntrain: {start}{place}\nnc: 3\nnames: [{', '.join(names)}]\n"
        if where == "yaml":
            text = text_damaged(text, rng) if rng.random() < 0.4 else text
            text = (
                text + rng.choice(YAML).replace("{}", rng.choice(("names", "train", "path", "nc"))) + "\n"
                if rng.random() < 0.6
                else text
            )
        (root / "data.yaml").write_bytes(text_bytes(text, rng, where == "yaml"))
    return root
