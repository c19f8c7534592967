"""Strong-constraint 4D-Var over a sliding window, and an ensemble of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..observing import ErrorCovariance
from ..random import Purpose
from ..tangent import push_forward
from .base import Method, Record, State, advance, register_method
from .ensemble import Labelled
from .variational import climate_moments

SOLVERS = ("gauss-newton", "l-bfgs")
SCALES = tuple(10.0 ** (-k / 4) for k in range(-1, 14))
_WINDOW_STATE = ("x", "begin", "steps", "window", "smoothed", "iterations", "unconverged")
_MEMORY = 10  # pairs that L-BFGS remembers
_ARMIJO, _HALVINGS = 1e-4, 12


@dataclass(frozen=True)
class Window:
    """What 4D-Var fits: observations of shape (B, W, N), NaN where there are none, each after some model steps."""

    dynamics: Dynamics
    error: ErrorCovariance
    observation: Tensor
    steps: Sequence[int]

    def rows(self, rows: Tensor) -> Window:
        """Keep some of the trajectories."""
        return Window(self.dynamics, self.error, self.observation[rows], self.steps)

    def misfits(self, x: Tensor) -> Tensor:
        """Whitened y - H M(x) at every time, shape (B, W, N)."""
        found = []
        for j, steps in enumerate(self.steps):
            x = advance(self.dynamics, x, steps)
            observed = ~self.observation[:, j].isnan()
            found.append(self.error.whiten(self.observation[:, j].nan_to_num(0.0) - x, observed))
        return torch.stack(found, 1)

    def linearised(self, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Misfits, (B, W N), and whitened derivatives of H M along directions, (B, M, W N)."""
        misfits, slopes = [], []
        for j, steps in enumerate(self.steps):
            if steps:
                x, directions = push_forward(lambda z, n=steps: advance(self.dynamics, z, n), x, directions)  # type: ignore[misc]
            observed = ~self.observation[:, j].isnan()
            misfits.append(self.error.whiten(self.observation[:, j].nan_to_num(0.0) - x, observed))
            slopes.append(self.error.whiten(directions, observed))
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


_MINIMISERS = {"gauss-newton": gauss_newton, "l-bfgs": l_bfgs}


@register_method("4d-var")
class FourDVar(Method):
    """Strong-constraint 4D-Var, its window of several intervals shifted by one a cycle.

    The background of a window is the state at its start on the trajectory that the last window found. The analysis
    is the end of the new trajectory.

    Parameters
    ----------
    window : int
        Intervals, at least 1; each ends with the observations of its time.
    background : {"climatology"} or array of shape (N, N)
        B, the covariance of the dynamics' climatology or given.
    scale : float or "tune"
        Factor of B.
    solver : {"gauss-newton", "l-bfgs"}
        With the whole tangent linear model, N directions; or with gradients alone, for large states.
    tolerance : float
        On the root mean square step of the control variable L^{-1} (x - x_b), B = L L^T.
    iterations : int
        Limit; a trajectory that reaches it is flagged `unconverged` from then on.

    Raises
    ------
    ValueError
        For an unknown solver or background, sizes or numbers that are not positive.

    References
    ----------
    Le Dimet and Talagrand (1986), doi:10.3402/tellusa.v38i2.11706; Courtier et al. (1994),
    doi:10.1002/qj.49712051912.
    """

    outputs: ClassVar[dict[str, str]] = {"smoothed": "site", "iterations": "cycle", "unconverged": "cycle"}
    tunable: ClassVar[dict[str, tuple[float, ...]]] = {"scale": SCALES}

    def __init__(
        self,
        window: int = 4,
        background: Any = "climatology",
        scale: float | str = "tune",
        solver: str = "gauss-newton",
        tolerance: float = 1e-3,
        iterations: int = 10,
    ) -> None:
        if window < 1:
            raise ValueError(f"window={window}: expected at least 1 interval")
        if isinstance(background, str) and background != "climatology":
            raise ValueError(f"background={background!r}: expected 'climatology' or a matrix of shape (N, N)")
        if scale != "tune" and not (isinstance(scale, (int, float)) and scale > 0):
            raise ValueError(f"scale={scale!r}: expected 'tune' or a positive number")
        if solver not in SOLVERS:
            raise ValueError(f"solver={solver!r}: expected one of {SOLVERS}")
        if not tolerance > 0 or iterations < 1:
            raise ValueError(f"tolerance={tolerance}, iterations={iterations}: expected positive numbers")
        self.window, self.background, self.scale, self.solver = int(window), background, scale, solver
        self.tolerance, self.iterations = float(tolerance), int(iterations)
        self._root: Tensor | None = None
        self._mean: Tensor | None = None

    def parameters(self) -> dict[str, Any]:
        """Plain JSON parameters."""
        given = self.background if isinstance(self.background, str) else torch.as_tensor(self.background).tolist()
        names = ("window", "scale", "solver", "tolerance", "iterations")
        return {"background": given, **{name: getattr(self, name) for name in names}}

    def prepare(self, record: Record) -> Method:
        """Factor B, and tune its scale.

        Raises
        ------
        ValueError
            If the record is shorter than the window, or a given B does not fit or is not positive definite.
        """
        times = record.observation.shape[1]
        if times <= self.window:
            raise ValueError(f"window={self.window}: the record has {times} times; expected more than the window")
        ready = copy.copy(self)
        ready._root, ready._mean = background_root(self.background, record)
        return super(FourDVar, ready).prepare(record)

    def start(self, record: Record) -> State:
        """Begin at the climatological mean; the window has no length yet."""
        assert self._mean is not None
        return self.window_state(self._mean.expand(record.observation[:, 0].shape))

    def window_state(self, x: Tensor) -> State:
        """State of a window that starts at x, (B, N)."""
        zero = x.new_zeros(len(x))
        return {
            "x": x,
            "begin": x,
            "steps": torch.zeros(len(x), self.window, dtype=torch.int64, device=x.device),
            "window": x.new_full((len(x), self.window, x.shape[1]), torch.nan),
            "smoothed": torch.full_like(x, torch.nan),
            "iterations": zero,
            "unconverged": zero,
        }

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the state, and the start of the window where it is full."""
        newest = torch.full_like(state["steps"][:, :1], steps)
        return {
            **state,
            "x": advance(dynamics, state["x"], steps),
            "begin": advance(dynamics, state["begin"], int(state["steps"][0, 0])),
            "steps": torch.cat([state["steps"][:, 1:], newest], 1),
        }

    def first(self, state: State, observation: Tensor, observed: Tensor, error: ErrorCovariance) -> State:
        """The climate's whole covariance is the error of its mean."""
        return self._fit(state, observation, observed, error, 1.0)

    def analyse(self, state: State, observation: Tensor, observed: Tensor, error: ErrorCovariance) -> State:
        """Fit the observations of the window."""
        return self._fit(state, observation, observed, error, self.number("scale"))

    def _fit(self, state: State, observation: Tensor, observed: Tensor, error: ErrorCovariance, scale: float) -> State:
        assert self._root is not None
        newest = torch.where(observed, observation, torch.full_like(observation, torch.nan))
        window = torch.cat([state["window"][:, 1:], newest[:, None]], 1)
        steps = state["steps"][0].tolist()
        minimise = _MINIMISERS[self.solver]
        problem = Window(self.dynamics, error, window, steps)
        found = minimise(problem, state["begin"], math.sqrt(scale) * self._root, self.tolerance, self.iterations)
        return {
            **state,
            "x": advance(self.dynamics, found.x, sum(steps)),
            "begin": found.x,
            "window": window,
            "smoothed": found.x if steps[0] else torch.full_like(found.x, torch.nan),
            "iterations": found.iterations,
            "unconverged": torch.maximum(state["unconverged"], found.unconverged.to(found.iterations.dtype)),
        }

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """State at the start of the window, iterations and the flag."""
        return {name: state[name] for name in self.outputs}


def background_root(background: Any, record: Record) -> tuple[Tensor, Tensor]:
    """Cholesky factor of B, (N, N), and the climatological mean, (N,)."""
    like = record.observation
    mean, covariance = climate_moments(record.dynamics, record.seed, like)
    if not isinstance(background, str):
        covariance = torch.as_tensor(background).to(like)
        if covariance.shape != (len(mean), len(mean)):
            raise ValueError(f"background has shape {tuple(covariance.shape)}: expected ({len(mean)}, {len(mean)})")
    factor, info = torch.linalg.cholesky_ex(covariance)
    if int(info):
        raise ValueError("the background error covariance is not positive definite; expected one of full rank")
    return factor, mean


@register_method("eda")
class EnsembleOf4DVar(Labelled):
    """Ensemble of 4D-Vars, each with observations perturbed for itself: an analysis with a spread.

    Parameters
    ----------
    members : int
    window, background, scale, solver, tolerance, iterations
        As for "4d-var"; the scale is a number.

    References
    ----------
    Isaksen et al. (2010), ECMWF Technical Memorandum 636.
    """

    outputs: ClassVar[dict[str, str]] = {**Labelled.outputs, "iterations": "cycle", "unconverged": "cycle"}

    def __init__(
        self,
        members: int = 10,
        window: int = 4,
        background: Any = "climatology",
        scale: float | str = 0.1,
        solver: str = "gauss-newton",
        tolerance: float = 1e-3,
        iterations: int = 10,
    ) -> None:
        super().__init__(members)
        if isinstance(scale, str):
            raise ValueError("scale='tune' goes with '4d-var': tune that, and give its scale here")
        self._inner = FourDVar(window, background, scale, solver, tolerance, iterations)

    def parameters(self) -> dict[str, Any]:
        """Plain JSON parameters."""
        return {"members": self.members, **self._inner.parameters()}

    def prepare(self, record: Record) -> Method:
        """Prepare the 4D-Var that the members share."""
        ready = super().prepare(record)
        assert isinstance(ready, EnsembleOf4DVar)
        inner = self._inner.prepare(record)
        assert isinstance(inner, FourDVar)
        ready._inner = inner
        return ready

    def start(self, record: Record) -> State:
        """Members from the climatology, a window each."""
        state = super().start(record)
        del state["noise"]  # every analysis draws its own
        inner = self._inner.window_state(state["x"].flatten(0, 1))
        return {**self._outside(inner), **state}

    def _inside(self, state: State) -> State:
        """Members as trajectories of their own."""
        return {name: state[name].flatten(0, 1) for name in _WINDOW_STATE}

    def _outside(self, state: State) -> State:
        return {name: value.unflatten(0, (-1, self.members)) for name, value in state.items()}

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance all members and their windows."""
        return {**state, **self._outside(self._inner.forecast(self._inside(state), dynamics, steps))}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, error: ErrorCovariance) -> State:
        """One 4D-Var for each member, with perturbations of zero mean."""
        return self._fit(state, observation, observed, error, self._inner.analyse)

    def first(self, state: State, observation: Tensor, observed: Tensor, error: ErrorCovariance) -> State:
        """The same, with the climate's whole covariance."""
        return self._fit(state, observation, observed, error, self._inner.first)

    def _fit(self, state: State, observation: Tensor, observed: Tensor, error: ErrorCovariance, fit: Any) -> State:
        x, m = state["x"], self.members
        noise = error.color(self.draw(state, Purpose.PERTURBATION, x[0].numel()).reshape(x.shape))
        noise = (noise - noise.mean(1, keepdim=True)) * math.sqrt(m / (m - 1))
        perturbed = (observation[:, None] + noise).flatten(0, 1)
        after = fit(self._inside(state), perturbed, observed.repeat_interleave(m, 0), error)
        return {**state, **self._outside(after), "cycle": state["cycle"] + 1}

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Spread, and the members' mean number of iterations and worst flag."""
        iterations, flag = state["iterations"].mean(1), state["unconverged"].amax(1)
        return {**super().analysis_outputs(state), "iterations": iterations, "unconverged": flag}
