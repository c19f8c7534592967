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
    """A network whose analysis is a Gaussian N(x_a, L L^T); the forecast is that of x_a alone.

    The root L belongs to its analysis: no analysis reads an earlier one. The first analysis, which is optimal
    interpolation from the climatology, has the deviation that this leaves at each site by itself.

    Parameters
    ----------
    network : AnalysisNetwork
        That `gives_spread`.
    """

    name: ClassVar[str] = "gaussian-dan"
    keeps_covariance = True
    outputs: tuple[Output, ...] = (SPREAD,)

    @property
    def reads_covariance(self) -> bool:
        """Never."""
        return False

    def start_like(self, like: Tensor, shape: tuple[int, int]) -> State:
        """Add the deviation of the climate."""
        state = super().start_like(like, shape)
        deviation = self._climate()[1].to(like).expand(shape)
        return {**state, "root": diagonal_root(deviation, self.network.root_places(shape[1])).entries}

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Optimal interpolation, and the deviation that it leaves."""
        after = super().first(state, observation, observed, observing)
        prior = (self._climate()[1].to(observation) ** 2).expand(after["x"].shape)
        left = prior
        if observing.direct:  # otherwise as wide as the climate
            error = observing.error_variance()
            left = torch.where(observed, prior * error / (prior + error), prior)
        return {**after, "root": diagonal_root(left.sqrt(), self.network.root_places(left.shape[1])).entries}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One analysis by the network, and its root."""
        x = state["x"]
        zeta = observing.project_innovation(observation - observing.observe(x), observed, x)
        analysis, memory, root = self.network.distribution(x, zeta, state.get("memory"))
        after = {**state, "x": analysis, "root": root}
        return after if memory is None else {**after, "memory": memory}

    def root_of(self, state: State) -> LocalRoot:
        """Root of the covariance of an analysis state's error."""
        entries = state["root"]
        return LocalRoot(entries, self.network.root_places(entries.shape[1]))

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Spread."""
        return {"spread": self.root_of(state).deviations}

    def kept_covariance(self, state: State) -> Tensor:
        """L L^T, (B, N, N)."""
        return self.root_of(state).covariance

    def check_kept(self, dynamics: Dynamics) -> None:
        """Refuse to keep the covariance of states that are too large for a matrix."""
        remedy = "leave members= out: the run has the spread without it"
        check_size(math.prod(dynamics.shape), f"the network {self.network.name!r}", remedy)
