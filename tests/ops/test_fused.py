"""The class loss of training equals the dense losses over one-hot targets."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from retinanet.errors import ConfigError
from retinanet.ops import fused, losses
from retinanet.ops.assign import BACKGROUND, IGNORE

DENSE = {
    "cross_entropy": lambda x, y, alpha, gamma, beta: losses.cross_entropy(x, y),
    "balanced": lambda x, y, alpha, gamma, beta: losses.balanced_cross_entropy(x, y, alpha),
    "focal": lambda x, y, alpha, gamma, beta: losses.focal_loss(x, y, alpha, gamma),
    "focal_star": lambda x, y, alpha, gamma, beta: losses.focal_loss_star(x, y, gamma, beta, alpha),
    "hinge": lambda x, y, alpha, gamma, beta: losses.hinge_loss(x, y, 0.5, alpha),
}


def sample(dtype=torch.float64, classes=4, batch=(2, 50)):
    generator = torch.Generator().manual_seed(3)
    logits = (torch.randn(*batch, classes, generator=generator, dtype=torch.float64) * 6).to(dtype)
    labels = torch.randint(IGNORE, classes, batch, generator=generator)
    return logits, labels


def dense(loss, logits, labels, alpha, gamma, beta):
    one_hot = torch.nn.functional.one_hot(labels.clamp(min=0), logits.shape[-1]) * (labels >= 0)[..., None]
    value = DENSE[loss](logits, one_hot.to(logits.dtype), alpha, gamma, beta)
    return value[labels != IGNORE].sum()


@pytest.mark.parametrize("loss", fused.CLASS_LOSSES)
@pytest.mark.parametrize("alpha", [0.25, None, torch.tensor([0.1, 0.5, 0.7, 0.9])])
@pytest.mark.parametrize("gamma", [0.1, 0.5, 2.0, 5.0])
def test_value_and_gradient_equal_the_dense_loss(loss, alpha, gamma):
    logits, labels = sample()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value = fused.class_loss(ours, labels, loss, alpha, gamma=gamma, beta=0.5)
    expected = dense(loss, theirs, labels, alpha, gamma, 0.5)
    (value * 0.3).backward()
    (expected * 0.3).backward()
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("loss", fused.CLASS_LOSSES)
def test_the_gradient_is_that_of_finite_differences(loss):
    logits, labels = sample(batch=(12,))
    assert torch.autograd.gradcheck(
        lambda x: fused.class_loss(x / 4, labels, loss, margin=0.7), logits.requires_grad_()
    )


@pytest.mark.parametrize("loss", fused.CLASS_LOSSES)
@pytest.mark.parametrize("alpha", [0.25, None])
def test_the_losses_of_the_anchors_are_the_parts_of_the_sum(loss, alpha):
    logits, labels = sample(torch.bfloat16)
    every = fused.anchor_losses(logits.requires_grad_(), labels, loss, alpha)
    assert (every.shape, every.dtype, every.requires_grad) == (labels.shape, torch.float32, False)
    for place in [(0, 0), (1, 7), (1, 49)]:
        torch.testing.assert_close(
            every[place], fused.class_loss(logits[place][None], labels[place][None], loss, alpha).detach()
        )
    torch.testing.assert_close(every.sum(), fused.class_loss(logits, labels, loss, alpha).detach())
    assert not every[labels == IGNORE].any()


def test_many_chunks_equal_one(monkeypatch):
    logits, labels = sample()
    whole, every = fused.class_loss(logits, labels), fused.anchor_losses(logits, labels)
    monkeypatch.setitem(fused.CHUNK, "cpu", 12)
    torch.testing.assert_close(fused.class_loss(logits, labels), whole)
    assert torch.equal(fused.anchor_losses(logits, labels), every)


@pytest.mark.parametrize("loss", fused.CLASS_LOSSES)
@pytest.mark.parametrize("gamma", [0.1, 0.5, 2.0, 5.0])
def test_float32_is_exact_to_five_digits(loss, gamma):
    logits, labels = sample(torch.float32, batch=(4, 500))
    low, high = logits.clone().requires_grad_(), logits.double().requires_grad_()
    one, other = (fused.class_loss(x, labels, loss, 0.25, gamma=gamma) for x in (low, high))
    one.backward()
    other.backward()
    torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=0)
    torch.testing.assert_close(low.grad.double(), high.grad, rtol=1e-5, atol=1e-9)


def test_a_retained_graph_gives_its_gradient_again():
    logits, labels = sample(torch.float32)
    expected = torch.autograd.grad(fused.class_loss(logits.requires_grad_(), labels), logits)[0]
    value = fused.class_loss(logits, labels)
    for factor in (0.5, 0.0, 1.0, 4.0):
        (gradient,) = torch.autograd.grad(value * factor, logits, retain_graph=True)
        torch.testing.assert_close(gradient, expected * factor)
        gradient.fill_(torch.nan)  # it is the caller's: what he does to it changes no other


def test_a_graph_that_is_not_retained_and_a_second_derivative_are_refused():
    logits, labels = sample(torch.float32)
    value = fused.class_loss(logits.requires_grad_(), labels)
    value.backward()
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()
    (gradient,) = torch.autograd.grad(fused.class_loss(logits, labels) ** 2, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_levels_cut_from_one_tensor_are_not_copied():
    logits, labels = sample(torch.float32)
    level, label = logits[:, 10:30], labels[:, 10:30]
    copied = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, given=(), named=None):
            if operation is torch.ops.aten.clone.default:
                copied.append(given[0].numel())
            return operation(*given, **(named or {}))

    with Copies():
        fused.class_loss(logits, labels)
        (ours,) = torch.autograd.grad(fused.class_loss(level.requires_grad_(), label), level)
    assert max(copied, default=0) < level.numel()
    apart = level.detach().clone().requires_grad_()
    fused.class_loss(apart, label).backward()
    assert torch.equal(ours, apart.grad)
    assert torch.equal(fused.anchor_losses(level, label), fused.anchor_losses(apart, label))


def test_no_anchors_have_no_losses():
    assert fused.anchor_losses(torch.zeros(2, 0, 3), torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hinge_of_bf16_logits_is_that_of_the_same_numbers_in_float64(dtype):
    logits, labels = sample(dtype)
    low, high = logits.clone().requires_grad_(), logits.double().requires_grad_()
    fused.class_loss(low, labels, "hinge", 0.25, margin=0.3).backward()
    fused.class_loss(high, labels, "hinge", 0.25, margin=0.3).backward()
    assert low.grad.dtype == dtype
    torch.testing.assert_close(
        low.grad.double(), high.grad, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-6
    )


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_finite_at_logits_of_200(gamma, dtype):
    logits = torch.tensor(
        [[200.0, -200], [-200, 200], [200, 200], [-200, -200]], dtype=dtype, requires_grad=True
    )
    value = fused.class_loss(logits, torch.tensor([0, 0, BACKGROUND, BACKGROUND]), "focal", 0.25, gamma=gamma)
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    assert logits.grad.isfinite().all()


def test_ignored_anchors_have_neither_loss_nor_gradient():
    logits = torch.randn(3, 2, requires_grad=True)
    value = fused.class_loss(logits, torch.full((3,), IGNORE))
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_sum_over_many_easy_anchors_in_bf16_is_not_lost():
    logits = torch.full((100_000, 1), -4.0, dtype=torch.bfloat16)
    exact = (
        losses.focal_loss(torch.tensor([-4.0], dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
        * 100_000
    )
    torch.testing.assert_close(
        fused.class_loss(logits, torch.full((100_000,), BACKGROUND)).double(), exact[0], rtol=1e-5, atol=0
    )


def test_no_gradient_is_made_when_none_is_asked_for():
    logits, labels = sample(torch.float32)
    assert not fused.class_loss(logits, labels).requires_grad


def test_unknown_losses_and_gammas_are_refused():
    logits, labels = sample()
    with pytest.raises(ConfigError, match="'focal'"):
        fused.class_loss(logits, labels, "focall")
    with pytest.raises(ConfigError, match="gamma"):
        fused.class_loss(logits, labels, "focal_star", gamma=0.0)
    with pytest.raises(ConfigError, match="margin"):
        fused.class_loss(logits, labels, "hinge", margin=1.5)
