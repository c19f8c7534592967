"""Observing networks: which sites of the state are observed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import choice, integer, shown
from ..keywords import constructor_checks_keywords
from ..random import Purpose, normal, uniform

_KEYS: dict[str, tuple[str, ...]] = {"all": (), "every": ("step", "offset"), "random": ("low", "high")}


@constructor_checks_keywords
@dataclass(frozen=True)
class Sites:
    """An observing network that observes some of the state's sites directly.

    `Sites.all`, `Sites.every` and `Sites.random` make it.

    Parameters
    ----------
    kind : {"all", "every", "random"}
        The rule.
    step, offset : int
        For "every": the sites are offset, offset + step, ...
    low, high : int
        For "random": the number of sites at each time is drawn evenly from low to high, both included.

    Raises
    ------
    TypeError
        If the kind is not a string, or another parameter is not an integer.
    ValueError
        If the kind is unknown, or a number is out of range.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=3, observe=xdan.Sites.every(2))
    >>> ds.observation.notnull()[0, 0].values
    array([ True, False,  True, False,  True, False,  True, False])
    """

    kind: str
    step: int = 1
    offset: int = 0
    low: int = 0
    high: int = 0

    def __post_init__(self) -> None:
        choice("kind", self.kind, _KEYS)
        for label in ("step", "offset", "low", "high"):
            least = 1 if label == "step" else 0
            object.__setattr__(self, label, integer(label, getattr(self, label), least=least))
        if not self.offset < self.step:
            raise ValueError(f"step={self.step}, offset={self.offset}: expected 0 <= offset < step")
        if not self.low <= self.high:
            raise ValueError(f"low={self.low}, high={self.high}: expected 0 <= low <= high")

    def __repr__(self) -> str:
        parts = [getattr(self, key) for key in _KEYS[self.kind]]
        return f"Sites.{self.kind}({', '.join(map(str, parts))})"

    @classmethod
    def all(cls) -> Sites:
        """Every site."""
        return cls("all")

    @classmethod
    def every(cls, step: int, offset: int = 0) -> Sites:
        """Every `step`-th site of the flattened state, from `offset` on."""
        return cls("every", step=step, offset=offset)

    @classmethod
    def random(cls, low: int, high: int | None = None) -> Sites:
        """Distinct random sites, drawn anew at every time. Their number is drawn from low to high, both included."""
        return cls("random", low=low, high=low if high is None else high)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON description."""
        return {"name": "sites", "parameters": {key: getattr(self, key) for key in ("kind", *_KEYS[self.kind])}}

    @classmethod
    def from_json(cls, description: Mapping[str, Any]) -> Sites:
        """The observing network that a store names.

        Parameters
        ----------
        description : mapping
            It has "name" and "parameters"; other entries are ignored.

        Raises
        ------
        ValueError
            If it is not such a mapping, the name is unknown, or the parameters do not fit.
        """
        try:
            name = description.get("name") if isinstance(description, Mapping) else None
            if not isinstance(name, str) or name != "sites":
                raise ValueError(f"observing network {shown(name)} is unknown: expected 'sites'")
            parameters = description.get("parameters")
            if not isinstance(parameters, Mapping):
                raise ValueError(f"an observing network has parameters={shown(parameters)}: expected a mapping")
            kind = parameters.get("kind")
            known = {"kind", *_KEYS[choice("kind", kind, _KEYS)]}
            if set(parameters) != known:
                keys = sorted(map(str, parameters))
                raise ValueError(
                    f"an observing network of kind {kind!r} has parameters {keys}: expected {sorted(known)}"
                )
            return cls(**parameters)
        except (TypeError, RecursionError) as reason:
            raise ValueError(f"an observing network cannot be made as it is described: {reason}") from None

    def counts(self, sites: int) -> tuple[int, int]:
        """The smallest and the largest number of observations at a time, for this number of sites."""
        if self.kind == "random":
            return self.low, self.high
        count = len(range(self.offset, sites, self.step))
        return count, count

    def noise(self, sites: int, trajectory: Tensor, time: Tensor, seed: int) -> Tensor:
        """Standard normal numbers for the errors of all observations, shape (R, K, sites)."""
        return normal(seed, Purpose.OBSERVATION_ERROR, trajectory, time, sites)

    def mask(self, sites: int, trajectory: Tensor, time: Tensor, seed: int, stream: int = 0) -> Tensor:
        """Which sites are observed.

        Parameters
        ----------
        sites : int
            Number of sites of the flattened state.
        trajectory, time : Tensor of int64, shape (R,) and (K,)
            Labels that are the keys of the random draws.
        stream : int
            A further key, which differs between fields of a state.

        Returns
        -------
        Tensor of bool, shape (R, K, sites)

        Raises
        ------
        ValueError
            If there are fewer sites than the rule needs.
        """
        shape = (len(trajectory), len(time), sites)
        if self.kind == "all":
            return torch.ones(shape, dtype=torch.bool, device=trajectory.device)
        if self.kind == "every":
            if self.step > sites:
                raise ValueError(f"every {self.step}-th of {sites} sites: expected step <= {sites}")
            index = torch.arange(sites, device=trajectory.device)
            return (index % self.step == self.offset).expand(shape)
        if self.high > sites:
            raise ValueError(f"random sites, up to {self.high} of {sites}: expected high <= {sites}")
        u = uniform(seed, Purpose.OBSERVED_SITES, trajectory, time, sites + 1, stream)
        count = self.low + (u[..., -1:] * (self.high - self.low + 1)).floor()
        rank = u[..., :-1].argsort(-1).argsort(-1)
        return rank < count
