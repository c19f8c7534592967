"""Fields that carry their derivatives through the layers of a network: in zeta, in x, and mixed second ones.

torch.func can do this for any network, but is several times slower and runs in one thread at a time. The derivative
with respect to zeta_j starts at site j and spreads by half a kernel in each layer. Only this window around j is
carried, until it is the whole ring.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .convolutions import circular_convolution, spreading_convolution, widened


@dataclass(frozen=True)
class FieldWithDerivatives:
    """A field with its derivatives. A derivative is None if it vanishes or is not wanted.

    Attributes
    ----------
    value : Tensor, shape (C, N, 1, B)
    x : Tensor, shape (C, N, 1, B), optional
        Derivative along one direction of the forecast.
    zeta, mixed : Tensor, shape (C, W, J, B), optional
        Derivatives with respect to the projected innovations of J sites, of the value and of `x`.
    window : Tensor of int64, shape (W, J), optional
        The sites of these derivatives. None: all N sites, in order.
    """

    value: Tensor
    x: Tensor | None = None
    zeta: Tensor | None = None
    mixed: Tensor | None = None
    window: Tensor | None = None

    def at(self, field: Tensor | None) -> Tensor | None:
        """Values (C, N, 1, B) at the sites of the derivatives with respect to zeta."""
        return field if field is None or self.window is None else field[:, self.window, 0]

    def apply(self, value: Tensor, slope: Tensor, curvature: Tensor) -> FieldWithDerivatives:
        """Apply a function f to each element.

        Parameters
        ----------
        value, slope, curvature : Tensor, shape (C, N, 1, B)
            f, f' and f'' of this field's values.
        """
        return chain([self], value, [slope], [_times(curvature, self.x)])

    def tanh(self) -> FieldWithDerivatives:
        """Hyperbolic tangent."""
        t = self.value.tanh()
        slope = 1.0 - t.square()
        return self.apply(t, slope, -2.0 * t * slope)

    def bounded(self, width: Tensor) -> FieldWithDerivatives:
        """Width times the hyperbolic tangent of the field over the width."""
        return self.scaled(1.0 / width).tanh().scaled(width)

    def times(self, other: FieldWithDerivatives) -> FieldWithDerivatives:
        """Product of two fields with one window."""
        return chain([self, other], self.value * other.value, [other.value, self.value], [other.x, self.x])

    def plus(self, other: FieldWithDerivatives) -> FieldWithDerivatives:
        """Sum of two fields. The window of the first must not be wider than that of the second."""
        first = self._widened_to(other)
        return FieldWithDerivatives(
            first.value + other.value,
            _plus(first.x, other.x),
            _plus(first.zeta, other.zeta),
            _plus(first.mixed, other.mixed),
            other.window,
        )

    def _widened_to(self, other: FieldWithDerivatives) -> FieldWithDerivatives:
        """Add zeros around the window, up to the window of another field."""
        if self.window is None or self.zeta is None:
            return self
        if other.window is None:
            return self.dense()
        more = (len(other.window) - len(self.window)) // 2
        mixed = None if self.mixed is None else widened(self.mixed, more)
        return replace(self, zeta=widened(self.zeta, more), mixed=mixed, window=other.window)

    def scaled(self, factor: Tensor) -> FieldWithDerivatives:
        """Multiply by a number."""
        x, zeta, mixed = (_times(factor, part) for part in (self.x, self.zeta, self.mixed))
        return FieldWithDerivatives(factor * self.value, x, zeta, mixed, self.window)

    def split(self, parts: int) -> list[FieldWithDerivatives]:
        """Split the channels into parts of equal size."""
        fields = (self.value, self.x, self.zeta, self.mixed)
        pieces = [(None,) * parts if field is None else field.chunk(parts) for field in fields]
        return [
            FieldWithDerivatives(value, x, zeta, mixed, self.window)
            for value, x, zeta, mixed in zip(*pieces, strict=True)
            if value is not None
        ]

    def convolved(self, weight: Tensor, bias: Tensor, kernel: int) -> FieldWithDerivatives:
        """Circular convolution. The window grows by half a kernel on each side."""
        silent = torch.zeros_like(bias)

        def around(part: Tensor) -> Tensor:
            return circular_convolution(part, weight, silent, kernel)

        value, x = _together(around, self.value, self.x)
        assert value is not None
        value = value + bias[:, None, None, None]
        half, sites = kernel // 2, self.value.shape[1]
        if self.window is None or len(self.window) + 2 * half > sites:
            whole = self.dense()
            zeta, mixed = _together(around, whole.zeta, whole.mixed)
            return FieldWithDerivatives(value, x, zeta, mixed)
        zeta, mixed = _together(lambda part: spreading_convolution(part, weight, kernel), self.zeta, self.mixed)
        middle = self.window[len(self.window) // 2]
        away = torch.arange(-(len(self.window) // 2) - half, len(self.window) // 2 + half + 1, device=middle.device)
        return FieldWithDerivatives(value, x, zeta, mixed, (middle + away[:, None]) % sites)

    def dense(self) -> FieldWithDerivatives:
        """The field with its derivatives at all sites."""
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

        return FieldWithDerivatives(self.value, self.x, spread(self.zeta), spread(self.mixed))


def chain(
    fields: Sequence[FieldWithDerivatives], value: Tensor, slopes: Sequence[Tensor], curvatures: Sequence[Tensor | None]
) -> FieldWithDerivatives:
    """Apply f(z_1, ..., z_k), element by element, to k fields with one window, by the chain rule.

    df/dx = sum_a f_a dz_a/dx, and d2f/dxdzeta = sum_a f_a d2z_a/dxdzeta + sum_a (sum_b f_ab dz_b/dx) dz_a/dzeta.

    Parameters
    ----------
    fields : sequence of FieldWithDerivatives
        The fields z_a.
    value : Tensor, shape (C, N, 1, B)
        The value f.
    slopes : sequence of Tensor, shape (C, N, 1, B)
        The derivatives f_a.
    curvatures : sequence of Tensor, shape (C, N, 1, B)
        sum_b f_ab dz_b/dx; None if it vanishes.
    """
    first = fields[0]
    at = [first.at(slope) for slope in slopes]
    x = _sum(_times(slope, field.x) for slope, field in zip(slopes, fields, strict=True))
    zeta = _sum(_times(slope, field.zeta) for slope, field in zip(at, fields, strict=True))
    mixed = _sum(_times(slope, field.mixed) for slope, field in zip(at, fields, strict=True))
    curved = _sum(_times(first.at(curvature), field.zeta) for curvature, field in zip(curvatures, fields, strict=True))
    return FieldWithDerivatives(value, x, zeta, _plus(mixed, curved), first.window)


def chain_by_autograd(function: Callable[..., Tensor], fields: Sequence[FieldWithDerivatives]) -> FieldWithDerivatives:
    """Apply f(z_1, ..., z_k) as `chain` does. Autograd takes its first and second derivatives."""
    recorded = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        along_x = [field.x if field.x.requires_grad else field.x.clone() for field in fields if field.x is not None]
        leaves = [z if (z := field.value).requires_grad else z.detach().clone().requires_grad_() for field in fields]
        value = function(*leaves)
        slopes = _gradients(value, leaves, recorded or bool(along_x))
        curvatures: list[Tensor | None] = [None for _ in fields]
        if along_x:
            change = torch.stack([slope * x for slope, x in zip(slopes, along_x, strict=True)])
            curvatures = [*_gradients(change, leaves, recorded)]
    if not recorded:
        value, slopes = value.detach(), [slope.detach() for slope in slopes]
    return chain(fields, value, slopes, curvatures)


def _gradients(value: Tensor, leaves: list[Tensor], again: bool) -> list[Tensor]:
    """Gradient of the sum of values. It is zero for a leaf that the values do not depend on."""
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return list(torch.autograd.grad(value.sum(), leaves, create_graph=again, allow_unused=True, materialize_grads=True))


def stack(fields: Sequence[FieldWithDerivatives], window: Tensor | None) -> FieldWithDerivatives:
    """Fields joined along the channels. A missing derivative becomes zero; there are no mixed derivatives."""

    def stacked(parts: list[Tensor | None]) -> Tensor | None:
        like = next((part for part in parts if part is not None), None)
        if like is None:
            return None
        rows = [
            like.new_zeros(field.value.shape[0], *like.shape[1:]) if part is None else part
            for field, part in zip(fields, parts, strict=True)
        ]
        return torch.cat(rows)

    value = torch.cat([field.value for field in fields])
    x, zeta = stacked([field.x for field in fields]), stacked([field.zeta for field in fields])
    return FieldWithDerivatives(value, x, zeta, None, window)


def _times(factor: Tensor | None, part: Tensor | None) -> Tensor | None:
    return None if part is None or factor is None else factor * part


def _plus(one: Tensor | None, two: Tensor | None) -> Tensor | None:
    return two if one is None else one if two is None else one + two


def _sum(parts: Iterable[Tensor | None]) -> Tensor | None:
    return functools.reduce(_plus, parts, None)


def _together(function: Callable[[Tensor], Tensor], *parts: Tensor | None) -> tuple[Tensor | None, ...]:
    """Apply a linear function to several fields in one pass."""
    present = [part for part in parts if part is not None]
    if not present:
        return tuple(None for _ in parts)
    whole = function(torch.cat(present, 2) if len(present) > 1 else present[0])
    after = iter(whole.split([part.shape[2] for part in present], 2))
    return tuple(None if part is None else next(after) for part in parts)
