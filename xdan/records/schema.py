"""Dims, attributes and roles: the words in which a Dataset says what it holds."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol

import cf_xarray
import numpy as np
import xarray as xr

from ..core.checks import XdanWarning as XdanWarning
from ..core.checks import perhaps, shown
from ..core.dynamics import Dynamics, dynamics_to_json
from ..core.formats import FORMAT, FORMATS
from ..core.spaces import STATE, Coordinate

TRAJECTORY, TIME, MEMBER, ITERATION = "trajectory", "time", "member", "iteration"
CHANNEL = "channel"  # dim of a network's memory
OBS = "obs"  # dim of observations that do not lie at the state's sites
DUAL = "_dual"  # suffix of the second dim of a covariance
CONVENTIONS = "CF-1.11"
DIGEST = "xdan_digest"  # attribute: digests of the attributes `dynamics` and `observing`
TRUTH_DYNAMICS = "truth_dynamics"  # attribute: the model that made the truth, if another model makes the forecasts
WHOLE = "xdan_whole"  # attribute: names of the arrays whose chunks are all written, also chunks with nothing but NaN

Array = np.ndarray[Any, np.dtype[Any]]

TIME_ATTRIBUTES = {"axis": "T", "long_name": "model time", "units": "1"}
TRAJECTORY_ATTRIBUTES = {"long_name": "independent run", "units": "1"}
MEMBER_ATTRIBUTES = {"standard_name": "realization", "long_name": "ensemble member", "units": "1"}


def as_labels(values: Iterable[Any]) -> Array:
    """Labels of a dim as an array. Strings are objects in it, because Zarr specifies only strings of any length."""
    labels = list(values)
    return np.array(labels, dtype=object if any(isinstance(label, str) for label in labels) else None)


class HasCoordinates(Protocol):
    """An object with coordinates for its dims: a dynamics, or a part of its state."""

    @property
    def coordinates(self) -> Mapping[str, Coordinate]:
        """One for each dim."""


@dataclass(frozen=True)
class Role:
    """The role of a variable in a record.

    Attributes
    ----------
    name : str
        Name of the role. A variable has it as its attribute `xdan_role`, or else as its name.
    keyword : str
        The verbs' argument by which a caller names the variable.
    dims : tuple of str
        Dims of the variable. "state" stands for the dims of a state, "observed" for those of the observations of one
        time.
    power : int
        The variable's units are the state's units to this power.
    """

    name: str
    keyword: str
    dims: tuple[str, ...]
    power: int = 1

    def dims_in(self, state: Sequence[str], observed: Sequence[str]) -> tuple[str, ...]:
        """The dims of the variable in a record whose states and observations have these dims."""
        words = {"state": state, "observed": observed}
        words |= {f"{name}_dual": [dim + DUAL for dim in dims] for name, dims in words.items()}
        return tuple(dim for word in self.dims for dim in words.get(word, (word,)))

    def attributes(self, long_name: str, units: str) -> dict[str, str]:
        """Attributes of a variable with this role, for states in these units."""
        return {"long_name": long_name, "xdan_role": self.name, "units": to_power(units, self.power)}


OBSERVATION = Role("observation", "observation", (TRAJECTORY, TIME, "observed"))
TRUTH = Role("truth", "truth", (TRAJECTORY, TIME, "state"))
ERROR = Role("observation_error", "observation_error", (TIME, "observed"))  # with time only if errors differ in time
ERROR_COVARIANCE = Role("observation_error_covariance", "observation_error", ("observed", "observed_dual"), power=2)
OPERATOR = Role("observation_operator", "operator", (OBS, "state"), power=0)
MODEL_ERROR = Role("model_error", "model_error", ("state",))
MODEL_ERROR_COVARIANCE = Role("model_error_covariance", "model_error", ("state", "state_dual"), power=2)
ROLES = (OBSERVATION, TRUTH, ERROR, ERROR_COVARIANCE, OPERATOR, MODEL_ERROR, MODEL_ERROR_COVARIANCE)
_CRITERIA = {role.name: {"xdan_role": f"^{role.name}$", "name": f"^{role.name}$"} for role in ROLES}


def find(ds: xr.Dataset, role: Role, name: str | None = None) -> xr.DataArray | None:
    """Find the variable of a role: the caller names it, or its attribute `xdan_role` or its name is the role's name.

    Raises
    ------
    TypeError
        If the caller's name is not a string.
    ValueError
        If no variable has the caller's name, or several variables claim the role.
    """
    if name is not None:
        if not isinstance(name, str):
            raise TypeError(f"{role.keyword}={shown(name)}: expected the name of a variable")
        if name not in ds.variables:
            raise ValueError(
                f"no variable {name!r} for {role.keyword}=: expected one of {sorted(map(str, ds.data_vars))}"
                f"{perhaps(name, map(str, ds.data_vars))}"
            )
        return ds[name]
    with cf_xarray.set_options(custom_criteria=_CRITERIA):
        try:
            claimants = ds.cf[[role.name]]
        except KeyError:
            return None
    names = sorted(str(n) for n in claimants.data_vars)  # cf-xarray gives them in any order
    if role.name in names:
        return ds[role.name]
    if len(names) > 1:
        raise ValueError(
            f"variables {names} all claim the role {role.name!r}; choose one with {role.keyword}=: expected one of them"
        )
    return ds[names[0]] if names else None


def time_dims(variable: xr.DataArray) -> list[Hashable]:
    """Dims of time of a variable: their CF attributes say so, or their coordinate holds dates."""
    named = (*variable.cf.axes.get("T", []), *variable.cf.coordinates.get("time", []))
    dims = [dim for dim in named if dim in variable.dims]
    return list(dict.fromkeys([*dims, *(dim for dim in variable.dims if holds_dates(variable, dim))]))


def holds_dates(variable: xr.DataArray, dim: Hashable) -> bool:
    """Whether the coordinate of a dim holds dates or time differences."""
    if dim not in variable.coords:
        return False
    values = variable[dim].values
    return values.dtype.kind in "mM" or (values.dtype.kind == "O" and values.size > 0 and is_cftime(values.flat[0]))


def is_cftime(value: Any) -> bool:
    """Whether a value is a date of cftime, which need not be installed."""
    cftime = sys.modules.get("cftime")
    return cftime is not None and isinstance(value, cftime.datetime)


def to_power(units: str, power: int) -> str:
    """Units to an integer power, as CF spells them: "(m s-1)2"."""
    if units == "1" or not power:
        return "1"
    return units if power == 1 else f"({units}){power}"


def to_json(value: Any, **options: Any) -> str:
    """JSON of plain values. NumPy's numbers and arrays become plain numbers and lists."""

    def plain(v: Any) -> Any:
        if isinstance(v, (np.generic, np.ndarray)):
            return v.tolist()
        raise TypeError(f"{v!r} of type {type(v).__name__} has no JSON")

    return json.dumps(value, default=plain, **options)


def dual_of(dims: Sequence[str]) -> str:
    """Name of the second dim of a covariance of states with these dims."""
    return (dims[0] if len(dims) == 1 else STATE) + DUAL


def averaged_dims(dim: str | Sequence[str]) -> list[str]:
    """Dims to average over; they may be `trajectory` and `time`.

    Raises
    ------
    TypeError
        If `dim` is neither a name nor a sequence of names.
    ValueError
        If a name is neither `trajectory` nor `time`.
    """
    dims: list[Any] = list(dim) if _has_items(dim) and not isinstance(dim, str) else [dim]
    if not all(isinstance(d, str) for d in dims):
        raise TypeError(f"dim={shown(dim)}: expected some of ['trajectory', 'time']")
    if unknown := [d for d in dims if d not in (TRAJECTORY, TIME)]:
        raise ValueError(f"dim={unknown}: expected some of ['trajectory', 'time'], and none of the state's dims")
    return list(dict.fromkeys(dims))


def _has_items(value: Any) -> bool:
    return isinstance(value, (Sequence, Set)) or (isinstance(value, np.ndarray) and value.ndim > 0)


def check_order(variable: xr.DataArray, dim: str, grid: HasCoordinates) -> None:
    """Refuse the labels of the dynamics in another order. Other labels, such as longitudes, may be in any order.

    Raises
    ------
    ValueError
        If the labels are those of the dynamics, in another order.
    """
    expected = list(grid.coordinates[dim].values)
    labels = variable[dim].values.tolist() if dim in variable.coords else expected
    names = any(isinstance(label, str) for label in [*labels, *expected])
    key = str if names else float
    if labels != expected and sorted(labels, key=key) == sorted(expected, key=key):
        raise ValueError(
            f"{variable.name!r} has the labels of {dim!r} in another order than the dynamics: {labels[:4]}..., "
            f"expected {expected[:4]}...; sort them, for example with ds.sel({dim}={expected[:4]}...)"
        )


def attributes(model: Dynamics, **more: Any) -> dict[str, Any]:
    """Attributes by which a store describes itself. Values that are not plain become JSON."""
    values = {key: value.item() if isinstance(value, np.generic) else value for key, value in more.items()}
    plain = {key: value if isinstance(value, (str, int, float)) else to_json(value) for key, value in values.items()}
    described = {
        "Conventions": CONVENTIONS,
        "source": f"xdan {version('xdan')}",
        FORMAT: FORMATS["data"],
        "dynamics": to_json(dynamics_to_json(model)),
        **plain,
    }
    return {**described, DIGEST: description_digest(described)}


def description_digest(attributes: Mapping[Any, Any]) -> str:
    """Digests of the attributes `dynamics` and `observing`, each after the attribute's name."""
    words = {name: str(attributes[name]) for name in ("dynamics", "observing") if name in attributes}
    return " ".join(f"{name}:{hashlib.sha256(word.encode()).hexdigest()[:16]}" for name, word in words.items())


def changed_descriptions(attributes: Mapping[Any, Any]) -> list[str]:
    """Names of the attributes that xdan did not write as they are now: their digests differ."""
    written = (entry.partition(":") for entry in str(attributes.get(DIGEST, "")).split())
    present = dict(entry.split(":") for entry in description_digest(attributes).split())
    return [name for name, _, digest in written if name in present and present[name] != digest]


def reference_site(average: xr.DataArray, what: str = "the gain") -> int:
    """The reference site r of a symmetry average.

    Raises
    ------
    ValueError
        If the array is no symmetry average.
    """
    if not isinstance(average, xr.DataArray) or not {"i", "j"} <= set(average.dims) or "reference" not in average.attrs:
        dims = getattr(average, "dims", type(average).__name__)
        raise ValueError(
            f"{what} is no symmetry average, but has dims {dims}: expected what ds.dan.gain(net) gives, with dims i "
            "and j and a reference site in its attributes"
        )
    return int(average.attrs["reference"])
