"""Kernels: functions of a network and B evaluation points, with tensors as input and a tensor (B, ...) as result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.networks import AnalysisNetwork
from ..core.observing import ObservingSystem
from ..core.sensitivity import (
    Points,
    analysis_covariance,
    bias,
    composite_marginal_gain,
    increment,
    increment_scaling,
    marginal_gain,
    mixed_derivative,
    regress,
    regressed_covariance,
)

_POINTS_AT_ONCE = 64


@dataclass(frozen=True)
class PointBatch:
    """B evaluation points, in the form that kernels take.

    Attributes
    ----------
    points : Points
    observing : ObservingSystem
        H and R at the time of each state.
    observed : Tensor of bool, shape (B, P), optional
        Which observations are made; None if neither the kernel nor the innovations need it.
    draw : callable
        draw(count, size, stream) returns standard normal numbers (B, count, size), keyed by trajectory and time.
    background : Tensor, shape () or (N, N), optional
        Standard deviation of forecast errors, or a Cholesky factor of their covariance. Samples have these errors
        beside those of R.
    """

    points: Points
    observing: ObservingSystem
    observed: Tensor | None
    draw: Callable[[int, int, int], Tensor]
    background: Tensor | None

    def at_innovation(self, zeta: Tensor) -> PointBatch:
        """The same states with the projected innovations zeta, (B, N)."""
        return replace(self, points=replace(self.points, zeta=zeta))

    def samples(self, count: int) -> Tensor:
        """Draw projected innovations H^T R^-1 (eps + H e), of covariance H^T R^-1 (R + H P_f H^T) R^-1 H, App. H.

        Returns
        -------
        Tensor, shape (B, count, N)
        """
        assert self.observed is not None
        x, observed = self.points.x, self.observed
        size = observed.shape[1]
        noise = self.draw(count, size, 0)
        # One row of R for every sample.
        repeated = self.observing.repeat(count)
        x, observed = x.repeat_interleave(count, 0), observed.repeat_interleave(count, 0)
        innovation = repeated.errors_from(noise.flatten(0, 1).to(x))
        if self.background is not None:
            errors = self.draw(count, x.shape[1], 1).flatten(0, 1).to(x)
            errors = errors * self.background if self.background.ndim == 0 else errors @ self.background.T
            innovation = innovation + repeated.tangent(x, errors[:, None])[:, 0]
        zeta: Tensor = repeated.project_innovation(innovation, observed, x).unflatten(0, (-1, count))
        return zeta


Kernel = Callable[[AnalysisNetwork, PointBatch], Tensor]
"""A kernel: a function of a network and B points, whose result is a tensor (B, ...)."""


@dataclass(frozen=True)
class CovarianceKernel:
    """P_a, or with `to_gain` K = P_a H^T R^-1, shape (B, N, N) or (B, N, P)."""

    to_gain: bool
    samples: int | None

    def __call__(self, network: AnalysisNetwork, batch: PointBatch) -> Tensor:
        """Compute at B points."""
        if self.samples is None:
            covariance = analysis_covariance(network, batch.points)
        else:
            covariance = regressed_covariance(network, batch.points, batch.samples(self.samples))
        return covariance @ _projection(batch) if self.to_gain else covariance


def _projection(batch: PointBatch) -> Tensor:
    """H^T R^-1 of every state, shape (B, N, P)."""
    assert batch.observed is not None
    states, size = batch.observed.shape
    unit = torch.eye(size, dtype=batch.points.x.dtype, device=batch.points.x.device).repeat(states, 1)
    x, observed = batch.points.x.repeat_interleave(size, 0), batch.observed.repeat_interleave(size, 0)
    columns: Tensor = batch.observing.repeat(size).project_innovation(unit, observed, x).unflatten(0, (states, size)).mT
    return columns


@dataclass(frozen=True)
class MarginalGainKernel:
    """Gamma at some sites l, shape (B, N, N, len(sites))."""

    sites: tuple[int, ...]
    samples: int | None

    def __call__(self, network: AnalysisNetwork, batch: PointBatch) -> Tensor:
        """Compute at B points."""
        samples = None if self.samples is None else batch.samples(self.samples)
        return torch.stack([_at_site(network, batch.points, site, samples) for site in self.sites], -1)


@dataclass(frozen=True)
class CutKernel:
    """The result of another kernel at some outputs i and some innovations j.

    Attributes
    ----------
    kernel : callable
        A kernel with a result (B, N, N, ...).
    i, j : slice
    """

    kernel: Kernel
    i: slice
    j: slice

    def __call__(self, network: AnalysisNetwork, batch: PointBatch) -> Tensor:
        """Compute at B points."""
        return self.kernel(network, batch)[:, self.i, self.j]


@dataclass(frozen=True)
class SymmetryAverageKernel:
    """Omega_r, one Gamma[:, :, g(r)] at a time, shape (B, N, N).

    Attributes
    ----------
    permutations : tuple of Tensor
        Elements g of the group. Elements with equal g(r) stand side by side. If the network commutes with the group,
        the identity alone.
    """

    permutations: tuple[Tensor, ...]
    reference: int
    samples: int | None

    def __call__(self, network: AnalysisNetwork, batch: PointBatch) -> Tensor:
        """Compute at B points."""
        x = batch.points.x
        samples = None if self.samples is None else batch.samples(self.samples)
        total = x.new_zeros(*x.shape, x.shape[1])
        last, gamma = -1, total
        for permutation in self.permutations:
            g = permutation.to(x.device)
            site = int(g[self.reference])
            if site != last:  # the gain of one site at a time: the gains of all sites would be the large tensor Gamma
                last, gamma = site, _at_site(network, batch.points, site, samples)
            total += gamma[:, g][:, :, g]
        return total / len(self.permutations)


def _at_site(network: AnalysisNetwork, points: Points, site: int, samples: Tensor | None) -> Tensor:
    if samples is None:
        return marginal_gain(network, points, site)
    return composite_marginal_gain(network, points, samples, site)


@dataclass(frozen=True)
class ScalingKernel:
    """r, r^2 and 1 for each lambda, shape (B, L, 3); zeros for a state without an innovation."""

    scales: tuple[float, ...]
    covariance: CovarianceKernel
    cutoff: float | None

    def __call__(self, network: AnalysisNetwork, batch: PointBatch) -> Tensor:
        """Compute at B points."""
        scales = batch.points.x.new_tensor(self.scales)
        covariance = self.covariance(network, replace(batch, points=batch.points.without_innovation()))
        ratio = increment_scaling(network, batch.points, covariance, scales, cutoff=self.cutoff)
        innovated = (batch.points.zeta != 0).any(1)[:, None]
        ratio = torch.where(innovated, ratio, 0.0)
        return torch.stack([ratio, ratio.square(), innovated.to(ratio).expand_as(ratio)], -1)


@dataclass(frozen=True)
class SteinKernel:
    """Left side of Stein's identity, right side, their difference and its square, shape (B, N, N, 4)."""

    samples: int

    def __call__(self, network: AnalysisNetwork, batch: PointBatch) -> Tensor:
        """Compute at B points."""
        zeta = batch.samples(self.samples)
        points = batch.points.sampled(zeta)
        slopes = regress(zeta, increment(network, points).unflatten(0, zeta.shape[:2]))
        parts = torch.arange(len(points)).split(_POINTS_AT_ONCE)
        gradients = torch.cat([analysis_covariance(network, points.at(part)) for part in parts])
        centred = zeta - zeta.mean(1, keepdim=True)
        moments = centred.mT @ centred
        onto_samples = torch.linalg.pinv(moments, rtol=1e-9, hermitian=True) @ moments  # the span of the samples
        gradient = gradients.unflatten(0, zeta.shape[:2]).mean(1) @ onto_samples
        difference = gradient - slopes
        return torch.stack([gradient, slopes, difference, difference.square()], -1)


@dataclass(frozen=True)
class HistogramKernel:
    """Counts of zeta in each bin, and the number of observed sites, shape (B, bins + 1)."""

    edges: tuple[float, ...]

    def __call__(self, network: AnalysisNetwork, batch: PointBatch) -> Tensor:
        """Compute at B points."""
        zeta = batch.points.zeta.double()
        edges = zeta.new_tensor(self.edges)
        # Sites that are not observed have zeta = 0 exactly. They do not count.
        place = torch.bucketize(zeta, edges, right=True) - 1
        counted = (zeta != 0) & (place >= 0) & (place < len(edges) - 1)
        counts = zeta.new_zeros(len(zeta), len(edges))
        counts.scatter_add_(1, place.clamp(0, len(edges) - 2), counted.double())
        counts[:, -1] = (zeta != 0).sum(1)
        return counts


@dataclass(frozen=True)
class EquivarianceKernel:
    """Squares of the difference and of the value for every element of the group, shape (B, G, 2)."""

    permutations: tuple[Tensor, ...]

    def __call__(self, network: AnalysisNetwork, batch: PointBatch) -> Tensor:
        """Compute at B points."""
        x = batch.points.x
        directions = batch.draw(2, x.shape[1], 2).to(x)
        v, u = directions[:, 0], directions[:, 1]
        whole = mixed_derivative(network, batch.points, v, u)
        squares = []
        for permutation in self.permutations:
            g = permutation.to(x.device)
            permuted = batch.points.permuted(g)
            difference = mixed_derivative(network, permuted, v[:, g], u[:, g]) - whole[:, g]
            squares.append(torch.stack([difference.square().sum(1), whole.square().sum(1)], -1))
        return torch.stack(squares, 1)


def zero_innovation_increment(network: AnalysisNetwork, batch: PointBatch) -> Tensor:
    """Kernel of the bias |a(x, 0)| / sqrt(N), shape (B,)."""
    return bias(network, batch.points)
