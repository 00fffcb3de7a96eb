"""The network: a file that is fetched whole or not at all, and whether a host can be reached."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.request import getproxies, proxy_bypass

import httpx

from ._version import __version__

CONNECT, READING = 5.0, 20.0
"""Seconds: for a connection, and without a byte."""


def reachable(host: str, port: int = 443) -> str | None:
    """None when `host` takes a connection, or when a proxy is to be asked; otherwise why not."""
    if {"https", "all"} & getproxies().keys() and not proxy_bypass(host):
        return None
    try:
        socket.create_connection((host, port), timeout=CONNECT).close()
    except OSError as error:
        return str(error)
    return None


def download(address: str, path: Path, check: Callable[[Path], None], show: bool = True) -> None:
    """Fetch `address` to `path`, which is there afterwards, whole, or not at all.

    check   is called with the whole file before it gets its name, and raises if it is not the one that was
            wanted
    show    a bar with the time left, on stderr

    OSError with the reason in words: no network, another status than 200, nothing for 20 s, fewer bytes than
    announced.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    headers = {"User-Agent": f"retinanet/{__version__}", "Accept-Encoding": "identity"}
    limits = httpx.Timeout(READING, connect=CONNECT)
    try:
        with httpx.stream("GET", address, headers=headers, timeout=limits, follow_redirects=True) as response:
            if response.status_code != 200:
                raise OSError(f"the server answered {response.status_code} {response.reason_phrase}")
            with aside.open("wb") as file:
                receive(response, file, path.name, show)
        check(aside)
        aside.replace(path)
    except httpx.TimeoutException as error:
        limit = CONNECT if isinstance(error, httpx.ConnectTimeout) else READING
        raise OSError(f"no answer within {limit:g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OSError(str(error) or type(error).__name__) from error
    finally:
        aside.unlink(missing_ok=True)


def receive(response: httpx.Response, file: BinaryIO, title: str, show: bool) -> None:
    """Write the body of an answer as it comes."""
    announced = response.headers.get("Content-Length", "")
    total = int(announced) if announced.isdecimal() else None
    try:
        with progress(title, total, show) as advance:
            for chunk in response.iter_raw():
                file.write(chunk)
                advance(len(chunk))
    except httpx.ReadTimeout as error:
        raise OSError(f"nothing came for {READING:g} s") from error
    except httpx.RemoteProtocolError as error:
        if total is None:
            raise OSError("the connection ended before the file did") from error
        raise OSError(f"only {response.num_bytes_downloaded:,} of {total:,} bytes came") from error


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
