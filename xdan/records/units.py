"""Units of a record's variables, compared with the units of the state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr

from ..core.checks import warn
from ..core.dynamics import Dynamics

if TYPE_CHECKING:
    from .fields import OneOrFields

_SPELLINGS = {
    "k": ("k", "kelvin", "degk", "degree_k", "degrees_k", "deg_k"),
    "degc": ("c", "degc", "celsius", "degree_celsius", "degrees_celsius", "degree_c", "degrees_c", "°c", "deg_c"),
    "degf": ("f", "degf", "fahrenheit", "degree_fahrenheit", "degrees_fahrenheit", "°f", "degree_f", "degrees_f"),
}


def check_units(variable: xr.DataArray, other: xr.DataArray, *, warns: bool = True) -> None:
    """Refuse two variables of one quantity in units that are known to differ; warn if their spelling differs.

    Parameters
    ----------
    variable, other : xarray.DataArray
    warns : bool
        Whether to warn if the units are different words.

    Raises
    ------
    ValueError
        If the units differ, as kelvin and degrees Celsius do.

    Warns
    -----
    XdanWarning
        If the units are different words.
    """
    ours, theirs = (v.attrs.get("units") for v in (variable, other))
    if not isinstance(ours, str) or not isinstance(theirs, str) or _plain(ours) == _plain(theirs):
        return
    both = f"{variable.name!r} is in {ours!r} and {other.name!r} in {theirs!r}"
    if _plain(ours) in _SPELLINGS and _plain(theirs) in _SPELLINGS:
        raise ValueError(f"{both}: expected one unit for both; convert one of them")
    if warns:
        warn(f"{both}: they are taken as the same unit. Convert one of them if they differ")


def check_units_of_parts(
    variables: OneOrFields, model: Dynamics, *, warns: bool = True, difference: bool = False
) -> None:
    """Refuse variables whose units are not those of the state; warn if the units are spelled differently.

    Models and variables that name no units have the units "1". These units agree with all others.

    Parameters
    ----------
    variables : DataArray, or dict of str to DataArray
        The variable of the whole state, or variables of fields by the fields' names.
    model : Dynamics
    warns : bool
        Whether to warn if the units are different words.
    difference : bool
        Whether the values are differences, such as errors. One kelvin is then one degree Celsius.

    Raises
    ------
    ValueError
        If the units differ, as kelvin and degrees Celsius do.

    Warns
    -----
    XdanWarning
        If the units are different words.
    """
    if isinstance(variables, xr.DataArray):
        pairs = [] if model.space.single is None else [(variables, model.units)]
    else:
        pairs = [(variable, model.space[field].units) for field, variable in variables.items()]
    for variable, units in pairs:
        said = variable.attrs.get("units")
        both = {_plain(str(said)), _plain(units)}
        if "1" not in (units, said) and not (difference and both <= {"k", "degc"}):
            check_units(variable, xr.DataArray(name=f"the dynamics {model.label}", attrs={"units": units}), warns=warns)


def _plain(units: str) -> str:
    """One spelling of a unit."""
    word = units.strip().lower().replace("deg ", "deg").replace(" ", "_")
    return next((name for name, words in _SPELLINGS.items() if word in words), word)
