"""The load test runs with the command in its own process, on small sizes, and sees what is wrong."""

import importlib
import json
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from retinanet.structures import Detections

FOLDER = Path(__file__).parents[2] / "benchmarks"
ANSWER = [
    (0.9, 1, [0.0, 0.0, 10.0, 10.0]),
    (0.5, 2, [5.0, 5.0, 9.0, 9.0]),
    (0.4999, 1, [0.0, 20.0, 9.0, 30.0]),
]
BRINK = (0.0504, 2, [1.0, 1.0, 2.0, 2.0])


@pytest.fixture
def serving(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("serving")


def test_a_server_answers_everybody_rightly_under_load_and_ends_well(serving, monkeypatch, tmp_path):
    words = f"--minutes 0.03 --clients 40 --side 64 --scale 64 --device cpu --out {tmp_path / 'serving.json'}"
    monkeypatch.setattr(sys, "argv", [str(FOLDER / "serving.py"), *words.split()])
    serving.main()
    found = json.loads((tmp_path / "serving.json").read_text())
    assert found["script"] == "benchmarks/serving.py"
    assert set(found["statuses"]) <= {"200", "503"} and found["statuses"]["200"] > 40
    assert (found["wrong"], found["exit_status"]) == (0, 0)
    assert found["ratio"] > 0
    assert found["half_load"]["requests"] > 1
    assert set(found["half_load"]["others"]) <= {"503"}


@pytest.mark.parametrize(
    ("found", "right"),
    [
        (ANSWER, True),
        ([ANSWER[0], ANSWER[2], ANSWER[1]], True),  # of equal scores any order
        ([(0.9009, 1, [0.0, 0.0, 10.0, 10.09]), *ANSWER[1:]], True),
        ([(0.9011, 1, ANSWER[0][2]), *ANSWER[1:]], False),
        ([ANSWER[0], (0.5, 1, ANSWER[1][2]), ANSWER[2]], False),
        ([*ANSWER[:2], (0.4999, 1, [0.0, 20.0, 9.0, 30.2])], False),
        (ANSWER[:2], False),
        (ANSWER[1:], False),
        ([*ANSWER, ANSWER[2]], False),
        ([*ANSWER, BRINK], True),  # the threshold is 0.05
        ([*ANSWER, (0.3, *BRINK[1:])], False),
        ([], False),
    ],
)
def test_all_detections_of_an_answer_are_compared(serving, found, right):
    assert serving.alike(found, ANSWER, 0.05, 100) == right
    assert serving.alike(ANSWER, found, 0.05, 100) == right


def test_of_a_full_answer_the_last_may_be_another(serving):
    other = [*ANSWER[:2], (0.4995, 3, [7.0, 7.0, 8.0, 8.0])]
    assert serving.alike(other, ANSWER, 0.05, 3)
    assert not serving.alike(other, ANSWER, 0.05, 4)


@pytest.fixture
def load(serving, tmp_path):
    """Make a load on a server that answers each connection with the next of these, or resets it."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    box = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    detector = SimpleNamespace(
        predict=lambda files: [Detections(box, torch.tensor([0.9]), torch.tensor([0]), ["a"])],
        category_ids=[7],
        postprocess=SimpleNamespace(score_threshold=0.05, max_detections=100),
    )
    with socket.create_server(("127.0.0.1", 0)) as door:

        def make(*answers):
            def serve():
                for answer in answers:
                    connection, _ = door.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(answer)

            threading.Thread(target=serve, daemon=True).start()
            return serving.Load(door.getsockname()[1], [tmp_path / "a.jpg"], detector)

        yield make


def said(status, body=b"", extra=b""):
    return b"HTTP/1.1 %d x\r\nConnection: close\r\nContent-Length: %d\r\n%s\r\n%s" % (
        status,
        len(body),
        extra,
        body,
    )


GOOD = said(
    200,
    json.dumps(
        {"images": [{"detections": [{"score": 0.9, "category_id": 7, "box": [0, 0, 8, 8]}]}]}
    ).encode(),
)


def test_a_lost_connection_and_a_wrong_answer_are_counted_and_the_next_request_is_sent(load):
    running = load(
        b"",
        said(503, extra=b"Retry-After: 7\r\n"),
        GOOD,
        b"HTTP/1.1 200 x\r\nContent-Length: 9\r\n\r\nxx",
        said(200, b"{}"),
        GOOD,
    )
    assert [running.ask(0) for _ in range(6)] == [(0, 1), (503, 7), (200, 0), (0, 1), (200, 0), (200, 0)]
    assert (running.statuses, running.wrong) == ({0: 2, 503: 1, 200: 3}, 1)


def test_at_half_load_only_good_answers_have_a_latency(serving, monkeypatch):
    statuses = iter([200, 503, 0, 200])
    running = SimpleNamespace(statuses=serving.Counter({200: 5, 503: 5}))

    def ask(number):
        status = next(statuses, 200)
        running.statuses[status] += 1
        return status, 0

    running.ask = ask
    monkeypatch.setattr(serving, "QUEUE", 1)  # clients: in the order of the numbers
    found = serving.half_load(running, 200.0, 0.2)
    assert found["requests"] == running.statuses[200] - 5 > 1
    assert found["others"] == {503: 1, 0: 1}
    running.ask = lambda number: 1 / 0
    with pytest.raises(ZeroDivisionError):
        serving.half_load(running, 200.0, 0.05)
