import numpy as np
import pytest
import xarray as xr
from scipy.stats import norm

import xdan


def made_run(twin, rng, error=0.3, spread=None):
    """A run whose forecast and analysis errors are known."""
    shape = twin.truth.shape
    forecast = twin.truth + error * rng.standard_normal(shape)
    analysis = twin.truth + 0.5 * error * rng.standard_normal(shape)
    run = xr.Dataset({"forecast": forecast, "analysis": analysis})
    if spread is not None:
        run["forecast_spread"], run["spread"] = xr.full_like(forecast, spread), xr.full_like(forecast, spread / 2)
    return run


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def long(model):
    return xdan.twin(model, cycles=400, trajectories=6, seed=3, dtype="float64").compute(scheduler="synchronous")


def test_rmse_takes_the_root_over_the_state_first(twin, rng):
    run = made_run(twin, rng)
    found = xdan.score(twin, run, burn_in=4)
    by_time = np.sqrt(((run.analysis - twin.truth).values[:, 4:] ** 2).mean(-1))
    assert float(found.rmse) == pytest.approx(by_time.mean(), rel=1e-12)
    by_run = by_time.mean(1)
    assert float(found.rmse_standard_error) == pytest.approx(by_run.std(ddof=1) / np.sqrt(len(by_run)), rel=1e-12)
    assert found.attrs["burn_in"] == 4
    assert found.attrs["cycles"] == 4 * 20


@pytest.mark.parametrize("dim", ["time", "trajectory", ("trajectory", "time")])
def test_dims_that_are_averaged_are_gone_and_the_others_stay(twin, rng, dim):
    run = made_run(twin, rng, spread=0.2)
    found = xdan.score(twin, run, dim=dim)
    left = {"trajectory", "time"} - ({dim} if isinstance(dim, str) else set(dim))
    assert set(found.rmse.dims) == left
    assert set(found.innovation_variance.dims) == left
    assert set(found.crps.dims) == left


def test_crps_of_a_gaussian_is_its_closed_form(twin, rng):
    run = made_run(twin, rng, spread=0.4)
    z = (twin.truth - run.analysis) / 0.2
    closed = 0.2 * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    assert float(xdan.score(twin, run).crps) == pytest.approx(float(closed.mean()), rel=1e-10)


def test_crps_of_a_single_state_is_its_absolute_error(twin, rng):
    run = made_run(twin, rng)
    expected = float(np.abs(run.analysis - twin.truth).mean())
    assert float(xdan.score(twin, run).crps) == pytest.approx(expected, rel=1e-12)


def test_crps_of_members_is_that_of_their_distribution(twin, ensemble):
    x, members = twin.truth.values, np.moveaxis(ensemble.members.values, 2, -1)
    first = np.abs(members - x[..., None]).mean(-1)
    second = np.abs(members[..., :, None] - members[..., None, :]).mean((-1, -2)) / 2
    assert float(xdan.score(twin, ensemble).crps) == pytest.approx((first - second).mean(), rel=1e-10)


def test_innovations_of_a_consistent_run_have_the_expected_variance(long, rng):
    # Forecast error and observation error are independent, so their variances add.
    run = made_run(long, rng, error=0.7, spread=0.7)
    found = xdan.score(long, run)
    assert float(found.innovation_variance_expected) == pytest.approx(1.49, rel=1e-12)
    count = long.truth.size
    assert float(found.innovation_variance) == pytest.approx(1.49, abs=5 * 1.49 * np.sqrt(2 / count))
    assert float(found.innovation_mean) == pytest.approx(0, abs=5 * np.sqrt(1.49 / count))
    assert float(found.residual_variance) == pytest.approx(1 + 0.35**2, abs=5 * 1.2 * np.sqrt(2 / count))


def test_diagnosed_error_is_the_one_in_use_for_a_kalman_update(long, rng):
    # x_a = x_f + K (y - x_f) with the optimal scalar gain: E[(y - x_a)(y - x_f)] = R.
    p = 0.6**2
    forecast = long.truth + 0.6 * rng.standard_normal(long.truth.shape)
    run = xr.Dataset({"forecast": forecast, "analysis": forecast + p / (p + 1) * (long.observation - forecast)})
    found = xdan.score(long, run)
    assert float(found.error_variance) == 1
    assert float(found.error_variance_diagnosed) == pytest.approx(1, abs=0.05)


def test_scores_without_truth(twin, rng):
    run = made_run(twin, rng)
    found = xdan.score(twin.drop_vars("truth"), run)
    assert "rmse" not in found
    assert float(found.innovation_variance) == float(xdan.score(twin, run).innovation_variance)


def test_unobserved_sites_drop_out_of_innovations_only(twin, rng):
    run = made_run(twin, rng)
    gaps = twin.assign(observation=twin.observation.where(twin.x % 2 == 0))
    found, whole = xdan.score(gaps, run), xdan.score(twin, run)
    assert float(found.rmse) == float(whole.rmse)
    half = (twin.observation - run.forecast).sel(x=slice(0, None, 2))
    assert float(found.innovation_mean) == pytest.approx(float(half.mean()), abs=1e-12)


def test_a_lost_trajectory_is_counted_and_not_averaged(twin, rng):
    run = made_run(twin, rng)
    lost = run.where(~((run.trajectory == 2) & (run.time > 0.5)))
    found = xdan.score(twin, lost)
    assert int(found.diverged) == 1
    assert np.isnan(found.rmse)
    assert np.isnan(found.innovation_variance)
    by_run = xdan.score(twin, lost, dim="time")
    assert by_run.diverged.values.tolist() == [False, False, True, False]
    assert np.isfinite(by_run.rmse.values).tolist() == [True, True, False, True]


def test_chunks_change_no_score(twin, ensemble):
    cut = xdan.score(twin.chunk(trajectory=3, time=5), ensemble.chunk(trajectory=2, time=7), burn_in=3)
    xr.testing.assert_allclose(cut.compute(), xdan.score(twin, ensemble, burn_in=3), rtol=1e-12)


def test_rank_histogram_is_flat_for_exchangeable_members(model):
    rng = np.random.default_rng(1)
    ds = xdan.twin(model, cycles=300, trajectories=4, dtype="float64").compute(scheduler="synchronous")
    centre = rng.standard_normal(ds.truth.shape)
    ds["truth"] = ds.truth.copy(data=centre + rng.standard_normal(ds.truth.shape))
    members = centre[:, :, None] + rng.standard_normal((4, 300, 4, 8))
    run = xr.Dataset(
        {
            "forecast": ds.truth,
            "analysis": ds.truth,
            "members": (("trajectory", "time", "member", "x"), members),
        },
        ds.coords,
    )
    counts = xdan.rank_histogram(ds, run, burn_in=100)
    assert int(counts.sum()) == 4 * 200 * 8
    expected = 4 * 200 * 8 / 5
    assert (abs(counts - expected) < 5 * np.sqrt(expected)).all()
    skewed = run.assign(members=run.members + 1.0)
    assert int(xdan.rank_histogram(ds, skewed, burn_in=100)[0]) > 2 * expected


def test_units_follow_the_score(model):
    kelvin = xdan.CustomDynamics(
        model.tendency, state={"x": 8}, timestep=0.05, units="K", rest=model.rest, spin_up_time=1.0
    )
    ds = xdan.twin(kelvin, cycles=4, trajectories=2).compute(scheduler="synchronous")
    run = xdan.baseline(ds, "enkf-n", members=4, dynamics=kelvin)
    found = xdan.score(ds, run, dynamics=kelvin)
    assert found.rmse.attrs["units"] == "K"
    assert found.innovation_variance.attrs["units"] == "(K)2"
    assert found.diverged.attrs["units"] == "1"


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda run: run.isel(time=slice(0, 5)), {}, "differ in time: 5 labels there, 24 here"),
        (lambda run: run.assign_coords(trajectory=run.trajectory + 1), {}, "differ in trajectory"),
        (lambda run: run, {"burn_in": 24}, "burn_in=24: expected 0 to 23"),
        (lambda run: run.drop_vars("analysis"), {}, r"lacks \['analysis'\]"),
        (lambda run: run, {"dim": "x"}, r"dim=\['x'\]: expected some of"),
        (lambda run: run.assign_attrs(xdan_status="unfinished"), {}, "unfinished"),
    ],
)
def test_what_does_not_fit_is_refused(twin, run, change, arguments, message):
    with pytest.raises(ValueError, match=message):
        xdan.score(twin, change(run), **arguments)


def test_rank_histogram_needs_members_and_truth(twin, run, ensemble):
    with pytest.raises(ValueError, match="keep_members=True"):
        xdan.rank_histogram(twin, run)
    with pytest.raises(ValueError, match="needs the truth"):
        xdan.rank_histogram(twin.drop_vars("truth"), ensemble)
