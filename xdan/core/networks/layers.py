"""The layers of the residual trunk, described once: whatever runs through them reads this."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from .activations import Activation, activation_by_name
from .sizes import LARGEST, odd, size

F = TypeVar("F")
"""What runs through the layers: tensors, buffers, fields with derivatives."""


class TrunkSizes(NamedTuple):
    """Sizes that every network with a residual trunk has, as plain values."""

    filters: int
    blocks: int
    sub_blocks: int
    kernel: int
    activation: str


def trunk_sizes(filters: Any, blocks: Any, sub_blocks: Any, kernel: Any, activation: Any) -> TrunkSizes:
    """Take the sizes that every network with a residual trunk has.

    Raises
    ------
    TypeError
        For sizes that are no integers, or an activation that is no string.
    ValueError
        For sizes out of bounds, an even kernel, or an activation that is unknown.
    """
    filters, blocks, sub_blocks = size("filters", filters), size("blocks", blocks), size("sub_blocks", sub_blocks)
    if blocks * sub_blocks > LARGEST:
        raise ValueError(f"blocks={blocks}, sub_blocks={sub_blocks}: expected at most {LARGEST} layers together")
    return TrunkSizes(filters, blocks, sub_blocks, odd("kernel", kernel), activation_by_name(activation).name)


@dataclass(frozen=True)
class Layers:
    """A convolution in, residual blocks of activated convolutions, a convolution out.

    Layers are numbered from 0, the convolution in, to `last`, the convolution out.

    Attributes
    ----------
    inputs, outputs : int
        Channels of the features that go in and come out.
    filters : int
        Channels between hidden layers.
    blocks, sub_blocks : int
        Residual blocks, and activated convolutions in each.
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
        """Number of the convolution out."""
        return self.blocks * self.sub_blocks + 1

    @property
    def hidden(self) -> range:
        """Numbers of the activated convolutions."""
        return range(1, self.last)

    @property
    def wide(self) -> int:
        """Channels that a hidden convolution gives, which the activation makes `filters` of."""
        return self.activation.parts * self.filters

    @property
    def channels(self) -> list[tuple[int, int]]:
        """Channels into and out of every convolution."""
        hidden = [(self.filters, self.wide)] * len(self.hidden)
        return [(self.inputs, self.filters), *hidden, (self.filters, self.outputs)]

    @property
    def reach(self) -> int:
        """Sites to each side that an output can depend on."""
        return (self.kernel // 2) * (self.last + 1)

    def begins_block(self, layer: int) -> bool:
        """Whether a hidden layer reads what the block begins with."""
        return (layer - 1) % self.sub_blocks == 0

    def ends_block(self, layer: int) -> bool:
        """Whether what the block began with is added behind a hidden layer."""
        return layer % self.sub_blocks == 0

    def run(self, field: F, convolve: Callable[[int, F], F], activate: Callable[[int, F, F | None], F]) -> F:
        """Run something through all layers.

        Parameters
        ----------
        field : F
        convolve : callable
            From a layer's number and its input to its convolution.
        activate : callable
            From a hidden layer's number, its convolution and, at a block's end, what the block began with (otherwise
            None) to the activation, plus that.
        """
        start = field = convolve(0, field)
        for layer in self.hidden:
            field = activate(layer, convolve(layer, field), start if self.ends_block(layer) else None)
            if self.ends_block(layer):
                start = field
        return convolve(self.last, field)
