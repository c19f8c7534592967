"""Forecasts of flattened states, and forecasts of methods whose trajectories stand at different times."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..user_functions import in_transform
from .record import State

if TYPE_CHECKING:
    from .base import Method


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


def forecast_from(method: Method, state: State, dynamics: Dynamics, steps: int, clock: Tensor) -> State:
    """Forecast of a method, by a dynamics that stands at the time of each trajectory.

    A call of a model that depends on time has one time for all states. The trajectories may stand at different times,
    for example as segments of one long trajectory. Then the trajectories of each time are forecast together.

    Parameters
    ----------
    method : Method
    state : dict of Tensor
    dynamics : Dynamics
    steps : int
    clock : Tensor of int64, shape (B,)
        Model steps from the record's first analysis to the state. An autonomous model does not need them.
    """
    if dynamics.autonomous:
        return method.forecast(state, dynamics, steps)
    starts = clock.unique().tolist()
    if len(starts) == 1:
        return method.forecast(state, dynamics.from_step(starts[0]), steps)
    groups = [(clock == start).nonzero()[:, 0] for start in starts]
    parts = [
        method.forecast({name: value[rows] for name, value in state.items()}, dynamics.from_step(start), steps)
        for start, rows in zip(starts, groups, strict=True)
    ]
    back = torch.cat(groups).argsort()
    return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}
