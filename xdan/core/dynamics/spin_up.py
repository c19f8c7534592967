"""Starts of a model: states on its attractor, from a spin-up of keyed noise or from a given climatology."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checks import integer, shown, warn
from ..progress import track
from ..random import Purpose, normal
from ..spaces import MOST_COMPONENTS

if TYPE_CHECKING:
    from .base import Dynamics

_LEAST_TIME, _LEAST_STEPS = 20.0, 400  # default spin-up: smallest model time, and smallest number of steps
_STILL = 1e-2  # relative to the spread: states that move less than this in a spin-up are still its noise
_PIECES = 20  # number of steps of a progress bar
_TRIAL_SECONDS = 0.5  # longest time of `try_start`
_TRIAL_STEPS = 50  # number of steps between two looks at the clock


class SpinUpError(ValueError):
    """Some states of a spin-up are not finite."""


class DefaultSpinUp:
    """The default spin-up time of a dynamics. It grows with the time step, whatever the unit of time."""

    def __get__(self, dynamics: Any, owner: type | None = None) -> float:
        timestep = 0.0 if dynamics is None else float(dynamics.timestep)
        return max(_LEAST_TIME, _LEAST_STEPS * timestep)


def climatology(
    dynamics: Dynamics, labels: Sequence[int] | Tensor, seed: int, members: int, purpose: Purpose, like: Tensor
) -> Tensor:
    """Independent states of the climate; see `Dynamics.climatology`."""
    members, labels = integer("members", members, least=1, most=MOST_COMPONENTS), _keys(labels)
    if dynamics.given_climate is not None:
        return dynamics.given_climate.draw(labels, seed, members, purpose).to(like)
    steps = dynamics.spin_up_steps()
    with torch.no_grad():
        state = start = begin_states(dynamics, labels, seed, members, purpose, like)
        piece, first = max(1, -(-steps // _PIECES)), dynamics.model_step - steps
        for done in track(range(0, steps, piece), f"spin-up of {dynamics.label}"):
            state = dynamics.from_step(first + done).advance(state, min(piece, steps - done))
    _check_finite(dynamics, state, steps)
    _warn_of_rest(dynamics, start, state, steps)
    return state.reshape(-1, members, *dynamics.shape)


def try_start(dynamics: Dynamics, label: int, seed: int, like: Tensor) -> None:
    """Spin up one state for at most half a second; see `Dynamics.try_start`."""
    if dynamics.given_climate is not None:
        dynamics.vet()
        return
    try_spin_up(dynamics, begin_states(dynamics, _keys([label]), seed, 1, Purpose.INITIAL_STATE, like))


def try_spin_up(dynamics: Dynamics, state: Tensor) -> None:
    """Spin up states (B, *shape) for at most half a second.

    Raises
    ------
    SpinUpError
        If a state is not finite afterwards.
    """
    total, done = dynamics.spin_up_steps(), 0
    first, until = dynamics.model_step - total, time.monotonic() + _TRIAL_SECONDS
    with torch.no_grad():
        while done < total and time.monotonic() < until:
            steps = min(_TRIAL_STEPS if done else 1, total - done)
            state, done = dynamics.from_step(first + done).advance(state, steps), done + steps
    _check_finite(dynamics, state, done)


def _keys(labels: Sequence[int] | Tensor) -> Tensor:
    """Labels as int64, shape (R,)."""
    if not isinstance(labels, (Tensor, range)):
        if not isinstance(labels, Iterable):
            raise TypeError(f"labels={shown(labels)}: expected integers, one for each trajectory")
        labels = [integer("labels", label) for label in labels]
    return torch.as_tensor(labels, dtype=torch.int64).cpu()


def begin_states(dynamics: Dynamics, keys: Tensor, seed: int, members: int, purpose: Purpose, like: Tensor) -> Tensor:
    """States from which spin-ups begin, shape (R members, *shape)."""
    dynamics.vet()
    origin = torch.zeros(1, dtype=torch.int64)
    size = math.prod(dynamics.shape)
    noise = torch.cat([normal(seed, purpose, keys, origin, size, member) for member in range(members)], 1)
    with torch.no_grad():
        return dynamics.rest(noise.to(like).reshape(-1, *dynamics.shape))


def _check_finite(dynamics: Dynamics, state: Tensor, steps: int) -> None:
    lost = ~state.isfinite().flatten(1).all(1)
    if bool(lost.any()):
        raise SpinUpError(
            f"{int(lost.sum())} of {len(lost)} states of {dynamics.label!r} are not finite after {steps} steps of the "
            "spin-up: expected finite states; give rest= that turns noise into states that the model can bear, a "
            "smaller timestep=, a shorter spin_up_time=, or states of the climate as climatology="
        )


def _warn_of_rest(dynamics: Dynamics, start: Tensor, state: Tensor, steps: int) -> None:
    """Warn if a spin-up hardly moves the states. A model whose states do not move at all does not warn."""
    if not steps or type(dynamics)._vetted or start.numel() < 2:
        return
    moved, spread = float((state - start).square().mean().sqrt()), float(start.std())
    if 0 < moved < _STILL * spread:
        warn(
            f"in a spin-up of {steps} steps ({steps * dynamics.timestep:g} units of model time) the states of "
            f"{dynamics.label!r} moved by {moved:.2g} where they differ by {spread:.2g}: they are still the noise that "
            "they began from. Is spin_up_time= or timestep= in other units than the model's time?",
        )
