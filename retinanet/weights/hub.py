"""Published weights by name: where a project keeps them, what it says of them, and our file made of them.

The checksums are the 6 or 8 digits that the projects put into the names of their files: they reveal a
truncated or another file, not a forged one. Nothing of such a file is executed.
"""

from __future__ import annotations

import hashlib
import logging
import re
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

UNTESTED = (
    "None of these files could be downloaded where this version was built. Conversion is tested on files "
    "made by the tests."
)

PROJECTS = {  # folder of the files; checksum at the end of their names; licence; page that states the AP
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

FILES = {
    "torchvision": """
resnet50_fpn                      36.4 retinanet_resnet50_fpn_coco-eeacb38b.pth
resnet50_fpn_v2                   41.5 retinanet_resnet50_fpn_v2_coco-5905b1c5.pth
""",
    "detectron2": """
R_50_FPN_1x                       37.4 190397773/model_final_bfca0b.pkl
R_50_FPN_3x                       38.7 190397829/model_final_5bd44e.pkl
R_101_FPN_3x                      40.4 190397697/model_final_971ab9.pkl
""",
    "mmdet": """
r18_fpn_1x_coco                   31.7 retinanet_r18_fpn_1x_coco_20220407_171055-614fd399.pth
r18_fpn_1xb8-1x_coco              31.7 retinanet_r18_fpn_1x8_1x_coco_20220407_171255-4ea310d7.pth
r50-caffe_fpn_1x_coco             36.3 retinanet_r50_caffe_fpn_1x_coco_20200531-f11027c5.pth
r50_fpn_1x_coco                   36.5 retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth
r50_fpn_amp-1x_coco               36.4 retinanet_r50_fpn_fp16_1x_coco_20200702-0dbfb212.pth
r50_fpn_2x_coco                   37.4 retinanet_r50_fpn_2x_coco_20200131-fdb43119.pth
r50_fpn_ms-640-800-3x_coco        39.5 retinanet_r50_fpn_mstrain_3x_coco_20210718_220633-88476508.pth
r101-caffe_fpn_1x_coco            38.5 retinanet_r101_caffe_fpn_1x_coco_20200531-b428fa0f.pth
r101-caffe_fpn_ms-3x_coco         40.7 retinanet_r101_caffe_fpn_mstrain_3x_coco_20210721_063439-88a8a944.pth
r101_fpn_1x_coco                  38.5 retinanet_r101_fpn_1x_coco_20200130-7a93545f.pth
r101_fpn_2x_coco                  38.9 retinanet_r101_fpn_2x_coco_20200131-5560aee8.pth
r101_fpn_ms-640-800-3x_coco       41.0 retinanet_r101_fpn_mstrain_3x_coco_20210720_214650-7ee888e0.pth
x101-32x4d_fpn_1x_coco            39.9 retinanet_x101_32x4d_fpn_1x_coco_20200130-5c8b7ec4.pth
x101-32x4d_fpn_2x_coco            40.1 retinanet_x101_32x4d_fpn_2x_coco_20200131-237fc5e1.pth
x101-64x4d_fpn_1x_coco            41.0 retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth
x101-64x4d_fpn_2x_coco            40.8 retinanet_x101_64x4d_fpn_2x_coco_20200131-bca068ab.pth
x101-64x4d_fpn_ms-640-800-3x_coco 41.6 retinanet_x101_64x4d_fpn_mstrain_3x_coco_20210719_051838-022c2187.pth
""",
}
"""Name without `retinanet_`; box AP on COCO val2017, as the project states it; file.

MMDetection's names are those of the configs of version 3. The files are older; its metafile.yml gives the
first the file of the third.
"""


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
    """Style of MMDetection's ResNet: which convolution has the stride, and how images are normalised."""
    classes: int = 80


def published(project: str, row: str) -> Published:
    """A row of the table, with its address."""
    root, algorithm, licence, source = PROJECTS[project]
    short, ap, file = row.split()
    name, style = f"retinanet_{short}", None
    if project == "detectron2":
        root = f"{root}/{name}"
    if project == "mmdet":
        run = re.split(r"_\d{8}", file)[0]
        root = f"{root}/{'fp16' if '_fp16_' in run else 'retinanet'}/{run}"
        style = "caffe" if "_caffe_" in run else "pytorch"
    digest = (algorithm, re.split(r"[-_.]", file)[-2])
    return Published(f"{project}/{name}", f"{root}/{file}", digest, licence, float(ap), source, style)  # type: ignore[arg-type]


KNOWN = {
    found.name: found
    for project, rows in FILES.items()
    for found in (published(project, row) for row in rows.split("\n") if row)
}


def resolve(model: str | Path) -> Path | None:
    """Our file for a published name or hf:OWNER/NAME, fetched if need be; None for anything else.

    ConfigError for a name that its project does not have; CheckpointError when it cannot be fetched.
    """
    name = model if isinstance(model, str) else model.as_posix()
    if name.startswith("hf:"):
        return from_hugging_face(name)
    return fetch(name) if name.count("/") == 1 and name.split("/")[0] in PROJECTS else None


def fetch(name: str) -> Path:
    """The file of ours for a published name: downloaded and converted the first time, then only found.

    The download is not needed afterwards. It lies where torch keeps its own: torchvision's users have it
    already. ConfigError for an unknown name; without a network a CheckpointError, within seconds, says which
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
    """Where the download lies, or is to be put by hand: as torch.hub.load_state_dict_from_url has it."""
    return Path(torch.hub.get_dir()) / "checkpoints" / entry.address.rsplit("/", 1)[1]


def converted(entry: Published) -> Path:
    """Where our file lies, made of exactly that download by exactly this conversion."""
    file = f"{entry.name}-{entry.digest[1]}-{CONVERSION}.safetensors"
    return Path(torch.hub.get_dir()) / "retinanet" / file


def downloaded(entry: Published) -> Path:
    """The file as published, its checksum verified; one that is there already is never touched."""
    path = original(entry)
    if path.exists():
        if wrong := mismatch(path, entry):
            raise CheckpointError(
                f"{path} is truncated, or another file than {entry.address}: {wrong}. Delete it, and it is "
                f"fetched anew"
            )
        return path

    def verify(part: Path) -> None:
        if wrong := mismatch(part, entry):
            raise CheckpointError(
                f"{entry.address} is not the file that {entry.name} was: {wrong}. Nothing is kept of it; if "
                f"you trust it all the same, fetch it yourself and convert it with retinanet import"
            )

    log.info("%s: fetching %s", entry.name, entry.address)
    try:
        download(entry.address, path, verify, show=is_main_process())
    except OSError as error:
        raise CheckpointError(
            f"{entry.name} cannot be fetched: {error}. Try again, or fetch {entry.address} elsewhere and "
            f"put it here: {path}"
        ) from error
    return path


def mismatch(path: Path, entry: Published) -> str | None:
    """How the checksum of a file differs from the one in its published name; None when it does not."""
    algorithm, digits = entry.digest
    with path.open("rb") as file:
        # no safety hangs on it; some systems forbid MD5 otherwise
        found = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    return None if found.startswith(digits) else f"its {algorithm} should begin with {digits} and is {found}"


def from_hugging_face(reference: str) -> Path:
    """Our file in a repository on Hugging Face; a copy in that library's cache is taken as it is.

    reference   hf:OWNER/NAME or hf:OWNER/NAME@REVISION: a branch, a tag or a commit

    ConfigError when it is written otherwise; CheckpointError, within seconds without a network, for all else.
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
    except Exception as error:  # the library's, or those of its HTTP library, which changes with its releases
        meaning = explained(error, repository, revision)
        raise CheckpointError(f"{reference} cannot be fetched: {meaning}") from error
    at = f" --revision {revision}" if revision else ""
    raise CheckpointError(
        f"{reference} cannot be fetched: no network ({reason}), and this machine's Hugging Face cache has no "
        f"copy. Put one there from a machine that has (hf download {repository} {HF_FILE}{at}), or give the "
        f"path of the file"
    )


def explained(error: Exception, repository: str, revision: str | None) -> str:
    """What an error of Hugging Face's library means, and what to do."""
    from huggingface_hub import errors

    meanings = {  # the first that fits: the later ones are more general
        errors.GatedRepoError: f"its owner must let you in; ask on the page of {repository}, then log in: hf "
        f"auth login",
        errors.RepositoryNotFoundError: f"there is no {repository}, or it is private and you are not "
        f"logged in (hf auth login)",
        errors.RevisionNotFoundError: f"{repository} has no revision {revision!r}",
        errors.LocalEntryNotFoundError: "the server did not answer, or HF_HUB_OFFLINE is set, and the "
        "cache has no copy",
        errors.EntryNotFoundError: f"{repository} has no {HF_FILE}; only files that retinanet has "
        f"written can be loaded from there",
    }
    message = (str(error).strip() or "without a word").splitlines()[0]
    found = (meaning for kind, meaning in meanings.items() if isinstance(error, kind))
    return next(found, f"{type(error).__name__}: {message}")
