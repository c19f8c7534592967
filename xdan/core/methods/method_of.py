"""The method that cycles a network."""

from __future__ import annotations

from typing import cast

from ..networks import AnalysisNetwork
from .dan import DataAssimilationNetwork
from .network_methods import NETWORK_METHODS


def method_of(network: AnalysisNetwork) -> DataAssimilationNetwork:
    """Return the method of a network: the one that the network's `cycled_by` names.

    Raises
    ------
    ValueError
        If no method has this name.
    """
    kind = cast(type[DataAssimilationNetwork], NETWORK_METHODS[network.cycled_by])
    return kind(network)
