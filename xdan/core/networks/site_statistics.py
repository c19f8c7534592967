"""What a learned filter reads of its members and observations near each site."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_SMALL = 1e-6  # added to variances, in units of the observation error's: keeps logarithms finite if members coincide
_TYPICAL = 20  # number of members whose feature is zero
FEATURES = 5
PAIR_FEATURES = 3
KEPT = 0.9  # share of the running consistency that remains in the next cycle


@dataclass(frozen=True)
class Seen:
    """An ensemble's forecast in the observation space of one time, in units of the observation errors.

    Attributes
    ----------
    anomalies : Tensor, shape (B, M, P)
        R^{-1/2} of the anomalies of H(x), zero where nothing is observed.
    innovation : Tensor, shape (B, P)
        R^{-1/2} (y - mean of H(x)), zero where nothing is observed.
    observed : Tensor, shape (B, P)
        1 where there is an observation, 0 elsewhere.
    distance : Tensor, shape (N, P), or None
        Distances between components and observations.
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
    """Statistics of the members and the innovations near each site. The order of the members has no effect.

    Parameters
    ----------
    spread : Tensor, shape (B, N)
        Forecast variance of each component, in units of its observation error's variance.
    seen : Seen
    weight : Tensor, shape (N, P)
        Weight of each observation at each site, between 0 and 1.
    running : Tensor, shape (B, N)
        Running consistency of the earlier cycles; 1 at the start.

    Returns
    -------
    features : Tensor, shape (B, N, FEATURES)
        Five features: the logarithms of the spread; of this cycle's consistency
        c = (1 + sum t d^2) / (1 + sum t (1 + s^2)), with the whitened innovation d, its forecast variance s^2 and the
        weight t; of the running consistency; and of the information 1 + sum t s^2; and (M - 1) / 19 as a logarithm.
    running : Tensor, shape (B, N)
        The running consistency, including this cycle.
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
    """Statistics of each pair of a component and an observation. The order of the members has no effect.

    Parameters
    ----------
    anomalies : Tensor, shape (B, M, n)
        Anomalies of some components.
    seen : Seen
    distance : Tensor, shape (n, P)
        Distances, in units of the distance at which the taper ends.

    Returns
    -------
    Tensor, shape (B, n, P, PAIR_FEATURES)
        Size |r| of the sample correlation; a third of (M - 1) r^2, which is at most 9 here; and the distance. Under
        independence the mean of (M - 1) r^2 is 1.
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
