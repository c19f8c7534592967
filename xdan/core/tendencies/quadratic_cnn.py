"""A small residual CNN with a layer of products, because advection is a product of two fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..networks.layers import trunk_sizes
from ..networks.sizes import size
from ..networks.trunk import ResidualTrunk
from ..spaces import StateSpace
from .base import TendencyNetwork, register_tendency


@register_tendency
class QuadraticCNN(TendencyNetwork):
    """g(x) = V [a, b c] + trunk([a, b c]), where (a, b, c) = U z is a convolution of the normalised state.

    The products b c of two channels at each place represent bilinear terms exactly. With them alone, g can represent
    the tendency of Lorenz-96. The residual trunk adds what is not a polynomial of degree two.

    Parameters
    ----------
    filters : int
        Number of channels of each of a, b and c, and of the trunk.
    kernel : int
        Odd width of the first convolution and of the trunk's convolutions, in points.
    blocks : int
        Number of residual blocks of the trunk; 0 leaves the trunk out.
    activation : {"gated", "silu", "linear"}
        Function between convolutions of the trunk.
    space : StateSpace, or its JSON, optional
        The fields of the states, which become channels on one grid. By default one field on a ring of any length.

    Raises
    ------
    TypeError, ValueError
        If a size is not an integer or is out of bounds, the kernel is even, or the activation is unknown.

    References
    ----------
    Bocquet et al. (2020), Foundations of Data Science 2, doi:10.3934/fods.2020004, Sect. 3.1: the layer of products;
    Fablet et al. (2018), EUSIPCO, doi:10.23919/EUSIPCO.2018.8553492.

    Examples
    --------
    >>> g = QuadraticCNN(filters=4, blocks=0)
    >>> g(torch.ones(2, 8)).shape
    torch.Size([2, 8])
    """

    name: ClassVar[str] = "quadratic-cnn"

    def __init__(
        self,
        filters: int = 12,
        kernel: int = 5,
        blocks: int = 1,
        activation: str = "gated",
        space: StateSpace | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(space)
        self.blocks = size("blocks", blocks, 0)
        sizes = trunk_sizes(filters, max(1, self.blocks), 1, kernel, activation)
        self.filters, self.kernel, self.activation = sizes.filters, sizes.kernel, sizes.activation
        channels = self.arrangement.channels
        taps = math.prod(self.arrangement.kernels(self.kernel)) * channels
        random = torch.randn(3 * self.filters, taps, dtype=torch.float32) / math.sqrt(taps)
        self.first = nn.Parameter(random)
        self.offset = nn.Parameter(torch.zeros(3 * self.filters, dtype=torch.float32))
        # The output is nearly zero at the start: a model is then not corrected, and a surrogate is persistence.
        self.last = nn.Parameter(0.02 * torch.randn(channels, 2 * self.filters, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(channels, dtype=torch.float32))
        self.trunk = (
            ResidualTrunk(2 * self.filters, channels, sizes, quiet=0.02, arrangement=self.arrangement)
            if self.blocks
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return g for states of shape (B, N)."""
        taps = self._taps(self._to_channels(x), self.kernel)
        shape = taps.shape[1:]
        a, b, c = (self.first @ taps.flatten(1) + self.offset[:, None]).chunk(3)
        features = torch.cat([a, b * c])
        out = (self.last @ features + self.bias[:, None]).unflatten(1, shape)
        if self.trunk is not None:
            out = out + self.trunk(features.unflatten(1, shape), fast=False)
        return self._from_channels(out)
