"""Forecasts from the analyses of a run, by lead time, lazily or written into a store."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Unpack

import dask
import dask.array as da
import numpy as np
import xarray as xr

from ..core.checks import integer, shown, switch
from ..core.dynamics import dynamics_to_json
from ..core.keywords import checks_keywords
from ..core.lead_times import MOST
from ..core.log import RUNS
from ..core.progress import BAR_DELAY, Bar, Work, WorkKey, bar_of, working
from ..core.random import check_seed
from ..records.blocks import Plan, block_graph, pick_device
from ..records.fields import parts_of
from ..records.leads import LEAD, VALID_TIME, lead_coordinates, steps_of
from ..records.location import StoreLike, check_reachable, check_rewritable, locate, writing
from ..records.observing import identity as observing_identity
from ..records.record import LabelledRecord, RecordWords, read
from ..records.schema import MEMBER, MEMBER_ATTRIBUTES, TIME, TRAJECTORY, Array, attributes
from ..records.store import check_apart, check_mode, digest, sealed
from ..records.streams import Stream
from ..records.watch import attribute, warn_of
from ..records.wording import shares_words
from .forecast_blocks import Settings, forecast_block, forecast_layout, lost_texts, stream_block
from .forecast_starts import member_starts, single_starts

_VALUES = 2**24  # bound of how many numbers a block of forecasts holds


@checks_keywords
@shares_words
def forecast(
    ds: xr.Dataset,
    run: xr.Dataset | None = None,
    *,
    lead: Any = 2.0,
    step: Any = None,
    every: int = 1,
    burn_in: int = 0,
    members: int | None = None,
    keep_members: bool = True,
    which: str = "analysis",
    seed: int = 0,
    store: StoreLike | None = None,
    mode: str = "w-",
    device: str = "auto",
    progress: bool = True,
    **words: Unpack[RecordWords],
) -> xr.Dataset:
    """Forecast from the analyses of a run, by lead time, lazily if the run is lazy.

    A forecast starts at each of the chosen analyses and knows no later observations. The result does not depend on
    chunks, scheduler or number of workers.

    Parameters
    ----------
    ds : xarray.Dataset
        The record on which the run was made. Its dynamics makes the forecasts, or the `dynamics=` of the call.
    run : xarray.Dataset, optional
        Run of `cycle` or `baseline` on this record. With which="truth" the run may be left out.
    lead : float, timedelta or str
        The longest lead time. A number counts units of model time, also if the record has dates: if the `time_unit` of
        the dynamics is 5 days, `lead=5` is 25 days. With a `time_unit` it may be a time difference, or words such as
        "5D" that pandas.Timedelta takes.
    step : float, timedelta or str, optional
        Difference between lead times, which go from 0 to `lead`. By default the record's shortest interval.
    every : int
        Number of analyses from one start to the next.
    burn_in : int
        Number of analyses at the beginning from which no forecast starts.
    members : int, optional
        Number of members to forecast. They are the first of the run's `members`. If the run has no members, they are
        drawn from its `analysis_covariance`, or from its `spread` with independent errors. By default one forecast
        starts from each analysis.
    keep_members : bool
        Whether to keep the forecasts of the members beside their mean and spread.
    which : {"analysis", "smoothed", "truth"}
        The states from which forecasts start. The truth is a perfect start: all errors are then those of the model.
    seed : int
        Key of the random draws of members and of the model's errors.
    store : path or Zarr store, optional
        Write the result into this store block by block, and return the opened store. After a kill, the same call goes
        on from the last block. By default the result is in memory, or lazy if the run is lazy.
    mode : {"w-", "w"}
        "w-" refuses a store that exists, "w" overwrites it. An unfinished store of the same call goes on in both modes.
    {device}
    progress : bool
        Whether to show a progress bar over the lead times of all blocks. In memory the bar appears after some seconds.
        Lazy forecasts are not computed, and have no bar.
    {words}

    Returns
    -------
    xarray.Dataset
        `forecast` (trajectory, time, lead, *state), in the state's units: the forecast from the analysis, or the mean
        of the members' forecasts. With members also `forecast_spread` on these dims, and `forecast_members`
        (trajectory, time, lead, member, *state). Several fields have one variable each, such as `forecast_u`. `time` is
        the start of a forecast. `lead` has the units of the record's times; it is a time difference if the times are
        dates. `valid_time` (time, lead) is the time that a forecast is for. `diverged` (trajectory, time, lead) says
        whether a forecast is not finite: the run was lost at the start, or the model has left all bounds. Such a
        forecast is NaN from there on.

        If the dynamics has model errors of covariance Q, an error drawn from Q is added to each member after each
        interval that is as long as the record's shortest one. A forecast without members has no such errors.

    Warns
    -----
    XdanWarning
        If members are drawn without correlations; if the dynamics has a Q and the record's intervals are uneven; and
        once if forecasts are not finite. Lazy output gives the last warning while it is computed.

    Raises
    ------
    TypeError
        If an argument has another type.
    ValueError
        If `lead` is no multiple of `step`, `step` is no multiple of the model's time step, or one of them is a time
        difference and the dynamics has no `time_unit`; if no start is left after the burn-in; if the run has fewer
        members, or neither members nor a distribution to draw them from; or if the run was made on another record.
    FileExistsError
        If the store exists and does not hold an unfinished result of the same call.

    See Also
    --------
    score_forecasts : scores of the forecasts by lead time.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=40, trajectories=2, seed=0)
    >>> run = ds.dan.baseline("enkf-n", members=10, keep_members=True)
    >>> forecasts = ds.dan.forecast(run, lead=0.5, every=5, burn_in=10, members=4)
    >>> dict(forecasts.forecast.sizes)
    {'trajectory': 2, 'time': 6, 'lead': 11, 'x': 8}
    """
    seed, progress, keep = check_seed(seed), switch("progress", progress), switch("keep_members", keep_members)
    check_mode(mode)
    device = pick_device(device)
    count = None if members is None else integer("members", members, least=1, most=MOST)
    every, burn_in = integer("every", every, least=1), integer("burn_in", burn_in, least=0)
    labelled = read(ds, **words)
    steps = _lead_steps(labelled, lead, step)
    cycles = labelled.observation.sizes[TIME]
    if burn_in >= cycles:
        raise ValueError(f"burn_in={burn_in}: expected 0 to {cycles - 1}, the record has {cycles} cycles")
    if count is not None and which != "analysis":
        raise ValueError(f"members={count} with which={which!r}: members are of analyses; expected which='analysis'")
    if store is not None:
        store = locate(store)
        check_rewritable(store)
        for source in (ds, *(() if run is None else (run,))):
            check_apart(source, store, labelled.observed)
    positions = np.arange(burn_in, cycles, every)
    starts = single_starts(labelled, run, which)
    if count is None:
        starts = starts.isel({TIME: positions})
        lazy = starts.chunks is not None
    else:
        assert run is not None
        lazy = starts.chunks is not None
        starts = member_starts(labelled, run, count, seed, positions)
        _check_even(labelled)
    told: dict[str, Any] = {
        "forecasts_of": "the truth" if run is None or which == "truth" else str(run.attrs.get("method", "a run")),
        "starts_from": which,
    }
    if count is not None:
        told["seed"] = seed
    plan = _Forecasts(labelled, starts, positions, steps, count, keep, seed, device, told)
    if store is not None:
        return plan.streamed(store, mode, progress)
    return plan.lazy() if lazy else plan.in_memory(progress)


def _lead_steps(labelled: LabelledRecord, lead: Any, step: Any) -> Array:
    """Model steps in each lead time, beginning with 0."""
    model, between = labelled.setup.dynamics, labelled.setup.steps[1:]
    if step is not None:
        each = steps_of("step", step, model)
    elif len(between):
        each = int(between.min())
    else:
        raise ValueError("the record has one time and no interval: expected step=, from one lead time to the next")
    longest = steps_of("lead", lead, model)
    if longest % each:
        size = each * model.timestep
        raise ValueError(
            f"lead={shown(lead)} is no multiple of the step {size:g}, in model time: expected one, such as "
            f"lead={max(1, round(longest / each)) * size:g}; or another step="
        )
    if longest // each > MOST:
        raise ValueError(
            f"lead={shown(lead)} has {longest // each} steps: expected at most {MOST}; take a longer step="
        )
    return np.arange(0, longest + 1, each)


def _check_even(labelled: LabelledRecord) -> None:
    """Warn if the record's intervals differ, as Q belongs to one interval."""
    between = labelled.setup.steps[1:]
    if labelled.setup.dynamics.model_error is not None and len(np.unique(between)) > 1:
        least, most = (between[k] * labelled.setup.dynamics.timestep for k in (between.argmin(), between.argmax()))
        warn_of(
            [
                f"the model errs by Q in an interval, and the record's intervals are {least:g} to {most:g}: the "
                f"members' forecasts have an error after every {least:g}, the shortest"
            ]
        )


class _Forecasts:
    """Forecasts that are planned but not computed yet.

    Parameters
    ----------
    labelled : LabelledRecord
    starts : xarray.DataArray, dims (trajectory, time, [member,] *state)
        States at the times of the starts.
    positions : array of int, shape (T,)
        Positions of the starts in the record.
    steps : array of int, shape (L,)
        Model steps in each lead time.
    members : int, optional
    keep : bool
        Whether the members' forecasts are kept.
    seed : int
    device : str
    told : mapping
        Further attributes of the result.
    """

    def __init__(
        self,
        labelled: LabelledRecord,
        starts: xr.DataArray,
        positions: Array,
        steps: Array,
        members: int | None,
        keep: bool,
        seed: int,
        device: str,
        told: Mapping[str, Any],
    ) -> None:
        setup = labelled.setup
        self.labelled, self.positions, self.steps, self.seed, self.told = labelled, positions, steps, seed, told
        self.device = device
        self.layout = forecast_layout(labelled, len(positions), len(steps), members, keep)
        # Numbers of one forecast: everything that is kept, and its members at one lead time.
        kept = sum(math.prod(one.shape[2:]) for one in self.layout.values())
        case = max(kept, (members or 1) * math.prod(setup.dynamics.shape))
        data = starts.chunk().data
        rows, columns = (max(sizes) for sizes in data.chunks[:2])
        columns = min(columns, max(1, _VALUES // case))
        rows = min(rows, max(1, _VALUES // (case * columns)))
        self.starts = data.rechunk({0: rows, 1: columns})
        self.plan = Plan.from_chunks(*self.starts.chunks[:2])
        between = setup.steps[1:]
        self.settings = Settings(
            positions,
            [setup.clock(int(k)) for k in positions],
            steps.tolist(),
            int(between.min()) if len(between) else int(steps[1]),
            seed,
            members is not None,
            told["starts_from"],
        )
        self.setup = dask.delayed(setup, traverse=False)
        self.key = WorkKey.new()

    def lazy(self, warns: bool = True) -> xr.Dataset:
        """The forecasts as dask arrays. With `warns`, each block warns."""
        outputs = {name: (one.shape[2:], one.dtype) for name, one in self.layout.items()}
        block = partial(forecast_block, warns, None if warns else self.key)
        arrays = block_graph(block, self.plan, [self.starts], outputs, *self._shared)
        result: xr.Dataset = self.labelled.with_its_dims(self._labelled(arrays))
        return sealed(result)

    def in_memory(self, progress: bool) -> xr.Dataset:
        """Compute the forecasts."""
        with working(self.key) as work:
            work.bar = partial(self._bar, progress, 0, delay=BAR_DELAY, leave=False)
            result = self.lazy(warns=False).compute()
        return result.assign_attrs(attribute(self._judge(result["diverged"].to_numpy())))

    def streamed(self, store: StoreLike, mode: str, progress: bool) -> xr.Dataset:
        """Compute the forecasts block by block into a store, and open the store."""
        check_reachable(store)
        with writing(store), working(self.key) as work:
            stream = Stream(store, self._template(), self.plan, self._identity(), mode)
            self._fill(stream, progress, work)
            flags = xr.open_zarr(store, consolidated=False, chunks=None)["diverged"].to_numpy()
            stream.finish(attribute(self._judge(flags)))
        opened: xr.Dataset = self.labelled.with_its_dims(xr.open_zarr(store, consolidated=False))
        return opened

    def _bar(self, shown: bool, blocks: int, **options: Any) -> Bar:
        """A bar over the lead times of all blocks, some of which are done."""
        leads = len(self.steps)
        total = math.prod(self.plan.shape) * leads
        return bar_of(total, "forecasts", shown=shown, initial=blocks * leads, unit="lead", **options)

    @property
    def _shared(self) -> tuple[Any, ...]:
        """Arguments of every block beside its starts."""
        return (
            self.setup,
            dask.delayed(self.settings, traverse=False),
            dask.delayed(self.layout, traverse=False),
            self.device,
        )

    def _fill(self, stream: Stream, progress: bool, work: Work) -> None:
        """Fill the store, one block of starts of every block of trajectories at a time."""
        rows, columns = stream.plan.shape
        done = [stream.done(i) for i in range(rows)]
        task = dask.delayed(stream_block, pure=False)
        if sum(done):
            RUNS.info("%s goes on: %d of %d blocks are done", stream.store, sum(done), rows * columns)
        work.bar = partial(self._bar, progress, sum(done))
        while active := [i for i in range(rows) if done[i] < columns]:
            places = [(i, done[i]) for i in active]
            blocks = [self.starts[stream.plan.rows(i), stream.plan.columns(t)] for i, t in places]
            pairs = zip(places, blocks, strict=True)
            dask.compute(*(task(self.key, stream, place, one, *self._shared) for place, one in pairs))
            for i in active:
                done[i] += 1
            work.reach(sum(done) * len(self.steps))
            RUNS.info("%s: %d of %d blocks are done", stream.store, sum(done), rows * columns)

    def _template(self) -> xr.Dataset:
        """The forecasts with zeros in the place of their values."""
        chunks = self.starts.chunks[:2]
        blank = {
            name: da.zeros(one.shape, dtype=one.dtype, chunks=(*chunks, *one.shape[2:]))
            for name, one in self.layout.items()
        }
        template = self._labelled(blank).drop_encoding()
        coordinates = {name: c.compute() for name, c in template.coords.items() if c.chunks is not None}
        return sealed(template.assign_coords(coordinates))

    def _identity(self) -> str:
        """Digest of everything that determines the forecasts. The first block stands for the states."""
        setup = self.labelled.setup
        return digest(
            ["forecasts", dynamics_to_json(setup.dynamics), self.seed, str(setup.dtype), sorted(self.layout)],
            dict(self.told),
            [list(self.plan.trajectory), list(self.plan.time)],
            setup.trajectory,
            self.positions,
            np.array(self.settings.clocks),
            self.steps,
            *observing_identity(setup.observing, setup.dynamics),
            np.asarray(self.starts[self.plan.rows(0), self.plan.columns(0)].compute(scheduler="synchronous")),
        )

    def _judge(self, diverged: Array) -> list[str]:
        """Warn of forecasts that are not finite, and return the sentences."""
        texts = lost_texts(diverged, self.told["starts_from"], self.steps * self.labelled.setup.dynamics.timestep)
        warn_of(texts)
        return texts

    def _labelled(self, arrays: Mapping[str, Any]) -> xr.Dataset:
        labelled, model = self.labelled, self.labelled.setup.dynamics
        held = {TRAJECTORY, *(dim for part in parts_of(model) for dim in part.dims)}
        taken = {LEAD, MEMBER, VALID_TIME, TIME, *self.layout}
        kept = {n: c for n, c in labelled.labels.items() if set(c.dims) <= held and n not in taken}
        coordinates: dict[Any, Any] = {
            name: one.drop_vars([other for other in one.coords if other not in kept]) for name, one in kept.items()
        }
        time = labelled.observation[TIME].isel({TIME: self.positions})
        coordinates |= lead_coordinates(time, self.steps, model)
        if any(MEMBER in one.dims for one in self.layout.values()):
            count = next(one.shape[3] for one in self.layout.values() if MEMBER in one.dims)
            coordinates[MEMBER] = MEMBER, np.arange(count), MEMBER_ATTRIBUTES
        variables = {name: (one.dims, arrays[name], one.attrs) for name, one in self.layout.items()}
        said = attributes(model, title="forecasts by lead time", **self.told)
        return xr.Dataset(variables, coordinates).assign_attrs(said)
