"""Hostile requests: no 5xx, nothing left behind, and the next good request is answered right."""

import gc
import io
import os
import random
import struct
import sys
import tempfile
import threading
import zlib
from pathlib import Path

import httpx
import hypothesis
import numpy as np
import pytest
import schemathesis
from fuzz_inputs import bytes_damaged
from fuzz_pictures import make_picture, promising
from PIL import Image
from schemathesis import checks

MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
BOUNDARY = {"content-type": "multipart/form-data; boundary=x"}
REFUSALS = {400, 413, 422}


@pytest.fixture
def server(client, tmp_path, monkeypatch):
    """A client of a server with tight limits; afterwards nothing may be left of what it was sent."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ask = client(max_bytes=2_000_000, max_pixels=9_000_000, max_images=4)
    threads = threading.active_count()
    yield ask
    state = ask.app.state
    assert (state.batcher.held, state.gate.open_requests, state.gate.held) == (0, 0, 0)
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() <= threads


def is_well(ask, picture):
    """Whether a good picture is answered right."""
    found = ask.post("/predict", content=picture((0, 0, 255), (30, 20))).json()["images"][0]
    assert (found["width"], found["height"]) == (30, 20)
    assert [one["class_name"] for one in found["detections"]] == ["blue"]


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind, content):
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, *extra, depth=8, colour=2):
    """A PNG of zeros: what promises millions of pixels has thousands of bytes."""
    rows = zlib.compressobj(9)
    line = bytes(1 + width * depth * {0: 1, 2: 3}[colour] // 8)
    data = b"".join(rows.compress(line) for _ in range(height)) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), *extra, chunk(b"IDAT", data), chunk(b"IEND", b"")]
    )


def strange():
    """(name, content, status, size) of pictures that are rare, and of what only looks like one."""
    red = Image.new("RGB", (40, 30), (255, 0, 0))
    frames = {"save_all": True, "append_images": [Image.new("RGB", (40, 30), (0, 0, 255))] * 3}
    jpeg = encoded(red, "JPEG")
    bomb = zlib.compress(bytes(50_000_000), 9)
    yield "nothing", b"", 422, None
    yield "one byte", b"\xff", 422, None
    yield "only a signature", b"\xff\xd8\xff", 422, None
    yield "text", b"buy milk", 422, None
    yield "svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, None
    yield "postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, None
    whole = encoded(red, "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    yield "jpeg of 3000 scans", whole[:-2] + last * 3000 + b"\xff\xd9", 422, None
    yield "cut jpeg", jpeg[: len(jpeg) // 2], 422, None
    yield "cut png", png(40, 30)[:60], 422, None
    yield "riff that is sound", b"RIFF\x24\0\0\0WAVEfmt ", 422, None
    yield "promise of 2^31 pixels a side", promising(png(40, 30), random.Random(3)), 422, None
    yield "900 million pixels", promised(30_000, 30_000), 422, None
    yield "too many pixels by one row", promised(3000, 3001), 422, None
    yield "as many pixels as are allowed, all black", png(3000, 3000), 200, (3000, 3000)
    yield "line of a million pixels", png(1_000_000, 1), 200, (1_000_000, 1)
    yield "column of 100,000 pixels", png(1, 100_000), 200, (1, 100_000)
    yield "one pixel", png(1, 1), 200, (1, 1)
    yield "no pixels", promised(0, 30), 422, None
    yield "text that unpacks to 50 MB", png(40, 30, chunk(b"zTXt", b"a\0\0" + bomb)), None, None
    yield "profile that unpacks to 50 MB", png(40, 30, chunk(b"iCCP", b"a\0\0" + bomb)), None, None
    yield "16 bits of grey", png(40, 30, depth=16, colour=0), 200, (40, 30)
    yield "jpeg with a zip behind it", jpeg + b"PK\x03\x04" + b"\0" * 200, 200, (40, 30)
    yield (
        "gif with a page in its comment",
        encoded(red, "GIF", comment=b"<script>alert(1)</script>"),
        200,
        (40, 30),
    )
    yield "animated gif", encoded(red, "GIF", **frames), 200, (40, 30)
    yield "animated webp", encoded(red, "WEBP", **frames), 200, (40, 30)
    yield "tiff of two pages", encoded(red, "TIFF", **frames), 200, (40, 30)
    yield "cmyk jpeg", encoded(red.convert("CMYK"), "JPEG"), 200, (40, 30)
    yield "palette with alpha", encoded(red.convert("P"), "PNG", transparency=0), 200, (40, 30)
    yield "numbers of 32 bits", encoded(Image.fromarray(np.zeros((30, 40), np.float32)), "TIFF"), 422, None
    for number, exif in enumerate(
        (
            b"",
            b"Exif\0\0",
            b"Exif\0\0MM\0*\xff\xff\xff\xff",
            b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\1" * 40,
        )
    ):
        yield f"broken exif {number}", encoded(red, "JPEG", exif=exif), 200, (40, 30)


def promised(width, height):
    """A PNG of a few bytes with a header of this size."""
    whole = png(1, 1)
    return whole[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + whole[33:]


@pytest.mark.filterwarnings(
    "ignore:Corrupt EXIF data"
)  # outside of tests we do not listen to what Pillow warns of
@pytest.mark.parametrize(
    ("content", "status", "size"), [pytest.param(*rest, id=name) for name, *rest in strange()]
)
def test_a_strange_picture_is_read_or_refused(server, content, status, size, picture):
    answer = server.post("/predict", content=content)
    assert answer.status_code == status if status else answer.status_code in (200, 422)
    if size:
        image = answer.json()["images"][0]
        assert (image["width"], image["height"]) == size
    if answer.status_code == 422:
        assert len(answer.json()["detail"]) > 10 and "Traceback" not in answer.text
    is_well(server, picture)


def bodies(count, seed=0):
    """(path, headers, body, right) of whole or damaged requests; right is the image of a whole one."""
    rng = random.Random(seed)
    for _ in range(count):
        suffix, content, pixels = make_picture(rng)
        kind = rng.choice(
            ("whole", "picture", "picture", "form", "form", "promise", "many", "noise", "large")
        )
        path, headers, right = "/predict?threshold=0", {}, None
        if kind == "whole":
            right = pixels
        elif kind == "picture":
            content = bytes_damaged(content, rng)
        elif kind == "promise":
            content = promising(encoded(Image.fromarray(pixels), "PNG"), rng)
        elif kind == "noise":
            content = rng.choice(
                (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"GIF8", b"RIFF", b"BM", b"P6")
            ) + rng.randbytes(rng.randrange(300))
        elif kind == "large":
            content = content + bytes(2_000_001)
        else:
            parts = [
                form(f"{number}.{suffix}".encode(), content)
                for number in range(rng.randrange(1, 7) if kind == "many" else 1)
            ]
            content, headers = b"".join(parts) + b"--x--\r\n", BOUNDARY
            content = bytes_damaged(content, rng) if kind == "form" else content
            if rng.random() < 0.1:
                headers = {
                    "content-type": rng.choice(
                        (
                            "multipart/form-data; boundary=",
                            b"multipart/form-data;boundary=\xff",
                            "multipart/form-data; boundary=x; charset=rot13",
                        )
                    )
                }
        if right is None and rng.random() < 0.1:
            path = f"/predict?threshold={rng.choice(('2', '-1', 'nan', '', '%00', '1e400', '0&threshold=1'))}"
        yield path, headers, content, right


def form(name, content):
    return (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="'
        + name
        + b'"\r\n\r\n'
        + content
        + b"\r\n"
    )


def send(ask, count, seed, picture):
    """Send them all; every fiftieth is a good one."""
    statuses = dict.fromkeys((200, *REFUSALS), 0)
    for number, (path, headers, content, right) in enumerate(bodies(count, seed)):
        answer = ask.post(path, content=content, headers=headers)
        assert answer.status_code in statuses, (number, answer.status_code, answer.text)
        statuses[answer.status_code] += 1
        if right is not None:
            image = answer.json()["images"][0]
            assert (image["height"], image["width"]) == right.shape[:2]
        if number % 50 == 0:
            is_well(ask, picture)
    is_well(ask, picture)
    assert min(statuses.values()) > 0
    return statuses


def test_damaged_requests_are_read_or_refused(server, picture):
    send(server, 150, seed=1, picture=picture)


def test_damaged_requests_in_pieces_are_read_or_refused_over_a_real_connection(address, picture):
    def pieces(content):
        yield from (content[start : start + 30_000] for start in range(0, len(content), 30_000))

    class InPieces(httpx.Client):
        def post(self, path, content, headers=None):
            return super().post(path, content=pieces(content), headers=headers)

    with InPieces(
        base_url=address(max_bytes=2_000_000, max_pixels=9_000_000, max_images=4), timeout=60
    ) as ask:
        send(ask, 150, seed=4, picture=picture)
    state = address.servers[0][0].config.app.state
    assert (state.batcher.held, state.gate.open_requests, state.gate.held) == (0, 0, 0)


@pytest.mark.slow
def test_five_thousand_damaged_requests_leave_nothing(server, picture):
    def held():
        gc.collect()
        files = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
        pages = int(Path("/proc/self/statm").read_text().split()[1]) if sys.platform == "linux" else 0
        return files, pages * 4096 / 1e6

    send(server, 1000, seed=2, picture=picture)  # what is kept once: caches, arenas
    files, memory = held()
    send(server, 5000, seed=3, picture=picture)
    files_after, memory_after = held()
    assert files_after == files
    assert memory_after < 1.05 * memory


@pytest.mark.parametrize("count", [100, pytest.param(3000, marks=pytest.mark.slow)])
def test_requests_made_from_the_description_get_what_it_says(client, count):
    made = schemathesis.openapi.from_asgi(
        "/openapi.json", client(hosts=("testserver",), max_bytes=100_000).app
    )
    operations = [operation.ok() for operation in made.get_all_operations()]
    kinds = [operation.as_strategy(generation_mode=mode) for operation in operations for mode in MODES]

    @hypothesis.given(case=hypothesis.strategies.one_of(kinds))
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def each(case):
        # any bytes are described as a picture, and few are one
        case.call_and_validate(excluded_checks=[checks.positive_data_acceptance])

    each()
