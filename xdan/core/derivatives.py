"""Checks of derivatives: what a model or an operator says of itself, against finite differences, before it is used.

`check_derivative(function, states, label, remedy, along=..., adjoint=...)` is the whole check; `check_model` and
`check_operator` call it for a dynamics (one step, never an interval) and for an observation operator. All raise
ValueError, and none lets an error of torch through.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .dynamics import Dynamics
from .operators import Operator
from .random import Purpose, normal

Function = Callable[[Tensor], Tensor]
Along = Callable[[Tensor, Tensor], Tensor]
Adjoint = Callable[[Tensor, Tensor], Tensor]
Mode = Literal["forward", "backward"]

STATES = 4  # states of a climate at which derivatives are compared

_DIRECTIONS = 3  # at each state
_TOLERANCE = 1e-2  # of the difference from finite differences, relative to them
# Finite differences step by these parts of a state's deviation: large and small, by precision.
_STEPS = {torch.float64: (1e-3, 1e-4), torch.float32: (3e-2, 1e-2)}
_ROUNDING = 100  # roundings of a value that a difference may be off by


def check_derivative(
    function: Function,
    states: Tensor,
    label: str,
    remedy: str,
    *,
    along: Along | None = None,
    adjoint: Adjoint | None = None,
) -> None:
    """Refuse a function whose derivative is missing or wrong.

    Derivatives along random directions are compared with finite differences at each state. The best of the states
    decides, and between the one-sided differences of a kink every value is right. Values that are not finite tell
    nothing.

    Parameters
    ----------
    function : callable
        From states (B, N) to values (B, P), each row by itself.
    states : Tensor, shape (S, N)
        Where to compare; their spread sets the length of the directions. Float64 is best, and is left where the
        function takes only the states' own precision.
    label : str
        What a message calls the function, such as "the model 'lorenz96'".
    remedy : str
        What a message says to do instead.
    along : callable, optional
        The forward derivative to check: from states (B, N) and directions (B, M, N) to (B, M, P).
    adjoint : callable, optional
        The backward derivative to check: from states (B, N) and weights (B, P) to their product with the derivative,
        (B, N). `pull_back(function)` is that of autodiff.

    Raises
    ------
    ValueError
        If a derivative cannot be computed, or is not that of the function.
    """
