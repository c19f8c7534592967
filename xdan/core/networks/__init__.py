"""Networks: the analysis operators that are learned, registered by name."""

from .base import AnalysisNetwork, network_by_name, register_network
from .residual_cnn import ResidualCNN

__all__ = ["AnalysisNetwork", "ResidualCNN", "network_by_name", "register_network"]
