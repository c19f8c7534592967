"""Methods behind one protocol: data assimilation networks, and the classical schemes to compare them with."""

from .backward import BackwardPass, EnsembleBackward, GaussianBackward
from .base import Method
from .dan import DataAssimilationNetwork
from .declarations import Choice, Output, Search, Tunable
from .enks import EnsembleKalmanSmoother
from .ensemble import EnsembleMethod
from .finite_size import FiniteSizeEnKF
from .four_d_var import EnsembleOf4DVar, FourDVar
from .gaussian_dan import SpreadNetwork
from .half_gain import DEnKF
from .hybrid_envar import HybridEnVar
from .iterative import FiniteSizeIEnKF, FiniteSizeIEnKS, IterativeEnKF, IterativeEnKS
from .kalman import Climatology, ExtendedKalmanFilter, KalmanFilter, OptimalInterpolation
from .kalman_dan import GuidedNetwork
from .kalman_gain import KalmanGainNetwork
from .lagged_dan import LaggedGuidedNetwork
from .learned_letkf import LearnedEnsembleFilter
from .local import LETKF
from .loop import run
from .method_of import method_of
from .multi_model import MultiModelEnKF
from .multifidelity import MultifidelityEnKF
from .multiple_assimilation import ESMDA
from .particle import BootstrapParticleFilter, OptimalParticleFilter
from .rank_histogram import RankHistogramFilter
from .record import Record, State
from .registry import accepted_parameters, method_by_name, register_method
from .second_order import IteratedKalmanSmoother, SecondOrderKalmanFilter
from .serial import EAKF, EnSRF
from .smoothing import smooth
from .square_root import ETKF
from .state_covariance import CovarianceFromState
from .stochastic import StochasticEnKF
from .tuning import tune
from .variational import ThreeDVar
from .weak_four_d_var import WeakFourDVar

__all__ = [
    "EAKF",
    "ESMDA",
    "ETKF",
    "LETKF",
    "BackwardPass",
    "BootstrapParticleFilter",
    "Choice",
    "Climatology",
    "CovarianceFromState",
    "DEnKF",
    "DataAssimilationNetwork",
    "EnSRF",
    "EnsembleBackward",
    "EnsembleKalmanSmoother",
    "EnsembleMethod",
    "EnsembleOf4DVar",
    "ExtendedKalmanFilter",
    "FiniteSizeEnKF",
    "FiniteSizeIEnKF",
    "FiniteSizeIEnKS",
    "FourDVar",
    "GaussianBackward",
    "GuidedNetwork",
    "HybridEnVar",
    "IteratedKalmanSmoother",
    "IterativeEnKF",
    "IterativeEnKS",
    "KalmanFilter",
    "KalmanGainNetwork",
    "LaggedGuidedNetwork",
    "LearnedEnsembleFilter",
    "Method",
    "MultiModelEnKF",
    "MultifidelityEnKF",
    "OptimalInterpolation",
    "OptimalParticleFilter",
    "Output",
    "RankHistogramFilter",
    "Record",
    "Search",
    "SecondOrderKalmanFilter",
    "SpreadNetwork",
    "State",
    "StochasticEnKF",
    "ThreeDVar",
    "Tunable",
    "WeakFourDVar",
    "accepted_parameters",
    "method_by_name",
    "method_of",
    "register_method",
    "run",
    "smooth",
    "tune",
]
