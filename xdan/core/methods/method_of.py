"""The method that a network is cycled by."""

from __future__ import annotations

from ..networks import AnalysisNetwork
from .dan import DataAssimilationNetwork, EnsembleNetwork
from .gaussian_dan import SpreadNetwork
from .kalman_dan import GuidedNetwork, RebuiltGuidedNetwork
from .lagged_dan import LaggedGuidedNetwork


def method_of(network: AnalysisNetwork) -> DataAssimilationNetwork:
    """Return the method for a network: of one forecast, of members, with a spread, or with a covariance."""
    if network.gives_spread:
        return SpreadNetwork(network)
    if network.guides:
        kind = LaggedGuidedNetwork if network.lag else RebuiltGuidedNetwork if network.past else GuidedNetwork
        return kind(network)
    return EnsembleNetwork(network) if network.ensemble else DataAssimilationNetwork(network)
