"""`retinanet serve` under load on loopback: pictures a second against the bare detector, errors, memory, and
latency at half load.

    python benchmarks/serving.py MODEL                    # ten minutes at saturation, then five at half load
    python benchmarks/serving.py MODEL --minutes 1        # a look
    python benchmarks/serving.py                          # an untrained model of the preset tiny

The server is a process of its own and has the machine to itself, but for the clients: threads of this process
that send JPEGs encoded beforehand, more of them than the queue takes, so that some are sent back with 503 and
come again. Every minute they stop, and the bare detector, in this process, answers batches that were decoded
and resized beforehand: what could be had if HTTP, decoding and waiting cost nothing. (Also with decoding:
`detector.predict` on the same files.) Each answer is compared with the bare detector's, all detections of it.
Half load is requests at random moments (Poisson), half as many a second as were answered at saturation;
latency is that of answers with status 200 and counts from the moment that was drawn. A request that got no
answer (connection lost, 300 s over) has status 0.

Targets: at least 0.9 of the bare detector; no error but 503, at half load none, no wrong answer; memory
within 5 % from the second fifth of the time to the last, by medians (a batch takes some while it is at work);
SIGTERM: status 0.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import torch
from measure import record
from PIL import Image

import retinanet
from retinanet.config.presets import preset
from retinanet.data.images import image_size
from retinanet.data.scenes import scene
from retinanet.inference.detector import Detector
from retinanet.inference.inputs import as_image
from retinanet.weights.checkpoint import ModelInfo, build, save_model

BARE_SECONDS = 10.0
QUEUE = 32
Found = tuple[float, int, list[float]]
"""A detection: score, category id, box."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="a run, a file or a published name")
    parser.add_argument("--pictures", type=Path, help="folder of JPEGs of one size; generated ones without")
    parser.add_argument("--side", type=int, default=480, help="height of generated pictures; they are 4:3")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--scale", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or str(untrained(Path(folder) / "model.safetensors"))
        files = (
            sorted(options.pictures.glob("*.jp*g"))[:16]
            if options.pictures
            else generated(Path(folder), options.side)
        )
        detector = retinanet.load(model, options.device, options.precision, options.scale)
        with Server(model, options) as server:
            load = Load(server.port, files, detector)
            slices, memory = saturate(server, load, detector, options)
            rate = statistics.median(one["served"] for one in slices)
            latency = half_load(load, rate / 2, 60 * options.minutes / 2)
            for connection in load.connections:
                connection.close()
        figures = {
            "model": Path(options.model).name if options.model else "untrained, preset tiny",
            "pictures": f"{len(files)} JPEGs, the first of "
            f"{' x '.join(map(str, reversed(image_size(files[0]))))} pixels",
            "minutes": options.minutes,
            "clients": options.clients,
            "max_batch": options.max_batch,
            "slices": slices,
            "ratio": statistics.median(one["served"] / one["bare"] for one in slices),
            "ratio_with_decoding": statistics.median(
                one["served"] / one["bare_with_decoding"] for one in slices
            ),
            "ratio_of_cpu": statistics.median(one["cpu_s"] / one["bare_cpu_s"] for one in slices),
            "statuses": load.statuses,
            "wrong": load.wrong,
            "memory": memory,
            "half_load": latency,
            "exit_status": server.status,
        }
    tell(figures)
    record(__file__, figures, detector.device, options.out)


def tell(figures: dict[str, Any]) -> None:
    rates = {
        name: statistics.median(one[name] for one in figures["slices"])
        for name in ("served", "bare", "bare_with_decoding")
    }
    print(", ".join(f"{name.replace('_', ' ')} {rate:.2f}/s" for name, rate in rates.items()))
    print(
        f"served over bare: {figures['ratio']:.3f} (target 0.9); with decoding on both sides: "
        f"{figures['ratio_with_decoding']:.3f}"
    )
    print(
        f"processor seconds a picture, the server's over the bare detector's with decoding: "
        f"{figures['ratio_of_cpu']:.3f}"
    )
    print(
        f"answers by status: {dict(figures['statuses'])}; wrong: {figures['wrong']}; SIGTERM: status "
        f"{figures['exit_status']}"
    )
    memory = figures["memory"]
    ends = f"{memory['warm_MB']:.0f} MB in the second fifth of the time, {memory['last_MB']:.0f} in the last"
    print(f"memory: {ends}: {memory['growth']:+.1%} (target 5 %), at most {memory['peak_MB']:.0f}")
    half = figures["half_load"]
    times = f"median {half['median_ms']:.0f} ms, p99 {half['p99_ms']:.0f} ms"
    print(
        f"half load, {half['rate']:.2f}/s: {times} of {half['requests']} answers; others by status: "
        f"{dict(half['others'])}"
    )


def untrained(path: Path) -> Path:
    """A model of the preset tiny with random weights, the last ones such that it finds something."""
    torch.manual_seed(0)
    config = preset("tiny").model
    network = build(config, 6)
    torch.nn.init.normal_(network.class_subnet[-1].weight, std=0.1)  # type: ignore[arg-type]
    save_model(path, network.state_dict(), ModelInfo(config, tuple("abcdef"), tuple(range(6))))
    return path


def generated(folder: Path, side: int) -> list[Path]:
    """Sixteen scenes as JPEGs."""
    files = [folder / f"{number}.jpg" for number in range(16)]
    for number, file in enumerate(files):
        Image.fromarray(scene(number, (side, side * 4 // 3), across=(8, side // 3)).image).save(
            file, quality=90
        )
    return files


class Server:
    """`retinanet serve` in a process of its own."""

    def __init__(self, model: str, options: argparse.Namespace) -> None:
        words = [sys.executable, "-m", "retinanet", "serve", model]
        words += f"--port 0 --max-batch {options.max_batch} --queue {QUEUE}".split()
        words += ["--device", options.device, "--precision", options.precision]
        words += [] if options.scale is None else ["--scale", str(options.scale)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        found = None
        while found is None:
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit("the server has not started")
            found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        self.port = int(found[1])
        self.status: int | None = None
        self.reader = threading.Thread(
            target=lambda: sys.stderr.writelines(self.process.stdout or ())
        )  # a full pipe would stop it
        self.reader.start()
        until(self.answers)

    def answers(self) -> bool:
        """Whether the port is open."""
        try:
            return self.metrics() != {}
        except OSError:
            return False

    def metrics(self) -> dict[str, float]:
        """/metrics by name."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return {
            name: float(value)
            for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if line[:1] != "#")
        }

    def process_of(self, name: str) -> float:
        """A figure of its process; 0 where the system does not tell."""
        return self.metrics().get(f"process_{name}", 0.0)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.status = self.process.wait(90)
        self.reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Load:
    """Clients, what they were answered, and what the answers should be."""

    def __init__(self, port: int, files: Sequence[Path], detector: Detector) -> None:
        self.port, self.files = port, files
        self.bodies = [file.read_bytes() for file in files]
        self.expected = [
            list(
                zip(
                    found.scores.tolist(),
                    [detector.category_ids[label] for label in found.labels],
                    found.boxes.tolist(),
                    strict=True,
                )
            )
            for found in detector.predict(list(files))
        ]
        self.limits = detector.postprocess.score_threshold, detector.postprocess.max_detections
        self.judged: dict[tuple[int, bytes], bool] = {}  # most answers come again to the letter
        self.statuses: Counter[int] = Counter()
        self.wrong = 0
        self.done: list[float] = []  # moments of good answers
        self.lock = threading.Lock()
        self.local = threading.local()
        self.connections: list[http.client.HTTPConnection] = []

    def ask(self, number: int) -> tuple[int, int]:
        """Send a picture over this thread's own connection; (status, seconds to wait before the next), status
        0 without an answer."""
        if not hasattr(self.local, "connection"):
            self.local.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
            self.connections.append(self.local.connection)
        place = number % len(self.bodies)
        try:
            self.local.connection.request(
                "POST", "/predict?threshold=0", self.bodies[place], {"Content-Type": "image/jpeg"}
            )
            answer = self.local.connection.getresponse()
            status, text, seconds = answer.status, answer.read(), int(answer.headers.get("Retry-After", 0))
        except (OSError, http.client.HTTPException):
            self.local.connection.close()  # the next request opens it anew
            status, text, seconds = 0, b"", 1
        right = status != 200 or self.right(place, text)
        with self.lock:
            self.statuses[status] += 1
            self.wrong += not right
            if status == 200:
                self.done.append(time.perf_counter())
        return status, seconds

    def right(self, place: int, text: bytes) -> bool:
        """Whether this is the answer to the picture at `place`."""
        if (place, text) not in self.judged:
            try:
                found = [
                    (one["score"], one["category_id"], one["box"])
                    for one in json.loads(text)["images"][0]["detections"]
                ]
                self.judged[place, text] = alike(found, self.expected[place], *self.limits)
            except (ValueError, LookupError, TypeError):  # no answer at all
                self.judged[place, text] = False
        return self.judged[place, text]

    def press(self, clients: int, seconds: float, watch: Callable[[], None]) -> float:
        """All clients at once, each sending as soon as it has its answer; answers a second, the first tenth
        left out (at most 5 s)."""
        start = time.perf_counter()
        stop, numbers = threading.Event(), count()

        def work() -> None:
            while not stop.is_set():
                stop.wait(self.ask(next(numbers))[1])

        threads = [threading.Thread(target=work) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            while (now := time.perf_counter()) < start + seconds:
                watch()
                time.sleep(min(1.0, max(0.0, start + seconds - now)))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        first = start + min(5.0, 0.1 * seconds)
        return sum(first <= moment <= start + seconds for moment in self.done) / (start + seconds - first)


def saturate(
    server: Server, load: Load, detector: Detector, options: argparse.Namespace
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """The bare detector and the server in turns, a minute of load at a time; the server's memory
    meanwhile."""
    pictures = [as_image(file) for file in (load.files * options.max_batch)[: options.max_batch]]
    batch = detector.preprocess.stack([detector.preprocess.resized(one) for one in pictures])
    originals = [(one.shape[1], one.shape[2]) for one in pictures]
    pieces = max(1, round(options.minutes))
    seconds = 60 * options.minutes / pieces
    short = min(BARE_SECONDS, seconds / 5)
    samples: list[int] = []
    slices = []

    def bare() -> tuple[float, float, float]:
        alone, _ = pace(lambda: len(detector.predict_batch(*batch, originals)), short)
        return alone, *pace(lambda: len(detector.predict(list(load.files), options.max_batch)), short)

    before = bare()
    for _ in range(pieces):
        cpu, own = server.process_of("cpu_seconds_total"), time.process_time()
        start, answered = time.perf_counter(), load.statuses[200]
        served = load.press(
            options.clients,
            seconds,
            lambda: samples.append(round(server.process_of("resident_memory_bytes") / 1e6)),
        )
        cpu, own = server.process_of("cpu_seconds_total") - cpu, time.process_time() - own
        spent = time.perf_counter() - start
        after = bare()
        alone, decoding, needs = ((one + other) / 2 for one, other in zip(before, after, strict=True))
        found = {"served": served, "bare": alone, "bare_with_decoding": decoding}
        found |= {
            "cpu_s": cpu / (load.statuses[200] - answered),
            "bare_cpu_s": needs,
            "cores": cpu / spent,
            "client_cores": own / spent,
        }
        slices.append(found)
        print({name: round(value, 3) for name, value in found.items()}, flush=True)
        before = after
    fifth = max(1, len(samples) // 5)
    warm, last = statistics.median(samples[fifth : 2 * fifth] or samples), statistics.median(samples[-fifth:])
    growth = last / warm - 1 if warm else 0.0
    return slices, {
        "warm_MB": warm,
        "last_MB": last,
        "peak_MB": max(samples[fifth:] or samples),
        "growth": growth,
        "samples_MB": samples,
    }


def pace(call: Callable[[], int], seconds: float) -> tuple[float, float]:
    """Pictures a second, and processor seconds a picture, of a call that returns how many it did."""
    call()
    start, cpu, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() < start + seconds:
        done += call()
    return done / (time.perf_counter() - start), (time.process_time() - cpu) / done


def half_load(load: Load, rate: float, seconds: float) -> dict[str, Any]:
    """Requests at random moments, `rate` a second: the latency of good answers from the moment that was
    drawn, and what else came."""
    rng = random.Random(0)
    before = load.statuses.copy()

    def one(number: int, moment: float) -> float | None:
        status, _ = load.ask(number)
        return time.perf_counter() - moment if status == 200 else None

    start = moment = time.perf_counter()
    asked = []
    with ThreadPoolExecutor(QUEUE) as clients:
        for number in count():
            moment += rng.expovariate(rate)
            if moment > start + seconds and number > 1:
                break
            time.sleep(max(0.0, moment - time.perf_counter()))
            asked.append(clients.submit(one, number, moment))
    taken = [spent for future in asked if (spent := future.result()) is not None]
    if len(taken) < 2:
        raise SystemExit(f"no latency: at half load the answers were {dict(load.statuses - before)}")
    cuts = statistics.quantiles(taken, n=100, method="inclusive")
    others = {status: number for status, number in (load.statuses - before).items() if status != 200}
    return {
        "rate": rate,
        "requests": len(taken),
        "others": others,
        "median_ms": 1000 * cuts[49],
        "p99_ms": 1000 * cuts[98],
    }


def alike(found: Sequence[Found], expected: Sequence[Found], threshold: float, most: int) -> bool:
    """Whether every detection has its like in the other answer: same class, scores within 1e-3, sides within
    0.1 px; bf16 differs more.

    Nearly equal scores may come in any order. One on the brink, of the threshold or of the `most` that fit,
    may be in one answer only.
    """
    alone, rest = [], list(expected)
    for one in found:
        likes = (other for other in rest if other[1] == one[1] and abs(other[0] - one[0]) < 1e-3)
        partner = next(
            (
                other
                for other in likes
                if all(abs(a - b) < 0.1 for a, b in zip(one[2], other[2], strict=True))
            ),
            None,
        )
        if partner is None:
            alone.append(one)
        else:
            rest.remove(partner)
    brinks = [threshold, *(answer[-1][0] for answer in (found, expected) if len(answer) == most)]
    return all(min(abs(score - brink) for brink in brinks) < 1e-3 for score, _, _ in alone + rest)


def until(condition: Callable[[], bool]) -> None:
    """Wait for something, two minutes at the most."""
    end = time.monotonic() + 120
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("the server does not answer")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
