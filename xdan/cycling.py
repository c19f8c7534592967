"""Cycling: forecasts and analyses of any method over a record, lazily or streamed into a store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import dask
import dask.array as da
import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from .blocks import Array, Carry, Plan, cycle_block, in_block, make_record, pick_device, scan
from .core.dynamics import Dynamics, dynamics_to_json
from .core.methods import Method
from .core.random import check_seed
from .experiment import Frame, check_observed, read
from .network import Network
from .observing import identity as observing_identity
from .run_layout import label_run, named, shapes_of, tuned_shapes_of
from .store import StoreLike, Stream, check_apart, check_whole, digest

_LEADING_TRAJECTORIES, _LEADING_CYCLES = 64, 400  # what a method is prepared, and tuned, on


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
        "w" overwrites an existing store.
    device : str
        "auto" takes the GPU where there is one.
    progress : bool
        Show a progress bar when streaming.

    Returns
    -------
    xarray.Dataset
        `forecast` and `analysis` (trajectory, time, *state); `diverged` (trajectory, time), from which cycle on a
        trajectory is lost and its output NaN; spreads and diagnostics of the method.

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
    experiment = read(
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
    check_whole(ds, experiment.truth)
    seed = check_seed(seed)
    frame, device = experiment.frame, pick_device(device)
    if isinstance(method, Network):
        method.check(experiment)
    if store is not None:
        check_apart(ds, store, str(experiment.observation.name))
    lazy = experiment.observation.chunks is not None
    if store is not None or not lazy:
        check_observed(experiment.observation)
    observations = experiment.observation.chunk().data
    if store is not None:
        observations = observations.rechunk({axis: _regular(observations.chunks[axis]) for axis in (0, 1)})
    truths = None if experiment.truth is None else experiment.truth.chunk().data
    plan = Plan.from_chunks(*observations.chunks[:2])
    leading = (slice(0, _LEADING_TRAJECTORIES), slice(0, _LEADING_CYCLES))
    prepared = dask.delayed(_prepare, pure=False)(
        method, frame, observations[leading], None if truths is None else truths[leading], seed, device
    )
    prototype = _at_work(method, frame, device)
    shapes = shapes_of(prototype, experiment, members)
    tuned = tuned_shapes_of(prototype, frame)
    arguments = (dask.delayed(frame, traverse=False), prepared, seed, members, device)
    label = partial(label_run, method=method, prototype=prototype, experiment=experiment, seed=seed)
    if store is None:
        outputs = {name: (shape[2:], dtype) for name, (_, shape, dtype) in shapes.items()}
        arrays = scan(_cycle_block, plan, [observations], outputs, *arguments)
        chosen = dask.delayed(_chosen)(prepared, frame.dtype)
        scalars = {n: da.from_delayed(chosen[n], shape, dtype) for n, (_, shape, dtype) in tuned.items()}
        result = label(named(shapes, arrays) | named(tuned, scalars))
        result = experiment.as_given(result)
        return result if lazy else result.compute()
    identity = digest(
        [prototype.name, prototype.parameters(), prototype.tune_on, dynamics_to_json(frame.dynamics), seed, members],
        method.digest if isinstance(method, Network) else "",
        frame.steps,
        frame.trajectory,
        [list(plan.trajectory), list(plan.time), str(frame.dtype)],
        *observing_identity(frame.error, frame.dynamics),
        # The record is known by its first block: another record's differs there.
        np.asarray(observations[plan.rows(0), plan.columns(0)].compute(scheduler="synchronous")),
    )
    blank = {
        name: da.zeros(shape, dtype=dtype, chunks=(*observations.chunks[:2], *shape[2:]))
        for name, (_, shape, dtype) in shapes.items()
    }
    unset = {name: da.zeros(shape, dtype=dtype, chunks=-1) for name, (_, shape, dtype) in tuned.items()}
    (ready,) = dask.persist(prepared)
    dask.delayed(_at_hand)(ready).compute()  # what is refused now leaves the store as it is
    template = label(named(shapes, blank) | named(tuned, unset)).drop_encoding()
    coordinates = {name: c.compute() for name, c in template.coords.items() if c.chunks is not None}
    stream = Stream(store, template.assign_coords(coordinates), plan, identity, mode)
    _stream(stream, observations, ready, arguments, progress)
    opened: xr.Dataset = xr.open_zarr(store, consolidated=False)
    return opened


def _regular(chunks: tuple[int, ...]) -> int | tuple[int, ...]:
    """The chunks, where Zarr can have them: all of one size, the last one smaller; or their largest size."""
    largest = max(chunks)
    return chunks if set(chunks[:-1]) <= {largest} else largest


def _at_hand(method: Method | Network) -> bool:
    return isinstance(method, (Method, Network))


def _stream(stream: Stream, observations: da.Array, ready: Any, arguments: tuple[Any, ...], progress: bool) -> None:
    """Fill the store: trajectory blocks in parallel, in each the time blocks one after another."""
    frame, _, seed, members, device = arguments
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
                    frame,
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
    stream.write_scalars(dask.compute(dask.delayed(_chosen)(ready, frame.dtype))[0])
    stream.finish()


def _stream_block(
    stream: Stream,
    place: tuple[int, int],
    carry: Carry | None,
    block: Array,
    frame: Frame,
    method: Method | Network,
    seed: int,
    members: bool,
    device: str,
) -> Carry:
    rows, columns = stream.plan.rows(place[0]), stream.plan.columns(place[1])
    outputs, after = _cycle_block(carry, rows, columns, [block], frame, method, seed, members, device)
    stream.write(*place, outputs, after)
    return after


def _cycle_block(
    carry: Carry | None,
    rows: slice,
    columns: slice,
    arrays: Sequence[Any],
    frame: Frame,
    method: Method | Network,
    *rest: Any,
) -> tuple[dict[str, Array], Carry]:
    return cycle_block(carry, rows, columns, arrays, frame, _at_work(method, frame, rest[-1]), *rest)


def _at_work(method: Method | Network, frame: Frame, device: str) -> Method:
    """Turn a network, a handle until here, into the method that it is."""
    if not isinstance(method, Network):
        return method
    return method.method(torch.float64 if frame.dtype == np.float64 else torch.float32, device)


def _prepare(
    method: Method | Network, frame: Frame, observation: Array, truth: Array | None, seed: int, device: str
) -> Method | Network:
    """Prepare a method on the leading part of a record; a network is ready, if the record is of its climate."""
    if isinstance(method, Network):
        if frame.error.operator is None:
            during = frame.error.during(slice(0, observation.shape[1]))
            method.check_climate(observation, float(during.variance().mean()))
        return method
    in_block()
    whole = {"rows": slice(0, observation.shape[0]), "columns": slice(0, observation.shape[1])}
    record = make_record(frame, observation, **whole, seed=seed, truth=truth, device=device)
    with torch.no_grad():
        return method.prepare(record)


def _chosen(method: Method | Network, dtype: np.dtype[Any]) -> dict[str, Array]:
    """What `prepare` chose, as arrays."""
    if isinstance(method, Network):
        return {}
    return {name: np.asarray(value, dtype) for name, (_, value) in method.tuned().items()}
