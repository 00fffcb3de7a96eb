"""The model card of a run: readable by the hub, true to the record, silent about the machine's folders."""

import json
import signal
from dataclasses import replace

import helpers
import pytest
import yaml
from huggingface_hub import ModelCard

import retinanet
from retinanet.config.io import override
from retinanet.config.presets import preset
from retinanet.data.scenes import write_scenes
from retinanet.model.backbone import Backbone
from retinanet.text import escaped
from retinanet.training import card as modelcard
from retinanet.training import loop
from retinanet.training.card import origins, preset_line, public_name, recipe, setting
from retinanet.training.resume import Counters
from retinanet.weights.checkpoint import load_model, read_weights, save_model

SMALL = helpers.SMALL | {"log_every": 1}
pytestmark = pytest.mark.usefixtures("undrawn")
QUICK = SMALL | {"budget": "2it", "validations": 1}
CHANGED = "channels 32, num_convs 1, scale 64, batch 2, train_scale none"
AWKWARD = ["- a | b", 'say "no": yes', "<script>x</script>\n# head", "*red* _cell_ `x`", "🚲 vélo", "null"]


@pytest.fixture(scope="module")
def card(trained):
    """The card of a run that went to its end."""
    return (trained / "README.md").read_text()


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


def numbers(text):
    return {entry["type"]: entry["value"] for entry in front(text)["model-index"][0]["results"][0]["metrics"]}


def section(text, title):
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(text):
    """Cells of every line of every table, unescaped pipes only."""
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]


def test_what_ap_leaves_out_stands_beside_the_numbers(card, trained):
    remarks = json.loads((trained / "metrics.json").read_text())["remarks"]
    assert remarks == ["no detections"]
    assert "\nNo detections.\n" in section(card, "Results")


def test_the_head_is_what_the_hub_reads(card, trained, scenes):
    head = front(card)
    assert (head["library_name"], head["pipeline_tag"]) == ("retinanet", "object-detection")
    assert "license" not in head  # it is for whoever publishes the weights to choose
    (result, *_) = ModelCard(card).data.eval_results
    assert (result.task_type, result.dataset_name, result.dataset_split) == (
        "object-detection",
        scenes.name,
        "val",
    )
    assert head["model-index"][0]["name"] == trained.name


def test_the_numbers_are_those_of_the_last_validation(card, trained):
    measured = json.loads((trained / "metrics.json").read_text())
    known = {key: measured[key] for key in modelcard.NUMBERS if measured[key] is not None}
    assert numbers(card) == pytest.approx(known, abs=5e-5)
    assert f"{measured['images']} images with {measured['boxes']} boxes" in section(card, "Results")
    assert "iteration 6 of 6" in section(card, "Results")
    assert "had not ended" not in card


def test_every_class_has_its_row_with_its_boxes(card, trained, scenes):
    measured = json.loads((trained / "metrics.json").read_text())
    training = json.loads((scenes / "annotations" / "train.json").read_text())
    table = {row[0]: row for row in rows(section(card, "Results")) if len(row) == 9}
    for category, row in zip(training["categories"], measured["per_class"], strict=True):
        learned = sum(box["category_id"] == category["id"] for box in training["annotations"])
        assert table[row["name"]][1:4] == [str(category["id"]), str(learned), str(row["boxes"])]


def test_the_recipe_names_the_preset_and_what_was_changed(card):
    lines = {row[0]: row[1] for row in rows(section(card, "Recipe")) if len(row) == 2}
    assert lines["preset"] == f"tiny; changed: backbone test_resnet, {CHANGED}"
    assert lines["length"] == "6 iterations of 2 images: 12 images shown, 2.0 epochs"
    assert "gamma 2" in lines["loss"]
    assert "optimizer adamw" in lines["optimiser"]
    assert retinanet.__version__ in lines["versions"]


def test_no_folder_of_the_machine_is_in_it(card, trained, scenes):
    for path in (*trained.parents, *scenes.parents):
        assert str(path) == "/" or str(path) not in card


def test_a_training_from_scratch_says_so_and_no_licence_is_made_up(card):
    assert "from scratch" in section(card, "Initial weights")
    assert "None has been chosen" in section(card, "Licence")


def test_awkward_names_survive(tmp_path):
    data = write_scenes(tmp_path / '- "it\'s": 🚲', {"train": 6}, size=(64, 96), seed=3, across=(16, 48))
    file = data / "annotations" / "train.json"
    content = json.loads(file.read_text())
    for category, name in zip(content["categories"], AWKWARD, strict=True):
        category["name"] = name
    file.write_text(json.dumps(content))
    text = (retinanet.train(data, "tiny", out=tmp_path / "null", **QUICK) / "README.md").read_text()
    assert front(text)["model-index"][0]["name"] == "null"
    assert ModelCard(text).data.eval_results[0].dataset_name == data.name
    table = [line for line in section(text, "Results").splitlines() if line.startswith("| ")]
    for name in AWKWARD:
        (line,) = [line for line in table if line.startswith(f"| {escaped(name)} | ")]
        assert line.replace(r"\|", "").count("|") == 10
    assert "<script>" not in text.replace(r"\<", "")
    assert "held out of train, by seed 0" in section(text, "Data")
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a | b", r"a \| b"),
        ("a\nb\x00", "a b"),
        ("<b>", r"\<b\>"),
        ("snake_case", "snake_case"),
        ("_em_", r"\_em\_"),
        ("a\\", "a\\\\"),
    ],
)
def test_foreign_text_is_text(name, expected):
    assert escaped(name) == expected


def test_the_licence_and_origin_of_initial_weights_are_told_and_handed_on(trained, scenes, tmp_path):
    weights, card = read_weights(trained / "model.safetensors")
    about = {"project": "torchvision", "imported_from": "theirs.pth", "published_as": "v2 | coco"}
    about |= {"licence": "BSD-3-Clause", "path": "/home"}
    (tmp_path / "private").mkdir()
    save_model(tmp_path / "private" / "coco.safetensors", weights, replace(card, about=about))
    run = retinanet.train(
        scenes, "tiny", init=tmp_path / "private" / "coco.safetensors", out=tmp_path / "first", **QUICK
    )
    again = retinanet.train(scenes, "tiny", init=run, out=tmp_path / "second", **QUICK)
    for folder, origin in ((run, ["coco.safetensors"]), (again, ["first", "coco.safetensors"])):
        text = (folder / "README.md").read_text()
        assert [entry["name"] for entry in json.loads((folder / "config.json").read_text())["init"]] == origin
        assert (
            r"coco.safetensors, project torchvision, imported from theirs.pth, published as v2 \| coco, "
            r"licence BSD-3-Clause" in text
        )
        assert "The licence of coco.safetensors, from which they come: BSD-3-Clause." in section(
            text, "Licence"
        )
        assert "private" not in text
    assert "The licence of first, from which they come: not recorded." in section(text, "Licence")
    assert load_model(again / "model.safetensors")[1].about["init"][1]["licence"] == "BSD-3-Clause"


def test_imagenet_weights_are_named_as_pinned_with_their_licence():
    entry, *others = origins(preset("r50-600"))
    assert (entry["name"], entry["licence"], others) == ("resnet50.tv_in1k", "bsd-3-clause", [])
    assert modelcard.hub_address(entry) == "timm/resnet50.tv_in1k"
    assert "licence bsd-3-clause" in modelcard.origin_line(entry)
    assert origins(preset("tiny")) == []


def test_a_training_from_imagenet_weights_names_them(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(Backbone, "load_imagenet", lambda self: None)  # no test fetches weights
    settings = QUICK | {"backbone": "resnet18", "backbone_norm": "frozen", "init": "imagenet"}
    run = retinanet.train(scenes, "tiny", out=tmp_path / "run", **settings)
    text = (run / "README.md").read_text()
    assert front(text)["base_model"] == "timm/resnet18.tv_in1k"
    link = "[resnet18.tv_in1k](https://huggingface.co/timm/resnet18.tv_in1k)"
    assert f"1. ImageNet weights of the backbone: {link}, project timm, licence bsd-3-clause" in text
    assert "The licence of resnet18.tv_in1k, from which they come: bsd-3-clause." in section(text, "Licence")


def test_what_a_strangers_file_says_of_its_origin_is_not_trusted(trained, tmp_path):
    _, card = load_model(trained / "model.safetensors")
    about = {
        "licence": ["MIT"],
        "project": "x" * 1000,
        "init": [{"name": 3, "hub": "](javascript:x)"}, "no dict"] * 50,
    }
    found = origins(
        override(preset("tiny"), {"init": tmp_path / "model.safetensors"}), replace(card, about=about)
    )
    assert len(found) == 20
    assert found[0] == {"kind": "model", "name": f"{tmp_path.name}/model.safetensors", "project": "x" * 200}
    assert "huggingface.co" not in modelcard.origin_line(found[1])


@pytest.mark.parametrize(
    ("entry", "address"),
    [
        ({"name": "hf:me/cells"}, "me/cells"),
        ({"name": "hf:me/cells@v1"}, "me/cells"),
        ({"name": "me/cells"}, None),
        ({"hub": "a b/c"}, None),
    ],
)
def test_an_address_on_the_hub_is_found(entry, address):
    assert modelcard.hub_address(entry) == address


@pytest.mark.parametrize(
    ("path", "name"), [("hf:owner/name", "hf:owner/name"), ("/home/me/runs/x", "x"), ("/x/y.pth", "y.pth")]
)
def test_a_name_for_the_public(path, name):
    assert public_name(path) == name


def test_a_run_that_was_stopped_has_a_card_and_the_last_one_when_it_went_on(scenes, tmp_path, monkeypatch):
    true_step, steps = loop.train_step, iter(range(100))

    def step(*arguments):
        if next(steps) == 4:
            signal.raise_signal(signal.SIGINT)
        return true_step(*arguments)

    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(KeyboardInterrupt):
        retinanet.train(scenes, "tiny", out=tmp_path / "run", **SMALL, budget="6it", validations=2)
    text = (tmp_path / "run" / "README.md").read_text()
    assert "had not ended" in text
    assert "iteration 3 of 6" in text
    monkeypatch.undo()
    text = (retinanet.resume(tmp_path / "run") / "README.md").read_text()
    assert "had not ended" not in text
    assert "iteration 6 of 6" in text


def test_a_readme_that_is_not_ours_stays(trained, tmp_path, caplog):
    (tmp_path / "README.md").write_text("mine")
    with caplog.at_level("INFO", "retinanet"):
        modelcard.write_card(tmp_path, "the card")
    assert (tmp_path / "README.md").read_text() == "mine"
    assert "stays as it is" in caplog.text
    (tmp_path / "README.md").write_text(modelcard.MARK)
    modelcard.write_card(tmp_path, "the card")
    assert (tmp_path / "README.md").read_text() == "the card"


def test_the_best_weights_are_found_in_the_record():
    record = [
        {"kind": "val", "iteration": 10, "AP": 0.25},
        {"kind": "train", "iteration": 12},
        {"kind": "val", "iteration": 20, "AP": 0.125},
    ]
    assert "0.250 (iteration 10)" in modelcard.best_weights(Counters(done=20, best=0.25), record)
    assert "they are the same" in modelcard.best_weights(Counters(done=10, best=0.25), record[:1])


def recipe_of(scenes, rows=(), **settings):
    """The lines of a recipe of a training that has not begun."""
    state = helpers.session_of(scenes, **settings)
    about = {"iterations": 6, "processes": 1, "machine": "a machine", "versions": {}}
    return recipe(state, about, rows)


def test_the_time_is_that_of_all_stretches_of_the_record(scenes):
    record = [{"kind": "train", "iteration": 10, "images_per_second": 2.0}, {"kind": "val", "iteration": 10}]
    record += [
        {"kind": "train", "iteration": 30, "images_per_second": 8.0},
        {"kind": "train", "iteration": 40, "images_per_second": None},
    ]
    assert recipe_of(scenes, record, batch=4)["time"].startswith("30 s")  # 40 images at 2, then 80 at 8


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"loss": "cross_entropy"}, "loss cross_entropy, box_loss giou, "),
        (
            {"alpha": None, "gamma": 0.5, "box_loss": "giou"},
            "loss focal, alpha none, gamma 0.5, box_loss giou, ",
        ),
        ({"mining": "ohem"}, "mining ohem, mining_batch 512, positive 0.5, negative 0.4"),
    ],
)
def test_a_loss_is_told_with_its_own_parameters(scenes, settings, line):
    assert line in recipe_of(scenes, **settings)["loss"]


def test_a_preset_is_told_with_the_changes_that_matter(tmp_path):
    assert preset_line("tiny", override(preset("tiny"), {"out": tmp_path, "workers": 3})) == "tiny"
    assert preset_line("tiny", override(preset("tiny"), {"gamma": 1.0})) == "tiny; changed: gamma 1"
    assert preset_line(None, preset("tiny")) == "none"
    assert setting((1.0, 2 ** (1 / 3))) == "1 1.26"
