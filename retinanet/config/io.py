"""Working with configs: change a setting wherever it lives, check all of them, write and read them back."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from ..errors import ConfigError, unknown_name_error

Config = TypeVar("Config")

RANGES: dict[str, tuple[float, float]] = {
    "prior": (1e-9, 1 - 1e-9),
    "channels": (8, 1 << 20),
    "depth": (0, 64),
    "scale": (32, 1 << 16),
    "max_side": (32, 1 << 20),
    "anchor_size": (1e-3, 1e6),
    "train_scale": (32, 1 << 16),
    "padding_multiple": (1, 1 << 12),
    "backbone_eps": (0, 1),
    "score_threshold": (0, 1 - 1e-9),
    "nms_threshold": (0, 1),
    "per_level": (1, 1 << 30),
    "max_detections": (1, 1 << 30),
    "alpha": (0, 1),
    "gamma": (0, 1000),
    "margin": (1e-9, 1),
    "mining_batch": (4, 1 << 30),
    "mining_nms": (0, 1),
    "positive": (1e-9, 1),
    "negative": (0, 1),
    "batch": (1, 1 << 30),
    "micro_batch": (1, 1 << 30),
    "repeat_threshold": (0, 1),
    "box_weight": (0, 1e6),
    "smooth_l1_beta": (1e-9, 1e6),
    "warmup": (0, 1 << 30),
    "momentum": (0, 1),
    "weight_decay": (0, 1e6),
    "clip": (1e-9, float("inf")),
    "workers": (0, 1 << 10),
    "seed": (0, (1 << 63) - 1),
    "max_pixels": (1, 1 << 40),
    "lr": (0, float("inf")),
    "lr_batch": (1, 1 << 30),
    "flip": (0, 1),
    "photometric": (0, 1),
    "validations": (1, 1 << 30),
    "log_every": (1, 1 << 30),
}
"""What numbers may be, both ends included."""


def check(config: Any) -> None:
    """ConfigError that lists every setting out of its range, before anything is begun."""
    settings = flat(config)
    choices = _choices(config)
    wrong = []
    for name, allowed in choices.items():
        if (
            settings[name] is not None
            and settings[name] not in allowed
            and not (name in RANGES and _number(settings[name]))
        ):
            wrong.append(str(unknown_name_error(name, settings[name], map(str, allowed))))
    for name, (low, high) in RANGES.items():
        value = settings.get(name)
        if (
            value is not None
            and value not in choices.get(name, ())
            and not (_number(value) and low <= value <= high)
        ):
            wrong.append(f"{name} must be between {low:g} and {high:g}, not {value}")
    for name in ("anchor_scales", "anchor_ratios"):
        if not settings[name] or not all(_number(value) and 1e-3 <= value <= 1e3 for value in settings[name]):
            wrong.append(f"{name} must be numbers between 0.001 and 1000, not {settings[name]}")
    for name, low in (("pixel_mean", -1e3), ("pixel_std", 1e-6)):
        if len(settings[name]) != 3 or not all(
            _number(value) and low <= value <= 1e3 for value in settings[name]
        ):
            wrong.append(
                f"{name} must be three numbers from {low:g} to 1000, of red, green and blue in 0..1, not "
                f"{settings[name]}"
            )
    if settings["negative"] > settings["positive"]:
        wrong.append(f"negative ({settings['negative']}) must not exceed positive ({settings['positive']})")
    if settings["loss"] == "cross_entropy" and settings["alpha"] == "inverse-frequency":
        wrong.append("cross_entropy has no alpha; take --loss balanced for --alpha inverse-frequency")
    if settings["loss"] == "focal_star" and settings["gamma"] == 0:
        wrong.append("gamma must be above 0 for focal_star")
    if not 0 < settings["jitter"][0] <= settings["jitter"][1]:
        wrong.append(f"jitter is a low and a high factor above 0, not {settings['jitter']}")
    if settings["ema"] is not None and not 0 <= settings["ema"] < 1:
        wrong.append(f"ema is a decay below 1, not {settings['ema']}")
    for name in ("budget", "save_every"):
        if settings[name] is not None:
            try:
                parse_budget(settings[name], name)
            except ConfigError as error:
                wrong.append(str(error))
    if wrong:
        raise ConfigError("\n".join(wrong))


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _choices(config: Any) -> dict[str, tuple[Any, ...]]:
    """The settings that are one of a few words, wherever they live."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, kind in get_type_hints(type(config)).items():
        kinds = [kind, *get_args(kind)] if get_origin(kind) is not Literal else [kind]
        words = next((get_args(one) for one in kinds if get_origin(one) is Literal), None)
        if words:
            found[name] = words
        elif is_dataclass(kind):
            found |= _choices(getattr(config, name))
    return found


def override(config: Config, settings: Mapping[str, Any]) -> Config:
    """`config` with the settings changed, wherever among its parts they live; ConfigError with the nearest
    names for an unknown one.
    """
    assert is_dataclass(config)
    left = dict(settings)
    changes: dict[str, Any] = {}
    for part in fields(config):
        value = getattr(config, part.name)
        if is_dataclass(value):
            own = {entry.name for entry in fields(value)} & left.keys()
            changes[part.name] = override(value, {name: left.pop(name) for name in sorted(own)})
        elif part.name in left:
            changes[part.name] = left.pop(part.name)
    if left:
        raise unknown_name_error("setting", next(iter(left)), flat(config))
    changed: Any = replace(config, **changes)  # type: ignore[type-var, unused-ignore]
    return cast(Config, changed)


def flat(config: Any) -> dict[str, Any]:
    """All settings of a config and its parts by name; the names are unique (a test holds it so)."""
    settings: dict[str, Any] = {}
    for part in fields(config):
        value = getattr(config, part.name)
        settings |= flat(value) if is_dataclass(value) else {part.name: value}
    return settings


def from_json(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """A dataclass and its parts from what `to_json` left of them; an unknown name or a value of the wrong
    kind is a ConfigError.
    """
    assert is_dataclass(kind)
    known = {entry.name for entry in fields(kind)}
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(f"unknown setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    hints = get_type_hints(kind)
    found = {name: _from_json(hints[name], value) for name, value in values.items()}
    wrong = [
        name for name, value in found.items() if not is_dataclass(value) and not fits(value, hints[name])
    ]
    if wrong:
        raise ConfigError(f"{' and '.join(wrong)} cannot be what the file says")
    return kind(**found)


def _from_json(kind: Any, value: Any) -> Any:
    if is_dataclass(kind):
        return from_json(cast(Any, kind), value)
    if isinstance(value, str) and Path in (kind, *get_args(kind)):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def fits(value: Any, kind: Any) -> bool:
    """Whether a value from JSON is of the kind that a dataclass declares; True is no number, and neither is
    NaN.
    """
    inner = get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and len(value) > 0 and all(fits(one, inner[0]) for one in value)
    if get_origin(kind) is Literal:
        return value in inner
    if inner:
        return any(fits(value, one) for one in inner)
    if kind is float:
        return _number(value) and math.isfinite(value)
    return isinstance(value, kind) if kind is Path else type(value) is kind


def to_json(config: Any) -> dict[str, Any]:
    """A dataclass as plain values for JSON."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}


def parse_budget(budget: str, name: str = "budget") -> tuple[float, Literal["s", "it", "ep", "im"]]:
    """'7min' -> (420, 's'), '300it' -> (300, 'it'), '12ep' -> (12, 'ep'), '1440000im' -> (1440000, 'im')."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|it|ep|im)\s*", budget)
    if not found or float(found[1]) <= 0:
        raise ConfigError(
            f"{name} {budget!r} is not a length; write 7min, 2h, 90s, 300it (iterations), 12ep (epochs) or "
            f"5000im (images)"
        )
    number, unit = float(found[1]), found[2]
    if unit in ("it", "ep", "im"):
        return number, unit  # type: ignore[return-value]
    return number * {"s": 1, "min": 60, "h": 3600}[unit], "s"
