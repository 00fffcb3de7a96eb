"""Videos in predict: what is read of a file, what is written of it, and what becomes of broken ones."""

import json
import re
import sys
import weakref
from fractions import Fraction

import numpy as np
import pytest
import torch

from retinanet.commands import predict as engine
from retinanet.config.commands import PredictConfig
from retinanet.data.scenes import scene
from retinanet.errors import ConfigError, DataError
from retinanet.inference import video
from retinanet.inference.load import load
from retinanet.inference.sources import find_files
from retinanet.inference.video_io import VideoReader, VideoWriter
from retinanet.structures import Detections
from retinanet.view.draw import save

av = pytest.importorskip("av")


def square(number, size=(48, 80)):
    """A grey image [H, W, 3]; a green square of 16 pixels, 12 from the top, goes right by 4 a frame."""
    picture = np.full((*size, 3), 90, np.uint8)
    left = 4 * number % (size[1] - 16)
    picture[12:28, left : left + 16] = (20, 230, 30)
    return picture


def make(
    file,
    pictures,
    times=None,
    rate=10,
    codec="libx264",
    rotation=None,
    options=None,
    pixels="yuv420p",
    live=None,
):
    """A clip of pictures [H, W, 3], at times in ticks of 1/1000 s, every fourth a key frame."""
    with av.open(str(file), "w", options=options or {}) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.gop_size = 4
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file


def decoded(file):
    """(time in seconds, picture [H, W, 3]) of every frame: by PyAV's own short way, nothing of ours."""
    with av.open(str(file)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


class Finder:
    """Finds the green square, exactly: a detector without weights."""

    names, category_ids, threshold = ["leaf", "frog"], [3, 7], 0.5

    def __init__(self):
        self.batches, self.alive, self.most = [], weakref.WeakSet(), 0

    def predict(self, images, batch=8):
        self.batches.append(len(images))
        return [self.find(image.numpy().transpose(1, 2, 0)) for image in images]

    def find(self, picture):
        rows, columns = np.nonzero(picture[:, :, 1].astype(int) - picture[:, :, 0] > 100)
        box = torch.tensor(
            [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], dtype=torch.float32
        )
        return Detections(box.repeat(2, 1), torch.tensor([0.9, 0.3]), torch.tensor([1, 0]), self.names)


def quiet(**settings):
    return PredictConfig(**{"device": "cpu", "workers": 0, "batch": 3, **settings})


def keep(out, *files, finder=None, settings=None, **config):
    """What `predict --out` does with videos, once there is a detector."""
    videos = {file.stem: file for file in files}
    return video.keep_videos(
        finder or Finder(), videos, 0.5, quiet(out=out, **config), out, settings or {"model": "m"}
    )


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def about(out, name="clip"):
    return json.loads((out / f"{name}.about.json").read_text())


def boxes(file):
    return [line["detections"][0]["bbox"] for line in lines(file)]


@pytest.fixture
def clip(tmp_path):
    """Ten frames, ten a second."""
    return make(
        tmp_path / "clip.mp4", [square(number) for number in range(10)], options={"movflags": "+faststart"}
    )


def test_every_frame_has_a_line_with_its_time_and_all_its_answers(clip, tmp_path):
    finder = Finder()
    assert keep(tmp_path / "out", clip, finder=finder)
    assert finder.batches == [3, 3, 3, 1]
    found = lines(tmp_path / "out" / "clip.jsonl")
    assert [(line["frame"], line["time"]) for line in found] == [
        (number, number / 10) for number in range(10)
    ]
    for line, (_, picture) in zip(found, decoded(clip), strict=True):
        x1, y1, x2, y2 = finder.find(picture).boxes[0].tolist()
        box = [x1, y1, x2 - x1, y2 - y1]
        # both answers, though only the first is above the threshold that pictures are drawn with
        assert line["detections"] == [
            {"category_id": 7, "name": "frog", "bbox": box, "score": 0.9},
            {"category_id": 3, "name": "leaf", "bbox": box, "score": 0.3},
        ]
    assert [round(box[0] / 4) for box in boxes(tmp_path / "out" / "clip.jsonl")] == [*range(10)]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "clip.about.json",
        "clip.jsonl",
        "clip.mp4",
    }
    made = about(tmp_path / "out")
    assert (made["width"], made["height"], made["frames"], made["frame_rate"], made["problems"]) == (
        80,
        48,
        10,
        10,
        [],
    )


def test_the_drawn_video_is_the_source_with_frames_around_what_was_found(clip, tmp_path):
    keep(tmp_path / "out", clip)
    with av.open(str(tmp_path / "out" / "clip.mp4")) as container:
        assert (container.streams.video[0].codec_context.name, container.streams.video[0].average_rate) == (
            "h264",
            10,
        )
    before, after = decoded(clip), decoded(tmp_path / "out" / "clip.mp4")
    assert [time for time, _ in after] == [time for time, _ in before]
    for number, ((_, source), (_, drawn)) in enumerate(zip(before, after, strict=True)):
        difference = np.abs(source.astype(int) - drawn).max(axis=2)
        left = 4 * number
        # far from the square and its tag the picture is the same, on the square's edge it is not
        assert difference[45:].max() < 12
        assert difference[27, left + 2 : left + 14].mean() > 40


def test_without_pictures_only_the_answers_are_written_and_the_threshold_touches_the_drawing_only(
    clip, tmp_path
):
    keep(tmp_path / "out", clip)
    keep(tmp_path / "bare", clip, save_images=False)
    assert (tmp_path / "bare" / "clip.jsonl").read_bytes() == (tmp_path / "out" / "clip.jsonl").read_bytes()
    assert not (tmp_path / "bare" / "clip.mp4").exists()
    video.keep_videos(Finder(), {"clip": clip}, 0.95, quiet(), tmp_path / "high", {})
    assert (tmp_path / "high" / "clip.jsonl").read_bytes() == (tmp_path / "out" / "clip.jsonl").read_bytes()
    for (_, source), (_, drawn) in zip(decoded(clip), decoded(tmp_path / "high" / "clip.mp4"), strict=True):
        # nothing is drawn at all: only what coding it again changes
        assert np.abs(source.astype(int) - drawn).max() < 40


def test_frames_keep_their_times_where_the_rate_varies(tmp_path):
    times = [0, 40, 50, 400, 401, 1000, 1003, 2500, 2600, 5000]
    clip = make(tmp_path / "clip.mp4", [square(number) for number in range(10)], times)
    assert keep(tmp_path / "out", clip)
    assert [line["time"] for line in lines(tmp_path / "out" / "clip.jsonl")] == [
        time / 1000 for time in times
    ]
    assert [round(1000 * time) for time, _ in decoded(tmp_path / "out" / "clip.mp4")] == times
    with av.open(str(tmp_path / "out" / "clip.mp4")) as container:
        assert container.duration / 1e6 >= 5


def test_a_clip_that_was_cut_from_a_longer_one_begins_at_0(tmp_path):
    clip = make(
        tmp_path / "clip.mkv",
        [square(number) for number in range(5)],
        [100_000 + 100 * number for number in range(5)],
    )
    assert decoded(clip)[0][0] == 100
    assert keep(tmp_path / "out", clip)
    assert [line["time"] for line in lines(tmp_path / "out" / "clip.jsonl")] == [0, 0.1, 0.2, 0.3, 0.4]
    assert [round(time, 6) for time, _ in decoded(tmp_path / "out" / "clip.mp4")] == [0, 0.1, 0.2, 0.3, 0.4]


def test_odd_sides_get_one_more_row_and_column_and_boxes_do_not_move(tmp_path):
    clip = make(
        tmp_path / "clip.mkv", [square(number, (49, 81)) for number in range(4)], codec="ffv1", pixels="bgr0"
    )
    assert keep(tmp_path / "out", clip)
    assert boxes(tmp_path / "out" / "clip.jsonl") == [[4 * number, 12, 16, 16] for number in range(4)]
    assert (about(tmp_path / "out")["width"], about(tmp_path / "out")["height"]) == (81, 49)
    _, drawn = decoded(tmp_path / "out" / "clip.mp4")[0]
    assert drawn.shape == (50, 82, 3)
    assert np.abs(drawn[49].astype(int) - 90).max() < 8 and np.abs(drawn[30:, 81].astype(int) - 90).max() < 8


@pytest.mark.skipif(
    not hasattr(av.VideoStream, "set_display_rotation"), reason="this PyAV cannot write a turned clip"
)
@pytest.mark.parametrize(
    ("rotation", "size", "box"),
    [
        (-90, (80, 48), [20, 0, 16, 16]),  # a quarter clockwise: x is the height 48 less the lowest row 28
        (90, (80, 48), [12, 64, 16, 16]),
        (180, (48, 80), [64, 20, 16, 16]),
    ],
)
def test_what_a_phone_has_recorded_sideways_is_answered_and_drawn_upright(tmp_path, rotation, size, box):
    clip = make(tmp_path / "clip.mp4", [square(0)], rotation=rotation)
    assert keep(tmp_path / "out", clip)
    assert boxes(tmp_path / "out" / "clip.jsonl") == [box]
    assert decoded(tmp_path / "out" / "clip.mp4")[0][1].shape[:2] == size
    with av.open(str(tmp_path / "out" / "clip.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 0


def test_colours_go_through_unchanged(tmp_path):
    """Both ways have to agree on the matrix: BT.601 for BT.709 moves a green by twenty values."""
    card = np.zeros((64, 96, 3), np.uint8)
    card[:, :32], card[:, 32:64], card[:, 64:] = (200, 40, 60), (30, 180, 90), (60, 70, 210)
    clip = make(tmp_path / "clip.mkv", [card] * 3, codec="ffv1", pixels="bgr0")
    with VideoReader(clip) as source:
        (frames,) = source.batches(3)
        with VideoWriter(tmp_path / "film.mp4", source, 64, 96) as film:
            for frame in frames:
                film.write(frame.pixels, frame.time)
    assert (frames[0].pixels.numpy().transpose(1, 2, 0) == card).all()
    with VideoReader(tmp_path / "film.mp4") as again:
        (frames,) = again.batches(3)
    seen = frames[0].pixels.numpy().transpose(1, 2, 0)
    for column in (16, 48, 80):
        assert np.abs(seen[32, column].astype(int) - card[32, column]).max() <= 4


@pytest.mark.parametrize("kind", ["clip.mp4"])
def test_a_stream_that_ends_early_is_reported_and_what_was_decoded_is_kept(tmp_path, caplog, kind):
    # so that all frames are of some size
    noise = np.random.default_rng(0).integers(0, 60, (48, 80, 3), dtype=np.uint8)
    clip = make(
        tmp_path / kind,
        [square(number) // 2 + noise for number in range(30)],
        options={"movflags": "+faststart"} if "mp4" in kind else None,
    )
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 6 // 10])
    assert not keep(tmp_path / "out", clip)
    found = lines(tmp_path / "out" / "clip.jsonl")
    assert 10 < len(found) < 25 and [line["frame"] for line in found] == [*range(len(found))]
    assert [round(time, 3) for time, _ in decoded(tmp_path / "out" / "clip.mp4")] == [
        line["time"] for line in found
    ]
    problem = about(tmp_path / "out")["problems"][0]
    assert re.fullmatch(r"frame \d+, at [12]\.\d00 s, is damaged or missing \(.*\)", problem)
    assert f"{clip}: {problem}" in caplog.text


def test_a_broken_middle_is_reported_and_the_frames_around_it_are_kept(tmp_path, caplog):
    noise = np.random.default_rng(0).integers(0, 60, (48, 80, 3), dtype=np.uint8)
    clip = make(tmp_path / "clip.mov", [square(number) // 2 + noise for number in range(30)], codec="mpeg4")
    with av.open(str(clip)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(clip.read_bytes())
    start, end = places[9][0], sum(places[11])  # three packets in the middle, none of them a key frame
    content[start:end] = bytes(end - start)
    clip.write_bytes(content)
    assert not keep(tmp_path / "out", clip)
    found = lines(tmp_path / "out" / "clip.jsonl")
    assert [line["time"] for line in found] == [
        number / 10 for number in range(30) if number not in (9, 10, 11)
    ]
    assert len(decoded(tmp_path / "out" / "clip.mp4")) == len(found)
    (problem,) = about(tmp_path / "out")["problems"]
    assert re.match(r"frame \d, at 0\.\d00 s, is damaged or missing", problem)
    assert f"{clip}: {problem}" in caplog.text


def test_a_guessed_frame_is_reported_by_its_number(tmp_path):
    noise = np.random.default_rng(0).integers(0, 60, (48, 80, 3), dtype=np.uint8)
    clip = make(tmp_path / "clip.mkv", [square(number) // 2 + noise for number in range(12)])
    with av.open(str(clip)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(clip.read_bytes())
    content[places[5][0] + places[5][1] // 2 : sum(places[5])] = bytes(places[5][1] - places[5][1] // 2)
    clip.write_bytes(content)
    assert not keep(tmp_path / "out", clip)
    (problem,) = about(tmp_path / "out")["problems"]
    assert re.fullmatch(
        r"frame [4-6], at 0\.[4-6]00 s, is damaged or missing \(the decoder guessed .*\)", problem
    )
    assert len(lines(tmp_path / "out" / "clip.jsonl")) == 12


def test_what_is_no_video_is_told_by_name_and_hurts_no_other(clip, tmp_path, caplog):
    (tmp_path / "text.mp4").write_text("not a video\n" * 50)
    (tmp_path / "empty.mov").write_bytes(b"")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile clip.mp4\n")
    with av.open(str(tmp_path / "song.mp4"), "w") as out:
        voice = out.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        out.mux([*voice.encode(frame), *voice.encode(None)])
    bad = {
        "text": "text.mp4: no video, or one whose recording was cut off",
        "empty": "empty.mov: the file is empty",
        "list": "list.mp4: no video",
        "song": "song.mp4: holds no images that this PyAV can decode, only audio",
        "gone": "gone.avi: no such file",
    }
    files = [tmp_path / text.split(":")[0] for text in bad.values()]
    assert not keep(tmp_path / "out", files[0], files[1], clip, *files[2:])
    for name, text in bad.items():
        assert text in caplog.text
        assert about(tmp_path / "out", name)["frames"] == 0
        assert text in about(tmp_path / "out", name)["problems"][0]
        assert not (tmp_path / "out" / f"{name}.jsonl").exists()
        assert not (tmp_path / "out" / f"{name}.mp4").exists()
    assert len(lines(tmp_path / "out" / "clip.jsonl")) == 10
    assert not list((tmp_path / "out").glob(".*"))
    make(tmp_path / "text.mp4", [square(0)])
    # mended: what stood in its place is no obstacle
    assert keep(tmp_path / "out", tmp_path / "text.mp4", clip)
    assert about(tmp_path / "out", "text")["frames"] == 1


def test_frames_above_the_limit_are_refused_before_they_are_decoded(clip):
    with pytest.raises(
        DataError, match=r"clip.mp4: 80 x 48 pixels are more than the limit of 3839; --max-pixels raises it"
    ):
        VideoReader(clip, max_pixels=3839)
    VideoReader(clip, max_pixels=3840).close()


def test_memory_does_not_grow_with_the_video(tmp_path):
    clip = make(tmp_path / "clip.mp4", [square(number) for number in range(60)])
    most = []

    class Counting(Finder):
        def predict(self, images, batch=8):
            most.append(sum(reference() is not None for reference in frames))
            return super().predict(images, batch)

    frames = []
    read = VideoReader._upright

    def counted(self, picture):
        pixels = read(self, picture)
        frames.append(weakref.ref(pixels))
        return pixels

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoReader, "_upright", counted)
        assert keep(tmp_path / "out", clip, finder=Counting())
    # a batch that is decoded, one that is answered, one that is written, and perhaps one whose writer is just
    # leaving
    assert len(frames) == 60 and len(most) == 20 and max(most) <= 4 * 3


def test_the_length_is_known_before_anything_is_decoded(clip, tmp_path):
    other = make(tmp_path / "clip.mkv", [square(number) for number in range(12)])
    for file, count in ((clip, 10), (other, 12)):
        with VideoReader(file) as source:
            assert (source.count, source.done) == (count, 0)


def test_without_h264_the_video_is_mpeg4_with_the_same_times(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", set())
    # a clock of 1/90000 s
    clip = make(tmp_path / "clip.mts", [square(number) for number in range(10)], rate=Fraction(30000, 1001))
    assert keep(tmp_path / "out", clip)
    with av.open(str(tmp_path / "out" / "clip.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    times = [time for time, _ in decoded(tmp_path / "out" / "clip.mp4")]
    assert np.allclose(times, [1001 * number / 30000 for number in range(10)], atol=1e-5)


def test_a_clock_that_stands_still_moves_by_ticks_in_the_drawn_video(clip, tmp_path):
    with VideoReader(clip) as source, VideoWriter(tmp_path / "film.mp4", source, 48, 80) as film:
        for time in (0, Fraction(1, 10), Fraction(1, 10), Fraction(1, 20), Fraction(1, 5)):
            film.write(torch.zeros(3, 48, 80, dtype=torch.uint8), Fraction(time))
    tick = float(source.time_base)
    assert [time for time, _ in decoded(tmp_path / "film.mp4")] == pytest.approx(
        [0, 0.1, 0.1 + tick, 0.1 + 2 * tick, 0.2], abs=tick / 10
    )


def test_nothing_is_overwritten_and_what_was_stopped_is_begun_anew(clip, tmp_path, caplog):
    out, other = tmp_path / "out", make(tmp_path / "other.mkv", [square(number) for number in range(9)])

    class Stopped(Finder):
        def predict(self, images, batch=8):
            if len(self.batches) == 5:  # four for the first clip, one of the second
                raise KeyboardInterrupt
            return super().predict(images, batch)

    with pytest.raises(KeyboardInterrupt):
        keep(out, clip, other, finder=Stopped())
    assert {path.name for path in out.iterdir()} == {"clip.about.json", "clip.jsonl", "clip.mp4"}
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    finder = Finder()
    with caplog.at_level("INFO", "retinanet"):
        assert keep(out, clip, other, finder=finder)
    assert "1 of 2 videos are done already" in caplog.text and finder.batches == [3, 3, 3]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(
        ConfigError, match="out holds clip of another prediction, with other model; choose another --out"
    ):
        keep(out, clip, settings={"model": "n"})
    clip.write_bytes(other.read_bytes())
    with pytest.raises(ConfigError, match="with other bytes"):
        keep(out, clip)
    (out / "mine.mp4").write_text("not yours")
    with pytest.raises(ConfigError, match=r"out holds mine.mp4 already, and nothing is overwritten"):
        keep(out, make(tmp_path / "mine.mov", [square(0)]))
    assert (out / "mine.mp4").read_text() == "not yours"


def test_processes_share_videos_and_the_last_answers_for_the_broken_ones(clip, tmp_path, monkeypatch):
    files = [
        clip,
        tmp_path / "bad.mp4",
        make(tmp_path / "third.mp4", [square(number) for number in range(4)]),
    ]
    files[1].write_text("no video")
    monkeypatch.setenv("WORLD_SIZE", "2")
    good = []
    for rank, finder in ((1, Finder()), (0, Finder())):
        monkeypatch.setenv("RANK", str(rank))
        good.append(keep(tmp_path / "out", *files, finder=finder))
        assert finder.batches == ([] if rank else [3, 3, 3, 1, 3, 1])
    assert good == [True, False]


def test_without_out_the_frames_are_printed(clip, tmp_path, capsys, caplog):
    (tmp_path / "bad.mp4").write_text("no video")
    assert not video.show_videos(Finder(), [tmp_path / "bad.mp4", clip], 0.1, quiet())
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"{clip} {number / 10:.3f} s: 2 objects: 1 frog, 1 leaf" for number in range(10)]
    assert "bad.mp4: no video" in caplog.text


def test_folders_and_lists_hold_videos_beside_pictures(clip, tmp_path):
    save(tmp_path / "b" / "one.png", torch.zeros(3, 8, 8, dtype=torch.uint8))
    (tmp_path / "b" / "two.MKV").write_bytes(b"")
    (tmp_path / "list.txt").write_text("b/one.png\nclip.mp4\n")
    assert find_files([tmp_path]) == ([tmp_path / "b" / "one.png"], [tmp_path / "b" / "two.MKV", clip])
    assert find_files([tmp_path / "list.txt"]) == ([tmp_path / "b" / "one.png"], [clip])
    assert find_files([f"{tmp_path}/*.mp4"]) == ([], [clip])


def test_a_model_answers_the_frames_of_a_video_as_it_answers_pictures(trained, tmp_path):
    pictures = [scene((5, number), (96, 128), (16, 64))[0] for number in range(4)]
    (tmp_path / "in").mkdir()
    clip = make(tmp_path / "in" / "clip.mp4", pictures)
    save(tmp_path / "in" / "one.png", torch.from_numpy(pictures[0]).permute(2, 0, 1))
    assert engine.run(
        str(trained), [str(tmp_path / "in")], quiet(out=tmp_path / "in" / "found", threshold=0.02)
    )
    detector = load(trained, "cpu")
    expected = detector.predict([picture for _, picture in decoded(clip)])
    found = lines(tmp_path / "in" / "found" / "clip.jsonl")
    assert [len(line["detections"]) for line in found] == [len(one) for one in expected]
    for line, one in zip(found, expected, strict=True):
        assert [(answer["name"], answer["score"]) for answer in line["detections"]] == [
            (name, round(score, 6)) for name, score, _ in one
        ]
    assert len(json.loads((tmp_path / "in" / "found" / "images.json").read_text())) == 1


def test_a_video_that_is_in_the_way_is_told_before_a_model_is_loaded(clip, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match=r"--split goes with a data set of images; .*clip.mp4 is a video"):
        engine.run("no model", [str(clip)], quiet(split="test"))
    with pytest.raises(ConfigError, match="batch must be at least 1, not 0"):
        engine.run("no model", [str(clip)], quiet(batch=0))
    save(tmp_path / "one.png", torch.zeros(3, 8, 8, dtype=torch.uint8))
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "0")
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ConfigError, match="several processes share either images or videos"):
            engine.run("no model", [str(tmp_path)], quiet())
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        ConfigError,
        match=r"clip.mp4 is a video, which needs the package av >= 17: pip install 'retinanet\[video\]'",
    ):
        engine.run("no model", [str(clip)], quiet())


def test_our_own_videos_are_no_sources(clip, tmp_path):
    keep(tmp_path, make(tmp_path / "other.mkv", [square(0)]), settings={"threshold": 0.5})
    # a source that lies in --out, of which nothing is drawn
    keep(tmp_path, clip, settings={"threshold": None}, save_images=False)
    _, videos = find_files([tmp_path])
    assert [file.name for file in videos] == ["clip.mp4", "other.mkv", "other.mp4"]
    assert [file.name for file in video.not_ours(videos, tmp_path)] == ["clip.mp4", "other.mkv"]
    assert video.not_ours(videos, tmp_path / "out") == videos
