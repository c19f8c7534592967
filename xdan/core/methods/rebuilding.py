"""A forecast error covariance that is computed from the past of one state."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..observing import ObservingSystem
from .covariance_forms import CovarianceForm, OneMatrix

WIDEST_PAST = 4.0  # a state that runs backward is clipped to the climate's mean plus or minus so many deviations


def views_of(dynamics: Dynamics, steps: Sequence[int]) -> list[Dynamics]:
    """The dynamics at the start of each interval, and at the end of the last. Intervals are numbers of model steps.

    Parameters
    ----------
    dynamics : Dynamics
        At the time of the start of the first interval.
    steps : sequence of int
        Model steps of each interval, oldest first.
    """
    return [dynamics.from_step(time) for time in accumulate(steps, initial=dynamics.model_step)]


def past_of(views: Sequence[Dynamics], x: Tensor, steps: Sequence[int], climate: tuple[Tensor, Tensor]) -> list[Tensor]:
    """States (B, N) at the start of each interval, oldest first, on the trajectory that ends in x.

    The model runs backward. What it dissipates forward grows backward, so states are clipped to the climate's mean plus
    or minus `WIDEST_PAST` standard deviations. The past is exact for some tenths of a time unit. Before that, a state
    has about the right size only. The climate of a model that depends on time moves, so its states are not clipped.

    Parameters
    ----------
    views : sequence of Dynamics
        Result of `views_of`.
    x : Tensor, shape (B, N)
    steps : sequence of int
        Model steps of each interval, oldest first.
    climate : tuple of Tensor
        Mean and standard deviation of the climate, each of shape () or (N,).
    """
    mean, std = climate
    low, high = mean - WIDEST_PAST * std, mean + WIDEST_PAST * std
    points = [x]
    for end, count in zip(reversed(views), reversed(steps), strict=False):
        before = end.retreat(points[-1].reshape(-1, *end.shape), count).reshape(x.shape)
        if count and end.autonomous:
            before = torch.where(before.isfinite(), before, mean).clamp(low, high)
        points.append(before)
    return points[:0:-1]


def rebuilt_covariance(
    views: Sequence[Dynamics],
    past: Sequence[Tensor],
    steps: Sequence[int],
    observed: Sequence[Tensor],
    start: Tensor,
    observing: ObservingSystem,
    c2: float,
    most: Tensor,
    form: CovarianceForm | None = None,
) -> Tensor:
    """Forecast error covariance, of the shape of `start`, of a second-order Kalman filter along a past trajectory.

    Parameters
    ----------
    views : sequence of Dynamics
        Result of `views_of`.
    past : sequence of Tensor, each of shape (B, N)
        States at the start of each interval, oldest first.
    steps : sequence of int
        Model steps of each interval; an interval of 0 steps is left out.
    observed : sequence of Tensor of bool, each of shape (B, P)
        Which observations there are at the start of each interval.
    start : Tensor, shape (B, N, N), or as the form has it
        Covariance before the first of these observations.
    observing : ObservingSystem
    c2 : float
        Factor c2 of the second-order term.
    most : Tensor
        Result of the form's `bound` for the climate's variances.
    form : CovarianceForm, optional
        Form in which the covariance is kept; by default one matrix.
    """
    kept, covariance = OneMatrix() if form is None else form, start
    for view, x, count, seen in zip(views, past, steps, observed, strict=False):
        if count:
            covariance = kept.analysed(x, covariance, seen, observing)
            covariance = kept.forecast(view, x, covariance, count, c2, most)
    return covariance
