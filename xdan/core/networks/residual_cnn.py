"""The residual convolutional network, with or without memory.

The trunk is the same as in other networks. What comes before and after the trunk is written here in three ways: by
plain operations (`ResidualCNN.forward`), for training (`_FastAnalysis`), and with derivatives
(`ResidualCNN.propagate`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..checks import switch
from ..spaces import StateSpace
from .activations import tanh_
from .arrangement import Arrangement
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
    """Residual CNN that reads forecast and projected innovation, on a ring or on the fields of a space.

    x_a = x_f + alpha zeta + a_theta(x_f, zeta[, m]), Eq. 22. The network has an input convolution, `blocks` residual
    blocks of `sub_blocks` activated convolutions, and an output convolution. No layer depends on the number of sites.
    With memory, the last layer also gives a gate g (through a sigmoid) and a candidate c (through tanh) for `memory`
    latent channels, m <- (1 - g) m + g c. The next cycle reads them, besides x_f and zeta.

    Parameters
    ----------
    filters : int
        Number N_f of channels of the hidden layers.
    blocks, sub_blocks : int
        N_b residual blocks, each with N_sb activated convolutions.
    kernel : int
        Odd width f of every convolution, along each dim of the grid that has more than one site.
    memory : int
        Number of latent channels of each component of the state; 0 for none.
    activation : {"gated", "silu", "linear"}
        Function between convolutions. "gated": the convolution of a sub-block has 2 N_f channels; one half is
        multiplied by the tanh of the other half. "linear": no function; without memory the analysis is then affine in
        forecast and projected innovation.
    sees_forecast : bool
        Whether a_theta reads x_f. Without x_f and without memory, the increment is a function of zeta alone.
    space : StateSpace, or its JSON, optional
        The fields of the states, which become channels on one grid; fixed inputs are channels too. By default one field
        on a ring of any length.

    Raises
    ------
    TypeError
        If a size is not an integer, an activation is not a string, or `sees_forecast` is not True or False.
    ValueError
        If a size is out of bounds, the kernel is even, the activation is unknown, or the fields cannot be joined.

    References
    ----------
    Bocquet et al. (2024), doi:10.1063/5.0230837. Slides of the same authors show the architecture and N_b, N_sb, f.

    Examples
    --------
    >>> import torch, xdan
    >>> net = xdan.ResidualCNN(filters=8, blocks=2, memory=3)
    >>> analysis, memory = net(torch.zeros(2, 40), torch.zeros(2, 40), torch.zeros(2, 3, 40))
    >>> tuple(analysis.shape), tuple(memory.shape)
    ((2, 40), (2, 3, 40))
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
        space: StateSpace | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(space)
        sizes = trunk_sizes(filters, blocks, sub_blocks, kernel, activation)
        self.filters, self.blocks, self.sub_blocks, self.kernel, self.activation = sizes
        self.memory, self.sees_forecast = size("memory", memory, 0), switch("sees_forecast", sees_forecast)
        channels = self.arrangement.channels
        inputs = ((2 if self.sees_forecast else 1) + self.memory) * channels + self._fixed_channels
        # The output is nearly zero at the start: the first cycles then follow alpha alone, and stay bounded.
        outputs = (1 + 2 * self.memory) * channels
        self.cnn = ResidualTrunk(inputs, outputs, sizes, quiet=0.02, arrangement=self.arrangement)
        self.relative_alpha = nn.Parameter(torch.tensor(0.4, dtype=torch.float32))
        # In stores the trunk's tensors have the names of the network's tensors.
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
        """Number of sites to each side that an analysis can depend on; over several cycles, memory reaches further."""
        return self.cnn.reach if self._is_unchanged() else None

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Every convolution but the last, as (out, taps * in) matrices."""
        return self.cnn.hidden_matrices()

    def forward(self, x: Tensor, zeta: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Analysis and new memory; shapes as in the base class."""
        memory = self._remembered(x, memory)
        fast = self.training and self._has_fast_gradient(x)
        analysis, after = (self._fast_analysis if fast else self._plain_analysis)(x, zeta, memory)
        return (x + self.conserving(analysis - x) if self._conserved else analysis), after

    def _plain_analysis(self, x: Tensor, zeta: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        mean, std, error_std = map(self.per_component, (self.state_mean, self.state_std, self.error_std))
        arrangement, channels = self.arrangement, self.arrangement.channels
        innovation = zeta * error_std
        inputs = [(x - mean) / std] if self.sees_forecast else []
        scaled = torch.stack([*inputs, innovation])
        features = [arrangement.to_channels(soften(scaled) if self._is_bounded() else scaled)]
        if memory is not None:
            features.append(arrangement.to_channels(memory.transpose(0, 1)))
        features += self._fixed(features[0])
        # Where the fast gradient does not hold, plain operations compute all of it: weights then follow from the seed.
        out: Tensor = self.cnn(torch.cat(features) if len(features) > 1 else features[0], fast=False)
        step = arrangement.from_channels(out[:channels])[0]
        step = saturate(step, std, error_std) if self._is_bounded() else step
        analysis = torch.addcmul(x, error_std, step + self.relative_alpha * innovation)
        if memory is None:
            return analysis, None
        gate, candidate = arrangement.from_channels(out[channels:]).transpose(0, 1).chunk(2, 1)
        return analysis, renew(memory, gate, candidate)

    def propagate(
        self,
        x: Tensor,
        zeta: Tensor,
        memory: Tensor | None = None,
        *,
        x_site: int | None = None,
        zeta_sites: Tensor | None = None,
    ) -> FieldWithDerivatives:
        """The analysis and its derivatives, computed forward layer by layer.

        Parameters
        ----------
        x, zeta : Tensor, shape (B, N)
        memory : Tensor, shape (B, n, N), optional
        x_site : int, optional
            The site l of the derivative with respect to x_l.
        zeta_sites : Tensor of int64, shape (J,), optional
            The sites j of the derivatives with respect to zeta_j.

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
        """P_a, computed forward layer by layer."""
        if not self._is_unchanged():
            return super().analysis_covariance(x, zeta, memory)
        return _square(self.propagate(x, zeta, memory, zeta_sites=_all_sites(x)).zeta, x)

    def marginal_gain(self, x: Tensor, zeta: Tensor, memory: Tensor | None, site: int) -> Tensor:
        """Gamma at one site l, computed forward layer by layer."""
        if not self._is_unchanged():
            return super().marginal_gain(x, zeta, memory, site)
        return _square(self.propagate(x, zeta, memory, x_site=site, zeta_sites=_all_sites(x)).mixed, x)

    def forecast_derivative(self, x: Tensor, zeta: Tensor, memory: Tensor | None, site: int) -> Tensor:
        """Derivative of the analysis with respect to x_l, computed forward layer by layer."""
        if not self._is_unchanged():
            return super().forecast_derivative(x, zeta, memory, site)
        slope = self.propagate(x, zeta, memory, x_site=site).x
        assert slope is not None
        return slope[0, :, 0].T

    def _remembered(self, x: Tensor, memory: Tensor | None) -> Tensor | None:
        """The memory; empty if it is not passed."""
        if self.memory and memory is None:
            return x.new_zeros(len(x), self.memory, x.shape[1])
        return memory

    def _is_bounded(self) -> bool:
        """Whether inputs and increments saturate. An affine network does not saturate, so that it stays affine."""
        return not self.cnn.layers.activation.affine

    def _is_unchanged(self) -> bool:
        """Whether `propagate` is right: on a ring, for a derived class that changes neither trunk nor scales."""
        return self.space is None and self._is_usual()

    def _is_usual(self) -> bool:
        """Whether a derived class leaves the trunk as it is, and each scale is one number for a field."""
        return type(self.cnn) is ResidualTrunk and self._is_one_climate and self.relative_alpha.ndim == 0

    def _has_fast_gradient(self, x: Tensor) -> bool:
        """Whether `_FastAnalysis` is right for these states, and for the present network."""
        # A derived class may train the normalisation, which has no fast gradient.
        fixed = not any(scale.requires_grad for scale in (self.state_mean, self.state_std, self.error_std))
        written = fixed and self.sees_forecast and self._is_bounded() and self._is_usual()
        sites = x.shape[1] if self.arrangement.sites is None else self.arrangement.sites[0]
        return written and self.cnn.is_fast(sites) and not is_patched(self.cnn)

    def _fast_analysis(self, x: Tensor, zeta: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        arrangement = self.arrangement
        scales = map(arrangement.per_channel, (self.state_mean, self.state_std, self.error_std))
        fixed = self.fixed_inputs if self._fixed_channels else None
        answer: tuple[Tensor, Tensor | None] = _FastAnalysis.apply(  # type: ignore[no-untyped-call]
            x, zeta, memory, *scales, self.relative_alpha, fixed, arrangement, *self.cnn.fast()
        )
        return answer


class _FastAnalysis(torch.autograd.Function):
    """`ResidualCNN.forward` for autograd, with first derivatives. Inside, sites come first."""

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
        fixed: Tensor | None,
        arrangement: Arrangement,
        trunk: FastTrunk,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """Analysis and memory of `ResidualCNN.forward`. `weights` are weights and biases in turn, which `trunk` views.

        Each channel has a scale, (C, 1, 1); or all channels have one number.
        """
        c, columns = arrangement.channels, arrangement.to_channels(x[None])
        _, n, batch = columns.shape
        shape = (n, batch, x.dtype, x.device)
        lease = trunk.tape(shape)
        tape = lease.value
        innovation = arrangement.to_channels(zeta[None]) * error_std
        scaled = tape.features[: 2 * c]
        torch.sub(columns, mean, out=scaled[:c]).div_(std)
        scaled[c:].copy_(innovation)
        scaled.div_(FAR).tanh_().mul_(FAR)
        channels = 0 if memory is None else memory.shape[1] * c
        old = tape.features[2 * c : 2 * c + channels]
        if memory is not None:
            old.copy_(arrangement.to_channels(memory.transpose(0, 1)))
        if fixed is not None:
            tape.features[2 * c + channels :].copy_(fixed[..., None].expand(-1, -1, batch))
        trunk.forward(tape)
        # An increment cannot be larger than the width of the climate.
        saturation = tape.output[:c].mul_(error_std / (WIDEST * std)).tanh_()
        analysis = torch.addcmul(columns, saturation, WIDEST * std).addcmul_(innovation, error_std * alpha)
        after = None
        if memory is not None:
            gate, candidate = tape.output[c:].chunk(2)
            gate.sigmoid_()
            after = arrangement.from_channels(torch.addcmul(old, gate, tanh_(candidate) - old)).transpose(0, 1)
        ctx.kept = trunk, lease, shape, innovation, old, std, error_std, alpha, arrangement
        return arrangement.from_channels(analysis)[0], after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_analysis: Tensor, d_after: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of forecast, projected innovation, memory, alpha and every weight and bias."""
        trunk, lease, shape, innovation, old, std, error_std, alpha, arrangement = ctx.kept
        c = arrangement.channels
        scratch_lease = trunk.scratch(shape)
        tape, scratch = lease.value, scratch_lease.value
        output, features = tape.output, tape.features
        d_x = arrangement.to_channels(d_analysis[None])
        # The scale of the saturation cancels, except for the observation error.
        _tanh_backward(d_x, output[:c], grad_input=scratch.output[:c]).mul_(error_std)
        d_memory = None
        if d_after is not None:
            d_new = arrangement.to_channels(d_after.transpose(0, 1))
            gate, candidate = output[c:].chunk(2)
            d_gate, d_candidate = scratch.output[c:].chunk(2)
            d_raw = d_new * gate
            _tanh_backward(d_raw, candidate, grad_input=d_candidate)
            _sigmoid_backward((candidate - old).mul_(d_new), gate, grad_input=d_gate)
            d_memory = d_new - d_raw
        d_features, gradients = trunk.backward(tape, scratch)
        d_features = d_features.view(features.shape)
        # Derivative of the softening: 1 - tanh^2, from its stored value.
        both = slice(2 * c)
        d_scaled = torch.addcmul(d_features[both], d_features[both], features[both].square(), value=-1 / FAR**2)
        slope = d_x * innovation
        d_alpha = slope.sum() * error_std if error_std.ndim == 0 else (slope * error_std).sum()
        d_innovation = d_scaled[c:].add_(d_x * (error_std * alpha)).mul_(error_std)
        d_x = torch.addcdiv(d_x, d_scaled[:c], std)
        if d_memory is not None:
            d_memory.add_(d_features[2 * c : 2 * c + len(old)])
            d_memory = arrangement.from_channels(d_memory).transpose(0, 1)
        flat = (arrangement.from_channels(part)[0] for part in (d_x, d_innovation))
        return *flat, d_memory, None, None, None, d_alpha, None, None, None, *gradients


def _unnest(_: nn.Module, state: dict[str, Any], prefix: str, _metadata: dict[str, Any]) -> None:
    """Give the trunk's tensors the names of the network's tensors, in a state that is saved."""
    for name in [name for name in state if name.startswith(f"{prefix}cnn.")]:
        state[prefix + name.removeprefix(f"{prefix}cnn.")] = state.pop(name)


def _nest(_: nn.Module, state: dict[str, Any], prefix: str, *_others: Any) -> None:
    """Inverse of `_unnest`, for a state that is loaded."""
    for name in [name for name in state if name.startswith((f"{prefix}weights.", f"{prefix}biases."))]:
        state[f"{prefix}cnn.{name.removeprefix(prefix)}"] = state.pop(name)


def _all_sites(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1], device=x.device)


def _square(part: Tensor | None, x: Tensor) -> Tensor:
    """Reshape (1, N, J, B) to (B, N, J). A derivative that vanishes becomes zeros."""
    return x.new_zeros(*x.shape, x.shape[1]) if part is None else part[0].permute(2, 0, 1)


# Presets that lack one part each: comparisons with them show what the part is good for.
register_preset("residual-cnn-linear", ResidualCNN, activation="linear")
register_preset("residual-cnn-blind", ResidualCNN, sees_forecast=False)
