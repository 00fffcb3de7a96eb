"""Working with configs: change a setting wherever it lives, check all of them, write and read them back."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, asdict, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from ..errors import ConfigError, nearest, unknown_name_error

Config = TypeVar("Config")

OPEN = 1e-9
"""A limit of OPEN or 1 - OPEN stands for an end that is excluded: above 0, below 1."""


def check(config: Any) -> None:
    """ConfigError that lists every setting that cannot be, before anything is begun.

    The fields say what each may be: the type its words and how many numbers, `setting` their range.
    """
    values = flat(config)
    faults = (_fault(name, values[name], *known) for name, known in declared(config).items())
    wrong = [*filter(None, faults)] or [*_contradictions(values)]
    if wrong:
        raise ConfigError("\n".join(wrong))


def limits(kind: type, name: str) -> tuple[float, float]:
    """What the number of that field may be, both ends included."""
    known = next(entry.metadata for entry in fields(kind) if entry.name == name)
    return known["low"], known["high"]


def _fault(name: str, value: Any, entry: Field[Any], kind: Any) -> str | None:
    """What is wrong with a setting by itself."""
    low, high = entry.metadata.get("low"), entry.metadata.get("high")
    kinds = _alternatives(kind)
    words = [word for one in kinds if get_origin(one) is Literal for word in get_args(one)]
    several = next((get_args(one) for one in kinds if get_origin(one) is tuple), None)
    span = _span(low, high)
    if (value is None and NoneType in kinds) or value in words:
        return None
    if several and several[0] is not str:
        count = None if several[-1] is ... else len(several)
        long = isinstance(value, (tuple, list)) and (len(value) == count if count else len(value) > 0)
        if not long or not all(_within(one, low, high) for one in value):
            return f"{name} must be {f'{count} ' if count else ''}numbers{span}, not {value}"
    elif words and (not span or isinstance(value, str)):
        return str(unknown_name_error(name, value, map(str, words)))
    elif span and not _within(value, low, high):
        return f"{name} must be{span}, not {value}"
    return None


def _contradictions(settings: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with settings that are each possible."""
    if "loss" in settings:
        if settings["negative"] > settings["positive"]:
            yield f"negative ({settings['negative']}) must not exceed positive ({settings['positive']})"
        if settings["loss"] == "cross_entropy" and settings["alpha"] == "inverse-frequency":
            yield "cross_entropy has no alpha; take --loss balanced for --alpha inverse-frequency"
        if settings["loss"] == "focal_star" and settings["gamma"] == 0:
            yield "gamma must be above 0 for focal_star"
    if "jitter" in settings and not 0 < settings["jitter"][0] <= settings["jitter"][1]:
        yield f"jitter is a low and a high factor above 0, not {settings['jitter']}"
    if settings.get("ema") is not None and not 0 <= settings["ema"] < 1:
        yield f"ema is a decay below 1, not {settings['ema']}"
    for name in ("budget", "save_every"):
        if settings.get(name) is not None:
            try:
                parse_budget(settings[name], name)
            except ConfigError as error:
                yield str(error)


def reading(config: Any) -> dict[str, Any]:
    """How a command's data set is read, as `data.splits` takes it."""
    names = ("layout", "images", "invalid", "strict", "max_pixels", "held_out")
    return {name: getattr(config, name) for name in names if hasattr(config, name)}


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _span(low: float | None, high: float | None) -> str:
    """The range of a number in words; a bound within OPEN of 0 or 1 is excluded."""
    if low is None:
        return ""
    lower = " above 0" if low == OPEN else f" at least {low:g}"
    if high is None or high == math.inf:
        return lower
    if high == 1 - OPEN:
        return f"{lower} and below 1"
    return f"{lower} and at most {high:g}" if low == OPEN else f" between {low:.12g} and {high:.12g}"


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _within(value: Any, low: float | None, high: float | None) -> bool:
    return _number(value) and (low is None or low <= value) and (high is None or value <= high)


def override(config: Config, settings: Mapping[str, Any], foreign: bool = False) -> Config:
    """`config` with the settings changed, wherever among its parts they live.

    ConfigError with the nearest names for an unknown setting, and for one that only `import` sets unless
    `foreign`.
    """
    assert is_dataclass(config)
    known = declared(config)
    for name in settings:
        if name not in known:
            raise unknown_name_error("setting", name, known)
        if known[name][0].metadata.get("foreign") and not foreign:
            raise ConfigError(
                f"{name} keeps the boxes of imported weights; `retinanet import` sets it, training does not"
            )
    changes: dict[str, Any] = {}
    for part in fields(config):
        value = getattr(config, part.name)
        if is_dataclass(value):
            own = {name: settings[name] for name in declared(value) if name in settings}
            changes[part.name] = override(value, own, foreign)
        elif part.name in settings:
            changes[part.name] = settings[part.name]
    changed: Any = replace(config, **changes)  # type: ignore[type-var, unused-ignore]
    return cast(Config, changed)


def flat(config: Any) -> dict[str, Any]:
    """All settings of a config and its parts by name; the names are unique (a test holds it so)."""
    settings: dict[str, Any] = {}
    for part in fields(config):
        value = getattr(config, part.name)
        settings |= flat(value) if is_dataclass(value) else {part.name: value}
    return settings


def declared(config: Any) -> dict[str, tuple[Field[Any], Any]]:
    """The field and the type of every setting of a config and its parts, by name."""
    found: dict[str, tuple[Field[Any], Any]] = {}
    hints = get_type_hints(type(config))
    for entry in fields(config):
        value = getattr(config, entry.name)
        found |= declared(value) if is_dataclass(value) else {entry.name: (entry, hints[entry.name])}
    return found


def from_text(config: Any, pairs: Iterable[str]) -> dict[str, Any]:
    """'warmup=0' -> {"warmup": 0}: settings as words, each read by the type of its field."""
    known, found = declared(config), {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise ConfigError(f"--set takes NAME=VALUE, not {pair!r}")
        if name not in known:
            raise unknown_name_error("setting", name, known)
        try:
            found[name] = _from_text(text.strip(), known[name][1])
        except (ValueError, KeyError):
            raise ConfigError(f"--set {name}: {text!r} is no value for it") from None
    return found


def _from_text(text: str, kind: Any) -> Any:
    """None or a word of the type if the text is one, else the value of the first other alternative."""
    kinds = _alternatives(kind)
    if NoneType in kinds and text == "None":
        return None
    words = [word for one in kinds if get_origin(one) is Literal for word in get_args(one)]
    others = [one for one in kinds if one is not NoneType and get_origin(one) is not Literal]
    if text in words or not others:
        return text
    if get_origin(others[0]) is tuple:
        return tuple(_from_text(word, get_args(others[0])[0]) for word in text.replace(",", " ").split())
    if others[0] is bool:
        return {"true": True, "false": False}[text.lower()]
    return others[0](text)


def from_json(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """A dataclass and its parts from `to_json`; ConfigError for an unknown name or a wrong kind."""
    assert is_dataclass(kind)
    known = {entry.name for entry in fields(kind)}
    for name in values:
        if name not in known:
            raise ConfigError(f"unknown setting {name!r}{nearest(name, known)}")
    hints = get_type_hints(kind)
    found = {name: _from_json(hints[name], value) for name, value in values.items()}
    wrong = [name for name, value in found.items() if not (is_dataclass(value) or fits(value, hints[name]))]
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
    """Whether a value from JSON has the declared kind; neither True nor NaN is a number."""
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
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|it|ep|im|)\s*", str(budget))
    if found and not found[2]:
        raise ConfigError(f"{name} {budget} has no unit; is it '{budget}it' (iterations) or '{budget}min'?")
    if not found or float(found[1]) <= 0:
        raise ConfigError(
            f"{name} {budget!r} is not a length; write 7min, 2h, 90s, 300it (iterations), 12ep (epochs) or "
            f"5000im (images)"
        )
    seconds = {"s": 1, "min": 60, "h": 3600}.get(found[2])
    if seconds:
        return float(found[1]) * seconds, "s"
    return float(found[1]), found[2]  # type: ignore[return-value]
