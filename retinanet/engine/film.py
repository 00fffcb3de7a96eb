"""A video file written frame by frame: MP4, with the clock and the sound of the clip that it is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor

from .clip import Clip, pyav

BT709, LIMITED = 1, 1
"""FFmpeg's numbers for the colours of HD video, and for the usual range of their values."""
OPTIONS = {
    # no B-frames: with them MP4 takes the length of a clip of varying frame rate from the wrong frame
    "libx264": {"preset": "veryfast", "crf": "20", "bf": "0"},
    "mpeg4": {"flags": "+qscale", "global_quality": "354"},  # 3 of 1 to 31, in units of 118
}


class Film:
    """An MP4 file that grows frame by frame: H.264 where this PyAV has it, else MPEG-4; with streams of sound
    copied from a clip.

    left_out   the sound that is not in it, in words

    Timestamps are the clip's. A side of odd length gets one more row or column, a copy of the last, since
    neither codec knows odd ones.
    OSError when it cannot be written.
    """

    def __init__(self, file: Path, clip: Clip, height: int, width: int) -> None:
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

    def __enter__(self) -> Film:
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
