"""Recipes: their settings, the hardware they need, the AP they give, and whether we have run them."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import unknown_name_error
from .schema import CriterionConfig, ModelConfig, NetworkConfig, PreprocessConfig, TrainConfig


@dataclass(frozen=True)
class Preset:
    """A training recipe and its result."""

    config: TrainConfig
    hardware: str
    """The hardware that it needs."""
    expected: str
    """AP, and on what."""
    source: str
    """The source of the expected AP."""
    measured: str = "not run by us"
    """Our own measurement."""


IMAGES_1X = "1440000im"
"""90,000 steps of 16 images (Sec. 4.1). The rate follows the batch, so the length must too."""

IMAGES_1_5X = "2160000im"

EIGHT_GPUS = "8 GPUs, 16 images a step"


def paper(
    backbone: str, scale: int, budget: str = IMAGES_1X, jitter: tuple[float, float] = (1.0, 1.0)
) -> TrainConfig:
    """The paper's recipe (Sec. 4.1): SGD, lr 0.01 for 16 images with two drops, horizontal flips only."""
    model = ModelConfig(NetworkConfig(backbone), PreprocessConfig(scale))
    return TrainConfig(model=model, budget=budget, jitter=jitter)


def paper_row(config: TrainConfig, ap: float, table: str) -> Preset:
    """A row of the paper's tables."""
    return Preset(config, EIGHT_GPUS, f"AP {ap} on COCO test-dev", f"Lin et al. 2017, Table {table}")


def table_1e(backbone: str, ap: dict[int, float]) -> dict[str, Preset]:
    """The rows of Table 1e for one backbone: scale -> AP."""
    short = backbone.replace("resnet", "r")
    return {f"{short}-{scale}": paper_row(paper(backbone, scale), value, "1e") for scale, value in ap.items()}


def table_2(backbone: str, ap: float) -> Preset:
    """A row of Table 2. Its scale jitter has no numbers; short sides of 640 to 800 are Detectron's."""
    return paper_row(paper(backbone, 800, IMAGES_1_5X, (0.8, 1.0)), ap, "2")


TINY = TrainConfig(
    model=ModelConfig(
        NetworkConfig(
            backbone="resnet18",
            backbone_norm="batch",
            channels=128,
            num_convs=2,
            subnet_norm="group",
            anchor_size=3.0,
        ),
        PreprocessConfig(scale=304),
    ),
    criterion=CriterionConfig(box_loss="giou", box_weight=2.0),
    init="none",
    batch=4,
    lr=2e-3,
    lr_batch=4,
    optimizer="adamw",
    weight_decay=0.05,
    schedule="cosine",
    warmup=100,
    max_grad_norm=10.0,
    ema=0.998,
    train_scale=288,  # inference 5 % larger than training gains 0.014 AP (docs/results.md)
    jitter=(0.9, 1.1),
)

MODERN = TrainConfig(
    model=ModelConfig(NetworkConfig(subnet_norm="group"), PreprocessConfig(scale=800)),
    criterion=CriterionConfig(box_loss="giou", box_weight=2.0),
    batch=16,
    lr=1e-4,
    optimizer="adamw",
    weight_decay=0.05,
    schedule="cosine",
    max_grad_norm=1.0,
    ema=0.9998,
    jitter=(0.6, 1.0),
    photometric=0.5,
)

PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        TINY,
        "a laptop without a GPU, minutes",
        "AP 0.57 on a blood cell set of 292 images in 7 minutes",
        "docs/results.md",
        "AP 0.571 to 0.582, two CPU cores, 7 min, 2026-11",
    ),
    "r50-modern": Preset(
        MODERN,
        "a GPU",
        "about AP 41.5 on COCO val2017",
        "torchvision's retinanet_resnet50_fpn_v2, a like recipe of 26 epochs on 8 GPUs",
    ),
    **table_1e("resnet50", {400: 30.5, 500: 32.5, 600: 34.3, 700: 35.1, 800: 35.7}),
    **table_1e("resnet101", {400: 31.9, 500: 34.4, 600: 36.0, 700: 37.1, 800: 37.8}),
    "r101-800-1.5x": table_2("resnet101", 39.1),
    "x101-800": table_2("resnext101_32x8d", 40.8),
}
"""Name -> recipe, for `train(preset=...)` and `--preset`.

Example:
    >>> retinanet.PRESETS["r50-600"].expected
    'AP 34.3 on COCO test-dev'
"""


def preset(name: str) -> TrainConfig:
    """The settings of a preset; ConfigError with the nearest names for an unknown one."""
    if name not in PRESETS:
        raise unknown_name_error("preset", name, PRESETS)
    return PRESETS[name].config


def default_preset(device: str = "auto") -> str:
    """The preset for a machine: a step of ResNet-50 at 800 px takes 10 s on two cores."""
    from ..device import pick_device  # torch, not needed for --help

    return "tiny" if pick_device(device).type == "cpu" else "r50-modern"
