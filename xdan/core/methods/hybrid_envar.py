"""Hybrid ensemble-variational analysis: the background covariance is partly the ensemble's, partly static."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import choice, real
from ..observing import ObservingSystem
from .arguments import background_or_name, number_or_tune
from .backward import BackwardPass
from .declarations import Choice, Tunable
from .ensemble import centre
from .localised import LocalEnsemble, Localisation
from .record import Record, State
from .registry import register_method
from .tuning import tune
from .variational import ThreeDVar

ANOMALIES = ("ensemble", "hybrid", "perturbed")
OF_3D_VAR = "3d-var"


@register_method
class HybridEnVar(LocalEnsemble):
    """Hybrid 3D-EnVar: the gain of a background covariance that is a mean of the ensemble's and a static one.

        B = (1 - w) rho o P_f + w s B_0,    K = B H^T (H B H^T + R)^-1,    x_a = x_f + K (y - H x_f),

    with P_f the sample covariance of the members, rho the taper of Gaspari and Cohn, o the product by entries, and B_0
    the background covariance of 3D-Var with its factor s. The minimum of the variational cost is solved for exactly.
    With w = 0 it is an EnKF whose covariance is localised; with w = 1 the mean takes the analysis of 3D-Var. The
    matrices are full: N should be some thousands at most.

    Parameters
    ----------
    members : int
    radius : float, "tune" or None
        c of rho. None leaves P_f as it is.
    static_weight : float or "tune"
        w, from 0 to 1.
    background : {"climatology", "trained"} or array of shape (N, N)
        B_0, as for "3d-var".
    scale : float or "3d-var"
        s; "3d-var" takes the scale that 3D-Var is tuned to on the record's leading part.
    anomalies : {"ensemble", "hybrid", "perturbed"}
        Anomalies take half of a gain, as in the DEnKF: that of rho o P_f alone, or that of B; or each member has
        perturbed observations and the whole gain of B.
    inflation : float, "tune" or "adaptive"
        Factor of the analysis anomalies.
    **parameters
        spin_up, model_noise, relaxation, relaxation_factor, inflation_std: as for `AdaptiveEnsemble`.

    Raises
    ------
    TypeError
        For arguments of another type.
    ValueError
        For numbers out of range or unknown names; if B_0 does not fit the record; with a radius, if the dynamics has no
        distance, or observations of an operator have no positions.

    References
    ----------
    Hamill and Snyder (2000), doi:10.1175/1520-0493(2000)128<2905:AHEKFV>2.0.CO;2, Eq. 4 (there with perturbed
    observations); Lorenc (2003), doi:10.1256/qj.02.132.
    """

    name: ClassVar[str] = "hybrid-envar"
    backward: ClassVar[type[BackwardPass] | None] = None
    no_backward: ClassVar[str] = "the static part of its covariance is not in its members"
    shares: ClassVar[tuple[str, ...]] = ("static_weight", *LocalEnsemble.shares)
    tunable: ClassVar[Mapping[str, Tunable]] = {
        "static_weight": Tunable((0.0, 0.03, 0.06, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0), natural_end=0.0, zero=True),
        **LocalEnsemble.tunable,
    }

    def __init__(
        self,
        members: int = 20,
        radius: float | str | None = None,
        static_weight: float | str = 0.1,
        background: Any = "climatology",
        scale: float | str = OF_3D_VAR,
        anomalies: str = "ensemble",
        inflation: float | str = 1.02,
        **parameters: Any,
    ) -> None:
        super().__init__(members, radius, inflation=inflation, **parameters)
        self.static_weight = number_or_tune("static_weight", static_weight, zero=True)
        if isinstance(self.static_weight, float):
            real("static_weight", self.static_weight, most=1.0)
        self.background = background_or_name(background, ("climatology", "trained"))
        self.scale: float | str = OF_3D_VAR
        if isinstance(scale, str):
            choice("scale", scale, (OF_3D_VAR,))
        else:
            self.scale = real("scale", scale, above=0.0)
        self.anomalies = choice("anomalies", anomalies, ANOMALIES)
        self._static: Tensor | None = None
        self._scale = math.nan

    @property
    def choices(self) -> tuple[Choice, ...]:
        """Declarations of what was tuned, and of the scale of the static covariance."""
        return (Choice("background_scale", "factor of the static background error covariance"), *super().choices)

    def chosen(self) -> dict[str, Any]:
        """What was tuned, and the scale of the static covariance."""
        return {"background_scale": torch.tensor(self._scale, dtype=torch.float64), **super().chosen()}

    def set_up(self, record: Record) -> None:
        """Build B_0 as 3D-Var does, and tune its scale where that is asked for; nothing where its weight is 0.

        Raises
        ------
        ValueError
            If B_0 does not fit the record, or its training needs a truth that the record lacks.
        """
        super().set_up(record)
        if self.static_weight == 0.0:
            return
        static = ThreeDVar(self.background, "tune" if self.scale == OF_3D_VAR else self.scale)
        static.tune_on = self.tune_on
        made = tune(static, record)
        assert isinstance(made, ThreeDVar)
        self._scale = float(made.static.scale)
        self._static = made.static.scale * made.static.b

    def taken(self, localisation: Localisation) -> None:
        """Tapers between components beside those of observations."""
        super().taken(localisation)
        _ = localisation.components

    def ensemble_covariance(self, anomalies: Tensor, observing: ObservingSystem) -> Tensor:
        """Rho o P_f, shape (B, N, N), of forecast anomalies (B, M, N)."""
        p, localisation = anomalies.mT @ anomalies / (self.members - 1), self.localisation(observing)
        if localisation is None:
            return p
        taper = localisation.components.to(p)
        return p * taper.maximum(taper.mT)  # what has no place is near to everything

    def background_covariance(self, p: Tensor) -> Tensor:
        """B, shape (B, N, N), with the ensemble's part rho o P_f of that shape.

        Raises
        ------
        RuntimeError
            If the method is not prepared, and the static covariance is needed.
        """
        weight = self.number("static_weight")
        if not weight:
            return p
        if self._static is None:
            raise RuntimeError(f"{self.name!r} is not prepared: call prepare(record) first")
        return (1 - weight) * p + weight * self._static.to(p)

    def update(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """A gain for the mean, and what belongs to `anomalies` for the members beside it."""
        x = self.spun_up(state, observation, observed, observing)["x"]
        m, (mean, anomalies) = self.members, centre(x)
        at = mean[:, 0]
        p = self.ensemble_covariance(anomalies, observing)
        gain_t = _gain_t(at, self.background_covariance(p), observed, observing)
        innovation = torch.where(observed, observation - observing.observe(at), 0.0)
        mean = mean + innovation[:, None] @ gain_t
        _, seen = centre(observing.observe(x))
        if self.anomalies == "perturbed":
            drawn = self.draw(state, m * observation.shape[1]).reshape(len(x), m, -1)
            _, errors = centre(observing.errors_from(drawn))
            missed = math.sqrt(m / (m - 1)) * errors - seen
        else:
            missed = -0.5 * seen
            if self.anomalies == "ensemble" and self.number("static_weight"):
                gain_t = _gain_t(at, p, observed, observing)
        anomalies = anomalies + (missed * observed[:, None]) @ gain_t
        return {**state, "x": mean + self.factor * anomalies}


def _gain_t(x: Tensor, covariance: Tensor, observed: Tensor, observing: ObservingSystem) -> Tensor:
    """K^T of a background covariance (B, N, N), shape (B, P, N), with H linearised at x (B, N)."""
    rows, both = observing.observed_covariances(x, covariance, observed)
    # Rows of what is not observed are those of the identity, so they solve to zero.
    gain_t: Tensor = torch.linalg.solve(both + observing.covariance_of(observed), rows)
    return gain_t
