"""Kalman filters and smoothers of one trajectory, whose covariance follows the model to second order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import integer, real
from ..dynamics import Dynamics
from ..observing import ObservingSystem
from ..roots import root_of
from .advancing import advance, advance_along
from .arguments import number_or_tune
from .covariance_forms import CovarianceForm, FormOf, OneMatrix, check_form, one_form
from .declarations import ITERATIONS, SPREADS, UNCONVERGED, Output, Tunable
from .ensemble import INFLATIONS, Precision
from .gaussian_forecast import check_size, forecast_moments
from .iterates import Iterate, minimised
from .kalman import ExtendedKalmanFilter
from .record import Record, State
from .registry import register_method
from .windowed import SlidingWindow

SECOND_ORDERS = Tunable((0.5, 1.0, 2.0, 4.0, 8.0, 16.0), long_name="factors of the second-order term that were tried")


@register_method
class SecondOrderKalmanFilter(ExtendedKalmanFilter):
    """Extended Kalman filter of second order: P_f = M P_a M^T + c2 Q2(P_a) + Q.

    Q2 is the covariance of the second-order term in the forecast of a Gaussian (`forecast_moments`). It grows with the
    square of P. It therefore acts as an inflation that starts the filter from the climate, and vanishes once errors are
    small. With c2 near 8, a single trajectory and its tangent linear model are as accurate as an EnKF-N.

    Parameters
    ----------
    c2 : float or "tune"
        Factor c2 of the second-order term.
    inflation : float or "tune"
        Factor by which the analysis error's standard deviation is multiplied; by default 1.
    radius : float, optional
        For large states: keep the covariance in patches (`Patches`). Covariances between components that are farther
        apart than the radius, in the units of their coordinates, are kept only if one patch holds both. On a ring, a
        cycle runs the tangent linear model along about 2 radius + 1 directions, whatever the size of the ring. Sites
        must be observed directly, with independent errors. By default, and if patches would be no smaller, the
        covariance is one matrix.
    columns : int, optional
        For large states in which errors grow in few directions: keep the covariance as this number of columns of a root
        (`Columns`). A cycle runs the tangent linear model along each column. Take several times the number of positive
        Lyapunov exponents. Errors outside the span of the columns are assumed to have decayed. All kinds of
        observations are possible. By default there are no columns.

    Raises
    ------
    TypeError, ValueError
        If a number is neither positive nor "tune", or radius and columns are combined; with a radius, for an operator,
        correlated errors, or a dynamics without distances.

    References
    ----------
    Jazwinski (1970), Sect. 9.3; Palatella and Trevisan (2015), doi:10.1103/PhysRevE.91.042905.
    """

    name: ClassVar[str] = "second-order-kalman"
    tunable: ClassVar[Mapping[str, Tunable]] = {"c2": SECOND_ORDERS, "inflation": INFLATIONS}

    form: CovarianceForm = OneMatrix()
    _most: Tensor | None = None

    def __init__(
        self,
        c2: float | str = "tune",
        inflation: float | str = 1.0,
        radius: float | None = None,
        columns: int | None = None,
    ) -> None:
        super().__init__(inflation)
        self.c2 = number_or_tune("c2", c2)
        self.radius, self.columns = one_form(radius, columns)
        self._forms = FormOf(self.radius, self.columns)

    def check_record(self, record: Record) -> None:
        """Refuse states whose covariance is too large, and observations that the form of covariance cannot use."""
        form, who = self._forms.of(record.dynamics, record.observation.device), f"the method {self.name!r}"
        remedy = "give radius=, such as 12 grid lengths, or columns=, such as 32, or take 'letkf'"
        check_form(form, record.shape[1:], who, remedy)
        form.check_observing(record.observing, who)
        super().check_record(record)

    def check_backward(self, dynamics: Dynamics) -> None:
        """Refuse a backward pass, also if the covariance is kept in patches or columns."""
        super().check_backward(dynamics)
        form = self._forms.of(dynamics)
        if not form.whole:
            raise ValueError(
                f"smooth=True: the method {self.name!r} with {form.words} has no backward pass: expected a covariance "
                "in one matrix; leave radius= and columns= out, or take an ensemble method such as 'etkf'"
            )

    def check_kept(self, dynamics: Dynamics) -> None:
        """Refuse to store the covariance of a state that is kept in patches or columns."""
        form = self._forms.of(dynamics)
        if not form.whole:
            raise ValueError(
                f"the method {self.name!r} with {form.words} has no matrix for each state: expected one matrix, to be "
                "stored; leave keep_members= out, or radius= and columns="
            )

    def set_up(self, record: Record) -> None:
        """Compute the mean and covariance of the climatology, and choose the form of covariances."""
        self.form = self._forms.of(record.dynamics, record.observation.device)
        mean, covariance, self._most = self.form.climate(record.dynamics, record.seed, record.observation)
        self._climate = mean, covariance
        self.form.warn(record.dynamics, mean[None], max(record.steps, default=0))

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the state and its covariance."""
        assert self._most is not None
        covariance = self.form.forecast(dynamics, state["x"], state["covariance"], steps, self.number("c2"), self._most)
        return {**state, "x": advance(dynamics, state["x"], steps), "covariance": covariance}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One Kalman update."""
        x = state["x"]
        increment, after = self.form.update(
            x, state["covariance"], observation - observing.observe(x), observed, observing
        )
        return {**state, "x": x + increment, "covariance": self.form.scaled(after, self.number("inflation") ** 2)}

    def _deviations(self, covariance: Tensor) -> Tensor:
        return self.form.deviations(covariance)


@dataclass(frozen=True, kw_only=True)
class _Iterate(Iterate):
    """An iterate; its weights belong to the rows of the root at the window's start.

    Attributes
    ----------
    inverse_root : Tensor, shape (B, N, N)
        Inverse square root of the Hessian at the weights.
    """

    inverse_root: Tensor


@register_method
class IteratedKalmanSmoother(SecondOrderKalmanFilter):
    """Iterated extended Kalman smoother of second order, over a window that moves by one interval in each cycle.

    One trajectory and a covariance P stand at the window's start. Gauss-Newton moves the start until it fits the newest
    observations, at the window's end. The older observations were assimilated in earlier cycles. The start and its
    covariance then move by one interval, P <- M P M^T + c2 Q2(P), as in "second-order-kalman". The IEnKS does the same
    with members.

    Parameters
    ----------
    lag : int
        Number of intervals L of the window, at least 1.
    c2 : float or "tune"
        Factor c2 of the second-order term.
    inflation : float or "tune"
        Factor by which the analysis error's standard deviation at the window's start is multiplied.
    tolerance : float
        Gauss-Newton stops if the root mean square of its step, in standard deviations of the window's start, is below
        this.
    iterations : int
        Largest number of iterations. An analysis that reaches it is flagged `unconverged`.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If a number is not positive, or the record is no longer than the lag.

    References
    ----------
    Bell (1994), doi:10.1137/0804035; Bocquet and Sakov (2014), doi:10.1002/qj.2236, for the window.
    """

    name: ClassVar[str] = "iterated-kalman-smoother"
    keeps_covariance: bool = False  # its covariance belongs to the window's start
    perfect_model = True
    windowed: ClassVar[bool] = True

    def __init__(
        self,
        lag: int = 1,
        c2: float | str = "tune",
        inflation: float | str = 1.0,
        tolerance: float = 0.01,
        iterations: int = 10,
    ) -> None:
        super().__init__(c2, inflation)
        self.lag = integer("lag", lag, least=1)
        self.tolerance = real("tolerance", tolerance, above=0.0)
        self.iterations = integer("iterations", iterations, least=1)
        self._window = SlidingWindow(self.lag)
        self.outputs: tuple[Output, ...] = (*SPREADS, self._window.output, self._window.spread, ITERATIONS, UNCONVERGED)

    def check_record(self, record: Record) -> None:
        """Refuse a record that is no longer than the lag."""
        if record.observation.shape[1] <= self.lag:
            raise ValueError(
                f"lag={self.lag}: the record has {record.observation.shape[1]} times; expected more than the lag"
            )
        check_size(record.shape[1], f"the method {self.name!r}")
        super().check_record(record)

    def start(self, record: Record) -> State:
        """Climatological mean and covariance; the window has no intervals yet."""
        state = super().start(record)
        x, covariance = state["x"], state["covariance"]
        zero = x.new_zeros(len(x))
        return {
            **state,
            "begin": x,
            **self._window.opened(x),
            "smoothed": torch.full_like(x, torch.nan),
            "smoothed_spread": torch.full_like(x, torch.nan),
            "forecast_spread": covariance.diagonal(dim1=1, dim2=2).sqrt(),
            "spread": torch.zeros_like(x),
            "iterations": zero,
            "unconverged": zero,
        }

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the state. If the window is full, advance its start and the covariance there."""
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
        """No outputs: the analysis, which runs through the window, computes the forecast's spread."""
        return {}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Damped Gauss-Newton until every trajectory has converged."""
        steps, dynamics = sum(self._window.counts(state)), self._window.at_begin(state, self.dynamics)
        before, root = state["begin"], root_of(state["covariance"])

        def run_along(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
            inside = root[rows]
            return advance_along(dynamics, before[rows] + (weights[:, None] @ inside)[:, 0], inside, steps)

        def linearised(rows: Tensor, weights: Tensor, count: Tensor, end: Tensor, pushed: Tensor) -> _Iterate:
            seen = observed[rows]
            s = observing.whiten(observing.tangent(end, pushed), seen)
            missed = observing.whiten(observation[rows] - observing.observe(end), seen)
            target, inverse_root = Precision(s, missed + (weights[:, None] @ s)[:, 0]).solve(1.0)
            cost = 0.5 * (missed.square().sum(1) + weights.square().sum(1)).detach()
            numbers = {"cost": cost, "scale": torch.ones_like(cost), "count": count + 1}
            return _Iterate(weights=weights, target=target, inverse_root=inverse_root, **numbers)

        def again(rows: Tensor, weights: Tensor, now: _Iterate) -> _Iterate:
            return linearised(rows, weights, now.count, *run_along(rows, weights))

        everyone, nowhere = torch.arange(len(before), device=before.device), torch.zeros_like(before)
        forecast, ahead = run_along(everyone, nowhere)
        first = linearised(everyone, nowhere, before.new_zeros(len(before)), forecast, ahead)
        at, weights, unconverged = minimised(first, again, self.iterations, self.tolerance)
        lost = ~first.cost.isfinite()
        begin = before + (weights[:, None] @ root)[:, 0]
        after = self.number("inflation") * at.inverse_root @ root
        end, pushed = advance_along(dynamics, begin, after, steps)
        return {
            **state,
            "x": torch.where(lost[:, None], torch.nan, end),
            "begin": begin,
            "covariance": after.mT @ after,
            "smoothed": self._window.smoothed(state, begin),
            "smoothed_spread": self._window.smoothed(state, (at.inverse_root @ root).square().sum(1).sqrt()),
            "forecast_spread": ahead.square().sum(1).sqrt(),
            "spread": pushed.square().sum(1).sqrt(),
            "iterations": at.count,
            "unconverged": unconverged.to(at.count.dtype),
        }

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Spreads, the smoothed state, and the iterations of the minimisation."""
        return {output.name: state[output.name] for output in self.outputs}
