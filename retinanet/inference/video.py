"""Videos in `predict`: each frame by frame, as lines of JSON and as a video with boxes.

    OUT/clip.about.json   what made the other two, and what was wrong with the source
    OUT/clip.jsonl        the detections, one line a frame
    OUT/clip.mp4          the frames with boxes, if images are saved

Each appears whole. A video that was stopped is begun again. Processes share a list of videos by rank, without
communication.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ..config.commands import PredictConfig
from ..distributed import is_main_process, rank, world
from ..errors import ConfigError, DataError
from ..evaluation.results import xywh
from ..files import write_aside, write_text_atomically
from ..structures import BOX_DIGITS, SCORE_DIGITS, Detections
from ..text import progress_bar
from ..view.draw import draw
from .detector import Detector
from .sources import is_video
from .video_io import Frame, VideoReader, VideoWriter, pyav

log = logging.getLogger("retinanet")

Use = Callable[[list[Frame], list[Detections]], None]


def check_videos(
    sources: Sequence[str], images: Sequence[Path], videos: Sequence[Path], config: PredictConfig
) -> None:
    """ConfigError for what stands in the way of these videos, before a model is loaded."""
    if config.split is not None and (named := [source for source in sources if is_video(Path(source))]):
        raise ConfigError(f"--split goes with a data set of images; {named[0]} is a video")
    if videos:
        pyav(videos[0])
        if images and world() > 1:
            raise ConfigError(
                f"several processes share either images or videos ({videos[0]}): give them to two commands"
            )


def not_ours(videos: Sequence[Path], out: Path | None) -> list[Path]:
    """The videos without those drawn here, which a continued run finds if --out is in a source."""
    if out is None:
        return list(videos)
    folder = os.path.abspath(out)

    def ours(file: Path) -> bool:
        here = os.path.dirname(os.path.abspath(file)) == folder and file.suffix == ".mp4"
        # the threshold is null where nothing was drawn
        return here and _read_about(out, file.stem).get("threshold") is not None

    return [file for file in videos if not ours(file)]


def show_videos(detector: Detector, videos: Sequence[Path], threshold: float, config: PredictConfig) -> bool:
    """Print the objects of each class in the frames of this process's videos; true when all were decoded."""
    good = True
    for file in videos[rank() :: world()]:

        def use(frames: list[Frame], found: list[Detections], file: Path = file) -> None:
            for frame, one in zip(frames, found, strict=True):
                counts = Counter(name for name, _, _ in one.above(threshold))
                each = ", ".join(f"{count} {name}" for name, count in counts.items())
                objects = f"{counts.total()} objects" + (f": {each}" if each else "")
                print(f"{file} {float(frame.time):.3f} s: {objects}\n", end="", flush=True)

        try:
            with VideoReader(file, config.max_pixels) as clip:
                detect(detector, clip.batches(config.batch), config.batch, use)
            if clip.problem:
                raise DataError(f"{file}: {clip.problem}")
        except DataError as error:
            log.error("%s", error)
            good = False
    return good


def keep_videos(
    detector: Detector,
    videos: Mapping[str, Path],
    threshold: float,
    config: PredictConfig,
    out: Path,
    settings: Mapping[str, Any],
) -> bool:
    """Write the detections for this process's videos (name of the files written -> video) that are not done.

    Returns whether all could be decoded. Only the process that finds all of them done says no: torchrun ends
    the others as soon as one ends with a status other than 0.
    """
    belongs = {
        name: {**settings, "bytes": os.path.getsize(file) if file.exists() else None}
        for name, file in videos.items()
    }
    done = {name for name in videos if is_done(out, name, belongs[name], config.save_images)}
    if done:
        log.info("%d of %d videos are done already", len(done), len(videos))
    for name in [*videos][rank() :: world()]:
        if name in done:
            continue
        file, about = videos[name], {**belongs[name], "file_name": videos[name].as_posix()}
        try:
            with (
                VideoReader(file, config.max_pixels) as clip,
                VideoSink(out, name, clip, detector.category_ids, threshold, config.save_images) as sink,
            ):
                detect(detector, clip.batches(config.batch), config.batch, sink.write)
                sink.close(about)
            log.info("%s: %d frames, %d detections: %s", file, clip.done, sink.count, out / f"{name}.jsonl")
            if clip.problem:
                log.error("%s: %s", file, clip.problem)
        except DataError as error:
            log.error("%s", error)
            _write_about(out, name, {**about, "frames": 0, "problems": [str(error)]})
    found = [_read_about(out, name) for name in videos]
    settled = all(
        about.get("frames") == 0 or is_done(out, name, belongs[name], config.save_images)
        for name, about in zip(videos, found, strict=True)
    )
    return not (settled and any(about.get("problems") for about in found))


class VideoSink:
    """The files of one video in `out`; `close` makes them appear, an error before it leaves none."""

    def __init__(
        self,
        out: Path,
        name: str,
        clip: VideoReader,
        category_ids: Sequence[int],
        threshold: float,
        save_images: bool,
    ) -> None:
        self.out, self.name, self.clip, self.category_ids = out, name, clip, category_ids
        self.threshold, self.save_images = threshold, save_images
        self.count = 0
        self.size: tuple[int, ...] = ()
        self._files = ExitStack()
        self._lines = self._files.enter_context(write_text_atomically(out / f"{name}.jsonl", out))
        bar = progress_bar(clip.count if is_main_process() else 0, clip.file.name)
        self._progress = self._files.enter_context(bar)

    def write(self, frames: list[Frame], detections: list[Detections]) -> None:
        """Some more frames with their detections, all above the model's own score threshold."""
        for frame, found in zip(frames, detections, strict=True):
            if not self.size:
                self.size = tuple(frame.pixels.shape[1:])
                if self.save_images:
                    place = self._files.enter_context(write_aside(self.out / f"{self.name}.mp4", self.out))
                    self._video = self._files.enter_context(VideoWriter(place, self.clip, *self.size))
            self._lines.write(json.dumps(row(frame, found, self.category_ids), allow_nan=False) + "\n")
            if self.save_images:
                shown = found.above(self.threshold)
                self._video.write(draw(frame.pixels, shown) if len(shown) else frame.pixels, frame.time)
            self.count += len(found)
            self._progress(frame.number + 1)

    def close(self, about: Mapping[str, Any]) -> None:
        """Write what made the files, then the files."""
        height, width = self.size
        about = {**about, "width": width, "height": height, "frames": self.clip.done}
        problems = [self.clip.problem] if self.clip.problem else []
        rate = round(float(self.clip.rate), 6)
        _write_about(self.out, self.name, {**about, "frame_rate": rate, "problems": problems})
        self._files.close()

    def __enter__(self) -> VideoSink:
        return self

    def __exit__(self, *error: Any) -> None:
        self._files.__exit__(*error)


def detect(detector: Detector, batches: Iterator[list[Frame]], size: int, use: Use) -> None:
    """Decode, detect and use what was found, a batch each at the same time and in order; at most four are
    held, however long the video."""
    with ThreadPoolExecutor(2) as pool:
        used: Future[None] | None = None
        coming = pool.submit(next, batches, None)
        while (frames := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            found = detector.predict([frame.pixels for frame in frames], size)
            if used is not None:
                used.result()
            used = pool.submit(use, frames, found)
        if used is not None:
            used.result()


def row(frame: Frame, found: Detections, category_ids: Sequence[int]) -> dict[str, Any]:
    """A line of the JSON: as in predictions.json, [x, y, width, height] in pixels of the upright frame."""
    boxes, scores, labels = found.numpy()
    columns = (
        labels.tolist(),
        (xywh(boxes.astype(np.float64)).round(BOX_DIGITS) + 0.0).tolist(),
        scores.astype(np.float64).round(SCORE_DIGITS).tolist(),
    )
    detections = [
        {"category_id": category_ids[label], "name": found.names[label], "bbox": box, "score": score}
        for label, box, score in zip(*columns, strict=True)
    ]
    return {"frame": frame.number, "time": round(float(frame.time), 6), "detections": detections}


def is_done(out: Path, name: str, belongs: Mapping[str, Any], images: bool) -> bool:
    """Whether a video's files are all there; ConfigError when they are of another prediction, or not ours."""
    files = [out / f"{name}.jsonl", *([out / f"{name}.mp4"] if images else [])]
    about = _read_about(out, name)
    if about.get("frames", 0) == 0:  # what could not be read may be repaired by now
        held = [file.name for file in (*files, *([] if about else [_about(out, name)])) if file.exists()]
        if held:
            raise ConfigError(
                f"{out} holds {', '.join(held)} already, and nothing is overwritten; choose another --out"
            )
        return False
    if other := [key for key in belongs if about.get(key) != belongs[key]]:
        raise ConfigError(
            f"{out} holds {name} of another prediction, with other {', '.join(other)}; choose another "
            f"--out, or delete it"
        )
    return all(file.exists() for file in files)


def _about(out: Path, name: str) -> Path:
    return out / f"{name}.about.json"


def _read_about(out: Path, name: str) -> dict[str, Any]:
    """What made the files of a video; empty where there is no such file of ours."""
    try:
        found = json.loads(_about(out, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_about(out: Path, name: str, content: Mapping[str, Any]) -> None:
    with write_text_atomically(_about(out, name), out) as stream:
        json.dump(content, stream, indent=1)
