"""The method of networks that compute the inflation and the localisation of an LETKF."""

from __future__ import annotations

import copy
import math
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..networks import LearnedLETKF, Seen
from ..observing import ObservingSystem, Positions
from .dan import EnsembleNetwork
from .declarations import SPREADS, Output
from .ensemble import compare
from .finite_size import dual_minimum
from .network_methods import cycles_networks
from .record import Record, State

_MOST = 1 << 24  # largest number of distances between components and observations that are kept

_FAR = 1e9  # distance of an observation without a place: no component is near


@cycles_networks
class LearnedEnsembleFilter(EnsembleNetwork):
    """An ensemble transform Kalman filter whose inflation and localisation come from a network.

    It starts as other networks with members do. The state holds the number of cycles so far, `age` of shape (B,), and
    the running consistency of the innovations, `consistency` of shape (B, N). If the network localises, it weighs
    observations by their distance. Observations lie at the state's sites, or at the positions that the observing system
    knows, which may move in time. Their errors must then be independent.

    Parameters
    ----------
    network : LearnedLETKF
    """

    name: ClassVar[str] = "learned-letkf"
    outputs: tuple[Output, ...] = (*SPREADS, Output("inflation", "inflation of the anomalies", "state"))
    network: LearnedLETKF

    def __init__(self, network: LearnedLETKF) -> None:
        super().__init__(network)
        self._sites_apart: Tensor | None = None
        self._apart: tuple[Positions, Tensor] | None = None

    def recordable(self, dynamics: Dynamics) -> bool:
        """False: tensors say whether a trajectory spins up and what is observed, and these are read."""
        return False

    def bound(self, dynamics: Dynamics) -> Self:
        """Return a copy with the distances between this dynamics' sites."""
        if not self.network.localised or getattr(self, "dynamics", None) is dynamics:
            return self
        bound = copy.copy(self)
        bound.dynamics, bound._sites_apart = dynamics, None
        return bound

    def check_record(self, record: Record) -> None:
        """Refuse observations with unknown distances, or with correlated errors."""
        self.check_training(record.dynamics, record.observing)
        super().check_record(record)

    def check_training(self, dynamics: Dynamics, observing: ObservingSystem) -> None:
        """Refuse observations with unknown distances or correlated errors, before training."""
        if not self.network.localised:
            return
        title = f"the network {self.network.name!r} with localisation_form={self.network.localisation_form!r}"
        remedy = "expected localisation_form='none', an ETKF"
        if observing.independent() is None:
            raise ValueError(f"{title} takes independent errors, and these are correlated: {remedy}, or 'letkf'")
        size = dynamics.space.size
        if observing.direct:
            if dynamics.distances(torch.zeros(1, dtype=torch.int64)) is None:
                raise ValueError(f"{title}: the dynamics {dynamics.label!r} knows no distance; {remedy}")
            seen = size
        elif observing.positions is None:
            raise ValueError(
                f"{title} weighs observations by their distance, and the operator's observations have no positions: "
                f"expected positions=; or {remedy}"
            )
        else:
            seen = observing.positions.size
        if seen * size > _MOST:
            raise ValueError(
                f"{title}: {size} components and {seen} observations have more than {_MOST} distances; expected "
                "smaller states, or 'letkf'"
            )

    def start_like(self, like: Tensor, shape: tuple[int, int]) -> State:
        """Members at the climatological mean; their age is 0."""
        age = torch.zeros(shape[0], dtype=torch.int64, device=like.device)
        ones = like.new_ones(shape)
        return {**super().start_like(like, shape), "age": age, "consistency": ones, "inflation": ones}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One analysis."""
        x, network = state["x"], self.network
        plain = observing.independent() or observing
        s, innovation = compare(x, observation, observed, plain)
        used = observed.any(0)  # an observation that no trajectory has gets no column
        distance = self._distance(observing, x)[:, used] if network.localised else None
        seen = Seen(s[:, :, used], innovation[:, used], observed[:, used].to(x), distance)
        young = state["age"] < network.spin_up
        spins = bool(young.any())

        def prior_weight(values: Tensor, rotated: Tensor) -> Tensor:
            return dual_minimum(values, rotated, self.members, capped=True)

        analysis, running, inflation = network.assimilate(
            x, seen, state["consistency"], young if spins else None, prior_weight if spins else None
        )
        after = {"x": analysis, "consistency": running, "inflation": inflation.detach(), "age": state["age"] + 1}
        return {**state, **after}

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Analysis spread and inflation."""
        return {**super().analysis_outputs(state), "inflation": state["inflation"]}

    def _distance(self, observing: ObservingSystem, like: Tensor) -> Tensor:
        """Distances (N, P) between components and observations."""
        if observing.direct:
            if self._sites_apart is None or self._sites_apart.device != like.device:
                apart = self.dynamics.distances(torch.arange(math.prod(self.dynamics.shape)))
                assert apart is not None
                self._sites_apart = apart.to(like.device)
            return self._sites_apart.to(like)
        positions = observing.positions
        assert positions is not None
        if self._apart is None or self._apart[0] is not positions:
            apart = torch.full((positions.size, positions.space.size), _FAR, dtype=torch.float64)
            for some, rows in positions.distances():
                apart[some] = rows
            self._apart = positions, apart.mT
        return self._apart[1].to(like)
