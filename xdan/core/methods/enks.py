"""The ensemble Kalman smoother with a fixed lag."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import integer, switch
from ..dynamics import Dynamics
from ..observing import ObservingSystem
from .backward import BackwardPass
from .declarations import SPREADS, Output, smoothed, smoothed_spread
from .ensemble import Precision, centre, compare
from .finite_size import InflatedEnsemble, effective_zeta
from .record import Record, State
from .registry import register_method
from .windowed import pushed


@register_method
class EnsembleKalmanSmoother(InflatedEnsemble):
    """EnKS: an ETKF whose analyses also correct the states of the L previous times.

    An analysis replaces the forecast's mean x and anomalies A (rows) by x + w A and T A. The members of an earlier time
    are correlated with the members of the forecast. The same weights w and transform T therefore correct the earlier
    time; the model does not run again. The output `smoothed` of a time uses the observations of up to L later times.

    Parameters
    ----------
    members : int
        Ensemble size M, at least 2.
    lag : int
        Lag L in cycles, at least 1. The state holds the members of L earlier times.
    inflation : float or "tune"
        Factor by which the analysis anomalies are multiplied. Do not combine it with `finite_size`.
    finite_size : bool
        Replace inflation by the finite-size prior, as "enkf-n" does.
    spin_up : int
        Number of first cycles whose inflation comes from the finite-size prior of the EnKF-N.
    model_noise : {"draws", "sqrt-core"}
        How the forecast includes the model's errors; see `EnsembleMethod`.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If a size is below its minimum, or inflation and `finite_size` are combined.

    Notes
    -----
    As in a backward pass (`BackwardPass`), an inflation f counts as an error of the model. This error does not belong
    to the earlier time, so the influence of later observations on an earlier time fades. Let B be anomalies of an
    earlier time, such that B^T A / (M - 1) is the covariance of the earlier state with the forecast. They start as
    A_a / f, where A_a are the anomalies of the analysis before inflation, and each interval divides them by f. An
    analysis replaces the earlier mean x, variance v and anomalies B by

        x + w B,    v + (diag (T B)^T (T B) - diag B^T B) / (M - 1),    T B.

    The finite-size prior (with `finite_size`, and in the first cycles) inflates the forecast before the analysis. This
    inflation counts in the same way. For a linear model without errors and a lag as long as the record, the result is
    that of a backward pass over the filter's run.

    References
    ----------
    Evensen and van Leeuwen (2000), doi:10.1175/1520-0493(2000)128<1852:AEKSFN>2.0.CO;2; Raanes (2016),
    doi:10.1002/qj.2728.
    """

    name: ClassVar[str] = "enks"
    backward: ClassVar[type[BackwardPass] | None] = None

    def __init__(
        self,
        members: int = 40,
        lag: int = 20,
        inflation: float | str | None = None,
        finite_size: bool = False,
        spin_up: int = 100,
        model_noise: str = "draws",
    ) -> None:
        self.finite_size = switch("finite_size", finite_size)
        if self.finite_size and inflation is not None:
            raise ValueError(f"inflation={inflation!r} with finite_size=True: expected one of the two")
        default = 1.0 if self.finite_size else 1.01
        super().__init__(members, default if inflation is None else inflation, spin_up, model_noise)
        self.lag = integer("lag", lag, least=1)
        self.outputs: tuple[Output, ...] = (*SPREADS, smoothed(self.lag), smoothed_spread(self.lag))

    def check_record(self, record: Record) -> None:
        """Refuse a record that is no longer than the lag."""
        if record.observation.shape[1] <= self.lag:
            raise ValueError(
                f"lag={self.lag}: the record has {record.observation.shape[1]} times; expected more than the lag"
            )
        super().check_record(record)

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Make the first analysis as every ensemble does. From then on, times before this start are not corrected."""
        after = super().first(state, observation, observed, observing)
        if "past_mean" in after:
            return {**after, "past_anomalies": torch.zeros_like(after["past_anomalies"])}
        x = after["x"]
        nothing = x.new_full((len(x), self.lag, x.shape[2]), torch.nan)
        anomalies = x.new_zeros(len(x), self.lag, *x.shape[1:])
        return {**after, "past_mean": nothing, "past_variance": nothing, "past_anomalies": anomalies}

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the members. The members of the analysis become the newest earlier time."""
        f = self.number("inflation")
        mean, anomalies = centre(state["x"])
        past = {
            "past_mean": pushed(state["past_mean"], mean[:, 0]),
            "past_variance": pushed(state["past_variance"], state["x"].var(1) / f**2),
            "past_anomalies": pushed(state["past_anomalies"] / f, anomalies / f**2),
        }
        return {**super().forecast(state, dynamics, steps), **past}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One analysis in the space of the members, applied to the earlier times too."""
        size = self.members - 1
        mean, anomalies = centre(state["x"])
        precision = Precision(*compare(state["x"], observation, observed, observing))
        zeta = effective_zeta(precision, self.members, True) if self.finite_size else self.zeta(precision, state)
        weights, root = precision.solve(zeta)
        root = math.sqrt(size) * root
        # For the forecast that the prior has inflated by f, the weights are w / f and the root is T / f.
        prior = self.prior_inflation(zeta, mean)[:, None, None]
        before = state["past_anomalies"] / prior[:, None]
        after = (root / prior)[:, None] @ before
        gained = (after.square().sum(2) - before.square().sum(2)) / size
        return {
            **state,
            "x": mean + (weights[:, None] + self.number("inflation") * root) @ anomalies,
            "past_mean": state["past_mean"] + ((weights[:, None] / prior)[:, None] @ before)[:, :, 0],
            "past_variance": state["past_variance"] + gained,
            "past_anomalies": after,
        }

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Spread, and the smoothed state of L cycles earlier."""
        past = {"smoothed": state["past_mean"][:, 0]}
        past["smoothed_spread"] = state["past_variance"][:, 0].clamp_min(0.0).sqrt()
        return {**super().analysis_outputs(state), **past}

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters; with `finite_size` the inflation is left out."""
        said = super().config()
        return {name: value for name, value in said.items() if name != "inflation" or not self.finite_size}
