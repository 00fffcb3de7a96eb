"""The network: a file that is fetched whole or not at all, and an error within seconds where there is nobody
to ask.
"""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import HTTPHandler, HTTPSHandler, Request, build_opener, getproxies, proxy_bypass

from ._version import __version__

Value = TypeVar("Value")

CONNECT, READING = 5.0, 20.0
"""Seconds: for a connection, and without a byte."""

OPENING = 8.0
"""Seconds until the answer begins, whatever hangs: the look-up of a name has no limit of its own."""

CHUNK = 1 << 18


def reachable(host: str, port: int = 443) -> str | None:
    """None when `host` takes a connection, or when a proxy is to be asked; otherwise why not, within
    seconds.
    """
    if {"https", "all"} & getproxies().keys() and not proxy_bypass(host):
        return None
    try:
        within(OPENING, lambda: socket.create_connection((host, port), timeout=CONNECT).close())
    except OSError as error:
        return str(error)
    return None


def within(seconds: float, work: Callable[[], Value]) -> Value:
    """What `work` returns or raises; TimeoutError after so many seconds, and its thread is left behind."""
    future: Future[Value] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not future.done():
        raise TimeoutError(f"no answer within {seconds:g} s")
    return future.result()


def download(address: str, path: Path, check: Callable[[Path], None], show: bool = True) -> None:
    """Fetch `address` to `path`, which is there afterwards, whole, or not at all.

    check   is called with the whole file before it gets its name, and raises if it is not the one that was
            wanted
    show    a bar with the time left, on stderr

    OSError with the reason in words: no network, another status than 200, nothing for 20 s, fewer bytes than
    announced.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with opened(address) as response, aside.open("wb") as file:
            announced = response.headers.get("Content-Length") or ""
            total = int(announced) if announced.isdecimal() else None
            with progress(path.name, total, show) as advance:
                for chunk in chunks(response):
                    file.write(chunk)
                    advance(len(chunk))
            if total is not None and file.tell() != total:
                raise OSError(f"only {file.tell():,} of {total:,} bytes came")
        check(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def opened(address: str) -> Any:
    """The answer of a server, its body unread, as a context manager; proxies are asked as the environment
    says.
    """
    # some servers refuse urllib's own name; urlopen would read the proxies only once in the life of a process
    request = Request(address, headers={"User-Agent": f"retinanet/{__version__}"})
    opener = build_opener(_Plain, _Secure)
    try:
        return within(OPENING, lambda: opener.open(request, timeout=CONNECT))
    except HTTPError as error:
        with error:
            raise OSError(f"the server answered {error.code} {error.reason}") from None
    except URLError as error:
        raise OSError(str(error.reason)) from error
    except http.client.HTTPException as error:
        raise OSError(f"the server's answer is no HTTP ({type(error).__name__})") from error


def chunks(response: Any) -> Iterator[bytes]:
    """The body of an answer, piece by piece."""
    try:
        while chunk := response.read(CHUNK):
            yield chunk
    except TimeoutError as error:
        raise OSError(f"nothing came for {READING:g} s") from error
    except http.client.HTTPException as error:
        raise OSError("the connection ended before the file did") from error


class _PlainConnection(http.client.HTTPConnection):
    """Opened with one limit, read with another."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(READING)


class _SecureConnection(http.client.HTTPSConnection):
    """The same with TLS."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(READING)


class _Plain(HTTPHandler):
    def http_open(self, req: Request) -> http.client.HTTPResponse:
        return self.do_open(_PlainConnection, req)


class _Secure(HTTPSHandler):
    def https_open(self, req: Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, req)


@contextmanager
def progress(title: str, total: int | None, show: bool) -> Iterator[Callable[[int], None]]:
    """A function that moves a bar on by so many bytes."""
    if not show:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)
