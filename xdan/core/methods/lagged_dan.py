"""A data assimilation network beside a Kalman filter, which corrects the state some intervals earlier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..networks import AnalysisNetwork
from ..observing import ObservingSystem
from ..roots import cholesky_or_nan, cholesky_solved, triangular_root_of
from .advancing import advance, advance_along
from .declarations import SPREADS
from .iterates import Iterate, minimised
from .kalman_dan import ModelInAnalysis
from .network_methods import cycles_networks
from .record import Record, State
from .windowed import SlidingWindow, pushed

_CONVERGED = 0.01  # limit of the root mean square Gauss-Newton step, in standard deviations of the window's start


@dataclass(frozen=True, kw_only=True)
class _Iterate(Iterate):
    """An iterate in weights. A weight belongs to each row of the root at the window's start.

    Attributes
    ----------
    innovation : Tensor, shape (B, P)
        Whitened innovation, extrapolated linearly to zero weights.
    along, seen : Tensor, shape (B, N, N) and (B, N, P)
        Rows of the root at the window's end; and these rows in observation space, whitened.
    """

    innovation: Tensor
    along: Tensor
    seen: Tensor

    @classmethod
    def at_weights(cls, weights: Tensor, missed: Tensor, along: Tensor, seen: Tensor, count: Tensor) -> Self:
        """The iterate at weights (B, N) that leave a whitened innovation `missed` (B, P)."""
        innovation = missed + (weights[:, None] @ seen)[:, 0]
        unit = torch.eye(seen.shape[1], dtype=seen.dtype, device=seen.device)
        precision = cholesky_or_nan(unit + seen @ seen.mT)
        target = cholesky_solved(seen @ innovation[..., None], precision)[..., 0]
        cost = 0.5 * (missed.square().sum(1) + weights.square().sum(1))
        numbers = {"cost": cost, "scale": torch.ones_like(cost), "count": count}
        return cls(weights=weights, target=target, innovation=innovation, along=along, seen=seen, **numbers)


@cycles_networks
class LaggedGuidedNetwork(ModelInAnalysis):
    """A network beside a Kalman filter that corrects the state some intervals earlier, and runs the model from there.

    Each trajectory has a window. If a trajectory starts anew, its window has no intervals. Entries of the state are:
    `steps`, (B, L), the model steps of each of the last L intervals, 0 for intervals before the trajectory began;
    `begin`, the state at the window's start; and the covariance there.

    Parameters
    ----------
    network : AnalysisNetwork
        A network that `guides` and has a `lag`.
    """

    name: ClassVar[str] = "kalman-dan-lagged"
    setting: ClassVar[str] = "lag"

    def __init__(self, network: AnalysisNetwork) -> None:
        super().__init__(network)
        self._window = SlidingWindow(network.lag)
        self.outputs = (*SPREADS, self._window.output, self._window.spread)

    def check_gains(self, dynamics: Dynamics) -> None:
        """Refuse gains: the analysis is made at the window's start, whose state and covariance a run does not store."""
        raise ValueError(
            f"the network {self.network.name!r} with lag={self.network.lag} corrects a state {self.network.lag} "
            "intervals back, and a gain is the derivative of an analysis by the forecast of its time: expected lag=0; "
            "network.with_parameters(lag=0, passes=1) is a network of the same weights, and network.with_parameters("
            "lag=0, passes=1, past=36) one whose gains can be taken at a truth's states too; neither was trained so"
        )

    def check_record(self, record: Record) -> None:
        """Refuse a record that is no longer than the lag: no state of it would be smoothed."""
        if record.observation.shape[1] <= self.network.lag:
            raise ValueError(
                f"a network with lag={self.network.lag}: the record has {record.observation.shape[1]} times; expected "
                "more than the lag"
            )
        super().check_record(record)

    def start_like(self, like: Tensor, shape: tuple[int, int]) -> State:
        """State of the base class, with the window's start, and without intervals."""
        state = super().start_like(like, shape)
        x = state["x"]
        nothing = {
            "smoothed": torch.full_like(x, torch.nan),
            "smoothed_spread": torch.full_like(x, torch.nan),
            "forecast_spread": self.form.deviations(state["covariance"]),
        }
        return {**state, "begin": x, **self._window.opened(x), "spread": torch.zeros_like(x), **nothing}

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Optimal interpolation; the window begins here."""
        after = super().first(state, observation, observed, observing)
        return {**after, "begin": after["x"], "spread": self.form.deviations(after["covariance"])}

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the state. If a window is full, advance its start and the covariance there."""
        oldest = state["steps"][:, 0]
        begin, covariance = state["begin"], state["covariance"]
        if (count := int(oldest.max())) > 0:
            moved = self._propagated(begin, covariance, dynamics, count)
            covariance = torch.where((oldest > 0)[:, None, None], moved, covariance)
            begin = torch.where((oldest > 0)[:, None], advance(dynamics, begin, count), begin)
        return {
            **state,
            "x": advance(dynamics, state["x"], steps),
            "begin": begin,
            "covariance": covariance,
            "steps": pushed(state["steps"], torch.full_like(oldest, steps)),
        }

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One analysis at the window's start, run to the present."""
        x, begin = state["x"], state["begin"]
        innovation = at_forecast = observing.whiten(observation - observing.observe(x), observed)
        weights = None
        with torch.no_grad():
            root = triangular_root_of(state["covariance"])
            rows, seen = self._linearised(begin.detach(), root, state["steps"], observed, observing)[1:]
            forecast_spread = rows.square().sum(1).sqrt()
            if self.network.passes > 1:
                nowhere, count = torch.zeros_like(begin), torch.zeros_like(begin[:, 0])
                first = _Iterate.at_weights(nowhere, innovation.detach(), rows, seen, count)
                at, weights = self._passed(first, state, root, observation, observed, observing)
                innovation, rows, seen = at.innovation, at.along, at.seen
            unit = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
            precision = cholesky_or_nan(unit + seen @ seen.mT)  # posterior precision of the weights
            parts = torch.linalg.solve_triangular(precision, torch.cat([root, seen, rows], -1), upper=False)
            before, observation_side, present = parts.tensor_split((root.shape[2], root.shape[2] + seen.shape[2]), -1)
            gain, covariance = before.mT @ observation_side, before.mT @ before
            projection = root.mT @ seen
        if weights is None:
            increment = (gain @ innovation[..., None])[..., 0]
        else:
            # The gradient goes through the last pass only: the innovation changes as the forecast's innovation does.
            change = at_forecast - at_forecast.detach()
            innovation = innovation + change
            increment = (root.mT @ weights[..., None] + gain @ change[..., None])[..., 0]
        guides = self.network.guide(increment, covariance)
        zeta = (projection @ innovation[..., None])[..., 0] / self._error_std(x) ** 2
        analysis, memory = self.network(begin, zeta, state.get("memory"), guides)
        full = (state["steps"][:, 0] > 0)[:, None]
        entries = {
            **state,
            "x": self._run(analysis, state["steps"]),
            "begin": analysis,
            "covariance": covariance,
            "forecast_spread": forecast_spread,
            "spread": present.square().sum(1).sqrt(),
            "smoothed": torch.where(full, analysis.detach(), torch.nan),
            "smoothed_spread": torch.where(full, self.form.deviations(covariance), torch.nan),
        }
        return entries if memory is None else {**entries, "memory": memory}

    def _linearised(
        self, begin: Tensor, root: Tensor, steps: Tensor, observed: Tensor, observing: ObservingSystem
    ) -> tuple[Tensor, Tensor, Tensor]:
        """State at the present for a window's start, the rows of a root there, and these rows in observation space."""
        end, rows = self._run_along(begin, root, steps)
        return end, rows, observing.whiten(observing.tangent(end, rows), observed)

    def _passed(
        self,
        first: _Iterate,
        state: State,
        root: Tensor,
        observation: Tensor,
        observed: Tensor,
        observing: ObservingSystem,
    ) -> tuple[_Iterate, Tensor]:
        """The best iterate after all passes of Gauss-Newton, and the weights of the result.

        The state at the window's start is begin + w S, where S is the root (rows) and w are the weights.
        """
        begin, steps = state["begin"].detach(), state["steps"]

        def again(index: Tensor, weights: Tensor, now: _Iterate) -> _Iterate:
            inside, seen = root[index], observed[index]
            start = begin[index] + (weights[:, None] @ inside)[:, 0]
            end, along, observed_along = self._linearised(start, inside, steps[index], seen, observing)
            missed = observing.whiten(observation[index] - observing.observe(end), seen)
            return _Iterate.at_weights(weights, missed, along, observed_along, now.count + 1)

        return minimised(first, again, self.network.passes, _CONVERGED)[:2]

    def _run(self, x: Tensor, steps: Tensor) -> Tensor:
        """Run states (B, N) through the intervals of their windows."""
        for inside, count in _intervals(steps):
            x = torch.where(inside[:, None], advance(self.dynamics, x, count), x)
        return x

    def _run_along(self, x: Tensor, directions: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Run states (B, N), and directions (B, M, N) by the tangent linear model, through their windows."""
        for inside, count in _intervals(steps):
            after, moved = advance_along(self.dynamics, x, directions, count)
            x = torch.where(inside[:, None], after, x)
            directions = torch.where(inside[:, None, None], moved, directions)
        return x, directions


def _intervals(steps: Tensor) -> list[tuple[Tensor, int]]:
    """For each interval of some window: which trajectories have it, (B,), and its model steps."""
    return [(steps[:, k] > 0, count) for k, count in enumerate(steps.amax(0).tolist()) if count]
