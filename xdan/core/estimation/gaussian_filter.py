"""A Gaussian filter over a record. Its run is kept, so that a smoother can go back over it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..derivative_checks import check_model, check_operator, climate_states
from ..dynamics import Dynamics
from ..methods.advancing import advance, advance_along
from ..methods.record import Record
from ..observing import ObservingSystem, split_observation
from ..roots import cholesky_or_nan, cholesky_solved, triangular_root_of
from ..tangent import identity_directions

BYTES = 1 << 28  # largest size of the part of a run that is kept, in bytes


@dataclass(frozen=True)
class Gaussian:
    """Means and covariances of a batch of states.

    Attributes
    ----------
    x : Tensor, shape (B, N)
    covariance : Tensor, shape (B, N, N)
    """

    x: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class Cycle:
    """One cycle of a Gaussian filter.

    Attributes
    ----------
    forecast, analysis : Gaussian
    transition : Tensor, shape (B, N, N), or None
        M, the linearised model from the previous analysis to this forecast; None at the first time of a record.
    innovation : Tensor, shape (B, P)
        y - H(x_f), zero where nothing is observed.
    observed : Tensor of bool, shape (B, P)
    precision : Tensor, shape (B, P, P)
        (H P_f H^T + R)^-1 of the observations; zero where nothing is observed.
    gain : Tensor, shape (B, N, P)
        K, with columns of zeros where nothing is observed.
    tangent : Tensor, shape (B, P, N), or None
        H of an operator, linearised at the forecast; None if components are observed directly.
    log_likelihood : Tensor, shape (B,)
        ln N(y; H(x_f), H P_f H^T + R) of the observations.
    """

    forecast: Gaussian
    analysis: Gaussian
    transition: Tensor | None
    innovation: Tensor
    observed: Tensor
    precision: Tensor
    gain: Tensor
    tangent: Tensor | None
    log_likelihood: Tensor

    def on_state(self, matrices: Tensor) -> Tensor:
        """A H for matrices A (B, N, P) with zero columns where nothing is observed, shape (B, N, N)."""
        return matrices if self.tangent is None else matrices @ self.tangent

    def back_to_state(self, v: Tensor) -> Tensor:
        """H^T v for vectors (B, P) that are zero where nothing is observed, shape (B, N)."""
        return v if self.tangent is None else (self.tangent.mT @ v[..., None])[..., 0]

    def precision_of_state(self) -> Tensor:
        """H^T (H P_f H^T + R)^-1 H, shape (B, N, N)."""
        return self.precision if self.tangent is None else self.tangent.mT @ self.precision @ self.tangent


def linearised(dynamics: Dynamics, at: Gaussian, steps: int) -> tuple[Tensor, Tensor]:
    """Advance states, and return the model linearised at these states as matrices.

    A model with derivatives gives its tangent linear model. For other models the matrix comes from differences over one
    standard deviation of the state's error on both sides: with P = S S^T, and columns s_k of S,

        M s_k = (M(x + s_k) - M(x - s_k)) / 2.

    Parameters
    ----------
    dynamics : Dynamics
        It stands at the time of the states, if it depends on time.
    at : Gaussian
    steps : int
        Number of model steps.

    Returns
    -------
    x : Tensor, shape (B, N)
    transition : Tensor, shape (B, N, N)
    """
    x = at.x
    if steps == 0:
        return x, torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand(at.covariance.shape)
    if dynamics.has_derivatives:
        after, rows = advance_along(dynamics, x, identity_directions(x), steps)
        return after, rows.mT
    root = triangular_root_of(at.covariance)  # rows s_k
    ends = advance(dynamics, torch.cat([x[:, None], x[:, None] + root, x[:, None] - root], 1), steps)
    above, below = ends[:, 1:].chunk(2, 1)
    rows = 0.5 * (above - below)  # rows (M s_k)^T: the matrix M solves S^T M^T = rows
    # A direction without variance has no difference. The least-squares solution gives M no part along it.
    solved = torch.linalg.lstsq(root, rows).solution if bool((root.diagonal(dim1=1, dim2=2) <= 0).any()) else None
    transition = torch.linalg.solve(root, rows) if solved is None else solved
    return ends[:, 0], transition.mT


def analysed(
    forecast: Gaussian,
    transition: Tensor | None,
    observation: Tensor,
    observed: Tensor,
    observing: ObservingSystem,
    errors: Tensor | None = None,
) -> Cycle:
    """The analysis of a Gaussian forecast, with everything that a smoother needs.

    Parameters
    ----------
    forecast : Gaussian
    transition : Tensor, shape (B, N, N), or None
    observation : Tensor, shape (B, P)
    observed : Tensor of bool, shape (B, P)
    observing : ObservingSystem
        H and R of this time.
    errors : Tensor, shape (B, P, P), optional
        R of each trajectory. By default R of the observing system.

    References
    ----------
    Jazwinski (1970), Stochastic Processes and Filtering Theory, Sect. 8.3.
    """
    x, p = forecast.x, forecast.covariance
    rows, both = observing.observed_covariances(x, p, observed)
    unit = torch.eye(observed.shape[-1], dtype=x.dtype, device=x.device)
    pair = observed[:, :, None] & observed[:, None, :]
    r = observing.covariance_of(observed) if errors is None else torch.where(pair, errors, unit)
    factor = cholesky_or_nan(both + r)
    innovation = torch.where(observed, observation - observing.observe(x), torch.zeros_like(observation))
    precision = torch.where(pair, cholesky_solved(unit.expand_as(both), factor), torch.zeros_like(both))
    gain = rows.mT @ precision
    whitened = torch.linalg.solve_triangular(factor, innovation[..., None], upper=False)[..., 0]
    count = observed.sum(1).to(x)
    # Where nothing is observed, the factor's diagonal is 1 and the innovation is 0.
    log_likelihood = (
        -0.5 * whitened.square().sum(1)
        - factor.diagonal(dim1=1, dim2=2).log().sum(1)
        - 0.5 * math.log(2 * math.pi) * count
    )
    after = p - gain @ rows
    analysis = Gaussian(x + (gain @ innovation[..., None])[..., 0], 0.5 * (after + after.mT))
    tangent = None
    if not observing.direct:
        directions = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
        tangent = observing.tangent(x, directions).mT
    return Cycle(forecast, analysis, transition, innovation, observed, precision, gain, tangent, log_likelihood)


def cycles_of(record: Record, noise: Tensor, prior: Gaussian, *, first: bool = True) -> Iterator[Cycle]:
    """Run an extended Kalman filter over a record, x_k = M(x_{k-1}) + e_k with e_k ~ N(0, Q).

    Parameters
    ----------
    record : Record
        A record whose observing system has R.
    noise : Tensor, shape (N, N)
        The covariance Q of every interval.
    prior : Gaussian
        The forecast at the first time. If `first` is False: the analysis before the first time.
    first : bool
        Whether the prior belongs to the record's first time.

    Yields
    ------
    Cycle
    """
    clock = int(record.clocks[0])
    state = prior
    for k, steps in enumerate(record.steps):
        transition = None
        if k or not first:
            x, transition = linearised(record.dynamics.from_step(clock), state, steps)
            p = transition @ state.covariance @ transition.mT + noise
            state = Gaussian(x, 0.5 * (p + p.mT))
        clock += steps
        observation, observed = split_observation(record.observation[:, k])
        cycle = analysed(state, transition, observation, observed, record.observing.at(k))
        state = cycle.analysis
        yield cycle


def backward_segments(
    record: Record, noise: Tensor, prior: Gaussian, *, most_bytes: int = BYTES
) -> Iterator[tuple[int, list[Cycle]]]:
    """The cycles of a filter in segments, the last segment first, so that a smoother can go back over them.

    A record whose run is larger than `most_bytes` is filtered twice. The first time gives the analyses between
    segments, whose length is about the root of the record's. The second time gives each segment. Memory then holds one
    segment and these analyses.

    Parameters
    ----------
    record, noise, prior
        See `cycles_of`.
    most_bytes : int
        Largest size of the run that is kept, in bytes.

    Yields
    ------
    start : int
        Position of the segment's first time in the record.
    cycles : list of Cycle
    """
    count = len(record.steps)
    length = _segment(record, most_bytes)
    if length >= count:
        yield 0, list(cycles_of(record, noise, prior))
        return
    priors = {0: prior}
    for k, cycle in enumerate(cycles_of(record, noise, prior)):
        if (k + 1) % length == 0:
            priors[k + 1] = cycle.analysis
    for start in reversed(range(0, count, length)):
        part = record.during(slice(start, min(start + length, count)))
        yield start, list(cycles_of(part, noise, priors[start], first=start == 0))


def _segment(record: Record, most_bytes: int) -> int:
    """Number of times in a segment: all of them if they fit, otherwise about the root of their number."""
    rows, size = record.shape
    count, observations = record.observation.shape[1:]
    bytes_of_time = rows * record.observation.element_size() * (3 * size**2 + size * observations + observations**2)
    if bytes_of_time * count <= most_bytes:
        return max(count, 1)
    return max(1, min(math.isqrt(count) + 1, most_bytes // bytes_of_time))


def check_linearised(dynamics: Dynamics, observing: ObservingSystem, seed: int, like: Tensor) -> None:
    """Refuse a model or an operator with wrong derivatives. A model without derivatives passes: it is differenced.

    Raises
    ------
    ValueError
    """
    states = climate_states(dynamics, seed, like)
    if dynamics.has_derivatives:
        check_model(dynamics, "forward", states, "write the model in torch, or take method='desroziers'")
    check_operator(observing.at(0).operator, "forward", states, "the estimate linearises it")
