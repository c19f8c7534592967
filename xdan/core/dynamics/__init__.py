"""Dynamics: the model that is forecast with, known or the user's own."""

from .base import (
    Coordinate,
    CustomDynamics,
    Dynamics,
    dynamics_from_json,
    dynamics_to_json,
    register_dynamics,
    runge_kutta_4,
)
from .lorenz63 import Lorenz63
from .lorenz96 import Lorenz96

__all__ = [
    "Coordinate",
    "CustomDynamics",
    "Dynamics",
    "Lorenz63",
    "Lorenz96",
    "dynamics_from_json",
    "dynamics_to_json",
    "register_dynamics",
    "runge_kutta_4",
]
