"""Observing systems as labels: operators and errors in the verbs, against the same thing by hand."""

import numpy as np
import pytest
import torch
import xarray as xr

import xdan
from xdan.core.observing import FunctionOperator
from xdan.core.twin import TwinExperiment
from xdan.records.observing import identity, operator_from
from xdan.records.record import read
from xdan.records.twin_observing import observing_system

RANDOM = np.random.default_rng(0)
MATRIX = RANDOM.normal(size=(5, 8))


def halves(x):
    """Means of neighbours, squared: five observations of eight sites."""
    return 0.1 * (x[..., :5] + x[..., 1:6]) ** 2


@pytest.fixture(scope="module")
def matrix_twin(model):
    ds = xdan.twin(model, cycles=20, trajectories=3, operator=MATRIX, error_std=0.5, seed=3, dtype="float64")
    return ds.compute(scheduler="synchronous")


@pytest.fixture(scope="module")
def function_twin(model):
    ds = xdan.twin(model, cycles=20, trajectories=3, operator=halves, error_std=0.5, seed=3, dtype="float64")
    return ds.compute(scheduler="synchronous")


def test_twin_observes_through_the_matrix(matrix_twin, model):
    assert matrix_twin.observation.dims == ("trajectory", "time", "obs")
    assert matrix_twin.observation_operator.dims == ("obs", "x")
    seen = xr.dot(matrix_twin.observation_operator, matrix_twin.truth, dim="x")
    noise = (matrix_twin.observation - seen).values
    # The same draws as an identity operator of five sites would have.
    plain = xdan.twin(model, cycles=20, trajectories=3, operator=np.eye(8)[:5], error_std=0.5, seed=3, dtype="float64")
    expected = (plain.observation - plain.truth.isel(x=slice(5)).rename(x="obs").drop_vars("obs")).values
    np.testing.assert_allclose(noise, expected, rtol=1e-12, atol=1e-12)


def test_twin_observes_through_the_function(function_twin):
    seen = halves(torch.from_numpy(function_twin.truth.values)).numpy()
    noise = function_twin.observation.values - seen
    assert 0.4 < noise.std() < 0.6
    assert "observation_operator" not in function_twin


def test_sites_choose_among_the_observations(model):
    ds = xdan.twin(model, cycles=4, operator=MATRIX, observe=xdan.Sites.every(2)).compute()
    assert ds.observation.notnull().all(("trajectory", "time")).values.tolist() == [True, False, True, False, True]


def test_an_identity_operator_is_no_operator(model, twin, architecture):
    through = twin.assign(
        observation=(("trajectory", "time", "obs"), twin.observation.values),
        observation_operator=(("obs", "x"), np.eye(8)),
    ).drop_vars("x")
    for name in ("etkf", "3d-var", "extended-kalman", "ienkf-n"):
        settings = {"inflation": 1.05} if name in ("etkf", "extended-kalman") else {}
        settings |= {"scale": 0.1} if name == "3d-var" else {}
        a, b = (xdan.baseline(ds, name, progress=False, **settings) for ds in (twin, through))
        xr.testing.assert_allclose(a.analysis.drop_vars("x"), b.analysis, rtol=1e-8, atol=1e-8)
        one, other = (xdan.score(ds, run) for ds, run in ((twin, a), (through, b)))
        common = ["rmse", "innovation_variance", "residual_mean", "error_variance_diagnosed"]
        xr.testing.assert_allclose(one[common], other[common], rtol=1e-8)


def test_a_matrix_and_its_function_are_one(matrix_twin):
    as_function = matrix_twin.drop_vars("observation_operator")
    operator = lambda x: x @ torch.as_tensor(MATRIX).to(x).T  # noqa: E731
    a = matrix_twin.dan.baseline("etkf", members=5, inflation=1.1)
    b = as_function.dan.baseline("etkf", members=5, inflation=1.1, operator=operator)
    xr.testing.assert_allclose(a.analysis, b.analysis, rtol=1e-10, atol=1e-10)
    c = as_function.dan.baseline("etkf", members=5, inflation=1.1, operator=MATRIX)
    xr.testing.assert_identical(a.analysis, c.analysis)


def test_stored_streamed_and_lazy_alike(matrix_twin, tmp_path):
    matrix_twin.chunk(trajectory=2, time=7).to_zarr(tmp_path / "twin.zarr", consolidated=False)
    opened = xr.open_zarr(tmp_path / "twin.zarr", consolidated=False)
    whole = matrix_twin.dan.baseline("enkf-n", members=6)
    lazy = opened.dan.baseline("enkf-n", members=6)
    streamed = opened.dan.baseline("enkf-n", members=6, store=tmp_path / "run.zarr", progress=False)
    for other in (lazy, streamed):
        xr.testing.assert_allclose(whole.analysis, other.analysis.compute(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("objective", ["rmse", "forecast", "analysis"])
@pytest.mark.parametrize("kind", ["matrix", "function"])
def test_a_network_trains_and_cycles_through_an_operator(
    kind, objective, matrix_twin, function_twin, quick, architecture
):
    ds, more = (matrix_twin, {}) if kind == "matrix" else (function_twin, {"operator": halves})
    net = ds.dan.train(architecture, objective=objective, **quick, **more)
    run = ds.dan.cycle(net, **more)
    assert run.analysis.dims == ("trajectory", "time", "x")
    assert np.isfinite(run.analysis).all()
    scores = ds.dan.score(run, **more)
    assert np.isfinite(scores.rmse)
    innovation = ds.observation.values - (
        run.forecast.values @ MATRIX.T if kind == "matrix" else halves(torch.from_numpy(run.forecast.values)).numpy()
    )
    np.testing.assert_allclose(scores.innovation_mean, innovation.mean(), rtol=1e-5)


def test_a_network_of_all_sites_runs_through_an_operator(model, twin, quick, architecture):
    net = twin.astype("float32").dan.train(xdan.ResidualCNN(filters=4, blocks=1, kernel=3), **quick)
    means = 0.5 * (np.eye(8) + np.roll(np.eye(8), 1, 1))
    ds = xdan.twin(model, cycles=20, trajectories=3, operator=means, seed=3).compute()
    run = ds.dan.cycle(net)
    assert np.isfinite(run.analysis).all()
    # An analysis by hand: zeta = H^T R^-1 (y - H x_f).
    innovation = ds.observation[:, 1].values - run.forecast[:, 1].values @ means.T
    with torch.no_grad():
        forecast, zeta = (
            torch.from_numpy(v.astype("float32")) for v in (run.forecast[:, 1].values, innovation @ means)
        )
        expected, _ = net.module().eval()(forecast, zeta, None)
    np.testing.assert_allclose(run.analysis[:, 1], expected, rtol=1e-4, atol=1e-5)


def test_endless_twin_through_an_operator(model, quick, architecture):
    net = xdan.train(TwinExperiment(model, operator=halves, error_std=0.5), architecture, **quick)
    assert np.isfinite(net.history.validation_rmse).all()
    assert len(net.description["training"]["data"]["fingerprint"]) == 64


# Errors that differ in time.


@pytest.fixture(scope="module")
def moving(model):
    std = xr.DataArray(np.linspace(0.2, 2.0, 20), dims="time")
    return xdan.twin(model, cycles=20, trajectories=3, error_std=std, seed=3, dtype="float64").compute()


def test_twin_errors_follow_time(moving, model):
    assert moving.observation_error.dims == ("time",)
    unit = xdan.twin(model, cycles=20, trajectories=3, error_std=1.0, seed=3, dtype="float64")
    expected = unit.truth + (unit.observation - unit.truth) * moving.observation_error
    xr.testing.assert_allclose(moving.observation, expected.transpose(*moving.observation.dims))


def test_the_same_in_any_shape(moving, model):
    std = moving.observation_error
    for sigma in (std.values[:, None] * np.ones(8), (std * xr.DataArray(np.ones(8), dims="x")).transpose("x", "time")):
        other = xdan.twin(model, cycles=20, trajectories=3, error_std=sigma, seed=3, dtype="float64").compute()
        assert other.observation_error.dims == ("time", "x")
        np.testing.assert_array_equal(other.observation, moving.observation)
        a, b = (ds.dan.baseline("enkf-n", members=6) for ds in (moving, other))
        np.testing.assert_allclose(a.analysis, b.analysis, rtol=1e-10)


@pytest.mark.parametrize(
    "name", ["etkf", "enkf", "letkf", "enkf-n", "ienks-n", "extended-kalman", "3d-var", "particle"]
)
def test_an_error_that_does_not_move_is_constant(name, twin):
    settings = {
        "etkf": {"inflation": 1.1},
        "enkf": {"inflation": 1.1},
        "letkf": {"inflation": 1.1, "radius": 3.0, "members": 5},
        "ienks-n": {"lag": 2},
        "extended-kalman": {"inflation": "tune"},
        "3d-var": {"scale": "tune"},
        "particle": {"members": 20},
    }.get(name, {})
    still = twin.assign(observation_error=xr.full_like(twin.time, 1.0))
    a, b = (ds.dan.baseline(name, **settings) for ds in (twin, still))
    xr.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8)
    xr.testing.assert_allclose(twin.dan.score(a, burn_in=3), still.dan.score(b, burn_in=3), rtol=1e-8, atol=1e-8)


def test_each_time_has_its_own_error(twin):
    # A very large error at one time: nothing is learned then.
    std = xr.full_like(twin.time, 1.0)
    std[7] = 1e8
    gap = twin.assign(observation=twin.observation.where(twin.time != twin.time[7]))
    a = twin.assign(observation_error=std).dan.baseline("etkf", members=6, inflation=1.1, spin_up=0)
    b = gap.dan.baseline("etkf", members=6, inflation=1.1, spin_up=0)
    xr.testing.assert_allclose(a.analysis, b.analysis, rtol=1e-6, atol=1e-6)


def test_blocks_find_their_times(moving, tmp_path):
    whole = moving.dan.baseline("etkf", members=6, inflation=1.1)
    lazy = moving.chunk(time=6, trajectory=2).dan.baseline("etkf", members=6, inflation=1.1)
    xr.testing.assert_allclose(whole.analysis, lazy.analysis.compute(), rtol=1e-10, atol=1e-10)
    late = moving.isel(time=slice(8, None))
    assert float(late.dan.score(whole.isel(time=slice(8, None))).error_variance) == pytest.approx(
        float((moving.observation_error[8:] ** 2).mean())
    )
    assert float(moving.dan.score(whole, burn_in=8).error_variance) == pytest.approx(
        float((moving.observation_error[8:] ** 2).mean())
    )


def test_processes_see_the_errors_of_their_times(moving, quick, architecture):
    a, b = (moving.dan.train(architecture, objective="forecast", **quick, processes=p) for p in (1, 2))
    for name in a.arrays:
        np.testing.assert_allclose(a.arrays[name], b.arrays[name], rtol=1e-4, atol=1e-5)


def test_training_sees_the_errors_of_its_times(moving, quick, architecture):
    a = moving.dan.train(architecture, **quick)
    wide = moving.assign(observation_error=moving.observation_error * xr.DataArray(np.ones(8), dims="x"))
    b = wide.dan.train(architecture, **quick)
    for name in a.arrays:
        np.testing.assert_allclose(a.arrays[name], b.arrays[name], rtol=1e-4, atol=1e-5)
    # The same error on average, at all times alike, gives other weights.
    level = moving.observation_error.mean(keep_attrs=True)
    c = moving.assign(observation_error=level).dan.train(architecture, **quick)
    assert any(not np.allclose(a.arrays[name], c.arrays[name], rtol=1e-3) for name in a.arrays)


def test_four_d_var_weighs_each_time_by_its_error(moving):
    """A window of one time is the analysis of that time; a longer one is another where the errors of before differ."""
    level = moving.assign(observation_error=moving.observation_error.mean())
    for name, settings in (("4d-var", {"scale": 0.1}), ("eda", {"members": 3})):
        run = moving.dan.baseline(name, window=3, **settings)
        assert not np.allclose(run.analysis, level.dan.baseline(name, window=3, **settings).analysis, rtol=1e-3)
        lazy = moving.chunk(time=7).dan.baseline(name, window=3, **settings)
        np.testing.assert_array_equal(lazy.analysis, run.analysis)
    same = moving.assign(observation_error=xr.full_like(moving.observation_error, 0.7))
    constant = moving.assign(observation_error=0.7)
    runs = [one.dan.baseline("4d-var", window=3, scale=0.1).analysis for one in (same, constant)]
    np.testing.assert_allclose(*runs, rtol=1e-9, atol=1e-9)


# What does not fit.


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (np.ones((3, 7)), r"has shape \(3, 7\): expected \(P, 8\)"),
        (np.ones(8), r"has shape \(8,\): expected \(P, 8\)"),
        (np.full((3, 8), np.nan), "expected a matrix .* of finite numbers"),
        (lambda x: 3.0, r"operator= gave float for states of shape \(2, 8\): expected a tensor \(2, P\)"),
        (lambda x: x.sum(), r"operator= gave \(\) for states"),
        (FunctionOperator(lambda x: x[..., :3], 4), "the observation operator gave shape"),
        (lambda x: x - x.mean(0), "operator= mixes the states of a batch"),
        (lambda x: x + torch.randn_like(x), "operator= gave two answers at the same states"),
        (lambda x, y: x, r"operator= failed for states of shape \(2, 8\) .*expected"),
        (lambda x: x[0, {}], r"operator= failed for states of shape \(2, 8\) .*expected"),
    ],
)
def test_operators_that_do_not_fit(operator, message, model):
    with pytest.raises(ValueError, match=message):
        operator_from(operator, model)


def test_a_function_is_asked_for(function_twin):
    with pytest.raises(
        ValueError, match=r"Dataset no 'observation_operator': pass operator=, a matrix of shape \(5, s"
    ):
        function_twin.dan.baseline("enkf-n")
    with pytest.raises(ValueError, match="the observation operator gave shape"):
        function_twin.dan.baseline("enkf-n", operator=lambda x: x[..., :3])
    with pytest.raises(ValueError, match=r"gives 3 observations, the record has 5"):
        function_twin.dan.baseline("enkf-n", operator=np.ones((3, 8)))


def test_the_kalman_filter_needs_a_linear_operator():
    decay = xdan.CustomDynamics(lambda x: -x, state={"x": 8}, timestep=0.05)
    ds = xdan.twin(decay, cycles=6, operator=halves).compute()
    with pytest.raises(ValueError, match="the Kalman filter needs a linear observation operator"):
        ds.dan.baseline("kalman", operator=halves, dynamics=decay)


def test_a_model_without_gradients_is_refused(single, quick, architecture):
    with pytest.raises(ValueError, match=r"(?s)derivative .* the model .* pass window=1"):
        single.dan.train(architecture, dynamics=Blind(sites=8), **quick)


class Blind(xdan.Lorenz96):
    """Lorenz-96 whose step is cut off from autodiff."""

    def advance(self, x, steps):
        return super().advance(x.detach(), steps)


def test_reading_is_the_twins_own(matrix_twin):
    reading = read(matrix_twin)
    np.testing.assert_array_equal(reading.setup.observing.operator.matrix, MATRIX)
    assert reading.observation.dims == ("trajectory", "time", "obs")
    turned = read(matrix_twin.transpose("x", "obs", "time", "trajectory"))
    np.testing.assert_array_equal(turned.setup.observing.operator.matrix, MATRIX)


@pytest.mark.filterwarnings("ignore:the observations are far from the truth")
def test_functions_are_known_by_what_they_give(model, function_twin, tmp_path, monkeypatch, quick, architecture):
    from xdan.records.streams import Stream

    def cut(self, attributes=None):
        raise KeyboardInterrupt

    settings = {"members": 5, "store": tmp_path / "run.zarr", "progress": False}
    with monkeypatch.context() as m:
        m.setattr(Stream, "finish", cut)
        with pytest.raises(KeyboardInterrupt):
            xdan.baseline(function_twin, "enkf-n", operator=halves, **settings)
    with pytest.raises(FileExistsError, match="unfinished run of another method, record or setting"):
        xdan.baseline(function_twin, "enkf-n", operator=lambda x: 2 * halves(x), **settings)
    xdan.baseline(function_twin, "enkf-n", operator=halves, **settings)
    checkpoint = tmp_path / "ck"
    one = xdan.train(TwinExperiment(model, operator=halves), architecture, checkpoint=checkpoint, **quick)
    other = TwinExperiment(model, operator=lambda x: 2 * halves(x))
    with pytest.raises(ValueError, match=r"checkpoint .* is of another run"):
        xdan.train(other, architecture, checkpoint=checkpoint, **quick)
    assert isinstance(one, xdan.Network)


def test_an_operator_that_takes_no_state_below_zero_is_known_by_the_models_states():
    """A logarithm of -3 is NaN, and all logarithms would be one."""

    def decay(x):
        return -0.1 * x

    grown = xdan.CustomDynamics(decay, state={"x": 4}, timestep=0.1, rest=lambda noise: 5.0 + noise.abs())

    def observed(dynamics, operator):
        experiment = TwinExperiment(dynamics, interval=0.1, operator=operator)
        return identity(observing_system(experiment), dynamics)[-1]

    once, again, other = (observed(grown, h) for h in (torch.log, lambda x: x.log(), lambda x: 1.001 * x.log()))
    assert np.isfinite(once).all()
    np.testing.assert_array_equal(once, again)
    assert (once != other).all()
    ramp = torch.linspace(-3.0, 3.0, 12, dtype=torch.float64).reshape(3, 4)
    np.testing.assert_array_equal(observed(grown, torch.sin), ramp.sin().numpy().round(9))


def test_static_gains_of_moving_errors_are_not_kept(moving):
    from xdan.core.methods import variational

    lengths = []
    gain = variational.Static.gain

    def noting(self, *args):
        answer = gain(self, *args)
        lengths.append(len(self._cache))
        return answer

    with pytest.MonkeyPatch.context() as m:
        m.setattr(variational.Static, "gain", noting)
        moving.dan.baseline("3d-var", scale=0.1)
    assert max(lengths) == 1


def test_errors_in_another_order_are_refused(twin):
    sigma = xr.DataArray(np.ones(8), dims="x", coords={"x": twin.x[::-1]})
    with pytest.raises(ValueError, match="has other labels along 'x' than the observations, or in another order"):
        twin.dan.baseline("enkf-n", observation_error=sigma)


def test_an_operator_of_one_dtype_says_so(model):
    weights = torch.ones(3, 8)
    with pytest.raises(ValueError, match=r"cannot take states of torch.float64.* turn its own tensors with .to\(x\)"):
        operator_from(lambda x: x @ weights.T, model)
    with pytest.raises(ValueError, match=r"the observation operator gave a float for states of .*: expected a tensor"):
        operator_from(lambda x: 1.0, model, 3)


def test_a_matrix_is_no_standard_deviation(model):
    with pytest.raises(ValueError, match=r"error_std has shape \(8, 8\), a matrix: pass R as error_covariance="):
        xdan.twin(model, cycles=5, error_std=np.eye(8) + 1)


def test_dataset_words_are_refused_by_an_endless_twin(model, quick):
    with pytest.raises(
        ValueError,
        match=r"\['observation_error'\] go with a Dataset: expected none of them, an endless twin has error_std=",
    ):
        xdan.train(model, observation_error=0.5, **quick)


def test_errors_and_operators_of_another_order_are_refused(model, moving):
    std = xr.DataArray(np.linspace(0.5, 2.0, 8), {"x": np.arange(8)}, ("x",))
    xdan.twin(model, cycles=4, error_std=std)
    with pytest.raises(ValueError, match="labels of 'x' in another order"):
        xdan.twin(model, cycles=4, error_std=std.isel(x=slice(None, None, -1)))
    matrix = xr.DataArray(np.eye(8)[:3], {"x": np.arange(8)}, ("obs", "x"))
    with pytest.raises(ValueError, match="labels of 'x' in another order"):
        xdan.twin(model, cycles=4, operator=matrix.isel(x=slice(None, None, -1)))
    turned = moving.observation_error.isel(time=slice(None, None, -1))
    with pytest.raises(ValueError, match="has other labels along 'time' than the observations"):
        moving.dan.baseline("optimal-interpolation", observation_error=turned)


@pytest.mark.parametrize(
    "value",
    [1 + 5j, np.complex64(1), np.ones(8) + 5j, np.datetime64("2020-01-01"), np.timedelta64(1, "s"), True, {}, [None]],
)
def test_errors_and_operators_are_real_numbers(twin, value):
    with pytest.raises(TypeError, match=r"observation_error=.*expected real numbers"):
        twin.dan.baseline("optimal-interpolation", observation_error=value)
    with pytest.raises(TypeError, match=r"observation error 'observation_error'=.*expected real numbers"):
        twin.assign(observation_error=((), "a")).dan.baseline("optimal-interpolation")
    with pytest.raises(TypeError, match=r"operator=.*expected real numbers"):
        operator_from(value, xdan.Lorenz96(sites=8))
