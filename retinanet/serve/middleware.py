"""Host, origin and token are checked before a byte of a body is read; every response gets safe headers."""

from __future__ import annotations

import hmac
import time
from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..config.commands import ServeConfig
from .metrics import Metrics
from .upload import Refused, drain

OPEN = frozenset(["/", "/page.css", "/page.js", "/healthz", "/openapi.json"])
"""Without a token: the page holds nothing but the form that asks for one."""

PATHS = OPEN | {"/predict", "/model", "/metrics"}

GONE = 499
"""How a request is counted whose client has left."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """The outermost layer of the application: refuses, counts, and adds headers."""

    def __init__(self, app: ASGIApp, config: ServeConfig, metrics: Metrics) -> None:
        self.app, self.config, self.metrics = app, config, metrics
        self.hosts, self.named = known_hosts(config), frozenset(map(bare, config.hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        whole = False  # whether the body has arrived, or will never

        async def receive_on() -> Message:
            nonlocal whole
            message = await receive()
            whole = message["type"] != "http.request" or not message.get("more_body")
            return message

        path = scope["path"] if scope["path"] in PATHS else "other"
        answer: JSONResponse | None = None
        try:
            try:
                self.check(scope)
                await self.app(scope, receive_on, send_on)
            except Refused as refused:  # dropped here: its traceback holds what has arrived of the body
                answer = JSONResponse({"detail": refused.detail}, refused.status, refused.headers)
            if answer is not None:
                # a client that is still sending when the connection closes never sees the reason
                if not whole and "expect" not in Headers(scope=scope):
                    await drain(receive)
                await answer(scope, receive, send_on)
        except ClientDisconnect:
            status = GONE
        finally:
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.latency.labels(path).observe(time.perf_counter() - start)

    def check(self, scope: Scope) -> None:
        """Refused when this request may not be answered.

        A page of another site can make a browser send requests to a server on the same machine, or, by a name
        that it resolves to 127.0.0.1 (DNS rebinding), even read the answers. So the Host must be one of ours,
        and a request that comes from another site according to the browser is not served.
        """
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts is not None and name_of(host) not in self.hosts:
            raise Refused(403, f"this server is not called {name_of(host)!r}; --hosts lets it be called so")
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and foreign(headers, host, self.named):
            raise Refused(403, "a page of another site may not use this server")
        if self.config.token is not None and scope["path"] not in OPEN:
            kind, _, token = headers.get("authorization", "").partition(" ")
            expected = self.config.token.encode()
            if kind.lower() != "bearer" or not hmac.compare_digest(token.strip().encode("latin-1"), expected):
                text = "a token is needed: send the header Authorization: Bearer TOKEN"
                raise Refused(401, text, {"WWW-Authenticate": "Bearer"})


def known_hosts(config: ServeConfig) -> frozenset[str] | None:
    """What the Host header may say; None: anything, with a token or --no-auth."""
    own = frozenset(map(bare, (config.host, *config.hosts)))
    if config.hosts or (config.token is None and is_loopback(config.host)):
        return own | frozenset({"localhost", "127.0.0.1", "::1"})
    return None


def bare(name: str) -> str:
    """A name as headers are compared with it."""
    return name.lower().strip("[]")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def name_of(host: str) -> str:
    """A Host header without port and brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def foreign(headers: Headers, host: str, named: Collection[str]) -> bool:
    """Whether a browser says that another site's page sends this.

    Sec-Fetch-Site is sure and survives a proxy, but is sent over HTTPS and to loopback only. Else Origin must
    be the Host or, since a proxy may send another Host, one of the names that the server was given.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    place = (origin or "").partition("://")[2].lower()
    return origin is not None and place != host.lower() and name_of(place) not in named
