"""The figures: the values that are drawn against hand and slow arithmetic, and the files that are written."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from retinanet.data.formats.coco import read_coco
from retinanet.data.images import read_image
from retinanet.inference.detector import Detector
from retinanet.lab import cumulative, figures
from retinanet.lab.paper import speed_points
from retinanet.model.criterion import Criterion
from retinanet.model.postprocess import Postprocess
from retinanet.model.preprocess import Preprocess
from retinanet.model.retinanet import RetinaNet

GAMMAS = (0.0, 0.5, 1.0, 2.0)
OURS = [("RetinaNet-18", "256", 31.2, 20.1), ("RetinaNet-18", "384", 60.1, 26.9), ("SSD", "", 30.0, 15.0)]
CELLS = [(1.0, 0.0, 30.0), (2.0, 0.0, 33.0), (2.0, 1.0, 34.0), (4.0, -1.0, None), (4.0, 0.0, 34.0)]
CELLS += [(0.5, 2.0, 12.0)]


def line(gamma, losses):
    y = cumulative.cumulative(np.array(losses))
    return {"label": f"γ = {gamma:g}", "gamma": gamma, "y": y, "hardest_fifth": 1 - y[160]}


def shares():
    lines = [line(gamma, np.arange(1, 11) ** (gamma + 1)) for gamma in GAMMAS]
    groups = {name: {"found": 10, "used": 10, "lines": lines} for name in ("positives", "negatives")}
    return {"images": 1, "seed": 0, "x": cumulative.FRACTIONS.tolist(), **groups}


def rows(losses):
    return [{"kind": "train", "iteration": 10 * i, "loss": loss} for i, loss in enumerate(losses)] + [
        {"kind": "val", "iteration": 5}
    ]


DRAWN = {
    "fig1": figures.fig1,
    "fig2": lambda out: figures.fig2(OURS, speed_points(), out, "this machine"),
    "fig4": lambda out: figures.fig4(shares(), out) or shares(),
    "fig5": figures.fig5,
    "fig6": figures.fig6,
    "fig7": lambda out: figures.fig7(CELLS, out, 33.0),
    "prior": lambda out: figures.curves(
        {"π = 0.01": rows([2.0, 1.0]), "$no prior_": rows([90.0, 99.0, None])}, out, "prior"
    ),
}


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """Each figure drawn once: name -> its numbers, and the folder of its files."""
    folder = tmp_path_factory.mktemp("figures")
    return {name: (draw(folder / name), folder / name) for name, draw in DRAWN.items()}


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_an_svg_and_a_png_and_its_numbers_are_json(name, once):
    numbers, folder = once[name]
    assert {path.name for path in folder.iterdir()} == {f"{name}.svg", f"{name}.png"}
    with Image.open(folder / f"{name}.png") as image:
        assert image.width == 3.5 * 300
        assert len(np.unique(np.asarray(image.convert("L")))) > 20
    assert (folder / f"{name}.svg").read_bytes().startswith(b"<?xml")
    json.dumps(numbers, allow_nan=False)


@pytest.mark.parametrize("name", ["fig4", "fig6", "prior"])
def test_equal_values_give_equal_bytes(name, once, tmp_path):
    numbers, folder = once[name]
    assert DRAWN[name](tmp_path) == numbers
    for file in (f"{name}.svg", f"{name}.png"):
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()


def test_figure_1_is_the_focal_loss(once):
    drawn, _ = once["fig1"]
    half, tenth = drawn["x"].index(0.5), drawn["x"].index(0.1)
    assert [line["gamma"] for line in drawn["lines"]] == [0, 0.5, 1, 2, 5]
    for line in drawn["lines"]:
        assert line["y"][half] == pytest.approx(0.5 ** line["gamma"] * math.log(2))
        assert line["y"][tenth] == pytest.approx(0.9 ** line["gamma"] * math.log(10))


def test_figure_5_at_an_example_that_is_undecided(once):
    drawn, _ = once["fig5"]
    values = {line["label"]: line["y"][drawn["x"].index(0.0)] for line in drawn["lines"]}
    assert values == pytest.approx(
        {
            "CE": math.log(2),
            "FL, γ = 2": math.log(2) / 4,
            "FL*, γ = 2, β = 1": math.log(1 + math.exp(-1)) / 2,
            "FL*, γ = 4, β = 0": math.log(2) / 4,
        }
    )


def test_figure_6_is_the_slope_of_figure_5_and_autograd_agrees(once):
    slopes, heights = once["fig6"][0], once["fig5"][0]
    assert slopes["difference"] == max(line["difference"] for line in slopes["lines"]) < 1e-10
    for slope, height in zip(slopes["lines"], heights["lines"], strict=True):
        middle = (np.array(height["y"][2:]) - np.array(height["y"][:-2])) / 0.1
        np.testing.assert_allclose(slope["y"][1:-1], middle, atol=1e-2)


def test_a_closed_form_that_is_not_the_slope_is_not_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "VARIANTS", (("CE", figures.losses.cross_entropy, torch.sigmoid),))
    with pytest.raises(AssertionError, match="differ by"):
        figures.fig6(tmp_path)
    assert not (tmp_path / "fig6.svg").exists()


def test_figure_2_returns_ours_and_the_papers_points(once, tmp_path):
    drawn, _ = once["fig2"]
    assert drawn["ours"][1] == {"series": "RetinaNet-18", "label": "384", "milliseconds": 60.1, "AP": 26.9}
    assert len(drawn["paper"]) == 11
    assert figures.fig2([], speed_points(), tmp_path, "this machine")["ours"] == []


def test_figure_7_calls_effective_what_lies_above_the_reference(once, tmp_path):
    def effective(drawn):
        return [(cell["gamma"], cell["beta"]) for cell in drawn["cells"] if cell["effective"]]

    drawn, _ = once["fig7"]
    assert (drawn["limit"], effective(drawn)) == (33.0, [(2.0, 1.0), (4.0, 0.0)])
    assert drawn["cells"][3] == {"gamma": 4.0, "beta": -1.0, "AP": None, "effective": False}
    assert effective(figures.fig7([(2.0, 1.0, None)], tmp_path, 33.0)) == []


def test_a_curve_ends_where_its_loss_is_no_number(tmp_path):
    drawn = figures.curves(
        {"a": rows([3, 2, math.inf, 1]), "b": rows([None]), "c": rows([1.0] * 120), "d": []},
        tmp_path,
        "losses",
    )
    assert drawn["a"] == {"x": [0, 10], "y": [3, 2], "cut": 20}
    assert drawn["b"] == {"x": [], "y": [], "cut": 0}
    assert drawn["c"]["y"] == pytest.approx([1.0] * 120)  # smoothed, also at its ends
    assert drawn["c"]["cut"] is None
    assert drawn["d"] == {"x": [], "y": [], "cut": None}


def test_the_hardest_fifth_of_one_to_ten_are_nine_and_ten():
    y = cumulative.cumulative(np.array([3, 10, 1, 9, 5, 7, 2, 8, 4, 6]))
    assert (y[0], y[-1]) == (0, 1)
    assert 1 - y[160] == pytest.approx(19 / 55)
    assert y[20] == pytest.approx(1 / 55)  # the easiest tenth
    assert y[10] == pytest.approx(0.5 / 55)  # between anchors it is straight
    assert (
        cumulative.cumulative(np.zeros(3))
        is cumulative.cumulative(np.empty(0))
        is cumulative.cumulative(np.array([math.nan, 1]))
        is None
    )


@pytest.fixture(scope="module")
def detector(scenes):
    data = read_coco(scenes / "annotations" / "train.json")
    torch.manual_seed(0)
    model = RetinaNet(len(data.names), "test_resnet", "batch", channels=16, num_convs=1)
    torch.nn.init.normal_(model.class_subnet[-1].weight, std=0.3)  # fresh, it says the same everywhere
    return Detector(model, Preprocess(64), Postprocess(), data.names, data.category_ids)


def slow_losses(detector, data, gamma):
    """The losses of all positive and of all negative anchors, one by one, from the printed formula."""
    positives, negatives = [], []
    for index in range(len(data)):
        image = read_image(data.path(index))
        images, sizes = detector.preprocess.stack([detector.preprocess.resized(image)])
        with torch.inference_mode():
            logits, _, normalized = detector.forward(images, sizes)
        anchors = torch.cat(detector.model.anchors(normalized)).double()
        height, width = sizes[0].tolist()
        scale = torch.tensor([width / image.shape[2], height / image.shape[1]] * 2)
        iou = box_iou(anchors, (torch.from_numpy(data.boxes[data.rows(index)]).float() * scale).double())
        centers = (anchors[:, :2] + anchors[:, 2:]) / 2
        within = (centers[:, 0] < width) & (centers[:, 1] < height)
        iou[~within] = 0
        forced = ((iou == iou.amax(dim=0)) & (iou >= 0.4)).any(dim=1)
        for p, overlap, is_forced, counts in zip(
            torch.cat(logits, dim=1)[0].double().sigmoid(), iou, forced, within, strict=True
        ):
            best = max(overlap.tolist(), default=0.0)
            if not counts:
                continue
            if is_forced or best >= 0.5:
                p_t = p[data.labels[data.rows(index)][overlap.argmax()]]
                positives.append(float(-((1 - p_t) ** gamma) * p_t.log()))
            elif best < 0.4:
                negatives.append(float((-(p**gamma) * (1 - p).log()).sum()))
    return positives, negatives


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_the_shares_of_the_loss_are_those_of_a_slow_restatement(detector, scenes, gamma):
    data = read_coco(scenes / "annotations" / "train.json")
    found = cumulative.cumulative_losses(detector, data, Criterion())
    assert found["images"] == len(data)
    for name, losses in zip(("positives", "negatives"), slow_losses(detector, data, gamma), strict=True):
        assert found[name]["found"] == found[name]["used"] == len(losses) > 0
        (line,) = [line for line in found[name]["lines"] if line["gamma"] == gamma]
        ordered = sorted(losses)
        whole = math.fsum(ordered)
        assert line["y"] == pytest.approx(cumulative.cumulative(np.array(losses)), abs=1e-5)
        easiest = math.fsum(ordered[: int(0.8 * len(ordered))]) / whole
        assert 1 - line["hardest_fifth"] == pytest.approx(easiest, abs=ordered[-1] / whole)


def test_curves_rise_from_0_to_1_and_gamma_moves_the_loss_to_the_hardest(detector, scenes):
    found = cumulative.cumulative_losses(
        detector, read_coco(scenes / "annotations" / "val.json"), Criterion()
    )
    for name in ("positives", "negatives"):
        lines = found[name]["lines"]
        assert [line["gamma"] for line in lines] == list(GAMMAS)
        for line in lines:
            assert len(line["y"]) == len(found["x"]) == 201
            assert (line["y"][0], line["y"][-1]) == (0, pytest.approx(1))
            assert (np.diff(line["y"], n=2) > -1e-6).all()  # sorted from the lowest: ever steeper
        assert [line["hardest_fifth"] for line in lines] == sorted(line["hardest_fifth"] for line in lines)


def test_a_limit_draws_negatives_by_the_seed_whatever_the_batch(detector, scenes, monkeypatch):
    data = read_coco(scenes / "annotations" / "train.json")
    whole = cumulative.cumulative_losses(detector, data, Criterion())["negatives"]["lines"][2]
    monkeypatch.setattr(cumulative, "LIMIT", 700)
    drawn = []
    for seed, batch in ((0, 1), (0, 4), (1, 4)):
        monkeypatch.setattr(cumulative, "SEED", seed)
        monkeypatch.setattr(cumulative, "BATCH", batch)
        drawn.append(cumulative.cumulative_losses(detector, data, Criterion())["negatives"])
    assert drawn[0]["found"] == drawn[1]["found"] > drawn[0]["used"] == 700
    curves = [negatives["lines"][2]["y"] for negatives in drawn]
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    assert curves[0] != pytest.approx(curves[2], abs=1e-5)
    assert drawn[0]["lines"][2]["hardest_fifth"] == pytest.approx(whole["hardest_fifth"], abs=0.1)


def test_none_of_the_anchors_need_be_positive(detector, scenes):
    data = read_coco(scenes / "annotations" / "train.json")
    bare = data.keep_boxes(np.zeros(len(data.labels), dtype=bool))
    found = cumulative.cumulative_losses(detector, bare, Criterion())
    assert found == cumulative.cumulative_losses(detector, bare, Criterion())
    assert (found["images"], found["positives"]["found"]) == (len(data), 0)
    assert all(line["y"] is None and line["hardest_fifth"] is None for line in found["positives"]["lines"])
    json.dumps(found, allow_nan=False)


def test_figure_4_leaves_out_a_group_without_a_loss(detector, scenes, tmp_path):
    data = read_coco(scenes / "annotations" / "val.json")
    bare = data.keep_boxes(np.zeros(len(data.labels), dtype=bool))
    figures.fig4(cumulative.cumulative_losses(detector, bare, Criterion()), tmp_path)
    assert (tmp_path / "fig4.png").stat().st_size > 0
