"""Figures build, say what their axes are, and go onto one page that needs no network."""

import re

import numpy as np
import pytest
import xarray as xr

import xdan
from xdan.plotting import _log_ticks

hv = pytest.importorskip("holoviews")


def panels(figure):
    """Bokeh figures of a rendered holoviews object."""
    from bokeh.models import Plot

    hv.extension("bokeh")
    return sorted(hv.render(figure, backend="bokeh").select({"type": Plot}), key=lambda plot: plot.title.text)


def axes(plot):
    return plot.xaxis.axis_label, plot.yaxis.axis_label


def test_hovmoller(twin, run):
    found = panels(xdan.hovmoller(twin, run, trajectory=1, title="network"))
    assert [plot.title.text for plot in found] == ["analysis of network", "error of network", "truth"]
    assert {axes(plot) for plot in found} == {("model time", "site")}


def test_hovmoller_shows_what_was_asked_for(twin, run):
    truth, analysis, error = xdan.hovmoller(twin, run, trajectory=2, cycles=slice(5, 15))
    expected = twin.truth[2, 5:15]
    np.testing.assert_array_equal(truth.dimension_values("truth", flat=False).T, expected)
    np.testing.assert_array_equal(analysis.dimension_values(2, flat=False).T, run.analysis[2, 5:15])
    np.testing.assert_array_equal(error.dimension_values(2, flat=False).T, run.analysis[2, 5:15] - expected)
    np.testing.assert_allclose(truth.dimension_values("time", expanded=False), twin.time[5:15])


def test_truth_and_analysis_share_one_scale_around_zero(twin, run):
    from bokeh.models import LinearColorMapper

    found = panels(xdan.hovmoller(twin, run))
    bounds = {}
    for plot in found:
        (mapper,) = {m.id: m for m in plot.select({"type": LinearColorMapper})}.values()
        bounds[plot.title.text.split()[0]] = (mapper.low, mapper.high)
        assert mapper.low == -mapper.high
    assert bounds["truth"] == bounds["analysis"] == (-float(abs(twin.truth[0]).max()), float(abs(twin.truth[0]).max()))
    assert bounds["error"][1] < bounds["truth"][1]


def test_hovmoller_of_a_record_without_trajectories(twin, run):
    one = {"trajectory": 2}
    truth, _, _ = xdan.hovmoller(twin.isel(one, drop=True), run.isel(one, drop=True))
    np.testing.assert_array_equal(truth.dimension_values("truth", flat=False).T, twin.truth[2])


def test_hovmoller_of_a_record_without_site_labels(twin, run):
    """Its own labels are then the dynamics'."""
    truth, _, _ = xdan.hovmoller(twin.drop_vars("x"), run.drop_vars("x"))
    np.testing.assert_array_equal(truth.dimension_values("x", expanded=False), twin.x)


def test_hovmoller_of_a_lost_run(twin, run):
    """White is no error, though the error is NaN in half of the picture."""
    from bokeh.models import LinearColorMapper

    lost = run.assign(analysis=run.analysis.where(run.time < run.time[10]))
    for plot in panels(xdan.hovmoller(twin, lost)):
        for mapper in plot.select({"type": LinearColorMapper}):
            assert mapper.low == -mapper.high < 0
    assert len(panels(xdan.hovmoller(twin, run.assign(analysis=run.analysis * np.nan)))) == 3


@pytest.mark.parametrize("name", ["time", "trajectory"])
def test_hovmoller_of_another_records_run_is_refused(twin, run, name):
    with pytest.raises(ValueError, match=f"run and record differ in {name}"):
        xdan.hovmoller(twin, run.isel({name: slice(1, None)}))


def test_hovmoller_of_lazy_data(twin, run):
    truth, _, _ = xdan.hovmoller(twin.chunk(time=5), run.chunk(time=7))
    np.testing.assert_array_equal(truth.dimension_values("truth", flat=False).T, twin.truth[0])


def test_hovmoller_wants_a_truth_on_one_dim(twin, run):
    with pytest.raises(ValueError, match="a picture of the error needs the truth"):
        xdan.hovmoller(twin.drop_vars("truth"), run)
    grid = xdan.CustomDynamics(lambda x: -x, state={"lat": 2, "lon": 3}, timestep=0.05)
    flat = xdan.twin(grid, cycles=3).compute()
    own = flat[["truth"]].rename(truth="analysis").assign(forecast=flat.truth)
    with pytest.raises(ValueError, match=r"dims \('lat', 'lon'\): a Hovmöller diagram shows one"):
        xdan.hovmoller(flat, own, dynamics=grid)


def test_rmse_in_time(twin, run, ensemble):
    runs = {"network": run, "EnKF-N": ensemble}
    figure = xdan.rmse_in_time(twin, runs, cycles=slice(20), log=True)
    (plot,) = panels(figure)
    assert axes(plot) == ("model time", "analysis RMSE")
    assert {item.label["value"] for item in plot.legend[0].items} == set(runs)
    expected = xdan.score(twin, run, dim="trajectory").rmse[:20]
    np.testing.assert_allclose(figure.Curve.Network.dimension_values("rmse"), expected)


def test_training_history(net):
    (plot,) = panels(xdan.training_history(net.history))
    assert axes(plot) == ("training time (minutes)", "analysis RMSE")
    assert len(plot.legend[0].items) == 2
    (both,) = panels(xdan.training_history({"a": net.history, "b": net.history}))
    labels = {"a, validation", "a, training", "b, validation", "b, training"}
    assert {item.label["value"] for item in both.legend[0].items} == labels


def test_page_needs_no_network(twin, run, net, tmp_path):
    path = tmp_path / "page.html"
    sections = {"Space and time": xdan.hovmoller(twin, run), "Training": xdan.training_history(net.history)}
    xdan.save_page(path, sections, title="Test page", notes="Some *notes*.")
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    page = path.read_text()
    assert "<title>Test page</title>" in page
    assert all(heading in page for heading in sections)
    tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page)
    assert any(tag.startswith("<script") for tag in tags)
    tags = [tag for tag in tags if not re.search(r"rel=\"[\w-]*icon\"", tag)]  # the browser can do without
    assert not [tag for tag in tags if re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", tag)]
    assert not re.search(r"@import\s+(?:url\()?[\"']?https?:", page)


@pytest.fixture(scope="module")
def cube():
    rmse = np.array([[[0.2, 0.3], [0.4, 0.6]], [[0.3, 0.3], [0.5, 0.5]]])
    return xr.Dataset(
        {"rmse": (("scheme", "error_std", "seed"), rmse, {"long_name": "analysis RMSE"})}
        | {"rmse_standard_error": (("scheme", "error_std", "seed"), 0.01 + 0 * rmse)},
        {"scheme": ["EnKF-N", "network"], "error_std": [0.5, 1.0], "seed": [0, 1]},
    )


def test_sweep_curves(cube):
    figure = xdan.sweep_curves(cube, "error_std")
    (plot,) = panels(figure)
    assert axes(plot) == ("error_std", "analysis RMSE")
    cube["error_std"].attrs = {"long_name": "error deviation", "units": "K"}
    assert axes(panels(xdan.sweep_curves(cube, "error_std"))[0]) == ("error deviation (K)", "analysis RMSE")
    lines = [element for element in figure if isinstance(element, hv.Curve)]
    np.testing.assert_allclose(lines[0].dimension_values("rmse"), [0.25, 0.5])
    bars = [element for element in figure if isinstance(element, hv.ErrorBars)]
    np.testing.assert_allclose(bars[0].dimension_values("bar"), [0.05, 0.1])
    one = xdan.sweep_curves(cube.isel(seed=[0]), "error_std", logx=True, logy=True)
    bars = [element for element in one if isinstance(element, hv.ErrorBars)]
    np.testing.assert_allclose(bars[1].dimension_values("bar"), 0.01)


def test_ticks_are_the_values_that_were_swept(cube):
    wide = cube.assign_coords(error_std=[256, 4096])
    (plot,) = panels(xdan.sweep_curves(wide, "error_std", logx=True))
    assert plot.xaxis[0].ticker.ticks == [256, 4096]
    assert plot.xaxis[0].major_label_overrides == {256: "256", 4096: "4096"}


def test_more_schemes_than_colours_are_told_apart(cube):
    many = xr.concat([cube.isel(scheme=[0]).assign_coords(scheme=[f"scheme {k}"]) for k in range(8)], "scheme")
    lines = [part for part in xdan.sweep_curves(many, "error_std", logy=True) if isinstance(part, hv.Curve)]
    options = [hv.Store.lookup_options("bokeh", line, "style").kwargs for line in lines]
    styles = {(option["color"], option["line_dash"]) for option in options}
    assert len(styles) == len(lines) == 8


@pytest.mark.parametrize(
    ("values", "ticks"),
    [([0.18, 0.9], {0.2, 0.3, 0.6}), ([0.03, 5.0], {0.05, 0.1, 1.0}), ([0.21, 0.25], {0.22, 0.24}), ([np.nan], {1.0})],
)
def test_ticks_of_logarithmic_axes_lie_in_the_range(values, ticks):
    found = _log_ticks(np.array(values))
    assert ticks <= {round(tick, 6) for tick in found}
    assert np.all(np.diff(found) > 0)


@pytest.mark.filterwarnings("error")
def test_sweep_curves_leave_out_what_was_lost(cube):
    rmse = cube.rmse.copy()
    rmse[0, :, 0], rmse[1, 1, 0] = np.nan, np.nan
    figure = xdan.sweep_curves(cube.assign(rmse=rmse), "error_std")
    (line,) = [element for element in figure if isinstance(element, hv.Curve)]
    assert line.label == "network"
    np.testing.assert_allclose(line.dimension_values("rmse"), [0.3])
    hv.render(figure)


def test_sweep_curves_say_what_is_missing(cube):
    with pytest.raises(
        ValueError, match=r"along='noise': the cube has scores \['rmse', 'rmse_standard_error'\] and axes"
    ):
        xdan.sweep_curves(cube, "noise")
    wide = cube.expand_dims(window=[2, 4])
    with pytest.raises(
        ValueError, match=r"the axes \['window'\] too: choose one value of each, cube.sel\(window=...\)"
    ):
        xdan.sweep_curves(wide, "error_std")
    assert xdan.sweep_curves(wide.isel(window=[0]), "error_std") is not None
