"""The command serve: settings that are refused, and what only a real connection shows."""

import http.client
import socket
import sys
import threading
import urllib.request
from contextlib import ExitStack

import pytest

from retinanet import cli
from retinanet.config.commands import ServeConfig
from retinanet.errors import ConfigError
from retinanet.serve import upload
from retinanet.serve.server import listen, run


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"host": "0.0.0.0"}, "0.0.0.0 can be reached from other machines: set a token"),
        ({"host": "::"}, "or let everybody in with --no-auth"),
        ({"token": "t", "auth": False}, "either a token or --no-auth"),
        ({"token": ""}, "the token is empty"),
        ({"token": "two words"}, "without spaces"),
        ({"port": 70000}, "port must be between 0 and 65535"),
        (
            {"max_batch": 0, "decoders": 0},
            "max_batch must be at least 1, not 0\ndecoders must be at least 1, not 0",
        ),
        ({"max_wait": float("nan")}, "max_wait must be at least 0"),
        (
            {"host": "no.such.host.invalid", "auth": False},
            "cannot listen on port 8000 of no.such.host.invalid",
        ),
    ],
)
def test_settings_that_make_no_sense_or_let_everybody_in_are_refused_before_the_model_is_read(
    settings, words, monkeypatch
):
    monkeypatch.delenv("RETINANET_TOKEN", raising=False)
    with pytest.raises(ConfigError) as error:
        run("no model at all", ServeConfig(**settings))
    assert words in str(error.value)


def test_a_port_that_is_taken_is_told(monkeypatch):
    monkeypatch.delenv("RETINANET_TOKEN", raising=False)
    with (
        socket.create_server(("127.0.0.1", 0)) as door,
        pytest.raises(ConfigError, match=r"cannot listen on port .* in use; choose others"),
    ):
        run("no model at all", ServeConfig(port=door.getsockname()[1]))


def test_a_port_has_one_server_though_it_does_not_answer_yet():
    with listen("127.0.0.1", 0) as door, pytest.raises(ConfigError, match="in use"):
        listen("127.0.0.1", door.getsockname()[1])


def test_the_token_may_come_from_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("RETINANET_TOKEN", "sesame")
    assert cli.main(["serve", "nowhere", "--host", "0.0.0.0", "--port", "0"]) == 1
    assert "neither a run folder nor a file" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client", "python_multipart"])
def test_without_its_packages_the_error_is_the_line_that_installs_them(package, monkeypatch):
    for name in [
        name for name in sys.modules if name.startswith("retinanet.serve.") and not name.endswith("server")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"\({package} is missing\): pip install 'retinanet\[serve\]'"):
        run("no model at all", ServeConfig())


@pytest.fixture
def begin():
    """Sends a picture to a server; the connection, which ends with the test."""
    with ExitStack() as stack:

        def send(address, content):
            connection = http.client.HTTPConnection(address.split("/")[2])
            stack.callback(connection.close)
            connection.request("POST", "/predict", content)
            return connection

        yield send


def metrics(address):
    with urllib.request.urlopen(f"{address}metrics") as answer:
        return answer.read().decode()


def held(address):
    return float(metrics(address).split("\nretinanet_queue_length ")[1].split()[0])


@pytest.mark.parametrize("content", [b"x" * 20_000_000, [b"x" * 100_000] * 200], ids=["at once", "in chunks"])
def test_a_request_that_is_too_large_gets_its_sentence_though_it_is_still_being_sent(address, begin, content):
    answer = begin(address(max_bytes=1_000_000), content).getresponse()
    assert answer.status == 413 and b"1000000 bytes at the most" in answer.read()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(200),  # TLS, on a port without
        b"buy milk\r\n\r\n",
        b"POST /predict HTTP/1.1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: many\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\nContent-Length: 11\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nand no more",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 300_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: "
        b"Upgrade\r\nSec-WebSocket-Key: eA==\r\n\r\n",
    ],
)
def test_what_is_no_http_harms_nobody(address, begin, picture, garbage):
    place = address()
    with socket.create_connection(("127.0.0.1", int(place.split(":")[2].strip("/")))) as door:
        try:
            door.sendall(garbage)
            door.shutdown(socket.SHUT_WR)
            said = door.recv(1000)
        except OSError:  # the server has closed it already
            said = b""
    assert not said or said[9:12] in (b"400", b"403", b"200"), said
    assert begin(place, picture()).getresponse().status == 200


def dial(stack, address, *sent):
    """A connection over which this has been sent."""
    door = stack.enter_context(
        socket.create_connection(("127.0.0.1", int(address.split(":")[2].strip("/"))), timeout=20)
    )
    for content in sent:
        door.sendall(content)
    return door


SLOW = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx"


def test_a_body_that_does_not_come_is_not_waited_for(address, monkeypatch):
    monkeypatch.setattr(upload, "PATIENCE", 0.1)
    monkeypatch.setattr(upload, "LINGER", 0.1)
    with ExitStack() as stack:
        answer = http.client.HTTPResponse(dial(stack, address(), SLOW))
        answer.begin()
        assert answer.status == 408 and b"has not arrived within 0 s" in answer.read()


def test_requests_that_come_slowly_do_not_keep_others_out(address, begin, picture, until):
    place = address(queue=2)
    with ExitStack() as stack:
        for _ in range(5):
            dial(stack, place, SLOW)
        gate = address.servers[0][0].config.app.state.gate
        until(lambda: gate.open_requests == 5)
        assert begin(place, picture()).getresponse().status == 200


def test_who_leaves_is_taken_off_the_queue(address, begin, colours, picture, until):
    colours.go.clear()
    place = address()
    staying = begin(place, picture())
    until(lambda: colours.waiting)
    leaving = [begin(place, picture()) for _ in range(3)]
    until(lambda: held(place) == 4)
    for connection in leaving:
        connection.close()
    until(lambda: 'path="/predict",status="499"} 3.0' in metrics(place))
    colours.go.set()
    assert staying.getresponse().status == 200
    until(lambda: held(place) == 0)
    assert colours.batches == [1]


def test_what_is_in_flight_when_the_server_is_told_to_end_is_finished(
    address, begin, colours, picture, until
):
    colours.go.clear()
    place = address()
    connections = [begin(place, picture()) for _ in range(5)]
    until(lambda: held(place) == 5)
    ((server, thread),) = address.servers
    server.should_exit = True  # what the handler of SIGTERM does
    answers = []
    reader = threading.Thread(
        target=lambda: answers.extend(connection.getresponse().status for connection in connections)
    )
    reader.start()
    until(lambda: not server.servers[0].is_serving())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(place.split(":")[2].strip("/"))))
    colours.go.set()
    reader.join()
    thread.join()
    assert answers == [200] * 5
