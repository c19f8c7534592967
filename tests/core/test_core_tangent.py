"""Derivatives along directions: forward, backward twice where torch knows no other way, refused where it knows none."""

import numpy as np
import pytest
import torch
from torch.autograd.function import once_differentiable

from xdan.core.dynamics import CustomDynamics
from xdan.core.observing import FunctionOperator
from xdan.core.tangent import push_forward


class Cube(torch.autograd.Function):
    """z^3, whose derivative torch knows backward only."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z**3

    @staticmethod
    def backward(ctx, gradient):
        (z,) = ctx.saved_tensors
        return 3 * z**2 * gradient


class Once(Cube):
    """Its derivative is backward only, and cannot be differentiated again."""

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (z,) = ctx.saved_tensors
        return 3 * z**2 * gradient


def black_box(z):
    return torch.from_numpy(np.sin(z.detach().numpy()))


FUNCTIONS = {
    "plain": (lambda z: z**3 - z.roll(1, -1) * z, None),
    "backward only": (lambda z: Cube.apply(z) - z.roll(1, -1) * z, None),
    "constant": (lambda z: torch.ones_like(z), 0.0),
    "constant and detached": (lambda z: torch.ones_like(z) + 0 * z.detach(), 0.0),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_directions_are_pushed_forward_by_the_written_derivative(name, mode):
    function, known = FUNCTIONS[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    v = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    with mode():
        value, pushed = push_forward(function, x, v)
    near, before, pushed_before = x[:, None], x.roll(1, -1)[:, None], v.roll(1, -1)
    expected = 3 * near**2 * v - pushed_before * near - before * v if known is None else known * v
    torch.testing.assert_close(value, function(x), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(pushed, expected, rtol=1e-12, atol=1e-12)
    assert mode is torch.enable_grad or not pushed.requires_grad


def test_a_gradient_passes_through_a_direction_that_was_pushed_backward():
    x = torch.tensor([[0.5, -1.0]], dtype=torch.float64, requires_grad=True)
    pushed = push_forward(Cube.apply, x, torch.ones(1, 1, 2, dtype=torch.float64))[1]
    (gradient,) = torch.autograd.grad(pushed.sum(), x)  # of 3 x^2
    torch.testing.assert_close(gradient, 6 * x.detach())


@pytest.mark.parametrize("function", [Once.apply, black_box, lambda z: z.detach() ** 2])
def test_what_torch_cannot_differentiate_is_refused_by_name(function):
    x, v = torch.full((2, 3), 0.5), torch.ones(2, 1, 3)
    model = CustomDynamics(step=function, state={"x": 3}, timestep=0.1, name="mine", spin_up_time=0.0)
    calls = {
        "a function of the state": lambda: push_forward(function, x, v),
        "the observation operator": lambda: FunctionOperator(function, 3).tangent(x, v),
        "the model 'mine'": lambda: model.advance_along(x, v, 2),
    }
    for title, call in calls.items():
        with pytest.raises(ValueError, match=f"{title}.*xpected torch operations") as caught:
            call()
        assert not any(word in str(caught.value) for word in ("functorch", "aten::", "functional"))


def test_a_function_that_fails_by_itself_says_so_in_its_own_words():
    def fails(z):
        raise RuntimeError("no such day")

    with pytest.raises(RuntimeError, match="no such day"):
        push_forward(fails, torch.zeros(1, 2), torch.ones(1, 1, 2))


def test_a_derivative_that_vanishes_where_it_is_taken_is_no_black_box():
    x, v = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 1, 3, dtype=torch.float64)
    assert not push_forward(lambda z: z**2, x, v)[1].any()
    assert not push_forward(Cube.apply, x, v)[1].any()
