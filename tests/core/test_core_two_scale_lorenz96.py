"""Two-scale Lorenz-96: the written formula, its limits and symmetry, the order of its steps, every route of advance."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.func import jacfwd, jacrev, vmap
from torch.testing import assert_close

from xdan.core.dynamics import Dynamics, Lorenz96, TwoScaleLorenz96, dynamics_from_json, dynamics_to_json

SMALL = TwoScaleLorenz96(sites=5, fast=3, forcing=9.0, coupling=0.8, amplitude_ratio=4.0, time_ratio=6.0)


def states(*shape, model=SMALL, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return model.rest(torch.randn(*shape, *model.shape, generator=generator, dtype=torch.float64))


def written_tendency(x, m):
    """Loops over the equations of the docstring."""
    k, j = m.sites, m.fast
    u, v, n = x[:k], x[k:], k * j
    exchange = m.coupling * m.time_ratio / m.amplitude_ratio
    du = [
        (u[(i + 1) % k] - u[(i - 2) % k]) * u[(i - 1) % k] - u[i] + m.forcing - exchange * sum(v[i * j : (i + 1) * j])
        for i in range(k)
    ]
    cb = m.time_ratio * m.amplitude_ratio
    dv = [
        cb * (v[(i - 1) % n] - v[(i + 2) % n]) * v[(i + 1) % n] - m.time_ratio * v[i] + exchange * u[i // j]
        for i in range(n)
    ]
    return du + dv


@pytest.mark.parametrize("model", [SMALL, TwoScaleLorenz96(sites=4, fast=1)])
def test_tendency_is_the_written_formula(model):
    x = states(model=model)
    written = torch.tensor(written_tendency(x.tolist(), model), dtype=torch.float64)
    assert_close(model.tendency(x), written, rtol=1e-13, atol=1e-12)


def test_slow_sites_without_coupling_are_lorenz96():
    model, plain = TwoScaleLorenz96(sites=5, fast=3, coupling=0.0), Lorenz96(5, 20.0, timestep=0.005)
    x = states(2, model=model)
    assert_close(model.advance(x, 7)[:, :5], plain.advance(x[:, :5], 7), rtol=0, atol=1e-11)


def test_fast_sites_without_coupling_are_a_lorenz96_read_backwards_in_its_own_units():
    """With w = b V, s = c t: dw/ds = (w_{i-1} - w_{i+2}) w_{i+1} - w, the mirror image of Lorenz-96 without forcing."""
    model = TwoScaleLorenz96(sites=5, fast=3, coupling=0.0, amplitude_ratio=4.0, time_ratio=5.0, timestep=0.01)
    v = states(2, model=model, seed=3)[:, 5:]
    x = torch.cat([torch.zeros(2, 5, dtype=torch.float64), v], 1)
    mirrored = Lorenz96(15, 0.0, timestep=0.05).advance(4.0 * v.flip(-1), 6).flip(-1) / 4.0
    assert_close(model.advance(x, 6)[:, 5:], mirrored, rtol=0, atol=1e-12)


def test_exchange_and_advection_conserve_energy():
    """The energy (|U|^2 + |V|^2) / 2 changes by forcing and damping alone."""
    x, k = states(4), SMALL.sites
    u, v = x[:, :k], x[:, k:]
    change = (x * SMALL.tendency(x)).sum(1)
    expected = SMALL.forcing * u.sum(1) - u.square().sum(1) - SMALL.time_ratio * v.square().sum(1)
    assert_close(change, expected, rtol=1e-12, atol=1e-10)


def test_turns_with_the_ring():
    def turned(x):
        u, v = x[:, : SMALL.sites], x[:, SMALL.sites :]
        return torch.cat([u.roll(2, 1), v.roll(2 * SMALL.fast, 1)], 1)

    x = states(3)
    assert_close(SMALL.advance(turned(x), 9), turned(SMALL.advance(x, 9)), rtol=0, atol=1e-11)


def test_steps_are_of_fourth_order():
    x = states(3)

    def ahead(n):
        model = TwoScaleLorenz96(5, 3, 9.0, 0.8, 4.0, 6.0, timestep=0.1 / n)
        return model.advance(x, n)

    errors = [(ahead(n) - ahead(512)).norm() for n in (16, 32, 64)]
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([4, 4], abs=0.25)


@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (130,)])
def test_advance_in_place_is_repeated_steps(shape):
    x = states(*shape)
    kept = x.clone()
    stepped = x
    for _ in range(3):
        stepped = SMALL.step(stepped)
    assert_close(SMALL.advance(x, 3), stepped, rtol=0, atol=1e-12)
    assert torch.equal(x, kept)
    assert torch.equal(SMALL.advance(x, 0), x)


def test_single_precision_is_double_rounded():
    x = states(3)
    assert_close(SMALL.advance(x.float(), 5).double(), SMALL.advance(x, 5), rtol=0, atol=2e-5)


def test_derivatives_are_the_finite_difference():
    x, directions = states(2), torch.randn(2, 3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda x: SMALL.advance(x, 2), x.clone().requires_grad_(), rtol=1e-6)
    after, pushed = SMALL.advance_along(x, directions, 3)
    h = 1e-6
    for m in range(3):
        ahead, behind = (SMALL.advance(x + s * h * directions[:, m], 3) for s in (1, -1))
        assert_close(pushed[:, m], (ahead - behind) / (2 * h), rtol=0, atol=1e-6)
    assert_close(after, SMALL.advance(x, 3), rtol=0, atol=1e-12)
    assert_close(pushed, Dynamics.advance_along(SMALL, x, directions, 3)[1], rtol=0, atol=1e-11)


def test_transforms_agree():
    x = states(2)

    def ahead(state):
        return SMALL.advance(state, 2)

    assert_close(vmap(ahead)(x), ahead(x), rtol=0, atol=1e-12)
    assert_close(vmap(jacfwd(ahead))(x), vmap(jacrev(ahead))(x), rtol=0, atol=1e-12)


def test_fields_lie_on_one_ring():
    """Every slow site is in the middle of its sector, and distances are measured between fields too."""
    model = TwoScaleLorenz96()
    assert (model.space.names, model.dims, model.shape) == (["U", "V"], ("state",), (264,))
    fields = model.space.unpack(torch.arange(264.0))
    assert (fields["U"].shape, fields["V"].shape) == ((8,), (256,))
    apart = model.distances(torch.tensor([2]))[0]
    in_sector = apart[8 + 2 * 32 : 8 + 3 * 32]
    assert float(in_sector.max()) == pytest.approx(31 / 64)
    assert float(in_sector.mean()) == pytest.approx(0.25)
    assert float(apart[6]) == 4.0
    assert float(model.space.weights()[:8].sum()) == pytest.approx(8.0) == float(model.space.weights()[8:].sum())


def test_climatology_is_known():
    """Root of the mean variance of all components 0.93, where DAPPER's set-up of Wilks (2005) has 0.93."""
    model = TwoScaleLorenz96()
    x = model.climatology(range(40), 0, like=torch.zeros((), dtype=torch.float64))[:, 0]
    deviation = torch.cat([x[:, :8] - x[:, :8].mean(), x[:, 8:] - x[:, 8:].mean()], 1)
    assert float(deviation.square().mean().sqrt()) == pytest.approx(0.93, abs=0.06)
    assert float(x[:, :8].mean()) == pytest.approx(3.7, abs=0.8)


def test_labels_and_json():
    assert dynamics_from_json(dynamics_to_json(SMALL)) == SMALL != TwoScaleLorenz96()
    dated = TwoScaleLorenz96(time_unit=np.timedelta64(6, "h"))
    assert dynamics_from_json(dynamics_to_json(dated)).time_unit == np.timedelta64(6, "h")


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"sites": 3}, ValueError, "sites=3: expected at least 4"),
        ({"fast": 0}, ValueError, "fast=0: expected at least 1"),
        ({"time_ratio": 0.0}, ValueError, "time_ratio=0: expected a finite number, above 0"),
        ({"timestep": 0.05}, ValueError, r"timestep=0.05: expected a finite number, above 0 and at most 0\.01"),
        ({"fast": 2.5}, TypeError, "fast=2.5: expected an integer"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters, error, message):
    with pytest.raises(error, match=message):
        TwoScaleLorenz96(**parameters)
