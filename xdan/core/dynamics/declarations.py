"""What a class of models declares, and checks of these declarations before anything uses them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..checks import is_json_mapping, real, shown
from ..spaces import StateSpace

if TYPE_CHECKING:
    from .base import Dynamics

# Names of dims and variables in records and runs. A dim of the state must have another name.
TAKEN = {
    *("trajectory", "time", "member", "channel", "obs", "i", "j", "l", "vector", "mode"),
    *("truth", "observation", "observation_error", "observation_error_covariance", "observation_operator"),
    *("forecast", "analysis", "spread", "forecast_spread", "members", "forecast_members", "memory", "diverged"),
}


def check_declarations(dynamics: Dynamics) -> None:
    """Refuse a model with wrong attributes: dims, coordinates, time step, units and `config`.

    Parameters
    ----------
    dynamics : Dynamics

    Raises
    ------
    TypeError
        If an attribute is missing or of a wrong type.
    ValueError
        If a dim's name is taken, the coordinates do not fit the dims or repeat a label, or the time step is not
        positive.
    """
    title = f"the dynamics {dynamics.label!r}"
    for name in ("dims", "coordinates", "timestep"):
        if not hasattr(dynamics, name):
            raise TypeError(f"{title} has no {name}: expected its constructor, or its class, to set self.{name}")
    dims: Any = dynamics.dims
    if not isinstance(dims, tuple) or not dims or not all(isinstance(dim, str) and dim for dim in dims):
        raise TypeError(f"dims={shown(dims)} of {title}: expected a tuple of names, such as ('x',)")
    if taken := [dim for dim in dims if dim in TAKEN or dim.endswith("_dual")]:
        raise ValueError(
            f"{title} has the dims {taken}: expected other names, as records hold a dim or variable so called"
        )
    coordinates: Any = dynamics.coordinates
    if not isinstance(coordinates, Mapping) or set(coordinates) != set(dims) or len(set(dims)) < len(dims):
        raise ValueError(f"coordinates={shown(coordinates)} of {title}: expected one for each of its dims, {dims}")
    for dim, coordinate in coordinates.items():
        values: Any = getattr(coordinate, "values", None)
        if not hasattr(values, "__len__") or isinstance(values, str) or not len(values):
            raise TypeError(
                f"coordinates[{dim!r}]={shown(coordinate)} of {title}: expected an xdan.Coordinate with a tuple of "
                "labels"
            )
        if len(set(values)) < len(values):
            raise ValueError(f"coordinates[{dim!r}]={shown(values)} of {title}: expected distinct labels")
    # By default the space is made from dims and coordinates, so these are checked first.
    if not isinstance(dynamics.space, StateSpace):
        raise TypeError(f"space={shown(dynamics.space)} of {title}: expected an xdan.StateSpace")
    real(f"timestep of {title}", dynamics.timestep, above=0.0)
    if not isinstance(dynamics.units, str):
        raise TypeError(f"units={shown(dynamics.units)} of {title}: expected a word")
    if not is_json_mapping(dynamics.config()):
        raise TypeError(
            f"config() of {title} gave {shown(dynamics.config())}: expected a dict of plain JSON values, from which "
            "its class makes the same model"
        )
