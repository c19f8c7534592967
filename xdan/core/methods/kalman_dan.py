"""A data assimilation network whose single forecast carries the covariance of its error."""

from __future__ import annotations

import copy
import math
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..derivative_checks import Mode
from ..dynamics import Dynamics
from ..guided_analysis import CarriedCovariance, FilterCovariance, RebuiltCovariance
from ..networks import AnalysisNetwork
from ..observing import ObservingSystem
from .advancing import advance, advance_along
from .base import Differentiated
from .dan import DataAssimilationNetwork, EnsembleNetwork
from .declarations import SPREADS, Output
from .gaussian_forecast import check_size, forecast_moments
from .kalman import kalman_gain, updated
from .patch_cutting import patches_of, warn_of_reach
from .patches import Patches, analysed, check_observing, deviations
from .rebuilding import past_of, rebuilt_covariance, views_of
from .record import Record, State
from .roots import cholesky_or_nan, triangular_root_of
from .windowed import SlidingWindow, pushed

_REMEDY = "take network.with_parameters(radius=...), such as 12 grid lengths, or a network without a covariance"
_CONVERGED = 0.01  # root mean square of a step of Gauss-Newton, in deviations of the window's start
_BEGINNING = 0.03  # variance, in those of the observation error, that a rebuilt covariance begins with


class GuidedNetwork(DataAssimilationNetwork):
    """A network that corrects the analysis of a Kalman filter of second order, whose covariance the state carries.

    The first analysis is that of every network; the covariance begins with the climate's variance at each site. Where
    the network has a `radius` it is kept in patches. Gains of the network are taken at a run's
    forecasts, with P_a as the run carried it; it is held fixed, as memory is.

    Parameters
    ----------
    network : AnalysisNetwork
        With `guides`.
    """

    name: ClassVar[str] = "kalman-dan"
    differentiates_model: ClassVar[bool] = True
    keeps_covariance = True
    outputs: tuple[Output, ...] = SPREADS
    _cut: tuple[Dynamics, Patches | None, Tensor | None] | None = None  # for the dynamics that `bound` got last
    _patches: Patches | None = None
    _seen: Tensor  # where the covariances that the network sees stand in the patches

    @property
    def derivatives(self) -> tuple[tuple[Differentiated, Mode], ...]:
        """Of the model, for the covariance, and of the observation operator."""
        return ("model", "forward"), *super().derivatives

    def bound(self, dynamics: Dynamics) -> Self:
        """Return a copy that keeps covariances of this dynamics' states in patches, where the network has a radius."""
        if self._cut is None or self._cut[0] is not dynamics:
            self._cut = dynamics, *self._cut_for(dynamics)
        bound = copy.copy(self)
        bound._patches, seen = self._cut[1:]
        if seen is not None:
            bound._seen = seen
        return bound

    def _cut_for(self, dynamics: Dynamics) -> tuple[Patches | None, Tensor | None]:
        """The patches, and where the covariances that the network sees stand in them."""
        radius, device = self.network.patch_radius, self.network.state_mean.device
        patches = None if radius is None else patches_of(dynamics, radius)
        if patches is None:
            return None, None
        seen = patches.pairs(self.network.companions(math.prod(dynamics.shape)).cpu())
        return patches.to(device), seen.to(device)

    def check_record(self, record: Record) -> None:
        """Refuse states whose covariance is too large, and observations that patches cannot take."""
        who, patches = f"the network {self.network.name!r}", self.bound(record.dynamics)._patches
        if patches is None:
            check_size(math.prod(record.dynamics.shape), who, _REMEDY)
        else:
            check_observing(record.observing, f"{who} with radius={self.network.patch_radius:g}")
            x = self._climate()[0].to(record.observation).expand(1, record.shape[1])
            warn_of_reach(record.dynamics, patches, x, max(record.steps, default=0))
        super().check_record(record)

    def start_like(self, like: Tensor, shape: tuple[int, int]) -> State:
        """Add the climate's variance, as a covariance (B, N, N), or in patches.

        Raises
        ------
        ValueError
            For states whose covariance is too large.
        """
        if self._patches is None:
            check_size(shape[1], f"the network {self.network.name!r}", _REMEDY)
        state = super().start_like(like, shape)
        return {**state, "covariance": self._diagonal((self._climate()[1].to(like) ** 2).expand(shape))}

    def _diagonal(self, variance: Tensor) -> Tensor:
        """The covariance of independent errors of these variances (B, N)."""
        return torch.diag_embed(variance) if self._patches is None else self._patches.diagonal(variance)

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Optimal interpolation, and the covariance that it leaves."""
        after = super().first(state, observation, observed, observing)
        return {**after, "covariance": analysed(state["x"], state["covariance"], observed, observing, self._patches)}

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the state, and its covariance to second order."""
        covariance = self._propagated(state["x"], state["covariance"], dynamics, steps)
        return {**super().forecast(state, dynamics, steps), "covariance": covariance}

    @torch.no_grad()
    def _propagated(self, x: Tensor, covariance: Tensor, dynamics: Dynamics, steps: int) -> Tensor:
        """M P M^T + c2 Q2(P)."""
        moments = forecast_moments(dynamics, x, covariance, steps, self._patches)
        return moments.inflated(self.network.second_order, self._most(x))

    def _error_std(self, x: Tensor) -> Tensor:
        """Typical observation error, one number or one of each component."""
        return self.network.per_component(self.network.error_std).to(x)

    def _most(self, x: Tensor) -> Tensor:
        """Trace of the climate's covariance, that of each patch where there are patches."""
        variance = (self._climate()[1].to(x) ** 2).expand(x.shape[1])
        return variance.sum() if self._patches is None else self._patches.of(variance[None])[0].sum(1)

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One analysis: the filter's increment, and the network's correction of it."""
        x, p, patches = state["x"], state["covariance"], self._patches
        difference = observation - observing.observe(x)
        zeta = observing.project_innovation(difference, observed, x)
        if patches is None:
            with torch.no_grad():
                gain = kalman_gain(x, p, observed, observing)
                after = updated(x, p, gain, observed, observing)
            innovation = torch.where(observed, difference, torch.zeros_like(observation))
            guides = self.network.guide((gain @ innovation[..., None])[..., 0], after)
        else:
            with torch.no_grad():
                after = patches.analysed(p, observed, observing)
            seen = after.flatten(1)[:, self._seen]
            guides = self.network.guide_by(patches.times(after, zeta), seen)  # K d = P_a H^T R^-1 d
        analysis, memory = self.network(x, zeta, state.get("memory"), guides)
        entries = {**state, "x": analysis, "covariance": after}
        return entries if memory is None else {**entries, "memory": memory}

    def forecast_outputs(self, state: State) -> dict[str, Tensor]:
        """Standard deviation of the forecast, as the filter has it."""
        return {"forecast_spread": deviations(state["covariance"], self._patches)}

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Standard deviation of the filter's analysis, which the network's correction does not change."""
        return {"spread": deviations(state["covariance"], self._patches)}

    def check_kept(self, dynamics: Dynamics) -> None:
        """Refuse to keep the covariance of a state that has it in patches."""
        size, who = math.prod(dynamics.shape), f"the network {self.network.name!r}"
        if self.bound(dynamics)._patches is not None:
            raise ValueError(
                f"{who} and states of {size:,} components, whose covariance is in patches of "
                f"radius={self.network.patch_radius:g}: expected one matrix, to keep it or to take gains. Leave "
                "members= out, or take network.with_parameters(radius=None)"
            )
        check_size(size, who, "leave members= out, and do without gains")

    def check_gains(self, dynamics: Dynamics) -> None:
        """Refuse states whose covariance is no matrix."""
        self.check_kept(dynamics)

    def covariance_at(
        self, x: Tensor, carried: Tensor | None, observed: Tensor | None, observing: ObservingSystem, steps: int
    ) -> FilterCovariance:
        """P_a as the run carried it."""
        if carried is None:
            raise ValueError(f"{self.name!r} has no covariance of a state alone: expected the one that a run kept")
        return CarriedCovariance(carried)


class _ModelInAnalysis(GuidedNetwork):
    """A network whose analysis runs the model itself, and knows the spreads of forecast and analysis only then."""

    setting: ClassVar[str]  # the network's parameter that makes the analysis run the model
    keeps_covariance = False

    def bound(self, dynamics: Dynamics) -> Self:
        """Return a copy that runs the dynamics.

        Raises
        ------
        ValueError
            For a model that depends on time.
        """
        if not dynamics.autonomous:
            raise ValueError(
                f"a network with {self.setting}={getattr(self.network, self.setting)} and the dynamics "
                f"{dynamics.label!r}, which depends on time: expected one that does not, or {self.setting}=0"
            )
        bound = super().bound(dynamics)
        bound.dynamics = dynamics
        return bound

    def forecast_outputs(self, state: State) -> dict[str, Tensor]:
        """None yet."""
        return {}

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Entries of the state."""
        return {output.name: state[output.name] for output in self.outputs}


class RebuiltGuidedNetwork(_ModelInAnalysis):
    """A network beside a Kalman filter that carries no covariance: each analysis rebuilds it from the forecast alone.

    The model runs backward from the forecast, `past` intervals as long as the last one, and the filter forward again,
    as if the past had been observed like the present. The state is the forecast, besides the network's memory. Gains of
    the network are taken at any state; P_a follows from it, and its derivative is part of theirs.

    Parameters
    ----------
    network : AnalysisNetwork
        With `guides` and a `past`.
    """

    name: ClassVar[str] = "kalman-dan-rebuilt"
    setting: ClassVar[str] = "past"
    rebuilds_covariance: ClassVar[bool] = True

    def start_like(self, like: Tensor, shape: tuple[int, int]) -> State:
        """Add the model steps of the last interval, and no covariance."""
        state = super().start_like(like, shape)
        spread = deviations(state["covariance"], self._patches)
        del state["covariance"]
        steps = torch.zeros(shape[0], dtype=torch.int64, device=like.device)
        return {**state, "steps": steps, "forecast_spread": spread, "spread": torch.zeros_like(spread)}

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Optimal interpolation."""
        variance = self._diagonal(state["forecast_spread"].square())
        return self._settled(super().first({**state, "covariance": variance}, observation, observed, observing))

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the state."""
        count = torch.full_like(state["steps"], steps)
        return {**DataAssimilationNetwork.forecast(self, state, dynamics, steps), "steps": count}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One analysis, with a covariance that the forecast alone tells."""
        with torch.no_grad():
            covariance = self._rebuilt(state["x"].detach(), int(state["steps"].max()), observed, observing)
        before = {**state, "covariance": covariance, "forecast_spread": deviations(covariance, self._patches)}
        return self._settled(super().analyse(before, observation, observed, observing))

    def check_gains(self, dynamics: Dynamics) -> None:
        """Refuse a model that has no derivatives, or depends on time, and states whose covariance is too large."""
        super().check_gains(dynamics)
        self.check_dynamics(dynamics)

    def covariance_at(
        self, x: Tensor, carried: Tensor | None, observed: Tensor | None, observing: ObservingSystem, steps: int
    ) -> FilterCovariance:
        """P_a as the forecast alone tells it."""
        assert observed is not None

        def rebuild(x: Tensor, observed: Tensor, observing: ObservingSystem) -> Tensor:
            return analysed(x, self._rebuilt(x, steps, observed, observing), observed, observing, None)

        return RebuiltCovariance(x, observed, observing, rebuild)

    def _rebuilt(self, x: Tensor, steps: int, observed: Tensor, observing: ObservingSystem) -> Tensor:
        """Covariance of the forecast x."""
        counts, (mean, std) = [steps] * self.network.past, self._climate()
        views = views_of(self.dynamics, counts)
        past = past_of(views, x, counts, (mean.to(x), std.to(x)))
        start = self._diagonal((_BEGINNING * self._error_std(x) ** 2).expand(x.shape))
        masks, c2 = [observed] * len(counts), self.network.second_order
        most, patches = self._most(x), self._patches
        return rebuilt_covariance(views, past, counts, masks, start, observing, c2, most, patches)

    def _settled(self, state: State) -> State:
        """The state after an analysis: its spread in place of its covariance."""
        after = {**state, "spread": deviations(state["covariance"], self._patches)}
        del after["covariance"]
        return after


class LaggedGuidedNetwork(_ModelInAnalysis):
    """A network beside a Kalman filter that corrects a state some intervals back, which the model runs to the present.

    Trajectories have windows of their own: one that starts anew has a window without length. The state holds the model
    steps of each of the last L intervals in `steps`, (B, L), 0 for those before a trajectory began; the window's start
    in `begin`, and the covariance there.

    Parameters
    ----------
    network : AnalysisNetwork
        With `guides` and a `lag`.
    """

    name: ClassVar[str] = "kalman-dan-lagged"
    setting: ClassVar[str] = "lag"

    def __init__(self, network: AnalysisNetwork) -> None:
        super().__init__(network)
        self._window = SlidingWindow(network.lag)
        self.outputs = (*SPREADS, self._window.output)

    def check_gains(self, dynamics: Dynamics) -> None:
        """Refuse: the analysis is made at the start of a window, of which a run keeps neither state nor covariance."""
        raise ValueError(
            f"the network {self.network.name!r} with lag={self.network.lag} corrects a state {self.network.lag} "
            "intervals back, and a gain is the derivative of an analysis by the forecast of its time: expected lag=0; "
            "network.with_parameters(lag=0, passes=1) is a network of the same weights, and network.with_parameters("
            "lag=0, passes=1, past=36) one whose gains can be taken at a truth's states too; neither was trained so"
        )

    def check_record(self, record: Record) -> None:
        """Refuse a record that is no longer than the lag, of which no state would be smoothed."""
        if record.observation.shape[1] <= self.network.lag:
            raise ValueError(
                f"a network with lag={self.network.lag}: the record has {record.observation.shape[1]} times; expected "
                "more than the lag"
            )
        super().check_record(record)

    def start_like(self, like: Tensor, shape: tuple[int, int]) -> State:
        """Add the window's start, and no intervals."""
        state = super().start_like(like, shape)
        x = state["x"]
        nothing = {
            "smoothed": torch.full_like(x, torch.nan),
            "forecast_spread": deviations(state["covariance"], self._patches),
        }
        return {**state, "begin": x, **self._window.opened(x), "spread": torch.zeros_like(x), **nothing}

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Optimal interpolation; the window begins here."""
        after = super().first(state, observation, observed, observing)
        return {**after, "begin": after["x"], "spread": deviations(after["covariance"], self._patches)}

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the state and, of full windows, the start with the covariance there."""
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
                start = innovation.detach(), rows, seen
                (innovation, rows, seen), weights = self._iterated(start, state, root, observation, observed, observing)
            unit = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
            precision = cholesky_or_nan(unit + seen @ seen.mT)  # of the weights, given the observations
            parts = torch.linalg.solve_triangular(precision, torch.cat([root, seen, rows], -1), upper=False)
            before, observation_side, present = parts.tensor_split((root.shape[2], root.shape[2] + seen.shape[2]), -1)
            gain, covariance = before.mT @ observation_side, before.mT @ before
            projection = root.mT @ seen
        if weights is None:
            increment = (gain @ innovation[..., None])[..., 0]
        else:
            # The gradient of the passes is that of the last one: the innovation changes as that of the forecast does.
            change = at_forecast - at_forecast.detach()
            innovation = innovation + change
            increment = (root.mT @ weights[..., None] + gain @ change[..., None])[..., 0]
        guides = self.network.guide(increment, covariance)
        zeta = (projection @ innovation[..., None])[..., 0] / self._error_std(x) ** 2
        analysis, memory = self.network(begin, zeta, state.get("memory"), guides)
        entries = {
            **state,
            "x": self._run(analysis, state["steps"]),
            "begin": analysis,
            "covariance": covariance,
            "forecast_spread": forecast_spread,
            "spread": present.square().sum(1).sqrt(),
            "smoothed": torch.where((state["steps"][:, 0] > 0)[:, None], analysis.detach(), torch.nan),
        }
        return entries if memory is None else {**entries, "memory": memory}

    def _linearised(
        self, begin: Tensor, root: Tensor, steps: Tensor, observed: Tensor, observing: ObservingSystem
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The present that a window's start leads to, the rows of a root there, and as they are observed."""
        end, rows = self._run_along(begin, root, steps)
        return end, rows, observing.whiten(observing.tangent(end, rows), observed)

    def _iterated(
        self,
        start: tuple[Tensor, Tensor, Tensor],
        state: State,
        root: Tensor,
        observation: Tensor,
        observed: Tensor,
        observing: ObservingSystem,
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """More passes of Gauss-Newton: innovation, rows and observed rows about the best point, and where to go.

        A point is begin + w S; the rows of S are the root, w their weights. The innovation that is returned is
        extrapolated linearly to w = 0. A step that does not bring the cost down is halved. The weights that are
        returned are the last target, or those of the best point where the passes ran out.
        """
        innovation, rows, seen = start
        begin, steps = state["begin"].detach(), state["steps"]
        weights = torch.zeros_like(begin)
        cost, scale = 0.5 * innovation.square().sum(1), torch.ones_like(begin[:, :1])
        unit = torch.eye(root.shape[1], dtype=root.dtype, device=root.device)
        active = torch.arange(len(begin), device=begin.device)
        best = weights.clone()
        for remaining in range(self.network.passes - 1, -1, -1):
            observed_rows, missing = seen[active], innovation[active]
            precision = cholesky_or_nan(unit + observed_rows @ observed_rows.mT)
            target = torch.cholesky_solve(observed_rows @ missing[..., None], precision)[..., 0]
            step = scale[active] * (target - weights[active])
            going = step.square().mean(1) >= _CONVERGED**2  # not where it is not a number: that trajectory is lost
            best[active] = torch.where(going[:, None], weights[active], target)
            active, tried = active[going], (weights[active] + step)[going]
            if not len(active) or not remaining:
                break
            inside, observed_now = root[active], observed[active]
            now = begin[active] + (tried[:, None] @ inside)[:, 0]
            end, along, observed_along = self._linearised(now, inside, steps[active], observed_now, observing)
            missed = observing.whiten(observation[active] - observing.observe(end), observed_now)
            value = 0.5 * (missed.square().sum(1) + tried.square().sum(1))
            slack = torch.finfo(value.dtype).eps ** 0.5 * cost[active].abs()
            better = value <= cost[active] + slack
            scale[active] = torch.where(better[:, None], 1.0, 0.5 * scale[active])
            to, of = active[better], better.nonzero()[:, 0]
            weights[to], cost[to] = tried[of], value[of]
            linear = missed + (tried[:, None] @ observed_along)[:, 0]
            rows, seen, innovation = (
                old.index_copy(0, to, new[of])
                for old, new in ((rows, along), (seen, observed_along), (innovation, linear))
            )
            best[active] = weights[active]
        return (innovation, rows, seen), best

    def _run(self, x: Tensor, steps: Tensor) -> Tensor:
        """Run states (B, N) through the intervals of their windows."""
        for inside, count in _intervals(steps):
            x = torch.where(inside[:, None], advance(self.dynamics, x, count), x)
        return x

    def _run_along(self, x: Tensor, directions: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Run directions (B, M, N) with them, by the tangent linear model."""
        for inside, count in _intervals(steps):
            after, moved = advance_along(self.dynamics, x, directions, count)
            x = torch.where(inside[:, None], after, x)
            directions = torch.where(inside[:, None, None], moved, directions)
        return x, directions


def _intervals(steps: Tensor) -> list[tuple[Tensor, int]]:
    """For each interval that is in some window: of which, (B,), and its model steps."""
    return [(steps[:, k] > 0, count) for k, count in enumerate(steps.amax(0).tolist()) if count]


def method_of(network: AnalysisNetwork) -> DataAssimilationNetwork:
    """Return the method for a network: of one forecast, of members, or with a covariance."""
    if network.guides:
        kind = LaggedGuidedNetwork if network.lag else RebuiltGuidedNetwork if network.past else GuidedNetwork
        return kind(network)
    return EnsembleNetwork(network) if network.ensemble else DataAssimilationNetwork(network)
