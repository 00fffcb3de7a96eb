"""A bad step is written down whole and can be repeated; a run that goes wrong silently gets a message."""

import math

import helpers
import pytest
import torch

import retinanet
from retinanet.cli import main
from retinanet.commands import replay
from retinanet.config.commands import ReplayConfig
from retinanet.errors import CheckpointError, DivergenceError
from retinanet.training import loop
from retinanet.training.diagnose import Advice, NonFiniteWatch, checksum, level_losses, not_finite
from retinanet.training.loop import train_step

SMALL = helpers.SMALL | {"log_every": 4, "budget": "8it", "validations": 1}
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def session(scenes):
    return helpers.session_of(scenes, **SMALL)


def poison(session):
    """Make the class subnet answer with infinities at every level."""
    with torch.no_grad():
        session.model.class_subnet[-1].bias.fill_(math.inf)


@pytest.fixture(scope="module")
def diverged(scenes, tmp_path_factory):
    """A run and its error: before its third step the second row of weights of one layer becomes NaN."""
    true_step, steps = loop.train_step, iter(range(100))

    def step(session, batch, rate):
        if next(steps) == 2:
            with torch.no_grad():
                session.model.box_subnet[-1].weight[1] = math.nan
        return true_step(session, batch, rate)

    patch = pytest.MonkeyPatch()
    patch.setattr(loop, "train_step", step)
    folder = tmp_path_factory.mktemp("diverged") / "run"
    with pytest.raises(DivergenceError) as caught:
        retinanet.train(scenes, "tiny", out=folder, **SMALL)
    patch.undo()
    return folder, str(caught.value)


def test_the_error_names_step_loss_levels_images_and_dump(diverged):
    folder, message = diverged
    assert "iteration 3: box_loss and gradient_norm not finite" in message
    assert "box_loss at P3" in message
    assert message.count(".jpg") == 2
    assert f"retinanet replay {folder / 'dump-3.pt'}" in message


def test_no_weights_are_saved_after_a_step_that_went_wrong(diverged):
    folder, _ = diverged
    assert not (folder / "model.safetensors").exists()
    assert torch.load(folder / "state.pt", weights_only=True)["done"] == 0


def test_the_dump_holds_the_step(diverged):
    content = replay.read_dump(diverged[0] / "dump-3.pt")
    assert content["iteration"] == 2
    assert content["lr"] > 0
    assert content["images"].shape[0] == len(content["files"]) == 2
    assert checksum(content["weights"]) == content["checksum"]
    assert all(math.isfinite(value) for value in content["levels"]["class_loss"])
    assert not_finite(["P3", "P4", "P5", "P6", "P7"], content["levels"]["box_loss"])


def test_a_dump_reproduces_its_step(diverged, caplog):
    with caplog.at_level("INFO", "retinanet"):
        assert replay.run(diverged[0] / "dump-3.pt", ReplayConfig())
    assert "reproduced" in caplog.text
    assert "offsets not finite at P3, P4, P5, P6, P7" in caplog.text
    assert "box_subnet" in caplog.text


def test_the_verb_replay_ends_with_0_when_the_step_is_reproduced(diverged, capsys):
    assert main(["replay", str(diverged[0] / "dump-3.pt"), "--precision", "fp32"]) == 0


def test_a_dump_with_other_weights_does_not_reproduce(diverged, tmp_path):
    content = torch.load(diverged[0] / "dump-3.pt", weights_only=True)
    content["weights"]["box_subnet.3.weight"] = torch.zeros_like(content["weights"]["box_subnet.3.weight"])
    content["checksum"] = checksum(content["weights"])
    torch.save(content, tmp_path / "other.pt")
    assert not replay.run(tmp_path / "other.pt", ReplayConfig())


def test_a_dump_without_one_of_its_parts_is_refused(diverged, tmp_path):
    content = torch.load(diverged[0] / "dump-3.pt", weights_only=True)
    for name in ("config", "levels", "boxes", "numbers"):
        torch.save({key: value for key, value in content.items() if key != name}, tmp_path / "part.pt")
        with pytest.raises(CheckpointError):
            replay.run(tmp_path / "part.pt", ReplayConfig())


def test_a_damaged_dump_is_refused(diverged, tmp_path):
    content = torch.load(diverged[0] / "dump-3.pt", weights_only=True)
    content["weights"]["box_subnet.3.weight"][0] += 1
    torch.save(content, tmp_path / "damaged.pt")
    for file in (
        tmp_path / "damaged.pt",
        tmp_path / "absent.pt",
        diverged[0] / "state.pt",
        diverged[0] / "config.json",
    ):
        with pytest.raises(CheckpointError):
            replay.run(file, ReplayConfig())


def test_a_step_that_is_not_finite_changes_nothing_nor_does_any_after_it(session):
    batches = list(session.batches(0, 3))
    train_step(session, batches[0], 1e-3)
    poison(session)
    before = {name: value.clone() for name, value in session.model.named_parameters()}
    watch = NonFiniteWatch(session.device)
    watch.note(1, train_step(session, batches[1], 1e-3))
    session.model.class_subnet[-1].bias.data.zero_()
    before["class_subnet.3.bias"].zero_()
    watch.note(2, train_step(session, batches[2], 1e-3))  # sound again, but the run is over
    assert all(torch.equal(value, before[name]) for name, value in session.model.named_parameters())
    assert int(watch.first) == 1


def test_level_losses_add_up_to_the_losses_of_the_step(session):
    (batch,) = session.batches(0, 1)
    levels = level_losses(session, batch)
    numbers = train_step(session, batch, 0.0)
    for name in ("class_loss", "box_loss"):
        assert sum(levels[name]) == pytest.approx(float(numbers[name]), rel=1e-5)


def test_the_checksum_depends_on_every_bit_and_on_the_names():
    weights = {"a": torch.zeros(3), "b": torch.ones(2, dtype=torch.long)}
    other = {"a": torch.tensor([0.0, 0.0, -0.0]), "b": torch.ones(2, dtype=torch.long)}
    renamed = {"a": torch.zeros(3), "c": torch.ones(2, dtype=torch.long)}
    assert len({checksum(one) for one in (weights, other, renamed)}) == 3
    assert checksum(weights) == checksum(dict(reversed(weights.items())))


def advice(**settings):
    return Advice(
        **{"rate": 0.01, "batch": 16, "optimizer": "sgd", "warmup": 0, "iterations": 1000} | settings
    )


def test_a_rate_that_does_not_fit_the_batch_is_told_at_once():
    assert advice().begin() == []
    assert "high for SGD with 2 images" in advice(batch=2).begin()[0]
    assert "low for SGD" in advice(rate=1e-5).begin()[0]
    assert advice(optimizer="adamw", rate=1e-4).begin() == []
    assert "high for AdamW" in advice(optimizer="adamw", rate=1e-2).begin()[0]


def test_a_run_without_positives_is_told_so_once():
    one = advice()
    said = [one.row(done, 1.0, 0.0) for done in range(20, 400, 20)]
    assert [len(texts) for texts in said] == [0, 0, 0, 0, 1] + [0] * 14
    assert "check DATA" in said[4][0]


def test_a_run_with_few_positives_is_not_told_so():
    one = advice()
    assert not any(
        one.row(done, 1.0 - done / 1000, 0.1 if done == 40 else 0.0) for done in range(20, 400, 20)
    )


def test_a_loss_that_does_not_fall_is_told():
    one = advice()
    said = [text for done in range(20, 500, 20) for text in one.row(done, 1.0 + 0.001 * (done % 3), 10.0)]
    assert len(said) == 1
    assert "does not fall" in said[0]


def test_a_loss_that_rises_is_told():
    one = advice(rate=0.5)
    said = [text for done in range(20, 500, 20) for text in one.row(done, 1.0 if done < 200 else 3.0, 10.0)]
    assert "has risen from 1 to 3" in said[0]
    assert "0.5" in said[0]


def test_a_loss_that_falls_is_left_alone():
    one = advice()
    assert not any(one.row(done, 1.0 / (1 + done / 200), 10.0) for done in range(20, 1001, 20))
