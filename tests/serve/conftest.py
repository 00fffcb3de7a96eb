"""A detector that answers at once and whose answers are known: what a picture's mean colour is."""

import io
import socket
import threading
import time
from contextlib import ExitStack

import pytest
import torch
from PIL import Image

from retinanet.model.preprocess import Preprocess
from retinanet.structures import Detections

NAMES = ["red", "green", "blue"]
POISON = (13, 14, 15)


class Colours:
    """Finds in every picture its three mean colours, each with the whole picture as its box and a score of
    its mean over 255.

    The sizes of its batches are kept in `batches`. It fails on a batch with a picture whose first pixel is
    POISON, and it
    waits for `go`; `waiting` says that it has begun to.
    """

    def __init__(self, scale=32):
        self.preprocess = Preprocess(scale=scale, max_side=4 * scale)
        self.scales = (self.preprocess,)
        self.names, self.category_ids, self.threshold = NAMES, [10, 20, 30], 0.5
        self.device, self.precision = torch.device("cpu"), "fp32"
        self.batches = []
        self.waiting = False
        self.go = threading.Event()
        self.go.set()

    def predict_batch(self, images, sizes, originals):
        self.waiting = True
        assert self.go.wait(20)
        self.batches.append(len(images))
        if bool((images[:, :, 0, 0] == torch.tensor(POISON)).all(dim=1).any()):
            raise RuntimeError("poison")
        found = []
        for image, (rows, columns), (height, width) in zip(
            images, sizes.long().tolist(), originals, strict=True
        ):
            scores = image[:, :rows, :columns].float().mean(dim=(1, 2)) / 255
            scores, labels = scores.sort(descending=True)
            box = torch.tensor([0.0, 0.0, width, height]).repeat(3, 1)
            found.append(Detections(box, scores, labels, self.names))
        return found


@pytest.fixture
def colours():
    """The detector of colours."""
    return Colours()


def _picture(colour=(255, 0, 0), size=(40, 40), kind="PNG", **options):
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def picture():
    """Makes the bytes of a picture of one colour; size is (width, height)."""
    return _picture


def _until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come to pass"
        time.sleep(0.002)


@pytest.fixture
def until():
    """Waits until something is true."""
    return _until


@pytest.fixture
def client(colours):
    """Makes a client of an application around the detector of colours, at a loopback address."""
    from fastapi.testclient import TestClient

    from retinanet.config.commands import ServeConfig
    from retinanet.serve.app import create_app

    with ExitStack() as stack:

        def make(detector=None, base="http://127.0.0.1:8000", **settings):
            app = create_app(detector or colours, ServeConfig(**settings))
            return stack.enter_context(TestClient(app, base_url=base))

        yield make
        colours.go.set()


@pytest.fixture
def address(colours):
    """Starts a server with these settings on a free port; its address. `address.servers` are they."""
    import uvicorn

    from retinanet.config.commands import ServeConfig
    from retinanet.serve.app import create_app
    from retinanet.serve.server import UVICORN

    started = []

    def start(**settings):
        door = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(colours, ServeConfig(**settings)), **UVICORN))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        started.append((server, thread))
        return f"http://127.0.0.1:{door.getsockname()[1]}/"

    start.servers = started
    yield start
    colours.go.set()
    for server, thread in started:
        server.should_exit = True
        thread.join()
