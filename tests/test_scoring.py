"""Scores against their definitions, and against the statistics of a filter that is known to be consistent."""

import math

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import xdan

DIMS = ("trajectory", "time", "x")


def statistics(ds, run, error_variance=1.0):
    """All scores by NumPy."""
    truth, y = ds.truth.values, ds.observation.values
    xf, xa = run.forecast.values, run.analysis.values
    seen = np.isfinite(y)
    innovation, residual = (y - xf)[seen], (y - xa)[seen]
    found = {
        "rmse": np.sqrt(((xa - truth) ** 2).mean(2)).mean(),
        "forecast_rmse": np.sqrt(((xf - truth) ** 2).mean(2)).mean(),
        "innovation_mean": innovation.mean(),
        "innovation_variance": innovation.var(),
        "residual_mean": residual.mean(),
        "residual_variance": residual.var(),
        "error_variance": error_variance,
        "error_variance_diagnosed": (innovation * residual).mean(),
        "diverged": 0,
    }
    if "spread" in run:
        found |= {name: np.sqrt((run[name].values ** 2).mean(2)).mean() for name in ("spread", "forecast_spread")}
        found["innovation_variance_expected"] = (run.forecast_spread.values**2 + error_variance)[seen].mean()
    return found


@pytest.fixture(scope="module")
def sparse(twin):
    """Some observations fewer at every time."""
    rng = np.random.default_rng(0)
    return twin.assign(observation=twin.observation.where(rng.random(twin.observation.shape) < 0.6))


def test_by_definition(sparse, ensemble, run):
    for one in (ensemble.drop_dims("member"), run):
        found = xdan.score(sparse, one)
        for name, value in statistics(sparse, one).items():
            np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-12, err_msg=name)


def test_root_before_the_mean(twin, run):
    """The convention: root over the state at each time, mean after; the other order gives another number."""
    error = (run.analysis - twin.truth).values
    found = float(xdan.score(twin, run).rmse)
    assert found == pytest.approx(np.sqrt((error**2).mean(2)).mean(), rel=1e-12)
    assert found < np.sqrt((error**2).mean()) - 1e-3
    told = xdan.score(twin, run).attrs["rmse_convention"]
    assert told.startswith("root of the mean over the state's variables at each time, then mean")


def test_standard_error(twin, run):
    by_run = np.sqrt(((run.analysis - twin.truth).values ** 2).mean(2)).mean(1)
    found = xdan.score(twin, run)
    np.testing.assert_allclose(found.rmse_standard_error, by_run.std(ddof=1) / 2, rtol=1e-12)
    assert "rmse_standard_error" not in xdan.score(twin, run, dim="time")


@pytest.mark.parametrize(
    ("dim", "kept"),
    [
        ("time", ("trajectory",)),
        ("trajectory", ("time",)),
        (["time", "trajectory"], ()),
        ((), ("trajectory", "time")),
    ],
)
def test_dims_averaged(sparse, ensemble, dim, kept):
    found = xdan.score(sparse, ensemble, dim=dim)
    assert all(set(found[name].dims) == set(kept) for name in found if name != "diverged")
    one = {"trajectory": 2, "time": 5}
    for name, value in found.items():
        if name == "rmse_standard_error":
            continue
        # The score of that trajectory or time alone.
        alone = {d: [one[d]] for d in kept}
        expected = xdan.score(sparse.isel(alone), ensemble.isel(alone))[name]
        here = value.isel({d: one[d] for d in kept if d in value.dims})
        np.testing.assert_allclose(here, expected, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("burn_in", [0, 1, 10, 23])
def test_burn_in_leaves_out_exactly_that_many(sparse, ensemble, burn_in):
    later = {"time": slice(burn_in, None)}
    found = xdan.score(sparse, ensemble, burn_in=burn_in)
    expected = xdan.score(sparse.isel(later), ensemble.isel(later))
    xr.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found.attrs["burn_in"] == burn_in
    assert found.attrs["cycles"] == 4 * (24 - burn_in)


def gaussian_crps(error, spread):
    z = error / spread
    return spread * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi))


def test_crps_of_a_single_state_is_its_absolute_error(twin, run):
    np.testing.assert_allclose(xdan.score(twin, run).crps, abs(run.analysis - twin.truth).mean(), rtol=1e-12)


def test_crps_of_a_spread_is_the_gaussians(twin, ensemble):
    only_spread = ensemble.drop_dims("member")
    expected = gaussian_crps((twin.truth - ensemble.analysis).values, ensemble.spread.values).mean()
    np.testing.assert_allclose(xdan.score(twin, only_spread).crps, expected, rtol=1e-9)


def test_crps_of_members(twin, ensemble):
    members, truth = np.moveaxis(ensemble.members.values, 2, 0), twin.truth.values
    pairs = abs(members[:, None] - members[None]).mean((0, 1))
    expected = (abs(members - truth).mean(0) - pairs / 2).mean()
    np.testing.assert_allclose(xdan.score(twin, ensemble).crps, expected, rtol=1e-9)


@pytest.fixture(scope="module")
def consistent():
    """Forecast errors and observation errors of known variances, and the Kalman gain between: 10 x 2000 x 5."""
    rng = np.random.default_rng(1)
    shape = (10, 2000, 5)
    p = np.linspace(0.5, 3, 5)
    truth = rng.normal(scale=3, size=shape)
    forecast = truth + rng.normal(size=shape) * np.sqrt(p)
    y = truth + rng.normal(size=shape) * 0.8
    gain = p / (p + 0.64)
    spread = np.broadcast_to(np.sqrt(p), shape)
    time = 0.05 * np.arange(2000)
    coordinates = {"trajectory": np.arange(10), "time": time, "x": np.arange(5)}
    model = xdan.Lorenz96(sites=5)
    ds = xr.Dataset({"truth": (DIMS, truth), "observation": (DIMS, y), "observation_error": 0.8}, coordinates)
    ds = ds.assign_attrs(xdan.twin(model, cycles=1).attrs)
    run = xr.Dataset(
        {
            "forecast": (DIMS, forecast),
            "analysis": (DIMS, forecast + gain * (y - forecast)),
            "forecast_spread": (DIMS, spread),
            "spread": (DIMS, spread * np.sqrt(1 - gain)),
        },
        coordinates,
    )
    return ds, run, p


def test_statistics_of_a_consistent_filter(consistent):
    """Innovation variance P + R, residual variance R (P + R)^-1 R, diagnosed error R; each within 5 standard errors."""
    ds, run, p = consistent
    found, r, count = xdan.score(ds, run), 0.64, 20_000
    sampling = np.sqrt(2 / count / 5)
    total = p + r
    assert float(found.innovation_variance_expected) == pytest.approx(total.mean(), rel=1e-12)
    assert float(found.innovation_variance) == pytest.approx(total.mean(), rel=5 * sampling * 1.2)
    assert float(found.residual_variance) == pytest.approx((r**2 / total).mean(), rel=5 * sampling * 1.2)
    assert float(found.error_variance_diagnosed) == pytest.approx(r, rel=5 * sampling)
    assert float(found.error_variance) == pytest.approx(r, rel=1e-12)
    assert abs(float(found.innovation_mean)) < 5 * np.sqrt(total.mean() / count / 5)
    assert abs(float(found.residual_mean)) < 5 * np.sqrt((r**2 / total).mean() / count / 5)
    expected = np.sqrt((p * r / total).mean())
    assert float(found.spread) == pytest.approx(expected, rel=1e-12)
    assert float(np.sqrt((run.analysis - ds.truth) ** 2).mean()) < float(found.rmse) * 1.2
    assert float(found.rmse) == pytest.approx(expected, rel=0.1)


def test_overconfident_filter_shows(consistent):
    ds, run, _ = consistent
    found = xdan.score(ds, run.assign(forecast_spread=0.5 * run.forecast_spread))
    assert float(found.innovation_variance) > 1.3 * float(found.innovation_variance_expected)


def test_rank_histogram_counts_every_truth(twin, ensemble):
    for of in ("members", "forecast_members"):
        found = xdan.rank_histogram(twin, ensemble, of=of)
        below = (ensemble[of] < twin.truth).sum("member").values
        np.testing.assert_array_equal(found, np.bincount(below.ravel(), minlength=6))
        assert found["rank"].values.tolist() == [1, 2, 3, 4, 5, 6]
        assert int(found.sum()) == 4 * 24 * 8


def test_rank_histogram_dims_and_burn_in(twin, ensemble):
    by_run = xdan.rank_histogram(twin, ensemble, dim="time", burn_in=4)
    assert set(by_run.dims) == {"trajectory", "rank"}
    assert (by_run.sum("rank") == 20 * 8).all()
    np.testing.assert_array_equal(by_run.sum("trajectory"), xdan.rank_histogram(twin, ensemble, burn_in=4))


def test_rank_histogram_is_flat_for_exchangeable_members(consistent):
    ds, run, _ = consistent
    rng = np.random.default_rng(2)
    centre = rng.normal(size=(10, 2000, 1, 5))
    draws = centre + rng.normal(size=(10, 2000, 8, 5))  # the first is the truth
    ds = ds.assign(truth=(DIMS, draws[:, :, 0]))
    run = run.assign(members=(("trajectory", "time", "member", "x"), draws[:, :, 1:]))
    counts = xdan.rank_histogram(ds, run).values
    assert stats.chisquare(counts).pvalue > 1e-3
    narrow = run.assign(members=run.members * 0.5)
    assert stats.chisquare(xdan.rank_histogram(ds, narrow)).pvalue < 1e-6


def test_lost_trajectory_is_counted_and_not_averaged_over(twin, net):
    wild = twin.copy(deep=True)
    wild.observation[1, 10] = 1e12
    found = xdan.score(wild, xdan.cycle(wild, net), dim="time")
    assert found.diverged.values.tolist() == [False, True, False, False]
    assert found.rmse.isnull().values.tolist() == [False, True, False, False]
    whole = xdan.score(wild, xdan.cycle(wild, net))
    assert int(whole.diverged) == 1
    assert int(xdan.score(wild, xdan.cycle(wild, net).drop_vars("diverged")).diverged) == 1
    for name in ("rmse", "rmse_standard_error", "forecast_rmse", "crps", "innovation_variance", "residual_mean"):
        assert np.isnan(whole[name]), name


def test_chunks_do_not_matter_and_nothing_is_computed(sparse, ensemble, computed):
    chunks = {"trajectory": 2, "time": 7}
    lazy = xdan.score(sparse.chunk(chunks), ensemble.chunk(chunks), burn_in=3)
    assert computed.calls == 0
    assert all(lazy[name].chunks is not None for name in lazy)
    xr.testing.assert_allclose(lazy.compute(), xdan.score(sparse, ensemble, burn_in=3), rtol=1e-12)


def test_reading_is_left_to_the_end(twin, ensemble, untouchable, computed):
    ds = untouchable(twin, "truth", "observation")
    run = untouchable(ensemble, "forecast", "analysis", "spread", "forecast_spread")
    xdan.score(ds, run, burn_in=2)
    xdan.rank_histogram(ds, run)
    assert computed.calls == 0


def test_record_in_chunks_along_the_state(sparse, ensemble):
    found = xdan.score(sparse.chunk(x=3), ensemble)
    xr.testing.assert_allclose(found.compute(), xdan.score(sparse, ensemble), rtol=1e-12)


def test_without_a_truth(twin, ensemble):
    found = xdan.score(twin.drop_vars("truth"), ensemble)
    whole = xdan.score(twin, ensemble)
    assert set(whole) - set(found) == {"rmse", "rmse_standard_error", "forecast_rmse", "crps"}
    xr.testing.assert_identical(found, whole[list(found)])
    with pytest.raises(ValueError, match="a rank histogram needs the truth, which the record lacks"):
        xdan.rank_histogram(twin.drop_vars("truth"), ensemble)


def test_without_trajectories(twin, ensemble):
    one = {"trajectory": 1}
    found = xdan.score(twin.isel(one, drop=True), ensemble.isel(one, drop=True))
    expected = xdan.score(twin.isel(trajectory=[1]), ensemble.isel(trajectory=[1]))
    xr.testing.assert_allclose(found, expected)


def test_names_of_the_users_own(twin, run):
    named = twin.rename(truth="nature", observation="sondes").drop_attrs(deep=True)
    found = xdan.score(named, run, truth="nature", observation="sondes", dynamics=xdan.Lorenz96(sites=8))
    xr.testing.assert_identical(found, xdan.score(twin, run))


def test_a_run_of_the_users_own(twin):
    """Any forecast and analysis will do: here the observations themselves, whose errors are the twin's."""
    own = xr.Dataset({"forecast": twin.observation, "analysis": twin.observation})
    found = xdan.score(twin, own)
    error = (twin.observation - twin.truth).values
    np.testing.assert_allclose(found.rmse, np.sqrt((error**2).mean(2)).mean(), rtol=1e-12)
    assert float(found.innovation_variance) == float(found.residual_variance) == 0
    assert int(found.diverged) == 0


@pytest.mark.parametrize("name", ["time", "trajectory"])
def test_another_records_run_is_refused(twin, run, name):
    shifted = run.assign_coords({name: run[name] + 1})
    with pytest.raises(ValueError, match=f"run and record differ in {name}: .* make the run on this record"):
        xdan.score(twin, shifted)
    shorter = run.isel({name: slice(3)})
    with pytest.raises(ValueError, match=f"run and record differ in {name}: 3 labels there"):
        xdan.score(twin, shorter)


def test_another_state_is_refused(twin, run):
    with pytest.raises(ValueError, match="'x'"):
        xdan.score(twin, run.assign_coords(x=run.x + 1))


def test_units(twin, ensemble):
    metres = xdan.CustomDynamics(lambda x: -x, state={"x": 8}, timestep=0.05, units="m")
    found = xdan.score(twin, ensemble, dynamics=metres)
    squares = {name for name in found if "variance" in name}
    assert {found[name].attrs["units"] for name in squares} == {"(m)2"}
    assert found.diverged.attrs["units"] == "1"
    assert {found[name].attrs["units"] for name in set(found) - squares - {"diverged"}} == {"m"}
    assert all(found[name].attrs["long_name"] for name in found)


@pytest.mark.parametrize("far", [45000.0, 0.0])
def test_runs_of_neighbouring_times_are_told_apart(twin, run, far):
    """However large the labels are."""
    late, same = (ds.assign_coords(time=far + ds.time, trajectory=20240101 + ds.trajectory) for ds in (twin, run))
    assert np.isfinite(xdan.score(late, same).rmse)
    with pytest.raises(ValueError, match="run and record differ in time"):
        xdan.score(late.isel(time=slice(0, -1)), same.isel(time=slice(1, None)))
    with pytest.raises(ValueError, match="run and record differ in trajectory"):
        xdan.score(late.isel(trajectory=slice(0, -1)), same.isel(trajectory=slice(1, None)))


def test_a_run_with_the_records_own_names_and_chunks(twin, run):
    expected = xdan.score(twin, run)
    named = [
        ds.rename(time="t").assign_coords(time=("t", np.arange(24) * np.timedelta64(6, "h"))) for ds in (twin, run)
    ]
    for ds in named:
        ds.t.attrs["axis"] = "T"
    xr.testing.assert_allclose(xdan.score(*named), expected)
    xr.testing.assert_allclose(xdan.score(twin, run.chunk(x=3, time=5)).compute(), expected)
