"""Residual convolutions on the ring, from plain operations: what the networks are made of.

Features have shape (channels, sites, batch).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import choice, integer
from .fused import FAR, Convolutions, Trunk

ACTIVATIONS = ("gated", "silu", "linear")
WRITTEN_OUT = ("gated", "silu")  # activations whose gradient is written out
LARGEST = 10_000  # channels, layers or sites of a window: no network comes near, and a store may claim any


def soften(x: Tensor) -> Tensor:
    """Identity to third order, bounded by a few deviations: far inputs do not leave the range that was trained on."""
    return FAR * (x / FAR).tanh()


def circular_convolution(x: Tensor, weight: Tensor, bias: Tensor, kernel: int) -> Tensor:
    """out[o, n, b] = bias[o] + sum_{k, c} weight[o, k C + c] x[c, n + k - kernel // 2, b], n on the ring.

    Plain operations only, so that every torch.func transform applies.
    """
    columns = torch.cat([x.roll(kernel // 2 - k, 1) for k in range(kernel)])
    return (weight @ columns.flatten(1) + bias[:, None]).reshape(-1, *x.shape[1:])


def make_layers(
    inputs: int, filters: int, layers: int, outputs: int, kernel: int, activation: str, quiet: float
) -> tuple[nn.ParameterList, nn.ParameterList]:
    """Random weights (out, kernel * in) and zero biases in single precision: a convolution in, hidden ones, one out.

    Every parameter is registered as soon as it is made, so that one who counts them can stop early.
    """
    wide = 2 * filters if activation == "gated" else filters
    sizes = [(inputs, filters), *[(filters, wide)] * layers, (filters, outputs)]
    weights, biases = nn.ParameterList(), nn.ParameterList()
    for index, (inside, outside) in enumerate(sizes):
        gain = 1.0 if index == 0 else quiet if index == len(sizes) - 1 else 0.4  # damped branches
        std = gain / math.sqrt(kernel * inside)
        weights.append(nn.Parameter(std * torch.randn(outside, kernel * inside, dtype=torch.float32)))
        biases.append(nn.Parameter(torch.zeros(outside, dtype=torch.float32)))
    return weights, biases


def residual_trunk(
    features: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    kernel: int,
    sub_blocks: int,
    activation: str,
) -> Tensor:
    """A convolution in, residual blocks of `sub_blocks` activated convolutions, a convolution out."""
    layers = list(zip(weights, biases, strict=True))
    h = circular_convolution(features, *layers[0], kernel)
    u = h
    for index, (weight, bias) in enumerate(layers[1:-1]):
        z = circular_convolution(u, weight, bias, kernel)
        if activation == "gated":
            linear, gate = z.chunk(2)
            u = linear * gate.tanh()
        else:
            u = nn.functional.silu(z) if activation == "silu" else z
        if index % sub_blocks == sub_blocks - 1:
            h = u = h + u
    return circular_convolution(h, *layers[-1], kernel)


def renew(memory: Tensor, gate: Tensor, candidate: Tensor) -> Tensor:
    """New latent channels m <- (1 - g) m + g c, g a sigmoid and c a tanh of what the last layer gives."""
    return memory + gate.sigmoid() * (candidate.tanh() - memory)


def size(label: str, value: Any, least: int = 1) -> int:
    """Take a number of channels, layers or members.

    Raises
    ------
    TypeError, ValueError
        For what is no integer, or out of bounds.
    """
    return integer(label, value, least=least, most=LARGEST)


def odd(label: str, value: Any) -> int:
    """Take the width of a window that has a centre.

    Raises
    ------
    TypeError, ValueError
        For what is no integer, out of bounds, or even.
    """
    width = size(label, value)
    if width % 2 == 0:
        raise ValueError(f"{label}={width}: expected an odd number, so that a window has a centre")
    return width


def cnn_sizes(
    filters: Any, blocks: Any, sub_blocks: Any, kernel: Any, activation: Any
) -> tuple[int, int, int, int, str]:
    """Take the sizes that every residual CNN has, in this order, as plain values.

    Raises
    ------
    TypeError
        For sizes that are no integers, or an activation that is no string.
    ValueError
        For sizes out of bounds, an even kernel, or an activation that is unknown.
    """
    filters, blocks, sub_blocks = size("filters", filters), size("blocks", blocks), size("sub_blocks", sub_blocks)
    if blocks * sub_blocks > LARGEST:
        raise ValueError(f"blocks={blocks}, sub_blocks={sub_blocks}: expected at most {LARGEST} layers together")
    return filters, blocks, sub_blocks, odd("kernel", kernel), choice("activation", activation, ACTIVATIONS)


class RingCNN(nn.Module):
    """A residual CNN on the ring as a part of a network.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    filters, blocks, sub_blocks, kernel, activation
        As for `ResidualCNN`.
    quiet : float
        Size of the output at the start.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        filters: int,
        blocks: int,
        sub_blocks: int = 1,
        kernel: int = 5,
        activation: str = "gated",
        quiet: float = 0.02,
    ) -> None:
        super().__init__()
        filters, blocks, self.sub_blocks, self.kernel, self.activation = cnn_sizes(
            filters, blocks, sub_blocks, kernel, activation
        )
        self.weights, self.biases = make_layers(
            inputs, filters, blocks * self.sub_blocks, outputs, self.kernel, self.activation, quiet
        )
        self._trunk: Trunk | None = None

    def forward(self, features: Tensor) -> Tensor:
        """From (inputs, N, B) to (outputs, N, B); in training mode with a gradient that is written out."""
        weights, biases = list(self.weights), list(self.biases)
        if not self.training or self.activation not in WRITTEN_OUT or features.shape[1] < self.kernel // 2:
            return residual_trunk(features, weights, biases, self.kernel, self.sub_blocks, self.activation)
        if self._trunk is None or not self._trunk.fits(weights):
            self._trunk = Trunk(weights, biases, self.kernel, self.sub_blocks, self.activation == "gated")
        alternating = [t for pair in zip(weights, biases, strict=True) for t in pair]
        answer: Tensor = Convolutions.apply(features, self._trunk, *alternating)  # type: ignore[no-untyped-call]
        return answer

    @property
    def reach(self) -> int:
        """Sites to each side that an output can depend on."""
        return (self.kernel // 2) * len(self.weights)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Every convolution but the last."""
        return list(self.weights)[:-1]
