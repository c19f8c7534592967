"""What a learned filter reads of its members and observations near every site."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_SMALL = 1e-6  # of a variance, in those of the observation error: keeps logarithms finite where members coincide
_TYPICAL = 20  # members whose number counts as zero
FEATURES = 5
PAIR_FEATURES = 3
KEPT = 0.9  # share of the running consistency that stays from cycle to cycle


@dataclass(frozen=True)
class Seen:
    """What the observations of a time see of an ensemble's forecast, in units of their errors.

    Attributes
    ----------
    anomalies : Tensor, shape (B, M, P)
        R^{-1/2} of the anomalies of H(x), zero where nothing is observed.
    innovation : Tensor, shape (B, P)
        R^{-1/2} (y - mean of H(x)), zero where nothing is observed.
    observed : Tensor, shape (B, P)
        1 where there is an observation, 0 elsewhere.
    distance : Tensor, shape (N, P), or None
        Between components and observations.
    """

    anomalies: Tensor
    innovation: Tensor
    observed: Tensor
    distance: Tensor | None = None

    @property
    def variance(self) -> Tensor:
        """Forecast variance of each observation, in units of its error, (B, P)."""
        return self.anomalies.square().sum(1) / (self.anomalies.shape[1] - 1)


def site_features(spread: Tensor, seen: Seen, weight: Tensor, running: Tensor) -> tuple[Tensor, Tensor]:
    """Statistics of the members and the innovations near every site; no member's place matters.

    Parameters
    ----------
    spread : Tensor, shape (B, N)
        Forecast variance of every component, in units of its observation error.
    seen : Seen
    weight : Tensor, shape (N, P)
        How much each observation counts at each site, between 0 and 1.
    running : Tensor, shape (B, N)
        The consistency of the cycles before, 1 at the start.

    Returns
    -------
    features : Tensor, shape (B, N, FEATURES)
        Logarithms of the spread; of this cycle's consistency c = (1 + sum t d^2) / (1 + sum t (1 + s^2)), with the
        whitened innovation d, its forecast variance s^2 and the weight t; of the running consistency; of 1 + sum t s^2,
        the information; and of the members' number less 1, over 19.
    running : Tensor, shape (B, N)
        The running consistency, this cycle included.
    """
    variance = seen.variance
    near = weight.T.to(spread)
    squares = 1.0 + seen.innovation.square() @ near
    expected = 1.0 + ((1.0 + variance) * seen.observed) @ near
    consistency = squares / expected
    running = KEPT * running + (1.0 - KEPT) * consistency
    information = torch.log1p(variance @ near)
    count = members_feature(seen.anomalies.shape[1])
    columns = [0.5 * (spread + _SMALL).log(), consistency.log(), running.log(), information]
    return torch.stack([*columns, torch.full_like(spread, count)], -1), running


def pair_features(anomalies: Tensor, seen: Seen, distance: Tensor) -> Tensor:
    """Statistics of every pair of a component and an observation; no member's place matters.

    Parameters
    ----------
    anomalies : Tensor, shape (B, M, n)
        Of some components.
    seen : Seen
    distance : Tensor, shape (n, P)
        In units of the distance at which the taper ends.

    Returns
    -------
    Tensor, shape (B, n, P, PAIR_FEATURES)
        Size and square of the sample correlation, the latter in units of its mean under independence, 1 / (M - 1), at
        most 9 of them, and the distance.
    """
    m = anomalies.shape[1]
    scale = (anomalies.square().sum(1) + _SMALL).rsqrt()[..., None]
    seen_scale = (seen.anomalies.square().sum(1) + _SMALL).rsqrt()[:, None]
    correlation = (anomalies.mT @ seen.anomalies) * scale * seen_scale
    square = correlation.square()
    relative = ((m - 1) * square).clamp_max(9.0) / 3.0
    return torch.stack([(square + _SMALL).sqrt(), relative, distance.to(correlation).expand_as(correlation)], -1)


def members_feature(members: int) -> float:
    """The number of members as a feature."""
    return math.log((members - 1) / (_TYPICAL - 1))
