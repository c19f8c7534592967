"""Expectation maximisation of Q and R: what one pass of the smoother over a record shows of both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..methods.record import Record
from .gaussian_filter import BYTES, Gaussian, backward_segments
from .smoother import Backward, disturbances
from .structures import Structure
from .uncertainty import errors_by_scores

Estimate = tuple[Tensor, Tensor]
"""Q and R. Each is given as variances, shape (n,), or as a covariance, shape (n, n)."""
Structures = tuple[Structure, Structure]


@dataclass(frozen=True)
class Scores:
    """Twice the derivatives of the log-likelihood with respect to Q and R, summed in groups of times.

    Attributes
    ----------
    model : Tensor, shape (B, G, N, N), or (B, G, N)
        Sum of r r^T - U over the intervals of a group, or its diagonal.
    observation : Tensor, shape (B, G, P, P), or (B, G, P)
        Sum of u u^T - D over the times of a group, or its diagonal.
    intervals, times : Tensor, shape (B, G)
        Numbers of intervals and of times.
    observed : Tensor, shape (B, G, P)
        Number of times that each observation occurs.
    log_likelihood : Tensor, shape (B, G)
    """

    model: Tensor
    observation: Tensor
    intervals: Tensor
    times: Tensor
    observed: Tensor
    log_likelihood: Tensor


def scores(
    record: Record,
    noise: Tensor,
    prior: Gaussian,
    *,
    burn_in: int = 0,
    groups: int = 1,
    whole: tuple[bool, bool] = (True, True),
) -> Scores:
    """Smooth a record with Q and R, and sum the expected errors of model and observations.

    The expectation of e e^T given all observations is Q + Q (r r^T - U) Q, and that of o o^T is R + R (u u^T - D) R
    (`disturbances`). The M step of expectation maximisation needs only the sums of the two brackets.

    Parameters
    ----------
    record : Record
        A record whose observing system has R.
    noise : Tensor, shape (N, N)
        The covariance Q.
    prior : Gaussian
        Forecast at the first time.
    burn_in : int
        Number of first times that the sums leave out.
    groups : int
        Number of groups of consecutive times. Each group has its sums.
    whole : tuple of bool
        Whether to sum matrices, for Q and for R; otherwise only their diagonals.

    Returns
    -------
    Scores
    """
    count = len(record.steps)
    x = record.observation
    rows, size, observations = *record.shape, x.shape[-1]
    tails = [(n, n) if full else (n,) for n, full in zip((size, observations), whole, strict=True)]
    model, observation = (x.new_zeros(rows, groups, *tail) for tail in tails)
    intervals, times, likelihood = (x.new_zeros(rows, groups) for _ in range(3))
    observed = x.new_zeros(rows, groups, observations)
    carried: Backward | None = None
    for start, cycles in backward_segments(record, noise, prior, most_bytes=BYTES):
        for offset in reversed(range(len(cycles))):
            k, cycle = start + offset, cycles[offset]
            errors, carried = disturbances(cycle, carried)
            if k < burn_in:
                continue
            group = (k - burn_in) * groups // (count - burn_in)
            if k:
                model[:, group] += bracket(errors.model, errors.model_precision, whole[0])
                intervals[:, group] += 1
            observation[:, group] += bracket(errors.observation, errors.observation_precision, whole[1])
            times[:, group] += 1
            observed[:, group] += cycle.observed
            likelihood[:, group] += cycle.log_likelihood
    return Scores(model, observation, intervals, times, observed, likelihood)


def bracket(v: Tensor, precision: Tensor, whole: bool) -> Tensor:
    """The matrix v v^T - U, shape (B, n, n), or its diagonal, (B, n)."""
    if whole:
        return v[:, :, None] * v[:, None, :] - precision
    return v.square() - precision.diagonal(dim1=1, dim2=2)


def maximised(value: Tensor, structure: Structure, brackets: Tensor, counts: Tensor) -> Tensor:
    """The M step: the covariance that maximises the expected log-likelihood of errors.

    Parameters
    ----------
    value : Tensor, shape (n,) or (n, n)
        Variances, or the covariance V, with which the expectation was taken.
    structure : Structure
    brackets : Tensor, shape (n,) or (n, n)
        Sum over all trajectories and times of the brackets of `scores`.
    counts : Tensor, shape (n,), or () for a full covariance
        Numbers of errors in the sums. A component that never occurs keeps its variance.

    Returns
    -------
    Tensor, shape of `value`
        V + V B V / n for a full covariance; v + v^2 b / n for variances, averaged over those that are one number.

    References
    ----------
    Shumway and Stoffer (1982), doi:10.1111/j.1467-9892.1982.tb00349.x, Eq. 12 to 14, with the sums of the disturbance
    smoother; Dreano et al. (2017), doi:10.1002/qj.3048; Tandeo et al. (2020), doi:10.1175/MWR-D-19-0240.1, Sect. 4.
    """
    if structure.fixed:
        return value
    if structure.whole:
        new = value + value @ (structure.apart(brackets) / counts) @ value
        return 0.5 * (new + new.mT)
    new = value + value.square() * torch.where(counts > 0, brackets / counts, 0.0)
    occurs = structure.onto_parts(counts).mT @ counts > 0 if structure.kind == "scalar" else counts > 0
    occurs = occurs[structure.parts] if structure.kind == "scalar" else occurs
    return torch.where(occurs, structure.pooled(new, counts), value)


def maximised_both(sums: Mapping[str, Tensor], estimate: Estimate, structures: Structures) -> dict[str, Tensor]:
    """The M step of Q and R, from the scores of all trajectories.

    Parameters
    ----------
    sums : mapping
        The entries of `Scores`. Trajectories with values that are not finite are left out.
    estimate, structures
        Values and structures of Q and R.

    Returns
    -------
    dict of Tensor
        "model", "observation", "log_likelihood", and "lost", the number of trajectories that were left out.
    """
    alive = _alive(sums)
    whole = {name: value[alive].sum((0, 1)) for name, value in sums.items()}
    q, r = estimate
    intervals = whole["intervals"] if structures[0].whole else whole["intervals"].expand(len(q))
    times = whole["times"] if structures[1].whole else whole["observed"]
    return {
        "model": maximised(q, structures[0], whole["model"], intervals),
        "observation": maximised(r, structures[1], whole["observation"], times),
        "log_likelihood": whole["log_likelihood"] if bool(alive.any()) else whole["log_likelihood"] * math.nan,
        "lost": (~alive).sum(),
    }


def _alive(sums: Mapping[str, Tensor]) -> Tensor:
    """Flags of trajectories whose sums are all finite, (B,)."""
    fine = torch.stack([value.isfinite().flatten(1).all(1) for value in sums.values()])
    return fine.all(0)


def standard_errors(sums: Mapping[str, Tensor], estimate: Estimate, structures: Structures) -> dict[str, Tensor]:
    """Standard errors of variances, or of the entries of covariances, at the maximum of the likelihood.

    The scores of all trajectories and groups of times are nearly independent. Their outer products give the information
    matrix (`errors_by_scores`) of all variances together; with few samples, of the variances of each component. A
    covariance is varied as V = L (1 + A) L^T with V = L L^T. The entries of A are assumed to be independent of each
    other, except for those of Q and R at one place.

    Parameters
    ----------
    sums : mapping
        The entries of `Scores`.
    estimate, structures
        Values and structures of Q and R.

    Returns
    -------
    dict of Tensor
        "model" and "observation", in the shapes of Q and R; NaN for fixed values.
    """
    alive, names = _alive(sums), ("model", "observation")
    errors = {name: torch.full_like(value, math.nan) for name, value in zip(names, estimate, strict=True)}
    columns: dict[str, Tensor] = {}
    for name, value, structure in zip(names, estimate, structures, strict=True):
        samples = sums[name][alive].flatten(0, 1)
        if structure.whole:
            root = torch.linalg.cholesky(value)
            turned = root.mT @ structure.apart(samples) @ root
            half = turned - 0.5 * turned.diagonal(dim1=1, dim2=2).diag_embed()
            rows, others = torch.triu_indices(*value.shape)
            columns[name] = half[:, rows, others]
        elif not structure.fixed:
            columns[name] = 0.5 * (samples @ structure.onto_parts(value) if structure.kind == "scalar" else samples)
    if not columns:
        return errors
    sizes = [column.shape[1] for column in columns.values()]
    offsets = [0, sizes[0]][: len(sizes)]
    alike = len(set(sizes)) == 1
    pairs = [[k + offset for offset in offsets] for k in range(sizes[0])] if alike else [[k] for k in range(sum(sizes))]
    together = errors_by_scores(torch.cat(list(columns.values()), 1), pairs)
    for name, offset, size in zip(columns, offsets, sizes, strict=True):
        structure, value = structures[names.index(name)], estimate[names.index(name)]
        part = together[offset : offset + size]
        if structure.whole:
            rows, others = torch.triu_indices(*value.shape)
            of_a = torch.zeros_like(value)
            of_a[rows, others] = of_a[others, rows] = part
            errors[name] = errors_of_entries(torch.linalg.cholesky(value), of_a)
        else:
            errors[name] = part[structure.parts] if structure.kind == "scalar" else part
    return errors


def errors_of_entries(root: Tensor, errors: Tensor) -> Tensor:
    """Standard errors of the entries of V = L (1 + A) L^T, from those of A, whose entries a <= b are independent.

    Parameters
    ----------
    root : Tensor, shape (n, n)
        The root L.
    errors : Tensor, shape (n, n)
        Standard errors of A, which is symmetric, at A = 0. NaN counts as zero, as between parts.
    """
    variances = torch.nan_to_num(errors).square()
    squares = root.square()
    crossed = [((row * root) @ variances * (row * root)).sum(1) for row in root]
    # Entries on the diagonal of A occur once, all others twice.
    once = squares @ variances.diagonal().diag() @ squares.mT
    return (squares @ variances @ squares.mT + torch.stack(crossed) - once).clamp_min(0.0).sqrt()


def numbers_of(estimate: Estimate, structures: Structures) -> Tensor:
    """Logarithms of all estimated numbers, as one vector."""
    return torch.cat([structure.numbers(value) for structure, value in zip(structures, estimate, strict=True)])


def accelerated(points: Sequence[Estimate], structures: Structures) -> Estimate:
    """Q and R that three iterates lead to (`extrapolated`)."""
    q, r = points[-1]
    numbers = extrapolated([numbers_of(point, structures) for point in points])
    first, second = numbers.split([structures[0].numbers(q).numel(), structures[1].numbers(r).numel()])
    return structures[0].from_numbers(first, q), structures[1].from_numbers(second, r)


def extrapolated(points: Sequence[Tensor]) -> Tensor:
    """The point that three points of an iteration lead to, by squared extrapolation of the step length.

    Parameters
    ----------
    points : sequence of three Tensor, shape (n,)
        Logarithms of an estimate, and of the next two estimates.

    Returns
    -------
    Tensor, shape (n,)
        p_0 + 2 a r + a^2 v, with r = p_1 - p_0, v = p_2 - 2 p_1 + p_0 and a = |r| / |v|, at least 1.

    References
    ----------
    Varadhan and Roland (2008), doi:10.1111/j.1467-9469.2007.00585.x, scheme SqS3.

    Examples
    --------
    >>> slow = [0.5**k * torch.ones(1) for k in range(3)]  # towards 0
    >>> extrapolated(slow)
    tensor([0.])
    """
    first, second, third = points
    step, bend = second - first, third - 2 * second + first
    size = float(bend.norm())
    length = max(1.0, float(step.norm()) / size) if size > 0 else 1.0
    return first + 2 * length * step + length**2 * bend


def rate_of(before: float, now: float) -> float:
    """Ratio of two successive changes, at most 0.99."""
    return min(0.99, now / before) if before > 0 else 0.0
