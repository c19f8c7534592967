"""Q and R from labelled records: variables that play roles, resuming, bad input."""

import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from dask.distributed import Client

import xdan
from xdan.estimation import error_passes, error_request

QUIET = {"progress": False}
START = {"model_error": 1.0, "observation_error": 2.0, **QUIET}
LAST = "ignore:the estimate by .* has not converged"


class Pair(xdan.Dynamics, pure=True):
    """Two fields, u of three components and h of two, that turn and decay; h drives u."""

    name = "pair of the tests of errors"

    def __init__(self):
        self.timestep, self.spin_up_time = 1.0, 30.0
        fields = [xdan.Field(name, xdan.Components(n, dim=name + "_i")) for name, n in (("u", 3), ("h", 2))]
        self.space = xdan.StateSpace(fields)
        m = 0.8 * torch.eye(5, dtype=torch.float64).roll(1, 0)
        m[:3, 3:] += 0.3
        self.matrix = m

    def config(self):
        return {}

    def step(self, x):
        return x @ self.matrix.to(x).mT

    def advance_along(self, x, directions, steps):
        for _ in range(steps):
            x, directions = self.step(x), self.step(directions)
        return x, directions


@pytest.fixture(scope="module")
def record():
    """Sixteen trajectories of 30 cycles of a Lorenz-96 that errs by 0.5 in an interval, observed with errors of 1."""
    setting = {"model_error_std": 0.5, "error_std": 1.0, "dtype": "float64"}
    return xdan.twin(xdan.Lorenz96(sites=6), cycles=30, trajectories=16, seed=3, **setting).compute()


@pytest.fixture(scope="module")
def pair():
    setting = {"interval": 1.0, "model_error_std": {"u": 0.5, "h": 1.0}, "error_std": {"u": 1.0, "h": 2.0}}
    observe = {"u": xdan.Sites.all(), "h": xdan.Sites.all()}
    return xdan.twin(Pair(), cycles=60, trajectories=12, observe=observe, dtype="float64", **setting).compute()


@pytest.fixture(scope="module")
def estimate(record):
    return record.dan.estimate_errors(**START)


def test_both_are_near_the_truth_and_know_how_near(estimate):
    for name, true in (("model_error", 0.5), ("observation_error", 1.0)):
        error = float(estimate[f"{name}_standard_error"])
        assert 0 < error < 0.05
        assert abs(float(estimate[name]) - true) < 4 * error
        history = estimate[f"{name}_history"]
        assert history[0] == START[name]
        assert history[-1] == estimate[name]
    assert bool(estimate.converged)
    assert not bool(estimate.diverged)
    assert (np.diff(estimate.log_likelihood) > -1e-6).all()
    assert estimate.attrs["passes"] < 40


@pytest.mark.slow
def test_plain_steps_end_in_the_same_place(record, estimate):
    plain = record.dan.estimate_errors(accelerate=False, **START)
    assert plain.attrs["passes"] > estimate.attrs["passes"]
    for name in ("model_error", "observation_error"):
        assert float(plain[name]) == pytest.approx(
            float(estimate[name]), abs=0.2 * float(estimate[f"{name}_standard_error"])
        )


def test_a_record_and_a_method_take_them_as_they_are(record, estimate):
    plain = record.drop_vars(["model_error", "observation_error"]).drop_attrs(deep=False).assign_attrs(record.attrs)
    assigned = plain.assign(estimate[["model_error", "observation_error"]])
    words = {name: estimate[name] for name in ("model_error", "observation_error")}
    runs = [assigned.dan.baseline("extended-kalman", inflation=1.0)]
    runs.append(plain.dan.baseline("extended-kalman", inflation=1.0, **words))
    xr.testing.assert_identical(runs[0].analysis, runs[1].analysis)
    assert float(assigned.dan.score(runs[0], burn_in=5).rmse) < 0.75


@pytest.mark.filterwarnings(LAST)
@pytest.mark.parametrize("method", ["em", "desroziers", "lag-innovations"])
def test_chunks_change_nothing(record, method):
    words = {**START, **({} if method == "lag-innovations" else {"iterations": 2})}
    whole = record.dan.estimate_errors(method, **words)
    chunked = record.chunk({"trajectory": 5, "time": 7}).dan.estimate_errors(method, **words)
    xr.testing.assert_allclose(whole, chunked, rtol=1e-9)
    assert (whole.observation_error_standard_error > 0).all()


@pytest.mark.filterwarnings(LAST)
def test_workers_give_the_same(record, tmp_path):
    whole = record.dan.estimate_errors(iterations=2, **START)
    with Client(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None):
        words = {"iterations": 2, "store": tmp_path / "e.zarr", **START}
        chunked = record.chunk({"trajectory": 8}).dan.estimate_errors(**words).compute()
    xr.testing.assert_allclose(whole, chunked, rtol=1e-9)


class KilledError(Exception):
    pass


@pytest.mark.parametrize(("method", "name"), [("em", "scores"), ("desroziers", "statistics")])
@pytest.mark.parametrize(
    "passes", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow)]
)
def test_a_killed_call_goes_on(record, method, name, passes, tmp_path, monkeypatch):
    words = {**START, "iterations": 5, "tolerance": 1e-9}
    few = record.isel(trajectory=slice(0, 6), time=slice(0, 16))
    with pytest.warns(xdan.XdanWarning, match="has not converged to 1e-09 in 5 passes"):
        whole = few.dan.estimate_errors(method, **words)
    count, original = [0], getattr(error_passes.Passes, name)

    def counted(self, *arguments):
        if count[0] == passes:
            raise KilledError
        count[0] += 1
        return original(self, *arguments)

    monkeypatch.setattr(error_passes.Passes, name, counted)
    with pytest.raises(KilledError):
        few.dan.estimate_errors(method, store=tmp_path / "e.zarr", **words)
    assert not (tmp_path / "e.zarr").exists()
    with pytest.raises(FileExistsError, match="unfinished estimate of another record or other settings"):
        few.dan.estimate_errors(method, store=tmp_path / "e.zarr", structure="diagonal", **words)
    count[0] = -100
    with pytest.warns(xdan.XdanWarning):
        resumed = few.dan.estimate_errors(method, store=tmp_path / "e.zarr", **words)
    extra = 1 if method == "em" else 0  # the last scores give the standard errors
    assert count[0] + 100 == 5 + extra - passes
    xr.testing.assert_identical(resumed.compute().drop_attrs(), whole.drop_attrs())
    assert [path.name for path in tmp_path.iterdir()] == ["e.zarr"]
    with pytest.raises(FileExistsError, match="pass mode='w'"):
        few.dan.estimate_errors(method, store=tmp_path / "e.zarr", **words)


@pytest.mark.parametrize(
    "other", [{"tolerance": 1e-4}, {"observation": 1}, {"observation_error": 3.0}], ids=["tolerance", "block", "R"]
)
def test_a_killed_call_of_other_observations_or_tolerance_does_not_go_on(record, other, tmp_path, monkeypatch):
    few = record.isel(trajectory=slice(0, 4)).chunk(trajectory=2)
    words = {**START, "iterations": 2, "tolerance": 1e-9, "store": tmp_path / "e.zarr"}
    whole = error_passes.Passes.scores

    def killed(self, *arguments):
        if (tmp_path / ".e.zarr.passes").exists():
            raise KilledError
        return whole(self, *arguments)

    monkeypatch.setattr(error_passes.Passes, "scores", killed)
    with pytest.raises(KilledError):
        few.dan.estimate_errors(**words)
    if "observation" in other:  # of the last block
        changed = few.observation.copy(data=few.observation.values)
        changed[3, 5, 0] += 0.1
        few, other = few.assign(observation=changed).chunk(trajectory=2), {}
    with pytest.raises(FileExistsError, match="unfinished estimate of another record or other settings"):
        few.dan.estimate_errors(**{**words, **other})


@pytest.mark.filterwarnings(LAST)
@pytest.mark.parametrize("method", ["em", "lag-innovations"])
@pytest.mark.parametrize("explicit", [False, True])
def test_a_fixed_q_of_a_perfect_model_is_zero(method, explicit):
    ds = xdan.twin(Pair(), cycles=40, trajectories=8, interval=1.0, error_std=1.0, dtype="float64").compute()
    words = {"dynamics": Pair(), "structure": {"model_error": "fixed"}, "observation_error": 1.5, **QUIET}
    estimate = ds.dan.estimate_errors(method, **words, **({"model_error": 0.0} if explicit else {}))
    for name in ("u", "h"):
        assert (estimate[f"model_error_{name}_history"] == 0).all()
        if method == "em":
            error = float(estimate[f"observation_error_{name}_standard_error"])
            assert abs(float(estimate[f"observation_error_{name}"]) - 1.0) < 4 * error


def test_a_record_that_says_zero_is_refused(record):
    perfect = record.assign(model_error=0.0 * record.model_error)
    with pytest.raises(ValueError, match="model_error is 0, and the structure of Q is 'scalar'"):
        perfect.dan.estimate_errors(**QUIET)


def test_of_several_fields_each_has_its_own(pair):
    words = {"dynamics": Pair(), **QUIET}
    estimate = pair.dan.estimate_errors(observation_error={"u": 2.0, "h": 1.0}, model_error=1.0, **words)
    for name, true in {
        "model_error_u": 0.5,
        "model_error_h": 1.0,
        "observation_error_u": 1.0,
        "observation_error_h": 2.0,
    }.items():
        assert estimate[name].attrs["xdan_role"] == name[:-2]
        assert abs(float(estimate[name]) - true) < 4 * float(estimate[f"{name}_standard_error"])
    again = pair.drop_vars([name for name in pair if "_error_" in name]).assign(
        estimate[["model_error_u", "model_error_h", "observation_error_u", "observation_error_h"]]
    )
    run = again.dan.baseline("extended-kalman", inflation=1.0, dynamics=Pair())
    assert not bool(run.diverged.any())


@pytest.mark.filterwarnings(LAST)
def test_full_covariances_of_several_fields(pair):
    words = {"model_error": 1.0, "observation_error": {"u": 2.0, "h": 1.0}, "dynamics": Pair(), **QUIET}
    full = pair.dan.estimate_errors(structure="full", iterations=6, **words)
    assert full.model_error_covariance.dims == ("state", "state_dual")
    assert full.observation_error_covariance_u.dims == ("u_i", "u_i_dual")
    assert np.linalg.eigvalsh(full.model_error_covariance).min() > 0
    words = {"dynamics": Pair(), "model_error": full.model_error_covariance}
    run = pair.dan.baseline("extended-kalman", inflation=1.0, **words)
    assert not bool(run.diverged.any())


def test_q_of_a_field_that_nothing_observes(pair):
    """h drives u, and so its errors are seen in u."""
    blind = pair.drop_vars(["observation_h", "observation_error_h"])
    words = {"dynamics": Pair(), "model_error": 0.8, "observation_error": {"u": 2.0}}
    estimate = blind.dan.estimate_errors(**words, **QUIET)
    assert "observation_error_h" not in estimate
    for name, true in {"model_error_u": 0.5, "model_error_h": 1.0, "observation_error_u": 1.0}.items():
        assert abs(float(estimate[name]) - true) < 4 * float(estimate[f"{name}_standard_error"])


@pytest.mark.filterwarnings(LAST)
def test_observations_by_an_operator_and_gaps():
    matrix = np.eye(6)[:4] + 0.5 * np.eye(6)[1:5]
    setting = {"operator": matrix, "model_error_std": 0.5, "error_std": 1.0, "dtype": "float64"}
    ds = xdan.twin(xdan.Lorenz96(sites=6), cycles=40, trajectories=16, seed=1, **setting).compute()
    gone = ds.observation.copy()
    gone[:, 20:23] = np.nan
    ds = ds.assign(observation=gone)
    estimate = ds.dan.estimate_errors(structure={"observation_error": "diagonal"}, **START)
    assert estimate.observation_error.dims == ("obs",)
    error = estimate.observation_error_standard_error
    assert (abs(estimate.observation_error - 1.0) < 4 * error).all()
    assert abs(float(estimate.model_error) - 0.5) < 4 * float(estimate.model_error_standard_error)
    ds.dan.estimate_errors("lag-innovations", **START)
    with pytest.raises(ValueError, match="observations by an operator"):
        ds.dan.estimate_errors("lag-innovations", structure="diagonal", **START)


def test_a_model_without_derivatives(record):
    black_box = xdan.NumpyDynamics(
        step=lambda x: xdan.Lorenz96(sites=6).step(torch.from_numpy(np.ascontiguousarray(x))).numpy(),
        state={"x": 6},
        timestep=0.05,
        spin_up_time=5.0,
    )
    few = record.isel(trajectory=slice(0, 4))
    words = {**START, "iterations": 2, "tolerance": 10.0}
    torch_model = few.dan.estimate_errors(**words)
    differenced = few.dan.estimate_errors(dynamics=black_box, **words)
    for name in ("model_error", "observation_error"):
        assert float(differenced[name]) == pytest.approx(float(torch_model[name]), rel=0.05)


def test_desroziers_finds_r_of_an_ensemble():
    ds = xdan.twin(xdan.Lorenz96(sites=10), cycles=100, trajectories=16, seed=2, dtype="float64").compute()
    estimate = ds.dan.estimate_errors("desroziers", observation_error=2**0.5, scheme=xdan.FiniteSizeEnKF(15), **QUIET)
    error = float(estimate.observation_error_standard_error)
    assert abs(float(estimate.observation_error) - 1.0) < max(4 * error, 0.02)
    assert "model_error" not in estimate
    assert 0.1 < float(estimate.forecast_error) < 0.5
    assert estimate.attrs["scheme"] == "enkf-n"


def test_an_estimate_that_diverges_is_flagged(record):
    wrong = record.assign(observation=1e6 * record.observation)
    with pytest.warns(xdan.XdanWarning, match="diverged after 1 steps: it is NaN, and its history is kept"):
        estimate = wrong.dan.estimate_errors(**START)
    assert bool(estimate.diverged)
    assert np.isnan(estimate.observation_error)
    assert estimate.sizes["iteration"] == 2
    assert "diverged" in estimate.attrs["xdan_warnings"][0]


def test_nothing_is_known_of_the_errors_of_one_sample(record):
    one = record.isel(trajectory=0, time=slice(0, 15))
    estimate = one.dan.estimate_errors(structure={"model_error": "fixed"}, **START)
    assert float(estimate.model_error) == 1.0
    assert np.isnan(estimate.model_error_standard_error)
    assert np.isnan(estimate.observation_error_standard_error)


BAD = [
    ({"method": "kalman"}, ValueError, "method='kalman': expected one of ['desroziers', 'em', 'lag-innovations']"),
    ({"method": 3}, TypeError, "expected one of"),
    ({"structure": "banded"}, ValueError, "expected one of ['diagonal', 'fixed', 'full', 'scalar']"),
    ({"structure": {"q": "full"}}, ValueError, "expected some of ['model_error', 'observation_error']"),
    ({"structure": "fixed"}, ValueError, "nothing is left to estimate"),
    ({"iterations": 0}, ValueError, "expected at least 1"),
    ({"iterations": "many"}, TypeError, "expected an integer"),
    ({"tolerance": "small"}, TypeError, "expected a number"),
    ({"tolerance": -1.0}, ValueError, "above 0"),
    ({"burn_in": 29}, ValueError, "expected at least two cycles after it"),
    ({"accelerate": 1}, TypeError, "expected True or False"),
    ({"smoothing": 10.0}, TypeError, "method='em' has no use for it"),
    ({"scheme": "enkf-n"}, TypeError, "method='em' has no use for it"),
    ({"method": "lag-innovations", "smoothing": 0.5}, ValueError, "at least 1"),
    ({"method": "lag-innovations", "iterations": 3}, TypeError, "has no use for it"),
    ({"method": "desroziers", "scheme": "no-such"}, ValueError, "scheme='no-such': expected one of"),
    ({"method": "desroziers", "scheme": 3}, TypeError, "expected a method's name or object"),
    ({"method": "desroziers", "structure": {"model_error": "full"}}, ValueError, "tell nothing of Q"),
    ({"observation_error": np.ones(5)}, ValueError, "observation error has shape (5,)"),
    ({"observation_error": np.ones((30, 6))}, ValueError, "observation error has shape"),
    ({"model_error": np.ones(5)}, ValueError, "model_error_std has shape (5,)"),
    (
        {"model_error": 0.0, "structure": "diagonal"},
        ValueError,
        "model_error is 0, and the structure of Q is 'diagonal'",
    ),
    ({"model_error": 0.0, "method": "lag-innovations"}, ValueError, "structure={'model_error': 'fixed'}"),
    ({"model_error": [0.0, 1, 1, 1, 1, 1], "structure": "diagonal"}, ValueError, "leaves zero as it is"),
    ({"seed": -1}, ValueError, "seed=-1"),
    ({"progress": 3}, TypeError, "progress=3"),
    ({"mode": "a"}, ValueError, "mode='a'"),
    ({"inflation": 1.0}, TypeError, "inflation=1.0"),
]


@pytest.mark.filterwarnings(LAST)
@pytest.mark.parametrize(("words", "error", "message"), BAD)
def test_bad_input(record, words, error, message):
    words = {"progress": False, **words}
    with pytest.raises(error, match=re.escape(message)):
        record.dan.estimate_errors(**words)


def test_records_that_say_too_little(record):
    few = record.isel(trajectory=slice(0, 1), time=slice(0, 12))
    with pytest.raises(
        ValueError, match=r"11 cycles after the burn-in, and 42 numbers to estimate: expected at least 42"
    ):
        few.dan.estimate_errors(structure="full", **QUIET)
    uneven = record.isel(time=[0, 1, 2, 3, 5, 6, 7, 8])
    with pytest.raises(ValueError, match=r"the intervals of the record last 0.05 to 0.1: .* ds.reindex"):
        uneven.dan.estimate_errors(**QUIET)
    in_time = record.assign(observation_error=("time", np.linspace(1, 2, 30)))
    with pytest.raises(ValueError, match="change in time"):
        in_time.dan.estimate_errors(**QUIET)
    empty = record.assign(observation=record.observation * np.nan)
    with pytest.raises(ValueError, match="every value of 'observation' is NaN"):
        empty.dan.estimate_errors(**QUIET)


def test_large_states_are_refused_at_once():
    ds = xdan.twin(xdan.Lorenz96(sites=2400), cycles=4, trajectories=1)
    with pytest.raises(ValueError, match="expected at most 2,000 components; take method='desroziers'"):
        ds.dan.estimate_errors(**QUIET)


@pytest.mark.filterwarnings(LAST)
@pytest.mark.parametrize("figure", ["em", "desroziers", "lag-innovations"])
def test_the_figures_run(figure, tmp_path, monkeypatch):
    from argparse import Namespace

    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    example = import_module("imperfect_errors")
    monkeypatch.setitem(error_request._ITERATIONS, "em", 3)
    monkeypatch.setattr(example, "MODEL", xdan.Lorenz96(sites=5))
    monkeypatch.setattr("shutil.which", lambda name: None)  # no browser: the page without its picture
    for _ in range(2):
        example.FIGURES[figure](Namespace(out=tmp_path, cycles=24, trajectories=4, seed=5))
    assert "| estimate |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "estimates.html").stat().st_size > 10_000
