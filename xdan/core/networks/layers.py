"""The layers of the residual trunk, described once, for everything that runs through them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from .activations import Activation, activation_by_name
from .sizes import LARGEST, odd, size

F = TypeVar("F")
"""What runs through the layers: tensors, buffers, or fields with derivatives."""


class TrunkSizes(NamedTuple):
    """Plain sizes that every network with a residual trunk has."""

    filters: int
    blocks: int
    sub_blocks: int
    kernel: int
    activation: str


def trunk_sizes(filters: Any, blocks: Any, sub_blocks: Any, kernel: Any, activation: Any) -> TrunkSizes:
    """Check the sizes that every network with a residual trunk has.

    Raises
    ------
    TypeError
        If a size is not an integer, or the activation is not a string.
    ValueError
        If a size is out of bounds, the kernel is even, or the activation is unknown.
    """
    filters, blocks, sub_blocks = size("filters", filters), size("blocks", blocks), size("sub_blocks", sub_blocks)
    if blocks * sub_blocks > LARGEST:
        raise ValueError(f"blocks={blocks}, sub_blocks={sub_blocks}: expected at most {LARGEST} layers together")
    return TrunkSizes(filters, blocks, sub_blocks, odd("kernel", kernel), activation_by_name(activation).name)


@dataclass(frozen=True)
class Layers:
    """Layers of a trunk: an input convolution, residual blocks of activated convolutions, an output convolution.

    Layers are numbered from 0, the input convolution, to `last`, the output convolution.

    Attributes
    ----------
    inputs, outputs : int
        Number of channels of the input and output features.
    filters : int
        Number of channels between hidden layers.
    blocks, sub_blocks : int
        Number of residual blocks, and of activated convolutions in each block.
    kernel : int
        Odd width of every convolution, in sites.
    activation : Activation
    """

    inputs: int
    outputs: int
    filters: int
    blocks: int
    sub_blocks: int
    kernel: int
    activation: Activation

    @property
    def last(self) -> int:
        """Number of the output convolution."""
        return self.blocks * self.sub_blocks + 1

    @property
    def hidden(self) -> range:
        """Numbers of the activated convolutions, which are the hidden layers."""
        return range(1, self.last)

    @property
    def wide(self) -> int:
        """Output channels of a hidden convolution, of which the activation makes `filters` channels."""
        return self.activation.parts * self.filters

    @property
    def channels(self) -> list[tuple[int, int]]:
        """Input and output channels of every convolution."""
        hidden = [(self.filters, self.wide)] * len(self.hidden)
        return [(self.inputs, self.filters), *hidden, (self.filters, self.outputs)]

    @property
    def reach(self) -> int:
        """Number of sites to each side that an output can depend on."""
        return (self.kernel // 2) * (self.last + 1)

    def begins_block(self, layer: int) -> bool:
        """Whether a hidden layer reads the input of its block."""
        return (layer - 1) % self.sub_blocks == 0

    def ends_block(self, layer: int) -> bool:
        """Whether the input of the block is added to the output of this hidden layer."""
        return layer % self.sub_blocks == 0

    def run(self, field: F, convolve: Callable[[int, F], F], activate: Callable[[int, F, F | None], F]) -> F:
        """Run a field through all layers.

        Parameters
        ----------
        field : F
        convolve : callable
            convolve(layer, input) gives the convolution of a layer.
        activate : callable
            activate(layer, convolution, start) gives the activation of a hidden layer. At the end of a block, `start`
            is the input of the block, which is added; otherwise it is None.
        """
        start = field = convolve(0, field)
        for layer in self.hidden:
            field = activate(layer, convolve(layer, field), start if self.ends_block(layer) else None)
            if self.ends_block(layer):
                start = field
        return convolve(self.last, field)
