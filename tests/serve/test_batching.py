"""Batches from many requests: which share one, which wait, which fail together, and what is left."""

import threading

import pytest
import torch

from retinanet.data.images import read_image
from retinanet.errors import DataError
from retinanet.serve.batching import SICK, Batcher, Full, decode
from retinanet.serve.metrics import Metrics


@pytest.fixture
def batcher(colours):
    made = []

    def make(**settings):
        made.append(Batcher(colours, Metrics(), **settings))
        return made[-1]

    yield make
    colours.go.set()
    for one in made:
        one.close()
        assert one.held == 0


def best(future):
    """The first class that was found, and the picture's height and width."""
    found, size = future.result(20)
    return found.names[found.labels[0]], size


def test_every_picture_gets_its_own_answer(batcher, picture):
    colour = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
    wanted = [(name, (width, 40)) for width in (30, 60) for name in colour for _ in range(5)]
    futures = batcher(max_batch=4, decoders=3).submit(
        [(name, picture(colour[name], size)) for name, size in wanted]
    )
    assert [best(future) for future in futures] == [
        (name, (height, width)) for name, (width, height) in wanted
    ]


def test_what_arrives_while_the_detector_is_at_work_is_the_next_batch(batcher, colours, picture, until):
    colours.go.clear()
    running = batcher(max_batch=4)
    futures = running.submit([("first", picture())])
    until(lambda: futures[0].running())
    futures += running.submit([(str(number), picture()) for number in range(6)])
    until(lambda: running._decoding == 0)
    colours.go.set()
    assert [best(future)[0] for future in futures] == ["red"] * 7
    assert colours.batches == [1, 4, 2]


def test_only_pictures_of_one_padded_shape_share_a_batch_and_the_oldest_goes_first(
    batcher, colours, picture, until
):
    colours.go.clear()
    running = batcher(decoders=1)
    futures = running.submit([("first", picture())])
    until(lambda: futures[0].running())
    sizes = [(40, 80), (40, 40), (40, 80), (40, 40), (40, 40)]
    futures += running.submit([("later", picture(size=size)) for size in sizes])
    until(lambda: running._decoding == 0)
    colours.go.set()
    assert [best(future)[1] for future in futures[1:]] == [(height, width) for width, height in sizes]
    assert colours.batches == [1, 2, 3]


def test_the_detector_computes_with_all_threads_and_each_decoder_with_one(
    batcher, colours, picture, monkeypatch
):
    ours, used = torch.get_num_threads(), {}

    def note(name, call):
        def noted(*args):
            torch.rand(400, 400).exp()  # the first computation of a thread may change what it uses
            used.setdefault(name, set()).add(torch.get_num_threads())
            return call(*args)

        return noted

    monkeypatch.setattr(colours, "predict_batch", note("detector", colours.predict_batch))
    monkeypatch.setattr("retinanet.serve.batching.decode", note("decoders", decode))
    torch.set_num_threads(3)
    try:
        for future in batcher(max_batch=1).submit([(str(number), picture()) for number in range(20)]):
            best(future)
    finally:
        torch.set_num_threads(ours)
    assert used == {"detector": {3}, "decoders": {1}}


def test_a_lone_picture_waits_for_nobody(batcher, picture):
    running = batcher(wait=60.0)
    # in a third of that time, or `best` gives up
    assert best(running.submit([("alone", picture())])[0])[0] == "red"


def test_a_picture_that_cannot_be_read_hurts_only_itself(batcher, picture):
    bad, good, empty = batcher().submit([("notes.jpg", b"no image"), ("good", picture()), ("empty.png", b"")])
    with pytest.raises(DataError, match=r"^notes\.jpg: not a JPEG, PNG"):
        bad.result(20)
    with pytest.raises(DataError, match=r"^empty\.png: the file is empty$"):
        empty.result(20)
    assert best(good)[0] == "red"


def test_too_many_pixels_are_refused_by_the_header(batcher, picture):
    with pytest.raises(DataError, match=r"^big: 40 x 40 pixels are more than the limit of 1599"):
        batcher(max_pixels=1599).submit([("big", picture())])[0].result(20)


def test_when_the_detector_fails_only_the_culprit_does(batcher, colours, picture, until, caplog):
    colours.go.clear()
    running = batcher()
    first = running.submit([("first", picture())])
    until(lambda: first[0].running())
    futures = running.submit(
        [("a", picture()), ("poison", picture((13, 14, 15))), ("b", picture((0, 0, 255)))]
    )
    until(lambda: running._decoding == 0)
    colours.go.set()
    with pytest.raises(RuntimeError, match="poison"):
        futures[1].result(20)
    assert [best(futures[place])[0] for place in (0, 2)] == ["red", "blue"]
    assert sorted(colours.batches[2:]) == [1, 1, 1]
    assert "the detector failed on 'poison'" in caplog.text


def test_it_is_no_longer_healthy_when_nothing_but_failures_comes(batcher, picture):
    running = batcher()
    for _ in range(SICK):
        assert running.healthy
        assert isinstance(running.submit([("poison", picture((13, 14, 15)))])[0].exception(20), RuntimeError)
    assert not running.healthy
    assert best(running.submit([("good", picture())])[0])[0] == "red"
    assert running.healthy


def test_a_queue_with_a_place_takes_a_whole_request_and_a_full_one_nothing(batcher, colours, picture, until):
    colours.go.clear()
    running = batcher(queue=3)
    futures = running.submit([("a", picture()), ("b", picture()), ("c", b"broken")])
    until(lambda: running.held == 2)  # what is broken has made room
    futures += running.submit([("d", picture())] * 4)
    assert running.held == 6
    with pytest.raises(Full) as full:
        running.submit([("e", picture())])
    assert 1 <= full.value.seconds <= 60
    colours.go.set()
    assert best(futures[-1])[0] == "red"
    until(lambda: running.held == 0)


def test_cancelled_pictures_are_left_out(batcher, colours, picture, until):
    colours.go.clear()
    running = batcher()
    first = running.submit([("first", picture())])
    until(lambda: first[0].running())
    futures = running.submit([(str(number), picture()) for number in range(4)])
    until(lambda: running._decoding == 0)
    assert futures[1].cancel() and futures[2].cancel()
    colours.go.set()
    assert best(futures[3])[0] == "red"
    assert colours.batches == [1, 2]
    until(lambda: running.held == 0)


def test_closing_finishes_what_is_here_and_takes_no_more(colours, picture):
    running = Batcher(colours, Metrics(), max_batch=2)
    futures = running.submit([(str(number), picture()) for number in range(7)])
    running.close()
    assert [best(future)[0] for future in futures] == ["red"] * 7
    with pytest.raises(Full):
        running.submit([("late", picture())])


def test_a_decoder_that_is_stuck_does_not_keep_the_server_from_ending(colours, picture, monkeypatch, caplog):
    go = threading.Event()
    ended: list[bool] = []
    monkeypatch.setattr("retinanet.serve.batching.decode", lambda *_: ended.append(go.wait(20)))
    running = Batcher(colours, Metrics(), decoders=2)
    running.submit([("stuck", picture())])
    running.close(0.1)
    assert not ended
    assert "1 images are left unanswered" in caplog.text
    assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("retinanet-"))
    go.set()


@pytest.mark.parametrize("error", [MemoryError(), OSError(24, "Too many open files")])
def test_what_fails_through_no_fault_of_the_picture_is_logged_and_not_the_pictures_error(
    batcher, picture, monkeypatch, caplog, error
):
    def fail(*_):
        raise error

    place = (
        "PIL.ImageFile.ImageFile.load"
        if isinstance(error, MemoryError)
        else "retinanet.model.preprocess.Preprocess.resized"
    )
    monkeypatch.setattr(place, fail)
    told = batcher().submit([("a.png", picture())])[0].exception(20)
    assert type(told) is type(error)
    assert "decoding 'a.png' failed" in caplog.text and type(error).__name__ in caplog.text


def test_an_upload_is_read_as_a_file_is(picture, tmp_path):
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    content = picture((10, 200, 30), (20, 30), "JPEG", exif=exif)
    (tmp_path / "turned.jpg").write_bytes(content)
    pixels = decode("turned.jpg", content, 1000)
    assert list(pixels.shape) == [3, 20, 30]
    assert torch.equal(pixels, read_image(tmp_path / "turned.jpg"))
