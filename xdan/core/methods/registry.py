"""Methods by name."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeVar

from ..checks import choice, perhaps, shown
from ..registry import constructor_parameters
from .base import METHODS, Method

M = TypeVar("M", bound=type[Method])

TUNE_ON = ("innovation", "truth")


def register_method(cls: M) -> M:
    """Register a method's class under its `name`. `baseline` runs the method of this name.

    Parameters
    ----------
    cls : class derived from Method
        It has an attribute `name`, which it must not inherit.

    Returns
    -------
    class
        The same class.

    Raises
    ------
    TypeError
        If `cls` is not a class of methods, or sets no name.
    ValueError
        If another class has this name. A class may be defined anew, for example by a notebook's cell: it replaces the
        earlier one.

    Examples
    --------
    >>> import xdan
    >>> xdan.register_method(xdan.FiniteSizeEnKF) is xdan.FiniteSizeEnKF  # the decorator makes this call
    True
    >>> "enkf-n" in xdan.baselines().index
    True
    """
    return METHODS.register(cls, "register_method")


def method_by_name(
    name: str,
    *,
    tune_on: str = "innovation",
    candidates: Any = None,
    beside: Collection[str] = (),
    **parameters: Any,
) -> Method:
    """Make a registered method.

    Parameters
    ----------
    name : str
    tune_on : {"innovation", "truth"}
    candidates : mapping of str to sequence of float, optional
        Values that tuning tries for parameters that are "tune". By default the values of the method's class.
    beside : collection of str
        Other arguments of the caller. A wrong parameter may be one of them, misspelt.
    **parameters
        The method's parameters.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If the name or a parameter is unknown, or a parameter is out of range.
    """
    accepted = accepted_parameters(name)
    if unknown := set(parameters) - accepted - set(METHODS[name].fixed):
        raise ValueError(
            f"baseline {name!r} has no parameters {sorted(unknown)}; it takes {sorted(accepted)}, expected no others"
            f"{perhaps(min(unknown), [*accepted, *beside])}"
        )
    tune_on = choice("tune_on", tune_on, TUNE_ON)
    method = METHODS[name](**parameters)
    method.tune_on = tune_on
    if candidates is not None:
        method.take_candidates(candidates)
    method.check_declarations()
    return method


def accepted_parameters(name: str) -> set[str]:
    """Names of a registered method's parameters, including those of its base classes if it passes them on.

    Raises
    ------
    TypeError
        If the name is not a string.
    ValueError
        If the name is unknown.
    """
    if not isinstance(name, str):
        raise TypeError(f"name={shown(name)}: expected the name of a method, one of {list(METHODS)}")
    cls = METHODS[name]
    return constructor_parameters(cls) - set(cls.fixed)
