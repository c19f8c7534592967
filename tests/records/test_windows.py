"""Windows read from a record: which trajectories and times they hold, in which order, and how much is read ahead."""

import dask.array as da
import numpy as np
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from xdan.records.record import read
from xdan.records.windows import RecordWindows, read_lanes


def labelled_record(twin, rows, cycles, chunks=None, loads=None):
    """A record whose truth says where it is from, 1000 * trajectory + time; its observation the same, negative."""
    where = 1000.0 * np.arange(rows)[:, None, None] + np.arange(cycles)[:, None] + np.zeros(8)
    data = where
    if chunks:
        data = da.from_array(where, chunks=(*chunks, 8))
    if loads is not None:
        data = data.map_blocks(lambda block, block_info=None: loads.append(block.shape) or block, dtype=float)
    coordinates = {"time": 0.05 * np.arange(cycles), "trajectory": np.arange(rows), "x": np.arange(8)}
    truth = xr.DataArray(data, dims=("trajectory", "time", "x"), coords=coordinates)
    ds = xr.Dataset({"truth": truth, "observation": -truth, "observation_error": 1.0}, attrs=twin.attrs)
    return read(ds)


def windows_of(labelled, lanes, length, batch, cycles, seed=0):
    return RecordWindows(labelled, lanes, length, batch=batch, cycles=cycles, seed=seed, device="cpu")


def places(window):
    """Trajectories of a window and its first time."""
    where = window.truth[..., 0].numpy()
    return (where[:, 0] // 1000).astype(int).tolist(), (where[:, 0] % 1000).astype(int).tolist()


@given(
    rows=st.integers(2, 7),
    batch=st.integers(1, 4),
    cycles=st.integers(1, 5),
    length=st.integers(10, 23),
    chunk=st.none() | st.tuples(st.integers(1, 4), st.integers(1, 23)),
    segments=st.integers(1, 2),
)
def test_windows_follow_the_record(twin, rows, batch, cycles, length, chunk, segments):
    labelled = labelled_record(twin, rows, length * segments, chunk)
    lanes = [(row, piece * length) for piece in range(segments) for row in range(rows)]
    batch = min(batch, len(lanes))
    source = windows_of(labelled, lanes, length, batch, cycles)
    last, seen = {}, set()
    count = 3 * source.groups * (length // cycles) * len(source.batches)
    for index in range(count):
        window = source.window(index)
        assert window.truth.shape == (batch, cycles, 8)
        assert len(window.steps) == cycles
        np.testing.assert_array_equal(window.observation, -window.truth)
        np.testing.assert_array_equal(np.diff(window.truth[..., 0], axis=1), 1)
        trajectories, times = places(window)
        seen |= set(zip(trajectories, times, strict=True))
        assert (window.group in last) or window.fresh
        if window.fresh and window.group in last:
            assert {(row, time) for row, time in zip(trajectories, times, strict=True)} <= set(lanes)
        elif not window.fresh:
            before, ends = last[window.group]
            assert (trajectories, times) == (before, ends)
        last[window.group] = (trajectories, [time + cycles for time in times])
    source.close()
    assert seen == {(row, start + cycles * w) for row, start in lanes for w in range(length // cycles)}


def test_windows_take_their_lanes_intervals(twin):
    labelled = labelled_record(twin, 3, 8)
    labelled.setup.steps[:] = [0, 1, 2, 3, 4, 5, 6, 7]
    source = windows_of(labelled, [(0, 0), (1, 0), (2, 0)], 8, 1, 4)
    for index in range(12):
        window = source.window(index)
        assert list(window.steps) == list(range(places(window)[1][0], places(window)[1][0] + 4))
    source.close()


def test_windows_depend_on_seed_and_epoch_alone(twin):
    labelled = labelled_record(twin, 8, 12)
    lanes = [(row, 0) for row in range(8)]

    def order(seed):
        source = windows_of(labelled, lanes, 12, 2, 4, seed)
        visited = [places(source.window(index)) for index in range(48)]
        source.close()
        return visited

    assert order(1) == order(1)
    assert order(1) != order(2)
    skipped = windows_of(labelled, lanes, 12, 2, 4, 1)  # a resumed run asks from the middle on
    assert [places(skipped.window(index)) for index in range(20, 48)] == order(1)[20:]
    skipped.close()


def test_memory_holds_a_few_blocks_of_any_record(twin):
    """Every batch has as many cycles as a chunk, and twice as many wait as take turns."""
    loads = []
    labelled = labelled_record(twin, 40, 400, (2, 20), loads)
    loads.clear()  # dask probes with an empty block
    source = windows_of(labelled, [(row, 0) for row in range(40)], 400, 2, 5)
    for index in range(400):
        source.window(index)
        held = [future.result()[0].shape for future in source._loaded.values()]
        assert len(held) <= 2 * source.groups <= 8
        assert set(held) <= {(2, 20, 8)}
    source.close()
    # No read but of the lanes and times wanted: the blocks are of one batch, and twice in all (truth, observation).
    assert set(loads) == {(2, 20, 8)}
    # 400 windows of 2 x 5 are a quarter of 40 x 400, once for truth and once for observations; some were read ahead.
    assert len(loads) <= 2 * (400 * 10 // 40 + 2 * source.groups)


def test_lanes_side_by_side_or_not(twin):
    variable = labelled_record(twin, 5, 20, (2, 7)).truth
    together = read_lanes(variable, [(1, 4), (2, 4), (3, 4)], 2, 6)
    np.testing.assert_array_equal(together[..., 0], 1000 * np.arange(1, 4)[:, None] + np.arange(6, 10))
    apart = read_lanes(variable, [(4, 0), (1, 10)], 2, 6)
    np.testing.assert_array_equal(apart[..., 0], [[4002, 4003, 4004, 4005], [1012, 1013, 1014, 1015]])
