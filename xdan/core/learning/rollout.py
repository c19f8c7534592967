"""A window of cycles, run in a differentiable way, so that training can go back through it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..dynamics import Dynamics
from ..local_roots import LocalRoot
from ..methods import DataAssimilationNetwork, State
from ..methods.advancing import forecast_from
from ..observing import ObservingSystem, split_observation


@dataclass(frozen=True)
class Window:
    """A stretch of consecutive cycles of some trajectories.

    Attributes
    ----------
    truth : Tensor, shape (B, T, N), or None
        The truth; None if the objective does not need it.
    observation : Tensor, shape (B, T, N)
    steps : tuple of int, length T
        Model steps before each analysis.
    group : int
        Number of the group of trajectories. Windows of one group follow one another in time.
    fresh : bool
        Whether the group starts anew with this window.
    start : int
        Index of the first time, for observation errors that differ in time.
    forecast : Tensor, shape (B, T, N), or None
        A teacher's forecasts. Every analysis starts from these instead of the network's forecast.
    covariance : Tensor, shape (B, T, N, N), or None
        Covariances of a teacher's analyses, which are to be imitated.
    clock : Tensor of int64, shape (B,), or None
        Model steps from the first analysis of the record to the beginning of the first of `steps`, for a model that
        depends on time.
    """

    truth: Tensor | None
    observation: Tensor
    steps: tuple[int, ...]
    group: int = 0
    fresh: bool = False
    start: int = 0
    forecast: Tensor | None = None
    covariance: Tensor | None = None
    clock: Tensor | None = None

    def clock_at(self, k: int) -> Tensor:
        """Model steps from the record's first analysis to the beginning of step k of `steps`, (B,); else 0."""
        passed = sum(self.steps[:k])
        return torch.as_tensor(0) if self.clock is None else self.clock + passed


@dataclass(frozen=True)
class Rollout:
    """Results of a window's cycles, differentiable.

    Attributes
    ----------
    forecast, analysis : Tensor, shape (B, T, N)
        The mean of the members, if the method carries members.
    members : Tensor, shape (B, T, M, N), or None
        Analysis members.
    divergence : Tensor, shape (B, T), or None
        Estimate of the trace of d (R^{-1/2} H x_a) / d (R^{-1/2} y), if the objective asks for it.
    lost : Tensor of bool, shape (B, T)
        Where a trajectory was lost and started anew.
    state : dict of Tensor
        Analysis state at the end of the window, detached.
    window : Window
    observing : ObservingSystem
    scale : Tensor, shape (N,), or None
        With several fields: typical observation error of each component. None for one field.
    root : LocalRoot, entries of shape (B, T, N, L), or None
        Roots of the analyses' error covariances, if the network gives a spread.
    dynamics : Dynamics or None
        The model of the forecasts.
    """

    forecast: Tensor
    analysis: Tensor
    members: Tensor | None
    divergence: Tensor | None
    lost: Tensor
    state: State
    window: Window
    observing: ObservingSystem
    scale: Tensor | None = None
    root: LocalRoot | None = None
    dynamics: Dynamics | None = None

    def since(self, first: int) -> Rollout:
        """The rollout without its cycles before `first`."""

        def cut(value: Tensor | None) -> Any:
            return None if value is None else value[:, first:]

        window = self.window
        later = replace(
            window,
            truth=cut(window.truth),
            observation=cut(window.observation),
            forecast=cut(window.forecast),
            steps=window.steps[first:],
            start=window.start + first,
            clock=None if window.clock is None else window.clock_at(first),
        )
        names = ("forecast", "analysis", "members", "divergence", "lost")
        root = None if self.root is None else self.root.since(first)
        return replace(self, window=later, root=root, **{name: cut(getattr(self, name)) for name in names})

    def truth(self) -> Tensor:
        """Return the truth, which a supervised objective needs.

        Raises
        ------
        ValueError
            If the windows have no truth.
        """
        if self.window.truth is None:
            raise ValueError("the loss reads the truth, and windows have none: expected an objective with needs_truth")
        return self.window.truth

    def scaled(self, states: Tensor) -> Tensor:
        """States (..., N) of several fields in units of their observation errors; of one field, unchanged."""
        return states if self.scale is None else states / self.scale

    def scaled_root(self) -> LocalRoot:
        """Return the roots of the analyses' error covariances, in the units of `scaled`.

        Raises
        ------
        ValueError
            If the network gives no spread.
        """
        if self.root is None:
            raise ValueError(
                "the loss reads a spread, and the network gives none: expected an objective with needs_spread"
            )
        return self.root if self.scale is None else self.root.scaled(self.scale)

    def misfit(self, estimate: Tensor) -> Tensor:
        """Mean of |R^{-1/2} (y - H x)|^2, (B, T), for an estimate (B, T, N). Missing observations count as zero."""
        columns = []
        for k in range(estimate.shape[1]):
            observation, observed = split_observation(self.window.observation[:, k])
            observing = self.observing.at(self.window.start + k)
            columns.append(
                observing.whiten(observation - observing.observe(estimate[:, k]), observed).square().mean(-1)
            )
        return torch.stack(columns, 1)


_MIXERS = (0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9, 0x14D049BB133111EB)  # odd multipliers that mix bits
PROBE = 0.05  # size of the perturbation by which the divergence is estimated, in observation errors


class CappedGradient(torch.autograd.Function):
    """Identity whose gradient is shortened, row by row, to a largest norm. A row that is not finite becomes zero.

    With a scale, the norm is that of the gradient with respect to x divided by the scale.

    If a trajectory is close to divergence, its gradient grows without bound from cycle to cycle. It would dominate the
    gradients of all other trajectories in the batch.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cap: Tensor | float, scale: Tensor | None = None) -> Tensor:
        """Return x."""
        ctx.cap, ctx.scale = cap, scale
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Shorten the rows."""
        scaled = gradient if ctx.scale is None else gradient * ctx.scale
        norm = torch.linalg.vector_norm(scaled, dim=tuple(range(1, gradient.ndim)), keepdim=True)
        factor = (norm.clamp_min(1e-30).reciprocal() * ctx.cap).clamp_max(1.0)
        return torch.where(norm.isfinite(), gradient * factor, 0.0), None, None


def roll_out(
    method: DataAssimilationNetwork,
    dynamics: Dynamics,
    observing: ObservingSystem,
    window: Window,
    state: State | None,
    cap: Tensor | float | None = None,
    divergence: bool = False,
    through_model: bool = True,
) -> Rollout:
    """Forecasts and analyses of a window, differentiable through its cycles, Eq. 2, 3 and 22.

    A trajectory is lost if its analysis is as wrong as a random state of the climate. It starts anew from the
    observations of this time, and no gradient passes from there to later cycles. Without the truth, a trajectory is
    lost if it is so far from the observations.

    Parameters
    ----------
    method : DataAssimilationNetwork
    dynamics : Dynamics
    observing : ObservingSystem
    window : Window
        With a teacher's forecasts the model does not run, and gradients pass from cycle to cycle through memory alone.
    state : dict of Tensor, or None where the trajectories start
        Analysis state at the end of the previous window.
    cap : Tensor of shape (), or float, optional
        Largest norm of the gradient with respect to the state that a trajectory passes back to the previous cycle. With
        several fields, the state is in units of their observation errors. By default there is no bound.
    divergence : bool
        Whether to estimate the divergence, by a second analysis of changed observations (Ramani et al., 2008,
        doi:10.1109/TIP.2008.2001404).
    through_model : bool
        Whether gradients pass through the model from cycle to cycle. They pass through the memory in any case.

    Returns
    -------
    Rollout
    """
    method = method.bound(dynamics)
    columns: dict[str, list[Tensor]] = {}
    shape, scale = (len(window.observation), math.prod(dynamics.shape)), method.network.component_errors
    for k, steps in enumerate(window.steps):
        observation, observed = split_observation(window.observation[:, k])
        now = observing.at(window.start + k)
        if state is None:
            forecast = method.start_like(observation, shape)
            state = method.first(forecast, observation, observed, now)
            lost = torch.zeros(len(observation), dtype=torch.bool, device=observation.device)
            trace = observation.new_zeros(len(observation))
        else:
            if not through_model:
                state = {**state, "x": state["x"].detach()}
            if cap is not None and k > 0:
                # Memory is a number of order one, so its cap is in units of the observation error, as for increments.
                unit = method.network.error_std.double() if scale is None else 1.0
                state = {
                    name: CappedGradient.apply(v, cap, scale) if name == "x" else CappedGradient.apply(v, cap * unit)  # type: ignore[no-untyped-call]
                    for name, v in state.items()
                }
            if window.forecast is None:
                forecast = forecast_from(method, state, dynamics, steps, window.clock_at(k))
            else:
                forecast = {**state, "x": window.forecast[:, k]}
            state = method.analyse(forecast, observation, observed, now)
            lost = _is_lost(method, state, window, k, now)
            if divergence:
                trace = _divergence(method, forecast, state, observation, observed, now)
        row = {"forecast": method.mean(forecast), "analysis": method.mean(state), "lost": lost}
        row |= {"members": state["x"]} if method.ensemble else {}
        row |= {"divergence": trace} if divergence else {}
        if (made := method.root_of(state)) is not None:
            row["root"], places = made.entries, made.places
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
        if _may_hold_any(lost):
            restarted = method.first(method.start_like(observation, shape), observation, observed, now)
            state = {
                name: torch.where(lost.reshape(-1, *(1 for _ in value.shape[1:])), restarted[name], value)
                for name, value in state.items()
            }
    assert state is not None
    stacked: dict[str, Any] = {name: torch.stack(column, 1) for name, column in columns.items()}
    end = {name: value.detach() for name, value in state.items()}
    root = LocalRoot(stacked.pop("root"), places) if "root" in stacked else None
    kept = {"members": None, "divergence": None, **stacked, "state": end, "scale": scale, "root": root}
    return Rollout(**kept, window=window, observing=observing, dynamics=dynamics)


def _may_hold_any(lost: Tensor) -> bool:
    """Whether a trajectory is lost. On a GPU always True: to read the answer would make its queue run empty."""
    return lost.device.type != "cpu" or bool(lost.any())


def _is_lost(
    method: DataAssimilationNetwork, state: State, window: Window, k: int, observing: ObservingSystem
) -> Tensor:
    """Whether each analysis is as wrong as a random state of the climate, shape (B,)."""
    x, climate = method.mean(state).detach(), method.network.state_std**2
    several = climate.ndim > 0
    climate = method.network.per_component(climate)
    if window.truth is not None:
        square = (x - window.truth[:, k]).square()
        return ~((square / climate).mean(1) < 1.0) if several else ~(square.mean(1) < climate)
    broken = ~x.isfinite().all(1)
    if not observing.direct:  # the distance between two random states in observation space is not known
        return broken
    observation, observed = split_observation(window.observation[:, k])
    # Mean square for a random state: twice the climate's variance, plus the observation error's.
    excess = torch.where(observed, (x - observation).square() - observing.error_variance() - climate, 0.0)
    return ((excess / climate if several else excess).sum(1) > 0) | broken


def _divergence(
    method: DataAssimilationNetwork,
    forecast: State,
    state: State,
    observation: Tensor,
    observed: Tensor,
    observing: ObservingSystem,
) -> Tensor:
    """Trace of d (R^{-1/2} H x_a) / d (R^{-1/2} y), estimated along one direction of random signs; shape (B,)."""
    sign = random_signs(observation) * observed
    moved = method.analyse(forecast, observation + PROBE * observing.errors_from(sign, observed), observed, observing)
    change = observing.observe(method.mean(moved)) - observing.observe(method.mean(state))
    return (observing.whiten(change, observed) / PROBE * sign).sum(1)


def random_signs(observation: Tensor) -> Tensor:
    """Signs from the bits of observations (B, P). They are as good as random in any units, and equal in any process."""
    return torch.where((mixed_bits(observation) >> 40) & 1 == 0, 1.0, -1.0).to(observation)


def mixed_bits(observation: Tensor) -> Tensor:
    """Integers from the bits of observations (B, P), int64 of that shape."""
    kind = torch.int32 if observation.element_size() == 4 else torch.int64
    site = torch.arange(observation.shape[1], device=observation.device)
    bits = observation.contiguous().view(kind).to(torch.int64) + _MIXERS[0] * site
    for factor in _MIXERS[1:]:
        bits = (bits ^ (bits >> 30)) * factor
    return bits
