"""Videos in `predict`: each answered frame by frame, as lines of JSON and as a video with boxes.

    OUT/clip.about.json   what made the other two, and what was wrong with the source
    OUT/clip.jsonl        the answers, one line a frame
    OUT/clip.mp4          the frames with boxes, if images are saved

They appear whole and in this order, so a video is done when the last is there. One that was stopped is begun
anew. Processes share a list of videos by rank and never talk to each other.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..config.commands import PredictConfig
from ..distributed import is_main_process, rank, world
from ..errors import ConfigError, DataError
from ..evaluation.results import xywh
from ..files import write_aside, write_text_atomically
from ..structures import Detections
from ..text import progress_bar
from ..view.draw import draw
from .detector import Detector
from .sources import is_video
from .video_io import Frame, VideoReader, VideoWriter, pyav

log = logging.getLogger("retinanet")

Batch = tuple[list[Frame], list[Any]]
"""Frames, and the packets of sound that were read with them."""

Use = Callable[[list[Frame], list[Any], list[Detections]], None]


def check_videos(
    sources: Sequence[str], pictures: Sequence[Path], videos: Sequence[Path], config: PredictConfig
) -> None:
    """ConfigError for what stands in the way of these videos, before a model is loaded."""
    if config.split is not None and (named := [source for source in sources if is_video(Path(source))]):
        raise ConfigError(f"--split goes with a data set of images; {named[0]} is a video")
    if videos:
        pyav(videos[0])
        if config.batch < 1:
            raise ConfigError(f"batch must be at least 1, not {config.batch}")
        if pictures and world() > 1:
            raise ConfigError(
                f"several processes share either images or videos ({videos[0]}): give them to two commands"
            )


def not_ours(videos: Sequence[Path], out: Path | None) -> list[Path]:
    """The videos without those that we have drawn: where --out lies inside a source, they are there when a
    run continues.
    """
    if out is None:
        return list(videos)
    folder = os.path.abspath(out)

    def ours(file: Path) -> bool:
        here = os.path.dirname(os.path.abspath(file)) == folder and file.suffix == ".mp4"
        return (
            here and (_read(_about(out, file.stem)) or {}).get("threshold") is not None
        )  # it is null where nothing was drawn

    return [file for file in videos if not ours(file)]


def show_videos(detector: Detector, videos: Sequence[Path], threshold: float, config: PredictConfig) -> bool:
    """Print how many objects of each class the frames of this process's videos hold; true when all could be
    read to their ends.
    """
    good = True
    for file in videos[rank() :: world()]:

        def use(frames: list[Frame], voices: list[Any], found: list[Detections], file: Path = file) -> None:
            counts = [Counter(name for name, _, _ in one.above(threshold)) for one in found]
            lines = [
                f"{file} {float(frame.time):.3f} s: {_in_words(count)}"
                for frame, count in zip(frames, counts, strict=True)
            ]
            print("\n".join(lines) + "\n", end="", flush=True)

        try:
            with VideoReader(file, config.max_pixels) as clip:
                stream(detector, clip.batches(config.batch), config.batch, use)
            good = _told(clip) and good
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
    """Write the answers for this process's videos (the name of what is written -> file) that are not done;
    true when all could be read.

    Only the process that finds all of them done answers for those that could not be read: torchrun ends the
    others as soon as one ends
    with a status other than 0.
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
            with VideoReader(file, config.max_pixels) as clip:
                predict_video(detector, clip, name, threshold, config, out, about)
        except DataError as error:
            log.error("%s", error)
            _write(_about(out, name), {**about, "frames": 0, "problems": [str(error)]}, out)
    found = {name: _read(_about(out, name)) or {} for name in videos}
    settled = all(
        found[name].get("frames") == 0 or is_done(out, name, belongs[name], config.save_images)
        for name in videos
    )
    return not (settled and any(about.get("problems") for about in found.values()))


def predict_video(
    detector: Detector,
    clip: VideoReader,
    name: str,
    threshold: float,
    config: PredictConfig,
    out: Path,
    about: Mapping[str, Any],
) -> None:
    """The three files of one video, of which the drawn one is left out without `config.save_images`."""
    begun = time.perf_counter()
    batches = clip.batches(config.batch)
    head = next(batches)
    _, height, width = head[0][0].pixels.shape
    batches = chain([head], batches)
    del head  # else these frames would stay in memory
    objects = 0
    with ExitStack() as stack:
        film = None
        if config.save_images:
            film = stack.enter_context(
                VideoWriter(stack.enter_context(write_aside(out / f"{name}.mp4", out)), clip, height, width)
            )
        lines = stack.enter_context(write_text_atomically(out / f"{name}.jsonl", out))
        progress = stack.enter_context(progress_bar(clip.count if is_main_process() else 0, clip.file.name))

        def use(frames: list[Frame], voices: list[Any], found: list[Detections]) -> None:
            nonlocal objects
            for frame, one in zip(frames, found, strict=True):
                lines.write(json.dumps(row(frame, one, detector.category_ids), allow_nan=False) + "\n")
                if film is not None:
                    shown = one.above(threshold)
                    film.write(draw(frame.pixels, shown) if len(shown) else frame.pixels, frame.time)
                objects += len(one)
                progress(frame.number + 1)
            if film is not None:
                film.add_sound(voices)

        stream(detector, batches, config.batch, use)
        _write(
            _about(out, name),
            {
                **about,
                "width": width,
                "height": height,
                "frames": clip.done,
                "frame_rate": round(float(clip.rate), 6),
                "sound_left_out": clip.silenced if film is None else film.left_out,
                "problems": clip.problems(),
            },
            out,
        )
    spent = time.perf_counter() - begun
    log.info(
        "%s: %d frames, %d answers in %.1f s (%.1f frames a second): %s",
        *(clip.file, clip.done, objects, spent, clip.done / spent, out / f"{name}.jsonl"),
    )
    if film is not None and film.left_out:
        log.info(
            "%s: its sound (%s) is left out: it does not go into an MP4 as it is",
            clip.file,
            ", ".join(film.left_out),
        )
    _told(clip)


def stream(detector: Detector, batches: Iterator[Batch], size: int, use: Use) -> None:
    """Decode, answer and use what was found, a batch each at the same time and in order; at most four are
    held, however long the video.
    """
    with ThreadPoolExecutor(2) as pool:
        used: Future[None] | None = None
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            frames, voices = batch
            found = detector.predict([frame.pixels for frame in frames], size) if frames else []
            if used is not None:
                used.result()
            used = pool.submit(use, frames, voices, found)
        if used is not None:
            used.result()


def row(frame: Frame, found: Detections, category_ids: Sequence[int]) -> dict[str, Any]:
    """A line of the answers: boxes and scores as in predictions.json, [x, y, width, height] in pixels of the
    upright frame.
    """
    boxes, scores, labels = found.numpy()
    columns = (
        labels.tolist(),
        xywh(boxes.astype(np.float64)).round(4).tolist(),
        scores.astype(np.float64).round(6).tolist(),
    )
    detections = [
        {"category_id": category_ids[label], "name": found.names[label], "bbox": box, "score": score}
        for label, box, score in zip(*columns, strict=True)
    ]
    damaged = {"damaged": True} if frame.damaged else {}
    return {"frame": frame.number, "time": round(float(frame.time), 6), **damaged, "detections": detections}


def is_done(out: Path, name: str, belongs: Mapping[str, Any], pictures: bool) -> bool:
    """Whether a video's files are all there; ConfigError when they are of another prediction, or not ours."""
    files = [out / f"{name}.jsonl", *([out / f"{name}.mp4"] if pictures else [])]
    about = _read(_about(out, name))
    if about is None or about.get("frames") == 0:  # what could not be read may be mended by now
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


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(file: Path, content: Mapping[str, Any], folder: Path) -> None:
    with write_text_atomically(file, folder) as stream:
        json.dump(content, stream, indent=1)


def _in_words(counts: Mapping[str, int]) -> str:
    """'3 objects: 2 circle, 1 star'."""
    each = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{sum(counts.values())} objects" + (f": {each}" if each else "")


def _told(clip: VideoReader) -> bool:
    """Log what was wrong with a video; true when nothing was."""
    for problem in clip.problems():
        log.error("%s: %s", clip.file, problem)
    return not clip.problems()
