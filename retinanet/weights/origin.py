"""Where a model's first weights come from, and under which licence: written down when a training begins, told
by its model card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm

from ..config import TrainConfig
from ..model.backbone import PINNED
from .checkpoint import Card

TOLD = ("project", "imported_from", "published_as", "published_ap", "licence")
"""What a file of weights may say about its own origin."""
LONGEST = 20
"""Models of a chain, each trained from the one before, that are remembered."""


def origins(config: TrainConfig, donor: Card | None = None) -> list[dict[str, Any]]:
    """What a training begins from, the nearest first, as plain values; empty when everything is from scratch.

    donor    the card of the file that --init names; it knows what that model began from
    returns  dicts with `kind` (model, backbone) and `name`, and where known `licence` and the like
    """
    if config.init is None:
        return [imagenet(config.model.backbone)] if config.weights == "imagenet" else []
    about = {} if donor is None else donor.about
    known = {key: str(about[key])[:200] for key in TOLD if isinstance(about.get(key), (str, int, float))}
    if isinstance(about.get("data"), str):
        known["trained_on"] = Path(about["data"]).name[:200]
    earlier = about.get("init")  # which may be anybody's, so its form is not trusted
    if earlier == []:
        known["scratch"] = "yes"
    entries = (
        [plain(entry) for entry in earlier if isinstance(entry, dict)] if isinstance(earlier, list) else []
    )
    return [{"kind": "model", "name": public_name(config.init), **known}, *entries][:LONGEST]


def imagenet(backbone: str) -> dict[str, str]:
    """timm's weights that the bare name of a backbone means, with their licence."""
    settings = timm.get_pretrained_cfg(PINNED.get(backbone, backbone)).to_dict()
    name = ".".join(str(settings[key]) for key in ("architecture", "tag") if settings.get(key))
    known = {"hub": settings.get("hf_hub_id"), "licence": settings.get("license")}
    return {
        "kind": "backbone",
        "name": name or backbone,
        "project": "timm",
        **{key: str(value) for key, value in known.items() if value},
    }


def public_name(path: str | Path) -> str:
    """A run or file without the folders above it, which are nobody's business; an address on a hub stays
    whole.
    """
    if str(path).startswith("hf:"):
        return str(path)
    path = Path(path).resolve()
    return f"{path.parent.name}/{path.name}" if path.stem in ("model", "best") else path.name


def plain(entry: dict[Any, Any]) -> dict[str, str]:
    """The entries that are text."""
    return {
        key: value[:200] for key, value in entry.items() if isinstance(key, str) and isinstance(value, str)
    }
