"""A user's functions of states: they get copies, their results are copied and checked, wrong behaviour is refused.

A user's function may work in place, or return a buffer that its next call overwrites. Neither may change the states of
a run, so arguments and results are copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import shown

Function = Callable[[Tensor], Tensor]

_SAME = 1e-7  # largest difference of two calls at the same states, relative to the largest value
_ALONE = 1e-5  # the same for two sizes of a batch, which change the rounding of single precision


def in_transform(x: Tensor) -> bool:
    """Whether a tensor is inside a torch.func transform."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(x))


def call(function: Function, x: Tensor, label: str) -> Any:
    """Call a user's function. If torch raises an error, the message names the function and the states.

    Raises
    ------
    ValueError
        If torch refuses the states.
    """
    try:
        return function(x)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as reason:
        if in_transform(x) and "mutate a captured Tensor" in str(reason):
            raise ValueError(
                f"{label} has no derivative, because it writes into a buffer: expected a torch function that returns "
                "new tensors"
            ) from reason
        if in_transform(x):  # the caller who asked for the derivative has a better message
            raise
        raise ValueError(
            f"{label} cannot take states of {x.dtype}, shape {tuple(x.shape)}, on {x.device} ({shown_reason(reason)}): "
            "expected a torch function of float32 and float64 states on any device, so turn its own tensors "
            "with .to(x)"
        ) from reason


def check_answer(answer: Any, shape: tuple[int, ...], x: Tensor, label: str) -> Tensor:
    """Refuse a result that is not a tensor of the expected shape, dtype and device.

    Raises
    ------
    ValueError
    """
    states = f"for states of shape {tuple(x.shape)}"
    if not isinstance(answer, Tensor):
        remedy = (
            "; write it with torch, or make the model by xdan.NumpyDynamics" if isinstance(answer, np.ndarray) else ""
        )
        raise ValueError(f"{label} gave a {type(answer).__name__} {states}: expected a tensor of shape {shape}{remedy}")
    if answer.shape != shape:
        raise ValueError(
            f"{label} gave shape {tuple(answer.shape)} {states}: expected {shape}; it must act on the last axes, and "
            "on every state along the first one alike"
        )
    if answer.dtype != x.dtype or answer.device != x.device:
        raise ValueError(
            f"{label} gave {answer.dtype} on {answer.device} {states}: expected {x.dtype} on {x.device}, like them; "
            "turn its own tensors with .to(x)"
        )
    return answer


def isolated(function: Function, x: Tensor, state_dims: int, shape: tuple[int, ...], label: str) -> Tensor:
    """Call a user's function on a copy of states, and copy its result.

    Parameters
    ----------
    function : callable
        It maps states of shape (B, *state) to results of shape (B, *shape).
    x : Tensor, shape (..., *state)
    state_dims : int
        Number of axes of a state, which are the last axes of x.
    shape : tuple of int
        Shape of the result for one state.
    label : str
        Name of the function in messages.

    Returns
    -------
    Tensor, shape (..., *shape)

    Raises
    ------
    ValueError
        If torch refuses the states, or the result does not fit.
    """
    lead = x.shape[: x.ndim - state_dims]
    states = x.reshape(lead.numel(), *x.shape[x.ndim - state_dims :])
    answer = call(function, states.clone(memory_format=torch.contiguous_format), label)
    checked = check_answer(answer, (len(states), *shape), states, label)
    return checked.clone(memory_format=torch.contiguous_format).reshape(*lead, *shape)


def finest(function: Callable[[Tensor], Any], states: Tensor) -> Tensor:
    """Copy states (B, ...) in double precision, or in single precision if the function does not take double precision.

    A model with weights in single precision takes single precision only.
    """
    double = states.detach().double()
    try:
        with torch.no_grad():
            function(double[:1].clone())
    except Exception:  # any error of torch or the function about the type
        return states.detach().float()
    return double


def check_function(function: Function, states: Tensor, label: str) -> None:
    """Refuse a function whose value at a state depends on anything except this state.

    Parameters
    ----------
    function : callable
        A function that does not change its argument, such as one that calls `isolated`.
    states : Tensor, shape (2, ...)
    label : str

    Raises
    ------
    ValueError
        If it fails, if two calls at the same states differ, or if the result for a state depends on another state.
    """
    try:
        with torch.no_grad():
            first, second, alone = function(states), function(states), function(states[:1])
    except ValueError:
        raise
    except Exception as reason:
        raise ValueError(
            f"{label} failed for states of shape {tuple(states.shape)} ({type(reason).__name__}: "
            f"{shown_reason(reason)}): expected a torch function of states along the first axis"
        ) from reason
    finite = first[first.isfinite()].abs()
    scale = float(finite.max()) if len(finite) else 0.0
    if not _close(first, second, _SAME * scale):
        raise ValueError(
            f"{label} gave two answers at the same states, {_apart(first, second)}: expected a function of the "
            "states alone, without random numbers, a clock or a memory of earlier calls"
        )
    if not _close(first[:1], alone, _ALONE * scale):
        raise ValueError(
            f"{label} mixes the states of a batch: the answer for a state depends on the other states, "
            f"{_apart(first[:1], alone)}; expected a separate answer for each state along the first axis, so take "
            "sums, means and norms along the last axes only, for example x.mean(-1, keepdim=True)"
        )


def shown_reason(reason: BaseException) -> str:
    """The first line of an error, for the message of another error."""
    return shown(str(reason).split("\n")[0])[1:-1]


def _close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return torch.allclose(one, other, rtol=0.0, atol=tolerance, equal_nan=True)


def _apart(one: Tensor, other: Tensor) -> str:
    return f"off by {float((one - other).abs().max()):.3g}"
