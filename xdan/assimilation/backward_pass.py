"""The backward pass of a run: blocks from the last time to the first, lazily or written into a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dask
import dask.array as da
from torch import Tensor
from tqdm.auto import tqdm

from ..core.methods import Method, State, smooth
from ..records.blocks import Carry, Plan, Setup, block, carried_graph
from ..records.schema import Array
from ..records.streams import Stream
from .run_layout import Layout


def lazy_pass(
    plan: Plan, observations: da.Array, layout: Layout, begun: Sequence[Sequence[Any]], *shared: Any
) -> dict[str, da.Array]:
    """Make the smoothed variables as dask arrays.

    Parameters
    ----------
    plan : Plan
    observations : dask array, dims (trajectory, time, ...)
    layout : Layout
        Layout of the smoothed variables.
    begun : sequence of sequence
        The state that each block of the forward run began with.
    *shared
        Further arguments of `_smooth_block`: setup, prepared, layout, seed, members, device.
    """
    outputs = {name: (variable.shape[2:], variable.dtype) for name, variable in layout.items()}
    return carried_graph(_smooth_block, plan, [observations], outputs, *shared, begun=begun)[0]


def fill_backward(stream: Stream, observations: da.Array, bar: tqdm[Any], *shared: Any) -> None:
    """Smooth the run in a store: trajectory blocks in parallel, in each the time blocks from the last to the first."""
    rows, columns = stream.plan.shape
    smoothed = [stream.smoothed(i) for i in range(rows)]
    task = dask.delayed(_stream_block, pure=False)
    carries: dict[int, Any] = {i: stream.handed_back(i) for i in range(rows) if smoothed[i] < columns}
    while active := [i for i in carries if smoothed[i] < columns]:
        tasks = []
        for i in active:
            t = columns - 1 - smoothed[i]
            data = observations[stream.plan.rows(i), stream.plan.columns(t)]
            tasks.append(task(stream, (i, t), carries[i], data, *shared))
        for i, carry in zip(active, dask.compute(*tasks), strict=True):
            carries[i] = carry
            smoothed[i] += 1
            bar.update()


def _stream_block(
    stream: Stream, place: tuple[int, int], after: Carry | None, observation: Array, *shared: Any
) -> Carry:
    """Smooth one block, and write the result."""
    rows, columns = stream.plan.rows(place[0]), stream.plan.columns(place[1])
    carries = [stream.begun(*place), after]
    outputs, carry = _smooth_block([observation], carries, rows, columns, *shared)
    stream.write_back(*place, outputs, carry)
    return carry


def _smooth_block(
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
    answer: tuple[Mapping[str, Array], Carry] = _smooth_tensors(
        arrays[0], list(carries), rows, columns, setup, method, layout, seed, members, dtype=setup.dtype, device=device
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
) -> tuple[dict[str, Tensor], State]:
    """Smoothed outputs of a prepared method over one block, dims (B, K, ...), and the state for the block before."""
    record = setup.record(observation, rows=rows, columns=columns, seed=seed)
    begun, after = carries
    outputs, before = smooth(method, record, begun, after, members)
    return {name: variable.of(outputs[variable.stem]) for name, variable in layout.items()}, before
