"""Scores over fields: area weights, several fields, and maps, against NumPy and closed forms."""

import numpy as np
import pytest
import torch
import xarray as xr

import xdan
from xdan.assimilation.score_fields import FieldMeans
from xdan.records.fields import split

pytestmark = pytest.mark.filterwarnings("ignore:the truth does not follow:xdan.XdanWarning")
SPHERE = xdan.Sphere(4, 6)
DIMS = ("trajectory", "time")


def model_of(state):
    """Decay: any numbers are a state of it."""
    several = isinstance(state, (list, tuple))
    decay = (lambda fields: {name: -x for name, x in fields.items()}) if several else (lambda x: -x)
    return xdan.CustomDynamics(decay, state=state, timestep=0.05, spin_up_time=0.0)


def record(model, cycles=7, error_std=1.0):
    """Noise as truth, observations and run; of several fields packed."""
    rng = np.random.default_rng(0)
    dims, shape = (*DIMS, *model.dims), (3, cycles, *model.shape)
    labels = {"trajectory": np.arange(3), "time": 0.05 * np.arange(cycles)}
    labels |= {dim: (dim, list(one.values), one.attributes) for dim, one in model.coordinates.items()}
    truth, *noise = (xr.DataArray(rng.normal(size=shape), labels, dims) for _ in range(6))
    error = xr.DataArray(np.broadcast_to(error_std, model.shape), dims=model.dims)
    ds = xr.Dataset({"truth": truth, "observation": truth + error * noise[0], "observation_error": error})
    run = {"forecast": truth + noise[1], "analysis": truth + 0.5 * noise[2] + 0.3}
    return ds, xr.Dataset(run | {"forecast_spread": abs(noise[3]), "spread": abs(noise[4])})


@pytest.fixture(scope="module")
def globe():
    model = model_of(SPHERE)
    return (model, *record(model))


@pytest.fixture(scope="module")
def fields():
    """A field on the sphere in metres and one of three components; errors of 2 and of 0.5."""
    state = [xdan.Field("h", SPHERE, "m", "depth"), xdan.Field("c", xdan.Components(["x", "y", "z"]), "K")]
    model = model_of(state)
    return (model, *record(model, error_std=np.r_[np.full(24, 2.0), np.full(3, 0.5)]))


def area(geometry=SPHERE):
    weights = geometry.weights().numpy()
    return weights / weights.sum()


def test_root_of_the_mean_by_area(globe):
    model, ds, run = globe
    share = area().reshape(4, 6)
    assert share[0, 0] < 0.7 * share[1, 0]
    scores = xdan.score(ds, run, dynamics=model)
    for name, of in (("rmse", "analysis"), ("forecast_rmse", "forecast")):
        squares = (run[of] - ds.truth).values ** 2
        np.testing.assert_allclose(scores[name], np.sqrt((squares * share).sum((2, 3))).mean(), rtol=1e-12)
    np.testing.assert_allclose(scores.spread, np.sqrt((run.spread.values**2 * share).sum((2, 3))).mean(), rtol=1e-12)
    error = abs(run.analysis - ds.truth).values
    np.testing.assert_allclose(scores.mean_absolute_error, (error * share).sum((2, 3)).mean(), rtol=1e-12)
    assert "by area" in scores.attrs["rmse_convention"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_constant_error_is_its_own_root(globe, dtype):
    model, ds, _ = globe
    ds = ds.assign(truth=ds.truth.astype(dtype))
    away = xr.Dataset({"forecast": ds.truth + 3, "analysis": ds.truth - 2})
    scores = xdan.score(ds, away, dynamics=model)
    np.testing.assert_allclose([scores.rmse, scores.forecast_rmse], [2.0, 3.0], rtol=1e-6)


@pytest.mark.parametrize(
    "geometry", [xdan.Ring(24, length=7.3), xdan.Plane((4, 6), lengths=(0.7, 9.1)), xdan.Components(24)]
)
def test_equal_areas_are_no_weights(geometry):
    """The plain mean, to the bit."""
    model = model_of(geometry)
    assert FieldMeans(model).parts[0].weights is None
    ds, run = record(model)
    state = tuple(range(2, ds.truth.ndim))
    error = (ds.truth - run.analysis).values
    scores = xdan.score(ds, run, dynamics=model, dim=())
    np.testing.assert_array_equal(scores.rmse, np.sqrt(np.square(error).mean(state)))
    assert "by area" not in scores.attrs["rmse_convention"]


def test_refining_a_part_of_an_interval_changes_no_mean():
    """A smooth error on points that lie closer on one side: the mean over the length, not over the points."""
    places = np.r_[np.linspace(0.005, 0.495, 50), np.linspace(0.525, 0.975, 10)]
    model = model_of(xdan.Interval(places.tolist()))
    ds, _ = record(model)
    away = ds.truth + xr.DataArray(places, dims="x")
    rmse = float(xdan.score(ds, xr.Dataset({"forecast": away, "analysis": away}), dynamics=model).rmse)
    assert rmse == pytest.approx(np.sqrt(1 / 3), rel=0.02)
    assert abs(np.sqrt((places**2).mean()) - rmse) > 0.1


def test_several_fields_and_all_of_them(fields):
    model, ds, run = fields
    scores = xdan.score(ds, run, dynamics=model)
    assert scores.field.values.tolist() == ["h", "c"]
    assert scores.field_units.values.tolist() == ["m", "K"]
    error, share = (run.analysis - ds.truth).values, area()
    roots = np.stack([np.sqrt((error[..., :24] ** 2 * share).sum(-1)), np.sqrt((error[..., 24:] ** 2).mean(-1))], -1)
    np.testing.assert_allclose(scores.rmse, roots.mean((0, 1)), rtol=1e-12)
    together = np.sqrt(((roots / [2.0, 0.5]) ** 2).mean(-1))
    np.testing.assert_allclose(scores.rmse_total, together.mean(), rtol=1e-12)
    expected = together.mean(1).std(ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(scores.rmse_standard_error_total, expected, rtol=1e-12)
    assert "units" not in scores.rmse.attrs
    assert scores.rmse_total.attrs["units"] == "1"
    np.testing.assert_allclose(scores.error_variance, [4.0, 0.25], rtol=1e-12)
    np.testing.assert_allclose(scores.error_variance_total, 1.0, rtol=1e-12)
    innovation = (ds.observation - run.forecast).values
    variances = np.array([innovation[..., :24].var(), innovation[..., 24:].var()])
    np.testing.assert_allclose(scores.innovation_variance, variances, rtol=1e-12)
    np.testing.assert_allclose(scores.innovation_variance_total, (variances / [4.0, 0.25]).mean(), rtol=1e-12)


def test_every_score_of_several_fields_is_that_of_the_field_alone(fields):
    model, ds, run = fields
    whole = xdan.score(ds, run, dynamics=model)
    for field, place in model.space.slices.items():
        geometry = model.space[field].geometry
        alone = model_of(geometry)
        labels = alone.space.coordinates

        def unpack(values, place=place, geometry=geometry, labels=labels):
            data = values.values[..., place].reshape(3, 7, *geometry.shape)
            coordinates = {dim: ds[dim] for dim in DIMS} | {dim: list(c.values) for dim, c in labels.items()}
            return xr.DataArray(data, coordinates, [*DIMS, *geometry.dims])

        std = float(ds.observation_error[place][0])
        part = xr.Dataset({"truth": unpack(ds.truth), "observation": unpack(ds.observation)})
        own_run = xr.Dataset({name: unpack(values) for name, values in run.data_vars.items()})
        expected = xdan.score(part, own_run, dynamics=alone, observation_error=std)
        for name in expected:
            np.testing.assert_allclose(
                whole[name].sel(field=field) if "field" in whole[name].dims else whole[name],
                expected[name], rtol=1e-12, atol=1e-14, err_msg=name,
            )  # fmt: skip


def test_labelled_fields_have_the_scores_of_packed_ones(fields):
    model, ds, run = fields
    apart = xr.merge([xr.Dataset(split(ds[name], model, name)) for name in ("truth", "observation")])
    apart = apart.assign(observation_error_h=2.0, observation_error_c=0.5)
    of_run = xr.merge([xr.Dataset(split(values, model, name)) for name, values in run.items()])
    for along in ("state", "site"):
        scores = xdan.score(apart, of_run, dynamics=model, along=along)
        xr.testing.assert_allclose(scores, xdan.score(ds, run, dynamics=model, along=along), rtol=1e-12)


@pytest.mark.filterwarnings("error")
def test_a_field_that_nothing_observes_is_in_units_of_its_deviation(fields):
    model, ds, run = fields
    part = ds.assign(observation=ds.observation.where(ds.state >= 24))
    scores = xdan.score(part, run, dynamics=model)
    by_time = xdan.score(part, run, dynamics=model, dim=())
    deviation = ds.truth.values[..., :24].std()
    expected = np.sqrt(((by_time.rmse.values / [deviation, 0.5]) ** 2).mean(-1)).mean()
    np.testing.assert_allclose(scores.rmse_total, expected, rtol=1e-12)
    assert np.isnan(scores.innovation_mean.values[0])
    np.testing.assert_allclose(scores.innovation_mean_total, scores.innovation_mean.values[1] / 0.5, rtol=1e-12)


def test_a_lost_field_is_told_with_its_cause(fields):
    model, ds, run = fields
    lost = run.assign(analysis=run.analysis.where((ds.state < 24) | (ds.trajectory != 1)))
    with pytest.warns(xdan.XdanWarning, match="'analysis' has NaN or infinite values in 1 of 3 trajectories"):
        scores = xdan.score(ds, lost, dynamics=model)
    assert np.isfinite(scores.rmse[0])
    assert np.isnan(scores.rmse[1])
    assert np.isnan(scores.rmse_total)


def test_lazy_scores_of_several_fields(fields, computed):
    model, ds, run = fields
    for options in ({}, {"dim": "time"}, {"along": "site"}):
        chunked = ds.chunk(time=3).assign(observation_error=ds.observation_error)
        lazy = xdan.score(chunked, run.chunk(trajectory=2), dynamics=model, **options)
        assert computed.calls == 0
        xr.testing.assert_allclose(lazy.compute(), xdan.score(ds, run, dynamics=model, **options), rtol=1e-12)
        computed.calls = 0


def test_maps_of_scores(globe):
    model, ds, run = globe
    maps = xdan.score(ds, run, dynamics=model, along="site")
    error = run.analysis - ds.truth
    assert maps.rmse.dims == ("lat", "lon")
    np.testing.assert_array_equal(maps.lat, ds.lat)
    assert maps.lon.attrs["units"] == "degrees_east"
    np.testing.assert_allclose(maps.rmse, np.sqrt((error.values**2).mean((0, 1))), rtol=1e-12)
    np.testing.assert_allclose(maps.bias, error.values.mean((0, 1)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(maps.spread, np.sqrt((run.spread.values**2).mean((0, 1))), rtol=1e-12)
    by_run = xdan.score(ds, run, dynamics=model, along="site", dim="time")
    assert by_run.bias.dims == ("trajectory", "lat", "lon")
    np.testing.assert_allclose(by_run.bias.mean("trajectory"), maps.bias, rtol=1e-9, atol=1e-12)
    assert maps.crps.crps_of.item() == "Gaussian"


@pytest.mark.filterwarnings("error")
def test_maps_of_several_fields_lie_on_their_own_dims(fields):
    model, ds, run = fields
    part = ds.assign(observation=ds.observation.where(ds.state >= 24))
    maps = xdan.score(part, run, dynamics=model, along="site")
    assert maps.rmse_h.dims == ("lat", "lon")
    assert maps.rmse_c.dims == ("component",)
    assert maps.component.values.tolist() == ["x", "y", "z"]
    error = (run.analysis - ds.truth).values
    np.testing.assert_allclose(maps.bias_h, error[..., :24].mean((0, 1)).reshape(4, 6), rtol=1e-9, atol=1e-12)
    assert (maps.rmse_h.attrs["units"], maps.rmse_c.attrs["xdan_field"]) == ("m", "c")
    assert maps.rmse_h.attrs["long_name"].endswith(": depth")
    assert bool(maps.innovation_mean_h.isnull().all())
    assert bool(maps.innovation_mean_c.notnull().all())


def test_labels_of_the_users_own_stay_on_maps(twin, run):
    maps = xdan.score(twin.assign_coords(x=45.0 * twin.x), run.assign_coords(x=45.0 * run.x), along="site")
    assert maps.rmse.x.values.tolist() == list(45.0 * np.arange(8))


def test_ranks_are_counted_for_each_field(fields):
    model, ds, run = fields
    members = ds.truth + xr.DataArray(
        np.random.default_rng(1).normal(size=(*ds.truth.shape, 4)), dims=(*ds.truth.dims, "member")
    )
    counts = xdan.rank_histogram(ds, run.assign(members=members), dynamics=model)
    assert counts.sum("rank").values.tolist() == [21 * 24, 21 * 3]
    below = (members < ds.truth).sum("member").values
    for k, place in enumerate(model.space.slices.values()):
        np.testing.assert_array_equal(counts[k], np.bincount(below[..., place].ravel(), minlength=5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"along": "latitude"}, "along='latitude': expected one of"),
        (
            {"along": "site", "also": [xdan.StateScore(lambda truth: truth.mean(-1), "mean", name="mean")]},
            "whole states",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(twin, run, options, message):
    with pytest.raises(ValueError, match=message):
        xdan.score(twin, run, **options)


def test_weights_of_a_geometry_of_the_users_own():
    class Rows(xdan.Ring):
        name = "rows of two areas"

        def weights(self):
            return torch.tensor([3.0, 1.0, 1.0, 1.0], dtype=torch.float64)

    model = model_of(Rows(4))
    ds, run = record(model)
    error = (run.analysis - ds.truth).values
    expected = np.sqrt((error**2 * np.array([3, 1, 1, 1]) / 6).sum(-1)).mean()
    np.testing.assert_allclose(xdan.score(ds, run, dynamics=model).rmse, expected, rtol=1e-12)
