"""Training below the wall: cycles of a window, objectives, gradients and steps."""

from .across_members import AcrossMembers
from .imitation import CovarianceImitation
from .objectives import (
    Objective,
    WindowContents,
    WindowGradient,
    objective_by_name,
    objective_names,
    register_objective,
)
from .probabilistic import LogScore, Variational
from .trainer import Optimiser

__all__ = [
    "AcrossMembers",
    "CovarianceImitation",
    "LogScore",
    "Objective",
    "Optimiser",
    "Variational",
    "WindowContents",
    "WindowGradient",
    "objective_by_name",
    "objective_names",
    "register_objective",
]
