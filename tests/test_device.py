"""Devices that are not here, and loader processes where shared memory is small."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data._utils import signal_handling

from retinanet import device
from retinanet.data.augment import Augment
from retinanet.data.formats.coco import read_coco
from retinanet.data.loader import _Samples, evaluation_batches, training_batches
from retinanet.data.sampler import Sampler
from retinanet.device import explain_lost_loaders, gpu_number, load_items, pick_device
from retinanet.errors import ConfigError, ProcessError
from retinanet.model.preprocess import Preprocess

PREPROCESS = Preprocess(64)


@pytest.fixture
def data(scenes):
    return read_coco(scenes / "annotations" / "train.json", split="train")


@pytest.fixture
def memory(monkeypatch):
    """Sets the free shared memory, in bytes; the line about it is told anew."""
    device._tell_small.cache_clear()
    return lambda free: monkeypatch.setattr(device, "shared_memory", lambda: free)


class Processes(TorchDataset):
    """Each item is the number of the process that loads it, and a tensor."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError
        return os.getpid(), torch.full((2,), index)


@pytest.mark.parametrize(
    "name", ["mps", "hpu", "vulkan", "xla", "meta", "xpu:1", "cuda:70", "gpu", "", "cpu:x", None, 1.5]
)
def test_a_device_that_is_not_here_is_answered_with_those_that_are(name):
    with pytest.raises(ConfigError, match=f"there is no device '{name}' here; use --device cpu or auto"):
        pick_device(name)


@pytest.mark.parametrize("name", ["mps", "gpu", "cuda:x", "cpu0"])
def test_an_exported_file_takes_no_unknown_device(name):
    with pytest.raises(ConfigError, match=f"unknown device '{name}'; choose auto, cpu, cuda or cuda:N"):
        gpu_number(name)


def test_a_device_may_be_given_as_torch_has_it():
    assert pick_device(torch.device("cpu")) == pick_device("cpu") == torch.device("cpu")


def test_with_enough_shared_memory_processes_load_in_silence(memory, caplog):
    memory(1 << 30)
    assert all(process != os.getpid() for process, _ in load_items(Processes(), 1, 1 << 20))
    assert caplog.text == ""


def test_where_little_is_free_items_come_through_pipes_and_it_is_told_once(memory, caplog):
    memory(device.SEMAPHORES)
    for _ in range(2):
        found = list(load_items(Processes(), 1, 1 << 20))
        assert all(process != os.getpid() for process, _ in found)
        assert [tensor.tolist() for _, tensor in found] == [[0, 0], [1, 1], [2, 2]]
    assert caplog.text.count("through pipes") == 1
    assert "--shm-size" in caplog.text
    assert "--workers 0" in caplog.text


def test_where_next_to_nothing_is_free_the_main_process_loads(memory, caplog):
    memory(64 << 10)
    assert all(process == os.getpid() for process, _ in load_items(Processes(), 2, 1 << 20))
    assert "the main process loads the images itself" in caplog.text


def test_what_two_loaders_may_need_must_be_free(memory, caplog):
    for size, told in ((1 << 20, 0), ((1 << 20) + 1, 1)):  # two loaders, each of 2 x 2 + 2 items
        memory(12 << 20)
        list(load_items(Processes(), 2, size))
        assert caplog.text.count("through pipes") == told


@pytest.mark.parametrize("free", [0, device.SEMAPHORES])
def test_batches_are_the_same_with_little_shared_memory(data, memory, free):
    def batches(workers):
        sampler = Sampler(data.sizes, 2, 0, PREPROCESS)
        yield from training_batches(data, PREPROCESS, Augment(), sampler, 0, 3, workers)
        yield from evaluation_batches(data.subset([0, 1, 2]), PREPROCESS, 2, workers)

    memory(free)
    for one, other in zip(batches(0), batches(1), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets.boxes, other.targets.boxes)
        assert torch.equal(one.indices, other.indices)


def test_columns_are_copied_where_they_cannot_be_shared(data, monkeypatch):
    samples = _Samples(data, PREPROCESS, None, 0, 10**8)
    monkeypatch.setattr("retinanet.data.loader.shared_memory", lambda: 100.0)
    assert samples.__getstate__()["data"] is data
    monkeypatch.setattr("retinanet.data.loader.shared_memory", lambda: 1e9)
    assert samples.__getstate__()["data"] is None


@pytest.mark.parametrize("settings", [{}, {"max_side": 80}, {"resize": "plain"}, {"canvas": (96, 128)}])
def test_no_image_is_larger_than_the_bytes_that_are_counted(settings):
    preprocess = replace(PREPROCESS, **settings)
    for height, width in ((64, 64), (10, 300), (480, 640), (1333, 800), (600, 1000)):
        batch, _ = preprocess.stack([preprocess.resized(torch.zeros(3, height, width, dtype=torch.uint8))])
        assert batch.nbytes <= preprocess.most_bytes


class Unsendable(Processes):
    """The lambda is met only when the item is on its way, as a lack of shared memory is."""

    def __getitem__(self, index):
        return lambda: index


def test_an_item_that_cannot_be_sent_ends_the_run_instead_of_waiting(memory):
    memory(1 << 30)
    with pytest.raises(ProcessError, match="in a container raise --shm-size"), explain_lost_loaders():
        next(load_items(Unsendable(), 1, 1))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. \nMore."),
        RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
        EOFError(),
        ConnectionResetError("Connection reset by peer"),
    ],
)
def test_the_end_of_a_loader_is_one_sentence(error):
    with pytest.raises(ProcessError) as found, explain_lost_loaders():
        raise error
    assert "\n" not in str(found.value)
    assert "--shm-size" in str(found.value)


def test_other_errors_are_left_alone():
    with pytest.raises(RuntimeError, match="shapes"), explain_lost_loaders():
        raise RuntimeError("shapes differ")


def test_the_handler_of_a_killed_loader_raises_once_and_not_again():
    def killed(number, frame):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    before = signal.signal(signal.SIGCHLD, killed)
    try:
        device._raise_once()
        device._raise_once()
        with pytest.raises(RuntimeError, match="killed by signal"):
            signal.raise_signal(signal.SIGCHLD)
        signal.raise_signal(signal.SIGCHLD)
        assert not signal_handling._SIGCHLD_handler_set  # the next loader sets it
    finally:
        signal.signal(signal.SIGCHLD, before)
