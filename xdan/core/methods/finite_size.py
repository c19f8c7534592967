"""The finite-size ensemble Kalman filter, EnKF-N: no inflation to tune."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..observing import ErrorCovariance
from .base import State, register_method
from .ensemble import EnsembleMethod

_BISECTIONS = 30


@register_method("enkf-n")
class FiniteSizeEnKF(EnsembleMethod):
    """Dual EnKF-N, by default capped so that it never deflates.

    The ensemble's own uncertainty about mean and covariance enters through a prior whose dual form has one
    scalar, zeta; the analysis is that of a square-root EnKF with inflation sqrt((M - 1) / zeta).

    Parameters
    ----------
    members : int
        Ensemble size M, at least 2.
    capped : bool
        Search zeta in (0, M - 1] (the practical Dirac-Jeffreys form); otherwise in (0, (M + 1) / eps].

    References
    ----------
    Bocquet (2011), doi:10.5194/npg-18-735-2011; Bocquet, Raanes and Hannart (2015),
    doi:10.5194/npg-22-645-2015, Sect. 4 for the dual and 5 for the cap.
    """

    outputs: ClassVar[dict[str, str]] = {**EnsembleMethod.outputs, "inflation": "cycle"}

    def __init__(self, members: int = 40, capped: bool = True) -> None:
        super().__init__(members)
        self.capped = bool(capped)

    def parameters(self) -> dict[str, Any]:
        """Plain JSON parameters."""
        return {"members": self.members, "capped": self.capped}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, error: ErrorCovariance) -> State:
        """One analysis, symmetric square root."""
        x = state["x"]
        m = self.members
        mean = x.mean(1, keepdim=True)
        anomalies = x - mean
        s = error.whiten(anomalies, observed)
        innovation = error.whiten(observation - mean[:, 0], observed)
        # Left singular vectors and squared singular values of the whitened anomalies.
        values, u = torch.linalg.eigh(s @ s.mT)
        values = values.clamp_min(0.0)
        c = ((s @ innovation[..., None]).mT @ u)[:, 0]
        zeta = dual_minimum(values, c, m, self.capped)[:, None]
        shrunk = zeta + values
        weights = (u @ (c / shrunk)[..., None]).mT
        root = (u * ((m - 1) / shrunk).sqrt()[:, None]) @ u.mT
        # The uniform vector is an eigenvector of value 0, which `root` would inflate: the anomalies' mean is zero.
        analysis = mean + weights @ anomalies + root @ anomalies
        return {**state, "x": analysis, "inflation": ((m - 1) / zeta[:, 0]).sqrt()}

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Spread and inflation."""
        return {**super().analysis_outputs(state), "inflation": state["inflation"]}


def dual_minimum(values: Tensor, c: Tensor, members: int, capped: bool) -> Tensor:
    """Minimise the dual cost over zeta.

    D(zeta) = sum_k d_k^2 / (1 + s_k^2 / zeta) + eps zeta - (M + 1) ln zeta, eps = M / (M - 1), with s the singular
    values of the whitened anomalies and d = c / s the rotated innovation. The part of the innovation outside the
    anomalies' span does not depend on zeta.

    Parameters
    ----------
    values : Tensor, shape (B, M)
        s^2.
    c : Tensor, shape (B, M)
        s d.
    members : int
        M.
    capped : bool
        Search up to M - 1 instead of (M + 1) / eps, beyond which D only grows.

    Returns
    -------
    Tensor, shape (B,)
    """
    m = members
    eps = m / (m - 1)
    squared = c**2

    def slope(zeta: Tensor) -> Tensor:
        """Return zeta dD/dzeta."""
        sum_term = (squared / (zeta[:, None] + values) ** 2).sum(1)
        return zeta * sum_term + eps * zeta - (m + 1)

    top = float(m - 1) if capped else (m + 1) / eps
    high = torch.full_like(values[:, 0], top)
    low = high * 1e-6
    for _ in range(_BISECTIONS):
        middle = (low * high).sqrt()
        rising = slope(middle) > 0
        high, low = torch.where(rising, middle, high), torch.where(rising, low, middle)
    return high
