"""The benchmarks run, on sizes that say nothing about speed, and their page agrees with their records."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from retinanet import cli

FOLDER = Path(__file__).parents[1] / "benchmarks"
SMALL = {
    "assignment": "--boxes 3 --side 128 --repeats 1",
    "class_loss": "--side 64 --classes 3 --repeats 1 --timings-only",
    "exporting": "--side 64 --repeats 1 --files openvino-fp32",
    "growth": "--side 64 --points 2 --repeats 1 --backbone test_resnet",
    "loading": "--pictures 2 --batch 2 --scale 64 --images 50 --boxes 100 --workers 0 --repeats 1",
    "postprocessing": "--side 128 --batch 2 --classes 3 --repeats 1 --network-repeats 1 --device cpu "
    "--backbone test_resnet",
    "predicting": "--images 4 --size 48 64 --repeats 1 --workers 0",
    "prediction": "--side 64 --repeats 1 --no-cold --product 64",
    "training_step": "--side 64 --backbone resnet18 --repeats 1 --no-memory --product 64",
}


@pytest.fixture
def script(monkeypatch):
    """Calls a script's main with some words."""
    monkeypatch.syspath_prepend(FOLDER)

    def call(name, words=""):
        monkeypatch.setattr(sys, "argv", [str(FOLDER / f"{name}.py"), *words.split()])
        return importlib.import_module(name)

    return call


SLOW = ("exporting",)  # tests/export exports such a model too


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in SMALL]
)
def test_a_benchmark_runs_and_leaves_a_record_that_the_page_can_read(name, script, tmp_path, monkeypatch):
    product, benchmark = (
        script("measure").product,
        script(name, f"{SMALL[name]} --out {tmp_path / name}.json"),
    )
    if name in ("exporting", "prediction"):  # neither large matrices nor processes of their own
        monkeypatch.setattr(benchmark, "product", lambda precision, *_: product(precision, side=64))
        monkeypatch.setattr(benchmark, "run", lambda *words: cli.main(words))
    benchmark.main()
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["script"] == f"benchmarks/{name}.py" and found["versions"]["torch"]
    page = script("report").page(tmp_path)
    assert f"python benchmarks/{name}.py" in page and page.count("\n| ") > 2


def test_without_a_gpu_its_benchmark_says_so_and_ends_well(script, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    script("gpu").main()
    assert "no GPU at hand" in capsys.readouterr().out


def test_the_page_of_measurements_is_what_the_records_say(script):
    report = script("report")
    assert report.PAGE.read_text(encoding="utf-8") == report.page(report.RESULTS)
