"""The backward pass of a run: blocks from the last time to the first, lazily or written into a store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import dask
import dask.array as da
from torch import Tensor

from ..core.log import RUNS
from ..core.methods import Method, State, smooth
from ..core.progress import Work, WorkKey, ticking, undisturbed
from ..records.blocks import Carry, Plan, Setup, block, carried_graph
from ..records.schema import Array
from ..records.streams import Stream
from .run_layout import Layout


def lazy_pass(
    plan: Plan,
    observations: da.Array,
    layout: Layout,
    begun: Sequence[Sequence[Any]],
    key: WorkKey | None,
    *shared: Any,
) -> dict[str, da.Array]:
    """Make the smoothed variables as dask arrays.

    Parameters
    ----------
    plan : Plan
    observations : dask array, dims (trajectory, time, ...)
    layout : Layout
        Layout of the smoothed variables.
    begun : sequence of sequence
        What each block of the forward run began with.
    key : WorkKey or None
        Of a run that is computed at once.
    *shared
        Further arguments of `_smooth_block`: setup, prepared, layout, seed, members, device.
    """
    outputs = {name: (variable.shape[2:], variable.dtype) for name, variable in layout.items()}
    return carried_graph(partial(_smooth_block, key), plan, [observations], outputs, *shared, begun=begun)[0]


def fill_backward(stream: Stream, observations: da.Array, work: Work, key: WorkKey, *shared: Any) -> None:
    """Smooth what a store holds: trajectory blocks in parallel, in each the time blocks from the last to the first."""
    rows, columns = stream.plan.shape
    smoothed = [stream.smoothed(i) for i in range(rows)]
    task = dask.delayed(_stream_block, pure=False)
    carries: dict[int, Any] = {i: stream.handed_back(i) for i in range(rows) if smoothed[i] < columns}
    while active := [i for i in carries if smoothed[i] < columns]:
        tasks = []
        for i in active:
            t = columns - 1 - smoothed[i]
            data = observations[stream.plan.rows(i), stream.plan.columns(t)]
            tasks.append(task(key, stream, (i, t), carries[i], data, *shared))
        for i, carry in zip(active, dask.compute(*tasks), strict=True):
            carries[i] = carry
            smoothed[i] += 1
        work.reach(sum(stream.plan.time[-1] + stream.plan.last(count) for count in smoothed))
        RUNS.info("%s: %d of %d blocks of the way back are done", stream.store, sum(smoothed), rows * columns)


def _stream_block(
    key: WorkKey, stream: Stream, place: tuple[int, int], after: Carry | None, observation: Array, *shared: Any
) -> Carry:
    """Smooth one block, and write the result."""
    rows, columns = stream.plan.rows(place[0]), stream.plan.columns(place[1])
    carries = [stream.begun(*place), after]
    outputs, carry = _smooth_block(key, [observation], carries, rows, columns, *shared)
    with undisturbed(key):
        stream.write_back(*place, outputs, carry)
    return carry


def _smooth_block(
    key: WorkKey | None,
    arrays: Sequence[Any],
    carries: Sequence[Carry | None],
    rows: slice,
    columns: slice,
    setup: Setup,
    prepared: Any,
    layout: Layout,
    seed: int,
    members: bool,
    device: str,
) -> tuple[Mapping[str, Array], Carry]:
    """Smooth one block, from the state that it began with and the state that the block after it handed back."""
    method = prepared.scheme.method_on(setup.dtype, device)
    shared = setup, method, layout, seed, members, ticking(key)
    answer: tuple[Mapping[str, Array], Carry] = _smooth_tensors(
        arrays[0], list(carries), rows, columns, *shared, dtype=setup.dtype, device=device
    )
    return answer


@block
def _smooth_tensors(
    observation: Tensor,
    carries: Sequence[State | None],
    rows: slice,
    columns: slice,
    setup: Setup,
    method: Method,
    layout: Layout,
    seed: int,
    members: bool,
    tick: Callable[[], None] | None,
) -> tuple[dict[str, Tensor], State]:
    """Smoothed outputs of a prepared method over one block, dims (B, K, ...), and the state for the block before."""
    record = setup.record(observation, rows=rows, columns=columns, seed=seed)
    begun, after = carries
    outputs, before = smooth(method, record, begun, after, members, tick)
    return {name: variable.of(outputs[variable.stem]) for name, variable in layout.items()}, before
