"""RetinaNet and the focal loss, complete. torch is loaded when a public name is first used."""

from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from .commands.train import resume as resume
    from .commands.train import train as train
    from .config.presets import PRESETS as PRESETS
    from .config.schema import CriterionConfig as CriterionConfig
    from .config.schema import ModelConfig as ModelConfig
    from .config.schema import TrainConfig as TrainConfig
    from .data.dataset import Dataset as Dataset
    from .data.formats.detect import open_dataset as open_dataset
    from .errors import CheckpointError as CheckpointError
    from .errors import ConfigError as ConfigError
    from .errors import DataError as DataError
    from .errors import DivergenceError as DivergenceError
    from .errors import ProcessError as ProcessError
    from .errors import RetinaNetError as RetinaNetError
    from .evaluation.coco import Metrics as Metrics
    from .evaluation.evaluate import Evaluation as Evaluation
    from .evaluation.evaluate import evaluate as evaluate
    from .inference.detector import Detector as Detector
    from .inference.load import load as load
    from .model.criterion import Criterion as Criterion
    from .model.postprocess import Postprocess as Postprocess
    from .model.preprocess import Preprocess as Preprocess
    from .model.retinanet import RetinaNet as RetinaNet
    from .ops.losses import focal_loss as focal_loss
    from .structures import Detections as Detections
    from .structures import Targets as Targets

_HOMES = {
    "commands.train": ("resume", "train"),
    "config.presets": ("PRESETS",),
    "config.schema": ("CriterionConfig", "ModelConfig", "TrainConfig"),
    "data.dataset": ("Dataset",),
    "data.formats.detect": ("open_dataset",),
    "errors": (
        "CheckpointError",
        "ConfigError",
        "DataError",
        "DivergenceError",
        "ProcessError",
        "RetinaNetError",
    ),
    "evaluation.coco": ("Metrics",),
    "evaluation.evaluate": ("Evaluation", "evaluate"),
    "inference.detector": ("Detector",),
    "inference.load": ("load",),
    "model.criterion": ("Criterion",),
    "model.postprocess": ("Postprocess",),
    "model.preprocess": ("Preprocess",),
    "model.retinanet": ("RetinaNet",),
    "ops.losses": ("focal_loss",),
    "structures": ("Detections", "Targets"),
}
"""Module -> its public names. A test holds this equal to the imports above, which type checkers read."""

_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'retinanet' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
