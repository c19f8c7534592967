"""Symmetries of experiments and networks."""

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import xdan
from xdan.core.networks import AnalysisNetwork, ResidualCNN, register_network
from xdan.core.networks.registry import _NETWORKS
from xdan.network import Network


def twin(**options):
    model = options.pop("model", xdan.Lorenz96(sites=12))
    return xdan.twin(model, cycles=3, **options)


def lopsided(x):
    return x.roll(1, -1) - x * torch.arange(1.0, 13.0, dtype=x.dtype)


def on_sphere(x):
    """Advection along the parallels, whose speed depends on the latitude."""
    speed = torch.arange(1.0, 4.0, dtype=x.dtype)[:, None]
    return speed * (x.roll(1, -1) - x.roll(-1, -1))


def heat(x):
    return x.roll(1, -1) + x.roll(-1, -1) - 2 * x


def heat_on_plane(x):
    return heat(x) + heat(x.mT).mT - x**3


def two_scales(fields):
    """Four slow sites, each with three fast ones; the fast ones are advected."""
    slow, fast = fields["X"], fields["Y"]
    up = fast.unflatten(-1, (4, 3)).sum(-1)
    advected = fast.roll(-1, -1) * (fast.roll(1, -1) - fast.roll(-2, -1))
    return {"X": heat(slow) - up - slow, "Y": advected - fast + slow.repeat_interleave(3, -1)}


def waves(fields):
    h, u = fields["h"], fields["u"]
    return {"h": u.roll(1, -1) - u.roll(-1, -1), "u": h.roll(1, -1) - h.roll(-1, -1)}


def model_of(tendency, state):
    return xdan.CustomDynamics(tendency, state=state, timestep=0.05, spin_up_time=0.0)


SCALES = [
    xdan.Field("X", xdan.Ring(4, length=1.0)),
    xdan.Field("Y", xdan.Ring(12, length=1.0, dim="fast")),
]
WAVES = [xdan.Field("h", xdan.Ring(6)), xdan.Field("u", xdan.Ring(6))]


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"model": model_of(heat, xdan.Ring(12))}, 24),
        ({"model": model_of(heat, xdan.Ring(12)), "observe": xdan.Sites.every(2, 1)}, 12),
        ({"model": model_of(heat, xdan.Ring(12)), "error_std": [1.0, 2.0, 3.0, 4.0] * 3}, 3),
        ({"model": model_of(heat_on_plane, xdan.Plane((4, 4)))}, 128),
        ({"model": model_of(heat_on_plane, xdan.Plane((4, 4))), "observe": xdan.Sites.every(2)}, 32),
        ({"model": model_of(lambda x: -(x**3), xdan.Interval(5))}, 2),
        ({"model": model_of(lambda x: x.sum(-1, keepdim=True) - x**3, xdan.Components(4))}, 24),
        ({"model": xdan.Lorenz63()}, 1),
        ({"model": model_of(two_scales, SCALES)}, 4),
        ({"model": model_of(waves, WAVES)}, 12),
        ({"model": model_of(waves, WAVES), "error_std": np.r_[np.ones(6), np.full(6, 2.0)]}, 6),
    ],
)
def test_group_of_models_on_every_geometry(options, size):
    group = xdan.symmetry_group(twin(interval=0.05, **options), dynamics=options["model"])
    assert len(group) == size, group


ROW_OPERATOR = np.eye(12)[::3]
MIXING = np.random.default_rng(0).normal(size=(5, 12))


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 12),
        ({"observe": xdan.Sites.every(2)}, 6),
        ({"observe": xdan.Sites.every(3, 1)}, 4),
        ({"observe": xdan.Sites.random(2, 9)}, 12),
        ({"error_std": [1.0, 2.0] * 6}, 6),
        ({"error_std": np.array([[1.0], [2.0], [3.0]]) * np.ones(12)}, 12),
        ({"error_covariance": 2.0 * np.eye(12)}, 12),
        ({"error_covariance": np.diag([1.0, 2.0, 3.0, 4.0] * 3)}, 3),
        ({"operator": ROW_OPERATOR}, 4),
        ({"operator": MIXING}, 1),
        ({"model": xdan.Lorenz96(sites=12, forcing=[8.0] * 6 + [4.0] * 6)}, 1),
        ({"model": xdan.Lorenz96(sites=12, forcing=[8.0, 4.0, 4.0] * 4)}, 4),
        ({"model": xdan.CustomDynamics(lopsided, state={"x": 12}, timestep=0.01)}, 1),
        ({"model": xdan.CustomDynamics(lambda x: -x, state={"lat": 3, "lon": 4}, timestep=0.1), "interval": 0.1}, 12),
        ({"model": xdan.CustomDynamics(on_sphere, state={"lat": 3, "lon": 4}, timestep=0.1), "interval": 0.1}, 4),
    ],
)
def test_group_that_an_experiment_allows(options, size):
    group = xdan.symmetry_group(twin(**options), dynamics=options.get("model"))
    assert len(group) == size, group


def test_group_of_a_record_without_a_rule():
    ds = twin().compute()
    bare = ds.assign(observation=ds.observation.where(ds.x % 4 == 0))
    del bare.attrs["observing"], bare.attrs["xdan_digest"]
    assert len(xdan.symmetry_group(bare)) == 3
    patchy = bare.assign(observation=bare.observation.where((ds.time > 0) | (ds.x > 3)))
    with pytest.raises(ValueError, match="pass group="):
        xdan.symmetry_group(patchy)


@pytest.fixture(scope="module")
def lopsided_network():
    """A network that knows where it is: it commutes with no turn of the ring."""

    @register_network
    class Lopsided(AnalysisNetwork):
        name = "lopsided-toy"

        def config(self):
            return {}

        def forward(self, x, zeta, memory=None):
            weight = torch.linspace(-1.0, 1.0, x.shape[-1], dtype=x.dtype, device=x.device)
            return x + 0.1 * zeta * torch.sin(weight * x.roll(1, -1)), None

    yield Network.from_module(Lopsided(), ("x",), {})
    del _NETWORKS._classes["lopsided-toy"]


@pytest.fixture(scope="module")
def circular():
    torch.manual_seed(0)
    return Network.from_module(ResidualCNN(filters=4, blocks=1, kernel=3, memory=1).double(), ("x",), {})


def test_equivariance_error(circular, lopsided_network):
    ds = twin(trajectories=8, dtype="float64").compute()
    exact = ds.dan.equivariance_error(circular)
    assert exact.sizes["element"] == 12
    assert float(exact.max()) < 1e-10
    broken = ds.dan.equivariance_error(lopsided_network, elements=4)
    assert float(broken.sel(element=0)) == 0.0
    assert float(broken.isel(element=slice(1, None)).min()) > 0.3
    # The same, with the tensors formed.
    gamma = ds.dan.gain(lopsided_network, kind="marginal").values.reshape(-1, 12, 12, 12)
    turned = ds.assign(truth=ds.truth.roll(x=-1, roll_coords=False))  # (g x)_i = x_{i + 1}
    at_turned = turned.dan.gain(lopsided_network, kind="marginal").values.reshape(-1, 12, 12, 12)
    difference = at_turned - np.roll(gamma, -1, axis=(1, 2, 3))
    expected = np.sqrt((difference**2).sum() / (gamma**2).sum())
    many = [float(ds.dan.equivariance_error(lopsided_network, seed=seed).sel(element=1)) for seed in range(12)]
    assert np.sqrt(np.mean(np.square(many))) == pytest.approx(expected, rel=0.1)


def test_network_without_the_symmetry_is_averaged_over_all_sites(lopsided_network):
    ds = twin(dtype="float64").compute()
    gamma = ds.dan.gain(lopsided_network, kind="marginal", dim=["trajectory", "time"]).values
    average = ds.dan.gain(lopsided_network, reference=2).values
    turns = [np.roll(gamma, 2 - site, axis=(0, 1))[:, :, site] for site in range(12)]
    np.testing.assert_allclose(average, np.mean(turns, 0), rtol=0, atol=1e-12)
    unaveraged = ds.dan.gain(lopsided_network, reference=2, group=xdan.Group.trivial(12)).values
    np.testing.assert_allclose(unaveraged, gamma[:, :, 2], rtol=0, atol=1e-12)


def test_mean_gain_from_one_average_for_each_orbit(circular):
    ds = twin(observe=xdan.Sites.every(2), dtype="float64").compute()
    group = ds.dan.symmetry_group()
    averages = [ds.dan.gain(circular, reference=r, all_sites=True) for r in (4, 5)]
    rebuilt = xdan.reconstruct_gain(*averages, group=group)
    assert rebuilt.dims == ("i", "j", "l")
    gamma = ds.dan.gain(circular, kind="marginal", dim=["trajectory", "time"])
    mean = np.mean([gamma.roll(i=-s, j=-s, l=-s, roll_coords=False).values for s in range(0, 12, 2)], 0)
    np.testing.assert_allclose(rebuilt, mean, rtol=0, atol=1e-12)
    assert "reference" not in rebuilt.attrs
    with pytest.raises(ValueError, match="reference=1 too"):
        xdan.reconstruct_gain(averages[0], group=group)
    with pytest.raises(ValueError, match=r"group differs: .*turns of the ring by 1.*turns of the ring by 2"):
        xdan.reconstruct_gain(*averages, group=xdan.Group.ring(12))
    fewer = ds.isel(time=slice(1)).dan.gain(circular, reference=5, all_sites=True)
    with pytest.raises(ValueError, match="states differs"):
        xdan.reconstruct_gain(averages[0], fewer, group=group)
    with pytest.raises(ValueError, match="no symmetry average"):
        xdan.reconstruct_gain(gamma, group=group)


def test_extent_of_a_pattern_that_is_known(circular):
    ds = twin(dtype="float64").compute()
    omega = ds.dan.gain(circular, reference=6)
    known = np.zeros((12, 12))
    known[6, 6], known[5, 6], known[6, 9], known[2, 6] = 8.0, -1.0, 0.5, 0.5
    extent = xdan.pattern_extent(omega.copy(data=known), share=0.94)
    assert dict(zip(extent.distance.values, extent.mass.values, strict=True)) == {
        0.0: 0.8, 1.0: 0.1, 2.0: 0.0, 3.0: 0.05, 4.0: 0.05, 5.0: 0.0, 6.0: 0.0
    }  # fmt: skip
    assert float(extent.radius) == 3.0
    np.testing.assert_allclose(extent.largest[:2], [8.0, 1.0])
    real = xdan.pattern_extent(omega)
    assert float(real.mass.sum()) == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"share=1\.5: expected a finite number, above 0 and below 1"):
        xdan.pattern_extent(omega, share=1.5)


def test_wrong_group_is_refused(circular):
    with pytest.raises(ValueError, match="expected one on the state's 12 sites"):
        twin().dan.equivariance_error(circular, group=xdan.Group.ring(6))
    assert isinstance(twin().dan.equivariance_error(circular), xr.DataArray)


def test_what_is_observed_is_what_is_not_nan(model):
    """An attribute of the record that was masked since says otherwise."""
    ds = xdan.twin(model, cycles=12, trajectories=2, seed=0).compute()
    masked = ds.assign(observation=ds.observation.where(ds.x % 2 == 0))
    assert len(ds.dan.symmetry_group()) == 8
    assert len(masked.dan.symmetry_group()) == 4


def test_errors_of_an_operator_that_change_in_time(model):
    std = np.ones((12, 8))
    std[5:, ::2] = 2.0
    changing = xr.DataArray(std, dims=("time", "obs"))
    ds = xdan.twin(model, cycles=12, trajectories=2, operator=np.eye(8), error_std=changing)
    assert len(ds.dan.symmetry_group()) == 4


GEOMETRIES = [
    xdan.Ring(3, length=2.0),
    xdan.Ring(6, length=2.0, dim="fine"),
    xdan.Interval(3, dim="z"),
    xdan.Plane((2, 3), dims=("a", "b")),
    xdan.Sphere(2, 4),
    xdan.Components(3),
]


def coupling(space):
    """A matrix of the distances between points, ones where there are none: every motion of the space leaves it."""
    matrix = torch.zeros(space.size, space.size, dtype=torch.float64)
    for one in space:
        for other in space:
            if other.geometry.meets(one.geometry):
                places = one.geometry.positions()
                apart = torch.zeros(()) if places is None else other.geometry.distances(places)
                matrix[space.slices[one.name], space.slices[other.name]] = torch.exp(-0.1 * apart**2).double()
    return matrix


@pytest.fixture(scope="module")
def coupled():
    """A network that knows of the points only how far they are apart."""

    @register_network
    class Coupled(AnalysisNetwork):
        name = "coupled-toy"

        def __init__(self, described=None):
            super().__init__()
            self.described = described
            self.matrix = coupling(xdan.StateSpace.from_json(described)) if described else torch.zeros(1, 1)

        def forward(self, x, zeta, memory=None):
            matrix = self.matrix.to(x)
            return x + torch.tanh(x @ matrix) * (zeta @ matrix), None

    yield Coupled
    del _NETWORKS._classes["coupled-toy"]


@settings(max_examples=6)
@given(
    geometries=st.lists(st.sampled_from(GEOMETRIES), min_size=1, max_size=3),
    rates=st.lists(st.sampled_from([1.0, 2.0]), min_size=3, max_size=3),
    odd_site=st.booleans(),
)
def test_gains_are_equivariant_to_the_group_of_one_to_three_fields(coupled, geometries, rates, odd_site):
    space = xdan.StateSpace([xdan.Field(f"f{k}", one) for k, one in enumerate(geometries)])
    matrix = coupling(space)
    rate = torch.cat([torch.full((f.geometry.size,), r) for f, r in zip(space, rates, strict=False)]).double()
    if odd_site:
        rate[-1] = 3.0

    def tendency(x):
        flat = x if space.single is None else x.flatten(1)
        flat = space.pack(x) if isinstance(x, dict) else flat
        change = 0.1 * flat @ matrix.to(flat) - rate.to(flat) * flat**3
        return space.unpack(change) if isinstance(x, dict) else change.reshape(x.shape)

    model = xdan.CustomDynamics(tendency, state=space, timestep=0.01, spin_up_time=0.0)
    ds = xdan.twin(model, interval=0.01, cycles=1, trajectories=1, dtype="float64").compute()
    group = ds.dan.symmetry_group(dynamics=model)
    whole = {tuple(g.tolist()) for g in space.symmetries().values() if torch.equal(rate[g], rate)}
    assert whole <= {tuple(group.permutation(k).tolist()) for k in range(len(group))}
    net = Network.from_module(coupled(space.to_json()).double(), model.dims, {})
    error = ds.dan.equivariance_error(net, group=group, elements=4, dynamics=model)
    assert float(error.max()) < 1e-12
