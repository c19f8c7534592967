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
from .base import Differentiated
from .dan import DataAssimilationNetwork
from .declarations import SPREADS, Output
from .gaussian_forecast import check_size, forecast_moments
from .kalman import kalman_gain, updated
from .patch_cutting import Cutting, warn_of_reach
from .patches import Patches, analysed, check_observing, deviations
from .rebuilding import past_of, rebuilt_covariance, views_of
from .record import Record, State

_REMEDY = "take network.with_parameters(radius=...), such as 12 grid lengths, or a network without a covariance"
_BEGINNING = 0.03  # variance, in those of the observation error, that a rebuilt covariance begins with


class GuidedNetwork(DataAssimilationNetwork):
    """A network that corrects the analysis of a Kalman filter of second order, whose covariance the state carries.

    The first analysis is that of every network; the covariance begins with the climate's variance at each site. Where
    the network has a `radius` it is kept in patches. Gains of the network are taken at a run's forecasts, with P_a as
    the run carried it; it is held fixed, as memory is.

    Parameters
    ----------
    network : AnalysisNetwork
        With `guides`.
    """

    name: ClassVar[str] = "kalman-dan"
    differentiates_model: ClassVar[bool] = True
    keeps_covariance = True
    outputs: tuple[Output, ...] = SPREADS
    _patches: Patches | None = None
    _seen: Tensor | None = None  # where the covariances that the network sees stand in the patches

    def __init__(self, network: AnalysisNetwork) -> None:
        super().__init__(network)
        self._cutting = Cutting(network.patch_radius, network.companions)

    @property
    def derivatives(self) -> tuple[tuple[Differentiated, Mode], ...]:
        """Of the model, for the covariance, and of the observation operator."""
        return ("model", "forward"), *super().derivatives

    def bound(self, dynamics: Dynamics) -> Self:
        """Return a copy that keeps covariances of this dynamics' states in patches, where the network has a radius."""
        bound = copy.copy(self)
        bound._patches, bound._seen = self._cutting.of(dynamics, self.network.state_mean.device)
        return bound

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


class ModelInAnalysis(GuidedNetwork):
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


class RebuiltGuidedNetwork(ModelInAnalysis):
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
