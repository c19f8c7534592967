"""What a run holds: its variables with their dims, shapes, names and units, and its labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..core.checks import shown
from ..core.methods import DataAssimilationNetwork, Method
from ..network import Network
from ..records.record import LabelledRecord, Setup
from ..records.schema import CHANNEL, DUAL, MEMBER, MEMBER_ATTRIBUTES, TIME, TRAJECTORY, attributes
from ..records.store import sealed
from ..records.watch import RATIO

_LONG_NAMES = {
    "forecast": "forecast, best estimate before the observations of its time",
    "analysis": "analysis, best estimate after the observations of its time",
    "forecast_spread": "standard deviation of the forecast",
    "spread": "standard deviation of the analysis",
    "inflation": "inflation of the analysis anomalies",
    "smoothed": "estimate of the state from the observations up to a window later",
    "iterations": "Gauss-Newton or descent steps of the analysis",
    "unconverged": "1 where the analysis reached its limit of iterations",
    "effective_sample_size": "number of particles that the weights stand for, before resampling",
    "resampled": "1 where the particles were resampled",
    "innovation_score": "negative log-likelihood of the innovations, a constant left out, with each candidate",
    "truth_rmse": "analysis RMSE with each candidate",
    RATIO: "mean square innovation over its expected variance",
    "diverged": "the trajectory has diverged at or before this time",
    "forecast_members": "forecast members",
    "members": "analysis members",
    "memory": "latent channels that the analysis reads",
    "background_scale": "factor of the background error covariance",
    "background_covariance": "background error covariance before scaling",
    "candidate_scale": "scales that were tried",
    "innovation_rms": "root mean square innovation with each candidate scale",
}
_IN_STATE_UNITS = (
    "forecast",
    "analysis",
    "forecast_spread",
    "spread",
    "forecast_members",
    "members",
    "innovation_rms",
    "smoothed",
    "truth_rmse",
)

Shapes = dict[str, tuple[tuple[str, ...], tuple[int, ...], np.dtype[Any]]]


def shapes_of(method: Method, labelled: LabelledRecord, members: bool) -> Shapes:
    """Dims, shape and dtype of every variable along trajectory and time.

    Raises
    ------
    TypeError
        If `members` is not a bool.
    ValueError
        If members are asked of a method that has neither members nor a memory.
    """
    if not isinstance(members, (bool, np.bool_)):
        raise TypeError(
            f"members={shown(members)}: expected True to keep them, or False; {method.name!r} has {method.members}, as "
            "the method or the network's training decided"
        )
    channels = method.network.memory if isinstance(method, DataAssimilationNetwork) else 0
    if members and not method.ensemble and not channels:
        raise ValueError(
            f"members=True: the method {method.name!r} carries a single state, neither an ensemble nor a memory"
        )
    setup = labelled.setup
    lead, state = labelled.observation.shape[:2], setup.dynamics.shape
    sites = ((TRAJECTORY, TIME, *setup.dynamics.dims), (*lead, *state), setup.dtype)
    cycles = ((TRAJECTORY, TIME), lead, setup.dtype)
    shapes: Shapes = {"forecast": sites, "analysis": sites}
    shapes |= {name: sites if kind == "site" else cycles for name, kind in method.outputs.items()}
    if members and channels:
        shapes["memory"] = ((TRAJECTORY, TIME, CHANNEL, *setup.dynamics.dims), (*lead, channels, *state), setup.dtype)
    elif members:
        dims, shape = (TRAJECTORY, TIME, MEMBER, *setup.dynamics.dims), (*lead, method.members, *state)
        shapes |= dict.fromkeys(("forecast_members", "members"), (dims, shape, setup.dtype))
    shapes[RATIO] = cycles
    shapes["diverged"] = ((TRAJECTORY, TIME), lead, np.dtype(bool))
    return shapes


def tuned_shapes_of(method: Method, setup: Setup) -> Shapes:
    """Dims, shape and dtype of what `prepare` chooses."""
    sites = int(np.prod(setup.dynamics.shape))
    alone = setup.dynamics.dims if len(setup.dynamics.dims) == 1 else ("state",)
    names = {"state": alone[0], "state_dual": alone[0] + DUAL}
    return {
        name: (
            tuple(names.get(dim, dim) for dim in dims),
            tuple(sites if size == -1 else size for size in shape),
            setup.dtype,
        )
        for name, (dims, shape) in method.tuned_shapes().items()
    }


def _long_name(name: str) -> str:
    for prefix, meaning in (("tuned_", "value that tuning chose for"), ("candidate_", "values that tuning tried for")):
        if name.startswith(prefix) and name not in _LONG_NAMES:
            return f"{meaning} {name.removeprefix(prefix)}"
    return _LONG_NAMES.get(name, name)


def named(shapes: Shapes, arrays: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Arrays with their dims, as a Dataset's variables."""
    return {name: (dims, arrays[name]) for name, (dims, _, _) in shapes.items()}


def label_run(
    variables: Mapping[str, tuple[tuple[str, ...], Any]],
    *,
    method: Method | Network,
    prototype: Method,
    labelled: LabelledRecord,
    seed: int,
) -> xr.Dataset:
    """Attach coordinates and attributes."""
    setup = labelled.setup
    units = dict.fromkeys(_IN_STATE_UNITS, setup.dynamics.units)
    described = {
        name: (dims, data, {"long_name": _long_name(name), "units": units.get(name, "1")})
        for name, (dims, data) in variables.items()
    }
    dims = {dim for sizes, _ in variables.values() for dim in sizes}
    shared = {TRAJECTORY, TIME, *setup.dynamics.dims}
    # A label left over from a selection gives way to a dim or a variable of its name.
    taken = (dims - shared) | set(described)
    coordinates = {
        name: coordinate
        for name, coordinate in labelled.observation.coords.items()
        if set(coordinate.dims) <= shared and name not in taken
    }
    coordinates = {n: c.drop_vars([other for other in c.coords if other in taken]) for n, c in coordinates.items()}
    result = xr.Dataset(described, coordinates)
    if MEMBER in result.dims:
        result = result.assign_coords({MEMBER: (MEMBER, np.arange(result.sizes[MEMBER]), MEMBER_ATTRIBUTES)})
    more: dict[str, Any] = {"title": f"cycled with {prototype.name}", "seed": seed, "method": prototype.name}
    more["method_parameters"] = prototype.config()
    if any(name.startswith("candidate") for name in prototype.tuned_shapes()):
        more["tuned_on"] = prototype.tune_on
    if isinstance(method, Network):
        more["network_digest"] = method.digest
    return sealed(result).assign_attrs(attributes(setup.dynamics, **more))
