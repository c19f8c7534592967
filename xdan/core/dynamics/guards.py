"""Guards: copies around the methods of a user's class; and inherited methods that a new step makes wrong."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..user_functions import isolated

if TYPE_CHECKING:
    from .base import Dynamics

# A class that replaces the method on the left loses the inherited methods on the right, which belong to the old step.
FOLLOWS = {
    "tendency": ("step", "advance", "advance_each", "advance_along", "second_order_tendency"),
    "step": ("advance", "advance_each", "advance_along", "retreat", "second_order_tendency"),
    "advance": ("advance_each", "advance_along"),
}


def guard_methods(cls: type[Dynamics], without: Collection[str] = ()) -> None:
    """Put copies around the methods that a class defines. `without` names methods that are left as they are."""
    for name, guard in _GUARDS.items():
        method = None if name in without else vars(cls).get(name)
        if inspect.isfunction(method) and not hasattr(method, "__wrapped__"):
            setattr(cls, name, guard(method))


def _guard_states(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Put copies around a method that maps states to states."""

    @functools.wraps(method)
    def guarded(self: Dynamics, x: Tensor, *more: Any, **options: Any) -> Tensor:
        def function(states: Tensor) -> Tensor:
            return method(self, states, *more, **options)

        shape = self.shape
        return isolated(function, x, len(shape), shape, self._part(method.__name__))

    return guarded


def _guard_directions(method: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Put copies around a tangent linear model."""

    @functools.wraps(method)
    def guarded(self: Dynamics, x: Tensor, directions: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        after, pushed = method(self, x.clone(), directions.clone(), steps)
        if after.shape != x.shape or pushed.shape != directions.shape:
            raise ValueError(
                f"{self._part(method.__name__)} gave shapes {tuple(after.shape)} and {tuple(pushed.shape)}: expected "
                f"{tuple(x.shape)} and {tuple(directions.shape)}"
            )
        return after.clone(), pushed.clone()

    return guarded


def _guard_distances(method: Callable[..., Any]) -> Callable[..., Any]:
    """Put copies around distances."""

    @functools.wraps(method)
    def guarded(self: Dynamics, sites: Tensor) -> Tensor | None:
        distances = method(self, sites.clone())
        return check_distances(distances, sites, math.prod(self.shape), self._part(method.__name__))

    return guarded


def check_distances(distances: Any, sites: Tensor, size: int, label: str) -> Tensor | None:
    """Refuse a result that is not a matrix of distances from some components to all components.

    Raises
    ------
    ValueError
    """
    if distances is None:
        return None
    shape = (len(sites), size)
    if not isinstance(distances, Tensor) or tuple(distances.shape) != shape:
        kind = tuple(distances.shape) if isinstance(distances, Tensor) else type(distances).__name__
        raise ValueError(
            f"{label} gave {kind}: expected a tensor of shape {shape}, from each of some components to all"
        )
    if distances.dtype == torch.bool or distances.is_complex() or not bool((distances >= 0).all()):
        raise ValueError(f"{label} gave values that are no distances: expected real numbers, 0 or more")
    return distances.clone()


_GUARDS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "tendency": _guard_states,
    "step": _guard_states,
    "advance": _guard_states,
    "retreat": _guard_states,
    "rest": _guard_states,
    "advance_along": _guard_directions,
    "distances": _guard_distances,
}
