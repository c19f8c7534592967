"""Tapers of distance that are learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..tapers import gaspari_cohn
from .site_statistics import FEATURES, PAIR_FEATURES

_LEAST = 1e-4  # taper of the start, where Gaspari's and Cohn's is zero: no gradient would reach it there
_STEP = 1e-3  # least fall of the logarithm between two nodes at the start
_BOUND = 2.0  # of the logarithm of what multiplies the taper's own
_LEAST_WEIGHT = 1e-12  # of an observation beyond the taper's end: its root has a finite gradient


class LearnedTaper(nn.Module):
    """exp(-e^c b(d)): 1 at distance 0, monotone in the distance d, positive up to its end, and zero beyond.

    The cost b is piecewise linear between equally spaced nodes, b(0) = 0, and never falls. The correction c, where
    there is one, is made by a small network for each pair of a component and an observation, from statistics of the
    members; it lies between -2 and 2.

    Parameters
    ----------
    radius : float
        The taper begins as that of Gaspari and Cohn, 5/24 there.
    end : float
        Distance of the last node.
    nodes : int
        How many, the one at 0 included.
    hidden : int
        Units of the network of the correction; 0 for none.
    """

    def __init__(self, radius: float, end: float, nodes: int, hidden: int = 0) -> None:
        super().__init__()
        self.end, self.nodes = end, nodes
        places = torch.linspace(0.0, end, nodes, dtype=torch.float64)
        falls = (-gaspari_cohn(places, radius).clamp_min(_LEAST).log()).diff().clamp_min(_STEP)
        self.falls = nn.Parameter(falls.expm1().log().float())  # softplus gives them back
        self.pairs = nn.Linear(PAIR_FEATURES, hidden) if hidden else None
        if hidden:
            self.sites = nn.Linear(FEATURES, hidden, bias=False)
            self.last = nn.Linear(hidden, 1)
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def cost(self, distance: Tensor) -> Tensor:
        """b(d), of the shape of the distances."""
        levels = nn.functional.pad(nn.functional.softplus(self.falls).cumsum(0), (1, 0))
        place = (distance / self.end).clamp(0.0, 1.0).to(levels) * (self.nodes - 1)
        below = place.floor().long().clamp_max(self.nodes - 2)
        share = place - below
        return levels[below] * (1 - share) + levels[below + 1] * share

    def forward(self, distance: Tensor, features: Tensor | None = None, pairs: Tensor | None = None) -> Tensor:
        """The taper at distances (n, P), or for each of a batch, (B, n, P), from features (B, n, F) and of pairs."""
        cost = self.cost(distance)
        if self.pairs is not None and features is not None:
            hidden = torch.tanh(self.pairs(pairs) + self.sites(features)[..., None, :])
            cost = cost * (_BOUND * torch.tanh(self.last(hidden)[..., 0] / _BOUND)).exp()
        return torch.where(distance <= self.end, (-cost).exp().clamp_min(_LEAST_WEIGHT), _LEAST_WEIGHT)


class FixedTaper(nn.Module):
    """The taper of Gaspari and Cohn.

    Parameters
    ----------
    radius : float
    """

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius, self.end, self.pairs = radius, 2.0 * radius, None

    def forward(self, distance: Tensor, features: Tensor | None = None, pairs: Tensor | None = None) -> Tensor:
        """The taper at distances (n, P)."""
        return gaspari_cohn(distance, self.radius).clamp_min(_LEAST_WEIGHT)
