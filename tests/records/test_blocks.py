"""Blocks: arrays to tensors and back, and graphs of blocks, with and without a state that is carried along time."""

import itertools
import os
import platform
import subprocess
import sys

import dask
import dask.array as da
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xdan.records.blocks import Plan, array_to_tensor, block, block_graph, pick_device, tensor_to_array


def cuts(total):
    """Chunk sizes that add up to a total."""
    edges = st.sets(st.integers(1, total - 1)).map(lambda inner: [0, *sorted(inner), total])
    return edges.map(lambda e: tuple(np.diff(e).tolist()))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3)[::-1, ::-1],
        np.arange(6, dtype=">f8").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.broadcast_to(np.float32(3), (2, 3)),
        np.float64(2.5),
    ],
    ids=["negative strides", "big-endian", "columns first", "read-only", "scalar"],
)
def test_any_array_becomes_a_plain_tensor(array):
    tensor = array_to_tensor(array)
    assert tensor.is_contiguous()
    np.testing.assert_array_equal(tensor_to_array(tensor), array)
    np.testing.assert_array_equal(tensor_to_array(array_to_tensor(array, np.dtype("f4"))), np.asarray(array, "f4"))


def test_a_tensor_does_not_share_the_arrays_memory():
    array = np.zeros(3)
    array_to_tensor(array).add_(1)
    assert not array.any()


def test_device():
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


def running_sum(data, carry, rows, columns, offset):
    (x,) = data
    assert x.shape[:2] == (rows.stop - rows.start, columns.stop - columns.start)
    start = np.zeros(x[:, 0].shape) if carry is None else carry["sum"]
    total = start[:, None] + np.cumsum(x, axis=1)
    return {"total": total + offset, "first": x.sum(2)}, {"sum": total[:, -1]}


@given(cuts(5), cuts(9), st.booleans())
def test_a_carry_goes_along_time_and_not_across_trajectories(rows, columns, chunked_otherwise):
    x = np.random.default_rng(0).integers(-9, 9, (5, 9, 2)).astype(float)
    array = da.from_array(x, chunks=(2, 4, 1) if chunked_otherwise else (rows, columns, 2))
    outputs = {"total": ((2,), np.dtype("f8")), "first": ((), np.dtype("f8"))}
    made = block_graph(running_sum, Plan.from_chunks(rows, columns), [array], outputs, 10.0, carries=True)
    assert made["total"].chunks == (rows, columns, (2,))
    assert made["first"].chunks == (rows, columns)
    total, first = dask.compute(made["total"], made["first"])
    np.testing.assert_array_equal(total, np.cumsum(x, axis=1) + 10)
    np.testing.assert_array_equal(first, x.sum(2))


def test_a_graph_computes_nothing(computed):
    array = da.zeros((4, 6, 2), chunks=(2, 3, 2))
    outputs = {"total": ((2,), np.dtype("f8"))}
    block_graph(running_sum, Plan.from_chunks((2, 2), (3, 3)), [array], outputs, 0.0, carries=True)
    assert computed.calls == 0


def mean_over_times(data, rows, columns, factor, *, offset):
    x, nothing = data
    assert nothing is None
    return {"mean": factor * x.mean(1, keepdims=True) + offset}


@given(cuts(5), cuts(9))
def test_blocks_without_a_carry_may_give_other_sizes(rows, columns):
    x = np.random.default_rng(0).integers(-9, 9, (5, 9, 2)).astype(float)
    made = block_graph(
        mean_over_times,
        Plan.from_chunks(rows, columns),
        [da.from_array(x, chunks=(2, 4, 1)), None],
        {"mean": ((2,), np.dtype("f8"))},
        2.0,
        sizes=lambda rows, columns: (rows.stop - rows.start, 1),
        offset=10.0,
    )["mean"]
    assert made.chunks == (rows, (1,) * len(columns), (2,))
    edges = np.cumsum([0, *columns])
    expected = [2 * x[:, i:j].mean(1) + 10 for i, j in itertools.pairwise(edges)]
    np.testing.assert_allclose(made.compute(), np.stack(expected, 1), rtol=1e-15)


def test_what_crosses_and_what_does_not():
    """The block's data take the dtype; other arrays keep theirs; everything else passes as it is."""
    told = {}

    @block
    def function(data, labels, state, size, *, weights):
        told.update(data=data, labels=labels, state=state, size=size, weights=weights, grad=torch.is_grad_enabled())
        return {"sum": data[0].sum(0) * weights, "pair": (labels, size), "state": state}

    size, state = object(), {"flag": np.array([True, False]), "x": np.ones(2, ">f8"), "none": None}
    data, labels = [np.arange(6, dtype="i2").reshape(2, 3), None], np.array([7, 9])
    answer = function(data, labels, state, size, weights=np.arange(3.0), dtype=np.dtype("f4"), device="cpu")
    assert [told["data"][0].dtype, told["data"][1]] == [torch.float32, None]
    assert told["labels"].dtype == torch.int64
    assert [told["state"]["flag"].dtype, told["state"]["x"].dtype] == [torch.bool, torch.float64]
    assert told["weights"].dtype == torch.float64
    assert told["size"] is size
    assert not told["grad"]
    assert torch.is_grad_enabled()
    np.testing.assert_array_equal(answer["sum"], np.array([3.0, 5, 7]) * np.arange(3))
    assert [type(value) for value in (*answer["pair"], answer["state"]["x"])] == [np.ndarray, object, np.ndarray]
    np.testing.assert_array_equal(answer["pair"][0], labels)


def test_a_block_keeps_a_thread_of_dask_to_one_core():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        threads = dask.delayed(block(lambda data: torch.get_num_threads()))([])
        assert threads.compute(scheduler="threads", num_workers=1) == 1
        assert block(lambda data: torch.get_num_threads())([]) == 2
    finally:
        torch.set_num_threads(before)


FAULTS = """
import resource, torch
from xdan.records.blocks import in_block
in_block()
for _ in range(3):
    torch.empty(1 << 18).fill_(1.0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    torch.empty(1 << 18).fill_(1.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the nanny's setting is glibc's")
@pytest.mark.parametrize(
    ("told", "lasting"), [({}, False), pytest.param({"MALLOC_MMAP_THRESHOLD_": "131072"}, True, marks=pytest.mark.slow)]
)
def test_memory_is_used_again_under_a_nanny(told, lasting):
    """One MiB a hundred times is 25,600 page faults when it is mapped anew; what a user says of it holds."""
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536", **told}
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env=environment)
    assert (int(done.stdout) > 20_000) is lasting
