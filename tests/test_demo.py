"""The first run. Whole and at its real length it is slow; a short one is not."""

import json

import pytest

from retinanet import demo
from retinanet.config.commands import DemoConfig
from retinanet.config.io import override


@pytest.fixture
def short(monkeypatch):
    """A demo of seconds: few scenes, a tiny network."""
    monkeypatch.setattr(demo, "SCENES", {"train": 6, "val": 2, "test": 3})
    monkeypatch.setattr(demo, "SHOWN", 3)
    monkeypatch.setattr(demo, "NETWORK", {"scale": 64, "train_scale": 64})
    small = demo.preset("tiny")
    small = override(small, {"channels": 32, "num_convs": 1, "batch": 2, "workers": 0})
    monkeypatch.setattr(demo, "preset", lambda _: small)


def test_the_demo_leaves_a_page_with_its_numbers_and_pictures(short, tmp_path):
    folder = demo.run(DemoConfig(out=tmp_path / "demo", budget="2it", device="cpu"))
    page = (folder / "page.html").read_text()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"{metrics['AP']:.3f}" in page
    assert page.count("data:image/") == 6
    assert "retinanet train YOUR_FOLDER" in page
    assert metrics["split"] == "test"


def test_a_second_demo_never_overwrites_the_first(short, tmp_path):
    first = demo.run(DemoConfig(out=tmp_path / "demo", budget="1it", device="cpu"))
    second = demo.run(DemoConfig(out=tmp_path / "demo", budget="1it", device="cpu"))
    assert (first.name, second.name) == ("demo", "demo-2")


@pytest.mark.slow
def test_the_real_demo_reaches_half_of_all_ap_in_minutes(tmp_path):
    folder = demo.run(DemoConfig(out=tmp_path / "demo", device="cpu"))
    assert json.loads((folder / "metrics.json").read_text())["AP"] >= 0.5
