"""Ranks, spread beside error, and probabilities beside frequencies: by hand, for reliable ensembles, in any chunks."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import xdan

pytestmark = pytest.mark.filterwarnings("ignore:the truth does not follow:xdan.XdanWarning")
DIMS = ("trajectory", "time", "x")


def exchangeable(members=9, deviation=1.0, shape=(12, 60, 8), model=None):
    """A truth that is one more draw of an ensemble, whose spread differs from case to case."""
    rng = np.random.default_rng(3)
    model = xdan.Lorenz96(sites=8) if model is None else model
    dims = ("trajectory", "time", *model.dims)
    shape = (*shape[:2], *model.shape)
    centre, scale = rng.normal(scale=3, size=shape), rng.gamma(4.0, 0.25, size=shape)
    draws = centre + scale * rng.normal(size=(members + 1, *shape))
    labels = {"trajectory": np.arange(shape[0]), "time": 0.05 * np.arange(shape[1])}
    labels |= {dim: list(one.values) for dim, one in model.coordinates.items()}
    ensemble = centre + deviation * (draws[1:] - centre)
    run = {
        "members": (("member", *dims), ensemble),
        "analysis": (dims, ensemble.mean(0)),
        "forecast": (dims, ensemble.mean(0)),
        "spread": (dims, ensemble.std(0, ddof=1)),
    }
    y = draws[0] + rng.normal(size=shape)
    ds = xr.Dataset({"truth": (dims, draws[0]), "observation": (dims, y), "observation_error": 1.0}, labels)
    return ds, xr.Dataset(run, labels), model


@pytest.fixture(scope="module")
def reliable():
    return exchangeable()


@pytest.fixture(scope="module")
def narrow():
    return exchangeable(deviation=0.5)


def test_flatness_tells_a_reliable_ensemble_from_a_narrow_one(reliable, narrow):
    verdicts = []
    for ds, run, model in (reliable, narrow):
        histogram = xdan.rank_histogram(ds, run, dim="time", dynamics=model)
        verdicts.append(xdan.rank_flatness(histogram))
        chunked = xdan.rank_histogram(ds.chunk(trajectory=5), run.chunk(time=30), dim="time", dynamics=model)
        lazy = xdan.rank_flatness(chunked)
        assert lazy.p_value.chunks is not None
        xr.testing.assert_allclose(lazy.compute(), verdicts[-1])
    good, bad = verdicts
    assert good.p_value > 0.01 > 1e-6 > bad.p_value
    assert good.reliability_index < 0.1 < 0.3 < bad.reliability_index
    share = xdan.rank_histogram(*narrow[:2], dynamics=narrow[2]) / 5760
    np.testing.assert_allclose(bad.reliability_index, abs(share - 0.1).sum(), rtol=1e-12)
    whole = xdan.rank_flatness(xdan.rank_histogram(*narrow[:2], dynamics=narrow[2]))
    assert list(whole) == ["reliability_index"]


def test_flatness_is_refused_for_what_is_no_histogram(reliable):
    with pytest.raises(TypeError, match="histogram=3: expected the DataArray of"):
        xdan.rank_flatness(3)
    with pytest.raises(ValueError, match=r"expected what xdan\.rank_histogram gives, with 'rank'"):
        xdan.rank_flatness(reliable[0].truth)


def test_spread_and_error_of_a_reliable_ensemble(reliable):
    """With sqrt((m + 1) / m) the spread is the error in every bin of a spread that is known; here it is estimated."""
    ds, run, model = reliable
    known = run.assign(spread=(DIMS, np.random.default_rng(3).gamma(4.0, 0.25, size=(12, 60, 8))))
    rng = np.random.default_rng(3)
    rng.normal(scale=3, size=(12, 60, 8))
    known.spread[:] = rng.gamma(4.0, 0.25, size=(12, 60, 8))  # the scale that the draws were made with
    table = xdan.spread_error(ds, known, bins=6, dynamics=model)
    assert table.attrs["members"] == 9
    np.testing.assert_allclose(table.expected_rmse, np.sqrt(10 / 9) * table.spread, rtol=1e-12)
    away = (table.rmse - table.expected_rmse) / table.rmse_standard_error
    assert (abs(away) < 4).all()
    assert (table.spread.diff("bin") > 0).all()
    assert float(table["count"].sum()) == 5760
    assert (abs(table["count"] / 960 - 1) < 0.2).all()
    narrow = xdan.spread_error(ds, known.assign(spread=0.5 * known.spread), bins=6, dynamics=model)
    assert (narrow.rmse > 1.6 * narrow.expected_rmse).all()


def test_spread_and_error_between_edges_of_ones_own(reliable):
    ds, run, model = reliable
    edges = [0.2, 0.5, 1.0, 1.5]
    table = xdan.spread_error(ds, run, bins=edges, dynamics=model)
    spread, error = run.spread.values, (run.analysis - ds.truth).values
    for k in range(3):
        here = (spread >= edges[k]) & (spread < edges[k + 1])
        assert float(table["count"][k]) == here.sum()
        np.testing.assert_allclose(table.rmse[k], np.sqrt((error[here] ** 2).mean()), rtol=1e-12)
        np.testing.assert_allclose(table.spread[k], np.sqrt((spread[here] ** 2).mean()), rtol=1e-12)
    assert table.lower.values.tolist() == edges[:-1]
    assert table.upper.values.tolist() == edges[1:]
    forecast = run.assign(forecast_spread=run.spread)
    same = xdan.spread_error(ds, forecast, bins=edges, which="forecast", dynamics=model)
    xr.testing.assert_allclose(same.drop_vars("expected_rmse"), table.drop_vars("expected_rmse"))


def test_frequencies_of_a_reliable_ensemble(reliable, narrow):
    parts_of_reliability = []
    for ds, run, model in (reliable, narrow):
        many = run.drop_vars("members")
        for one in (run, many):
            table = xdan.reliability(ds, one, threshold=1.0, bins=5, dynamics=model)
            assert float(table["count"].sum()) == 5760
            np.testing.assert_allclose(table.base_rate, (ds.truth > 1).mean(), rtol=1e-12)
            parts = table.reliability - table.resolution + table.uncertainty + table.within_bins
            np.testing.assert_allclose(parts, table.brier_score, rtol=1e-12)
            assert table.attrs["event"] == "above 1"
        share = (run.members > 1).mean("member")
        of_members = xdan.reliability(ds, run, threshold=1.0, bins=5, dynamics=model)
        np.testing.assert_allclose(of_members.brier_score, ((share - (ds.truth > 1)) ** 2).mean(), rtol=1e-12)
        p = stats.norm.sf(1.0, run.analysis, run.spread)
        gaussian = xdan.reliability(ds, many, threshold=1.0, bins=5, dynamics=model)
        np.testing.assert_allclose(gaussian.brier_score, ((p - (ds.truth > 1)) ** 2).mean(), rtol=1e-9)
        parts_of_reliability.append(float(of_members.reliability))
        assert "brier_score_fair" in of_members
        assert "brier_score_fair" not in gaussian
    assert parts_of_reliability[1] > 3 * parts_of_reliability[0]


def test_quantiles_are_those_of_the_climatology_at_each_component(reliable):
    """Components of unlike climates: the event is as frequent in each."""
    ds, run, model = reliable
    states = np.random.default_rng(0).normal(size=(2001, 8)) * np.arange(1, 9) + 10 * np.arange(8)
    table = xdan.reliability(ds, run, quantile=0.8, bins=4, dynamics=model, climatology=states)
    levels = xr.DataArray(np.quantile(states, 0.8, axis=0), dims="x")
    share = (run.members > levels).mean("member")
    np.testing.assert_allclose(table.brier_score, ((share - (ds.truth > levels)) ** 2).mean(), rtol=1e-12)
    median_table = xdan.reliability(ds, run, quantile=0.5, dynamics=model)  # the model's
    assert 0.2 < median_table.base_rate < 0.5  # of a truth about 0, where Lorenz-96 is about 2.3


def test_areas_and_fields():
    """Points count by area; each field has a row."""
    sphere = xdan.Sphere(4, 6)
    model = xdan.CustomDynamics(
        lambda fields: {name: -x for name, x in fields.items()},
        state=[xdan.Field("h", sphere, "m", "depth"), xdan.Field("c", xdan.Components(["x", "y"]), "K")],
        timestep=0.05,
        spin_up_time=0.0,
    )
    ds, run, _ = exchangeable(members=4, shape=(3, 6), model=model)
    weights = sphere.weights().numpy()
    share = np.concatenate([weights / weights.sum() * 24, np.ones(2)])
    places = {"h": slice(0, 24), "c": slice(24, 26)}
    table = xdan.reliability(ds, run, threshold={"h": 0.5, "c": -0.5}, bins=3, dynamics=model)
    binned = xdan.spread_error(ds, run, bins=[0.5, 1.0], dynamics=model)
    energy = xdan.score(ds, run, also=["energy"], dynamics=model)
    assert table.field.values.tolist() == ["h", "c"]
    for k, (name, level) in enumerate((("h", 0.5), ("c", -0.5))):
        at = {"state": places[name]}
        x, members, w = ds.truth[at].values, run.members[at].values, share[places[name]]
        p = (members > level).mean(0)
        brier = (((p - (x > level)) ** 2) * w).sum() / (w.sum() * 18)
        np.testing.assert_allclose(table.brier_score[k], brier, rtol=1e-12)
        spread, error = run.spread[at].values, run.analysis[at].values - x
        here = (spread >= 0.5) & (spread < 1.0)
        rmse = np.sqrt((error**2 * w)[here].sum() / (0 * error + w)[here].sum())
        np.testing.assert_allclose(binned.rmse.isel(field=k, bin=0), rmse, rtol=1e-12)
        root = np.sqrt(((members - x) ** 2 * w / w.sum()).sum(-1)).mean(0)
        pairs = sum(np.sqrt(((members - one) ** 2 * w / w.sum()).sum(-1)).sum(0) for one in members) / (2 * 4 * 3)
        np.testing.assert_allclose(energy.energy_score[k], (root - pairs).mean(), rtol=1e-10)
    only = xdan.reliability(ds, run, threshold={"c": -0.5}, bins=3, dynamics=model)
    xr.testing.assert_allclose(only, table.sel(field=["c"]))

    # Each field in units of its error, which is 1 here: the mean of their mean squares.
    def length(z):
        return np.sqrt(((z**2) * share / np.r_[np.full(24, 24), 2, 2] / 2).sum(-1))

    members, x = run.members.values, ds.truth.values
    pairs = sum(length(members - one).sum(0) for one in members) / (2 * 4 * 3)
    np.testing.assert_allclose(energy.energy_score_total, (length(members - x).mean(0) - pairs).mean(), rtol=1e-10)


@settings(max_examples=3)
@given(st.integers(1, 4), st.integers(4, 12), st.integers(1, 8), st.integers(1, 3))
def test_chunks_do_not_matter(rows, times, sites, members):
    ds, run, model = exchangeable(members=3, shape=(4, 12, 8))
    chunked = ds.chunk(trajectory=rows, time=times), run.chunk(time=7, x=sites, member=members)
    verbs = (
        lambda ds, run: xdan.spread_error(ds, run, bins=4, dynamics=model),
        lambda ds, run: xdan.reliability(ds, run, threshold=1.0, dynamics=model),
    )
    for verb in verbs:
        xr.testing.assert_allclose(verb(*chunked).compute(), verb(ds, run), rtol=1e-10)
    energy = [xdan.score(*pair, also=["energy"], dynamics=model).energy_score for pair in (chunked, (ds, run))]
    np.testing.assert_allclose(*energy, rtol=1e-12)


def test_nothing_is_computed_early(reliable, untouchable, computed):
    ds, run, model = reliable
    ds, run = untouchable(ds, "truth", "observation"), untouchable(run, "analysis", "spread")
    xdan.spread_error(ds, run, dynamics=model)
    xdan.reliability(ds, run.drop_vars("members"), threshold=1.0, dynamics=model)
    assert computed.calls == 0


def test_what_is_not_counted_is_told(reliable):
    ds, run, model = reliable
    holed = run.assign(spread=run.spread.where(run.time > 0.1), analysis=run.analysis.where(run.time > 0.1))
    holed = holed.drop_vars("members")
    for verb in (
        lambda run: xdan.spread_error(ds, run, dynamics=model),
        lambda run: xdan.reliability(ds, run, threshold=0.0, dynamics=model),
    ):
        for one in (holed, holed.chunk(time=30)):
            with pytest.warns(xdan.XdanWarning, match="some states are not counted: the run's 'analysis' has NaN"):
                table = verb(one).compute()
            assert float(table["count"].sum()) == 5760 - 12 * 3 * 8


WRONG = {
    "no spread": (lambda d, r, m: xdan.spread_error(d, r.drop_vars("spread"), dynamics=m), "the run holds no 'spread'"),
    "bins": (lambda d, r, m: xdan.spread_error(d, r, bins=0, dynamics=m), "bins=0: expected at least 1"),
    "edges": (lambda d, r, m: xdan.spread_error(d, r, bins=[1, 1], dynamics=m), "expected ascending edges"),
    "which": (lambda d, r, m: xdan.spread_error(d, r, which="x", dynamics=m), "which='x': expected one of"),
    "no truth": (
        lambda d, r, m: xdan.spread_error(d.drop_vars("truth"), r, dynamics=m),
        "a comparison of spread and error needs the truth",
    ),
    "neither": (lambda d, r, m: xdan.reliability(d, r, dynamics=m), "expected one of the two"),
    "both": (
        lambda d, r, m: xdan.reliability(d, r, threshold=1, quantile=0.5, dynamics=m),
        "threshold=1, quantile=0.5: expected one of the two",
    ),
    "quantile": (lambda d, r, m: xdan.reliability(d, r, quantile=1.0, dynamics=m), "quantile=1: expected a finite"),
    "nothing known": (
        lambda d, r, m: xdan.reliability(d, r[["forecast", "analysis"]], threshold=1.0, dynamics=m),
        "holds neither 'members' nor 'spread'",
    ),
    "energy without members": (
        lambda d, r, m: xdan.score(d, r.drop_vars("members"), also=["energy"], dynamics=m),
        "also holds 'energy', which takes the run's 'members'",
    ),
    "another name": (lambda d, r, m: xdan.score(d, r, also=["crps"], dynamics=m), "also='crps': expected one of"),
    "twice": (
        lambda d, r, m: xdan.score(d, r, also=["energy", "energy"], dynamics=m),
        "also holds a score 'energy_score': expected another name",
    ),
}


@pytest.mark.parametrize("label", WRONG)
def test_wrong_arguments_are_named(reliable, label):
    call, message = WRONG[label]
    with pytest.raises(ValueError, match=message):
        call(*reliable)
