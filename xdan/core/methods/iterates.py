"""Iterates of a damped Gauss-Newton minimisation, one for each trajectory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Iterate:
    """State of the minimisation, trajectories first. A derived class adds the results of its linearisation.

    Attributes
    ----------
    weights : Tensor, shape (B, M)
        The best weights so far.
    target : Tensor, shape (B, M)
        The weights that the Gauss-Newton step leads to.
    cost, scale, count : Tensor, shape (B,)
        Cost at the weights; share of the step that is tried next; number of runs over the window so far.
    """

    weights: Tensor
    target: Tensor
    cost: Tensor
    scale: Tensor
    count: Tensor

    @property
    def step(self) -> Tensor:
        """Change of the weights that is tried next, shape (B, M)."""
        return self.scale[:, None] * (self.target - self.weights)

    def rows(self, index: Tensor) -> Self:
        """The iterates of some trajectories, selected by index or by flag."""
        if index.dtype != torch.bool and len(index) == len(self.cost):
            return self
        return replace(self, **{name: value[index] for name, value in vars(self).items()})

    def replaced(self, index: Tensor, by: Self) -> Self:
        """Iterates in which some trajectories are replaced."""
        others = vars(by)
        return replace(self, **{name: value.index_copy(0, index, others[name]) for name, value in vars(self).items()})

    def where(self, flag: Tensor, other: Self) -> Self:
        """The iterate itself where the flag is set, and the other iterate elsewhere."""
        if bool(flag.all()):
            return self
        others = vars(other)
        chosen = {
            name: torch.where(flag.reshape(-1, *(1 for _ in value.shape[1:])), value, others[name])
            for name, value in vars(self).items()
        }
        return replace(self, **chosen)

    def halved(self) -> Self:
        """The iterate with half of the step."""
        return replace(self, scale=self.scale / 2, count=self.count + 1)


AnIterate = TypeVar("AnIterate", bound=Iterate)


def minimised(
    at: AnIterate,
    linearised: Callable[[Tensor, Tensor, AnIterate], AnIterate],
    iterations: int,
    tolerance: float,
) -> tuple[AnIterate, Tensor, Tensor]:
    """Iterate from a first linearisation until every trajectory has converged or is lost.

    Parameters
    ----------
    at : Iterate
        The first iterate of all trajectories.
    linearised : callable
        linearised(index, weights, now) gives iterates at new weights (B', M), of the trajectories `index` (B',).
        `now` holds their present iterates.
    iterations : int
        Largest number of linearisations, including the first.
    tolerance : float
        A trajectory has converged if the root mean square of its step is below this.

    Returns
    -------
    at : Iterate
        The best of all iterates.
    weights : Tensor, shape (B, M)
        The target of the best iterate. Where several iterations did not converge, the weights of the best iterate.
    unconverged : Tensor of bool, shape (B,)
    """
    active = torch.arange(len(at.cost), device=at.cost.device)
    lost = ~at.cost.isfinite()
    for iteration in range(iterations):
        now = at.rows(active)
        going = (now.step.detach().square().mean(1).sqrt() >= tolerance) & ~lost[active]
        active, now = active[going], now.rows(going)
        if not len(active) or iteration == iterations - 1:
            break
        tried = linearised(active, now.weights + now.step, now)
        # If a step does not reduce the cost, it is halved: the linearisation does not hold so far away.
        slack = torch.finfo(tried.cost.dtype).eps ** 0.5 * now.cost.abs()
        at = at.replaced(active, tried.where(tried.cost <= now.cost + slack, now.halved()))
    unconverged = torch.zeros_like(lost).index_fill(0, active, True)
    # With one iteration the result is its target.
    stopped = unconverged if iterations > 1 else torch.zeros_like(unconverged)
    return at, torch.where(stopped[:, None], at.weights, at.target), unconverged
