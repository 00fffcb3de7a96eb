"""Our file: safetensors, with all that its use needs in one JSON string. Nothing is ever unpickled."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..config.io import check, fits, from_json
from ..config.schema import ModelConfig
from ..data.dataset import is_text
from ..errors import CheckpointError, ConfigError
from ..files import write_atomically
from ..model.postprocess import Postprocess
from ..model.preprocess import Preprocess, with_scale
from ..model.retinanet import RetinaNet

FORMAT = 2

# one key only: several are written in a random order, and the same model would give different bytes
KEY = "retinanet"


@dataclass(frozen=True)
class ModelInfo:
    """What a file of weights says about itself."""

    model: ModelConfig
    names: tuple[str, ...]
    """[K] class names."""
    category_ids: tuple[int, ...]
    """[K] the ids that the training data used for them."""
    threshold: float = 0.5
    """Score of the best F1 in validation, above which detections are drawn."""
    about: dict[str, Any] = field(default_factory=dict)
    """Data, recipe, AP, versions: for people."""


def build(config: ModelConfig, num_classes: int) -> RetinaNet:
    """The network of a config, with fresh weights."""
    return RetinaNet(num_classes, **vars(config.network))


def preprocess_of(config: ModelConfig, scale: int | None = None) -> Preprocess:
    """How this model's images are prepared; `scale` overrides the short side."""
    preprocess = Preprocess(**vars(config.preprocess))
    return preprocess if scale is None else with_scale(preprocess, scale)


def postprocess_of(config: ModelConfig) -> Postprocess:
    """How this model's detections are chosen."""
    return Postprocess(**vars(config.postprocess))


def save_model(path: Path, weights: Mapping[str, Tensor], card: ModelInfo) -> None:
    """Write weights and card; the file is complete or absent, whatever happens meanwhile."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    text = json.dumps({"format": FORMAT, **asdict(card)}, sort_keys=True)
    write_atomically(path, save(tensors, metadata={KEY: text}))


def load_model(path: Path) -> tuple[RetinaNet, ModelInfo]:
    """The network with its weights, and its card. CheckpointError when the file is missing, truncated,
    foreign or does not fit.

    It is built on the meta device first: a hostile description may ask for more memory than there is, its
    weights cannot.
    """
    weights, card = read_weights(path)
    try:
        with torch.device("meta"):
            outline = build(card.model, len(card.names))
        wanted = outline.state_dict()
        outline.load_state_dict(weights, assign=True)
    except (ConfigError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: the weights do not fit the model that the file describes.\n{str(error)[:2000]}"
        ) from error
    alike = {
        name
        for name, value in weights.items()
        if value.is_floating_point() == wanted.get(name, value).is_floating_point()
    }
    odd = [
        name
        for name, value in weights.items()
        if name not in alike or value.is_complex() or not value.float().isfinite().all()
    ]
    if odd:
        raise CheckpointError(
            f"{path}: {len(odd)} of its weights hold no finite numbers of the right kind, the first being "
            f"{odd[0]}"
        )
    model = build(card.model, len(card.names))
    model.load_state_dict(weights)
    return model, card


def read_weights(path: Path) -> tuple[dict[str, Tensor], ModelInfo]:
    """The weights and the card of a file, unbuilt."""
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
            if text is None:
                raise CheckpointError(
                    f"{path} is a safetensors file, but not one of retinanet: it has no {KEY!r} entry in "
                    f"its metadata"
                )
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}); is it truncated, or another project's?"
        ) from error
    return weights, parse_info(path, text)


def parse_info(path: Path, text: str) -> ModelInfo:
    """The card from its JSON, which may be anybody's."""
    try:
        values = json.loads(text)
        if values.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} has format {str(values.get('format'))[:50]}; this version of retinanet reads "
                f"format {FORMAT}"
            )
        names, ids, threshold = values["names"], values["category_ids"], values["threshold"]
        if (
            not isinstance(names, list)
            or not names
            or not all(isinstance(name, str) and name and is_text(name) for name in names)
        ):
            raise ValueError("names is no list of class names")
        if not isinstance(ids, list) or not all(type(one) is int and abs(one) < 2**63 for one in ids):
            raise ValueError("category_ids is no list of whole numbers")
        if not len(names) == len(ids) == len(set(names)) == len(set(ids)):
            raise ValueError(
                f"the {len(names)} names and {len(ids)} category_ids are not all different, or not as many"
            )
        if not fits(threshold, float) or not 0 <= threshold <= 1:
            raise ValueError("threshold is no number in 0..1")
        model = from_json(ModelConfig, values["model"])
        check(model)
        return ModelInfo(model, tuple(names), tuple(ids), threshold, dict(values["about"]))
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        reason = error if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path}: its description cannot be read ({reason})") from error


def save_plain(path: Path, content: Mapping[str, Any]) -> None:
    """Tensors and plain values of our own use, by torch.save; complete or absent, like a model."""
    buffer = io.BytesIO()  # in memory first: torch's own writer does not take a full disk well
    torch.save(dict(content), buffer)
    write_atomically(path, buffer.getbuffer())


def load_plain(path: Path, format: int) -> dict[str, Any]:
    """What `save_plain` wrote, on the CPU; CheckpointError, and no code run, for anything else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other pickles' protocols: they are refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except Exception as error:  # a broken or foreign file makes torch raise anything
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}); is it truncated, or another program's?"
        ) from error
    if not isinstance(content, dict) or "format" not in content:
        raise CheckpointError(f"{path} is not a file of retinanet")
    if content["format"] != format:
        raise CheckpointError(
            f"{path} has format {content['format']!r}; this version of retinanet reads format {format}"
        )
    return content
