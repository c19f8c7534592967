"""The method that a network is cycled by."""

from __future__ import annotations

from typing import cast

from ..networks import AnalysisNetwork
from .dan import DataAssimilationNetwork
from .network_methods import NETWORK_METHODS


def method_of(network: AnalysisNetwork) -> DataAssimilationNetwork:
    """Return the method for a network: the one that it names by `cycled_by`.

    Raises
    ------
    ValueError
        If no method has the name.
    """
    kind = cast(type[DataAssimilationNetwork], NETWORK_METHODS[network.cycled_by])
    return kind(network)
