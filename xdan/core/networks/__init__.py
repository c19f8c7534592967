"""Networks: the analysis operators that are learned, registered by name."""

from .base import (
    AnalysisNetwork,
    network_by_name,
    network_of_shapes,
    network_parameters,
    register_network,
    register_preset,
    registered_name,
)
from .committee import Committee
from .ensemble_cnn import EnsembleCNN
from .linear_in_zeta import LinearInZeta
from .residual_cnn import ResidualCNN

__all__ = [
    "AnalysisNetwork",
    "Committee",
    "EnsembleCNN",
    "LinearInZeta",
    "ResidualCNN",
    "network_by_name",
    "network_of_shapes",
    "network_parameters",
    "register_network",
    "register_preset",
    "registered_name",
]
