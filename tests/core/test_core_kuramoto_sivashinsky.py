"""Kuramoto-Sivashinsky: linear waves, the conserved mean, symmetries, the order of steps, derivatives, exponents."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.func import jacfwd, jacrev, vmap
from torch.testing import assert_close

from xdan.core.dynamics import Dynamics, KuramotoSivashinsky, dynamics_from_json, dynamics_to_json, runge_kutta_4
from xdan.core.lyapunov import orthonormal_directions, spectrum

DOUBLE = torch.zeros((), dtype=torch.float64)
SMALL = KuramotoSivashinsky(sites=32, length=22.0, timestep=0.25)


def states(*shape, sites=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, sites, generator=generator, dtype=torch.float64)


def position(dynamics):
    return torch.tensor(dynamics.coordinates["x"].values, dtype=torch.float64)


@pytest.mark.parametrize("wave", [0, 1, 3, 5, 10, 11, 16])
def test_a_wave_that_is_small_grows_by_its_own_rate(wave):
    """exp(k^2 - k^4) for each unit of time, waves that are left out of products (beyond 10) among them."""
    k = 2 * math.pi * wave / 22.0
    x = 1e-9 * torch.cos(k * position(SMALL))
    assert_close(SMALL.advance(x, 8), math.exp(2.0 * (k**2 - k**4)) * x, rtol=1e-7, atol=1e-21)


def test_tendency_of_one_wave_is_the_written_formula():
    """u = sin k x: -u u_x = -k/2 sin 2 k x, and the linear part is (k^2 - k^4) u."""
    k = 2 * math.pi * 2 / 22.0
    u, twice = torch.sin(k * position(SMALL)), torch.sin(2 * k * position(SMALL))
    assert_close(SMALL.tendency(u), (k**2 - k**4) * u - k / 2 * twice, rtol=0, atol=1e-13)


def test_products_of_short_waves_do_not_fold_back():
    """Two times wave 9 of 32 sites is wave 18, which the sites see as wave 14."""
    k = 2 * math.pi * 9 / 22.0
    u = torch.cos(k * position(SMALL))
    assert_close(SMALL.tendency(u), (k**2 - k**4) * u, rtol=0, atol=1e-10)


def test_steps_are_those_of_the_tendency():
    x = SMALL.advance(states(2), 400)
    exact = x
    for _ in range(4000):
        exact = runge_kutta_4(SMALL.tendency, exact, 1.0 / 4000)
    fine = KuramotoSivashinsky(sites=32, length=22.0, timestep=1.0 / 64)
    assert_close(fine.advance(x, 64), exact, rtol=0, atol=1e-7)


def test_steps_are_of_fourth_order():
    x = SMALL.advance(states(3), 400)

    def ahead(n):
        return KuramotoSivashinsky(sites=32, length=22.0, timestep=1.0 / n).advance(x, n)

    errors = [(ahead(n) - ahead(1024)).norm() for n in (32, 64, 128)]
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([4, 4], abs=0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_is_conserved(dtype):
    x = states(3).to(dtype)
    mean = SMALL.advance(x, 2000).mean(-1)
    assert_close(mean, x.mean(-1), rtol=0, atol=20 * torch.finfo(dtype).eps)
    start = SMALL.climatology(range(3), 0, members=2, like=x)
    assert start.dtype == dtype
    assert float(start.mean(-1).abs().max()) < 20 * torch.finfo(dtype).eps


def test_a_mean_carries_all_waves_along():
    """u + c at x + c t: here the wind carries waves by 3 sites."""
    x, steps = SMALL.advance(states(2), 400), 8
    c = 3 * (22.0 / 32) / (steps * 0.25)
    fine = KuramotoSivashinsky(sites=32, length=22.0, timestep=0.25 / 16)
    x = torch.fft.irfft(torch.fft.rfft(x)[:, :11], 32)  # the waves that take part in products: others do not move
    moved = fine.advance(x + c, 16 * steps) - c
    assert_close(moved, fine.advance(x, 16 * steps).roll(3, -1), rtol=0, atol=1e-6)


def test_turned_and_mirrored_rings():
    x = states(2)
    assert_close(SMALL.advance(x.roll(5, -1), 9), SMALL.advance(x, 9).roll(5, -1), rtol=0, atol=1e-12)
    mirrored = -x.flip(-1)
    assert_close(SMALL.advance(mirrored, 9), -SMALL.advance(x, 9).flip(-1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
@pytest.mark.parametrize("sites", [24, 33])
def test_leading_axes_are_a_batch(shape, sites):
    dynamics, x = KuramotoSivashinsky(sites=sites, length=22.0), states(*shape, sites=sites)
    alone = torch.stack([dynamics.advance(state, 3) for state in x.reshape(-1, sites)]).reshape(x.shape)
    assert_close(dynamics.advance(x, 3), alone, rtol=0, atol=1e-13)
    repeated = dynamics.step(dynamics.step(dynamics.step(x)))
    assert_close(dynamics.advance(x, 3), repeated, rtol=0, atol=1e-13)


def test_single_precision_is_double_rounded():
    x = SMALL.advance(states(3), 400)
    assert_close(SMALL.advance(x.float(), 4).double(), SMALL.advance(x, 4), rtol=0, atol=1e-5)


def test_derivatives_are_the_finite_difference():
    x, directions = SMALL.advance(states(2), 400), states(2, 3, seed=1)
    assert torch.autograd.gradcheck(lambda x: SMALL.advance(x, 2), x.clone().requires_grad_(), rtol=1e-6)
    after, pushed = SMALL.advance_along(x, directions, 3)
    h = 1e-6
    for m in range(3):
        ahead, behind = (SMALL.advance(x + s * h * directions[:, m], 3) for s in (1, -1))
        assert_close(pushed[:, m], (ahead - behind) / (2 * h), rtol=0, atol=1e-7)
    assert_close(after, SMALL.advance(x, 3), rtol=0, atol=1e-13)
    assert_close(pushed, Dynamics.advance_along(SMALL, x, directions, 3)[1], rtol=0, atol=1e-12)


def test_transforms_agree():
    x = states(2)

    def ahead(state):
        return SMALL.advance(state, 2)

    assert_close(vmap(ahead)(x), ahead(x), rtol=0, atol=1e-13)
    assert_close(vmap(jacfwd(ahead))(x), vmap(jacrev(ahead))(x), rtol=0, atol=1e-12)


def test_distances_are_along_the_ring():
    distance = SMALL.distances(torch.tensor([0, 31]))
    assert distance.shape == (2, 32)
    spacing = 22.0 / 32
    assert_close(distance[0, [0, 1, 16, 31]], spacing * torch.tensor([0, 1, 16, 1], dtype=torch.float64))
    assert_close(distance[1], distance[0].roll(-1))


def test_there_is_no_way_back():
    with pytest.raises(ValueError, match="'kuramoto-sivashinsky' cannot be integrated backward"):
        SMALL.retreat(states(1), 1)


def test_exponents_of_a_short_ring_are_known():
    """0.043 at length 22 (Edson et al. 2019, doi:10.1017/S1446181119000105), then zeros."""
    x = SMALL.climatology(range(8), 0, like=DOUBLE)[:, 0]
    vectors = orthonormal_directions(torch.arange(8), 0, 6, 32)
    exponents, _ = spectrum(SMALL, x, vectors, between=8, spin_up=100, repeats=400)
    mean = exponents.mean(0)
    assert float(mean[0]) == pytest.approx(0.043, abs=0.012)
    assert mean[1:3].abs().max() < 0.01  # in time and along the ring; so is a change of the mean
    assert float(mean[5]) < 0


def test_labels_and_json():
    dynamics = KuramotoSivashinsky(sites=96, length=60.0, timestep=0.25)
    assert (dynamics.dims, dynamics.shape) == (("x",), (96,))
    assert dynamics.coordinates["x"].values[:2] == (0.0, 0.625)
    assert dynamics_from_json(dynamics_to_json(dynamics)) == dynamics != KuramotoSivashinsky()
    dated = KuramotoSivashinsky(time_unit=np.timedelta64(6, "h"))
    assert dynamics_from_json(dynamics_to_json(dated)).time_unit == np.timedelta64(6, "h")


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"sites": 64}, ValueError, r"sites=64 on a ring of length=100\.5.*expected at least 96"),
        ({"length": 0.0}, ValueError, "length=0: expected a finite number, above 0"),
        ({"timestep": 2.0}, ValueError, "timestep=2: expected a finite number, above 0 and at most 1"),
        ({"sites": 128.0}, TypeError, "sites=128.0: expected an integer"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters, error, message):
    with pytest.raises(error, match=message):
        KuramotoSivashinsky(**parameters)
