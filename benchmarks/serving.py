"""`retinanet serve` under load on loopback: pictures a second against the bare detector, errors, memory, and latency at half load.

    python benchmarks/serving.py MODEL                    # ten minutes at saturation, then five at half load
    python benchmarks/serving.py MODEL --minutes 1        # a look
    python benchmarks/serving.py                          # an untrained model of the preset tiny

The server is a process of its own and has the machine to itself, but for the clients: threads of this process that send JPEGs encoded
beforehand, more of them than the queue takes, so that some are sent back with 503 and come again. Every minute they stop, and the bare
detector, in this process, answers batches that were decoded and resized beforehand: what could be had if HTTP, decoding and waiting cost
nothing. (Also with decoding: `detector.predict` on the same files.) Each answer is compared with the bare detector's. Half load is
requests at random moments (Poisson), half as many a second as were answered at saturation; latency counts from the moment that was drawn.

Targets: at least 0.9 of the bare detector; no error but 503, no wrong answer; memory within 5 % from the second fifth of the time to
the last, by medians (a batch takes some while it is at work); SIGTERM: status 0.
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
from retinanet.data.images import image_size
from retinanet.data.scenes import scene
from retinanet.engine.detector import Detector, as_picture, prepare
from retinanet.presets import preset
from retinanet.weights.checkpoint import Card, build, save_model

BARE_SECONDS = 10.0
QUEUE = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        files = sorted(options.pictures.glob("*.jp*g"))[:16] if options.pictures else generated(Path(folder), options.side)
        detector = retinanet.load(model, options.device, options.precision, options.scale)
        with Server(model, options) as server:
            load = Load(server.port, files, detector)
            slices, memory = saturate(server, load, detector, options)
            rate = statistics.median(one["served"] for one in slices)
            latency = half_load(load, rate / 2, 60 * options.minutes / 2)
            for connection in load.connections:
                connection.close()
        figures = {
            "model": options.model or "untrained, preset tiny",
            "pictures": f"{len(files)} JPEGs, the first of {' x '.join(map(str, reversed(image_size(files[0]))))} pixels",
            "minutes": options.minutes,
            "clients": options.clients,
            "max_batch": options.max_batch,
            "slices": slices,
            "ratio": statistics.median(one["served"] / one["bare"] for one in slices),
            "ratio_with_decoding": statistics.median(one["served"] / one["bare_with_decoding"] for one in slices),
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
    rates = {name: statistics.median(one[name] for one in figures["slices"]) for name in ("served", "bare", "bare_with_decoding")}
    print(", ".join(f"{name.replace('_', ' ')} {rate:.2f}/s" for name, rate in rates.items()))
    print(f"served over bare: {figures['ratio']:.3f} (target 0.9); with decoding on both sides: {figures['ratio_with_decoding']:.3f}")
    print(f"processor seconds a picture, the server's over the bare detector's with decoding: {figures['ratio_of_cpu']:.3f}")
    print(f"answers by status: {dict(figures['statuses'])}; wrong: {figures['wrong']}; SIGTERM: status {figures['exit_status']}")
    memory = figures["memory"]
    ends = f"{memory['warm_MB']:.0f} MB in the second fifth of the time, {memory['last_MB']:.0f} in the last"
    print(f"memory: {ends}: {memory['growth']:+.1%} (target 5 %), at most {memory['peak_MB']:.0f}")
    half = figures["half_load"]
    print(f"half load, {half['rate']:.2f}/s: median {half['median_ms']:.0f} ms, p99 {half['p99_ms']:.0f} ms of {half['requests']} requests")


def untrained(path: Path) -> Path:
    """A model of the preset tiny with random weights, the last ones such that it finds something."""
    torch.manual_seed(0)
    config = preset("tiny").model
    network = build(config, 6)
    torch.nn.init.normal_(network.class_subnet[-1].weight, std=0.1)  # type: ignore[arg-type]
    save_model(path, network.state_dict(), Card(config, tuple("abcdef"), tuple(range(6))))
    return path


def generated(folder: Path, side: int) -> list[Path]:
    """Sixteen scenes as JPEGs."""
    files = [folder / f"{number}.jpg" for number in range(16)]
    for number, file in enumerate(files):
        Image.fromarray(scene(number, (side, side * 4 // 3), across=(8, side // 3)).image).save(file, quality=90)
    return files


class Server:
    """`retinanet serve` in a process of its own."""

    def __init__(self, model: str, options: argparse.Namespace) -> None:
        words = [
            sys.executable,
            "-m",
            "retinanet",
            "serve",
            model,
            "--port",
            "0",
            "--max-batch",
            str(options.max_batch),
            "--queue",
            str(QUEUE),
        ]
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
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if line[:1] != "#")}

    def cpu(self) -> float:
        """Seconds that its threads have computed; 0 where the system does not tell."""
        return self.metrics().get("process_cpu_seconds_total", 0.0)

    def memory(self) -> float:
        """Megabytes of main memory; 0 where the system does not tell."""
        return self.metrics().get("process_resident_memory_bytes", 0.0) / 1e6

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.status = self.process.wait(90)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Load:
    """Clients, what they were answered, and what the answers should be."""

    def __init__(self, port: int, files: Sequence[Path], detector: Detector) -> None:
        self.port, self.files = port, files
        self.bodies = [file.read_bytes() for file in files]
        self.expected = [best(answer.boxes.tolist(), answer.scores.tolist()) for answer in detector.predict(list(files))]
        self.statuses: Counter[int] = Counter()
        self.wrong = 0
        self.done: list[float] = []  # moments of good answers
        self.lock = threading.Lock()
        self.local = threading.local()
        self.connections: list[http.client.HTTPConnection] = []

    def ask(self, number: int) -> int:
        """Send a picture over this thread's own connection; the seconds to wait if it is sent back, else 0."""
        if not hasattr(self.local, "connection"):
            self.local.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
            self.connections.append(self.local.connection)
        place = number % len(self.bodies)
        self.local.connection.request("POST", "/predict?threshold=0", self.bodies[place], {"Content-Type": "image/jpeg"})
        answer = self.local.connection.getresponse()
        text = answer.read()
        right = True
        if answer.status == 200:
            found = json.loads(text)["images"][0]["detections"]
            right = alike(best([one["box"] for one in found], [one["score"] for one in found]), self.expected[place])
        with self.lock:
            self.statuses[answer.status] += 1
            self.wrong += not right
            if answer.status == 200:
                self.done.append(time.perf_counter())
        return int(answer.headers["Retry-After"]) if answer.status == 503 else 0

    def press(self, clients: int, seconds: float, watch: Callable[[], None]) -> float:
        """All clients at once, each sending as soon as it has its answer; answers a second, the first tenth left out (at most 5 s)."""
        start = time.perf_counter()
        stop, numbers = threading.Event(), count()

        def work() -> None:
            while not stop.is_set():
                stop.wait(self.ask(next(numbers)))

        threads = [threading.Thread(target=work) for _ in range(clients)]
        for thread in threads:
            thread.start()
        while (now := time.perf_counter()) < start + seconds:
            watch()
            time.sleep(min(1.0, max(0.0, start + seconds - now)))
        stop.set()
        for thread in threads:
            thread.join()
        first = start + min(5.0, 0.1 * seconds)
        return sum(first <= moment <= start + seconds for moment in self.done) / (start + seconds - first)


def saturate(server: Server, load: Load, detector: Detector, options: argparse.Namespace) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """The bare detector and the server in turns, a minute of load at a time; the server's memory meanwhile."""
    pictures = [prepare(0, as_picture(file), detector.scales) for file in (load.files * options.max_batch)[: options.max_batch]]
    batch = detector.preprocess.stack([one[1][0] for one in pictures])
    originals = [one[2] for one in pictures]
    pieces = max(1, round(options.minutes))
    seconds = 60 * options.minutes / pieces
    short = min(BARE_SECONDS, seconds / 5)
    samples: list[int] = []
    slices = []

    def bare() -> tuple[float, float, float]:
        alone, _ = pace(lambda: len(detector.answer(*batch, originals)), short)
        return alone, *pace(lambda: len(detector.predict(list(load.files), options.max_batch)), short)

    before = bare()
    for _ in range(pieces):
        cpu, own, start, answered = server.cpu(), time.process_time(), time.perf_counter(), load.statuses[200]
        served = load.press(options.clients, seconds, lambda: samples.append(round(server.memory())))
        cpu, own, spent = server.cpu() - cpu, time.process_time() - own, time.perf_counter() - start
        after = bare()
        alone, decoding, needs = ((one + other) / 2 for one, other in zip(before, after, strict=True))
        found = {"served": served, "bare": alone, "bare_with_decoding": decoding}
        found |= {"cpu_s": cpu / (load.statuses[200] - answered), "bare_cpu_s": needs, "cores": cpu / spent, "client_cores": own / spent}
        slices.append(found)
        print({name: round(value, 3) for name, value in found.items()}, flush=True)
        before = after
    fifth = max(1, len(samples) // 5)
    warm, last = statistics.median(samples[fifth : 2 * fifth] or samples), statistics.median(samples[-fifth:])
    growth = last / warm - 1 if warm else 0.0
    return slices, {"warm_MB": warm, "last_MB": last, "peak_MB": max(samples[fifth:] or samples), "growth": growth, "samples_MB": samples}


def pace(call: Callable[[], int], seconds: float) -> tuple[float, float]:
    """Pictures a second, and processor seconds a picture, of a call that returns how many it did."""
    call()
    start, cpu, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() < start + seconds:
        done += call()
    return done / (time.perf_counter() - start), (time.process_time() - cpu) / done


def half_load(load: Load, rate: float, seconds: float) -> dict[str, float]:
    """Requests at random moments, `rate` a second: their latency from the moment that was drawn."""
    rng = random.Random(0)
    taken: list[float] = []

    def one(number: int, moment: float) -> None:
        load.ask(number)
        taken.append(time.perf_counter() - moment)

    start = moment = time.perf_counter()
    with ThreadPoolExecutor(QUEUE) as clients:
        for number in count():
            moment += rng.expovariate(rate)
            if moment > start + seconds and number > 1:
                break
            time.sleep(max(0.0, moment - time.perf_counter()))
            clients.submit(one, number, moment)
    cuts = statistics.quantiles(taken, n=100, method="inclusive")
    return {"rate": rate, "requests": len(taken), "median_ms": 1000 * cuts[49], "p99_ms": 1000 * cuts[98]}


def best(boxes: list[list[float]], scores: list[float]) -> list[float]:
    """Score and box of the best detection."""
    return [scores[0], *boxes[0]] if scores else []


def alike(one: list[float], other: list[float]) -> bool:
    """Whether the scores differ by less than 1e-3 and the boxes by less than 0.1 px; bf16 differs more."""
    return len(one) == len(other) and all(abs(a - b) < limit for a, b, limit in zip(one, other, [1e-3] + 4 * [0.1], strict=False))


def until(condition: Callable[[], bool]) -> None:
    """Wait for something, two minutes at the most."""
    end = time.monotonic() + 120
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("the server does not answer")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
