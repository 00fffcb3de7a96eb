"""Reads and writes videos, frame by frame, with PyAV."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.images import MAX_PIXELS
from ..errors import ConfigError, DataError

FORMATS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg"
"""Containers that hold their own data. FFmpeg's playlists may open other files and addresses."""

OLDEST = 17
"""Version of PyAV: before it, colours of BT.709 came out wrong."""

THREADS = 64
"""Of a decoder, at the most: it may hold as many frames at the end."""

BT709, LIMITED = 1, 1
"""FFmpeg's numbers for the colours of HD video, and for the usual range of their values."""

OPTIONS = {
    # no B-frames: with them MP4 takes the length of a clip of varying frame rate from the wrong frame
    "libx264": {"preset": "veryfast", "crf": "20", "bf": "0"},
    "mpeg4": {"flags": "+qscale", "global_quality": "354"},  # 3 of 1 to 31, in units of 118
}


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
    """One image of a video."""

    number: int
    """0..N-1 among those that could be decoded."""
    time: Fraction
    """Seconds from the beginning of the file."""
    pixels: Tensor
    """[3, H, W] uint8 RGB, upright; every frame has the size of the first."""


class VideoReader:
    """A video file, read once from its beginning to its end.

    count      frames according to the container; those that decode may be more or fewer
    rate       frames per second, on average
    time_base  the unit of its timestamps in seconds
    aspect     width of a pixel over its height
    done       frames decoded so far
    problem    what could not be decoded, if anything

    DataError for a file that is no video, holds no frame, or frames of more than `max_pixels`.
    """

    def __init__(self, file: Path, max_pixels: int = MAX_PIXELS) -> None:
        self.file, self.max_pixels = file, max_pixels
        av = pyav(file)
        self._error = av.error.FFmpegError
        if not file.is_file():
            raise DataError(f"{file}: no such file")
        try:
            options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
            self._container = av.open(f"file:{file}", options=options, metadata_errors="replace")
        except self._error as error:
            empty = not os.path.getsize(file)
            reason = "the file is empty" if empty else "no video, or one whose recording was cut off"
            raise DataError(f"{file}: {reason} ({error.strerror})") from error
        streams = self._container.streams
        if not streams.video or streams.video[0].codec_context is None:
            kinds = ", ".join(stream.type for stream in streams) or "an empty container"
            raise DataError(f"{file}: holds no images that this PyAV can decode, only {kinds}")
        self._stream = stream = streams.video[0]
        self._check_size(stream.codec_context.width, stream.codec_context.height)
        stream.thread_type = "AUTO"
        self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        self.time_base = Fraction(stream.time_base)
        self.aspect = Fraction(stream.sample_aspect_ratio or 1)
        self.count = stream.frames or round(Fraction(self._container.duration or 0, 1_000_000) * self.rate)
        self.done, self.problem = 0, ""
        self._start = round(Fraction(self._container.start_time or 0, 1_000_000) / self.time_base)
        self._size: tuple[int, int] | None = None  # width and height of the first frame as stored
        self._next = Fraction(0)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def batches(self, size: int) -> Iterator[list[Frame]]:
        """`size` frames at a time, in the order of showing."""
        frames: list[Frame] = []
        for packet in self._packets():
            for image in self._decode(packet):
                ticks = image.dts if image.pts is None else image.pts
                time = self._next if ticks is None else (ticks - self._start) * self.time_base
                if image.is_corrupt:
                    self._report("the decoder guessed parts of it")
                self._next = time + 1 / self.rate
                frames.append(Frame(self.done, time, self._upright(image)))
                self.done += 1
                if len(frames) == size:
                    yield frames
                    frames = []
        if not self.done:
            raise DataError(f"{self.file}: holds no frame that can be decoded")
        if frames:
            yield frames

    def _packets(self) -> Iterator[Any]:
        """The packets of the stream as far as they can be read; then None, which empties the decoder: more
        than once, since each error ends only one."""
        try:
            for packet in self._container.demux(self._stream):
                if packet.is_corrupt:
                    self._report("the packet is corrupt")
                elif packet.size:  # the decoder takes an empty one for the end
                    yield packet
        except self._error as error:
            self._report(error.strerror)
        yield from repeat(None, THREADS)

    def _decode(self, packet: Any) -> list[Any]:
        try:
            images: list[Any] = self._stream.decode(packet)
            return images
        except EOFError:
            return []
        except self._error as error:
            self._report(error.strerror)
            return []

    def _report(self, reason: str) -> None:
        """Keep the first problem; the frames after it are read as far as they can be."""
        where = f"frame {self.done}, at {float(self._next):.3f} s"
        self.problem = self.problem or f"{where}, is damaged or missing ({reason})"

    def _upright(self, image: Any) -> Tensor:
        """A decoded image as [3, H, W] RGB, turned as the recording phone says; the memory is [H, W, 3]."""
        self._check_size(image.width, image.height)
        turns = round(image.rotation / 90)
        if self._size is None:
            self._size = image.width, image.height
            self.aspect = 1 / self.aspect if turns % 2 else self.aspect
        pixels = image.reformat(*self._size, format="rgb24").to_ndarray()
        return torch.from_numpy(np.ascontiguousarray(np.rot90(pixels, turns))).permute(2, 0, 1)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise DataError(
                f"{self.file}: {width} x {height} pixels are more than the limit of {self.max_pixels}; "
                f"--max-pixels raises it"
            )


class VideoWriter:
    """An MP4 file that grows frame by frame: H.264 where this PyAV has it, else MPEG-4; without sound.

    Timestamps are the clip's. A side of odd length gets one more row or column, a copy of the last, since
    neither codec supports odd ones. OSError when it cannot be written.
    """

    def __init__(self, file: Path, clip: VideoReader, height: int, width: int) -> None:
        av = pyav(file)
        self._file, self._make, self._error = file, av.VideoFrame.from_ndarray, av.error.FFmpegError
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        finest = 65535 if codec == "mpeg4" else 1_000_000  # MPEG-4 has no finer clock
        self.time_base = clip.time_base if clip.time_base.denominator <= finest else Fraction(1, 60000)
        with self._as_os_error():
            self._container = av.open(f"file:{file}", "w", format="mp4", options={"movflags": "+faststart"})
        rate = min(clip.rate.limit_denominator(1001), Fraction(1000)) or Fraction(1)
        self._stream = self._container.add_stream(codec, rate=rate, options=OPTIONS[codec])
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.time_base, context.sample_aspect_ratio = self.time_base, clip.aspect
        context.color_range, context.colorspace = LIMITED, BT709
        context.color_primaries, context.color_trc = BT709, BT709
        self._last = -1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Write what is left; the file is complete after this and not before."""
        if kind is not None:
            with suppress(self._error):
                self._container.close()
            return
        with self._as_os_error():
            self._container.mux(self._stream.encode(None))
            self._container.close()

    def write(self, pixels: Tensor, time: Fraction) -> None:
        """Write an image [3, H, W] uint8 RGB at `time` in seconds, at least a tick after the last."""
        image = pixels.permute(1, 2, 0).numpy()
        height, width = image.shape[:2]
        image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = self._make(np.ascontiguousarray(image), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        self._last = max(round(time / self.time_base), self._last + 1)
        frame.pts, frame.time_base = self._last, self.time_base
        with self._as_os_error():
            self._container.mux(self._stream.encode(frame))

    @contextmanager
    def _as_os_error(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise OSError(f"{self._file} cannot be written: {error.strerror}") from error
