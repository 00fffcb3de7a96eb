"""How much of a request is held and how long; it is freed without the collector of cycles."""

import asyncio
import gc
import tracemalloc

import pytest

from retinanet.config.commands import ServeConfig
from retinanet.serve import upload
from retinanet.serve.app import create_app

PART = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n'
MEGABYTE = 1_000_000


def test_bytes_that_are_held_for_all_requests_together_are_limited():
    gate = upload.Limiter(requests=3, size=100)
    with gate.enter(7) as one, gate.enter(7) as other:
        one(60)
        with pytest.raises(upload.Refused) as refused:
            other(41)
        assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "7"})
        other(40)
    with gate.enter(7) as one:
        one(100)
    assert (gate.held, gate.open_requests) == (0, 0)


@pytest.mark.parametrize(
    ("kind", "first", "status"),
    [
        ("image/png", b"", 413),
        ("multipart/form-data; boundary=x", PART, 413),
        ("multipart/form-data; boundary=x", PART + b"\r\n" + PART + b"\r\n" + PART, 413),
    ],
    ids=["too large", "form too large", "too many files"],
)
def test_a_refused_body_is_gone_while_its_rest_is_drained(colours, kind, first, status):
    """Twelve chunks of a megabyte, at most eight are allowed; of files two."""
    app = create_app(colours, ServeConfig(max_bytes=8 * MEGABYTE, max_images=2, queue=8))
    said, held, sent = [], [], 0
    middle = b"\r\n" + PART if status == 413 and first.count(b"--x") == 3 else b""

    async def receive():
        nonlocal sent
        sent += 1
        held.append(tracemalloc.get_traced_memory()[0])
        head = first[: len(PART)] if sent == 1 else middle if sent in (6, 7) else b""
        return {"type": "http.request", "body": head + bytes(MEGABYTE), "more_body": sent < 12}

    async def send(message):
        said.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", kind.encode())]
    scope = {"type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict"}
    scope |= {"query_string": b"", "headers": headers}
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        asyncio.run(
            app(
                scope | {"http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 8000)},
                receive,
                send,
            )
        )
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        gc.enable()
        app.state.batcher.close()
    assert said[0]["status"] == status and sent == 12
    assert max(held) > held[0] + 5 * MEGABYTE
    assert max(held[-1], after) < held[0] + 2.5 * MEGABYTE
