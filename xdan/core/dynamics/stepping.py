"""Integrators, which make a step from a tendency."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from ..checks import real

Tendency = Callable[..., Tensor]
"""Function from states, and from the time if the model depends on it, to dx/dt."""


def runge_kutta_4(
    tendency: Tendency, x: Tensor, timestep: float, *, pure: bool = False, time: float | None = None
) -> Tensor:
    """Advance dx/dt = tendency(x), or tendency(x, t), by one step of the classical fourth-order Runge-Kutta scheme.

    Parameters
    ----------
    tendency : callable
    x : Tensor, shape (..., *shape)
    timestep : float
        Negative to go back in time.
    pure : bool
        Whether the tendency does not change its argument and returns a new tensor at every call. Otherwise states and
        tendencies are copied, because the tendency may work in place or return one of its buffers.
    time : float, optional
        Time t at the beginning, if the tendency takes it. The stages are at t, t + h/2, t + h/2 and t + h.

    References
    ----------
    Hairer, Norsett and Wanner (1993), Solving Ordinary Differential Equations I, Table II.1.2.
    """

    def kept(value: Tensor) -> Tensor:
        return value if pure else value.clone()

    begin: tuple[float, ...] = ()
    middle, end = begin, begin
    if time is not None:
        begin, middle, end = (time,), (time + timestep / 2,), (time + timestep,)
    k1 = kept(tendency(kept(x), *begin))
    k2 = kept(tendency(torch.add(x, k1, alpha=timestep / 2), *middle))
    k3 = kept(tendency(torch.add(x, k2, alpha=timestep / 2), *middle))
    k4 = tendency(torch.add(x, k3, alpha=timestep), *end)
    return x + timestep / 6 * (k1 + 2 * (k2 + k3) + k4)


def takes_time(function: Callable[..., Any], position: int, parameters: Collection[str] = ()) -> bool:
    """Whether a function takes a time: an argument, at a position, without a default or with the name t or time.

    Parameters
    ----------
    function : callable
    position : int
        Position of the argument after the state: 1, or 2 if `self` comes first.
    parameters : collection of str
        Arguments that are passed by keyword, and are not the time.
    """
    function = function.forward if isinstance(function, torch.nn.Module) else function
    try:
        arguments = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # functions of C do not show their arguments, and take no time
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    places = [one for one in arguments if one.kind in kinds and one.name not in parameters]
    if len(places) <= position:
        return False
    after = places[position]
    return after.default is inspect.Parameter.empty or after.name in ("t", "time")


def accurate_timestep(value: Any) -> float:
    """Check the step of a Lorenz model. Runge-Kutta 4 is inaccurate for steps longer than 0.05."""
    return real("timestep", value, above=0.0, most=0.05)
