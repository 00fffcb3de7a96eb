"""How uvicorn holds connections: a request's head must come in time, as the body must."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

GRACE = 60
"""Seconds that requests in flight have to finish after SIGTERM."""

HEAD = 10.0
"""Seconds in which the head of a request must arrive: connections that send a part of one would use up the
descriptors.
"""


def settings(app: FastAPI) -> Config:
    """uvicorn's settings."""
    return Config(
        app,
        http=Timed,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE,
    )


class Timed(H11Protocol):
    """uvicorn's HTTP, which waits for ever for a head that has begun."""

    due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection, of which a head is expected."""
        super().connection_made(transport)
        self.due = self.loop.call_later(HEAD, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head or a body: while a request is open there is no head to wait for."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self.forget()
        elif self.due is None:
            self.due = self.loop.call_later(HEAD, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self.forget()
        super().connection_lost(exc)

    def forget(self) -> None:
        """Wait for no head."""
        if self.due is not None:
            self.due.cancel()
            self.due = None
