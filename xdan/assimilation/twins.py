"""Twin experiments: a truth, and observations of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import dask
import dask.array as da
import numpy as np
import torch
import xarray as xr

from ..core.checks import choice, integer, real_array, shown
from ..core.dynamics import Dynamics, in_words
from ..core.methods.base import advance
from ..core.observing import LinearOperator, ObservingSystem, Operator, Sites, check_truth, observe
from ..core.random import check_seed
from ..records.blocks import Carry, Plan, array_to_tensor, in_block, scan, tensor_to_array
from ..records.observing import error_from, errors, operator_from
from ..records.schema import (
    DUAL,
    OBS,
    TIME,
    TIME_ATTRIBUTES,
    TRAJECTORY,
    TRAJECTORY_ATTRIBUTES,
    Array,
    attributes,
    check_order,
    state_coordinates,
)
from ..records.store import sealed

_MOST = 10**8  # trajectories or cycles: more are taken for a slip, and their labels alone would fill memory


def twin(
    dynamics: Dynamics,
    *,
    interval: float | Sequence[float] = 0.05,
    cycles: int = 1000,
    trajectories: int = 1,
    observe: Sites | None = None,
    operator: Any = None,
    error_std: float | Sequence[float] | Array | xr.DataArray = 1.0,
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
        The observing network; every site by default. With an operator, which of its observations are made.
    operator : array, shape (P, *state), or callable, optional
        H, by default the state itself. A matrix goes into the Dataset; a torch function of states (..., N) does not,
        and is passed to every verb again.
    error_std : float or array of the shape of one time's observations, with the times before it where it differs
        Standard deviation of the observation errors. A DataArray may have any of their dims.
    error_covariance : array, shape (P, P), optional
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
        With an operator `observation` has dims (trajectory, time, obs), and a matrix is `observation_operator`.

    Raises
    ------
    TypeError
        For an argument of another type.
    ValueError
        For sizes, intervals or errors that cannot be, or a model whose first trajectory is not finite after its
        spin-up, as far as half a second tells: before anything is computed. For a truth that becomes not finite later:
        when it is computed.

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
    cycles = integer("cycles", cycles, least=1, most=_MOST)
    trajectories = integer("trajectories", trajectories, least=1, most=_MOST)
    seed, dtype = check_seed(seed), choice("dtype", dtype, ("float32", "float64"))
    plan = _plan(chunks, trajectories, cycles)
    intervals, steps = _intervals(interval, cycles, dynamics)
    seeing = None if operator is None else operator_from(operator, dynamics)
    dims, shape = (dynamics.dims, dynamics.shape) if seeing is None else ((OBS,), (seeing.size,))
    size = math.prod(shape)
    in_time = False
    if error_covariance is None:
        values, in_time = _deviations(error_std, dims, shape, cycles, dynamics)
    else:
        if not isinstance(error_std, (int, float)) or error_std != 1.0:
            raise ValueError("expected one of error_std= and error_covariance=, both were given")
        values = _covariance(error_covariance, dims, shape, dynamics)
    observing = error_from(values, shape, seeing, cycles if in_time else None)
    sites.mask(size, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), seed)  # checks the sizes
    like = torch.zeros((), dtype=getattr(torch, dtype))
    observing.to(like.dtype, "cpu")  # checks that the errors can be held
    dynamics.try_start(0, seed, like)

    outputs = {"truth": (dynamics.shape, np.dtype(dtype)), "observation": (shape, np.dtype(dtype))}
    shared = dask.delayed(observing, traverse=False)  # one copy in the graph
    arrays = scan(_twin_block, plan, [], outputs, dynamics, sites, shared, steps, seed, dtype)
    variables = _error_variable(dims, values, in_time, dynamics.units) | _operator_variable(seeing, dynamics)
    return _label(dynamics, sites, dims, arrays, variables, intervals, seed)


def _plan(chunks: Any, trajectories: int, cycles: int) -> Plan:
    """Blocks of 64 trajectories and 250 cycles, or of the sizes asked for."""
    sizes = {TRAJECTORY: 64, TIME: 250}
    if chunks is not None:
        if not isinstance(chunks, Mapping):
            raise TypeError(f"chunks={shown(chunks)}: expected a mapping such as {{'trajectory': 64, 'time': 250}}")
        if unknown := set(chunks) - set(sizes):
            raise ValueError(f"chunks along {sorted(map(str, unknown))}: expected sizes along trajectory and time")
        sizes |= {dim: integer(f"chunks[{dim!r}]", size, least=1) for dim, size in chunks.items()}
    return Plan.from_chunks(_even(trajectories, sizes[TRAJECTORY]), _even(cycles, sizes[TIME]))


def _intervals(interval: Any, cycles: int, dynamics: Dynamics) -> tuple[Array, Array]:
    """Intervals between the cycles, and the model steps before each of them."""
    intervals = real_array("interval", interval, finite=False)
    if intervals.ndim and intervals.shape != (cycles - 1,):
        raise ValueError(f"{intervals.size} intervals for {cycles} cycles: expected {cycles - 1}")
    lengths, place = np.unique(intervals, return_inverse=True)
    counts = np.array([dynamics.steps_in(float(length)) for length in lengths], dtype=np.int64)
    steps = np.broadcast_to(counts[place].reshape(intervals.shape), (cycles - 1,))
    return np.broadcast_to(intervals, (cycles - 1,)), np.concatenate([[0], steps])


def _covariance(given: Any, dims: tuple[str, ...], shape: tuple[int, ...], dynamics: Dynamics) -> torch.Tensor:
    """R of the shape of two states of observations."""
    if isinstance(given, xr.DataArray):
        both = (*dims, *(dim + DUAL for dim in dims))
        if set(given.dims) == set(both):
            given = given.transpose(*both)
        for dim in set(given.dims) & set(dynamics.dims):
            check_order(given, str(dim), dynamics)
            dual = f"{dim}{DUAL}"
            if {dim, dual} <= set(given.coords) and given[dim].values.tolist() != given[dual].values.tolist():
                raise ValueError(
                    f"error_covariance has other labels along {dual!r} than along {dim!r}: expected the same"
                )
    values = errors("error_covariance", given)
    size = math.prod(shape)
    if tuple(values.shape) not in ((size, size), (*shape, *shape)):
        raise ValueError(f"error_covariance has shape {tuple(values.shape)}: expected {(size, size)}")
    return values.reshape(*shape, *shape)


def _deviations(
    given: Any, dims: tuple[str, ...], shape: tuple[int, ...], cycles: int, dynamics: Dynamics
) -> tuple[torch.Tensor, bool]:
    """Standard deviations, and whether their first axis is time."""
    if isinstance(given, xr.DataArray):
        if unknown := set(given.dims) - {TIME, *dims}:
            raise ValueError(f"error_std has dims {sorted(map(str, unknown))}: expected some of {(TIME, *dims)}")
        for dim in set(given.dims) & set(dynamics.dims):
            check_order(given, str(dim), dynamics)
        sizes = {TIME: cycles, **dict(zip(dims, shape, strict=True))}
        in_time, whole = TIME in given.dims, set(dims) & set(given.dims)
        order = [dim for dim in (TIME, *dims) if dim in given.dims or (dim != TIME and whole)]
        wrong = {str(dim): size for dim, size in given.sizes.items() if size != sizes[str(dim)]}
        if wrong:
            raise ValueError(f"error_std has sizes {wrong}: expected { ({dim: sizes[dim] for dim in wrong}) }")
        given = given.expand_dims({dim: sizes[dim] for dim in order if dim not in given.dims}).transpose(*order)
        return errors("error_std", given), in_time
    values = errors("error_std", given)
    if tuple(values.shape) == (*shape, *shape) != (cycles, *shape):
        raise ValueError(f"error_std has shape {tuple(values.shape)}, a matrix: pass R as error_covariance=")
    return values, values.ndim > 0 and tuple(values.shape) == (cycles, *shape)


def _even(total: int, size: int) -> list[int]:
    """Chunk sizes that add up to a total."""
    return [min(size, total - start) for start in range(0, total, size)]


def _twin_block(
    carry: Carry | None,
    rows: slice,
    columns: slice,
    arrays: Sequence[Any],
    dynamics: Dynamics,
    sites: Sites,
    observing: ObservingSystem,
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
        check_truth(dynamics, truth, trajectory, columns.start)
        observation = observe(truth, sites, observing.during(columns).to(like.dtype, "cpu"), trajectory, time, seed)
    seen = observation if observing.operator is not None else observation.unflatten(-1, dynamics.shape)
    shaped = {"truth": truth.unflatten(-1, dynamics.shape), "observation": seen}
    return {name: tensor_to_array(value) for name, value in shaped.items()}, {"x": tensor_to_array(x)}


def _error_variable(dims: tuple[str, ...], values: torch.Tensor, in_time: bool, units: str) -> dict[str, Any]:
    """Name and hold R: standard deviations, in time or not, or a covariance."""
    if in_time or values.ndim <= len(dims):
        label = {"long_name": "standard deviation of the observation error", "xdan_role": "observation_error"}
        own = ((TIME, *dims) if in_time else dims)[: values.ndim]
        return {"observation_error": (own, values.numpy(), {**label, "units": units})}
    label = {"long_name": "observation error covariance", "xdan_role": "observation_error_covariance"}
    square = units if units == "1" else f"({units})2"
    both = (*dims, *(dim + DUAL for dim in dims))
    return {"observation_error_covariance": (both, values.numpy(), {**label, "units": square})}


def _operator_variable(operator: Operator | None, dynamics: Dynamics) -> dict[str, Any]:
    """Name and hold H where it is a matrix."""
    if not isinstance(operator, LinearOperator):
        return {}
    label = {"long_name": "observation operator", "xdan_role": "observation_operator", "units": "1"}
    matrix = operator.matrix.reshape(operator.size, *dynamics.shape).numpy()
    return {"observation_operator": ((OBS, *dynamics.dims), matrix, label)}


def _time_attributes(dynamics: Dynamics) -> dict[str, str]:
    """Attributes of model time; they name its unit where it has one."""
    if dynamics.time_unit is None:
        return TIME_ATTRIBUTES
    # Not in the attribute `units`: xarray may decode days and the like to time differences.
    return {**TIME_ATTRIBUTES, "time_unit": in_words(dynamics.time_unit)}


def _label(
    dynamics: Dynamics,
    sites: Sites,
    dims: tuple[str, ...],
    arrays: Mapping[str, da.Array],
    more: Mapping[str, Any],
    intervals: Array,
    seed: int,
) -> xr.Dataset:
    own = {"truth": dynamics.dims, "observation": dims}
    names = {"truth": "true state", "observation": "observation, NaN where nothing is observed"}
    variables = {
        name: (
            (TRAJECTORY, TIME, *own[name]),
            array,
            {"long_name": names[name], "xdan_role": name, "units": dynamics.units},
        )
        for name, array in arrays.items()
    }
    coordinates: dict[str, Any] = {
        TRAJECTORY: (TRAJECTORY, np.arange(arrays["truth"].shape[0]), TRAJECTORY_ATTRIBUTES),
        TIME: (TIME, np.round(np.concatenate([[0.0], np.cumsum(intervals)]), 9), _time_attributes(dynamics)),
        **state_coordinates(dynamics),
    }
    about = attributes(dynamics, title="twin experiment", observing=sites.to_json(), seed=seed)
    return sealed(xr.Dataset({**variables, **more}, coordinates, about))
