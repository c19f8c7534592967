"""Variances of model errors, estimated from the innovations of each cycle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..observing import ObservingSystem
from .record import State

KINDS = ("diagonal", "scalar")
_PRIOR = 10.0  # weight, in cycles, of the mean over components in the estimate of each component


@dataclass(frozen=True)
class ErrorEstimate:
    """Estimate Q_k of K models as the mean of d_k d_k^T - R - H P H^T; only the diagonal is kept.

    Entries of the state hold the sums and the numbers of terms; earlier cycles fade out. Some components are seldom
    observed. Their variances are drawn to the mean over all components, which counts like 10 cycles. Negative results
    are set to zero.

    Attributes
    ----------
    kind : {"diagonal", "scalar"}
    averaging : int
        Number of cycles after which the weight of an innovation is 1 / e.

    References
    ----------
    Mitchell and Houtekamer (2000), doi:10.1175/1520-0493(2000)128<0416:AAEKF>2.0.CO;2, for errors from innovations.
    """

    kind: str
    averaging: int

    def start(self, zero: Tensor) -> State:
        """Entries of a state before any innovation. `zero` are zeros of shape (B, K, N)."""
        return {"error_sums": zero, "error_counts": zero}

    def updated(
        self,
        state: State,
        means: Tensor,
        shared: Tensor,
        observation: Tensor,
        observed: Tensor,
        observing: ObservingSystem,
    ) -> State:
        """Entries after the innovations of a cycle.

        Parameters
        ----------
        state : dict of Tensor
        means : Tensor, shape (B, K, N)
            Forecast mean of each model.
        shared : Tensor, shape (B, N, N)
            P, the part of the error that the forecasts of all models share.
        observation, observed : Tensor, shape (B, P)
        observing : ObservingSystem
        """
        innovation = torch.where(observed[:, None], observation[:, None] - observing.observe(means), 0.0)
        if self.kind == "scalar":
            terms, counts = self._scalar(innovation, means, shared, observed, observing)
        else:
            excess = innovation.square() - (observing.error_variance() + shared.diagonal(dim1=1, dim2=2))[:, None]
            counts = observed[:, None].to(excess).expand_as(excess)
            terms = excess * counts
        fading = 1.0 - 1.0 / self.averaging
        return {
            "error_sums": fading * state["error_sums"] + terms,
            "error_counts": fading * state["error_counts"] + counts,
        }

    def variances(self, state: State) -> Tensor:
        """Diagonals of Q_k, shape (B, K, N)."""
        sums, counts = state["error_sums"], state["error_counts"]
        typical = sums.sum(2, keepdim=True) / counts.sum(2, keepdim=True).clamp_min(1.0)
        variances = (sums + _PRIOR * typical) / (counts + _PRIOR)
        if self.kind == "scalar":
            variances = typical.expand_as(variances)
        return variances.clamp_min(0.0)

    def _scalar(
        self, innovation: Tensor, means: Tensor, shared: Tensor, observed: Tensor, observing: ObservingSystem
    ) -> tuple[Tensor, Tensor]:
        """|R^{-1/2} d|^2 minus its mean without model errors, and tr(R^{-1} H H^T), both over N, at each component."""
        b, k, n = means.shape
        white = observing.whiten(innovation, observed).square().sum(2)

        def trace(covariance: Tensor) -> Tensor:
            half = observing.whiten(observing.observed_covariances(means[:, 0], covariance, observed)[1], observed)
            return observing.whiten(half.mT.contiguous(), observed).diagonal(dim1=1, dim2=2).sum(1)

        unit = torch.eye(n, dtype=means.dtype, device=means.device).expand(b, n, n)
        excess = white - (observed.sum(1) + trace(shared))[:, None]
        counts = trace(unit)[:, None].expand(b, k)
        return (excess / n)[..., None].expand(b, k, n), (counts / n)[..., None].expand(b, k, n)
