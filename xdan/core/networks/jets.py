"""Derivatives of the residual CNN carried forward layer by layer: first in zeta or x, and the mixed second one.

What torch.func gives for any network is several times slower, and runs in one thread at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .fused import FAR, WIDEST
from .residual_cnn import ResidualCNN
from .ring import circular_convolution


@dataclass
class Jet:
    """A field with its derivatives, None where they vanish or are not wanted.

    Attributes
    ----------
    value : Tensor, shape (C, N, 1, B)
    x : Tensor, shape (C, N, 1, B), optional
        Along one direction of the forecast.
    zeta, mixed : Tensor, shape (C, N, J, B), optional
        Along J directions of the projected innovation, and those of `x`.
    """

    value: Tensor
    x: Tensor | None = None
    zeta: Tensor | None = None
    mixed: Tensor | None = None

    def linear(self, function: object, bias: Tensor | None = None) -> Jet:
        """Apply a linear map to all parts in one pass."""
        parts = [part for part in (self.value, self.x, self.zeta, self.mixed) if part is not None]
        sizes = [part.shape[2] for part in parts]
        after = iter(function(torch.cat(parts, 2) if len(parts) > 1 else parts[0]).split(sizes, 2))  # type: ignore[operator]
        value = next(after)
        rest = [None if part is None else next(after) for part in (self.x, self.zeta, self.mixed)]
        return Jet(value if bias is None else value + bias[:, None, None, None], *rest)

    def curve(self, f: Tensor, slope: Tensor, bend: Tensor) -> Jet:
        """Apply a function of each element, of which f, f' and f'' are given."""
        x, zeta = _times(slope, self.x), _times(slope, self.zeta)
        mixed = _times(slope, self.mixed)
        if self.x is not None and self.zeta is not None:
            mixed = _plus(mixed, (bend * self.x) * self.zeta)
        return Jet(f, x, zeta, mixed)

    def tanh(self) -> Jet:
        """Hyperbolic tangent."""
        t = self.value.tanh()
        slope = 1.0 - t.square()
        return self.curve(t, slope, -2.0 * t * slope)

    def silu(self) -> Jet:
        """Product of z with the logistic function of z."""
        z, s = self.value, self.value.sigmoid()
        slope = s * (1.0 - s)
        return self.curve(z * s, s + z * slope, slope * (2.0 + z * (1.0 - 2.0 * s)))

    def times(self, other: Jet) -> Jet:
        """Product of two fields."""
        a, b = self, other
        x = _plus(_times(b.value, a.x), _times(a.value, b.x))
        zeta = _plus(_times(b.value, a.zeta), _times(a.value, b.zeta))
        mixed = _plus(_times(b.value, a.mixed), _times(a.value, b.mixed))
        for one, two in ((a, b), (b, a)):
            if one.x is not None and two.zeta is not None:
                mixed = _plus(mixed, one.x * two.zeta)
        return Jet(a.value * b.value, x, zeta, mixed)

    def plus(self, other: Jet) -> Jet:
        """Sum of two fields."""
        return Jet(
            self.value + other.value,
            _plus(self.x, other.x),
            _plus(self.zeta, other.zeta),
            _plus(self.mixed, other.mixed),
        )

    def scaled(self, factor: Tensor) -> Jet:
        """Times a number."""
        return Jet(factor * self.value, *(_times(factor, part) for part in (self.x, self.zeta, self.mixed)))

    def halves(self) -> tuple[Jet, Jet]:
        """First and second half of the channels."""
        parts = (self.value, self.x, self.zeta, self.mixed)
        pairs = [(None, None) if part is None else part.chunk(2) for part in parts]
        return Jet(*(first for first, _ in pairs)), Jet(*(second for _, second in pairs))  # type: ignore[arg-type]


def _times(factor: Tensor, part: Tensor | None) -> Tensor | None:
    return None if part is None else factor * part


def _plus(one: Tensor | None, two: Tensor | None) -> Tensor | None:
    return two if one is None else one if two is None else one + two


def _stack(jets: Sequence[Jet]) -> Jet:
    """Fields one upon the other along the channels, zeros where one of them lacks a derivative."""

    def stacked(parts: list[Tensor | None]) -> Tensor | None:
        like = next((part for part in parts if part is not None), None)
        if like is None:
            return None
        rows = [
            like.new_zeros(jet.value.shape[0], *like.shape[1:]) if part is None else part
            for jet, part in zip(jets, parts, strict=True)
        ]
        return torch.cat(rows)

    return Jet(
        torch.cat([jet.value for jet in jets]),
        stacked([jet.x for jet in jets]),
        stacked([jet.zeta for jet in jets]),
        stacked([jet.mixed for jet in jets]),
    )


def residual_cnn_jet(
    network: ResidualCNN,
    x: Tensor,
    zeta: Tensor,
    memory: Tensor | None = None,
    *,
    x_direction: Tensor | None = None,
    zeta_directions: Tensor | None = None,
) -> Jet:
    """The analysis of a residual CNN and its derivatives.

    Parameters
    ----------
    network : ResidualCNN
    x, zeta : Tensor, shape (B, N)
    memory : Tensor, shape (B, n, N), optional
    x_direction : Tensor, shape (N,), optional
    zeta_directions : Tensor, shape (J, N), optional

    Returns
    -------
    Jet
        Parts of shape (1, N, 1 or J, B), for the directions that are given.
    """
    bounded = network.activation != "linear"
    if network.memory and memory is None:
        memory = x.new_zeros(len(x), network.memory, x.shape[1])

    def field(values: Tensor, **derivatives: Tensor | None) -> Jet:
        return Jet(values.T[None, :, None], **derivatives)

    shape = (1, x.shape[1], -1, len(x))
    along_x = None if x_direction is None else x_direction[None, :, None, None].expand(shape[0], shape[1], 1, len(x))
    along_zeta = (
        None
        if zeta_directions is None
        else zeta_directions.T[None, :, :, None].expand(1, shape[1], len(zeta_directions), len(x))
    )
    forecast, innovation = field(x, x=along_x), field(zeta, zeta=along_zeta).scaled(network.error_std)
    normal = field((x - network.state_mean) / network.state_std, x=_times(1.0 / network.state_std, along_x))
    far, near = torch.full_like(network.state_std, FAR), torch.full_like(network.state_std, 1.0 / FAR)
    inputs = [normal] if network.sees_forecast else []
    inputs = [jet.scaled(near).tanh().scaled(far) if bounded else jet for jet in (*inputs, innovation)]
    if memory is not None:
        inputs.append(Jet(memory.permute(1, 2, 0)[:, :, None]))
    layers = list(zip(network.weights, network.biases, strict=True))

    def convolved(jet: Jet, layer: tuple[Tensor, Tensor]) -> Jet:
        weight, bias = layer
        silent = torch.zeros_like(bias)
        return jet.linear(lambda part: circular_convolution(part, weight, silent, network.kernel), bias)

    h = convolved(_stack(inputs), layers[0])
    u = h
    for index, layer in enumerate(layers[1:-1]):
        u = convolved(u, layer)
        if network.activation == "gated":
            linear, gate = u.halves()
            u = linear.times(gate.tanh())
        elif network.activation == "silu":
            u = u.silu()
        if index % network.sub_blocks == network.sub_blocks - 1:
            h = h.plus(u)
            u = h
    weight, bias = layers[-1]
    step = convolved(h, (weight[:1], bias[:1]))
    if bounded:
        widest = WIDEST * network.state_std / network.error_std
        step = step.scaled(1.0 / widest).tanh().scaled(widest)
    return forecast.plus(step.plus(innovation.scaled(network.relative_alpha)).scaled(network.error_std))
