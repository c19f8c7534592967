"""Methods by their names."""

from __future__ import annotations

from typing import Any, TypeVar

from ..checks import choice, perhaps, shown
from ..registry import constructor_parameters
from .base import METHODS, Method

M = TypeVar("M", bound=type[Method])

TUNE_ON = ("innovation", "truth")


def register_method(cls: M) -> M:
    """Register a method's class under its `name`, by which `baseline` runs it.

    Parameters
    ----------
    cls : class derived from Method
        With an attribute `name` of its own.

    Returns
    -------
    class
        The same class.

    Raises
    ------
    TypeError
        For what is no class of methods, or gives no name itself.
    ValueError
        If another class has the name. A class that is defined anew, as by a notebook's cell, takes its own place.

    Examples
    --------
    >>> import xdan
    >>> xdan.register_method(xdan.FiniteSizeEnKF) is xdan.FiniteSizeEnKF  # what the decorator does, once more
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
    **parameters: Any,
) -> Method:
    """Make a registered method.

    Parameters
    ----------
    name : str
    tune_on : {"innovation", "truth"}
    candidates : mapping of str to sequence of float, optional
        Values to try for parameters that are "tune", instead of the class's.
    **parameters
        The method's.

    Raises
    ------
    TypeError
        If an argument is of another type.
    ValueError
        If the name is unknown, or a parameter is, or one is out of range.
    """
    accepted = accepted_parameters(name)
    if unknown := set(parameters) - accepted - set(METHODS[name].fixed):
        raise ValueError(
            f"baseline {name!r} has no parameters {sorted(unknown)}; it takes {sorted(accepted)}, expected no others"
            f"{perhaps(min(unknown), accepted)}"
        )
    tune_on = choice("tune_on", tune_on, TUNE_ON)
    method = METHODS[name](**parameters)
    method.tune_on = tune_on
    if candidates is not None:
        method.take_candidates(candidates)
    method.check_declarations()
    return method


def accepted_parameters(name: str) -> set[str]:
    """Names of a registered method's parameters, those of its bases too where it passes the rest on.

    Raises
    ------
    TypeError
        If the name is none.
    ValueError
        If the name is unknown.
    """
    if not isinstance(name, str):
        raise TypeError(f"name={shown(name)}: expected the name of a method, one of {list(METHODS)}")
    cls = METHODS[name]
    return constructor_parameters(cls) - set(cls.fixed)
