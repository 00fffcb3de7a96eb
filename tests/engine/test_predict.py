"""The verb predict, and which pictures its words mean."""

import json

import pytest
import torch

from retinanet.config import PredictConfig
from retinanet.engine import predict as engine
from retinanet.engine.sources import find_pictures
from retinanet.errors import DataError
from retinanet.view.draw import save


@pytest.fixture
def folder(tmp_path):
    for name in ("a/one.png", "a/two.jpg", "b/one.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(tmp_path / name, torch.randint(0, 255, (3, 40, 50), dtype=torch.uint8))
    (tmp_path / "notes.md").write_text("no picture")
    return tmp_path


def quiet(**settings):
    return PredictConfig(device="cpu", workers=0, **settings)


def test_folders_globs_lists_and_files_are_pictures(folder):
    (folder / "list.txt").write_text("a/one.png\n\nb/one.png\n")
    assert [str(path.relative_to(folder)) for path in find_pictures([folder])] == ["a/one.png", "a/two.jpg", "b/one.png"]
    assert [path.name for path in find_pictures([f"{folder}/*/*.jpg"])] == ["two.jpg"]
    assert len(find_pictures([folder / "list.txt"])) == 2
    assert len(find_pictures([folder / "a" / "one.png", folder])) == 3


def test_sources_without_pictures_are_all_named(folder):
    with pytest.raises(DataError, match=r"nowhere.*\*\.gif"):
        find_pictures([folder / "nowhere", folder / "*.gif", folder])


def test_results_are_coco_with_ids_from_1_beside_a_list_of_the_images(trained, folder):
    out = folder / "out"
    assert engine.run(str(trained), [str(folder / "a"), str(folder / "b")], quiet(out=out))
    images = json.loads((out / "images.json").read_text())
    assert [image["id"] for image in images] == [1, 2, 3]
    assert [image["file_name"].rsplit("/", 2)[1:] for image in images] == [["a", "one.png"], ["a", "two.jpg"], ["b", "one.png"]]
    assert {path.name for path in (out / "pictures").glob("*.jpg")} == {"one.jpg", "two.jpg", "one-2.jpg"}
    for answer in json.loads((out / "predictions.json").read_text()):
        assert answer.keys() == {"image_id", "category_id", "bbox", "score"}
        assert answer["image_id"] in (1, 2, 3)


def test_a_split_of_a_data_set_keeps_its_image_ids(trained, scenes, tmp_path):
    assert engine.run(str(trained), [str(scenes)], quiet(out=tmp_path, split="test", pictures=False))
    truth = json.loads((scenes / "annotations" / "test.json").read_text())
    assert [image["id"] for image in json.loads((tmp_path / "images.json").read_text())] == [image["id"] for image in truth["images"]]


def test_one_bad_file_is_listed_and_the_others_are_done(trained, folder, caplog):
    (folder / "a" / "bad.jpg").write_bytes(b"\xff\xd8\xff broken")
    assert not engine.run(str(trained), [str(folder / "a")], quiet(out=folder / "out"))
    assert "bad.jpg" in caplog.text
    assert len(json.loads((folder / "out" / "images.json").read_text())) == 2


def test_without_out_the_answers_are_printed(trained, folder, caplog):
    with caplog.at_level("INFO", "retinanet"):
        assert engine.run(str(trained), [str(folder / "a" / "one.png")], quiet(threshold=0.0))
    assert "one.png:" in caplog.text


def test_a_file_of_another_kind_is_an_error_of_its_own(trained, folder, caplog):
    assert not engine.run(str(trained), [str(folder / "notes.md"), str(folder / "a" / "one.png")], quiet())
    assert "notes.md" in caplog.text
