"""The data assimilation network as a method, a peer of the classical ones."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..networks import AnalysisNetwork
from ..observing import ErrorCovariance
from .base import Method, Record, State


class DataAssimilationNetwork(Method):
    """A single forecast corrected by a network, Eq. 2 and 22.

    The state is the forecast and, for a network with memory, its latent channels. The first analysis of a record
    is optimal interpolation, site by site, from the climatological mean and variance that the network was trained
    with: the network then starts from errors of the size that it knows.

    Parameters
    ----------
    network : AnalysisNetwork
    """

    name: ClassVar[str] = "dan"

    def __init__(self, network: AnalysisNetwork) -> None:
        self.network = network

    def parameters(self) -> dict[str, Any]:
        """Plain JSON parameters."""
        return {"network": self.network.name, **self.network.parameters_json()}

    def start(self, record: Record) -> State:
        """Begin at the climatological mean, with empty memory."""
        return self.start_like(record.observation[:, 0])

    def start_like(self, observation: Tensor) -> State:
        """Forecast state for observations of shape (B, N)."""
        state = {"x": self.network.state_mean.to(observation).expand(observation.shape)}
        if self.network.memory:
            state["memory"] = observation.new_zeros(len(observation), self.network.memory, observation.shape[1])
        return state

    def first(self, state: State, observation: Tensor, observed: Tensor, error: ErrorCovariance) -> State:
        """Optimal interpolation from the climatology, each site by itself."""
        variance = self.network.state_std.to(observation) ** 2
        gain = torch.where(observed, variance / (variance + error.variance()), torch.zeros_like(observation))
        return {**state, "x": state["x"] + gain * (observation - state["x"])}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, error: ErrorCovariance) -> State:
        """One analysis by the network."""
        x = state["x"]
        zeta = error.project(observation - x, observed)
        analysis, memory = self.network(x, zeta, state.get("memory"))
        after = {**state, "x": analysis}
        if memory is not None:
            after["memory"] = memory
        return after
