"""The trunk of the residual CNN with its gradient written out, for training.

Features are laid out as (channels, sites, batch): a circular shift is then an offset of whole rows, a convolution
is a few matrix products on shifted views, and no activation is copied to be unfolded in the forward direction.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_silu_backward = torch.ops.aten.silu_backward


def pad_ring(x: Tensor, kernel: int) -> Tensor:
    """Pad (C, N, B) with kernel // 2 ghosts at both ends of the ring, shape (C, N + kernel - 1, B)."""
    r = kernel // 2
    if r == 0:
        return x
    return torch.cat([x[:, -r:], x, x[:, :r]], 1)


def taps(padded: Tensor, kernel: int) -> list[Tensor]:
    """The shifted views, each (C, N * B), of a padded and contiguous (C, N + kernel - 1, B)."""
    channels, rows, batch = padded.shape
    flat, width = padded.view(channels, -1), (rows - kernel + 1) * batch
    return [flat[:, k * batch : k * batch + width] for k in range(kernel)]


def convolve(padded: Tensor, weight: Tensor, bias: Tensor, kernel: int) -> Tensor:
    """Circular convolution of padded features, shape (out, N * B); weight (out, kernel * C), tap-major."""
    channels = padded.shape[0]
    views = taps(padded, kernel)
    out = torch.addmm(bias[:, None], weight[:, :channels], views[0])
    for k in range(1, kernel):
        out.addmm_(weight[:, k * channels : (k + 1) * channels], views[k])
    return out


def convolve_adjoint(
    padded: Tensor, weight: Tensor, kernel: int, gradient: Tensor, needs_input: bool = True
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of `convolve` with respect to the features before padding, the weight and the bias."""
    channels, rows, batch = padded.shape
    n = rows - kernel + 1
    columns = torch.cat(taps(padded, kernel))
    d_weight, d_bias = gradient @ columns.T, gradient.sum(1)
    if not needs_input:
        return None, d_weight, d_bias
    views = taps(pad_ring(gradient.view(-1, n, batch), kernel), kernel)
    d_input = weight[:, :channels].T @ views[kernel - 1]
    for k in range(1, kernel):
        d_input.addmm_(weight[:, k * channels : (k + 1) * channels].T, views[kernel - 1 - k])
    return d_input.view(channels, n, batch), d_weight, d_bias


def activate(z: Tensor, gated: bool) -> Tensor:
    """SiLU, or a linear half times the SiLU of the other half."""
    if not gated:
        return torch.nn.functional.silu(z)
    half = z.shape[0] // 2
    return z[:half] * torch.nn.functional.silu(z[half:])


def activate_adjoint(z: Tensor, gated: bool, gradient: Tensor) -> Tensor:
    """Gradient of `activate`."""
    if not gated:
        return _silu_backward(gradient, z)  # type: ignore[no-any-return]
    half = z.shape[0] // 2
    out = torch.empty_like(z)
    torch.mul(gradient, torch.nn.functional.silu(z[half:]), out=out[:half])
    _silu_backward.grad_input(gradient * z[:half], z[half:], grad_input=out[half:])
    return out


class ResidualTrunk(torch.autograd.Function):
    """Convolution in, residual blocks of activated convolutions, convolution out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: int, sub_blocks: int, gated: bool, *weights: Tensor) -> Tensor:
        """Features (C_in, N, B) to (C_out, N, B); weights and biases alternate, first layer to last."""
        _, n, batch = x.shape
        pairs = list(zip(weights[::2], weights[1::2], strict=True))
        padded = pad_ring(x, kernel)
        inputs, sums = [padded], []
        h = convolve(padded, *pairs[0], kernel)
        u = h
        for index, (weight, bias) in enumerate(pairs[1:-1]):
            padded = pad_ring(u.view(-1, n, batch), kernel)
            z = convolve(padded, weight, bias, kernel)
            inputs.append(padded)
            sums.append(z)
            u = activate(z, gated)
            if index % sub_blocks == sub_blocks - 1:
                h = u = u.add_(h)
        padded = pad_ring(h.view(-1, n, batch), kernel)
        inputs.append(padded)
        out = convolve(padded, *pairs[-1], kernel)
        ctx.save_for_backward(*weights, *inputs, *sums)
        ctx.settings = kernel, sub_blocks, gated, len(pairs), n, batch
        return out.view(-1, n, batch)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of the features and of every weight and bias."""
        kernel, sub_blocks, gated, layers, n, batch = ctx.settings
        saved = ctx.saved_tensors
        weights, inputs, sums = saved[: 2 * layers : 2], saved[2 * layers : 3 * layers], saved[3 * layers :]
        answers: list[Tensor | None] = []

        def adjoint(layer: int, g: Tensor, needs_input: bool = True) -> Tensor | None:
            d_input, d_weight, d_bias = convolve_adjoint(inputs[layer], weights[layer], kernel, g, needs_input)
            answers[:0] = [d_weight, d_bias]
            return d_input

        d_h = adjoint(layers - 1, gradient.reshape(gradient.shape[0], -1))
        assert d_h is not None
        d_u = d_h = d_h.view(d_h.shape[0], -1)
        for index in range(layers - 3, -1, -1):
            if index % sub_blocks == sub_blocks - 1:
                d_h = d_u
            d_z = activate_adjoint(sums[index], gated, d_u)
            d_input = adjoint(index + 1, d_z)
            assert d_input is not None
            d_u = d_input.view(d_input.shape[0], -1)
            if index % sub_blocks == 0:
                d_u = d_u.add_(d_h)
        d_x = adjoint(0, d_u, ctx.needs_input_grad[0])
        return d_x, None, None, None, *answers
