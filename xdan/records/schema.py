"""Dims, attributes and roles: the words in which a Dataset says what it holds."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Hashable, Mapping, Sequence, Set
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
CHANNEL = "channel"  # of a network's memory
OBS = "obs"  # observations that are no sites of the state
DUAL = "_dual"  # suffix of the second dim of a covariance
CONVENTIONS = "CF-1.11"
DIGEST = "xdan_digest"  # attribute: digests of the attributes `dynamics` and `observing`
TRUTH_DYNAMICS = "truth_dynamics"  # attribute: the model that made the truth, where it is not that of the forecasts
WHOLE = "xdan_whole"  # attribute: names of the arrays of which every chunk is written, those of nothing but NaN too

Array = np.ndarray[Any, np.dtype[Any]]

TIME_ATTRIBUTES = {"axis": "T", "long_name": "model time", "units": "1"}
TRAJECTORY_ATTRIBUTES = {"long_name": "independent run", "units": "1"}
MEMBER_ATTRIBUTES = {"standard_name": "realization", "long_name": "ensemble member", "units": "1"}


class HasCoordinates(Protocol):
    """What has coordinates by dims: a dynamics, or a part of its state."""

    @property
    def coordinates(self) -> Mapping[str, Coordinate]:
        """One for each dim."""


@dataclass(frozen=True)
class Role:
    """What a variable of a record stands for.

    Attributes
    ----------
    name : str
        Of the role: the attribute `xdan_role` says it, or else the variable's own name.
    keyword : str
        The verbs' argument by which a caller names the variable.
    dims : tuple of str
        Its dims: "state" stands for those of a state, "observed" for those of the observations of one time.
    power : int
        Its units are those of the state to this power.
    """

    name: str
    keyword: str
    dims: tuple[str, ...]
    power: int = 1

    def dims_in(self, state: Sequence[str], observed: Sequence[str]) -> tuple[str, ...]:
        """The dims in a record whose states and observations have these."""
        words = {"state": state, "observed": observed}
        words |= {f"{name}_dual": [dim + DUAL for dim in dims] for name, dims in words.items()}
        return tuple(dim for word in self.dims for dim in words.get(word, (word,)))

    def attributes(self, long_name: str, units: str) -> dict[str, str]:
        """Attributes of a variable that plays the role, for states in these units."""
        return {"long_name": long_name, "xdan_role": self.name, "units": to_power(units, self.power)}


OBSERVATION = Role("observation", "observation", (TRAJECTORY, TIME, "observed"))
TRUTH = Role("truth", "truth", (TRAJECTORY, TIME, "state"))
ERROR = Role("observation_error", "observation_error", (TIME, "observed"))  # time only where errors differ in it
ERROR_COVARIANCE = Role("observation_error_covariance", "observation_error", ("observed", "observed_dual"), power=2)
OPERATOR = Role("observation_operator", "operator", (OBS, "state"), power=0)
MODEL_ERROR = Role("model_error", "model_error", ("state",))
MODEL_ERROR_COVARIANCE = Role("model_error_covariance", "model_error", ("state", "state_dual"), power=2)
ROLES = (OBSERVATION, TRUTH, ERROR, ERROR_COVARIANCE, OPERATOR, MODEL_ERROR, MODEL_ERROR_COVARIANCE)
_CRITERIA = {role.name: {"xdan_role": f"^{role.name}$", "name": f"^{role.name}$"} for role in ROLES}


def find(ds: xr.Dataset, role: Role, name: str | None = None) -> xr.DataArray | None:
    """Find the variable that plays a role: the one named by the caller, or by `xdan_role`, or by the role's name.

    Raises
    ------
    TypeError
        If the caller's name is no name.
    ValueError
        If the caller's name is not there, or several variables claim the role.
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
    """Dims of a variable that are of time: by their CF attributes, or because their coordinate holds dates."""
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
    """JSON of plain values, and of NumPy's numbers and arrays as plain ones."""

    def plain(v: Any) -> Any:
        if isinstance(v, (np.generic, np.ndarray)):
            return v.tolist()
        raise TypeError(f"{v!r} of type {type(v).__name__} has no JSON")

    return json.dumps(value, default=plain, **options)


def dual_of(dims: Sequence[str]) -> str:
    """Name of the second dim of a covariance of states with these dims."""
    return (dims[0] if len(dims) == 1 else STATE) + DUAL


def averaged_dims(dim: str | Sequence[str]) -> list[str]:
    """Dims to average over, of `trajectory` and `time`.

    Raises
    ------
    TypeError
        For what is no name, or no sequence of names.
    ValueError
        For other names.
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
    """Refuse labels that are the dynamics' own in another order; other labels, such as longitudes, are the user's.

    Raises
    ------
    ValueError
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
    """Attributes that make a store self-describing; values that are not plain are written as JSON."""
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
    """Digests of the attributes `dynamics` and `observing`, each behind its name."""
    words = {name: str(attributes[name]) for name in ("dynamics", "observing") if name in attributes}
    return " ".join(f"{name}:{hashlib.sha256(word.encode()).hexdigest()[:16]}" for name, word in words.items())


def changed_descriptions(attributes: Mapping[Any, Any]) -> list[str]:
    """Names of the attributes that are there and not what xdan wrote, by their digests."""
    written = (entry.partition(":") for entry in str(attributes.get(DIGEST, "")).split())
    present = dict(entry.split(":") for entry in description_digest(attributes).split())
    return [name for name, _, digest in written if name in present and present[name] != digest]


def reference_site(average: xr.DataArray, what: str = "the gain") -> int:
    """Site r that a symmetry average is about.

    Raises
    ------
    ValueError
        If it is none.
    """
    if not isinstance(average, xr.DataArray) or not {"i", "j"} <= set(average.dims) or "reference" not in average.attrs:
        dims = getattr(average, "dims", type(average).__name__)
        raise ValueError(
            f"{what} is no symmetry average, but has dims {dims}: expected what ds.dan.gain(net) gives, with dims i "
            "and j and a reference site in its attributes"
        )
    return int(average.attrs["reference"])
