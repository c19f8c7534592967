"""Activations of the residual trunk. Each is a class that knows its value, its gradient and its derivatives."""

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
    """An activation u = f(z_1, ..., z_k), element by element. z_1, ..., z_k come from a hidden convolution.

    A new activation needs a class with a `name` and a `value`, and the decorator `register_activation`. Autograd then
    takes gradients and derivatives. The class may override these methods by faster ones.

    Attributes
    ----------
    name : str
        The name in the parameter `activation=` of networks.
    parts : int
        Number k of parts. The convolution has k channels for each channel of u.
    gain : float
        Standard deviation of a hidden convolution's random weights, times the root of its number of inputs. It is below
        one, so that a residual block begins as a small change.
    affine : bool
        Whether u is affine in z. Then `ResidualCNN` bounds nothing, so that its analysis is affine too.
    fast : bool
        Whether training uses the trunk's written-out gradient. Otherwise it uses autograd.
    """

    name: ClassVar[str]
    parts: ClassVar[int] = 1
    gain: ClassVar[float] = 0.4
    affine: ClassVar[bool] = False
    fast: ClassVar[bool] = True

    @abstractmethod
    def value(self, *sums: Tensor) -> Tensor:
        """The value f, from torch operations that autograd can differentiate twice.

        Parameters
        ----------
        *sums : Tensor, shape (C, ...)
            z_1, ..., z_k: the k parts of the convolution's channels.

        Returns
        -------
        Tensor, shape (C, ...)
        """

    def propagate(self, *sums: FieldWithDerivatives) -> FieldWithDerivatives:
        """The function f of fields that carry their derivatives."""
        return chain_by_autograd(self.value, sums)

    def value_into(self, out: Tensor, sums: Sequence[Tensor], start: Tensor | None) -> None:
        """Write f, or `start` plus f, into `out`.

        Parameters
        ----------
        out : Tensor, shape (C, N * B)
        sums : sequence of Tensor, shape (C, N * B)
            They may be overwritten by tensors that `gradient_into` reads.
        start : Tensor, shape (C, N * B), optional
            Input of the block, if the layer ends the block.
        """
        out.copy_(self.value(*sums))
        if start is not None:
            out.add_(start)

    def gradient_into(self, out: Sequence[Tensor], sums: Sequence[Tensor], gradient: Tensor, spare: Tensor) -> None:
        """Write the gradient with respect to z_1, ..., z_k into `out`, from the gradient with respect to f.

        Parameters
        ----------
        out : sequence of Tensor, shape (C, N * B)
        sums : sequence of Tensor, shape (C, N * B)
            As `value_into` left them.
        gradient : Tensor, shape (C, N * B)
        spare : Tensor, shape (C, N * B)
            A buffer that may be overwritten.
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
        If `cls` is not a class of activations, or has no `name`.
    ValueError
        If another class has this name: stores with this name would open as this class. A class may be defined anew, for
        example in a notebook: it then replaces the earlier class.
    """
    return _ACTIVATIONS.register(cls, "register_activation")


def activation_by_name(name: str) -> Activation:
    """Make a registered activation.

    Raises
    ------
    TypeError
        If the name is not a string.
    ValueError
        If the name is not registered.
    """
    return _ACTIVATIONS[choice("activation", name, _ACTIVATIONS)]()


@register_activation
class Gated(Activation):
    """z_1 tanh z_2."""

    name: ClassVar[str] = "gated"
    parts: ClassVar[int] = 2

    def value(self, *sums: Tensor) -> Tensor:
        """Product of one half of the channels and the tanh of the other half."""
        linear, gate = sums
        return linear * gate.tanh()

    def propagate(self, *sums: FieldWithDerivatives) -> FieldWithDerivatives:
        """Value and derivatives, by the product rule."""
        linear, gate = sums
        return linear.times(gate.tanh())

    def value_into(self, out: Tensor, sums: Sequence[Tensor], start: Tensor | None) -> None:
        """Write the value; afterwards tanh z_2 stands in the place of z_2."""
        linear, gate = sums
        if start is None:
            torch.mul(linear, tanh_(gate), out=out)
        else:
            torch.addcmul(start, linear, tanh_(gate), out=out)

    def gradient_into(self, out: Sequence[Tensor], sums: Sequence[Tensor], gradient: Tensor, spare: Tensor) -> None:
        """Gradient from z_1 and tanh z_2."""
        (linear, gate), (d_linear, d_gate) = sums, out
        torch.mul(gradient, gate, out=d_linear)
        _tanh_backward(torch.mul(gradient, linear, out=spare), gate, grad_input=d_gate)


@register_activation
class SiLU(Activation):
    """z times the logistic function of z."""

    name: ClassVar[str] = "silu"

    def value(self, *sums: Tensor) -> Tensor:
        """SiLU of torch."""
        return nn.functional.silu(sums[0])

    def propagate(self, *sums: FieldWithDerivatives) -> FieldWithDerivatives:
        """Use the logistic function s: f' = s + z s (1 - s), f'' = s (1 - s) (2 + z (1 - 2 s))."""
        z, s = sums[0].value, sums[0].value.sigmoid()
        slope = s * (1.0 - s)
        return sums[0].apply(z * s, s + z * slope, slope * (2.0 + z * (1.0 - 2.0 * s)))

    def value_into(self, out: Tensor, sums: Sequence[Tensor], start: Tensor | None) -> None:
        """Write the value; z does not change."""
        torch.ops.aten.silu.out(sums[0], out=out)
        if start is not None:
            out.add_(start)

    def gradient_into(self, out: Sequence[Tensor], sums: Sequence[Tensor], gradient: Tensor, spare: Tensor) -> None:
        """Gradient, by torch's kernel."""
        _silu_backward(gradient, sums[0], grad_input=out[0])


@register_activation
class Linear(Activation):
    """z: a network without activations. Comparisons with it show what activations are good for."""

    name: ClassVar[str] = "linear"
    affine: ClassVar[bool] = True
    fast: ClassVar[bool] = False

    def value(self, *sums: Tensor) -> Tensor:
        """The argument."""
        return sums[0]

    def propagate(self, *sums: FieldWithDerivatives) -> FieldWithDerivatives:
        """The argument, with its derivatives."""
        return sums[0]


def tanh_(x: Tensor) -> Tensor:
    """Replace x by tanh x = 2 / (1 + exp(-2 x)) - 1. On a CPU this takes a quarter of the time of `torch.tanh_`."""
    x.mul_(2).sigmoid_()
    return torch.add(x.new_full((), -1.0), x, alpha=2, out=x)
