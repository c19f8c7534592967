"""The data assimilation network as a method, with the same protocol as the classical methods."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..derivative_checks import Mode
from ..dynamics import CorrectedDynamics, Dynamics
from ..guided_analysis import FilterCovariance
from ..local_roots import LocalRoot
from ..networks import AnalysisNetwork
from ..observing import ObservingSystem
from ..random import Purpose, normal
from ..tendencies import TendencyNetwork
from .backward import BackwardPass, EnsembleBackward
from .base import CLIMATE_STATES, Differentiated, Method
from .declarations import SPREADS, Output
from .network_methods import cycles_networks
from .record import Record, State


@cycles_networks
class DataAssimilationNetwork(Method):
    """A single forecast that a network corrects, Eq. 2 and 22.

    The state is the forecast and, if the network has memory, its latent channels. The first analysis of a record is
    optimal interpolation at each site, from the climatological mean and variance of the network's training. The network
    then starts from errors whose size it knows.

    Parameters
    ----------
    network : AnalysisNetwork

    Attributes
    ----------
    rebuilds_covariance : bool
        Class attribute: whether `covariance_at` computes P_a from the forecast alone.
    """

    name: ClassVar[str] = "dan"
    no_backward: ClassVar[str] = "a network with a single forecast has no covariance"
    rebuilds_covariance: ClassVar[bool] = False

    def __init__(self, network: AnalysisNetwork) -> None:
        self.network, self.members, self.channels = network, network.members, network.memory

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters."""
        return {"network": self.network.name, **self.network.config()}

    def with_members(self, count: int) -> Self:
        """Return a copy with another number of members.

        Raises
        ------
        ValueError
            If the network works with one number of members only.
        """
        raise ValueError(f"the network {self.network.name!r} serves one number of members: expected no other, {count}")

    def recordable(self, dynamics: Dynamics) -> bool:
        """Whether cycles on a GPU read no number back to the CPU, so that training may record them as a CUDA graph."""
        return True

    def check_training(self, dynamics: Dynamics, observing: ObservingSystem) -> None:
        """Refuse, before training starts, a dynamics or observations that the method cannot be trained with.

        Raises
        ------
        ValueError
        """

    def climate_variance(self, dynamics: Dynamics, observing: ObservingSystem, seed: int) -> Tensor:
        """Variance of H(x) over states with the mean and standard deviation of the network's training."""
        mean, std = (value.cpu().double() for value in self._climate())
        if observing.direct:
            return std**2
        labels, origin = torch.arange(CLIMATE_STATES), torch.zeros(1, dtype=torch.int64)
        noise = normal(0, Purpose.CLIMATOLOGY, labels, origin, math.prod(dynamics.shape))[:, 0]
        return observing.climate_variance(mean + std * noise)

    def _climate(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the network's training: one number each, or one for each component."""
        network = self.network
        return network.per_component(network.state_mean), network.per_component(network.state_std)

    @property
    def derivatives(self) -> tuple[tuple[Differentiated, Mode], ...]:
        """Derivatives of the operator, for the first analysis, and its adjoint, for the projected innovation."""
        return ("operator", "forward"), ("operator", "backward")

    def start(self, record: Record) -> State:
        """Begin at the climatological mean, with empty memory."""
        return self.start_like(record.observation, record.shape)

    def start_like(self, like: Tensor, shape: tuple[int, int]) -> State:
        """Forecast state of shape (B, N), in the dtype and on the device of a tensor."""
        state = {"x": self._climate()[0].to(like).expand(shape)}
        if self.network.memory:
            state["memory"] = like.new_zeros(shape[0], self.network.memory, shape[1])
        return state

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Optimal interpolation from the climatology, for each site separately."""
        x, variance = state["x"], self._climate()[1].to(observation) ** 2
        change = observing.interpolate(x, variance, observation - observing.observe(x), observed)
        return {**state, "x": x + self.network.conserving(change)}

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the state by the model, including the model correction if the network holds one."""
        correction = self.network.model_correction()
        if correction is None:
            return super().forecast(state, dynamics, steps)
        assert isinstance(correction, TendencyNetwork)
        return super().forecast(state, CorrectedDynamics.trained_with(dynamics, correction), steps)

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One analysis by the network."""
        x = self.mean(state)
        zeta = observing.project_innovation(observation - observing.observe(x), observed, x)
        analysis, memory = self.network(state["x"], zeta, state.get("memory"))
        after = {**state, "x": analysis}
        if memory is not None:
            after["memory"] = memory
        return after

    def root_of(self, state: State) -> LocalRoot | None:
        """Root of the error covariance of an analysis; None if the network gives no spread."""
        return None

    def check_gains(self, dynamics: Dynamics) -> None:
        """Refuse gains if the analysis is not a function of the forecast and of what a run stores.

        Raises
        ------
        ValueError
        """

    def covariance_at(
        self, x: Tensor, carried: Tensor | None, observed: Tensor | None, observing: ObservingSystem, steps: int
    ) -> FilterCovariance | None:
        """P_a of a filter beside the network, at forecasts (B, N), for derivatives of the analysis; None without one.

        Parameters
        ----------
        x : Tensor, shape (B, N)
        carried : Tensor, shape (B, N, N), optional
            P_a that a run stored, if the method `reads_covariance`.
        observed : Tensor of bool, shape (B, P), optional
            Which observations there are, if the method `rebuilds_covariance`.
        observing : ObservingSystem
            H and R of each state's time.
        steps : int
            Model steps of the interval before the analysis.
        """
        return None


@cycles_networks
class EnsembleNetwork(DataAssimilationNetwork):
    """Members that a network corrects together. The model propagates each member.

    The first analysis distributes the members around the optimal interpolation, with its standard deviation.
    """

    name: ClassVar[str] = "ensemble-dan"
    backward: ClassVar[type[BackwardPass] | None] = EnsembleBackward
    ensemble: ClassVar[bool] = True
    outputs: tuple[Output, ...] = SPREADS

    def start_like(self, like: Tensor, shape: tuple[int, int]) -> State:
        """Members at the climatological mean."""
        return {"x": self._climate()[0].to(like).expand(shape[0], self.members, shape[1])}

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Optimal interpolation, and around it the same pattern of members for every trajectory."""
        m, n = state["x"].shape[1:]
        middle = super().first({"x": state["x"][:, 0]}, observation, observed, observing)["x"]
        prior = self._climate()[1].to(observation) ** 2
        variance = prior.expand(middle.shape)
        if observing.direct:  # otherwise the members are as wide as the climate
            variance = torch.where(
                observed, prior * observing.error_variance() / (prior + observing.error_variance()), prior
            )
        label = torch.arange(m, device=observation.device)
        pattern = normal(0, Purpose.ENSEMBLE, label, torch.zeros_like(label[:1]), n)[:, 0].to(observation)
        pattern = pattern - pattern.mean(0)
        return {**state, "x": middle[:, None] + self.network.conserving(variance.sqrt()[:, None] * pattern)}

    def with_members(self, count: int) -> Self:
        """Return a copy with another number of members, if the network works with any number.

        Raises
        ------
        ValueError
            If the network works with one number of members only.
        """
        if not self.network.any_members:
            return super().with_members(count)
        other = copy.copy(self)
        other.members = count
        return other

    def forecast_outputs(self, state: State) -> dict[str, Tensor]:
        """Forecast spread."""
        return {"forecast_spread": _spread(state["x"])}

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Analysis spread."""
        return {"spread": _spread(state["x"])}


def _spread(x: Tensor) -> Tensor:
    """Standard deviation of members (B, M, N); zero for one member."""
    return x.std(1) if x.shape[1] > 1 else torch.zeros_like(x[:, 0])
