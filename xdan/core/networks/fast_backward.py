"""The residual trunk with its gradient written out, for training.

Features are matrices (channels, sites * batch) in buffers with ghost rows at both ends of the ring. A circular shift is
then an offset, and a convolution is a few matrix products of shifted views. Most of the time goes into small products.
Buffers and views are therefore made once and used again: `FastTrunk` keeps a tape for every cycle that waits for its
gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..pool import Lease, Pool
from .layers import Layers

Shape = tuple[int, int, torch.dtype, torch.device]
"""Sites, batch, dtype and device."""


class Ring:
    """Features on a ring, with ghosts, so that shifted copies are views.

    Attributes
    ----------
    flat : Tensor, shape (C, N * B)
        Values at the sites.
    taps : tuple of Tensor, each (C, N * B)
        The k-th tap is `flat` shifted by k - kernel // 2 sites, after `with_ghosts` has filled the ghosts.
    columns : Tensor, shape (kernel, C, N * B)
        All taps as one view.
    """

    __slots__ = ("_ghosts", "columns", "flat", "taps")

    def __init__(self, channels: int, kernel: int, shape: Shape) -> None:
        n, batch, dtype, device = shape
        r = kernel // 2
        whole = torch.empty(channels, n + 2 * r, batch, dtype=dtype, device=device)
        strides = (batch, (n + 2 * r) * batch, 1)
        self.columns = whole.as_strided((kernel, channels, n * batch), strides)
        self.taps = self.columns.unbind(0)
        self.flat = self.taps[r]
        self._ghosts = [] if r == 0 else [(whole[:, :r], whole[:, n : n + r]), (whole[:, n + r :], whole[:, r : 2 * r])]

    def with_ghosts(self) -> Ring:
        """Copy values of the sites into the ghosts."""
        for ghost, site in self._ghosts:
            ghost.copy_(site)
        return self


class Tape:
    """What one forward pass keeps for its gradient.

    Attributes
    ----------
    rings : list of Ring
        Input of every layer.
    sums : list of tuple of Tensor, each (filters, N * B)
        Arguments of every hidden layer's activation, as the activation left them.
    features : Tensor, shape (C_in, N, B)
        To be filled before `FastTrunk.forward`.
    output : Tensor, shape (C_out, N, B)
    convolutions : list of Tensor, each (out, N * B)
        Buffers for the result of every layer's convolution.
    """

    def __init__(self, layers: Layers, shape: Shape) -> None:
        n, batch, dtype, device = shape
        self.rings = [Ring(inside, layers.kernel, shape) for inside, _ in layers.channels]
        hidden = [torch.empty(layers.wide, n * batch, dtype=dtype, device=device) for _ in layers.hidden]
        self.sums = [z.chunk(layers.activation.parts) for z in hidden]
        self.features = self.rings[0].flat.view(-1, n, batch)
        out = torch.empty(layers.outputs, n * batch, dtype=dtype, device=device)
        self.output = out.view(-1, n, batch)
        self.convolutions = [self.rings[1].flat, *hidden, out]


class Scratch:
    """Buffers of the backward pass.

    Attributes
    ----------
    output : Tensor, shape (C_out, N, B)
        To be filled with the gradient of the output before `FastTrunk.backward`.
    """

    def __init__(self, layers: Layers, shape: Shape) -> None:
        n, batch, dtype, device = shape
        filters, kernel = layers.filters, layers.kernel
        self.hidden = Ring(layers.wide, kernel, shape)
        self.first, self.last = Ring(filters, kernel, shape), Ring(layers.outputs, kernel, shape)
        self.output = self.last.flat.view(-1, n, batch)
        self.sums = self.hidden.flat.chunk(layers.activation.parts)
        most = max(inside for inside, _ in layers.channels)
        self.columns = torch.empty(kernel * most, n * batch, dtype=dtype, device=device)
        self.features = [torch.empty(filters, n * batch, dtype=dtype, device=device) for _ in range(3)]
        self.spare = torch.empty_like(self.features[0])
        self.input = torch.empty(layers.inputs, n * batch, dtype=dtype, device=device)


class FastTrunk:
    """A trunk's forward pass and gradient, in buffers that are used again and again.

    It serves one training at a time: threads cannot share its buffers. The key of a buffer is the features' sites,
    batch, dtype and device. On the CPU the buffers of a few shapes are kept (`Pool`), as many as were in use at once.
    All of them belong to the `ResidualTrunk` that made this object. The trunk drops the object in evaluation mode and
    when its weights move, and leaves it out of copies and pickles.

    Parameters
    ----------
    layers : Layers
    weights, biases : sequence of Tensor
        Weights (out, kernel * in), tap-major, and biases of every layer. Views of them are kept, so that they may
        change in place only.
    """

    def __init__(self, layers: Layers, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        self.layers = layers
        self.inside = [inside for inside, _ in layers.channels]
        self.pointers = [tensor.data_ptr() for tensor in (*weights, *biases)]
        self.parts = [w.detach().split(inside, 1) for w, inside in zip(weights, self.inside, strict=True)]
        # The adjoint of a shift is the opposite shift, so the last part belongs to the first tap.
        self.adjoints = [[part.T for part in reversed(parts)] for parts in self.parts]
        self.biases = [b.detach()[:, None] for b in biases]
        self._tapes: Pool[Tape] = Pool()
        self._scratches: Pool[Scratch] = Pool()

    def fits(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> bool:
        """Whether the views still belong to these weights and biases."""
        return self.pointers == [tensor.data_ptr() for tensor in (*weights, *biases)]

    def tape(self, shape: Shape) -> Lease[Tape]:
        """Take a tape, whose features are to be filled."""
        return self._tapes.lease(shape, lambda: Tape(self.layers, shape), keep=_is_on_cpu(shape))

    def scratch(self, shape: Shape) -> Lease[Scratch]:
        """Take buffers of the backward pass, whose gradient of the output is to be filled."""
        return self._scratches.lease(shape, lambda: Scratch(self.layers, shape), keep=_is_on_cpu(shape))

    def forward(self, tape: Tape) -> None:
        """Compute the tape's output from its features."""
        value_into = self.layers.activation.value_into

        def convolve(layer: int, _: Tensor) -> Tensor:
            out, parts, taps = tape.convolutions[layer], self.parts[layer], tape.rings[layer].with_ghosts().taps
            torch.addmm(self.biases[layer], parts[0], taps[0], out=out)
            for part, tap in zip(parts[1:], taps[1:], strict=True):
                out.addmm_(part, tap)
            return out

        def activate(layer: int, _: Tensor, start: Tensor | None) -> Tensor:
            out = tape.rings[layer + 1].flat
            value_into(out, tape.sums[layer - 1], start)
            return out

        self.layers.run(tape.features, convolve, activate)

    def backward(self, tape: Tape, scratch: Scratch) -> tuple[Tensor, list[Tensor]]:
        """Gradients of the features (flat, in a buffer) and of weights and biases in turn, from `scratch.output`."""
        layers, kernel = self.layers, self.layers.kernel
        gradients: list[Tensor] = []

        def through(layer: int, convolved: Ring, out: Tensor, accumulate: bool) -> None:
            """Gradients of a layer's weight and bias from its convolution's gradient; its input's goes into `out`."""
            inside = self.inside[layer]
            columns = scratch.columns[: kernel * inside]
            columns.view(kernel, inside, -1).copy_(tape.rings[layer].columns)
            gradients[:0] = [convolved.flat @ columns.T, convolved.flat.sum(1)]
            taps = convolved.with_ghosts().taps
            first, *rest = zip(self.adjoints[layer], taps, strict=True)
            if accumulate:
                out.addmm_(*first)
            else:
                torch.mm(*first, out=out)
            for part, tap in rest:
                out.addmm_(part, tap)

        # Gradients with respect to a layer's output, u, and with respect to its block's input, h.
        d_u = d_h = scratch.features[0]
        through(layers.last, scratch.last, d_u, accumulate=False)
        for layer in reversed(layers.hidden):
            if layers.ends_block(layer):
                d_h = d_u
            layers.activation.gradient_into(scratch.sums, tape.sums[layer - 1], d_u, scratch.spare)
            if layers.begins_block(layer):
                # The block's input feeds the skip connection too: add the gradient that came through it.
                through(layer, scratch.hidden, d_h, accumulate=True)
                d_u = d_h
            else:
                d_u = next(f for f in scratch.features if f is not d_h and f is not d_u)
                through(layer, scratch.hidden, d_u, accumulate=False)
        scratch.first.flat.copy_(d_u)
        through(0, scratch.first, scratch.input, accumulate=False)
        return scratch.input, gradients


def _is_on_cpu(shape: Shape) -> bool:
    return shape[-1].type == "cpu"


class TrunkFunction(torch.autograd.Function):
    """A trunk for autograd, with first derivatives."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, trunk: FastTrunk, *weights: Tensor) -> Tensor:
        """Map features (C_in, N, B) to (C_out, N, B). `weights` are weights and biases in turn, which `trunk` views."""
        _, n, batch = features.shape
        shape = (n, batch, features.dtype, features.device)
        lease = trunk.tape(shape)
        lease.value.features.copy_(features)
        trunk.forward(lease.value)
        ctx.kept = trunk, lease, shape
        return lease.value.output.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the features, and of every weight and bias."""
        trunk, lease, shape = ctx.kept
        scratch = trunk.scratch(shape)
        scratch.value.output.copy_(gradient)
        d_features, gradients = trunk.backward(lease.value, scratch.value)
        return d_features.view(lease.value.features.shape).clone(), None, *gradients
