"""Fixed-interval smoothers: states and their errors, given the observations of all times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..methods.backward import smoothed_covariance, smoothed_members, smoother_gain
from ..methods.record import Record
from .gaussian_filter import BYTES, Cycle, Gaussian, backward_segments


@dataclass(frozen=True)
class Smoothed:
    """States given the observations of all times.

    Attributes
    ----------
    x : Tensor, shape (B, K, N)
    covariance : Tensor, shape (B, K, N, N)
    lag_one : Tensor, shape (B, K, N, N)
        Covariance between the state of the next time (rows) and that of this time (columns). It is zero at the last
        time of a record.
    """

    x: Tensor
    covariance: Tensor
    lag_one: Tensor


def smooth(record: Record, noise: Tensor, prior: Gaussian) -> Smoothed:
    """Filter a record by an extended Kalman filter, and smooth it by the recursion of Rauch, Tung and Striebel.

    The result has N x N numbers for each trajectory and time. Functions that need only sums of them go over the
    segments of `backward_segments` instead.

    Parameters
    ----------
    record : Record
        B trajectories with K times. Its observing system has R.
    noise : Tensor, shape (N, N)
        The covariance Q of every interval.
    prior : Gaussian
        Forecast at the first time, such as the mean and the covariance of the climatology.

    Returns
    -------
    Smoothed

    References
    ----------
    Rauch, Tung and Striebel (1965), doi:10.2514/3.3166; Shumway and Stoffer (1982),
    doi:10.1111/j.1467-9892.1982.tb00349.x, Eq. A.1 to A.9.

    Examples
    --------
    >>> from xdan import Lorenz96, ObservingSystem
    >>> y = torch.full((1, 3, 4), 8.0, dtype=torch.float64)
    >>> observing = ObservingSystem(std=torch.ones((), dtype=torch.float64))
    >>> record = Record(Lorenz96(sites=4), observing, y, [0, 1, 1], torch.arange(1), seed=0)
    >>> unit = torch.eye(4, dtype=torch.float64)
    >>> smooth(record, 0.1 * unit, Gaussian(y[:, 0], unit[None])).x[0, 0]
    tensor([8., 8., 8., 8.], dtype=torch.float64)
    """
    parts: list[Smoothed] = []
    after: tuple[Cycle, Gaussian] | None = None
    for _, cycles in backward_segments(record, noise, prior, most_bytes=BYTES):
        part = rauch_tung_striebel(cycles, after)
        after = cycles[0], Gaussian(part.x[:, 0], part.covariance[:, 0])
        parts.insert(0, part)
    return Smoothed(*(torch.cat([getattr(part, name) for part in parts], 1) for name in ("x", "covariance", "lag_one")))


def rauch_tung_striebel(cycles: Sequence[Cycle], after: tuple[Cycle, Gaussian] | None = None) -> Smoothed:
    """Smooth the run of a filter, from its last time to its first.

    With the gain of the smoother, G_k = P_a,k M_{k+1}^T P_f,k+1^-1,

        x_s,k = x_a,k + G_k (x_s,k+1 - x_f,k+1),   P_s,k = P_a,k + G_k (P_s,k+1 - P_f,k+1) G_k^T,

    and the covariance between the states of two successive times is P_s,k+1 G_k^T.

    Parameters
    ----------
    cycles : sequence of Cycle
        Cycles of consecutive times, such as a segment of `backward_segments`.
    after : tuple of Cycle and Gaussian, optional
        The cycle after the last one, and its smoothed state; None at the end of a record.

    Returns
    -------
    Smoothed
    """
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    following, state = after if after is not None else (None, cycles[-1].analysis)
    for cycle in reversed(cycles):
        joint = torch.zeros_like(state.covariance)
        if following is not None:
            assert following.transition is not None
            forecast, analysis = following.forecast, cycle.analysis
            gain = smoother_gain((following.transition @ analysis.covariance).mT, forecast.covariance)
            joint = state.covariance @ gain.mT
            x = analysis.x + (gain @ (state.x - forecast.x)[..., None])[..., 0]
            p = smoothed_covariance(analysis.covariance, gain, forecast.covariance, state.covariance)
            state = Gaussian(x, p)
        columns.append((state.x, state.covariance, joint))
        following = cycle
    x, p, joint = (torch.stack(column[::-1], 1) for column in zip(*columns, strict=True))
    return Smoothed(x, p, joint)


@dataclass(frozen=True)
class Disturbances:
    """What the observations of all times show of the errors of the model and of the observations, at one time.

    Attributes
    ----------
    model : Tensor, shape (B, N)
        r, with E[e | y] = Q r for the error e of the interval before this time.
    model_precision : Tensor, shape (B, N, N)
        The matrix U with Cov[e | y] = Q - Q U Q.
    observation : Tensor, shape (B, P)
        u, with E[o | y] = R u for the error o of the observations; zero where nothing is observed.
    observation_precision : Tensor, shape (B, P, P)
        The matrix D with Cov[o | y] = R - R D R.
    """

    model: Tensor
    model_precision: Tensor
    observation: Tensor
    observation_precision: Tensor


Backward = tuple[Tensor, Tensor]
"""What a disturbance smoother carries backward: r (B, N) and U (B, N, N) at an analysis, before its observations."""


def disturbances(cycle: Cycle, carried: Backward | None) -> tuple[Disturbances, Backward]:
    """One step backward of the disturbance smoother. No forecast covariance is inverted.

    It starts from r_a and U_a at the analysis; at the end of a record they are zero. With A = I - K H and
    S = H P_f H^T + R,

        u = S^-1 d - K^T r_a,            D = S^-1 + K^T U_a K,
        r = H^T S^-1 d + A^T r_a,        U = H^T S^-1 H + A^T U_a A,

    and at the previous analysis r_a = M^T r, U_a = M^T U M. The smoothed state is x_f + P_f r, and its covariance is
    P_f - P_f U P_f. The derivatives of the log-likelihood are (r r^T - U) / 2 for Q, and (u u^T - D) / 2 for R.

    Parameters
    ----------
    cycle : Cycle
    carried : tuple of Tensor, optional
        r_a and U_a at the cycle's analysis; None at the end of a record.

    Returns
    -------
    Disturbances
    carried : tuple of Tensor
        r_a and U_a at the previous analysis; at the first time of a record, r and U.

    References
    ----------
    Koopman (1993), doi:10.1093/biomet/80.1.117; Durbin and Koopman (2012), Time Series Analysis by State Space Methods,
    Sect. 4.5 and 7.3.
    """
    whitened = (cycle.precision @ cycle.innovation[..., None])[..., 0]
    u, d = whitened, cycle.precision
    r, precision = cycle.back_to_state(whitened), cycle.precision_of_state()
    if carried is not None:
        r_after, after = carried
        size = after.shape[-1]
        left = torch.eye(size, dtype=after.dtype, device=after.device) - cycle.on_state(cycle.gain)
        u = u - (cycle.gain.mT @ r_after[..., None])[..., 0]
        d = d + cycle.gain.mT @ after @ cycle.gain
        r = r + (left.mT @ r_after[..., None])[..., 0]
        precision = precision + left.mT @ after @ left
    precision = 0.5 * (precision + precision.mT)
    m = cycle.transition
    before = (r, precision) if m is None else ((m.mT @ r[..., None])[..., 0], m.mT @ precision @ m)
    return Disturbances(r, precision, u, d), before


def smooth_ensemble(forecast_members: Tensor, members: Tensor) -> Tensor:
    """Smooth the members of any ensemble filter, from the last time to the first.

    `smoothed_members` makes each step back. Members must keep their order from an analysis to the next forecast.

    Parameters
    ----------
    forecast_members, members : Tensor, shape (B, K, M, N)
        Before and after each analysis, as `run(..., members=True)` gives them.

    Returns
    -------
    Tensor, shape (B, K, M, N)
        Members given the observations of all times.

    References
    ----------
    Raanes (2016), doi:10.1002/qj.2728, Sect. 3; Cosme et al. (2012), doi:10.1175/MWR-D-11-00088.1.
    """
    smoothed = [members[:, -1]]
    for k in range(members.shape[1] - 2, -1, -1):
        smoothed.insert(0, smoothed_members(members[:, k], forecast_members[:, k + 1], smoothed[0]))
    return torch.stack(smoothed, 1)
