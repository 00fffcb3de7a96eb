"""Reads and writes videos, frame by frame, with PyAV."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import repeat
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.images import MAX_PIXELS
from ..errors import ConfigError, DataError

BT709, LIMITED = 1, 1
"""FFmpeg's numbers for the colours of HD video, and for the usual range of their values."""

OPTIONS = {
    # no B-frames: with them MP4 takes the length of a clip of varying frame rate from the wrong frame
    "libx264": {"preset": "veryfast", "crf": "20", "bf": "0"},
    "mpeg4": {"flags": "+qscale", "global_quality": "354"},  # 3 of 1 to 31, in units of 118
}


class VideoWriter:
    """An MP4 file that grows frame by frame: H.264 where this PyAV has it, else MPEG-4; with streams of sound
    copied from a clip.

    left_out   the sound that is not in it, in words

    Timestamps are the clip's. A side of odd length gets one more row or column, a copy of the last, since
    neither codec knows odd ones.
    OSError when it cannot be written.
    """

    def __init__(self, file: Path, clip: VideoReader, height: int, width: int) -> None:
        av = pyav(file)
        self.codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        finest = 65535 if self.codec == "mpeg4" else 1_000_000  # MPEG-4 knows no finer clock
        self.time_base = clip.time_base if clip.time_base.denominator <= finest else Fraction(1, 60000)
        options = OPTIONS[self.codec]
        self._file, self._start, self._make, self._error = (
            file,
            clip.start,
            av.VideoFrame.from_ndarray,
            av.error.FFmpegError,
        )
        with self._told():
            self._container = av.open(f"file:{file}", "w", format="mp4", options={"movflags": "+faststart"})
        rate = min(clip.rate.limit_denominator(1001), Fraction(1000)) or Fraction(1)
        self._stream = self._container.add_stream(self.codec, rate=rate, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = (
            width + width % 2,
            height + height % 2,
            "yuv420p",
        )
        context = self._stream.codec_context
        context.time_base, context.sample_aspect_ratio = self.time_base, clip.aspect
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = (
            LIMITED,
            BT709,
            BT709,
            BT709,
        )
        self._sound: dict[int, Any] = {}
        self.left_out = list(clip.silenced)
        for voice in clip.sound:
            try:
                self._sound[voice.index] = self._container.add_stream_from_template(voice)
            except (self._error, ValueError):
                self.left_out.append(voice.codec_context.name)
        self._last = -1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left; the file is whole after this and not before."""
        if kind is None:
            with self._told():
                self._container.mux(self._stream.encode(None))
                self._container.close()
        else:
            with suppress(self._error):
                self._container.close()

    def write(self, pixels: Tensor, time: Fraction) -> None:
        """One more picture [3, H, W] uint8 RGB, at `time` in seconds, or a tick after the last where the
        clip's clock stands still.
        """
        picture = pixels.permute(1, 2, 0).numpy()
        height, width = picture.shape[:2]
        if height % 2 or width % 2:
            picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = self._make(np.ascontiguousarray(picture), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        self._last = max(round(time / self.time_base), self._last + 1)
        frame.pts, frame.time_base = self._last, self.time_base
        with self._told():
            self._container.mux(self._stream.encode(frame))

    def add_sound(self, packets: Sequence[Any]) -> None:
        """Packets of sound as they are; a stream whose packets do not fit together is left out from there
        on.
        """
        for packet in packets:
            index = packet.stream.index
            if self._sound.get(index) is None or packet.dts is None or packet.pts is None:
                continue
            start = round(self._start / packet.time_base)
            packet.pts, packet.dts = packet.pts - start, packet.dts - start
            packet.stream = self._sound[index]
            try:
                self._container.mux(packet)
            except self._error:
                self.left_out.append(
                    f"{self._sound[index].codec_context.name} from "
                    f"{float(packet.pts * packet.time_base):.1f} s on"
                )
                self._sound[index] = None

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise OSError(f"{self._file} cannot be written: {error.strerror}") from error


FORMATS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg"
"""Containers that hold their own data. FFmpeg knows playlists too, which open other files and addresses:
these stay shut.
"""

SOUND = frozenset(["aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"])
"""What players expect in an MP4; sound of another kind is left out."""

OLDEST = 17
"""Of PyAV's versions: before it, colours of BT.709 came out wrong."""

COVER = 1 << 10  # FFmpeg's disposition of a stream that is one still picture: the cover of a song

THREADS = 64  # of a decoder, at the most: so many frames it may still hold at the end

SLACK = Fraction(
    1, 2
)  # seconds that a stream may end before its container says so: containers round, and count sound too


def pyav(file: Path) -> Any:
    """The package av; ConfigError with the pip line when it is absent or too old."""
    try:
        import av

        if int(av.__version__.split(".")[0]) < OLDEST:
            raise ImportError(f"av {av.__version__} is too old")
    except ImportError as error:
        raise ConfigError(
            f"{file} is a video, which needs the package av >= {OLDEST}: pip install 'retinanet[video]'"
        ) from error
    return av


class Frame(NamedTuple):
    """One picture of a video."""

    number: int
    """0..N-1 among those that could be decoded."""
    time: Fraction
    """Seconds from the beginning of the file."""
    pixels: Tensor
    """[3, H, W] uint8 RGB, upright; every frame has the size of the first."""
    damaged: bool
    """Whether the decoder had to guess a part of it."""


class VideoReader:
    """A video file, read once from its beginning to its end.

    count       frames, as the container tells, or counted; what decodes may differ
    rate        frames per second, on average
    time_base   the unit of its timestamps in seconds; `start` is the timestamp, in seconds, that we call 0
    aspect      width of a pixel over its height
    sound       the streams of sound that an MP4 can carry as they are
    silenced    the codecs of those that it cannot
    done        frames decoded so far; `reached` is the end of what was read so far, in seconds

    DataError for a file that is no video, holds no frame, or one of more than `max_pixels`.
    """

    def __init__(self, file: Path, max_pixels: int = MAX_PIXELS) -> None:
        self.file, self.max_pixels = file, max_pixels
        self._av = pyav(file)
        self._container = self._opened()
        try:
            self._stream = stream = self._pictures(self._container)
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > max_pixels:
                raise self._too_large(width, height)
            stream.thread_type = "AUTO"
            self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
            self.time_base = Fraction(stream.time_base)
            self.aspect = Fraction(stream.sample_aspect_ratio or 1)
            self.start = Fraction(self._container.start_time or 0, 1_000_000)
            self._promised = Fraction(self._container.duration or 0, 1_000_000)
            if (
                "matroska" in self._container.format.name
            ):  # which tells when it ends, where others tell how long they are
                self._promised -= self.start
            self.count = stream.frames or round(self._promised * self.rate) or self._counted()
        except BaseException:
            self.close()
            raise
        voices = [voice for voice in self._container.streams.audio if voice.codec_context is not None]
        self.sound = [voice for voice in voices if voice.codec_context.codec.canonical_name in SOUND]
        self.silenced = [voice.codec_context.name for voice in voices if voice not in self.sound]
        self.done, self.reached = 0, Fraction(0)
        self._size: tuple[int, int] | None = None  # width and height of the first frame as stored
        self._last = -1 / self.rate  # time of the last frame, and the longest time between two
        self._longest = Fraction(0)
        self._stopped = ""
        self._lost: list[Fraction] = []  # for each packet that could not be decoded, about when
        self._damaged: list[Fraction] = []

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    def _opened(self) -> Any:
        try:
            if not stat.S_ISREG(os.stat(self.file).st_mode):
                raise DataError(f"{self.file}: is no file")  # opening a pipe would wait for ever
            options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
            return self._av.open(f"file:{self.file}", options=options, metadata_errors="replace")
        except FileNotFoundError:
            raise DataError(f"{self.file}: no such file") from None
        except self._av.error.FFmpegError as error:
            reason = (
                "the file is empty"
                if not os.path.getsize(self.file)
                else "no video, or one whose recording was cut off"
            )
            raise DataError(f"{self.file}: {reason} ({error.strerror})") from error

    def _pictures(self, container: Any) -> Any:
        """The stream of pictures."""
        streams = [
            stream
            for stream in container.streams.video
            if not getattr(stream.disposition, "value", stream.disposition) & COVER
        ]
        if not streams:
            raise DataError(
                f"{self.file}: holds no pictures, only "
                f"{', '.join(s.type for s in container.streams) or 'an empty container'}"
            )
        if streams[0].codec_context is None:
            raise DataError(f"{self.file}: its pictures are coded in a way that this PyAV cannot decode")
        return streams[0]

    def _counted(self) -> int:
        """Frames of a container that does not tell its length, as a browser records it; nothing is
        decoded.
        """
        with self._opened() as container:
            try:
                return sum(1 for packet in container.demux(self._pictures(container)) if packet.size)
            except self._av.error.FFmpegError:
                return 0

    def batches(self, size: int) -> Iterator[tuple[list[Frame], list[Any]]]:
        """`size` frames at a time in the order of showing, and the packets of sound that were read with
        them.
        """
        frames: list[Frame] = []
        voices: list[Any] = []
        for packet in self._packets():
            if packet is None or packet.stream is self._stream:
                for frame in self._decoded(packet):
                    frames.append(frame)
                    if len(frames) == size:
                        yield frames, voices
                        frames, voices = [], []
            elif packet.stream in self.sound:
                voices.append(packet)
        if not self.done:
            raise DataError(f"{self.file}: holds no frame that can be decoded")
        if frames or voices:
            yield frames, voices

    def _packets(self) -> Iterator[Any]:
        """What the container holds, as far as it can be read, then None: more than once, since an error ends
        only one drain.
        """
        try:
            for packet in self._container.demux():
                if not packet.size:  # the decoder takes an empty one for the end
                    continue
                if packet.is_corrupt and packet.stream is self._stream:
                    # held back: an error at the end would take with it the whole frames that are still in the
                    # decoder
                    self._lost.append(self._next() if packet.pts is None else self._time(packet.pts))
                    continue
                if packet.pts is not None:
                    self.reached = max(
                        self.reached, (packet.pts + (packet.duration or 0)) * packet.time_base - self.start
                    )
                yield packet
        except self._av.error.FFmpegError as error:
            self._stopped = f"the stream cannot be read beyond {float(self.reached):.3f} s ({error.strerror})"
        yield from repeat(None, THREADS)

    def _time(self, ticks: int) -> Fraction:
        """Seconds from the beginning of the file, in whole ticks."""
        return (ticks - round(self.start / self.time_base)) * self.time_base

    def _next(self) -> Fraction:
        """When the next frame may be expected."""
        return self._last + 1 / self.rate

    def _decoded(self, packet: Any) -> Iterator[Frame]:
        """The frames that are complete after this packet of pictures, or after the last one (None)."""
        try:
            pictures = self._stream.decode(packet)
        except EOFError:
            return
        except self._av.error.FFmpegError:
            self._lost.append(
                self._next()
            )  # and not the packet's time: with several threads the news come late
            return
        for picture in pictures:
            ticks = picture.dts if picture.pts is None else picture.pts
            time = self._next() if ticks is None else self._time(ticks)
            try:
                pixels = self._upright(picture)
            except self._av.error.FFmpegError:
                self._lost.append(time)
                continue
            if picture.is_corrupt:
                self._damaged.append(time)
            if self.done:
                self._longest = max(self._longest, time - self._last)
            self._last = time
            self.done += 1
            yield Frame(self.done - 1, time, pixels, picture.is_corrupt)

    def _upright(self, picture: Any) -> Tensor:
        """A decoded picture as [3, H, W] RGB, turned as the recording phone says; the memory is [H, W, 3]."""
        if picture.width * picture.height > self.max_pixels:
            raise self._too_large(picture.width, picture.height)
        turns = round(picture.rotation / 90)
        if self._size is None:
            self._size = picture.width, picture.height
            self.aspect = 1 / self.aspect if turns % 2 else self.aspect
        pixels = picture.reformat(*self._size, format="rgb24").to_ndarray()
        return torch.from_numpy(np.ascontiguousarray(np.rot90(pixels, turns))).permute(2, 0, 1)

    def _too_large(self, width: int, height: int) -> DataError:
        return DataError(
            f"{self.file}: {width} x {height} pixels are more than the limit of {self.max_pixels}; "
            f"--max-pixels raises it"
        )

    def problems(self) -> list[str]:
        """What was wrong, in sentences, once all has been read."""
        found = []
        if self.reached + max(SLACK, 2 / self.rate, 2 * self._longest) < self._promised:
            found.append(
                f"the stream ends early, at {float(self.reached):.3f} s of {float(self._promised):.3f} s"
            )
        elif self._stopped:
            found.append(self._stopped)
        if self._lost:
            found.append(
                f"{_frames(self._lost)} could not be decoded, {_first(self._lost)}near "
                f"{float(min(self._lost)):.3f} s"
            )
        if self._damaged:
            where = f"{_first(self._damaged)}at {float(min(self._damaged)):.3f} s: until the next key frame others may be too"
            found.append(f"{_frames(self._damaged)} damaged, {where}")
        return found


def _frames(times: Sequence[Fraction]) -> str:
    return "1 frame" if len(times) == 1 else f"{len(times)} frames"


def _first(times: Sequence[Fraction]) -> str:
    return "" if len(times) == 1 else "the first "
