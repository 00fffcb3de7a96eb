"""RetinaNet and focal loss, whole. The names below are public; torch is loaded when the first of them is
used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.layout import open_dataset as open_dataset
    from .engine.detector import Detector as Detector
    from .engine.detector import load as load
    from .engine.train import resume as resume
    from .engine.train import train as train
    from .errors import CheckpointError as CheckpointError
    from .errors import ConfigError as ConfigError
    from .errors import DataError as DataError
    from .errors import DivergenceError as DivergenceError
    from .errors import ProcessError as ProcessError
    from .errors import RetinaNetError as RetinaNetError
    from .model.criterion import Criterion as Criterion
    from .model.postprocess import Postprocess as Postprocess
    from .model.preprocess import Preprocess as Preprocess
    from .model.retinanet import RetinaNet as RetinaNet
    from .ops.losses import focal_loss as focal_loss
    from .presets import PRESETS as PRESETS
    from .structures import Detections as Detections
    from .structures import Targets as Targets

__version__ = "0.1.0"

_PLACES = {
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "Criterion": "model.criterion",
    "DataError": "errors",
    "Detections": "structures",
    "Detector": "engine.detector",
    "DivergenceError": "errors",
    "PRESETS": "presets",
    "Postprocess": "model.postprocess",
    "Preprocess": "model.preprocess",
    "ProcessError": "errors",
    "RetinaNet": "model.retinanet",
    "RetinaNetError": "errors",
    "Targets": "structures",
    "focal_loss": "ops.losses",
    "load": "engine.detector",
    "open_dataset": "data.layout",
    "resume": "engine.train",
    "train": "engine.train",
}

__all__ = [
    "PRESETS",
    "CheckpointError",
    "ConfigError",
    "Criterion",
    "DataError",
    "Detections",
    "Detector",
    "DivergenceError",
    "Postprocess",
    "Preprocess",
    "ProcessError",
    "RetinaNet",
    "RetinaNetError",
    "Targets",
    "focal_loss",
    "load",
    "open_dataset",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'retinanet' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_PLACES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
