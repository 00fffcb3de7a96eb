"""Published weights by name: where a project keeps them, what it says of them, and our file made of them.

The checksums are the 6 or 8 digits that the projects put into the names of their files: they tell a truncated
or another file, not a forged one. Nothing of such a file is executed, whoever made it.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import torch

from ..distributed import is_main_process
from ..download import download, reachable
from ..errors import CheckpointError, ConfigError, unknown_name_error
from .checkpoint import save_model
from .foreign.convert import import_weights

log = logging.getLogger("retinanet")

CONVERSION = 1
"""Raised whenever conversion changes, so that what an earlier version has converted is made anew."""

HF_FILE = "model.safetensors"
"""Our file in a Hugging Face repository."""

UNTESTED = "None of these files could be downloaded where this version was built: conversion is tested on files made by the tests, not on these."

# where the files lie; which checksum their names end with; the licence; the page that states the AP
PROJECTS = {
    "torchvision": (
        "https://download.pytorch.org/models",
        "sha256",
        "BSD-3-Clause (torchvision's code; it states none for the weights)",
        "https://docs.pytorch.org/vision/stable/models.html",
    ),
    "detectron2": (
        "https://dl.fbaipublicfiles.com/detectron2/COCO-Detection",
        "md5",
        "CC BY-SA 3.0",
        "https://github.com/facebookresearch/detectron2/blob/main/MODEL_ZOO.md",
    ),
    "mmdet": (
        "https://download.openmmlab.com/mmdetection/v2.0",
        "sha256",
        "Apache-2.0",
        "https://github.com/open-mmlab/mmdetection/blob/main/configs/retinanet/README.md",
    ),
}

FILES = [  # name; file; box AP on COCO val2017, as the project states it
    ("torchvision/retinanet_resnet50_fpn", "retinanet_resnet50_fpn_coco-eeacb38b.pth", 36.4),
    ("torchvision/retinanet_resnet50_fpn_v2", "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth", 41.5),
    ("detectron2/retinanet_R_50_FPN_1x", "190397773/model_final_bfca0b.pkl", 37.4),
    ("detectron2/retinanet_R_50_FPN_3x", "190397829/model_final_5bd44e.pkl", 38.7),
    ("detectron2/retinanet_R_101_FPN_3x", "190397697/model_final_971ab9.pkl", 40.4),
    # the names are those of the configs of version 3, the files are older; metafile.yml gives the first the
    # file of the third
    ("mmdet/retinanet_r18_fpn_1x_coco", "retinanet_r18_fpn_1x_coco_20220407_171055-614fd399.pth", 31.7),
    (
        "mmdet/retinanet_r18_fpn_1xb8-1x_coco",
        "retinanet_r18_fpn_1x8_1x_coco_20220407_171255-4ea310d7.pth",
        31.7,
    ),
    ("mmdet/retinanet_r50-caffe_fpn_1x_coco", "retinanet_r50_caffe_fpn_1x_coco_20200531-f11027c5.pth", 36.3),
    ("mmdet/retinanet_r50_fpn_1x_coco", "retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth", 36.5),
    ("mmdet/retinanet_r50_fpn_amp-1x_coco", "retinanet_r50_fpn_fp16_1x_coco_20200702-0dbfb212.pth", 36.4),
    ("mmdet/retinanet_r50_fpn_2x_coco", "retinanet_r50_fpn_2x_coco_20200131-fdb43119.pth", 37.4),
    (
        "mmdet/retinanet_r50_fpn_ms-640-800-3x_coco",
        "retinanet_r50_fpn_mstrain_3x_coco_20210718_220633-88476508.pth",
        39.5,
    ),
    (
        "mmdet/retinanet_r101-caffe_fpn_1x_coco",
        "retinanet_r101_caffe_fpn_1x_coco_20200531-b428fa0f.pth",
        38.5,
    ),
    (
        "mmdet/retinanet_r101-caffe_fpn_ms-3x_coco",
        "retinanet_r101_caffe_fpn_mstrain_3x_coco_20210721_063439-88a8a944.pth",
        40.7,
    ),
    ("mmdet/retinanet_r101_fpn_1x_coco", "retinanet_r101_fpn_1x_coco_20200130-7a93545f.pth", 38.5),
    ("mmdet/retinanet_r101_fpn_2x_coco", "retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth", 38.9),
    (
        "mmdet/retinanet_r101_fpn_ms-640-800-3x_coco",
        "retinanet_r101_fpn_mstrain_3x_coco_20210720_214650-7ee888e0.pth",
        41.0,
    ),
    (
        "mmdet/retinanet_x101-32x4d_fpn_1x_coco",
        "retinanet_x101_32x4d_fpn_1x_coco_20200130-5c8b7ec4.pth",
        39.9,
    ),
    (
        "mmdet/retinanet_x101-32x4d_fpn_2x_coco",
        "retinanet_x101_32x4d_fpn_2x_coco_20200131-237fc5e1.pth",
        40.1,
    ),
    (
        "mmdet/retinanet_x101-64x4d_fpn_1x_coco",
        "retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth",
        41.0,
    ),
    (
        "mmdet/retinanet_x101-64x4d_fpn_2x_coco",
        "retinanet_x101_64x4d_fpn_2x_coco_20200131-bca068ab.pth",
        40.8,
    ),
    (
        "mmdet/retinanet_x101-64x4d_fpn_ms-640-800-3x_coco",
        "retinanet_x101_64x4d_fpn_mstrain_3x_coco_20210719_051838-022c2187.pth",
        41.6,
    ),
]


@dataclass(frozen=True)
class Published:
    """Weights that a project has published."""

    name: str
    """project/name."""
    address: str
    digest: tuple[str, str]
    """sha256 or md5, and the digits that it begins with: part of the file's name."""
    licence: str
    ap: float
    """Box AP on COCO val2017 in percent, as its project states it."""
    source: str
    """The page that states it."""
    style: Literal["caffe", "pytorch"] | None = None
    """Which ResNet of MMDetection: the stride in the 1x1 or the 3x3 convolution, and how pictures are
    normalised.
    """
    classes: int = 80


def published(name: str, file: str, ap: float) -> Published:
    """A row of the table, with its address."""
    project, short = name.split("/")
    root, algorithm, licence, source = PROJECTS[project]
    style: Literal["caffe", "pytorch"] | None = None
    if project == "detectron2":
        root = f"{root}/{short}"
    if project == "mmdet":
        run = re.split(r"_\d{8}", file)[0]
        root = f"{root}/{'fp16' if '_fp16_' in run else 'retinanet'}/{run}"
        style = "caffe" if "_caffe_" in run else "pytorch"
    digits = re.split(r"[-_.]", file)[-2]
    return Published(name, f"{root}/{file}", (algorithm, digits), licence, ap, source, style)


KNOWN = {name: published(name, file, ap) for name, file, ap in FILES}


def resolve(model: str | Path) -> Path | None:
    """The file of ours that a published name or hf:OWNER/NAME means, fetched if need be; None for anything
    else.

    ConfigError for a name that its project does not have; CheckpointError when it cannot be fetched.
    """
    name = model if isinstance(model, str) else model.as_posix()
    if name.startswith("hf:"):
        return from_hugging_face(name)
    return fetch(name) if name.count("/") == 1 and name.split("/")[0] in PROJECTS else None


def fetch(name: str) -> Path:
    """The file of ours for a published name: downloaded and converted the first time, then only found.

    The download lies where torch keeps its own, so that torchvision's users have it already, and is not
    needed afterwards.
    ConfigError for an unknown name; CheckpointError, within seconds when there is no network, tells which
    file to put where.
    """
    if name not in KNOWN:
        raise unknown_name_error("published weights", name, KNOWN)
    entry = KNOWN[name]
    path = converted(entry)
    if not path.exists():
        weights, card = import_weights(downloaded(entry), style=entry.style)
        about = card.about | {"published_as": name, "published_ap": entry.ap, "licence": entry.licence}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_model(path, weights, replace(card, about=about))
        log.info("%s: converted, %s", name, path)
    return path


def original(entry: Published) -> Path:
    """Where the download lies, or is to be put by hand: the folder that torch.hub.load_state_dict_from_url
    uses.
    """
    return Path(torch.hub.get_dir()) / "checkpoints" / entry.address.rsplit("/", 1)[1]


def converted(entry: Published) -> Path:
    """Where our file lies, made of exactly that download by exactly this conversion."""
    return (
        Path(torch.hub.get_dir()) / "retinanet" / f"{entry.name}-{entry.digest[1]}-{CONVERSION}.safetensors"
    )


def downloaded(entry: Published) -> Path:
    """The file as published, its checksum verified; one that is there already is never touched."""
    path = original(entry)
    if path.exists():
        wrong = mismatch(path, entry)
        if wrong:
            raise CheckpointError(
                f"{path} is truncated, or another file than {entry.address}: {wrong}. Delete it, and it is "
                f"fetched anew"
            )
        return path

    def verify(part: Path) -> None:
        wrong = mismatch(part, entry)
        if wrong:
            raise CheckpointError(
                f"{entry.address} is not the file that {entry.name} was: {wrong}. Nothing is kept of it; if "
                f"you trust it all the same, "
                "fetch it yourself and convert it with retinanet import"
            )

    log.info("%s: fetching %s", entry.name, entry.address)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        download(entry.address, path, verify, show=is_main_process() and sys.stderr.isatty())
    except OSError as error:
        raise CheckpointError(
            f"{entry.name} cannot be fetched: {error}. Try again, or fetch {entry.address} elsewhere and "
            f"put it here: {path}"
        ) from error
    return path


def mismatch(path: Path, entry: Published) -> str | None:
    """How the checksum of a file differs from the one in its published name, in words; None when it does
    not.
    """
    algorithm, digits = entry.digest
    with path.open("rb") as file:
        # told that nothing's safety hangs on it, since some systems forbid MD5 otherwise
        found = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    return None if found.startswith(digits) else f"its {algorithm} should begin with {digits} and is {found}"


def from_hugging_face(reference: str) -> Path:
    """The file of ours in a repository on Hugging Face; a copy in that library's cache is taken as it is (hf
    download renews it).

    reference   hf:OWNER/NAME or hf:OWNER/NAME@REVISION: a branch, a tag or a commit

    ConfigError when it is written otherwise; CheckpointError, within seconds when there is no network, for
    whatever else is wrong.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    found = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@(.+))?", reference)
    if found is None:
        raise ConfigError(f"{reference!r} names no repository; write hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
    repository, revision = found.groups()
    server = urlsplit(constants.ENDPOINT)
    try:
        cached = try_to_load_from_cache(repository, HF_FILE, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        reason = reachable(server.hostname or "", server.port or (80 if server.scheme == "http" else 443))
        if reason is None:
            return Path(hf_hub_download(repository, HF_FILE, revision=revision))
    except Exception as error:  # the library's own, those of its HTTP library, which changes from release to release, or the system's
        raise CheckpointError(
            f"{reference} cannot be fetched: {explained(error, repository, revision)}"
        ) from error
    at = f" --revision {revision}" if revision else ""
    raise CheckpointError(
        f"{reference} cannot be fetched: no network ({reason}), and this machine's Hugging Face cache has "
        f"no copy. Put one there from "
        f"a machine that has (hf download {repository} {HF_FILE}{at}), or give the path of the file"
    )


def explained(error: Exception, repository: str, revision: str | None) -> str:
    """What an error of Hugging Face's library means, and what to do."""
    from huggingface_hub import errors

    meanings: list[tuple[type[Exception], str]] = [  # the first that fits: the later ones are more general
        (
            errors.GatedRepoError,
            f"its owner must let you in; ask on the page of {repository}, then log in: hf auth login",
        ),
        (
            errors.RepositoryNotFoundError,
            f"there is no {repository}, or it is private and you are not logged in (hf auth login)",
        ),
        (errors.RevisionNotFoundError, f"{repository} has no revision {revision!r}"),
        (
            errors.LocalEntryNotFoundError,
            "the server did not answer, or HF_HUB_OFFLINE is set, and the cache has no copy",
        ),
        (
            errors.EntryNotFoundError,
            f"{repository} has no {HF_FILE}; only files that retinanet has written can be loaded from there",
        ),
    ]
    told = (str(error).strip() or "without a word").splitlines()[0]
    return next(
        (meaning for kind, meaning in meanings if isinstance(error, kind)), f"{type(error).__name__}: {told}"
    )
