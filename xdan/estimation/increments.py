"""The increments of a run with their forecasts, and sums that estimate the missing tendency from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..core.checks import integer, shown
from ..core.dynamics import Dynamics, dynamics_to_json
from ..core.learning.increments import FOLDS, NormalEquations
from ..core.spaces import StateSpace
from ..core.tendencies import LocalPolynomial, TendencyNetwork
from ..records.blocks import Plan, block, block_graph
from ..records.record import LabelledRecord
from ..records.runs import read_run
from ..records.schema import TIME, TRAJECTORY, Array, to_json

_FEWEST = 8  # least number of intervals after the burn-in
_DROPPED = "climatology", "model_error"  # entries of a description that do not change forecasts


@dataclass(frozen=True)
class Moments:
    """Means over the intervals of a run; the first three hold one number for each field.

    Attributes
    ----------
    mean, deviation : list of float
        Mean and standard deviation of the analyses.
    rate : list of float
        Root of the mean square of (increment / length of the interval).
    size : float
        Root of the mean square increment.
    lost : float
        Share of the states that are not finite.
    """

    mean: list[float]
    deviation: list[float]
    rate: list[float]
    size: float
    lost: float

    def normalise(self, network: TendencyNetwork) -> None:
        """Scale a network by this climate, and by `rate` as the size of its tendencies."""
        values = (self.mean, self.deviation, self.rate)
        network.normalise(*(one if network.state_mean.ndim else one[0] for one in values))


@dataclass(frozen=True)
class Increments:
    """Intervals of a run: an analysis, the forecast from it, and the next analysis.

    Attributes
    ----------
    labelled : LabelledRecord
    start, forecast, analysis : xarray.DataArray, dims (trajectory, time, *state)
        Analyses at the beginning of each interval, and forecasts and analyses at its end. Equal positions belong to
        one interval.
    interval : array, shape (K,)
        Length of each interval, in model time.
    """

    labelled: LabelledRecord
    start: xr.DataArray
    forecast: xr.DataArray
    analysis: xr.DataArray
    interval: Array

    @classmethod
    def of(cls, labelled: LabelledRecord, run: xr.Dataset, burn_in: Any) -> Increments:
        """Take the intervals after a burn-in.

        Raises
        ------
        TypeError
            If the run is no Dataset, or the burn-in no integer.
        ValueError
            If the run was made on another record or with another model, is unfinished, or leaves too few intervals.
        """
        states = read_run(labelled, run, ("forecast", "analysis"))
        check_model(run, labelled.setup.dynamics)
        cycles = int(states["forecast"].sizes[TIME])
        first = integer("burn_in", burn_in, least=0)
        if cycles - 1 - first < _FEWEST:
            raise ValueError(
                f"burn_in={first} of a run of {cycles} cycles leaves {max(0, cycles - 1 - first)} intervals: expected "
                f"at least {_FEWEST}; take a longer run, or a shorter burn-in"
            )
        before, after = slice(first, -1), slice(first + 1, None)
        return cls(
            labelled,
            states["analysis"].isel({TIME: before}),
            states["forecast"].isel({TIME: after}),
            states["analysis"].isel({TIME: after}),
            labelled.setup.steps[first + 1 :] * labelled.setup.dynamics.timestep,
        )

    def moments(self) -> Moments:
        """Means over all intervals, computed in one pass.

        Raises
        ------
        ValueError
            If no interval is finite.
        """
        space = self.labelled.setup.dynamics.space
        sums = self._sums(_moment_block, {"sums": ((5, len(space)), np.dtype(np.float64))}, space)["sums"]
        count, first, second, increment, rate = sums[0, 0]
        if not (count > 0).all():
            raise ValueError("no interval of the run is finite: expected analyses; every trajectory was lost")
        mean, sizes = first / count, np.array([one.geometry.size for one in space])
        total = sizes * self.start.sizes[TRAJECTORY] * self.start.sizes[TIME]
        return Moments(
            mean.tolist(),
            np.sqrt(np.maximum(second / count - mean**2, 0.0)).tolist(),
            np.sqrt(rate / count).tolist(),
            float(np.sqrt(np.mean(increment / count))),
            float(1 - (count / total).min()),
        )

    def normal_equations(self, network: LocalPolynomial) -> NormalEquations:
        """Normal equations of a regression of the increments on the terms of a polynomial, summed block by block."""
        terms, channels = network.terms, network.arrangement.channels
        double = np.dtype(np.float64)
        outputs = {
            "gram": ((FOLDS, terms, terms), double),
            "moment": ((FOLDS, terms, channels), double),
            "square": ((FOLDS, channels), double),
            "count": ((FOLDS,), double),
        }
        whole = self.start.sizes[TRAJECTORY], self.start.sizes[TIME]
        sums = self._sums(_normal_block, outputs, network.double(), whole)
        return _summed(sums)

    def _sums(self, function: Any, outputs: dict[str, tuple[tuple[int, ...], Any]], *shared: Any) -> dict[str, Array]:
        """Run one task for each block. In the results, blocks lie along the first two axes."""
        arrays = [one.transpose(TRAJECTORY, TIME, ...) for one in (self.start, self.forecast, self.analysis)]
        inputs = [one.chunk().data if one.chunks is None else one.data for one in arrays]
        plan = Plan.from_chunks(*inputs[0].chunks[:2])
        lazy = block_graph(
            function,
            plan,
            inputs,
            outputs,
            *(dask.delayed(one, traverse=False) for one in (self.interval, *shared)),
            sizes=lambda rows, columns: (1, 1),
        )
        # Sums of blocks are added as they come, so that memory does not grow with the number of blocks.
        names = list(lazy)
        totals: dict[str, da.Array] = {name: lazy[name].sum((0, 1), keepdims=True, split_every=4) for name in names}
        return dict(zip(names, dask.compute(*totals.values()), strict=True))


def check_model(run: xr.Dataset, dynamics: Dynamics) -> None:
    """Refuse a run if, by its attributes, another model made its forecasts.

    Raises
    ------
    ValueError
    """
    described = _described(run.attrs.get("dynamics"))
    here = _described(to_json(dynamics_to_json(dynamics)))
    if described is not None and described != here:
        raise ValueError(
            f"the run's forecasts were made by the model {shown(described)}, and the increments would be taken for "
            f"errors of {shown(here)}: expected one model; pass dynamics= with the model of the run"
        )


def _described(text: Any) -> dict[str, Any] | None:
    """The description of a dynamics in an attribute, without entries that do not change forecasts."""
    try:
        description = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None
    if not isinstance(description, dict):
        return None
    return {name: value for name, value in description.items() if name not in _DROPPED}


def _summed(sums: dict[str, Array]) -> NormalEquations:
    """Add up the normal equations of all blocks."""
    solved: NormalEquations = _tensors({name: value[0, 0] for name, value in sums.items()})
    return solved


def _group(rows: slice, columns: slice, whole: tuple[int, int]) -> Tensor:
    """Groups (B, K) that are left out together: trajectories, or stretches of time if there are few trajectories."""
    trajectories, times = torch.arange(rows.start, rows.stop), torch.arange(columns.start, columns.stop)
    if whole[0] >= FOLDS:
        return (trajectories * FOLDS // whole[0])[:, None].expand(-1, len(times))
    return (times * FOLDS // whole[1])[None].expand(len(trajectories), -1)


@block
def _normal_block(
    data: Sequence[Tensor],
    rows: slice,
    columns: slice,
    interval: Tensor,
    network: LocalPolynomial,
    whole: tuple[int, int],
) -> dict[str, Tensor]:
    """Normal equations of a block. Each sum has two leading axes of length one."""
    start, end, after = (one.double().flatten(2).flatten(0, 1) for one in data)
    times = columns.stop - columns.start
    lengths = interval[columns].expand(rows.stop - rows.start, times).reshape(-1)
    group = _group(rows, columns, whole).reshape(-1)
    made = NormalEquations.of_increments(network, start, end, after - end, lengths, group)
    return {name: value[None, None] for name, value in vars(made).items()}


@block
def _moment_block(
    data: Sequence[Tensor], rows: slice, columns: slice, interval: Tensor, space: StateSpace
) -> dict[str, Tensor]:
    """Counts and sums of x, x^2, d^2 and (d / tau)^2 of each field, (1, 1, 5, fields)."""
    start, end, after = (one.double().flatten(2) for one in data)
    increment = after - end
    whole = (start.isfinite() & increment.isfinite()).all(-1, keepdim=True)
    start, increment = (torch.where(whole, one, 0.0) for one in (start, increment))
    rate = increment / interval[columns][:, None]
    columns_of = [whole.expand_as(start).double(), start, start.square(), increment.square(), rate.square()]
    sizes = [one.geometry.size for one in space]
    sums = [torch.stack([part.sum() for part in one.split(sizes, -1)]) for one in columns_of]
    return {"sums": torch.stack(sums)[None, None]}


@block
def _tensors(data: dict[str, Tensor]) -> Any:
    """Make normal equations from sums. Arrays become tensors."""
    return NormalEquations(**data)
