"""Integrators: from a tendency to a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..checks import real

Tendency = Callable[[Tensor], Tensor]


def runge_kutta_4(tendency: Tendency, x: Tensor, timestep: float, *, pure: bool = False) -> Tensor:
    """Advance dx/dt = tendency(x) by one step of the classical fourth-order Runge-Kutta scheme.

    Parameters
    ----------
    tendency : callable
    x : Tensor, shape (..., *shape)
    timestep : float
    pure : bool
        Whether the tendency leaves its argument alone and returns a new tensor at every call. Otherwise states and
        tendencies are copied, as it may work in place or return a buffer of its own.
    """

    def kept(value: Tensor) -> Tensor:
        return value if pure else value.clone()

    k1 = kept(tendency(kept(x)))
    k2 = kept(tendency(torch.add(x, k1, alpha=timestep / 2)))
    k3 = kept(tendency(torch.add(x, k2, alpha=timestep / 2)))
    k4 = tendency(torch.add(x, k3, alpha=timestep))
    return x + timestep / 6 * (k1 + 2 * (k2 + k3) + k4)


def accurate_timestep(value: Any) -> float:
    """Take a step of a Lorenz model, beyond 0.05 of which Runge-Kutta 4 is inaccurate."""
    return real("timestep", value, above=0.0, most=0.05)
