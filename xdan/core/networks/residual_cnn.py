"""The residual convolutional network on a ring, with or without memory."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .base import AnalysisNetwork, register_network
from .fused import FAR, WIDEST, Analysis, Trunk


@register_network
class ResidualCNN(AnalysisNetwork):
    """Residual circular CNN of forecast and projected innovation.

    x_a = x_f + alpha zeta + a_theta(x_f, zeta[, m]), Eq. 22. A convolution in, `blocks` residual blocks of
    `sub_blocks` activated convolutions, a convolution out; no layer depends on the number of sites. With memory,
    the last layer also gives a gate g (through a sigmoid) and a candidate c (through tanh) for `memory` latent
    channels, m <- (1 - g) m + g c, which the next cycle reads beside x_f and zeta.

    Parameters
    ----------
    filters : int
        N_f, channels of the hidden layers.
    blocks, sub_blocks : int
        N_b and N_sb.
    kernel : int
        Odd width f of every convolution.
    memory : int
        Latent channels per site, 0 for none.
    activation : {"gated", "silu"}
        "gated": each sub-block's convolution has 2 N_f channels, one half multiplied with the tanh of the other.

    Raises
    ------
    ValueError
        If a size is not positive, the kernel is even, or the activation unknown.

    References
    ----------
    Bocquet et al. (2024), doi:10.1063/5.0230837; architecture in the slides of the same authors, N_b, N_sb, f.
    """

    name: ClassVar[str] = "residual-cnn"

    def __init__(
        self,
        filters: int = 24,
        blocks: int = 6,
        sub_blocks: int = 1,
        kernel: int = 5,
        memory: int = 0,
        activation: str = "gated",
    ) -> None:
        super().__init__()
        for label, value in (("filters", filters), ("blocks", blocks), ("sub_blocks", sub_blocks)):
            if value < 1:
                raise ValueError(f"{label}={value}: expected at least 1")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel={kernel}: expected an odd number, so that a window has a centre")
        if memory < 0:
            raise ValueError(f"memory={memory}: expected 0 (none) or a number of channels")
        if activation not in ("gated", "silu"):
            raise ValueError(f"activation={activation!r}: expected 'gated' or 'silu'")
        self.filters, self.blocks, self.sub_blocks = filters, blocks, sub_blocks
        self.kernel, self.memory, self.activation = kernel, memory, activation
        wide = 2 * filters if activation == "gated" else filters
        sizes = [(2 + memory, filters), *[(filters, wide)] * (blocks * sub_blocks), (filters, 1 + 2 * memory)]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for index, (inside, outside) in enumerate(sizes):
            # Damped branches and a nearly silent output: the first cycles then follow alpha alone and stay bounded.
            gain = 1.0 if index == 0 else 0.02 if index == len(sizes) - 1 else 0.4
            std = gain / math.sqrt(kernel * inside)
            self.weights.append(nn.Parameter(std * torch.randn(outside, kernel * inside)))
            self.biases.append(nn.Parameter(torch.zeros(outside)))
        self.relative_alpha = nn.Parameter(torch.tensor(0.4))
        self._trunk: Trunk | None = None

    @property
    def alpha(self) -> Tensor:
        """The scalar alpha of Eq. 22, in units of R."""
        return self.relative_alpha * self.error_std**2

    @property
    def reach(self) -> int:
        """Sites to each side that an output can depend on."""
        return (self.kernel // 2) * len(self.weights)

    def parameters_json(self) -> dict[str, Any]:
        """Plain JSON parameters."""
        names = ("filters", "blocks", "sub_blocks", "kernel", "memory", "activation")
        return {name: getattr(self, name) for name in names}

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Every convolution but the last, as (out, kernel * in) matrices."""
        return list(self.weights)[:-1]

    def forward(self, x: Tensor, zeta: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Analysis and new memory; shapes as in the base class."""
        if self.memory and memory is None:
            memory = x.new_zeros(len(x), self.memory, x.shape[1])
        if self.training:
            return self._for_training(x, zeta, memory)
        innovation = zeta * self.error_std
        scaled = torch.stack([soften((x - self.state_mean) / self.state_std), soften(innovation)])
        out = self.trunk(scaled.mT if memory is None else torch.cat([scaled.mT, memory.permute(1, 2, 0)]))
        # No increment is larger than the climate is wide: a network that is wrong stays bounded, and can recover.
        widest = WIDEST * self.state_std / self.error_std
        increment = widest * (out[0] / widest).tanh().T + self.relative_alpha * innovation
        analysis = torch.addcmul(x, self.error_std, increment)
        if memory is None:
            return analysis, None
        gate, candidate = out[1:].chunk(2)
        return analysis, memory + gate.sigmoid().permute(2, 0, 1) * (candidate.tanh().permute(2, 0, 1) - memory)

    def trunk(self, features: Tensor) -> Tensor:
        """a_theta on features (2 + memory, N, B), shape (1 + 2 memory, N, B), by plain operations."""
        layers = list(zip(self.weights, self.biases, strict=True))
        h = circular_convolution(features, *layers[0], self.kernel)
        u = h
        for index, (weight, bias) in enumerate(layers[1:-1]):
            z = circular_convolution(u, weight, bias, self.kernel)
            if self.activation == "gated":
                linear, gate = z.chunk(2)
                u = linear * gate.tanh()
            else:
                u = nn.functional.silu(z)
            if index % self.sub_blocks == self.sub_blocks - 1:
                h = u = h + u
        return circular_convolution(h, *layers[-1], self.kernel)

    def _for_training(self, x: Tensor, zeta: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        weights, biases = list(self.weights), list(self.biases)
        if self._trunk is None or not self._trunk.fits(weights):
            self._trunk = Trunk(weights, biases, self.kernel, self.sub_blocks, self.activation == "gated")
        alternating = [t for pair in zip(weights, biases, strict=True) for t in pair]
        scales = self.state_mean, self.state_std, self.error_std, self.relative_alpha
        answer: tuple[Tensor, Tensor | None] = Analysis.apply(x, zeta, memory, *scales, self._trunk, *alternating)  # type: ignore[no-untyped-call]
        return answer


def soften(x: Tensor) -> Tensor:
    """Identity to third order, bounded by a few deviations: far inputs do not leave the range that was trained on."""
    return FAR * (x / FAR).tanh()


def circular_convolution(x: Tensor, weight: Tensor, bias: Tensor, kernel: int) -> Tensor:
    """out[o, n, b] = bias[o] + sum_{k, c} weight[o, k C + c] x[c, n + k - kernel // 2, b], n on the ring.

    Plain operations only, so that every torch.func transform applies.
    """
    columns = torch.cat([x.roll(kernel // 2 - k, 1) for k in range(kernel)])
    return (weight @ columns.flatten(1) + bias[:, None]).reshape(-1, *x.shape[1:])
