"""The residual CNN with its gradient written out, for training.

Features are matrices (channels, sites * batch) in buffers with ghost rows at both ends of the ring: a circular shift is
an offset, a convolution a few matrix products on shifted views. Small products dominate, so buffers and views are made
once and used again: `Trunk` keeps a tape for every cycle that waits for its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..pool import Lease, Pool

_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_silu_backward = torch.ops.aten.silu_backward.grad_input

Shape = tuple[int, int, torch.dtype, torch.device]
"""Sites, batch, dtype and device."""

FAR = 5.0  # deviations at which an input saturates
WIDEST = 2.0  # climatological deviations at which an increment saturates


def tanh_(x: Tensor) -> Tensor:
    """Replace x by tanh x = 2 / (1 + exp(-2 x)) - 1, which on a CPU takes a quarter of `torch.tanh_`'s time."""
    x.mul_(2).sigmoid_()
    return torch.add(x.new_full((), -1.0), x, alpha=2, out=x)


class Ring:
    """Features on the ring, with ghosts so that shifted copies are views.

    Attributes
    ----------
    flat : Tensor, shape (C, N * B)
        The sites.
    taps : tuple of Tensor, each (C, N * B)
        The k-th is `flat` shifted by k - kernel // 2 sites, once `close` has filled the ghosts.
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

    def close(self) -> Ring:
        """Fill the ghosts from the sites."""
        for ghost, site in self._ghosts:
            ghost.copy_(site)
        return self


class _Tape:
    """What one forward pass leaves for its gradient: each layer's input, each activation's arguments."""

    def __init__(self, trunk: Trunk, shape: Shape) -> None:
        n, batch, dtype, device = shape
        self.rings = [Ring(channels, trunk.kernel, shape) for channels in trunk.inputs]
        wide = 2 * trunk.filters if trunk.gated else trunk.filters
        self.sums = [torch.empty(wide, n * batch, dtype=dtype, device=device) for _ in trunk.inputs[1:-1]]
        self.halves = [(z[: trunk.filters], z[-trunk.filters :]) for z in self.sums]
        self.features = self.rings[0].flat.view(-1, n, batch)
        self.out = torch.empty(trunk.outputs, n * batch, dtype=dtype, device=device)
        self.output = self.out.view(-1, n, batch)


class _Scratch:
    """Buffers of the backward pass."""

    def __init__(self, trunk: Trunk, shape: Shape) -> None:
        n, batch, dtype, device = shape
        wide = 2 * trunk.filters if trunk.gated else trunk.filters
        self.hidden = Ring(wide, trunk.kernel, shape)
        self.first, self.last = (
            Ring(trunk.filters, trunk.kernel, shape),
            Ring(trunk.outputs, trunk.kernel, shape),
        )
        self.output = self.last.flat.view(-1, n, batch)
        self.halves = self.hidden.flat[: trunk.filters], self.hidden.flat[-trunk.filters :]
        most = max(trunk.inputs)
        self.columns = torch.empty(trunk.kernel * most, n * batch, dtype=dtype, device=device)
        self.features = [torch.empty(trunk.filters, n * batch, dtype=dtype, device=device) for _ in range(3)]
        self.product = torch.empty_like(self.features[0])
        self.input = torch.empty(trunk.inputs[0], n * batch, dtype=dtype, device=device)


class Trunk:
    """Convolution in, residual blocks of activated convolutions, convolution out, and its gradient.

    Serves one training at a time: its buffers are not shared among threads.

    Parameters
    ----------
    weights, biases : sequence of Tensor
        Of every layer; weights (out, kernel * in), tap-major. Views of them are kept: they change in place only.
    kernel, sub_blocks : int
    gated : bool
        Activations: one half of the channels times the tanh of the other, or SiLU.
    """

    def __init__(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor], kernel: int, sub_blocks: int, gated: bool
    ) -> None:
        self.kernel, self.sub_blocks, self.gated = kernel, sub_blocks, gated
        self.inputs = [w.shape[1] // kernel for w in weights]
        self.filters, self.outputs = weights[0].shape[0], weights[-1].shape[0]
        self.pointers = [w.data_ptr() for w in weights]
        self.parts = [w.detach().split(c, 1) for w, c in zip(weights, self.inputs, strict=True)]
        # The adjoint of a shift is the opposite shift: the last part meets the first tap.
        self.adjoints = [[part.T for part in reversed(parts)] for parts in self.parts]
        self.biases = [b.detach()[:, None] for b in biases]
        self._tapes: Pool[_Tape] = Pool()
        self._scratches: dict[Shape, _Scratch] = {}

    def fits(self, weights: Sequence[Tensor]) -> bool:
        """Whether the views are still those of the weights."""
        return self.pointers == [w.data_ptr() for w in weights]

    def tape(self, shape: Shape) -> Lease[_Tape]:
        """Take a tape, its features, (C_in, N, B), to be filled."""
        return self._tapes.lease(shape, lambda: _Tape(self, shape))

    def scratch(self, shape: Shape) -> _Scratch:
        """Buffers of the backward pass; its output, (C_out, N, B), is to be filled with the gradient."""
        if shape not in self._scratches:
            self._scratches[shape] = _Scratch(self, shape)
        return self._scratches[shape]

    def convolve(self, layer: int, ring: Ring, out: Tensor) -> None:
        """Circular convolution of a layer into `out`."""
        parts, taps = self.parts[layer], ring.taps
        torch.addmm(self.biases[layer], parts[0], taps[0], out=out)
        for part, tap in zip(parts[1:], taps[1:], strict=True):
            out.addmm_(part, tap)

    def forward(self, tape: _Tape) -> None:
        """From the tape's features to its output, (C_out, N, B)."""
        rings = tape.rings
        self.convolve(0, rings[0].close(), rings[1].flat)
        start = rings[1].flat
        for index, (z, (linear, gate)) in enumerate(zip(tape.sums, tape.halves, strict=True)):
            out = rings[index + 2].flat
            self.convolve(index + 1, rings[index + 1].close(), z)
            ends = index % self.sub_blocks == self.sub_blocks - 1
            if self.gated and ends:
                start = torch.addcmul(start, linear, tanh_(gate), out=out)
            elif self.gated:
                torch.mul(linear, tanh_(gate), out=out)
            else:
                torch.ops.aten.silu.out(z, out=out)
                start = out.add_(start) if ends else start
        self.convolve(len(rings) - 1, rings[-1].close(), tape.out)

    def backward(self, tape: _Tape, scratch: _Scratch) -> tuple[Tensor, list[Tensor]]:
        """Gradients of the features, flat and in a buffer, and of weights and biases in turn; of `scratch.output`."""
        layers = len(tape.rings)
        answers: list[Tensor] = []

        def through(layer: int, g: Ring, out: Tensor, accumulate: bool) -> None:
            """Gradients of one layer's weight and bias, and that of its input into `out`."""
            columns = scratch.columns[: self.kernel * self.inputs[layer]]
            columns.view(self.kernel, self.inputs[layer], -1).copy_(tape.rings[layer].columns)
            answers[:0] = [g.flat @ columns.T, g.flat.sum(1)]
            g.close()
            first, *rest = zip(self.adjoints[layer], g.taps, strict=True)
            if accumulate:
                out.addmm_(*first)
            else:
                torch.mm(*first, out=out)
            for part, tap in rest:
                out.addmm_(part, tap)

        d_u = d_h = scratch.features[0]
        through(layers - 1, scratch.last, d_u, accumulate=False)
        for index in range(layers - 3, -1, -1):
            if index % self.sub_blocks == self.sub_blocks - 1:
                d_h = d_u
            d_linear, d_gate = scratch.halves
            linear, gate = tape.halves[index]
            if self.gated:
                torch.mul(d_u, gate, out=d_linear)
                _tanh_backward(torch.mul(d_u, linear, out=scratch.product), gate, grad_input=d_gate)
            else:
                _silu_backward(d_u, tape.sums[index], grad_input=d_gate)
            if index % self.sub_blocks == 0:
                # The block's input feeds the skip too: add to the gradient that came past the block.
                through(index + 1, scratch.hidden, d_h, accumulate=True)
                d_u = d_h
            else:
                d_u = next(f for f in scratch.features if f is not d_h and f is not d_u)
                through(index + 1, scratch.hidden, d_u, accumulate=False)
        scratch.first.flat.copy_(d_u)
        through(0, scratch.first, scratch.input, accumulate=False)
        return scratch.input, answers


class Convolutions(torch.autograd.Function):
    """A trunk by itself for autograd; first derivatives."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, trunk: Trunk, *weights: Tensor) -> Tensor:
        """From features (C_in, N, B) to (C_out, N, B); weights and biases in turn, the ones that `trunk` views."""
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
        """Gradients of features and of every weight and bias."""
        trunk, lease, shape = ctx.kept
        scratch = trunk.scratch(shape)
        scratch.output.copy_(gradient)
        d_features, answers = trunk.backward(lease.value, scratch)
        return d_features.view(lease.value.features.shape).clone(), None, *answers


class Analysis(torch.autograd.Function):
    """`ResidualCNN.forward` for autograd, sites first inside; first derivatives."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        zeta: Tensor,
        memory: Tensor | None,
        mean: Tensor,
        std: Tensor,
        error_std: Tensor,
        alpha: Tensor,
        trunk: Trunk,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """Analysis and memory as `ResidualCNN.forward`; weights and biases in turn, the ones that `trunk` views."""
        batch, n = x.shape
        shape = (n, batch, x.dtype, x.device)
        lease = trunk.tape(shape)
        tape = lease.value
        columns, innovation = x.T, zeta.T * error_std
        scaled = tape.features[:2]
        torch.sub(columns, mean, out=scaled[0]).div_(std)
        scaled[1].copy_(innovation)
        scaled.div_(FAR).tanh_().mul_(FAR)
        if memory is not None:
            tape.features[2:].copy_(memory.permute(1, 2, 0))
        trunk.forward(tape)
        # No increment is larger than the climate is wide.
        saturation = tape.output[0].mul_(error_std / (WIDEST * std)).tanh_()
        analysis = torch.addcmul(columns, saturation, WIDEST * std).addcmul_(innovation, error_std * alpha)
        after = None
        if memory is not None:
            gate, candidate = tape.output[1:].chunk(2)
            gate.sigmoid_()
            old = tape.features[2:]
            after = torch.addcmul(old, gate, tanh_(candidate) - old).permute(2, 0, 1)
        ctx.kept = trunk, lease, shape, innovation, std, error_std, alpha
        return analysis.T, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_analysis: Tensor, d_after: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of forecast, projected innovation, memory, alpha and every weight and bias."""
        trunk, lease, shape, innovation, std, error_std, alpha = ctx.kept
        tape, scratch = lease.value, trunk.scratch(shape)
        output, features = tape.output, tape.features
        d_x = d_analysis.T
        # The scale of the saturation cancels, up to the error deviation.
        torch.ops.aten.tanh_backward.grad_input(d_x, output[0], grad_input=scratch.output[0]).mul_(error_std)
        d_memory = None
        if d_after is not None:
            d_new = d_after.permute(1, 2, 0)
            gate, candidate = output[1:].chunk(2)
            d_gate, d_candidate = scratch.output[1:].chunk(2)
            d_raw = d_new * gate
            _tanh_backward(d_raw, candidate, grad_input=d_candidate)
            torch.ops.aten.sigmoid_backward.grad_input((candidate - features[2:]).mul_(d_new), gate, grad_input=d_gate)
            d_memory = d_new - d_raw
        d_features, answers = trunk.backward(tape, scratch)
        d_features = d_features.view(features.shape)
        # Derivative of the softening: 1 - tanh^2, from its stored value.
        d_scaled = torch.addcmul(d_features[:2], d_features[:2], features[:2].square(), value=-1 / FAR**2)
        d_alpha = (d_x * innovation).sum() * error_std
        d_innovation = d_scaled[1].add_(d_x * (error_std * alpha)).mul_(error_std)
        d_x = torch.addcdiv(d_x, d_scaled[0], std)
        if d_memory is not None:
            d_memory.add_(d_features[2:])
            d_memory = d_memory.permute(2, 0, 1)
        return d_x.T, d_innovation.T, d_memory, None, None, None, d_alpha, None, *answers
