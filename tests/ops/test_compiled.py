"""The compiled class loss is exact, is compiled once for all sizes, and is optional where compiling fails."""

import os
from shutil import which

import pytest
import torch

from retinanet.ops import fused
from retinanet.ops.assign import IGNORE


@pytest.fixture(autouse=True)
def _a_compiler_that_was_never_tried(monkeypatch):
    monkeypatch.setitem(fused.COMPILER, "works", True)


@pytest.fixture
def eager_to_compile(monkeypatch):
    monkeypatch.setitem(fused.COMPILE_FROM, "cpu", 0)


def graphs():
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def sample(rows, classes=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows)
    logits = torch.randn(rows, classes, generator=generator) * 6
    return logits.to(dtype), torch.randint(IGNORE, classes, (rows,), generator=generator)


def both(logits, labels, *settings, **numbers):
    """Value and gradient by float32 or less, and by the plain path in float64."""
    low, high = logits.clone().requires_grad_(), logits.double().requires_grad_()
    values = []
    for x in (low, high):
        values.append(fused.class_loss(x, labels, *settings, **numbers))
        values[-1].backward()
    return values[0].double(), low.grad, values[1], high.grad


def assert_exact(logits, labels, *settings, rtol=1e-5, **numbers):
    value, gradient, expected, expected_gradient = both(logits, labels, *settings, **numbers)
    assert gradient.dtype == logits.dtype
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=rtol, atol=1e-7)


needs_a_compiler = pytest.mark.skipif(
    which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler"
)


@needs_a_compiler
@pytest.mark.usefixtures("eager_to_compile")
def test_one_graph_is_exact_for_any_number_of_rows_and_any_logit():
    before = graphs()
    assert_exact(*sample(1000))
    assert fused.COMPILER["works"]
    for rows in (0, 1, 2, 3, 5, 16, 17, 999, 4096, 20_001):
        assert_exact(*sample(rows))
    extreme = torch.tensor([[200.0, -200, 0, 90, -90], [-200, 200, 1, -1, 30]])
    for labels in ([0, 0], [-1, -1], [IGNORE, 1], [3, 4]):
        assert_exact(extreme, torch.tensor(labels))
    # a level cut from a larger tensor
    assert_exact(torch.randn(2, 300, 5)[:, 20:70], sample(100)[1].view(2, 50))
    assert graphs() - before == 1


@pytest.mark.slow
@needs_a_compiler
@pytest.mark.usefixtures("eager_to_compile")
@pytest.mark.parametrize("loss", fused.CLASS_LOSSES)
def test_every_loss_is_exact_when_compiled(loss):
    """Minutes: some five graphs for each loss and gamma."""
    before = graphs()
    for gamma in (0.1, 0.5, 2.0, 5.0) if "focal" in loss else (2.0,):
        for dtype, rtol in ((torch.float32, 1e-5), (torch.bfloat16, 4e-3)):
            for classes in (1, 3, 80, 91):
                for alpha in (0.25, None, torch.linspace(0.1, 0.9, classes)):
                    for rows in (300, 2, 1001):
                        assert_exact(
                            *sample(rows, classes, dtype),
                            loss,
                            alpha,
                            gamma=gamma,
                            beta=0.5,
                            margin=0.3,
                            rtol=rtol,
                        )
    assert fused.COMPILER["works"]
    assert 0 < graphs() - before <= 32


@pytest.mark.usefixtures("eager_to_compile")
def test_where_compiling_fails_the_plain_path_goes_on_and_one_line_says_why(monkeypatch, caplog):
    trials = []

    def no_compiler(function, fullgraph):
        def fail(*tensors):
            trials.append(function)
            raise RuntimeError("no C++ compiler\nwas found")

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    with caplog.at_level("INFO", "retinanet"):
        for gamma in (1.25, 1.25, 1.75):  # numbers that no other test has compiled
            assert_exact(*sample(50), "focal", 0.25, gamma=gamma)
    assert len(trials) == 1
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        "not compiled, since RuntimeError: no C++ compiler"
    ]


@pytest.mark.usefixtures("eager_to_compile")
def test_a_function_that_torch_would_run_as_it_stands_is_not_run(monkeypatch, caplog):
    """As when a variable switches torch.compile off: each step would be as large as the logits."""
    monkeypatch.setattr(torch, "compile", lambda function, fullgraph: function)
    with caplog.at_level("INFO", "retinanet"):
        assert_exact(*sample(50), "focal", 0.25, gamma=1.3)
    assert "switched off" in caplog.text


@pytest.mark.usefixtures("eager_to_compile")
def test_a_lack_of_memory_is_not_taken_for_a_lack_of_a_compiler(monkeypatch):
    def full(*tensors):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "compile", lambda function, fullgraph: full)
    logits, labels = sample(50)
    with pytest.raises(torch.OutOfMemoryError):
        fused.class_loss(logits.requires_grad_(), labels, gamma=1.35)
    assert fused.COMPILER["works"]


def test_only_large_calls_with_a_gradient_in_float32_or_less_are_compiled(monkeypatch):
    calls = []
    monkeypatch.setattr(fused, "_compiled", lambda logits, *others: calls.append(logits.dtype))
    monkeypatch.setitem(fused.COMPILE_FROM, "cpu", 250)
    for rows in (49, 50):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            logits, labels = sample(rows, dtype=dtype)
            fused.class_loss(logits, labels)
            fused.class_loss(logits.requires_grad_(), labels)
            with torch.no_grad():
                fused.class_loss(logits, labels)
    assert calls == [torch.float32, torch.bfloat16]


@pytest.mark.usefixtures("eager_to_compile")
def test_the_marks_of_what_varies_are_not_left_on_the_callers_tensors(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, fullgraph: lambda *tensors: torch.tensor(6.0))
    logits, labels = sample(50)
    assert fused.class_loss(logits.requires_grad_(), labels, gamma=1.45) == 6
    assert not hasattr(logits, "_dynamo_dynamic_indices")
    assert not hasattr(labels, "_dynamo_dynamic_indices")
