"""A data assimilation network whose single forecast carries the covariance of its error."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..derivative_checks import Mode
from ..dynamics import Dynamics
from ..networks import AnalysisNetwork
from ..observing import ObservingSystem
from .base import Differentiated
from .dan import DataAssimilationNetwork, EnsembleNetwork
from .declarations import SPREADS, Output
from .gaussian_forecast import forecast_moments
from .kalman import kalman_gain, updated
from .record import State


class GuidedNetwork(DataAssimilationNetwork):
    """A network that corrects the analysis of a Kalman filter of second order, whose covariance the state carries.

    The first analysis is that of every network; the covariance begins with the climate's variance at each site.

    Parameters
    ----------
    network : AnalysisNetwork
        With `guides`.
    """

    name: ClassVar[str] = "kalman-dan"
    differentiates_model: ClassVar[bool] = True
    outputs: tuple[Output, ...] = SPREADS

    @property
    def derivatives(self) -> tuple[tuple[Differentiated, Mode], ...]:
        """Of the model, for the covariance, and of the observation operator."""
        return ("model", "forward"), *super().derivatives

    def start_like(self, like: Tensor, shape: tuple[int, int]) -> State:
        """Add the climate's variance, as a covariance (B, N, N)."""
        state = super().start_like(like, shape)
        variance = (self._climate()[1].to(like) ** 2).expand(shape)
        return {**state, "covariance": torch.diag_embed(variance)}

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Optimal interpolation, and the covariance that it leaves."""
        after = super().first(state, observation, observed, observing)
        gain = kalman_gain(state["x"], state["covariance"], observed, observing)
        return {**after, "covariance": updated(state["x"], state["covariance"], gain, observed, observing)}

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the state, and its covariance to second order."""
        with torch.no_grad():
            moments = forecast_moments(dynamics, state["x"], state["covariance"], steps)
            most = self._climate()[1].to(state["x"]) ** 2 * state["x"].shape[1]
            covariance = moments.inflated(self.network.second_order, most)
        return {**super().forecast(state, dynamics, steps), "covariance": covariance}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One analysis: the filter's increment, and the network's correction of it."""
        x, p = state["x"], state["covariance"]
        with torch.no_grad():
            gain = kalman_gain(x, p, observed, observing)
            after = updated(x, p, gain, observed, observing)
        innovation = torch.where(observed, observation - observing.observe(x), torch.zeros_like(observation))
        guides = self.network.guide((gain @ innovation[..., None])[..., 0], after)
        zeta = observing.project_innovation(observation - observing.observe(x), observed, x)
        analysis, memory = self.network(x, zeta, state.get("memory"), guides)
        entries = {**state, "x": analysis, "covariance": after}
        return entries if memory is None else {**entries, "memory": memory}

    def forecast_outputs(self, state: State) -> dict[str, Tensor]:
        """Standard deviation of the forecast, as the filter has it."""
        return {"forecast_spread": _deviation(state)}

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Standard deviation of the filter's analysis, which the network's correction does not change."""
        return {"spread": _deviation(state)}


def method_of(network: AnalysisNetwork) -> DataAssimilationNetwork:
    """Return the method for a network: of one forecast, of members, or with a covariance."""
    if network.guides:
        return GuidedNetwork(network)
    return EnsembleNetwork(network) if network.ensemble else DataAssimilationNetwork(network)


def _deviation(state: State) -> Tensor:
    return state["covariance"].diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
