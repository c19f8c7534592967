"""Adaptive estimates of Q and R from innovations at lags 0 and 1, within an extended Kalman filter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..methods.record import Record
from ..observing import split_observation
from .gaussian_filter import Cycle, Gaussian, analysed, linearised
from .structures import Structure, as_matrix, made_positive

_LOST = 1e3  # a trajectory is lost beyond so many standard deviations of the climate
_LEAST = 1e-3  # smallest variance in the filter, relative to the mean variance at the start


@dataclass(frozen=True)
class Adapted:
    """Estimates after one cycle, for each trajectory separately.

    Attributes
    ----------
    model, observation : Tensor, shape (B, n) or (B, n, n)
        Variances or covariances of Q and of R, as running averages. Small ones may be negative.
    alive : Tensor of bool, shape (B,)
        Whether the filter is not lost.
    innovation : Tensor, shape (B,)
        Mean square of the innovations divided by their expected variance; NaN where nothing is observed.
    """

    model: Tensor
    observation: Tensor
    alive: Tensor
    innovation: Tensor


def adapted(
    record: Record,
    prior: Gaussian,
    start: tuple[Tensor, Tensor],
    structures: tuple[Structure, Structure],
    *,
    smoothing: float,
    burn_in: int = 0,
) -> Iterator[Adapted]:
    """Filter a record, and adapt Q and R in every cycle by a moving average.

    With the innovations d_k, the gain K_k and the linearised model M_k, the expected products are

        E[d_k d_k^T] = H P_f,k H^T + R,
        E[d_k d_{k-1}^T] + H M_k K_{k-1} E[d_{k-1} d_{k-1}^T] = H M_k (M_{k-1} P_a,k-2 M_{k-1}^T + Q) H^T.

    Each cycle gives one sample of both sides. R and Q of this cycle follow from the samples. If H or the structure
    leaves fewer numbers, Q follows by least squares. The estimates move towards them by 1 / `smoothing` of the
    difference.

    Parameters
    ----------
    record : Record
        If components are observed directly, Q may be diagonal or full. Otherwise Q has one number for each part.
    prior : Gaussian
        Forecast at the first time.
    start : tuple of Tensor, shape (n,) or (n, n)
        First values of Q and R.
    structures : tuple of Structure
        Structures of Q and of R.
    smoothing : float
        Number of cycles over which the moving average extends.
    burn_in : int
        Number of first cycles in which Q and R do not change.

    Yields
    ------
    Adapted
        Estimates after each cycle.

    References
    ----------
    Berry and Sauer (2013), doi:10.3402/tellusa.v65i0.20331, Sect. 2; Mehra (1970), doi:10.1109/TAC.1970.1099422.
    """
    rows = len(record.trajectory)
    q, r = (value.expand(rows, *value.shape).clone() for value in start)
    floors = [_LEAST * float(as_matrix(value).diagonal().mean()) for value in start]
    of_model, of_observation = structures
    clock, state, before = int(record.clocks[0]), prior, None
    bound = _LOST * (prior.x.abs() + prior.covariance.diagonal(dim1=1, dim2=2).sqrt()).amax(1)
    alive = torch.ones(rows, dtype=torch.bool, device=prior.x.device)
    without_noise = prior.covariance
    for k, steps in enumerate(record.steps):
        transition = None
        if k:
            x, transition = linearised(record.dynamics.from_step(clock), state, steps)
            without_noise = transition @ state.covariance @ transition.mT
            p = without_noise + _usable(q, floors[0], of_model)
            state = Gaussian(x, 0.5 * (p + p.mT))
        clock += steps
        observation, observed = split_observation(record.observation[:, k])
        observing = record.observing.at(k)
        errors = _usable(r, floors[1], of_observation)
        cycle = analysed(state, transition, observation, observed, observing, errors)
        finite = cycle.analysis.covariance.isfinite().flatten(1).all(1)
        alive = alive & finite & (cycle.analysis.x.abs().amax(1) <= bound)
        fresh = alive.reshape(-1, 1, 1)
        state = Gaussian(
            torch.where(fresh[:, 0], cycle.analysis.x, prior.x),
            torch.where(fresh, cycle.analysis.covariance, prior.covariance),
        )
        if k >= burn_in:
            r = _moved(r, _of_lag_zero(cycle, of_observation), smoothing, of_observation)
            if before is not None and before[0].transition is not None:
                q = _moved(q, _of_lag_one(cycle, *before, of_model), smoothing, of_model)
        before = cycle, without_noise
        squares = cycle.innovation.square().sum(1)
        expected = (_seen(cycle, cycle.forecast.covariance).diagonal(dim1=1, dim2=2) * observed).sum(1)
        expected = expected + (errors.diagonal(dim1=1, dim2=2) * observed).sum(1)
        yield Adapted(q, r, alive, squares / expected)


def _usable(value: Tensor, least: float, structure: Structure) -> Tensor:
    """Values (B, n) or (B, n, n) as covariances that a filter can use."""
    positive = value if structure.fixed else made_positive(value, least)
    return positive.diag_embed() if positive.ndim == 2 else positive


def _moved(value: Tensor, sample: Tensor, smoothing: float, structure: Structure) -> Tensor:
    """Moving average. It does not change where the sample is NaN."""
    if structure.fixed:
        return value
    return torch.where(sample.isfinite(), value + (sample - value) / smoothing, value)


def _seen(cycle: Cycle, p: Tensor) -> Tensor:
    """H P H^T, shape (B, P, P)."""
    return p if cycle.tangent is None else cycle.tangent @ p @ cycle.tangent.mT


def _of_lag_zero(cycle: Cycle, structure: Structure) -> Tensor:
    """What one cycle shows of R; NaN where it shows nothing."""
    d = cycle.innovation
    sample = d[:, :, None] * d[:, None, :] - _seen(cycle, cycle.forecast.covariance)
    if structure.whole:
        pair = cycle.observed[:, :, None] & cycle.observed[:, None, :]
        return torch.where(pair, structure.apart(sample), torch.nan)
    return structure.pooled(sample.diagonal(dim1=1, dim2=2), cycle.observed.to(d))


def _of_lag_one(cycle: Cycle, before: Cycle, without_noise: Tensor, structure: Structure) -> Tensor:
    """What two cycles show of Q; NaN where they show nothing.

    Parameters
    ----------
    cycle, before : Cycle
        Cycles of the times k and k - 1.
    without_noise : Tensor, shape (B, N, N)
        M_{k-1} P_a,k-2 M_{k-1}^T.
    structure : Structure
    """
    assert cycle.transition is not None
    d, earlier = cycle.innovation, before.innovation
    seen = cycle.observed.to(d)[:, :, None] * (
        cycle.transition if cycle.tangent is None else cycle.tangent @ cycle.transition
    )  # H M_k, (B, P, N), for the observations
    onto = before.observed.to(d)[:, None, :]
    back = onto * (
        torch.eye(seen.shape[2], dtype=d.dtype, device=d.device) if before.tangent is None else before.tangent.mT
    )
    carried = (before.gain @ earlier[..., None])[..., 0]
    sample = (d + (seen @ carried[..., None])[..., 0])[:, :, None] * earlier[:, None, :]
    sample = sample - seen @ without_noise @ back  # (B, P, P), with the expectation H M_k Q H^T
    # Values of a lost trajectory must not stop the decompositions of the others.
    sample, seen = (torch.nan_to_num(matrix, nan=0.0, posinf=0.0, neginf=0.0) for matrix in (sample, seen))
    if structure.whole:
        every = (cycle.observed.all(1) & before.observed.all(1))[:, None, None]
        q = torch.linalg.solve(
            torch.where(every, seen, torch.eye(seen.shape[2], dtype=d.dtype, device=d.device)), sample
        )
        return torch.where(every, structure.apart(0.5 * (q + q.mT)), torch.nan)
    if structure.kind == "diagonal":
        return (seen * sample).sum(1) / seen.square().sum(1) / before.observed.to(d)
    # One number for each part: least squares over the matrices H M_k D H^T, where D is one on the part.
    parts = structure.onto_parts(d).mT
    matrices = torch.stack([(seen * part) @ back for part in parts], 1).flatten(2)
    normal = matrices @ matrices.mT
    solution = (torch.linalg.pinv(normal, hermitian=True) @ (matrices @ sample.flatten(1)[..., None]))[..., 0]
    told = normal.diagonal(dim1=1, dim2=2) > 0
    return torch.where(told, solution, torch.nan)[:, structure.parts]
