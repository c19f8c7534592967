"""A record matched with forecasts, and the sums over cases from which every score by lead time is made."""

from __future__ import annotations

import math
from collections.abc import Mapping

import dask
import dask.array as da
import numpy as np
import xarray as xr

from ..core import lead_scores as kernels
from ..core.checks import choice
from ..core.formats import data_format
from ..records.arranging import arrange_state
from ..records.fields import each, states_of
from ..records.leads import LEAD, lead_steps, valid_positions
from ..records.record import LabelledRecord
from ..records.schema import MEMBER, TIME, TRAJECTORY, Array, Role
from ..records.store import STATUS, check_contents, check_whole
from ..records.units import check_units_of_parts
from ..records.watch import warn_of
from .forecast_sums import Target, climate_of, sums_block
from .score_fields import FieldMeans

AGAINST = ("truth", "observations")
MOMENT, RANK = "moment", "rank"
_VALUES = 2**24  # bound of how many numbers a block of forecasts holds


class ForecastPair:
    """Forecasts with the labels of the record on which they are scored.

    Parameters
    ----------
    labelled : LabelledRecord
    forecasts : xarray.Dataset
        Result of `forecast`.
    against : {"truth", "observations"}

    Attributes
    ----------
    lead : xarray.DataArray, dims (lead,)
    held : dict of str to DataArray, dims (trajectory, time, lead, [member,] *state)
        `forecast`, and `forecast_spread` and `forecast_members` if the forecasts have them.
    starts : array of int, shape (T,)
        Positions of the starts in the record.
    valid : array of int, shape (T, L)
        Positions of the valid times of the forecasts; -1 for times that the record lacks.
    first_scored : int
        Position of the first lead time that is scored. Observations of the start's time are left out.
    means : FieldMeans
    by_field : bool
        Whether scores have the dim `field`.

    Raises
    ------
    TypeError, ValueError
        If these are no forecasts on this record, or lead times reach beyond the record.
    """

    def __init__(self, labelled: LabelledRecord, forecasts: xr.Dataset, against: str) -> None:
        self.labelled, self.forecasts = labelled, forecasts
        self.observed = choice("against", against, AGAINST) == "observations"
        setup = labelled.setup
        self.held = _read(labelled, forecasts)
        self.lead = forecasts[LEAD]
        self.steps = lead_steps(self.lead, setup.dynamics)
        clock = np.cumsum(setup.steps)
        states = self.held["forecast"]
        self.starts, self.valid = valid_positions(labelled.observation[TIME], clock, states[TIME], self.steps)
        reach = clock[-1] - clock[self.starts].min()
        if (beyond := self.steps > reach).any():
            last = self.lead.values[~beyond][-1:]
            raise ValueError(
                f"lead times up to {self.lead.values[-1]} reach beyond the record, which ends {reach} model steps "
                "after the first start: expected forecasts of its times, such as "
                f"forecasts.sel(lead=slice(None, {last[0]}))"
                if len(last)
                else "no lead time of the forecasts ends within the record: expected forecasts of its times"
            )
        self.first_scored = int(self.observed and self.steps[0] == 0)
        if self.first_scored == len(self.steps):
            raise ValueError(
                "the forecasts have no lead time but 0, whose observations the analyses have used: expected longer ones"
            )
        if self.observed and self.smoothed:
            warn_of(
                [
                    "the forecasts start from smoothed states, which have used the observations of a lag afterwards: "
                    "scores against observations are too small at lead times up to that lag"
                ]
            )
        self.means = FieldMeans(setup.dynamics)
        self.by_field = self.means.several and (not self.observed or setup.observing.direct)
        self.lazy = states.chunks is not None or labelled.lazy

    @property
    def target(self) -> Target:
        """The quantity that the forecasts are compared with."""
        setup = self.labelled.setup
        whole: tuple[tuple[slice, Array | None], ...] = ((slice(None), None),)
        if self.observed:
            parts = tuple((part.place, None) for part in self.means.parts) if self.by_field else whole
        else:
            parts = tuple((part.place, None if part.weights is None else part.weights.ravel())
                          for part in self.means.parts)  # fmt: skip
        return Target(setup, self.observed, parts)

    @property
    def smoothed(self) -> bool:
        """Whether forecasts start from smoothed states. The last times of a run lack these."""
        return bool(self.forecasts.attrs.get("starts_from") == "smoothed")

    def sums(self, over_time: bool) -> tuple[xr.DataArray, xr.DataArray | None]:
        """Sums over the components of each case, and ranks. With `over_time`, starts of a trajectory are summed, too.

        Returns
        -------
        sums : xarray.DataArray of float64, dims (trajectory, time, lead, field, moment)
            Sums in the order of `MOMENTS`. With `over_time`, `time` has one entry for each block.
        ranks : xarray.DataArray of float64, dims (trajectory, time, lead, field, rank), or None
            None if the forecasts hold no members.
        """
        actual = self.labelled.observation if self.observed else self.labelled.truth
        assert actual is not None
        whole = actual.chunk().data
        arrays = {name: values.chunk().data for name, values in self.held.items()}
        rows, columns = self._sizes(arrays)
        target = dask.delayed(self.target, traverse=False)
        climate = dask.delayed(climate_of, pure=False)(self.labelled.setup)
        task = dask.delayed(sums_block, pure=False)
        fields, leads = len(self.target.parts), len(self.steps)
        members = self.held["forecast_members"].sizes[MEMBER] if "forecast_members" in self.held else 0
        pieces: dict[str, list[list[da.Array]]] = {"sums": [], "ranks": []}
        for row in rows:
            made: dict[str, list[da.Array]] = {"sums": [], "ranks": []}
            for column in columns:
                valid = self.valid[column]
                known = valid[valid >= 0]
                first, stop = (int(known.min()), int(known.max()) + 1) if known.size else (0, 1)
                data = {name: values[row, column] for name, values in arrays.items()}
                place = valid, first, int(self.steps[0])
                answer = task(data, whole[row, first:stop], *place, target, climate, over_time, self.smoothed)
                shape = (row.stop - row.start, 1 if over_time else column.stop - column.start, leads, fields)
                made["sums"].append(da.from_delayed(answer["sums"], (*shape, len(kernels.MOMENTS)), dtype=np.float64))
                if members:
                    made["ranks"].append(da.from_delayed(answer["ranks"], (*shape, members + 1), dtype=np.float64))
            for name, one in made.items():
                pieces[name].append(one)
        dims = (TRAJECTORY, TIME, LEAD, "field")
        sums = da.concatenate([da.concatenate(one, 1) for one in pieces["sums"]], 0)
        if not members:
            return xr.DataArray(sums, dims=(*dims, MOMENT)), None
        ranks = da.concatenate([da.concatenate(one, 1) for one in pieces["ranks"]], 0)
        return xr.DataArray(sums, dims=(*dims, MOMENT)), xr.DataArray(ranks, dims=(*dims, RANK))

    def _sizes(self, arrays: Mapping[str, da.Array]) -> tuple[list[slice], list[slice]]:
        """Trajectories and starts of each block: at most a chunk of the forecasts, and of bounded size."""
        case = sum(math.prod(values.shape[2:]) for values in arrays.values())
        chunks = arrays["forecast"].chunks
        columns = min(max(chunks[1]), max(1, _VALUES // case))
        rows = min(max(chunks[0]), max(1, _VALUES // (case * columns)))
        return [_slices(size, most) for size, most in zip(arrays["forecast"].shape, (rows, columns), strict=False)]  # type: ignore[return-value]


def _slices(size: int, most: int) -> list[slice]:
    return [slice(start, min(size, start + most)) for start in range(0, size, most)]


def _read(labelled: LabelledRecord, forecasts: xr.Dataset) -> dict[str, xr.DataArray]:
    """Read and arrange the variables of forecasts.

    Raises
    ------
    TypeError, ValueError
    """
    if not isinstance(forecasts, xr.Dataset):
        raise TypeError(f"forecasts is a {type(forecasts).__name__}: expected the Dataset that forecast() returned")
    data_format(forecasts.attrs, "the Dataset of forecasts")
    if forecasts.attrs.get(STATUS) == "unfinished":
        raise ValueError("the store of the forecasts is unfinished; run the same call again to resume it")
    check_contents(forecasts)
    model, held = labelled.setup.dynamics, {}
    for name in ("forecast", "forecast_spread", "forecast_members"):
        variables = states_of(forecasts, Role(name, "forecasts", ()), model)
        if variables is None:
            continue
        for variable in each(variables):
            check_whole(forecasts, variable)
            if LEAD not in variable.dims:
                raise ValueError(
                    f"{variable.name!r} has the dims {variable.dims}, without 'lead': expected the Dataset that "
                    "forecast() returned; a run is scored by score()"
                )
        check_units_of_parts(variables, model, warns=False)
        extra = {LEAD: forecasts.sizes[LEAD]}
        if name == "forecast_members":
            extra[MEMBER] = forecasts.sizes[MEMBER]
        held[name] = arrange_state(variables, model, name, extra)
    if "forecast" not in held:
        raise ValueError(f"no variable 'forecast', found {sorted(map(str, forecasts.data_vars))}: expected what "
                         "forecast() returned")  # fmt: skip
    ours, theirs = labelled.observation[TRAJECTORY].values, held["forecast"][TRAJECTORY].values
    if ours.shape != theirs.shape or not (ours == theirs).all():
        raise ValueError(
            f"forecasts and record differ in trajectory: expected {len(ours)} labels {ours[:3].tolist()}, as in the "
            f"record; the forecasts have {len(theirs)}, {theirs[:3].tolist()}"
        )
    return held
