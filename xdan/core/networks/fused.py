"""The trunk of the residual CNN with its gradient written out, for training.

Features are matrices (channels, sites * batch) in buffers with ghost rows at both ends of the ring: a circular shift is
an offset, a convolution a few matrix products on shifted views. Small products dominate, so buffers and views are made
once and used again: `Trunk` keeps a tape for every cycle that waits for its gradient.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_silu_backward = torch.ops.aten.silu_backward.grad_input

Shape = tuple[int, int, torch.dtype, torch.device]
"""Sites, batch, dtype and device."""


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
        self.halves = self.hidden.flat[: trunk.filters], self.hidden.flat[-trunk.filters :]
        most = max(trunk.inputs)
        self.columns = torch.empty(trunk.kernel * most, n * batch, dtype=dtype, device=device)
        self.features = [torch.empty(trunk.filters, n * batch, dtype=dtype, device=device) for _ in range(3)]
        self.product = torch.empty_like(self.features[0])


class Trunk:
    """Convolution in, residual blocks of activated convolutions, convolution out, and its gradient.

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
        self._local = threading.local()

    def fits(self, weights: Sequence[Tensor]) -> bool:
        """Whether the views are still those of the weights."""
        return self.pointers == [w.data_ptr() for w in weights]

    def _free(self, shape: Shape) -> list[_Tape]:
        pools: dict[Shape, list[_Tape]] = self._local.__dict__.setdefault("tapes", {})
        return pools.setdefault(shape, [])

    def _scratch(self, shape: Shape) -> _Scratch:
        pools: dict[Shape, _Scratch] = self._local.__dict__.setdefault("scratch", {})
        if shape not in pools:
            pools[shape] = _Scratch(self, shape)
        return pools[shape]

    def convolve(self, layer: int, ring: Ring, out: Tensor) -> None:
        """Circular convolution of a layer into `out`."""
        parts, taps = self.parts[layer], ring.taps
        torch.addmm(self.biases[layer], parts[0], taps[0], out=out)
        for part, tap in zip(parts[1:], taps[1:], strict=True):
            out.addmm_(part, tap)

    def forward(self, x: Tensor) -> tuple[Tensor, _Tape, Shape]:
        """Features (C_in, N, B) to (C_out, N, B), and what the gradient needs."""
        _, n, batch = x.shape
        shape = (n, batch, x.dtype, x.device)
        free = self._free(shape)
        tape = free.pop() if free else _Tape(self, shape)
        rings = tape.rings
        rings[0].flat.copy_(x.reshape(len(x), -1))
        self.convolve(0, rings[0].close(), rings[1].flat)
        start = rings[1].flat
        for index, (z, (linear, gate)) in enumerate(zip(tape.sums, tape.halves, strict=True)):
            out = rings[index + 2].flat
            self.convolve(index + 1, rings[index + 1].close(), z)
            if self.gated:
                torch.mul(linear, gate.tanh_(), out=out)
            else:
                torch.ops.aten.silu.out(z, out=out)
            if index % self.sub_blocks == self.sub_blocks - 1:
                start = out.add_(start)
        answer = x.new_empty(self.outputs, n * batch)
        self.convolve(len(rings) - 1, rings[-1].close(), answer)
        return answer.view(-1, n, batch), tape, shape

    def backward(self, gradient: Tensor, tape: _Tape, shape: Shape) -> tuple[Tensor, list[Tensor]]:
        """Gradients of the features, and of weights and biases in turn; the tape is used up."""
        scratch, n, batch = self._scratch(shape), shape[0], shape[1]
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

        scratch.last.flat.copy_(gradient.reshape(self.outputs, -1))
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
        d_x = gradient.new_empty(self.inputs[0], n * batch)
        through(0, scratch.first, d_x, accumulate=False)
        self._free(shape).append(tape)
        return d_x.view(-1, n, batch), answers


class ResidualTrunk(torch.autograd.Function):
    """`Trunk` for autograd; first derivatives, once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, trunk: Trunk, *weights: Tensor) -> Tensor:
        """Features (C_in, N, B) to (C_out, N, B); weights and biases in turn, the ones that `trunk` views."""
        answer, tape, shape = trunk.forward(x)
        ctx.kept = trunk, tape, shape
        return answer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the features and of every weight and bias."""
        if ctx.kept is None:
            raise RuntimeError("the network was differentiated a second time; put it in eval() mode for that")
        (trunk, tape, shape), ctx.kept = ctx.kept, None
        d_x, answers = trunk.backward(gradient, tape, shape)
        return d_x, None, *answers
