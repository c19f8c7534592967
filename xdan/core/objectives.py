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
) -> tuple[Tensor, State]:
    """Analyses of a window, differentiable through its cycles, Eq. 2, 3 and 22.

    Parameters
    ----------
    method : DataAssimilationNetwork
    window : Window
    state : dict of Tensor, or None where the trajectories start
        Analysis that the previous window left, detached; `alive` marks the trajectories to carry on, the others
        start anew.

    Returns
    -------
    analysis : Tensor, shape (B, T, N)
    state : dict of Tensor
        Detached analysis state at the window's end, `alive` where it is finite.
    """
    alive = None if state is None else state["alive"]
    carried = None if state is None else {name: value for name, value in state.items() if name != "alive"}
    analyses = []
    for k, steps in enumerate(window.steps):
        observation, observed = split_observation(window.observation[:, k])
        if k == 0 and (alive is None or not bool(alive.all())):
            begun = method.first(method.start_like(observation), observation, observed, error)
        if k == 0 and carried is None:
            carried = begun
        else:
            assert carried is not None
            carried = method.analyse(method.forecast(carried, dynamics, steps), observation, observed, error)
            if k == 0 and alive is not None and not bool(alive.all()):
                carried = {
                    name: torch.where(alive.reshape(-1, *(1 for _ in value.shape[1:])), value, begun[name])
                    for name, value in carried.items()
                }
        analyses.append(carried["x"])
    assert carried is not None
    end = {name: value.detach() for name, value in carried.items()}
    end["alive"] = torch.isfinite(end["x"]).all(1)
    return torch.stack(analyses, 1), end
