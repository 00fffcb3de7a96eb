"""The parts of a long prediction: cut, marked as done, merged by one, never mixed, never half."""

import json

import pytest

from retinanet.errors import ConfigError
from retinanet.inference import shards as parts

ABOUT = {"model": "6f2a", "threshold": 0.3, "scale": None}


@pytest.fixture
def out(tmp_path):
    """A claimed folder with three parts: two images, one that failed, one without answers."""
    folder = claim(tmp_path / "out", 410)
    write(folder, 0, [1, 2], rows=['{"image_id": 1}', '{"image_id": 2}'])
    write(folder, 2, [4])
    write(folder, 1, [], failed=[3])
    return folder.path


def claim(path, count=1):
    """A folder for `count` images."""
    folder = parts.OutputFolder(path)
    folder.claim(ABOUT, count)
    return folder


def write(folder, number, images, failed=(), rows=()):
    folder.write(number, [{"id": i} for i in images], [{"id": i, "reason": "broken"} for i in failed], rows)


def ids(file):
    return [entry.get("id", entry.get("image_id")) for entry in json.loads(file.read_text())]


@pytest.mark.parametrize("count", [0, 1, 199, 200, 201, 5_000, 15_999, 1_000_001])
def test_the_blocks_hold_every_position_once_and_in_order(count):
    blocks = parts.blocks_of(count)
    assert sum(map(len, blocks)) == count
    assert [block.start for block in blocks] == [0, *(block.stop for block in blocks)][: len(blocks)]
    assert all(0 < len(block) <= 1000 for block in blocks)


def test_a_million_pictures_are_a_thousand_blocks_and_a_few_are_one():
    assert [len(parts.blocks_of(count)) for count in (1_000_000, 8_000, 200)] == [1000, 16, 1]


def test_parts_become_lists_in_their_order(out, caplog):
    assert claim(out, 410).done() == {0, 1, 2}
    with caplog.at_level("INFO", "retinanet"):
        parts.merge_shards(out, 3)
    assert ids(out / "predictions.json") == [1, 2]
    assert ids(out / "images.json") == [1, 2, 4]
    assert ids(out / "failed.json") == [3]
    assert "3 of 4 images done, 2 detections" in caplog.text
    assert "1 of 4 images could not be read" in caplog.text
    assert {path.name for path in out.iterdir()} == {
        "about.json",
        "predictions.json",
        "images.json",
        "failed.json",
    }


def test_where_nothing_failed_there_is_no_list_of_failures(tmp_path):
    write(claim(tmp_path / "out"), 0, [1])
    parts.merge_shards(tmp_path / "out", 1)
    assert ids(tmp_path / "out" / "predictions.json") == []
    assert not (tmp_path / "out" / "failed.json").exists()


def test_a_part_that_is_interrupted_is_not_there(out):
    def rows():
        yield "{}"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(claim(out, 610), 3, [5], rows=rows())
    assert claim(out, 610).done() == {0, 1, 2}


@pytest.mark.parametrize("last", ["failed.json", "images.json", "predictions.json"])
def test_a_merge_that_is_killed_is_made_again(out, monkeypatch, last):
    write_list = parts.write_list

    def killed(file, aside, rows):
        if file.name == last:
            (aside / ".half.tmp").write_text("[")  # what a process leaves that gets no chance to clear away
            raise KeyboardInterrupt
        write_list(file, aside, rows)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "write_list", killed)
        with pytest.raises(KeyboardInterrupt):
            parts.merge_shards(out, 3)
    assert claim(out, 410).done() == {0, 1, 2}
    claim(out)  # is not refused
    parts.merge_shards(out, 3)
    assert (ids(out / "predictions.json"), ids(out / "images.json"), ids(out / "failed.json")) == (
        [1, 2],
        [1, 2, 4],
        [3],
    )
    assert not (out / "parts").exists()


def test_a_merge_that_is_killed_while_it_clears_away_is_finished(out, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(parts.shutil, "rmtree", lambda folder, ignore_errors: parts.shard_path(out, 1).unlink())
        parts.merge_shards(out, 3)
    parts.OutputFolder(out)  # is not refused: somebody has to clear away
    assert claim(out, 410).done() == {0, 1, 2}
    before = (out / "predictions.json").read_bytes()
    parts.merge_shards(out, 3)
    assert (out / "predictions.json").read_bytes() == before
    assert not (out / "parts").exists()
    with pytest.raises(ConfigError, match="never overwritten"):
        parts.OutputFolder(out)


def test_two_may_merge_at_once_and_the_files_are_the_same(out, monkeypatch):
    heads, others = parts._heads, []

    def overtaken(files):
        if not others:
            others.append(True)
            parts.merge_shards(out, 3)  # the other process, from beginning to end
        yield from heads(files)

    monkeypatch.setattr(parts, "_heads", overtaken)
    parts.merge_shards(out, 3)
    assert ids(out / "predictions.json") == [1, 2]
    assert {path.name for path in out.iterdir()} == {
        "about.json",
        "predictions.json",
        "images.json",
        "failed.json",
    }


def test_processes_that_begin_at_once_agree(tmp_path, monkeypatch):
    exists = parts.Path.exists
    with monkeypatch.context() as patch:
        # both look before either writes
        patch.setattr(parts.Path, "exists", lambda path: path.name != "about.json" and exists(path))
        claim(tmp_path / "out")
        claim(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["about.json"]
    claim(tmp_path / "out")


@pytest.mark.parametrize("text", ['{"model": "6f2a", "threshold": 0.3, "scale": 800}', "[]", "half a fi"])
def test_a_folder_of_another_prediction_is_refused(tmp_path, text):
    (tmp_path / "about.json").write_text(text)
    with pytest.raises(
        ConfigError, match=r"another prediction, with other .*scale; choose another --out, or delete it"
    ):
        claim(tmp_path)
    assert (tmp_path / "about.json").read_text() == text


@pytest.mark.parametrize("name", ["predictions.json", "images.json", "drawn", "parts"])
def test_a_folder_that_holds_files_of_such_names_is_refused(tmp_path, monkeypatch, name):
    for variable, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():  # one process alone is refused sooner
        monkeypatch.setenv(variable, value)
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=f"holds {name} already"):
        claim(tmp_path)
    assert not (tmp_path / "about.json").exists()
