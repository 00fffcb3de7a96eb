"""Which examples produce the loss, and which labels look wrong: by hand, and on planted errors."""

import json
import logging
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import synthetic_label_noise as planted
import torch

import retinanet
from retinanet.audit import run as audit
from retinanet.audit.evidence import BOX, PEAK, Predictions, Truth, examine, support
from retinanet.audit.shares import GROUPS, Shares, group_of
from retinanet.audit.suspects import Suspect, isotonic, log_ratio, rank
from retinanet.config.commands import AuditConfig
from retinanet.data.dataset import Columns
from retinanet.data.scenes import write_scenes
from retinanet.data.splits import open_split
from retinanet.errors import ConfigError, DataError
from retinanet.model.criterion import Criterion
from retinanet.ops.assign import BACKGROUND, IGNORE
from retinanet.ops.losses import focal_loss
from retinanet.text import aligned

# ---------------------------------------------------------------------------------------------------- shares


def batch_of(classes=3, seed=0):
    """Logits [2, 40, K], labels with every kind of anchor [2, 40], and which are inside."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-2, classes, (2, 40), generator=generator)
    return 3 * torch.randn(2, 40, classes, generator=generator), labels, torch.ones(2, 40, dtype=torch.bool)


@pytest.mark.parametrize("settings", [{}, {"gamma": 0.5, "alpha": None}, {"alpha": [0.2, 0.5, 0.9]}])
def test_loss_and_gradient_are_those_of_the_dense_focal_loss_under_autograd(settings):
    logits, labels, inside = batch_of()
    criterion = Criterion(**settings)
    shares = Shares(["P3"], "abc")
    losses = shares.add(0, logits, labels, inside, torch.ones(2), criterion)
    x = logits.clone().requires_grad_()
    targets = torch.nn.functional.one_hot(labels.clamp(min=0), 3).float() * (labels >= 0)[..., None]
    dense = focal_loss(x, targets, criterion.alpha, criterion.gamma) * (labels != IGNORE)[..., None]
    dense.sum().backward()
    assert torch.allclose(losses, dense.detach().sum(dim=2), atol=1e-5)
    assert shares.sums[1].sum(axis=(0, 2)) == pytest.approx(dense.detach().sum(dim=(0, 1)).numpy(), rel=1e-4)
    assert shares.sums[2].sum(axis=(0, 2)) == pytest.approx(x.grad.abs().sum(dim=(0, 1)).numpy(), rel=1e-4)


@pytest.mark.parametrize("loss", ["cross_entropy", "balanced", "focal", "focal_star", "hinge"])
def test_shares_of_groups_levels_and_classes_sum_to_one(loss):
    shares = Shares(["P3", "P4"], "abc")
    for level in (0, 1):
        shares.add(level, *batch_of(seed=level), torch.ones(2), Criterion(loss=loss))
    content = shares.to_json()
    for axis in ("groups", "levels", "classes"):
        for quantity in ("loss", "gradient"):
            assert sum(row[quantity] for row in content[axis]) == pytest.approx(1)
    for row in content["levels"] + content["classes"]:
        assert sum(part["loss"] for part in row["groups"].values()) == pytest.approx(row["loss"])
    assert content["total"]["examples"] == 3 * sum(
        content["anchors"][kind] for kind in ("positive", "negative")
    )


def test_an_example_is_easy_when_the_probability_of_the_truth_exceeds_0_6():
    logits = torch.tensor([0.5, 0.3, -0.5, -0.3])  # p 0.62, 0.57, 0.38, 0.43
    positive = torch.ones(4, dtype=torch.bool)
    assert [GROUPS[g] for g in group_of(logits, positive)] == ["easy positives", *["hard positives"] * 3]
    assert [GROUPS[g] for g in group_of(logits, ~positive)] == ["hard negatives"] * 2 + [
        "easy negatives",
        "hard negatives",
    ]


def test_ignored_anchors_are_counted_and_have_no_loss():
    labels, inside = (
        torch.tensor([[0, BACKGROUND, IGNORE, IGNORE]]),
        torch.tensor([[True, True, True, False]]),
    )
    shares = Shares(["P3"], ["cell"])
    losses = shares.add(
        0, torch.zeros(1, 4, 1), labels, inside, torch.ones(1), Criterion(loss="cross_entropy")
    )
    assert shares.to_json()["anchors"] == {"positive": 1, "negative": 1, "ignored": 1, "outside": 1}
    assert losses[0].tolist() == pytest.approx([np.log(2), np.log(2), 0, 0])


def test_an_image_counts_what_its_normaliser_says():
    shares, logits, labels, inside = Shares(["P3"], "abc"), *batch_of()
    whole = shares.add(0, logits, labels, inside, torch.ones(2), Criterion())
    assert torch.allclose(
        shares.add(0, logits, labels, inside, torch.tensor([1.0, 0.25]), Criterion())[1], whole[1] / 4
    )


def test_a_split_without_any_loss_has_no_shares():
    assert {row["loss"] for row in Shares(["P3"], ["cell"]).to_json()["groups"]} == {0.0}


def test_a_table_is_aligned():
    assert aligned([["", "loss"], ["hard", "7 %"]]) == "      loss\nhard   7 %"


def test_the_loss_of_a_box_is_that_of_its_anchors():
    losses, owners = torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.tensor([[0, 1, 1, BACKGROUND]])
    of_boxes, has_anchor = audit.by_owner(losses, owners, 3)
    assert of_boxes.tolist() == [[1, 6, 0]] and has_anchor.tolist() == [[True, True, False]]
    assert audit.by_owner(losses, torch.full((1, 4), IGNORE), 0)[0].sum() == 0


# -------------------------------------------------------------------------------------------------- evidence


def look(predictions, boxes, labels, crowds=(), classes=3):
    """Predictions as (box, label, p), and what is annotated, in an image of 100 x 200 pixels."""
    p = torch.zeros(len(predictions), classes)
    for row, (_, label, value) in enumerate(predictions):
        p[row, label] = value
    found = Predictions(torch.tensor([box for box, _, _ in predictions]).reshape(-1, 4).float(), p)
    frame = torch.tensor(boxes).reshape(-1, 4).float()
    region = torch.tensor(crowds).reshape(-1, 4).float()
    return examine(
        found,
        Truth(frame, torch.tensor(labels, dtype=torch.long), region, np.arange(len(boxes)), 0, (100, 200)),
    )


HERE, THERE = [10.0, 10.0, 50.0, 50.0], [100.0, 40.0, 140.0, 80.0]


def test_a_prediction_supports_a_box_by_how_much_of_it_is_there():
    # IoU 1 and 0.8
    found = Predictions(
        torch.tensor([HERE, [10.0, 10.0, 50.0, 42.0]]), torch.tensor([[0.5, 0.0], [0.0, 0.9]])
    )
    values, best = support(torch.tensor([HERE, THERE]), found)
    assert values.tolist() == [pytest.approx([0.5, 0.9 * 0.6]), [0, 0]]
    assert best[0].tolist() == [0, 1]


def test_a_box_that_is_predicted_by_another_class_shows_it():
    evidence, peaks = look([(HERE, 1, 0.9), (HERE, 0, 0.1)], [HERE], [0])
    assert (evidence["own"][0], evidence["other"][0], evidence["other_label"][0]) == pytest.approx(
        (0.1, 0.9, 1)
    )
    assert len(peaks) == 0  # it has a box, whatever it is called


def test_a_prediction_without_a_box_is_a_peak_and_may_be_the_place_of_one():
    evidence, peaks = look([(THERE, 2, 0.8), (HERE, 1, 0.7)], [[70.0, 10.0, 110.0, 50.0], HERE], [2, 1])
    assert [(peak["label"], peak["p"]) for peak in peaks] == [(2, pytest.approx(0.8))]
    assert evidence["partner"].tolist() == pytest.approx([0.8, 0])
    assert evidence["partner_at"].tolist() == [0, -1]


def test_an_object_predicted_twice_is_missing_once():
    assert len(look([(HERE, 0, 0.8), ([11.0, 10.0, 51.0, 50.0], 1, 0.6)], [], [])[1]) == 1


def test_what_lies_in_a_crowd_is_no_suspect():
    assert len(look([(HERE, 0, 0.8), (THERE, 0, 0.8)], [], [], crowds=[[0.0, 0.0, 60.0, 60.0]])[1]) == 1


def test_the_perturbed_forms_of_a_well_predicted_box():
    evidence, _ = look([(HERE, 1, 0.9)], [HERE], [1])
    assert (evidence["renamed_own"][0], evidence["renamed_other"][0]) == pytest.approx((0, 0.9))
    assert (
        evidence["dropped_p"][0],
        evidence["moved_partner"][0],
        evidence["moved_own"][0],
    ) == pytest.approx((0.9, 0.9, 0))


def test_a_single_class_cannot_be_renamed():
    evidence, peaks = look([(HERE, 0, 0.9)], [HERE, THERE], [0, 0], classes=1)
    assert np.isnan(evidence["renamed_own"]).all()
    assert "renamed" not in {one.kind for one in rank(evidence, [peaks])}


@pytest.mark.parametrize(("predictions", "boxes"), [([], []), ([], [HERE]), ([(HERE, 0, 0.9)], [])])
def test_images_without_predictions_or_boxes_are_welcome(predictions, boxes):
    evidence, peaks = look(predictions, boxes, [0] * len(boxes))
    assert (len(evidence), len(peaks)) == (len(boxes), len(predictions))
    assert all(np.isfinite(one.score) for one in rank(evidence, [peaks]))


# ---------------------------------------------------------------------------------------------------- scores


def test_the_nearest_rising_function():
    assert isotonic(np.array([3.0, 1.0, 2.0, 4.0]), np.array([0.0, 0.0, 1.0, 1.0])).tolist() == pytest.approx(
        [0.5, 0.25, 0.5, 0.75]
    )


def test_the_ratio_is_that_of_the_counts():
    real, perturbed = (
        np.repeat([[0.0], [1.0]], [900, 100], axis=0),
        np.repeat([[0.0], [1.0]], [100, 900], axis=0),
    )
    ratio = log_ratio(perturbed, real)
    assert (ratio[0], ratio[-1]) == pytest.approx((-np.log(9), np.log(9)), abs=0.05)
    assert log_ratio(np.full((5, 1), np.nan), real)[0] == -np.inf  # no perturbed box at all
    assert len(log_ratio(perturbed, real[:0])) == 0


def made_up(sound=300, seed=0):
    """One error of each kind: row 0 renamed, row 1 moved, a box dropped; the model does well."""
    rng = np.random.default_rng(seed)
    boxes = np.zeros(sound, BOX)
    boxes["row"], boxes["image"], boxes["side"] = (
        np.arange(sound),
        np.arange(sound),
        rng.uniform(20, 80, sound),
    )
    boxes["own"], boxes["other"] = rng.uniform(0.4, 0.9, sound), rng.uniform(0, 0.2, sound)
    boxes["renamed_own"], boxes["renamed_other"] = boxes["other"], boxes["own"]
    boxes["dropped_p"], boxes["dropped_side"] = boxes["own"], boxes["side"]
    boxes["moved_own"], boxes["moved_partner"] = rng.uniform(0, 0.1, sound), boxes["own"]
    boxes["partner_at"], boxes["predicted_p"], boxes["predicted"] = -1, boxes["other"], [0, 0, 9, 9]
    peaks = [np.zeros(2, PEAK) for _ in range(sound)]
    for image, one in enumerate(peaks):
        one["image"], one["p"], one["side"] = image, rng.uniform(0.05, 0.3, 2), rng.uniform(20, 80, 2)
    boxes["own"][:2], boxes["other"][0] = 0.03, 0.8
    boxes["partner"][1], boxes["partner_at"][1] = 0.8, 1
    peaks[1]["p"][1] = peaks[2]["p"][0] = 0.8
    return boxes, peaks


def test_the_three_errors_come_first_and_each_once():
    first = rank(*made_up())[:4]
    assert {(one.kind, one.image) for one in first[:3]} == {("renamed", 0), ("misplaced", 1), ("missing", 2)}
    assert first[2].score > 3 > 1 > first[3].score


def test_a_set_without_errors_has_no_suspect_that_looks_like_one():
    boxes, peaks = made_up()
    assert rank(boxes[3:], [one[:0] if image < 3 else one for image, one in enumerate(peaks)])[0].score < 1.5


# --------------------------------------------------------------------------------------------------- planted


def coco(boxes=240):
    """A COCO file with boxes of 30 x 20 in images of 200 x 100, one of them a crowd."""
    rng = np.random.default_rng(3)
    rows = [
        {
            "id": i + 1,
            "image_id": i % 40,
            "category_id": i % 3 + 5,
            "bbox": [float(rng.integers(0, 170)), float(rng.integers(0, 80)), 30, 20],
        }
        for i in range(boxes)
    ]
    rows[0]["iscrowd"] = 1
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 200, "height": 100} for i in range(40)]
    return {
        "images": images,
        "annotations": rows,
        "categories": [{"id": i + 5, "name": name} for i, name in enumerate("abc")],
    }


def test_a_third_each_is_moved_dropped_and_renamed():
    before = coco()
    after, done = planted.plant(before, 0.1, seed=1)
    assert before == coco()  # what is given stays as it is
    assert [sum(one.kind == kind for one in done) for kind in planted.KINDS] == [8, 8, 8]
    assert len({one.annotation_id for one in done}) == 24 and 1 not in {one.annotation_id for one in done}
    old, new = ({one["id"]: one for one in content["annotations"]} for content in (before, after))
    kind_of = {one.annotation_id: one.kind for one in done}
    assert {number for number in old if number not in new} == {
        number for number, kind in kind_of.items() if kind == "dropped"
    }
    for number, one in new.items():
        moved, renamed = one["bbox"] != old[number]["bbox"], one["category_id"] != old[number]["category_id"]
        assert (moved, renamed) == (kind_of.get(number) == "moved", kind_of.get(number) == "renamed")
        x, y, wide, tall = one["bbox"]
        assert 0 <= x <= 200 - wide and 0 <= y <= 100 - tall
        shared = max(0, wide - abs(x - old[number]["bbox"][0])) * max(
            0, tall - abs(y - old[number]["bbox"][1])
        )
        assert not moved or shared / (2 * wide * tall - shared) < 0.5
    assert planted.plant(before, 0.1, seed=1) == (after, done) != planted.plant(before, 0.1, seed=2)


def as_dataset(content, tmp_path):
    columns = Columns()
    for image in content["images"]:
        columns.image(image["file_name"], image["id"], image["height"], image["width"])
        for one in content["annotations"]:
            if one["image_id"] == image["id"]:
                x, y, wide, tall = one["bbox"]
                columns.box(
                    (x, y, x + wide, y + tall),
                    one["category_id"] - 5,
                    one["id"],
                    crowd=bool(one.get("iscrowd")),
                )
    return columns.build(tmp_path / "train.json", tmp_path, "train", "abc", (5, 6, 7))


def test_a_perfect_list_finds_all_and_an_empty_one_nothing(tmp_path):
    after, done = planted.plant(coco(), 0.1)
    data = as_dataset(after, tmp_path)
    row_of, image_of = (
        {int(number): i for i, number in enumerate(ids)} for ids in (data.annotation_ids, data.image_ids)
    )
    suspects = [
        Suspect("missing", 1.0, image_of[one.image_id], None, 0, 0.9, one.box)
        if one.kind == "dropped"
        else Suspect("misplaced", 1.0, image_of[one.image_id], row_of[one.annotation_id], None, None, None)
        for one in done
    ]
    found = planted.scores(suspects, data, done)
    assert found["first"]["24"] == {
        "precision": 1,
        "recall": 1,
        "recall_by_kind": {"moved": 1, "dropped": 1, "renamed": 1},
    }
    assert found["first"]["12"]["recall"] == 0.5
    assert (
        "first 24 suspects: precision 1.00, recall 1.00 (moved 1.00, dropped 1.00, renamed 1.00)"
        in planted.text(found)
    )
    assert planted.scores([], data, done)["first"]["24"]["recall"] == 0
    wrong = replace(suspects[0], row=row_of[1])  # the crowd, which was left alone
    assert planted.hits([wrong], data, done) == [None]
    dropped = next(one for one in suspects if one.row is None)
    elsewhere = (
        replace(dropped, row=row_of[1], kind="renamed"),
        replace(dropped, box=(0.0, 0.0, 1.0, 1.0)),
        dropped,
    )
    assert [one is not None for one in planted.hits(elsewhere, data, done)] == [False, False, True]


def test_the_truth_is_read_as_it_was_written(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps(coco()))
    done = planted.plant_file(tmp_path / "train.json", tmp_path / planted.FILE, 0.1)
    assert planted.read_truth(tmp_path / planted.FILE) == done
    assert json.loads((tmp_path / "train.json").read_text()) == planted.plant(coco(), 0.1)[0]
    (tmp_path / planted.FILE).write_text("[]")
    with pytest.raises(DataError, match="no list of planted errors"):
        planted.read_truth(tmp_path / planted.FILE)


# ---------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def spoilt(scenes, tmp_path_factory):
    """The generated scenes with errors in a fifth of the boxes."""
    folder = tmp_path_factory.mktemp("spoilt")
    (folder / "annotations").mkdir()
    (folder / "train").symlink_to(scenes / "train")
    (folder / "annotations" / "train.json").write_text((scenes / "annotations" / "train.json").read_text())
    planted.plant_file(folder / "annotations" / "train.json", folder / planted.FILE, 0.2)
    return folder


def test_the_command_leaves_numbers_suspects_and_a_page(trained, spoilt, tmp_path, caplog):
    out = tmp_path / "out"
    with caplog.at_level(logging.INFO, "retinanet"):
        found = audit.run(str(trained), str(spoilt), AuditConfig(out=out, count=5, device="cpu", workers=0))
    content = json.loads((out / "audit.json").read_text())
    assert sum(row["loss"] for row in content["shares"]["groups"]) == pytest.approx(1)
    assert found.image_losses.sum() == pytest.approx(content["shares"]["total"]["class_loss"], rel=1e-4)
    positives = (
        sum(row["loss"] for row in content["shares"]["groups"][:2]) * content["shares"]["total"]["class_loss"]
    )
    # of the anchors of a box also what the absent classes cost
    assert positives <= found.box_losses.sum() * (1 + 1e-4)
    assert content["split"] == "train" and content["criterion"]["loss"] == "focal"
    assert "hard negatives" in caplog.text
    listed = json.loads((out / "suspects.json").read_text())
    assert len(listed) == min(5, len(found.suspects))
    assert {"kind", "score", "file", "image_id", "annotation_id", "label", "bbox", "answer"} == set(listed[0])
    page = (out / "audit.html").read_text()
    ElementTree.fromstring(page.replace("<!DOCTYPE html>", "").strip())
    boxes, images = len(found.box_losses), len(found.image_losses)
    assert page.count("data:image/jpeg") == len(listed) + min(12, boxes) + min(12, images)
    assert all(row["file"] in page for row in listed)


def test_crowds_and_boxes_without_an_anchor_are_counted_and_not_judged(trained, spoilt):
    data = open_split(spoilt, "train")
    boxes, crowd = data.boxes.copy(), data.crowd.copy()
    boxes[0, 2:] = boxes[0, :2] + 2  # two pixels, which no anchor overlaps by IoU 0.4
    crowd[-1] = True
    odd = replace(data, boxes=boxes, crowd=crowd)
    found = audit.analyse(
        retinanet.load(trained, device="cpu"), odd, audit.criterion_of(str(trained), odd)[0]
    )
    assert not found.matched[0] and not found.matched[-1] and found.box_losses[0] == 0
    assert not {0, len(crowd) - 1} & {one.row for one in found.suspects}
    content = audit.summary(found, odd)
    assert (content["crowds"], content["boxes"], content["boxes_without_anchor"]) == (
        1,
        len(crowd) - 1,
        (~found.matched[:-1]).sum(),
    )


def test_neither_the_batch_nor_its_order_changes_what_is_found(trained, spoilt):
    detector = retinanet.load(trained, device="cpu")
    data = open_split(spoilt, "train")
    criterion, _ = audit.criterion_of(str(trained), data)
    one, other = (audit.analyse(detector, data, criterion, batch) for batch in (1, 4))
    assert np.allclose(one.shares.sums, other.shares.sums, rtol=1e-3)
    assert np.allclose(one.box_losses, other.box_losses, rtol=1e-3) and (one.matched == other.matched).all()
    assert len(one.suspects) == len(other.suspects)


def test_the_loss_is_that_of_the_run_or_the_papers(trained, spoilt):
    data = open_split(spoilt, "train")
    assert audit.criterion_of(str(trained), data)[1]["box_loss"] == "giou"
    criterion, settings = audit.criterion_of(str(trained / "model.safetensors"), data)
    assert (settings["box_loss"], criterion.alpha, criterion.gamma) == ("smooth_l1", 0.25, 2.0)


def test_a_run_with_minibatches_is_looked_at_whole(trained, spoilt, tmp_path):
    about = json.loads((trained / "config.json").read_text())
    about["config"]["criterion"]["mining"] = "ohem"
    (tmp_path / "config.json").write_text(json.dumps(about))
    data = open_split(spoilt, "train")
    assert audit.criterion_of(str(tmp_path), data)[0].mining == "none"
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be read"):
        audit.criterion_of(str(tmp_path), data)


def test_what_cannot_be_looked_at_is_told(trained, spoilt):
    with pytest.raises(ConfigError, match="one scale"):
        audit.run(str(trained), str(spoilt), AuditConfig(scales=(64, 96)))
    with pytest.raises(ConfigError, match="unknown split 'test'"):
        audit.run(str(trained), str(spoilt), AuditConfig(split="test", device="cpu"))
    with pytest.raises(ConfigError, match="runs are never overwritten"):
        audit.run(str(trained), str(spoilt), AuditConfig(out=trained, device="cpu"))


@pytest.mark.slow
def test_planted_errors_are_found_by_a_model_that_was_trained_on_them(tmp_path):
    data = write_scenes(tmp_path / "scenes", {"train": 600, "val": 20}, (192, 192), seed=2, across=(24, 120))
    planted.plant_file(data / "annotations" / "train.json", data / planted.FILE, seed=2)
    small = {"scale": 192, "train_scale": 192, "anchor_size": 2.0, "validations": 1, "workers": 0, "seed": 2}
    run = retinanet.train(data, "tiny", out=tmp_path / "run", budget="700it", device="cpu", **small)
    config = AuditConfig(split="train", out=tmp_path / "out", device="cpu", workers=0)
    suspects = audit.run(str(run), str(data), config).suspects
    truth = planted.read_truth(data / planted.FILE)
    found = planted.scores(suspects, open_split(data, config.split, any_split=True), truth)
    half, whole, double = found["first"].values()
    assert half["precision"] >= 0.8
    assert whole["precision"] >= 0.6
    assert double["recall"] >= 0.8 and min(double["recall_by_kind"].values()) >= 0.65
