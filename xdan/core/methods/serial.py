"""Ensemble filters that assimilate observations one after another: the EAKF and similar filters."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..observing import ObservingSystem
from .ensemble import centre
from .localised import LocalEnsemble, Localisation
from .record import Record, State
from .registry import register_method


class SerialFilter(LocalEnsemble):
    """A filter that assimilates observations one after another. A subclass says how an observation moves the members.

    The state and the members in observation space are carried together. Each observation moves the members in its
    space. These changes are regressed on all components, and on the observations that follow:

        x <- x + t cov(x, h) / var(h) (h_a - h),

    where h are the members in observation space, h_a these members after the observation, and t is the taper of Gaspari
    and Cohn. No matrix is inverted. The order is that of the observations. With localisation, or an operator that is
    not linear, another order gives slightly different numbers.

    A subclass gives `moved`.

    Parameters
    ----------
    members : int
        Ensemble size M, at least 2.
    radius : float, "tune" or None
        Radius c of Gaspari and Cohn, for distances between an observation and a component, or another observation. None
        regresses without a taper.
    inflation : float, "tune" or "adaptive"
        Factor by which the analysis anomalies are multiplied. "adaptive": a factor of the forecast anomalies, which
        follows the innovations.
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
        If a number is out of range; with a radius, if the dynamics has no distance, observations have no positions, or
        their errors are correlated.

    Notes
    -----
    Observations are whitened: h is R^{-1/2} (H x - y), the observation is 0 and its error variance is 1. Correlated
    errors become independent. A whitened observation then has no place, so that localisation is refused.
    """

    def __init__(self, members: int = 40, radius: float | str | None = None, **parameters: Any) -> None:
        super().__init__(members, radius, **parameters)

    def check_record(self, record: Record) -> None:
        """Refuse correlated errors with localisation."""
        if self.local and record.observing.independent() is None:
            raise ValueError(
                f"{self.name!r} takes observations one by one, and with radius={self.radius!r} their errors must be "
                "independent: expected standard deviations instead of a covariance, radius=None, or 'letkf'"
            )
        super().check_record(record)

    def taken(self, localisation: Localisation) -> None:
        """Compute both kinds of tapers."""
        super().taken(localisation)
        _ = localisation.joint

    def update(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Assimilate one observation after another, for all trajectories at once."""
        state, localisation = self.spun_up(state, observation, observed, observing), self.localisation(observing)
        x = state["x"]
        size = x.shape[2]
        taper = None if localisation is None else localisation.joint.to(x)
        misfit = observing.whiten(observing.observe(x) - observation[:, None], observed)
        mean, anomalies = centre(torch.cat([x, misfit], 2))  # (B, 1, N + P), (B, M, N + P)
        for k in observed.any(0).nonzero()[:, 0].tolist():
            place = size + k
            h = anomalies[:, :, place]
            square = h.square().sum(1, keepdim=True)  # zero if the trajectory does not have this observation
            slope = (h[:, None] @ anomalies)[:, 0] / torch.where(square > 0, square, 1.0)
            slope = (slope if taper is None else slope * taper[k])[:, None]
            by = self.moved(mean[:, :, place] + h) - mean[:, :, place] - h
            shift = by.mean(1, keepdim=True)
            mean = mean + shift[..., None] * slope
            anomalies = anomalies + (by - shift)[..., None] * slope
        return {**state, "x": mean[:, :, :size] + self.factor * anomalies[:, :, :size]}

    @abstractmethod
    def moved(self, h: Tensor) -> Tensor:
        """Members in observation space, (B, M), after an observation of 0 with error variance 1; `h` is before it."""


@register_method
class EAKF(SerialFilter):
    """Ensemble adjustment Kalman filter: each observation shifts and shrinks the members in its space.

        h_a = r m / (v + r) + sqrt(r / (v + r)) (h - m),

    for an observation of 0, where m and v are the mean and the variance of the members in observation space, and r is
    the error variance. `SerialFilter` describes the parameters and the errors raised.

    References
    ----------
    Anderson (2001), doi:10.1175/1520-0493(2001)129<2884:AEAKFF>2.0.CO;2; (2003),
    doi:10.1175/1520-0493(2003)131<0634:ALLSFF>2.0.CO;2, for the regression and the localisation.
    """

    name: ClassVar[str] = "eakf"

    def moved(self, h: Tensor) -> Tensor:
        """Shift and shrink."""
        mean, anomalies = h.mean(1, keepdim=True), h - h.mean(1, keepdim=True)
        left = 1 / (1 + h.var(1, keepdim=True))
        return left * mean + left.sqrt() * anomalies


@register_method
class EnSRF(SerialFilter):
    """Serial ensemble square root filter: an observation has a gain for the mean and a reduced gain for the anomalies.

        K = cov(x, h) / (v + r),    x_a' = x_f' - a K h',    a = 1 / (1 + sqrt(r / (v + r))).

    With the regression on the state, this is the EAKF: both give the same members, except for rounding. `SerialFilter`
    describes the parameters and the errors raised.

    References
    ----------
    Whitaker and Hamill (2002), doi:10.1175/1520-0493(2002)130<1913:EDAWPO>2.0.CO;2.
    """

    name: ClassVar[str] = "ensrf"

    def moved(self, h: Tensor) -> Tensor:
        """Gain of the mean and of the anomalies."""
        mean, anomalies = h.mean(1, keepdim=True), h - h.mean(1, keepdim=True)
        gain = 1 - 1 / (1 + h.var(1, keepdim=True))
        return (1 - gain) * mean + (1 - gain / (1 + (1 - gain).sqrt())) * anomalies
