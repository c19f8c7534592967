"""Observing networks for a state of several fields, one for each field."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..checks import shown
from ..random import Purpose, normal
from ..spaces import StateSpace
from .sites import Sites


class FieldSites:
    """Which sites of each field are observed. Random draws depend on the field's name, and not on other fields.

    Parameters
    ----------
    space : StateSpace
    sites : Sites, or mapping of str to Sites
        Sites of some of the fields; other fields are not observed. A single `Sites` is used for every field.

    Attributes
    ----------
    sites : dict of str to Sites
        Sites by field, in the order of the space.

    Raises
    ------
    TypeError
        If a value is not `Sites`.
    ValueError
        If a name is not a field, or there are no names.
    """

    def __init__(self, space: StateSpace, sites: Sites | Mapping[str, Sites]) -> None:
        named = dict(sites) if isinstance(sites, Mapping) else dict.fromkeys(space.names, sites)
        if unknown := [name for name in named if name not in space.names]:
            raise ValueError(f"observe= names {shown(unknown)}: expected fields of the state, some of {space.names}")
        if not named:
            raise ValueError(f"observe={{}} observes nothing: expected Sites for some of the fields {space.names}")
        for name, one in named.items():
            if not isinstance(one, Sites):
                raise TypeError(f"observe={{{name!r}: {shown(one)}}}: expected Sites, such as xdan.Sites.all()")
        self.space, self.sites = space, {name: named[name] for name in space.names if name in named}

    @property
    def kind(self) -> str:
        """The rule that all fields share, or "fields"."""
        kinds = {one.kind for one in self.sites.values()}
        return kinds.pop() if len(kinds) == 1 and len(self.sites) == len(self.space) else "fields"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON description: the sites of each field under its name."""
        return {"name": "fields", "parameters": {name: one.to_json() for name, one in self.sites.items()}}

    @classmethod
    def from_json(cls, description: Any, space: StateSpace) -> FieldSites:
        """The observing network that a store describes, for a space with these fields.

        Raises
        ------
        ValueError
            If the description is not one of sites, or names other fields.
        """
        parameters = description.get("parameters") if isinstance(description, Mapping) else None
        if not isinstance(parameters, Mapping) or description.get("name") != "fields":
            raise ValueError(f"an observing network is described by {shown(description)}: expected Sites of each field")
        return cls(space, {str(name): Sites.from_json(one) for name, one in parameters.items()})

    def counts(self, sites: int) -> tuple[int, int]:
        """The smallest and the largest number of observations at a time."""
        each = [one.counts(self.space[name].geometry.size) for name, one in self.sites.items()]
        return sum(least for least, _ in each), sum(most for _, most in each)

    def mask(self, sites: int, trajectory: Tensor, time: Tensor, seed: int) -> Tensor:
        """Which components of the packed state are observed, shape (R, K, N). `Sites.mask` explains the arguments.

        Raises
        ------
        ValueError
            If a field has fewer sites than its rule needs.
        """
        masks = []
        for field in self.space:
            if (sites_of_field := self.sites.get(field.name)) is None:
                shape = (len(trajectory), len(time), field.geometry.size)
                masks.append(torch.zeros(shape, dtype=torch.bool, device=trajectory.device))
            else:
                masks.append(sites_of_field.mask(field.geometry.size, trajectory, time, seed, _key(field.name)))
        return torch.cat(masks, -1)

    def noise(self, sites: int, trajectory: Tensor, time: Tensor, seed: int) -> Tensor:
        """Standard normal numbers for the errors of all components, shape (R, K, N)."""
        return torch.cat(
            [
                normal(seed, Purpose.OBSERVATION_ERROR, trajectory, time, field.geometry.size, _key(field.name))
                for field in self.space
            ],
            -1,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FieldSites) and (self.space, self.sites) == (other.space, other.sites)

    def __hash__(self) -> int:
        return hash((self.space, tuple(self.sites.items())))

    def __repr__(self) -> str:
        return f"FieldSites({self.sites})"


def _key(name: str) -> int:
    """A 32-bit number that is the key of a field's random draws."""
    return zlib.crc32(name.encode())
