"""The paper's tables as data: what changes from row to row, and what the paper concludes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config.schema import TrainConfig
from ..errors import ConfigError, unknown_name_error

DEEPER = {"resnet18": "resnet34", "resnet34": "resnet50", "resnet50": "resnet101", "resnet101": "resnet152"}
"""The two depths of Table 1e, and what they are for another backbone."""

NO_PRIOR = 0.5
"""pi of a last bias of 0: every anchor starts with this probability of each class."""

Values = Mapping[str, Any]
"""What a row is called by: the columns of the paper's table, or some of them."""


@dataclass(frozen=True)
class Row:
    """One training of an experiment.

    values    the row's columns in the paper's table
    changes   settings of `TrainConfig` and its parts, by name, that differ from the base
    baseline  another detector than ours, a key of `lab.baseline_models.BASELINES`
    group     of the rows of one group only the best counts, by mean AP in validation
    printed   columns by which the paper's table knows the row; None: `values`
    """

    values: Values
    changes: Mapping[str, Any] = field(default_factory=dict)
    baseline: str | None = None
    group: str = ""
    printed: Values | None = None

    @property
    def name(self) -> str:
        """gamma 2, alpha 0.25; columns that are empty are left out."""
        return ", ".join(f"{key} {cell(value)}" for key, value in self.values.items() if value is not None)


def cell(value: Any) -> str:
    """A value of a row as text."""
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Claim:
    """What the paper concludes: the AP of `high` is above that of every row of `low`; or all rows of `fails`
    diverge or learn nothing, while `control` trains."""

    text: str
    high: Values = field(default_factory=dict)
    low: tuple[Values, ...] = ()
    fails: tuple[Values, ...] = ()
    control: Values = field(default_factory=dict)


class Experiment:
    """A table: its rows and its claims.

    rows   (base, source of the alphas: paper or search) -> the rows
    timed  whether milliseconds per image belong to the result
    """

    def __init__(
        self, title: str, rows: Callable[[TrainConfig, str], list[Row]], *claims: Claim, timed: bool = False
    ) -> None:
        self.title, self.rows, self.claims, self.timed = title, rows, claims, timed


CE = {"loss": "cross_entropy", "alpha": None}


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
    """The focal loss with every gamma, each with its alpha in the paper, or with several to choose from."""
    rows = []
    for gamma, printed in PAPERS_ALPHA.items():
        for alpha in (printed,) if alphas == "paper" else (0.25, 0.5, 0.75):
            group = "" if alphas == "paper" else f"gamma {gamma:g}"
            rows.append(Row({"gamma": gamma, "alpha": alpha}, focal(gamma, alpha), group=group))
    return rows


def anchors_of(scales: int, ratios: int) -> dict[str, int]:
    """The columns of a row of Table 1c."""
    return {"scales": scales, "aspect_ratios": ratios}


def table1c(base: TrainConfig, alphas: str) -> list[Row]:
    """1 to 12 anchors of a cell: scales are even steps of an octave, ratios 1 or 1:2, 1:1, 2:1."""
    rows = []
    for scales, ratios in ((1, 1), (2, 1), (3, 1), (1, 3), (2, 3), (3, 3), (4, 3)):
        steps = tuple(2 ** (step / scales) for step in range(scales))
        shape = {"anchor_scales": steps, "anchor_ratios": (0.5, 1.0, 2.0) if ratios == 3 else (1.0,)}
        rows.append(Row(anchors_of(scales, ratios), shape))
    return rows


MINED: tuple[dict[str, Any], ...] = tuple(
    {"method": method, "batch_size": size, "nms_threshold": threshold}
    for method, thresholds in (("OHEM", (0.7, 0.5)), ("OHEM 1:3", (0.5,)))
    for threshold in thresholds
    for size in (128, 256, 512)
)


def table1d(base: TrainConfig, alphas: str) -> list[Row]:
    """Hard example mining and random sampling (not in the paper) over cross entropy, beside FL."""
    rows = []
    for row in MINED:
        mining = {"OHEM": "ohem", "OHEM 1:3": "ohem-1:3"}[row["method"]]
        changes = {"mining": mining, "mining_batch": row["batch_size"], "mining_nms": row["nms_threshold"]}
        rows.append(Row(row, CE | changes))
    values = {"method": "random 1:3", "batch_size": 256, "nms_threshold": None}
    rows.append(Row(values, CE | {"mining": "random", "mining_batch": 256}))
    return [*rows, Row({"method": "FL", "batch_size": None, "nms_threshold": None}, focal(2.0, 0.25))]


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
            changes = {"backbone": backbone, "scale": scale, "train_scale": None, "max_side": None}
            values = {"backbone": backbone, "depth": depth, "scale": scale, "sixths": sixths}
            rows.append(Row(values, changes, printed={"depth": papers, "scale": 100 * sixths}))
    return rows


def table2(base: TrainConfig, alphas: str) -> list[Row]:
    """Beside a two-stage and another one-stage detector, on the same backbone."""
    return [
        Row({"method": "RetinaNet"}, printed={"method": "RetinaNet", "backbone": "ResNet-101-FPN"}),
        Row({"method": "Faster R-CNN w FPN"}, baseline="faster_rcnn_fpn"),
        Row({"method": "SSD"}, baseline="ssd", printed={"method": "SSD513"}),
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
    entropy = (NO_PRIOR, 0.1, 0.03, 0.01, 0.003, 0.001)
    rows = [Row({"loss": "CE", "pi": pi}, CE | {"prior": pi}) for pi in entropy]
    return rows + [Row({"loss": "FL", "pi": pi}, focal(2.0, 0.25) | {"prior": pi}) for pi in (NO_PRIOR, 0.01)]


HINGES = tuple({"loss": "hinge", "alpha": alpha} for alpha in (None, 0.25, 0.75))


def hinge(base: TrainConfig, alphas: str) -> list[Row]:
    """Sec. 5.1: the hinge loss on p_t, plain and balanced."""
    rows = [Row(values, {**values, "margin": 0.5}) for values in HINGES]
    return [*rows, Row({"loss": "FL", "alpha": 0.25}, focal(2.0, 0.25))]


def pyramid(base: TrainConfig, alphas: str) -> list[Row]:
    """The designs of the pyramid; a single map may have as many detections as five levels."""
    from ..model.retinanet import NECKS  # torch, which a list of the tables does not need

    wide = {"topk_candidates": 5 * base.model.postprocess.topk_candidates}
    return [
        Row({"pyramid": name}, {"pyramid": name} | (wide if name in ("single", "finest") else {}))
        for name in NECKS
    ]


def fig7(base: TrainConfig, alphas: str) -> list[Row]:
    """FL* over gamma and beta, and cross entropy to compare with."""
    grid = [(gamma, beta) for gamma in (1.0, 2.0, 4.0) for beta in (0.0, 1.0, 2.0)]
    rows = [Row({"gamma": gamma, "beta": beta}, star(gamma, beta)) for gamma, beta in grid]
    return [*rows, Row({"gamma": 0.0, "beta": None}, balanced(0.75))]


def fig4(base: TrainConfig, alphas: str) -> list[Row]:
    """The one model whose losses are examined."""
    return [Row({"loss": "FL", "gamma": 2.0}, focal(2.0, 0.25))]


def beats(text: str, high: Values, *low: Values) -> Claim:
    """The AP of `high` is above that of every row of `low`."""
    return Claim(text, high, low)


def fails(text: str, control: Values, *rows: Values) -> Claim:
    """All `rows` diverge or learn nothing, while `control` trains."""
    return Claim(text, fails=rows, control=control)


EXPERIMENTS = {
    "table1a": Experiment(
        "Varying alpha for cross entropy (gamma = 0)",
        table1a,
        beats("balancing helps: alpha 0.75 beats 0.5", {"alpha": 0.75}, {"alpha": 0.5}),
        fails("too small an alpha fails: 0.1 learns nothing", {"alpha": 0.75}, {"alpha": 0.1}),
        beats("too large an alpha hurts: 0.75 beats 0.999", {"alpha": 0.75}, {"alpha": 0.999}),
    ),
    "table1b": Experiment(
        "Varying gamma for the focal loss",
        table1b,
        beats("the focal loss beats cross entropy: gamma 2 over gamma 0", {"gamma": 2.0}, {"gamma": 0.0}),
        beats("a larger gamma is better up to 2: gamma 2 over 0.5", {"gamma": 2.0}, {"gamma": 0.5}),
        beats("and then worse: gamma 2 over 5", {"gamma": 2.0}, {"gamma": 5.0}),
    ),
    "table1c": Experiment(
        "Varying the scales and aspect ratios of the anchors",
        table1c,
        beats("more anchors help: 3 x 3 over 1 x 1", anchors_of(3, 3), anchors_of(1, 1)),
        beats("up to 6 or 9: 2 x 3 over 4 x 3", anchors_of(2, 3), anchors_of(4, 3)),
    ),
    "table1d": Experiment(
        "The focal loss against hard example mining",
        table1d,
        *(
            beats(
                f"the focal loss beats every {name}",
                {"method": "FL"},
                *(row for row in MINED if row["method"] == name),
            )
            for name in ("OHEM", "OHEM 1:3")
        ),
    ),
    "table1e": Experiment(
        "Accuracy and speed by depth and image scale",
        table1e,
        *(
            beats(
                f"larger images are better: 8/6 of the scale over 4/6, on the {depth} backbone",
                {"depth": depth, "sixths": 8},
                {"depth": depth, "sixths": 4},
            )
            for depth in ("shallower", "deeper")
        ),
        timed=True,
    ),
    "table2": Experiment(
        "RetinaNet beside a two-stage and another one-stage detector",
        table2,
        beats(
            "RetinaNet beats the two-stage detector",
            {"method": "RetinaNet"},
            {"method": "Faster R-CNN w FPN"},
        ),
        beats("RetinaNet beats the one-stage detector", {"method": "RetinaNet"}, {"method": "SSD"}),
        timed=True,
    ),
    "table3": Experiment(
        "FL and FL* against cross entropy",
        table3,
        beats("FL beats cross entropy", {"loss": "FL"}, {"loss": "CE"}),
        beats("FL* beats cross entropy (gamma 2, beta 1)", {"loss": "FL*", "gamma": 2.0}, {"loss": "CE"}),
        beats("FL* beats cross entropy (gamma 4, beta 0)", {"loss": "FL*", "gamma": 4.0}, {"loss": "CE"}),
    ),
    "prior": Experiment(
        "The prior pi of the initialisation",
        prior,
        fails(
            "without the prior cross entropy diverges or learns nothing",
            {"loss": "CE", "pi": 0.01},
            {"loss": "CE", "pi": NO_PRIOR},
        ),
        beats(
            "with pi = 0.01 it trains: better than without",
            {"loss": "CE", "pi": 0.01},
            {"loss": "CE", "pi": NO_PRIOR},
        ),
    ),
    "hinge": Experiment(
        "The hinge loss on p_t",
        hinge,
        fails("it gives no meaningful result", {"loss": "FL"}, *HINGES),
        beats("the focal loss beats it", {"loss": "FL"}, *HINGES),
    ),
    "pyramid": Experiment(
        "The designs of the pyramid",
        pyramid,
        beats(
            "FPN beats the other designs",
            {"pyramid": "fpn"},
            *({"pyramid": name} for name in ("single", "hierarchy", "finest")),
        ),
    ),
    "fig4": Experiment("Cumulative losses of a trained model", fig4),
    "fig7": Experiment(
        "FL* over a grid of gamma and beta",
        fig7,
        beats(
            "FL* beats cross entropy for a range of settings: gamma 2, beta 1",
            {"gamma": 2.0, "beta": 1.0},
            {"gamma": 0.0},
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
