"""Learned tapers of distance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..tapers import gaspari_cohn
from .site_statistics import FEATURES, PAIR_FEATURES

_LEAST = 1e-4  # first taper where that of Gaspari and Cohn is zero: with zero, no gradient would reach it
_STEP = 1e-3  # smallest first difference of the logarithm between two nodes
_BOUND = 2.0  # largest size of the correction c
_LEAST_WEIGHT = 1e-12  # weight of an observation beyond the taper's end, so that its root has a finite gradient


class LearnedTaper(nn.Module):
    """exp(-e^c b(d)): 1 at distance 0, never rising with the distance d, positive up to its end, and zero beyond.

    The cost b is piecewise linear between equally spaced nodes, b(0) = 0, and never falls. With `hidden`, a small
    network computes the correction c for each pair of a component and an observation, from statistics of the members.
    c lies between -2 and 2.

    Parameters
    ----------
    radius : float
        Radius of the taper of Gaspari and Cohn at the start: the taper is 5/24 there.
    end : float
        Distance of the last node.
    nodes : int
        Number of nodes, including the one at 0.
    hidden : int
        Number of units of the network of the correction; 0 for no correction.
    """

    def __init__(self, radius: float, end: float, nodes: int, hidden: int = 0) -> None:
        super().__init__()
        self.end, self.nodes = end, nodes
        places = torch.linspace(0.0, end, nodes, dtype=torch.float64)
        falls = (-gaspari_cohn(places, radius).clamp_min(_LEAST).log()).diff().clamp_min(_STEP)
        self.falls = nn.Parameter(falls.expm1().log().float())  # softplus of these values gives the falls
        self.pairs = nn.Linear(PAIR_FEATURES, hidden) if hidden else None
        if hidden:
            self.sites = nn.Linear(FEATURES, hidden, bias=False)
            self.last = nn.Linear(hidden, 1)
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def cost(self, distance: Tensor) -> Tensor:
        """Cost b(d), in the shape of the distances."""
        levels = nn.functional.pad(nn.functional.softplus(self.falls).cumsum(0), (1, 0))
        place = (distance / self.end).clamp(0.0, 1.0).to(levels) * (self.nodes - 1)
        below = place.floor().long().clamp_max(self.nodes - 2)
        share = place - below
        return levels[below] * (1 - share) + levels[below + 1] * share

    def forward(self, distance: Tensor, features: Tensor | None = None, pairs: Tensor | None = None) -> Tensor:
        """Taper at distances (n, P). With features (B, n, F) and pairs, a taper for each state, (B, n, P)."""
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
