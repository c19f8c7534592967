"""Records of observations at positions, fixed and moving, and of instruments: labels, runs, scores and stores."""

import numpy as np
import pytest
import torch
import xarray as xr

import xdan

RANDOM = np.random.default_rng(0)
SITES, CYCLES = 8, 20
FIXED = RANDOM.uniform(0, SITES, 5)
MOVING = (FIXED + 0.37 * np.arange(CYCLES)[:, None]) % SITES


def interpolated(truth: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Linear interpolation on the ring of truth (..., time, x) at positions (time, obs)."""
    before = np.floor(where).astype(int)
    share = where - before
    rows = np.arange(where.shape[0])[:, None]
    return (1 - share) * truth[:, rows, before % SITES] + share * truth[:, rows, (before + 1) % SITES]


def made(model, where, **setting):
    setting = {"error_std": 0.5, "seed": 3, "dtype": "float64", "cycles": CYCLES, "trajectories": 3} | setting
    return xdan.twin(model, positions=where, **setting).compute(scheduler="synchronous")


@pytest.fixture(scope="module")
def moving(model):
    return made(model, {"x": MOVING})


@pytest.mark.parametrize("where", [FIXED, MOVING])
def test_a_twin_is_observed_at_its_positions(model, where):
    ds = made(model, {"x": where}, error_std=1e-6)
    assert ds.observation.dims == ("trajectory", "time", "obs")
    assert ds.obs_x.dims == (("obs",) if where.ndim == 1 else ("time", "obs"))
    expected = interpolated(ds.truth.values, np.broadcast_to(where, (CYCLES, 5)))
    np.testing.assert_allclose(ds.observation, expected, atol=1e-5)
    lazy = xdan.twin(model, positions={"x": where}, error_std=1e-6, seed=3, dtype="float64", cycles=CYCLES,
                     trajectories=3, chunks={"time": 7, "trajectory": 2})  # fmt: skip
    np.testing.assert_allclose(lazy.observation, ds.observation, rtol=1e-12)


def test_observations_that_turn_around_the_ring_are_those_of_its_sites(model, twin, architecture, net):
    """Whatever reads the sites reads the same numbers of observations that take turns at them."""
    order = (np.arange(SITES) + np.arange(twin.sizes["time"])[:, None]) % SITES
    turned = np.take_along_axis(twin.observation.values, order[None], 2)
    record = twin.drop_vars("observation").assign(observation=(("trajectory", "time", "obs"), turned))
    record = record.assign_coords(obs_x=(("time", "obs"), order.astype(float)))
    runs = [(one.dan.cycle(net), one) for one in (twin, record)]
    np.testing.assert_allclose(*(run.analysis for run, _ in runs), rtol=1e-9, atol=1e-9)
    scores = [one.dan.score(run, burn_in=5) for run, one in runs]
    for name in ("rmse", "innovation_variance", "residual_mean"):
        np.testing.assert_allclose(scores[0][name], scores[1][name], rtol=1e-9, atol=1e-12)
    gains = [one.dan.gain(net, kind="covariance", every=5) for one in (twin, record)]
    np.testing.assert_allclose(*gains, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("4d-var", {"window": 2, "scale": 0.1}),
        ("enkf-n", {"members": 6}),
        pytest.param("extended-kalman", {"inflation": 1.05}, marks=pytest.mark.slow),
        pytest.param("letkf", {"members": 5}, marks=pytest.mark.slow),
    ],
)
def test_chunks_and_resumed_stores_agree_bit_for_bit(moving, tmp_path, monkeypatch, name, settings):
    whole = moving.dan.baseline(name, **settings)
    moving.to_zarr(tmp_path / "record.zarr", consolidated=False)
    stored = xr.open_zarr(tmp_path / "record.zarr", consolidated=False).chunk(time=7, trajectory=2)
    np.testing.assert_array_equal(stored.dan.baseline(name, **settings).analysis, whole.analysis)
    done = []

    def cut_short(stream, place, *rest, original=xdan.assimilation.cycling.Stream.write):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(place)
        return original(stream, place, *rest)

    def stream():
        return stored.dan.baseline(name, **settings, store=tmp_path / "run.zarr", progress=False)

    with monkeypatch.context() as patched:
        patched.setattr(xdan.assimilation.cycling.Stream, "write", cut_short)
        with pytest.raises(KeyboardInterrupt):
            stream()
    np.testing.assert_array_equal(stream().analysis, whole.analysis)
    scores = [record.dan.score(whole, burn_in=5).compute() for record in (moving, stored)]
    xr.testing.assert_allclose(*scores, rtol=1e-12)
    assert np.isfinite(scores[0].innovation_variance)


@pytest.mark.filterwarnings("ignore:.*lost the truth")  # it has seen a few steps
def test_a_network_trains_and_cycles_on_moving_observations(model, moving, quick, architecture):
    floats = moving.assign(moving[["truth", "observation"]].astype("float32", keep_attrs=True))
    net = floats.dan.train(architecture, **quick)
    run = moving.dan.cycle(net)
    lazy = moving.chunk(time=6).dan.cycle(net)
    np.testing.assert_array_equal(run.analysis, lazy.analysis)
    fixed = xdan.TwinExperiment(model, positions={"x": FIXED}, error_std=0.5)
    endless = xdan.train(fixed, architecture, **quick)
    assert np.isfinite(moving.dan.cycle(endless).analysis).all()
    with pytest.raises(ValueError, match="expected a record of some length: an endless twin takes fixed ones"):
        xdan.train(xdan.TwinExperiment(model, positions={"x": MOVING}), architecture, **quick)


@pytest.mark.parametrize("name", ["obs_x", "x", "buoy_x"])
def test_positions_are_found_by_name_or_named_by_the_caller(moving, name):
    """A record without a truth may call them like the dim."""
    record = moving[["observation", "observation_error"]].rename(obs_x=name)
    record = record.drop_vars(set(record.coords) - {"time", "trajectory", name}).assign_attrs(moving.attrs)
    words = {"positions": {"x": record[name]}} if name == "buoy_x" else {}
    run = record.dan.baseline("enkf-n", members=5, **words)
    expected = moving.dan.baseline("enkf-n", members=5)
    np.testing.assert_array_equal(run.analysis, expected.analysis)


def test_what_has_no_position_is_not_observed(model):
    where = MOVING.copy()
    where[3:, 2] = np.nan
    ds = made(model, {"x": where})
    assert (ds.observation.isnull().values == np.isnan(where)).all()
    invented = ds.assign(observation=ds.observation.fillna(99.0))
    runs = [one.dan.baseline("enkf-n", members=5).analysis for one in (ds, invented)]
    np.testing.assert_array_equal(*runs)


def test_letkf_localises_the_observations_of_a_matrix(model):
    """A matrix that interpolates, its positions beside it, is the interpolation."""
    columns = interpolated(np.eye(SITES)[:, None], FIXED[None])[:, 0]
    ds = made(model, {"x": FIXED})
    by_matrix = made(model, {"x": FIXED}, operator=columns.T)
    np.testing.assert_allclose(by_matrix.observation, ds.observation, rtol=1e-12)
    assert by_matrix.observation_operator.dims == ("obs", "x")
    runs = [one.dan.baseline("letkf", members=5, radius=1.5).analysis for one in (ds, by_matrix)]
    np.testing.assert_allclose(*runs, rtol=1e-7, atol=1e-7)
    with pytest.raises(ValueError, match="the operator's observations have no positions"):
        by_matrix.drop_vars("obs_x").dan.baseline("letkf", members=5)


def test_a_function_with_positions_is_no_interpolation(model):
    def mean(x):
        return 0.5 * (x[..., :5] + x[..., 1:6])

    ds = made(model, {"x": FIXED}, operator=mean)
    with pytest.raises(ValueError, match="pass operator="):
        ds.dan.baseline("etkf", members=5)
    assert np.isfinite(ds.dan.baseline("letkf", members=5, operator=mean).analysis).all()


def test_a_state_of_two_fields_is_observed_field_by_field():
    def swirl(fields):
        u, h = fields["u"], fields["h"]
        return {"u": -h - 0.1 * u, "h": u - 0.1 * h + 1.0}

    model = xdan.CustomDynamics(
        swirl, state=[xdan.Field("u", xdan.Ring(6)), xdan.Field("h", xdan.Ring(6))], timestep=0.05, name="swirl"
    )
    labels = {"x": [0.5, 3.0, 5.75], "field": ["h", "u", "h"]}
    ds = xdan.twin(model, cycles=4, trajectories=2, positions=labels, error_std=1e-6, dtype="float64").compute()
    u, h = ds.truth_u.values, ds.truth_h.values
    expected = [0.5 * (h[..., 0] + h[..., 1]), u[..., 3], 0.25 * h[..., 5] + 0.75 * h[..., 0]]
    np.testing.assert_allclose(ds.observation, np.stack(expected, -1), atol=1e-5)
    run = ds.dan.baseline("etkf", members=8, dynamics=model)
    assert (ds.dan.score(run, dynamics=model).rmse < 1.0).all()
    with pytest.raises(ValueError, match=r"the fields \['u', 'h'\]: expected the name of each observation"):
        ds.drop_vars("field").dan.baseline("etkf", members=8, dynamics=model)


def test_a_store_names_the_field_of_each_observation(tmp_path):
    ring = xdan.Ring(4, length=4.0)
    state = {"h": ring, "u": ring}
    model = xdan.CustomDynamics(lambda f: {k: -v for k, v in f.items()}, state=state, timestep=0.1, spin_up_time=0.0)
    ds = xdan.twin(
        model, cycles=3, interval=0.1, positions={"x": [0.5, 1.5], "field": ["u", "h"], "instrument": ["a", "b"]}
    )
    ds.to_zarr(tmp_path / "twin.zarr", consolidated=False)
    words = {"dynamics": model, "observation_error": {"a": 1.0, "b": 2.0}, "members": 4, "inflation": 1.0}
    opened = xr.open_zarr(tmp_path / "twin.zarr", consolidated=False)
    xr.testing.assert_equal(opened.dan.baseline("etkf", **words).compute(), ds.dan.baseline("etkf", **words).compute())


def test_a_sphere_is_observed_at_latitudes_and_longitudes():
    model = xdan.CustomDynamics(
        lambda x: -x + torch.sin(2 * x), state={"t": xdan.Sphere(4, 8)}, timestep=0.05, name="warm"
    )
    tracks = {"lat": np.linspace(-80, 80, 12).reshape(4, 3), "lon": np.linspace(0, 720, 12).reshape(4, 3)}
    ds = xdan.twin(model, cycles=4, trajectories=2, positions=tracks, dtype="float64").compute()
    assert ds.obs_lat.attrs["standard_name"] == "latitude"
    renamed = ds.rename(obs_lat="ship_latitude", obs_lon="ship_longitude")  # known by their standard names
    runs = [one.dan.baseline("letkf", members=5, radius=30.0, dynamics=model).analysis for one in (ds, renamed)]
    np.testing.assert_array_equal(*runs)


# Instruments.


def test_each_instrument_has_its_error(model):
    labels = {"x": FIXED, "instrument": ["buoy", "ship", "buoy", "ship", "ship"]}
    errors = {"buoy": 0.3, "ship": 2.0}
    ds = made(model, labels, error_std=errors)
    assert ds.observation_error.values.tolist() == [0.3, 2.0, 0.3, 2.0, 2.0]
    plain = made(model, {"x": FIXED}, error_std=[0.3, 2.0, 0.3, 2.0, 2.0])
    np.testing.assert_array_equal(ds.observation, plain.observation)
    again = ds.drop_vars("observation_error").dan.baseline("enkf-n", members=5, observation_error=errors)
    np.testing.assert_array_equal(again.analysis, plain.dan.baseline("enkf-n", members=5).analysis)
    with pytest.raises(ValueError, match=r"expected one for each instrument; \['ship'\] have none"):
        ds.dan.baseline("etkf", observation_error={"buoy": 0.3})
    with pytest.raises(ValueError, match="expected a coordinate 'instrument' of words"):
        plain.dan.baseline("etkf", observation_error=errors)


def test_instruments_of_sites(twin):
    words = np.array(["near", "far"] * 4, dtype=object)
    record = twin.assign_coords(instrument=("x", words))
    run = record.dan.baseline("enkf-n", members=5, observation_error={"near": 0.5, "far": 1.5})
    expected = twin.dan.baseline("enkf-n", members=5, observation_error=np.array([0.5, 1.5] * 4))
    np.testing.assert_array_equal(run.analysis, expected.analysis)


# What is refused.


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"positions": FIXED}, TypeError, r"positions=array.*expected a mapping such as \{'x': \[0.5, 7.25\]\}"),
        ({"positions": {"x": np.zeros((2, 3, 4))}}, ValueError, r"expected \(P,\), or \(times, P\)"),
        ({"positions": {"y": FIXED}}, ValueError, r"expected coordinates along \['x'\] for observations of the field"),
        ({"positions": {"x": MOVING[:3]}}, ValueError, "positions of 3 times: expected 20"),
        ({"positions": {"x": FIXED, "instrument": [1] * 5}}, TypeError, "expected a word for each observation"),
        ({"positions": {"x": FIXED, "instrument": ["a"]}}, ValueError, r"has 1 words: expected one of \(5,\)"),
        ({"positions": {"x": FIXED}, "error_std": {"a": 1.0}}, ValueError, "or positions={'instrument'"),
        ({"positions": {"x": FIXED}, "error_std": {"a": -1.0}}, ValueError, r"error_std\['a'\]=-1"),
        ({"positions": {"x": FIXED}, "operator": np.eye(8)}, ValueError, "gives 8 observations, the record has 5"),
    ],
)
def test_positions_that_do_not_fit_a_twin(model, setting, error, message):
    with pytest.raises(error, match=message):
        xdan.twin(model, cycles=CYCLES, **setting)


def test_positions_that_do_not_fit_a_record(moving, twin):
    with pytest.raises(ValueError, match="positions are those of observations along 'obs'; expected that dim"):
        twin.dan.baseline("etkf", positions={"x": FIXED})
    with pytest.raises(ValueError, match="there are positions of 4 observations, the record has 5"):
        moving.dan.baseline("etkf", positions={"x": FIXED[:4]})
    each = moving.obs_x.expand_dims(trajectory=3)
    with pytest.raises(ValueError, match="vary along 'trajectory': expected dims"):
        moving.dan.baseline("etkf", positions={"x": each})
    box = xdan.CustomDynamics(lambda x: -x, state={"u": xdan.Interval(8)}, timestep=0.05, name="box")
    with pytest.raises(ValueError, match=r"the place x=.* lies beyond the walls at -0\.5 and 7\.5"):
        xdan.twin(box, positions={"x": [7.6]})
    with pytest.raises(ValueError, match="'unstated' has no interpolation between its points: expected a ring"):
        xdan.twin(xdan.CustomDynamics(lambda x: -x, state={"x": 4}, timestep=0.05, name="bare"), positions={"x": [1.0]})
