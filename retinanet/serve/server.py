"""The command `serve`: checks the settings, opens the port, loads the model, and serves it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from dataclasses import replace
from typing import Any

import torch

from ..config.commands import ServeConfig
from ..config.io import check
from ..errors import ConfigError
from ..inference.load import load

log = logging.getLogger("retinanet")

GRACE = 60
"""Seconds that requests in flight have to finish after SIGTERM."""

UVICORN: dict[str, Any] = {
    "http": "h11",
    "ws": "none",
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "timeout_keep_alive": 75,
    "timeout_graceful_shutdown": GRACE,
}
"""The settings of the HTTP server."""


def run(model: str, config: ServeConfig) -> None:
    """Serve a model until SIGTERM or Ctrl-C; what is in flight then is finished first."""
    try:
        import python_multipart  # noqa: F401  (starlette only wants it when the first form arrives)
        import uvicorn

        from .app import create_app
        from .middleware import is_loopback
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"serve needs more packages ({error.name} is missing): pip install 'retinanet[serve]'"
        ) from error
    if config.token == "":
        raise ConfigError("the token is empty")
    config = checked(replace(config, token=config.token or os.environ.get("RETINANET_TOKEN") or None))
    if not is_loopback(config.host) and config.token is None and config.auth:
        raise ConfigError(
            f"{config.host} can be reached from other machines: set a token (the variable RETINANET_TOKEN or "
            "--token), which every request must then show, or let everybody in with --no-auth"
        )
    with listen(config.host, config.port) as door:
        detector = load(model, config.device, config.precision, config.scale)
        detector.predict(torch.zeros(3, 64, 64, dtype=torch.uint8))  # the first takes longer than the others
        app = create_app(detector, config)
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        logging.getLogger("python_multipart").setLevel(logging.ERROR)  # the sender gets the reason
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again when all is done
        who = "with the token" if config.token else "no token needed"
        text = "%d classes at http://%s/ (%s); POST images to /predict; Ctrl-C ends"
        log.info(text, len(detector.names), address(door), who)
        uvicorn.Server(uvicorn.Config(app, **UVICORN)).run(sockets=[door])


def checked(config: ServeConfig) -> ServeConfig:
    """The settings, or a ConfigError that lists all that is wrong with them."""
    check(config)
    wrong = []
    if config.token is not None and not config.auth:
        wrong.append("either a token or --no-auth, not both")
    token = config.token or ""
    if not (token.isascii() and token.isprintable()) or " " in token:
        wrong.append("a token must be of letters, digits and signs without spaces: it is sent in a header")
    if wrong:
        raise ConfigError("\n".join(wrong))
    return config


def listen(host: str, port: int) -> socket.socket:
    """A socket that has the port, before minutes are spent on anything else."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, place = found[0]
        door = socket.socket(family, socket.SOCK_STREAM)
        try:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind(place)
            door.listen()  # or a second server could bind it too
        except OSError:
            door.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"cannot listen on port {port} of {host}: {error.strerror or error}; choose others with --port "
            f"and --host"
        ) from error
    return door


def address(door: socket.socket) -> str:
    """host:port of a socket."""
    host, port = door.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
