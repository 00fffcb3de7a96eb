"""Each design of the pyramid through the whole engine: trained, watched, saved, loaded, asked."""

import pytest
import torch
from helpers import SMALL, session_of

import retinanet
from retinanet.data.images import read_image
from retinanet.data.reach import anchor_reach
from retinanet.model.postprocess import Postprocess
from retinanet.model.retinanet import NECKS
from retinanet.training.diagnose import level_losses
from retinanet.training.loop import train_step


@pytest.fixture(scope="module", params=NECKS)
def design(request):
    return request.param


@pytest.fixture(scope="module")
def run(design, scenes, tmp_path_factory, request):
    """The folder of a run of a few steps."""
    if design == "fpn":
        return request.getfixturevalue("trained")
    settings = SMALL | {"budget": "3it", "validations": 1, "log_every": 1, "pyramid": design}
    return retinanet.train(scenes, "tiny", out=tmp_path_factory.mktemp("designs") / design, **settings)


@pytest.fixture
def session(design, scenes):
    return session_of(scenes, pyramid=design)


def test_a_trained_model_says_which_design_it_is_and_answers(design, run, scenes):
    detector = retinanet.load(run, device="cpu")
    assert type(detector.model.pyramid) is NECKS[design]
    detector.postprocess = Postprocess(score_threshold=0.001)  # after three steps it is sure of nothing
    pictures = sorted((scenes / "test").rglob("*.jpg"))
    for path, found in zip(pictures, detector.predict(pictures), strict=True):
        _, height, width = read_image(path).shape
        assert len(found) > 0
        assert (found.boxes <= torch.tensor([width, height] * 2)).all()
    assert (run / "metrics.json").exists()


def test_levels_are_watched_by_name_and_add_up_to_the_loss_of_the_step(design, session):
    (batch,) = session.batches(0, 1)
    levels = level_losses(session, batch)
    numbers = train_step(session, batch, 0.0)
    for name in ("class_loss", "box_loss"):
        assert len(levels[name]) == len(session.model.levels)
        assert sum(levels[name]) == pytest.approx(float(numbers[name]), rel=1e-5)


def test_the_anchors_of_objects_are_counted(session):
    found = anchor_reach(session.training, session.model, session.criterion, session.preprocess)
    assert len(found.anchors) == len(session.training.labels)
    assert found.anchors.sum() > 0
