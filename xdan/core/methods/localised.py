"""Localisation: which observations are near which components, and ensemble filters that use it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..observing import ObservingSystem, Positions
from ..tapers import gaspari_cohn
from .adaptive import AdaptiveEnsemble
from .arguments import number_or_tune
from .backward import PRIOR_INFLATION
from .declarations import Tunable
from .ensemble import Precision, centre, compare
from .finite_size import effective_zeta
from .record import Record, State

_ROWS = 4096  # number of local analyses in one batch
_COVARIANCES = 1 << 24  # number of entries of local covariances in one batch
_DISTANCES = 1 << 22  # number of distances in one batch of the search for neighbours
LOCAL_WEIGHTS = (
    "each component has weights of its own for the members, and the weights of a step back would be the same for all"
)
RADII = Tunable((2.0, 3.0, 4.0, 5.5, 7.5, 10.0, 15.0))


@dataclass(frozen=True)
class Localisation:
    """Tapers of Gaspari and Cohn between observations and components.

    Attributes
    ----------
    dynamics : Dynamics
        The dynamics whose components are observed directly if there are no positions.
    positions : Positions or None
        Positions of the observations of an operator at one time.
    radius : float
        Radius c: the taper is 5/24 at the distance c, and zero from the distance 2 c on.
    """

    dynamics: Dynamics
    positions: Positions | None
    radius: float

    @cached_property
    def near(self) -> tuple[Tensor, Tensor]:
        """Observations near each component and the roots of their tapers, (N, L). L is the largest number of them.

        Raises
        ------
        ValueError
            If there are no distances.
        """
        if self.positions is not None:
            return _observations_near(self.positions, self.radius)
        parts = []
        for taper in self._rows():
            parts.append(taper.topk(int((taper > 0).sum(1).max()), dim=1))
        most = max(part.values.shape[1] for part in parts)
        pad = [(0, most - part.values.shape[1]) for part in parts]
        values = torch.cat([torch.nn.functional.pad(t.values, p) for t, p in zip(parts, pad, strict=True)])
        indices = torch.cat([torch.nn.functional.pad(t.indices, p) for t, p in zip(parts, pad, strict=True)])
        return indices, values.sqrt()

    @cached_property
    def components(self) -> Tensor:
        """Tapers between components, (N, N). Row n holds the tapers of component n.

        The matrix is not symmetric if a parameter has no place.

        Raises
        ------
        ValueError
            If there are no distances.
        """
        return torch.cat(self._rows())

    @cached_property
    def joint(self) -> Tensor:
        """Tapers of each observation with all components and then with all observations, (P, N + P).

        An observation between components has a taper that is interpolated from the tapers of these components.

        Raises
        ------
        ValueError
            If there are no distances.
        """
        if self.positions is None:
            return torch.cat([self.components.mT, self.components.mT], 1)
        tapers = torch.zeros(self.positions.size, self.positions.space.size, dtype=torch.float64)
        for some, apart in self.positions.distances():
            tapers[some] = gaspari_cohn(apart, self.radius)
        indices, weights = self.positions.interpolation()
        return torch.cat([tapers, (tapers[:, indices] * weights).sum(-1)], 1)

    def _rows(self) -> list[Tensor]:
        """Tapers of components with all components, as batches of rows, (n, N) each."""
        size, rows = math.prod(self.dynamics.shape), []
        for some in torch.arange(size).split(max(1, _DISTANCES // size)):
            distance = self.dynamics.distances(some)
            if distance is None:
                raise ValueError(
                    f"localisation needs a distance, which the dynamics {self.dynamics.label!r} does not know: "
                    "expected a dynamics with distances; pass distance= to CustomDynamics, or take 'etkf'"
                )
            rows.append(gaspari_cohn(distance.to(torch.float64), self.radius))
        return rows


class LocalEnsemble(AdaptiveEnsemble):
    """An ensemble filter with localisation: a Gaspari-Cohn function of distance tapers its covariances.

    Observations lie at the state's sites, or at the positions that the observing system knows, which may move in time.

    Parameters
    ----------
    members : int
        Ensemble size M, at least 2.
    radius : float, "tune" or None
        Radius c of Gaspari and Cohn, in the units of the coordinates: the taper is 5/24 at the distance c, and zero
        from the distance 2 c on. None leaves covariances as they are.
    **parameters
        Parameters of `AdaptiveEnsemble`.

    Raises
    ------
    ValueError
        If the radius is not positive, the dynamics has no distance, or an operator's observations have no positions.
    """

    tunable: ClassVar[Mapping[str, Tunable]] = {"radius": replace(RADII, words=(None,)), **AdaptiveEnsemble.tunable}

    def __init__(self, members: int = 10, radius: float | str | None = None, **parameters: Any) -> None:
        self.radius = None if radius is None else number_or_tune("radius", radius)
        super().__init__(members, **parameters)
        self._localisation: Localisation | None = None

    @property
    def local(self) -> bool:
        """Whether the method has a radius."""
        return self.radius is not None

    def check_backward(self, dynamics: Dynamics) -> None:
        """Refuse a backward pass over a localised run."""
        super().check_backward(dynamics)
        if self.local:
            raise ValueError(self.without_backward_pass(f"with a radius, {LOCAL_WEIGHTS}"))

    def check_record(self, record: Record) -> None:
        """Refuse observations without positions."""
        if self.local and not record.observing.direct and record.observing.positions is None:
            raise ValueError(
                f"{self.name!r} weighs observations by their distance, and the operator's observations have no "
                "positions: expected positions=, for example {'x': [...]}, or coordinates such as 'obs_x' along 'obs'; "
                "or take 'etkf'"
            )
        super().check_record(record)

    def set_up(self, record: Record) -> None:
        """Compute the tapers, if the radius is known and the positions are the same at all times."""
        super().set_up(record)
        self._localisation = Localisation(self.dynamics, record.observing.positions, math.nan)
        if self.local and "radius" not in self.to_tune():
            self._localise(self.number("radius"))

    def at(self, numbers: Mapping[str, Any]) -> Self:
        """Return a copy; with another radius, it has other tapers."""
        chosen = super().at(numbers)
        if "radius" in numbers:
            chosen._localise(numbers["radius"])
        return chosen

    def _localise(self, radius: float) -> None:
        assert self._localisation is not None
        self._localisation = replace(self._localisation, radius=radius)
        if self._localisation.positions is None or self._localisation.positions.times is None:
            self.taken(self._localisation)

    def taken(self, localisation: Localisation) -> None:
        """Compute the tapers that hold for all times early, so that a missing distance is noticed early."""
        _ = localisation.near

    def localisation(self, observing: ObservingSystem) -> Localisation | None:
        """Tapers of a time; None without a radius.

        Raises
        ------
        RuntimeError
            If the method is not prepared, or its radius is "tune" and was not tuned.
        """
        if not self.local:
            return None
        known = self._localisation
        if known is None or math.isnan(known.radius):
            raise RuntimeError(f"{self.name!r} is not prepared: call tune(method, record) first")
        if known.positions is None or known.positions.times is None:
            return known
        return replace(known, positions=observing.positions)

    def summed(self, values: Tensor, observing: ObservingSystem) -> Tensor:
        """Sums over observations. With tapers, each component has a weighted sum."""
        localisation = self.localisation(observing)
        if localisation is None:
            return super().summed(values, observing)
        near, root = localisation.near
        weighed: Tensor = (values[:, near.to(values.device)] * root.to(values).square()).sum(-1)
        return weighed

    def spun_up(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Forecast state. In the first cycles its members are inflated by what the finite-size prior asks for.

        With localisation each component has an inflation, which is that of its local analysis.
        """
        x, m = state["x"], self.members
        if not self.spins_up(state):
            return {**state, PRIOR_INFLATION: torch.ones_like(x[:, 0, 0])}
        localisation = self.localisation(observing)
        if localisation is None:
            zeta = effective_zeta(Precision(*compare(x, observation, observed, observing)), m, capped=True)[:, None]
        else:
            local = LocalObservations(x, observation, observed, observing, localisation.near)
            parts = torch.arange(x.shape[2], device=x.device).split(local.at_once)
            zeta = torch.cat([effective_zeta(Precision(*local.at(sites)), m, capped=True) for sites in parts], 1)
        mean, anomalies = centre(x)
        factor = ((m - 1) / zeta).sqrt()
        return {**state, "x": mean + factor[:, None] * anomalies, PRIOR_INFLATION: factor[:, 0]}


class LocalObservations:
    """The input of local analyses: anomalies and innovations of the observations nearby, whitened and tapered.

    Parameters
    ----------
    x : Tensor, shape (B, M, N)
    observation, observed : Tensor, shape (B, P)
    observing : ObservingSystem
        H and R of one time.
    near : tuple of Tensor, shape (N, L)
        Observations near each site, and the roots of their tapers.
    """

    def __init__(
        self, x: Tensor, observation: Tensor, observed: Tensor, observing: ObservingSystem, near: tuple[Tensor, Tensor]
    ) -> None:
        self.near, self.taper = near[0].to(x.device), near[1].to(x)
        independent = observing.independent()
        self.covariance: Tensor | None = None
        if independent is not None:
            self.s, self.innovation = compare(x, observation, observed, independent)
            return
        mean, anomalies = centre(observing.observe(x))
        self.s, self.innovation = anomalies * observed[:, None], (observation - mean[:, 0]) * observed
        self.covariance = observing.covariance_of(observed[:1] if bool(observed.all()) else observed)

    @property
    def at_once(self) -> int:
        """Number of sites in one batch of analyses."""
        most = max(1, _ROWS // len(self.s))
        if self.covariance is None:
            return most
        return max(1, min(most, _COVARIANCES // (len(self.covariance) * self.near.shape[1] ** 2)))

    def at(self, sites: Tensor) -> tuple[Tensor, Tensor]:
        """Anomalies (B, n, M, L) and innovations (B, n, L) at some sites (n,)."""
        near, weight = self.near[sites], self.taper[sites]
        s = (self.s[:, :, near] * weight).transpose(1, 2)
        innovation = self.innovation[:, near] * weight
        if self.covariance is None:
            return s, innovation
        # T^1/2 (R + diag(R) (1/T - 1)) T^1/2: variances stay, covariances are tapered. It holds for a taper of 0 too.
        pairs = self.covariance[:, near[:, :, None], near[:, None]]  # (B or 1, n, L, L)
        tapered = pairs * (weight[:, :, None] * weight[:, None])
        variance = self.covariance.diagonal(dim1=-2, dim2=-1)[:, near]
        factor = torch.linalg.cholesky(tapered.diagonal_scatter(variance, 0, -2, -1))
        white = torch.linalg.solve_triangular(factor, torch.cat([s, innovation[:, :, None]], 2).mT, upper=False).mT
        return white[:, :, :-1], white[:, :, -1]


def _observations_near(positions: Positions, radius: float) -> tuple[Tensor, Tensor]:
    """Observations near each component and the roots of their tapers, (N, L). L is the largest number of them."""
    rows, columns, tapers = [], [], []
    for some, apart in positions.distances():
        taper = gaspari_cohn(apart, radius)
        observation, component = (taper > 0).nonzero(as_tuple=True)
        rows.append(component)
        columns.append(some[observation])
        tapers.append(taper[observation, component])
    size = positions.space.size
    none = torch.zeros(0, dtype=torch.int64)
    component, order = torch.cat([none, *rows]).sort(stable=True)
    count = torch.bincount(component, minlength=size)
    place = torch.arange(len(component)) - (count.cumsum(0) - count)[component]
    indices = torch.zeros(size, max(1, int(count.max())), dtype=torch.int64)
    roots = torch.zeros(indices.shape, dtype=torch.float64)
    indices[component, place] = torch.cat([none, *columns])[order]
    roots[component, place] = torch.cat([none.double(), *tapers])[order].sqrt()
    return indices, roots
