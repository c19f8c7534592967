"""Pictures of ranks, spread and reliability show the numbers of their tables."""

import numpy as np
import pytest
import xarray as xr

import xdan

from test_plotting import axes, panels

hv = pytest.importorskip("holoviews")


@pytest.fixture(scope="module")
def runs(ensemble):
    return {"one": ensemble, "two": ensemble.assign(members=0.5 * ensemble.members, spread=0.5 * ensemble.spread)}


def curves(figure, label):
    """Points of the line of a run."""
    (curve,) = [one for one in figure.traverse(lambda x: x, [hv.Curve]) if one.label == label]
    return np.stack([curve.dimension_values(k) for k in (0, 1)], -1)


def test_rank_bars_are_shares_with_the_band_of_a_flat_histogram(twin, runs):
    histogram = xdan.rank_histogram(twin, runs, dim="time")
    figure = xdan.rank_bars(histogram)
    plots = panels(figure)
    assert [plot.title.text.split(":")[0] for plot in plots] == ["one", "two"]
    assert {axes(plot) for plot in plots} == {("rank of the truth", "frequency, 1 if flat")}
    bars = figure.traverse(lambda x: x, [hv.Histogram])
    counts = histogram.sum("trajectory")
    for bar, name in zip(bars, runs, strict=True):
        share = counts.sel({"method": name}) / counts.sel({"method": name}).sum()
        np.testing.assert_allclose(bar.dimension_values(1), 6 * share, rtol=1e-12)
    effective = xdan.rank_flatness(histogram).effective_counts.values
    bands = [span.data for span in figure.traverse(lambda x: x, [hv.HSpan])]
    np.testing.assert_allclose([high - low for low, high in bands], 4 * np.sqrt(5 / effective), rtol=1e-12)
    whole = xdan.rank_bars(xdan.rank_histogram(twin, runs["one"]))  # without trajectories no band
    assert not whole.traverse(lambda x: x, [hv.HSpan])
    np.testing.assert_allclose(
        whole.traverse(lambda x: x, [hv.Histogram])[0].dimension_values(1), bars[0].dimension_values(1)
    )


def test_error_against_spread(twin, runs):
    table = xdan.spread_error(twin, runs, bins=3)
    figure = xdan.spread_error_curves(table)
    for name in runs:
        one = table.sel({"method": name})
        np.testing.assert_allclose(curves(figure, name), np.stack([one.expected_rmse, one.rmse], -1), rtol=1e-12)
    (plot,) = panels(figure)
    assert axes(plot) == ("RMSE that the spread stands for", "RMSE")
    assert {item.label["value"] for item in plot.legend[0].items} == set(runs)


def test_frequencies_against_probabilities(twin, runs):
    table = xdan.reliability(twin, runs, threshold=2.0, bins=4)
    figure = xdan.reliability_curves(table)
    upper, lower = figure.values()
    for name in runs:
        one = table.sel({"method": name}).dropna("bin", subset=["observed_frequency"])
        expected = np.stack([one.forecast_probability, one.observed_frequency], -1)
        np.testing.assert_allclose(curves(upper, name), expected, rtol=1e-12)
        np.testing.assert_allclose(curves(lower, name)[:, 1], one["count"], rtol=1e-12)
    assert {axes(plot) for plot in panels(figure)} == {("probability", "frequency"), ("probability", "cases")}


def test_each_field_has_a_panel():
    table = xr.Dataset(
        {
            name: (("field", "bin"), [[0.1, 0.2], [3.0, 4.0]])
            for name in ("rmse", "expected_rmse", "rmse_standard_error")
        },
        {"field": ["h", "u"], "field_units": ("field", ["m", "m s-1"])},
    )
    plots = panels(xdan.spread_error_curves(table))
    assert [axes(plot)[1] for plot in plots] == ["RMSE (m)", "RMSE (m s-1)"]
    assert [plot.title.text for plot in plots] == ["h", "u"]


WRONG = {
    "no histogram": (lambda ds, run: xdan.rank_bars(run), TypeError, "histogram=.*expected the DataArray"),
    "times": (
        lambda ds, run: xdan.rank_bars(xdan.rank_histogram(ds, run, dim="trajectory")),
        ValueError,
        r"dims \['rank', 'time'\]: expected what xdan.rank_histogram gives",
    ),
    "no table": (lambda ds, run: xdan.spread_error_curves(3), TypeError, "table=3: expected an xarray.Dataset"),
    "scores": (
        lambda ds, run: xdan.reliability_curves(xdan.score(ds, run)),
        ValueError,
        r"the table lacks \['forecast_probability'.*: expected what xdan.reliability gives",
    ),
    "trajectories": (
        lambda ds, run: xdan.reliability_curves(xdan.reliability(ds, run, threshold=1.0, dim="time")),
        ValueError,
        r"dims \['bin', 'trajectory'\]: expected what",
    ),
}


@pytest.mark.parametrize("label", WRONG)
def test_other_tables_are_refused(twin, ensemble, label):
    call, error, message = WRONG[label]
    with pytest.raises(error, match=message):
        call(twin, ensemble)
