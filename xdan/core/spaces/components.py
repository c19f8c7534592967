"""Components: numbers of a state without places or neighbours."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..checks import integer, shown
from .base import Geometry, register_geometry
from .coordinates import MOST_COMPONENTS, Coordinate, order_of, word

_EXCHANGED = 32  # largest number of components for which every exchange of two is a possible symmetry


@register_geometry
class Components(Geometry):
    """Numbers of a state without places, such as the three of Lorenz-63, or amplitudes of waves.

    Parameters
    ----------
    names : int or sequence of str
        Number of components, or the name of each.
    dim : str
        Name of the dim.
    long_name : str
        Description of the coordinate.

    Raises
    ------
    TypeError
        If `names` is neither an integer nor a sequence of strings.
    ValueError
        If there are no names, or a name occurs twice.

    Examples
    --------
    >>> Components(["x", "y", "z"]).shape
    (3,)
    """

    name: ClassVar[str] = "components"
    drawn_as: ClassVar[str] = "lines"

    def __init__(
        self,
        names: int | Sequence[str] = 3,
        dim: str = "component",
        long_name: str = "component of the state",
    ) -> None:
        self.dim, self.long_name = word("dim", dim), word("long_name", long_name)
        self.names: int | list[str]
        if isinstance(names, (int, np.integer, str)) or not isinstance(names, Sequence):
            self.names = integer("names", names, least=1, most=MOST_COMPONENTS)
            labels: tuple[Any, ...] = tuple(range(self.names))
        else:
            self.names = [word("names", name) for name in names]
            if not names or len(set(self.names)) < len(self.names):
                raise ValueError(f"names={shown(names)}: expected distinct names, at least one")
            labels = tuple(self.names)
        self.dims = (self.dim,)
        self.coordinates = {self.dim: Coordinate(labels, {"long_name": self.long_name, "units": "1"})}

    def pad(self, x: Tensor, widths: Sequence[int]) -> Tensor:
        """Refuse to pad, because components have no neighbours.

        Raises
        ------
        ValueError
            If a width is above 0.
        """
        if any(widths):
            raise ValueError(f"the {self.size} components have no neighbours: expected a network that is dense on them")
        return x

    @property
    def sites(self) -> tuple[int, ...]:
        """One site. The components are its channels, so that a network connects all of them."""
        return (1,)

    def ratios(self, other: Geometry) -> tuple[int, ...] | None:
        """All components of another such geometry belong to the one site; see `Geometry.ratios`."""
        return (other.size,) if isinstance(other, Components) else None

    def order_of(self, dim: str, labels: Sequence[Any]) -> list[int] | None:
        """Find the components by their names, if they have names."""
        return None if isinstance(self.names, int) else order_of(dim, self.names, labels)

    def symmetries(self) -> dict[str, Tensor]:
        """Every exchange of two components, for up to 32 components."""
        labels = self.coordinates[self.dim].values
        exchanges = {}
        for a, b in itertools.combinations(range(self.size if self.size <= _EXCHANGED else 0), 2):
            order = torch.arange(self.size)
            order[[a, b]] = order[[b, a]]
            exchanges[f"exchange of {labels[a]} and {labels[b]}"] = order
        return exchanges
