"""Gains of networks beside a Kalman filter, from a record and a run to labelled arrays."""

import numpy as np
import pytest
import torch
import xarray as xr

import xdan
from xdan.core.guided_analysis import CarriedCovariance
from xdan.core.methods import method_of
from xdan.core.observing import ObservingSystem
from xdan.core.sensitivity import Points, analysis_covariance, increment, marginal_gain
from xdan.diagnostics.evaluation import evaluate
from xdan.diagnostics.evaluation_points import read_points
from xdan.diagnostics.symmetries import commuting
from xdan.network import Network

SITES, PAST = 8, 3
MODEL = xdan.Lorenz96(sites=SITES)
UNIT = ObservingSystem(std=torch.ones((), dtype=torch.float64))


def network(silent=False, **settings):
    torch.manual_seed(2)
    sizes = {"filters": 4, "blocks": 1, "kernel": 3, "memory": 0, "diagonals": 3}
    module = xdan.KalmanCNN(**{**sizes, **settings}).double()
    module.normalise(2.3, 3.6, 1.0)
    with torch.no_grad():
        list(module.cnn.weights)[-1].mul_(0.0 if silent else 20.0)
    return Network.from_module(module, ("x",), {})


@pytest.fixture(scope="module")
def ds():
    return xdan.twin(MODEL, cycles=5, trajectories=2, dtype="float64", seed=3).compute(scheduler="synchronous")


@pytest.fixture(scope="module")
def carried():
    return network(memory=2)


@pytest.fixture(scope="module")
def run(ds, carried):
    return xdan.cycle(ds, carried, members=True)


@pytest.fixture(scope="module")
def rebuilt():
    return network(past=PAST)


def module_and_points(ds, net, x):
    """The network and all states of a record, every site of which is observed."""
    method = net.method(torch.float64).bound(MODEL)
    flat = torch.from_numpy(x.values).flatten(0, 1)
    observed = torch.ones(flat.shape, dtype=torch.bool)
    return method.network, Points(
        flat, torch.zeros_like(flat), None, method.covariance_at(flat, None, observed, UNIT, 1)
    )


def test_a_run_keeps_the_covariance_of_its_analyses(ds, carried, run):
    kept = run.analysis_covariance
    assert kept.dims == ("trajectory", "time", "x_dual", "x")
    assert kept.attrs == {"long_name": "error covariance of the filter's analysis", "units": "1"}
    diagonal = np.diagonal(kept.values, axis1=2, axis2=3)
    np.testing.assert_allclose(np.sqrt(diagonal), run.spread.values, rtol=1e-12)
    np.testing.assert_array_equal(kept.values, kept.values.swapaxes(2, 3))
    assert "analysis_covariance" not in xdan.cycle(ds, carried)
    forgetful = xdan.cycle(ds, network(), members=True)
    assert ("memory" in forgetful, "analysis_covariance" in forgetful) == (False, True)
    with pytest.raises(ValueError, match="neither an ensemble nor a memory nor a covariance"):
        xdan.cycle(ds, network(past=2), members=True)


def test_units_of_a_covariance_are_squared():
    warm = xdan.CustomDynamics(MODEL.tendency, state={"x": SITES}, timestep=0.05, units="K")
    record = xdan.twin(warm, interval=0.05, cycles=2, dtype="float64").compute()
    kept = xdan.cycle(record, network(), members=True, dynamics=warm)
    assert kept.analysis_covariance.attrs["units"] == "(K)2"
    assert record.dan.gain(network(), kind="covariance", run=kept, dynamics=warm).attrs["units"] == "(K)2"


def test_gains_at_forecasts_are_derivatives_of_the_analyses(ds, carried, run):
    """By the observation, with the memory and the covariance that the forecast carried."""
    gains = ds.dan.gain(carried, kind="kalman", run=run, innovation="run").values
    method = method_of(carried.module(torch.float64))
    y = torch.from_numpy(ds.observation.values)
    observed = torch.ones_like(y[:, 0], dtype=torch.bool)
    state = method.start_like(y, (2, SITES))
    for k in range(5):
        if k:
            state = method.forecast(state, MODEL, 1)
            np.testing.assert_allclose(state["x"].detach(), run.forecast[:, k], rtol=0, atol=1e-9)
            for site in (0, 5):
                step = torch.zeros(SITES, dtype=torch.float64)
                step[site] = 1e-5
                high, low = (method.analyse(state, y[:, k] + s * step, observed, UNIT)["x"] for s in (1, -1))
                slope = ((high - low) / 2e-5).detach()
                np.testing.assert_allclose(gains[:, k, :, site], slope, rtol=1e-6, atol=1e-8)
        state = (method.analyse if k else method.first)(state, y[:, k], observed, UNIT)


@pytest.mark.parametrize("past", [0, PAST])
def test_at_the_innovations_of_a_run_the_analyses_are_those_of_the_run(ds, past):
    """With sites that are not observed, other ones at every time."""
    net = network(past=past, memory=2)
    gappy = ds.assign(observation=ds.observation.where((ds.x + 20 * ds.time) % 3 > 0.5))
    kept = xdan.cycle(gappy, net, members=True)
    points = read_points(gappy, net, run=kept, innovation="run", burn_in=1)

    def analysis(network, batch):
        return batch.points.x + increment(network, batch.points)

    values = evaluate(points, analysis, (SITES,), at_once=3)
    np.testing.assert_allclose(values, kept.analysis[:, 1:], rtol=0, atol=1e-10)


def test_marginal_gains_of_a_carried_covariance(ds, carried, run):
    gains = ds.dan.gain(carried, kind="marginal", run=run)
    place = {"trajectory": 1, "time": 3}
    x, memory, covariance = (
        torch.from_numpy(run[name].isel(place).values)[None] for name in ("forecast", "memory", "analysis_covariance")
    )
    points = Points(x, torch.zeros_like(x), memory, CarriedCovariance(covariance))
    expected = marginal_gain(carried.module(torch.float64), points, 2)[0].detach()
    np.testing.assert_allclose(gains.isel({**place, "l": 2}), expected, rtol=0, atol=1e-12)
    assert gains.attrs["states_of"] == "forecasts of kalman-dan"


def test_a_silent_network_has_the_gain_of_the_filter(ds):
    """At a truth's states, where some sites are not observed."""
    net = network(silent=True, past=PAST)
    some = ds.assign(observation=ds.observation.where((ds.x % 4 != 1) & (ds.time > 0)))
    kalman, covariance = (some.dan.gain(net, kind=kind) for kind in ("kalman", "covariance"))
    assert kalman.dims == ("trajectory", "time", "i", "j")
    method = net.method(torch.float64).bound(MODEL)
    x = torch.from_numpy(ds.truth.values[:, 2])
    observed = torch.from_numpy(some.observation.notnull().values[:, 2])
    state = {"x": x, "steps": torch.ones(2, dtype=torch.int64)}
    spread = method.analyse(state, torch.zeros_like(x), observed, UNIT)["spread"]
    np.testing.assert_allclose(np.diagonal(covariance[:, 2], axis1=1, axis2=2), spread**2, rtol=1e-10)
    np.testing.assert_allclose(kalman[:, 2], covariance[:, 2] * observed.numpy()[:, None], rtol=0, atol=1e-12)
    p = method._rebuilt(x, 1, observed, UNIT)
    h = torch.diag_embed(observed.double())
    gain = p @ h @ torch.linalg.inv(h @ p @ h + torch.eye(SITES))
    np.testing.assert_allclose(kalman[:, 2], gain, rtol=0, atol=1e-10)
    assert not kalman[:, 0].any()  # nothing is observed there


def test_a_rebuilt_covariance_at_truth_and_forecasts(ds, rebuilt):
    module, points = module_and_points(ds, rebuilt, ds.truth)
    with torch.no_grad():
        expected = analysis_covariance(module, points)
        slopes = marginal_gain(module, points, 4)
    covariance = ds.dan.gain(rebuilt, kind="covariance")
    np.testing.assert_allclose(covariance.values.reshape(expected.shape), expected, rtol=0, atol=1e-12)
    gains = ds.dan.gain(rebuilt, kind="marginal").isel(l=4)
    np.testing.assert_allclose(gains.values.reshape(slopes.shape), slopes, rtol=0, atol=1e-11)
    cycled = ds.dan.cycle(rebuilt)
    module, points = module_and_points(ds, rebuilt, cycled.forecast)
    with torch.no_grad():
        expected = analysis_covariance(module, points)
    covariance = ds.dan.gain(rebuilt, kind="covariance", run=cycled)
    np.testing.assert_allclose(covariance.values.reshape(expected.shape), expected, rtol=0, atol=1e-12)


def test_regressions_are_exact_for_a_silent_network(ds):
    net = network(silent=True, past=PAST)
    for kind in ("covariance", "marginal"):
        exact, regressed = (
            ds.isel(time=slice(2)).dan.gain(net, kind=kind, method=method) for method in ("autodiff", "regression")
        )
        np.testing.assert_allclose(regressed.values, exact.values, rtol=0, atol=1e-8)


def test_chunks_do_not_matter(ds, carried, run, rebuilt):
    for net, words in ((carried, {"run": run}), (rebuilt, {})):
        for kind in ("mean", "covariance"):
            whole = ds.dan.gain(net, kind=kind, burn_in=1, **words)
            kept = {name: one.chunk(trajectory=2, time=3) for name, one in words.items()}
            cut = ds.chunk(trajectory=1, time=2).dan.gain(net, kind=kind, burn_in=1, **kept)
            np.testing.assert_allclose(cut.values, whole.values, rtol=0, atol=1e-11)


def test_nothing_is_computed_before_it_is_asked(ds, carried, run, rebuilt, computed):
    calls = computed.calls
    for net, words in ((carried, {"run": run}), (rebuilt, {})):
        for kind in ("marginal", "covariance", "kalman"):
            assert ds.dan.gain(net, kind=kind, **words).chunks is not None
        assert ds.dan.zero_innovation_bias(net, **words).bias.chunks is not None
    assert computed.calls == calls


@pytest.mark.slow
def test_the_same_on_a_ring_that_is_turned(ds, rebuilt, carried, run):
    """One site of all turns of a state has the mean of all sites; not where the group moves what is observed."""
    ring = xdan.Group.ring(SITES)
    for net, words in ((rebuilt, {}), (carried, {"run": run})):
        assert commuting(read_points(ds, net, **words), ring)
    few = ds.isel(trajectory=[0], time=slice(2))
    every = few.dan.gain(rebuilt, all_sites=True, reference=3)
    turns = [few.assign(truth=few.truth.roll(x=k, roll_coords=False)) for k in range(SITES)]
    one = sum(turn.dan.gain(rebuilt, reference=3).values for turn in turns) / SITES
    np.testing.assert_allclose(one, every.values, rtol=0, atol=1e-9)
    assert float(ds.dan.equivariance_error(rebuilt, every=4).max()) < 1e-7
    assert float(ds.dan.equivariance_error(carried, run=run, every=4).max()) < 1e-9
    other = ds.assign(observation=ds.observation.where(ds.x % 2 == 0)).drop_attrs()
    words = {"dynamics": MODEL, "observation_error": 1.0}
    points = read_points(other, rebuilt, **words)
    assert not commuting(points, ring)
    assert commuting(points, other.dan.symmetry_group(**words))
    changing = ds.assign(observation=ds.observation.where(ds.time < 0.1)).drop_attrs()
    assert not commuting(read_points(changing, rebuilt, **words), ring)


def test_a_silent_network_is_linear_and_without_bias(ds, run):
    carried = network(silent=True)
    kept = xdan.cycle(ds, carried, members=True)
    for net, words in ((carried, {"run": kept}), (network(silent=True, past=PAST), {"run": kept})):
        bias = ds.dan.zero_innovation_bias(net, **words)
        np.testing.assert_allclose(bias.bias, 0.0, atol=1e-12)
        ratio = ds.dan.scaling_of_increments(net, kept, [0.5, 2.0], burn_in=1).ratio
        np.testing.assert_allclose(ratio, [0.5, 2.0], rtol=1e-8)
        stein = ds.dan.stein_identity(net, samples=30, every=4, **words)
        np.testing.assert_allclose(stein.mean_gradient, stein.regression, rtol=0, atol=1e-9)


def test_covariances_are_compared(ds, carried, run, rebuilt):
    one, other = ds.dan.gain(carried, kind="covariance", run=run), ds.dan.gain(rebuilt, kind="covariance", run=run)
    spectrum = xdan.covariance_spectrum(one)
    assert bool((spectrum.eigenvalue.isel(mode=0) > 0).all())
    angles = xdan.principal_angles(one, other, modes=3)
    assert bool(((angles >= 0) & (angles <= 90)).all())


def test_a_run_in_single_precision(single, carried):
    kept = xdan.cycle(single, carried, members=True)
    fine = single.dan.gain(carried, kind="covariance", run=kept, dim=["trajectory", "time"])
    assert np.isfinite(fine.values).all()
    gains = single.dan.gain(network(past=PAST), dim="time", every=8)
    assert gains.dtype == np.float64  # sums are
    assert np.isfinite(gains.values).all()


def test_what_is_missing_is_refused(ds, carried, run, rebuilt):
    with pytest.raises(ValueError, match=r"run=None: expected a run that keeps it, run=ds.dan.cycle\(network, members"):
        ds.dan.gain(carried)
    with pytest.raises(ValueError, match=r"the network's covariance, 'analysis_covariance'; found .*members=True"):
        ds.dan.gain(carried, run=run.drop_vars("analysis_covariance"))
    with pytest.raises(ValueError, match=r"lacks the network's memory, 'memory'; found"):
        ds.dan.gain(carried, run=xdan.cycle(ds, carried))
    with pytest.raises(
        ValueError, match=r"lag=2 corrects a state 2 intervals back.*with_parameters\(lag=0, passes=1\)"
    ):
        ds.dan.gain(carried.with_parameters(lag=2))
    uneven = ds.isel(time=[0, 1, 2, 4])
    with pytest.raises(ValueError, match=r"intervals of \[1, 2\] model steps .* expected even intervals"):
        uneven.dan.gain(rebuilt)
    assert uneven.dan.gain(rebuilt, kind="covariance", burn_in=3).sizes["time"] == 1
    with pytest.raises(ValueError, match=r"a single time, .* expected at least two times"):
        ds.isel(time=[2]).dan.gain(rebuilt)
    moving = xdan.CustomDynamics(lambda x, t: torch.cos(t) - x, state={"x": SITES}, timestep=0.05)
    with pytest.raises(ValueError, match="expected one that does not, or past=0"):
        ds.dan.gain(rebuilt, dynamics=moving)


def test_labels_are_those_of_the_record(ds, carried, run):
    covariance = ds.dan.gain(carried, kind="covariance", run=run)
    xr.testing.assert_equal(covariance.time, ds.time)
    assert covariance.dims == ("trajectory", "time", "i", "j")
