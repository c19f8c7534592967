"""Twin experiments: a truth, and observations of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
import torch
import xarray as xr

from .blocks import Array, Carry, Plan, array_to_tensor, in_block, scan, tensor_to_array
from .core.dynamics import Dynamics
from .core.methods.base import advance
from .core.observing import ErrorCovariance, Sites, observe
from .core.random import check_seed
from .schema import (
    DUAL,
    TIME,
    TIME_ATTRIBUTES,
    TRAJECTORY,
    TRAJECTORY_ATTRIBUTES,
    attributes,
    check_counts,
    error_from,
    state_coordinates,
)


def twin(
    dynamics: Dynamics,
    *,
    interval: float | Sequence[float] = 0.05,
    cycles: int = 1000,
    trajectories: int = 1,
    observe: Sites | None = None,
    error_std: float | Sequence[float] | Array = 1.0,
    error_covariance: Array | None = None,
    seed: int = 0,
    chunks: Mapping[str, int] | None = None,
    dtype: str = "float32",
) -> xr.Dataset:
    """Truth and observations of a dynamics, lazily.

    Every trajectory starts on the attractor, independently. All random numbers are keyed by seed, trajectory and time,
    so that chunks, workers and the number of trajectories change none of them.

    Parameters
    ----------
    dynamics : Dynamics
    interval : float or sequence of float
        Model time between analyses; a sequence gives the `cycles` - 1 intervals one by one.
    cycles : int
        Number of analysis times.
    trajectories : int
        Number of independent runs.
    observe : Sites, optional
        The observing network; every site by default.
    error_std : float or array of the state's shape
        Standard deviation of the observation errors, in the state's units.
    error_covariance : array, shape (N, N), optional
        Full R, instead of `error_std`.
    seed : int
    chunks : mapping, optional
        Chunk sizes along `trajectory` and `time`.
    dtype : {"float32", "float64"}

    Returns
    -------
    xarray.Dataset
        `truth` and `observation` (trajectory, time, *state), NaN where nothing is observed, and `observation_error`
        (standard deviation) or `observation_error_covariance`. Dynamics and observing network are in the attributes.

    Raises
    ------
    ValueError
        For sizes, intervals or errors that cannot be; before anything is computed.

    References
    ----------
    Bocquet et al., Eq. 1.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(), cycles=10, trajectories=2)
    >>> dict(ds.truth.sizes)
    {'trajectory': 2, 'time': 10, 'x': 40}
    """
    if not isinstance(dynamics, Dynamics):
        raise TypeError(f"dynamics={dynamics!r}: expected an xdan Dynamics such as xdan.Lorenz96()")
    sites = Sites.all() if observe is None else observe
    if not isinstance(sites, Sites):
        raise TypeError(f"observe={observe!r}: expected Sites, such as xdan.Sites.all() or xdan.Sites.every(2)")
    check_counts(cycles=cycles, trajectories=trajectories)
    if cycles < 1 or trajectories < 1:
        raise ValueError(f"cycles={cycles}, trajectories={trajectories}: expected at least 1 of each")
    seed = check_seed(seed)
    if unknown := set(chunks or {}) - {TRAJECTORY, TIME}:
        raise ValueError(f"chunks along {sorted(map(str, unknown))}: expected sizes along trajectory and time")
    intervals = np.asarray(interval, dtype=np.float64)
    if intervals.ndim and intervals.shape != (cycles - 1,):
        raise ValueError(f"{intervals.size} intervals for {cycles} cycles: expected {cycles - 1}")
    intervals = np.broadcast_to(intervals, (cycles - 1,))
    steps = np.array([0, *(dynamics.steps_in(float(i)) for i in intervals)], dtype=np.int64)
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype={dtype!r}: expected 'float32' or 'float64'")
    size = int(np.prod(dynamics.shape))
    values = torch.as_tensor(np.array(error_std if error_covariance is None else error_covariance, dtype=np.float64))
    if error_covariance is not None and values.ndim == 2:
        values = values.reshape(*dynamics.shape, *dynamics.shape) if values.shape == (size, size) else values
    error = error_from(values, size, dynamics.shape)
    sites.mask(size, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), seed)  # checks the sizes

    sizes = {TRAJECTORY: min(trajectories, 64), TIME: min(cycles, 250), **(chunks or {})}
    plan = Plan.from_chunks(_even(trajectories, sizes[TRAJECTORY]), _even(cycles, sizes[TIME]))
    outputs = dict.fromkeys(("truth", "observation"), (dynamics.shape, np.dtype(dtype)))
    arrays = scan(_twin_block, plan, [], outputs, dynamics, sites, error, steps, seed, dtype)
    return _label(dynamics, sites, values, arrays, intervals, seed)


def _even(total: int, size: int) -> list[int]:
    """Chunk sizes that add up to a total."""
    if size < 1:
        raise ValueError(f"a chunk of {size}: expected at least 1")
    return [min(size, total - start) for start in range(0, total, size)]


def _twin_block(
    carry: Carry | None,
    rows: slice,
    columns: slice,
    arrays: Sequence[Any],
    dynamics: Dynamics,
    sites: Sites,
    error: ErrorCovariance,
    steps: Array,
    seed: int,
    dtype: str,
) -> tuple[dict[str, Array], Carry]:
    """One block of truth and observations; the carry is the last state."""
    in_block()
    trajectory = torch.arange(rows.start, rows.stop)
    time = torch.arange(columns.start, columns.stop)
    like = torch.zeros((), dtype=getattr(torch, dtype))
    with torch.no_grad():
        if carry is None:
            x = dynamics.climatology(trajectory, seed, like=like).flatten(1)
        else:
            x = array_to_tensor(carry["x"])
        states = []
        for step in steps[columns].tolist():
            x = advance(dynamics, x, step)
            states.append(x)
        truth = torch.stack(states, 1)
        observation = observe(truth, sites, error.to(like.dtype, "cpu"), trajectory, time, seed)
    shaped = {"truth": truth, "observation": observation}
    return (
        {name: tensor_to_array(value.unflatten(-1, dynamics.shape)) for name, value in shaped.items()},
        {"x": tensor_to_array(x)},
    )


def _label(
    dynamics: Dynamics,
    sites: Sites,
    error: torch.Tensor,
    arrays: Mapping[str, da.Array],
    intervals: Array,
    seed: int,
) -> xr.Dataset:
    dims = (TRAJECTORY, TIME, *dynamics.dims)
    units = {"units": dynamics.units}
    names = {"truth": "true state", "observation": "observation, NaN where nothing is observed"}
    variables: dict[str, Any] = {
        name: (dims, array, {"long_name": names[name], "xdan_role": name, **units}) for name, array in arrays.items()
    }
    if error.ndim <= len(dynamics.dims):
        label = {"long_name": "standard deviation of the observation error", "xdan_role": "observation_error"}
        variables["observation_error"] = (dynamics.dims[: error.ndim], error.numpy(), {**label, **units})
    else:
        label = {"long_name": "observation error covariance", "xdan_role": "observation_error_covariance"}
        square = dynamics.units if dynamics.units == "1" else f"({dynamics.units})2"
        both = (*dynamics.dims, *(dim + DUAL for dim in dynamics.dims))
        variables["observation_error_covariance"] = (both, error.numpy(), {**label, "units": square})
    count = arrays["truth"].shape[0]
    coordinates: dict[str, Any] = {
        TRAJECTORY: (TRAJECTORY, np.arange(count), TRAJECTORY_ATTRIBUTES),
        TIME: (TIME, np.round(np.concatenate([[0.0], np.cumsum(intervals)]), 9), TIME_ATTRIBUTES),
        **state_coordinates(dynamics),
    }
    return xr.Dataset(
        variables,
        coordinates,
        attributes(dynamics, title="twin experiment", observing=sites.to_json(), seed=seed),
    )
