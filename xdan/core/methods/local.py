"""The local ensemble transform Kalman filter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..observing import ObservingSystem, Positions
from ..tapers import gaspari_cohn
from .arguments import number_or_tune
from .declarations import Tunable
from .ensemble import INFLATIONS, Precision, centre, compare
from .finite_size import InflatedEnsemble
from .record import Record, State
from .registry import register_method

_ROWS = 4096  # local analyses at once
_COVARIANCES = 1 << 24  # entries of local covariances at once
_DISTANCES = 1 << 22  # distances at once when neighbours are looked for


@register_method
class LETKF(InflatedEnsemble):
    """LETKF: an ETKF at every site, with the observations nearby, tapered by a Gaspari-Cohn function of distance.

    Observations lie at the state's sites, or at the positions that the observing system knows; these may move in time.
    An observation at a distance with the taper t counts as if it had an additional error of its own, which raises its
    variance r to r / t. A diagonal R^{-1} is so multiplied by the taper. Errors that are correlated stay so:
    R + diag(R) (1/t - 1) of the observations nearby is R where t is 1, and leaves out what is far away.

    Parameters
    ----------
    members : int
    radius : float or "tune"
        c of Gaspari and Cohn: the taper is 5/24 at this distance and zero from twice it on.
    inflation : float or "tune"
        Factor of the analysis anomalies.
    spin_up : int
        First cycles that take, site by site, the inflation which the finite-size prior asks for.
    model_noise : {"draws", "sqrt-core"}
        How a forecast takes up the covariance Q of the model's errors, where it has one: an error is drawn for every
        member, or the anomalies are transformed in their own space.

    Raises
    ------
    ValueError
        If the radius is not positive, the dynamics has no distance, or an operator's observations have no positions.

    References
    ----------
    Hunt, Kostelich and Szunyogh (2007), doi:10.1016/j.physd.2006.11.008.
    """

    name: ClassVar[str] = "letkf"
    tunable: ClassVar[Mapping[str, Tunable]] = {
        "radius": Tunable((2.0, 3.0, 4.0, 5.5, 7.5, 10.0, 15.0)),
        "inflation": INFLATIONS,
    }

    def __init__(
        self,
        members: int = 10,
        radius: float | str = 5.5,
        inflation: float | str = 1.02,
        spin_up: int = 100,
        model_noise: str = "draws",
    ) -> None:
        super().__init__(members, inflation, spin_up, model_noise)
        self.radius = number_or_tune("radius", radius)
        self._neighbours: tuple[Tensor, Tensor] | None = None
        self._positions: Positions | None = None

    def check_record(self, record: Record) -> None:
        """Refuse observations that lie nowhere."""
        if not record.observing.direct and record.observing.positions is None:
            raise ValueError(
                "the LETKF weighs observations by their distance, and nothing says where those of the operator lie: "
                "expected positions=, for example {'x': [...]}, or coordinates such as 'obs_x' along 'obs'; or take "
                "'etkf'"
            )
        super().check_record(record)

    def set_up(self, record: Record) -> None:
        """Find each site's neighbours, where the radius is known and the positions are those of all times."""
        self._positions = record.observing.positions
        if "radius" not in self.to_tune():
            self._neighbours = self._within(self.number("radius"))

    def at(self, numbers: Mapping[str, Any]) -> Self:
        """Return a copy with the neighbours of another radius."""
        chosen = super().at(numbers)
        if "radius" in numbers:
            chosen._neighbours = chosen._within(numbers["radius"])
        return chosen

    def _within(self, radius: float) -> tuple[Tensor, Tensor] | None:
        """Neighbours and the roots of their tapers, both of shape (N, L), L the most that any site has.

        None where positions move: each time has others.
        """
        if self._positions is not None:
            return None if self._positions.times is not None else _observations_near(self._positions, radius)
        size = math.prod(self.dynamics.shape)
        tapers = []
        for rows in torch.arange(size).split(max(1, _DISTANCES // size)):
            distance = self.dynamics.distances(rows)
            if distance is None:
                raise ValueError(
                    f"localisation needs a distance, which the dynamics {self.dynamics.label!r} does not know; "
                    "pass distance= to CustomDynamics, or take 'etkf'"
                )
            taper = gaspari_cohn(distance.to(torch.float64), radius)
            most = int((taper > 0).sum(1).max())
            tapers.append(taper.topk(most, dim=1))
        most = max(part.values.shape[1] for part in tapers)
        pad = [(0, most - part.values.shape[1]) for part in tapers]
        values = torch.cat([torch.nn.functional.pad(t.values, p) for t, p in zip(tapers, pad, strict=True)])
        indices = torch.cat([torch.nn.functional.pad(t.indices, p) for t, p in zip(tapers, pad, strict=True)])
        return indices, values.sqrt()

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """All local analyses as one batch, some thousands at a time."""
        near = self._neighbours
        if near is None and observing.positions is not None:
            near = _observations_near(observing.positions, self.number("radius"))
        if near is None:
            raise RuntimeError(f"{self.name!r} is not prepared: call tune(method, record) first")
        x = state["x"]
        m = self.members
        mean, anomalies = centre(x)
        local = _Local(x, observation, observed, observing, near)
        parts = []
        for sites in torch.arange(x.shape[2], device=x.device).split(local.at_once):
            precision = Precision(*local.at(sites))
            weights, root = precision.solve(self.zeta(precision, state))
            combined = weights[..., None] + self.number("inflation") * math.sqrt(m - 1) * root.mT
            # Member i of the analysis at site n: mean + sum_j anomalies[j, n] combined[n, j, i].
            parts.append((anomalies[:, :, sites].permute(0, 2, 1)[:, :, None] @ combined)[:, :, 0])
        return {**state, "x": mean + torch.cat(parts, 1).mT}


class _Local:
    """What local analyses read: anomalies and innovations of the observations nearby, whitened and tapered.

    Parameters
    ----------
    x : Tensor, shape (B, M, N)
    observation, observed : Tensor, shape (B, P)
    observing : ObservingSystem
        Of one time.
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
        """Sites whose analyses are made at once."""
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
        # T^1/2 (R + diag(R) (1/T - 1)) T^1/2: a variance stays, a covariance is tapered, also where the taper is 0.
        pairs = self.covariance[:, near[:, :, None], near[:, None]]  # (B or 1, n, L, L)
        tapered = pairs * (weight[:, :, None] * weight[:, None])
        variance = self.covariance.diagonal(dim1=-2, dim2=-1)[:, near]
        factor = torch.linalg.cholesky(tapered.diagonal_scatter(variance, 0, -2, -1))
        white = torch.linalg.solve_triangular(factor, torch.cat([s, innovation[:, :, None]], 2).mT, upper=False).mT
        return white[:, :, :-1], white[:, :, -1]


def _observations_near(positions: Positions, radius: float) -> tuple[Tensor, Tensor]:
    """Observations near every component and the roots of their tapers, (N, L), L the most that any component has."""
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
