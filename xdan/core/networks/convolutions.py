"""Convolutions on a ring, from plain operations, so that every transform of torch.func applies to them.

Features have shape (channels, sites, ...).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def circular_convolution(x: Tensor, weight: Tensor, bias: Tensor, kernel: int) -> Tensor:
    """out[o, n, b] = bias[o] + sum_{k, c} weight[o, k C + c] x[c, n + k - kernel // 2, b], n on the ring.

    Parameters
    ----------
    x : Tensor, shape (C, N, ...)
    weight : Tensor, shape (O, kernel * C)
    bias : Tensor, shape (O,)
    kernel : int
        Odd width, in sites.

    Returns
    -------
    Tensor, shape (O, N, ...)
    """
    columns = torch.cat([x.roll(kernel // 2 - k, 1) for k in range(kernel)])
    return (weight @ columns.flatten(1) + bias[:, None]).reshape(-1, *x.shape[1:])


def spreading_convolution(x: Tensor, weight: Tensor, kernel: int) -> Tensor:
    """Convolution of a field that differs from zero inside W sites only.

    Parameters
    ----------
    x : Tensor, shape (C, W, ...)
    weight : Tensor, shape (O, kernel * C)
    kernel : int
        Odd width, in sites.

    Returns
    -------
    Tensor, shape (O, W + kernel - 1, ...)
        It is half a kernel wider on each side.
    """
    width = x.shape[1] + kernel - 1
    room = widened(x, kernel - 1)
    columns = torch.cat([room[:, k : k + width] for k in range(kernel)])
    convolved: Tensor = (weight @ columns.flatten(1)).unflatten(1, columns.shape[1:])
    return convolved


def widened(x: Tensor, more: int) -> Tensor:
    """Add `more` sites of zeros on both sides of a field (C, W, J, B)."""
    return pad(x, (0, 0, 0, 0, more, more))
