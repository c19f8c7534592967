"""Derivatives of an analysis network: the marginal gain."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import jvp, vmap

from .networks import AnalysisNetwork
from .tangent import FORWARD_MODE


def marginal_gain(network: AnalysisNetwork, x: Tensor, site: int, *, columns_at_once: int | None = None) -> Tensor:
    """Marginal gain Gamma[i, j, l] = d^2 a_i / (dx_l dzeta_j) at zeta = 0 and one site l, Eq. 10.

    Two nested forward derivatives, for all j at once. A network with memory is taken with its memory empty.

    Parameters
    ----------
    network : AnalysisNetwork
        In evaluation mode.
    x : Tensor, shape (B, N)
        Forecast states.
    site : int
        l.
    columns_at_once : int, optional
        How many j share a pass; all by default.

    Returns
    -------
    Tensor, shape (B, N, N)
        Along i and j.
    """
    directions = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    nothing = torch.zeros_like(x)

    def response(state: Tensor, zeta_direction: Tensor) -> Tensor:
        """Column j of the derivative with respect to zeta, at zeta = 0."""

        def analysis(zeta: Tensor) -> Tensor:
            answer: Tensor = network(state, zeta)[0]
            return answer

        derivative: Tensor = jvp(analysis, (nothing,), (zeta_direction.expand_as(state),))[1]
        return derivative

    def column(zeta_direction: Tensor) -> Tensor:
        state_direction = directions[site].expand_as(x)
        derivative: Tensor = jvp(lambda state: response(state, zeta_direction), (x,), (state_direction,))[1]
        return derivative

    with FORWARD_MODE:
        columns: Tensor = vmap(column, chunk_size=columns_at_once)(directions)
    return columns.movedim(0, 2)


def turn_to(x: Tensor, site: int, reference: int) -> Tensor:
    """Turn the ring until what stood at `site` stands at `reference`; x of shape (..., N)."""
    return x.roll(reference - site, -1)


def symmetry_average(network: AnalysisNetwork, x: Tensor, reference: int, sites: list[int]) -> Tensor:
    """Average marginal gain over states and over sites turned to a reference, Eq. G2.

    Omega_r[i, j] = mean_l Gamma[i + l - r, j + l - r, l], indices on the ring. A network that commutes with turning
    the ring gives the l-th term as its marginal gain at site r of the turned state.

    Parameters
    ----------
    network : AnalysisNetwork
        That commutes with turning the ring.
    x : Tensor, shape (B, N)
    reference : int
        r.
    sites : list of int
        The l averaged over: all N of them, or fewer where the states' distribution is the same at every site.

    Returns
    -------
    Tensor, shape (N, N)
        Mean over states and sites, along i and j.
    """
    total = x.new_zeros(x.shape[1], x.shape[1])
    for site in sites:
        total += marginal_gain(network, turn_to(x, site, reference), reference).mean(0)
    return total / len(sites)
