"""Networks: learned analysis operators, registered by name."""

from .activations import Activation, register_activation
from .base import AnalysisNetwork, check_same_fields
from .committee import Committee, networks_of
from .constant_gain import ConstantGain
from .ensemble_cnn import EnsembleCNN
from .gaussian import ConstantSpread, GaussianNetwork
from .gaussian_cnn import GaussianCNN
from .hyper_gain import HyperGain
from .kalman_cnn import KalmanCNN
from .learned_letkf import LearnedLETKF
from .linear_in_zeta import LinearInZeta
from .module import ModuleNetwork
from .opening import network_of_shapes
from .registry import (
    known_networks,
    network_by_name,
    network_for,
    network_parameters,
    register_network,
    register_preset,
    registered_name,
)
from .residual_cnn import ResidualCNN
from .site_statistics import Seen
from .trials import check_network
from .user_modules import how_to_open, module_networks, moved, named_modules, with_modules

__all__ = [
    "Activation",
    "AnalysisNetwork",
    "Committee",
    "ConstantGain",
    "ConstantSpread",
    "EnsembleCNN",
    "GaussianCNN",
    "GaussianNetwork",
    "HyperGain",
    "KalmanCNN",
    "LearnedLETKF",
    "LinearInZeta",
    "ModuleNetwork",
    "ResidualCNN",
    "Seen",
    "check_network",
    "check_same_fields",
    "how_to_open",
    "known_networks",
    "module_networks",
    "moved",
    "named_modules",
    "network_by_name",
    "network_for",
    "network_of_shapes",
    "network_parameters",
    "networks_of",
    "register_activation",
    "register_network",
    "register_preset",
    "registered_name",
    "with_modules",
]
