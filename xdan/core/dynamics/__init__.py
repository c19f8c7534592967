"""Dynamics: the forecast model, one that xdan has or one that a user writes."""

from .base import Dynamics
from .black_box import NumpyDynamics
from .corrected import CorrectedDynamics
from .custom import CustomDynamics
from .declarations import check_declarations
from .given_climate import GivenClimate
from .kuramoto_sivashinsky import KuramotoSivashinsky
from .lorenz63 import Lorenz63
from .lorenz96 import Lorenz96
from .model_error import ModelError
from .model_time import check_time_unit, in_words
from .registry import dynamics_from_json, dynamics_to_json, known_dynamics, register_dynamics
from .sphere_qg import SphereQG
from .stepping import runge_kutta_4
from .surrogate import SurrogateDynamics
from .two_scale_lorenz96 import TwoScaleLorenz96

__all__ = [
    "CorrectedDynamics",
    "CustomDynamics",
    "Dynamics",
    "GivenClimate",
    "KuramotoSivashinsky",
    "Lorenz63",
    "Lorenz96",
    "ModelError",
    "NumpyDynamics",
    "SphereQG",
    "SurrogateDynamics",
    "TwoScaleLorenz96",
    "check_declarations",
    "check_time_unit",
    "dynamics_from_json",
    "dynamics_to_json",
    "in_words",
    "known_dynamics",
    "register_dynamics",
    "runge_kutta_4",
]
