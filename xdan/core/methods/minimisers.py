"""Minimisers of the 4D-Var cost: Gauss-Newton, and limited-memory BFGS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..observing import ObservingSystem, split_observation
from .advancing import advance, advance_along

_MEMORY = 10  # number of pairs that L-BFGS remembers
_ARMIJO = 1e-4  # smallest decrease of the cost that a step must bring, as a share of the predicted decrease
_TRIALS = 12  # number of steps that a line search tries; each is half of the previous one
_LEAST_CURVATURE = 1e-12  # smallest relative curvature of a pair that L-BFGS uses


@dataclass(frozen=True)
class Window:
    """The observations that 4D-Var fits: shape (B, W, P), NaN where there are none. Each has its number of model steps.

    The dynamics stands at the window's start. `kept`, (B, W, P, Q), holds the values of H and R that differ in time, if
    there are any.
    """

    dynamics: Dynamics
    observing: ObservingSystem
    observation: Tensor
    steps: Sequence[int]
    kept: Tensor | None = None

    def rows(self, rows: Tensor) -> Window:
        """The window of some of the trajectories."""
        return replace(self, observation=self.observation[rows], kept=None if self.kept is None else self.kept[rows])

    def _observing_at(self, j: int) -> ObservingSystem:
        """H and R of time j."""
        return self.observing.kept_before(None if self.kept is None else self.kept[:, j])

    def misfits(self, x: Tensor) -> Tensor:
        """Whitened y - H M(x) at every time, shape (B, W, P)."""
        misfits = []
        for j, (dynamics, steps) in enumerate(self._legs()):
            x = advance(dynamics, x, steps)
            misfits.append(self._misfit(x, j))
        return torch.stack(misfits, 1)

    def _legs(self) -> Iterator[tuple[Dynamics, int]]:
        """For each interval, the dynamics at its beginning, and its model steps."""
        begins = accumulate(self.steps, initial=self.dynamics.model_step)
        return ((self.dynamics.from_step(begin), steps) for begin, steps in zip(begins, self.steps, strict=False))

    def _misfit(self, x: Tensor, j: int) -> Tensor:
        """Whitened y - H(x) at time j, (B, P)."""
        observation, observed = split_observation(self.observation[:, j])
        observing = self._observing_at(j)
        return observing.whiten(observation - observing.observe(x), observed)

    def linearised(self, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Misfits, (B, W P), and whitened derivatives of H M along directions, (B, M, W P)."""
        misfits, slopes = [], []
        for j, (dynamics, steps) in enumerate(self._legs()):
            x, directions = advance_along(dynamics, x, directions, steps)
            misfits.append(self._misfit(x, j))
            observed = ~self.observation[:, j].isnan()
            observing = self._observing_at(j)
            slopes.append(observing.whiten(observing.tangent(x, directions), observed))
        return torch.cat(misfits, 1), torch.cat(slopes, 2)


@dataclass(frozen=True)
class Minimum:
    """Result of a minimisation: states (B, N), numbers of iterations (B,), trajectories that did not converge (B,)."""

    x: Tensor
    iterations: Tensor
    unconverged: Tensor


def gauss_newton(window: Window, background: Tensor, factor: Tensor, tolerance: float, limit: int) -> Minimum:
    """Minimise |v|^2 / 2 + |misfits of x_b + L v|^2 / 2 by Gauss-Newton with the whole tangent linear model.

    Parameters
    ----------
    background : Tensor, shape (B, N)
    factor : Tensor, shape (N, N)
        L, with L L^T the background error covariance.
    tolerance : float
        The minimisation stops if the root mean square step of v is below this.
    limit : int
        Largest number of iterations.
    """
    v = torch.zeros_like(background)
    size = v.shape[1]
    identity = torch.eye(size, dtype=v.dtype, device=v.device)
    active = torch.ones(len(v), dtype=torch.bool, device=v.device)
    count = v.new_zeros(len(v))
    for _ in range(limit):
        rows = active.nonzero()[:, 0]
        part, now = window.rows(rows), v[rows]
        x = background[rows] + now @ factor.T
        misfits, slopes = part.linearised(x, factor.T.expand(len(x), size, size).contiguous())
        hessian = identity + slopes @ slopes.mT
        target = misfits + (now[:, None] @ slopes)[:, 0]
        new, info = torch.linalg.solve_ex(hessian, (slopes @ target[..., None])[..., 0])
        # If a step was too large and the model broke down, the trajectory is lost; the other trajectories go on.
        fine = (info == 0) & hessian.isfinite().all(2).all(1)
        new = torch.where(fine[:, None], new, torch.full_like(new, torch.nan))
        v = v.index_copy(0, rows, new)
        count = count + active
        moved = (new - now).detach().square().mean(1).sqrt()
        active = active.index_copy(0, rows, moved >= tolerance)  # False for lost trajectories too, as NaN >= x is False
        if not bool(active.any()):
            break
    return Minimum(background + v @ factor.T, count, active)


def l_bfgs(window: Window, background: Tensor, factor: Tensor, tolerance: float, limit: int) -> Minimum:
    """The minimisation of `gauss_newton`, by limited-memory BFGS with gradients from autodiff: memory linear in N.

    Each trajectory has its curvature pairs and its step length. A trajectory that has converged does not change.

    References
    ----------
    Nocedal and Wright (2006), Numerical Optimization, Algorithm 7.4.
    """

    def cost_and_gradient(v: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = v.detach().requires_grad_()
            misfits = window.misfits(background.detach() + leaf @ factor.T)
            cost = 0.5 * (leaf.square().sum(1) + misfits.square().sum((1, 2)))
            (gradient,) = torch.autograd.grad(cost.sum(), leaf)
        return cost.detach(), gradient

    v = torch.zeros_like(background)
    cost, gradient = cost_and_gradient(v)
    active = torch.ones(len(v), dtype=torch.bool, device=v.device)
    count = v.new_zeros(len(v))
    pairs: list[_Pair] = []
    for _ in range(limit):
        direction, slope = _descent(gradient, pairs)
        new, new_cost, new_gradient = _line_search(cost_and_gradient, v, cost, gradient, direction, slope, active)
        s, y = new - v, new_gradient - gradient
        curvature = _dot(s, y)
        rho = torch.where(
            curvature > _LEAST_CURVATURE, 1 / curvature.clamp_min(_LEAST_CURVATURE), torch.zeros_like(curvature)
        )
        pairs = [*pairs[1 - _MEMORY :], (s, y, rho)]
        moved = s.square().mean(1).sqrt()
        v, cost, gradient = new, new_cost, new_gradient
        count = count + active
        active = active & ~(moved < tolerance)
        if not bool(active.any()):
            break
    return Minimum(background + v @ factor.T, count, active)


_Pair = tuple[Tensor, Tensor, Tensor]
"""A step s (B, N), the change y (B, N) of the gradient along it, and rho = 1 / s^T y (B, 1), or 0 to leave it out."""


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1, keepdim=True)


def _descent(gradient: Tensor, pairs: Sequence[_Pair]) -> tuple[Tensor, Tensor]:
    """Direction of descent (B, N) by the two-loop recursion over the pairs, and the cost's slope along it (B, 1)."""
    direction, factors = gradient, []
    for s, y, rho in reversed(pairs):
        a = rho * _dot(s, direction)
        factors.append(a)
        direction = direction - a * y
    if pairs:
        s, y, rho = pairs[-1]
        scale = torch.where(rho > 0, 1 / (rho * _dot(y, y)).clamp_min(1e-30), torch.ones_like(rho))
        direction = direction * scale
    else:
        direction = direction / _dot(gradient, gradient).sqrt().clamp_min(1.0)
    for (s, y, rho), a in zip(pairs, reversed(factors), strict=True):
        direction = direction + (a - rho * _dot(y, direction)) * s
    slope = -_dot(gradient, direction)
    # If the recursion does not give a direction of descent, take the steepest descent.
    direction = torch.where(slope < 0, -direction, -gradient)
    return direction, torch.minimum(slope, -_dot(gradient, gradient) * (slope >= 0))


def _line_search(
    cost_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]],
    v: Tensor,
    cost: Tensor,
    gradient: Tensor,
    direction: Tensor,
    slope: Tensor,
    active: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Halve the step of the active trajectories until the cost falls enough; returns v, cost and gradient there."""
    step = torch.ones_like(slope)
    searching = active.clone()
    new, new_cost, new_gradient = v, cost, gradient
    for _ in range(_TRIALS):
        trial = torch.where(searching[:, None], v + step * direction, new)
        trial_cost, trial_gradient = cost_and_gradient(trial)
        enough = trial_cost <= cost + _ARMIJO * (step * slope)[:, 0]
        take = searching & enough
        new = torch.where(take[:, None], trial, new)
        new_cost = torch.where(take, trial_cost, new_cost)
        new_gradient = torch.where(take[:, None], trial_gradient, new_gradient)
        searching = searching & ~enough
        if not bool(searching.any()):
            break
        step = torch.where(searching[:, None], step / 2, step)
    return new, new_cost, new_gradient


MINIMISERS = {"gauss-newton": gauss_newton, "l-bfgs": l_bfgs}
