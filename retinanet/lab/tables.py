"""The paper's tables as data: what changes from row to row, and what the paper concludes. Nothing here knows
how to train.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config.schema import TrainConfig
from ..errors import ConfigError, unknown_name_error

DEEPER = {"resnet18": "resnet34", "resnet34": "resnet50", "resnet50": "resnet101", "resnet101": "resnet152"}
"""The two depths of Table 1e, and what they are for another backbone."""

NO_PRIOR = 0.5
"""pi of a last bias of 0: every anchor first says "object" with this probability."""


@dataclass(frozen=True)
class Row:
    """One training of an experiment."""

    values: Mapping[str, Any]
    """What the row is called by: the columns of the paper's table."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `TrainConfig` and its parts, by name, that differ from the base."""
    rival: str | None = None
    """Another detector than ours (`lab.rivals`)."""
    group: str = ""
    """Of rows of one group only the best counts, by mean AP in validation."""
    printed: Mapping[str, Any] | None = None
    """Columns by which the paper's table knows the row. None: `values`."""

    @property
    def name(self) -> str:
        """gamma 2, alpha 0.25; columns that are empty are left out."""
        told = {
            key: f"{value:g}" if isinstance(value, float) else str(value)
            for key, value in self.values.items()
            if value is not None
        }
        return ", ".join(f"{key} {value}" for key, value in told.items())


@dataclass(frozen=True)
class Claim:
    """What the paper concludes, as a difference of AP: `high` beats every row of `low`. Rows are given by
    their values.
    """

    text: str
    high: Mapping[str, Any] = field(default_factory=dict)
    low: tuple[Mapping[str, Any], ...] = ()
    fails: tuple[Mapping[str, Any], ...] = ()
    """Instead: these rows diverge or learn nothing ..."""
    control: Mapping[str, Any] = field(default_factory=dict)
    """... while this one trains."""


@dataclass(frozen=True)
class Experiment:
    """A table: its rows, made for a base configuration, and its claims."""

    title: str
    rows: Callable[[TrainConfig, str], list[Row]]
    """From the base and the source of the alphas (`paper` or `search`)."""
    claims: tuple[Claim, ...]
    paper: str | None = None
    """The printed table in `lab.paper`."""
    timed: bool = False
    """Whether milliseconds per picture belong to the result."""


def balanced(alpha: float) -> dict[str, Any]:
    """alpha-balanced cross entropy (Eq. 3), which is the focal loss with gamma 0."""
    return {"loss": "balanced", "alpha": alpha}


def focal(gamma: float, alpha: float) -> dict[str, Any]:
    """Eq. 5."""
    return {"loss": "focal", "gamma": gamma, "alpha": alpha} if gamma else balanced(alpha)


def star(gamma: float, beta: float) -> dict[str, Any]:
    """FL* (Appendix, Eq. 8), with the alpha of the focal loss."""
    return {"loss": "focal_star", "gamma": gamma, "beta": beta, "alpha": 0.25}


def table1a(base: TrainConfig, alphas: str) -> list[Row]:
    """Cross entropy with every alpha."""
    return [Row({"alpha": alpha}, balanced(alpha)) for alpha in (0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)]


PAPERS_ALPHA = {0.0: 0.75, 0.1: 0.75, 0.2: 0.75, 0.5: 0.5, 1.0: 0.25, 2.0: 0.25, 5.0: 0.25}


def table1b(base: TrainConfig, alphas: str) -> list[Row]:
    """The focal loss with every gamma, each with its alpha."""
    if alphas == "paper":
        return [
            Row({"gamma": gamma, "alpha": alpha}, focal(gamma, alpha))
            for gamma, alpha in PAPERS_ALPHA.items()
        ]
    grid = [(gamma, alpha) for gamma in PAPERS_ALPHA for alpha in (0.25, 0.5, 0.75)]
    return [
        Row({"gamma": gamma, "alpha": alpha}, focal(gamma, alpha), group=f"gamma {gamma:g}")
        for gamma, alpha in grid
    ]


def table1c(base: TrainConfig, alphas: str) -> list[Row]:
    """1 to 12 anchors of a cell: scales are even steps of an octave, ratios 1 or 1:2, 1:1, 2:1."""
    rows = []
    for scales, ratios in ((1, 1), (2, 1), (3, 1), (1, 3), (2, 3), (3, 3), (4, 3)):
        steps = tuple(2 ** (step / scales) for step in range(scales))
        shape = {"anchor_scales": steps, "anchor_ratios": (0.5, 1.0, 2.0) if ratios == 3 else (1.0,)}
        rows.append(Row({"scales": scales, "aspect_ratios": ratios}, shape))
    return rows


def table1d(base: TrainConfig, alphas: str) -> list[Row]:
    """Hard example mining over cross entropy, beside the focal loss; random sampling, which Table 1d does not
    print.
    """
    rows = []
    for kind, method, thresholds in (("ohem", "OHEM", (0.7, 0.5)), ("ohem-1:3", "OHEM 1:3", (0.5,))):
        for threshold in thresholds:
            for size in (128, 256, 512):
                values = {"method": method, "batch_size": size, "nms_threshold": threshold}
                rows.append(Row(values, CE | {"mining": kind, "mining_batch": size, "mining_nms": threshold}))
    rows.append(
        Row(
            {"method": "random 1:3", "batch_size": 256, "nms_threshold": None},
            CE | {"mining": "random", "mining_batch": 256},
        )
    )
    return [*rows, Row({"method": "FL", "batch_size": None, "nms_threshold": None}, focal(2.0, 0.25))]


CE = {"loss": "cross_entropy", "alpha": None}


def table1e(base: TrainConfig, alphas: str) -> list[Row]:
    """Two depths at five scales, which are 4/6 to 8/6 of the base's as in the paper."""
    shallow = base.model.network.backbone
    if shallow not in DEEPER:
        raise ConfigError(
            f"there is no deeper {shallow!r} to compare with; table1e takes --backbone {', '.join(DEEPER)}"
        )
    rows = []
    for depth, backbone, papers in (("shallower", shallow, 50), ("deeper", DEEPER[shallow], 101)):
        for sixths in (4, 5, 6, 7, 8):
            scale = max(32, round(base.model.preprocess.scale * sixths / 6 / 8) * 8)
            size = {"scale": scale, "train_scale": None, "max_side": None}
            values = {"backbone": backbone, "depth": depth, "scale": scale, "sixths": sixths}
            rows.append(
                Row(values, {"backbone": backbone, **size}, printed={"depth": papers, "scale": 100 * sixths})
            )
    return rows


def table2(base: TrainConfig, alphas: str) -> list[Row]:
    """Beside a two-stage and another one-stage detector, on the same backbone."""
    return [
        Row({"method": "RetinaNet"}, printed={"method": "RetinaNet", "backbone": "ResNet-101-FPN"}),
        Row({"method": "Faster R-CNN w FPN"}, rival="faster_rcnn_fpn"),
        Row({"method": "SSD"}, rival="ssd", printed={"method": "SSD513"}),
    ]


def table3(base: TrainConfig, alphas: str) -> list[Row]:
    """Cross entropy at its best alpha, FL, FL*."""
    return [
        Row({"loss": "CE", "gamma": None, "beta": None}, balanced(0.75)),
        Row({"loss": "FL", "gamma": 2.0, "beta": None}, focal(2.0, 0.25)),
        Row({"loss": "FL*", "gamma": 2.0, "beta": 1.0}, star(2.0, 1.0)),
        Row({"loss": "FL*", "gamma": 4.0, "beta": 0.0}, star(4.0, 0.0)),
    ]


def prior(base: TrainConfig, alphas: str) -> list[Row]:
    """The initialisation of Sec. 3.3 and 4.1: with a last bias of 0, and with pi over two decades."""
    rows = [
        Row({"loss": "CE", "pi": pi}, CE | {"prior": pi}) for pi in (NO_PRIOR, 0.1, 0.03, 0.01, 0.003, 0.001)
    ]
    return rows + [Row({"loss": "FL", "pi": pi}, focal(2.0, 0.25) | {"prior": pi}) for pi in (NO_PRIOR, 0.01)]


def hinge(base: TrainConfig, alphas: str) -> list[Row]:
    """Sec. 5.1: the hinge loss on p_t, plain and balanced."""
    rows = [
        Row({"loss": "hinge", "alpha": alpha}, {"loss": "hinge", "alpha": alpha, "margin": 0.5})
        for alpha in (None, 0.25, 0.75)
    ]
    return [*rows, Row({"loss": "FL", "alpha": 0.25}, focal(2.0, 0.25))]


def pyramid(base: TrainConfig, alphas: str) -> list[Row]:
    """Where objects of all sizes are found: on five levels with a top-down path, or less. One map may give as
    many answers as five.
    """
    from ..model.retinanet import NECKS  # torch, which a list of the tables does not need

    wide = {"topk_candidates": 5 * base.model.postprocess.topk_candidates}
    return [
        Row({"pyramid": name}, {"pyramid": name, **(wide if name in ("single", "finest") else {})})
        for name in NECKS
    ]


def fig7(base: TrainConfig, alphas: str) -> list[Row]:
    """FL* over gamma and beta, and cross entropy to compare with."""
    grid = [
        Row({"gamma": gamma, "beta": beta}, star(gamma, beta))
        for gamma in (1.0, 2.0, 4.0)
        for beta in (0.0, 1.0, 2.0)
    ]
    return [*grid, Row({"gamma": 0.0, "beta": None}, balanced(0.75))]


def fig4(base: TrainConfig, alphas: str) -> list[Row]:
    """The one model whose losses are looked at."""
    return [Row({"loss": "FL", "gamma": 2.0}, focal(2.0, 0.25))]


EXPERIMENTS = {
    "table1a": Experiment(
        "Varying alpha for cross entropy (gamma = 0)",
        table1a,
        (
            Claim("balancing helps: alpha 0.75 beats 0.5", {"alpha": 0.75}, ({"alpha": 0.5},)),
            Claim(
                "too small an alpha fails: 0.1 learns nothing",
                fails=({"alpha": 0.1},),
                control={"alpha": 0.75},
            ),
            Claim("too large an alpha hurts: 0.75 beats 0.999", {"alpha": 0.75}, ({"alpha": 0.999},)),
        ),
        "table1a",
    ),
    "table1b": Experiment(
        "Varying gamma for the focal loss",
        table1b,
        (
            Claim(
                "the focal loss beats cross entropy: gamma 2 over gamma 0", {"gamma": 2.0}, ({"gamma": 0.0},)
            ),
            Claim("a larger gamma is better up to 2: gamma 2 over 0.5", {"gamma": 2.0}, ({"gamma": 0.5},)),
            Claim("and then worse: gamma 2 over 5", {"gamma": 2.0}, ({"gamma": 5.0},)),
        ),
        "table1b",
    ),
    "table1c": Experiment(
        "Varying the scales and aspect ratios of the anchors",
        table1c,
        (
            Claim(
                "more anchors help: 3 x 3 over 1 x 1",
                {"scales": 3, "aspect_ratios": 3},
                ({"scales": 1, "aspect_ratios": 1},),
            ),
            Claim(
                "up to 6 or 9: 2 x 3 over 4 x 3",
                {"scales": 2, "aspect_ratios": 3},
                ({"scales": 4, "aspect_ratios": 3},),
            ),
        ),
        "table1c",
    ),
    "table1d": Experiment(
        "The focal loss against hard example mining",
        table1d,
        (
            Claim(
                "the focal loss beats every OHEM",
                {"method": "FL"},
                tuple(
                    {"method": "OHEM", "batch_size": size, "nms_threshold": nms}
                    for size in (128, 256, 512)
                    for nms in (0.7, 0.5)
                ),
            ),
            Claim(
                "the focal loss beats every OHEM 1:3",
                {"method": "FL"},
                tuple({"method": "OHEM 1:3", "batch_size": size} for size in (128, 256, 512)),
            ),
        ),
        "table1d",
    ),
    "table1e": Experiment(
        "Accuracy and speed by depth and image scale",
        table1e,
        tuple(
            Claim(
                f"larger pictures are better: 8/6 of the scale over 4/6, on the {depth} backbone",
                {"depth": depth, "sixths": 8},
                ({"depth": depth, "sixths": 4},),
            )
            for depth in ("shallower", "deeper")
        ),
        "table1e",
        timed=True,
    ),
    "table2": Experiment(
        "RetinaNet beside a two-stage and another one-stage detector",
        table2,
        (
            Claim(
                "RetinaNet beats the two-stage detector",
                {"method": "RetinaNet"},
                ({"method": "Faster R-CNN w FPN"},),
            ),
            Claim("RetinaNet beats the one-stage detector", {"method": "RetinaNet"}, ({"method": "SSD"},)),
        ),
        "table2",
        timed=True,
    ),
    "table3": Experiment(
        "FL and FL* against cross entropy",
        table3,
        (
            Claim("FL beats cross entropy", {"loss": "FL"}, ({"loss": "CE"},)),
            Claim(
                "FL* beats cross entropy (gamma 2, beta 1)", {"loss": "FL*", "gamma": 2.0}, ({"loss": "CE"},)
            ),
            Claim(
                "FL* beats cross entropy (gamma 4, beta 0)", {"loss": "FL*", "gamma": 4.0}, ({"loss": "CE"},)
            ),
        ),
        "table3",
    ),
    "prior": Experiment(
        "The prior pi of the initialisation",
        prior,
        (
            Claim(
                "without the prior cross entropy diverges or learns nothing",
                fails=({"loss": "CE", "pi": NO_PRIOR},),
                control={"loss": "CE", "pi": 0.01},
            ),
            Claim(
                "with pi = 0.01 it trains: better than without",
                {"loss": "CE", "pi": 0.01},
                ({"loss": "CE", "pi": NO_PRIOR},),
            ),
        ),
    ),
    "hinge": Experiment(
        "The hinge loss on p_t",
        hinge,
        (
            Claim(
                "it gives no meaningful result",
                fails=tuple({"loss": "hinge", "alpha": alpha} for alpha in (None, 0.25, 0.75)),
                control={"loss": "FL"},
            ),
            Claim(
                "the focal loss beats it",
                {"loss": "FL"},
                tuple({"loss": "hinge", "alpha": alpha} for alpha in (None, 0.25, 0.75)),
            ),
        ),
    ),
    "pyramid": Experiment(
        "The designs of the pyramid",
        pyramid,
        (
            Claim(
                "FPN beats the other designs",
                {"pyramid": "fpn"},
                tuple({"pyramid": name} for name in ("single", "hierarchy", "finest")),
            ),
        ),
    ),
    "fig4": Experiment("Cumulative losses of a trained model", fig4, ()),
    "fig7": Experiment(
        "FL* over a grid of gamma and beta",
        fig7,
        (
            Claim(
                "FL* beats cross entropy for a range of settings: gamma 2, beta 1",
                {"gamma": 2.0, "beta": 1.0},
                ({"gamma": 0.0},),
            ),
        ),
    ),
}

FORMULAS = {
    "fig1": "The focal loss against the probability of the truth, for every gamma",
    "fig2": "Speed against accuracy, from the table1e and table2 of a study",
    "fig5": "FL and FL* against x_t",
    "fig6": "Their derivatives, against autograd",
}
"""Figures that need no data set."""


def experiment(name: str) -> Experiment:
    """The experiment of that name; ConfigError with the nearest names when there is none."""
    if name not in EXPERIMENTS:
        raise unknown_name_error("experiment", name, EXPERIMENTS)
    return EXPERIMENTS[name]
