"""The stochastic ensemble Kalman filter."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ..observing import ObservingSystem
from .adaptive import AdaptiveEnsemble
from .backward import PRIOR_INFLATION
from .ensemble import Precision, centre, compare
from .finite_size import effective_zeta
from .record import State
from .registry import register_method


@register_method
class StochasticEnKF(AdaptiveEnsemble):
    """Ensemble Kalman filter with perturbed observations.

    Parameters
    ----------
    members : int
    inflation : float, "tune" or "adaptive"
        Factor of the analysis anomalies; or one of the forecast's, which follows the innovations.
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
    Burgers, van Leeuwen and Evensen (1998), doi:10.1175/1520-0493(1998)126<1719:ASITEK>2.0.CO;2.
    """

    name: ClassVar[str] = "enkf"

    def update(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Draw each member to observations that are perturbed for it; the perturbations have zero mean."""
        x, (b, m, _) = state["x"], state["x"].shape
        drawn = self.draw(state, m * observation.shape[1]).reshape(b, m, -1)
        _, noise = centre(observing.errors_from(drawn))
        noise = noise * math.sqrt(m / (m - 1))
        mean, anomalies = centre(x)
        prior = x.new_ones(len(x))
        if self.spins_up(state):
            zeta = effective_zeta(Precision(*compare(x, observation, observed, observing)), m, capped=True)
            prior = self.prior_inflation(zeta, x)
            anomalies = anomalies * prior[:, None, None]
            x = mean + anomalies
        s, _ = compare(x, observation, observed, observing)
        innovation = observing.whiten(observation[:, None] + noise - observing.observe(x), observed)
        p = s @ s.mT + (m - 1) * torch.eye(m, dtype=x.dtype, device=x.device)
        weights = torch.linalg.solve(p, s @ innovation.mT)
        mean, anomalies = centre(x + weights.mT @ anomalies)
        return {**state, "x": mean + self.factor * anomalies, PRIOR_INFLATION: prior}
