"""A run that has lost the truth says so: innovations against their expected variance."""

import numpy as np
import pytest
import torch
import xarray as xr

import xdan
from xdan.core.methods import Record
from xdan.core.observing import ObservingSystem
from xdan.records.watch import Watch


def record(y, std):
    observing = ObservingSystem(std=torch.tensor(std, dtype=torch.float64))
    return Record(xdan.Lorenz96(sites=4), observing, torch.from_numpy(y), [0, 1], torch.arange(len(y)), 0)


@pytest.mark.parametrize("expected", ["spread", "training", "climate"])
def test_ratio_by_hand(expected):
    rng = np.random.default_rng(0)
    y, x, spread = (rng.normal(size=(3, 2, 4)) for _ in range(3))
    y[0, 0, :2], y[1, 1] = np.nan, np.nan
    value = {"spread": None, "training": torch.tensor(1.3), "climate": torch.tensor(5.0)}[expected]
    variance = {"spread": 0.49 + spread**2, "training": 0.49 * 1.3, "climate": 0.49 + 5.0}[expected]
    ratio = Watch(expected, value, "").ratio(record(y, 0.7), torch.from_numpy(x), torch.from_numpy(spread))
    terms = np.where(np.isnan(y), 0.0, (y - x) ** 2 / variance)
    with np.errstate(invalid="ignore"):
        by_hand = terms.sum(-1) / (~np.isnan(y)).sum(-1)
    np.testing.assert_allclose(ratio, by_hand, rtol=1e-6)
    assert bool(ratio[1, 1].isnan())


@pytest.fixture(scope="module")
def long():
    """Eight trajectories of 120 cycles, which few members lose."""
    return xdan.twin(xdan.Lorenz96(), cycles=120, trajectories=8, seed=3).compute(scheduler="synchronous")


def test_an_ensemble_that_follows_is_quiet(long):
    run = long.dan.baseline("enkf-n", members=24)
    assert "xdan_warnings" not in run.attrs
    assert 0.8 < float(run.innovation_ratio[:, 50:].mean()) < 1.3  # of a consistent filter: 1


@pytest.mark.filterwarnings("ignore:the beginning is far")
def test_an_ensemble_that_is_lost_warns(long, tmp_path):
    options = {"members": 8, "inflation": 1.0, "spin_up": 0}
    for storage in ({}, {"store": tmp_path / "run.zarr", "progress": False}):
        with pytest.warns(xdan.XdanWarning, match=r"trajectories have lost the truth .* times the variance that"):
            run = long.dan.baseline("etkf", **options, **storage)
        assert float(xdan.score(long, run, burn_in=50).rmse) > 2.0
        assert "have lost the truth" in run.attrs["xdan_warnings"][0]
    assert xr.open_zarr(tmp_path / "run.zarr", consolidated=False).attrs["xdan_warnings"] == run.attrs["xdan_warnings"]
    lazy = long.chunk(trajectory=4).dan.baseline("etkf", **options)
    with pytest.warns(xdan.XdanWarning, match="have lost the truth"):
        lazy.analysis.compute()


def test_the_warning_points_at_the_users_line(long):
    """Whether the method or the accessor is called; and it names what is often wrong with data of other programs."""
    for call in (long.dan.baseline, lambda *args, **words: xdan.baseline(long, *args, **words)):
        with pytest.warns(
            xdan.XdanWarning, match="lost the truth.*time_unit, the units of.*order of the sites"
        ) as told:
            call("etkf", members=8, inflation=1.0, spin_up=0)
        assert {one.filename for one in told} == {__file__}


def test_few_observations_say_little():
    """Five observed cycles of a chi-square ratio pass the limit by chance; twenty do not."""
    few = np.full((1, 100), np.nan)
    few[0, 50::10] = 4.0
    many = np.where(np.arange(100) % 2, 4.0, np.nan)[None]
    watch, never = Watch("spread", None, "Look at R."), np.zeros((1, 100), dtype=bool)
    assert watch.verdict(few, never, [0], slice(0, 1)) == []
    assert "1 of 1 trajectories have lost the truth" in watch.verdict(many, never, [0], slice(0, 1))[0]
    assert watch.verdict(100 * few, never, [0], slice(0, 1)) != []
    assert watch.verdict(np.full((1, 100), np.nan), never, [0], slice(0, 1)) == []


def test_every_trajectory_diverged(twin):
    wild = xdan.CustomDynamics(lambda x: 0.1 * x**3, state={"x": 8}, timestep=0.05, spin_up_time=0.0)
    blind = twin.assign(observation=twin.observation.where(twin.time < 0.01)).drop_vars("truth")
    with pytest.warns(xdan.XdanWarning, match="every trajectory diverged, the first at time index"):
        run = blind.dan.baseline("enkf-n", members=4, dynamics=wild)
    assert bool(run.diverged.any("time").all())


@pytest.mark.slow
def test_smoothed_states_lie_where_they_belong(tmp_path):
    """At its own time the smoothed state is far closer to the truth than a window later."""
    ds = xdan.twin(xdan.Lorenz96(), cycles=60, trajectories=4, seed=2).compute(scheduler="synchronous")
    options = {"members": 24, "lag": 3}
    whole = ds.dan.baseline("ienks-n", **options)
    error = abs(whole.smoothed - ds.truth).isel(time=slice(20, -3))
    late = abs(whole.smoothed.shift(time=3) - ds.truth).isel(time=slice(20, -3))
    assert float(error.mean()) < 0.2 * float(late.mean())
    assert float(error.mean()) < float(abs(whole.analysis - ds.truth).isel(time=slice(20, -3)).mean())
    assert bool(whole.smoothed[:, -3:].isnull().all())
    assert bool(whole.smoothed[:, :-3].notnull().all())
    cut = ds.chunk(trajectory=2, time=7)
    np.testing.assert_allclose(
        cut.dan.baseline("ienks-n", **options).smoothed[:, :30], whole.smoothed[:, :30], atol=1e-4
    )
    stored = cut.dan.baseline("ienks-n", **options, store=tmp_path / "run.zarr", progress=False)
    np.testing.assert_allclose(stored.smoothed[:, :30], whole.smoothed[:, :30], atol=1e-4)
    np.testing.assert_array_equal(stored.smoothed.isnull(), whole.smoothed.isnull())


@pytest.mark.filterwarnings("ignore:the network is used out of the setting")
def test_a_network_that_is_lost_warns_in_a_short_run():
    """Half of the sites are observed; it was trained on all."""
    ds = xdan.twin(xdan.Lorenz96(), cycles=60, trajectories=4).compute(scheduler="synchronous")
    sparse = ds.assign(observation=ds.observation.where(ds.x % 2 == 0))
    net = xdan.open_network("lorenz96")
    assert "xdan_warnings" not in ds.dan.cycle(net).attrs
    with pytest.warns(xdan.XdanWarning) as caught:
        sparse.dan.cycle(net)
    texts = " ".join(str(warning.message) for warning in caught)
    assert "the network sees 50% of the observations" in texts
    assert "trajectories have lost the truth" in texts


def test_an_error_given_as_a_variance_of_a_large_unit(twin):
    with pytest.warns(xdan.XdanWarning, match="R is far larger than the observations' errors"):
        twin.dan.baseline("optimal-interpolation", observation_error=10.0)
