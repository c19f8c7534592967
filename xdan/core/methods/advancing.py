"""Flattened states, advanced by a dynamics that knows their shape."""

from __future__ import annotations

from torch import Tensor

from ..dynamics import Dynamics
from ..user_functions import in_transform


def advance(dynamics: Dynamics, x: Tensor, steps: int) -> Tensor:
    """Advance flattened states of shape (..., N)."""
    if steps == 0:
        return x
    if not in_transform(x):
        dynamics.vet()
    return dynamics.advance(x.reshape(*x.shape[:-1], *dynamics.shape), steps).reshape(x.shape)


def advance_along(dynamics: Dynamics, x: Tensor, directions: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Advance flattened states (B, N), and directions (B, M, N) at them by the tangent linear model."""
    if steps == 0:
        return x, directions
    if not in_transform(x):
        dynamics.vet()
    shape = dynamics.shape
    after, pushed = dynamics.advance_along(x.unflatten(1, shape), directions.unflatten(2, shape), steps)
    return after.flatten(1), pushed.flatten(2)
