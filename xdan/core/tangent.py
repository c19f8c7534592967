"""Derivatives along directions, forward through a function."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp

# The level of forward-mode derivatives is one for the whole process in torch: two threads must not nest theirs.
FORWARD_MODE = threading.RLock()


def push_forward(function: Callable[[Tensor], Tensor], x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Value of a function of states, and its derivative along directions at each of them.

    Parameters
    ----------
    function : callable
        From states of shape (..., N) to shape (..., P), each by itself.
    x : Tensor, shape (B, N)
    directions : Tensor, shape (B, M, N)

    Returns
    -------
    value : Tensor, shape (B, P)
    derivative : Tensor, shape (B, M, P)
    """
    points = x[:, None].expand(directions.shape).contiguous()
    with FORWARD_MODE:
        value, derivative = jvp(function, (points,), (directions,))[:2]
    return value[:, 0], derivative


def identity_directions(x: Tensor) -> Tensor:
    """The unit directions of every state, shape (B, N, N)."""
    size = x.shape[-1]
    return torch.eye(size, dtype=x.dtype, device=x.device).expand(len(x), size, size)
