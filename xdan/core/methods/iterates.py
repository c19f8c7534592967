"""Iterates of a damped Gauss-Newton minimisation, one for each trajectory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Iterate:
    """Where the minimisation stands, trajectories first; a derived class adds what its linearisation gives.

    Attributes
    ----------
    weights : Tensor, shape (B, M)
        The best so far.
    target : Tensor, shape (B, M)
        Where Gauss-Newton goes from the weights.
    cost, scale, count : Tensor, shape (B,)
        Cost at the weights, the share of the step to try next, and the runs over the window so far.
    """

    weights: Tensor
    target: Tensor
    cost: Tensor
    scale: Tensor
    count: Tensor

    @property
    def step(self) -> Tensor:
        """What to add to the weights next, shape (B, M)."""
        return self.scale[:, None] * (self.target - self.weights)

    def rows(self, index: Tensor) -> Self:
        """Some trajectories, by index or by flag."""
        if index.dtype != torch.bool and len(index) == len(self.cost):
            return self
        return replace(self, **{name: value[index] for name, value in vars(self).items()})

    def replaced(self, index: Tensor, by: Self) -> Self:
        """Some trajectories put back."""
        others = vars(by)
        return replace(self, **{name: value.index_copy(0, index, others[name]) for name, value in vars(self).items()})

    def where(self, flag: Tensor, other: Self) -> Self:
        """Keep this one where the flag is set."""
        if bool(flag.all()):
            return self
        others = vars(other)
        chosen = {
            name: torch.where(flag.reshape(-1, *(1 for _ in value.shape[1:])), value, others[name])
            for name, value in vars(self).items()
        }
        return replace(self, **chosen)

    def halved(self) -> Self:
        """Try half of the step."""
        return replace(self, scale=self.scale / 2, count=self.count + 1)


AnIterate = TypeVar("AnIterate", bound=Iterate)


def minimised(
    at: AnIterate,
    linearised: Callable[[Tensor, Tensor, AnIterate], AnIterate],
    iterations: int,
    tolerance: float,
) -> tuple[AnIterate, Tensor, Tensor]:
    """Go on from a first linearisation until every trajectory has converged, or is lost.

    Parameters
    ----------
    at : Iterate
        Of all trajectories.
    linearised : callable
        linearised(index, weights, now): the iterates at other weights (B', M), of the trajectories `index` (B',) whose
        iterates are `now`.
    iterations : int
        Linearisations at most, the first among them.
    tolerance : float
        Root mean square of a step, below which a trajectory has converged.

    Returns
    -------
    at : Iterate
        The best of all iterates.
    weights : Tensor, shape (B, M)
        Its target; where more than one iteration did not converge, its own weights.
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
        # A step that does not bring the cost down is halved: the tangent was followed too far.
        slack = torch.finfo(tried.cost.dtype).eps ** 0.5 * now.cost.abs()
        at = at.replaced(active, tried.where(tried.cost <= now.cost + slack, now.halved()))
    unconverged = torch.zeros_like(lost).index_fill(0, active, True)
    # A single pass goes to its target.
    stopped = unconverged if iterations > 1 else torch.zeros_like(unconverged)
    return at, torch.where(stopped[:, None], at.weights, at.target), unconverged
