"""Losses through the assimilation cycles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .rollout import Rollout

_TINY = 1e-30  # keeps the root's gradient finite at zero, in any units


def squared_error(analysis: Tensor, truth: Tensor) -> Tensor:
    """Mean square over the state, Eq. 4 up to a constant factor; (B, T, N) to (B, T)."""
    return (analysis - truth).square().mean(-1)


def root_squared_error(analysis: Tensor, truth: Tensor) -> Tensor:
    """Root mean square over the state, the score itself: large errors weigh less than in Eq. 4."""
    return (squared_error(analysis, truth) + _TINY).sqrt()


def crps(members: Tensor, truth: Tensor) -> Tensor:
    """Fair continuous ranked probability score, mean over the state; (B, T, M, N), (B, T, N) to (B, T)."""
    m = members.shape[2]
    ordered = members.sort(2).values
    # sum_ij |x_i - x_j| = 2 sum_k (2 k - M - 1) x_(k).
    rank = torch.arange(1, m + 1, dtype=members.dtype, device=members.device)[:, None]
    between = (2 * (2 * rank - m - 1) * ordered).sum(2) / (m * (m - 1))
    return ((members - truth[:, :, None]).abs().mean(2) - 0.5 * between).mean(-1)


def energy_score(members: Tensor, truth: Tensor) -> Tensor:
    """Fair energy score, distances being root mean squares over the state; (B, T, M, N), (B, T, N) to (B, T)."""
    m = members.shape[2]

    def distance(difference: Tensor) -> Tensor:
        return (difference.square().mean(-1) + _TINY).sqrt()

    to_truth = distance(members - truth[:, :, None]).mean(2)
    first, second = torch.triu_indices(m, m, 1, device=members.device)
    between = distance(members[:, :, first] - members[:, :, second]).mean(2)
    return to_truth - 0.5 * between


@dataclass(frozen=True)
class Objective:
    """A loss and what it needs.

    Attributes
    ----------
    loss : callable, or None
        From a rollout to losses (B, T). None: nothing is cycled, a teacher's P_a is imitated, see `imitation`.
    truth, members, divergence : bool
        Whether it needs the truth, members, or the derivative of the analysis by the observations.
    power : int
        Of the observation error in the loss's gradient, of an analysis whose error is of that size.
    """

    loss: Callable[[Rollout], Tensor] | None
    truth: bool = True
    members: bool = False
    divergence: bool = False
    power: int = 0

    @property
    def covariance(self) -> bool:
        """Whether it compares covariances."""
        return self.loss is None


def _members(rollout: Rollout) -> Tensor:
    assert rollout.members is not None
    return rollout.members


def _corrected(rollout: Rollout) -> Tensor:
    """Misfit of the analysis to the observations that made it, corrected for having seen them."""
    assert rollout.divergence is not None
    return rollout.misfit(rollout.analysis) + 2 * rollout.divergence / rollout.window.observation.shape[-1]


OBJECTIVES: dict[str, Objective] = {
    # Supervised, Eq. 4 and its root.
    "mse": Objective(lambda p: squared_error(p.analysis, p.truth()), power=1),
    "rmse": Objective(lambda p: root_squared_error(p.analysis, p.truth())),
    # Strictly proper scores of members: Gneiting and Raftery (2007), Ferro (2014) for the fair forms.
    "crps": Objective(lambda p: crps(_members(p), p.truth()), members=True),
    "energy": Objective(lambda p: energy_score(_members(p), p.truth()), members=True),
    # Observations only: the forecast to the next ones; or those of the same time, out of sample.
    "forecast": Objective(lambda p: p.misfit(p.forecast), truth=False, power=-1),
    "analysis": Objective(_corrected, truth=False, divergence=True, power=-1),
    "covariance": Objective(None),
}
