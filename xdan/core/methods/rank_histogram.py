"""The rank histogram filter: its posterior in observation space need not be Gaussian."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .registry import register_method
from .serial import SerialFilter


@register_method
class RankHistogramFilter(SerialFilter):
    """Rank histogram filter: members in observation space become quantiles of prior times likelihood.

    In observation space, M members cut the line into M + 1 parts. Each part has the prior probability 1 / (M + 1). The
    prior is uniform between two members. Beyond the outermost members it is the tail of a Gaussian with the ensemble's
    standard deviation. Between two members the likelihood is the mean of its values at both; in the tails, prior and
    likelihood are multiplied exactly. The member of rank k becomes the quantile k / (M + 1) of the posterior. The
    changes of the members are regressed on the state, as in the EAKF. `SerialFilter` describes the parameters and the
    errors raised.

    References
    ----------
    Anderson (2010), doi:10.1175/2010MWR3253.1.
    """

    name: ClassVar[str] = "rank-histogram"

    def moved(self, h: Tensor) -> Tensor:
        """Quantiles of the posterior, in double precision."""
        return posterior_quantiles(h.double()).to(h)


def posterior_quantiles(h: Tensor) -> Tensor:
    """Members after an observation of 0 with error variance 1, by the rank histogram filter.

    Parameters
    ----------
    h : Tensor of float64, shape (B, M)

    Returns
    -------
    Tensor of float64, shape (B, M)
        In the order of `h`.
    """
    count = h.shape[1]
    v, order = h.sort(1)
    part = h.new_tensor(1 / (count + 1))
    variance = h.var(1, keepdim=True)
    std = variance.sqrt()
    tail = torch.special.ndtri(part)
    shrink = 1 / (1 + variance)
    # Each tail is mirrored to a left tail: members are multiplied by `sign`.
    sign = h.new_tensor([1.0, -1.0])
    edge = sign * v[:, [0, -1]]
    mean = edge - std * tail  # mean of the Gaussian that has the probability 1 / (M + 1) below the edge
    centre, width = shrink * mean, shrink.sqrt() * std  # mean and deviation of its product with the likelihood
    below = torch.special.log_ndtr((edge - centre) / torch.where(width > 0, width, 1.0))
    tails = 0.5 * shrink.log() - 0.5 * shrink * mean.square() + below
    log_likelihood = -0.5 * v.square()
    between = torch.logaddexp(log_likelihood[:, :-1], log_likelihood[:, 1:]) + (0.5 * part).log()
    logs = torch.cat([tails[:, :1], between, tails[:, 1:]], 1)
    mass = (logs - logs.amax(1, keepdim=True)).exp()
    mass = mass / mass.sum(1, keepdim=True)
    total = torch.cat([torch.zeros_like(mass[:, :1]), mass.cumsum(1)], 1)  # (B, M + 2)
    wanted = part * torch.arange(1, count + 1, dtype=h.dtype, device=h.device).expand(h.shape)
    place = torch.searchsorted(total[:, 1:-1].contiguous(), wanted.contiguous())  # places 0 and M are the tails
    inside = place.clamp(1, count - 1)
    low, high, held = v.gather(1, inside - 1), v.gather(1, inside), mass.gather(1, inside)
    share = (wanted - total.gather(1, inside)) / torch.where(held > 0, held, 1.0)
    value = low + share.clamp(0.0, 1.0) * (high - low)
    for side, here, beyond in ((0, place == 0, wanted), (1, place == count, 1 - wanted)):
        log_mass = mass[:, [0, -1]][:, [side]].clamp_min(torch.finfo(h.dtype).tiny).log()
        # Members outside the tail take a finite number here, because an infinite number would spoil derivatives.
        share = torch.where(here, (beyond.log() - log_mass + below[:, [side]]).exp(), 0.5)
        quantile = torch.special.ndtri(share.clamp_max(1.0))
        at = centre[:, [side]] + width * quantile
        at = torch.where(at.isfinite(), at, edge[:, [side]]).minimum(edge[:, [side]])
        value = torch.where(here, sign[side] * at, value)
    value = torch.where(std > 0, value, v)
    return torch.empty_like(h).scatter(1, order, value)
