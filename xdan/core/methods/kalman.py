"""Kalman filters with explicit covariances, and the static schemes below them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..observing import ErrorCovariance
from ..tangent import identity_directions
from .base import Method, Record, State, advance, advance_along, register_method
from .ensemble import INFLATIONS, check_inflation
from .variational import Static, climate_moments


@register_method("extended-kalman")
class ExtendedKalmanFilter(Method):
    """Extended Kalman filter: the covariance follows the tangent linear model.

    Parameters
    ----------
    inflation : float or "tune"
        Factor of the analysis error's standard deviation: P_a is multiplied by its square.

    References
    ----------
    Jazwinski (1970), Stochastic Processes and Filtering Theory, Sect. 8.3.
    """

    outputs: ClassVar[dict[str, str]] = {"forecast_spread": "site", "spread": "site"}
    tunable: ClassVar[dict[str, tuple[float, ...]]] = {"inflation": INFLATIONS}

    def __init__(self, inflation: float | str = "tune") -> None:
        self.inflation = check_inflation(inflation)

    def parameters(self) -> dict[str, Any]:
        """Plain JSON parameters."""
        return {"inflation": self.inflation}

    def start(self, record: Record) -> State:
        """Climatological mean and covariance."""
        like = record.observation
        mean, covariance = climate_moments(record.dynamics, record.seed, like)
        x = mean.expand(record.shape)
        return {"x": x, "covariance": covariance.expand(*x.shape, x.shape[1])}

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the state and, by the tangent linear model, the columns of its covariance: P <- M P M^T."""
        x, covariance = state["x"], state["covariance"]
        _, rows = advance_along(dynamics, x, identity_directions(x), steps)
        propagated = rows.mT @ covariance @ rows
        return {**state, "x": advance(dynamics, x, steps), "covariance": propagated}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, error: ErrorCovariance) -> State:
        """One Kalman update, Joseph form: P_a = (I - K H) P (I - K H)^T + K R K^T."""
        x, p = state["x"], state["covariance"]
        rows, both = error.products(x, p, observed)
        r = error.masked(observed)
        gain = torch.linalg.solve_ex(both + r, rows).result.mT  # not finite where the covariance is not: a lost lane
        innovation = torch.where(observed, observation - error.seen(x), torch.zeros_like(observation))
        left = torch.eye(x.shape[1], dtype=x.dtype, device=x.device) - error.after(gain, x)
        p = left @ p @ left.mT + gain @ r @ gain.mT
        p = self.number("inflation") ** 2 * 0.5 * (p + p.mT)
        return {**state, "x": x + (gain @ innovation[..., None])[..., 0], "covariance": p}

    def forecast_outputs(self, state: State) -> dict[str, Tensor]:
        """Forecast spread."""
        return {"forecast_spread": _spread(state)}

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Analysis spread."""
        return {"spread": _spread(state)}


@register_method("kalman")
class KalmanFilter(ExtendedKalmanFilter):
    """Kalman filter, for linear (affine) dynamics.

    Parameters
    ----------
    inflation : float
        1, the optimum, by default.

    Raises
    ------
    ValueError
        From `prepare`, if the dynamics or the observation operator is not linear.

    References
    ----------
    Kalman (1960), doi:10.1115/1.3662552.
    """

    def __init__(self, inflation: float | str = 1.0) -> None:
        super().__init__(inflation)

    def prepare(self, record: Record) -> Method:
        """Refuse dynamics and observations that are not linear."""
        dynamics = record.dynamics
        like = torch.zeros((), dtype=torch.float64, device=record.observation.device)
        a, b = dynamics.climatology([0, 1], record.seed, like=like).flatten(2)[:, 0]
        steps = max(1, *record.steps[:2]) if len(record.steps) > 1 else 1
        points = torch.stack([a, b, 0.5 * (a + b)])
        apart = torch.linspace(1.0, 2.0, points.shape[1]).to(points)  # where the climate is a single point
        ends = torch.stack([a + apart, b - apart.flip(0)])
        seen = record.error.to(points.dtype, points.device).seen(torch.cat([ends, ends.mean(0, keepdim=True)]))
        for what, values in (("dynamics", advance(dynamics, points, steps)), ("observation operator", seen)):
            first, second, middle = values
            off = float((middle - 0.5 * (first + second)).abs().max())
            if off > 1e-6 * max(float(values.abs().max()), 1.0):
                raise ValueError(
                    f"the Kalman filter needs a linear {what}, and that of {dynamics.name!r} is not: halfway between "
                    f"two states it is off by {off:.3g}; take 'extended-kalman' or an ensemble method"
                )
        return super().prepare(record)


class _FromClimate(Method):
    """A scheme without memory of the past: every forecast is the climatological mean."""

    outputs: ClassVar[dict[str, str]] = {"forecast_spread": "site", "spread": "site"}
    _static: Static | None = None

    def parameters(self) -> dict[str, Any]:
        """No parameters."""
        return {}

    def prepare(self, record: Record) -> Method:
        """Take the moments of the climatology."""
        ready = super().prepare(record)
        assert isinstance(ready, _FromClimate)
        mean, covariance = climate_moments(record.dynamics, record.seed, record.observation)
        ready._static = Static(mean, covariance, covariance, covariance.new_ones(()))
        return ready

    @property
    def static(self) -> Static:
        """Moments that `prepare` took."""
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

    def forecast_outputs(self, state: State) -> dict[str, Tensor]:
        """Climatological spread."""
        return {"forecast_spread": state["forecast_spread"]}

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Analysis spread."""
        return {"spread": state["spread"]}


@register_method("climatology")
class Climatology(_FromClimate):
    """The climatological mean, whatever is observed: the score that any use of observations must beat."""

    def analyse(self, state: State, observation: Tensor, observed: Tensor, error: ErrorCovariance) -> State:
        """Do nothing."""
        return state


@register_method("optimal-interpolation")
class OptimalInterpolation(_FromClimate):
    """Optimal interpolation: the climatological mean and covariance corrected with the observations of one time.

    References
    ----------
    Gandin (1963); Daley (1991), Atmospheric Data Analysis, Chapter 4.
    """

    def analyse(self, state: State, observation: Tensor, observed: Tensor, error: ErrorCovariance) -> State:
        """One analysis from the climatology."""
        gain, _, variance = self.static.gain(observed, error, state["x"])
        innovation = torch.where(observed, observation - error.seen(state["x"]), torch.zeros_like(observation))
        x = state["x"] + (gain @ innovation[..., None])[..., 0]
        return {**state, "x": x, "spread": variance.sqrt().expand(x.shape)}


def _spread(state: State) -> Tensor:
    return state["covariance"].diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
