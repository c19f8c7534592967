"""Pictures of states show every field as it is, with its own axes."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

import xdan
from xdan.plots import state_panels, state_plots
from xdan.plots.axes import placed

from test_plotting import STATES, axes, panels, runs_of

hv = pytest.importorskip("holoviews")


def test_hovmoller(twin, run):
    plots = panels(xdan.hovmoller(twin, run, trajectory=1, title="network"))
    assert [plot.title.text for plot in plots] == ["analysis of network", "error of network", "truth"]
    assert {axes(plot) for plot in plots} == {("model time", "site on the ring")}


def test_hovmoller_shows_what_was_asked_for(twin, run):
    truth, analysis, error = xdan.hovmoller(twin, run, trajectory=2, cycles=slice(5, 15))
    expected = twin.truth[2, 5:15]
    np.testing.assert_array_equal(truth.dimension_values("truth", flat=False).T, expected)
    np.testing.assert_array_equal(analysis.dimension_values(2, flat=False).T, run.analysis[2, 5:15])
    np.testing.assert_array_equal(error.dimension_values(2, flat=False).T, run.analysis[2, 5:15] - expected)
    np.testing.assert_allclose(truth.dimension_values("time", expanded=False), twin.time[5:15])


def test_truth_and_analysis_share_one_scale_around_zero(twin, run):
    from bokeh.models import LinearColorMapper

    plots = panels(xdan.hovmoller(twin, run))
    bounds = {}
    for plot in plots:
        (mapper,) = {m.id: m for m in plot.select({"type": LinearColorMapper})}.values()
        bounds[plot.title.text.split()[0]] = (mapper.low, mapper.high)
        assert mapper.low == -mapper.high
    assert bounds["truth"] == bounds["analysis"] == (-float(abs(twin.truth[0]).max()), float(abs(twin.truth[0]).max()))
    assert bounds["error"][1] < bounds["truth"][1]


def test_a_truth_of_one_sign_is_drawn_between_its_ends(twin):
    from bokeh.models import LinearColorMapper

    ds = twin.assign(truth=abs(twin.truth) + 1.0)
    low, high = float(ds.truth[0].min()), float(ds.truth[0].max())
    bounds = []
    for plot in panels(xdan.hovmoller(ds, runs_of(ds))):
        (mapper,) = {m.id: m for m in plot.select({"type": LinearColorMapper})}.values()
        bounds.append((mapper.low, mapper.high))
    assert bounds.count((low, high)) == 2  # the error's is about zero


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


def test_hovmoller_wants_one_dim(twin, run):
    grid = xdan.CustomDynamics(lambda x: -x, state={"lat": 2, "lon": 3}, timestep=0.05)
    flat = xdan.twin(grid, cycles=3).compute()
    flat_run = flat[["truth"]].rename(truth="analysis").assign(forecast=flat.truth)
    with pytest.raises(ValueError, match=r"dims \('lat', 'lon'\): a Hovmöller diagram shows one"):
        xdan.hovmoller(flat, flat_run, dynamics=grid)


@pytest.mark.parametrize("bare", [False, True])
def test_without_a_truth_the_analysis_is_drawn_alone(twin, run, bare):
    ds, one = twin.drop_vars("truth"), run
    if bare:
        ds, one = ds.isel(trajectory=0, drop=True), run.isel(trajectory=0, drop=True)
    (panel,) = xdan.hovmoller(ds, one)
    np.testing.assert_array_equal(panel.dimension_values("analysis", flat=False).T, run.analysis[0])
    np.testing.assert_array_equal(panel.dimension_values("time", expanded=False), twin.time)
    assert len(panels(xdan.hovmoller(ds, one))) == 1
    assert len(xdan.component_curves(ds, one)) == 8
    with pytest.raises(ValueError, match=r"needs the truth.*Without a truth, draw the analysis with xdan\.hovmoller"):
        xdan.rmse_in_time(ds, {"run": one})


def test_sites_with_names_are_drawn_in_their_order(twin):
    ds = STATES["names"](twin)
    truth, _, _ = xdan.hovmoller(ds, runs_of(ds))
    np.testing.assert_array_equal(truth.dimension_values("truth", flat=False).T, ds.truth[0])
    (plot,) = panels(truth)
    assert plot.yaxis[0].ticker.ticks == list(range(8))
    assert plot.yaxis[0].major_label_overrides[3] == "buoy 3"
    many = xdan.twin(xdan.Lorenz96(sites=60), cycles=3, trajectories=1).compute()
    many = many.assign_coords(x=[f"buoy {i}" for i in range(60)])
    (plot,) = panels(xdan.hovmoller(many, runs_of(many))[0, 0])
    assert plot.yaxis[0].major_label_overrides == {k: f"buoy {k}" for k in range(0, 60, 5)}


@pytest.fixture(scope="module")
def fields():
    """A field on the sphere, one on a ring and one of components, and a run on them."""
    state = [
        xdan.Field("h", xdan.Sphere(4, 8), "m", "depth"),
        xdan.Field("u", xdan.Ring(6, length=3.0, units="km", long_name="way around"), "m s-1", "wind"),
        xdan.Field("c", xdan.Components(["a", "b", "c"]), "K"),
    ]
    model = xdan.CustomDynamics(
        lambda f: {name: -x for name, x in f.items()}, state=state, timestep=0.05, spin_up_time=0.0
    )
    ds = xdan.twin(model, interval=0.05, cycles=6, trajectories=2, dtype="float64").compute()
    run = {}
    for name in model.space.names:
        for role in ("forecast", "analysis"):
            attributes = {"xdan_role": role, "xdan_field": name}
            run[f"{role}_{name}"] = (ds[f"truth_{name}"] + 0.1).assign_attrs(attributes)
    return model, ds, xr.Dataset(run)


def test_maps_of_a_field_on_the_sphere(fields):
    model, ds, run = fields
    layout = xdan.field_maps(ds, run, dynamics=model, trajectory=1, cycle=2, title="network")
    truth, analysis, error = layout
    np.testing.assert_array_equal(truth.dimension_values(2, flat=False), ds.truth_h[1, 2])
    np.testing.assert_array_equal(analysis.dimension_values(2, flat=False), run.analysis_h[1, 2])
    np.testing.assert_allclose(error.dimension_values(2, flat=False), 0.1, rtol=1e-9)
    drawn = panels(layout)
    assert {axes(plot) for plot in drawn} == {("longitude (degrees_east)", "latitude (degrees_north)")}
    assert [plot.title.text for plot in drawn] == [
        f"depth: {name} at time 0.1" for name in ("analysis of network", "error of network", "truth")
    ]  # fmt: skip
    for plot in drawn:  # a degree is as long along both axes
        lon, lat = np.ptp(ds.lon.values), np.ptp(ds.lat.values)
        assert plot.frame_width / lon == pytest.approx(plot.frame_height / lat, rel=0.01)


def test_space_and_time_of_the_fields_of_one_dim(fields):
    model, ds, run = fields
    drawn = panels(xdan.hovmoller(ds, run, dynamics=model))
    assert len(drawn) == 3
    assert {axes(plot) for plot in drawn} == {("model time", "way around (km)")}


def test_lines_of_components(fields):
    model, ds, run = fields
    layout = xdan.component_curves(ds, run, dynamics=model, cycles=slice(1, 5))
    overlays = list(layout)
    assert len(overlays) == 3
    of_b = next(one for one in overlays if "b" in hv.render(one).title.text.split())
    truth, analysis = (of_b.get(k).dimension_values(1) for k in (0, 1))
    np.testing.assert_array_equal(truth, ds.truth_c[0, 1:5, 1])
    np.testing.assert_array_equal(analysis, run.analysis_c[0, 1:5, 1])
    assert axes(hv.render(of_b)) == ("model time", "c b (K)")


def test_every_field_is_drawn_as_its_geometry_says(fields):
    model, ds, run = fields
    labelled = state_panels.read_states(ds, {"dynamics": model}, "a picture")
    pairs = state_panels.field_pairs(labelled, run, 0)
    assert [pair.kind for pair in pairs] == ["map", "hovmoller", "lines"]
    assert ds.dan.explore(run, dynamics=model).view().get_root() is not None


def test_a_line_of_rmse_for_each_field(fields):
    model, ds, run = fields
    titles = [plot.title.text for plot in panels(xdan.rmse_in_time(ds, {"a": run}, dynamics=model))]
    expected = ["c (K)", "h (m)", "u (m s-1)"]
    assert titles == [f"analysis RMSE of {name}, mean over trajectories and its standard error" for name in expected]


TIMES = {
    "dates": np.datetime64("2020-02-27T00", "ns") + np.arange(24) * np.timedelta64(6, "h"),
    "a calendar of 360 days": xr.date_range("2001-02-28", periods=24, freq="6h", calendar="360_day", use_cftime=True),
    "dates of cftime": xr.date_range("2001-02-28", periods=24, freq="6h", calendar="standard", use_cftime=True),
    "lengths of time": np.arange(24) * np.timedelta64(6, "h"),
}
LABELS = {
    "dates": "valid time",
    "a calendar of 360 days": "days since 2001-0",
    "dates of cftime": "days since 2001-0",
    "lengths of time": "days",
}


@pytest.mark.parametrize(("kind", "cycles"), [*((kind, slice(24)) for kind in TIMES), ("dates", slice(3, 4))])
def test_times_that_are_no_numbers(twin, run, kind, cycles):
    """The picture itself; which records have such times is not its affair."""
    labelled = state_panels.read_states(twin, {}, "a picture")
    (pair,) = state_panels.field_pairs(labelled, run, 0)
    dated = pair.truth.assign_coords(time=("time", TIMES[kind], {"long_name": "valid time"}))
    pair = dataclasses.replace(pair, truth=dated)
    drawn = panels(state_plots.KINDS["hovmoller"]([pair], cycles, "run"))
    ((label, site),) = {axes(plot) for plot in drawn}
    assert label.startswith(LABELS[kind])
    assert site == "site on the ring"
    assert panels(state_plots.KINDS["lines"]([pair], cycles, "run"))


@pytest.mark.parametrize("kind", ["lengths of time", "a calendar of 360 days"])
def test_times_of_other_calendars_are_days(kind):
    days, _ = placed(xr.DataArray(TIMES[kind], dims="time", name="time"), "x")
    np.testing.assert_allclose(days, 0.25 * np.arange(24))


def test_a_picture_of_no_such_field_is_refused(twin, run):
    with pytest.raises(ValueError, match=r"dims \('x',\): a map shows two, expected 2; see xdan.explore"):
        xdan.field_maps(twin, run)
    cube = xdan.CustomDynamics(lambda x: -x, state={"z": 2, "lat": 2, "lon": 3}, timestep=0.05, spin_up_time=0.0)
    flat = xdan.twin(cube, cycles=3).compute()
    with pytest.raises(ValueError, match=r"has dims \('z', 'lat', 'lon'\): expected one or two"):
        xdan.hovmoller(flat, flat, dynamics=cube)
    with pytest.raises(TypeError, match=r"cycle=0\.5: expected an integer"):
        xdan.field_maps(twin, run, cycle=0.5)


def test_walls_and_channels_keep_their_aspect():
    plane = xdan.Plane((3, 12), periodic=(False, True), lengths=(1.0, 4.0), units="km")
    model = xdan.CustomDynamics(lambda x: -x, state=plane, timestep=0.05, spin_up_time=0.0)
    ds = xdan.twin(model, interval=0.05, cycles=2, trajectories=1).compute()
    drawn = panels(xdan.field_maps(ds, runs_of(ds), dynamics=model))
    assert {axes(plot) for plot in drawn} == {("place along x (km)", "place along y (km)")}
    assert all(plot.frame_width > 2 * plot.frame_height for plot in drawn)
