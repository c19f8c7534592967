"""A model with a season from twin to training: one clock, whatever the chunks, blocks, resumes and processes."""

import datetime
import json
import math

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal

import xdan
from xdan.core.checks import XdanWarning
from xdan.core.dynamics import dynamics_to_json
from xdan.core.learning.trainer import Trainer
from xdan.records.record import read
from xdan.records.streams import Stream
from xdan.records.times import first_model_time
from xdan.sweeps.cells import TEST_SEEDS

RATE = 2.3


@xdan.register_dynamics
class SeasonalRing(xdan.Lorenz96):
    """Lorenz-96 whose forcing has a season."""

    name = "seasonal-ring"

    def __init__(self, sites=8, amplitude=3.0):
        super().__init__(sites)
        self.amplitude = amplitude

    def config(self):
        return {"sites": self.sites, "amplitude": self.amplitude}

    def tendency(self, x, t):
        return super().tendency(x) + self.amplitude * math.sin(RATE * t)


MODEL = SeasonalRing()
TWIN = {"interval": 0.1, "cycles": 30, "trajectories": 4, "seed": 3, "dtype": "float64"}


@pytest.fixture(scope="module")
def season():
    return xdan.twin(MODEL, **TWIN).compute()


@pytest.mark.parametrize("chunks", [{"time": 7, "trajectory": 3}, {"time": 1}, {"time": 29, "trajectory": 1}])
def test_a_twin_in_other_chunks_has_the_same_bits(season, chunks):
    other = xdan.twin(MODEL, chunks=chunks, **TWIN).compute()
    assert_array_equal(other.truth, season.truth)
    assert_array_equal(other.observation, season.observation)


def test_a_twin_follows_its_model_in_time(season):
    truth = torch.from_numpy(season.truth.values)
    for k in (0, 7, 28):
        after = MODEL.from_step(2 * k).advance(truth[:, k], 2)
        assert_array_equal(after.numpy(), season.truth[:, k + 1])
        assert float((MODEL.from_step(2 * k + 20).advance(truth[:, k], 2) - after).abs().max()) > 1e-2


def test_a_twin_may_start_at_another_time():
    early = xdan.twin(MODEL, **TWIN)
    late = xdan.twin(MODEL.starting_at(90.0), **TWIN).compute()
    assert_allclose(late.time, 90.0 + early.time, rtol=1e-12)
    truth = torch.from_numpy(late.truth.values)
    after = MODEL.from_step(1800).advance(truth[:, 0], 2)
    assert_array_equal(after.numpy(), late.truth[:, 1])
    # The description names the model; its time is that of the record.
    assert json.loads(late.attrs["dynamics"]) == dynamics_to_json(MODEL)
    assert read(late).setup.start == 90.0


@pytest.mark.parametrize("method", ["enkf-n", "ienks-n"])
def test_a_run_in_other_chunks_has_the_same_bits(season, method):
    scheme = {"members": 6} if method == "enkf-n" else {"members": 10, "lag": 2}
    whole = season.dan.baseline(method, **scheme)
    parts = season.chunk(time=7, trajectory=3).dan.baseline(method, **scheme).compute()
    for name in ("forecast", "analysis", "spread"):
        assert_array_equal(parts[name], whole[name])


def test_a_run_that_is_taken_up_again_has_the_same_bits(season, tmp_path, monkeypatch):
    parts, write = season.chunk(time=10, trajectory=2), Stream.write
    call = {"members": 8, "lag": 2, "progress": False}

    def killed(self, i, t, *rest):
        if t == 2:
            raise KeyboardInterrupt
        return write(self, i, t, *rest)

    with monkeypatch.context() as m:
        m.setattr(Stream, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            parts.dan.baseline("ienks", store=tmp_path / "cut.zarr", **call)
    resumed = parts.dan.baseline("ienks", store=tmp_path / "cut.zarr", **call)
    assert_array_equal(resumed.analysis, parts.dan.baseline("ienks", store=tmp_path / "whole.zarr", **call).analysis)


@pytest.mark.filterwarnings("ignore:the truth does not follow")
def test_a_run_is_not_resumed_at_other_times(season, tmp_path, monkeypatch):
    parts, write = season.chunk(time=10), Stream.write

    def killed(self, i, t, *rest):
        if t == 2:
            raise KeyboardInterrupt
        return write(self, i, t, *rest)

    call = {"store": tmp_path / "run.zarr", "progress": False, "members": 5}
    with monkeypatch.context() as m:
        m.setattr(Stream, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            parts.dan.baseline("enkf-n", **call)
    with pytest.raises(FileExistsError, match="another method, record or setting"):
        parts.assign_coords(time=parts.time + 1.0).dan.baseline("enkf-n", **call)


def test_a_part_of_a_record_is_at_its_own_times(season):
    part = season.isel(time=slice(11, None))
    assert read(part).setup.start == 22 * 0.05
    run = part.dan.baseline("3d-var", scale=0.1)
    analysis = torch.from_numpy(run.analysis.values)
    for k in (0, 5):
        expected = MODEL.from_step(2 * (11 + k)).advance(analysis[:, k], 2)
        assert_array_equal(run.forecast[:, k + 1], expected.numpy())


def test_a_record_at_other_times_does_not_follow(season):
    season.isel(time=slice(4, None)).dan.baseline("3d-var", scale=0.1)
    with pytest.warns(XdanWarning, match="does not follow"):
        season.assign_coords(time=season.time + 1.0).dan.baseline("3d-var", scale=0.1)


def test_uneven_intervals_have_their_times():
    intervals = [0.3, 0.2, 0.1, 0.1, 0.4, 0.2, 0.3, 0.1, 0.2]
    ds = xdan.twin(MODEL, **{**TWIN, "interval": intervals, "cycles": 10}).compute()
    ds.dan.baseline(
        "3d-var", scale=0.1
    )  # does not warn that the truth does not follow, whichever interval is looked at
    run = ds.dan.baseline("3d-var", scale=0.1)  # it does not warn: the truth follows over any interval
    analysis, passed = torch.from_numpy(run.analysis.values), np.cumsum([0, 6, 4, 2, 2, 8, 4, 6, 2, 4])
    for k in range(9):
        expected = MODEL.from_step(passed[k]).advance(analysis[:, k], passed[k + 1] - passed[k])
        assert_array_equal(run.forecast[:, k + 1], expected.numpy())


@pytest.mark.parametrize(
    ("first", "unit", "origin", "expected"),
    [
        (2.5, None, None, 2.5),
        (np.float32(0.3), None, None, 6 * 0.05),
        (7, None, None, 7.0),
        (np.timedelta64(12, "h"), np.timedelta64(1, "D"), None, 0.5),
        (np.datetime64("2001-01-11"), np.timedelta64(5, "D"), np.datetime64("2001-01-01"), 2.0),
        (np.datetime64("2001-01-11"), datetime.timedelta(days=5), np.datetime64("2001-01-21", "s"), -2.0),
    ],
)
def test_the_first_time_is_the_coordinate_or_passed_since_the_origin(first, unit, origin, expected):
    model = SeasonalRing()
    model.time_unit, model.time_origin = unit, origin
    variable = xr.DataArray(np.zeros(1), dims="time", coords={"time": np.array([first])})
    assert model.starting_at(first_model_time(variable, model)).model_time == pytest.approx(expected, abs=1e-12)


def test_dates_of_other_calendars_have_their_origin_in_them():
    cftime = pytest.importorskip("cftime")
    model = SeasonalRing()
    model.time_unit, model.time_origin = np.timedelta64(5, "D"), cftime.DatetimeNoLeap(2000, 2, 1)
    times = np.array([cftime.DatetimeNoLeap(2000, 3, 6)])  # of 28 days in February
    variable = xr.DataArray(np.zeros(1), dims="time", coords={"time": ("time", times)})
    assert first_model_time(variable, model) == 33 / 5


@pytest.mark.parametrize(
    ("origin", "message"), [(None, "its time_unit and its time_origin"), ("2001-01-01", "time_origin of")]
)
def test_dates_need_the_date_at_which_time_is_0(origin, message):
    model = SeasonalRing()
    model.time_unit, model.time_origin = np.timedelta64(5, "D"), origin
    variable = xr.DataArray(np.zeros(1), dims="time", coords={"time": [np.datetime64("2001-01-11", "ns")]})
    with pytest.raises(ValueError, match=message):
        first_model_time(variable, model)


# --- Training ---

LANES = {"cycles": 96, "interval": 0.1, "seed": 5, "dtype": "float32"}


def small() -> xdan.ResidualCNN:
    torch.manual_seed(0)
    return xdan.ResidualCNN(filters=4, blocks=1, kernel=3)


def test_segments_of_one_trajectory_are_trained_on_at_their_times(quick, monkeypatch):
    ds = xdan.twin(MODEL, trajectories=1, **LANES).compute()
    windows, step, validate, records = [], Trainer.step, Trainer.validate, []

    def watched(self, window, rate):
        windows.append(window)
        return step(self, window, rate)

    def validated(self, record, burn_in):
        records.append(record)
        return validate(self, record, burn_in)

    monkeypatch.setattr(Trainer, "step", watched)
    monkeypatch.setattr(Trainer, "validate", validated)
    xdan.train(ds, small(), **quick)
    assert any(len(set(window.clock.tolist())) > 1 for window in windows)
    for window in windows:
        follows(window.truth, [window.clock_at(k) for k in range(4)])
    (record,) = {id(record): record for record in records}.values()
    passed = np.cumsum([0, *record.steps[:-1]])
    follows(record.truth, [record.clocks + int(count) for count in passed])


def follows(truth: torch.Tensor, clocks: list[torch.Tensor]) -> None:
    """A truth (B, K, N) is that of the model whose k-th forecast begins at these steps."""
    for k in range(1, truth.shape[1]):
        for row, clock in enumerate(clocks[k].tolist()):
            after = MODEL.from_step(clock).advance(truth[row : row + 1, k - 1], 2)
            assert_array_equal(after[0], truth[row, k])


@pytest.mark.parametrize("source", ["record", "endless"])
def test_a_training_that_is_taken_up_again_has_the_same_bits(source, quick, tmp_path, monkeypatch):
    data = xdan.TwinExperiment(MODEL, interval=0.1)
    if source == "record":
        data = xdan.twin(data, cycles=24, trajectories=6).compute()
    step, settings = Trainer.step, {**quick, "checkpoint": tmp_path / "ck.zarr"}

    def killed(self, window, rate):
        if self.step_count == 6:
            raise KeyboardInterrupt
        return step(self, window, rate)

    whole = xdan.train(data, small(), **quick)
    with monkeypatch.context() as m:
        m.setattr(Trainer, "step", killed)
        with pytest.warns(XdanWarning, match="interrupted at step 6"):
            xdan.train(data, small(), **settings)
    resumed = xdan.train(data, small(), **settings)
    for name, value in whole.arrays.items():
        assert_array_equal(resumed.arrays[name], value)


@pytest.mark.slow
def test_processes_learn_the_same(quick):
    ds = xdan.twin(MODEL, trajectories=1, **LANES).compute()
    one, two = (xdan.train(ds, small(), processes=count, **quick) for count in (1, 2))
    for name, value in one.arrays.items():
        assert_allclose(two.arrays[name], value, rtol=1e-3, atol=1e-4)


# --- Diagnostics ---


def test_lyapunov_vectors_are_carried_at_the_times_of_the_record(season):
    late = xdan.twin(MODEL.starting_at(0.55), **TWIN).compute()
    vectors = xdan.lyapunov_vectors(late, vectors=2, spin_up=5)
    first, second = (torch.from_numpy(vectors.lyapunov_vector.values[:, k]) for k in (0, 1))
    model, truth = MODEL.starting_at(0.55), torch.from_numpy(late.truth.values[:, 5])
    _, pushed = model.from_step(10).advance_along(truth, first, 2)
    leading = pushed[:, 0] / pushed[:, 0].norm(dim=-1, keepdim=True)
    assert_allclose(leading, second[:, 0], rtol=1e-9, atol=1e-9)
    assert xdan.lyapunov_vectors(season, vectors=1, spin_up=5).growth.shape == (4, 25, 1)


@pytest.mark.slow
def test_a_sweep_runs_through_seasons(tmp_path):
    experiment = xdan.TwinExperiment(MODEL.starting_at(4.0), interval=0.1)
    schemes, axes = {"3d": {"baseline": "3d-var", "scale": 0.1}}, {"amplitude": [0.0, 3.0]}
    sizes = {"cycles": 40, "trajectories": 2, "burn_in": 10}
    swept = xdan.sweep(experiment, schemes, axes, store=tmp_path / "sweep.zarr", progress=False, **sizes)
    for amplitude in (0.0, 3.0):
        model = SeasonalRing(amplitude=amplitude).starting_at(4.0)
        ds = xdan.twin(model, interval=0.1, cycles=40, trajectories=2, seed=TEST_SEEDS)
        expected = ds.dan.score(ds.dan.baseline("3d-var", scale=0.1), burn_in=10).rmse
        assert_allclose(swept.rmse.sel(amplitude=amplitude).squeeze(), expected, rtol=1e-6)
