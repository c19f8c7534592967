"""Kalman filters with explicit covariances, and schemes without a memory of the past."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from ..derivative_checks import Mode, climate_states, random_directions, sizes
from ..dynamics import Dynamics
from ..observing import ObservingSystem
from ..roots import cholesky_or_nan, cholesky_solved
from ..tangent import identity_directions
from .advancing import advance, advance_along
from .arguments import number_or_tune
from .backward import BackwardPass, GaussianBackward
from .base import Differentiated, Method
from .climate import climate_moments
from .declarations import SPREADS, Output, Tunable
from .ensemble import INFLATIONS
from .record import Record, State
from .registry import register_method
from .variational import Static

_FACTORS = (0.1, 1.0, 10.0)  # multiples of a length: how far from the climate linearity is tested
_NONLINEAR, _CANCELLED = 1e-6, 1e-12  # rounding allowed, relative to a component's values and to the largest values


@register_method
class ExtendedKalmanFilter(Method):
    """Extended Kalman filter: the tangent linear model propagates the covariance.

    Parameters
    ----------
    inflation : float or "tune"
        Factor by which the analysis error's standard deviation is multiplied: P_a is multiplied by its square.

    References
    ----------
    Jazwinski (1970), Stochastic Processes and Filtering Theory, Sect. 8.3.
    """

    name: ClassVar[str] = "extended-kalman"
    differentiates_model: ClassVar[bool] = True
    backward: ClassVar[type[BackwardPass] | None] = GaussianBackward
    keeps_covariance: bool = True
    outputs: tuple[Output, ...] = SPREADS
    tunable: ClassVar[Mapping[str, Tunable]] = {"inflation": INFLATIONS}
    _climate: tuple[Tensor, Tensor] | None = None

    def __init__(self, inflation: float | str = "tune") -> None:
        self.inflation = number_or_tune("inflation", inflation)

    @property
    def derivatives(self) -> tuple[tuple[Differentiated, Mode], ...]:
        """Derivatives of the model and of the observation operator."""
        return ("model", "forward"), ("operator", "forward")

    def set_up(self, record: Record) -> None:
        """Compute the mean and covariance of the climatology."""
        self._climate = climate_moments(record.dynamics, record.seed, record.observation)

    @property
    def climate(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the climatology, which `prepare` computed."""
        if self._climate is None:
            raise RuntimeError(f"{self.name!r} is not prepared: call prepare(record) first")
        return self._climate

    def start(self, record: Record) -> State:
        """Climatological mean and covariance."""
        mean, covariance = self.climate
        x = mean.expand(record.shape)
        return {"x": x, "covariance": covariance.expand(len(x), *covariance.shape)}

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the state and, by the tangent linear model, the columns of its covariance: P <- M P M^T + Q."""
        x, covariance = state["x"], state["covariance"]
        _, rows = advance_along(dynamics, x, identity_directions(x), steps)
        propagated = rows.mT @ covariance @ rows
        if dynamics.model_error is not None and steps:
            propagated = dynamics.model_error.added_to(propagated)
        return {**state, "x": advance(dynamics, x, steps), "covariance": propagated}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One Kalman update, Joseph form: P_a = (I - K H) P (I - K H)^T + K R K^T."""
        x, p = state["x"], state["covariance"]
        gain = kalman_gain(x, p, observed, observing)
        innovation = torch.where(observed, observation - observing.observe(x), torch.zeros_like(observation))
        p = self.number("inflation") ** 2 * updated(x, p, gain, observed, observing)
        return {**state, "x": x + (gain @ innovation[..., None])[..., 0], "covariance": p}

    def backward_pass(self, dynamics: Dynamics) -> BackwardPass:
        """Backward pass for a covariance that the analysis has inflated."""
        self.check_backward(dynamics)
        return GaussianBackward(self.number("inflation"))

    def forecast_outputs(self, state: State) -> dict[str, Tensor]:
        """Forecast spread."""
        return {"forecast_spread": self._deviations(state["covariance"])}

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Analysis spread."""
        return {"spread": self._deviations(state["covariance"])}

    def _deviations(self, covariance: Tensor) -> Tensor:
        """Standard deviations (B, N)."""
        return covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()


def kalman_gain(x: Tensor, p: Tensor, observed: Tensor, observing: ObservingSystem) -> Tensor:
    """K = P H^T (H P H^T + R)^-1 for states (B, N) and covariances (B, N, N), shape (B, N, P).

    Columns of missing observations are zero. Columns are not finite if the covariance is not finite or not positive.
    """
    rows, both = observing.observed_covariances(x, p, observed)
    gain: Tensor = cholesky_solved(rows, cholesky_or_nan(both + observing.covariance_of(observed))).mT
    return gain


def updated(x: Tensor, p: Tensor, gain: Tensor, observed: Tensor, observing: ObservingSystem) -> Tensor:
    """P_a = (I - K H) P (I - K H)^T + K R K^T, Joseph's form, shape (B, N, N)."""
    left = torch.eye(x.shape[1], dtype=x.dtype, device=x.device) - observing.gain_on_state(gain, x)
    p = left @ p @ left.mT + gain @ observing.covariance_of(observed) @ gain.mT
    return 0.5 * (p + p.mT)


@register_method
class KalmanFilter(ExtendedKalmanFilter):
    """Kalman filter, for linear (affine) dynamics.

    Parameters
    ----------
    inflation : float
        By default 1, which is optimal.

    Raises
    ------
    ValueError
        If the dynamics or the observation operator is not linear. `prepare` raises it.

    References
    ----------
    Kalman (1960), doi:10.1115/1.3662552.
    """

    name: ClassVar[str] = "kalman"

    def __init__(self, inflation: float | str = 1.0) -> None:
        super().__init__(inflation)

    def check_record(self, record: Record) -> None:
        """Refuse dynamics and observations that are not linear."""
        dynamics = record.dynamics
        like = torch.zeros((), dtype=torch.float64, device=record.observation.device)
        states = climate_states(dynamics, record.seed, like)
        observing = record.observing.at(0).to(states.dtype, states.device)
        lengths = [sizes(states), states.square().mean(0).sqrt(), torch.ones_like(states[0])]
        for steps in sorted({1, max([1, *record.steps])}):
            off = nonlinearity(partial(advance, dynamics, steps=steps), states, lengths, finite=steps == 1)
            _check_linear(off, "dynamics", dynamics.label)
        _check_linear(nonlinearity(observing.observe, states, lengths), "observation operator", dynamics.label)
        super().check_record(record)


def nonlinearity(
    function: Callable[[Tensor], Tensor], states: Tensor, lengths: Sequence[Tensor], *, finite: bool = True
) -> float:
    """Deviation of a function from f(x + u + v) - f(x + u) - f(x + v) + f(x) = 0, relative to the rounding allowed.

    Parameters
    ----------
    function : callable
        It takes states (B, N) and gives values (B, P).
    states : Tensor, shape (S, N)
        The states x at which the equation is tested.
    lengths : sequence of Tensor, shape (N,)
        u and v are random with these standard deviations, and with some fractions and multiples of them.
    finite : bool
        Whether a value that is not finite shows that the function is not affine.

    Returns
    -------
    float
        At most 1 for an affine function; infinite for a function that has no value at some point.
    """
    labels = torch.arange(len(states), device=states.device)
    u, v = (random_directions(labels, stream, states) for stream in (0, 1))
    worst = 0.0
    for length in lengths:
        for factor in _FACTORS:
            ends = torch.cat([states + factor * length * d for d in (u + v, u, v, torch.zeros_like(u))])
            values = function(ends).unflatten(0, (4, -1))
            if not bool(values.isfinite().all()):
                worst = max(worst, math.inf if finite else 0.0)
                continue
            off = (values[0] - values[1] - values[2] + values[3]).abs().amax(0)
            size = values.abs().amax((0, 1))
            allowed = _NONLINEAR * size + _CANCELLED * size.max() + torch.finfo(size.dtype).tiny
            worst = max(worst, float((off / allowed).max()))
    return worst


def _check_linear(off: float, what: str, name: str) -> None:
    if off > 1.0:
        raise ValueError(
            f"the Kalman filter needs a linear {what}, and that of {name!r} is not: expected f(x + u + v) - f(x + u) - "
            f"f(x + v) + f(x) = 0, and near the climate it is off by {off * _NONLINEAR:.3g} of the values; take "
            "'extended-kalman' or an ensemble method"
        )


class _FromClimate(Method):
    """A scheme without memory of the past: every forecast is the climatological mean."""

    outputs: tuple[Output, ...] = SPREADS
    _static: Static | None = None

    def set_up(self, record: Record) -> None:
        """Compute the mean and covariance of the climatology."""
        mean, covariance = climate_moments(record.dynamics, record.seed, record.observation)
        self._static = Static(mean, covariance, covariance, covariance.new_ones(()))

    @property
    def static(self) -> Static:
        """Mean and covariance of the climatology, which `prepare` computed."""
        if self._static is None:
            raise RuntimeError(f"{self.name!r} is not prepared: call prepare(record) first")
        return self._static

    def start(self, record: Record) -> State:
        """Climatological mean and spread."""
        x = self.static.mean.expand(record.shape)
        spread = self.static.b.diagonal().sqrt().expand(x.shape)
        return {"x": x, "forecast_spread": spread, "spread": spread}

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Forget the analysis."""
        return {**state, "x": self.static.mean.expand(state["x"].shape)}


@register_method
class Climatology(_FromClimate):
    """The climatological mean, whatever is observed: the score that any use of observations must beat."""

    name: ClassVar[str] = "climatology"

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Return the forecast: observations are not used."""
        return state


@register_method
class OptimalInterpolation(_FromClimate):
    """Optimal interpolation: the observations of one time correct the climatological mean, by the climate's covariance.

    References
    ----------
    Gandin (1963); Daley (1991), Atmospheric Data Analysis, Chapter 4.
    """

    name: ClassVar[str] = "optimal-interpolation"

    @property
    def derivatives(self) -> tuple[tuple[Differentiated, Mode], ...]:
        """Derivative of the observation operator, for the gain."""
        return (("operator", "forward"),)

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One analysis from the climatology."""
        gain, _, variance = self.static.gain(observed, observing, state["x"])
        innovation = torch.where(observed, observation - observing.observe(state["x"]), torch.zeros_like(observation))
        x = state["x"] + (gain @ innovation[..., None])[..., 0]
        return {**state, "x": x, "spread": variance.sqrt().expand(x.shape)}
