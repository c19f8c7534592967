"""A data assimilation network that gives its analysis with the spread of its error."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..local_roots import LocalRoot, diagonal_root
from ..observing import ObservingSystem
from .dan import DataAssimilationNetwork
from .declarations import Output
from .gaussian_forecast import check_size
from .network_methods import cycles_networks
from .record import State

SPREAD = Output("spread", "standard deviation of the analysis, calibrated in training", "state", "state")


@cycles_networks
class SpreadNetwork(DataAssimilationNetwork):
    """A network whose analysis is a Gaussian N(x_a, L L^T). The forecast comes from x_a alone.

    The root L belongs to its analysis; no later analysis reads it. The first analysis is optimal interpolation from the
    climatology. Its standard deviation is the one that optimal interpolation leaves at each site.

    Parameters
    ----------
    network : AnalysisNetwork
        A network that `gives_spread`.
    """

    name: ClassVar[str] = "gaussian-dan"
    keeps_covariance = True
    outputs: tuple[Output, ...] = (SPREAD,)

    @property
    def reads_covariance(self) -> bool:
        """False: no analysis reads an earlier covariance."""
        return False

    def start_like(self, like: Tensor, shape: tuple[int, int]) -> State:
        """State of the base class, with the standard deviation of the climate."""
        state = super().start_like(like, shape)
        deviation = self._climate()[1].to(like).expand(shape)
        return {**state, "root": diagonal_root(deviation, self.network.root_places(shape[1])).entries}

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Optimal interpolation, and the standard deviation that it leaves."""
        after = super().first(state, observation, observed, observing)
        prior = (self._climate()[1].to(observation) ** 2).expand(after["x"].shape)
        left = prior
        if observing.direct:  # otherwise the standard deviation is that of the climate
            error = observing.error_variance()
            left = torch.where(observed, prior * error / (prior + error), prior)
        return {**after, "root": diagonal_root(left.sqrt(), self.network.root_places(left.shape[1])).entries}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One analysis by the network, and the root of its covariance."""
        x = state["x"]
        zeta = observing.project_innovation(observation - observing.observe(x), observed, x)
        analysis, memory, root = self.network.distribution(x, zeta, state.get("memory"))
        after = {**state, "x": analysis, "root": root}
        return after if memory is None else {**after, "memory": memory}

    def root_of(self, state: State) -> LocalRoot:
        """Root of the error covariance of an analysis state."""
        entries = state["root"]
        return LocalRoot(entries, self.network.root_places(entries.shape[1]))

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Spread of the analysis."""
        return {"spread": self.root_of(state).deviations}

    def kept_covariance(self, state: State) -> Tensor:
        """L L^T, (B, N, N)."""
        return self.root_of(state).covariance

    def check_kept(self, dynamics: Dynamics) -> None:
        """Refuse to store the covariance of states that are too large for a matrix."""
        remedy = "leave members= out: the run has the spread without it"
        check_size(math.prod(dynamics.shape), f"the network {self.network.name!r}", remedy)
