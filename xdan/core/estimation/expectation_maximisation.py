"""Expectation maximisation of Q and R: what one pass of the smoother over a record says of both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..methods.record import Record
from .gaussian_filter import BYTES, Gaussian, backward_segments
from .smoother import Backward, disturbances


@dataclass(frozen=True)
class Scores:
    """Twice the derivatives of the log-likelihood by Q and R, in groups of times, and what they are summed over.

    Attributes
    ----------
    model : Tensor, shape (B, G, N, N), or (B, G, N)
        Sum of r r^T - U over the intervals of a group, or its diagonal.
    observation : Tensor, shape (B, G, P, P), or (B, G, P)
        Sum of u u^T - D over the times of a group, or its diagonal.
    intervals : Tensor, shape (B, G)
        How many intervals.
    observed : Tensor, shape (B, G, P)
        How often each observation is made.
    log_likelihood : Tensor, shape (B, G)
    """

    model: Tensor
    observation: Tensor
    intervals: Tensor
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
    """Smooth a record with Q and R, and sum what the errors of model and observations are expected to be.

    The expectation of e e^T given all observations is Q + Q (r r^T - U) Q, and that of o o^T is R + R (u u^T - D) R
    (`disturbances`): the M step of expectation maximisation follows from the sums of the two brackets alone.

    Parameters
    ----------
    record : Record
        Its observing system has R.
    noise : Tensor, shape (N, N)
        Q.
    prior : Gaussian
        Forecast of the first time.
    burn_in : int
        First times that the sums leave out.
    groups : int
        Groups of times one after another that the others are summed in.
    whole : tuple of bool
        Whether matrices are summed, of Q and of R; otherwise their diagonals.

    Returns
    -------
    Scores
    """
    count = len(record.steps)
    x = record.observation
    rows, size, observations = *record.shape, x.shape[-1]
    tails = [(n, n) if full else (n,) for n, full in zip((size, observations), whole, strict=True)]
    model, observation = (x.new_zeros(rows, groups, *tail) for tail in tails)
    intervals, likelihood = x.new_zeros(rows, groups), x.new_zeros(rows, groups)
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
            observed[:, group] += cycle.observed
            likelihood[:, group] += cycle.log_likelihood
    return Scores(model, observation, intervals, observed, likelihood)


def bracket(v: Tensor, precision: Tensor, whole: bool) -> Tensor:
    """v v^T - U, shape (B, n, n), or its diagonal, (B, n)."""
    if whole:
        return v[:, :, None] * v[:, None, :] - precision
    return v.square() - precision.diagonal(dim1=1, dim2=2)
