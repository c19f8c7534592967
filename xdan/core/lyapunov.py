"""Lyapunov exponents and vectors of a dynamics: how fast errors grow, and along which directions.

M vectors at a state are rows, shape (B, M, N), the fastest growing first. All is meant for float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from .dynamics import Dynamics
from .methods.advancing import advance_along
from .random import Purpose, normal


def orthonormal_directions(labels: Tensor, seed: int, vectors: int, size: int) -> Tensor:
    """Orthonormal directions to start from, keyed by (seed, label); shape (R, vectors, size), float64."""
    noise = normal(seed, Purpose.DIRECTION, labels, torch.zeros(1, dtype=torch.int64), vectors * size)
    return orthonormalise(noise.reshape(len(labels), vectors, size))[0]


def random_coefficients(labels: Tensor, seed: int, vectors: int) -> Tensor:
    """Upper triangular coefficients to start `covariant_vectors` from; shape (R, vectors, vectors), float64.

    Columns have length 1 and a positive last entry, so that signs are those of the backward vectors.
    """
    noise = normal(seed, Purpose.DIRECTION, labels, torch.zeros(1, dtype=torch.int64), vectors**2, 1)
    upper = noise.reshape(len(labels), vectors, vectors).triu()
    upper.diagonal(dim1=1, dim2=2).abs_()
    length: Tensor = upper.norm(dim=1, keepdim=True)
    return upper / length


def orthonormalise(directions: Tensor) -> tuple[Tensor, Tensor]:
    """Gram-Schmidt by Householder reflections: with directions as columns, V = Q R and R's diagonal not negative.

    Parameters
    ----------
    directions : Tensor, shape (B, M, N)
        M <= N.

    Returns
    -------
    vectors : Tensor, shape (B, M, N)
        Orthonormal rows, those of Q transposed.
    factor : Tensor, shape (B, M, M)
        R, upper triangular.
    """
    q, r = torch.linalg.qr(directions.mT)
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    sign = torch.where(diagonal < 0, -1.0, 1.0).to(r.dtype)
    return (q * sign[:, None]).mT.contiguous(), r * sign[..., None]


def propagate(
    dynamics: Dynamics, x: Tensor, vectors: Tensor, steps: int, between: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Advance states, and orthonormal vectors at them by the tangent linear model, orthonormalised on the way.

    Parameters
    ----------
    dynamics : Dynamics
        Standing at the time of the states.
    x : Tensor, shape (B, N)
    vectors : Tensor, shape (B, M, N)
        Q at the start.
    steps : int
        At least 1.
    between : int
        Steps between two orthonormalisations, at most; one comes at the end.

    Returns
    -------
    x : Tensor, shape (B, N)
    vectors : Tensor, shape (B, M, N)
        Q' at the end, of T Q = Q' R with the tangent propagator T.
    factor : Tensor, shape (B, M, M)
        R.

    Raises
    ------
    ValueError
        If a state becomes not finite.
    """
    factor: Tensor | None = None
    end = dynamics.model_step + steps
    while steps > 0:
        x, pushed = advance_along(dynamics.from_step(end - steps), x, vectors, min(between, steps))
        if not bool(x.isfinite().all()):
            raise ValueError(
                f"a trajectory of {dynamics!r} grew beyond all numbers: expected a bounded attractor; check its "
                "parameters, its timestep= and the rest= that it is spun up from, or take a shorter time"
            )
        vectors, last = orthonormalise(pushed)
        factor = last if factor is None else last @ factor
        steps -= between
    assert factor is not None
    return x, vectors, factor


def spectrum(
    dynamics: Dynamics, x: Tensor, vectors: Tensor, *, between: int, spin_up: int, repeats: int
) -> tuple[Tensor, Tensor]:
    """Lyapunov exponents along trajectories, as means of ln R_mm; memory does not grow with time.

    Parameters
    ----------
    dynamics : Dynamics
    x : Tensor, shape (B, N)
        On the attractor.
    vectors : Tensor, shape (B, M, N)
        Orthonormal, at random.
    between : int
        Steps between two orthonormalisations.
    spin_up, repeats : int
        Orthonormalisations that let the vectors converge, and those that are averaged over.

    Returns
    -------
    exponents : Tensor, shape (B, M)
        Per unit of model time, in the order of the vectors.
    x : Tensor, shape (B, N)
        The last states.

    References
    ----------
    Benettin et al. (1980), doi:10.1007/BF02128236; Shimada and Nagashima (1979), doi:10.1143/PTP.61.1605, Eq. 2.16.
    """
    total = torch.zeros(vectors.shape[:2], dtype=x.dtype, device=x.device)
    for repeat in range(spin_up + repeats):
        now = dynamics.from_step(dynamics.model_step + repeat * between)
        x, vectors, factor = propagate(now, x, vectors, between, between)
        if repeat >= spin_up:
            total += factor.diagonal(dim1=-2, dim2=-1).log()
    return total / (repeats * between * dynamics.timestep), x


def backward_vectors(
    dynamics: Dynamics, states: Tensor, steps: Sequence[int], vectors: Tensor, *, between: int
) -> tuple[Tensor, Tensor]:
    """Backward Lyapunov vectors at the states of a record, and the factors that lead from each to the next.

    They depend on the past alone. Every interval starts at the record's own state. K (N + M) M numbers are kept for
    each trajectory.

    Parameters
    ----------
    dynamics : Dynamics
    states : Tensor, shape (B, K, N)
    steps : sequence of int, length K
        Model steps before each state; the first is not used.
    vectors : Tensor, shape (B, M, N)
        Orthonormal, at random, at the first state; converged ones come after a spin-up.
    between : int
        Steps between two orthonormalisations, at most.

    Returns
    -------
    vectors : Tensor, shape (B, K, M, N)
        Orthonormal rows.
    factors : Tensor, shape (B, K - 1, M, M)
        R of T_k Q_k = Q_{k+1} R_k, upper triangular with a positive diagonal. Its logarithms are the vectors' growth.

    References
    ----------
    Legras and Vautard (1996), A guide to Liapunov vectors; Kuptsov and Parlitz (2012), doi:10.1007/s00332-012-9126-5.
    """
    kept = vectors.new_empty(vectors.shape[0], states.shape[1], *vectors.shape[1:])
    factors = vectors.new_empty(vectors.shape[0], states.shape[1] - 1, vectors.shape[1], vectors.shape[1])
    kept[:, 0] = vectors
    begins = accumulate(steps[1:], initial=dynamics.model_step)
    for k, (begin, count) in enumerate(zip(begins, steps[1:], strict=False)):
        _, vectors, factors[:, k] = propagate(dynamics.from_step(begin), states[:, k], vectors, count, between)
        kept[:, k + 1] = vectors
    return kept, factors


def covariant_vectors(vectors: Tensor, factors: Tensor, coefficients: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Covariant Lyapunov vectors from backward ones: directions that the tangent linear model maps onto each other.

    Coefficients C on the backward vectors are taken back in time by C_k = R_k^-1 C_{k+1}, columns scaled to length 1,
    from any at the last state; converged ones come before a spin-up at the end. Memory is that of the arguments once
    more.

    Parameters
    ----------
    vectors : Tensor, shape (B, K, M, N)
        Q of `backward_vectors`.
    factors : Tensor, shape (B, K - 1, M, M)
        R of `backward_vectors`.
    coefficients : Tensor, shape (B, M, M), optional
        C at the last state, upper triangular with columns of length 1; the identity by default.

    Returns
    -------
    vectors : Tensor, shape (B, K, M, N)
        Rows of length 1, not orthogonal; the first is the first backward vector.
    growth : Tensor, shape (B, K - 1, M)
        ln of the factor by which each grows from a state to the next.

    References
    ----------
    Ginelli et al. (2007), doi:10.1103/PhysRevLett.99.130601, Eq. 4 and the text around it.
    """
    batch, count, size, _ = vectors.shape
    covariant = torch.empty_like(vectors)
    growth = vectors.new_empty(batch, count - 1, size)
    if coefficients is None:
        coefficients = torch.eye(size, dtype=vectors.dtype, device=vectors.device).expand(batch, size, size)
    covariant[:, -1] = coefficients.mT @ vectors[:, -1]
    for k in range(count - 2, -1, -1):
        before = torch.linalg.solve_triangular(factors[:, k], coefficients, upper=True)
        length = before.norm(dim=1, keepdim=True)
        coefficients = before / length
        growth[:, k] = -length[:, 0].log()
        covariant[:, k] = coefficients.mT @ vectors[:, k]
    return covariant, growth


def kaplan_yorke_dimension(exponents: Tensor, *, whole: bool = True) -> Tensor:
    """Kaplan-Yorke dimension D = k + (l_1 + ... + l_k) / |l_{k+1}|, k the most whose sum is not negative.

    Parameters
    ----------
    exponents : Tensor, shape (..., M)
        In any order.
    whole : bool
        Whether they are all N exponents. The dimension is then N where the sum of all is not negative; otherwise NaN.

    Returns
    -------
    Tensor, shape (...)
        0 where every exponent is negative.

    References
    ----------
    Kaplan and Yorke (1979), doi:10.1007/BFb0064319; Frederickson et al. (1983), doi:10.1016/0022-0396(83)90011-6.

    Examples
    --------
    >>> kaplan_yorke_dimension(torch.tensor([1.0, 0.0, -4.0]))
    tensor(2.2500)
    """
    ordered = exponents.sort(-1, descending=True).values
    sums = ordered.cumsum(-1)
    # The sums rise, then fall for good: those that are not negative come first.
    count = (sums >= 0).sum(-1, keepdim=True)
    inside = torch.where(count > 0, sums.gather(-1, (count - 1).clamp(min=0)), 0.0)
    following = ordered.gather(-1, count.clamp(max=ordered.shape[-1] - 1))
    dimension = torch.where(
        count < ordered.shape[-1], count + inside / following.abs(), float(ordered.shape[-1]) if whole else math.nan
    )
    return torch.where(ordered.isnan().any(-1, keepdim=True), math.nan, dimension)[..., 0].to(exponents.dtype)
