"""Hybrid ensemble-variational analysis: the background covariance combines the ensemble's and a static one."""

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
    """Hybrid 3D-EnVar: its background covariance is a weighted mean of the ensemble's and a static covariance.

        B = (1 - w) rho o P_f + w s B_0,    K = B H^T (H B H^T + R)^-1,    x_a = x_f + K (y - H x_f),

    Here P_f is the sample covariance of the members, rho the taper of Gaspari and Cohn, o the product by entries, and
    B_0 the background covariance of 3D-Var with its factor s. The minimum of the variational cost is computed exactly.
    With w = 0 the method is an EnKF with a localised covariance. With w = 1 the mean has the analysis of 3D-Var. The
    matrices are full, so N should be some thousands at most.

    Parameters
    ----------
    members : int
        Ensemble size M, at least 2.
    radius : float, "tune" or None
        Localisation radius c of rho. None leaves P_f as it is.
    static_weight : float or "tune"
        Weight w of the static covariance, from 0 to 1.
    background : {"climatology", "trained"} or array of shape (N, N)
        Static covariance B_0; see "3d-var".
    scale : float or "3d-var"
        Factor s. "3d-var" takes the scale that 3D-Var is tuned to on the record's leading part.
    anomalies : {"ensemble", "hybrid", "perturbed"}
        How the analysis anomalies follow. "ensemble": they take half of the gain of rho o P_f, as in the DEnKF.
        "hybrid": they take half of the gain of B. "perturbed": each member has perturbed observations and the whole
        gain of B.
    inflation : float, "tune" or "adaptive"
        Factor by which the analysis anomalies are multiplied.
    **parameters
        spin_up, model_noise, relaxation, relaxation_factor, inflation_std: see `AdaptiveEnsemble`.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If a number is out of range or a name unknown; if B_0 does not fit the record; with a radius, if the dynamics
        has no distance, or observations of an operator have no positions.

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
        """Declarations of the tuned values, and of the scale of the static covariance."""
        return (Choice("background_scale", "factor of the static background error covariance"), *super().choices)

    def chosen(self) -> dict[str, Any]:
        """The tuned values, and the scale of the static covariance."""
        return {"background_scale": torch.tensor(self._scale, dtype=torch.float64), **super().chosen()}

    def set_up(self, record: Record) -> None:
        """Build B_0 as 3D-Var does, and tune its scale if asked for. With `static_weight` 0 there is nothing to do.

        Raises
        ------
        ValueError
            If B_0 does not fit the record, or its training needs a truth and the record has none.
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
        """Compute the tapers between components, besides those of observations."""
        super().taken(localisation)
        _ = localisation.components

    def ensemble_covariance(self, anomalies: Tensor, observing: ObservingSystem) -> Tensor:
        """Localised covariance rho o P_f, shape (B, N, N), from forecast anomalies (B, M, N)."""
        p, localisation = anomalies.mT @ anomalies / (self.members - 1), self.localisation(observing)
        if localisation is None:
            return p
        taper = localisation.components.to(p)
        return p * taper.maximum(taper.mT)  # a component without a place is near to every other component

    def background_covariance(self, p: Tensor) -> Tensor:
        """B, shape (B, N, N). `p` is the ensemble's part rho o P_f, of this shape.

        Raises
        ------
        RuntimeError
            If the static covariance is needed, and the method is not prepared.
        """
        weight = self.number("static_weight")
        if not weight:
            return p
        if self._static is None:
            raise RuntimeError(f"{self.name!r} is not prepared: call prepare(record) first")
        return (1 - weight) * p + weight * self._static.to(p)

    def update(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """A gain for the mean, and for the members what the parameter `anomalies` says."""
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
    """K^T, shape (B, P, N), of a background covariance (B, N, N). H is linearised at x (B, N)."""
    rows, both = observing.observed_covariances(x, covariance, observed)
    # Rows of missing observations are rows of the identity, so that their solution is zero.
    gain_t: Tensor = torch.linalg.solve(both + observing.covariance_of(observed), rows)
    return gain_t
