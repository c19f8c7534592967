"""Flow on the sphere: Rossby waves, conservation, the turn about the axis, derivatives, forces, exponents, JSON."""

import math

import numpy as np
import pytest
import torch
from torch.func import jacfwd, vmap
from torch.testing import assert_close

from xdan.core.dynamics import Dynamics, SphereQG, dynamics_from_json, dynamics_to_json
from xdan.core.dynamics.sphere_qg import RADIUS, ROTATION, SCALE
from xdan.core.dynamics.spherical_harmonics import Workspace, multiplier
from xdan.core.lyapunov import orthonormal_directions, spectrum

DOUBLE = torch.zeros((), dtype=torch.float64)
MODEL = SphereQG()
FREE = {"relaxation": None, "drag": None, "diffusion": None}


def noise(*lead, model=MODEL, seed=0):
    return torch.randn(*lead, *model.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def states(*lead, model=MODEL):
    """Developed enough to have waves."""
    return model.advance(model.rest(noise(*lead, model=model)), 24)


def point_share(model):
    return (model.space.weights() / (4 * math.pi)).reshape(model.shape)


def invariants(model, x):
    """Energy of the wind and of the surface, and squared q, of each state."""
    flow = model._flow(x)
    waves = flow.harmonics.to_coefficients(x / SCALE)
    stretched = flow.laplacian / flow.vorticity_share
    q = flow.harmonics.to_coefficients(flow.harmonics.from_halves(model._planetary)) - stretched * waves
    return (stretched * waves.square()).sum((0, 1)), q.square().sum((0, 1))


@pytest.mark.parametrize("truncation", [21, 42])
@pytest.mark.parametrize("radius", [None, 2.0e6])
def test_a_rossby_haurwitz_wave_turns_at_its_known_speed(truncation, radius):
    """One harmonic (n, m) on a solid rotation w keeps its shape, by w - (2 w + 2 Omega + w S) / (n (n + 1) + S).

    S is the square of the Earth's radius over L.
    """
    model = SphereQG(truncation, deformation_radius=radius, mountain_height=0.0, **FREE)
    transform = model._flow(DOUBLE).harmonics
    n, m, turning, days = 6, 4, 0.7, 2
    waves = torch.zeros(len(transform.order), truncation, 1, dtype=torch.float64)
    waves[0, 0] = -turning / math.sqrt(3)  # psi = -w sin(latitude)
    row = transform.order.flatten().tolist().index(m)
    waves[row, n - 1] = 0.1
    after = model.advance(SCALE * transform.to_fields(waves)[0], 48 * days)
    screening = 0.0 if radius is None else (RADIUS / radius) ** 2
    speed = turning - (2 * turning + 2 * ROTATION + turning * screening) / (n * (n + 1) + screening)
    waves[row, n - 1], waves[row + 1, n - 1] = (0.1 * f(m * speed * days) for f in (math.cos, math.sin))
    assert abs(m * speed * days) > 0.5
    assert_close(after, SCALE * transform.to_fields(waves)[0], rtol=0, atol=1e-7 * SCALE)


def test_a_function_of_q_alone_is_not_carried():
    """J(psi, q) is zero where q is psi times a number: waves of one degree, without the Earth's rotation."""
    flow = SphereQG(deformation_radius=2.0e6)._flow(DOUBLE)
    waves = torch.zeros(44, 21, 1, 1, dtype=torch.float64)
    waves[:11, 8] = torch.randn(11, 1, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    space = Workspace(waves)
    along_lon, along_lat, q = flow.gradients(waves, space)
    times_q = multiplier(q, space)
    change = flow.divergence(times_q("one", along_lon), times_q("other", along_lat), space)
    assert float(q.abs().max()) > 100
    assert_close(change, torch.zeros_like(change), rtol=0, atol=1e-10)


def test_gradients_are_derivatives_on_the_grid():
    """Along a circle those of a Fourier series; both together have the energy of the harmonics."""
    flow = MODEL._flow(DOUBLE)
    x = states(1)
    waves = flow.harmonics.to_coefficients(x / SCALE)[..., None]
    along_lon, along_lat, q = (
        flow.harmonics.from_halves(one[..., 0])[0] for one in flow.gradients(waves, Workspace(waves))
    )
    psi = flow.harmonics.to_fields(waves[..., 0])[0]
    m = torch.arange(33, dtype=torch.float64)
    assert_close(along_lon, torch.fft.irfft(1j * m * torch.fft.rfft(psi), 64), rtol=0, atol=1e-10)
    cosine = flow.harmonics.cosine[:, None]
    # The wind has no divergence, and its energy is that of the harmonics.
    energy = ((along_lon / cosine).square() + (along_lat / cosine).square()).mul(point_share(MODEL)).sum()
    assert_close(energy, (flow.laplacian * waves[..., 0].square()).sum())
    assert_close((q * psi * point_share(MODEL)).sum(), invariants(MODEL, x)[0][0].neg())


@pytest.mark.parametrize("truncation", [21, 42])
def test_what_flow_carries_is_conserved(truncation):
    """Energy and squared q keep their rate of change zero, mountains or not; so does the mean of psi and of q."""
    model = SphereQG(truncation, deformation_radius=1.0e6, mountain_height=3000.0, **FREE)
    x = states(2, model=model)
    before = torch.stack(invariants(model, x))
    change = model.tendency(x)
    h = 1e-3
    rate = (torch.stack(invariants(model, x + h * change)) - torch.stack(invariants(model, x - h * change))) / (2 * h)
    assert_close(rate / before, torch.zeros_like(rate), rtol=0, atol=1e-10)
    assert_close(
        (change * point_share(model)).sum((1, 2)) / change.abs().amax(), torch.zeros(2).double(), atol=1e-13, rtol=0
    )


def test_drift_of_energy_falls_with_the_step():
    """The scheme is of fourth order: what it loses falls by 2^4 or more for half the step."""

    def drift(steps):
        model = SphereQG(timestep=1.0 / steps, jet_speed=300.0, **FREE)
        energy, enstrophy = zip(*(invariants(model, x) for x in (start, model.advance(start, steps))), strict=True)
        return [float((one[1] / one[0] - 1).abs().max()) for one in (energy, enstrophy)]

    start = states(2)
    drifts = np.array([drift(steps) for steps in (24, 48)])
    assert drifts[1].max() < 1e-5
    assert (drifts[0] / drifts[1] > 16).all()


def test_a_turn_about_the_axis_commutes_with_flat_flow():
    flat, x = SphereQG(mountain_height=0.0), states(2)
    turned = flat.advance(x.roll(5, -1), 6)
    assert_close(turned, flat.advance(x, 6).roll(5, -1), rtol=0, atol=1e-12 * SCALE)
    mirrored = flat.advance(-x.flip(-2), 6)  # the hemispheres exchanged
    assert_close(mirrored, -flat.advance(x, 6).flip(-2), rtol=0, atol=1e-12 * SCALE)
    assert float((MODEL.advance(x.roll(5, -1), 6) - MODEL.advance(x, 6).roll(5, -1)).abs().max()) > 1e-4 * SCALE


def test_a_zonal_flow_goes_to_the_jet():
    """Relaxation alone takes the zonal wind to the jet, in latitude 40 at its speed."""
    model = SphereQG(jet_speed=20.0, jet_width=10.0, relaxation=0.5, drag=None, diffusion=None, mountain_height=0.0)
    psi = model.advance(torch.zeros(model.shape, dtype=torch.float64), 48 * 20)
    assert float(psi.std(-1).max()) < 1e-9 * SCALE  # no waves without a mountain
    flow = model._flow(DOUBLE)
    waves = flow.harmonics.to_coefficients(psi[None] / SCALE)[..., None]
    wind = (
        -flow.harmonics.from_halves(flow.gradients(waves, Workspace(waves))[1][..., 0])[0, :, 0] / flow.harmonics.cosine
    )
    latitude = torch.tensor(model.coordinates["lat"].values)
    jet = 20.0 * (-0.5 * ((latitude.abs() - 40.0) / 10.0) ** 2).exp()
    assert_close(wind * RADIUS / 86_400, jet.double(), rtol=0, atol=0.5)


@pytest.mark.parametrize(("which", "rate"), [("drag", 1.0), ("diffusion", (56 / 462) ** 4)])
def test_a_small_wave_decays_by_its_own_rate(which, rate):
    """In 2 days, of degree 7 in barotropic flow; drag and diffusion have a time of 1 day."""
    parameters = {**FREE, which: 1.0}
    model = SphereQG(deformation_radius=None, mountain_height=0.0, **parameters)
    transform = model._flow(DOUBLE).harmonics
    waves = torch.zeros(44, 21, 1, dtype=torch.float64)
    waves[4, 6] = 1e-6  # m = 4
    after = transform.to_coefficients(model.advance(SCALE * transform.to_fields(waves), 96) / SCALE)
    assert_close(after.norm(), torch.tensor(1e-6 * math.exp(-2.0 * rate)).double(), rtol=1e-6, atol=0)


def test_steps_leave_out_what_the_harmonics_do_not_hold():
    x, rough = states(2), noise(2, seed=5) * 1e-3 * SCALE
    transform = MODEL._flow(x).harmonics
    resolved = transform.to_fields(transform.to_coefficients(x + rough))
    assert_close(MODEL.advance(x + rough, 3), MODEL.advance(resolved, 3))
    assert float((MODEL.advance(x + 1.0e8, 3) - MODEL.advance(x, 3)).abs().max()) < 1e-2  # a constant
    assert MODEL.advance(x + rough, 0).equal(x + rough)


@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (0,), (33,)])
def test_leading_axes_are_a_batch(shape):
    x = states(*shape) if math.prod(shape) else noise(*shape)
    alone = [MODEL.step(MODEL.step(state)) for state in x.reshape(-1, *MODEL.shape)]
    after = MODEL.advance(x, 2)
    assert after.shape == x.shape
    if alone:
        assert_close(after, torch.stack(alone).reshape(x.shape), rtol=0, atol=1e-12 * SCALE)


def test_single_precision_is_double_rounded():
    x = states(3)
    assert_close(MODEL.advance(x.float(), 8).double(), MODEL.advance(x, 8), rtol=0, atol=1e-5 * SCALE)


def test_constants_follow_the_states_to_another_device():
    """The device "meta" computes nothing, and refuses tensors of the CPU."""
    x = torch.empty(2, *MODEL.shape, device="meta")
    assert MODEL.advance(MODEL.rest(x), 2).device.type == "meta"
    after, pushed = MODEL.advance_along(x, x[:, None].expand(-1, 40, -1, -1), 1)
    assert (after.shape, pushed.shape) == ((2, *MODEL.shape), (2, 40, *MODEL.shape))


def test_tangent_linear_model_is_the_derivative():
    x, directions = states(2), noise(2, 3, seed=1) * SCALE
    after, pushed = MODEL.advance_along(x, directions, 3)
    assert_close(after, MODEL.advance(x, 3), rtol=0, atol=1e-12 * SCALE)
    assert_close(pushed, Dynamics.advance_along(MODEL, x, directions, 3)[1], rtol=0, atol=1e-11 * SCALE)
    h = 1e-5
    ahead, behind = (MODEL.advance(x + s * h * directions[:, 0], 3) for s in (1, -1))
    assert_close(pushed[:, 0], (ahead - behind) / (2 * h), rtol=0, atol=1e-6 * SCALE)
    many = noise(1, 40, seed=2)  # more than go in one pass
    one = MODEL.advance_along(x[:1], many[:, 35:36], 2)[1]
    assert_close(MODEL.advance_along(x[:1], many, 2)[1][:, 35:36], one)


def test_the_way_back_is_the_adjoint():
    """<M v, w> = <v, M^T w> over 8 steps."""
    x, v, w = states(2), noise(2, seed=3), noise(2, seed=4)
    _, ahead = MODEL.advance_along(x, v[:, None], 8)
    leaf = x.clone().requires_grad_()
    (back,) = torch.autograd.grad(MODEL.advance(leaf, 8), leaf, w)
    assert_close((ahead[:, 0] * w).sum((1, 2)), (v * back).sum((1, 2)), rtol=1e-10, atol=0)


def test_transforms_agree():
    x = states(2)
    assert_close(vmap(MODEL.step)(x), MODEL.step(x))
    direction = noise(seed=7)

    def along(s):
        return MODEL.step(x[0] + s * direction)

    _, pushed = MODEL.advance_along(x[:1], direction[None, None], 1)
    assert_close(jacfwd(along)(DOUBLE), pushed[0, 0], rtol=0, atol=1e-9)


def test_derivatives_follow_a_first_step_in_inference_mode():
    model, x = SphereQG(deformation_radius=2.5e6), states(1).float()
    with torch.inference_mode():
        model.step(x)  # makes the matrices of this model in single precision
    leaf = x.requires_grad_()
    model.step(leaf).sum().backward()
    assert leaf.grad.isfinite().all()


def test_starts_are_near_the_jet_and_grow_waves():
    start = MODEL.rest(noise(3).float())
    assert start.dtype == torch.float32
    assert float((start * point_share(MODEL)).sum((1, 2)).abs().max()) < 1e-5 * SCALE
    later = MODEL.advance(start, 48 * 8)
    eddies = [(x - x.mean(-1, keepdim=True)).std() for x in (start, later)]
    assert eddies[1] > 2 * eddies[0]
    quiet = SphereQG(**FREE).rest(noise(2))
    assert 0 < float(quiet.abs().max()) < 0.1 * SCALE


@pytest.mark.slow
def test_flow_is_chaotic():
    x = MODEL.climatology(range(8), 0)[:, 0].flatten(1)
    vectors = orthonormal_directions(torch.arange(8), 0, 1, 32 * 64).to(x)
    exponents, _ = spectrum(MODEL, x, vectors, between=24, spin_up=20, repeats=120)
    assert float(exponents.mean()) > 0.1


def test_labels_inputs_and_json():
    model = SphereQG(42, jet_speed=90.0, drag=None, deformation_radius=None, timestep=1.0 / 96)
    assert (model.dims, model.shape, model.units) == (("lat", "lon"), (64, 128), "m2 s-1")
    assert dynamics_from_json(dynamics_to_json(model)) == model != SphereQG(42)
    assert model.time_unit == np.timedelta64(1, "D")
    assert (model.steps_in(0.25), MODEL.steps_in(1.0)) == (24, 48)
    sine, orography = model.space.inputs
    assert_close(sine.values[:, 0], torch.deg2rad(torch.tensor(model.coordinates["lat"].values).double()).sin())
    assert 0.9 < float(orography.values.max()) <= 1.01
    highest = divmod(int(orography.values.argmax()), 128)
    assert model.coordinates["lon"].values[highest[1]] in (90.0, 255.9375, 253.125, 255.0)
    assert model.space["psi"].conserved


def test_a_fingerprint_knows_the_flow_and_not_its_rounding(monkeypatch):
    known = MODEL.fingerprint()
    assert known.shape == (2, *MODEL.shape)
    assert not SphereQG(drag=4.0).fingerprint().equal(known)
    exact = SphereQG.step
    monkeypatch.setattr(SphereQG, "step", lambda self, x: exact(self, x) * (1 + 1e-14))
    assert MODEL.fingerprint().equal(known)


def test_there_is_no_way_back_in_time():
    with pytest.raises(ValueError, match="'sphere-qg' cannot be integrated backward"):
        MODEL.retreat(states(1), 1)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"truncation": 31}, ValueError, r"truncation=31: expected one of \[21, 42\]"),
        ({"truncation": 21.0}, TypeError, "truncation=21.0: expected an integer"),
        ({"jet_latitude": 90.0}, ValueError, "jet_latitude=90: expected a finite number, above 0 and below 90"),
        ({"jet_width": 0.0}, ValueError, "jet_width=0: expected a finite number, above 0"),
        ({"drag": 0.0}, ValueError, "drag=0: expected a finite number, at least 0.0208333"),
        ({"diffusion": math.inf}, ValueError, "diffusion=inf: expected a finite number"),
        ({"deformation_radius": -1.0}, ValueError, "deformation_radius=-1: expected a finite number, above 0"),
        (
            {"mountain_height": 2e4},
            ValueError,
            "mountain_height=20000: expected a finite number, at least 0 and at most",
        ),
        ({"timestep": 0.1}, ValueError, "timestep=0.1: expected a finite number, above 0 and at most 0.0416667"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters, error, message):
    with pytest.raises(error, match=message):
        SphereQG(**parameters)
