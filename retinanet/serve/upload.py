"""The images of a request, read within limits: what is too much is refused while it arrives."""

from __future__ import annotations

import asyncio
import binascii
import json
import re
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import Receive

from ..config.commands import ServeConfig

FORM = "multipart/form-data"

PATIENCE = 60.0
"""Seconds in which a request must have arrived whole."""

LINGER = 5.0
"""Seconds for which the rest of a refused request is read."""

REQUESTS_OF_BYTES = 8
"""So many of the largest requests may be in memory at once."""

REQUESTS_OF_QUEUE = 8
"""So many times the queue's places may be arriving at once: slow requests must not keep out fast ones."""

JSON = re.compile(rb'\s*\{\s*"image"\s*:\s*"([^"]*)"\s*\}\s*')
"""The one form of JSON that is read. A parser of all JSON would make a gigabyte of objects from 32 MB."""

BASE64 = (b"data:", b"/9j/", b"iVBOR")
"""How an image begins in base64: a data URI, a JPEG, a PNG."""

AS_IT_IS = "send the file's bytes as the body (curl --data-binary @photo.jpg)"

CHARSETS = frozenset([b"utf-8", b"utf8", b"latin-1", b"iso-8859-1", b"us-ascii", b"ascii"])
"""Of names in a form. Some of Python's other codecs raise."""


Take = Callable[[int], None]


class Refused(Exception):
    """An answer other than 200, with a sentence that says what to do."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers or {}


def busy(seconds: int) -> Refused:
    """503 with Retry-After."""
    text = f"the server has as much to do as it takes; send this again in {seconds} s"
    return Refused(503, text, {"Retry-After": str(seconds)})


class Limiter:
    """Limits what is being received, requests and bytes, over all connections."""

    def __init__(self, requests: int, size: int) -> None:
        self.requests, self.size = requests, size
        self.open_requests = self.held = 0

    @contextmanager
    def enter(self, seconds: int) -> Iterator[Take]:
        """A place for one request, and a function that takes bytes; `seconds`: Retry-After if full."""
        if self.open_requests >= self.requests:
            raise busy(seconds)
        held = 0

        def take(size: int) -> None:
            nonlocal held
            if self.held + size > self.size:
                raise busy(seconds)
            self.held += size
            held += size

        self.open_requests += 1
        try:
            yield take
        finally:
            self.open_requests -= 1
            self.held -= held


async def read_uploads(request: Request, config: ServeConfig, take: Take) -> list[tuple[str, bytes]]:
    """(name, content) of every file of a form, or of the body; Refused for none or too much."""
    kind = request.headers.get("content-type", "")
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() not in ("identity", ""):
        raise Refused(
            415, f"the body is compressed ({clean(coding)}); {AS_IT_IS}", {"Accept-Encoding": "identity"}
        )
    try:
        async with asyncio.timeout(PATIENCE):
            if kind.partition(";")[0].strip().lower() == FORM:
                return await _files(request, config, take)
            body = bytearray()
            async for chunk in _limited(request, config.max_bytes, take):
                body += chunk
    except TimeoutError:
        raise Refused(408, f"the request has not arrived within {PATIENCE:.0f} s") from None
    if not body:
        raise Refused(422, "there is no image: send its bytes as the body, or files as multipart/form-data")
    return [("image", unpacked(bytes(body), take))]


def unpacked(body: bytes, take: Take) -> bytes:
    """The bytes of an image that came in base64, as {"image": "..."} or a data URI; else the body itself."""
    if body.startswith(b"\x1f\x8b"):
        raise Refused(415, f"the body is compressed by gzip; {AS_IT_IS}")
    start = body[:64].lstrip()
    in_json = start.startswith((b"{", b"[", b'"'))
    if not in_json and not start.startswith(BASE64):
        return body
    take(2 * len(body))  # its copies
    if in_json:
        if (found := JSON.fullmatch(body)) is None:
            raise Refused(
                422, f'JSON is read as {{"image": "the file in base64"}} and nothing else; or {AS_IT_IS}'
            )
        body = found[1]
    try:
        text = json.loads(b'"%s"' % body).encode("ascii") if in_json and b"\\" in body else body.strip()
        if text.startswith(b"data:"):
            head, _, text = text.partition(b",")
            if not head.endswith(b";base64"):
                raise ValueError
        text = text.translate(bytes.maketrans(b"-_", b"+/"), b" \t\r\n=")  # both alphabets
        return binascii.a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)
    except ValueError:
        raise Refused(422, f"the image is no whole base64; or {AS_IT_IS}") from None


async def _files(request: Request, config: ServeConfig, take: Take) -> list[tuple[str, bytes]]:
    charset = parse_options_header(request.headers["content-type"])[1].get(b"charset", b"utf-8").lower()
    if charset not in CHARSETS:
        name = clean(charset.decode("latin-1"))
        raise Refused(400, f"the form cannot be read: its charset is {name!r}; take utf-8")

    async def chunks() -> AsyncGenerator[bytes, None]:
        async for chunk in _limited(request, config.max_bytes, take):
            yield chunk
        if not parser.ended:
            raise MultiPartException("it ends before its last boundary")

    parser = _Form(request.headers, chunks(), max_files=config.max_images, max_fields=1, max_part_size=1024)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            limit = f"one request may hold {config.max_images} images at the most"
            raise Refused(413, f"{limit}; send several requests") from None
        raise Refused(400, f"the form cannot be read: {error.message}") from None
    files: list[tuple[str, bytes]] = []
    try:
        for field, value in form.multi_items():
            if not isinstance(value, UploadFile):
                raise Refused(
                    422,
                    f"the field {clean(field)!r} of the form is not a file; an image needs a file name "
                    "(curl -F files=@photo.jpg), and settings go in the address (/predict?threshold=0.3)",
                )
            files.append((clean(value.filename or "") or f"image {len(files) + 1}", await value.read()))
    finally:
        await form.close()
    if not files:
        raise Refused(422, "the form holds no file; send images as files (curl -F files=@photo.jpg)")
    return files


class _Form(MultiPartParser):
    spool_max_size = sys.maxsize  # in memory: the whole request is limited already
    ended = False

    def on_end(self) -> None:
        self.ended = True


async def _limited(request: Request, limit: int, take: Take) -> AsyncGenerator[bytes, None]:
    """The body as it comes."""
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limit:
        raise too_much(limit)
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > limit:
            raise too_much(limit)
        take(len(chunk))
        yield chunk


def too_much(limit: int) -> Refused:
    """413. Made where it is raised: a frame that kept it would keep itself alive, and the body with it."""
    text = f"a request may hold {limit} bytes at the most"
    return Refused(413, f"{text}; send fewer or smaller images, or raise --max-bytes")


def clean(name: str) -> str:
    """A name that can be written in an answer and in a log."""
    return "".join(filter(str.isprintable, name[:255].encode("utf-8", "replace").decode()))


async def drain(receive: Receive) -> None:
    """Read and forget what is left of a body, for a while."""
    try:
        async with asyncio.timeout(LINGER):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
    except TimeoutError:
        pass
