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
    inflation : float, "tune" or "adaptive"
        Factor of the analysis anomalies; or one of the forecast's, which follows the innovations.
    rotate : bool
        Turn the anomalies at random after each analysis, the mean kept.
    spin_up : int
        First cycles that take the inflation which the finite-size prior asks for.
    model_noise : {"draws", "sqrt-core"}
        How a forecast takes up the covariance Q of the model's errors, where it has one: an error is drawn for every
        member, or the anomalies are transformed in their own space.
    relaxation : {"rtps", "rtpp"}, optional
        Bring the spread of the analysis ("rtps"), or its anomalies ("rtpp"), back towards those of the forecast.
    relaxation_factor : float or "tune"
        Share of the way back, from 0 to 1.
    inflation_std : float
        Standard deviation of the factor of the covariance before the innovations of a cycle are seen, for "adaptive".

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
