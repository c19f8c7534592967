"""Derivatives of the residual CNN carried forward layer by layer: first in zeta or x, and the mixed second one.

What torch.func gives for any network is several times slower, and runs in one thread at a time. The derivative by
zeta_j starts at site j and spreads by half a kernel a layer: only that window about j is carried, until it is the ring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from .fused import FAR, WIDEST
from .ring import circular_convolution

if TYPE_CHECKING:
    from .residual_cnn import ResidualCNN


@dataclass(frozen=True)
class Jet:
    """A field with its derivatives, None where they vanish or are not wanted.

    Attributes
    ----------
    value : Tensor, shape (C, N, 1, B)
    x : Tensor, shape (C, N, 1, B), optional
        Along one direction of the forecast.
    zeta, mixed : Tensor, shape (C, W, J, B), optional
        By J sites' projected innovations, and that of `x`.
    window : Tensor of int64, shape (W, J), optional
        At which sites; all N of them, in order, where there is none.
    """

    value: Tensor
    x: Tensor | None = None
    zeta: Tensor | None = None
    mixed: Tensor | None = None
    window: Tensor | None = None

    def _at(self, field: Tensor | None) -> Tensor | None:
        """Values (C, N, 1, B) where the derivatives by zeta stand."""
        return field if field is None or self.window is None else field[:, self.window, 0]

    def curve(self, f: Tensor, slope: Tensor, bend: Tensor) -> Jet:
        """Apply a function of each element, of which f, f' and f'' are given."""
        at = self._at(slope)
        mixed = _times(at, self.mixed)
        if self.x is not None:
            mixed = _plus(mixed, _times(self._at(bend * self.x), self.zeta))
        return replace(self, value=f, x=_times(slope, self.x), zeta=_times(at, self.zeta), mixed=mixed)

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
        """Product of two fields of one window."""
        a, b = self, other
        at_a, at_b = self._at(a.value), self._at(b.value)
        mixed = _plus(_times(at_b, a.mixed), _times(at_a, b.mixed))
        mixed = _plus(mixed, _plus(_times(self._at(a.x), b.zeta), _times(self._at(b.x), a.zeta)))
        return replace(
            self,
            value=a.value * b.value,
            x=_plus(_times(b.value, a.x), _times(a.value, b.x)),
            zeta=_plus(_times(at_b, a.zeta), _times(at_a, b.zeta)),
            mixed=mixed,
        )

    def plus(self, other: Jet) -> Jet:
        """Sum of two fields, the window of the first no wider than that of the second."""
        first = self.widened(other)
        return Jet(
            first.value + other.value,
            _plus(first.x, other.x),
            _plus(first.zeta, other.zeta),
            _plus(first.mixed, other.mixed),
            other.window,
        )

    def widened(self, other: Jet) -> Jet:
        """Zeros about the window, up to that of another field."""
        if self.window is None or self.zeta is None:
            return self
        if other.window is None:
            return self.dense()
        more = (len(other.window) - len(self.window)) // 2
        return replace(self, zeta=_padded(self.zeta, more), mixed=_padded(self.mixed, more), window=other.window)

    def scaled(self, factor: Tensor) -> Jet:
        """Times a number."""
        x, zeta, mixed = (_times(factor, part) for part in (self.x, self.zeta, self.mixed))
        return Jet(factor * self.value, x, zeta, mixed, self.window)

    def halves(self) -> tuple[Jet, Jet]:
        """First and second half of the channels."""
        value, other = self.value.chunk(2)
        x, zeta, mixed = ((None, None) if p is None else p.chunk(2) for p in (self.x, self.zeta, self.mixed))
        return Jet(value, x[0], zeta[0], mixed[0], self.window), Jet(other, x[1], zeta[1], mixed[1], self.window)

    def convolved(self, weight: Tensor, bias: Tensor, kernel: int) -> Jet:
        """Circular convolution; the window grows by half a kernel to each side."""
        silent = torch.zeros_like(bias)
        value, x = _together(lambda part: circular_convolution(part, weight, silent, kernel), self.value, self.x)
        assert value is not None
        value = value + bias[:, None, None, None]
        half, sites = kernel // 2, self.value.shape[1]
        if self.window is None or len(self.window) + 2 * half > sites:
            whole = self.dense()
            zeta, mixed = _together(
                lambda part: circular_convolution(part, weight, silent, kernel), whole.zeta, whole.mixed
            )
            return Jet(value, x, zeta, mixed)

        def within(part: Tensor) -> Tensor:
            room = _padded(part, 2 * half)
            assert room is not None
            width = part.shape[1] + 2 * half
            columns = torch.cat([room[:, k : k + width] for k in range(kernel)])
            convolved: Tensor = (weight @ columns.flatten(1)).unflatten(1, columns.shape[1:])
            return convolved

        zeta, mixed = _together(within, self.zeta, self.mixed)
        middle = self.window[len(self.window) // 2]
        away = torch.arange(-(len(self.window) // 2) - half, len(self.window) // 2 + half + 1, device=middle.device)
        return Jet(value, x, zeta, mixed, (middle + away[:, None]) % sites)

    def dense(self) -> Jet:
        """The same with the derivatives at all sites."""
        if self.window is None:
            return self
        sites = self.value.shape[1]

        def spread(part: Tensor | None) -> Tensor | None:
            if part is None or self.window is None:
                return None
            whole = part.new_zeros(part.shape[0], sites, *part.shape[2:])
            columns = torch.arange(part.shape[2], device=part.device).expand(self.window.shape)
            whole[:, self.window, columns] = part
            return whole

        return Jet(self.value, self.x, spread(self.zeta), spread(self.mixed))


def _times(factor: Tensor | None, part: Tensor | None) -> Tensor | None:
    return None if part is None or factor is None else factor * part


def _plus(one: Tensor | None, two: Tensor | None) -> Tensor | None:
    return two if one is None else one if two is None else one + two


def _padded(part: Tensor | None, more: int) -> Tensor | None:
    """Zeros on both sides of the window."""
    return None if part is None else pad(part, (0, 0, 0, 0, more, more))


def _together(function: Callable[[Tensor], Tensor], *parts: Tensor | None) -> tuple[Tensor | None, ...]:
    """Apply a linear function to several fields in one pass."""
    given = [part for part in parts if part is not None]
    if not given:
        return tuple(None for _ in parts)
    whole = function(torch.cat(given, 2) if len(given) > 1 else given[0])
    after = iter(whole.split([part.shape[2] for part in given], 2))
    return tuple(None if part is None else next(after) for part in parts)


def _stack(jets: Sequence[Jet], window: Tensor | None) -> Jet:
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

    value = torch.cat([jet.value for jet in jets])
    return Jet(value, stacked([jet.x for jet in jets]), stacked([jet.zeta for jet in jets]), None, window)


def residual_cnn_jet(
    network: ResidualCNN,
    x: Tensor,
    zeta: Tensor,
    memory: Tensor | None = None,
    *,
    x_site: int | None = None,
    zeta_sites: Tensor | None = None,
) -> Jet:
    """The analysis of a residual CNN and its derivatives.

    Parameters
    ----------
    network : ResidualCNN
    x, zeta : Tensor, shape (B, N)
    memory : Tensor, shape (B, n, N), optional
    x_site : int, optional
        l, of the derivative by x_l.
    zeta_sites : Tensor of int64, shape (J,), optional
        j, of those by zeta_j.

    Returns
    -------
    Jet
        Parts of shape (1, N, 1 or J, B), for the derivatives that are asked for.
    """
    states, sites = x.shape
    bounded = network.activation != "linear"
    if network.memory and memory is None:
        memory = x.new_zeros(states, network.memory, sites)
    along_x = along_zeta = window = None
    if x_site is not None:
        along_x = x.new_zeros(1, sites, 1, states)
        along_x[:, x_site] = 1.0
    if zeta_sites is not None:
        along_zeta, window = x.new_ones(1, 1, len(zeta_sites), states), zeta_sites[None].to(x.device)

    def field(values: Tensor) -> Tensor:
        return values.T[None, :, None]

    forecast = Jet(field(x), along_x)
    innovation = Jet(field(zeta), None, along_zeta, None, window).scaled(network.error_std)
    normal = Jet(field((x - network.state_mean) / network.state_std), _times(1.0 / network.state_std, along_x))
    far = torch.full_like(network.state_std, FAR)
    inputs = [*([normal] if network.sees_forecast else []), innovation]
    inputs = [jet.scaled(1.0 / far).tanh().scaled(far) if bounded else jet for jet in inputs]
    if memory is not None:
        inputs.append(Jet(memory.permute(1, 2, 0)[:, :, None]))
    layers = list(zip(network.weights, network.biases, strict=True))
    h = _stack(inputs, window).convolved(*layers[0], network.kernel)
    u = h
    for index, layer in enumerate(layers[1:-1]):
        u = u.convolved(*layer, network.kernel)
        if network.activation == "gated":
            linear, gate = u.halves()
            u = linear.times(gate.tanh())
        elif network.activation == "silu":
            u = u.silu()
        if index % network.sub_blocks == network.sub_blocks - 1:
            h = h.plus(u)
            u = h
    weight, bias = layers[-1]
    step = h.convolved(weight[:1], bias[:1], network.kernel)
    if bounded:
        widest = WIDEST * network.state_std / network.error_std
        step = step.scaled(1.0 / widest).tanh().scaled(widest)
    increment = innovation.scaled(network.relative_alpha).plus(step).scaled(network.error_std)
    return forecast.plus(increment).dense()
