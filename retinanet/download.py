"""The network: a file that is fetched whole or not at all, and whether a host can be reached."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from urllib.request import getproxies, proxy_bypass

import httpx

from ._version import __version__
from .files import write_aside
from .text import progress_bar

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

    check   is called with the whole file before it gets its name, and raises if it is not the wanted one
    show    a bar with the time left, on a terminal

    OSError with the reason in words: no network, another status than 200, nothing for 20 s, fewer bytes than
    announced.
    """
    headers = {"User-Agent": f"retinanet/{__version__}", "Accept-Encoding": "identity"}
    limits = httpx.Timeout(READING, connect=CONNECT)
    total = None
    try:
        with (
            write_aside(path) as aside,
            httpx.stream("GET", address, headers=headers, timeout=limits, follow_redirects=True) as response,
        ):
            if response.status_code != 200:
                raise OSError(f"the server answered {response.status_code} {response.reason_phrase}")
            announced = response.headers.get("Content-Length", "")
            total = int(announced) if announced.isdecimal() else 0
            megabytes = total // 1_000_000 if show else 0
            with aside.open("wb") as file, progress_bar(megabytes, f"{path.name}, MB") as progress:
                for chunk in response.iter_raw():
                    file.write(chunk)
                    progress(response.num_bytes_downloaded // 1_000_000)
            check(aside)
    except httpx.TimeoutException as error:
        limit = CONNECT if isinstance(error, httpx.ConnectTimeout) else READING
        what = "no answer within" if total is None else "nothing came for"
        raise OSError(f"{what} {limit:g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        if total is not None and isinstance(error, httpx.RemoteProtocolError):
            came = f"only {response.num_bytes_downloaded:,} of {total:,} bytes came"
            reason = came if total else "the connection ended before the file did"
        raise OSError(reason) from error
