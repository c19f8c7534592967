"""Pictures of gains show what they are given."""

import numpy as np
import pytest
import xarray as xr

import xdan

from test_plotting import axes, panels

hv = pytest.importorskip("holoviews")


def omega(sites, reference):
    values = np.zeros((sites, sites))
    values[reference, reference] = 2.0
    values[(reference + 1) % sites, (reference - 2) % sites] = -4.0
    return xr.DataArray(values, dims=("i", "j"), attrs={"reference": reference})


@pytest.mark.parametrize("reference", [0, 5, 9])
def test_gain_map_is_turned_to_its_reference_and_normalised(reference):
    (panel,) = xdan.gain_map(omega(10, reference), within=4).values()
    frame = panel.dframe().set_index(["i", "j"])["value"]
    assert frame.loc[0, 0] == 0.5
    assert frame.loc[1, -2] == -1.0
    assert frame.index.levels[0].tolist() == list(range(-4, 5))
    assert abs(frame).sum() == 1.5


def test_gain_maps_share_a_scale_where_asked():
    both = {"one": omega(10, 3), "half": 0.5 * omega(8, 3)}
    both["half"].attrs["reference"] = 3
    together = [panel.dframe()["value"].abs().max() for panel in xdan.gain_map(both, together=True).values()]
    apart = [panel.dframe()["value"].abs().max() for panel in xdan.gain_map(both).values()]
    assert together == [1.0, 0.5]
    assert apart == [1.0, 1.0]
    plots = panels(xdan.gain_map(both))
    assert {axes(plot) for plot in plots} == {
        ("j - r, site of the projected innovation", "i - r, site of the increment")
    }
    assert [plot.title.text for plot in plots] == ["half (largest 2)", "one (largest 4)"]


def test_curves_are_means_over_states(twin, net, ensemble):
    spectrum = xdan.covariance_spectrum(twin.dan.gain(net, kind="covariance"))
    theirs = xdan.covariance_spectrum(xdan.ensemble_covariance(ensemble))
    figure = xdan.spectrum_curves({"network": spectrum, "EnKF-N": theirs})
    lines = {curve.label: curve for curve in figure.values() if isinstance(curve, hv.Curve)}
    expected = theirs.eigenvalue.mean(["trajectory", "time"]).values
    np.testing.assert_allclose(lines["EnKF-N"].dimension_values("value")[:4], expected[:4])
    (plot,) = panels(figure)
    assert axes(plot) == ("rank", "eigenvalue")
    angles = xdan.principal_angles(twin.dan.gain(net, kind="covariance"), xdan.ensemble_covariance(ensemble), modes=3)
    (plot,) = panels(xdan.angle_curves({"three modes": angles}))
    assert axes(plot) == ("angle", "principal angle (degrees)")


def test_scaling_beside_the_straight_line(twin, net):
    run = twin.dan.cycle(net, members=True)
    scaling = twin.dan.scaling_of_increments(net, run, [0.5, 1.0, 2.0], cutoff=0.01)
    figure = xdan.scaling_curves({"network": scaling})
    lines = {curve.label: curve for curve in figure.values() if isinstance(curve, hv.Curve)}
    np.testing.assert_array_equal(lines["linear"].dimension_values(1), [0.5, 1.0, 2.0])
    np.testing.assert_allclose(lines["network"].dimension_values("value"), scaling.ratio)
    histogram = twin.dan.innovation_histogram(net, run, bins=10)
    for logy in (False, True):
        (plot,) = panels(xdan.histogram_curves({"network": histogram}, logy=logy))
        assert axes(plot) == ("projected innovation", "density")


def test_a_gain_of_zeros_or_of_sites_with_names():
    (panel,) = xdan.gain_map(0 * omega(10, 3).assign_attrs(reference=3)).values()
    assert (panel.dframe()["value"] == 0).all()
    names = [f"buoy {k}" for k in range(10)]
    (panel,) = xdan.gain_map(omega(10, 3).assign_coords(i=names, j=names), within=np.int64(2)).values()
    assert panel.dframe().set_index(["i", "j"])["value"].loc[1, -2] == -1.0
    lost = (np.nan * omega(10, 3)).assign_attrs(reference=3)
    assert len(panels(xdan.gain_map({"lost": lost, "one": omega(10, 3)}, together=True))) == 2


WRONG = {
    "averages": (lambda: xdan.gain_map(3), TypeError, "averages is a int: expected a mapping"),
    "an average": (lambda: xdan.gain_map({"a": 3}), TypeError, r"averages\['a'\]=3: expected a gain"),
    "no averages": (lambda: xdan.gain_map({}), ValueError, "averages is empty: expected at least one"),
    "another array": (lambda: xdan.gain_map(xr.DataArray(np.ones(3))), ValueError, "no symmetry average.*expected"),
    "together": (lambda: xdan.gain_map(omega(10, 3), together=1), TypeError, "together=1: expected True or False"),
    "within": (lambda: xdan.gain_map(omega(10, 3), within=2.0), TypeError, "within=2.0: expected an integer"),
    "columns": (lambda: xdan.gain_map(omega(10, 3), columns=0), ValueError, "columns=0: expected at least 1"),
    "spectra": (lambda: xdan.spectrum_curves([1]), TypeError, "spectra is a list: expected a mapping"),
    "a spectrum": (lambda: xdan.spectrum_curves({"a": 1}), TypeError, r"spectra\['a'\]=1: expected"),
    "no eigenvalue": (lambda: xdan.spectrum_curves({"a": xr.Dataset()}), ValueError, "no eigenvalues: expected"),
    "angles": (lambda: xdan.angle_curves(omega(10, 3)), TypeError, "angles is a DataArray: expected a mapping"),
    "no angle": (lambda: xdan.angle_curves({"a": omega(10, 3)}), ValueError, r"'a' has dims .*expected \('angle',\)"),
    "scalings": (lambda: xdan.scaling_curves({"a": None}), TypeError, r"scalings\['a'\]=None: expected"),
    "no ratio": (lambda: xdan.scaling_curves({"a": xr.Dataset()}), ValueError, "'a' holds no ratio: expected"),
    "histograms": (lambda: xdan.histogram_curves(3), TypeError, "histograms is a int: expected a mapping"),
    "logy": (lambda: xdan.histogram_curves({"a": omega(10, 3)}, logy=0), TypeError, "logy=0: expected True or False"),
}


@pytest.mark.parametrize("label", WRONG)
def test_wrong_arguments_are_named(label):
    call, error, message = WRONG[label]
    with pytest.raises(error, match=message):
        call()


def between_walls():
    places = {"long_name": "height", "units": "km", "periodic": 0}
    labels = {factor: (factor, [0.5, 1.5, 2.5, 3.5], places) for factor in ("i", "j")}
    return xr.DataArray(np.diag([1.0, 2.0, 3.0, 4.0]), labels, ("i", "j"), attrs={"reference": 1})


def test_a_gain_between_walls_keeps_its_labels():
    (panel,) = xdan.gain_map(between_walls()).values()
    frame = panel.dframe().set_index(["i", "j"])["value"]
    assert frame.loc[3.5, 3.5] == 1.0
    assert frame.loc[0.5, 0.5] == 0.25
    (plot,) = panels(panel)
    assert axes(plot) == ("j: height (km)", "i: height (km)")


@pytest.mark.parametrize("order", [("i_lat", "i_lon"), ("i_lon", "i_lat")])
@pytest.mark.parametrize(("fields", "place"), [("h h h", 5), ("h u h", 2)])
def test_a_gain_on_a_grid_is_a_map(fields, place, order):
    """For the innovation at r; of another field at the largest gain. A store gives the labels in any order."""
    lat, lon = np.meshgrid([-30.0, 30.0], [0.0, 90.0, 180.0, 270.0], indexing="ij")
    named = {"i_lat": ("i", lat.ravel(), {"long_name": "latitude", "units": "degrees_north"})}
    named["i_lon"] = "i", lon.ravel(), {"long_name": "longitude", "units": "degrees_east"}
    values = np.random.default_rng(0).normal(size=(8, 8))
    values[:, 2] *= 10
    named = {label: named[label] for label in order}
    average = xr.DataArray(values, named, ("i", "j"), attrs={"reference": 5, "fields": fields})
    (panel,) = xdan.gain_map({"all": average}).values()
    expected = values[:, place].reshape(2, 4) / abs(values[:, place]).max()
    np.testing.assert_allclose(panel.dimension_values(2, flat=False), expected, rtol=1e-12)
    (plot,) = panels(panel)
    assert axes(plot) == ("longitude (degrees_east)", "latitude (degrees_north)")
    assert plot.title.text.startswith(f"all increment of h, innovation of {fields.split()[1]} at ")
