"""Methods: the data assimilation network and the classical schemes it is compared with, behind one protocol."""

from .base import Method, Record, State, accepted_parameters, method_by_name, register_method, run
from .dan import DataAssimilationNetwork
from .ensemble import EnsembleMethod
from .finite_size import FiniteSizeEnKF
from .four_d_var import EnsembleOf4DVar, FourDVar
from .iterative import FiniteSizeIEnKF, FiniteSizeIEnKS, IterativeEnKF, IterativeEnKS
from .kalman import Climatology, ExtendedKalmanFilter, KalmanFilter, OptimalInterpolation
from .local import LETKF
from .particle import BootstrapParticleFilter, OptimalParticleFilter
from .square_root import ETKF
from .state_covariance import CovarianceFromState
from .stochastic import StochasticEnKF
from .variational import ThreeDVar

__all__ = [
    "ETKF",
    "LETKF",
    "BootstrapParticleFilter",
    "Climatology",
    "CovarianceFromState",
    "DataAssimilationNetwork",
    "EnsembleMethod",
    "EnsembleOf4DVar",
    "ExtendedKalmanFilter",
    "FiniteSizeEnKF",
    "FiniteSizeIEnKF",
    "FiniteSizeIEnKS",
    "FourDVar",
    "IterativeEnKF",
    "IterativeEnKS",
    "KalmanFilter",
    "Method",
    "OptimalInterpolation",
    "OptimalParticleFilter",
    "Record",
    "State",
    "StochasticEnKF",
    "ThreeDVar",
    "accepted_parameters",
    "method_by_name",
    "register_method",
    "run",
]
