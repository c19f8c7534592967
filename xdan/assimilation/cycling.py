"""Cycling: forecasts and analyses of any method over a record, lazily or written into a store."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Unpack

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.delayed import Delayed
from torch import Tensor

from ..core.checks import switch
from ..core.dynamics import dynamics_to_json
from ..core.keywords import checks_keywords
from ..core.log import RUNS
from ..core.methods import Method, State
from ..core.methods import run as run_method
from ..core.progress import BAR_DELAY, Bar, Work, WorkKey, bar_of, showing_bars, ticking, undisturbed, working
from ..core.random import check_seed
from ..network import Network
from ..records.blocks import Carry, Plan, Setup, block, carried_graph, in_block, make_record, pick_device
from ..records.following import astray, shortest_interval
from ..records.leads import model_time
from ..records.location import StoreLike, check_reachable, check_rewritable, locate, writing
from ..records.observing import identity as observing_identity
from ..records.record import LabelledRecord, RecordWords, read
from ..records.schema import Array
from ..records.store import check_apart, check_mode, digest, sealed
from ..records.streams import Stream
from ..records.values import LEADING_CYCLES, LEADING_TRAJECTORIES, check_observed, refuse_fill_values
from ..records.watch import RATIO, Watch, attribute, far_from_truth, warn_of
from ..records.wording import shares_words
from .backward_pass import fill_backward, lazy_pass
from .run_layout import Layout, choices_of, label_run, lags_of, layout_of, smoothed_layout_of
from .schemes import Scheme, scheme_of


@checks_keywords
@shares_words
def cycle(
    ds: xr.Dataset,
    method: Network | Method,
    *,
    members: bool = False,
    smooth: bool = False,
    restart_after: Any = None,
    seed: int = 0,
    store: StoreLike | None = None,
    mode: str = "w-",
    device: str = "auto",
    progress: bool = True,
    **words: Unpack[RecordWords],
) -> xr.Dataset:
    """Run a method over a record: forecast, analysis, forecast, ...

    The first analysis starts from the climatology: that of the dynamics, or `climatology=`. The coordinate `time` tells
    the intervals, which need not be even. The truth is not needed. The result does not depend on chunks, scheduler or
    number of workers, except for rounding. Chaos makes rounding visible in long runs in float32; in float64 it stays
    invisible over hundreds of cycles.

    Parameters
    ----------
    {ds}
    method : Network or Method
        The network or the method that makes the analyses. `baseline` runs classical methods by their names.
    members : bool
        Whether to keep more of each analysis. For an ensemble method: the members. For a network: its memory, the
        latent channels that each analysis reads; and, if a filter beside the network carries an error covariance, this
        covariance P_a as `analysis_covariance` (trajectory, time, x_dual, x). A covariance has N numbers for each
        component and makes a long run large.
    smooth : bool
        Whether to add a backward pass, so that every state knows the observations of all times. The run then holds
        `smoothed` and `smoothed_spread`, and with `members` also `smoothed_members` or `smoothed_covariance`. The pass
        takes another run of the model. It exists for Kalman filters with one covariance matrix; for ensemble methods,
        except "letkf" and methods with weights or several models; and for networks with members or beside such a Kalman
        filter. A method with a lag smooths without it. The pass makes the states of each block again, from the state
        that the block began with. A store keeps this state until the pass has done the block.
    {restart_after}
    seed : int
        Key of the random draws of ensembles.
    {store}
    {mode}
    {device}
    {progress}
    {words}

    Returns
    -------
    xarray.Dataset
        The variables of the run:

        - `forecast` and `analysis` (trajectory, time, *state), in the units of the state;
        - `diverged` (trajectory, time): whether the trajectory is lost at this cycle or was lost before. Its output is
          NaN from there on;
        - `innovation_ratio` (trajectory, time): the mean square innovation divided by its expected value. This value is
          the forecast's variance plus that of R. For a method without a spread it is the value that the network had in
          training, or the value that the climatology would have;
        - the spreads and diagnostics of the method;
        - `smoothed`, if the method or `smooth` makes it. It lies at the time that it is an estimate of. With a lag, the
          last times have no smoothed state. The attribute `smoothed_by` says which observations it knows.

        The attribute `xdan_warnings` holds the warnings of the run.

    Warns
    -----
    XdanWarning
        If a network is used outside of the setting of its training. If trajectories lose the truth: their innovations
        are far larger than expected. If all trajectories diverge. If the truth does not follow the dynamics. Lazy
        output gives the last three warnings while it is computed.

    Raises
    ------
    ValueError
        If the record lacks a variable, or sizes do not fit. If all observations are NaN, or some are infinite; this is
        checked before a run into a store and before a run of data in memory. If the record's climate is not that of
        the network's training.
    FileExistsError
        If the store exists and does not hold an unfinished run of the same call.

    References
    ----------
    Bocquet et al., Eq. 2 and 3.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> run = ds.dan.cycle(xdan.FiniteSizeEnKF(members=10))  # or a trained network
    >>> dict(run.analysis.sizes)
    {'trajectory': 4, 'time': 20, 'x': 8}
    """
    labelled = read(ds, **words)
    if restart_after is not None:
        longest = model_time("restart_after", restart_after, labelled.setup.dynamics)
        labelled = replace(labelled, setup=replace(labelled.setup, restart_after=longest))
    return run_over(
        ds,
        labelled,
        method,
        members=members,
        smooth=smooth,
        seed=seed,
        store=store,
        mode=mode,
        device=device,
        progress=progress,
    )


def run_over(
    ds: xr.Dataset,
    labelled: LabelledRecord,
    method: Network | Method,
    *,
    members: bool,
    seed: int,
    store: StoreLike | None,
    mode: str,
    device: str,
    progress: bool,
    smooth: bool = False,
    kind: Callable[..., Run] | None = None,
) -> xr.Dataset:
    """Run a method over a record that is read. `cycle` explains the other arguments and the errors.

    Parameters
    ----------
    ds : xarray.Dataset
        The Dataset that the record was read from.
    labelled : LabelledRecord
    kind : callable, optional
        The class that makes the run: `Run` by default, or a class that computes fewer or more variables.
    """
    scheme = scheme_of(method)
    seed, progress, smooth = check_seed(seed), switch("progress", progress), switch("smooth", smooth)
    check_mode(mode)
    device = pick_device(device)
    scheme.check(labelled)
    if store is not None:
        store = locate(store)
        check_rewritable(store)
        check_apart(ds, store, labelled.observed)
    lazy = labelled.lazy
    if store is not None or not lazy:
        check_observed(labelled)
    warned = scheme.warnings(labelled)
    warn_of(warned)
    run = (kind or Run)(labelled, scheme, warned, seed, members, device, progress, store is not None, smooth)
    if store is not None:
        return run.streamed(store, mode)
    return run.lazy() if lazy else run.in_memory()


@dataclass(frozen=True)
class _Prepared:
    """A scheme that was prepared for a record.

    Attributes
    ----------
    scheme : Scheme
    watch : Watch
        The expected size of its innovations.
    texts : sequence of str
        Warnings that were given while the record was checked.
    """

    scheme: Scheme
    watch: Watch
    texts: Sequence[str]


class Run:
    """A run that is planned but not computed yet.

    Attributes
    ----------
    method : Method
        The scheme's method, not prepared.
    observations : dask array, dims (trajectory, time, ...)
    plan : Plan
        Blocks of the observations. In a store they have one size.
    layout, choices : Layout
        Variables of every cycle, and variables of the whole run.
    smoothed : Layout
        What the backward pass adds; empty without one.
    key : WorkKey or None
        Key by which tasks know a run that is computed at once; None for a lazy run.
    setup : Delayed
        The record's `Setup`.
    prepared : Delayed
        The `_Prepared` scheme.
    """

    def __init__(
        self,
        labelled: LabelledRecord,
        scheme: Scheme,
        warned: list[str],
        seed: int,
        members: bool,
        device: str,
        progress: bool,
        stored: bool,
        smooth: bool = False,
    ) -> None:
        self.labelled, self.scheme, self.warned = labelled, scheme, warned
        self.seed, self.device, self.progress = seed, device, progress
        self.method = scheme.method_on(labelled.setup.dtype, device)
        self.layout = layout_of(self.method, labelled, members)  # refuses `members` that is no bool
        self.members = bool(members)
        self.smoothed = smoothed_layout_of(self.method, labelled, self.members) if smooth else {}
        self.choices = choices_of(self.method, labelled.setup)
        observations = labelled.observation.chunk().data
        if stored:
            observations = observations.rechunk({axis: _regular(observations.chunks[axis]) for axis in (0, 1)})
        self.observations, self.plan = observations, Plan.from_chunks(*observations.chunks[:2])
        self.key = WorkKey.new() if stored or not labelled.lazy else None
        leading = (slice(0, LEADING_TRAJECTORIES), slice(0, LEADING_CYCLES))
        self.setup = dask.delayed(labelled.setup, traverse=False)  # once in the graph, with its states
        self.prepared = dask.delayed(_prepare, pure=False)(
            scheme,
            self.setup,
            observations[leading],
            None if labelled.truth is None else labelled.truth.chunk().data[leading],
            seed,
            device,
            progress,
            bool(warned),
            self.key,
        )

    def lazy(self, warns: bool = True) -> xr.Dataset:
        """The run as dask arrays. With `warns`, each block warns, as nothing checks the whole run."""
        outputs = {name: (variable.shape[2:], variable.dtype) for name, variable in self.layout.items()}
        arguments = (self.setup, self.prepared, *self._constants)
        run_block = partial(_cycle_block, warns, self.key)
        arrays, begun = carried_graph(run_block, self.plan, [self.observations], outputs, *arguments)
        arrays |= {name: _moved(arrays[name], lag) for name, lag in lags_of(self.method, self.layout).items()}
        if self.smoothed:
            shared = self.setup, self.prepared, *self._smoothed_constants
            arrays |= lazy_pass(self.plan, self.observations, self.smoothed, begun, self.key, *shared)
        chosen = dask.delayed(_chosen)(self.prepared, self.labelled.setup.dtype, self.device)
        settled = {
            name: da.from_delayed(chosen[name], variable.shape, variable.dtype)
            for name, variable in self.choices.items()
        }
        # xarray reads what labels a dim at once, and a lazy label would have the method tuned for that.
        for name, tried in self.method.labels().items():
            if name in self.choices and self.choices[name].dims == (name,):
                settled[name] = np.asarray(tried, self.choices[name].dtype)
        result = self._labelled(arrays | settled).assign_attrs(attribute(self.warned))
        return self._sealed(result) if warns else result

    def in_memory(self) -> xr.Dataset:
        """The run, computed."""
        assert self.key is not None
        with working(self.key) as work:
            work.bar = partial(self._bar, 0, delay=BAR_DELAY, leave=False)
            result, prepared = dask.compute(self.lazy(warns=False), self.prepared)
        texts = [*self.warned, *prepared.texts, *self._judge(result, prepared)]
        return self._sealed(result.assign_attrs(attribute(texts)))

    def streamed(self, store: StoreLike, mode: str) -> xr.Dataset:
        """Compute the run block by block into a store, and open the store."""
        identity = self._identity()
        check_reachable(store)
        assert self.key is not None
        with writing(store), working(self.key) as work:
            (ready,) = dask.persist(self.prepared)
            (prepared,) = dask.compute(ready)  # if the record is refused, the store stays as it is
            lags, backward = lags_of(self.method, self.layout), bool(self.smoothed)
            stream = Stream(store, self._template(), self.plan, identity, mode, lags, backward)
            self._fill(stream, ready, work)
            whole = xr.open_zarr(store, consolidated=False, chunks=None)
            stream.finish(attribute([*self.warned, *prepared.texts, *self._judge(whole, prepared)]))
        opened: xr.Dataset = self.labelled.with_its_dims(xr.open_zarr(store, consolidated=False))
        return opened

    def _bar(self, before: int, **options: Any) -> Bar:
        """A bar over the cycles of all blocks of trajectories. For a smoothed run it counts both passes."""
        total = (2 if self.smoothed else 1) * self.plan.shape[0] * self.plan.time[-1]
        return bar_of(total, self.scheme.title, shown=self.progress, initial=before, unit="cycle", **options)

    @property
    def _constants(self) -> tuple[Delayed, int, bool, str]:
        """Arguments of `_cycle_block` beside the record and the prepared scheme."""
        return dask.delayed(self.layout, traverse=False), self.seed, self.members, self.device

    @property
    def _smoothed_constants(self) -> tuple[Delayed, int, bool, str]:
        """Arguments of the backward pass beside the record and the prepared scheme."""
        return dask.delayed(self.smoothed, traverse=False), self.seed, self.members, self.device

    def _labelled(self, arrays: Mapping[str, Any]) -> xr.Dataset:
        return label_run(
            self.layout | self.smoothed | self.choices,
            arrays,
            method=self.method,
            labelled=self.labelled,
            seed=self.seed,
            more=self.scheme.attributes,
        )

    def _sealed(self, result: xr.Dataset) -> xr.Dataset:
        sealed_run: xr.Dataset = sealed(self.labelled.with_its_dims(result))
        return sealed_run

    def _identity(self) -> str:
        """Digest of everything that determines the run."""
        method, setup, plan = self.method, self.labelled.setup, self.plan
        return digest(
            [method.name, method.config(), method.tune_on, dynamics_to_json(setup.dynamics), self.seed, self.members],
            self.scheme.digest,
            setup.steps,
            setup.trajectory,
            [list(plan.trajectory), list(plan.time), str(setup.dtype)],
            *observing_identity(setup.observing, setup.dynamics),
            *([] if setup.restart_after is None else [np.array(setup.restart_after)]),
            *(["smooth"] if self.smoothed else []),
            # The first block stands for the record: another record has another first block.
            np.asarray(self.observations[plan.rows(0), plan.columns(0)].compute(scheduler="synchronous")),
        )

    def _template(self) -> xr.Dataset:
        """The run with zeros in the place of its values."""
        chunks = self.observations.chunks[:2]
        blank = {
            name: da.zeros(variable.shape, dtype=variable.dtype, chunks=(*chunks, *variable.shape[2:]))
            for name, variable in (self.layout | self.smoothed).items()
        }
        unset = {
            name: da.zeros(variable.shape, dtype=variable.dtype, chunks=-1) for name, variable in self.choices.items()
        }
        template = self._labelled(blank | unset).drop_encoding()
        coordinates = {name: c.compute() for name, c in template.coords.items() if c.chunks is not None}
        return sealed(template.assign_coords(coordinates))

    def _fill(self, stream: Stream, ready: Delayed, work: Work) -> None:
        """Fill the store: trajectory blocks in parallel, in each the time blocks one after another."""
        rows, columns = stream.plan.shape
        done = [stream.done(i) for i in range(rows)]
        task = dask.delayed(_stream_block, pure=False)
        carries: dict[int, Any] = {i: stream.carry(i) for i in range(rows) if done[i] < columns}
        smoothed = [stream.smoothed(i) for i in range(rows)] if self.smoothed else [0] * rows
        back = sum(stream.plan.last(count) for count in smoothed)
        before = sum(stream.plan.first(count) for count in done) + back
        if before:
            words = stream.store, sum(done), rows * columns, sum(smoothed)
            RUNS.info("%s goes on: %d of %d blocks are done, and %d of the way back", *words)
        assert self.key is not None
        work.bar = partial(self._bar, before)
        begin = clock.perf_counter()
        while active := [i for i in carries if done[i] < columns]:
            # One time block of every trajectory block at a time: memory holds no more.
            tasks = []
            for i in active:
                place = i, done[i]
                block = self.observations[stream.plan.rows(i), stream.plan.columns(done[i])]
                tasks.append(task(self.key, stream, place, carries[i], block, self.setup, ready, *self._constants))
            for i, carry in zip(active, dask.compute(*tasks), strict=True):
                carries[i] = carry
                done[i] += 1
            work.reach(sum(stream.plan.first(count) for count in done) + back)
            seconds = clock.perf_counter() - begin
            RUNS.info("%s: %d of %d blocks are done, %.1f s", stream.store, sum(done), rows * columns, seconds)
        if self.smoothed:
            shared = self.setup, ready, *self._smoothed_constants
            fill_backward(stream, self.observations, work, self.key, *shared)
        chosen = dask.delayed(_chosen)(ready, self.labelled.setup.dtype, self.device)
        stream.write_scalars(dask.compute(chosen)[0])

    def _judge(self, run: xr.Dataset, prepared: _Prepared) -> list[str]:
        """Warn of what is wrong with a run in memory, and return the sentences."""
        trajectory, diverged = self.labelled.setup.trajectory, run["diverged"].to_numpy()
        # A run that an early version began has no ratios.
        ratio = run[RATIO].to_numpy() if RATIO in run else np.full(diverged.shape, np.nan)
        texts = prepared.watch.verdict(ratio, diverged, trajectory, slice(None))
        warn_of(texts)
        return texts


def _moved(array: da.Array, lag: int) -> da.Array:
    """Move values (trajectory, time, ...) to the times that they belong to, `lag` cycles earlier; NaN at the end."""
    kept = array[:, lag:]
    end = da.full((array.shape[0], array.shape[1] - kept.shape[1], *array.shape[2:]), np.nan, dtype=array.dtype)
    return da.concatenate([kept, end], axis=1).rechunk(array.chunks)


def _regular(chunks: tuple[int, ...]) -> int | tuple[int, ...]:
    """The chunks if Zarr can have them, all of one size and the last one smaller; or else their largest size."""
    largest = max(chunks)
    return chunks if set(chunks[:-1]) <= {largest} else largest


def _stream_block(
    key: WorkKey,
    stream: Stream,
    place: tuple[int, int],
    carry: Carry | None,
    observation: Array,
    setup: Setup,
    prepared: _Prepared,
    *constants: Any,
) -> Carry:
    """Cycle over one block, and write the result."""
    rows, columns = stream.plan.rows(place[0]), stream.plan.columns(place[1])
    outputs, after = _cycle_block(False, key, [observation], carry, rows, columns, setup, prepared, *constants)
    with undisturbed(key):
        stream.write(*place, outputs, after)
    return after


def _cycle_block(
    warns: bool,
    key: WorkKey | None,
    arrays: Sequence[Any],
    carry: Carry | None,
    rows: slice,
    columns: slice,
    setup: Setup,
    prepared: _Prepared,
    layout: Layout,
    seed: int,
    members: bool,
    device: str,
) -> tuple[dict[str, Array], Carry]:
    """Cycle over one block. With `warns`, the block warns, as nothing checks the whole of a lazy run."""
    method, watch = prepared.scheme.method_on(setup.dtype, device), prepared.watch
    shared = setup, method, watch, layout, seed, members, ticking(key)
    outputs, after = _cycle_tensors(arrays[0], carry, rows, columns, *shared, dtype=setup.dtype, device=device)
    if warns:
        warn_of(watch.verdict(outputs[RATIO], outputs["diverged"], setup.trajectory, rows))
    return outputs, after


@block
def _cycle_tensors(
    observation: Tensor,
    carry: State | None,
    rows: slice,
    columns: slice,
    setup: Setup,
    method: Method,
    watch: Watch,
    layout: Layout,
    seed: int,
    members: bool,
    tick: Callable[[], None] | None,
) -> tuple[dict[str, Tensor], State]:
    """Outputs of a prepared method over one block, dims (B, K, ...), and the state for the next block."""
    record = setup.record(observation, rows=rows, columns=columns, seed=seed)
    outputs, after = run_method(method, record, carry, members, tick)
    outputs[RATIO] = watch.ratio(record, outputs["forecast"], outputs.get("forecast_spread"))
    return {name: variable.of(outputs[variable.stem]) for name, variable in layout.items()}, after


def _prepare(
    scheme: Scheme,
    setup: Setup,
    observation: Array,
    truth: Array | None,
    seed: int,
    device: str,
    progress: bool,
    warned: bool,
    key: WorkKey | None,
) -> _Prepared:
    """Check the leading part of a record, and prepare a scheme on it.

    With `warned`, another share of observations gives no warning: an earlier warning has named the other setting.
    """
    in_block()
    refuse_fill_values(observation, "observation", setup.observing.direct, setup.dynamics)
    if truth is not None:
        refuse_fill_values(truth, "truth", True, setup.dynamics)
    whole = {"rows": slice(0, observation.shape[0]), "columns": slice(0, observation.shape[1])}
    record = make_record(setup, observation, **whole, seed=seed, truth=truth, device=device)
    texts = [] if truth is None else [astray(setup, truth[:, shortest_interval(setup)]), far_from_truth(record)]
    if not warned:
        texts.append(scheme.observed_otherwise(observation))
    texts = list(filter(None, texts))
    warn_of(texts)
    with showing_bars(progress, key):
        ready = scheme.prepared(record, setup, observation)
    return _Prepared(ready, scheme.watch(setup, seed), texts)


def _chosen(prepared: _Prepared, dtype: np.dtype[Any], device: str) -> dict[str, Array]:
    """The values that the method chose for the record, as arrays."""
    chosen = prepared.scheme.method_on(dtype, device).chosen()
    return {name: np.asarray(value, dtype) for name, value in chosen.items()}
