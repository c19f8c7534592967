"""Losses through the assimilation cycles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

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

    def rows(self, rows: slice) -> Window:
        """Keep some of the trajectories."""
        return replace(self, truth=self.truth[rows], observation=self.observation[rows])


def squared_error(analysis: Tensor, truth: Tensor) -> Tensor:
    """Mean square over the state, Eq. 4 up to a constant factor; (B, T, N) to (B, T)."""
    return (analysis - truth).square().mean(-1)


def root_squared_error(analysis: Tensor, truth: Tensor) -> Tensor:
    """Root mean square over the state, the score itself: large errors weigh less than in Eq. 4."""
    return (squared_error(analysis, truth) + 1e-8).sqrt()


OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": squared_error, "rmse": root_squared_error}


def through_the_cycles(
    method: DataAssimilationNetwork,
    dynamics: Dynamics,
    error: ErrorCovariance,
    window: Window,
    state: State | None,
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

    Returns
    -------
    analysis : Tensor, shape (B, T, N)
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
            state = method.analyse(method.forecast(state, dynamics, steps), observation, observed, error)
            lost = ~((state["x"].detach() - window.truth[:, k]).square().mean(1) < limit)
        analyses.append(state["x"])
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
