"""The residual trunk of networks: its weights, and several ways to run through its layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..spaces import Geometry
from ..user_functions import in_transform
from .activations import activation_by_name
from .arrangement import Arrangement
from .convolutions import circular_convolution
from .fast_backward import FastTrunk, TrunkFunction
from .fields_with_derivatives import FieldWithDerivatives
from .layers import Layers, TrunkSizes

_COLUMNS = 4096  # sites times trajectories that run through the layers together, if no gradient is recorded
_CONVOLUTIONS: dict[int, Callable[[Tensor, Tensor, Tensor], Tensor]] = {1: torch.conv1d, 2: torch.conv2d}


class ResidualTrunk(nn.Module):
    """A residual CNN on a grid. Features have the shape (channels, *sites, batch).

    On a ring and on a single site, the gradient is written out. On other grids, torch convolves what the geometry pads.
    Channels are last there, which on a CPU takes half the time of channels first.

    Parameters
    ----------
    inputs, outputs : int
        Number of channels.
    sizes : TrunkSizes
    quiet : float
        Size of the output at the start.
    arrangement : Arrangement, optional
        Arrangement of the fields on the grid; by default a ring of any length.

    Attributes
    ----------
    layers : Layers
        The layers and their sizes.
    kernels : tuple of int
        Width of every convolution along each dim of the grid.
    grid : Geometry or None
        The geometry that pads; None on a ring.
    weights : ParameterList of (out, taps * in)
        Weights of each layer, tap-major. The taps along the last dim come first.
    biases : ParameterList of (out,)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        sizes: TrunkSizes,
        quiet: float = 0.02,
        arrangement: Arrangement | None = None,
    ) -> None:
        super().__init__()
        filters, blocks, sub_blocks, kernel, activation = sizes
        self.kernels = (kernel,) if arrangement is None else arrangement.kernels(kernel)
        self.grid = None if arrangement is None or arrangement.is_ring else arrangement.grid
        widest, taps = max(self.kernels), math.prod(self.kernels)
        self.layers = Layers(inputs, outputs, filters, blocks, sub_blocks, widest, activation_by_name(activation))
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for layer, (inside, outside) in enumerate(self.layers.channels):
            gain = self.layers.activation.gain if layer in self.layers.hidden else 1.0 if layer == 0 else quiet
            fan_in = taps * inside
            random = gain / math.sqrt(fan_in) * torch.randn(outside, fan_in, dtype=torch.float32)
            # Every parameter is registered as soon as it is made, so that a count of them can stop early.
            self.weights.append(nn.Parameter(random))
            self.biases.append(nn.Parameter(torch.zeros(outside, dtype=torch.float32)))
        self._fast: FastTrunk | None = None

    def forward(self, features: Tensor, *, fast: bool = True) -> Tensor:
        """Map features (inputs, *sites, B) to (outputs, *sites, B).

        With `fast`, on a ring in training mode, the gradient is written out.
        """
        if self.grid is not None:
            return self._on_grid(features, self.grid)
        if fast and self.is_fast(features.shape[1]):
            answer: Tensor = TrunkFunction.apply(features, *self.fast())  # type: ignore[no-untyped-call]
            return answer
        if features.shape[1] * features.shape[2] > _COLUMNS and self._is_plain(features):
            return self._in_parts(features)
        return self._on_ring(features)

    def _is_plain(self, features: Tensor) -> bool:
        """Whether nothing is recorded: neither a gradient nor a transform of torch.func."""
        recorded = torch.is_grad_enabled() and (features.requires_grad or any(w.requires_grad for w in self.weights))
        return not recorded and not in_transform(features)

    def _in_parts(self, features: Tensor) -> Tensor:
        """`_on_ring` in parts of sites and trajectories, so small that tensors between layers stay in the CPU's caches.

        A part of a long ring includes the sites that it depends on at both sides. The wrong results there are cut off.
        """
        sites, reach = features.shape[1], self.reach
        length = max(_COLUMNS, 8 * reach)  # length of a part; its sides are at most a quarter of it
        if sites <= length:
            return torch.cat([self._on_ring(part) for part in features.split(max(1, _COLUMNS // sites), 2)], 2)
        if features.shape[2] > 1:
            return torch.cat([self._in_parts(part) for part in features.split(1, 2)], 2)
        around = torch.cat([features[:, sites - reach :], features, features[:, :reach]], 1)
        out = features.new_empty(self.layers.outputs, *features.shape[1:])
        for start in range(0, sites, length):
            size = min(length, sites - start)
            part = self._on_ring(around[:, start : start + size + 2 * reach])
            out[:, start : start + size] = part[:, reach : reach + size]
        return out

    def _on_ring(self, features: Tensor) -> Tensor:
        """`forward` by plain operations on a ring."""
        layers, (weights, biases) = self.layers, self._tensors()
        activation = layers.activation

        def convolve(layer: int, field: Tensor) -> Tensor:
            return circular_convolution(field, weights[layer], biases[layer], layers.kernel)

        def activate(_: int, sums: Tensor, start: Tensor | None) -> Tensor:
            value = activation.value(*sums.chunk(activation.parts))
            return value if start is None else start + value

        return layers.run(features, convolve, activate)

    def _on_grid(self, features: Tensor, grid: Geometry) -> Tensor:
        """`forward` off the ring. Inside, tensors are (batch, channels, *sites)."""
        dims, (weights, biases) = len(self.kernels), self._tensors()
        activation, half = self.layers.activation, [kernel // 2 for kernel in self.kernels]
        layout = torch.channels_last if dims == 2 else torch.contiguous_format
        convolution = _CONVOLUTIONS[dims]

        def convolve(layer: int, field: Tensor) -> Tensor:
            padded = grid.pad(field, half).contiguous(memory_format=layout)
            taps = weights[layer].unflatten(1, (*self.kernels, -1)).movedim(-1, 1)
            convolved: Tensor = convolution(padded, taps, biases[layer])
            return convolved

        def activate(_: int, sums: Tensor, start: Tensor | None) -> Tensor:
            value = activation.value(*sums.chunk(activation.parts, 1))
            return value if start is None else start + value

        field = features.movedim(-1, 0).contiguous(memory_format=layout)
        return self.layers.run(field, convolve, activate).movedim(0, -1)

    def propagate(self, features: FieldWithDerivatives, outputs: int | None = None) -> FieldWithDerivatives:
        """Run fields with their derivatives through the layers.

        Parameters
        ----------
        features : FieldWithDerivatives
            Input with `inputs` channels.
        outputs : int, optional
            Number of output channels to compute; by default all.
        """
        layers, (weights, biases) = self.layers, self._tensors()
        weights[-1], biases[-1] = weights[-1][:outputs], biases[-1][:outputs]
        activation = layers.activation

        def convolve(layer: int, field: FieldWithDerivatives) -> FieldWithDerivatives:
            return field.convolved(weights[layer], biases[layer], layers.kernel)

        def activate(_: int, sums: FieldWithDerivatives, start: FieldWithDerivatives | None) -> FieldWithDerivatives:
            value = activation.propagate(*sums.split(activation.parts))
            return value if start is None else start.plus(value)

        return layers.run(features, convolve, activate)

    def is_fast(self, sites: int) -> bool:
        """Whether the gradient is written out on a ring with this number of sites."""
        # If a ring is shorter than half a kernel, there are no ghosts to copy.
        return self.grid is None and self.training and self.layers.activation.fast and sites >= self.layers.kernel // 2

    def fast(self) -> tuple[FastTrunk, *tuple[Tensor, ...]]:
        """The written-out passes for the present weights; then weights and biases in turn."""
        weights, biases = self._tensors()
        if self._fast is None or not self._fast.fits(weights, biases):
            self._fast = FastTrunk(self.layers, weights, biases)
        return self._fast, *(tensor for pair in zip(weights, biases, strict=True) for tensor in pair)

    def _tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases of all layers, as lists: indexing a ParameterList takes as long as a small product."""
        weights, biases = (part.named_parameters(remove_duplicate=False) for part in (self.weights, self.biases))
        return [weight for _, weight in weights], [bias for _, bias in biases]

    def train(self, mode: bool = True) -> ResidualTrunk:
        """Set training or evaluation mode. Buffers are kept in training mode only."""
        if not mode:
            self._fast = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ResidualTrunk:
        """Move or convert the tensors. Buffers that belong to the earlier tensors are dropped."""
        self._fast = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fast": None}

    @property
    def reach(self) -> int:
        """Sites to each side that an output can depend on."""
        return self.layers.reach

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Every convolution but the last, as (out, taps * in) matrices."""
        return list(self.weights)[:-1]
