"""Calls of a user's NumPy function for some states. There is no torch here, so that helper processes start quickly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Function = Callable[..., Any]
Moment = tuple[float, ...]
"""What a function gets besides the states: the model time, or nothing."""


@dataclass(frozen=True)
class OfFields:
    """A function of flat states, (..., N), from a function of dicts of fields.

    Attributes
    ----------
    function : callable
        It maps a dict from names to arrays (..., *shape) to such a dict.
    shapes : mapping of str to tuple of int
        Shapes of the fields, in the order of the flat state.
    """

    function: Callable[..., Any]
    shapes: Mapping[str, tuple[int, ...]]

    def __call__(self, x: Array, *time: float) -> Any:
        """Split the state into its fields, call the function, and join its fields."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes.values()])[:-1]
        parts = zip(self.shapes.items(), np.split(x, ends, axis=-1), strict=True)
        answer = self.function({name: part.reshape(*x.shape[:-1], *shape) for (name, shape), part in parts}, *time)
        if not isinstance(answer, Mapping) or set(answer) != set(self.shapes):
            fields = sorted(map(str, answer)) if isinstance(answer, Mapping) else type(answer).__name__
            raise ValueError(f"it gave {fields}: expected a mapping of the fields {list(self.shapes)}")
        flat = []
        for name, shape in self.shapes.items():
            field = np.asarray(answer[name])
            if field.shape != (*x.shape[:-1], *shape):
                raise ValueError(f"its field {name!r} has shape {field.shape}: expected {(*x.shape[:-1], *shape)}")
            flat.append(field.reshape(*x.shape[:-1], -1))
        return np.concatenate(flat, axis=-1)


def call_on(function: Function, states: Array, moments: Sequence[Moment], batched: bool, label: str) -> Array:
    """Apply a function to states, once at each of some moments.

    Parameters
    ----------
    function : callable
        It maps states (B, *shape) to as many states; with `batched` False, one state (*shape) to another.
    states : array, shape (B, *shape)
    moments : sequence of tuple
        () for each call of a function of the states alone; (t,) for a function of states and time.
    batched : bool
    label : str
        Name of the function in messages.

    Returns
    -------
    array, shape (B, *shape)
        States that are not finite become NaN. The function does not get them.

    Raises
    ------
    ValueError
        If the function fails, or does not return one state for each state.
    """
    if not batched:
        return np.stack([_repeated(function, state, moments, label) for state in states])
    states = states.copy()
    for moment in moments:
        fine = np.isfinite(states).reshape(len(states), -1).all(axis=1)
        states[~fine] = np.nan
        if fine.any():
            states[fine] = _called(function, states[fine], moment, label)
    return states


def _repeated(function: Function, state: Array, moments: Sequence[Moment], label: str) -> Array:
    """One state after some steps."""
    for moment in moments:
        if not np.isfinite(state).all():
            return np.full_like(state, np.nan)
        state = _called(function, state, moment, label)
    return state


def _called(function: Function, states: Array, moment: Moment, label: str) -> Array:
    """Call a user's function on a copy of states, and copy its result."""
    try:
        answer = np.ma.filled(np.ma.asarray(function(states.copy(), *moment)), np.nan)
    except Exception as reason:
        first = str(reason).split("\n")[0][:200]
        raise ValueError(
            f"{label} failed for an array of shape {states.shape} ({type(reason).__name__}: {first}): expected a NumPy "
            "function of float64 states; where the model cannot go on, return NaN"
        ) from reason
    if answer.dtype.kind not in "iuf" or answer.shape != states.shape:
        raise ValueError(
            f"{label} gave an array of {answer.dtype}, shape {answer.shape}, for states of shape {states.shape}: "
            "expected real numbers of that shape"
        )
    return np.array(answer, dtype=np.float64)
