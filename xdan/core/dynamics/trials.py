"""Tests of a model at a few states: whether its methods make one model, and how it differs from other models."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..random import Purpose, normal
from ..user_functions import check_function, finest
from .declarations import check_declarations
from .model_time import check_time_unit, warn_of_short_spin_up

if TYPE_CHECKING:
    from .base import Dynamics

_DECIMALS = 9  # digits of a fingerprint, because rounding differs between machines
_FINGERPRINT_STEPS = (0, 1009)  # steps after model time 0 for fingerprints of a model that depends on time


def try_out(dynamics: Dynamics) -> None:
    """Test the methods of a user's model; see `Dynamics.vet`."""
    check_declarations(dynamics)
    if dynamics.time_unit is not None:
        check_time_unit(dynamics.time_unit)
    warn_of_short_spin_up(dynamics.spin_up_time, dynamics.timestep, dynamics.spin_up_steps())
    begins = _noise(dynamics) if dynamics.given_climate is None else dynamics.given_climate.states[:2]
    try:
        _try_in_either_precision(dynamics, begins)
    except ValueError as reason:
        if not (hint := dynamics._state_hint()):
            raise
        raise ValueError(f"{reason}. {hint}") from reason.__cause__


def _try_in_either_precision(dynamics: Dynamics, begins: Tensor) -> None:
    """Test a model in double precision, or in single precision if it does not take double precision."""
    try:
        _try_at(dynamics, begins)
    except ValueError as reason:
        # If a function has tensors of single precision, it can be used with records of single precision.
        if not isinstance(reason.__cause__, RuntimeError):
            raise
        try:
            _try_at(dynamics, begins.to(torch.float32))
        except ValueError:
            raise reason from None


def fingerprint(dynamics: Dynamics) -> Tensor:
    """One step from possible states of the model, rounded; see `Dynamics.fingerprint`."""
    if dynamics.given_climate is not None:
        return _step_from_start(dynamics)
    ramp = torch.linspace(0.1, 1.0, math.prod(dynamics.shape), dtype=torch.float64).reshape(1, *dynamics.shape)
    after = _stepped(dynamics, ramp)
    if bool(after.isfinite().all()):
        return after.round(decimals=_DECIMALS)
    return _step_from_start(dynamics)  # the ramp is impossible if states are levels, concentrations or temperatures


def _step_from_start(dynamics: Dynamics) -> Tensor:
    """One step from the states of a start, rounded relative to their size, shape (2, *shape).

    Raises
    ------
    ValueError
        If the step is not finite.
    """
    after = _stepped(dynamics, start_states(dynamics))
    if not bool(after.isfinite().all()):
        raise ValueError(
            f"a step of the dynamics {dynamics.label!r} from the states that rest() gives is not finite: expected "
            "finite states; give rest= that turns noise into states that the model can bear, or a smaller timestep="
        )
    size = 10.0 ** math.ceil(math.log10(max(float(after.abs().max()), torch.finfo(torch.float32).tiny)))
    return (after / size).round(decimals=_DECIMALS)


def start_states(dynamics: Dynamics) -> Tensor:
    """Two states from which the model's spin-ups begin, the same at every call, shape (2, *shape)."""
    if dynamics.given_climate is not None:
        return finest(dynamics.one_step, dynamics.given_climate.states[:2])
    noise = _noise(dynamics)
    with torch.no_grad():
        return dynamics.rest(finest(dynamics.rest, noise))


def _noise(dynamics: Dynamics) -> Tensor:
    labels = torch.arange(2)
    noise = normal(0, Purpose.SENSITIVITY, labels, labels[:1], math.prod(dynamics.shape))
    return noise.reshape(2, *dynamics.shape)


def _stepped(dynamics: Dynamics, states: Tensor) -> Tensor:
    views = [dynamics]
    if not dynamics.autonomous:
        views = [dynamics.starting_at(0.0).from_step(step) for step in _FINGERPRINT_STEPS]
    with torch.no_grad():
        return torch.cat([view.advance(finest(view.one_step, states), 1).cpu() for view in views])


def _try_at(dynamics: Dynamics, begins: Tensor) -> None:
    """Test a model at two states of a given climatology, or at states that it makes from noise."""
    states = begins
    if dynamics.given_climate is None:
        check_function(dynamics.rest, begins, dynamics._part("rest"))
        with torch.no_grad():
            states = dynamics.rest(begins)
    check_function(dynamics.one_step, states, dynamics._part("step"))
    if not dynamics._has_own_advance:
        return
    with torch.no_grad():
        twice, after = dynamics.advance(states.clone(), 2), dynamics.from_step(dynamics.model_step + 1)
        stepped = after.one_step(dynamics.one_step(states))
    if not torch.allclose(twice, stepped, rtol=1e-4, atol=1e-4 * float(states.abs().max()), equal_nan=True):
        raise ValueError(
            f"{dynamics._part('advance')} over 2 steps is not what two calls of step() give: expected the same model"
        )
