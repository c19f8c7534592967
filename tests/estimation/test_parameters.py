"""`estimate_parameters`: labels, stores, chunks, and what it refuses."""

import dask
import numpy as np
import pytest
import torch
import xarray as xr

import xdan
from xdan.core.estimation.likelihood import Descent
from xdan.core.estimation.parameter_em import ExpectationMaximisation
from xdan.estimation import iterations as module

pytestmark = pytest.mark.filterwarnings("ignore:the estimate of .* has not converged")  # three iterations

PRIOR = {"forcing": (7.0, 1.0)}
QUICK = {"members": 12, "progress": False}
FEW = {"augmented": {}, "likelihood": {"iterations": 3, "window": 8}, "em": {"iterations": 3, "burn_in": 3}}


@pytest.fixture(scope="module")
def record():
    """Lorenz-96 with a forcing of 8, every site observed."""
    ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=24, trajectories=3, seed=2, dtype="float64")
    return ds.compute(scheduler="synchronous")


@pytest.fixture(scope="module")
def wrong():
    return xdan.Lorenz96(sites=8, forcing=7.0)


@pytest.fixture(scope="module")
def results(record, wrong):
    return {
        method: record.dan.estimate_parameters(wrong, PRIOR, method, **QUICK, **words) for method, words in FEW.items()
    }


def test_labels_of_augmented(record, results):
    result = results["augmented"]
    assert result.forcing.dims == result.forcing_spread.dims == ("trajectory", "time")
    np.testing.assert_array_equal(result.time, record.time)
    last = result.forcing.isel(time=-1)
    np.testing.assert_allclose(result.forcing_estimate, last.mean())
    np.testing.assert_allclose(result.forcing_standard_error, last.std(ddof=1) / np.sqrt(3))
    assert (result.forcing_spread.isel(time=-1) < 0.6 * result.forcing_spread.isel(time=0)).all()
    assert abs(float(result.forcing_estimate) - 8.0) < 4 * float(last.std())
    assert result.attrs["method"] == "augmented"


def test_a_single_trajectory_has_the_spread_for_its_error(record, wrong):
    bare = record.isel(trajectory=0)
    result = bare.dan.estimate_parameters(wrong, PRIOR, **QUICK)
    assert result.forcing.dims == ("time",)
    np.testing.assert_allclose(result.forcing_standard_error, result.forcing_spread.isel(time=-1))


@pytest.mark.parametrize("method", ["likelihood", "em"])
def test_labels_of_iterations(results, method):
    result = results[method]
    assert result.forcing.dims == ("iteration",)
    assert float(result.forcing[0]) == 7.0
    assert not result.diverged.any()
    assert not result.lost.any()
    assert bool(result.converged) == (method == "likelihood")  # three iterations of "em" are too few
    assert 7.0 < float(result.forcing_estimate) < 9.0
    assert float(result.forcing_standard_error) > 0
    told = "negative_log_likelihood" if method == "likelihood" else "model_error_std"
    assert result[told][1:].notnull().all()


def test_an_estimate_makes_a_model(results, wrong):
    value = float(results["likelihood"].forcing_estimate)
    assert wrong.with_parameters(**xdan.estimate_of(results["likelihood"])).forcing == value
    with pytest.raises(ValueError, match="no estimates among"):
        xdan.estimate_of(results["em"][["forcing"]])
    with pytest.raises(TypeError, match="expected the Dataset"):
        xdan.estimate_of(8.0)


@pytest.mark.parametrize("method", list(FEW))
def test_chunks_and_the_function_give_the_same(record, results, wrong, method):
    chunked = record.chunk(trajectory=2, time=7)
    result = xdan.estimate_parameters(chunked, wrong, PRIOR, method, **QUICK, **FEW[method])
    assert bool(result.chunks) == (method == "augmented")
    xr.testing.assert_allclose(result.compute(), results[method], rtol=1e-8)


@pytest.mark.parametrize("method", list(FEW))
def test_a_dask_client_gives_the_same(record, results, wrong, method):
    distributed = pytest.importorskip("distributed")
    cluster = {"processes": False, "n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.Client(**cluster) as client, dask.config.set(scheduler=client):
        chunked = record.chunk(trajectory=2)
        result = chunked.dan.estimate_parameters(wrong, PRIOR, method, **QUICK, **FEW[method]).compute()
    xr.testing.assert_allclose(result, results[method], rtol=1e-8)


@pytest.mark.parametrize(("method", "cls"), [("likelihood", Descent), ("em", ExpectationMaximisation)])
def test_a_killed_iteration_goes_on(record, results, wrong, tmp_path, monkeypatch, method, cls):
    store, whole, calls = tmp_path / "estimate.zarr", cls.iterate, []

    def killed(self):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self)

    words = {**QUICK, **FEW[method], "store": store}
    monkeypatch.setattr(cls, "iterate", killed)
    with pytest.raises(KeyboardInterrupt):
        record.dan.estimate_parameters(wrong, PRIOR, method, **words)
    h = 1.1 * np.eye(8)
    for other in ({"seed": 5}, {"observation_error": 2.0}, {"operator": h, "observation_error": 1.0}):
        observed = record.rename(x="obs").drop_vars(["truth", "obs"]) if "operator" in other else record
        with pytest.raises(FileExistsError, match="unfinished estimate of other settings"):
            observed.dan.estimate_parameters(wrong, PRIOR, method, **{**words, **other})
    resumed = record.dan.estimate_parameters(wrong, PRIOR, method, **words)
    assert len(calls) == 4  # two before the kill, the one that was killed, and one after
    xr.testing.assert_allclose(resumed.compute(), results[method], rtol=1e-10)
    with pytest.raises(FileExistsError, match="exists"):
        record.dan.estimate_parameters(wrong, PRIOR, method, **words)
    again = record.dan.estimate_parameters(wrong, PRIOR, method, **words, mode="w")
    assert len(calls) == 7
    xr.testing.assert_identical(again.compute(), resumed.compute())


def test_a_killed_filter_goes_on(record, results, wrong, tmp_path, monkeypatch):
    from xdan.assimilation import cycling

    store, whole, calls = tmp_path / "run.zarr", cycling._stream_block, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(cycling, "_stream_block", killed)
    chunked = record.chunk(time=6)
    with pytest.raises(KeyboardInterrupt):
        chunked.dan.estimate_parameters(wrong, PRIOR, **QUICK, store=store)
    resumed = chunked.dan.estimate_parameters(wrong, PRIOR, **QUICK, store=store)
    assert len(calls) == 5
    xr.testing.assert_allclose(resumed.compute(), results["augmented"], rtol=1e-10)


def test_forcing_of_every_site_has_the_dims_of_the_state(record, wrong):
    prior = {"forcing": (np.full(8, 7.0), 1.0)}
    result = record.dan.estimate_parameters(wrong, prior, **QUICK)
    assert result.forcing.dims == ("trajectory", "time", "x")
    other = record.dan.estimate_parameters(wrong, prior, "likelihood", **QUICK, iterations=1, window=12)
    assert other.forcing_estimate.dims == ("x",)
    assert len(wrong.with_parameters(**xdan.estimate_of(other)).forcing) == 8


def test_an_observation_operator_and_a_localised_filter(record, wrong):
    h = np.eye(8)[::2]
    part = xr.Dataset({"observation": (("trajectory", "time", "obs"), record.observation.values @ h.T)}, record.coords)
    words = {"operator": h, "observation_error": 1.0}
    result = part.drop_vars("x", errors="ignore").dan.estimate_parameters(wrong, PRIOR, **QUICK, **words)
    assert result.forcing.notnull().all()
    local = record.dan.estimate_parameters(wrong, PRIOR, ensemble="letkf", **QUICK)
    assert (local.forcing_spread.isel(time=-1) < 0.7 * local.forcing_spread.isel(time=0)).all()


def test_a_walk_keeps_the_spread_up(record, results, wrong):
    walked = record.dan.estimate_parameters(wrong, PRIOR, **QUICK, walk={"forcing": 0.3})
    assert (walked.forcing_spread.isel(time=-1) > results["augmented"].forcing_spread.isel(time=-1)).all()


def test_a_model_of_numpy_functions_has_no_likelihood_and_none_of_its_parameters(record):
    model = xdan.NumpyDynamics(lambda x: 0.9 * x, state={"x": 8}, timestep=0.05, spin_up_time=0.0)
    with pytest.raises(ValueError, match="has no parameter 'forcing': it has no real parameters"):
        record.dan.estimate_parameters(model, PRIOR, "likelihood", **QUICK)


class Blind(xdan.Dynamics):
    """A model that says that it has no derivatives."""

    name = "blind"
    dims = ("x",)
    spin_up_time = 0.0
    has_derivatives = False

    def __init__(self, forcing=8.0, timestep=0.05):
        self.forcing, self.timestep = forcing, timestep
        self.coordinates = {"x": xdan.Coordinate(tuple(range(8)), {})}

    def tendency(self, x):
        return torch.as_tensor(self.forcing) - x


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"dynamics": Blind(), "method": "likelihood"}, ValueError, "needs derivatives of the model"),
        ({"method": "guess"}, ValueError, "expected one of"),
        ({"parameters": {"sites": (8.0, 1.0)}}, ValueError, "no real number"),
        ({"parameters": {"forcing": (8.0, -1.0)}}, ValueError, "expected a positive number"),
        ({"parameters": [7.0]}, TypeError, "expected a mapping"),
        ({"ensemble": "3d-var"}, ValueError, "has no members"),
        ({"ensemble": "ienkf", "method": "em"}, ValueError, "needs a filter whose members"),
        ({"ensemble": "particle", "method": "likelihood"}, ValueError, "needs a filter whose members"),
        ({"ensemble": "foo"}, ValueError, "ensemble='foo': expected one of"),
        ({"ensemble": 3}, TypeError, "expected the name of an ensemble method"),
        ({"ensemble": xdan.FiniteSizeEnKF(5)}, ValueError, "has its own"),
        ({"window": 5}, ValueError, "window=5 is an option of method="),
        ({"walk": -1.0}, ValueError, "expected a standard deviation, 0 or more"),
        ({"walk": {"wind": 1.0}}, ValueError, "walk= names"),
        ({"method": "likelihood", "iterations": 0}, ValueError, "expected at least 1"),
        ({"method": "likelihood", "window": 2.5}, TypeError, "expected an integer"),
        ({"method": "likelihood", "rate": 0.0}, ValueError, "expected a finite number, above 0"),
        ({"method": "em", "burn_in": 24}, ValueError, "expected at least 25 cycles"),
        ({"method": "em", "parameters": {"forcing": (np.full(8, 7.0), 1.0)}, "burn_in": 17}, ValueError, "8 numbers"),
        ({"method": "em", "model_error": [0.1] * 7 + [0.0]}, ValueError, "expected a positive definite Q"),
        ({"mode": "a"}, ValueError, "mode='a'"),
    ],
)
def test_bad_input_is_refused_at_once(record, wrong, monkeypatch, words, error, message):
    monkeypatch.setattr(module, "_iterate", None)  # nothing long may begin
    arguments = {"dynamics": wrong, "parameters": PRIOR, **words}
    more = QUICK if "ensemble" not in words else {"members": 12 if isinstance(words["ensemble"], xdan.Method) else None}
    with pytest.raises(error, match=message):
        record.dan.estimate_parameters(**arguments, **{**more, "progress": False})


def test_an_estimate_that_diverges_is_flagged_and_its_history_kept(record, wrong):
    with pytest.warns(xdan.XdanWarning, match=r"the estimate of \['forcing'\] diverged"):
        result = record.dan.estimate_parameters(wrong, PRIOR, "likelihood", **QUICK, iterations=4, rate=1e3, window=12)
    assert not result.diverged[0]
    assert result.diverged[-1]
    assert float(result.forcing[0]) == 7.0
    assert np.isnan(result.forcing_estimate)
    assert np.isnan(result.forcing[-1])


def test_a_forcing_named_as_a_variable_of_the_result_is_refused(record):
    model = xdan.CustomDynamics(
        lambda x, iteration: iteration - x, state={"x": 8}, timestep=0.05, parameters={"iteration": 8.0}
    )
    with pytest.raises(ValueError, match="called as variables of the result"):
        record.dan.estimate_parameters(model, {"iteration": (8.0, 1.0)}, **QUICK)


def test_an_iteration_that_is_not_at_its_end_says_so(record, wrong):
    with pytest.warns(xdan.XdanWarning, match=r"\['forcing'\] by 'em' has not converged in 1 iterations"):
        result = record.dan.estimate_parameters(wrong, PRIOR, "em", **QUICK, iterations=1, burn_in=3)
    assert not result.converged
    assert float(result.forcing_estimate) == float(result.forcing[-1])  # no extrapolation
    assert "has not converged" in result.attrs["xdan_warnings"][0]


def test_a_prior_too_wide_for_the_model_is_refused_at_once(record, monkeypatch):
    model = xdan.CustomDynamics(
        lambda x, growth: growth * x, state={"x": 8}, timestep=0.05, spin_up_time=50.0, parameters={"growth": -1.0}
    )
    monkeypatch.setattr("xdan.estimation.augmentation.run_over", None)  # nothing long may begin
    with pytest.raises(ValueError, match=r"growth: \(-1.0, 30.0\).* take a narrower prior"):
        record.dan.estimate_parameters(model, {"growth": (-1.0, 30.0)}, **QUICK)
