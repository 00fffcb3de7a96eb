"""Pictures answered at several scales: the answers are merged, and nothing else about them changes."""

import json

import numpy as np
import pytest
import torch
from helpers import equal, same
from PIL import Image

import retinanet
from retinanet import cli
from retinanet.commands import evaluate as evaluate_command
from retinanet.commands import predict
from retinanet.config.commands import EvalConfig, PredictConfig
from retinanet.data.formats.coco import read_coco
from retinanet.data.images import read_image
from retinanet.data.sampler import evaluation_entries
from retinanet.data.scenes import scene
from retinanet.errors import ConfigError, DataError
from retinanet.evaluation import evaluate
from retinanet.model.postprocess import Postprocess
from retinanet.model.preprocess import Preprocess

SCALES = (64, 96)


def detector_at(trained, **settings):
    detector = retinanet.load(trained, device="cpu", **settings)
    # an untrained network is sure of nothing
    detector.postprocess = Postprocess(score_threshold=0.001, max_detections=10**6)
    return detector


@pytest.fixture(scope="module")
def several(trained):
    return detector_at(trained, scales=SCALES)


@pytest.fixture(scope="module")
def single(trained):
    return [detector_at(trained, scale=scale) for scale in SCALES]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of several shapes, two of which are one padded shape at 64 px and two at 96 px."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, (height, width) in enumerate([(64, 96), (96, 64), (64, 96), (64, 92), (64, 80), (70, 64)]):
        Image.fromarray(scene(number, (96, 128), (16, 64)).image[:height, :width]).save(
            folder / f"{number}.png"
        )
    return sorted(folder.glob("*.png"))


@pytest.mark.parametrize("scales", [(96,), [96, 96]])
def test_one_scale_of_several_is_that_scale(trained, single, pictures, scales):
    assert all(map(equal, detector_at(trained, scales=scales).predict(pictures), single[1].predict(pictures)))


def test_without_suppression_the_answers_are_those_of_all_scales_together(trained, pictures):
    loose = Postprocess(score_threshold=0.001, nms_threshold=1.0, max_detections=10**6)
    detectors = [
        detector_at(trained, scales=SCALES),
        *(detector_at(trained, scale=scale) for scale in SCALES),
    ]
    for detector in detectors:
        detector.postprocess = loose
    merged, *each = (detector.predict(pictures[4]) for detector in detectors)
    rows = [
        torch.cat([one.boxes, 100 * one.scores[:, None], 100.0 * one.labels[:, None]], dim=1)
        for one in (merged, *each)
    ]
    apart = torch.cdist(rows[0], torch.cat(rows[1:]), compute_mode="donot_use_mm_for_euclid_dist")
    assert apart.shape[0] == apart.shape[1]
    assert apart.amin(dim=0).max() < 1e-2
    assert apart.amin(dim=1).max() < 1e-2


def test_merged_answers_have_the_best_of_each_class_at_any_scale(several, single, pictures):
    for path in pictures[:3]:
        merged, each = several.predict(path), [one.predict(path) for one in single]
        for label in range(len(several.names)):
            best = max(float(one.scores[one.labels == label].max()) for one in each)
            assert float(merged.scores[merged.labels == label].max()) == pytest.approx(best, rel=1e-5)
        assert max(map(len, each)) <= len(merged) < sum(map(len, each))
        _, height, width = read_image(path).shape
        assert (merged.scores.diff() <= 0).all()
        assert (merged.boxes >= 0).all()
        assert (merged.boxes <= torch.tensor([width, height] * 2)).all()


def test_a_box_that_goes_takes_none_with_it():
    """The best box is too near to the second, the second too near to the third, each from another scale."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]]])
    x, labels = torch.tensor([[3.0, 2.0, 1.0]]), torch.zeros(1, 3, dtype=torch.long)
    ((kept, _, _),) = Postprocess().suppress(boxes, x, labels, torch.tensor([[20.0, 20]]))
    assert kept[:, 0].tolist() == [0, 6]


def test_merged_answers_are_at_most_as_many_as_the_model_gives(trained, pictures):
    detector = detector_at(trained, scales=SCALES)
    everything = detector.predict(pictures[0])
    detector.postprocess = Postprocess(score_threshold=0.001, max_detections=7)
    same(detector.predict(pictures[0]), everything[:7])


def test_neither_the_neighbours_nor_the_order_of_pictures_or_scales_matter(trained, several, pictures):
    alone = [several.predict(path) for path in pictures]
    for together in (several.predict(pictures, batch=3), several.predict(pictures[::-1], batch=2)[::-1]):
        list(map(same, together, alone))
    turned = detector_at(trained, scales=SCALES[::-1])
    assert all(map(equal, turned.predict(pictures), several.predict(pictures)))


def test_a_stream_of_files_gives_the_same_and_names_the_broken(several, pictures, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff nothing")
    answers = dict(several.stream([*pictures, bad], batch=2, workers=0))
    assert isinstance(answers.pop(len(pictures)), DataError)
    for index, expected in enumerate(several.predict(pictures)):
        same(answers[index], expected)


def test_pictures_that_share_a_batch_are_of_one_shape_at_every_scale():
    sizes = np.array([(64, 96), (64, 92), (64, 96), (64, 80), (64, 92)])
    small, large = Preprocess(64), Preprocess(96)
    groups = [entry.indices for entry in evaluation_entries(sizes, 8, small, others=[large])]
    assert [entry.indices for entry in evaluation_entries(sizes, 8, small)] == [[0, 1, 2, 3, 4]]
    assert groups == [[0, 1, 2, 4], [3]]
    dealt = [evaluation_entries(sizes, 2, small, rank, 2, [large]) for rank in range(2)]
    assert [entry.indices for entries in zip(*dealt, strict=False) for entry in entries] == [[0, 1], [2, 4]]
    assert [entry.indices for entry in dealt[0][1:]] == [[3]]


def test_the_verb_eval_scores_merged_answers(trained, scenes, tmp_path):
    metrics = evaluate_command.run(
        str(trained),
        str(scenes),
        EvalConfig(split="test", out=tmp_path, device="cpu", workers=0, scales=SCALES),
    )
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["AP"] == metrics["AP"]
    assert written["config"]["scales"] == list(SCALES)


def test_evaluation_scores_what_prediction_answers(several, scenes):
    data = read_coco(scenes / "annotations" / "train.json")
    counted = []
    one, many = (evaluate.evaluate(several, data, batch, progress=counted.append) for batch in (1, 4))
    # the last bits of a score depend on the batch, so two of thousands of detections may change places
    assert one.metrics["AP50"] == pytest.approx(many.metrics["AP50"], abs=1e-5)
    assert one.losses == {}
    assert counted == [*range(1, 7)] * 2
    answers = several.predict([data.path(index) for index in range(len(data))], batch=1)
    assert len(one.results) == sum(map(len, answers))


def test_a_prediction_at_other_scales_is_another_prediction(trained, pictures, tmp_path):
    def run(**settings):
        config = PredictConfig(device="cpu", workers=0, out=tmp_path / "out", save_images=False, **settings)
        return predict.run(str(trained), [str(pictures[0].parent)], config)

    assert run(scales=SCALES)
    assert json.loads((tmp_path / "out" / "about.json").read_text())["scale"] == list(SCALES)
    (tmp_path / "out" / "parts").mkdir()  # as if the last process had not cleared away
    assert run(scales=SCALES[::-1])
    (tmp_path / "out" / "parts").mkdir()
    with pytest.raises(ConfigError, match="with other scale;"):
        run(scale=64)


def test_the_flag_takes_several_numbers():
    for command in ("predict", "eval"):
        _, (*_, config) = cli.parse([command, "m", "a", "--scales", "400", "600", "--batch", "2"])
        assert config.scales == (400, 600)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"scale": 64, "scales": (64, 96)}, "not both: --scale 64 and --scales 64 96"),
        ({"scales": ()}, "one or more"),
        ({"scales": (64, 0)}, "from 32 to 65536"),
    ],
)
def test_scales_without_meaning_are_refused_before_anything_is_read(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        retinanet.load("nowhere", **settings)
