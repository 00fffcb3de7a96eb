"""Minutes are minutes: whatever else the machine does, the rate follows the time that is used."""

import json
import math
import signal
import time
from itertools import pairwise

import helpers
import pytest
from helpers import config_of, rows

import retinanet
from retinanet.data.scenes import write_scenes
from retinanet.training import loop, setup
from retinanet.training import schedule as plan
from retinanet.training.optim import lr_factor
from retinanet.training.pace import Pace
from retinanet.weights.checkpoint import read_weights

SECONDS = 120.0
ENDING = 1.0
LOADS = {
    "never": lambda now: 1.0,
    "in the first half": lambda now: 3.0 if now < SECONDS / 2 else 1.0,
    "in the second half": lambda now: 3.0 if now >= SECONDS / 2 else 1.0,
    "now and then": lambda now: 3.0 if now % 40 < 15 else 1.0,
    "more and more": lambda now: 1 + 4 * now / SECONDS,
}
"""When the machine is busy: how many times as long everything takes, by the seconds that have passed."""

CONFIG = config_of(schedule="cosine", warmup=20)

each_load = pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when it is told to."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def begun(clock, load, step=0.5, validation=2.0, validations=4):
    """A run of two minutes after its start and its probe, which take ten seconds in quiet."""
    clock[0] += 10 * load(0)
    pace = Pace(0, 1, seconds=SECONDS, validations=validations, step=step * load(0), cost=validation / step)
    pace.ending = ENDING / step
    pace.iterations = pace.measured(0)[1]
    return pace


def steps(pace, clock, load, step=0.5, validation=2.0, done=0, until=math.inf):
    """What the loop does, where work is time that passes: a record of steps, validations and rows."""
    record = {"steps": [], "validations": [], "rows": [(done, pace.share, pace.iterations)]}
    since, seen = clock[0], 0
    while done < until:
        if done >= pace.iterations:
            began = clock[0]
            clock[0] += validation * load(clock[0])
            if not pace.goes_on(done, clock[0] - began):
                clock[0] += ENDING * load(clock[0])
                break
            since = clock[0]
            record["rows"].append((done, *pace.row_values().values()))
        record["steps"].append((clock[0], pace.share_at(done), pace.factor(done, CONFIG)))
        clock[0] += step * load(clock[0])
        done, seen = done + 1, seen + 1
        due = pace.validation_due(done)
        if due or done % 20 == 0 or done == pace.iterations or pace.late():
            pace.look(done, seen, clock[0] - since)
            record["rows"].append((done, *pace.row_values().values()))
            since, seen = clock[0], 0
        if due and pace.room and done < pace.iterations:
            began = clock[0]
            clock[0] += validation * load(clock[0])
            pace.took(clock[0] - began)
            record["validations"].append((pace.share, clock[0] - began))
            since = clock[0]
    return record


@each_load
@pytest.mark.parametrize("step", [0.05, 0.5, 2.0])
def test_a_run_ends_with_its_minutes_whenever_the_machine_is_busy(clock, load, step):
    steps(begun(clock, load, step), clock, load, step)
    assert clock[0] == pytest.approx(SECONDS, rel=0.05)


@each_load
def test_after_the_warm_up_the_rate_falls_to_its_end(clock, load):
    _, shares, factors = zip(*steps(begun(clock, load), clock, load)["steps"], strict=True)
    top = factors.index(max(factors))
    assert max(factors) > 0.97
    assert shares[top] < 0.13  # the warm-up is 20 iterations, at most a tenth of the run
    # by a hair it may rise: the warm-up counts iterations, and their estimate changes
    assert max(later - earlier for earlier, later in pairwise(factors[top:])) < 0.005
    assert factors[-1] < 0.01


@each_load
def test_the_share_is_that_of_the_seconds_which_steps_take(clock, load):
    """In hindsight: what all steps before took, of what all steps took."""
    record = steps(begun(clock, load), clock, load, validation=0.0)["steps"]
    end = clock[0] - ENDING
    for now, share, _ in record:
        assert share == pytest.approx((now - record[0][0]) / (end - record[0][0]), abs=0.1)


@pytest.mark.parametrize("at", [30, 60, 90])
def test_one_slow_step_does_not_end_the_schedule(clock, at):
    """A step of 12 seconds among those of half a second: a tenth of the time is gone, and no more."""
    load = lambda now: 24.0 if at <= now < at + 0.4 else 1.0  # noqa: E731
    record = steps(begun(clock, load, validation=3.0), clock, load, validation=3.0)["steps"]
    shares = [share for now, share, _ in record]
    assert max(later - earlier for earlier, later in pairwise(shares)) < 0.2
    end = clock[0] - ENDING
    assert all(share == pytest.approx((now - 10) / (end - 10), abs=0.12) for now, share, _ in record)


@each_load
def test_validations_are_at_equal_shares(clock, load):
    shares = [share for share, _ in steps(begun(clock, load), clock, load, validation=0.2)["validations"]]
    assert shares == pytest.approx([0.25, 0.5, 0.75], abs=0.05)


@each_load
@pytest.mark.parametrize("validation", [2.0, 4.0, 8.0])
def test_validations_before_the_last_take_a_twentieth_at_most(clock, load, validation):
    record = steps(begun(clock, load, validation=validation), clock, load, validation=validation)
    assert sum(seconds for _, seconds in record["validations"]) <= SECONDS / 20 * 1.02
    assert clock[0] == pytest.approx(SECONDS, rel=0.05)


@each_load
def test_the_row_before_a_step_holds_all_that_its_rate_depends_on(clock, load):
    record = steps(begun(clock, load), clock, load)
    ends = [row for row, *_ in record["rows"][1:]]
    again = []
    for (row, share, iterations), end in zip(record["rows"], ends, strict=False):
        line = Pace(iterations, 1, seconds=SECONDS, row=row, share=share)
        again += [line.factor(iteration, CONFIG) for iteration in range(row, end)]
    assert again == [factor for *_, factor in record["steps"]]


def test_a_run_goes_on_when_its_last_validation_took_much_less_than_was_feared(clock):
    """Everything takes five times as long for 45 seconds: the validation of 10 seconds would take 50."""
    pace = begun(clock, lambda now: 1.0, step=1.0, validation=10.0, validations=1)
    record = steps(pace, clock, lambda now: 5.0 if now < 62 else 1.0, step=1.0, validation=10.0)
    taken = [now for now, *_ in record["steps"]]
    assert max(later - earlier for earlier, later in pairwise(taken)) > 10  # a validation, too early
    assert len(taken) > 35
    assert clock[0] == pytest.approx(SECONDS, rel=0.05)
    assert record["steps"][-1][-1] < 0.01


@pytest.mark.parametrize("until", [1, 60, 119])
def test_a_run_that_was_stopped_has_only_the_rest_of_its_minutes(clock, until):
    load = LOADS["never"]
    pace = begun(clock, load)
    before = steps(pace, clock, load, until=until)["steps"]
    used, saved = clock[0], pace.saved()
    clock[0] = started = 5000.0
    resumed = Pace(**saved)
    resumed.began += started
    clock[0] += 5.0  # to start again
    after = steps(resumed, clock, load, done=until)["steps"]
    assert used + clock[0] - started == pytest.approx(SECONDS, rel=0.05)
    shares = [share for _, share, _ in before + after]
    assert shares == sorted(shares)
    assert shares[-1] > 0.97


def test_a_run_by_iterations_does_not_look_at_the_clock(clock):
    pace = Pace(100, 30)
    clock[0] = 1e6
    assert not pace.late()
    pace.look(20, 20, 1e6)
    assert [done for done in range(1, 101) if pace.validation_due(done)] == [30, 60, 90]
    assert [pace.factor(done, CONFIG) for done in range(100)] == [
        lr_factor(done, 100, 20, "cosine") for done in range(100)
    ]
    assert (str(pace), pace.saved(), pace.row_values()) == ("100", None, {})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_scenes(
        tmp_path_factory.mktemp("data"), {"train": 5, "val": 3}, size=(64, 96), seed=3, across=(16, 48)
    )


SMALL = helpers.SMALL | {"train_scale": 64, "budget": "2min", "validations": 2, "save_every": "1it"}


@pytest.fixture
def work(clock, monkeypatch):
    """A step takes 8 seconds and a validation 2: the clock says so, and nothing else moves it."""

    def takes(seconds, function):
        def slow(*arguments, **settings):
            clock[0] += seconds
            return function(*arguments, **settings)

        return slow

    monkeypatch.setattr(plan, "probe", lambda state, most: (18.0, 0.5))  # the machine was busy then
    monkeypatch.setattr(plan, "probe_files", lambda state: 0.3)
    monkeypatch.setattr(loop, "train_step", takes(8.0, loop.train_step))
    monkeypatch.setattr(setup, "evaluate", takes(2.0, setup.evaluate))


@pytest.mark.usefixtures("work", "undrawn")
def test_a_run_whose_probe_was_slow_uses_all_its_minutes_and_says_how_long_it_was(data, clock, tmp_path):
    run = retinanet.train(data, "tiny", out=tmp_path / "run", **SMALL)
    train = [row for row in rows(run) if row["kind"] == "train"]
    done = train[-1]["iteration"]
    assert done == 14  # of 120 s; 4 are for validations, 3 for the end
    assert clock[0] == 14 * 8 + 2 * 2
    assert train[-1]["lr"] < 0.05 * max(row["lr"] for row in train)
    for name in ("config.json", "metrics.json"):
        assert json.loads((run / name).read_text())["iterations"] == done
    assert read_weights(run / "model.safetensors")[1].about["iterations"] == done
    log = (run / "log.txt").read_text()
    assert "about 6 iterations" in log
    assert "12/~14 " in log
    assert "14/14 " in log
    assert "iteration 14 of 14" in (run / "README.md").read_text()


@pytest.mark.usefixtures("work", "undrawn")
def test_a_run_by_the_clock_goes_on_with_the_rest_of_its_minutes(data, clock, tmp_path, monkeypatch):
    work = loop.train_step

    def stops(state, batch, rate):
        if clock[0] > 70:
            signal.raise_signal(signal.SIGINT)
        return work(state, batch, rate)

    monkeypatch.setattr(loop, "train_step", stops)
    with pytest.raises(KeyboardInterrupt):
        retinanet.train(data, "tiny", out=tmp_path / "run", **SMALL)
    used = clock[0]
    clock[0] = 5000.0
    monkeypatch.setattr(loop, "train_step", work)
    run = retinanet.resume(tmp_path / "run")
    assert used + clock[0] - 5000 == 14 * 8 + 2 * 2
    train = [row for row in rows(run) if row["kind"] == "train"]
    assert [row["iteration"] for row in train] == [*range(1, 15)]
    shares = [row["share"] for row in train]
    assert shares == sorted(shares)
    assert "done in 1 min 56 s" in (run / "log.txt").read_text()
