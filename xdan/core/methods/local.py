"""Ensemble filters that transform their members, at once or at every site: among them the LETKF."""

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
    """A filter whose analysis members are combinations of forecast members; with a radius, others at every site.

    An observation at a distance with the taper t counts as if it had an additional error, which raises its variance r
    to r / t. A diagonal R^{-1} is so multiplied by the taper. Errors that are correlated stay so: R + diag(R) (1/t - 1)
    of the observations nearby is R where t is 1, and leaves out what is far away.

    A subclass gives `transform`.
    """

    @abstractmethod
    def transform(self, precision: Precision, state: State) -> tuple[Tensor, Tensor]:
        """Combinations of anomalies that make the analysis.

        Parameters
        ----------
        precision : Precision
            Of the weights of M members, in a batch of shape (...).
        state : dict of Tensor

        Returns
        -------
        weights : Tensor, shape (..., M)
            Of the increment of the mean.
        turned : Tensor, shape (..., M, M)
            Row i makes the anomaly of member i, inflated by `factor`.
        """

    def update(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """All local analyses as one batch, some thousands at a time; or one analysis of the whole state."""
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
    """LETKF: an ETKF at every site, with the observations nearby, tapered by a Gaspari-Cohn function of distance.

    Observations lie at the state's sites, or at the positions that the observing system knows; these may move in time.
    An observation at a distance with the taper t counts as if it had an additional error of its own, which raises its
    variance r to r / t. A diagonal R^{-1} is so multiplied by the taper. Errors that are correlated stay so:
    R + diag(R) (1/t - 1) of the observations nearby is R where t is 1, and leaves out what is far away.

    Parameters
    ----------
    members : int
    radius : float or "tune"
        c of Gaspari and Cohn: the taper is 5/24 at this distance and zero from twice it on.
    inflation : float, "tune" or "adaptive"
        Factor of the analysis anomalies; or each component has one of the forecast's, which follows the innovations.
    spin_up : int
        First cycles that take, site by site, the inflation which the finite-size prior asks for.
    model_noise : {"draws", "sqrt-core"}
        How a forecast takes up the covariance Q of the model's errors, where it has one: an error is drawn for every
        member, or the anomalies are transformed in their own space.
    relaxation : {"rtps", "rtpp"}, optional
        Bring the spread of the analysis ("rtps"), or its anomalies ("rtpp"), back towards those of the forecast.
    relaxation_factor : float or "tune"
        Share of the way back, from 0 to 1.
    inflation_std : float
        Standard deviation of the factor of the covariance before the innovations of a cycle are seen, for "adaptive".

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
