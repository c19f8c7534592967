"""A record matched with runs on it: the input of every score of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ..core import scores as kernels
from ..core.checks import integer
from ..core.ensemble_scores import trailing
from ..records.blocks import tensor_to_array
from ..records.following import astray, followed
from ..records.record import LabelledRecord, RecordWords, read
from ..records.runs import held_in, read_run, sizes_in
from ..records.schema import MEMBER, TIME, TRAJECTORY, WHOLE, time_dims
from ..records.store import check_whole
from .score_causes import Cause, Score, diverged, fills, gaps
from .score_fields import OVER_ALL, TOTAL, FieldMeans, error_scales

SPREADS, MEMBERS = ("forecast_spread", "spread"), ("members", "forecast_members")


class Names(NamedTuple):
    """Names in a run: of an estimate of the state, of its standard deviation and of its members."""

    estimate: str
    spread: str
    members: str


ESTIMATES = {
    "analysis": Names("analysis", "spread", "members"),
    "forecast": Names("forecast", "forecast_spread", "forecast_members"),
    "smoothed": Names("smoothed", "smoothed_spread", "smoothed_members"),
}


@dataclass(frozen=True)
class ScoredRecord:
    """A record as scores take it. Several runs share it, so that it is read once.

    Attributes
    ----------
    whole : LabelledRecord
    whole : LabelledRecord
        The record with burn-in.
    labelled : LabelledRecord
        The record without burn-in, in a dtype to compute in.
    burn_in : int
        Number of cycles that are left out.
    """

    whole: LabelledRecord
    labelled: LabelledRecord
    burn_in: int

    @cached_property
    def means(self) -> FieldMeans:
        """How the state is averaged over."""
        return FieldMeans(self.labelled.setup.dynamics)

    @cached_property
    def error_variance(self) -> xr.DataArray:
        """Diagonal of R, on the dims of the observations of one time, or of all times if R differs in time."""
        y, observing = self.labelled.observation, self.labelled.setup.observing
        dims, shape = (y.dims[1:], y.shape[1:]) if observing.error_in_time else (y.dims[2:], y.shape[2:])
        values = tensor_to_array(observing.error_variance())
        if values.ndim:
            values = np.broadcast_to(values, (*values.shape[:-1], int(np.prod(y.shape[2:])))).reshape(shape)
        return xr.DataArray(np.broadcast_to(values, shape), dims=dims)

    @cached_property
    def of_truth(self) -> tuple[Cause, ...]:
        """Causes in the truth that a warning names even if no score is broken: fill values, another dynamics."""
        truth = self.labelled.truth
        if truth is None:
            return ()
        assert self.whole.truth is not None
        first = followed(self.whole.setup, self.whole.truth)
        follows = Cause(partial(astray, self.whole.setup), lambda: (first,), of_record=True)
        return (fills(truth, "truth"), follows)

    @cached_property
    def of_observation(self) -> tuple[Cause, ...]:
        """Causes in the observations that a warning names even if no score is broken: fill values."""
        return (fills(self.labelled.observation, "observation"),)

    @cached_property
    def gaps_of_truth(self) -> Cause:
        """The cause that the truth is not finite."""

        def evidence() -> tuple[xr.DataArray, ...]:
            assert self.labelled.truth is not None
            return (_not_finite(self.labelled.truth),)

        return Cause(
            gaps("the truth has gaps", "expected a truth without NaN: fill them, or select around them"), evidence
        )


@dataclass(frozen=True)
class Pair:
    """A record and a run on it with the record's labels, without burn-in.

    Attributes
    ----------
    record : ScoredRecord
    run : xarray.Dataset
        The estimate that is scored, under the name `analysis`, and its `spread` and `members` if the run has them;
        beside an analysis also those of the forecast. Dims (trajectory, time, *state), and `member` last.
    names : dict of str to str
        The names of these variables in the run.
    flags : xarray.DataArray of bool or None, dims (trajectory, time)
        The run's `diverged`, also during burn-in.
    attributes : dict
        The attributes of the run.
    left_out : xarray.DataArray of bool or None, dims (time,)
        Times at the end for which a smoother has no states; None if an analysis or a forecast is scored.
    """

    record: ScoredRecord
    run: xr.Dataset
    names: Mapping[str, str]
    flags: xr.DataArray | None
    attributes: Mapping[str, Any]
    left_out: xr.DataArray | None = None

    @property
    def labelled(self) -> LabelledRecord:
        """The record without burn-in."""
        return self.record.labelled

    @property
    def means(self) -> FieldMeans:
        """How the state is averaged over."""
        return self.record.means

    @property
    def state(self) -> list[Hashable]:
        """Dims of the state."""
        return list(self.labelled.setup.dynamics.dims)

    @cached_property
    def scales(self) -> xr.DataArray:
        """The error of each field, dims (field,), for a state of several fields."""
        labelled = self.labelled
        states = self.run["analysis"] if labelled.truth is None else labelled.truth
        observation = labelled.observation if labelled.setup.observing.direct else None
        return error_scales(self.means, observation, self.record.error_variance, states)

    def mean(self, values: xr.DataArray, dims: Sequence[Hashable]) -> xr.DataArray:
        """Mean over trajectories and over the times that are not left out; NaN if a value at these times is NaN."""
        if self.left_out is None or TIME not in dims:
            average: xr.DataArray = values.mean(dims, skipna=False)
            return average
        if not set(self.state) & set(values.dims):
            values = values.where(~self.left_out)
        # Sums and counts of blocks are taken: no block of states has to wait for `left_out`.
        count, total = values.notnull().sum(dims), values.sum(dims, skipna=True)
        return (total / count.where(count == self.cases(dims))).astype(values.dtype, copy=False)

    def cases(self, dims: Sequence[Hashable]) -> Any:
        """Number of trajectories and times in a mean; it is lazy for the lazy run of a smoother."""
        sizes = self.labelled.observation.sizes
        number = math.prod(sizes[dim] for dim in dims)
        if self.left_out is None or TIME not in dims:
            return number
        return (~self.left_out).sum() * (number // sizes[TIME])

    def as_score(
        self,
        value: xr.DataArray,
        long_name: str,
        units: str | None,
        causes: Sequence[Cause] = (),
        always: Sequence[Cause] = (),
    ) -> Score:
        """Make a score. Times that are left out do not break it."""
        if self.left_out is None or TIME not in value.dims:
            return Score(value, long_name, units, causes, always)
        broken = ~xr.ufuncs.isfinite(value) & ~self.left_out
        return Score(value, long_name, units, causes, always, broken.transpose(*value.dims))

    def averaged(
        self,
        dims: Sequence[Hashable],
        name: str,
        by_time: xr.DataArray,
        long_name: str,
        causes: Sequence[Cause],
        *,
        always: Sequence[Cause] = (),
        root: bool = False,
    ) -> dict[str, Score]:
        """Average a score over trajectories and times, and over fields; with `root`, over the squares of the fields.

        Parameters
        ----------
        by_time : xarray.DataArray, dims (trajectory, time), and field if there are several
        """
        units = self.means.units
        scores = {name: self.as_score(self.mean(by_time, dims), long_name, units, causes, always)}
        if self.means.several:
            together = self.mean(self.means.over_all(by_time, self.scales, root=root), dims)
            scores[name + TOTAL] = self.as_score(together, f"{long_name}; {OVER_ALL}", "1", causes)
        return scores

    @property
    def spreads(self) -> list[str]:
        """Names of the spreads that the run has."""
        return [name for name in SPREADS if name in self.run]

    @property
    def crps_of(self) -> str:
        """What the CRPS is computed from: "members", "Gaussian", or "" if the run has neither members nor a spread."""
        return "members" if "members" in self.run else "Gaussian" if "spread" in self.run else ""

    def lost(self) -> xr.DataArray:
        """Where a trajectory has diverged, dims (trajectory, time): by its flags, or where it is not finite."""
        return self._explained(_not_finite(self.run["analysis"])) if self.flags is None else self._later_flags()

    def _explained(self, broken: xr.DataArray) -> xr.DataArray:
        """Where values are not finite, without the times that are left out."""
        return broken if self.left_out is None else broken & ~self.left_out

    def _later_flags(self) -> xr.DataArray:
        assert self.flags is not None
        return self.flags.isel({TIME: slice(self.record.burn_in, None)})

    @cached_property
    def diverged(self) -> Cause:
        """The cause that trajectories diverged, as the run's flags say."""
        return Cause(diverged, lambda: (self.flags if self.flags is not None else xr.zeros_like(self.lost()),))

    def gaps_of(self, name: str, observed: Callable[[], tuple[xr.DataArray, xr.DataArray]] | None = None) -> Cause:
        """The cause that a variable of the run is not finite although nothing has diverged.

        Parameters
        ----------
        name : str
        observed : callable, optional
            Returns the variable in the space of observations, and where observations exist. Only these places count.
        """
        if observed is None and name in self._gaps:
            return self._gaps[name]

        def evidence() -> tuple[xr.DataArray, ...]:
            values, where = (self.run[name], None) if observed is None else observed()
            broken = self._explained(_not_finite(values, where))
            return (broken,) if self.flags is None else (broken, self._later_flags())

        in_run = self.names[name]
        what = f"the run's {in_run!r} has NaN or infinite values"
        if name in SPREADS:
            what = f"the run's {in_run!r} has values that are NaN, infinite or negative"
        if self.flags is not None:
            what += " where nothing has diverged"
        cause = Cause(gaps(what, "expected numbers: was the run cut short, or merged with other labels?"), evidence)
        if observed is None:
            self._gaps[name] = cause
        return cause

    @cached_property
    def _gaps(self) -> dict[str, Cause]:
        """Causes that were made: scores that share a cause warn of it once."""
        return {}


def _not_finite(values: xr.DataArray, where: xr.DataArray | None = None) -> xr.DataArray:
    """Whether some value at a time is not finite, dims (trajectory, time)."""
    broken = ~xr.ufuncs.isfinite(values)
    if where is not None:
        broken = broken & where
    at_time: xr.DataArray = broken.any([dim for dim in broken.dims if dim not in (TRAJECTORY, TIME)])
    return at_time.transpose(TRAJECTORY, TIME)


def read_scored(ds: xr.Dataset, burn_in: int, words: RecordWords) -> ScoredRecord:
    """Read a record, and leave out burn-in.

    Raises
    ------
    TypeError, ValueError
        If the record cannot be read, or no cycle is left after burn-in.
    """
    labelled = read(ds, **words)
    cycles = labelled.observation.sizes[TIME]
    burn_in = integer("burn_in", burn_in)
    if not 0 <= burn_in < cycles:
        raise ValueError(f"burn_in={burn_in}: expected 0 to {cycles - 1}, the record has {cycles} cycles")
    later = slice(burn_in, None)
    scored = replace(
        labelled,
        setup=replace(labelled.setup, observing=labelled.setup.observing.during(later)),
        observation=_cast(labelled.observation).isel({TIME: later}),
        truth=None if labelled.truth is None else _cast(labelled.truth).isel({TIME: later}),
    )
    return ScoredRecord(labelled, scored, burn_in)


def match(record: ScoredRecord, run: xr.Dataset, which: str, *, forecast: bool = False, what: str = "run") -> Pair:
    """Give a run the labels of a record, and leave out burn-in.

    Parameters
    ----------
    record : ScoredRecord
    run : xarray.Dataset
    which : {"analysis", "forecast", "smoothed"}
        The estimate that is scored.
    forecast : bool
        Whether the forecast is read beside an analysis.
    what : str
        The run in words.

    Raises
    ------
    TypeError, ValueError
        If the run cannot be read, or it does not fit the record.
    """
    labelled, scored = record.whole, ESTIMATES[which]
    names = {"analysis": scored.estimate, "spread": scored.spread, "members": scored.members}
    needed = ["analysis"]
    if forecast:
        names |= dict(zip(("forecast", "forecast_spread", "forecast_members"), ESTIMATES["forecast"], strict=True))
        needed.insert(0, "forecast")
    if which == "smoothed" and isinstance(run, xr.Dataset) and not held_in(labelled, run, ["smoothed"]):
        raise ValueError(
            f"the {what} holds no 'smoothed': expected one of a method that corrects earlier states too, such as "
            "baseline('ienks-n', lag=5)"
        )
    held = _read(labelled, run, names, needed, what)
    unlabelled = {name: values.drop_vars(list(values.coords)) for name, values in held.items()}
    # Members keep their dtype: the kernels convert them piece by piece.
    arranged = {name: values if name in MEMBERS else _cast(values) for name, values in unlabelled.items()}
    # A negative number is no spread. It counts as missing.
    arranged |= {name: values.where(values >= 0) for name, values in arranged.items() if name in SPREADS}
    flags = _flags(labelled, run)
    # The run gets the record's labels: with equal coordinates, arithmetic drops no times.
    labels = {name: labelled.observation[name] for name in (TRAJECTORY, TIME)}
    later = {TIME: slice(record.burn_in, None)}
    left_out = None
    if which == "smoothed":
        analysis = _read(labelled, run, {"analysis": "analysis"}, [], what).get("analysis") if flags is None else None
        left_out = _without_estimate(arranged["analysis"], flags, analysis).assign_coords({TIME: labels[TIME]})
        left_out = left_out.isel(later)
    run_later = xr.Dataset(arranged).assign_coords(labels).isel(later)
    return Pair(record, run_later, names, flags, dict(run.attrs), left_out)


def _read(
    labelled: LabelledRecord, run: xr.Dataset, names: Mapping[str, str], needed: Sequence[str], what: str
) -> dict[str, xr.DataArray]:
    """Variables of a run, by the names in scores: the needed ones, and the others if the run holds them."""
    in_run = [names[name] for name in needed]
    variables = read_run(labelled, run, in_run, what)  # which refuses anything but a run
    others = held_in(labelled, run, [name for name in names.values() if name not in in_run])
    with_members = [name for name in others if any(name == one.members for one in ESTIMATES.values())]
    variables |= read_run(labelled, run, [name for name in others if name not in with_members], what)
    for name in with_members:
        variables[name] = _members(labelled, run, name, what)
    return {name: variables[of_run] for name, of_run in names.items() if of_run in variables}


def _without_estimate(values: xr.DataArray, flags: xr.DataArray | None, analysis: xr.DataArray | None) -> xr.DataArray:
    """Times at the end of a run for which a smoother has no states although no trajectory is lost, dims (time,)."""
    over = [dim for dim in values.dims if dim != TIME]
    nothing = values.isnull().all(over)
    if flags is not None:
        nothing = nothing & ~flags.all(TRAJECTORY)
    elif analysis is not None:
        nothing = nothing & analysis.drop_vars(list(analysis.coords)).notnull().any(over)
    at_end: xr.DataArray = xr.apply_ufunc(
        trailing,
        nothing if nothing.chunks is None else nothing.chunk({TIME: -1}),
        input_core_dims=[[TIME]],
        output_core_dims=[[TIME]],
        dask="parallelized",
        output_dtypes=[bool],
    )
    return at_end & ~at_end.all()  # if no time has a state, a warning says so


def _members(labelled: LabelledRecord, run: xr.Dataset, name: str, what: str) -> xr.DataArray:
    """Members of a run, dims (trajectory, time, *state, member)."""
    if not (sizes := sizes_in(labelled, run, name)).get(MEMBER):
        raise ValueError(f"the {what}'s {name!r} has sizes {sizes}: expected one {MEMBER!r} at least")
    members = read_run(labelled, run, (name,), what, extra={MEMBER: sizes[MEMBER]})[name]
    return members.transpose(..., MEMBER)


def _cast(values: xr.DataArray) -> xr.DataArray:
    """Convert values to a dtype to compute in: squares would overflow in half precision."""
    return values.astype(kernels.working_dtype(values.dtype), copy=False)


def _flags(labelled: LabelledRecord, run: xr.Dataset) -> xr.DataArray | None:
    """Where the run says that a trajectory has diverged, dims (trajectory, time)."""
    if "diverged" not in run:
        return None
    flags = run["diverged"]
    if WHOLE in run.attrs:  # early versions left out chunks of nothing but False
        check_whole(run, flags)
    times = time_dims(flags)
    if TIME not in flags.dims and times:
        flags = flags.drop_vars(TIME, errors="ignore").rename({times[0]: TIME})
    if labelled.bare and TRAJECTORY not in flags.dims:
        flags = flags.drop_vars(TRAJECTORY, errors="ignore").expand_dims(TRAJECTORY)
    expected = {name: labelled.observation.sizes[name] for name in (TRAJECTORY, TIME)}
    if dict(flags.sizes) != expected or flags.dtype.kind not in "biuf":
        raise ValueError(
            f"the run's 'diverged' is of {flags.dtype} with sizes {dict(flags.sizes)}: expected True and False with "
            f"{expected}"
        )
    return (flags != 0).drop_vars(list(flags.coords)).transpose(TRAJECTORY, TIME)
