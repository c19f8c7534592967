"""Kernels at evaluation points: lazy graphs over blocks of a record, and the computation of one block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask
import dask.array as da
import numpy as np
import torch
from torch import Tensor

from ..core.methods import DataAssimilationNetwork
from ..core.observing import ObservingSystem, split_observation
from ..core.random import Purpose, normal
from ..core.sensitivity import Points
from ..network import Network
from ..records.blocks import Plan, Setup, block, block_graph
from ..records.schema import TIME, TRAJECTORY, Array
from ..records.values import refuse_fill_values
from .evaluation_points import EvaluationPoints
from .kernels import Kernel, PointBatch

_STATES_IN_BLOCK = 512  # some seconds of work; larger blocks are cut, so that workers end together
_BYTES_IN_BLOCK = 64 * 2**20  # most bytes of a block's result if every state has a result


@dataclass(frozen=True)
class _Evaluation:
    """The computation of a block: everything but the record and the network.

    Attributes
    ----------
    kernel : callable
    at_once : int
        States in a batch.
    innovation : {"zero", "sampled", "run"}
    background : Tensor or None
    seed : int
        As in `EvaluationPoints`.
    steps : int
        As in `EvaluationPoints`.
    positions : numpy.ndarray of int
        Positions of all times in the record.
    summed : tuple of bool
        Whether to sum over trajectories, and over times.
    tail : tuple of int
        Shape of the kernel's result for one state.
    """

    kernel: Kernel
    at_once: int
    innovation: str
    background: Tensor | None
    seed: int
    steps: int
    positions: np.ndarray[Any, np.dtype[np.int64]]
    summed: tuple[bool, bool]
    tail: tuple[int, ...]

    def lead(self, rows: slice, columns: slice) -> tuple[int, int]:
        """Numbers of trajectories and times in a block's result; 1 along a dim that is summed."""
        return (
            1 if self.summed[0] else rows.stop - rows.start,
            1 if self.summed[1] else columns.stop - columns.start,
        )


def evaluate(
    points: EvaluationPoints,
    kernel: Kernel,
    tail: tuple[int, ...],
    *,
    over: Sequence[str] = (),
    at_once: int,
    observed: bool = False,
    dtype: np.dtype[Any] | None = None,
) -> da.Array:
    """Compute a kernel at every point, or its mean over trajectories, times or both, lazily.

    Parameters
    ----------
    points : EvaluationPoints
    kernel : callable
    tail : tuple of int
        Shape of the kernel's result for one state.
    over : sequence of str
        Dims to average over: `trajectory`, `time` or both. The result lacks these dims.
    at_once : int
        Number of states in a batch; it bounds the memory of a block.
    observed : bool
        Whether the kernel needs to know which observations are made. Observations are read in any case for innovations
        that are not zero, and for a network that rebuilds a covariance.
    dtype : numpy.dtype, optional
        Floating type of the computation; by default that of the record.

    Returns
    -------
    dask.array.Array, shape (R, K, *tail) without the dims that are averaged over
    """
    dtype = np.dtype(dtype or points.setup.dtype)
    summed = (TRAJECTORY in over, TIME in over)
    reads = observed or points.innovation != "zero" or points.method.rebuilds_covariance
    observation = points.labelled.observation.isel({TIME: points.times}).chunk().data if reads else None
    kept = (None if some is None else some.chunk().data for some in (points.memory, points.covariance))
    inputs = [points.x.chunk().data, observation, *kept]
    stored = 1 if all(summed) else math.prod(tail) * dtype.itemsize
    limit = _STATES_IN_BLOCK if all(summed) else max(1, min(_STATES_IN_BLOCK, _BYTES_IN_BLOCK // stored))
    work = _Evaluation(
        kernel, at_once, points.innovation, points.background, points.seed, points.steps, points.positions, summed, tail
    )
    values = block_graph(
        _evaluate_block,
        _cut_small(inputs[0].chunks[:2], limit),
        inputs,
        # Sums are taken in float64, so that they are exact to the last digit of the result.
        {"values": (tail, np.dtype(np.float64) if any(summed) else dtype)},
        *(dask.delayed(shared, traverse=False) for shared in (points.setup, points.network, work)),
        sizes=work.lead,
        dtype=dtype,
        device=points.device,
    )["values"]
    axes = tuple(axis for axis, gone in enumerate(summed) if gone)
    sizes = (points.x.sizes[TRAJECTORY], points.x.sizes[TIME])
    return values.sum(axes) / math.prod(sizes[axis] for axis in axes) if axes else values


def _cut_small(chunks: Sequence[Sequence[int]], limit: int) -> Plan:
    """Cut a record's chunks into blocks with at most `limit` states."""
    rows, columns = chunks
    height = min(max(rows), limit)
    width = max(1, limit // height)

    def even(sizes: Sequence[int], most: int) -> list[int]:
        return [min(most, size - start) for size in sizes for start in range(0, size, most)]

    return Plan.from_chunks(even(rows, height), even(columns, width))


def _evaluate_block(
    arrays: Sequence[Array | None],
    rows: slice,
    columns: slice,
    setup: Setup,
    network: Network,
    work: _Evaluation,
    *,
    dtype: np.dtype[Any],
    device: str,
) -> dict[str, Array]:
    """Refuse fill values in a block's states (B, K, *state) and observations; then compute the kernel.

    The other arrays are memory and covariance.
    """
    for name, values in zip(("state", "observation"), arrays, strict=False):
        if values is not None:
            of_states = name == "state" or setup.observing.direct
            refuse_fill_values(np.asarray(values), name, of_states, setup.dynamics)
    method = network.method(torch.float64 if dtype == np.float64 else torch.float32, device).bound(setup.dynamics)
    values = _evaluate_tensors(arrays, rows, columns, setup, method, work, dtype=dtype, device=device)
    return {"values": values}


@block
def _evaluate_tensors(
    tensors: Sequence[Tensor | None],
    rows: slice,
    columns: slice,
    setup: Setup,
    method: DataAssimilationNetwork,
    work: _Evaluation,
) -> Tensor:
    """Compute a kernel at the points of one block, dims (B, K, *tail) or summed; few points at a time save memory."""
    states, *beside = tensors
    observation = beside[0]
    assert states is not None
    if not bool(torch.isfinite(states).all()):
        raise ValueError(
            "some states are not finite: the record has gaps or the run diverged; leave them out, for example with "
            "ds.isel(trajectory=...) or burn_in=; expected finite states"
        )
    if observation is not None and bool(torch.isinf(observation).any()):
        raise ValueError("some observations are infinite: expected numbers, or NaN where nothing is observed")
    shape, dtype = states.shape[:2], states.dtype
    observing = setup.observing.to(dtype, states.device)
    background = None if work.background is None else work.background.to(states)
    labels, times = setup.keys(rows), torch.tensor(work.positions[columns].tolist(), dtype=torch.int64)
    total = torch.zeros(
        *work.lead(rows, columns),
        *work.tail,
        dtype=torch.float64 if any(work.summed) else dtype,
        device=states.device,
    )
    for r, k in _rectangles(shape, work.at_once):
        x = states[r, k].flatten(0, 1)
        known = [None if some is None else some[r, k].flatten(0, 1) for some in beside]
        batch = _point_batch(method, x, known, observing, labels[r], times[k], work, background)
        values = work.kernel(method.network, batch).unflatten(0, (r.stop - r.start, k.stop - k.start)).to(total.dtype)
        if not any(work.summed):
            total[r, k] = values
            continue
        for axis, gone in enumerate(work.summed):
            values = values.sum(axis, keepdim=True) if gone else values
        place = tuple(slice(0, 1) if gone else part for gone, part in zip(work.summed, (r, k), strict=True))
        total[place] += values
    return total


def _rectangles(shape: Sequence[int], at_once: int) -> Iterator[tuple[slice, slice]]:
    """Cut rows and columns into rectangles of nearly `at_once` states."""
    height = min(shape[0], at_once)
    width = max(1, at_once // height)
    for first in range(0, shape[0], height):
        for start in range(0, shape[1], width):
            yield slice(first, min(first + height, shape[0])), slice(start, min(start + width, shape[1]))


def _point_batch(
    method: DataAssimilationNetwork,
    states: Tensor,
    known: Sequence[Tensor | None],
    observing: ObservingSystem,
    labels: Tensor,
    times: Tensor,
    work: _Evaluation,
    background: Tensor | None,
) -> PointBatch:
    """The points of some trajectories and times, side by side in a batch of shape (B, ...).

    The observations, and the memory and the covariance that a run kept, belong to these points.
    """
    x = states.flatten(1)
    observation, memory, carried = known
    observing = observing.at_times(times.repeat(len(labels)).to(x.device))
    values = observed = None
    if observation is not None:
        values, observed = split_observation(observation.flatten(1))
    covariance = method.covariance_at(
        x, None if carried is None else carried.flatten(2), observed, observing, work.steps
    )
    points = Points(x, torch.zeros_like(x), None if memory is None else memory.flatten(2), covariance)
    draw = partial(_draw, labels, times, work.seed, x.device)
    batch = PointBatch(points, observing, observed, draw, background)
    if work.innovation == "zero":
        return batch
    if work.innovation == "sampled":
        return batch.at_innovation(batch.samples(1)[:, 0])
    assert values is not None
    assert observed is not None
    return batch.at_innovation(observing.project_innovation(values - observing.observe(x), observed, x))


def _draw(labels: Tensor, times: Tensor, seed: int, device: torch.device, count: int, size: int, stream: int) -> Tensor:
    """Standard normal numbers keyed by trajectory and time, shape (B, count, size)."""
    numbers = normal(seed, Purpose.SENSITIVITY, labels, times, count * size, stream)
    drawn: Tensor = numbers.flatten(0, 1).unflatten(1, (count, size)).to(device)
    return drawn
