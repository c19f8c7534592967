"""Gains and marginal gains as labelled, lazy arrays."""

import dask
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import xdan
from xdan.core.networks import AnalysisNetwork, ResidualCNN, register_network
from xdan.core.networks.registry import _NETWORKS
from xdan.core.sensitivity import Points, analysis_covariance, whole_marginal_gain
from xdan.core.symmetry import symmetry_average
from xdan.network import Network

SITES = 7


@pytest.fixture(scope="module")
def circular():
    torch.manual_seed(3)
    net = ResidualCNN(filters=4, blocks=2, kernel=3).double().eval()
    with torch.no_grad():
        for weight in net.weights:
            weight.mul_(3)
    return Network.from_module(net, ("x",), {})


@pytest.fixture(scope="module")
def ds():
    model = xdan.Lorenz96(sites=SITES)
    return xdan.twin(model, cycles=6, trajectories=3, dtype="float64").compute(scheduler="synchronous")


@pytest.fixture(scope="module")
def toy():
    """a_i = sum_jl T[i, j, l] zeta_j x_l, whose marginal gain is T; it commutes with no turn of the ring."""

    @register_network
    class Bilinear(AnalysisNetwork):
        name = "bilinear-toy"

        def __init__(self, sites=SITES):
            super().__init__()
            self.register_buffer("tensor", torch.zeros(sites, sites, sites))

        def config(self):
            return {"sites": len(self.tensor)}

        def forward(self, x, zeta, memory=None):
            return x + torch.einsum("ijl,bj,bl->bi", self.tensor, zeta, x), None

    net = Bilinear().double()
    torch.manual_seed(5)
    net.tensor.copy_(0.01 * torch.randn(SITES, SITES, SITES))  # a run stays bounded
    yield Network.from_module(net, ("x",), {})
    del _NETWORKS._classes["bilinear-toy"]


def at_zero(x):
    """States without innovation."""
    return Points(x, torch.zeros_like(x))


def states(ds):
    return torch.from_numpy(ds.truth.values).flatten(0, 1)


def test_every_road_returns_the_toy_tensor(ds, toy):
    tensor = toy.arrays["tensor"]
    gamma = ds.dan.gain(toy, kind="marginal")
    assert gamma.dims == ("trajectory", "time", "i", "j", "l")
    np.testing.assert_allclose(gamma.values, np.broadcast_to(tensor, gamma.shape), rtol=0, atol=1e-10)
    composite = ds.dan.gain(toy, kind="marginal", method="regression", samples=20)
    np.testing.assert_allclose(composite.values, gamma.values, rtol=0, atol=1e-8)  # exactly bilinear
    for innovation in ("sampled", "run"):
        run = ds.dan.cycle(toy) if innovation == "run" else None
        gain = ds.dan.gain(toy, kind="marginal", innovation=innovation, run=run, dim=["trajectory", "time"], every=3)
        np.testing.assert_allclose(gain.values, tensor, rtol=0, atol=1e-10)
    omega = ds.dan.gain(toy, reference=2)
    expected = symmetry_average(torch.from_numpy(tensor.copy()), xdan.Group.ring(SITES), 2)
    np.testing.assert_allclose(omega.values, expected, rtol=0, atol=1e-10)


def test_covariance_and_gain_are_derivatives_at_the_states(ds, circular):
    covariance = ds.dan.gain(circular, kind="covariance")
    expected = analysis_covariance(circular.module(torch.float64), at_zero(states(ds))).detach()
    np.testing.assert_allclose(covariance.values.reshape(-1, SITES, SITES), expected, rtol=0, atol=1e-12)
    assert covariance.dims == ("trajectory", "time", "i", "j")
    xr.testing.assert_equal(covariance.time, ds.time)
    noisy = xdan.twin(xdan.Lorenz96(sites=SITES), cycles=2, error_std=2.0, dtype="float64")
    noisy = noisy.assign(observation=noisy.observation.where(noisy.x != 3)).compute()
    kalman = noisy.dan.gain(circular, kind="kalman", group=None)
    expected = noisy.dan.gain(circular, kind="covariance").values / 4.0
    expected[..., 3] = 0.0
    np.testing.assert_allclose(kalman.values, expected, rtol=0, atol=1e-12)


def test_gain_with_an_operator_has_the_observations_dim(circular, toy):
    matrix = np.random.default_rng(0).normal(size=(3, SITES))
    ds = xdan.twin(xdan.Lorenz96(sites=SITES), cycles=2, operator=matrix, error_std=0.5, dtype="float64").compute()
    kalman, covariance = (ds.dan.gain(circular, kind=kind) for kind in ("kalman", "covariance"))
    assert kalman.dims == ("trajectory", "time", "i", "obs")
    np.testing.assert_allclose(kalman.values, covariance.values @ matrix.T / 0.25, rtol=0, atol=1e-12)
    # Samples lie in the three directions that are seen, and the toy is linear in them: no sampling error.
    exact, regressed = (ds.dan.gain(toy, kind="kalman", method=method) for method in ("autodiff", "regression"))
    np.testing.assert_allclose(regressed.values, exact.values, rtol=0, atol=1e-9)


def test_one_site_and_all_agree_where_states_are_turned(ds, circular):
    whole = symmetry_average(
        whole_marginal_gain(circular.module(torch.float64), at_zero(states(ds))), xdan.Group.ring(SITES), 3
    ).mean(0)
    every = ds.dan.gain(circular, all_sites=True, reference=3)
    np.testing.assert_allclose(every.values, whole.detach(), rtol=0, atol=1e-10)
    turns = [ds.assign(truth=ds.truth.roll(x=k, roll_coords=False)) for k in range(SITES)]
    one = sum(turn.dan.gain(circular, reference=3).values for turn in turns) / SITES
    np.testing.assert_allclose(one, whole.detach(), rtol=0, atol=1e-10)


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 3))
def test_any_chunks_give_the_same_averages(ds, circular, rows, columns, every):
    cut = ds.chunk(trajectory=rows, time=columns)
    for settings in (
        {"innovation": "sampled"},
        {"method": "regression", "samples": 9},
        {"dim": "time"},
        {"kind": "covariance", "dim": "trajectory"},
    ):
        whole = ds.dan.gain(circular, every=every, **settings)
        gain = cut.dan.gain(circular, every=every, **settings)
        np.testing.assert_allclose(gain.values, whole.values, rtol=0, atol=1e-12)
        xr.testing.assert_equal(gain.coords.to_dataset(), whole.coords.to_dataset())


def test_partial_averages_make_the_whole_one(ds, circular):
    whole = ds.dan.gain(circular)
    by_run, by_state = ds.dan.gain(circular, dim="time"), ds.dan.gain(circular, dim=[])
    assert by_run.dims == ("trajectory", "i", "j")
    assert by_state.dims == ("trajectory", "time", "i", "j")
    np.testing.assert_allclose(by_run.mean("trajectory"), whole, rtol=0, atol=1e-12)
    np.testing.assert_allclose(by_state.mean(["trajectory", "time"]), whole, rtol=0, atol=1e-12)


def test_nothing_is_computed_or_read_before_it_is_asked(ds, circular, computed, untouchable):
    lazy = untouchable(ds, "truth", "observation")
    run = xdan.cycle(ds, circular)
    calls = computed.calls
    for kind in ("mean", "marginal", "covariance", "kalman"):
        gain = lazy.dan.gain(circular, kind=kind)
        assert gain.chunks is not None
    assert lazy.dan.gain(circular, run=run, innovation="run").chunks is not None
    assert computed.calls == calls


def test_threads_and_one_thread_agree(ds, circular):
    lazy = ds.chunk(trajectory=1, time=2).dan.gain(circular, innovation="sampled")
    with dask.config.set(scheduler="threads"):
        threads = lazy.values
    np.testing.assert_allclose(threads, lazy.values, rtol=0, atol=1e-12)


def test_run_brings_its_forecasts_innovations_and_memory(twin, net):
    run = twin.dan.cycle(net, members=True)
    assert run.memory.dims == ("trajectory", "time", "channel", "x")
    covariance = twin.dan.gain(net, kind="covariance", run=run, innovation="run").isel(trajectory=1, time=9)
    place = {"trajectory": 1, "time": 9}
    x, y, m = (
        torch.from_numpy(variable.isel(place).values)[None] for variable in (run.forecast, twin.observation, run.memory)
    )
    module = net.module(torch.float64)
    expected = analysis_covariance(module, Points(x, y - x, m))[0].detach()
    np.testing.assert_allclose(covariance.values, expected, rtol=0, atol=1e-12)
    # What the analysis read is what was kept.
    analysis = module(x, y - x, m)[0].detach()[0]
    np.testing.assert_allclose(run.analysis.isel(place), analysis, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="lacks the network's memory"):
        twin.dan.gain(net, run=run.drop_vars("memory"))


def test_record_without_trajectories(ds, circular):
    bare = ds.isel(trajectory=0, drop=True)
    assert bare.dan.gain(circular, kind="covariance").dims == ("time", "i", "j")
    np.testing.assert_allclose(bare.dan.gain(circular), ds.isel(trajectory=[0]).dan.gain(circular), atol=1e-12)


def test_states_of_two_dims_are_numbered(toy):
    grid = xdan.CustomDynamics(lambda x: -x, state={"lat": 1, "lon": [0.0, *range(10, 70, 10)]}, timestep=0.1)
    ds = xdan.twin(grid, interval=0.1, cycles=2, dtype="float64").compute()
    plane = Network({**toy.description, "state_dims": ["lat", "lon"]}, toy.arrays)
    gamma = ds.dan.gain(plane, kind="marginal", dynamics=grid)
    assert gamma.sizes["i"] == SITES
    np.testing.assert_array_equal(gamma.i_lon, gamma.l_lon)
    np.testing.assert_array_equal(gamma.i_lon, [0.0, *range(10, 70, 10)])


def test_attributes_tell_results_apart(ds, circular):
    """Of two stored gains it is known at which states, at which innovations and with which averages they were taken."""
    run = ds.dan.cycle(circular)
    sampled = {"innovation": "sampled"}
    several = [
        {},
        {"every": 2},
        {"burn_in": 1},
        {"run": run},
        {"run": run, "innovation": "run"},
        {"all_sites": True},
        {"reference": 1},
        sampled,
        {**sampled, "seed": 1},
        {**sampled, "forecast_error": 0.2},
        {"method": "regression", "samples": 30},
        {"method": "regression", "samples": 31},
    ]
    told = [tuple(sorted((k, str(v)) for k, v in ds.dan.gain(circular, **s).attrs.items())) for s in several]
    assert len(set(told)) == len(several)


@pytest.mark.slow
def test_large_results_are_lazy_and_say_so(circular):
    ds = xdan.twin(xdan.Lorenz96(sites=SITES), cycles=10_000, trajectories=100)
    with pytest.warns(xdan.XdanWarning, match=r"has 1\.3 GiB"):
        gamma = ds.dan.gain(circular, kind="marginal")
    assert np.prod([max(sizes) for sizes in gamma.chunks]) * 4 <= 2**26


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference": 7}, "expected a site from 0 to 6"),
        ({"kind": "full"}, "kind='full': expected one of"),
        ({"method": "guess"}, "expected one of"),
        ({"dim": "x"}, "expected some of"),
        ({"innovation": "run"}, "run=None: expected the run"),
        ({"innovation": "all"}, "expected one of"),
        ({"method": "regression", "samples": 7}, "at least 8"),
        ({"method": "regression", "innovation": "sampled"}, "about zero"),
        ({"group": xdan.Group.ring(8)}, "expected one on the state's 7 sites"),
        ({"every": 0}, "every=0: expected at least 1"),
        ({"burn_in": 6}, "burn_in=6: expected fewer than the record's 6 cycles"),
        ({"innovation": "sampled", "forecast_error": np.ones(3)}, "expected a standard deviation"),
        ({"innovation": "sampled", "forecast_error": -np.eye(7)}, "not positive definite"),
        ({"innovation": "sampled", "forecast_error": -0.2}, "forecast_error=-0.2: expected a standard deviation, zero"),
        ({"forecast_error": 0.2}, "forecast_error= widens samples; with innovation='zero'"),
        ({"samples": 40}, "samples=40 go with method='regression'"),
        ({"kind": "covariance", "all_sites": True}, r"\['all_sites'\] go with the symmetry average"),
    ],
)
def test_refuses_what_it_cannot_do(ds, circular, settings, message, untouchable):
    with pytest.raises(ValueError, match=message):
        untouchable(ds, "truth").dan.gain(circular, **settings)


def test_refuses_records_that_do_not_fit(ds, circular):
    with pytest.raises(ValueError, match="needs the truth"):
        ds.drop_vars("truth").dan.gain(circular)
    with pytest.raises(TypeError, match="expected a Network"):
        ds.dan.gain(circular.module())
    other = xdan.CustomDynamics(lambda x: -x, state={"y": SITES}, timestep=0.05)
    with pytest.raises(ValueError, match="works on states with dims"):
        ds.rename(x="y").dan.gain(circular, dynamics=other)
    with pytest.raises(ValueError, match="not finite"):
        ds.assign(truth=ds.truth.where(ds.time < 0.2)).dan.gain(circular).compute()


@pytest.mark.slow
def test_two_processes_agree_with_one_thread(ds, circular):
    distributed = pytest.importorskip("distributed")
    lazy = ds.chunk(trajectory=1, time=2).dan.gain(circular, innovation="sampled")
    expected = lazy.values
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
    with cluster, distributed.Client(cluster), dask.config.set(scheduler="distributed"):
        gain = lazy.compute()
    np.testing.assert_allclose(gain, expected, rtol=0, atol=1e-12)
