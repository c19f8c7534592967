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
        Ensemble size M, at least 2.
    inflation : float, "tune" or "adaptive"
        Factor by which the analysis anomalies are multiplied. "adaptive": a factor of the forecast anomalies, which
        follows the innovations.
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
    Burgers, van Leeuwen and Evensen (1998), doi:10.1175/1520-0493(1998)126<1719:ASITEK>2.0.CO;2.
    """

    name: ClassVar[str] = "enkf"

    def update(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Update each member with observations that are perturbed for this member; the perturbations have zero mean."""
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
