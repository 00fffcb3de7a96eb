"""Prediction: whatever a picture is given as, alone or in a batch, the answers are the same."""

import numpy as np
import pytest
import torch
from helpers import same
from PIL import Image

import retinanet
from retinanet.data.images import read_image
from retinanet.data.scenes import scene
from retinanet.errors import CheckpointError, ConfigError, DataError
from retinanet.inference.stream import stream_with_images
from retinanet.model.postprocess import Postprocess


@pytest.fixture(scope="module")
def detector(trained):
    found = retinanet.load(trained, device="cpu")
    found.postprocess = Postprocess(score_threshold=0.001)  # an untrained network is sure of nothing
    return found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures of many shapes as files."""
    folder = tmp_path_factory.mktemp("pictures")
    sizes = [(64, 96), (96, 64), (64, 96), (40, 200), (200, 41), (64, 90), (33, 33)]
    for i, (height, width) in enumerate(sizes):
        Image.fromarray(
            scene(i, (96, 200), (16, 64)).image[:height, :width]
            if height <= 96
            else np.zeros((height, width, 3), np.uint8)
        ).save(folder / f"{i}.png")
    return sorted(folder.glob("*.png"))


def test_answers_are_in_pixels_of_the_picture_best_first_and_named(detector, pictures):
    for path, found in zip(pictures, detector.predict(pictures), strict=True):
        _, height, width = read_image(path).shape
        assert len(found) > 0
        assert (found.boxes[:, [0, 2]] <= width).all()
        assert (found.boxes[:, [1, 3]] <= height).all()
        assert (found.boxes >= 0).all()
        assert (found.scores.diff() <= 0).all()
        assert found.names[found.labels[0]] in ("disc", "ring", "block", "triangle", "star", "cross")


def test_one_by_one_equals_batched(detector, pictures):
    for alone, together in zip(
        [detector.predict(path) for path in pictures], detector.predict(pictures, batch=3), strict=True
    ):
        same(alone, together)


def test_a_stream_of_files_equals_prediction_in_memory(detector, pictures):
    expected = detector.predict(pictures)
    answers = dict(detector.stream(pictures, batch=2, workers=0))
    assert sorted(answers) == list(range(len(pictures)))
    for index, answer in answers.items():
        same(answer, expected[index])


def test_a_stream_gives_the_decoded_images_out_as_long_as_they_are_few(detector, pictures, monkeypatch):
    expected = [read_image(path) for path in pictures]
    for index, _, image in stream_with_images(detector, pictures, batch=2, workers=0):
        assert torch.equal(image, expected[index])
    monkeypatch.setattr("retinanet.inference.stream.KEPT", 4 * max(image.nbytes for image in expected))
    kept = [image for _, _, image in stream_with_images(detector, pictures * 3, 100, workers=0)]
    assert 4 <= sum(image is not None for image in kept) < len(kept)


def test_paths_arrays_tensors_and_pillow_images_give_the_same(detector, pictures):
    path = pictures[0]
    image = read_image(path)
    expected = detector.predict(path)
    for given in (
        str(path),
        image,
        image.float() / 255,
        image.permute(1, 2, 0).numpy(),
        Image.fromarray(image.permute(1, 2, 0).numpy()),
    ):
        same(detector.predict(given), expected)
    for stacked in (image[None], image.permute(1, 2, 0).numpy()[None]):
        (answer,) = detector.predict(stacked)
        same(answer, expected)


def test_grey_arrays_are_pictures(detector):
    assert len(detector.predict(np.full((64, 64), 128, np.uint8)).boxes.shape) == 2


def test_an_empty_list_has_no_answers(detector):
    assert detector.predict([]) == []


@pytest.mark.parametrize(
    "wrong", [torch.zeros(3, 64, 64, dtype=torch.int32), torch.full((3, 8, 8), 255.0), 7]
)
def test_what_is_no_picture_is_told(detector, wrong):
    with pytest.raises(DataError):
        detector.predict(wrong)


def test_a_generator_has_as_many_answers_as_images(detector, pictures):
    answers = detector.predict((path.read_bytes() for path in pictures), batch=2)
    for found, wanted in zip(answers, detector.predict(pictures, batch=2), strict=True):
        same(found, wanted)


def test_one_bad_file_among_many_hurts_no_other(detector, pictures, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff nothing")
    answers = dict(detector.stream([pictures[0], bad, pictures[1]], workers=0))
    assert isinstance(answers[1], DataError)
    assert "bad.jpg" in str(answers[1])
    same(answers[0], detector.predict(pictures[0]))
    same(answers[2], detector.predict(pictures[1]))


def test_prediction_applies_no_display_threshold(detector, pictures):
    assert detector.predict(pictures[0]).scores.min() < detector.threshold


def test_bf16_finds_about_the_same(trained, detector, pictures):
    low = retinanet.load(trained, device="cpu", precision="bf16")
    low.postprocess = detector.postprocess
    exact, near = detector.predict(pictures[0]), low.predict(pictures[0])
    torch.testing.assert_close(near.scores[:5], exact.scores[:5], rtol=0.1, atol=0.01)


@pytest.mark.parametrize(("height", "width"), [(400, 40), (40, 400), (600, 60), (20, 20)])
def test_a_narrow_image_has_one_answer_in_bf16_whatever_the_memory_held(trained, detector, height, width):
    low = retinanet.load(trained, device="cpu", precision="bf16")
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    batch, sizes = low.preprocess.stack([low.preprocess.resized(image)])
    with torch.inference_mode():
        exact = torch.cat([level.flatten() for level in detector.forward(batch, sizes)[0]])
        answers = []
        for _ in range(10):
            waste = [torch.full((2**power + 17 * power,), torch.nan) for power in range(6, 18)]
            del waste
            answers.append(torch.cat([level.flatten() for level in low.forward(batch, sizes)[0]]))
    assert all(torch.equal(answer, answers[0]) for answer in answers)
    torch.testing.assert_close(answers[0].float(), exact, rtol=0.02, atol=0.05)


def test_another_scale_is_obeyed(trained):
    assert retinanet.load(trained, device="cpu", scale=128).preprocess.size(64, 96) == (128, 192)


@pytest.mark.parametrize("none", [None, 7, b"runs/x"])
def test_what_is_no_path_is_told(none):
    with pytest.raises(ConfigError, match=f"a model must be a path, not {none!r}"):
        retinanet.load(none)
    with pytest.raises(ConfigError, match="data must be a path"):
        retinanet.train(none)


@pytest.mark.parametrize(
    ("model", "reason"), [("nowhere", "neither a run folder nor a file"), (".", "without model.safetensors")]
)
def test_a_model_that_is_not_there_is_told(model, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=reason):
        retinanet.load(model)


def test_an_unknown_precision_is_told(trained):
    with pytest.raises(ConfigError, match="fp16"):
        retinanet.load(trained, precision="fp16")
