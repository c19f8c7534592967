"""The data assimilation network as a method, a peer of the classical ones."""

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
    """A single forecast corrected by a network, Eq. 2 and 22.

    The state is the forecast and, for a network with memory, its latent channels. The first analysis of a record
    is optimal interpolation, site by site, from the climatological mean and variance that the network was trained
    with: the network then starts from errors of the size that it knows.

    Parameters
    ----------
    network : AnalysisNetwork

    Attributes
    ----------
    rebuilds_covariance : bool
        Class attribute: whether `covariance_at` makes P_a from the forecast.
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
        """Return a copy for another number of members.

        Raises
        ------
        ValueError
            For a network that does not serve any number.
        """
        raise ValueError(f"the network {self.network.name!r} serves one number of members: expected no other, {count}")

    def recordable(self, dynamics: Dynamics) -> bool:
        """Whether cycles on a GPU read no number back, so that a training may record them as a CUDA graph."""
        return True

    def check_training(self, dynamics: Dynamics, observing: ObservingSystem) -> None:
        """Refuse, before training, what the method cannot be trained with.

        Raises
        ------
        ValueError
        """

    def climate_variance(self, dynamics: Dynamics, observing: ObservingSystem, seed: int) -> Tensor:
        """Variance of H(x) over states of the mean and the deviation that the network was trained with."""
        mean, std = (value.cpu().double() for value in self._climate())
        if observing.direct:
            return std**2
        labels, origin = torch.arange(CLIMATE_STATES), torch.zeros(1, dtype=torch.int64)
        noise = normal(0, Purpose.CLIMATOLOGY, labels, origin, math.prod(dynamics.shape))[:, 0]
        return observing.climate_variance(mean + std * noise)

    def _climate(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation that the network was trained with: one number, or one of each component."""
        network = self.network
        return network.per_component(network.state_mean), network.per_component(network.state_std)

    @property
    def derivatives(self) -> tuple[tuple[Differentiated, Mode], ...]:
        """Of the observation operator: in the first analysis, and its adjoint in the projected innovation."""
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
        """Optimal interpolation from the climatology, each site by itself."""
        x, variance = state["x"], self._climate()[1].to(observation) ** 2
        change = observing.interpolate(x, variance, observation - observing.observe(x), observed)
        return {**state, "x": x + self.network.conserving(change)}

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the state by the model, with the correction that the network holds."""
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
        """Root of the covariance of an analysis state's error; None of networks that give no spread."""
        return None

    def check_gains(self, dynamics: Dynamics) -> None:
        """Refuse to differentiate the analysis, where it is no function of a state and what is kept in a run.

        Raises
        ------
        ValueError
        """

    def covariance_at(
        self, x: Tensor, carried: Tensor | None, observed: Tensor | None, observing: ObservingSystem, steps: int
    ) -> FilterCovariance | None:
        """P_a of a filter beside the network at forecasts (B, N), to differentiate its analyses there; None without.

        Parameters
        ----------
        x : Tensor, shape (B, N)
        carried : Tensor, shape (B, N, N), optional
            P_a that a run kept, where the method `reads_covariance`.
        observed : Tensor of bool, shape (B, P), optional
            What is observed, where the method `rebuilds_covariance`.
        observing : ObservingSystem
            Of each state's time.
        steps : int
            Model steps of the interval before.
        """
        return None


@cycles_networks
class EnsembleNetwork(DataAssimilationNetwork):
    """Members corrected by a network, propagated one by one.

    The first analysis spreads the members about the optimal interpolation, by its own error deviation.
    """

    name: ClassVar[str] = "ensemble-dan"
    backward: ClassVar[type[BackwardPass] | None] = EnsembleBackward
    ensemble: ClassVar[bool] = True
    outputs: tuple[Output, ...] = SPREADS

    def start_like(self, like: Tensor, shape: tuple[int, int]) -> State:
        """Members at the climatological mean."""
        return {"x": self._climate()[0].to(like).expand(shape[0], self.members, shape[1])}

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Optimal interpolation, and about it the same pattern for every trajectory."""
        m, n = state["x"].shape[1:]
        middle = super().first({"x": state["x"][:, 0]}, observation, observed, observing)["x"]
        prior = self._climate()[1].to(observation) ** 2
        variance = prior.expand(middle.shape)
        if observing.direct:  # otherwise as wide as the climate
            variance = torch.where(
                observed, prior * observing.error_variance() / (prior + observing.error_variance()), prior
            )
        label = torch.arange(m, device=observation.device)
        pattern = normal(0, Purpose.ENSEMBLE, label, torch.zeros_like(label[:1]), n)[:, 0].to(observation)
        pattern = pattern - pattern.mean(0)
        return {**state, "x": middle[:, None] + self.network.conserving(variance.sqrt()[:, None] * pattern)}

    def with_members(self, count: int) -> Self:
        """Return a copy for another number of members, of a network that serves any.

        Raises
        ------
        ValueError
            For a network that was made for one number.
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
    """Of members (B, M, N), zero for one member."""
    return x.std(1) if x.shape[1] > 1 else torch.zeros_like(x[:, 0])
