"""Covariances of large states as a few columns of a root. The columns follow the directions in which errors grow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..dynamics import Dynamics, ModelError
from ..observing import ObservingSystem
from ..roots import eigh_or_nan
from ..spaces import StateSpace
from .advancing import advance_along
from .gaussian_forecast import bends_along

_BENT = 4  # largest number of leading columns along which second derivatives are taken
_SEED = 12  # seed of the noise by which independent errors become columns


@dataclass(frozen=True)
class ColumnAnalysis:
    """Result of a Kalman update by columns.

    Attributes
    ----------
    covariance : Tensor, shape (B, 1 + k, N)
        P_a.
    increment : callable
        increment(d) gives K d, shape (B, N), for innovations d of shape (B, P). It is linear in d.
    """

    covariance: Tensor
    increment: Callable[[Tensor], Tensor]


class Columns:
    """Covariances D + S^T S of a space's states, as tensors (B, 1 + k, N).

    The first row holds the standard deviations of independent errors, the root of the diagonal D. The other k rows are
    S, the columns of a root. A filter begins with independent errors. Its first forecast replaces them by k random
    draws, which become the columns; from then on D is zero. The forecasts turn the columns towards the directions in
    which errors grow. Errors outside the span of the columns are assumed to have decayed.

    A forecast applies the tangent linear model to the columns and adds the second-order term. It keeps the k leading
    directions of the result. Directions are compared by their mean square over the area; each field is measured in
    units of its variance among the columns.

    Parameters
    ----------
    space : StateSpace
    count : int
        Number of columns k.
    device : torch.device

    References
    ----------
    Pham, Verron and Roubaud (1998), doi:10.1016/S0924-7963(97)00109-7, whose filter carries such a root; Trevisan and
    Palatella (2011), doi:10.5194/npg-18-243-2011, for the directions that suffice.
    """

    def __init__(self, space: StateSpace, count: int, device: torch.device) -> None:
        self.count = count
        generator = torch.Generator().manual_seed(_SEED)
        noise = torch.randn(count, space.size, generator=generator, dtype=torch.float64)
        self._noise = (noise / count**0.5).to(device)
        self._sizes = [field.geometry.size for field in space]
        self._weights = torch.cat([field.geometry.weights() for field in space]).to(self._noise)

    def diagonal(self, variance: Tensor) -> Tensor:
        """Independent errors of these variances (B, N)."""
        rows = variance.new_zeros(len(variance), 1 + self.count, variance.shape[1])
        rows[:, 0] = variance.sqrt()
        return rows

    def forecast(
        self, dynamics: Dynamics, x: Tensor, covariance: Tensor, steps: int, c2: float, most: Tensor
    ) -> Tensor:
        """M P M^T + c2 Q2(P), by columns.

        Q2 uses the `_BENT` leading columns: (1/2) sum over k, l of h_kl h_kl^T, h_kl = D^2 M[s_k, s_l]. It is
        shortened if the trace of the sum would exceed `most`.
        """
        if not steps:
            return covariance
        columns = covariance[:, 1:] + covariance[:, :1] * self._noise.to(covariance)
        columns = self._leading(columns) if c2 else columns
        _, moved = advance_along(dynamics, x, columns, steps)
        if c2:
            bends, weight = bends_along(dynamics, x, columns[:, :_BENT], steps)
            bent = bends * weight.sqrt()
            room = (most - moved.square().sum((1, 2))).clamp_min(0.0)
            wanted = c2 * bent.square().sum((1, 2))
            share = c2 * (room / wanted.clamp_min(torch.finfo(wanted.dtype).tiny)).clamp_max(1.0)
            moved = torch.cat([moved, share.sqrt()[:, None, None] * bent], 1)
        return torch.cat([torch.zeros_like(covariance[:, :1]), self._leading(moved)], 1)

    def with_errors(self, covariance: Tensor, error: ModelError) -> Tensor:
        """P + Q, by columns: the leading directions of the columns and of k draws from Q, which never change."""
        draws = error.from_noise(self._noise.to(covariance)).expand(len(covariance), -1, -1)
        return torch.cat([covariance[:, :1], self._leading(torch.cat([covariance[:, 1:], draws], 1))], 1)

    def analysis(self, x: Tensor, covariance: Tensor, observed: Tensor, observing: ObservingSystem) -> ColumnAnalysis:
        """Kalman update of states (B, N), where `observed` (B, P) says which observations there are.

        Write the error as e + S^T z, where e has the covariance D and z has unit covariance. If components are observed
        with independent errors, e acts on z like an additional observation error. After the analysis the covariance of
        z is therefore (I + S (R + D)^-1 S^T)^-1, and the covariance of e is D R / (R + D). For other observations D
        becomes columns first.
        """
        independent = observing.independent() if observing.direct else None
        deviation, columns = covariance[:, :1], covariance[:, 1:]
        if independent is None:
            columns, deviation = columns + deviation * self._noise.to(columns), torch.zeros_like(deviation)
            left = white = torch.ones_like(deviation)
            seen = observing.whiten(observing.tangent(x, columns), observed)
        else:
            precision = independent.whiten(torch.ones_like(x), observed)[:, None]  # 1 / standard deviation of R
            left = 1.0 / (1.0 + (precision * deviation).square())  # share of D, and of the columns, that stays
            white = precision * left.sqrt()
            seen = columns * white
        values, vectors = eigh_or_nan(seen @ seen.mT)
        shrunk = (vectors * (1.0 + values).rsqrt()[:, None]) @ vectors.mT
        inverse = (vectors / (1.0 + values)[:, None]) @ vectors.mT

        def increment(innovation: Tensor) -> Tensor:
            if independent is None:
                z = observing.whiten(innovation, observed)[:, None] @ seen.mT @ inverse
                return (z @ columns)[:, 0]
            d = torch.where(observed, innovation, torch.zeros_like(innovation))[:, None] * white
            z = d @ seen.mT @ inverse
            return (z @ columns + deviation.square() * white * (d - z @ seen))[:, 0]

        return ColumnAnalysis(torch.cat([deviation * left.sqrt(), shrunk @ (columns * left)], 1), increment)

    def pairs(self, covariance: Tensor, companions: Tensor) -> Tensor:
        """Covariances of each component with its companions (N, L), shape (B, N, L)."""
        columns, sites = covariance[:, 1:], torch.arange(covariance.shape[2], device=covariance.device)
        parts = []
        for others in companions.unbind(1):
            alone = torch.where(others == sites, covariance[:, 0].square(), 0.0)
            parts.append((columns * columns[:, :, others]).sum(1) + alone)
        return torch.stack(parts, -1)

    def shares(self, variance: Tensor) -> Tensor:
        """Weights of the components (..., N) by which directions are compared: area over variance of the field."""
        weights = self._weights.to(variance)
        parts = (weights * variance).split(self._sizes, -1)
        totals = torch.cat([part.sum(-1, keepdim=True).expand_as(part) for part in parts], -1)
        return weights / totals.clamp_min(torch.finfo(variance.dtype).tiny)

    def _leading(self, rows: Tensor) -> Tensor:
        """The k leading directions of rows (B, K, N), largest first, orthogonal by `shares`."""
        scaled = rows * self.shares(rows.square().sum(1)).sqrt()[:, None]
        _, vectors = eigh_or_nan(scaled @ scaled.mT)
        leading = vectors.flip(-1)[..., : self.count]
        return leading.mT @ rows
