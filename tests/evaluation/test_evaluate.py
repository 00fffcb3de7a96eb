"""Evaluation: a detector and a results file, the right split, classes by name."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers import words

import retinanet
from retinanet.commands import evaluate as command
from retinanet.config.commands import EvalConfig
from retinanet.data import splits
from retinanet.data.formats.coco import read_coco
from retinanet.errors import ConfigError, DataError
from retinanet.evaluation import evaluate as engine
from retinanet.model.criterion import Criterion
from retinanet.model.postprocess import Postprocess


def test_the_verb_writes_the_numbers_the_answers_and_the_plots(trained, scenes, tmp_path):
    metrics = command.run(
        str(trained), str(scenes), EvalConfig(split="test", out=tmp_path / "out", device="cpu", workers=0)
    )
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    expected = words("AP AP75 APs AR100 per_class confusion data_hash versions machine categories doubts")
    assert set(expected) <= written.keys()
    assert written["AP"] == metrics["AP"]
    assert written["split"] == "test"
    assert isinstance(json.loads((tmp_path / "out" / "predictions.json").read_text()), list)
    plots = {path.name for path in (tmp_path / "out" / "plots").iterdir()}
    assert plots == {"precision_recall.png", "confusion.png", "f1.png"}


def test_a_results_file_is_scored_without_any_picture(scenes, tmp_path):
    index = json.loads((scenes / "annotations" / "test.json").read_text())
    perfect = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in index["annotations"]
    ]
    (tmp_path / "results.json").write_text(json.dumps(perfect))
    alone = tmp_path / "alone.json"  # the index without its pictures
    alone.write_text(json.dumps(index))
    assert command.run(str(tmp_path / "results.json"), str(alone), EvalConfig())["AP"] == pytest.approx(1.0)


def test_the_training_split_is_told_to_be_one(trained, scenes, caplog):
    for split, told in (("train", True), ("test", False)):
        caplog.clear()
        command.run(str(trained), str(scenes), EvalConfig(split=split, device="cpu", workers=0))
        assert ("the model was trained on these images" in caplog.text) == told


def test_a_results_file_without_names_is_doubted_and_our_own_is_matched(scenes, tmp_path, caplog):
    index = json.loads((scenes / "annotations" / "test.json").read_text())
    named = {entry["id"]: entry["name"] for entry in index["categories"]}
    ids = dict(zip(named, [*reversed(named)], strict=True))  # the other file's
    rows = [
        {"image_id": a["image_id"], "category_id": ids[a["category_id"]], "bbox": a["bbox"], "score": 0.9}
        for a in index["annotations"]
    ]
    for file in (tmp_path / "foreign.json", tmp_path / "predictions.json"):
        file.write_text(json.dumps(rows))
    names = [{"id": ids[one], "name": name} for one, name in named.items()]
    (tmp_path / "about.json").write_text(json.dumps({"categories": names}))
    data = str(scenes / "annotations" / "test.json")
    assert (command.run(str(tmp_path / "foreign.json"), data, EvalConfig())["AP"] or 0) < 0.5
    assert "without regard to class: are the category ids those of test.json?" in caplog.text
    caplog.clear()
    assert command.run(str(tmp_path / "predictions.json"), data, EvalConfig())["AP"] == pytest.approx(1.0)
    assert "regard to class" not in caplog.text


def test_published_coco_detections_give_their_published_figures(shared_data):
    folder = shared_data / "coco_eval" / "cocoapi_val2014_100"
    metrics = command.run(
        str(folder / "instances_val2014_fakebbox100_results.json"),
        str(folder / "instances_val2014_100.json"),
        EvalConfig(),
    )
    published = [0.504581, 0.696973, 0.572982, 0.585626, 0.519400, 0.501398, 0.386813, 0.593680, 0.595353]
    published += [0.639811, 0.566421, 0.564291]
    assert list(metrics.numbers.values()) == pytest.approx(published, abs=1e-6)


def test_metrics_do_not_depend_on_the_batch(trained, scenes):
    detector = retinanet.load(trained, device="cpu")
    detector.postprocess = Postprocess(score_threshold=0.001)
    data = read_coco(scenes / "annotations" / "train.json")
    one, many = (engine.evaluate(detector, data, batch) for batch in (1, 4))
    assert one.metrics["AP50"] == pytest.approx(many.metrics["AP50"], abs=1e-6)
    assert len(one.results) == len(many.results)


@pytest.mark.parametrize("split", ["valid", "tst"])
def test_an_unknown_split_names_the_known(scenes, split):
    with pytest.raises(ConfigError, match="unknown split"):
        splits.open_split(scenes, split)


def test_without_a_split_validation_is_meant(scenes):
    assert splits.open_split(scenes, None).split == "val"


def test_classes_are_matched_by_name_and_not_by_number(scenes):
    data = read_coco(scenes / "annotations" / "test.json")
    names = [*reversed(data.names), "unicorn"]
    moved = splits.in_model_classes(data, names)
    assert [moved.names[label] for label in moved.labels] == [data.names[label] for label in data.labels]
    ids = dict(zip(moved.names, moved.category_ids, strict=True))
    assert all(ids[name] == number for name, number in zip(data.names, data.category_ids, strict=True))
    assert len(set(moved.category_ids)) == len(names)


@pytest.mark.parametrize("change", [str.upper, " {} ".format, "{}\xa0".format])
def test_classes_that_are_only_written_otherwise_are_matched_and_told(scenes, caplog, change):
    data = read_coco(scenes / "annotations" / "test.json")
    written = replace(data, names=tuple(map(change, data.names)))
    with caplog.at_level("INFO", "retinanet"):
        moved = splits.in_model_classes(written, [*reversed(data.names)])
    assert [moved.names[label] for label in moved.labels] == [data.names[label] for label in data.labels]
    assert "by case, blanks or Unicode form only" in caplog.text


def test_an_unknown_class_names_the_near_one(scenes):
    data = read_coco(scenes / "annotations" / "test.json")
    near = data.names[0] + "x"
    with pytest.raises(DataError, match=f"{near}; did you mean '{data.names[0]}'"):
        splits.in_model_classes(replace(data, names=(near, *data.names[1:])), list(data.names))


def test_classes_that_the_model_lacks_are_an_error_that_names_them(scenes):
    data = read_coco(scenes / "annotations" / "test.json")
    with pytest.raises(DataError, match="unicorn"):
        splits.in_model_classes(replace(data, names=("unicorn", *data.names[1:])), list(data.names))


def test_sparse_category_ids_go_in_and_come_out(trained, scenes, tmp_path):
    index = json.loads((scenes / "annotations" / "test.json").read_text())
    for entry in index["categories"]:
        entry["id"] = entry["id"] * 10 + 3
    for entry in index["annotations"]:
        entry["category_id"] = entry["category_id"] * 10 + 3
    file = scenes / "annotations" / "sparse_test.json"
    file.write_text(json.dumps(index))
    try:
        detector = retinanet.load(trained, device="cpu")
        detector.postprocess = Postprocess(score_threshold=0.001)
        data = splits.in_model_classes(read_coco(file, scenes / "test"), detector.names)
        found = engine.evaluate(detector, data)
        engine.write_evaluation(tmp_path, data, found, {})
        ids = {answer["category_id"] for answer in json.loads((tmp_path / "predictions.json").read_text())}
        assert ids <= {10 * i + 3 for i in range(1, 7)}
        assert ids
        assert np.isfinite(found.metrics["AP"])
    finally:
        file.unlink()


def test_plots_that_fail_are_told_and_the_numbers_are_written(trained, scenes, tmp_path, monkeypatch, caplog):
    def fails(*arguments):
        raise MemoryError

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fails)
    data = splits.open_split(scenes, "val")
    found = engine.evaluate(retinanet.load(trained, device="cpu"), data)
    engine.write_evaluation(tmp_path, data, found, {})
    assert (tmp_path / "metrics.json").exists() and (tmp_path / "predictions.json").exists()
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}/plots could not be drawn: MemoryError"
    ]


@pytest.mark.parametrize("normalize", ["step", "image"])
def test_the_losses_of_a_split_do_not_depend_on_the_batch(trained, scenes, normalize):
    detector, criterion = retinanet.load(trained, device="cpu"), Criterion(normalize=normalize)
    data = splits.open_split(scenes, "val")
    one, three = (engine.evaluate(detector, data, batch, criterion=criterion).losses for batch in (1, 3))
    assert one == pytest.approx(three, rel=1e-4)
    assert set(one) == {"class_loss", "box_loss"}


def test_a_detector_evaluates_itself_on_a_path_and_on_a_data_set(trained, scenes):
    detector = retinanet.load(trained, device="cpu")
    detector.postprocess = Postprocess(score_threshold=0.001)
    evaluation = detector.evaluate(scenes, split="test", batch=2)
    assert len(evaluation.results) > 0
    data = retinanet.open_dataset(scenes)["test"]
    unmeasured = replace(data, sizes=np.zeros_like(data.sizes))
    for again in (retinanet.evaluate(detector, data, 2), retinanet.evaluate(detector, unmeasured, 2)):
        assert again.metrics.numbers == evaluation.metrics.numbers
    assert retinanet.evaluate(str(trained), scenes).metrics.images == len(
        retinanet.open_dataset(scenes)["val"]
    )
    with pytest.raises(DataError, match="classes that the model does not know"):
        detector.evaluate(replace(data, names=("unknown", *data.names[1:])))
