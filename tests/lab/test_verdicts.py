"""Verdicts: what may be concluded from seeds, and what may not."""

import json

import pytest

from retinanet.config.io import check, override
from retinanet.config.presets import preset
from retinanet.errors import CheckpointError, ConfigError
from retinanet.lab import verdicts as findings
from retinanet.lab.paper import TABLES, ap
from retinanet.lab.tables import EXPERIMENTS, experiment
from retinanet.lab.verdicts import Mean, mean, paired

BASE = preset("tiny")


def test_an_interval_is_students():
    found = mean([1.0, 2.0, 3.0])
    assert found.value == 2.0
    assert found.half == pytest.approx(4.303 * 1 / 3**0.5)
    assert mean([5.0]) == Mean(5.0, None, 1)


def test_one_cannot_tell_from_one_seed_nor_from_an_interval_around_0():
    assert mean([5.0]).sign == 0
    assert mean([1.0, -1.0, 2.0]).sign == 0
    assert mean([1.0, 1.1, 0.9]).sign == 1
    assert mean([-1.0, -1.1, -0.9]).sign == -1


def test_differences_are_paired_by_seed():
    """Seeds differ by 10, the rows by 1: only pairs show it."""
    high, low = {0: 11.0, 1: 21.2, 2: 30.9, 7: 99.0}, {0: 10.0, 1: 20.0, 2: 30.0}
    difference = paired(high, low)
    assert difference.count == 3
    assert difference.sign == 1
    assert paired({0: 1.0}, {1: 1.0}) is None


def lines(name, **aps):
    """Rows of an experiment with these AP by seed, by the values that name them."""
    rows = EXPERIMENTS[name].rows(BASE, "paper")
    made = []
    for row in rows:
        scores = aps.get(row.name, [0.1, 0.1, 0.1])
        results = [
            result(score, seed, "diverged" if score is None else "trained")
            for seed, score in enumerate(scores)
        ]
        made.append(findings.Line(row.values, results, None))
    return made


def verdicts(name, **aps):
    return [verdict.word for verdict in findings.verdicts(name, lines(name, **aps))]


def test_a_conclusion_holds_only_where_the_whole_interval_does():
    better = {"gamma 2, alpha 0.25": [0.30, 0.31, 0.32], "gamma 0, alpha 0.75": [0.28, 0.29, 0.30]}
    assert verdicts("table1b", **better)[0] == findings.HOLDS
    noisy = {"gamma 2, alpha 0.25": [0.30, 0.31, 0.32], "gamma 0, alpha 0.75": [0.20, 0.35, 0.25]}
    assert verdicts("table1b", **noisy)[0] == findings.OPEN
    worse = {"gamma 2, alpha 0.25": [0.28, 0.29, 0.30], "gamma 0, alpha 0.75": [0.30, 0.31, 0.32]}
    assert verdicts("table1b", **worse)[0] == findings.CONTRADICTED
    once = {"gamma 2, alpha 0.25": [0.4], "gamma 0, alpha 0.75": [0.1]}
    assert verdicts("table1b", **once)[0] == findings.OPEN


def test_one_of_several_rows_that_is_not_beaten_leaves_a_conclusion_open():
    best = {"method FL": [0.30, 0.31, 0.32]}
    assert verdicts("table1d", **best) == [findings.HOLDS, findings.HOLDS]
    mining = {"method OHEM, batch_size 256, nms_threshold 0.7": [0.30, 0.305, 0.325]}
    assert verdicts("table1d", **best, **mining) == [findings.OPEN, findings.HOLDS]
    mining = {"method OHEM, batch_size 256, nms_threshold 0.7": [0.40, 0.41, 0.42]}
    assert verdicts("table1d", **best, **mining) == [findings.CONTRADICTED, findings.HOLDS]


def test_a_training_that_diverged_counts_as_nothing_found():
    claims = verdicts(
        "prior", **{"loss CE, pi 0.5": [None, None, None], "loss CE, pi 0.01": [0.2, 0.21, 0.2]}
    )
    assert claims == [findings.HOLDS, findings.HOLDS]
    assert verdicts("prior", **{"loss CE, pi 0.5": [None, 0.1, None]})[0] == findings.OPEN
    assert verdicts("prior")[0] == findings.CONTRADICTED
    everything = {"loss CE, pi 0.5": [None] * 3, "loss CE, pi 0.01": [None] * 3}
    assert verdicts("prior", **everything)[0] == findings.OPEN  # where nothing trains, nothing is shown
    assert verdicts("prior", **{"loss CE, pi 0.5": [None]})[0] == findings.OPEN


def written(tmp_path, rows):
    content = {"name": "table1b", "title": "T", "iterations": 3, "data": "cells", "machine": "m"}
    content |= {"rows": rows}
    (tmp_path / "table1b.json").write_text(json.dumps(content))
    return findings.read(tmp_path / "table1b.json")


def result(ap, seed=0, state="trained"):
    return {"seed": seed, "state": state, "metrics": {"AP": ap, "AP50": ap, "AP75": ap}}


def test_of_a_group_the_best_alpha_stands_for_its_gamma(tmp_path):
    rows = [
        {"values": {"gamma": 2.0, "alpha": alpha}, "group": "gamma 2", "paper": None, "results": [result(ap)]}
        for alpha, ap in ((0.25, 0.1), (0.5, 0.3), (0.75, 0.3))
    ]
    content, found = written(tmp_path, rows)
    assert [line.chosen for line in found] == [False, True, False]
    assert findings.scores({"gamma": 2.0}, found) == {0: 30.0}
    assert "not its best alpha" in findings.text(content, found)


def test_the_table_shows_ours_beside_the_papers(tmp_path):
    rows = [
        {
            "values": {"gamma": 0.0, "alpha": 0.75},
            "group": "",
            "paper": 31.1,
            "results": [result(0.2), result(0.22, 1)],
        },
        {
            "values": {"gamma": 2.0, "alpha": 0.25},
            "group": "",
            "paper": 34.0,
            "results": [result(0.3), result(0, 1, "stalled")],
        },
    ]
    content, found = written(tmp_path, rows)
    head, cells = findings.table(found)
    assert head == ["gamma", "alpha", "AP", "AP50", "AP75", "paper's AP", "remarks"]
    assert cells[0] == ["0", "0.75", "21.0 +- 12.7", "21.0 +- 12.7", "21.0 +- 12.7", "31.1", ""]
    assert cells[1][-2:] == ["34.0", "1 x stalled"]
    assert "2 seeds" in findings.conditions(content, found)


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"rows": [{}]}', '{"rows": [{"values": {}, "results": [], "paper": 1, "group": "x"}]}'],
)
def test_what_is_no_result_is_refused(tmp_path, text):
    (tmp_path / "table1b.json").write_text(text)
    with pytest.raises(CheckpointError, match="no result of retinanet lab"):
        findings.read(tmp_path / "table1b.json")


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("alphas", ["paper", "search"])
def test_every_row_is_a_training_that_can_be(name, alphas):
    rows = experiment(name).rows(BASE, alphas)
    for row in rows:
        check(override(BASE, row.changes))
    assert len({row.name for row in rows}) == len(rows)


@pytest.mark.parametrize("name", TABLES)
def test_every_row_that_the_paper_prints_has_its_number(name):
    found = experiment(name)
    unprinted = [
        row.name for row in found.rows(BASE, "paper") if ap(name, **(row.printed or row.values)) is None
    ]
    assert unprinted == (["method random 1:3, batch_size 256"] if name == "table1d" else [])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_claim_means_rows_that_are_there(name):
    found = lines(name)
    for claim in EXPERIMENTS[name].claims:
        meant = [claim.high, *claim.low] if claim.low else [*claim.fails, claim.control]
        assert len(meant) > 1
        assert all(sum(line.fits(values) for line in found) == 1 for values in meant)


def test_an_unknown_experiment_names_its_neighbours():
    with pytest.raises(ConfigError, match="table1b"):
        experiment("table1bb")
