"""Derivatives of a network beside a Kalman filter, at points where the filter's covariance is known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .networks import AnalysisNetwork
from .observing import ObservingSystem
from .tangent import along, jacobian, mixed_along, mixed_jacobian, unit_direction


class FilterCovariance(ABC):
    """P_a of a Kalman filter at B points, and how P_a follows from the forecasts at these points."""

    @abstractmethod
    def matrices(self) -> Tensor:
        """P_a, shape (B, N, N)."""

    @abstractmethod
    def along(self, direction: Tensor) -> Tensor:
        """Derivative of P_a, (B, N, N), along a direction of the forecast: (N,) for all points, or (B, N)."""

    @abstractmethod
    def permuted(self, permutation: Tensor) -> FilterCovariance:
        """P_a at the forecasts x[:, permutation]."""

    def at(self, index: Tensor) -> FilterCovariance:
        """P_a at some of the points; a point may occur several times."""
        return _Taken(self, index)


@dataclass(frozen=True)
class CarriedCovariance(FilterCovariance):
    """P_a that an analysis of a run stored. It is constant when the forecast changes, like latent memory.

    Attributes
    ----------
    carried : Tensor, shape (B, N, N)
    """

    carried: Tensor

    def matrices(self) -> Tensor:
        """The matrices that were carried."""
        return self.carried

    def along(self, direction: Tensor) -> Tensor:
        """Zero, because P_a is constant."""
        return torch.zeros_like(self.carried)

    def permuted(self, permutation: Tensor) -> CarriedCovariance:
        """Permute rows and columns."""
        return CarriedCovariance(self.carried[:, permutation][:, :, permutation])


@dataclass(frozen=True)
class RebuiltCovariance(FilterCovariance):
    """P_a that follows from the forecast alone. It is computed in double precision, once for each point.

    Attributes
    ----------
    x : Tensor, shape (B, N)
        Forecasts.
    observed : Tensor of bool, shape (B, P)
        Which observations there are, now and in the past.
    observing : ObservingSystem
        H and R of each point's time.
    rebuild : callable
        rebuild(x, observed, observing) gives P_a, (B, N, N).
    """

    x: Tensor
    observed: Tensor
    observing: ObservingSystem
    rebuild: Callable[[Tensor, Tensor, ObservingSystem], Tensor]

    def matrices(self) -> Tensor:
        """Compute the matrices at the first call."""
        return self._matrices

    def along(self, direction: Tensor) -> Tensor:
        """Derivative through the model's past and the filter, in forward mode.

        Raises
        ------
        ValueError
            If torch cannot differentiate the model twice.
        """
        x = self.x.double()
        slope = along(self._rebuilt, x, direction.to(x).expand_as(x).contiguous(), "the covariance of the forecast")
        if not bool(slope.isfinite().all()):
            raise ValueError(
                "the derivative of the rebuilt covariance by the forecast is not finite at some state: expected states "
                "that the model can follow backward, such as those of a truth or of a run that has not diverged"
            )
        return slope.to(self.x)

    def permuted(self, permutation: Tensor) -> RebuiltCovariance:
        """Compute the matrices for permuted forecasts, with permuted observations and errors."""
        x, observing = self.x[:, permutation], self.observing
        if not observing.direct:
            return replace(self, x=x)
        return replace(self, x=x, observed=self.observed[:, permutation], observing=observing.permuted(permutation))

    @cached_property
    def _matrices(self) -> Tensor:
        with torch.no_grad():
            return self._rebuilt(self.x.double()).to(self.x)

    def _rebuilt(self, x: Tensor) -> Tensor:
        return self.rebuild(x, self.observed, self.observing.to(torch.float64, self.x.device))


@dataclass(frozen=True)
class _Taken(FilterCovariance):
    """Points of another source, selected by row number. A row may occur several times.

    Attributes
    ----------
    source : FilterCovariance
    rows : Tensor of int64, shape (B,)
    """

    source: FilterCovariance
    rows: Tensor

    def matrices(self) -> Tensor:
        """The matrices of the source."""
        return self.source.matrices()[self.rows]

    def along(self, direction: Tensor) -> Tensor:
        """Derivative along one direction (N,), computed once for each point of the source."""
        if direction.ndim > 1:
            raise ValueError(f"directions of shape {tuple(direction.shape)}: expected one for all points, (N,)")
        return self.source.along(direction)[self.rows]

    def permuted(self, permutation: Tensor) -> FilterCovariance:
        """Permuted points of the source."""
        return _Taken(self.source.permuted(permutation), self.rows)

    def at(self, index: Tensor) -> FilterCovariance:
        """Some of the source's points."""
        return _Taken(self.source, self.rows[index])


@dataclass(frozen=True)
class GuidedAnalysis:
    """The analysis of a network beside a Kalman filter, as a function of forecast and projected innovation at B points.

    The filter's gain is optimal, K = P_f H^T (H P_f H^T + R)^-1. Therefore K = P_a H^T R^-1 and K d = P_a zeta:

        x_a = x + P_a zeta + a_theta(x, zeta, P_a zeta, P_a[, m]).

    Derivatives with respect to x include the dependence of P_a on x. Latent memory is constant.

    Attributes
    ----------
    network : AnalysisNetwork
        A network that `guides`.
    covariance : FilterCovariance
    """

    network: AnalysisNetwork
    covariance: FilterCovariance

    def __call__(self, x: Tensor, zeta: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Analysis (B, N) and new memory."""
        return self._analyse(x, zeta, memory, self.covariance.matrices())

    def analysis_covariance(self, x: Tensor, zeta: Tensor, memory: Tensor | None) -> Tensor:
        """P_a[i, j] = d a_i / d zeta_j; see `AnalysisNetwork`. Without a correction it is the filter's P_a."""
        covariance = self.covariance.matrices()
        return jacobian(lambda z: self._analyse(x, z, memory, covariance)[0], zeta, self._title)

    def marginal_gain(self, x: Tensor, zeta: Tensor, memory: Tensor | None, site: int) -> Tensor:
        """d^2 a_i / (dx_l dzeta_j) at one site l; see `AnalysisNetwork`."""
        state, direction = self._joined(x), self._joined_direction(x, unit_direction(x, site)[0])
        return mixed_jacobian(self._of_joined(memory), state, zeta, direction, self._title)

    def forecast_derivative(self, x: Tensor, zeta: Tensor, memory: Tensor | None, site: int) -> Tensor:
        """Derivative of the analysis with respect to x_l at one site l; see `AnalysisNetwork`."""
        analysis, direction = self._of_joined(memory), self._joined_direction(x, unit_direction(x, site)[0])
        return along(lambda known: analysis(known, zeta), self._joined(x), direction, self._title)

    def mixed_derivative(
        self, x: Tensor, zeta: Tensor, memory: Tensor | None, x_direction: Tensor, zeta_direction: Tensor
    ) -> Tensor:
        """Second derivative of the analysis along a direction of x and one of zeta, each (B, N); shape (B, N)."""
        state, direction = self._joined(x), self._joined_direction(x, x_direction)
        return mixed_along(self._of_joined(memory), state, zeta, direction, zeta_direction, self._title)

    def _joined(self, x: Tensor) -> Tensor:
        """Forecast and covariance as one vector, (B, N + N N). `_joined_direction` says how P_a changes with x."""
        return torch.cat([x, self.covariance.matrices().flatten(1)], 1)

    def _joined_direction(self, x: Tensor, direction: Tensor) -> Tensor:
        """A direction of x, together with the derivative of P_a along it, (B, N + N N)."""
        return torch.cat([direction.expand_as(x), self.covariance.along(direction).flatten(1)], 1)

    def _of_joined(self, memory: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
        """The analysis as a function of the joined forecast and covariance, and of zeta."""

        def analysis(known: Tensor, zeta: Tensor) -> Tensor:
            sites = zeta.shape[-1]
            covariance = known[..., sites:].unflatten(-1, (sites, sites))
            return self._analyse(known[..., :sites], zeta, memory, covariance)[0]

        return analysis

    def _analyse(
        self, x: Tensor, zeta: Tensor, memory: Tensor | None, covariance: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        guides = self.network.guide((covariance @ zeta[..., None])[..., 0], covariance)
        analysis: tuple[Tensor, Tensor | None] = self.network(x, zeta, memory, guides)
        return analysis

    @property
    def _title(self) -> str:
        return f"the network {self.network.name!r}"
