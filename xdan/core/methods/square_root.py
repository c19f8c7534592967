"""The symmetric square root ensemble Kalman filter."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from ..observing import ErrorCovariance
from ..random import Purpose
from .base import State, register_method
from .ensemble import INFLATIONS, Labelled, Precision, centre, check_inflation, rotation
from .finite_size import effective_zeta


@register_method("etkf")
class ETKF(Labelled):
    """Ensemble transform Kalman filter, symmetric square root.

    Parameters
    ----------
    members : int
    inflation : float or "tune"
        Factor of the analysis anomalies.
    rotate : bool
        Turn the anomalies at random after each analysis, the mean kept.
    spin_up : int
        First cycles in which the finite-size prior adds the inflation that it asks for: an ensemble that starts from
        the climatology is lost before it has found the truth otherwise. The burn-in of a score should be longer.

    References
    ----------
    Bishop, Etherton and Majumdar (2001); Hunt et al. (2007), doi:10.1016/j.physd.2006.11.008; rotations: Sakov and
    Oke (2008), doi:10.1175/2007MWR2021.1.
    """

    tunable: ClassVar[dict[str, tuple[float, ...]]] = {"inflation": INFLATIONS}

    def __init__(
        self, members: int = 40, inflation: float | str = 1.01, rotate: bool = False, spin_up: int = 100
    ) -> None:
        super().__init__(members)
        if spin_up < 0:
            raise ValueError(f"spin_up={spin_up}: expected a number of cycles, 0 for none")
        self.inflation, self.rotate, self.spin_up = check_inflation(inflation), bool(rotate), int(spin_up)

    def parameters(self) -> dict[str, Any]:
        """Plain JSON parameters."""
        return {"members": self.members, "inflation": self.inflation, "rotate": self.rotate, "spin_up": self.spin_up}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, error: ErrorCovariance) -> State:
        """One analysis in the space of the members."""
        m = self.members
        mean, anomalies = centre(state["x"])
        innovation = error.whiten(observation - mean[:, 0], observed)
        precision = Precision(error.whiten(anomalies, observed), innovation)
        begins = bool((state["cycle"] < self.spin_up).any())
        weights, root = precision.solve(effective_zeta(precision, m, capped=True) if begins else float(m - 1))
        root = self.number("inflation") * math.sqrt(m - 1) * root
        if self.rotate:
            noise = self.draw(state, Purpose.ROTATION, (m - 1) ** 2).reshape(-1, m - 1, m - 1)
            root = rotation(noise) @ root
        x = mean + (weights[:, None] + root) @ anomalies
        return {**state, "x": x, "cycle": state["cycle"] + 1}
