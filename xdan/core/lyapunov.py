"""Lyapunov exponents and vectors of a dynamics: how fast errors grow, and along which directions.

M vectors at a state are rows, shape (B, M, N), the fastest growing first. The functions are meant for float64.
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
    """Orthonormal directions as starts, keyed by (seed, label); shape (R, vectors, size), float64."""
    noise = normal(seed, Purpose.DIRECTION, labels, torch.zeros(1, dtype=torch.int64), vectors * size)
    return orthonormalise(noise.reshape(len(labels), vectors, size))[0]


def random_coefficients(labels: Tensor, seed: int, vectors: int) -> Tensor:
    """Upper triangular coefficients as starts of `covariant_vectors`; shape (R, vectors, vectors), float64.

    Columns have length 1 and a positive last entry. The signs are then those of the backward vectors.
    """
    noise = normal(seed, Purpose.DIRECTION, labels, torch.zeros(1, dtype=torch.int64), vectors**2, 1)
    upper = noise.reshape(len(labels), vectors, vectors).triu()
    upper.diagonal(dim1=1, dim2=2).abs_()
    length: Tensor = upper.norm(dim=1, keepdim=True)
    return upper / length


def orthonormalise(directions: Tensor) -> tuple[Tensor, Tensor]:
    """Gram-Schmidt by Householder reflections. With directions as columns, V = Q R; R's diagonal is not negative.

    Parameters
    ----------
    directions : Tensor, shape (B, M, N)
        M must be at most N.

    Returns
    -------
    vectors : Tensor, shape (B, M, N)
        Orthonormal rows: the transpose of Q.
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
    """Advance states, and orthonormal vectors at them by the tangent linear model. Vectors are orthonormalised often.

    Parameters
    ----------
    dynamics : Dynamics
        It stands at the time of the states.
    x : Tensor, shape (B, N)
    vectors : Tensor, shape (B, M, N)
        Orthonormal vectors Q at the start.
    steps : int
        Number of model steps, at least 1.
    between : int
        Largest number of steps between two orthonormalisations. One orthonormalisation is at the end.

    Returns
    -------
    x : Tensor, shape (B, N)
    vectors : Tensor, shape (B, M, N)
        Vectors Q' at the end: T Q = Q' R with the tangent propagator T.
    factor : Tensor, shape (B, M, M)
        The factor R.

    Raises
    ------
    ValueError
        If a state is not finite any more.
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
    """Lyapunov exponents along trajectories, as means of ln R_mm. Memory does not grow with time.

    Parameters
    ----------
    dynamics : Dynamics
    x : Tensor, shape (B, N)
        States on the attractor.
    vectors : Tensor, shape (B, M, N)
        Random orthonormal vectors.
    between : int
        Number of steps between two orthonormalisations.
    spin_up, repeats : int
        Number of orthonormalisations until the vectors have converged, and number of those in the mean.

    Returns
    -------
    exponents : Tensor, shape (B, M)
        Exponents per unit of model time, in the order of the vectors.
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
    """Backward Lyapunov vectors at the states of a record, and the factors from each state to the next.

    The vectors depend on the past alone. Every interval starts at the record's state. K (N + M) M numbers are kept for
    each trajectory.

    Parameters
    ----------
    dynamics : Dynamics
    states : Tensor, shape (B, K, N)
    steps : sequence of int, length K
        Number of model steps before each state; the first is not used.
    vectors : Tensor, shape (B, M, N)
        Random orthonormal vectors at the first state. After a spin-up the vectors have converged.
    between : int
        Largest number of steps between two orthonormalisations.

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
    """Covariant Lyapunov vectors from backward vectors. The tangent linear model maps these directions to each other.

    Coefficients C on the backward vectors go back in time by C_k = R_k^-1 C_{k+1}, with columns scaled to length 1.
    They start from any coefficients at the last state. Before a spin-up at the record's end they have converged. The
    function needs as much memory again as its arguments.

    Parameters
    ----------
    vectors : Tensor, shape (B, K, M, N)
        Q of `backward_vectors`.
    factors : Tensor, shape (B, K - 1, M, M)
        R of `backward_vectors`.
    coefficients : Tensor, shape (B, M, M), optional
        C at the last state, upper triangular with columns of length 1; by default the identity.

    Returns
    -------
    vectors : Tensor, shape (B, K, M, N)
        Rows of length 1, which are not orthogonal. The first is the first backward vector.
    growth : Tensor, shape (B, K - 1, M)
        Logarithm of the factor by which each vector grows from a state to the next.

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
    """Kaplan-Yorke dimension D = k + (l_1 + ... + l_k) / |l_{k+1}|; k is the largest with a sum that is not negative.

    Parameters
    ----------
    exponents : Tensor, shape (..., M)
        Exponents in any order.
    whole : bool
        Whether these are all N exponents. If the sum of all is not negative, the dimension is then N; otherwise NaN.

    Returns
    -------
    Tensor, shape (...)
        0 if all exponents are negative.

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
    # The sums rise and then fall for good, so those that are not negative come first.
    count = (sums >= 0).sum(-1, keepdim=True)
    inside = torch.where(count > 0, sums.gather(-1, (count - 1).clamp(min=0)), 0.0)
    following = ordered.gather(-1, count.clamp(max=ordered.shape[-1] - 1))
    dimension = torch.where(
        count < ordered.shape[-1], count + inside / following.abs(), float(ordered.shape[-1]) if whole else math.nan
    )
    return torch.where(ordered.isnan().any(-1, keepdim=True), math.nan, dimension)[..., 0].to(exponents.dtype)
