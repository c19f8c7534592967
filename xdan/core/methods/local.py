"""Ensemble transform filters, with one transform for the whole state or one at each site. One of them is the LETKF."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..observing import ObservingSystem
from .arguments import number_or_tune
from .backward import PRIOR_INFLATION, BackwardPass
from .declarations import Tunable
from .ensemble import Precision, centre, compare
from .localised import LOCAL_WEIGHTS, RADII, LocalEnsemble, LocalObservations
from .record import State
from .registry import register_method


class TransformFilter(LocalEnsemble):
    """A filter whose analysis members are combinations of forecast members. With a radius each site has a combination.

    An observation whose taper is t counts as if it had an additional error, which raises its variance r to r / t. A
    diagonal R^{-1} is thus multiplied by the taper. Correlated errors stay correlated: R + diag(R) (1/t - 1) of the
    observations nearby equals R where t is 1, and leaves out distant observations.

    A subclass gives `transform`.
    """

    @abstractmethod
    def transform(self, precision: Precision, state: State) -> tuple[Tensor, Tensor]:
        """Combinations of the anomalies that make the analysis.

        Parameters
        ----------
        precision : Precision
            Posterior precision of the weights of M members, in a batch of shape (...).
        state : dict of Tensor

        Returns
        -------
        weights : Tensor, shape (..., M)
            Weights of the anomalies in the increment of the mean.
        turned : Tensor, shape (..., M, M)
            Row i gives the analysis anomaly of member i, inflated by `factor`.
        """

    def update(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Local analyses in batches of some thousands; without a radius, one analysis of the whole state."""
        x, localisation = state["x"], self.localisation(observing)
        mean, anomalies = centre(x)
        if localisation is None:
            precision = Precision(*compare(x, observation, observed, observing))
            weights, turned = self.transform(precision, state)
            prior = self.prior_inflation(self.zeta(precision, state), mean)
            return {**state, "x": mean + (weights[:, None] + turned) @ anomalies, PRIOR_INFLATION: prior}
        local = LocalObservations(x, observation, observed, observing, localisation.near)
        parts = []
        for sites in torch.arange(x.shape[2], device=x.device).split(local.at_once):
            weights, turned = self.transform(Precision(*local.at(sites)), state)
            combined = weights[..., None] + turned.mT
            # Member i of the analysis at site n: mean + sum_j anomalies[j, n] combined[n, j, i].
            parts.append((anomalies[:, :, sites].permute(0, 2, 1)[:, :, None] @ combined)[:, :, 0])
        return {**state, "x": mean + torch.cat(parts, 1).mT}


@register_method
class LETKF(TransformFilter):
    """LETKF: an ETKF at each site, which uses the observations nearby. A Gaspari-Cohn function of distance tapers them.

    Observations lie at the state's sites, or at the positions that the observing system knows; these may move in time.
    An observation whose taper is t counts as if it had an additional error, which raises its variance r to r / t. A
    diagonal R^{-1} is thus multiplied by the taper. Correlated errors stay correlated: R + diag(R) (1/t - 1) of the
    observations nearby equals R where t is 1, and leaves out distant observations.

    Parameters
    ----------
    members : int
        Ensemble size M, at least 2.
    radius : float or "tune"
        Localisation radius c of Gaspari and Cohn, in the units of the coordinates: the taper is 5/24 at the distance c,
        and zero from the distance 2 c on.
    inflation : float, "tune" or "adaptive"
        Factor by which the analysis anomalies are multiplied. With "adaptive", each component has a factor of the
        forecast anomalies, which follows the innovations.
    spin_up : int
        Number of first cycles whose inflation comes, at each site, from the finite-size prior of the EnKF-N.
    model_noise : {"draws", "sqrt-core"}
        How the forecast includes the covariance Q of the model's errors, if the model has one. "draws" draws an error
        for each member. "sqrt-core" transforms the anomalies within the space of the members.
    relaxation : {"rtps", "rtpp"}, optional
        Move the spread ("rtps") or the anomalies ("rtpp") of the analysis towards the forecast. By default neither.
    relaxation_factor : float or "tune"
        How far the relaxation goes: 0 is the analysis, 1 is the forecast.
    inflation_std : float
        For "adaptive": standard deviation of the factor of the covariance before the innovations of a cycle are known.

    Raises
    ------
    ValueError
        If the radius is not positive, the dynamics has no distance, or an operator's observations have no positions.

    References
    ----------
    Hunt, Kostelich and Szunyogh (2007), doi:10.1016/j.physd.2006.11.008.
    """

    name: ClassVar[str] = "letkf"
    backward: ClassVar[type[BackwardPass] | None] = None
    no_backward: ClassVar[str] = LOCAL_WEIGHTS
    tunable: ClassVar[Mapping[str, Tunable]] = {**TransformFilter.tunable, "radius": RADII}

    def __init__(
        self,
        members: int = 10,
        radius: float | str = 5.5,
        inflation: float | str = 1.02,
        spin_up: int = 100,
        model_noise: str = "draws",
        **parameters: Any,
    ) -> None:
        radius = number_or_tune("radius", radius)
        super().__init__(members, radius, inflation=inflation, spin_up=spin_up, model_noise=model_noise, **parameters)

    def transform(self, precision: Precision, state: State) -> tuple[Tensor, Tensor]:
        """Symmetric square root."""
        weights, root = precision.solve(self.zeta(precision, state))
        return weights, self.factor * math.sqrt(self.members - 1) * root
