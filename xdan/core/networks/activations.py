"""Activations of the residual trunk: one class each, which knows its value, its gradient and its derivatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..checks import choice
from ..registry import Registry
from .fields_with_derivatives import FieldWithDerivatives, chain_by_autograd

_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_silu_backward = torch.ops.aten.silu_backward.grad_input


class Activation(ABC):
    """u = f(z_1, ..., z_k), element by element, of what a hidden convolution gives.

    A class with a `name`, a `value` and the decorator `register_activation` is all that a new one needs: gradients
    and derivatives are then taken by autograd. A class may override them by what is faster.

    Attributes
    ----------
    name : str
        As networks name it in `activation=`.
    parts : int
        k: the convolution has as many channels for each channel of u.
    gain : float
        Standard deviation of a hidden convolution's random weights, times the root of its number of inputs. Below one,
        so that a residual block begins as a small change.
    affine : bool
        Whether u is affine in z. `ResidualCNN` then bounds nothing, so that its analysis is affine too.
    fast : bool
        Whether training takes the trunk's written-out gradient. False: that of autograd.
    """

    name: ClassVar[str]
    parts: ClassVar[int] = 1
    gain: ClassVar[float] = 0.4
    affine: ClassVar[bool] = False
    fast: ClassVar[bool] = True

    @abstractmethod
    def value(self, *sums: Tensor) -> Tensor:
        """f, from torch operations that autograd differentiates twice.

        Parameters
        ----------
        *sums : Tensor, shape (C, ...)
            z_1, ..., z_k, the parts of the convolution's channels.

        Returns
        -------
        Tensor, shape (C, ...)
        """

    def propagate(self, *sums: FieldWithDerivatives) -> FieldWithDerivatives:
        """The same function of fields that carry their derivatives."""
        return chain_by_autograd(self.value, sums)

    def value_into(self, out: Tensor, sums: Sequence[Tensor], start: Tensor | None) -> None:
        """Write f, or `start` plus f, into `out`.

        Parameters
        ----------
        out : Tensor, shape (C, N * B)
        sums : sequence of Tensor, shape (C, N * B)
            May be overwritten by what `gradient_into` reads.
        start : Tensor, shape (C, N * B), optional
            What the block began with, where this is its end.
        """
        out.copy_(self.value(*sums))
        if start is not None:
            out.add_(start)

    def gradient_into(self, out: Sequence[Tensor], sums: Sequence[Tensor], gradient: Tensor, spare: Tensor) -> None:
        """Write the gradient by z_1, ..., z_k into `out`, from that by f.

        Parameters
        ----------
        out : sequence of Tensor, shape (C, N * B)
        sums : sequence of Tensor, shape (C, N * B)
            As `value_into` left them.
        gradient : Tensor, shape (C, N * B)
        spare : Tensor, shape (C, N * B)
            To be written upon.
        """
        with torch.enable_grad():
            leaves = [z.detach().requires_grad_() for z in sums]
            value = self.value(*leaves)
        gradients = torch.autograd.grad(value, leaves, gradient, allow_unused=True, materialize_grads=True)
        for one, other in zip(out, gradients, strict=True):
            one.copy_(other)


_ACTIVATIONS: Registry[Activation] = Registry("activation", Activation, "xdan.core.networks.Activation")  # type: ignore[type-abstract]
_Cls = TypeVar("_Cls", bound=type[Activation])


def register_activation(cls: _Cls) -> _Cls:
    """Register a class of activations under its `name`.

    Raises
    ------
    TypeError
        For what is no class of activations, or has no name of its own.
    ValueError
        If another class has the name: stores that hold it would open as this one. A class that is defined anew takes
        its own place.
    """
    return _ACTIVATIONS.register(cls, "register_activation")


def activation_by_name(name: str) -> Activation:
    """Make a registered activation.

    Raises
    ------
    TypeError
        For what is no string.
    ValueError
        For a name that is not registered.
    """
    return _ACTIVATIONS[choice("activation", name, _ACTIVATIONS)]()


@register_activation
class Gated(Activation):
    """z_1 tanh z_2."""

    name: ClassVar[str] = "gated"
    parts: ClassVar[int] = 2

    def value(self, *sums: Tensor) -> Tensor:
        """Product of one half of the channels and the tanh of the other."""
        linear, gate = sums
        return linear * gate.tanh()

    def propagate(self, *sums: FieldWithDerivatives) -> FieldWithDerivatives:
        """By the rule for products."""
        linear, gate = sums
        return linear.times(gate.tanh())

    def value_into(self, out: Tensor, sums: Sequence[Tensor], start: Tensor | None) -> None:
        """Leaves tanh z_2 in the place of z_2."""
        linear, gate = sums
        if start is None:
            torch.mul(linear, tanh_(gate), out=out)
        else:
            torch.addcmul(start, linear, tanh_(gate), out=out)

    def gradient_into(self, out: Sequence[Tensor], sums: Sequence[Tensor], gradient: Tensor, spare: Tensor) -> None:
        """From z_1 and tanh z_2."""
        (linear, gate), (d_linear, d_gate) = sums, out
        torch.mul(gradient, gate, out=d_linear)
        _tanh_backward(torch.mul(gradient, linear, out=spare), gate, grad_input=d_gate)


@register_activation
class SiLU(Activation):
    """z times the logistic function of z."""

    name: ClassVar[str] = "silu"

    def value(self, *sums: Tensor) -> Tensor:
        """As torch has it."""
        return nn.functional.silu(sums[0])

    def propagate(self, *sums: FieldWithDerivatives) -> FieldWithDerivatives:
        """With s the logistic function: f' = s + z s (1 - s), f'' = s (1 - s) (2 + z (1 - 2 s))."""
        z, s = sums[0].value, sums[0].value.sigmoid()
        slope = s * (1.0 - s)
        return sums[0].apply(z * s, s + z * slope, slope * (2.0 + z * (1.0 - 2.0 * s)))

    def value_into(self, out: Tensor, sums: Sequence[Tensor], start: Tensor | None) -> None:
        """Leaves z as it is."""
        torch.ops.aten.silu.out(sums[0], out=out)
        if start is not None:
            out.add_(start)

    def gradient_into(self, out: Sequence[Tensor], sums: Sequence[Tensor], gradient: Tensor, spare: Tensor) -> None:
        """By torch's kernel."""
        _silu_backward(gradient, sums[0], grad_input=out[0])


@register_activation
class Linear(Activation):
    """z: the network without activations, which shows what the other activations are for."""

    name: ClassVar[str] = "linear"
    affine: ClassVar[bool] = True
    fast: ClassVar[bool] = False

    def value(self, *sums: Tensor) -> Tensor:
        """The argument itself."""
        return sums[0]

    def propagate(self, *sums: FieldWithDerivatives) -> FieldWithDerivatives:
        """The argument itself."""
        return sums[0]


def tanh_(x: Tensor) -> Tensor:
    """Replace x by tanh x = 2 / (1 + exp(-2 x)) - 1, which on a CPU takes a quarter of `torch.tanh_`'s time."""
    x.mul_(2).sigmoid_()
    return torch.add(x.new_full((), -1.0), x, alpha=2, out=x)
