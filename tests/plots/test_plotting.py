"""Figures build, say what their axes are, and go onto one page that needs no network."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

import xdan
from xdan.plots.axes import log_ticks

hv = pytest.importorskip("holoviews")


def panels(figure):
    """Bokeh figures of a rendered holoviews object."""
    from bokeh.models import Plot

    hv.extension("bokeh")
    return sorted(hv.render(figure, backend="bokeh").select({"type": Plot}), key=lambda plot: plot.title.text)


def axes(plot):
    return plot.xaxis.axis_label, plot.yaxis.axis_label


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
    blind = net.history.copy()
    blind["validation_rmse"] = blind.validation_rmse.assign_attrs(long_name="validation RMS innovation")
    (plot,) = panels(xdan.training_history(blind))
    assert axes(plot)[1] == "RMS innovation"
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
    [
        ([0.18, 0.9], {0.2, 0.3, 0.6}),
        ([0.03, 5.0], {0.05, 0.1, 1.0}),
        ([0.21, 0.25], {0.22, 0.24}),
        ([np.nan], {1.0}),
        ([1e-6, 1.0], {1e-6, 1e-3, 1.0}),
    ],
)
def test_ticks_of_logarithmic_axes_lie_in_the_range(values, ticks):
    all_ticks = log_ticks(np.array(values))
    assert ticks <= {round(tick, 6) for tick in all_ticks}
    assert np.all(np.diff(all_ticks) > 0)


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


def runs_of(ds):
    """A run a little beside its truth."""
    return xr.Dataset({"forecast": ds.truth, "analysis": ds.truth + 0.1})


def labels(ds, values):
    return ds.assign_coords(x=values)


STATES = {
    "names": lambda ds: labels(ds, [f"buoy {i}" for i in range(8)]),
    "longitudes that cross the meridian": lambda ds: labels(ds, (180.0 + 45 * np.arange(8)) % 360),
    "downwards": lambda ds: labels(ds, -np.arange(8.0)),
    "a single cycle": lambda ds: ds.isel(time=[3]),
    "a single trajectory": lambda ds: ds.isel(trajectory=[1]),
    "zeros": lambda ds: ds.assign(truth=0 * ds.truth),
}


@pytest.mark.filterwarnings("ignore:the truth does not follow:xdan.XdanWarning")
@pytest.mark.parametrize("kind", STATES)
def test_pictures_of_every_kind_of_record(twin, kind):
    from bokeh.models import LinearColorMapper

    ds = STATES[kind](twin)
    run = runs_of(ds)
    truth, analysis, _ = xdan.hovmoller(ds, run)
    np.testing.assert_array_equal(np.sort(truth.dimension_values("truth")), np.sort(ds.truth[0].values.ravel()))
    for plot in panels(truth + analysis):
        for mapper in plot.select({"type": LinearColorMapper}):
            assert mapper.low == -mapper.high < 0
    (plot,) = panels(xdan.rmse_in_time(ds, {"a": run}))
    assert plot.renderers
    assert ds.dan.explore({"a": run}).view().get_root() is not None


@pytest.mark.parametrize("name", ["three components", "one component"])
def test_pictures_of_few_components(name):
    model = xdan.Lorenz63()
    if name == "one component":
        model = xdan.CustomDynamics(lambda x: -x, state={"x": 1}, timestep=0.05)
    ds = xdan.twin(model, interval=0.1, cycles=5, trajectories=2, error_std=2.0).compute()
    run = runs_of(ds)
    assert len(panels(ds.dan.hovmoller(run, dynamics=model))) == 3
    assert len(panels(xdan.rmse_in_time(ds, {"a": run}, dynamics=model))) == 1
    assert ds.dan.explore(run, dynamics=model).view().get_root() is not None


def test_pictures_of_nothing_but_nan(twin):
    ds = twin.assign(truth=np.nan * twin.truth)
    assert len(panels(xdan.hovmoller(ds, runs_of(ds)))) == 3
    with pytest.warns(xdan.XdanWarning, match="the truth has gaps"):
        assert len(panels(xdan.rmse_in_time(ds, {"a": runs_of(ds)}))) == 1


WRONG = {
    "ds": (lambda a: xdan.hovmoller(0, a.run), TypeError, "ds=0: expected an xarray.Dataset"),
    "run": (lambda a: xdan.hovmoller(a.ds, 0), TypeError, "run is a int: expected"),
    "trajectory": (lambda a: xdan.hovmoller(a.ds, a.run, trajectory=1.0), TypeError, "trajectory=1.0: expected an int"),
    "trajectory 9": (lambda a: xdan.hovmoller(a.ds, a.run, trajectory=9), ValueError, "trajectory=9: expected at"),
    "cycles": (lambda a: xdan.hovmoller(a.ds, a.run, cycles=3), TypeError, "cycles=3: expected a slice"),
    "cycles 0.5": (lambda a: xdan.hovmoller(a.ds, a.run, cycles=slice(0.5)), TypeError, "cycles=0.5: expected an int"),
    "no cycles": (lambda a: xdan.hovmoller(a.ds, a.run, cycles=slice(99, None)), ValueError, "cycles=.*expected some"),
    "title": (lambda a: xdan.hovmoller(a.ds, a.run, title=3), TypeError, "title=3: expected text"),
    "role": (lambda a: xdan.hovmoller(a.ds, a.run, trut="x"), TypeError, "trut='x': expected no argument beyond"),
    "runs": (lambda a: xdan.rmse_in_time(a.ds, a.run.analysis), TypeError, "runs is a DataArray: expected a mapping"),
    "runs of 0": (lambda a: xdan.rmse_in_time(a.ds, {"a": 0}), TypeError, r"runs\['a'\]=0: expected a run"),
    "no runs": (lambda a: xdan.rmse_in_time(a.ds, {}), ValueError, "runs is empty: expected at least one"),
    "ds of runs": (lambda a: xdan.rmse_in_time(0, {"a": a.run}), TypeError, "ds=0: expected an xarray.Dataset"),
    "log": (lambda a: xdan.rmse_in_time(a.ds, {"a": a.run}, log=1), TypeError, "log=1: expected True or False"),
    "no cycles there": (
        lambda a: xdan.rmse_in_time(a.ds, {"a": a.run}, cycles=slice(0, 0)), ValueError, "cycles=.*: expected some",
    ),
    "histories": (lambda a: xdan.training_history(3), TypeError, "histories is a int: expected a mapping"),
    "history": (lambda a: xdan.training_history(a.run), ValueError, r"histories\['network'\] lacks .*expected"),
    "cube": (lambda a: xdan.sweep_curves(3, "x"), TypeError, "cube=3: expected an xarray.Dataset"),
    "along": (lambda a: xdan.sweep_curves(a.cube, 3), TypeError, "along=3: expected text"),
    "along seeds": (lambda a: xdan.sweep_curves(a.ds, "time"), ValueError, "value='rmse', along='time': .*expected"),
    "value": (lambda a: xdan.sweep_curves(a.cube, "error_std", value=0), TypeError, "value=0: expected text"),
    "logx": (lambda a: xdan.sweep_curves(a.cube, "error_std", logx="no"), TypeError, "logx='no': expected True or"),
    "path": (lambda a: xdan.save_page(3, {"a": 1}), TypeError, "path=3: expected a path"),
    "sections": (lambda a: xdan.save_page("a.html", [1]), TypeError, "sections is a list: expected a mapping"),
    "notes": (lambda a: xdan.save_page("a.html", {"a": 1}, notes=3), TypeError, "notes=3: expected text"),
}  # fmt: skip


@pytest.mark.parametrize("label", WRONG)
def test_wrong_arguments_are_named(twin, run, cube, label):
    call, error, message = WRONG[label]
    with pytest.raises(error, match=message):
        call(SimpleNamespace(ds=twin, run=run, cube=cube))


def test_numbers_of_numpy_are_numbers(twin, run):
    assert len(panels(xdan.hovmoller(twin, run, trajectory=np.int64(-1), cycles=slice(np.int64(3), np.int64(9))))) == 3
    assert len(panels(xdan.rmse_in_time(twin, {"a": run}, log=np.bool_(True)))) == 1


def test_levels_are_dashed_lines(twin, run):
    figure = xdan.rmse_in_time(twin, {"dan": run}, levels={"floor": 0.155})
    line = next(curve for curve in figure if curve.label == "floor")
    np.testing.assert_allclose(line.dimension_values(1), 0.155)
    np.testing.assert_allclose(line.dimension_values(0), [twin.time[0], twin.time[-1]])
    with pytest.raises(ValueError, match="levels"):
        xdan.rmse_in_time(twin, {"dan": run}, levels={"floor": -1.0})
