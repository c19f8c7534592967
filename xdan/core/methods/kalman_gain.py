"""The method of networks that compute the background covariance of a Kalman gain."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..dynamics import Dynamics
from ..networks import HyperGain
from ..observing import ObservingSystem
from .dan import DataAssimilationNetwork
from .network_methods import cycles_networks
from .record import State


@cycles_networks
class KalmanGainNetwork(DataAssimilationNetwork):
    """A single forecast, corrected by K = B H^T (H B H^T + R)^-1. A network computes B; H and R are those of the time.

    Parameters
    ----------
    network : HyperGain
    """

    name: ClassVar[str] = "kalman-gain"
    network: HyperGain

    def __init__(self, network: HyperGain) -> None:
        super().__init__(network)

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One analysis with the gain K."""
        x = state["x"]
        innovation = observation - observing.observe(x)
        return {**state, "x": self.network.assimilate(x, innovation, observed, observing)}

    def check_gains(self, dynamics: Dynamics) -> None:
        """Refuse gains: the analysis depends on H and R, besides the projected innovation."""
        raise ValueError(
            f"the network {self.network.name!r} makes the gain of a time from H and R, and a derivative by the "
            "projected innovation alone does not know these: expected a network such as 'linear-in-zeta'"
        )
