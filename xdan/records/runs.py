"""Runs on a record: the variables of a run, with the record's labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..core.checks import shown, warn
from ..core.formats import data_format
from .arranging import arrange_state
from .fields import each, in_order, parts_of, states_of
from .schema import TIME, TRAJECTORY, Array, Role
from .store import STATUS, check_contents, check_whole
from .times import same_times
from .units import check_units, check_units_of_parts

if TYPE_CHECKING:
    from .record import LabelledRecord


_OLD_SMOOTHED = "estimate, at each time, of the state a window earlier"  # long_name in runs of early versions


def imitate(labelled: LabelledRecord, teacher: Any) -> LabelledRecord:
    """Put a run in the truth's place: a network is to learn the run's analyses from the run's forecasts.

    Raises
    ------
    ValueError
        If the run lacks forecast or analysis, is unfinished, or was made on another record.
    """
    states = read_run(labelled, teacher, ("forecast", "analysis"), "teacher")
    return replace(labelled, truth=states["analysis"], forecast=states["forecast"])


def held_in(labelled: LabelledRecord, run: xr.Dataset, names: Sequence[str]) -> list[str]:
    """Those names of states that a run holds, as one variable or as one for each field."""
    model = labelled.setup.dynamics
    return [name for name in names if states_of(run, Role(name, "run", ()), model) is not None]


def sizes_in(labelled: LabelledRecord, run: xr.Dataset, name: str) -> dict[str, int]:
    """Sizes of the state that a run holds under a name; for several fields, those of the first."""
    states = states_of(run, Role(name, "run", ()), labelled.setup.dynamics)
    return {str(dim): size for variable in each(states)[:1] for dim, size in variable.sizes.items()}


def read_run(
    labelled: LabelledRecord,
    run: xr.Dataset,
    names: Sequence[str],
    what: str = "run",
    extra: Mapping[str, int] | None = None,
) -> dict[str, xr.DataArray]:
    """Variables of a run on this record, with the dims (trajectory, time, *extra, *state).

    Raises
    ------
    TypeError
        If the run is no Dataset.
    ValueError
        If the run lacks one of them, is unfinished, or is of another record.

    Warns
    -----
    XdanWarning
        If the smoothed state is read, and an early version wrote it at the time of the analysis. It is then moved.
    """
    if not isinstance(run, xr.Dataset):
        raise TypeError(f"{what} is a {type(run).__name__}: expected the Dataset that cycle() or baseline() returned")
    data_format(run.attrs, f"the {what}")
    if run.attrs.get(STATUS) == "unfinished":
        raise ValueError(f"the {what}'s store is unfinished; run the same call again to resume it")
    model = labelled.setup.dynamics
    roles = [Role(name, what, ()) for name in names]
    held = {role.name: states_of(run, role, model) for role in roles}
    if missing := [name for name, variables in held.items() if variables is None]:
        raise ValueError(
            f"the {what} lacks {missing}; found {sorted(map(str, run.data_vars))}: expected what cycle() or baseline() "
            "returned; variables of another program are renamed by ds.rename"
        )
    check_contents(run)
    late = warn_of_old_smoothed(run) if any(name.startswith("smoothed") for name in names) else 0
    states = {}
    for name, variables in held.items():
        assert variables is not None
        for variable in each(variables):
            check_whole(run, variable)
        states[name] = arrange_state(variables, model, name, extra)
        check_units_of_parts(variables, model, warns=False)
        if labelled.truth is not None and isinstance(variables, xr.DataArray):
            check_units(variables, labelled.truth, warns=False)
        for dim in (TRAJECTORY, TIME, *model.dims):
            reference = labelled.observation if dim in labelled.observation.dims else labelled.truth
            if reference is not None and dim in reference.coords:
                _check_same_labels(reference[dim], states[name], dim, what)
        for part in parts_of(model) if isinstance(variables, dict) else ():
            assert part.field is not None
            for dim in part.dims:
                ordered = in_order(variables[part.field.name], dim, part)
                _check_same_labels(labelled.labels[dim], ordered, dim, what)
    if late:
        states |= {name: states[name].shift({TIME: -late}) for name in names if name.startswith("smoothed")}
    return states


def warn_of_old_smoothed(run: xr.Dataset) -> int:
    """Cycles by which `smoothed` lies too late: early versions of xdan stored it at the time of the analysis.

    Returns
    -------
    int
        0 for a run of this version: its `smoothed` lies at the time that it is an estimate of.

    Raises
    ------
    ValueError
        If an early version made the run, and the run does not say its lag.

    Warns
    -----
    XdanWarning
        If an early version made the run.
    """
    old = [name for name, one in run.data_vars.items() if _OLD_SMOOTHED in str(one.attrs.get("long_name", ""))]
    if not old:
        return 0
    parameters = run.attrs.get("method_parameters", "{}")
    parameters = json.loads(parameters) if isinstance(parameters, str) else parameters
    single = {"ienkf": 1, "ienkf-n": 1}.get(str(run.attrs.get("method")))  # methods whose lag is no parameter
    lag = next((parameters[word] for word in ("lag", "window") if word in parameters), single)
    what = f"{old[0]!r} of this run lies at the time of the analysis, as in early versions of xdan"
    if not isinstance(lag, int):
        raise ValueError(
            f"{what}, and the run does not say its lag: expected run.{old[0]}.shift(time=-lag) in its place"
        )
    warn(
        f"{what}, {lag} cycles after the state that it is an estimate of: it is taken {lag} cycles earlier, as by "
        f"run[{old[0]!r}].shift(time=-{lag})",
    )
    return lag


def _check_same_labels(reference: xr.DataArray, variable: xr.DataArray, dim: str, what: str) -> None:
    """Refuse a variable of a run if its labels are not those of the record."""
    if dim not in variable.coords:
        return
    ours, theirs = reference.values, variable[dim].values
    if dim == TIME:
        same = same_times(reference, variable[dim])
    else:
        numbers = all(np.issubdtype(labels.dtype, np.number) for labels in (ours, theirs))
        relative = 0.0 if dim == TRAJECTORY else 1e-6  # labels of the state may be in single precision
        same = ours.shape == theirs.shape and (
            np.allclose(ours, theirs, rtol=relative, atol=0.0) if numbers else bool((ours == theirs).all())
        )
    if not same:
        raise ValueError(
            f"{what} and record differ in {dim}: expected {len(ours)} labels {_first(ours)}, as in the record; "
            f"{variable.name!r} has {len(theirs)}, {_first(theirs)}. Make the run on this record"
        )


def _first(labels: Array) -> str:
    """The first labels, in words; dates as they are written."""
    some = labels[:3]
    return shown(some.tolist() if some.dtype.kind in "fiuU" else [str(label) for label in some])
