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
    """P_a of a Kalman filter at B points, and how it follows from the forecasts there."""

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
        """P_a at some of the points, or at points that stand several times."""
        return _Taken(self, index)


@dataclass(frozen=True)
class CarriedCovariance(FilterCovariance):
    """P_a that an analysis of a run gave. It is held fixed when the forecast changes, as latent memory is.

    Attributes
    ----------
    carried : Tensor, shape (B, N, N)
    """

    carried: Tensor

    def matrices(self) -> Tensor:
        """Those that were carried."""
        return self.carried

    def along(self, direction: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(self.carried)

    def permuted(self, permutation: Tensor) -> CarriedCovariance:
        """Exchange rows, and columns alike."""
        return CarriedCovariance(self.carried[:, permutation][:, :, permutation])


@dataclass(frozen=True)
class RebuiltCovariance(FilterCovariance):
    """P_a that follows from the forecast alone; it is computed in double precision, once for each point.

    Attributes
    ----------
    x : Tensor, shape (B, N)
        Forecasts.
    observed : Tensor of bool, shape (B, P)
        What is observed, now and in the past.
    observing : ObservingSystem
        Of each point's time.
    rebuild : callable
        rebuild(x, observed, observing) gives P_a, (B, N, N).
    """

    x: Tensor
    observed: Tensor
    observing: ObservingSystem
    rebuild: Callable[[Tensor, Tensor, ObservingSystem], Tensor]

    def matrices(self) -> Tensor:
        """Rebuild them, the first time."""
        return self._matrices

    def along(self, direction: Tensor) -> Tensor:
        """Forward through the model's past and the filter.

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
        """Rebuild them from the permuted forecasts, and what is observed there with its errors."""
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
    """Points picked from another source by row number; a row may be picked several times.

    Attributes
    ----------
    source : FilterCovariance
    rows : Tensor of int64, shape (B,)
    """

    source: FilterCovariance
    rows: Tensor

    def matrices(self) -> Tensor:
        """Those of the source."""
        return self.source.matrices()[self.rows]

    def along(self, direction: Tensor) -> Tensor:
        """Derivative along one direction (N,), taken once for each point of the source."""
        if direction.ndim > 1:
            raise ValueError(f"directions of shape {tuple(direction.shape)}: expected one for all points, (N,)")
        return self.source.along(direction)[self.rows]

    def permuted(self, permutation: Tensor) -> FilterCovariance:
        """The source's."""
        return _Taken(self.source.permuted(permutation), self.rows)

    def at(self, index: Tensor) -> FilterCovariance:
        """Some of the source's points."""
        return _Taken(self.source, self.rows[index])


@dataclass(frozen=True)
class GuidedAnalysis:
    """The analysis of a network beside a Kalman filter, as a function of forecast and projected innovation at B points.

    The filter's gain is optimal, K = P_f H^T (H P_f H^T + R)^-1, so that K = P_a H^T R^-1 and K d = P_a zeta:

        x_a = x + P_a zeta + a_theta(x, zeta, P_a zeta, P_a[, m]).

    Derivatives by x take into account how P_a follows from x. Latent memory is held fixed.

    Attributes
    ----------
    network : AnalysisNetwork
        With `guides`.
    covariance : FilterCovariance
    """

    network: AnalysisNetwork
    covariance: FilterCovariance

    def __call__(self, x: Tensor, zeta: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Analysis (B, N) and new memory."""
        return self._analyse(x, zeta, memory, self.covariance.matrices())

    def analysis_covariance(self, x: Tensor, zeta: Tensor, memory: Tensor | None) -> Tensor:
        """P_a[i, j] = d a_i / d zeta_j, as of `AnalysisNetwork`; that of a silent network is the filter's P_a."""
        covariance = self.covariance.matrices()
        return jacobian(lambda z: self._analyse(x, z, memory, covariance)[0], zeta, self._title)

    def marginal_gain(self, x: Tensor, zeta: Tensor, memory: Tensor | None, site: int) -> Tensor:
        """d^2 a_i / (dx_l dzeta_j) at one site l, as of `AnalysisNetwork`."""
        state, direction = self._joined(x), self._joined_direction(x, unit_direction(x, site)[0])
        return mixed_jacobian(self._of_joined(memory), state, zeta, direction, self._title)

    def forecast_derivative(self, x: Tensor, zeta: Tensor, memory: Tensor | None, site: int) -> Tensor:
        """Derivative of the analysis by x_l at one site l, as of `AnalysisNetwork`."""
        analysis, direction = self._of_joined(memory), self._joined_direction(x, unit_direction(x, site)[0])
        return along(lambda known: analysis(known, zeta), self._joined(x), direction, self._title)

    def mixed_derivative(
        self, x: Tensor, zeta: Tensor, memory: Tensor | None, x_direction: Tensor, zeta_direction: Tensor
    ) -> Tensor:
        """Second derivative of the analysis along a direction of x and one of zeta, each (B, N); shape (B, N)."""
        state, direction = self._joined(x), self._joined_direction(x, x_direction)
        return mixed_along(self._of_joined(memory), state, zeta, direction, zeta_direction, self._title)

    def _joined(self, x: Tensor) -> Tensor:
        """Forecast and covariance side by side, (B, N + N N): P_a moves with x along what `_joined_direction` gives."""
        return torch.cat([x, self.covariance.matrices().flatten(1)], 1)

    def _joined_direction(self, x: Tensor, direction: Tensor) -> Tensor:
        """A direction of x with the derivative of P_a along it, (B, N + N N)."""
        return torch.cat([direction.expand_as(x), self.covariance.along(direction).flatten(1)], 1)

    def _of_joined(self, memory: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
        """The analysis as a function of forecast and covariance side by side, and of zeta."""

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
