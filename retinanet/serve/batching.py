"""Images of many requests as batches of one shape: a few threads decode, one runs the detector."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Condition, Thread

import torch
from torch import Tensor

from ..data.images import read_image
from ..errors import DataError
from ..inference.detector import Detector
from ..structures import Detections
from .metrics import Metrics

log = logging.getLogger("retinanet")

SICK = 10
"""Failures in a row after which the detector is not healthy: a GPU that has failed once fails for ever."""

Found = tuple[Detections, tuple[int, int]]
"""What was found in an image, and its height and width."""

Shape = tuple[int, int]


class Full(Exception):
    """There is no room for more images; come back after `seconds`."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"full for {seconds} s")
        self.seconds = seconds


@dataclass(eq=False)
class Job:
    """An image on its way from bytes to an answer."""

    name: str
    content: bytes
    future: Future[Found] = field(default_factory=Future)
    image: Tensor | None = None
    original: tuple[int, int] = (0, 0)
    ready: float = 0.0
    """When it was decoded."""


class Batcher:
    """Answers for images from any thread.

    max_batch   images per batch; these have one padded shape, so that no result depends on its neighbours
    wait        seconds that a batch waits for images that are still being decoded, if there are any
    queue       images between `submit` and the answer above which no request is taken
    decoders    threads that decode and resize
    max_pixels  a larger image is refused before it is decoded

    An image that cannot be read gives its own future a DataError. When the detector fails on a batch, its
    images are tried one by one, so that only the cause gets the error. Cancelled futures are left out.
    """

    def __init__(
        self,
        detector: Detector,
        metrics: Metrics,
        max_batch: int = 8,
        wait: float = 0.004,
        queue: int = 32,
        decoders: int = 2,
        max_pixels: int = 50_000_000,
    ) -> None:
        self.detector, self.metrics = detector, metrics
        self.max_batch, self.wait, self.queue, self.max_pixels = max_batch, wait, queue, max_pixels
        self.held = 0
        self._decoding = self._failures = 0
        self._ready: dict[Shape, list[Job]] = {}
        self._pace = 0.1  # seconds an image, smoothed
        self._closed = False
        self._changed = Condition()
        # a team of OpenMP threads for every decoder would stand in the way of the detector's own
        self._threads = torch.get_num_threads()
        self._work: SimpleQueue[Job | None] = SimpleQueue()
        # daemons, since whatever keeps one busy must not keep the process
        self._decoders = [
            Thread(target=self._decode_all, name="retinanet-decode", daemon=True) for _ in range(decoders)
        ]
        self._runner = Thread(target=self._run, name="retinanet-detect", daemon=True)
        for thread in (*self._decoders, self._runner):
            thread.start()
        metrics.watch(lambda: self.held)

    def submit(self, uploads: Sequence[tuple[str, bytes]]) -> list[Future[Found]]:
        """Futures for (name, content of a file), all of them or none: Full when there is no room."""
        jobs = [Job(name, content) for name, content in uploads]
        with self._changed:
            # room for one is enough: else a request of many images would starve behind those of one
            if self._closed or self.held >= self.queue:
                raise Full(self.patience())
            self.held += len(jobs)
            self._decoding += len(jobs)
        for job in jobs:
            self._work.put(job)
        return [job.future for job in jobs]

    def patience(self) -> int:
        """Whole seconds until what is here is likely done."""
        return min(60, max(1, math.ceil(self.held * self._pace)))

    @property
    def healthy(self) -> bool:
        """Whether answers can be expected."""
        return self._runner.is_alive() and not self._closed and self._failures < SICK

    def close(self, seconds: float = 5.0) -> None:
        """Finish what is here and end the threads; those that need longer are left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for _ in self._decoders:
            self._work.put(None)
        end = time.monotonic() + seconds
        for thread in (self._runner, *self._decoders):
            thread.join(max(0.0, end - time.monotonic()))
        if self._runner.is_alive():
            log.warning("%d images are left unanswered", self.held)

    def _decode_all(self) -> None:
        compute_with(1)
        while (job := self._work.get()) is not None:
            self._decode(job)

    def _decode(self, job: Job) -> None:
        start = time.perf_counter()
        error: BaseException | None = None
        shape: Shape | None = None
        try:
            if not job.future.cancelled():
                image = decode(job.name, job.content, self.max_pixels)
                job.image = self.detector.preprocess.resized(image)
                job.original = (image.shape[1], image.shape[2])
                shape = self.detector.preprocess.padded([(job.image.shape[1], job.image.shape[2])])
        except BaseException as problem:  # whatever it is, the future must hear of it
            if not isinstance(problem, DataError):
                log.exception("decoding %r failed", job.name)
            error = problem.with_traceback(None)
        job.content = b""
        job.ready = time.perf_counter()
        self.metrics.seconds.labels("decode").observe(job.ready - start)
        with self._changed:
            self._decoding -= 1
            if shape is not None:
                self._ready.setdefault(shape, []).append(job)
            self._changed.notify_all()
        if shape is None and job.future.set_running_or_notify_cancel() and error is not None:
            self._conclude([job], error)
        elif shape is None:
            self._leave(1, "gone")

    def _run(self) -> None:
        compute_with(self._threads)
        while batch := self._next():
            start = time.perf_counter()
            for job in batch:
                self.metrics.seconds.labels("wait").observe(start - job.ready)
            wanted = [job for job in batch if job.future.set_running_or_notify_cancel()]
            self._leave(len(batch) - len(wanted), "gone")
            if not wanted:
                continue
            outcome = self._detect(wanted)
            if isinstance(outcome, Exception) and len(wanted) > 1:
                for job in wanted:
                    self._conclude([job], self._detect([job]))
            else:
                self._conclude(wanted, outcome)
            self._pace += 0.1 * ((time.perf_counter() - start) / len(wanted) - self._pace)

    def _next(self) -> list[Job]:
        """The next batch; empty when there is none and there will be none."""
        with self._changed:
            while True:
                groups = sorted(self._ready.items(), key=lambda group: group[1][0].ready)
                if groups:
                    now, due = time.perf_counter(), groups[0][1][0].ready + self.wait
                    full = [shape for shape, jobs in groups if len(jobs) >= self.max_batch]
                    # the oldest goes first as soon as it has waited its time: a rare shape must not starve
                    # behind full batches
                    if full or now >= due or not self._decoding:
                        shape = full[0] if full and now < due else groups[0][0]
                        jobs = self._ready.pop(shape)
                        if jobs[self.max_batch :]:
                            self._ready[shape] = jobs[self.max_batch :]
                        return jobs[: self.max_batch]
                    self._changed.wait(due - now)
                elif self._closed and not self._decoding:
                    return []
                else:
                    self._changed.wait()

    def _detect(self, batch: Sequence[Job]) -> list[Detections] | Exception:
        start = time.perf_counter()
        try:
            images = [job.image for job in batch if job.image is not None]
            originals = [job.original for job in batch]
            found = self.detector.predict_batch(*self.detector.preprocess.stack(images), originals)
        except Exception as error:
            log.exception("the detector failed on %s", ", ".join(repr(job.name) for job in batch))
            return error.with_traceback(None)  # its frames hold the batch, which may have filled the memory
        self.metrics.seconds.labels("detect").observe(time.perf_counter() - start)
        self.metrics.batch.observe(len(batch))
        return found

    def _conclude(self, batch: Sequence[Job], outcome: list[Detections] | BaseException) -> None:
        """Give running futures their results or the error, after they have left the queue."""
        if isinstance(outcome, BaseException):
            unreadable = isinstance(outcome, DataError)
            self._failures += 0 if unreadable else len(batch)
            self._leave(len(batch), "unreadable" if unreadable else "failed")
            for job in batch:
                job.future.set_exception(outcome)
            return
        self._failures = 0
        self._leave(len(batch), "answered")
        for job, found in zip(batch, outcome, strict=True):
            job.future.set_result((found, job.original))

    def _leave(self, count: int, outcome: str) -> None:
        with self._changed:
            self.held -= count
        self.metrics.images.labels(outcome).inc(count)


def compute_with(threads: int) -> None:
    """Have the calling thread compute with so many OpenMP threads."""
    # a thread keeps its own number only after it has asked for it
    torch.get_num_threads()
    torch.set_num_threads(threads)


def decode(name: str, content: bytes, max_pixels: int) -> Tensor:
    """The image [3, H, W] that an upload holds, read as `predict` reads a file; DataError that names it."""
    try:
        return read_image(name, max_pixels, content)
    except DataError as error:
        if not isinstance(error.__cause__, MemoryError):
            raise
    raise MemoryError(f"not enough to decode {name!r}")  # no fault of the image
