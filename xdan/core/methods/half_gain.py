"""The deterministic ensemble Kalman filter, whose anomalies take half of the gain."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .ensemble import Precision
from .local import TransformFilter
from .record import State
from .registry import register_method


@register_method
class DEnKF(TransformFilter):
    """Deterministic ensemble Kalman filter: mean x_a = x_f + K (y - H x_f), anomalies X_a = X_f - K H X_f / 2.

    The covariance of the analysis anomalies is P_f - K H P_f + K H P_f H^T K^T / 4. It is larger than the Kalman
    filter's by the last term, which is small where K H is small. This term acts as an inflation. No random numbers are
    drawn. With a radius the analysis is local, as in the LETKF: each site has a gain, which uses the observations
    nearby with tapered R^{-1}.

    Parameters
    ----------
    members : int
        Ensemble size M, at least 2.
    radius : float, "tune" or None
        Localisation radius c of Gaspari and Cohn, for a local analysis at each site. None uses all observations
        everywhere.
    inflation : float, "tune" or "adaptive"
        Factor by which the analysis anomalies are multiplied.
    spin_up : int
        Number of first cycles whose inflation comes from the finite-size prior of the EnKF-N.
    model_noise : {"draws", "sqrt-core"}
        How the forecast includes the model's errors; see `EnsembleMethod`.
    relaxation, relaxation_factor, inflation_std
        See `AdaptiveEnsemble`.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If a number is out of range; with a radius, if the dynamics has no distance or observations have no positions.

    References
    ----------
    Sakov and Oke (2008), doi:10.1111/j.1600-0870.2007.00299.x, Eq. 14 and 15.
    """

    name: ClassVar[str] = "denkf"

    def __init__(self, members: int = 40, radius: float | str | None = None, **parameters: Any) -> None:
        super().__init__(members, radius, **parameters)

    def transform(self, precision: Precision, state: State) -> tuple[Tensor, Tensor]:
        """T = I - G / 2 with the members' gain G = S S^T P^-1 = I - zeta P^-1; zeta < M - 1 inflates the forecast."""
        zeta = self.zeta(precision, state)
        weights, root = precision.solve(zeta)
        shape = zeta[..., None, None] if isinstance(zeta, Tensor) else torch.as_tensor(zeta).to(root)
        identity = torch.eye(self.members, dtype=root.dtype, device=root.device)
        scale = 0.5 * self.factor * ((self.members - 1) / shape).sqrt()
        return weights, scale * (identity + shape * (root @ root))
