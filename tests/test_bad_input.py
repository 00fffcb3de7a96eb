"""Bad input, row by row of the design's table; losses, signals, full disks, resuming: see training/."""

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL, words
from PIL import Image
from safetensors.torch import save_file

import retinanet
from retinanet import cli
from retinanet.data.images import read_image
from retinanet.data.scenes import write_scenes

QUIET = words("--device cpu --workers 0")
pytestmark = pytest.mark.usefixtures("undrawn")


def train(data, out, **settings):
    return retinanet.train(data, "tiny", out=out, **SMALL | {"budget": "2it", "validations": 1} | settings)


@pytest.fixture
def data(tmp_path) -> Path:
    """Scenes of a test's own, to be spoiled."""
    return write_scenes(tmp_path / "data", {"train": 8, "val": 2}, size=(64, 96), seed=1, across=(16, 48))


def change(data, alter, split="train"):
    """Alter the annotations of a split; returns the file's content."""
    file = data / "annotations" / f"{split}.json"
    index = json.loads(file.read_text())
    alter(index)
    file.write_text(json.dumps(index))
    return index


def spoil(index):
    """One fault of every kind that the table names."""
    boxes, images = index["annotations"], index["images"]
    boxes[0]["bbox"][2] = 0
    boxes[1]["bbox"][0] = float("nan")
    boxes[2]["bbox"] = [90, 10, 30, 20]
    boxes[3]["category_id"] = 99
    images[6]["file_name"] = "lost.jpg"
    images[7]["width"] = 200


FAULTS = {
    "boxes without area": "annotation 1, image 1 (000001.jpg)",
    "boxes or areas that are not finite": "annotation 2, image 1 (000001.jpg)",
    "boxes outside the image": "annotation 3, image",
    "annotations of unknown categories": "annotation 4, image",
    "images that are missing": "image 7 (lost.jpg)",
    "images whose size disagrees with the annotation": "image 8 (000008.jpg): the annotation says 200 x "
    "64, the image is 96 x 64",
}

# bad boxes, annotations and picture headers


def test_check_lists_every_fault_with_file_and_id_and_its_status_is_1(data, caplog):
    change(data, spoil)
    with caplog.at_level("INFO", "retinanet"):
        assert cli.main(["check", str(data)]) == 1
    assert all(f"train.json: 1 {kind}\n  {detail}" in caplog.text for kind, detail in FAULTS.items())
    assert f"{len(FAULTS)} problems. Fix them" in caplog.text


def test_training_lists_every_fault_with_file_and_id_and_does_not_begin(data, tmp_path):
    change(data, spoil)
    with pytest.raises(retinanet.DataError) as caught:
        train(data, tmp_path / "run")
    found = {problem.kind: problem.detail for problem in caught.value.problems}
    assert found.keys() == FAULTS.keys()
    assert all(found[kind].startswith(detail) for kind, detail in FAULTS.items())
    assert "--invalid drop" in str(caught.value)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("invalid", ["drop", "clip"])
def test_invalid_drop_and_clip_go_on_and_count(data, tmp_path, caplog, invalid):
    index = change(data, spoil)
    with caplog.at_level("INFO", "retinanet"):
        run = train(data, tmp_path / "run", invalid=invalid, budget="1it")
    boxes = index["annotations"]
    # what cannot be read takes its image along; a box without area does not
    lost = {7, 8, boxes[1]["image_id"], boxes[3]["image_id"]}
    lost |= {boxes[2]["image_id"]} if invalid == "drop" else set()
    kept = sum(entry["image_id"] not in lost for entry in boxes[1:])
    made = json.loads((run / "config.json").read_text())
    assert made["training_images"] == 8 - len(lost)
    assert made["training_boxes"] == kept
    readable = len(boxes) - 2 - kept  # two of them no reader could make a row of
    text = (
        f"{len(FAULTS)} problems met: {len(lost)} images and {readable} boxes left out (--invalid {invalid})"
    )
    assert f"train: {text}" in caplog.text
    assert made["data_notes"]["train"][-1] == text


@pytest.mark.parametrize("command", ["check", "train"])
def test_what_has_one_meaning_is_read_and_recorded_and_strict_refuses_it(data, tmp_path, caplog, command):
    def twice(index):
        index["annotations"][4]["id"] = index["annotations"][5]["id"]

    change(data, twice)
    more = words("--preset tiny --budget 1it --batch 2 --backbone test_resnet --init none --scale 64 --out")
    options = [*QUIET, *more, tmp_path / "run"] if command == "train" else []
    with caplog.at_level("INFO", "retinanet"):
        assert cli.main([command, str(data), *map(str, options)]) == 0
        assert "annotations numbered by their place" in caplog.text
        assert cli.main([command, str(data), "--strict", *map(str, options)]) == 1
    if command == "train":
        made = json.loads((tmp_path / "run" / "config.json").read_text())
        assert "numbered by their place" in made["data_notes"]["train"][0]


def damage(image):
    """A PNG in the file's place, of which a part in the middle is lost."""
    Image.open(image).save(image, format="png")
    content = bytearray(image.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 9] = bytes(9)
    image.write_bytes(content)


def test_only_a_deep_check_decodes_and_nothing_is_written_beside_the_data(data, caplog):
    damage(data / "train" / "000003.jpg")
    before = sorted(data.rglob("*"))
    with caplog.at_level("INFO", "retinanet"):
        assert cli.main(["check", str(data)]) == 0
        assert cli.main(["check", str(data), "--deep"]) == 1
    assert "image 3 (000003.jpg): cannot be read" in caplog.text
    assert sorted(data.rglob("*")) == before


# images without objects


def test_an_image_without_objects_is_a_negative_to_train_on(data, tmp_path):
    def bare(index):
        index["annotations"] = [entry for entry in index["annotations"] if entry["image_id"] == 1]

    change(data, bare)
    run = train(data, tmp_path / "run", budget="4it")
    assert json.loads((run / "config.json").read_text())["training_images"] == 8


# a picture that cannot be decoded


def test_a_picture_that_cannot_be_decoded_stops_the_training_which_names_it(data, tmp_path):
    for image in sorted((data / "train").glob("*.jpg")):
        damage(image)
    with pytest.raises(retinanet.DataError, match=r"train/00000\d\.jpg: cannot be read: "):
        train(data, tmp_path / "run")


# no box, no image, no layout


def test_without_any_box_the_error_says_so(data, tmp_path):
    change(data, lambda index: index["annotations"].clear())
    with pytest.raises(retinanet.DataError, match="there are no boxes in train"):
        train(data, tmp_path / "run")


def test_without_any_image_the_error_says_so(data, tmp_path):
    change(data, lambda index: (index["images"].clear(), index["annotations"].clear()))
    with pytest.raises(retinanet.DataError, match="there are no images in train"):
        train(data, tmp_path / "run")


def test_when_no_picture_is_found_the_error_says_where_it_looked(data, tmp_path):
    (data / "train").rename(data / "elsewhere")
    with pytest.raises(
        retinanet.DataError, match=r"none of its 8 images was found.*data/000001\.jpg; .* --images"
    ):
        train(data, tmp_path / "run")


def test_where_nothing_is_recognised_the_error_says_what_was_looked_for(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("nothing")
    assert cli.main(["check", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert all(
        words in message
        for words in ("COCO  *.json", "VOC   Annotations/*.xml", "YOLO  data.yaml", "It holds: notes.txt")
    )


# paths and sizes that are refused


@pytest.mark.parametrize("name", ["../val/000001.jpg", "/etc/passwd", "..\\x.jpg", "a/../../../x.jpg"])
def test_a_file_name_that_leaves_the_data_folder_is_refused(data, tmp_path, name):
    change(data, lambda index: index["images"][3].update(file_name=name))
    with pytest.raises(retinanet.DataError, match=r"1 file names that leave the data folder\n  image 4 \("):
        train(data, tmp_path / "run")


def test_a_picture_above_the_limit_is_refused_in_training_and_prediction(
    data, trained, tmp_path, capsys, caplog
):
    with pytest.raises(retinanet.DataError, match=r"96 x 64 pixels, the limit is 6000 \(--max-pixels\)"):
        train(data, tmp_path / "run", max_pixels=6000)
    assert cli.main(words("predict --max-pixels 6000", trained, data / "val", *QUIET)) == 1
    assert "more than the limit of 6000; --max-pixels raises it" in caplog.text + capsys.readouterr().err


# pictures read right

RED = np.full((2, 3, 3), (200, 0, 0), dtype=np.uint8)
RED[0, 0] = 0


def test_a_grey_picture_has_three_equal_channels(tmp_path):
    Image.fromarray(RED[:, :, 0]).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [RED[:, :, 0].tolist()] * 3


def test_a_16_bit_picture_keeps_its_range(tmp_path):
    Image.fromarray(RED[:, :, 0].astype(np.uint16) * 257).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [RED[:, :, 0].tolist()] * 3


def test_alpha_is_left_out(tmp_path):
    Image.fromarray(np.concatenate([RED, np.full((2, 3, 1), 7, np.uint8)], axis=2)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").permute(1, 2, 0).tolist() == RED.tolist()


def test_a_cmyk_picture_has_the_colour_that_its_inks_give(tmp_path):
    # magenta and yellow, and black for the rest
    Image.new("CMYK", (16, 16), (0, 255, 255, 55)).save(tmp_path / "a.jpg", quality=100)
    assert (read_image(tmp_path / "a.jpg")[:, 8, 8] - torch.tensor([200.0, 0, 0])).abs().max() < 6


def test_a_rotated_picture_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # the top is on the right: turn it clockwise
    Image.fromarray(RED).save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png").permute(1, 2, 0).tolist() == np.rot90(RED, -1).tolist()


# unknown settings and other words


@pytest.mark.parametrize(
    ("line", "status", "near"),
    [
        ("--preset tiny --gama 1", 2, "--gamma"),
        ("--preset tiny --loss focl", 2, "focal"),
        ("--preset tiny --batch many", 2, "batch"),
        ("--preset tinny", 1, "did you mean 'tiny'"),
        ("--preset tiny --backbone resnet81", 1, "did you mean 'resnet18'"),
        ("--preset tiny --layout yolov8", 2, "yolo"),
    ],
)
def test_on_the_command_line_an_unknown_word_is_told_with_its_neighbours(
    data, tmp_path, capsys, line, status, near
):
    try:
        found = cli.main(words(f"train {data} --device cpu {line} --out", tmp_path / "run"))
    except SystemExit as stopped:
        found = stopped.code
    error = capsys.readouterr().err
    assert (found, "Traceback" in error) == (status, False)
    assert near in error


@pytest.mark.parametrize(
    ("settings", "near"),
    [({"gama": 1}, "'gamma'"), ({"loss": "focl"}, "'focal'"), ({"box_loss": "gio"}, "'giou'")],
    ids=str,
)
def test_from_python_an_unknown_word_is_told_with_its_neighbours(data, tmp_path, settings, near):
    with pytest.raises(retinanet.ConfigError, match=f"did you mean {near}"):
        train(data, tmp_path / "run", **settings)
    with pytest.raises(retinanet.ConfigError, match="did you mean 'tiny'"):
        retinanet.train(data, "tinny")


def test_a_class_that_the_model_does_not_know_is_told_with_those_that_it_knows(data, trained, capsys):
    change(data, lambda index: index["categories"][0].update(name="unicorn"), "train")
    change(data, lambda index: index["categories"][0].update(name="unicorn"), "val")
    assert cli.main(words("eval", trained, data, *QUIET)) == 1
    assert "unicorn; the model knows: disc, ring, block" in capsys.readouterr().err


# checkpoints


class Hostile:
    """A pickle that makes a folder when it is read."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return Path.mkdir, (self.folder,)


def truncated(path, trained):
    path.write_bytes((trained / "model.safetensors").read_bytes()[:-1000])


def foreign_pickle(path, _):
    torch.save({"model": torch.zeros(2)}, path)


def foreign_safetensors(path, _):
    save_file({"weight": torch.zeros(2)}, path, metadata={"format": "pt"})


def hostile_pickle(path, _):
    path.write_bytes(pickle.dumps(Hostile(path.parent / "owned")))


def hostile_zip(path, _):
    torch.save(Hostile(path.parent / "owned"), path)


def hostile_header(path, _):
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")


@pytest.mark.parametrize(
    "make", [truncated, foreign_pickle, foreign_safetensors, hostile_pickle, hostile_zip, hostile_header]
)
def test_what_is_no_whole_file_of_ours_is_a_checkpoint_error_and_runs_nothing(
    trained, data, tmp_path, capsys, make
):
    path = tmp_path / "model.safetensors"
    make(path, trained)
    with pytest.raises(retinanet.CheckpointError, match=r"model\.safetensors"):
        retinanet.load(path, device="cpu")
    assert cli.main(["predict", str(path), str(data / "val"), "--device", "cpu"]) == 1
    assert capsys.readouterr().err.startswith("retinanet: ")
    assert not (tmp_path / "owned").exists()


# no network for weights


def test_without_a_network_training_tries_no_download_and_says_which_file_to_put_where(
    data, tmp_path, monkeypatch
):
    monkeypatch.setattr("retinanet.download.reachable", lambda host: "no route to host")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *_, **__: pytest.fail("it was tried"))
    with pytest.raises(
        retinanet.CheckpointError,
        match=r"put model\.safetensors of https://.*resnet18.* cache \(hf download .*--init none",
    ):
        train(data, tmp_path / "run", init="imagenet", backbone="resnet18")


# one bad file among others


def test_one_bad_file_is_listed_the_others_are_done_and_the_status_is_1(
    trained, data, tmp_path, caplog, capsys
):
    (data / "val" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    assert cli.main(words("predict", trained, data / "val", *QUIET, "--out", tmp_path / "out")) == 1
    done = [
        Path(image["file_name"]).name for image in json.loads((tmp_path / "out" / "images.json").read_text())
    ]
    assert done == ["000001.jpg", "000002.jpg"]
    told = caplog.text + capsys.readouterr().err
    assert "broken.jpg: cannot be read" in told
    assert "1 of 3 images could not be read" in told
