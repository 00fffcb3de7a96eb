"""The losses against float64 references, closed forms and logits at which the usual formulas break."""

import math

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from retinanet.errors import ConfigError
from retinanet.ops import losses

GAMMAS = [0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]


def slope(loss, logits, targets):
    x = logits.clone().requires_grad_()
    loss(x, targets).sum().backward()
    assert x.grad is not None
    return x.grad


def spread(dtype=torch.float64):
    x = torch.linspace(-12, 12, 97, dtype=dtype)
    return torch.cat([x, x]), torch.cat([torch.zeros(97), torch.ones(97)]).to(dtype)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [0.25, 0.75, None])
def test_focal_loss_is_equation_5(gamma, alpha):
    x, y = spread()
    p_t = torch.where(y == 1, torch.sigmoid(x), 1 - torch.sigmoid(x))
    a_t = 1.0 if alpha is None else torch.where(y == 1, alpha, 1 - alpha)
    torch.testing.assert_close(
        losses.focal_loss(x, y, alpha, gamma), -a_t * (1 - p_t) ** gamma * p_t.log(), rtol=1e-8, atol=1e-12
    )


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_slope_of_focal_loss_is_equation_10(gamma):
    x, y = spread()
    sign = 2 * y - 1
    p_t = torch.sigmoid(sign * x)
    closed = sign * (1 - p_t) ** gamma * (gamma * p_t * p_t.log() + p_t - 1)
    torch.testing.assert_close(
        slope(lambda a, b: losses.focal_loss(a, b, None, gamma), x, y), closed, rtol=1e-6, atol=1e-10
    )


def test_the_slope_of_cross_entropy_is_equation_9():
    x, y = spread()
    sign = 2 * y - 1
    torch.testing.assert_close(slope(losses.cross_entropy, x, y), sign * (torch.sigmoid(sign * x) - 1))


@pytest.mark.parametrize(("gamma", "beta"), [(2.0, 1.0), (4.0, 0.0), (1.0, 0.5)])
def test_focal_loss_star_is_equations_7_8_and_11(gamma, beta):
    x, y = spread()
    sign = 2 * y - 1
    p_star = torch.sigmoid(gamma * sign * x + beta)
    torch.testing.assert_close(
        losses.focal_loss_star(x, y, gamma, beta), -p_star.log() / gamma, rtol=1e-6, atol=1e-12
    )
    torch.testing.assert_close(
        slope(lambda a, b: losses.focal_loss_star(a, b, gamma, beta), x, y), sign * (p_star - 1)
    )


@pytest.mark.parametrize("margin", [0.3, 0.5, 1.0])
def test_hinge_loss_is_the_margin_less_p_t_and_its_slope_is_that_of_p_t(margin):
    x, y = spread()
    sign = 2 * y - 1
    p_t = 1 / (1 + torch.exp(-sign * x))
    short = (p_t < margin).double()
    torch.testing.assert_close(losses.hinge_loss(x, y, margin), short * (margin - p_t))
    torch.testing.assert_close(
        slope(lambda a, b: losses.hinge_loss(a, b, margin), x, y), -sign * short * p_t * (1 - p_t)
    )
    off_the_kink = torch.tensor([-9.0, -2, 0.5, 3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a: losses.hinge_loss(a, torch.tensor([0.0, 1, 0, 1]), margin, 0.25), off_the_kink
    )


def test_alpha_weighs_hinge_loss_when_it_is_given():
    # p = 1/4: the positive falls short by 1/4, the negative by nothing
    x, y = (torch.full((2,), -math.log(3)), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(losses.hinge_loss(x, y), torch.tensor([0.25, 0.0]))
    torch.testing.assert_close(losses.hinge_loss(x, y, 1.0, 0.2), torch.tensor([0.2 * 0.75, 0.8 * 0.25]))


def test_alpha_weighs_the_positives_and_one_minus_alpha_the_negatives():
    x = torch.zeros(2)
    loss = losses.balanced_cross_entropy(x, torch.tensor([1.0, 0.0]), alpha=0.25)
    torch.testing.assert_close(loss, math.log(2) * torch.tensor([0.25, 0.75]))


def test_alpha_may_differ_from_class_to_class():
    x, y = torch.randn(5, 3), torch.eye(3)[[0, 1, 2, 0, 1]]
    alphas = torch.tensor([0.1, 0.5, 0.9])
    both = losses.focal_loss(x, y, alphas)
    for k, alpha in enumerate(alphas.tolist()):
        torch.testing.assert_close(both[:, k], losses.focal_loss(x[:, k], y[:, k], alpha))


def test_gamma_0_without_alpha_is_cross_entropy():
    x, y = spread(torch.float32)
    torch.testing.assert_close(losses.focal_loss(x, y, None, 0.0), losses.cross_entropy(x, y))


def test_the_focal_loss_agrees_with_torchvision_where_that_is_sound():
    x, y = spread(torch.float32)
    torch.testing.assert_close(
        losses.focal_loss(x, y, 0.25, 2.0), sigmoid_focal_loss(x, y, 0.25, 2.0), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_values_and_slopes_are_finite_and_right_at_logits_of_200(gamma, dtype):
    x = torch.tensor([-200.0, -100, -20, 0, 20, 100, 200], dtype=dtype).repeat(2)
    y = torch.tensor([0.0] * 7 + [1.0] * 7)
    kinds = [
        lambda a, b: losses.focal_loss(a, b, 0.25, gamma),
        lambda a, b: losses.balanced_cross_entropy(a, b, 0.25),
        lambda a, b: losses.focal_loss_star(a, b, gamma or 1.0, 1.0),
        lambda a, b: losses.hinge_loss(a, b, 0.4, 0.25),
    ]
    for loss in kinds:
        value, change = loss(x, y), slope(loss, x, y)
        assert value.dtype == torch.float32
        assert value.isfinite().all()
        assert change.isfinite().all()
        exact, exact_change = loss(x.double(), y.double()), slope(loss, x.double(), y.double())
        torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(
            change.double(), exact_change, rtol=2e-2 if dtype != torch.float32 else 1e-4, atol=1e-6
        )


def test_a_hopelessly_wrong_anchor_costs_its_logit():
    x, y = torch.tensor([200.0]), torch.tensor([0.0])
    torch.testing.assert_close(losses.focal_loss(x, y, None, 2.0), torch.tensor([200.0]))


def test_softmax_focal_loss_is_the_softmax_probability_of_the_true_class():
    x = torch.randn(6, 4, dtype=torch.float64)
    truth = torch.tensor([0, 1, 2, 3, 0, 1])
    p = x.softmax(dim=1)[range(6), truth]
    one_hot = torch.eye(4, dtype=torch.float64)[truth]
    torch.testing.assert_close(losses.softmax_focal_loss(x, one_hot, None, 2.0), -((1 - p) ** 2) * p.log())
    torch.testing.assert_close(
        losses.softmax_focal_loss(x, one_hot, None, 0.0),
        torch.nn.functional.cross_entropy(x, truth, reduction="none"),
    )


@pytest.mark.parametrize("gamma", GAMMAS)
def test_softmax_focal_loss_is_finite_at_logits_of_200(gamma):
    x = torch.tensor([[200.0, -200, 0], [-200, 200, 200], [200, 200, 200]])
    y = torch.eye(3)
    assert losses.softmax_focal_loss(x, y, 0.25, gamma).isfinite().all()
    assert slope(lambda a, b: losses.softmax_focal_loss(a, b, 0.25, gamma), x, y).isfinite().all()


def test_reductions():
    x, y = torch.randn(4, 3), torch.zeros(4, 3)
    every = losses.focal_loss(x, y)
    torch.testing.assert_close(losses.focal_loss(x, y, reduction="sum"), every.sum())
    torch.testing.assert_close(losses.focal_loss(x, y, reduction="mean"), every.mean())
    with pytest.raises(ConfigError, match="did you mean 'mean'"):
        losses.focal_loss(x, y, reduction="man")


def test_targets_of_another_shape_are_refused_rather_than_broadcast():
    with pytest.raises(ConfigError, match="dense"):
        losses.focal_loss(torch.zeros(4, 3), torch.zeros(4, 1))


@pytest.mark.parametrize(
    "call",
    [
        lambda: losses.focal_loss(torch.zeros(1), torch.zeros(1), gamma=-1),
        lambda: losses.focal_loss_star(torch.zeros(1), torch.zeros(1), gamma=0),
    ],
)
def test_a_gamma_without_meaning_is_refused(call):
    with pytest.raises(ConfigError, match="gamma"):
        call()


@pytest.mark.parametrize("margin", [0.0, -0.5, 1.1])
def test_a_margin_without_meaning_is_refused(margin):
    with pytest.raises(ConfigError, match="margin"):
        losses.hinge_loss(torch.zeros(1), torch.zeros(1), margin)


def test_smooth_l1_is_square_below_beta_and_straight_above():
    d = torch.tensor([0.0, 0.05, 1 / 9, 1.0])
    expected = torch.tensor([0.0, 0.5 * 0.05**2 * 9, 0.5 / 9, 1 - 0.5 / 9])
    torch.testing.assert_close(losses.smooth_l1(d, torch.zeros(4)), expected)
    torch.testing.assert_close(losses.smooth_l1(d, torch.zeros(4), beta=0), losses.l1(d, torch.zeros(4)))


def test_giou_loss_of_the_same_box_is_0_and_of_far_boxes_nears_2():
    box = torch.tensor([[0.0, 0, 10, 10]])
    torch.testing.assert_close(losses.giou_loss(box, box), torch.zeros(1), atol=1e-6, rtol=0)
    assert losses.giou_loss(box, box + 1000).item() > 1.95
