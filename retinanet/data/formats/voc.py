"""Pascal VOC -> columns: one XML file an image, in a folder of their own or beside the images.

Corners are taken as printed. Pascal's own are 1-based pixel indices that include the last pixel, but most
tools that write such files today write plain xyxy and none says which it wrote; torchvision and most
converters take them as printed too. `difficult` objects are marked as crowds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path

from ...errors import DataError
from ...text import many
from ..dataset import NO_TEXT, Columns, Dataset, is_text
from ..folder import Folder, folded, join, stem_of
from ..images import is_image
from .format import SPLITS, Read, decoded, split_of
from .voc_folders import around, find_images, find_xmls, folder_of_images, is_rest, sibling_of_images
from .voc_images import ANNOTATIONS, IMAGES, Found, Index, is_xml, key_of, match
from .voc_xml import is_voc, parse

HOLDS = (
    "Annotations/*.xml with JPEGImages/ or images/, or *.xml beside the images, here or in train/, valid/, "
    "test/"
)

TWINS = "images without an XML file, whose names differ from others by form only"

ELSEWHERE = "XML files in another folder than the others"


def recognise_voc(root: Path, images: Path | None) -> Read | None:
    """A folder of XML files, of which one at least is a VOC annotation."""
    folder, xmls = find_xmls(root, images)
    recognised = any(is_voc(folder.top / file) for file in xmls) and not is_rest(folder, xmls)
    return partial(read_voc, folder, xmls, images) if recognised else None


def read_voc(folder: Folder, xmls: list[str], images: Path | None = None) -> dict[str, Dataset]:
    """All splits of a VOC set, which share their classes and ids.

    xmls     the XML files, relative to the folder
    images   the folder of the images, where it is elsewhere

    Splits are those of lists such as ImageSets/Main/train.txt, else of folders such as train/. Classes are
    those of all XML files in alphabetical order, with the ids 1..K; an image's id is its place among all XML
    files, an annotation's its place in its split, both from 1.
    """
    if images is not None and not images.is_dir():
        raise DataError(f"{images}: no such folder of images")
    top, pictures, usual = folder.top, [] if images else find_images(folder, xmls), folder_of_images(folder)
    if not pictures and (other := images or sibling_of_images(folder, xmls)):
        top, pictures, usual = other, sorted(filter(is_image, Folder(other).walk())), ""
    records = {file: parse(folder.top / file) for file in xmls}
    found = match(records, pictures, usual)
    numbers = {file: place for place, file in enumerate(xmls, start=1)}
    names = sorted({name for record in records.values() for name, _, _ in record.objects})
    labels = {name: label for label, name in enumerate(names)}

    splits = _splits(folder, xmls, found.image_of)
    _tell_of_rest(splits, found, xmls, around(folder, xmls), top)
    datasets = {}
    for split, (source, columns, chosen) in splits.items():
        for file in chosen:
            record, image = records[file], found.image_of.get(file, "")
            group = _name_of_folder(file, folder.top)
            if not is_text(file + image):
                columns.problem(NO_TEXT, group, ascii(file))
                continue
            for kind, detail in record.problems:
                columns.problem(kind, group, f"{file}: {detail}" if detail else file, image)
            for kind, detail in record.repairs:
                columns.repair(kind, group, f"{file}: {detail}" if detail else file)
            if record.filename is None:
                continue
            if file in found.problems:
                kind, detail, lacks = found.problems[file]
                columns.problem(kind, group, f"{file}: {detail}", lacks)
                continue
            if file in found.renamed:
                kind = "images whose XML file has the name in another form"
                columns.repair(kind, group, f"{file}: {image}")
            columns.image(image, numbers[file], record.height, record.width)
            for name, box, difficult in record.objects:
                columns.box(box, labels[name], len(columns.labels) + 1, crowd=difficult)
        datasets[split] = columns.build(folder.top / source, top, split, names, range(1, len(names) + 1))
    return datasets


def _name_of_folder(file: str, top: Path) -> str:
    return os.path.basename(os.path.dirname(file)) or top.name


Split = tuple[str, Columns, list[str]]
"""The list or folder of a split, its columns, and its XML files."""


def _splits(folder: Folder, xmls: list[str], image_of: Mapping[str, str]) -> dict[str, Split]:
    """By lists if there are any, else by the folders of the XML files, else of their images. XML files beside
    those of val/ or test/ are for training."""
    splits: dict[str, Split] = {}
    index, above = Index(xmls), _common(xmls)
    lists, others = _lists(folder, index)
    for split, file in lists.items():
        columns = Columns()
        splits[split] = file, columns, _listed(folder.top / file, index, above, columns)
    if len(splits) > 1 and "test" in splits and not splits["test"][2]:
        splits.pop("test")  # as in VOC2012, whose annotations are not published
        next(iter(splits.values()))[1].notes.append(f"no image of {lists['test']} has an XML file: left out")
    if splits:
        return splits
    groups: dict[str, list[str]] = {}
    for xml in xmls:
        places = os.path.dirname(xml), os.path.dirname(image_of.get(xml, ""))
        groups.setdefault(_split_of_folder("/".join(places)), []).append(xml)
    if "" in groups and "train" not in groups:
        groups["train" if len(groups) > 1 else "all"] = groups[""]
    for split in filter(None, groups):
        splits[split] = _common(groups[split]), Columns(), groups[split]
    if others:
        note = f"no list is named for a split, so all are left out, as {others[0]}"
        next(iter(splits.values()))[1].notes.append(note)
    return splits


@lru_cache
def _split_of_folder(place: str) -> str:
    return next(filter(None, map(split_of, place.split("/"))), "")


def _common(xmls: list[str]) -> str:
    """The folder that holds them all."""
    return os.path.commonpath([os.path.dirname(xml) for xml in xmls])


def _lists(folder: Folder, index: Index) -> tuple[dict[str, str], list[str]]:
    """-> split -> the list of its XML files, and all lists where none is one."""
    places = [one for name in ("ImageSets/Main", "ImageSets") for one in folder.find(name)]
    place = next((one for one in places if os.path.isdir(folder.top / one)), "")
    names = [name for name in folder.listed(place).files if name.lower().endswith(".txt")]
    files = {stem_of(name).lower(): join(place, name) for name in names}
    if not place:  # some tools put the lists here, but also others
        files = {stem: file for stem, file in files.items() if _is_list(stem, folder.top / file, index)}
    found = {
        split: file for split, rule in SPLITS.items() for stem, file in files.items() if rule.fullmatch(stem)
    }
    # beside a val.txt it would train on the validation split
    if "trainval" in files and not {"train", "val"} & found.keys():
        found["train"] = files["trainval"]
    if not found and "default" in files:  # of CVAT, for images without a split
        found["all"] = files["default"]
    found = found or _lists_by_class(folder, files)
    return found, [] if found else list(files.values())


def _lists_by_class(folder: Folder, files: Mapping[str, str]) -> dict[str, str]:
    """A list of each split, where there are only those of classes, as car_train.txt of VoTT, and all of a
    split name the same images, with 1 or -1."""
    groups: dict[str, dict[str, frozenset[str]]] = {}
    for stem, file in files.items():
        split = next((one for one, rule in SPLITS.items() if rule.fullmatch(stem.rpartition("_")[2])), None)
        if split:
            lines = [
                line.rsplit(maxsplit=1) for line in decoded(folder.top / file, str.strip)[0] if line.strip()
            ]
            flagged = all(words[1:] in (["-1"], ["0"], ["1"]) for words in lines)
            images = frozenset(words[0] for words in lines) if flagged else frozenset([file])
            groups.setdefault(split, {})[file] = images
    same = all(len(set(lists.values())) == 1 for lists in groups.values())
    return {split: next(iter(lists)) for split, lists in groups.items()} if same else {}


def _is_list(stem: str, file: Path, index: Index) -> bool:
    """Whether it has the name of a list, and at least half of its lines name XML files."""
    if stem in ("trainval", "default") or any(rule.fullmatch(stem) for rule in SPLITS.values()):
        with suppress(DataError):
            lines = decoded(file, lambda line: _meant(line, index)[1])[0]
            return 2 * sum(bool(_meant(line, index)[1]) for line in lines) >= max(len(lines), 1)
    return False


def _listed(file: Path, index: Index, above: str, columns: Columns) -> list[str]:
    """The XML files of the names in a list such as ImageSets/Main/val.txt. They may have a folder and a
    suffix; further columns are ignored."""
    chosen: dict[str, None] = {}
    lines, encoding = decoded(file, lambda line: _meant(line, index)[1])
    if encoding:
        columns.repair("lists that are not in UTF-8", file.name, encoding)
    for line in lines:
        name, xmls = _meant(line, index)
        if xmls is None:
            columns.problem("file names that leave the data folder", file.name, name)
        elif len(xmls) > 1:
            columns.problem("names that several XML files have", file.name, f"{name}: {', '.join(xmls)}")
        elif not xmls:
            if name and not name.startswith("#"):
                xml = join(above, f"{os.path.basename(key_of(name))}.xml")
                columns.problem("images without an XML file", os.path.basename(above) or file.name, xml)
        elif xmls[0] in chosen:
            columns.problem("images that are listed twice", file.name, name)
        else:
            chosen[xmls[0]] = None
            if name != key_of(xmls[0]):
                columns.repair("names in lists that are not just those of XML files", file.name, name)
    return list(chosen)


def _meant(line: str, index: Index) -> tuple[str, list[str] | None]:
    """The name in a line, and the XML files that it means; None: it leaves the data folder. The last word may
    be a flag, or the XML file of an image."""
    words = line.strip().rsplit(maxsplit=1)
    flagged = words[1:] in (["-1"], ["0"], ["1"]) or any(map(is_xml, words[1:]))
    names = [line.strip(), *(words[:1] if flagged else [])]
    for name in names:
        parts = name.replace("\\", "/").split("/")
        named = [place for place, part in enumerate(parts) if folded(part) in ANNOTATIONS + IMAGES]
        if ".." in parts:  # as in ../../JPEGImages/a.jpg
            parts = parts[named[-1] + 1 :] if named else parts
        if ".." in parts:
            return name, None
        find = index.exact if line.startswith("#") else index.find  # it is mostly a comment
        if xmls := find(key_of("/".join(parts))):
            return name, xmls
    return names[-1], []


def _tell_of_rest(
    splits: Mapping[str, Split], found: Found, xmls: list[str], others: list[str], top: Path
) -> None:
    """What is in no split is told with train, else with the first split. `others` are XML files elsewhere."""
    columns = splits["train" if "train" in splits else next(iter(splits))][1]
    chosen = {xml for split in splits.values() for xml in split[2]}
    left = [xml for xml in xmls if xml not in chosen]
    xml_of = {image: xml for xml, image in found.image_of.items()}
    for xml in left:
        kind, detail, image = found.problems.get(xml, ("", "", ""))
        for _, one, files in splits.values() if image else ():
            if xml_of[image] in files:
                one.problem(kind, _name_of_folder(xml, top), f"{xml}: {detail}", image)
    alone = Index(found.alone)
    for xml in others:
        if images := alone.find(key_of(xml)):
            what = f"{xml}: it is probably that of {images[0]}; put it into the folder of the others"
            columns.problem(ELSEWHERE, _name_of_folder(xml, top), what)
        else:
            left.append(xml)
    if left:
        columns.notes.append(f"{many(len(left), 'XML file')} in no split, left out, as {left[0]}")
    if found.alone:
        count = many(len(found.alone), "image")
        columns.notes.append(f"{count} without an XML file, left out, as {found.alone[0]}")
    for image in found.twins:
        columns.problem(TWINS, _name_of_folder(image, top), image)
