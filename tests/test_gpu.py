"""What only a GPU can show. `pytest -m gpu` on a machine that has one."""

import helpers
import pytest
import torch

import retinanet
from retinanet.config.io import override, reading
from retinanet.config.presets import preset
from retinanet.data.scenes import write_scenes
from retinanet.data.splits import open_training
from retinanet.training import autobatch as cost
from retinanet.training import loop
from retinanet.training.loop import train_step
from retinanet.training.setup import build_state, resolve_config

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

SMALL = helpers.SMALL | {"log_every": 1, "validations": 1}


def session(scenes, device):
    return helpers.session_of(scenes, **{**SMALL, "device": device})


def test_a_step_on_the_gpu_has_the_losses_of_a_step_on_the_cpu(scenes):
    results = []
    for device in ("cpu", "cuda"):
        torch.backends.cudnn.allow_tf32 = False
        run = session(scenes, device)
        results.append(
            {name: float(value) for name, value in train_step(run, next(run.batches(0, 1)), 1e-3).items()}
        )
    assert results[0] == pytest.approx(results[1], rel=1e-3)


def test_a_step_does_not_wait_for_the_gpu(scenes):
    run = session(scenes, "cuda")
    batches = list(run.batches(0, 3))
    train_step(run, batches[0], 1e-3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(run, batches[1], 1e-3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_training_and_prediction_on_the_gpu(scenes, tmp_path):
    run = retinanet.train(
        scenes, "tiny", out=tmp_path / "run", budget="3it", **{**SMALL, "device": "cuda", "precision": "bf16"}
    )
    picture = sorted((scenes / "test").glob("*.jpg"))[0]
    on_cpu, on_gpu = (retinanet.load(run, device=device).predict(picture) for device in ("cpu", "cuda"))
    torch.testing.assert_close(on_gpu.scores[:5], on_cpu.scores[:5], rtol=1e-2, atol=1e-3)


def test_a_run_that_was_interrupted_goes_on_on_the_gpu(scenes, tmp_path, monkeypatch):
    settings = {**SMALL, "device": "cuda", "budget": "6it", "save_every": "2it"}
    true_step, steps = loop.train_step, iter(range(100))

    def step(*arguments):
        if next(steps) == 3:
            raise KeyboardInterrupt
        return true_step(*arguments)

    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(KeyboardInterrupt):
        retinanet.train(scenes, "tiny", out=tmp_path / "run", **settings)
    monkeypatch.undo()
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["done"] == 2
    assert (retinanet.resume(tmp_path / "run") / "metrics.json").exists()


def test_the_largest_batch_runs(tmp_path):
    data = write_scenes(tmp_path / "data", {"train": 40, "val": 2}, size=(64, 96), seed=3, across=(16, 48))
    config = resolve_config(
        override(preset("tiny"), {**SMALL, "device": "cuda", "batch": "auto"}), torch.device("cuda")
    )
    training, validation = open_training(data, config.seed, **reading(config))
    fitted = cost.resolve_auto_batch(config, training, validation, torch.device("cuda"))
    assert fitted.batch == 5  # an eighth of the pictures
    run = build_state(fitted, training, validation, torch.device("cuda"))
    train_step(run, cost.dummy_batch(run, fitted.batch), 0.0)


def test_an_image_of_four_times_the_area_needs_about_four_times_the_memory(scenes):
    images = []
    for scale in (256, 512):
        config = resolve_config(
            override(preset("tiny"), {**SMALL, "device": "cuda", "scale": scale, "train_scale": scale}),
            torch.device("cuda"),
        )
        images.append(
            cost.measure(
                build_state(
                    config, *open_training(scenes, config.seed, **reading(config)), torch.device("cuda")
                )
            ).image
        )
    assert 2.5 < images[1] / images[0] < 6


def test_a_compiled_step_has_the_losses_of_a_plain_one(scenes):
    results = []
    for compile in (False, True):
        settings = {**SMALL, "device": "cuda", "compile": compile, "backbone": "resnet18"}
        settings |= {"backbone_norm": "group"}
        config = resolve_config(override(preset("tiny"), settings), torch.device("cuda"))
        run = build_state(
            config, *open_training(scenes, config.seed, **reading(config)), torch.device("cuda")
        )
        results.append(
            {name: float(value) for name, value in train_step(run, next(run.batches(0, 1)), 1e-3).items()}
        )
    assert results[0] == pytest.approx(results[1], rel=1e-3)
