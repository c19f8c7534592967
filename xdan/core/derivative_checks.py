"""Checks of derivatives: before use, those of a model or an operator are compared with finite differences.

`check_derivative(function, states, label, remedy, along=..., adjoint=...)` is the complete check. `check_model` calls
it for a dynamics (one step, never an interval), and `check_operator` for an observation operator. All raise ValueError,
also in the place of an error of torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .dynamics import Dynamics
from .observing import Operator
from .random import Purpose, normal
from .user_functions import finest

Function = Callable[[Tensor], Tensor]
Along = Callable[[Tensor, Tensor], Tensor]
Adjoint = Callable[[Tensor, Tensor], Tensor]
Mode = Literal["forward", "backward"]

STATES = 4  # number of states of a climate at which derivatives are compared

_DIRECTIONS = 3  # number of directions at each state
_TOLERANCE = 1e-2  # largest difference from finite differences, relative to them
# Steps of finite differences relative to a state's standard deviation: a large and a small one, by precision.
_STEPS = {torch.float64: (1e-3, 1e-4), torch.float32: (3e-2, 1e-2)}
_ROUNDING = 100  # largest error of a difference by rounding, in roundings of a value
_COLLAPSED = 1e-4  # relative to the values: if standard deviations are smaller, the climate is a single point


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

    Derivatives along random directions are compared with finite differences at each state. One state with the right
    derivative is enough. At a kink, every value between the two one-sided differences counts as right. Values that are
    not finite are left out.

    Parameters
    ----------
    function : callable
        It maps states (B, N) to values (B, P), each row separately.
    states : Tensor, shape (S, N)
        States at which to compare, in the precision of `finest`. Their spread sets the length of the directions.
    label : str
        Name of the function in messages, such as "the model 'lorenz96'".
    remedy : str
        What to do instead, for messages.
    along : callable, optional
        The forward derivative to check. It maps states (B, N) and directions (B, M, N) to (B, M, P).
    adjoint : callable, optional
        The backward derivative to check. It maps states (B, N) and weights (B, P) to the product of weights and
        derivative, (B, N). `pull_back(function)` is that of autodiff.

    Raises
    ------
    ValueError
        If a derivative cannot be computed, or does not belong to the function.
    """
    states = finest(function, states)
    size = sizes(states)
    rows = torch.arange(len(states) * _DIRECTIONS, device=states.device)
    x = states.repeat_interleave(_DIRECTIONS, 0)
    direction = size * random_directions(rows, 0, x)
    central, doubt, scale = _differences(function, x, direction)
    fine = central.isfinite().all(1)
    if not bool(fine.any()):
        return

    if along is not None:
        derivative = _derived(lambda: along(x, direction[:, None])[:, 0], label, "forward", remedy)
        off = ((derivative - central).abs() - doubt).clamp_min(0.0) / scale
        worst = off.nan_to_num(torch.inf).argmax(1, keepdim=True)
        off, derivative, expected = (v.gather(1, worst)[:, 0] for v in (off, derivative, central))
        _judge(off, derivative, expected, fine, label, "forward", remedy)
    if adjoint is not None:
        weights = random_directions(rows, 1, central) / scale
        pulled = _derived(lambda: (adjoint(x, weights.to(x)) * direction).sum(1), label, "backward", remedy)
        expected, doubts = (weights * central).sum(1), (weights.abs() * doubt).sum(1)
        typical = (weights * central).square().sum(1).sqrt().clamp_min(_TOLERANCE)
        off = ((pulled - expected).abs() - doubts).clamp_min(0.0) / typical
        _judge(off, pulled, expected, fine, label, "backward", remedy)


def check_model(dynamics: Dynamics, mode: Mode, states: Tensor, remedy: str) -> None:
    """Refuse a dynamics if the derivative of one step is missing or wrong.

    Parameters
    ----------
    dynamics : Dynamics
    mode : {"forward", "backward"}
        "forward": `advance_along`. "backward": autodiff backward through `advance`.
    states : Tensor, shape (S, N)
        Flattened states, from `climate_states`.
    remedy : str
        See `check_derivative`.

    Raises
    ------
    ValueError
    """
    shape = dynamics.shape
    label = f"the increment of a step of the model {dynamics.label!r}"

    # A short step is nearly the identity. Its increment therefore shows more than its end state.
    def increment(x: Tensor) -> Tensor:
        return dynamics.advance(x.unflatten(1, shape), 1).flatten(1) - x

    def along(x: Tensor, directions: Tensor) -> Tensor:
        pushed = dynamics.advance_along(x.unflatten(1, shape), directions.unflatten(2, shape), 1)[1]
        return pushed.flatten(2) - directions

    if mode == "forward":
        check_derivative(increment, states, label, remedy, along=along)
    else:
        check_derivative(increment, states, label, remedy, adjoint=pull_back(increment))


def check_operator(operator: Operator | None, mode: Mode, states: Tensor, remedy: str) -> None:
    """Refuse an observation operator whose derivative at some states is missing or wrong. A matrix is always right.

    Parameters
    ----------
    operator : Operator, optional
        None observes the state directly.
    mode : {"forward", "backward"}
        "forward": `tangent`. "backward": autodiff backward through the operator.
    states : Tensor, shape (S, N)
    remedy : str
        See `check_derivative`.

    Raises
    ------
    ValueError
    """
    if operator is None or operator.linear:
        return
    label = "the observation operator"
    if mode == "forward":
        check_derivative(operator, states, label, remedy, along=operator.tangent)
    else:
        check_derivative(operator, states, label, remedy, adjoint=pull_back(operator))


def pull_back(function: Function) -> Adjoint:
    """Product of weights (B, P) with the derivative of a function at states (B, N), by autodiff, shape (B, N)."""

    def adjoint(x: Tensor, weights: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            value = function(leaf)
            (gradient,) = torch.autograd.grad(value, leaf, weights.to(value), materialize_grads=True)
        return gradient

    return adjoint


def climate_states(dynamics: Dynamics, seed: int, like: Tensor) -> Tensor:
    """A few flattened states of the climate, (S, N). If the climate is a single point, states around this point."""
    drawn = dynamics.climatology(range(STATES), seed, purpose=Purpose.CLIMATOLOGY, like=like).flatten(1)
    if bool((drawn.std(0) > _COLLAPSED * drawn.abs().amax(0)).any()):
        return drawn
    return drawn + 0.1 * sizes(drawn) * random_directions(torch.arange(STATES, device=drawn.device), 2, drawn)


def sizes(states: Tensor) -> Tensor:
    """Typical variation of each component of states (S, N), shape (N,): its standard deviation, or its size, or 1.

    If a component is zero in all states, its size is that of the whole state.
    """
    deviation, size = states.std(0), states.square().mean(0).sqrt()
    whole = size.square().mean().sqrt()
    size = torch.where(size > 0, size, torch.where(whole > 0, whole, torch.ones_like(whole)))
    return torch.where(deviation > _COLLAPSED * size, deviation, size)


def random_directions(rows: Tensor, stream: int, like: Tensor) -> Tensor:
    """Standard normal numbers keyed by labels (B,) and a stream, shape (B, N). N is the length of `like`'s rows."""
    return normal(0, Purpose.DIRECTION, rows, torch.zeros_like(rows[:1]), like.shape[1], stream)[:, 0].to(like)


def _differences(function: Function, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Central differences of a function, the largest possible error of these differences, and their typical size.

    Returns
    -------
    central, doubt : Tensor, shape (B, P)
    scale : Tensor, shape (P,)
    """
    with torch.no_grad():
        middle = function(x.clone())
        precision = torch.float64 if middle.dtype == x.dtype == torch.float64 else torch.float32
        big, small = _STEPS[precision]
        steps = torch.tensor([big, -big, small, -small], dtype=x.dtype, device=x.device)
        points = (x + steps[:, None, None] * direction).flatten(0, 1)
        high, low, near_high, near_low = function(points).double().unflatten(0, (4, -1))
        middle = middle.double()
        central, near = (high - low) / (2 * big), (near_high - near_low) / (2 * small)
        gap, near_gap = (high + low - 2 * middle).abs() / big, (near_high + near_low - 2 * middle).abs() / small
        # For a smooth function, the gap between one-sided differences closes with the step. A gap that stays is a kink.
        kink = ((big * near_gap - small * gap) / (big - small)).clamp_min(0.0)
        doubt = kink + 2 * (central - near).abs()
        fine = central.isfinite()
        typical = torch.where(fine, central, 0.0).square().mean(0).sqrt()
        value = torch.where(middle.isfinite(), middle, 0.0).abs().amax(0)
        if x.shape == middle.shape:  # differences of states have the rounding of states
            value = value + x.abs().amax(0)
        rounding = _ROUNDING * torch.finfo(precision).eps * value / small
        return central, doubt, typical + rounding + torch.finfo(torch.float32).tiny


def _derived(derive: Callable[[], Tensor], label: str, mode: Mode, remedy: str) -> Tensor:
    """A derivative, or an error that says why there is none."""
    try:
        return derive().detach().double()
    except Exception as error:  # errors of torch, NumPy or the function for a tensor that carries derivatives
        raise ValueError(
            f"no derivative passes through {label} ({mode} mode): expected torch operations, without detach(), NumPy "
            f"or operations that torch cannot differentiate. {_capital(remedy)}"
        ) from error


def _judge(
    off: Tensor, derivative: Tensor, expected: Tensor, fine: Tensor, label: str, mode: Mode, remedy: str
) -> None:
    """Refuse a derivative that is wrong at every state. The message is about the state with the smallest error.

    All tensors have shape (S * directions,).
    """
    off = torch.where(fine, off.nan_to_num(math.inf), -1.0).reshape(-1, _DIRECTIONS)
    derivative, expected = (v.reshape(-1, _DIRECTIONS) for v in (derivative, expected))
    worst, direction = off.max(1)
    known = worst >= 0.0
    best = int(torch.where(known, worst, math.inf).argmin())
    if float(worst[best]) <= _TOLERANCE:
        return
    says, differences = (float(v[best, direction[best]]) for v in (derivative, expected))
    raise ValueError(
        f"the derivative of {label} is wrong: along a random direction it is {says:.3g} in {mode} mode, and finite "
        f"differences give {differences:.3g}, expected equal values; write the function in torch operations, without "
        f"detach() or NumPy, and correct a derivative that is written out. {_capital(remedy)}"
    )


def _capital(remedy: str) -> str:
    return remedy[:1].upper() + remedy[1:]
