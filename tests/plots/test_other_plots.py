"""Matrices, exponents, vectors, fits, tuning and one analysis: the numbers drawn are those that were handed over."""

import numpy as np
import pytest
import xarray as xr

import xdan

from test_plotting import axes, panels

hv = pytest.importorskip("holoviews")


def test_matrix_map_averages_and_puts_the_first_row_on_top(twin, run):
    values = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    labels = {"i": ("i", range(4), {"long_name": "output"}), "j": ("j", range(5), {"units": "km"})}
    matrix = xr.DataArray(values, labels, ("trajectory", "time", "i", "j"), attrs={"units": "K2"})
    first, second = layout = xdan.matrix_map({"a": matrix, "b": 2 * matrix})
    np.testing.assert_allclose(first.dimension_values(2, flat=False), values.mean((0, 1)))
    bound = 2 * abs(values.mean((0, 1))).max()
    assert first.range(2) == second.range(2) == pytest.approx((-bound, bound))
    plot, _ = panels(layout)
    assert axes(plot) == ("j (km)", "output")
    assert plot.y_range.start > plot.y_range.end
    apart = xdan.matrix_map({"a": matrix, "b": 2 * matrix}, together=False)
    one, other = apart
    assert 2 * one.range(2)[1] == pytest.approx(other.range(2)[1])
    with pytest.raises(ValueError, match="expected two beside trajectory and time"):
        xdan.matrix_map(matrix.isel(i=0))


def test_exponents_and_their_errors():
    spectrum = xr.Dataset(
        {"exponent": ("vector", [1.0, 0.0, -3.0]), "exponent_standard_error": ("vector", [0.1, 0.2, 0.3])},
        {"vector": [1, 2, 3]},
    )
    figure = xdan.exponent_curves({"one": spectrum, "two": spectrum})
    bars = [one for one in figure if isinstance(one, hv.ErrorBars)]
    np.testing.assert_allclose(bars[0].dimension_values(2), [0.2, 0.4, 0.6])
    (plot,) = panels(figure)
    assert axes(plot) == ("number of the exponent", "exponent (per unit of model time)")
    with pytest.raises(ValueError, match=r"spectra\['a'\] holds no exponents"):
        xdan.exponent_curves({"a": xr.Dataset()})


def test_sizes_of_lyapunov_vectors(twin):
    vectors = twin.dan.lyapunov_vectors(vectors=3, spin_up=4).compute()
    (panel,) = xdan.lyapunov_vector_maps(vectors, trajectory=1, numbers=2, cycles=slice(3, 9))
    expected = abs(vectors.lyapunov_vector[1, 3:9, 1]).T
    np.testing.assert_allclose(panel.dimension_values(2, flat=False), expected)
    assert f"mean growth {float(vectors.growth[1, 3:9, 1].mean()):.2g}" in panels(panel)[0].title.text
    with pytest.raises(ValueError, match="numbers=4: expected"):
        xdan.lyapunov_vector_maps(vectors, numbers=4)
    with pytest.raises(ValueError, match="expected 'lyapunov_vector'"):
        xdan.lyapunov_vector_maps(twin)


def test_scaling_law_has_points_and_lines():
    sizes, batches = np.array([256, 512, 1024, 2048]), np.array([4, 16])
    n, s = np.meshgrid(sizes, batches, indexing="ij")
    rmse = xr.DataArray((n**-0.1 * s**0.05), {"trajectories": sizes, "batch": batches}, ("trajectories", "batch"))
    law = xdan.scaling_law(rmse, bootstrap=0)
    figure = xdan.scaling_law_curves(law)
    points = [one for one in figure if isinstance(one, hv.Scatter)]
    lines = [one for one in figure if isinstance(one, hv.Curve)]
    np.testing.assert_allclose(points[1].dimension_values(1), rmse[:, 1])
    np.testing.assert_allclose(lines[1].dimension_values(1), law.fitted[:, 1])
    assert points[1].label == "batch 16"
    with pytest.raises(ValueError, match="expected what"):
        xdan.scaling_law_curves(xr.Dataset())


@pytest.mark.filterwarnings("ignore:tuning inflation:xdan.XdanWarning")
def test_tuning_curve(twin, run):
    few = twin.isel(trajectory=slice(2), time=slice(12))
    tuned = few.dan.baseline(
        "etkf", members=5, inflation="tune", candidates={"inflation": [1.0, 1.1, 1.2, 1.3]}, progress=False
    ).compute()
    figure = xdan.tuning_curve(tuned)
    (curve,) = [one for one in figure if isinstance(one, hv.Curve)]
    np.testing.assert_allclose(curve.dimension_values(0), [1.0, 1.1, 1.2, 1.3])
    np.testing.assert_allclose(curve.dimension_values(1), tuned.innovation_score)
    (chosen,) = [one for one in figure if isinstance(one, hv.VLine)]
    assert chosen.data == float(tuned.tuned_inflation)
    with pytest.raises(ValueError, match="expected a score along one or two"):
        xdan.tuning_curve(run)


def test_one_analysis_in_its_parts(twin, run):
    states, changes, errors = xdan.one_analysis(twin, run, trajectory=2, cycle=5)
    at = {"trajectory": 2, "time": 5}
    truth, forecast, analysis, observation = (
        one.isel(at) for one in (twin.truth, run.forecast, run.analysis, twin.observation)
    )
    values = {one.label: one.dimension_values(1) for panel in (states, changes, errors) for one in panel}
    np.testing.assert_allclose(values["increment"], analysis - forecast)
    np.testing.assert_allclose(values["innovation"], observation - forecast)
    np.testing.assert_allclose(values["error of the analysis"], analysis - truth)
    np.testing.assert_allclose(values["error of the forecast"], forecast - truth)
    gap = twin.assign(observation=twin.observation.where(twin.x % 2 == 0))
    _, changes, _ = xdan.one_analysis(gap, run, trajectory=2, cycle=5)
    (seen,) = [one for one in changes if one.label == "innovation"]
    np.testing.assert_array_equal(seen.dimension_values(0), twin.x[::2])
    with pytest.raises(ValueError, match="cycle=99: expected"):
        xdan.one_analysis(twin, run, cycle=99)


def test_negative_eigenvalues_are_said():
    spectrum = xr.Dataset({"eigenvalue": ("mode", [2.0, 0.5, -0.25])}, {"mode": [1, 2, 3]})
    figure = xdan.spectrum_curves({"a": spectrum})
    (points,) = [one for one in figure if one.label == "a: 1 negative, size"]
    np.testing.assert_allclose(points.dimension_values(0), [3])
    np.testing.assert_allclose(points.dimension_values(1), [0.25])


@pytest.mark.parametrize("band", ["error", "quantiles"])
def test_bands_are_those_of_the_trajectories(twin, run, band):
    each = xdan.score(twin, run, dim=()).rmse
    figure = xdan.rmse_in_time(twin, {"a": run}, band=band)
    (area,) = [one for one in figure if isinstance(one, hv.Area)]
    mean, error = each.mean("trajectory"), each.std("trajectory", ddof=1) / 2
    low, high = (
        (mean - error, mean + error) if band == "error" else (each.quantile(q, "trajectory") for q in (0.1, 0.9))
    )
    np.testing.assert_allclose(area.dimension_values(1), low, rtol=1e-6)
    np.testing.assert_allclose(area.dimension_values(2), high, rtol=1e-6)


def test_no_band_where_none_is_wanted_or_there_is_one_trajectory(twin, run):
    for figure in (
        xdan.rmse_in_time(twin, {"a": run}, band="none"),
        xdan.rmse_in_time(twin.isel(trajectory=[0]), {"a": run.isel(trajectory=[0])}),
    ):
        assert not [one for one in figure if isinstance(one, hv.Area)]
    with pytest.raises(ValueError, match="band='some': expected"):
        xdan.rmse_in_time(twin, {"a": run}, band="some")
