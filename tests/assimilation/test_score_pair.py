"""The smoothed state in the analysis's place: scores by hand, the times without one, and runs of early versions."""

import numpy as np
import pytest
import xarray as xr

import xdan
from xdan.records.runs import warn_of_old_smoothed

LAG = 3


@pytest.fixture(scope="module")
def smoother(twin):
    return xdan.baseline(twin, "ienks-n", lag=LAG, members=6, progress=False)


@pytest.fixture(scope="module")
def with_members(smoother):
    """With a spread and members of the smoothed state."""
    rng = np.random.default_rng(0)
    noise = xr.DataArray(rng.normal(size=(5, *smoother.smoothed.shape)), dims=("member", *smoother.smoothed.dims))
    members = smoother.smoothed + 0.2 * noise
    return smoother.assign(smoothed_members=members, smoothed_spread=members.std("member", ddof=1))


def expected(twin, run, burn_in):
    """RMSE over time of the smoothed state, by trajectory."""
    return np.sqrt(((run.smoothed - twin.truth) ** 2).mean("x")).isel(time=slice(burn_in, -LAG)).mean("time")


@pytest.mark.parametrize("lazy", [False, True])
def test_scores_of_the_smoothed_state_by_hand(twin, with_members, computed, lazy):
    ds, run = (twin.chunk(time=7), with_members.chunk(time=5, trajectory=3)) if lazy else (twin, with_members)
    scores = xdan.score(ds, run, which="smoothed", burn_in=4)
    assert computed.calls == 0
    scores = scores.compute()
    by_run = expected(twin, with_members, 4)
    np.testing.assert_allclose(scores.rmse, by_run.mean(), rtol=1e-12)
    np.testing.assert_allclose(scores.rmse_standard_error, by_run.std(ddof=1) / 2, rtol=1e-12)
    kept = {"time": slice(4, -LAG)}
    error = (with_members.smoothed - twin.truth)[kept]
    np.testing.assert_allclose(scores.mean_absolute_error, abs(error).mean(), rtol=1e-12)
    spread = np.sqrt((with_members.smoothed_spread**2).mean("x"))[kept].mean()
    np.testing.assert_allclose(scores.spread, spread, rtol=1e-12)
    assert int(scores.times_left_out) == LAG
    assert scores.crps_of.item() == "members"
    x, members = twin.truth[kept], with_members.smoothed_members[kept]
    pairs = sum(abs(members - members.isel(member=k)).sum("member") for k in range(5)) / (2 * 5 * 4)
    np.testing.assert_allclose(scores.crps, (abs(members - x).mean("member") - pairs).mean(), rtol=1e-10)
    assert not {name for name in scores if "forecast" in str(name) or "innovation" in str(name)}


def test_times_without_a_smoothed_state(twin, smoother):
    """NaN, without a word, where time is kept."""
    by_time = xdan.score(twin, smoother, which="smoothed", dim="trajectory")
    assert by_time.rmse.isnull().values.tolist() == [False] * (24 - LAG) + [True] * LAG
    maps = xdan.score(twin, smoother, which="smoothed", along="site")
    error = (smoother.smoothed - twin.truth).isel(time=slice(None, -LAG))
    np.testing.assert_allclose(maps.rmse, np.sqrt((error**2).mean(["trajectory", "time"])), rtol=1e-12)
    np.testing.assert_allclose(maps.bias, error.mean(["trajectory", "time"]), rtol=1e-9, atol=1e-12)
    # Of a backward pass.
    whole = smoother.assign(
        smoothed=smoother.smoothed.fillna(smoother.analysis),
        smoothed_spread=smoother.smoothed_spread.fillna(smoother.spread),
    )
    scores = xdan.score(twin, whole, which="smoothed")
    error = whole.smoothed - twin.truth
    np.testing.assert_allclose(scores.rmse, np.sqrt((error**2).mean("x")).mean(), rtol=1e-12)
    assert int(scores.times_left_out) == 0


def test_the_analysis_of_the_same_run_is_another_score(twin, smoother):
    analysis = xdan.score(twin, smoother)
    assert "times_left_out" not in analysis
    assert float(analysis.rmse) != float(xdan.score(twin, smoother, which="smoothed").rmse)


def test_gaps_of_a_smoothed_state_are_told(twin, smoother):
    """NaN in one trajectory at the end is no time that is left out."""
    gaps = smoother.smoothed.copy(deep=True)
    gaps[2, 24 - LAG - 1] = np.nan
    with pytest.warns(xdan.XdanWarning, match=r"'smoothed' has NaN .* in 1 of 4 .* position 2\), at 1 of 24 cycles"):
        scores = xdan.score(twin, smoother.assign(smoothed=gaps), which="smoothed", dim="time")
    assert scores.rmse.isnull().values.tolist() == [False, False, True, False]
    assert int(scores.times_left_out) == LAG
    nothing = smoother.assign(smoothed=np.nan * smoother.smoothed)
    with pytest.warns(xdan.XdanWarning, match="'smoothed' has NaN"):
        assert np.isnan(xdan.score(twin, nothing, which="smoothed").rmse)


def test_a_run_that_diverged_is_not_left_out(twin, smoother):
    """One trajectory that is lost, with and without the flags that say so."""
    one = {"trajectory": [1]}
    lost = smoother.isel(one).copy(deep=True)
    for name in ("forecast", "analysis", "smoothed"):
        lost[name][{"time": slice(10, None)}] = np.nan
    lost.diverged[{"time": slice(10, None)}] = True
    for run in (lost, lost.drop_vars("diverged")):
        with pytest.warns(xdan.XdanWarning, match="not finite"):
            scores = xdan.score(twin.isel(one), run, which="smoothed")
        assert np.isnan(scores.rmse)
        assert int(scores.diverged) == 1


def test_verdicts_of_the_smoothed_state(twin, with_members):
    kept = {"time": slice(0, -LAG)}
    counts = xdan.rank_histogram(twin, with_members, of="smoothed_members")
    below = (with_members.smoothed_members < twin.truth).sum("member")[kept]
    np.testing.assert_array_equal(counts, np.bincount(below.values.ravel(), minlength=6))
    table = xdan.spread_error(twin, with_members, which="smoothed", bins=4)
    assert float(table["count"].sum()) == 4 * (24 - LAG) * 8
    error = (with_members.smoothed - twin.truth)[kept]
    np.testing.assert_allclose((table["count"] * table.rmse**2).sum(), (error**2).sum(), rtol=1e-9)
    events = xdan.reliability(twin, with_members, which="smoothed", threshold=2.0)
    share = (with_members.smoothed_members > 2).mean("member")[kept]
    brier = ((share - (twin.truth > 2)[kept]) ** 2).mean()
    np.testing.assert_allclose(events.brier_score, brier, rtol=1e-12)


def old(run):
    """As early versions kept it: at the time of the analysis."""
    return run.drop_vars("smoothed_spread").assign(
        smoothed=run.smoothed.shift(time=LAG).assign_attrs(
            long_name="estimate, at each time, of the state a window earlier"
        )
    )


def test_a_run_of_an_early_version_is_told_and_moved(twin, smoother):
    now = xdan.score(twin, smoother.drop_vars("smoothed_spread"), which="smoothed", burn_in=2)
    with pytest.warns(xdan.XdanWarning, match="'smoothed' of this run lies at the time of the analysis.* 3 cycles"):
        then = xdan.score(twin, old(smoother), which="smoothed", burn_in=2)
    xr.testing.assert_allclose(then, now)
    xdan.score(twin, old(smoother))  # of the analysis, without a word
    silent = old(smoother).drop_attrs(deep=False)
    with pytest.raises(ValueError, match=r"does not say its lag: expected run\.smoothed\.shift\(time=-lag\)"):
        warn_of_old_smoothed(silent)
    assert warn_of_old_smoothed(smoother) == 0


def test_a_run_without_a_smoothed_state_is_refused(twin, run):
    with pytest.raises(ValueError, match=r"the run holds no 'smoothed': expected one of a method .*'ienks-n', lag=5"):
        xdan.score(twin, run, which="smoothed")
    with pytest.raises(ValueError, match="which='forecast': expected one of"):
        xdan.score(twin, run, which="forecast")
