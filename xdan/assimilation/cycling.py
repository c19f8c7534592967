"""Cycling: forecasts and analyses of any method over a record, lazily or streamed into a store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask
import dask.array as da
import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from ..core.checks import switch
from ..core.dynamics import Dynamics, dynamics_to_json
from ..core.methods import Method
from ..core.methods import run as run_method
from ..core.methods.base import State
from ..core.progress import shown
from ..core.random import Purpose, check_seed, normal
from ..core.user_functions import finest
from ..network import Network
from ..records.blocks import Carry, Plan, Setup, block, block_graph, in_block, make_record, pick_device
from ..records.following import astray
from ..records.location import StoreLike, check_reachable, check_rewritable, locate, writing
from ..records.observing import identity as observing_identity
from ..records.record import LabelledRecord, read
from ..records.schema import Array
from ..records.setting import differences, observed_otherwise, validation_innovation
from ..records.store import check_apart, check_mode, digest, sealed
from ..records.streams import Stream
from ..records.values import LEADING_CYCLES, LEADING_TRAJECTORIES, check_observed, refuse_fill_values
from ..records.watch import RATIO, Watch, attribute, far_from_truth, tell
from .run_layout import label_run, named, shapes_of, tuned_shapes_of

_CLIMATE_STATES = 64  # that the climate's variance in observation space is taken from
_REMEDY = "Take more members, inflation= or localisation, or look whether units, R and the model's time step are right"


def cycle(
    ds: xr.Dataset,
    method: Network | Method,
    *,
    dynamics: Dynamics | None = None,
    truth: str | None = None,
    observation: str | None = None,
    observation_error: Any = None,
    operator: Any = None,
    members: bool = False,
    seed: int = 0,
    store: StoreLike | None = None,
    mode: str = "w-",
    device: str = "auto",
    progress: bool = True,
) -> xr.Dataset:
    """Run a method over a record: forecast, analysis, forecast, ...

    The first analysis starts from the dynamics' climatology. Intervals are read from `time` and need not be even; the
    truth is not needed. The result does not depend on chunks, scheduler or number of workers, but for rounding: chaos
    makes it visible in long float32 runs, not in float64 over hundreds of cycles.

    Parameters
    ----------
    ds : xarray.Dataset
        A twin or a record: observations (trajectory, time, *state), NaN where nothing is observed, or (trajectory,
        time, obs) with an operator. `trajectory` may be missing. Chunked input gives lazy output.
    method : Network or Method
    dynamics : Dynamics, optional
        Where the attributes name none that is registered.
    truth, observation : str, optional
        Names of the variables, where roles do not tell.
    observation_error : str, float or array, optional
        A variable's name, standard deviations, or R.
    operator : str, array or callable, optional
        H, where observations lie along `obs`: a variable's name, a matrix (P, N), or a torch function of states
        (..., N), which no store can hold.
    members : bool
        Keep the members of an ensemble method, or the memory of a network: the latent channels that each analysis
        reads.
    seed : int
        Keys the draws of ensembles.
    store : path or Zarr store, optional
        Stream into this store block by block and return it opened. A killed run is resumed by the same call.
    mode : {"w-", "w"}
        "w" overwrites an existing store; an unfinished run of the same call is taken up all the same.
    device : str
        "auto" takes the GPU where there is one.
    progress : bool
        Show a progress bar when streaming.

    Returns
    -------
    xarray.Dataset
        `forecast` and `analysis` (trajectory, time, *state); `diverged` (trajectory, time), from which cycle on a
        trajectory is lost and its output NaN; `innovation_ratio` (trajectory, time), the mean square innovation over
        what it should be: the forecast's variance plus R's; for a method without a spread what the network had in
        training, or what the climatology would have; spreads and diagnostics of the method. `smoothed` lies at the time
        that it is an estimate of: the last times have none. The attribute `xdan_warnings` holds what was warned of.

    Warns
    -----
    XdanWarning
        Where a network is used out of the setting that it was trained in; where trajectories lose the truth, so that
        their innovations are far larger than they should be, or all of them diverge; where the truth does not follow
        the dynamics. For lazy output the last three while it is computed.

    Raises
    ------
    ValueError
        For records that lack something, sizes that do not fit, observations that are all NaN or infinite (looked
        at before a run into a store or of data in memory), or of another climate than a network was trained on.
    FileExistsError
        If the store exists and is no unfinished run of the same call.

    References
    ----------
    Bocquet et al., Eq. 2 and 3.
    """
    labelled = read(
        ds,
        dynamics=dynamics,
        truth=truth,
        observation=observation,
        observation_error=observation_error,
        operator=operator,
    )
    if not isinstance(method, (Network, Method)):
        raise TypeError(
            f"cannot cycle with {type(method).__name__}: expected a Network, as xdan.open_network() and train() give, "
            "or a method of xdan.core.methods; classical ones go by name through baseline()"
        )
    seed, progress = check_seed(seed), switch("progress", progress)
    check_mode(mode)
    setup, device = labelled.setup, pick_device(device)
    if isinstance(method, Network):
        method.check(setup.dynamics)
    if store is not None:
        store = locate(store)
        check_rewritable(store)
        check_apart(ds, store, str(labelled.observation.name))
    lazy = labelled.observation.chunks is not None
    if store is not None or not lazy:
        check_observed(labelled.observation)
    observations = labelled.observation.chunk().data
    if store is not None:
        observations = observations.rechunk({axis: _regular(observations.chunks[axis]) for axis in (0, 1)})
    truths = None if labelled.truth is None else labelled.truth.chunk().data
    plan = Plan.from_chunks(*observations.chunks[:2])
    leading = (slice(0, LEADING_TRAJECTORIES), slice(0, LEADING_CYCLES))
    outside = _outside(method, labelled)
    tell(outside)
    prepared = dask.delayed(_prepare, pure=False)(
        method,
        setup,
        observations[leading],
        None if truths is None else truths[leading],
        seed,
        device,
        progress,
        bool(outside),
    )
    prototype = _at_work(method, setup, device)
    shapes = shapes_of(prototype, labelled, members)
    members = bool(members)
    tuned = tuned_shapes_of(prototype, setup)
    lags = prototype.lags
    arguments = (dask.delayed(setup, traverse=False), prepared, seed, members, device)
    label = partial(label_run, method=method, prototype=prototype, labelled=labelled, seed=seed)
    if store is None:
        outputs = {name: (shape[2:], dtype) for name, (_, shape, dtype) in shapes.items()}
        arrays = block_graph(partial(_cycle_block, lazy), plan, [observations], outputs, *arguments, carries=True)
        arrays |= {name: _moved(arrays[name], lag) for name, lag in lags.items()}
        chosen = dask.delayed(_chosen)(prepared, setup.dtype)
        scalars = {n: da.from_delayed(chosen[n], shape, dtype) for n, (_, shape, dtype) in tuned.items()}
        result = label(named(shapes, arrays) | named(tuned, scalars)).assign_attrs(attribute(outside))
        if not lazy:
            (result, ready) = dask.compute(result, prepared)
            result = result.assign_attrs(attribute([*outside, *ready.texts, *_judge(result, ready, setup)]))
        return sealed(labelled.as_given(result))
    identity = digest(
        [prototype.name, prototype.config(), prototype.tune_on, dynamics_to_json(setup.dynamics), seed, members],
        method.digest if isinstance(method, Network) else "",
        setup.steps,
        setup.trajectory,
        [list(plan.trajectory), list(plan.time), str(setup.dtype)],
        *observing_identity(setup.observing, setup.dynamics),
        # The record is known by its first block: another record's differs there.
        np.asarray(observations[plan.rows(0), plan.columns(0)].compute(scheduler="synchronous")),
    )
    check_reachable(store)
    blank = {
        name: da.zeros(shape, dtype=dtype, chunks=(*observations.chunks[:2], *shape[2:]))
        for name, (_, shape, dtype) in shapes.items()
    }
    unset = {name: da.zeros(shape, dtype=dtype, chunks=-1) for name, (_, shape, dtype) in tuned.items()}
    with writing(store):
        (ready,) = dask.persist(prepared)
        dask.delayed(_is_prepared)(ready).compute()  # what is refused now leaves the store as it is
        template = label(named(shapes, blank) | named(tuned, unset)).drop_encoding()
        coordinates = {name: c.compute() for name, c in template.coords.items() if c.chunks is not None}
        stream = Stream(store, sealed(template.assign_coords(coordinates)), plan, identity, mode, lags)
        _stream(stream, observations, ready, arguments, progress)
        whole = xr.open_zarr(store, consolidated=False, chunks=None)[["diverged", RATIO]]
        (made,) = dask.compute(ready)
        stream.finish(attribute([*outside, *made.texts, *_judge(whole, made, setup)]))
    opened: xr.Dataset = xr.open_zarr(store, consolidated=False)
    return opened


@dataclass(frozen=True)
class _Prepared:
    """A method that is ready for a record.

    Attributes
    ----------
    method : Method or Network
        A network as a handle.
    watch : Watch
        How large its innovations should be.
    texts : sequence of str
        What was warned of while the record was looked at.
    """

    method: Method | Network
    watch: Watch
    texts: Sequence[str]


def _outside(method: Network | Method, labelled: LabelledRecord) -> list[str]:
    """Say in what a record differs from a network's training, and what to do."""
    if not isinstance(method, Network):
        return []
    differing = differences(method.description, labelled.setup, labelled.sites)
    if not differing:
        return []
    return [
        f"the network is used out of the setting that it was trained in: {'; '.join(differing)}. It may lose the "
        "truth: compare with baseline('enkf-n'), or train a network on this record with ds.dan.train()"
    ]


def _judge(run: xr.Dataset, prepared: _Prepared, setup: Setup) -> list[str]:
    """Warn of what is wrong with a run in memory, and return the sentences."""
    texts = prepared.watch.verdict(run[RATIO].to_numpy(), run["diverged"].to_numpy(), setup.trajectory, slice(None))
    tell(texts, stacklevel=4)
    return texts


def _moved(array: da.Array, lag: int) -> da.Array:
    """Values (trajectory, time, ...) moved to the times that they belong to, `lag` cycles earlier; NaN at the end."""
    if not lag:
        return array
    kept = array[:, lag:]
    end = da.full((array.shape[0], array.shape[1] - kept.shape[1], *array.shape[2:]), np.nan, dtype=array.dtype)
    return da.concatenate([kept, end], axis=1).rechunk(array.chunks)


def _regular(chunks: tuple[int, ...]) -> int | tuple[int, ...]:
    """The chunks, where Zarr can have them: all of one size, the last one smaller; or their largest size."""
    largest = max(chunks)
    return chunks if set(chunks[:-1]) <= {largest} else largest


def _is_prepared(prepared: _Prepared) -> bool:
    return isinstance(prepared, _Prepared)


def _stream(stream: Stream, observations: da.Array, ready: Any, arguments: tuple[Any, ...], progress: bool) -> None:
    """Fill the store: trajectory blocks in parallel, in each the time blocks one after another."""
    setup, _, seed, members, device = arguments
    rows, columns = stream.plan.shape
    done = [stream.done(i) for i in range(rows)]
    task = dask.delayed(_stream_block, pure=False)
    carries: dict[int, Any] = {i: stream.carry(i) for i in range(rows) if done[i] < columns}
    with tqdm(total=rows * columns, initial=sum(done), disable=not progress, unit="block") as bar:
        while active := [i for i in carries if done[i] < columns]:
            # One time block of every trajectory block at a time: memory holds no more, and the bar moves.
            tasks = [
                task(
                    stream,
                    (i, done[i]),
                    carries[i],
                    observations[stream.plan.rows(i), stream.plan.columns(done[i])],
                    setup,
                    ready,
                    seed,
                    members,
                    device,
                )
                for i in active
            ]
            for i, carry in zip(active, dask.compute(*tasks), strict=True):
                carries[i] = carry
                done[i] += 1
                bar.update()
    stream.write_scalars(dask.compute(dask.delayed(_chosen)(ready, setup.dtype))[0])


def _stream_block(
    stream: Stream,
    place: tuple[int, int],
    carry: Carry | None,
    observation: Array,
    setup: Setup,
    prepared: _Prepared,
    seed: int,
    members: bool,
    device: str,
) -> Carry:
    rows, columns = stream.plan.rows(place[0]), stream.plan.columns(place[1])
    outputs, after = _cycle_block(False, [observation], carry, rows, columns, setup, prepared, seed, members, device)
    stream.write(*place, outputs, after)
    return after


def _cycle_block(
    tells: bool,
    arrays: Sequence[Any],
    carry: Carry | None,
    rows: slice,
    columns: slice,
    setup: Setup,
    prepared: _Prepared,
    seed: int,
    members: bool,
    device: str,
) -> tuple[dict[str, Array], Carry]:
    """Cycle over one block; with `tells` the block warns by itself, as nothing looks at the whole of a lazy run."""
    method = _at_work(prepared.method, setup, device)
    outputs, after = _cycle_tensors(
        arrays[0], carry, rows, columns, setup, method, prepared.watch, seed, members, dtype=setup.dtype, device=device
    )
    if tells:
        tell(prepared.watch.verdict(outputs[RATIO], outputs["diverged"], setup.trajectory, rows))
    return outputs, after


@block
def _cycle_tensors(
    observation: torch.Tensor,
    carry: State | None,
    rows: slice,
    columns: slice,
    setup: Setup,
    method: Method,
    watch: Watch,
    seed: int,
    members: bool,
) -> tuple[dict[str, torch.Tensor], State]:
    """Outputs of a prepared method over one block, dims (B, K, ...), and the state to carry on with."""
    record = setup.record(observation, rows=rows, columns=columns, seed=seed)
    outputs, after = run_method(method, record, carry, members)
    outputs[RATIO] = watch.ratio(record, outputs["forecast"], outputs.get("forecast_spread"))
    shape = setup.dynamics.shape
    return {name: value if value.ndim == 2 else value.unflatten(-1, shape) for name, value in outputs.items()}, after


def _at_work(method: Method | Network, setup: Setup, device: str) -> Method:
    """Turn a network, a handle until here, into the method that it is."""
    if not isinstance(method, Network):
        return method
    return method.method(torch.float64 if setup.dtype == np.float64 else torch.float32, device)


def _prepare(
    method: Method | Network,
    setup: Setup,
    observation: Array,
    truth: Array | None,
    seed: int,
    device: str,
    progress: bool,
    outside: bool,
) -> _Prepared:
    """Look at the leading part of a record, and prepare a method on it; a network is ready.

    `outside` says that a network is out of its setting, as was told already.
    """
    in_block()
    refuse_fill_values(observation, "observation")
    if truth is not None:
        refuse_fill_values(truth, "truth")
    whole = {"rows": slice(0, observation.shape[0]), "columns": slice(0, observation.shape[1])}
    record = make_record(setup, observation, **whole, seed=seed, truth=truth, device=device)
    texts = [] if truth is None else [astray(setup, truth[:, :2]), far_from_truth(record)]
    if isinstance(method, Network) and not outside:
        texts.append(observed_otherwise(method.description, observation))
    texts = list(filter(None, texts))
    tell(texts)
    if isinstance(method, Network):
        with shown(progress):
            _at_work(method, setup, device).check_derivatives(record)
        if setup.observing.sees_sites:
            during = setup.observing.during(slice(0, observation.shape[1]))
            method.check_climate(observation, float(during.error_variance().mean()))
        return _Prepared(method, _watch_network(method, setup), texts)
    with torch.no_grad(), shown(progress):
        return _Prepared(method.prepare(record), _watch_method(method, setup, seed), texts)


def _watch_network(network: Network, setup: Setup) -> Watch:
    """How large a network's innovations should be."""
    remedy = "Train a network on this record with ds.dan.train(), or for longer, or compare with baseline('enkf-n')"
    factor, observing = validation_innovation(network.description), setup.observing
    if network.ensemble and observing.sees_sites:
        return Watch("spread", None, remedy)
    if factor is not None:
        return Watch("training", torch.tensor(factor, dtype=torch.float64), remedy)
    mean, std = (torch.tensor(float(network.arrays[name]), dtype=torch.float64) for name in ("state_mean", "state_std"))
    if observing.sees_sites:
        return Watch("climate", std**2, remedy)
    keys, origin = torch.arange(_CLIMATE_STATES), torch.zeros(1, dtype=torch.int64)
    noise = normal(0, Purpose.CLIMATOLOGY, keys, origin, math.prod(setup.dynamics.shape))[:, 0]
    return Watch("climate", observing.observe(mean + std * noise).var(0), remedy)


def _watch_method(method: Method, setup: Setup, seed: int) -> Watch:
    """How large a classical method's innovations should be."""
    if "forecast_spread" in method.outputs and setup.observing.sees_sites:
        return Watch("spread", None, _REMEDY)
    like = finest(setup.dynamics.step, torch.zeros(1, *setup.dynamics.shape))
    states = setup.dynamics.climatology(range(_CLIMATE_STATES), seed, purpose=Purpose.CLIMATOLOGY, like=like)
    return Watch("climate", setup.observing.observe(states.double().flatten(1)).var(0), _REMEDY)


def _chosen(prepared: _Prepared, dtype: np.dtype[Any]) -> dict[str, Array]:
    """What `prepare` chose, as arrays."""
    if isinstance(prepared.method, Network):
        return {}
    return {name: np.asarray(value, dtype) for name, (_, value) in prepared.method.tuned().items()}
