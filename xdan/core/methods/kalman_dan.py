"""Data assimilation networks beside a Kalman filter of second order."""

from __future__ import annotations

import copy
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..derivative_checks import Mode
from ..dynamics import Dynamics
from ..guided_analysis import CarriedCovariance, FilterCovariance, RebuiltCovariance
from ..networks import AnalysisNetwork
from ..observing import ObservingSystem
from .backward import BackwardPass, GaussianBackward
from .base import Differentiated
from .covariance_forms import CovarianceForm, FormOf, OneMatrix, check_form
from .dan import DataAssimilationNetwork
from .declarations import SPREADS, Output
from .network_methods import cycles_networks
from .rebuilding import past_of, rebuilt_covariance, views_of
from .record import Record, State

_REMEDY = (
    "take network.with_parameters(radius=...), such as 12 grid lengths, or (columns=...), such as 32, or a network "
    "without a covariance"
)
_BEGINNING = 0.03  # first variance of a rebuilt covariance, in units of the observation error's variance


@cycles_networks
class GuidedNetwork(DataAssimilationNetwork):
    """A network that corrects the analysis of a second-order Kalman filter. The state carries the filter's covariance.

    The first analysis is that of every network. The covariance begins with the climate's variance at each site. A
    network with a `radius` keeps the covariance in patches; a network with `columns` keeps that many columns of a root.
    Gains of the network are taken at a run's forecasts, with the P_a that the run stored. P_a is constant in these
    derivatives, like the memory.

    Parameters
    ----------
    network : AnalysisNetwork
        A network that `guides`.
    """

    name: ClassVar[str] = "kalman-dan"
    differentiates_model: ClassVar[bool] = True
    backward: ClassVar[type[BackwardPass] | None] = GaussianBackward
    keeps_covariance = True
    outputs: tuple[Output, ...] = SPREADS
    form: CovarianceForm

    def __init__(self, network: AnalysisNetwork) -> None:
        super().__init__(network)
        self._forms = FormOf(network.patch_radius, network.covariance_columns, network.companions)
        self.form = OneMatrix(network.companions)

    @property
    def derivatives(self) -> tuple[tuple[Differentiated, Mode], ...]:
        """Derivatives of the model, for the covariance, and of the observation operator."""
        return ("model", "forward"), *super().derivatives

    def bound(self, dynamics: Dynamics) -> Self:
        """Return a copy with the network's form of covariance, for the states of this dynamics."""
        bound = copy.copy(self)
        bound.form = self._forms.of(dynamics, self.network.state_mean.device)
        return bound

    def recordable(self, dynamics: Dynamics) -> bool:
        """Whether the form of the covariance is recordable."""
        return self.bound(dynamics).form.recordable(dynamics)

    def check_backward(self, dynamics: Dynamics) -> None:
        """Refuse a backward pass, also if the covariance is kept in patches or columns."""
        super().check_backward(dynamics)
        form = self.bound(dynamics).form
        if not form.whole:
            raise ValueError(
                f"smooth=True: the network {self.network.name!r} with {form.words} has no backward pass: expected a "
                "covariance in one matrix; take network.with_parameters(radius=None, columns=None), or an ensemble "
                "method such as 'etkf'"
            )

    def check_record(self, record: Record) -> None:
        """Refuse states whose covariance is too large, and observations that the form of covariance cannot use."""
        who, form = f"the network {self.network.name!r}", self.bound(record.dynamics).form
        check_form(form, record.dynamics.shape, who, _REMEDY)
        form.check_observing(record.observing, who)
        if record.dynamics.given_climate is None:
            form.check_first(record.observing, who)
        x = self._climate()[0].to(record.observation).expand(1, record.shape[1])
        form.warn(record.dynamics, x, max(record.steps, default=0))
        super().check_record(record)

    def check_training(self, dynamics: Dynamics, observing: ObservingSystem) -> None:
        """Refuse observations that the form of covariance cannot use, or cannot start from."""
        who, form = f"the network {self.network.name!r}", self.bound(dynamics).form
        form.check_observing(observing, who)
        form.check_first(observing, who)

    def start(self, record: Record) -> State:
        """Begin at the climate that the network knows. With columns: at the climatology that the record has."""
        state = super().start(record)
        if not self.form.begins_at_climate or record.dynamics.given_climate is None:
            return state
        mean, covariance, _ = self.form.climate(record.dynamics, record.seed, record.observation)
        rows = len(record.observation)
        return {**state, "x": mean.expand(record.shape), "covariance": covariance.expand(rows, *covariance.shape)}

    def start_like(self, like: Tensor, shape: tuple[int, int]) -> State:
        """State of the base class, with the climate's variance as a covariance.

        Raises
        ------
        ValueError
            If the covariance of the states is too large.
        """
        check_form(self.form, shape[1:], f"the network {self.network.name!r}", _REMEDY)
        state = super().start_like(like, shape)
        return {**state, "covariance": self.form.diagonal((self._climate()[1].to(like) ** 2).expand(shape))}

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Optimal interpolation, and the covariance that it leaves. With columns: a Kalman update of the columns."""
        if self.form.begins_at_climate:
            x = state["x"]
            innovation = observation - observing.observe(x)
            increment, covariance = self.form.update(x, state["covariance"], innovation, observed, observing)
            return {**state, "x": x + self.network.conserving(increment), "covariance": covariance}
        after = super().first(state, observation, observed, observing)
        return {**after, "covariance": self.form.analysed(state["x"], state["covariance"], observed, observing)}

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the state, and advance its covariance to second order."""
        covariance = self._propagated(state["x"], state["covariance"], dynamics, steps)
        return {**super().forecast(state, dynamics, steps), "covariance": covariance}

    @torch.no_grad()
    def _propagated(self, x: Tensor, covariance: Tensor, dynamics: Dynamics, steps: int) -> Tensor:
        """M P M^T + c2 Q2(P), where P is the inflated covariance."""
        if self.network.inflation != 1.0:
            covariance = self.form.scaled(covariance, self.network.inflation**2)
        return self.form.forecast(dynamics, x, covariance, steps, self.network.second_order, self._most(x))

    def _error_std(self, x: Tensor) -> Tensor:
        """Typical observation error: one number, or one for each component."""
        return self.network.per_component(self.network.error_std).to(x)

    def _most(self, x: Tensor) -> Tensor:
        """Trace of the climate's covariance; for patches one trace for each patch."""
        return self.form.bound((self._climate()[1].to(x) ** 2).expand(x.shape[1]))

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One analysis: the filter's increment, and the network's correction of this increment."""
        x, innovation = state["x"], observation - observing.observe(state["x"])
        zeta = observing.project_innovation(innovation, observed, x)
        held = x.detach(), state["covariance"].detach()  # no gradient goes through K
        increment, after = self.form.update(*held, innovation, observed, observing)
        guides = self.network.guide_by(increment, self.form.seen(after))
        analysis, memory = self.network(x, zeta, state.get("memory"), guides)
        entries = {**state, "x": analysis, "covariance": after}
        return entries if memory is None else {**entries, "memory": memory}

    def forecast_outputs(self, state: State) -> dict[str, Tensor]:
        """Standard deviation of the forecast, from the filter's covariance."""
        return {"forecast_spread": self.form.deviations(state["covariance"])}

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Standard deviation of the filter's analysis. The network's correction does not change it."""
        return {"spread": self.form.deviations(state["covariance"])}

    def check_kept(self, dynamics: Dynamics) -> None:
        """Refuse to store the covariance of a state that is kept in patches or columns."""
        size, who, form = dynamics.space.size, f"the network {self.network.name!r}", self.bound(dynamics).form
        if not form.whole:
            raise ValueError(
                f"{who} and states of {size:,} components, whose covariance is kept with {form.words}: expected one "
                "matrix, to keep it or to take gains. Leave members= out, or take network.with_parameters(radius=None, "
                "columns=None)"
            )
        check_form(form, dynamics.shape, who, "leave members= out, and do without gains")

    def check_gains(self, dynamics: Dynamics) -> None:
        """Refuse states whose covariance is not one matrix."""
        self.check_kept(dynamics)

    def covariance_at(
        self, x: Tensor, carried: Tensor | None, observed: Tensor | None, observing: ObservingSystem, steps: int
    ) -> FilterCovariance:
        """P_a that the run stored."""
        if carried is None:
            raise ValueError(f"{self.name!r} has no covariance of a state alone: expected the one that a run kept")
        return CarriedCovariance(carried)


class ModelInAnalysis(GuidedNetwork):
    """A network whose analysis runs the model. The analysis alone knows the spreads of the forecast and analysis."""

    setting: ClassVar[str]  # parameter of the network that makes the analysis run the model
    backward: ClassVar[type[BackwardPass] | None] = None
    no_backward: ClassVar[str] = "it carries no covariance from an analysis to the next forecast"
    keeps_covariance = False

    def recordable(self, dynamics: Dynamics) -> bool:
        """False: the number of model steps is read from the state."""
        return False

    def bound(self, dynamics: Dynamics) -> Self:
        """Return a copy with the dynamics that the analysis runs.

        Raises
        ------
        ValueError
            If the model depends on time.
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
        """No outputs: the analysis knows them first."""
        return {}

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Entries of the state that are outputs."""
        return {output.name: state[output.name] for output in self.outputs}


@cycles_networks
class RebuiltGuidedNetwork(ModelInAnalysis):
    """A network beside a Kalman filter that carries no covariance. Each analysis computes it from the forecast alone.

    The model runs backward from the forecast, through `past` intervals that are as long as the last one. The filter
    then runs forward through them, as if the past had the observing system of the present. The state is the forecast
    and the network's memory. Gains of the network can be taken at any state: P_a is a function of the state, and the
    derivatives include that of P_a.

    Parameters
    ----------
    network : AnalysisNetwork
        A network that `guides` and has a `past`.
    """

    name: ClassVar[str] = "kalman-dan-rebuilt"
    setting: ClassVar[str] = "past"
    rebuilds_covariance: ClassVar[bool] = True

    def start_like(self, like: Tensor, shape: tuple[int, int]) -> State:
        """State with the number of model steps of the last interval, and without a covariance."""
        state = super().start_like(like, shape)
        spread = self.form.deviations(state["covariance"])
        del state["covariance"]
        steps = torch.zeros(shape[0], dtype=torch.int64, device=like.device)
        return {**state, "steps": steps, "forecast_spread": spread, "spread": torch.zeros_like(spread)}

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Optimal interpolation from the climatology."""
        variance = self.form.diagonal(state["forecast_spread"].square())
        return self._settled(super().first({**state, "covariance": variance}, observation, observed, observing))

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the state by the model."""
        count = torch.full_like(state["steps"], steps)
        return {**DataAssimilationNetwork.forecast(self, state, dynamics, steps), "steps": count}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One analysis, with a covariance from the forecast alone."""
        with torch.no_grad():
            covariance = self._rebuilt(state["x"].detach(), int(state["steps"].max()), observed, observing)
        before = {**state, "covariance": covariance, "forecast_spread": self.form.deviations(covariance)}
        return self._settled(super().analyse(before, observation, observed, observing))

    def check_gains(self, dynamics: Dynamics) -> None:
        """Refuse a model without derivatives, a model that depends on time, and states with too large a covariance."""
        super().check_gains(dynamics)
        self.check_dynamics(dynamics)

    def covariance_at(
        self, x: Tensor, carried: Tensor | None, observed: Tensor | None, observing: ObservingSystem, steps: int
    ) -> FilterCovariance:
        """P_a from the forecast alone."""
        assert observed is not None

        def rebuild(x: Tensor, observed: Tensor, observing: ObservingSystem) -> Tensor:
            return self.form.analysed(x, self._rebuilt(x, steps, observed, observing), observed, observing)

        return RebuiltCovariance(x, observed, observing, rebuild)

    def _rebuilt(self, x: Tensor, steps: int, observed: Tensor, observing: ObservingSystem) -> Tensor:
        """Error covariance of the forecast x."""
        counts, (mean, std) = [steps] * self.network.past, self._climate()
        views = views_of(self.dynamics, counts)
        past = past_of(views, x, counts, (mean.to(x), std.to(x)))
        start = self.form.diagonal((_BEGINNING * self._error_std(x) ** 2).expand(x.shape))
        masks, c2 = [observed] * len(counts), self.network.second_order
        return rebuilt_covariance(views, past, counts, masks, start, observing, c2, self._most(x), self.form)

    def _settled(self, state: State) -> State:
        """The state after an analysis, with its spread in the place of its covariance."""
        after = {**state, "spread": self.form.deviations(state["covariance"])}
        del after["covariance"]
        return after
