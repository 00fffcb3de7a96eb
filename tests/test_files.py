"""What the system refuses is told with what to do."""

import errno
import os

import pytest
from helpers import words

from retinanet import cli, files
from retinanet.files import WHAT_TO_DO, explain_os_error, write_atomically


def refused(capsys, *arguments):
    """What a command prints that ends with status 1."""
    capsys.readouterr()
    assert cli.main(arguments) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("retinanet: ")
    assert "Errno" not in said
    assert "\n" not in said
    return said.removeprefix("retinanet: ")


@pytest.mark.parametrize("inner", ["", "run", "a/b"])
@pytest.mark.parametrize("command", ["train", "predict", "eval"])
def test_a_file_where_out_needs_a_folder_is_named(command, inner, scenes, trained, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    sources = {
        "train": [scenes, *words("--preset tiny --budget 1it --workers 0")],
        "predict": [trained, scenes / "val", *words("--workers 0")],
        "eval": [trained, scenes, *words("--workers 0 --split val")],
    }
    said = refused(capsys, command, *map(str, sources[command]), "--out", str(file / inner))
    assert said.startswith(f"{file}: ")
    assert "a folder is needed here; choose another --out, or move the file away" in said


def test_a_full_disk_is_told_with_the_file_that_was_being_written(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        write_atomically(tmp_path / "metrics.json", b"{}")
    said = explain_os_error(error.value)
    assert said.startswith(f"{tmp_path / 'metrics.json'}: No space left on device: free some space")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", WHAT_TO_DO)
def test_every_sentence_has_what_where_and_what_to_do(number):
    said = explain_os_error(OSError(number, os.strerror(number), "runs/x"))
    assert said == f"runs/x: {os.strerror(number)}: {WHAT_TO_DO[number]}"
    assert explain_os_error(OSError(number, "why")) == f"why: {WHAT_TO_DO[number]}"


def test_other_errors_keep_their_words():
    assert explain_os_error(OSError("broken data stream")) == "broken data stream"
    assert explain_os_error(OSError(errno.EIO, "why", "x")) == str(OSError(errno.EIO, "why", "x"))
