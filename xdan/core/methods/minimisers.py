"""Minimisers of the 4D-Var cost: Gauss-Newton, and limited-memory BFGS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..observing import ObservingSystem
from .advancing import advance, advance_along

_MEMORY = 10  # pairs that L-BFGS remembers
_ARMIJO, _HALVINGS = 1e-4, 12


@dataclass(frozen=True)
class Window:
    """What 4D-Var fits: observations of shape (B, W, N), NaN where there are none, each after some model steps."""

    dynamics: Dynamics
    observing: ObservingSystem
    observation: Tensor
    steps: Sequence[int]

    def rows(self, rows: Tensor) -> Window:
        """Keep some of the trajectories."""
        return Window(self.dynamics, self.observing, self.observation[rows], self.steps)

    def misfits(self, x: Tensor) -> Tensor:
        """Whitened y - H M(x) at every time, shape (B, W, N)."""
        misfits = []
        for j, steps in enumerate(self.steps):
            x = advance(self.dynamics, x, steps)
            observed = ~self.observation[:, j].isnan()
            misfits.append(
                self.observing.whiten(self.observation[:, j].nan_to_num(0.0) - self.observing.observe(x), observed)
            )
        return torch.stack(misfits, 1)

    def linearised(self, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Misfits, (B, W N), and whitened derivatives of H M along directions, (B, M, W N)."""
        misfits, slopes = [], []
        for j, steps in enumerate(self.steps):
            x, directions = advance_along(self.dynamics, x, directions, steps)
            observed = ~self.observation[:, j].isnan()
            misfits.append(
                self.observing.whiten(self.observation[:, j].nan_to_num(0.0) - self.observing.observe(x), observed)
            )
            slopes.append(self.observing.whiten(self.observing.tangent(x, directions), observed))
        return torch.cat(misfits, 1), torch.cat(slopes, 2)


@dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended: states, iterations, and which trajectories did not converge; (B, N), (B,), (B,)."""

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
        On the root mean square step of v.
    limit : int
        Most iterations.
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
        # A step too far, and the run broke down: the trajectory is lost, the others go on.
        fine = (info == 0) & hessian.isfinite().all(2).all(1)
        new = torch.where(fine[:, None], new, torch.full_like(new, torch.nan))
        v = v.index_copy(0, rows, new)
        count = count + active
        moved = (new - now).detach().square().mean(1).sqrt()
        active = active.index_copy(0, rows, moved >= tolerance)  # neither do those that are lost go on
        if not bool(active.any()):
            break
    return Minimum(background + v @ factor.T, count, active)


def l_bfgs(window: Window, background: Tensor, factor: Tensor, tolerance: float, limit: int) -> Minimum:
    """As `gauss_newton`, by limited-memory BFGS with gradients from autodiff: memory linear in N.

    Every trajectory has its own curvature pairs and its own step length; one that has converged stays.
    """

    def cost_and_gradient(v: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = v.detach().requires_grad_()
            misfits = window.misfits(background.detach() + leaf @ factor.T)
            cost = 0.5 * (leaf.square().sum(1) + misfits.square().sum((1, 2)))
            (gradient,) = torch.autograd.grad(cost.sum(), leaf)
        return cost.detach(), gradient

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(1, keepdim=True)

    v = torch.zeros_like(background)
    cost, gradient = cost_and_gradient(v)
    active = torch.ones(len(v), dtype=torch.bool, device=v.device)
    count = v.new_zeros(len(v))
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(limit):
        direction, factors = gradient, []
        for s, y, rho in reversed(pairs):
            a = rho * dot(s, direction)
            factors.append(a)
            direction = direction - a * y
        if pairs:
            s, y, rho = pairs[-1]
            curvature = torch.where(rho > 0, 1 / (rho * dot(y, y)).clamp_min(1e-30), torch.ones_like(rho))
            direction = direction * curvature
        else:
            direction = direction / dot(gradient, gradient).sqrt().clamp_min(1.0)
        for (s, y, rho), a in zip(pairs, reversed(factors), strict=True):
            direction = direction + (a - rho * dot(y, direction)) * s
        descent = -dot(gradient, direction)
        direction = torch.where(descent < 0, -direction, -gradient)
        descent = torch.minimum(descent, -dot(gradient, gradient) * (descent >= 0))
        step = torch.ones_like(descent)
        searching = active.clone()
        new, new_cost, new_gradient = v, cost, gradient
        for _ in range(_HALVINGS):
            trial = torch.where(searching[:, None], v + step * direction, new)
            trial_cost, trial_gradient = cost_and_gradient(trial)
            enough = trial_cost <= cost + _ARMIJO * (step * descent)[:, 0]
            take = searching & enough
            new = torch.where(take[:, None], trial, new)
            new_cost = torch.where(take, trial_cost, new_cost)
            new_gradient = torch.where(take[:, None], trial_gradient, new_gradient)
            searching = searching & ~enough
            if not bool(searching.any()):
                break
            step = torch.where(searching[:, None], step / 2, step)
        s, y = new - v, new_gradient - gradient
        product = dot(s, y)
        rho = torch.where(product > 1e-12, 1 / product.clamp_min(1e-12), torch.zeros_like(product))
        pairs = [*pairs[1 - _MEMORY :], (s, y, rho)]
        moved = s.square().mean(1).sqrt()
        v, cost, gradient = new, new_cost, new_gradient
        count = count + active
        active = active & ~(moved < tolerance)
        if not bool(active.any()):
            break
    return Minimum(background + v @ factor.T, count, active)


MINIMISERS = {"gauss-newton": gauss_newton, "l-bfgs": l_bfgs}
