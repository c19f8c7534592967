"""Lorenz-63: the written formula, its steady states and symmetry, the order of its steps, every transform."""

import math
from itertools import pairwise

import pytest
import torch
from torch.func import jacfwd, jacrev, vmap
from torch.testing import assert_close

from xdan.core.dynamics import Dynamics, Lorenz63, dynamics_from_json, dynamics_to_json

DOUBLE = torch.zeros((), dtype=torch.float64)


def states(*shape):
    generator = torch.Generator().manual_seed(4)
    centre = torch.tensor([0.0, 0.0, 24.0], dtype=torch.float64)
    return centre + 8.0 * torch.randn(*shape, 3, generator=generator, dtype=torch.float64)


def test_tendency_is_the_written_formula():
    dynamics, state = Lorenz63(9.0, 27.0, 2.0), states(5)
    written = [[9.0 * (y - x), x * (27.0 - z) - y, x * y - 2.0 * z] for x, y, z in state.tolist()]
    assert_close(dynamics.tendency(state), torch.tensor(written, dtype=torch.float64), rtol=1e-14, atol=1e-12)


@pytest.mark.parametrize("sign", [-1, 0, 1])
def test_steady_states_stay(sign):
    """The origin, and the two centres of convection at x = y = +-sqrt(beta (rho - 1)), z = rho - 1."""
    dynamics, r = Lorenz63(), sign * math.sqrt(8 / 3 * 27)
    steady = torch.tensor([r, r, 27.0 * abs(sign)], dtype=torch.float64)
    assert_close(dynamics.tendency(steady), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-13)
    assert_close(dynamics.advance(steady, 10), steady, rtol=0, atol=1e-12)


def test_convection_has_two_mirror_images():
    dynamics, state, mirror = Lorenz63(), states(4), torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
    assert_close(dynamics.advance(mirror * state, 20), mirror * dynamics.advance(state, 20), rtol=1e-13, atol=1e-12)


def test_volume_shrinks_everywhere_alike():
    dynamics = Lorenz63(9.0, 27.0, 2.0)
    jacobian = vmap(jacfwd(dynamics.tendency))(states(6))
    assert_close(jacobian.diagonal(dim1=1, dim2=2).sum(1), torch.full((6,), -12.0, dtype=torch.float64))


def test_steps_are_of_fourth_order():
    x = states(3)
    exact = Lorenz63(timestep=0.1 / 512).advance(x, 512)
    errors = [(Lorenz63(timestep=0.1 / n).advance(x, n) - exact).norm() for n in (16, 32, 64)]
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([4, 4], abs=0.2)


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_leading_axes_are_a_batch(shape):
    dynamics, x = Lorenz63(), states(*shape)
    alone = torch.stack([dynamics.advance(state, 3) for state in x.reshape(-1, 3)]).reshape(x.shape)
    assert torch.equal(dynamics.advance(x, 3), alone)


def test_derivatives_are_the_finite_difference():
    dynamics, x = Lorenz63(), states(2)
    direction = states(2) - 24.0
    assert torch.autograd.gradcheck(lambda x: dynamics.advance(x, 3), x.clone().requires_grad_(), rtol=1e-6)
    directions = torch.stack([direction, 2 * direction.flip(-1)], 1)
    after, pushed = dynamics.advance_along(x, directions, 3)
    h = 1e-6
    quotient = (dynamics.advance(x + h * direction, 3) - dynamics.advance(x - h * direction, 3)) / (2 * h)
    assert_close(pushed[:, 0], quotient, rtol=1e-7, atol=1e-6)
    assert_close(after, dynamics.advance(x, 3), rtol=1e-14, atol=0)
    by_autodiff = Dynamics.advance_along(dynamics, x, directions, 3)[1]
    assert_close(pushed, by_autodiff, rtol=1e-12, atol=1e-10)


def test_transforms_agree():
    dynamics, x = Lorenz63(), states(3)

    def ahead(state):
        return dynamics.advance(state, 4)

    assert_close(vmap(ahead)(x), ahead(x), rtol=1e-13, atol=1e-12)
    assert_close(vmap(jacfwd(ahead))(x), vmap(jacrev(ahead))(x), rtol=1e-12, atol=1e-12)


def test_retreat_undoes_advance():
    dynamics, x = Lorenz63(timestep=0.001), states(4)
    assert_close(dynamics.retreat(dynamics.advance(x, 5), 5), x, rtol=0, atol=1e-9)


def test_climatology_has_the_known_mean():
    """On the attractor z is about 23.55 on average, and x y is beta z, as z has no trend."""
    state = Lorenz63().climatology(range(2000), 0, like=DOUBLE)[:, 0]
    assert state[:, 2].mean() == pytest.approx(23.55, abs=0.8)
    assert (state[:, 0] * state[:, 1] - 8 / 3 * state[:, 2]).mean() == pytest.approx(0.0, abs=6.0)
    assert state[:, 0].abs().max() < 22


def test_labels_and_json():
    dynamics = Lorenz63(9.0, 27.0, 2.0, timestep=0.02)
    assert (dynamics.dims, dynamics.shape) == (("component",), (3,))
    assert dynamics.coordinates["component"].values == ("x", "y", "z")
    assert dynamics_from_json(dynamics_to_json(dynamics)) == dynamics != Lorenz63()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sigma": 0.0}, "sigma=0: expected a finite number, above 0"),
        ({"beta": math.inf}, "beta=inf: expected a finite number, above 0"),
        ({"rho": math.nan}, "rho=nan: expected a finite number"),
        ({"timestep": 0.06}, "timestep=0.06: expected a finite number, above 0 and at most 0.05"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        Lorenz63(**parameters)
