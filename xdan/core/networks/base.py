"""What an analysis network is, and the registry that opens one by name."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class AnalysisNetwork(nn.Module, ABC):
    """The increment a_theta of Eq. 2 or 22, with the normalisation it was trained with.

    Attributes
    ----------
    name : str
        The name it is registered under.
    memory : int
        Latent channels per site that are carried from cycle to cycle.
    ensemble : bool
        Whether states are members, `members` of them, of shape (B, M, N).
    state_mean, state_std : Tensor, shape ()
        Climatological moments of a site of the state, in its units.
    error_std : Tensor, shape ()
        Typical observation error; the unit of increments, and its inverse that of projected innovations.
    """

    name: ClassVar[str]
    memory: int = 0
    ensemble: ClassVar[bool] = False
    members: int = 1
    state_mean: Tensor
    state_std: Tensor
    error_std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state_mean", torch.zeros(()))
        self.register_buffer("state_std", torch.ones(()))
        self.register_buffer("error_std", torch.ones(()))

    @abstractmethod
    def parameters_json(self) -> dict[str, Any]:
        """Plain JSON values from which `type(self)(**parameters)` makes the same architecture."""

    @abstractmethod
    def forward(self, x: Tensor, zeta: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Analysis from forecast and projected innovation.

        Parameters
        ----------
        x : Tensor, shape (B, N), or (B, M, N) for an ensemble network
            Forecast.
        zeta : Tensor, shape (B, N)
            Projected innovation.
        memory : Tensor, shape (B, n, N), optional
            Latent channels of the last cycle.

        Returns
        -------
        analysis : Tensor, shape of x
        memory : Tensor, shape (B, n, N), or None for a network without
        """

    @torch.no_grad()
    def normalise(self, mean: float, std: float, error_std: float) -> None:
        """Set the normalisation."""
        self.state_mean.fill_(mean)
        self.state_std.fill_(std)
        self.error_std.fill_(error_std)

    @property
    def reach(self) -> int | None:
        """Sites to each side, on the ring, that an output can depend on; None where it may be all."""
        return None

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Parameters that an optimiser for matrices may treat as such."""
        return []


_NETWORKS: dict[str, tuple[type[AnalysisNetwork], Mapping[str, Any]]] = {}


def register_network(cls: type[AnalysisNetwork]) -> type[AnalysisNetwork]:
    """Register a network class under its `name`."""
    _NETWORKS[cls.name] = cls, {}
    return cls


def register_preset(name: str, cls: type[AnalysisNetwork], **parameters: Any) -> None:
    """Register a class with some of its parameters set, under another name; it is saved under its own."""
    _NETWORKS[name] = cls, parameters


def network_parameters(name: str) -> set[str]:
    """Names of a registered network's parameters.

    Raises
    ------
    ValueError
        If the name is not registered.
    """
    if name not in _NETWORKS:
        raise ValueError(f"network {name!r} is unknown; known are {sorted(_NETWORKS)}")
    return set(inspect.signature(_NETWORKS[name][0]).parameters)


def network_by_name(name: str, parameters: Mapping[str, Any]) -> AnalysisNetwork:
    """Make a registered network, its weights at their random start.

    Raises
    ------
    ValueError
        If the name is not registered or a parameter is unknown; nothing is imported.
    """
    accepted = network_parameters(name)
    cls, preset = _NETWORKS[name]
    if unknown := set(parameters) - accepted:
        raise ValueError(f"network {name!r} has no parameters {sorted(unknown)}; it takes {sorted(accepted)}")
    return cls(**{**preset, **parameters})
