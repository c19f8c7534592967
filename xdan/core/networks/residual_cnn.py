"""The residual convolutional network on a ring, with or without memory.

Its trunk is that of the other networks. What stands before and behind the trunk is written here in three ways: from
plain operations (`ResidualCNN.forward`), for training (`_FastAnalysis`) and with derivatives (`ResidualCNN.propagate`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..checks import switch
from .activations import tanh_
from .base import AnalysisNetwork, is_patched
from .fast_backward import FastTrunk
from .fields_with_derivatives import FieldWithDerivatives, stack
from .heads import FAR, WIDEST, renew, saturate, soften
from .layers import trunk_sizes
from .registry import register_network, register_preset
from .sizes import size
from .trunk import ResidualTrunk

_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input


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
        sizes = trunk_sizes(filters, blocks, sub_blocks, kernel, activation)
        self.filters, self.blocks, self.sub_blocks, self.kernel, self.activation = sizes
        self.memory, self.sees_forecast = size("memory", memory, 0), switch("sees_forecast", sees_forecast)
        inputs = (2 if self.sees_forecast else 1) + self.memory
        # A nearly silent output: the first cycles then follow alpha alone and stay bounded.
        self.cnn = ResidualTrunk(inputs, 1 + 2 * self.memory, sizes, quiet=0.02)
        self.relative_alpha = nn.Parameter(torch.tensor(0.4, dtype=torch.float32))
        # Stores know the trunk's tensors as the network's own.
        self.register_state_dict_post_hook(_unnest)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_nest)  # type: ignore[no-untyped-call]

    @property
    def weights(self) -> nn.ParameterList:
        """Weights (out, kernel * in) of every convolution."""
        return self.cnn.weights

    @property
    def biases(self) -> nn.ParameterList:
        """Biases of every convolution."""
        return self.cnn.biases

    @property
    def alpha(self) -> Tensor:
        """The scalar alpha of Eq. 22, in units of R."""
        return self.relative_alpha * self.error_std**2

    @property
    def reach(self) -> int | None:
        """Sites to each side that an output can depend on in one analysis; memory reaches further over cycles."""
        return self.cnn.reach if self._is_unchanged() else None

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Every convolution but the last, as (out, kernel * in) matrices."""
        return self.cnn.hidden_matrices()

    def forward(self, x: Tensor, zeta: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Analysis and new memory; shapes as in the base class."""
        memory = self._remembered(x, memory)
        if self.training and self._has_fast_gradient(x):
            return self._fast_analysis(x, zeta, memory)
        innovation = zeta * self.error_std
        inputs = [(x - self.state_mean) / self.state_std] if self.sees_forecast else []
        scaled = torch.stack([*inputs, innovation])
        scaled = (soften(scaled) if self._is_bounded() else scaled).mT
        features = scaled if memory is None else torch.cat([scaled, memory.permute(1, 2, 0)])
        # What is not written out as a whole is trained by plain operations throughout: weights follow from the seed.
        out: Tensor = self.cnn(features, fast=False)
        step = saturate(out[0], self.state_std, self.error_std) if self._is_bounded() else out[0]
        analysis = torch.addcmul(x, self.error_std, step.T + self.relative_alpha * innovation)
        if memory is None:
            return analysis, None
        gate, candidate = out[1:].chunk(2)
        return analysis, renew(memory, gate.permute(2, 0, 1), candidate.permute(2, 0, 1))

    def propagate(
        self,
        x: Tensor,
        zeta: Tensor,
        memory: Tensor | None = None,
        *,
        x_site: int | None = None,
        zeta_sites: Tensor | None = None,
    ) -> FieldWithDerivatives:
        """The analysis and its derivatives, carried forward layer by layer.

        Parameters
        ----------
        x, zeta : Tensor, shape (B, N)
        memory : Tensor, shape (B, n, N), optional
        x_site : int, optional
            l, of the derivative by x_l.
        zeta_sites : Tensor of int64, shape (J,), optional
            j, of those by zeta_j.

        Returns
        -------
        FieldWithDerivatives
            Parts of shape (1, N, 1 or J, B), for the derivatives that are asked for.
        """
        states, sites = x.shape
        along_x = along_zeta = window = None
        if x_site is not None:
            along_x = x.new_zeros(1, sites, 1, states)
            along_x[:, x_site] = 1.0
        if zeta_sites is not None:
            along_zeta, window = x.new_ones(1, 1, len(zeta_sites), states), zeta_sites[None].to(x.device)

        def field(values: Tensor) -> Tensor:
            return values.T[None, :, None]

        forecast = FieldWithDerivatives(field(x), along_x)
        innovation = FieldWithDerivatives(field(zeta), None, along_zeta, None, window).scaled(self.error_std)
        slope = None if along_x is None else 1.0 / self.state_std * along_x
        inputs = [innovation]
        if self.sees_forecast:
            inputs.insert(0, FieldWithDerivatives(field((x - self.state_mean) / self.state_std), slope))
        if self._is_bounded():
            inputs = [one.bounded(torch.full_like(self.state_std, FAR)) for one in inputs]
        if (before := self._remembered(x, memory)) is not None:
            inputs.append(FieldWithDerivatives(before.permute(1, 2, 0)[:, :, None]))
        step = self.cnn.propagate(stack(inputs, window), outputs=1)
        if self._is_bounded():
            step = step.bounded(WIDEST * self.state_std / self.error_std)
        increment = innovation.scaled(self.relative_alpha).plus(step).scaled(self.error_std)
        return forecast.plus(increment).dense()

    def analysis_covariance(self, x: Tensor, zeta: Tensor, memory: Tensor | None) -> Tensor:
        """P_a, carried forward layer by layer."""
        if not self._is_unchanged():
            return super().analysis_covariance(x, zeta, memory)
        return _square(self.propagate(x, zeta, memory, zeta_sites=_all_sites(x)).zeta, x)

    def marginal_gain(self, x: Tensor, zeta: Tensor, memory: Tensor | None, site: int) -> Tensor:
        """Gamma at one site l, carried forward layer by layer."""
        if not self._is_unchanged():
            return super().marginal_gain(x, zeta, memory, site)
        return _square(self.propagate(x, zeta, memory, x_site=site, zeta_sites=_all_sites(x)).mixed, x)

    def forecast_derivative(self, x: Tensor, zeta: Tensor, memory: Tensor | None, site: int) -> Tensor:
        """Derivative of the analysis by x_l, carried forward layer by layer."""
        if not self._is_unchanged():
            return super().forecast_derivative(x, zeta, memory, site)
        slope = self.propagate(x, zeta, memory, x_site=site).x
        assert slope is not None
        return slope[0, :, 0].T

    def _remembered(self, x: Tensor, memory: Tensor | None) -> Tensor | None:
        """The memory, empty where it is not passed."""
        if self.memory and memory is None:
            return x.new_zeros(len(x), self.memory, x.shape[1])
        return memory

    def _is_bounded(self) -> bool:
        """Whether far inputs and wide increments saturate; an affine network stays affine."""
        return not self.cnn.layers.activation.affine

    def _is_unchanged(self) -> bool:
        """Whether a derived class left the trunk as it is, and each scale one number: then `propagate` holds."""
        return type(self.cnn) is ResidualTrunk and self._is_one_climate and self.relative_alpha.ndim == 0

    def _has_fast_gradient(self, x: Tensor) -> bool:
        """Whether `_FastAnalysis` is right for these states, and for this network as it is."""
        # A derived class may train the normalisation.
        fixed = not any(scale.requires_grad for scale in (self.state_mean, self.state_std, self.error_std))
        written = fixed and self.sees_forecast and self._is_bounded() and self._is_unchanged()
        return written and self.cnn.is_fast(x.shape[1]) and not is_patched(self.cnn)

    def _fast_analysis(self, x: Tensor, zeta: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scales = self.state_mean, self.state_std, self.error_std, self.relative_alpha
        answer: tuple[Tensor, Tensor | None] = _FastAnalysis.apply(  # type: ignore[no-untyped-call]
            x, zeta, memory, *scales, *self.cnn.fast()
        )
        return answer


class _FastAnalysis(torch.autograd.Function):
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
        trunk: FastTrunk,
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
        scratch_lease = trunk.scratch(shape)
        tape, scratch = lease.value, scratch_lease.value
        output, features = tape.output, tape.features
        d_x = d_analysis.T
        # The scale of the saturation cancels, up to the error deviation.
        _tanh_backward(d_x, output[0], grad_input=scratch.output[0]).mul_(error_std)
        d_memory = None
        if d_after is not None:
            d_new = d_after.permute(1, 2, 0)
            gate, candidate = output[1:].chunk(2)
            d_gate, d_candidate = scratch.output[1:].chunk(2)
            d_raw = d_new * gate
            _tanh_backward(d_raw, candidate, grad_input=d_candidate)
            _sigmoid_backward((candidate - features[2:]).mul_(d_new), gate, grad_input=d_gate)
            d_memory = d_new - d_raw
        d_features, gradients = trunk.backward(tape, scratch)
        d_features = d_features.view(features.shape)
        # Derivative of the softening: 1 - tanh^2, from its stored value.
        d_scaled = torch.addcmul(d_features[:2], d_features[:2], features[:2].square(), value=-1 / FAR**2)
        d_alpha = (d_x * innovation).sum() * error_std
        d_innovation = d_scaled[1].add_(d_x * (error_std * alpha)).mul_(error_std)
        d_x = torch.addcdiv(d_x, d_scaled[0], std)
        if d_memory is not None:
            d_memory.add_(d_features[2:])
            d_memory = d_memory.permute(2, 0, 1)
        return d_x.T, d_innovation.T, d_memory, None, None, None, d_alpha, None, *gradients


def _unnest(_: nn.Module, state: dict[str, Any], prefix: str, _metadata: dict[str, Any]) -> None:
    """Name the trunk's tensors as the network's own, in the state that is saved."""
    for name in [name for name in state if name.startswith(f"{prefix}cnn.")]:
        state[prefix + name.removeprefix(f"{prefix}cnn.")] = state.pop(name)


def _nest(_: nn.Module, state: dict[str, Any], prefix: str, *_others: Any) -> None:
    """Undo `_unnest`, in a state that is to be loaded."""
    for name in [name for name in state if name.startswith((f"{prefix}weights.", f"{prefix}biases."))]:
        state[f"{prefix}cnn.{name.removeprefix(prefix)}"] = state.pop(name)


def _all_sites(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1], device=x.device)


def _square(part: Tensor | None, x: Tensor) -> Tensor:
    """From (1, N, J, B) to (B, N, J); zeros for a derivative that vanishes."""
    return x.new_zeros(*x.shape, x.shape[1]) if part is None else part[0].permute(2, 0, 1)


# What each lacks shows what it is for.
register_preset("residual-cnn-linear", ResidualCNN, activation="linear")
register_preset("residual-cnn-blind", ResidualCNN, sees_forecast=False)
