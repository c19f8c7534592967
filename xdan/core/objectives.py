"""Losses through the assimilation cycles."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dynamics import Dynamics
from .methods import DataAssimilationNetwork, State
from .observing import ErrorCovariance, split_observation


@dataclass(frozen=True)
class Window:
    """A stretch of consecutive cycles of some trajectories.

    Attributes
    ----------
    truth, observation : Tensor, shape (B, T, N)
    steps : tuple of int, length T
        Model steps before each analysis.
    group : int
        Which set of trajectories; a set's windows follow one another in time.
    fresh : bool
        Whether the set starts anew with this window.
    """

    truth: Tensor
    observation: Tensor
    steps: tuple[int, ...]
    group: int = 0
    fresh: bool = False


def squared_error(analysis: Tensor, truth: Tensor) -> Tensor:
    """Mean square over the state, Eq. 4 up to a constant factor; (B, T, N) to (B, T)."""
    return (analysis - truth).square().mean(-1)


def root_squared_error(analysis: Tensor, truth: Tensor) -> Tensor:
    """Root mean square over the state, the score itself: large errors weigh less than in Eq. 4."""
    return (squared_error(analysis, truth) + 1e-8).sqrt()


OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": squared_error, "rmse": root_squared_error}


class CappedGradient(torch.autograd.Function):
    """Identity whose gradient is shortened, row by row, to a norm; a row that is not finite becomes zero.

    A trajectory on the verge of divergence has a gradient that grows without bound from cycle to cycle, and would
    drown those of all others in the batch.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cap: float) -> Tensor:
        """Pass x on."""
        ctx.cap = cap
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Shorten the rows."""
        norm = torch.linalg.vector_norm(gradient, dim=tuple(range(1, gradient.ndim)), keepdim=True)
        factor = (ctx.cap / norm.clamp_min(1e-30)).clamp_max(1.0)
        return torch.where(norm.isfinite(), gradient * factor, 0.0), None


def through_the_cycles(
    method: DataAssimilationNetwork,
    dynamics: Dynamics,
    error: ErrorCovariance,
    window: Window,
    state: State | None,
    cap: float = math.inf,
) -> tuple[Tensor, Tensor, State]:
    """Analyses of a window, differentiable through its cycles, Eq. 2, 3 and 22.

    A trajectory whose analysis is as wrong as a random state of the climate is lost: it starts anew from the
    observations of that time, and no gradient passes from there to what comes after.

    Parameters
    ----------
    method : DataAssimilationNetwork
    dynamics : Dynamics
    error : ErrorCovariance
    window : Window
    state : dict of Tensor, or None where the trajectories start
        Analysis that the previous window left.
    cap : float
        Bound on the norm of the gradient that a trajectory passes back from one cycle to the cycle before.

    Returns
    -------
    analysis : Tensor, shape (B, T, N)
        The mean, where the method carries members.
    lost : Tensor of bool, shape (B, T)
    state : dict of Tensor
        Analysis state at the window's end, detached.
    """
    analyses, losses = [], []
    limit = method.network.state_std**2
    for k, steps in enumerate(window.steps):
        observation, observed = split_observation(window.observation[:, k])
        if state is None:
            state = method.first(method.start_like(observation), observation, observed, error)
            lost = torch.zeros(len(observation), dtype=torch.bool, device=observation.device)
        else:
            if math.isfinite(cap) and k > 0:
                state = {name: CappedGradient.apply(v, cap) for name, v in state.items()}  # type: ignore[no-untyped-call]
            state = method.analyse(method.forecast(state, dynamics, steps), observation, observed, error)
            lost = ~((method.mean(state).detach() - window.truth[:, k]).square().mean(1) < limit)
        analyses.append(method.mean(state))
        losses.append(lost)
        if bool(lost.any()):
            anew = method.first(method.start_like(observation), observation, observed, error)
            state = {
                name: torch.where(lost.reshape(-1, *(1 for _ in value.shape[1:])), anew[name], value)
                for name, value in state.items()
            }
    assert state is not None
    end = {name: value.detach() for name, value in state.items()}
    return torch.stack(analyses, 1), torch.stack(losses, 1), end
