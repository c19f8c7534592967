"""States of a record or of a run with what belongs to them, and lazy graphs of what is computed at each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dask
import dask.array as da
import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..core.checks import choice, integer, real_array, shown
from ..core.networks import AnalysisNetwork
from ..core.random import check_seed
from ..network import Network
from ..records.blocks import Plan, pick_device
from ..records.record import LabelledRecord, Setup, read, read_run
from ..records.schema import CHANNEL, TIME, TRAJECTORY
from ..records.store import digest
from .kernels import Kernel, Work, work_on_block

INNOVATIONS = ("zero", "sampled", "run")
_STATES_IN_BLOCK = 512  # some seconds of work: more are cut, so that workers end together
_BYTES_IN_BLOCK = 64 * 2**20  # of a result that is kept for every state


@dataclass(frozen=True)
class States:
    """Where a network is looked at: states of the truth, or forecasts of a run.

    Attributes
    ----------
    labelled : LabelledRecord
    network : Network
    x : xarray.DataArray, dims (trajectory, time, *state)
    memory : xarray.DataArray, dims (trajectory, time, channel, *state), or None
    positions : numpy.ndarray of int
        Of the times in the record.
    innovation : {"zero", "sampled", "run"}
    background : Tensor or None
    seed : int
    device : str
    source : str
        What has these states.
    """

    labelled: LabelledRecord
    network: Network
    x: xr.DataArray
    memory: xr.DataArray | None
    positions: np.ndarray[Any, np.dtype[np.int64]]
    innovation: str
    background: Tensor | None
    seed: int
    device: str
    source: str

    @property
    def about(self) -> dict[str, Any]:
        """Attributes that say which states and innovations these are."""
        found: dict[str, Any] = {
            "network_digest": self.network.digest,
            "states_of": self.source,
            "states": self.count,
            "burn_in": int(self.positions[0]),
            "every": self._taken.step,
            "innovation": self.innovation,
        }
        if self.background is not None:
            scalar = self.background.ndim == 0
            found["forecast_error"] = float(self.background) if scalar else digest(self.background.numpy())
        return found

    @property
    def setup(self) -> Setup:
        """What is known of the record."""
        return self.labelled.setup

    @property
    def _taken(self) -> slice:
        step = int(self.positions[1] - self.positions[0]) if len(self.positions) > 1 else 1
        return slice(int(self.positions[0]), int(self.positions[-1]) + 1, step)

    @property
    def sites(self) -> int:
        """N."""
        return math.prod(self.setup.dynamics.shape)

    @property
    def count(self) -> int:
        """Number of states."""
        return self.x.sizes[TRAJECTORY] * self.x.sizes[TIME]

    @cached_property
    def module(self) -> AnalysisNetwork:
        """The network in float64, to ask it what it is."""
        return self.network.method(torch.float64).network

    def each(
        self,
        kernel: Kernel,
        tail: tuple[int, ...],
        *,
        at_once: int,
        observed: bool = False,
        dtype: np.dtype[Any] | None = None,
    ) -> da.Array:
        """Compute a kernel at every state, lazily, shape (R, K, *tail).

        Parameters
        ----------
        kernel : callable
        tail : tuple of int
            Shape of what it gives for a state.
        at_once : int
            States in a pass; bounds the memory of a block.
        observed : bool
            Whether it wants to know which observations are made.
        dtype : numpy.dtype, optional
            To compute in; the record's by default.
        """
        return self._graph(kernel, tail, at_once, observed, dtype, (False, False))

    def mean(
        self,
        kernel: Kernel,
        tail: tuple[int, ...],
        over: Sequence[str],
        *,
        at_once: int,
        observed: bool = False,
        dtype: np.dtype[Any] | None = None,
    ) -> da.Array:
        """Average a kernel over trajectories, times or both, block by block; those dims are gone."""
        reduced = (TRAJECTORY in over, TIME in over)
        sums = self._graph(kernel, tail, at_once, observed, dtype, reduced)
        axes = tuple(axis for axis, gone in enumerate(reduced) if gone)
        sizes = (self.x.sizes[TRAJECTORY], self.x.sizes[TIME])
        return sums.sum(axes) / math.prod(sizes[axis] for axis in axes) if axes else sums

    def _graph(
        self,
        kernel: Kernel,
        tail: tuple[int, ...],
        at_once: int,
        observed: bool,
        dtype: np.dtype[Any] | None,
        reduced: tuple[bool, bool],
    ) -> da.Array:
        wanted = np.dtype(dtype or self.setup.dtype)
        reads = observed or self.innovation != "zero"
        inputs = [self.x.chunk().data]
        inputs.append(self.labelled.observation.isel({TIME: self._taken}).chunk().data if reads else None)
        inputs.append(None if self.memory is None else self.memory.chunk().data)
        kept = 1 if all(reduced) else math.prod(tail) * wanted.itemsize
        limit = _STATES_IN_BLOCK if all(reduced) else max(1, min(_STATES_IN_BLOCK, _BYTES_IN_BLOCK // kept))
        plan = _cut_small(inputs[0].chunks[:2], limit)
        network = dask.delayed(self.network, traverse=False)
        work = Work(kernel, at_once, self.innovation, self.background, self.seed, self.device, wanted, reduced, tail)
        setup = dask.delayed(self.setup, traverse=False)
        task = dask.delayed(work_on_block, pure=False)
        cut = [None if array is None else plan.cut(array) for array in inputs]
        rows = []
        for i in range(plan.shape[0]):
            row = []
            for t in range(plan.shape[1]):
                r, k = plan.rows(i), plan.columns(t)
                arrays = [None if c is None else c[i][t] for c in cut]
                found = task(arrays, r, self.positions[k], setup, network, work)
                size = (1 if reduced[0] else r.stop - r.start, 1 if reduced[1] else k.stop - k.start)
                # Sums are exact to the last digit of the result; they are taken in float64.
                row.append(da.from_delayed(found, (*size, *tail), np.float64 if any(reduced) else wanted))
            rows.append(da.concatenate(row, axis=1))
        return da.concatenate(rows, axis=0)


def read_states(
    ds: xr.Dataset,
    network: Network,
    *,
    run: xr.Dataset | None = None,
    innovation: str = "zero",
    forecast_error: Any = None,
    every: int = 1,
    burn_in: int = 0,
    seed: int = 0,
    device: str = "auto",
    needs: str = "the mean over states",
    **roles: Any,
) -> States:
    """Understand where a network is to be looked at; none of the data is read.

    Raises
    ------
    TypeError
        If an argument is of another type than expected.
    ValueError
        If the record or the run lacks something or does not fit the network, or a number cannot be.
    """
    check_labelled("ds", ds, xr.Dataset)
    if not isinstance(network, Network):
        raise TypeError(f"network={shown(network)}: expected a Network, as train() and open_network() give")
    choice("innovation", innovation, INNOVATIONS)
    if run is not None:
        check_labelled("run", run, xr.Dataset)
    elif innovation == "run":
        raise ValueError("run=None: expected the run whose innovations are taken, as ds.dan.cycle(network) gives")
    if not isinstance(device, str):
        raise TypeError(f"device={shown(device)}: expected 'auto', or a device of torch such as 'cpu' or 'cuda'")
    every, burn_in = integer("every", every, least=1), integer("burn_in", burn_in, least=0)
    background, seed = _background(forecast_error), check_seed(seed)
    labelled = read(ds, **roles, needs_truth=needs if run is None else None)
    network.check(labelled)
    if network.ensemble:
        raise ValueError("derivatives are those of a network of one forecast; this one takes members")
    cycles = labelled.observation.sizes[TIME]
    if burn_in >= cycles:
        raise ValueError(f"burn_in={burn_in}: expected fewer than the record's {cycles} cycles")
    taken = {TIME: slice(burn_in, None, every)}
    memory = None
    if run is None:
        assert labelled.truth is not None
        x = labelled.truth
    elif network.memory:
        if "memory" not in run:
            raise ValueError("the run lacks the network's memory: make it with ds.dan.cycle(network, members=True)")
        x = read_run(labelled, run, ["forecast"])["forecast"]
        memory = read_run(labelled, run, ["memory"], extra={CHANNEL: network.memory})["memory"]
    else:
        x = read_run(labelled, run, ["forecast"])["forecast"]
    return States(
        labelled,
        network,
        x.isel(taken),
        None if memory is None else memory.isel(taken),
        np.arange(cycles)[taken[TIME]],
        innovation,
        _factor(background, math.prod(labelled.setup.dynamics.shape)),
        seed,
        pick_device(device),
        "truth" if run is None else f"forecasts of {run.attrs.get('method', 'a run')}",
    )


def check_labelled(label: str, value: Any, kind: type) -> None:
    """Refuse what is no xarray object of a kind.

    Raises
    ------
    TypeError
    """
    if not isinstance(value, kind):
        raise TypeError(f"{label}={shown(value)}: expected an xarray {kind.__name__}")


def _background(forecast_error: Any) -> Tensor | None:
    """A deviation, or a covariance."""
    if forecast_error is None:
        return None
    values = torch.as_tensor(real_array("forecast_error", forecast_error))
    if values.ndim == 0 and bool(values < 0):
        raise ValueError(f"forecast_error={float(values)}: expected a standard deviation, zero or positive")
    return values


def _factor(values: Tensor | None, sites: int) -> Tensor | None:
    """A deviation, or a Cholesky factor of a covariance."""
    if values is None or values.ndim == 0:
        return values
    if values.shape != (sites, sites):
        raise ValueError(
            f"forecast_error has shape {tuple(values.shape)}: expected a standard deviation, or a covariance "
            f"({sites}, {sites})"
        )
    factor, info = torch.linalg.cholesky_ex(values)
    if int(info):
        raise ValueError("forecast_error is not positive definite: expected a covariance matrix of full rank")
    lower: Tensor = factor
    return lower


def _cut_small(chunks: Sequence[Sequence[int]], limit: int) -> Plan:
    """Blocks of a record's chunks, none with more states than a limit."""
    rows, columns = chunks
    height = min(max(rows), limit)
    width = max(1, limit // height)

    def even(sizes: Sequence[int], most: int) -> list[int]:
        return [min(most, size - start) for size in sizes for start in range(0, size, most)]

    return Plan.from_chunks(even(rows, height), even(columns, width))
