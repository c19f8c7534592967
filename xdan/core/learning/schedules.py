"""How the learning rate changes over a training, by the share of its budget that is spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

_RISE = 0.01  # share of the budget over which the rate rises


def constant(spent: float) -> float:
    """Learning rate factor: a short rise, then 1."""
    return min(1.0, spent / _RISE + _RISE)


def linear_decay(spent: float) -> float:
    """Learning rate factor: a short rise, then straight down to zero at the end."""
    return constant(spent) * max(0.0, 1.0 - spent)


def cosine_decay(spent: float) -> float:
    """Learning rate factor: a short rise, then down by half a cosine, slowly at first and at the end."""
    return constant(spent) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, spent)))


SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": constant,
    "cosine": cosine_decay,
    "linear": linear_decay,
}
"""Learning rate factors by the name of the schedule, functions of the share of the budget that is spent."""
