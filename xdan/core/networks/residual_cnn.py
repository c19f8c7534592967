"""The residual convolutional network on a ring, with or without memory."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..checks import switch
from .base import AnalysisNetwork, register_network, register_preset
from .fused import WIDEST, Analysis, Trunk
from .jets import residual_cnn_jet
from .ring import ACTIVATIONS, WRITTEN_OUT, cnn_sizes, make_layers, renew, residual_trunk, size, soften


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
    activation : {"gated", "silu", "linear"}
        "gated": each sub-block's convolution has 2 N_f channels, one half multiplied with the tanh of the other.
        "linear": none; without memory the analysis is then affine in forecast and projected innovation.
    sees_forecast : bool
        Whether x_f is an input of a_theta; without, and without memory, the increment is a function of zeta alone.

    Raises
    ------
    TypeError
        For sizes that are no integers, an activation that is no string, or `sees_forecast` other than True or False.
    ValueError
        If a size is out of bounds, the kernel is even, or the activation unknown.

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
        sees_forecast: bool = True,
    ) -> None:
        super().__init__()
        self.filters, self.blocks, self.sub_blocks, self.kernel, self.activation = cnn_sizes(
            filters, blocks, sub_blocks, kernel, activation
        )
        self.memory, self.sees_forecast = size("memory", memory, 0), switch("sees_forecast", sees_forecast)
        inputs, outputs = (2 if self.sees_forecast else 1) + self.memory, 1 + 2 * self.memory
        # A nearly silent output: the first cycles then follow alpha alone and stay bounded.
        self.weights, self.biases = make_layers(
            inputs, self.filters, self.blocks * self.sub_blocks, outputs, self.kernel, self.activation, quiet=0.02
        )
        self.relative_alpha = nn.Parameter(torch.tensor(0.4, dtype=torch.float32))
        self._trunk: Trunk | None = None

    @property
    def alpha(self) -> Tensor:
        """The scalar alpha of Eq. 22, in units of R."""
        return self.relative_alpha * self.error_std**2

    @property
    def reach(self) -> int | None:
        """Sites to each side that an output can depend on."""
        if not self._is_as_written():
            return None
        return (self.kernel // 2) * len(self.weights)  # within one analysis; memory reaches further over cycles

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters."""
        names = ("filters", "blocks", "sub_blocks", "kernel", "memory", "activation", "sees_forecast")
        return {name: getattr(self, name) for name in names}

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Every convolution but the last, as (out, kernel * in) matrices."""
        return list(self.weights)[:-1]

    def forward(self, x: Tensor, zeta: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Analysis and new memory; shapes as in the base class."""
        if self.memory and memory is None:
            memory = x.new_zeros(len(x), self.memory, x.shape[1])
        bounded = self.activation != "linear"
        if self.training and self._is_written_out(x):
            return self._for_training(x, zeta, memory)
        innovation = zeta * self.error_std
        inputs = [(x - self.state_mean) / self.state_std] if self.sees_forecast else []
        scaled = torch.stack([*inputs, innovation])
        scaled = (soften(scaled) if bounded else scaled).mT
        features = scaled if memory is None else torch.cat([scaled, memory.permute(1, 2, 0)])
        out = residual_trunk(
            features, list(self.weights), list(self.biases), self.kernel, self.sub_blocks, self.activation
        )
        step = out[0]
        if bounded:
            # No increment is larger than the climate is wide: a network that is wrong stays bounded, and can recover.
            widest = WIDEST * self.state_std / self.error_std
            step = widest * (step / widest).tanh()
        analysis = torch.addcmul(x, self.error_std, step.T + self.relative_alpha * innovation)
        if memory is None:
            return analysis, None
        gate, candidate = out[1:].chunk(2)
        return analysis, renew(memory, gate.permute(2, 0, 1), candidate.permute(2, 0, 1))

    def analysis_covariance(self, x: Tensor, zeta: Tensor, memory: Tensor | None) -> Tensor:
        """P_a, carried forward layer by layer."""
        if not self._is_as_written():
            return super().analysis_covariance(x, zeta, memory)
        return _square(residual_cnn_jet(self, x, zeta, memory, zeta_sites=_all_sites(x)).zeta, x)

    def marginal_gain(self, x: Tensor, zeta: Tensor, memory: Tensor | None, site: int) -> Tensor:
        """Gamma at one site l, carried forward layer by layer."""
        if not self._is_as_written():
            return super().marginal_gain(x, zeta, memory, site)
        return _square(residual_cnn_jet(self, x, zeta, memory, x_site=site, zeta_sites=_all_sites(x)).mixed, x)

    def forecast_derivative(self, x: Tensor, zeta: Tensor, memory: Tensor | None, site: int) -> Tensor:
        """Derivative of the analysis by x_l, carried forward layer by layer."""
        if not self._is_as_written():
            return super().forecast_derivative(x, zeta, memory, site)
        jet = residual_cnn_jet(self, x, zeta, memory, x_site=site)
        assert jet.x is not None
        return jet.x[0, :, 0].T

    def _is_as_written(self) -> bool:
        """Whether activation and scales are those that derivatives are written out for: one number for all sites."""
        return self.activation in ACTIVATIONS and self._is_one_climate and self.relative_alpha.ndim == 0

    def _is_written_out(self, x: Tensor) -> bool:
        """Whether the written-out gradient is that of these states and this network."""
        wide = x.shape[1] >= self.kernel // 2  # a shorter ring has no ghosts to copy
        # A derived class may train the normalisation.
        fixed = not any(scale.requires_grad for scale in (self.state_mean, self.state_std, self.error_std))
        return self.activation in WRITTEN_OUT and self.sees_forecast and wide and fixed and self._is_as_written()

    def _for_training(self, x: Tensor, zeta: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        weights, biases = list(self.weights), list(self.biases)
        if self._trunk is None or not self._trunk.fits(weights):
            self._trunk = Trunk(weights, biases, self.kernel, self.sub_blocks, self.activation == "gated")
        alternating = [t for pair in zip(weights, biases, strict=True) for t in pair]
        scales = self.state_mean, self.state_std, self.error_std, self.relative_alpha
        answer: tuple[Tensor, Tensor | None] = Analysis.apply(x, zeta, memory, *scales, self._trunk, *alternating)  # type: ignore[no-untyped-call]
        return answer


def _all_sites(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1], device=x.device)


def _square(part: Tensor | None, x: Tensor) -> Tensor:
    """From (1, N, J, B) to (B, N, J); zeros for a derivative that vanishes."""
    return x.new_zeros(*x.shape, x.shape[1]) if part is None else part[0].permute(2, 0, 1)


# What each lacks shows what it is for.
register_preset("residual-cnn-linear", ResidualCNN, activation="linear")
register_preset("residual-cnn-blind", ResidualCNN, sees_forecast=False)
