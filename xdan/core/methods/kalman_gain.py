"""The method of networks that make the covariance in a Kalman gain."""

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
    """A single forecast corrected by K = B H^T (H B H^T + R)^-1, with B from a network and H and R of the time.

    Parameters
    ----------
    network : HyperGain
    """

    name: ClassVar[str] = "kalman-gain"
    network: HyperGain

    def __init__(self, network: HyperGain) -> None:
        super().__init__(network)

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One analysis."""
        x = state["x"]
        innovation = observation - observing.observe(x)
        return {**state, "x": self.network.assimilate(x, innovation, observed, observing)}

    def check_gains(self, dynamics: Dynamics) -> None:
        """Refuse: the analysis depends on H and R beside the projected innovation."""
        raise ValueError(
            f"the network {self.network.name!r} makes the gain of a time from H and R, which a derivative by the "
            "projected innovation alone does not know: expected one such as 'linear-in-zeta'"
        )
