"""The command predict: its images, what it leaves, how processes share and continue one prediction."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import torchrun, words

import retinanet
from retinanet.commands import predict as engine
from retinanet.config.commands import PredictConfig
from retinanet.config.io import override
from retinanet.data.images import read_image
from retinanet.data.splits import open_split
from retinanet.errors import ConfigError, DataError
from retinanet.evaluation.read import read_results
from retinanet.inference import shards as parts
from retinanet.inference import stream
from retinanet.inference.sources import find_files
from retinanet.view.draw import save
from retinanet.weights.checkpoint import read_weights, save_model


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
    found = [str(path.relative_to(folder)) for path in find_files([folder])[0]]
    assert found == ["a/one.png", "a/two.jpg", "b/one.png"]
    assert [path.name for path in find_files([f"{folder}/*/*.jpg"])[0]] == ["two.jpg"]
    assert len(find_files([folder / "list.txt"])[0]) == 2
    assert len(find_files([folder / "a" / "one.png", folder])[0]) == 3


def test_sources_without_pictures_are_all_named(folder):
    with pytest.raises(DataError, match=r"nowhere.*\*\.gif"):
        find_files([folder / "nowhere", folder / "*.gif", folder])


@pytest.fixture
def messy(tmp_path):
    """Two images, one in capitals, one behind a link to a folder that links back; others are hidden."""
    top, other = tmp_path / "shots", tmp_path / "other"
    hidden = [".ipynb_checkpoints/x.jpg", ".trash/y.png", "@eaDir/one.JPG", "__MACOSX/z.jpg", "._one.JPG"]
    for name in ("one.JPG", *hidden):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(b"")
    other.mkdir()
    (other / "two.png").write_bytes(b"")
    (top / "linked").symlink_to(other)
    (other / "back").symlink_to(top)
    return top


def test_what_is_hidden_in_a_folder_is_counted_and_links_are_followed_once(messy, caplog):
    with caplog.at_level("INFO", "retinanet"):
        found, _ = find_files([messy])
    assert [str(path.relative_to(messy)) for path in found] == ["linked/two.png", "one.JPG"]
    assert [record.message for record in caplog.records] == [
        "5 images skipped: hidden, or in a system's folder such as __MACOSX"
    ]


def test_what_is_hidden_is_taken_where_it_is_named(messy, caplog):
    with caplog.at_level("INFO", "retinanet"):
        assert [path.name for path in find_files([messy / ".trash"])[0]] == ["y.png"]
        assert [path.name for path in find_files([messy / "._one.JPG"])[0]] == ["._one.JPG"]
        assert [path.name for path in find_files([f"{messy}/@eaDir/*.JPG"])[0]] == ["one.JPG"]
        assert not caplog.records
        assert [path.name for path in find_files([f"{messy}/*/*"])[0]] == ["two.png"]
    assert "2 images skipped" in caplog.text


def test_a_glob_goes_no_rounds_through_links(messy):
    found, _ = find_files([f"{messy}/**/*.*"])
    assert [str(path.relative_to(messy)) for path in found] == ["linked/two.png", "one.JPG"]


def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_read(messy):
    (messy / "gone.jpg").symlink_to("nowhere")
    assert "gone.jpg" in [path.name for path in find_files([messy])[0]]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfa/one.png\r\n# a comment\r\n\r\nb/one.png\r\n",
        "a/one.png\r\nb/one.png".encode("utf-16"),
        b"a/one.png\rb/one.png\r",
    ],
)
def test_lists_of_any_system_are_read(folder, content):
    (folder / "LIST.TXT").write_bytes(content)
    found, _ = find_files([folder / "LIST.TXT"])
    assert [str(path.relative_to(folder)) for path in found] == ["a/one.png", "b/one.png"]


def test_a_list_names_files_as_the_disk_does(folder):
    name = os.fsdecode(b"gr\xfcn.png")  # of an old Windows, and not UTF-8
    (folder / name).write_bytes(b"")
    (folder / "list.txt").write_bytes(b"gr\xfcn.png\n")
    assert find_files([folder / "list.txt"])[0] == [folder / name]
    (folder / "list.txt").write_bytes(b"\x89PNG\0\0")
    with pytest.raises(DataError, match=r"list\.txt is not a list of paths"):
        find_files([folder / "list.txt"])


def test_a_home_folder_is_found_where_no_shell_looked_for_it(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert [path.name for path in find_files(["~/a", "~/b/*.png"])[0]] == ["one.png", "two.jpg", "one.png"]


HEIC = bytes.fromhex("00000018667479706865696300000000") + b"mif1heic" + bytes(100)


def test_a_reader_that_is_missing_is_told_once_for_all_images(trained, folder, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for name in ("x.HEIC", "y.heic", "bad.jpg"):
        (folder / "a" / name).write_bytes(HEIC if "eic" in name.lower() else b"")
    line = "; for 2 of them a reader is missing: pip install pillow-heif"
    assert not engine.run(str(trained), [str(folder / "a")], quiet(out=folder / "out"))
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        f"{folder}/a/bad.jpg: the file is empty",
        f"3 of 5 images could not be read: {folder}/out/failed.json{line}",
    ]
    failed = json.loads((folder / "out" / "failed.json").read_text())
    assert ["HEIC needs a reader" in one["reason"] for one in failed] == [False, True, True]
    caplog.clear()
    assert not engine.run(str(trained), [str(folder / "a")], quiet())
    assert [record.message for record in caplog.records][-1:] == [f"3 of 5 images could not be read{line}"]


def test_results_are_coco_with_ids_from_1_beside_a_list_of_the_images(trained, folder):
    out = folder / "out"
    assert engine.run(str(trained), [str(folder / "a"), str(folder / "b")], quiet(out=out))
    images = json.loads((out / "images.json").read_text())
    assert [image["id"] for image in images] == [1, 2, 3]
    ends = ["a/one.png", "a/two.jpg", "b/one.png"]
    assert all(image["file_name"].endswith(end) for image, end in zip(images, ends, strict=True))
    assert {path.name for path in (out / "drawn").glob("*.jpg")} == {"one.jpg", "two.jpg", "one-2.jpg"}
    for answer in json.loads((out / "predictions.json").read_text()):
        assert answer.keys() == {"image_id", "category_id", "bbox", "score"}
        assert answer["image_id"] in (1, 2, 3)


def test_loose_images_are_scored_by_the_names_of_files_and_classes(talkative, scenes, tmp_path):
    detector = retinanet.load(talkative, device="cpu")
    out, images = tmp_path / "predictions.json", scenes / "test"
    assert engine.run(talkative, [str(images)], quiet(out=tmp_path, save_images=False))
    named = {
        one["id"]: one["name"] for one in json.loads((tmp_path / "about.json").read_text())["categories"]
    }
    assert [*named.values()] == detector.names
    data = open_split(scenes / "annotations" / "test.json", None)
    other = replace(
        data.subset(np.arange(len(data))[::-1]),
        names=data.names[::-1],
        labels=len(data.names) - 1 - data.labels,
    )
    rows = json.loads(out.read_text())
    assert rows
    paths = {one["id"]: one["file_name"] for one in json.loads((tmp_path / "images.json").read_text())}
    found = read_results(out, other)
    for row, image, label in zip(rows, found.images, found.labels, strict=True):
        assert paths[row["image_id"]].endswith(str(other.files[image]))
        assert other.names[label] == named[row["category_id"]]


def test_a_split_of_a_data_set_keeps_its_image_ids(trained, scenes, tmp_path):
    assert engine.run(str(trained), [str(scenes)], quiet(out=tmp_path, split="test", save_images=False))
    truth = json.loads((scenes / "annotations" / "test.json").read_text())
    assert [image["id"] for image in json.loads((tmp_path / "images.json").read_text())] == [
        image["id"] for image in truth["images"]
    ]


def test_one_bad_file_is_listed_and_the_others_are_done(trained, folder, caplog):
    (folder / "a" / "bad.jpg").write_bytes(b"\xff\xd8\xff broken")
    assert not engine.run(str(trained), [str(folder / "a")], quiet(out=folder / "out"))
    assert "bad.jpg" in caplog.text
    assert len(json.loads((folder / "out" / "images.json").read_text())) == 2


def test_an_image_that_was_too_large_to_be_kept_is_drawn_the_same(trained, folder, monkeypatch):
    def drawn(out, **settings):
        assert engine.run(str(trained), [str(folder / "a")], quiet(out=folder / out, **settings))
        return [path.read_bytes() for path in sorted((folder / out / "drawn").iterdir())]

    kept, tiles = drawn("kept", threshold=0.0), drawn("tiles", threshold=0.0, tiles=32)
    reads = []
    monkeypatch.setattr(
        engine, "read_image", lambda path, limit: reads.append(path.name) or read_image(path, limit)
    )
    assert drawn("again", threshold=0.0) == kept and reads == []
    monkeypatch.setattr(stream, "KEPT", 10_000)
    assert drawn("large", threshold=0.0) == kept
    assert drawn("large-tiles", threshold=0.0, tiles=32) == tiles
    assert sorted(reads) == ["one.png", "one.png", "two.jpg", "two.jpg"]


@pytest.mark.parametrize("kept", [stream.KEPT, 0])
def test_a_drawing_that_fails_ends_nothing_and_is_told_once(trained, folder, monkeypatch, caplog, kept):
    def fails(path, image):
        if path.stem != "two":
            raise OSError(28, "No space left on device")
        save(path, image)

    monkeypatch.setattr(engine, "save", fails)
    monkeypatch.setattr(stream, "KEPT", kept)  # 0: each image is decoded again to be drawn
    out = folder / "out"
    assert engine.run(str(trained), [str(folder / "a"), str(folder / "b")], quiet(out=out, threshold=0.0))
    (told,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert told == (
        "one.jpg and 1 more could not be drawn ([Errno 28] No space left on device); the detections are kept"
    )
    images = json.loads((out / "images.json").read_text())
    assert [image["drawn"] for image in images] == [None, "drawn/two.jpg", None]
    assert (out / "predictions.json").exists()


def test_an_image_that_is_longer_than_a_jpeg_can_be_is_drawn_smaller(trained, tmp_path, caplog):
    save(tmp_path / "long.png", torch.zeros(3, 2, 65_600, dtype=torch.uint8))
    assert engine.run(str(trained), [str(tmp_path / "long.png")], quiet(out=tmp_path / "out", scale=32))
    assert read_image(tmp_path / "out" / "drawn" / "long.jpg").shape == (3, 1, 65_500)
    assert "long.jpg is 65500 x 1 px" in caplog.text


def test_without_out_the_answers_are_printed(trained, folder, capsys):
    assert engine.run(str(trained), [str(folder / "a" / "one.png")], quiet(threshold=0.0))
    assert "one.png:" in capsys.readouterr().out


def test_a_file_of_another_kind_is_an_error_of_its_own(trained, folder, caplog):
    assert not engine.run(str(trained), [str(folder / "notes.md"), str(folder / "a" / "one.png")], quiet())
    assert "notes.md" in caplog.text


@pytest.fixture(scope="module")
def talkative(trained, tmp_path_factory):
    """The same weights, with ten detections an image: after six steps no score is above the usual 0.05."""
    weights, card = read_weights(trained / "model.safetensors")
    file = tmp_path_factory.mktemp("talkative") / "model.safetensors"
    save_model(
        file,
        weights,
        replace(card, model=override(card.model, {"score_threshold": 0.0, "max_detections": 10})),
    )
    return str(file)


@pytest.fixture
def seven(tmp_path, monkeypatch):
    """Seven pictures, the third of which is broken, in blocks of two."""
    monkeypatch.setattr(parts, "SMALLEST", 2)
    monkeypatch.setattr(parts, "LARGEST", 2)
    generator = torch.Generator().manual_seed(0)
    for number in range(7):
        size = (3, 40, 50) if number % 2 else (3, 50, 40)
        save(
            tmp_path / "seven" / f"{number}.png",
            torch.randint(0, 255, size, dtype=torch.uint8, generator=generator),
        )
    (tmp_path / "seven" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    return str(tmp_path / "seven")


def as_process(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))


def contents(out):
    """The bytes of what a prediction leaves, but for the drawn pictures."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


@pytest.fixture
def alone(talkative, seven, tmp_path):
    """What one process leaves of the seven."""
    out = tmp_path / "alone"
    assert not engine.run(talkative, [seven], quiet(out=out))
    return out


def test_the_answers_are_in_the_order_of_the_pictures_and_those_that_failed_are_listed(alone):
    assert contents(alone).keys() == {"about.json", "predictions.json", "images.json", "failed.json"}
    images = json.loads((alone / "images.json").read_text())
    assert [(image["id"], image["drawn"]) for image in images] == [
        (n + 1, f"drawn/{n}.jpg") for n in (0, 1, 3, 4, 5, 6)
    ]
    ids = [answer["image_id"] for answer in json.loads((alone / "predictions.json").read_text())]
    assert ids == sorted(ids)
    assert set(ids) == {1, 2, 4, 5, 6, 7}
    (failed,) = json.loads((alone / "failed.json").read_text())
    assert failed["id"] == 3 and failed["file_name"].endswith("2.png") and "2.png" in failed["reason"]


@pytest.mark.parametrize("world", [2, 3, 6])
def test_the_files_are_the_same_for_any_number_of_processes(
    talkative, seven, alone, tmp_path, monkeypatch, world
):
    good = []
    for rank in reversed(range(world)):  # the first process may as well be the last to be ready
        as_process(monkeypatch, rank, world)
        good.append(engine.run(talkative, [seven], quiet(out=tmp_path / "shared")))
    assert contents(tmp_path / "shared") == contents(alone)
    # torchrun ends the others as soon as one fails: only the last one counts the broken image
    assert good == [True] * (world - 1) + [False]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_run_that_was_stopped_is_continued_by_any_number_of_processes(
    talkative, seven, alone, tmp_path, monkeypatch, caplog, world
):
    out = tmp_path / "stopped"
    asked = []
    streamed = engine.stream_with_images

    def stopped(detector, paths, *settings, **options):
        for answer in streamed(detector, paths, *settings, **options):
            asked.append(int(paths[answer[0]].stem))
            yield answer
            if len(asked) == 5:  # in the middle of the third block
                raise KeyboardInterrupt

    monkeypatch.setattr(engine, "stream_with_images", stopped)
    with pytest.raises(KeyboardInterrupt):
        engine.run(talkative, [seven], quiet(out=out))
    assert not (out / "predictions.json").exists()
    with caplog.at_level("INFO", "retinanet"):
        for rank in range(world):
            as_process(monkeypatch, rank, world)
            engine.run(talkative, [seven], quiet(out=out))
    assert "4 of 7 images are done already" in caplog.text
    assert contents(out) == contents(alone)
    assert sorted(asked[:4]) == [0, 1, 2, 3]
    assert sorted(asked[5:]) == [4, 5, 6]  # nothing that was done is done again


def test_a_run_that_was_stopped_continues_only_as_it_was_begun(talkative, seven, tmp_path, monkeypatch):
    as_process(monkeypatch, 0, 2)
    assert engine.run(talkative, [seven], quiet(out=tmp_path / "out"))
    before = contents(tmp_path / "out" / "parts")
    for config, other in (
        (quiet(scale=96), "scale"),
        (quiet(threshold=0.9), "threshold"),
        (quiet(save_images=False), "threshold"),
    ):
        with pytest.raises(
            ConfigError, match=f"parts of another prediction, with other {other}; choose another --out"
        ):
            engine.run(talkative, [seven], replace(config, out=tmp_path / "out"))
    with pytest.raises(ConfigError, match="other images, count"):
        engine.run(talkative, [f"{seven}/*1.png"], quiet(out=tmp_path / "out"))
    assert contents(tmp_path / "out" / "parts") == before
    # what a machine can bear does not change the answers
    assert engine.run(talkative, [seven], quiet(out=tmp_path / "out", batch=1))


def test_a_finished_prediction_is_never_overwritten(talkative, seven, alone, monkeypatch):
    before = contents(alone)
    with pytest.raises(ConfigError, match="alone holds predictions already, and they are never overwritten"):
        engine.run("not even looked at", [seven], quiet(out=alone))
    as_process(monkeypatch, 1, 2)
    with pytest.raises(ConfigError, match="another prediction, with other scale"):
        engine.run(talkative, [seven], quiet(out=alone, scale=96))
    assert contents(alone) == before


def test_a_process_that_comes_when_all_is_done_finds_it_done(talkative, seven, alone, monkeypatch, caplog):
    before = contents(alone)
    as_process(monkeypatch, 5, 6)
    with caplog.at_level("INFO", "retinanet"):
        engine.run(talkative, [seven], quiet(out=alone))
    assert "7 of 7 images are done already" in caplog.text
    assert contents(alone) == before
    assert not (alone / "parts").exists()


def test_files_of_others_in_the_folder_are_not_touched(talkative, seven, tmp_path):
    for name in ("parts", "drawn"):
        (tmp_path / name / name).mkdir(parents=True)
        with pytest.raises(ConfigError, match=f"{name} holds {name} already"):
            engine.run(talkative, [seven], quiet(out=tmp_path / name))
        assert [path.name for path in (tmp_path / name).iterdir()] == [name]


def test_drawn_pictures_inside_the_source_are_not_predicted_on(
    talkative, seven, alone, tmp_path, monkeypatch
):
    out = tmp_path / "seven" / "found"
    for rank in range(2):
        as_process(monkeypatch, rank, 2)
        engine.run(talkative, [seven], quiet(out=out))
    assert contents(out) == contents(alone)


def test_without_out_each_process_prints_its_blocks(talkative, seven, monkeypatch, capsys):
    printed = []
    for rank in range(2):
        as_process(monkeypatch, rank, 2)
        assert engine.run(talkative, [seven], quiet()) == (rank == 0)
        lines = capsys.readouterr().out.splitlines()
        printed.append(sorted(int(line.split(".png: ")[0][-1]) for line in lines if ".png: " in line))
    assert printed == [[0, 1, 4, 5], [3, 6]]


def test_pictures_of_one_name_are_numbered_past_names_that_are_taken():
    files = ["one.png", "a/one.jpg", "one-2.png", "b/one.png", "two.png"]
    assert engine.image_names(files) == ["one.jpg", "one-2.jpg", "one-2-2.jpg", "one-3.jpg", "two.jpg"]


def test_naming_many_images_of_one_name_grows_with_their_number_and_not_with_its_square():
    def lines_run(count):
        names, seen = [f"{number}/frame.png" for number in range(count)], []

        def trace(frame, event, argument):
            seen.append(event)
            return trace

        sys.settrace(trace)
        try:
            assert len(set(engine.image_names(names))) == count
        finally:
            sys.settrace(None)
        return len(seen)

    assert lines_run(400) < 3 * lines_run(200)


def test_torchrun_starts_processes_that_share_the_pictures(talkative, tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    for number in range(parts.SMALLEST + 10):  # two blocks
        save(
            tmp_path / "many" / f"{number:03d}.png",
            torch.randint(0, 255, (3, 16, 16), dtype=torch.uint8, generator=generator),
        )
    (tmp_path / "many" / "000.png").write_bytes(b"broken")
    command = words(
        "predict --device cpu --workers 0 --no-save-images --scale 32", talkative, tmp_path / "many"
    )
    program = torchrun(2, *command, "--out", tmp_path / "two")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr  # for the broken picture
    assert "1 of 210 images could not be read" in done.stdout
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert not engine.run(
            talkative, [str(tmp_path / "many")], quiet(out=tmp_path / "one", save_images=False, scale=32)
        )
    finally:
        torch.set_num_threads(threads)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
