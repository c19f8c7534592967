"""Derivatives along directions, in forward mode; in backward mode, twice, if torch has no forward derivative.

Functions must act on each state of a batch separately.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.func import jvp, vmap

T = TypeVar("T")
Function = Callable[[Tensor], Tensor]
Pair = Callable[[Tensor, Tensor], Tensor]

# In torch, the level of forward-mode derivatives is common to the whole process: two threads must not nest derivatives.
FORWARD_MODE = threading.RLock()
_FIRST, _SECOND = "derivative", "second derivative"
_NUDGE = 1e-2  # relative change of a state that shows whether a function depends on it


def push_forward(
    function: Function, x: Tensor, directions: Tensor, what: str = "a function of the state"
) -> tuple[Tensor, Tensor]:
    """Value of a function of states, and its derivative along directions at each state.

    Parameters
    ----------
    function : callable
        It maps states of shape (..., N) to shape (..., P), each state separately.
    x : Tensor, shape (B, N)
    directions : Tensor, shape (B, M, N)
    what : str
        Name of the function in messages.

    Returns
    -------
    value : Tensor, shape (B, P)
    derivative : Tensor, shape (B, M, P)

    Raises
    ------
    ValueError
        If torch cannot differentiate the function, or does not see that it depends on the state.
    """
    points = x[:, None].expand(directions.shape).contiguous()

    def forward() -> tuple[Tensor, Tensor]:
        return jvp(function, (points,), (directions,), strict=True)[:2]

    def backward(recorded: bool) -> tuple[Tensor, Tensor]:
        return _double_backward(function, points, directions, what=what, recorded=recorded)

    value, derivative = _either(forward, backward, lambda: function(points), what, _FIRST)
    return value[:, 0], derivative


def along(function: Function, x: Tensor, direction: Tensor, what: str) -> Tensor:
    """Derivative of a function of states (B, N) along a direction at each state, (B, N); shape of the function's value.

    Raises
    ------
    ValueError
        See `push_forward`.
    """

    def forward() -> Tensor:
        derivative: Tensor = jvp(function, (x,), (direction,), strict=True)[1]
        return derivative

    def backward(recorded: bool) -> Tensor:
        return _double_backward(function, x, direction, what=what, recorded=recorded)[1]

    return _either(forward, backward, lambda: function(x), what, _FIRST)


def jacobian(function: Function, x: Tensor, what: str) -> Tensor:
    """Derivative of each of P values with respect to each of N components, shape (B, P, N).

    Parameters
    ----------
    function : callable
        It maps states of shape (B, N) to shape (B, P).
    x : Tensor, shape (B, N)
    what : str
        Name of the function in messages.

    Raises
    ------
    ValueError
        See `push_forward`.
    """

    def column(direction: Tensor) -> Tensor:
        derivative: Tensor = jvp(function, (x,), (direction.expand_as(x),), strict=True)[1]
        return derivative

    def forward() -> Tensor:
        columns: Tensor = vmap(column)(torch.eye(x.shape[1], dtype=x.dtype, device=x.device))
        return columns.movedim(0, 2)

    def backward(recorded: bool) -> Tensor:
        return _rows(function, x, what=what, recorded=recorded)

    return _either(forward, backward, lambda: function(x), what, _FIRST)


def mixed_jacobian(function: Pair, x: Tensor, z: Tensor, x_direction: Tensor, what: str) -> Tensor:
    """Derivative with respect to z, shape (B, P, N), of the derivative of a function of x and z along a direction of x.

    Parameters
    ----------
    function : callable
        It maps two tensors of shape (B, N) to shape (B, P).
    x, z, x_direction : Tensor, shape (B, N)
    what : str
        Name of the function in messages.

    Raises
    ------
    ValueError
        If torch cannot differentiate the function twice.
    """

    def column(z_direction: Tensor) -> Tensor:
        return _nested(function, x, z, x_direction, z_direction.expand_as(z))

    def forward() -> Tensor:
        columns: Tensor = vmap(column)(torch.eye(z.shape[1], dtype=z.dtype, device=z.device))
        return columns.movedim(0, 2)

    def backward(recorded: bool) -> Tensor:
        _require_recorded(lambda at: function(x, at), z, what)
        return _rows(_slope(function, x, x_direction), z, recorded=recorded)

    return _either(forward, backward, lambda: function(x, z), what, _SECOND)


def mixed_along(function: Pair, x: Tensor, z: Tensor, x_direction: Tensor, z_direction: Tensor, what: str) -> Tensor:
    """Second derivative of a function of x and z along a direction of each, shape (B, P). See `mixed_jacobian`."""

    def forward() -> Tensor:
        return _nested(function, x, z, x_direction, z_direction)

    def backward(recorded: bool) -> Tensor:
        _require_recorded(lambda at: function(x, at), z, what)
        return _double_backward(_slope(function, x, x_direction), z, z_direction, recorded=recorded)[1]

    return _either(forward, backward, lambda: function(x, z), what, _SECOND)


def _slope(function: Pair, x: Tensor, x_direction: Tensor) -> Function:
    """The derivative along a direction of x, as a function of z, in backward mode."""
    return lambda z: _double_backward(lambda state: function(state, z), x, x_direction)[1]


def _nested(function: Pair, x: Tensor, z: Tensor, x_direction: Tensor, z_direction: Tensor) -> Tensor:
    """Second derivative along a direction of x and one of z, by two nested forward derivatives."""

    def response(state: Tensor) -> Tensor:
        inner: Tensor = jvp(lambda at: function(state, at), (z,), (z_direction,), strict=True)[1]
        return inner

    derivative: Tensor = jvp(response, (x,), (x_direction,))[1]
    return derivative


def _either(
    forward: Callable[[], T], backward: Callable[[bool], T], value: Callable[[], Tensor], what: str, lacks: str
) -> T:
    """Differentiate in forward mode; in backward mode if an operation has no forward derivative, or none in batches."""
    try:
        with FORWARD_MODE:
            return forward()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        value()  # if the function itself fails, it fails here, with its own message
    recorded = torch.is_grad_enabled()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            return backward(recorded)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            f"torch cannot differentiate {what}: an operation of it has no {lacks}. Expected torch operations that can "
            "be differentiated, without NumPy: write that operation in others, or give its torch.autograd.Function a "
            "backward of torch operations"
        ) from error


def _leaf(x: Tensor) -> Tensor:
    """A copy of a tensor, with respect to which autograd can differentiate."""
    return x if x.requires_grad else x.detach().clone().requires_grad_()


def _require_recorded(function: Function, x: Tensor, what: str) -> None:
    """Refuse a function that depends on x if torch has recorded no operation on x."""
    x = _leaf(x)
    value = function(x)
    if not value.requires_grad or torch.autograd.grad(value.sum(), x, allow_unused=True)[0] is None:
        _check_recorded(function, x, value, what)


def _check_recorded(function: Function, x: Tensor, value: Tensor, what: str) -> None:
    """Refuse a function whose value changes with the state if torch has recorded no operation on the state."""
    with torch.no_grad():
        moved = function(x + _NUDGE * (1.0 + x.abs()))
    if bool(((moved != value) & moved.isfinite()).any()):
        raise ValueError(
            f"torch sees no derivative of {what}, though its result changes with the state: expected torch operations "
            "throughout, without detach() or NumPy"
        )


def _require_whole(value: Tensor) -> None:
    """Raise an error if a part of a graph cannot be differentiated. Torch would leave this part out in silence."""
    nodes, visited = [value.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        if node.name().endswith("Error"):
            raise RuntimeError("a function that is differentiable once is to be differentiated twice")
        visited.add(node)
        nodes.extend(before for before, _ in node.next_functions)


def _double_backward(
    function: Function, x: Tensor, direction: Tensor, *, what: str | None = None, recorded: bool = True
) -> tuple[Tensor, Tensor]:
    """Value, and derivative along a direction: the transposed derivative is linear, and its transpose is taken."""
    x = _leaf(x)
    direction = direction.clone() if direction.is_inference() else direction
    value = function(x)
    weights = torch.zeros_like(value, requires_grad=True)
    transposed = None
    if value.requires_grad:
        _require_whole(value)
        (transposed,) = torch.autograd.grad(value, x, weights, create_graph=True, allow_unused=True)
    if transposed is None and what is not None:
        _check_recorded(function, x, value, what)
    derivative = torch.zeros_like(value)
    if transposed is not None and transposed.requires_grad:
        _require_whole(transposed)
        (derivative,) = torch.autograd.grad(
            transposed, weights, direction, create_graph=recorded, allow_unused=True, materialize_grads=True
        )
    return (value, derivative) if recorded else (value.detach(), derivative)


def _rows(function: Function, x: Tensor, *, what: str | None = None, recorded: bool) -> Tensor:
    """Derivatives (B, P, N) in backward mode, for one of the P values at a time and all states at once."""
    x = _leaf(x)
    value = function(x)
    rows: list[Tensor | None] = [None]
    if value.requires_grad:
        _require_whole(value)
        rows = [
            torch.autograd.grad(one.sum(), x, retain_graph=True, create_graph=recorded, allow_unused=True)[0]
            for one in value.unbind(1)
        ]
    if all(row is None for row in rows):
        if what is not None:
            _check_recorded(function, x, value, what)
        return value.new_zeros(*value.shape, x.shape[1])
    return torch.stack([torch.zeros_like(x) if row is None else row for row in rows], 1)


def unit_direction(x: Tensor, site: int) -> Tensor:
    """The unit direction of one component, for every state (B, N)."""
    direction = torch.zeros_like(x)
    direction[:, site] = 1.0
    return direction


def identity_directions(x: Tensor) -> Tensor:
    """The unit directions of every state, shape (B, N, N)."""
    size = x.shape[-1]
    return torch.eye(size, dtype=x.dtype, device=x.device).expand(len(x), size, size)
