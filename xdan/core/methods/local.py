"""The local ensemble transform Kalman filter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..observing import ObservingSystem
from ..tapers import gaspari_cohn
from .arguments import number_or_tune
from .declarations import Tunable
from .ensemble import INFLATIONS, Precision, centre, compare
from .finite_size import InflatedEnsemble
from .record import Record, State
from .registry import register_method

_ROWS = 4096  # local analyses at once
_DISTANCES = 1 << 22  # distances at once when neighbours are looked for


@register_method
class LETKF(InflatedEnsemble):
    """LETKF: an ETKF at every site, with the observations nearby, tapered by a Gaspari-Cohn function of distance.

    Parameters
    ----------
    members : int
    radius : float or "tune"
        c of Gaspari and Cohn: the taper is 5/24 at this distance and zero from twice it on. It multiplies R^{-1}.
    inflation : float or "tune"
        Factor of the analysis anomalies.
    spin_up : int
        First cycles that take, site by site, the inflation which the finite-size prior asks for.

    Raises
    ------
    ValueError
        If the radius is not positive, the dynamics has no distance, or R is not diagonal.

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
    ) -> None:
        super().__init__(members, inflation, spin_up)
        self.radius = number_or_tune("radius", radius)
        self._neighbours: tuple[Tensor, Tensor] | None = None

    def check_record(self, record: Record) -> None:
        """Refuse observations that cannot be weighed one by one by their distance."""
        if record.observing.covariance is not None:
            raise ValueError(
                "the LETKF weighs observations one by one and needs a diagonal R; the record has a full one"
            )
        if not record.observing.direct:
            raise ValueError("the LETKF needs observations that lie at sites of the state; take 'etkf' for another H")
        super().check_record(record)

    def set_up(self, record: Record) -> None:
        """Find each site's neighbours, where the radius is known."""
        if "radius" not in self.to_tune():
            self._neighbours = self._within(self.number("radius"))

    def at(self, numbers: Mapping[str, Any]) -> Self:
        """Return a copy with the neighbours of another radius."""
        chosen = super().at(numbers)
        if "radius" in numbers:
            chosen._neighbours = chosen._within(numbers["radius"])
        return chosen

    def _within(self, radius: float) -> tuple[Tensor, Tensor]:
        """Neighbours and the roots of their tapers, both of shape (N, L), L the most that any site has."""
        size = math.prod(self.dynamics.shape)
        tapers = []
        for rows in torch.arange(size).split(max(1, _DISTANCES // size)):
            distance = self.dynamics.distances(rows)
            if distance is None:
                raise ValueError(
                    f"localisation needs a distance, which the dynamics {self.dynamics.name!r} does not know; "
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
        if self._neighbours is None:
            raise RuntimeError(f"{self.name!r} is not prepared: call tune(method, record) first")
        x = state["x"]
        m = self.members
        mean, anomalies = centre(x)
        s, innovation = compare(x, observation, observed, observing)
        indices, taper = self._neighbours[0].to(x.device), self._neighbours[1].to(x)
        parts = []
        for sites in torch.arange(x.shape[2], device=x.device).split(max(1, _ROWS // len(x))):
            near, weight = indices[sites], taper[sites]
            local = (s[:, :, near] * weight).transpose(1, 2)  # (B, n, M, L)
            precision = Precision(local, innovation[:, near] * weight)
            weights, root = precision.solve(self.zeta(precision, state))
            combined = weights[..., None] + self.number("inflation") * math.sqrt(m - 1) * root.mT
            # Member i of the analysis at site n: mean + sum_j anomalies[j, n] combined[n, j, i].
            parts.append((anomalies[:, :, sites].permute(0, 2, 1)[:, :, None] @ combined)[:, :, 0])
        return {**state, "x": mean + torch.cat(parts, 1).mT}
