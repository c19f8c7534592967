"""Derivatives of an analysis network: analysis covariance and marginal gain, exact and by regression."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .guided_analysis import FilterCovariance, GuidedAnalysis
from .networks import AnalysisNetwork
from .networks.base import formula, is_patched
from .tangent import mixed_along


@dataclass(frozen=True)
class Points:
    """Points at which a network is differentiated.

    Attributes
    ----------
    x : Tensor, shape (B, N)
        Forecast states.
    zeta : Tensor, shape (B, N)
        Projected innovations.
    memory : Tensor, shape (B, n, N), optional
        Latent channels; by default empty.
    covariance : FilterCovariance, optional
        P_a of the Kalman filter beside the network, if there is one.
    """

    x: Tensor
    zeta: Tensor
    memory: Tensor | None = None
    covariance: FilterCovariance | None = None

    def __len__(self) -> int:
        return len(self.x)

    def apply(self, function: Callable[[Tensor], Tensor]) -> Points:
        """Apply a function to each tensor. P_a does not change."""
        memory = None if self.memory is None else function(self.memory)
        return replace(self, x=function(self.x), zeta=function(self.zeta), memory=memory)

    def at(self, index: Tensor) -> Points:
        """Some of the points. A point may occur several times."""
        covariance = None if self.covariance is None else self.covariance.at(index)
        return replace(self.apply(lambda value: value[index]), covariance=covariance)

    def permuted(self, permutation: Tensor) -> Points:
        """The points with permuted components of their states."""
        covariance = None if self.covariance is None else self.covariance.permuted(permutation)
        return replace(self.apply(lambda value: value[..., permutation]), covariance=covariance)

    def without_innovation(self) -> Points:
        """The points with their states and memory, and zeta = 0."""
        return replace(self, zeta=torch.zeros_like(self.zeta))

    def sampled(self, zeta: Tensor) -> Points:
        """B P points: each state with each of its P projected innovations (B, P, N)."""
        repeated = self.at(torch.arange(len(self), device=self.x.device).repeat_interleave(zeta.shape[1]))
        return replace(repeated, zeta=zeta.flatten(0, 1))


def increment(network: AnalysisNetwork, points: Points) -> Tensor:
    """x_a - x_f, shape (B, N)."""
    analysis = network if points.covariance is None else GuidedAnalysis(network, points.covariance)
    answer: Tensor = analysis(points.x, points.zeta, points.memory)[0] - points.x
    return answer


def _derivative(network: AnalysisNetwork, points: Points, name: str) -> Callable[..., Tensor]:
    """A derivative by the network's formula; if there is a filter beside the network, with its covariance."""
    if points.covariance is None:
        return formula(network, name)
    derivative: Callable[..., Tensor] = getattr(GuidedAnalysis(network, points.covariance), name)
    return derivative


def analysis_covariance(network: AnalysisNetwork, points: Points) -> Tensor:
    """P_a(x)[i, j] = d a_i / d zeta_j, Eq. 5, by forward derivatives.

    Parameters
    ----------
    network : AnalysisNetwork
        A network of one forecast, in evaluation mode.
    points : Points
        Points, with zeta = 0 for Eq. 5.

    Returns
    -------
    Tensor, shape (B, N, N)
    """
    return _derivative(network, points, "analysis_covariance")(points.x, points.zeta, points.memory)


def marginal_gain(network: AnalysisNetwork, points: Points, site: int) -> Tensor:
    """Gamma(x, zeta)[i, j, l] = d^2 a_i / (dx_l dzeta_j) at one site l, Eq. 9 and 10.

    It takes two nested forward derivatives, for all j at once. For a network that is linear in zeta it takes one, of
    P_a. If the network cannot see across the whole ring, only sites with possible effects are computed. The cost then
    does not grow with the ring.

    Parameters
    ----------
    network : AnalysisNetwork
    points : Points
        Points, with zeta = 0 for Eq. 10.
    site : int
        The site l.

    Returns
    -------
    Tensor, shape (B, N, N)
        Gamma along i and j.
    """
    sites, network_gain = points.x.shape[1], _derivative(network, points, "marginal_gain")
    window = sites_that_matter(network, sites)
    if window == sites:
        return network_gain(points.x, points.zeta, points.memory, site)
    first = site - window // 2
    narrow = points.apply(lambda value: value.roll(-first, -1)[..., :window].contiguous())
    gamma = points.x.new_zeros(len(points), sites, sites)
    gamma[:, :window, :window] = network_gain(narrow.x, narrow.zeta, narrow.memory, window // 2)
    return gamma.roll((first, first), (1, 2))


def sites_that_matter(network: AnalysisNetwork, sites: int) -> int:
    """Width of the window around l outside of which a marginal gain is zero; all sites if there is no such bound."""
    # The results of a filter depend on all sites.
    reach = None if is_patched(network) or network.guides else network.reach
    # a_i depends on x_l only within the network's reach of l, and on zeta_j only within twice the reach.
    return sites if reach is None else min(sites, 4 * reach + 1)


def whole_marginal_gain(network: AnalysisNetwork, points: Points) -> Tensor:
    """Gamma along i, j and l, shape (B, N, N, N)."""
    return torch.stack([marginal_gain(network, points, site) for site in range(points.x.shape[1])], -1)


def mixed_derivative(network: AnalysisNetwork, points: Points, zeta_direction: Tensor, x_direction: Tensor) -> Tensor:
    """sum_jl Gamma[i, j, l] v_j u_l along directions v and u of shape (B, N); shape (B, N)."""
    if points.covariance is not None:
        guided = GuidedAnalysis(network, points.covariance)
        return guided.mixed_derivative(points.x, points.zeta, points.memory, x_direction, zeta_direction)

    def analysis(state: Tensor, zeta: Tensor) -> Tensor:
        answer: Tensor = network(state, zeta, points.memory)[0]
        return answer

    title = f"the network {network.name!r}"
    return mixed_along(analysis, points.x, points.zeta, x_direction, zeta_direction, title)


def forecast_derivative(network: AnalysisNetwork, points: Points, site: int) -> Tensor:
    """Derivative of the analysis with respect to x_l at one site l, shape (B, N)."""
    return _derivative(network, points, "forecast_derivative")(points.x, points.zeta, points.memory, site)


def regressed_covariance(network: AnalysisNetwork, points: Points, samples: Tensor) -> Tensor:
    """P_a(x) as the slopes of the increment with respect to samples of zeta, shape (B, N, N).

    Parameters
    ----------
    network : AnalysisNetwork
    points : Points
        Their zeta is not used.
    samples : Tensor, shape (B, P, N)

    References
    ----------
    Bocquet et al. (2024), doi:10.1063/5.0230837: least squares of increments on centred innovations.
    """
    responses = increment(network, points.sampled(samples)).unflatten(0, samples.shape[:2])
    return regress(samples, responses)


def composite_marginal_gain(network: AnalysisNetwork, points: Points, samples: Tensor, site: int) -> Tensor:
    """Gamma(x)[:, :, l] as slopes of d a_i / d x_l with respect to samples of zeta, Eq. G3, H1 to H4, (B, N, N)."""
    responses = forecast_derivative(network, points.sampled(samples), site).unflatten(0, samples.shape[:2])
    return regress(samples, responses)


def regress(samples: Tensor, responses: Tensor) -> Tensor:
    """Slopes C D^+ of responses with respect to samples, both centred, Eq. H2 to H4.

    The pseudo-inverse gives zero along directions that occur in no sample, Eq. C3.

    Parameters
    ----------
    samples : Tensor, shape (B, P, N)
    responses : Tensor, shape (B, P, M)

    Returns
    -------
    Tensor, shape (B, M, N)
    """
    z = (samples - samples.mean(1, keepdim=True)).double()
    a = (responses - responses.mean(1, keepdim=True)).double()
    inverse = torch.linalg.pinv(z.mT @ z, rtol=1e-9, hermitian=True)
    slopes: Tensor = (a.mT @ z @ inverse).to(responses.dtype)
    return slopes


def bias(network: AnalysisNetwork, points: Points) -> Tensor:
    """Increment without an innovation, |a(x, 0)| / sqrt(N), shape (B,)."""
    size: Tensor = increment(network, points.without_innovation()).norm(dim=1) / math.sqrt(points.x.shape[1])
    return size


def increment_scaling(
    network: AnalysisNetwork, points: Points, covariance: Tensor, scales: Tensor, *, cutoff: float | None = None
) -> Tensor:
    """|P_a^-1 (a(x, lambda zeta) - a(x, 0))| divided by its value at lambda = 1; its mean is r(lambda), Eq. 23.

    Parameters
    ----------
    network : AnalysisNetwork
    points : Points
    covariance : Tensor, shape (B, N, N)
        P_a(x).
    scales : Tensor, shape (L,)
        Factors lambda.
    cutoff : float, optional
        Directions are left out whose singular value is below this share of the largest. By default none are left out,
        and a P_a that is singular (to rounding) is refused.

    Returns
    -------
    Tensor, shape (B, L)

    Raises
    ------
    ValueError
        If P_a is singular to rounding, and there is no cutoff.
    """
    left, values, _ = torch.linalg.svd(covariance)
    share = covariance.shape[-1] * torch.finfo(values.dtype).eps if cutoff is None else cutoff
    left_out = values <= share * values[:, :1]
    if bool(left_out.any()) and cutoff is None:
        raise ValueError(
            f"P_a is singular: {int(left_out.sum(1).max())} of its {values.shape[1]} singular values are zero to "
            "rounding at some state, so that Eq. 23 has no inverse there: expected a regular P_a; with cutoff=1e-3 "
            "directions below that share of the largest singular value are left out"
        )
    inverse = torch.where(left_out, torch.zeros_like(values), 1.0 / values)
    bias_at_zero = increment(network, points.without_innovation())

    def size(scale: Tensor | float) -> Tensor:
        answer = increment(network, replace(points, zeta=scale * points.zeta)) - bias_at_zero
        # |V S^-1 U^T y| = |S^-1 U^T y| for orthogonal V.
        length: Tensor = (inverse * (left.mT @ answer[..., None])[..., 0]).norm(dim=1)
        return length

    unit = size(1.0)
    return torch.stack([size(scale) / unit for scale in scales], 1)
