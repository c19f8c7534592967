"""Kalman schemes of one trajectory whose covariance follows the model to second order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import integer, real
from ..derivative_checks import Mode
from ..dynamics import Dynamics
from ..observing import ObservingSystem
from .advancing import advance, advance_along
from .arguments import number_or_tune
from .base import Differentiated, Method
from .climate import climate_moments
from .declarations import ITERATIONS, SPREADS, UNCONVERGED, Output, Tunable
from .ensemble import INFLATIONS, Precision
from .gaussian_forecast import check_size, forecast_moments, root_of
from .kalman import ExtendedKalmanFilter
from .record import Record, State
from .registry import register_method
from .windowed import SlidingWindow

SECOND_ORDERS = Tunable((0.5, 1.0, 2.0, 4.0, 8.0, 16.0), long_name="factors of the second-order term that were tried")


@register_method
class SecondOrderKalmanFilter(ExtendedKalmanFilter):
    """Extended Kalman filter of second order: P_f = M P_a M^T + c2 Q2(P_a).

    Q2 is the covariance of the second-order term of the forecast of a Gaussian (`forecast_moments`). It grows with the
    square of P: inflation that starts the filter from the climate and vanishes once it has settled. With a factor of
    some 8 a single trajectory and its tangent linear model are as accurate as an EnKF-N.

    Parameters
    ----------
    c2 : float or "tune"
        Factor of the second-order term.
    inflation : float or "tune"
        As for "extended-kalman"; 1 by default.

    Raises
    ------
    TypeError, ValueError
        For what is neither a positive number nor "tune".

    References
    ----------
    Jazwinski (1970), Sect. 9.3; Palatella and Trevisan (2015), doi:10.1103/PhysRevE.91.042905.
    """

    name: ClassVar[str] = "second-order-kalman"
    tunable: ClassVar[Mapping[str, Tunable]] = {"c2": SECOND_ORDERS, "inflation": INFLATIONS}

    def __init__(self, c2: float | str = "tune", inflation: float | str = 1.0) -> None:
        super().__init__(inflation)
        self.c2 = number_or_tune("c2", c2)

    def check_record(self, record: Record) -> None:
        """Refuse states whose covariance is too large."""
        check_size(record.shape[1], f"the method {self.name!r}")
        super().check_record(record)

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the state and its covariance."""
        moments = forecast_moments(dynamics, state["x"], state["covariance"], steps)
        x = advance(dynamics, state["x"], steps)  # bit for bit the model's own run
        return {**state, "x": x, "covariance": moments.inflated(self.number("c2"), self.climate[1].trace())}


@dataclass(frozen=True)
class _Iterate:
    """Where the minimisation stands, trajectories first.

    Attributes
    ----------
    weights : Tensor, shape (B, N)
        The best so far, in units of the root at the window's start.
    target : Tensor, shape (B, N)
        Where Gauss-Newton goes from the weights.
    inverse_root : Tensor, shape (B, N, N)
        Inverse square root of the Hessian there.
    cost, scale, count : Tensor, shape (B,)
        Cost at the weights, the share of the step to try next, and the runs over the window so far.
    """

    weights: Tensor
    target: Tensor
    inverse_root: Tensor
    cost: Tensor
    scale: Tensor
    count: Tensor

    def rows(self, index: Tensor) -> _Iterate:
        """Some trajectories."""
        return _Iterate(*(value[index] for value in vars(self).values()))

    def replaced(self, index: Tensor, by: _Iterate) -> _Iterate:
        """Some trajectories put back."""
        pairs = zip(vars(self).values(), vars(by).values(), strict=True)
        return _Iterate(*(mine.index_copy(0, index, other) for mine, other in pairs))

    def or_halved(self, better: Tensor, tried: _Iterate) -> _Iterate:
        """Take what was tried where the flag is set; elsewhere try half of the step."""
        halved = replace(self, scale=self.scale / 2, count=tried.count)
        pairs = zip(vars(tried).values(), vars(halved).values(), strict=True)
        return _Iterate(*(torch.where(better.reshape(-1, *(1 for _ in a.shape[1:])), a, b) for a, b in pairs))

    @property
    def step(self) -> Tensor:
        """What to add to the weights next, shape (B, N)."""
        return self.scale[:, None] * (self.target - self.weights)


@register_method
class IteratedKalmanSmoother(Method):
    """Iterated extended Kalman smoother over a window of intervals, shifted by one a cycle, of second order.

    One trajectory and a covariance P stand at the window's start. Gauss-Newton moves the start until the newest
    observations at the window's end are met; older ones were assimilated before. The start and its covariance then
    move on by one interval, P <- M P M^T + c2 Q2(P), as in "second-order-kalman". It is what the IEnKS does with
    members.

    Parameters
    ----------
    lag : int
        L, intervals of the window, at least 1.
    c2 : float or "tune"
        Factor of the second-order term.
    inflation : float or "tune"
        Factor of the analysis error's standard deviation at the window's start.
    tolerance : float
        Gauss-Newton stops when the root mean square of its step, in deviations of the window's start, is below this.
    iterations : int
        Limit. An analysis that reaches it is flagged `unconverged`.

    Raises
    ------
    TypeError
        For arguments of another type.
    ValueError
        For numbers that are not positive, or no longer record than the lag.

    References
    ----------
    Bell (1994), doi:10.1137/0804035; Bocquet and Sakov (2014), doi:10.1002/qj.2236, for the window.
    """

    name: ClassVar[str] = "iterated-kalman-smoother"
    windowed: ClassVar[bool] = True
    differentiates_model: ClassVar[bool] = True
    tunable: ClassVar[Mapping[str, Tunable]] = {"c2": SECOND_ORDERS, "inflation": INFLATIONS}
    _climate: tuple[Tensor, Tensor] | None = None

    def __init__(
        self,
        lag: int = 1,
        c2: float | str = "tune",
        inflation: float | str = 1.0,
        tolerance: float = 0.01,
        iterations: int = 10,
    ) -> None:
        self.lag, self.c2 = integer("lag", lag, least=1), number_or_tune("c2", c2)
        self.inflation = number_or_tune("inflation", inflation)
        self.tolerance = real("tolerance", tolerance, above=0.0)
        self.iterations = integer("iterations", iterations, least=1)
        self._window = SlidingWindow(self.lag)
        self.outputs: tuple[Output, ...] = (*SPREADS, self._window.output, ITERATIONS, UNCONVERGED)

    @property
    def derivatives(self) -> tuple[tuple[Differentiated, Mode], ...]:
        """Of the model, and of the observation operator."""
        return ("model", "forward"), ("operator", "forward")

    def check_record(self, record: Record) -> None:
        """Refuse a record that is no longer than the lag, and states whose covariance is too large."""
        check_size(record.shape[1], f"the method {self.name!r}")
        if record.observation.shape[1] <= self.lag:
            raise ValueError(
                f"lag={self.lag}: the record has {record.observation.shape[1]} times; expected more than the lag"
            )
        super().check_record(record)

    def set_up(self, record: Record) -> None:
        """Take the moments of the climatology."""
        self._climate = climate_moments(record.dynamics, record.seed, record.observation)

    @property
    def climate(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance that `prepare` took."""
        if self._climate is None:
            raise RuntimeError(f"{self.name!r} is not prepared: call prepare(record) first")
        return self._climate

    def start(self, record: Record) -> State:
        """Climatological mean and covariance; the window has no length yet."""
        mean, covariance = self.climate
        x = mean.expand(record.shape)
        zero = x.new_zeros(len(x))
        return {
            "x": x,
            "begin": x,
            "covariance": covariance.expand(*x.shape, x.shape[1]),
            **self._window.opened(x),
            "smoothed": torch.full_like(x, torch.nan),
            "forecast_spread": covariance.diagonal().sqrt().expand(x.shape),
            "spread": torch.zeros_like(x),
            "iterations": zero,
            "unconverged": zero,
        }

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the state and, where the window is full, its start with the covariance there."""
        counts = self._window.counts(state)
        at_begin = dynamics.from_step(dynamics.model_step - sum(counts))
        moments = forecast_moments(at_begin, state["begin"], state["covariance"], counts[0])
        return {
            **state,
            **self._window.slid(state, dynamics, steps),
            "x": advance(dynamics, state["x"], steps),
            "begin": moments.x,
            "covariance": moments.inflated(self.number("c2"), self.climate[1].trace()),
        }

    def forecast_outputs(self, state: State) -> dict[str, Tensor]:
        """Standard deviation of the forecast, by the tangent linear model over the window."""
        steps, dynamics = sum(self._window.counts(state)), self._window.at_begin(state, self.dynamics)
        _, pushed = advance_along(dynamics, state["begin"], root_of(state["covariance"]), steps)
        return {"forecast_spread": pushed.square().sum(1).sqrt()}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Damped Gauss-Newton until every trajectory has converged."""
        steps, dynamics = sum(self._window.counts(state)), self._window.at_begin(state, self.dynamics)
        before, root = state["begin"], root_of(state["covariance"])

        def linearised(rows: Tensor, weights: Tensor, count: Tensor) -> _Iterate:
            inside, seen = root[rows], observed[rows]
            end, pushed = advance_along(dynamics, before[rows] + (weights[:, None] @ inside)[:, 0], inside, steps)
            s = observing.whiten(observing.tangent(end, pushed), seen)
            missed = observing.whiten(observation[rows] - observing.observe(end), seen)
            target, inverse_root = Precision(s, missed + (weights[:, None] @ s)[:, 0]).solve(1.0)
            cost = 0.5 * (missed.square().sum(1) + weights.square().sum(1)).detach()
            return _Iterate(weights, target, inverse_root, cost, torch.ones_like(cost), count + 1)

        active = torch.arange(len(before), device=before.device)
        at = linearised(active, torch.zeros_like(before), before.new_zeros(len(before)))
        lost = ~at.cost.isfinite()
        for iteration in range(self.iterations):
            now = at.rows(active)
            going = (now.step.detach().square().mean(1).sqrt() >= self.tolerance) & ~lost[active]
            active, now = active[going], now.rows(going)
            if not len(active) or iteration == self.iterations - 1:
                break
            tried = linearised(active, now.weights + now.step, now.count)
            # A step that does not bring the cost down is halved: the tangent was followed too far.
            slack = torch.finfo(tried.cost.dtype).eps ** 0.5 * now.cost.abs()
            at = at.replaced(active, now.or_halved(tried.cost <= now.cost + slack, tried))
        unconverged = torch.zeros_like(lost).index_fill(0, active, True)
        # A single pass goes to its target; where more did not converge, the best of all iterates is taken.
        stopped = unconverged if self.iterations > 1 else torch.zeros_like(unconverged)
        weights = torch.where(stopped[:, None], at.weights, at.target)
        begin = before + (weights[:, None] @ root)[:, 0]
        after = self.number("inflation") * at.inverse_root @ root
        end, pushed = advance_along(dynamics, begin, after, steps)
        return {
            **state,
            "x": torch.where(lost[:, None], torch.nan, end),
            "begin": begin,
            "covariance": after.mT @ after,
            "smoothed": self._window.smoothed(state, begin),
            "spread": pushed.square().sum(1).sqrt(),
            "iterations": at.count,
            "unconverged": unconverged.to(at.count.dtype),
        }

    def analysis_outputs(self, state: State) -> dict[str, Any]:
        """Spread, the smoothed state and what the minimisation did."""
        return {output.name: state[output.name] for output in self.outputs if output.name != "forecast_spread"}
