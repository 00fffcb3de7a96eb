"""A run: what it leaves behind, what it repeats, what it refuses."""

import json
import sys
from types import SimpleNamespace

import helpers
import numpy as np
import pytest
import torch
from helpers import rows, words

import retinanet
from retinanet.config.io import override, reading
from retinanet.config.presets import preset
from retinanet.data.sampler import Sampler
from retinanet.data.scenes import write_scenes
from retinanet.data.splits import open_training
from retinanet.errors import ConfigError, DataError, DivergenceError
from retinanet.model.preprocess import Preprocess
from retinanet.training import schedule as plan
from retinanet.training.setup import build_state, resolve_config
from retinanet.weights.checkpoint import read_weights

SMALL = helpers.SMALL | {"log_every": 1}
pytestmark = pytest.mark.usefixtures("undrawn")


def test_a_run_leaves_what_the_documentation_promises(trained):
    names = {path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file()}
    files = "config.json model.safetensors best.safetensors metrics.jsonl metrics.json log.txt README.md"
    plots = "losses.png ap.png first_batch.jpg precision_recall.png confusion.png"
    assert {*words(files), *(f"plots/{name}" for name in words(plots))} <= names


def test_drawings_that_fail_do_not_end_a_run(scenes, tmp_path, monkeypatch, caplog):
    def fails(*arguments):
        raise OSError("broken data stream")

    monkeypatch.setattr("retinanet.view.draw.save", fails)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fails)
    run = retinanet.train(scenes, "tiny", out=tmp_path / "run", **SMALL, budget="1it", validations=1)
    assert (run / "metrics.json").exists() and (run / "model.safetensors").exists()
    told = [record.message for record in caplog.records if "could not be drawn" in record.message]
    assert told[0] == f"{run}/plots/first_batch.jpg could not be drawn: broken data stream"
    assert set(told[1:]) == {f"{run}/plots could not be drawn: broken data stream"}


def test_the_record_has_losses_rate_positives_speed_and_validation(trained):
    kinds = {row["kind"]: row for row in rows(trained)}
    measured = words("loss class_loss box_loss lr positives images_per_second gradient_norm")
    assert set(measured) <= kinds["train"].keys()
    assert {"loss", "class_loss", "box_loss", "AP", "AP50", "AP75"} <= kinds["val"].keys()
    assert [row["iteration"] for row in rows(trained) if row["kind"] == "val"] == [3, 6]


def test_config_json_says_what_made_the_run(trained):
    made = json.loads((trained / "config.json").read_text())
    assert {"config", "data", "data_hash", "versions", "machine", "iterations"} <= made.keys()
    assert made["config"]["seed"] == 0


def test_the_model_carries_names_ids_and_a_threshold(trained):
    _, card = read_weights(trained / "model.safetensors")
    assert card.names[:3] == ("disc", "ring", "block")
    assert card.category_ids == (1, 2, 3, 4, 5, 6)
    assert 0 <= card.threshold <= 1
    assert card.about["iteration"] == 6


def test_the_same_seed_gives_the_same_run_and_another_seed_another(scenes, tmp_path):
    runs = [
        retinanet.train(
            scenes, "tiny", out=tmp_path / str(i), budget="3it", validations=1, **SMALL, seed=seed
        )
        for i, seed in enumerate((0, 0, 1))
    ]
    losses = [[row["loss"] for row in rows(run) if row["kind"] == "train"] for run in runs]
    assert losses[0] == losses[1] != losses[2]
    assert (runs[0] / "model.safetensors").read_bytes()[-4096:] == (
        runs[1] / "model.safetensors"
    ).read_bytes()[-4096:]


def test_an_existing_run_is_never_overwritten(trained, scenes):
    with pytest.raises(ConfigError, match="never overwritten"):
        retinanet.train(scenes, "tiny", out=trained)


def test_without_out_runs_are_numbered(scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for expected in (f"runs/{scenes.name}-tiny", f"runs/{scenes.name}-tiny-2"):
        assert str(retinanet.train(scenes, "tiny", budget="1it", **SMALL)) == expected


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"gama": 1.0}, "did you mean 'gamma'"),
        ({"budget": "7 minutes"}, "7min"),
        ({"backbone": "resnet81"}, "resnet18"),
        ({"device": "cuda:7"}, "--device cpu"),
        ({"batch": 0, "gamma": -1.0}, "batch must be between 1"),
        ({"optimizer": "SGD"}, "unknown optimizer 'SGD'"),
        ({"precision": "fp16"}, "bf16"),
        ({"negative": 0.6}, "must not exceed"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(scenes, tmp_path, settings, reason):
    with pytest.raises(ConfigError, match=reason):
        retinanet.train(scenes, "tiny", out=tmp_path / "run", **settings)
    assert not (tmp_path / "run" / "config.json").exists()


def test_an_unknown_preset_names_the_known(scenes):
    with pytest.raises(ConfigError, match="r50-600"):
        retinanet.train(scenes, "r50-60")


def test_a_budget_below_one_step_says_so(scenes, tmp_path):
    with pytest.raises(ConfigError, match="does not hold one step"):
        retinanet.train(scenes, "tiny", out=tmp_path / "run", budget="0.01s", **SMALL)


def test_the_probe_leaves_no_trace(scenes):
    config = resolve_config(override(preset("tiny"), SMALL), torch.device("cpu"))
    session = build_state(config, *open_training(scenes, config.seed, **reading(config)), torch.device("cpu"))
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    plan.probe(session)
    assert all(torch.equal(before[name], value) for name, value in session.model.state_dict().items())
    assert session.model.training
    assert not session.optimizer.state
    assert session.average is not None
    assert session.average.updates == 0


@pytest.mark.parametrize(("most", "expected"), [(0.0, 1), (1e9, plan.PROBE_STEPS)])
def test_a_probe_that_takes_long_is_cut_short(scenes, monkeypatch, most, expected):
    session, taken, step = helpers.session_of(scenes), [], plan.train_step
    monkeypatch.setattr(plan, "train_step", lambda *some: (taken.append(1), step(*some))[1])
    assert min(plan.probe(session, most)) > 0
    assert len(taken) == expected


def test_training_may_look_at_smaller_pictures_than_the_model_answers_for(scenes):
    config = resolve_config(
        override(preset("tiny"), {**SMALL, "scale": 96, "train_scale": 64}), torch.device("cpu")
    )
    session = build_state(config, *open_training(scenes, config.seed, **reading(config)), torch.device("cpu"))
    assert next(session.batches(0, 1)).images.shape[-2] == 64
    assert session.detector().preprocess.size(96, 128) == (96, 128)


def test_without_a_validation_split_a_tenth_is_held_out_or_twice_that_for_rare_classes(tmp_path, caplog):
    data = write_scenes(tmp_path / "data", {"train": 20}, size=(64, 64), seed=1, across=(16, 48))
    config = override(preset("tiny"), SMALL)
    with caplog.at_level("INFO", "retinanet"):
        training, validation = open_training(data, config.seed, **reading(config))
    assert len(training) + len(validation) == 20 and 2 <= len(validation) <= 4
    assert not set(training.files) & set(validation.files)
    assert "held out" in caplog.text


def test_test_is_never_trained_on_nor_selected_by(scenes):
    training, validation = open_training(scenes, 0)
    assert (training.split, validation.split) == ("train", "val")


def test_problems_of_both_splits_are_listed_at_once(tmp_path):
    data = write_scenes(tmp_path / "data", {"train": 4, "val": 4}, size=(64, 64), seed=1, across=(16, 48))
    for split in ("train", "val"):
        file = data / "annotations" / f"{split}.json"
        index = json.loads(file.read_text())
        index["annotations"][0]["bbox"][2] = 0
        file.write_text(json.dumps(index))
    with pytest.raises(DataError) as caught:
        open_training(data, 0)
    assert len(caught.value.problems) == 2
    assert "--invalid drop" in str(caught.value)


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_images(scenes, tmp_path):
    with pytest.raises(DivergenceError, match=r"000\d.*jpg") as caught:
        retinanet.train(
            scenes,
            "tiny",
            out=tmp_path / "run",
            budget="30it",
            **SMALL,
            lr=1e30,
            max_grad_norm=None,
            warmup=0,
        )
    assert "--lr" in str(caught.value)


def test_training_from_scratch_is_live_even_when_frozen_was_asked_for():
    config = resolve_config(override(preset("r50-600"), {"init": "none"}), torch.device("cpu"))
    assert config.model.network.backbone_norm == "batch"


def test_the_rate_is_scaled_with_the_batch(scenes, tmp_path):
    settings = SMALL | {"batch": 4, "lr": 0.01, "lr_batch": 16, "warmup": 0}
    settings |= {"schedule": "drops", "optimizer": "sgd"}
    run = retinanet.train(scenes, "tiny", out=tmp_path / "run", budget="1it", **settings)
    assert rows(run)[0]["lr"] == pytest.approx(0.0025)
    assert "0.01 for 16 images, scaled to 4" in (run / "log.txt").read_text()


@pytest.mark.parametrize(("images", "iterations"), [(100_000, 300_000), (100, 3000), (10_000_000, 360_000)])
def test_a_length_that_fits_the_data(images, iterations):
    """12 epochs, at least 3000 steps from scratch, at most the paper's 90,000 steps of 16."""
    sampler = Sampler(np.ones((images, 2)), 4, 0, Preprocess())
    assert plan.fitting_length(SimpleNamespace(config=preset("tiny"), sampler=sampler)) == iterations


def test_a_budget_in_images_is_as_many_steps_as_show_them(scenes, tmp_path):
    run = retinanet.train(scenes, "tiny", out=tmp_path / "run", budget="6im", validations=1, **SMALL)
    assert json.loads((run / "config.json").read_text())["iterations"] == 3


def test_the_numbers_go_to_tensorboard_too_when_asked(scenes, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = retinanet.train(
        scenes, "tiny", out=tmp_path / "run", budget="3it", validations=1, tensorboard=True, **SMALL
    )
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert [step for step, _ in found] == [1, 2, 3]
    assert [value for _, value in found] == pytest.approx(
        [row["loss"] for row in rows(run) if row["kind"] == "train"]
    )
    assert {"val/AP", "val/loss", "train/lr"} <= set(events.Tags()["scalars"])


def test_without_tensorboard_installed_the_pip_line_is_told(scenes, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'retinanet\[tensorboard\]'"):
        retinanet.train(scenes, "tiny", out=tmp_path / "run", budget="1it", tensorboard=True, **SMALL)
