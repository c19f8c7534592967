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
    """Deterministic ensemble Kalman filter: x_a = x_f + K (y - H x_f) for the mean, X_a = X_f - K H X_f / 2 beside.

    The anomalies' covariance is P_f - K H P_f + K H P_f H^T K^T / 4: larger than the Kalman filter's, by a term that is
    small where K H is. This acts as an inflation. Nothing is drawn. With a radius it is a local analysis, as the LETKF:
    each site has a gain, of the observations nearby with tapered R^{-1}.

    Parameters
    ----------
    members : int
    radius : float, "tune" or None
        c of Gaspari and Cohn, for a local analysis at every site. None takes all observations everywhere.
    inflation : float, "tune" or "adaptive"
        Factor of the analysis anomalies.
    spin_up : int
        First cycles that take the inflation which the finite-size prior asks for.
    model_noise : {"draws", "sqrt-core"}
        How a forecast takes up the model's errors, as for `EnsembleMethod`.
    relaxation, relaxation_factor, inflation_std
        As for `AdaptiveEnsemble`.

    Raises
    ------
    TypeError
        For arguments of another type.
    ValueError
        For numbers out of range; with a radius, if the dynamics has no distance, or observations have no positions.

    References
    ----------
    Sakov and Oke (2008), doi:10.1111/j.1600-0870.2007.00299.x, Eq. 14 and 15.
    """

    name: ClassVar[str] = "denkf"

    def __init__(self, members: int = 40, radius: float | str | None = None, **parameters: Any) -> None:
        super().__init__(members, radius, **parameters)

    def transform(self, precision: Precision, state: State) -> tuple[Tensor, Tensor]:
        """T = I - G / 2, G = S S^T P^-1 = I - zeta P^-1 the gain among members; zeta < M - 1 inflates the forecast."""
        zeta = self.zeta(precision, state)
        weights, root = precision.solve(zeta)
        shape = zeta[..., None, None] if isinstance(zeta, Tensor) else torch.as_tensor(zeta).to(root)
        identity = torch.eye(self.members, dtype=root.dtype, device=root.device)
        scale = 0.5 * self.factor * ((self.members - 1) / shape).sqrt()
        return weights, scale * (identity + shape * (root @ root))
