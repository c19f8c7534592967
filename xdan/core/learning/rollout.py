"""A window of cycles run through, differentiably: what training goes back through."""

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
    truth : Tensor, shape (B, T, N), or None where the objective does without
    observation : Tensor, shape (B, T, N)
    steps : tuple of int, length T
        Model steps before each analysis.
    group : int
        Which set of trajectories; a set's windows follow one another in time.
    fresh : bool
        Whether the set starts anew with this window.
    start : int
        Index of the first time, for errors that differ in time.
    forecast : Tensor, shape (B, T, N), or None
        A teacher's: every analysis starts from it instead of from the network's own forecast.
    covariance : Tensor, shape (B, T, N, N), or None
        Of a teacher's analyses, to be imitated.
    clock : Tensor of int64, shape (B,), or None
        Model steps from the first analysis of the record to where the first of `steps` begin, for a model that depends
        on time.
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
        """Model steps from the first analysis of the record to where the k-th of `steps` begin, (B,); else 0."""
        passed = sum(self.steps[:k])
        return torch.as_tensor(0) if self.clock is None else self.clock + passed


@dataclass(frozen=True)
class Rollout:
    """What the cycles of a window gave, differentiable.

    Attributes
    ----------
    forecast, analysis : Tensor, shape (B, T, N)
        The mean, where the method carries members.
    members : Tensor, shape (B, T, M, N), or None
        Analysis members.
    divergence : Tensor, shape (B, T), or None
        Estimate of the trace of d (R^{-1/2} H x_a) / d (R^{-1/2} y), where it was asked for.
    lost : Tensor of bool, shape (B, T)
        Where a trajectory was restarted.
    state : dict of Tensor
        Analysis state at the window's end, detached.
    window : Window
    observing : ObservingSystem
    scale : Tensor, shape (N,), or None
        Typical observation error of every component of several fields; None for one field.
    root : LocalRoot, entries of shape (B, T, N, L), or None
        Of the covariances of the analyses' errors, where the network gives a spread.
    dynamics : Dynamics or None
        That made the forecasts.
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
        """Leave the first cycles out."""

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
        """Give the truth, which a supervised objective needs.

        Raises
        ------
        ValueError
            If the windows have none.
        """
        if self.window.truth is None:
            raise ValueError("the loss reads the truth, and windows have none: expected an objective with needs_truth")
        return self.window.truth

    def scaled(self, states: Tensor) -> Tensor:
        """Give states (..., N) of several fields in units of their observation errors, those of one as they are."""
        return states if self.scale is None else states / self.scale

    def scaled_root(self) -> LocalRoot:
        """Give the root of the covariances of the analyses' errors, in the units of `scaled`.

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
        """Mean over observations of |R^{-1/2} (y - H x)|^2 of an estimate (B, T, N), missing ones as zeros; (B, T)."""
        columns = []
        for k in range(estimate.shape[1]):
            observation, observed = split_observation(self.window.observation[:, k])
            observing = self.observing.at(self.window.start + k)
            columns.append(
                observing.whiten(observation - observing.observe(estimate[:, k]), observed).square().mean(-1)
            )
        return torch.stack(columns, 1)


_MIXERS = (0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9, 0x14D049BB133111EB)  # odd multipliers that mix bits
PROBE = 0.05  # size of the perturbation that the divergence is estimated with, in observation errors


class CappedGradient(torch.autograd.Function):
    """Identity whose gradient is shortened, row by row, to a norm; a row that is not finite becomes zero.

    With a scale the norm is that of the gradient by what is scaled by it.

    A trajectory on the verge of divergence has a gradient that grows without bound from cycle to cycle, and would
    drown those of all others in the batch.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cap: Tensor | float, scale: Tensor | None = None) -> Tensor:
        """Pass x on."""
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

    A trajectory whose analysis is as wrong as a random state of the climate is lost: it starts anew from the
    observations of that time, and no gradient passes from there to what comes after. Without the truth, it is lost
    where it is that far from the observations.

    Parameters
    ----------
    method : DataAssimilationNetwork
    dynamics : Dynamics
    observing : ObservingSystem
    window : Window
        With a teacher's forecasts no dynamics is run, and gradients pass from cycle to cycle through the memory alone.
    state : dict of Tensor, or None where the trajectories start
        Analysis that the previous window left.
    cap : Tensor of shape (), or float, optional
        Bound on the norm of the gradient by the state that a trajectory passes back from one cycle to the cycle before;
        of several fields by the state in units of their observation errors. No bound by default.
    divergence : bool
        Estimate the divergence too, by a second analysis of slightly other observations (Ramani et al., 2008,
        doi:10.1109/TIP.2008.2001404).
    through_model : bool
        Whether gradients pass through the model from cycle to cycle; those through the memory pass in any case.

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
                # Memory is a number of order one: in units of the observation error, as the increments are.
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
    """Whether any is lost; True on a GPU without asking it, as an answer would make its queue run empty."""
    return lost.device.type != "cpu" or bool(lost.any())


def _is_lost(
    method: DataAssimilationNetwork, state: State, window: Window, k: int, observing: ObservingSystem
) -> Tensor:
    """Whether analyses are as wrong as random states of the climate, shape (B,)."""
    x, climate = method.mean(state).detach(), method.network.state_std**2
    several = climate.ndim > 0
    climate = method.network.per_component(climate)
    if window.truth is not None:
        square = (x - window.truth[:, k]).square()
        return ~((square / climate).mean(1) < 1.0) if several else ~(square.mean(1) < climate)
    broken = ~x.isfinite().all(1)
    if not observing.direct:  # how far apart two random states are seen is not known
        return broken
    observation, observed = split_observation(window.observation[:, k])
    # Expected of a random state: the climate's variance twice, and the observation's.
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
    """Trace of d (R^{-1/2} H x_a) / d (R^{-1/2} y), from one direction of random signs; shape (B,)."""
    sign = random_signs(observation) * observed
    moved = method.analyse(forecast, observation + PROBE * observing.errors_from(sign, observed), observed, observing)
    change = observing.observe(method.mean(moved)) - observing.observe(method.mean(state))
    return (observing.whiten(change, observed) / PROBE * sign).sum(1)


def random_signs(observation: Tensor) -> Tensor:
    """Signs from the bits of observations (B, P): as good as a coin in any units, and the same in any process."""
    return torch.where((mixed_bits(observation) >> 40) & 1 == 0, 1.0, -1.0).to(observation)


def mixed_bits(observation: Tensor) -> Tensor:
    """Integers from the bits of observations (B, P), int64 of that shape."""
    kind = torch.int32 if observation.element_size() == 4 else torch.int64
    site = torch.arange(observation.shape[1], device=observation.device)
    bits = observation.contiguous().view(kind).to(torch.int64) + _MIXERS[0] * site
    for factor in _MIXERS[1:]:
        bits = (bits ^ (bits >> 30)) * factor
    return bits
