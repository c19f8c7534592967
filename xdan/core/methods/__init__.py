"""Methods: the data assimilation network and the classical schemes it is compared with, behind one protocol."""

from .base import Method, Record, State, method_by_name, register_method, run
from .dan import DataAssimilationNetwork
from .ensemble import EnsembleMethod
from .finite_size import FiniteSizeEnKF
from .variational import ThreeDVar

__all__ = [
    "DataAssimilationNetwork",
    "EnsembleMethod",
    "FiniteSizeEnKF",
    "Method",
    "Record",
    "State",
    "ThreeDVar",
    "method_by_name",
    "register_method",
    "run",
]
