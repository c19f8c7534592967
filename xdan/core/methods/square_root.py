"""The symmetric square root ensemble Kalman filter."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from ..checks import switch
from ..observing import ObservingSystem
from .adaptive import AdaptiveEnsemble
from .backward import PRIOR_INFLATION
from .ensemble import Precision, centre, compare
from .record import State
from .registry import register_method


@register_method
class ETKF(AdaptiveEnsemble):
    """Ensemble transform Kalman filter, symmetric square root.

    Parameters
    ----------
    members : int
        Ensemble size M, at least 2.
    inflation : float, "tune" or "adaptive"
        Factor by which the analysis anomalies are multiplied. "adaptive": a factor of the forecast anomalies, which
        follows the innovations.
    rotate : bool
        Rotate the anomalies at random after each analysis, such that the members keep their mean.
    spin_up : int
        Number of first cycles whose inflation comes from the finite-size prior of the EnKF-N.
    model_noise : {"draws", "sqrt-core"}
        How the forecast includes the covariance Q of the model's errors, if the model has one. "draws" draws an error
        for each member. "sqrt-core" transforms the anomalies within the space of the members.
    relaxation : {"rtps", "rtpp"}, optional
        Move the spread ("rtps") or the anomalies ("rtpp") of the analysis towards the forecast. By default neither.
    relaxation_factor : float or "tune"
        How far the relaxation goes: 0 is the analysis, 1 is the forecast.
    inflation_std : float
        For "adaptive": standard deviation of the factor of the covariance before the innovations of a cycle are known.

    References
    ----------
    Bishop, Etherton and Majumdar (2001); Hunt et al. (2007), doi:10.1016/j.physd.2006.11.008; rotations: Sakov and
    Oke (2008), doi:10.1175/2007MWR2021.1.
    """

    name: ClassVar[str] = "etkf"

    def __init__(
        self,
        members: int = 40,
        inflation: float | str = 1.01,
        rotate: bool = False,
        spin_up: int = 100,
        model_noise: str = "draws",
        **parameters: Any,
    ) -> None:
        super().__init__(members, inflation, spin_up, model_noise, **parameters)
        self.rotate = switch("rotate", rotate)

    def update(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One analysis in the space of the members."""
        m = self.members
        mean, anomalies = centre(state["x"])
        precision = Precision(*compare(state["x"], observation, observed, observing))
        zeta = self.zeta(precision, state)
        weights, root = precision.solve(zeta)
        root = self.factor * math.sqrt(m - 1) * root
        x = mean + (weights[:, None] + (self.turned(root, state) if self.rotate else root)) @ anomalies
        return {**state, "x": x, PRIOR_INFLATION: self.prior_inflation(zeta, x)}
