"""The contents of a run: its variables with dims, shapes, names and units, and its labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from torch import Tensor

from ..core.checks import shown
from ..core.methods import Method, Output
from ..core.methods.backward import SMOOTHED, SMOOTHED_SPREAD
from ..core.methods.declarations import POWERS
from ..core.spaces import STATE
from ..records.blocks import Setup
from ..records.fields import Part, packed_labels, parts_of, split_tensor
from ..records.schema import (
    CHANNEL,
    DUAL,
    MEMBER,
    MEMBER_ATTRIBUTES,
    TIME,
    TRAJECTORY,
    attributes,
    dual_of,
    to_power,
)
from ..records.store import sealed
from ..records.watch import RATIO

if TYPE_CHECKING:
    from ..records.record import LabelledRecord

# Variables of every run, beside the outputs that its method declares.
_BEFORE = (
    Output("forecast", "forecast, best estimate before the observations of its time", "state", "state"),
    Output("analysis", "analysis, best estimate after the observations of its time", "state", "state"),
)
_RATIO = Output(RATIO, "mean square innovation over its expected variance")
_DIVERGED = Output("diverged", "the trajectory has diverged at or before this time")
_RESTARTED = Output("restarted", "the trajectory starts anew here, after a gap longer than restart_after")
# Variables that a run holds if the caller asks for them.
_MEMBERS = (
    Output("forecast_members", "forecast members", "state", "state"),
    Output("members", "analysis members", "state", "state"),
)
_MEMORY = Output("memory", "latent channels that the analysis reads", "state")
_SMOOTHED_MEMBERS = Output("smoothed_members", "members, given the observations of all times", "state", "state")
_COVARIANCE = Output("analysis_covariance", "error covariance of the filter's analysis", "state", "state squared")
_SMOOTHED_COVARIANCE = Output("smoothed_covariance", "error covariance of the smoothed state", "state", "state squared")
# No output of a method may have one of these names.
_ALWAYS = (*_BEFORE, *_MEMBERS, _MEMORY, _COVARIANCE, _RATIO, _DIVERGED, _RESTARTED)


@dataclass(frozen=True)
class Variable:
    """A variable of a run, without its values.

    Attributes
    ----------
    dims, shape, dtype
        Dims, shape and dtype of the whole variable.
    attrs : dict of str to str
    stem : str
        Name of the method's output that the variable holds. The variable may hold one field of this output.
    part : Part or None
        The part of the output's last dim that the variable holds; None if the output is one number for each cycle.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attrs: dict[str, str]
    stem: str
    part: Part | None = None

    def of(self, output: Tensor) -> Tensor:
        """Cut the variable's values from an output (..., N): shape (..., *dims of the part)."""
        return output if self.part is None else split_tensor(output, (self.part,), self.stem)[self.part.name(self.stem)]


Layout = dict[str, Variable]


def layout_of(method: Method, labelled: LabelledRecord, members: bool) -> Layout:
    """Describe every variable along trajectory and time, by name.

    Raises
    ------
    TypeError
        If `members` is not a bool.
    ValueError
        If `members` is True for a method that has neither members nor a memory nor a covariance.
    """
    if not isinstance(members, (bool, np.bool_)):
        raise TypeError(
            f"members={shown(members)}: expected True to keep them, or False; {method.name!r} has {method.members}, as "
            "the method or the network's training decided"
        )
    if members and not (method.ensemble or method.channels or method.keeps_covariance):
        raise ValueError(
            f"members=True: the method {method.name!r} carries a single state, neither an ensemble nor a memory nor a "
            "covariance; expected members=False, or a method that carries one of these"
        )
    if members and method.keeps_covariance:
        method.check_kept(labelled.setup.dynamics)
    method.check_declarations()
    setup, observation = labelled.setup, labelled.observation
    model, variables = setup.dynamics, partial(_variables, labelled)
    held = {dim for part in parts_of(model) for dim in part.dims}
    kept = {*map(str, observation.dims), *held, *(output.name for output in _ALWAYS)}
    if taken := sorted(kept & {output.name for output in method.outputs}):
        raise ValueError(
            f"the method {method.name!r} declares the outputs {taken}: expected other names, as a run has variables or "
            "dims of these"
        )
    layout: Layout = {}
    for output in (*_BEFORE, *method.outputs):
        layout |= variables(output)
    if members and method.channels:
        layout |= variables(_MEMORY, CHANNEL, method.channels)
    if members and method.keeps_covariance:
        layout |= _matrix(labelled, _COVARIANCE)
    if members and method.ensemble:
        for output in _MEMBERS:
            layout |= variables(output, MEMBER, method.members)
    if setup.restart_after is not None:
        layout |= variables(_RESTARTED, dtype=bool)
    return layout | variables(_RATIO) | variables(_DIVERGED, dtype=bool)


def smoothed_layout_of(method: Method, labelled: LabelledRecord, members: bool) -> Layout:
    """Describe the variables that a backward pass adds, by name.

    Raises
    ------
    ValueError
        If the method has no backward pass, or one of its outputs has the name of a smoothed variable.
    """
    method.check_backward(labelled.setup.dynamics)
    names = {SMOOTHED.name, SMOOTHED_SPREAD.name, _SMOOTHED_MEMBERS.name, _SMOOTHED_COVARIANCE.name}
    if taken := sorted(names & {output.name for output in method.outputs}):
        raise ValueError(
            f"smooth=True: the method {method.name!r} declares the outputs {taken}, which a backward pass adds to a "
            "run: expected other names"
        )
    layout = _variables(labelled, SMOOTHED) | _variables(labelled, SMOOTHED_SPREAD)
    if members and method.keeps_covariance:
        layout |= _matrix(labelled, _SMOOTHED_COVARIANCE)
    if members and method.ensemble:
        layout |= _variables(labelled, _SMOOTHED_MEMBERS, MEMBER, method.members)
    return layout


def _variables(
    labelled: LabelledRecord, output: Output, along: str | None = None, size: int = 1, dtype: Any = None
) -> Layout:
    """The variables of an output, one for each part of the state, with the extra dim if there is one."""
    setup, sizes = labelled.setup, labelled.observation.shape[:2]
    places: dict[str, Sequence[Part | None]] = {
        "state": parts_of(setup.dynamics),
        "observations": labelled.observed_parts,
        "cycle": (None,),
    }
    inner = ((), ()) if along is None else ((along,), (size,))
    made = {}
    for part in places[output.place]:
        name, attrs = output.name, {"long_name": output.long_name, "units": "1"}
        dims, shape = ((), ()) if part is None else (part.dims, part.shape)
        if part is not None:
            name = part.name(output.name)
            attrs = part.attributes(output.name, output.long_name, POWERS[output.units])
        else:
            attrs["units"] = to_power(setup.dynamics.units, POWERS[output.units])
        made[name] = Variable(
            (TRAJECTORY, TIME, *inner[0], *dims),
            (*sizes, *inner[1], *shape),
            np.dtype(setup.dtype if dtype is None else dtype),
            attrs,
            output.name,
            part,
        )
    return made


def _matrix(labelled: LabelledRecord, output: Output) -> Layout:
    """The variables of a covariance. Its rows lie along the dual dim."""
    model = labelled.setup.dynamics
    rows = _variables(labelled, output, dual_of(model.dims), math.prod(model.shape))
    if len({field.units for field in model.space}) > 1:  # a row holds covariances with fields in other units
        for row in rows.values():
            row.attrs["long_name"] += ", in the product of the units of two fields"
            del row.attrs["units"]
    return rows


def choices_of(method: Method, setup: Setup) -> Layout:
    """Describe the variables that the method chooses once for the record, by name."""
    dual = dual_of(setup.dynamics.dims)
    names = {"state": dual.removesuffix(DUAL), "state_dual": dual}
    size = int(np.prod(setup.dynamics.shape))
    return {
        choice.name: Variable(
            tuple(names.get(dim, dim) for dim in choice.dims),
            tuple(size if dim in names else count for dim, count in zip(choice.dims, choice.shape, strict=True)),
            setup.dtype,
            {"long_name": choice.long_name, "units": to_power(setup.dynamics.units, POWERS[choice.units])},
            choice.name,
        )
        for choice in method.choices
    }


def lags_of(method: Method, layout: Layout) -> dict[str, int]:
    """Number of cycles by which values belong to an earlier time, for the variables that do."""
    lags = {output.name: output.lag for output in method.outputs if output.lag}
    return {name: lags[variable.stem] for name, variable in layout.items() if variable.stem in lags}


def label_run(
    layout: Layout,
    arrays: Mapping[str, Any],
    *,
    method: Method,
    labelled: LabelledRecord,
    seed: int,
    more: Mapping[str, Any],
) -> xr.Dataset:
    """Make the Dataset of a run: arrays with coordinates and attributes. `more` are further attributes."""
    setup = labelled.setup
    variables = {name: (one.dims, arrays[name], one.attrs) for name, one in layout.items()}
    dims = {dim for one in layout.values() for dim in one.dims}
    shared = {TRAJECTORY, TIME, *(dim for part in parts_of(setup.dynamics) for dim in part.dims)}
    # A scalar label that is left from a selection is dropped if a dim or a variable has its name.
    taken = (dims - shared) | set(layout)
    coordinates = {
        name: coordinate
        for name, coordinate in labelled.labels.items()
        if set(coordinate.dims) <= shared and name not in taken
    }
    coordinates = {n: c.drop_vars([other for other in c.coords if other in taken]) for n, c in coordinates.items()}
    result = xr.Dataset(variables, coordinates)
    for dim in {STATE, f"{STATE}{DUAL}"} & set(result.dims):
        result = result.assign_coords(packed_labels(setup.dynamics, str(dim)))
    if MEMBER in result.dims:
        result = result.assign_coords({MEMBER: (MEMBER, np.arange(result.sizes[MEMBER]), MEMBER_ATTRIBUTES)})
    described: dict[str, Any] = {"title": f"cycled with {method.name}", "seed": seed, "method": method.name}
    described["method_parameters"] = method.config()
    if method.smoothing_lag:
        described["smoothed_by"] = f"the method's lag: observations of up to {method.smoothing_lag} later times"
    elif SMOOTHED.name in {one.stem for one in layout.values()}:
        described["smoothed_by"] = "a backward pass: observations of all times"
    if setup.restart_after is not None:
        described["restart_after"] = setup.restart_after
    if method.to_tune():
        described["tuned_on"] = method.tune_on
    notes = {"xdan_notes": list(labelled.notes)} if labelled.notes else {}
    return sealed(result).assign_attrs(attributes(setup.dynamics, **described, **more) | notes)
