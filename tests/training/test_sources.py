"""What training sees: lanes and windows of a record, read ahead."""

import numpy as np
import pytest

import xdan
from xdan.core.learning import objective_by_name
from xdan.core.twin import TwinExperiment
from xdan.records.record import read
from xdan.records.windows import RecordWindows
from xdan.training.record_source import RecordSource
from xdan.training.twin_source import TwinSource


def windows(ds, lanes, length, **settings):
    labelled = read(ds)
    return RecordWindows(labelled, lanes, length, **{"batch": 2, "cycles": 4, "seed": 0, "device": "cpu", **settings})


def data_of(ds, architecture, **sizes):
    source = RecordSource.of(ds, {}, objective_by_name("rmse"), None, validation=0.1, window=4, seed=0, **sizes)
    return source.data(architecture, "cpu")


def test_validation_trajectories_are_not_trained_on(model, architecture):
    ds = xdan.twin(model, cycles=16, trajectories=20, seed=2).compute(scheduler="synchronous")
    data = data_of(ds, architecture, batch=4)
    trained = {lane for batch in data.windows.batches for lane in batch}
    assert trained <= {(row, 0) for row in range(18)}
    np.testing.assert_array_equal(data.validation.truth.numpy(), ds.truth.values[18:].astype(np.float32))
    data.windows.close()


def test_a_single_long_trajectory_is_cut_into_segments(model, architecture, quick):
    ds = xdan.twin(model, cycles=400, seed=2).compute(scheduler="synchronous").isel(trajectory=0, drop=True)
    data = data_of(ds, architecture, batch=6)
    starts = sorted(start for batch in data.windows.batches for _, start in batch)
    assert len(starts) >= 6
    assert set(np.diff(sorted(set(starts)))) == {data.windows.length}
    held = data.validation.truth.shape[0] * data.windows.length
    assert max(starts) + data.windows.length <= 400 - held
    data.windows.close()
    assert np.isfinite(xdan.train(ds, architecture, **{**quick, "batch": 6}).history.rmse).all()


def test_every_lane_is_trained_on(single):
    source = windows(single, [(0, 0), (1, 0), (2, 0)], 24)  # batches of two
    assert source.batches == [[(0, 0), (1, 0)], [(2, 0), (0, 0)]]
    assert source.per_epoch == 12
    source.close()


def test_an_endless_twin_has_trajectories_of_its_own(model, architecture):
    """None of a record's, though the seed be the same."""
    sizes = {"window": 6, "batch": 3, "seed": 0, "trajectories": 3}
    source = TwinSource.of(TwinExperiment(model), objective_by_name("rmse"), None, **sizes)
    data = source.data(architecture, "cpu")
    record = xdan.twin(model, cycles=6, trajectories=3, seed=0).compute()
    window = data.windows.window(0)
    for seen in (window.truth, data.validation.truth):
        assert np.abs(seen[:3, :6].numpy() - record.truth.values).max(-1).min() > 0.1


def test_windows_follow_one_another_and_cover_the_lanes(single):
    source = windows(single, [(0, 0), (1, 0), (2, 0), (3, 0)], 24)
    seen, last = {}, {}
    for index in range(24):
        window = source.window(index)
        key = window.truth[:, 0].numpy().tobytes()
        place = next(
            (batch, k)
            for batch in range(2)
            for k in range(0, 24, 4)
            if single.truth.values[2 * batch : 2 * batch + 2, k].tobytes() == key
        )
        batch, k = place
        rows, times = slice(2 * batch, 2 * batch + 2), slice(k, k + 4)
        np.testing.assert_array_equal(window.truth, single.truth.values[rows, times])
        np.testing.assert_array_equal(window.observation, single.observation.values[rows, times])
        if not window.fresh:
            assert last[window.group] == (batch, k - 4)
        last[window.group] = place
        seen[place] = seen.get(place, 0) + 1
    source.close()
    # Two epochs, staggered: every window of every lane comes up, none far more often than another.
    assert len(seen) == 12
    assert max(seen.values()) - min(seen.values()) <= 1


def test_few_blocks_are_in_memory(model):
    ds = xdan.twin(model, cycles=64, trajectories=24, chunks={"trajectory": 4, "time": 8})
    source = windows(ds, [(row, 0) for row in range(24)], 64, batch=4)
    for index in range(60):
        source.window(index)
        assert len(source._loaded) <= 2 * source.groups
    source.close()


def test_normalisation_is_that_of_the_record(single, architecture, quick):
    net = xdan.train(single.assign(observation_error=0.5), architecture, **{**quick, "steps": 1})
    held = single.truth[-1:]
    assert float(net.arrays["state_mean"]) == pytest.approx(float(held.mean()), rel=1e-5)
    assert float(net.arrays["state_std"]) == pytest.approx(float(held.std()), rel=1e-5)
    assert float(net.arrays["error_std"]) == pytest.approx(0.5)


def gappy(model, cycles):
    """One trajectory with rows missing twice: stretches of 100, 90 and 210 cycles."""
    ds = xdan.twin(model, cycles=cycles, trajectories=1, seed=2).compute(scheduler="synchronous")
    return ds.isel(time=np.r_[0:100, 160:250, 390:600])


def test_a_trajectory_is_cut_at_its_gaps(model, architecture):
    ds = gappy(model, 600)
    source = RecordSource.of(ds, {}, objective_by_name("rmse"), None, validation=0.25, window=4, batch=4, seed=0)
    # A batch of four and a quarter held back want seven lanes; 400 cycles make lanes of 57.
    assert source.length == 57
    assert source.lanes == [(0, 0), (0, 100), (0, 190), (0, 247), (0, 304)]
    steps = source.labelled.setup.steps
    assert all((steps[start + 1 : start + 57] == 1).all() for _, start in source.lanes)
    data = source.data(architecture, "cpu")
    assert data.setting["interval"] == 0.05
    assert data.validation.steps[1:] == [1] * (len(data.validation.steps) - 1)
    for index in range(20):
        assert set(data.windows.window(index).steps[1:]) == {1}
    data.windows.close()


def test_a_trajectory_of_intervals_that_alternate_is_not_cut(model):
    ds = xdan.twin(model, cycles=200, interval=[0.05, 0.1] * 99 + [0.05])
    with pytest.raises(ValueError, match="1 trajectories of 200 cycles: too little for windows of 4 cycles"):
        RecordSource.of(ds, {}, objective_by_name("rmse"), None, validation=0.1, window=4, batch=4, seed=0)
