"""Twin experiments: a truth, and observations of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import dask
import numpy as np
import torch
import xarray as xr

from ..core.checks import choice, integer, shown
from ..core.dynamics import Dynamics, check_time_unit, dynamics_to_json, in_words
from ..core.observing import FieldSites, ObservingSystem, Sites, observe
from ..core.random import check_seed
from ..core.truth_model import TruthModel
from ..core.twin import TwinExperiment, TwinSetting, check_truth
from ..records.blocks import Plan, block, block_graph
from ..records.climatology import with_climatology
from ..records.fields import Part, observed_parts, parts_of, split_tensor, state_coordinates, whole_of
from ..records.model_errors import model_error_variables
from ..records.observing import OF_FUNCTION
from ..records.schema import (
    ERROR,
    ERROR_COVARIANCE,
    OBS,
    OBSERVATION,
    OPERATOR,
    TIME,
    TIME_ATTRIBUTES,
    TRAJECTORY,
    TRAJECTORY_ATTRIBUTES,
    TRUTH,
    TRUTH_DYNAMICS,
    Role,
    attributes,
    to_json,
)
from ..records.store import sealed
from ..records.times import DATE_ATTRIBUTES, dates_from, since_origin
from ..records.twin_observing import observing_system, position_coordinates
from ..records.watch import warn_of

_MOST = 10**8  # most trajectories or cycles: a larger number is a slip, and its labels alone would fill memory
# parameters of `twin` that a TwinExperiment lacks
_BESIDE = ("cycles", "trajectories", "seed", "start", "chunks", "dtype", "climatology")


def twin(
    experiment: TwinExperiment | Dynamics,
    *,
    cycles: int = 1000,
    trajectories: int = 1,
    seed: int = 0,
    start: Any = None,
    chunks: Mapping[str, int] | None = None,
    dtype: str = "float32",
    climatology: Any = None,
    **setting: Unpack[TwinSetting],
) -> xr.Dataset:
    """Make truth and observations of a twin experiment, lazily.

    Every trajectory starts on the attractor, independently of the others. Random numbers are keyed by seed, trajectory
    and time. So they do not depend on chunks, workers or the number of trajectories.

    Parameters
    ----------
    experiment : TwinExperiment or Dynamics
        The experiment; or the forecast model of an experiment that `setting` describes.
    cycles : int
        Number of analysis times.
    trajectories : int
        Number of independent runs.
    seed : int
        Key of all random draws.
    start : numpy.datetime64, datetime.datetime or cftime.datetime, optional
        Date of the first analysis, for a dynamics with a `time_unit`. `time` then holds dates of the start's calendar.
        By default `time` is model time and begins with 0.
    chunks : mapping, optional
        Chunk sizes along `trajectory` and `time`; by default 64 trajectories and 250 cycles.
    dtype : {"float32", "float64"}
        Floating type of the results.
    climatology : array or DataArray, shape (sample, *state), optional
        States from which trajectories start, in the place of the dynamics' climatology. If there are fewer states than
        trajectories, some truths are equal.
    **setting
        With a dynamics as `experiment`: the other parameters of a `TwinExperiment`.

        - interval : float or sequence of float, by default 0.05: model time between analyses. A sequence holds the
          `cycles` - 1 intervals one by one;
        - observe : Sites, or mapping of fields' names to Sites: the observing network, by default every site;
        - operator : array, shape (P, *state), mapping of fields' names to arrays (P, *shape), or callable: H, by
          default the state itself. A matrix is stored in the Dataset. A torch function of states (..., N), or, for
          several fields, of a mapping of tensors (..., *shape), is not stored: pass it to every verb again;
        - positions : mapping of str to array: places of the observations, such as {"x": [0.5, 7.25]}, or their places
          at each time if they move. The state is interpolated there;
        - error_std : float, array, or mapping of fields' names to these, by default 1: standard deviation of the
          observation errors, in the observations' units. For observations at positions it may be a mapping of
          instruments to standard deviations;
        - error_covariance : array, shape (P, P): full R, instead of `error_std`;
        - truth_dynamics : Dynamics: the model that makes the truth, if the forecast model is wrong;
        - model_error_std : float, array of shape (*state), or mapping of fields' names to these: standard deviation of
          the error that the forecast model makes in one interval, in the state's units. The truth gets these errors,
          unless another model makes the truth;
        - model_error_covariance : array, shape (N, N): full Q, instead of `model_error_std`.

    Returns
    -------
    xarray.Dataset
        `truth` and `observation` (trajectory, time, *state), where NaN stands for what is not observed; and
        `observation_error` (standard deviation) or `observation_error_covariance`. With model errors also
        `model_error` (*state) or `model_error_covariance`. The attributes describe dynamics and observing network.

        With an operator, `observation` has the dims (trajectory, time, obs), and a matrix is stored as
        `observation_operator`.

        A state of several fields has one variable for each role and field, such as `truth_u` and `observation_h`. A
        field that is not observed has no observations.

    Raises
    ------
    TypeError
        If an argument has another type, `start` is no date, or `setting` comes beside a TwinExperiment.
    ValueError
        If sizes, intervals or errors are impossible, or `start` comes with a dynamics without `time_unit`. If the first
        trajectory is not finite after its spin-up: this is checked at the call, for at most half a second. If the truth
        becomes infinite or NaN later, the error comes when the truth is computed.

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
    experiment = TwinExperiment.of(experiment, setting, _BESIDE)
    if experiment.truth_dynamics is None:
        experiment = replace(experiment, dynamics=with_climatology(experiment.dynamics, climatology))
    else:
        experiment = replace(experiment, truth_dynamics=with_climatology(experiment.truth_dynamics, climatology))
    if start is not None and not (experiment.dynamics.autonomous and experiment.truth.dynamics.autonomous):
        timed = experiment.truth.dynamics if experiment.dynamics.autonomous else experiment.dynamics
        experiment = experiment.starting_at(since_origin(start, timed))
    cycles = integer("cycles", cycles, least=1, most=_MOST)
    trajectories = integer("trajectories", trajectories, least=1, most=_MOST)
    seed, dtype = check_seed(seed), choice("dtype", dtype, ("float32", "float64"))
    plan = _plan(chunks, trajectories, cycles)
    intervals, steps = experiment.steps(cycles)
    steps_before, truth_steps = (np.concatenate([[0], some]) for some in (steps, experiment.steps(cycles, True)[1]))
    times = _times(start, intervals, steps_before, experiment.dynamics)
    observing = observing_system(experiment, cycles)
    dynamics, sites = experiment.dynamics, experiment.observe
    states, observed = parts_of(dynamics), _observed_parts(dynamics, observing, sites)
    none = torch.zeros(1, dtype=torch.int64)
    sites.mask(observing.size(dynamics.space.size), none, none, seed)  # checks the sizes
    like = torch.zeros((), dtype=getattr(torch, dtype))
    observing.to(like.dtype, "cpu")  # checks that the dtype can hold the errors
    truth = experiment.truth.dynamics
    truth.try_start(0, seed, like)
    warn_of([truth.shortage(trajectories)])

    outputs = {
        part.name(role.name): (part.shape, np.dtype(dtype))
        for role, parts in ((TRUTH, states), (OBSERVATION, observed))
        for part in parts
    }
    # The graph holds one copy of each.
    models = (dynamics, experiment.truth_dynamics, observing)
    model, other, shared = (dask.delayed(one, traverse=False) for one in models)
    arguments = (model, other, sites, shared, truth_steps, seed, dtype)
    arrays = block_graph(_twin_block, plan, [], outputs, *arguments, carries=True)
    variables = {
        **_series(arrays, TRUTH, "true state", states),
        **_series(arrays, OBSERVATION, "observation, NaN where nothing is observed", observed),
        **_error_variables(observing, observed, dynamics),
        **_operator_variables(observing, dynamics),
        **model_error_variables(dynamics),
    }
    coordinates: dict[str, Any] = {
        TRAJECTORY: (TRAJECTORY, np.arange(trajectories), TRAJECTORY_ATTRIBUTES),
        TIME: times,
        **state_coordinates(dynamics),
        **position_coordinates(experiment.positions, dynamics),
    }
    if experiment.positions is not None and callable(experiment.operator):
        variables[OBSERVATION.name][2][OF_FUNCTION] = 1
    description = attributes(dynamics, title="twin experiment", observing=sites.to_json(), seed=seed)
    if experiment.truth_dynamics is not None:
        description[TRUTH_DYNAMICS] = to_json(dynamics_to_json(experiment.truth_dynamics))
    return sealed(xr.Dataset(variables, coordinates, description))


def _observed_parts(dynamics: Dynamics, observing: ObservingSystem, sites: Sites | FieldSites) -> tuple[Part, ...]:
    """The variables of observations; a field that is not observed has none."""
    return observed_parts(dynamics, observing, sites.sites if isinstance(sites, FieldSites) else ())


def _plan(chunks: Any, trajectories: int, cycles: int) -> Plan:
    """Blocks of 64 trajectories and 250 cycles, or blocks of the caller's sizes."""
    sizes = {TRAJECTORY: 64, TIME: 250}
    if chunks is not None:
        if not isinstance(chunks, Mapping):
            raise TypeError(f"chunks={shown(chunks)}: expected a mapping such as {{'trajectory': 64, 'time': 250}}")
        if unknown := set(chunks) - set(sizes):
            raise ValueError(f"chunks along {sorted(map(str, unknown))}: expected sizes along trajectory and time")
        sizes |= {dim: integer(f"chunks[{dim!r}]", size, least=1) for dim, size in chunks.items()}
    return Plan.from_chunks(_even(trajectories, sizes[TRAJECTORY]), _even(cycles, sizes[TIME]))


def _even(total: int, size: int) -> list[int]:
    """Chunk sizes that add up to a total."""
    return [min(size, total - start) for start in range(0, total, size)]


@block
def _twin_block(
    data: Sequence[Any],
    carry: dict[str, torch.Tensor] | None,
    rows: slice,
    columns: slice,
    dynamics: Dynamics,
    truth_dynamics: Dynamics | None,
    sites: Sites | FieldSites,
    observing: ObservingSystem,
    steps: torch.Tensor,
    seed: int,
    dtype: str,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Make one block of truth and observations. It has no input data; the carry is the last state."""
    trajectory = torch.arange(rows.start, rows.stop)
    time = torch.arange(columns.start, columns.stop)
    like = torch.zeros((), dtype=getattr(torch, dtype))
    model = TruthModel.of(truth_dynamics, dynamics)
    x = model.start(trajectory, seed, like) if carry is None else carry["x"]
    states = []
    clock = int(steps[: columns.start].sum())
    for k, step in zip(time.tolist(), steps[columns].tolist(), strict=True):
        x = model.advanced(x, step, clock, trajectory, k, seed)
        clock += step
        states.append(model.forecast_part(x))
    truth = torch.stack(states, 1)
    check_truth(model.dynamics, truth, trajectory, columns.start)
    observation = observe(truth, sites, observing.during(columns).to(like.dtype, "cpu"), trajectory, time, seed)
    observed = _observed_parts(dynamics, observing, sites)
    outputs = split_tensor(truth, parts_of(dynamics), TRUTH.name) | split_tensor(
        observation, observed, OBSERVATION.name
    )
    return outputs, {"x": x}


def _series(arrays: Mapping[str, Any], role: Role, long_name: str, parts: Sequence[Part]) -> dict[str, Any]:
    """Make the variables that have values at every time."""
    names = {part.name(role.name): part for part in parts}
    return {
        name: (role.dims_in(part.dims, part.dims), arrays[name], part.described(role, long_name))
        for name, part in names.items()
    }


def _error_variables(observing: ObservingSystem, observed: Sequence[Part], dynamics: Dynamics) -> dict[str, Any]:
    """Make the variables of R: standard deviations of each part, constant or in time, or one covariance."""
    if observing.covariance is not None:
        part = whole_of(dynamics) if observing.direct else observed[0]
        label = part.described(ERROR_COVARIANCE, "observation error covariance")
        matrix = observing.covariance.reshape(*part.shape, *part.shape).numpy()
        return {ERROR_COVARIANCE.name: (ERROR_COVARIANCE.dims_in((), part.dims), matrix, label)}
    assert observing.std is not None
    std, lead, variables = observing.std.numpy(), (TIME,) if observing.error_in_time else (), {}
    for part in observed:
        label = part.described(ERROR, "standard deviation of the observation error")
        dims, values = lead, std
        if std.shape[-1:] == (observing.size(dynamics.space.size),):
            values = std[..., part.place]
            alike = part.field is not None and bool((values == values[..., :1]).all())
            dims, values = (lead, values[..., :1]) if alike else ((*lead, *part.dims), values)
        shape = [part.sizes.get(dim, std.shape[0] if std.ndim else 1) for dim in dims]
        variables[part.name(ERROR.name)] = (dims, values.reshape(shape), label)
    return variables


def _operator_variables(observing: ObservingSystem, dynamics: Dynamics) -> dict[str, Any]:
    """Make the variables of H for each part of the state, if H is a matrix."""
    matrix = observing.as_matrix()
    if matrix is None:
        return {}
    return {
        part.name(OPERATOR.name): (
            OPERATOR.dims_in(part.dims, (OBS,)),
            matrix[:, part.place].reshape(len(matrix), *part.shape).numpy(),
            part.described(OPERATOR, "observation operator"),
        )
        for part in parts_of(dynamics)
    }


def _times(start: Any, intervals: Any, steps: Any, dynamics: Dynamics) -> tuple[str, Any, dict[str, str]]:
    """The coordinate `time`: dates from the start on, or model time with attributes that name its unit."""
    if start is not None:
        return TIME, dates_from(start, steps, dynamics), DATE_ATTRIBUTES
    elapsed = np.round(np.concatenate([[0.0], np.cumsum(intervals)]) + dynamics.model_time, 9)
    if dynamics.time_unit is None:
        return TIME, elapsed, TIME_ATTRIBUTES
    # The unit is not written as `units`: xarray may decode days and the like to time differences.
    return TIME, elapsed, {**TIME_ATTRIBUTES, "time_unit": in_words(check_time_unit(dynamics.time_unit))}
