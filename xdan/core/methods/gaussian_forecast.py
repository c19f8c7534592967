"""Second-order forecast of a Gaussian: its mean, its tangent linear covariance, and the second-order term."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..roots import root_of
from ..tangent import identity_directions, mixed_along
from .advancing import advance, advance_along
from .patches import MOST_SITES, Patches

COLUMNS = 24  # largest number of columns of a root of the covariance along which second derivatives are taken
COLUMNS_OF_PATCH = 6  # the same number for each patch, which has fewer directions of growth


@dataclass(frozen=True)
class Moments:
    """A Gaussian after a forecast.

    Attributes
    ----------
    x : Tensor, shape (B, N)
        Forecast of the mean.
    covariance : Tensor, shape (B, N, N), or (B, T, W, W) in patches
        M P M^T.
    second : Tensor, of that shape
        Q2, the covariance of D^2 M[d, d] / 2, where d has the covariance P.
    patches : Patches, optional
        Patches in which both covariances are kept.
    """

    x: Tensor
    covariance: Tensor
    second: Tensor
    patches: Patches | None = None

    def inflated(self, factor: float, most: Tensor) -> Tensor:
        """M P M^T + c2 Q2. The term c2 Q2 is shortened: the trace of the sum is at most that of the climate.

        Q2 grows with the square of P. In a gap of the observations it would soon be larger than any real error.

        Parameters
        ----------
        factor : float
            Factor c2 of the second-order term.
        most : Tensor, shape (), or (T,) in patches
            Trace of the climate's covariance.
        """
        room = (most - _trace(self.covariance)).clamp_min(0.0)
        wanted = factor * _trace(self.second)
        share = factor * (room / wanted.clamp_min(torch.finfo(wanted.dtype).tiny)).clamp_max(1.0)
        whole = self.covariance + share[..., None, None] * self.second
        whole = whole if self.patches is None else self.patches.agreed(whole)
        return 0.5 * (whole + whole.mT)


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)


def forecast_moments(
    dynamics: Dynamics, x: Tensor, covariance: Tensor, steps: int, patches: Patches | None = None
) -> Moments:
    """Advance a mean (B, N) and a covariance (B, N, N), and compute the second-order term.

    Where the model knows the second-order covariance of its tendency (`Dynamics.second_order_tendency`), the term is

        D^2 M[d, d] / 2 = integral of M(T, t) f''[d(t), d(t)] / 2 dt,   d(t) = M(t, 0) d,

    by the trapezoidal rule over one model step, and by Simpson's rule over more steps. Its relative error is 5 % over
    one step of Lorenz-96, below 1 % over two to five steps, and 14 % for Kuramoto-Sivashinsky, which is stiff. For
    other models the second derivatives are taken along the leading columns of a root of P: at most `COLUMNS`, or
    `COLUMNS_OF_PATCH` for each patch.

    Parameters
    ----------
    dynamics : Dynamics
    x : Tensor, shape (B, N)
    covariance : Tensor, shape (B, N, N), or (B, T, W, W) in patches
    steps : int
        Model steps.
    patches : Patches, optional
        Patches in which the covariance is kept.

    Returns
    -------
    Moments

    Notes
    -----
    For Gaussian d with P = S S^T, Q2 = (1/2) sum over k, l of h_kl h_kl^T, h_kl = D^2 M[s_k, s_l].

    References
    ----------
    Jazwinski (1970), Sect. 9.3; Palatella and Trevisan (2015), doi:10.1103/PhysRevE.91.042905.
    """
    if steps == 0:
        return Moments(x, covariance, torch.zeros_like(covariance))
    if patches is not None:
        known = patches.bends(dynamics, covariance)
    else:
        known = dynamics.second_order_tendency(covariance) is not None
    if not known:
        return _by_derivatives(dynamics, x, covariance, steps, patches)
    nodes, duration = _nodes(steps), steps * dynamics.timestep
    second = torch.zeros_like(covariance)
    # For each earlier node: its weight; E[d e^T] with d at that node and e here; the tangent linear model from that
    # node to here, which is None if the two nodes are the same.
    before: list[tuple[float, Tensor, Tensor | None]] = []
    place = 0
    for node, weight in nodes:
        if node > place:
            x, leg = _tangent(dynamics.from_step(dynamics.model_step + place), x, node - place, patches)
            rows, place = leg.mT, node
            before = [(w, joint @ rows, leg if since is None else leg @ since) for w, joint, since in before]
            covariance, second = leg @ covariance @ rows, leg @ second @ rows
        half = 0.5 * weight**2 * _bend(dynamics, covariance, patches)
        for w, joint, since in before:
            assert since is not None  # the last node is not among them
            half = half + w * weight * (since @ _bend(dynamics, joint, patches))
        second = second + duration**2 * (half + half.mT)
        before.append((weight, covariance, None))
    return Moments(x, covariance, second, patches)


def _tangent(dynamics: Dynamics, x: Tensor, steps: int, patches: Patches | None) -> tuple[Tensor, Tensor]:
    """Advance states (B, N), and give the tangent linear model as a matrix (B, N, N), or in patches."""
    if patches is not None:
        return patches.tangent(dynamics, x, steps)
    after, rows = advance_along(dynamics, x, identity_directions(x), steps)
    return after, rows.mT


def _bend(dynamics: Dynamics, covariance: Tensor, patches: Patches | None) -> Tensor:
    """Second-order covariance of the tendency, for a model that knows it."""
    if patches is not None:
        return patches.bend(dynamics, covariance)
    second = dynamics.second_order_tendency(covariance)
    assert second is not None
    return second


def _nodes(steps: int) -> list[tuple[int, float]]:
    """Model steps and weights, of sum 1, of a quadrature over an interval: Simpson's rule, or the trapezoidal one."""
    if steps == 1:
        return [(0, 0.5), (1, 0.5)]
    if steps % 2:  # Simpson's 3/8 rule over the first three steps
        head = [(0, 3 / 8), (1, 9 / 8), (2, 9 / 8), (3, 3 / 8)]
        tail = _simpson(3, steps)
        joint = [*head[:3], (3, head[3][1] + (tail[0][1] if tail else 0.0)), *tail[1:]]
        return [(place, weight / steps) for place, weight in joint]
    return [(place, weight / steps) for place, weight in _simpson(0, steps)]


def _simpson(start: int, stop: int) -> list[tuple[int, float]]:
    """Composite Simpson weights of unit steps over an even number of them."""
    count = stop - start
    return [(start + k, (1 if k in (0, count) else 4 if k % 2 else 2) / 3) for k in range(count + 1) if count]


def _by_derivatives(
    dynamics: Dynamics, x: Tensor, covariance: Tensor, steps: int, patches: Patches | None = None
) -> Moments:
    """Moments by second derivatives of the whole forecast, along columns of a root of P; fewer columns in patches."""
    after, matrix = _tangent(dynamics, x, steps, patches)
    if patches is None:
        columns = root_of(covariance)[:, -COLUMNS:]
    else:
        root = root_of(covariance.flatten(0, 1))[:, -COLUMNS_OF_PATCH:].unflatten(0, covariance.shape[:2])
        columns = patches.side_by_side(root)
    bends, weight = bends_along(dynamics, x, columns, steps)
    propagated = matrix @ covariance @ matrix.mT
    if patches is None:
        return Moments(after, propagated, (bends * weight).mT @ bends)
    inside = patches.apart(bends)
    return Moments(after, propagated, (inside * weight).mT @ inside, patches)


def bends_along(dynamics: Dynamics, x: Tensor, columns: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Second derivatives h_kl = D^2 M[s_k, s_l] of a forecast, and the weights of the pairs (k, l) in Q2.

    Parameters
    ----------
    dynamics : Dynamics
    x : Tensor, shape (B, N)
    columns : Tensor, shape (B, ..., K, N)
        Columns s_k, in groups. Pairs are made within a group only.
    steps : int

    Returns
    -------
    bends : Tensor, shape (B, ..., K (K + 1) / 2, N)
        Second derivatives of the pairs k <= l.
    weight : Tensor, shape (K (K + 1) / 2, 1)
        Q2 is the sum of weight h h^T. A pair of two different columns counts twice, for (k, l) and (l, k).
    """
    count, size = columns.shape[-2:]
    first, last = torch.triu_indices(count, count, device=x.device)
    pairs = columns[..., first, :], columns[..., last, :]
    points = x.reshape(len(x), *(1,) * (columns.ndim - 2), size).expand(pairs[0].shape)
    points = points.reshape(-1, size).contiguous()  # copies of one state would share memory, which torch refuses

    def forecast(one: Tensor, other: Tensor) -> Tensor:
        return advance(dynamics, one + other, steps)

    what = f"the model {dynamics.label!r}"
    one, other = (side.reshape(-1, size) for side in pairs)
    bends = mixed_along(forecast, points, torch.zeros_like(points), one, other, what).reshape(pairs[0].shape)
    return bends, torch.where(first == last, 0.5, 1.0).to(x)[:, None]


def check_size(sites: int, who: str, remedy: str = "take 'letkf', or a network without a covariance") -> None:
    """Refuse a state whose covariance is too large for a matrix, and say what to do.

    Raises
    ------
    ValueError
    """
    if sites > MOST_SITES:
        raise ValueError(
            f"{who} and states of {sites:,} components: a covariance of {sites:,} x {sites:,} would be carried for "
            f"every trajectory, expected at most {MOST_SITES:,} components; {remedy}"
        )
