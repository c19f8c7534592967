"""A record and a run on it, matched: what every score of the run is made from."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import xarray as xr

from ..core import scores as kernels
from ..core.checks import integer
from ..records.blocks import tensor_to_array
from ..records.following import astray, followed
from ..records.record import LabelledRecord, RecordWords, read
from ..records.runs import held_in, read_run, sizes_in
from ..records.schema import MEMBER, TIME, TRAJECTORY, time_dims
from ..records.store import check_whole
from .score_causes import Cause, Score, diverged, gaps
from .score_fields import OVER_ALL, TOTAL, FieldMeans, error_scales

SPREADS, MEMBERS = ("forecast_spread", "spread"), ("members", "forecast_members")


@dataclass(frozen=True)
class Pair:
    """A record and a run on it under the record's labels, burn-in left out.

    Attributes
    ----------
    labelled : LabelledRecord
    run : xarray.Dataset
        `forecast`, `analysis` and, where the run has them, spreads and members; dims (trajectory, time, *state), and
        `member` last.
    flags : xarray.DataArray of bool or None, dims (trajectory, time)
        The run's `diverged`, burn-in too.
    burn_in : int
    follows : Cause or None
        The cause that the truth does not follow the dynamics; None without a truth.
    """

    labelled: LabelledRecord
    run: xr.Dataset
    flags: xr.DataArray | None
    burn_in: int
    follows: Cause | None

    @property
    def state(self) -> list[Hashable]:
        """Dims of the state."""
        return list(self.labelled.setup.dynamics.dims)

    @cached_property
    def means(self) -> FieldMeans:
        """How the state is averaged over."""
        return FieldMeans(self.labelled.setup.dynamics)

    @cached_property
    def scales(self) -> xr.DataArray:
        """The error of each field, dims (field,), of a state of several."""
        labelled = self.labelled
        states = self.run["analysis"] if labelled.truth is None else labelled.truth
        observation = labelled.observation if labelled.setup.observing.direct else None
        return error_scales(self.means, observation, self.error_variance, states)

    @cached_property
    def error_variance(self) -> xr.DataArray:
        """Diagonal of R, on the dims of the observations of one time, or of all times where it differs."""
        y, observing = self.labelled.observation, self.labelled.setup.observing
        dims, shape = (y.dims[1:], y.shape[1:]) if observing.error_in_time else (y.dims[2:], y.shape[2:])
        values = tensor_to_array(observing.error_variance())
        if values.ndim:
            values = np.broadcast_to(values, (*values.shape[:-1], int(np.prod(y.shape[2:])))).reshape(shape)
        return xr.DataArray(np.broadcast_to(values, shape), dims=dims)

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
        """A score averaged over trajectories and times; of several fields with the mean over them, `root` of squares.

        Parameters
        ----------
        by_time : xarray.DataArray, dims (trajectory, time), and field where there are several
        """
        units = self.means.units
        scores = {name: Score(by_time.mean(dims, skipna=False), long_name, units, causes, always)}
        if self.means.several:
            together = self.means.over_all(by_time, self.scales, root=root).mean(dims, skipna=False)
            scores[name + TOTAL] = Score(together, f"{long_name}; {OVER_ALL}", "1", causes)
        return scores

    @property
    def crps_of(self) -> str:
        """What the CRPS is of: the most that the run tells."""
        return "members" if "members" in self.run else "Gaussian" if "spread" in self.run else "analysis"

    def lost(self) -> xr.DataArray:
        """Where a trajectory has diverged, dims (trajectory, time): as the run says, or where it is not finite."""
        return _not_finite(self.run["analysis"]) if self.flags is None else self._later_flags()

    def _later_flags(self) -> xr.DataArray:
        assert self.flags is not None
        return self.flags.isel({TIME: slice(self.burn_in, None)})

    @cached_property
    def diverged(self) -> Cause:
        """The cause that trajectories diverged, as the run's flags say."""
        return Cause(diverged, lambda: (self.flags if self.flags is not None else xr.zeros_like(self.lost()),))

    @cached_property
    def gaps_of_truth(self) -> Cause:
        """The cause that the truth is not finite."""

        def evidence() -> tuple[xr.DataArray, ...]:
            assert self.labelled.truth is not None
            return (_not_finite(self.labelled.truth),)

        return Cause(
            gaps("the truth has gaps", "expected a truth without NaN: fill them, or select around them"), evidence
        )

    def gaps_of(self, name: str, observed: Callable[[], tuple[xr.DataArray, xr.DataArray]] | None = None) -> Cause:
        """The cause that a variable of the run is not finite, though nothing has diverged.

        Parameters
        ----------
        name : str
        observed : callable, optional
            Gives the variable in observation space, and where observations exist. Other places do not matter.
        """

        def evidence() -> tuple[xr.DataArray, ...]:
            values, where = (self.run[name], None) if observed is None else observed()
            broken = _not_finite(values, where)
            return (broken,) if self.flags is None else (broken, self._later_flags())

        what = f"the run's {name!r} has NaN or infinite values"
        if name in SPREADS:
            what = f"the run's {name!r} has values that are NaN, infinite or negative"
        if self.flags is not None:
            what += " where nothing has diverged"
        return Cause(gaps(what, "expected numbers: was the run cut short, or merged with other labels?"), evidence)


def _not_finite(values: xr.DataArray, where: xr.DataArray | None = None) -> xr.DataArray:
    """Whether some value at a time is no finite number, dims (trajectory, time)."""
    broken = ~xr.ufuncs.isfinite(values)
    if where is not None:
        broken = broken & where
    at_time: xr.DataArray = broken.any([dim for dim in broken.dims if dim not in (TRAJECTORY, TIME)])
    return at_time.transpose(TRAJECTORY, TIME)


def match(ds: xr.Dataset, run: xr.Dataset, burn_in: int, words: RecordWords) -> Pair:
    """Bring record and run to the same labels, and leave burn-in out.

    Raises
    ------
    TypeError, ValueError
        If the record or the run cannot be read, they do not fit each other, or burn-in leaves nothing.
    """
    labelled = read(ds, **words)
    variables = read_run(labelled, run, ("forecast", "analysis"))
    variables |= read_run(labelled, run, held_in(labelled, run, SPREADS))
    for name in held_in(labelled, run, MEMBERS):
        variables[name] = _members(labelled, run, name)
    cycles = labelled.observation.sizes[TIME]
    burn_in = integer("burn_in", burn_in)
    if not 0 <= burn_in < cycles:
        raise ValueError(f"burn_in={burn_in}: expected 0 to {cycles - 1}, the record has {cycles} cycles")
    later = slice(burn_in, None)
    unlabelled = {name: values.drop_vars(list(values.coords)) for name, values in variables.items()}
    # Members stay as they are: the kernels cast them piece by piece.
    arranged = {name: values if name in MEMBERS else _cast(values) for name, values in unlabelled.items()}
    # A negative number is no spread: it counts as missing.
    arranged |= {name: values.where(values >= 0) for name, values in arranged.items() if name in SPREADS}
    flags = _flags(labelled, run)
    # The record's labels are the run's: identical coordinates keep arithmetic from intersecting them.
    labels = {name: labelled.observation[name] for name in (TRAJECTORY, TIME)}
    scored = replace(
        labelled,
        setup=replace(labelled.setup, observing=labelled.setup.observing.during(later)),
        observation=_cast(labelled.observation).isel({TIME: later}),
        truth=None if labelled.truth is None else _cast(labelled.truth).isel({TIME: later}),
    )
    run_later = xr.Dataset(arranged).assign_coords(labels).isel({TIME: later})
    return Pair(scored, run_later, flags, burn_in, _follows(labelled))


def _follows(labelled: LabelledRecord) -> Cause | None:
    """The cause that the truth does not follow the dynamics; None without a truth."""
    if labelled.truth is None:
        return None
    first = followed(labelled.setup, labelled.truth)
    return Cause(partial(astray, labelled.setup), lambda: (first,))


def _members(labelled: LabelledRecord, run: xr.Dataset, name: str) -> xr.DataArray:
    """Members of a run, dims (trajectory, time, *state, member)."""
    if not (sizes := sizes_in(labelled, run, name)).get(MEMBER):
        raise ValueError(f"the run's {name!r} has sizes {sizes}: expected one {MEMBER!r} at least")
    members = read_run(labelled, run, (name,), extra={MEMBER: sizes[MEMBER]})[name]
    return members.transpose(..., MEMBER)


def _cast(values: xr.DataArray) -> xr.DataArray:
    """Values in a type to compute in: half precision would overflow in the squares."""
    return values.astype(kernels.working_dtype(values.dtype), copy=False)


def _flags(labelled: LabelledRecord, run: xr.Dataset) -> xr.DataArray | None:
    """Where the run says that a trajectory has diverged, dims (trajectory, time)."""
    if "diverged" not in run:
        return None
    flags = run["diverged"]
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
