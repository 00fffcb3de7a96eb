"""A study from the command line: every experiment runs, nothing is repeated, what diverges is reported."""

import json
import logging
from dataclasses import replace

import helpers
import pytest

from retinanet.cli import main
from retinanet.config.commands import LabConfig
from retinanet.config.io import override
from retinanet.config.presets import preset
from retinanet.errors import ConfigError, DivergenceError
from retinanet.lab import command as illustrate
from retinanet.lab import run as study
from retinanet.lab import tables as experiments
from retinanet.training.pace import Pace

SMALL = helpers.SMALL | {"channels": 16}
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One study for all experiments: rows that they share are trained once."""
    return tmp_path_factory.mktemp("study")


@pytest.fixture
def two_rows(monkeypatch):
    """Of every experiment the first and the last row."""
    for found in experiments.EXPERIMENTS.values():

        def few(base, alphas, rows=found.rows):
            every = rows(base, alphas)
            return every[:: max(1, len(every) - 1)]

        monkeypatch.setattr(found, "rows", few)


def config(folder, **settings):
    return LabConfig(train=override(preset("tiny"), {**SMALL, "budget": "2it", "out": folder, **settings}))


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_every_experiment_runs(name, scenes, folder, two_rows, caplog):
    with caplog.at_level(logging.INFO, "retinanet"):
        backbone = "resnet18" if name in ("table1e", "table2") else "test_resnet"  # they need a ResNet
        assert illustrate.experiment(name, str(scenes), config(folder, backbone=backbone)) == folder
    content = json.loads((folder / f"{name}.json").read_text())
    for row in content["rows"]:
        (result,) = row["results"]
        assert result["state"] in ("trained", "stalled")
        assert result["iterations"] == 2
        assert result.keys() >= {"config", "seed", "data_hash", "versions", "machine", "metrics"}
    assert content["title"] in caplog.text
    if name in ("fig4", "fig7", "prior", "hinge"):
        assert (folder / "figures" / f"{name}.svg").stat().st_size > 0


def test_the_report_holds_all_that_was_run(folder, scenes, two_rows, capsys):
    illustrate.experiment("table1b", str(scenes), config(folder))
    assert main(["lab", "fig1", "--out", str(folder)]) == 0
    assert main(["lab", "report", str(folder)]) == 0
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for content in (page, text):
        assert "Varying gamma for the focal loss" in content
        assert "31.1" in content
        assert "cannot tell" in content
    assert "data:image/svg+xml" in page
    assert str(folder) not in page + text


def test_a_finished_row_is_not_trained_again_and_a_stopped_one_goes_on(scenes, tmp_path, monkeypatch):
    """The row is stopped after its first iteration, as by a signal; then the study is run again, twice."""
    begun, gone_on = [], []
    train, go_on = study.train, study.resume_run

    def stopped(source, settings, *rest):
        begun.append(settings.criterion.gamma)
        monkeypatch.setattr(
            "retinanet.training.loop.validate_and_save",
            lambda *some: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        train(source, settings, *rest)

    monkeypatch.setattr(study, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        study.run("fig4", str(scenes), config(tmp_path))
    monkeypatch.undo()
    monkeypatch.setattr(study, "resume_run", lambda *some: (gone_on.append(1), go_on(*some)))
    study.run("fig4", str(scenes), config(tmp_path))
    assert (len(begun), len(gone_on)) == (1, 1)
    (result,) = (tmp_path / "rows").glob("*/result.json")
    before = result.stat().st_mtime_ns
    study.run("fig4", str(scenes), config(tmp_path))
    assert len(gone_on) == 1
    assert result.stat().st_mtime_ns == before
    assert not (result.parent / "state.pt").exists()


def test_a_row_that_diverges_is_reported_and_never_tried_again(scenes, tmp_path, monkeypatch):
    tried = []

    def diverging(source, settings, *rest):
        tried.append(settings)
        settings.out.mkdir(parents=True)
        (settings.out / "metrics.jsonl").write_text('{"kind": "train", "iteration": 1, "loss": null}\n')
        raise DivergenceError("the class loss is not finite\nmore")

    monkeypatch.setattr(study, "train", diverging)
    for _ in range(2):
        path = study.run("fig4", str(scenes), config(tmp_path))
    (result,) = json.loads(path.read_text())["rows"][0]["results"]
    assert (result["state"], result["reason"], len(tried)) == ("diverged", "the class loss is not finite", 1)
    assert (tmp_path / "rows" / result["key"] / "metrics.jsonl").exists()


def test_minutes_become_iterations_once(scenes, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        study, "plan", lambda session, started: (asked.append(session.config.budget), Pace(2, 1))[1]
    )
    for _ in range(2):
        study.begin(str(scenes), config(tmp_path, budget="3min"))
    assert asked == ["3min"]
    assert study.begin(str(scenes), config(tmp_path, budget="3min")).iterations == 2


def test_rows_differ_by_what_is_learned_and_by_nothing_else(scenes, tmp_path):
    data = study.open_training(str(scenes), 0)
    base = config(tmp_path).train

    def key(seed=0, iterations=2, **changes):
        return study.identity(override(base, changes), seed, iterations, data)

    assert key() == key(device="cuda", workers=3, log_every=1, budget="9min")
    assert len({key(), key(gamma=1.0), key(scale=96), key(seed=1), key(iterations=3)}) == 5


def test_several_seeds_give_intervals_and_leave_one_seeds_weights(scenes, tmp_path):
    path = study.run("fig4", str(scenes), replace(config(tmp_path), seeds=2))
    results = json.loads(path.read_text())["rows"][0]["results"]
    assert [result["seed"] for result in results] == [0, 1]
    assert [(tmp_path / "rows" / result["key"] / "model.safetensors").exists() for result in results] == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["lab", "tabel1b", "DATA"], "table1b"),
        (["lab", "report", "nowhere"], "holds no results"),
        (["lab", "fig2", "--out", "nowhere"], "neither table1e nor table2"),
    ],
)
def test_what_cannot_be_done_is_said(words, reason, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    assert reason in capsys.readouterr().err


def test_the_list_of_experiments_is_the_help(capsys):
    assert main(["lab", "--help"]) == 0
    assert "table1d" in capsys.readouterr().out
    assert main(["lab"]) == 2


def test_a_backbone_without_a_deeper_one_has_no_table1e():
    with pytest.raises(ConfigError, match="deeper"):
        experiments.table1e(override(preset("tiny"), {"backbone": "convnext_tiny"}), "paper")
