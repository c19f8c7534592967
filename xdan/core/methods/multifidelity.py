"""The multifidelity ensemble Kalman filter: a few members of a costly model, and many of cheaper models."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import choice, integer, real, shown
from ..dynamics import Dynamics
from ..observing import ObservingSystem
from ..random import Purpose
from .control_variates import control_variate_covariance, control_variate_mean, regression_weights
from .ensemble import centre
from .fidelities import FidelitiesMethod, Pair, described, pairs_of
from .model_noise import with_draws
from .record import Record, State
from .registry import register_method

WEIGHTS = ("scalar", "component")


@register_method
class MultifidelityEnKF(FidelitiesMethod):
    """Multifidelity ensemble Kalman filter with control variates.

    There is one sample of analysis states, v^(1) to v^(N_K). The record's dynamics is the costly model: it forecasts
    the first N_0 states. Low-fidelity model k forecasts the first N_k states. Control variates estimate the mean and
    covariance of the forecast. The gain follows from this covariance.

    Parameters
    ----------
    principal : int
        Number N_0 of members of the record's dynamics, at least 2.
    models : sequence of (Dynamics, int)
        Low-fidelity models and the number N_k of members of each; N_0 <= N_1 <= ... <= N_K. Without models, the method
        has `principal` members of the record's dynamics alone.
    weights : {"scalar", "component"} or sequence of float
        Weight a_k of each low-fidelity model. A name asks for the regression of the costly model on model k, over their
        N_0 common members of each cycle: "scalar" for all components together, "component" for each component.
    inflation : float or "tune"
        Factor by which the analysis anomalies are multiplied.
    spin_up : int
        Number of first cycles that raise the forecast error covariance if innovations are larger than it explains.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If counts decrease, there are fewer than 2 principal members, or the number of weights does not fit. In a run:
        if a model has another state than the record, or a time step does not divide the intervals.

    Notes
    -----
    Let m_k and C_k be the mean and covariance of all members of model k, and m'_k and C'_k those of its first N_{k-1}
    members. With A_k = diag(a_k),

        m = m_0 + sum_k a_k (m_k - m'_k),  C = C_0 + sum_k A_k (C_k - C'_k) A_k.

    Negative eigenvalues of C are set to zero. If the record's dynamics has a known error covariance Q, Q is added to C.
    The analysis is that of a square-root filter with C: the mean is m + K d, and each forecast anomaly is multiplied by
    I - K' H. A member n > N_0 has no costly forecast. Its anomaly is a_k times that of the best model that ran it, plus
    a random residual. The residual has the covariance of the residuals at the principal members.

    References
    ----------
    Popov, Mou, Sandu and Iliescu (2021), doi:10.1137/20M1349965; Hoel, Law and Tempone (2016), doi:10.1137/15M100955X;
    Peherstorfer, Willcox and Gunzburger (2016), doi:10.1137/15M1046472, for the weights.

    Examples
    --------
    >>> from xdan import Lorenz96
    >>> MultifidelityEnKF(10, [(Lorenz96(forcing=7.5), 60)]).members  # 10 costly and 60 cheap forecasts
    70
    """

    name: ClassVar[str] = "multifidelity-enkf"

    def __init__(
        self,
        principal: int = 20,
        models: Any = (),
        weights: Any = "scalar",
        inflation: float | str = 1.02,
        spin_up: int = 100,
    ) -> None:
        self.principal = integer("principal", principal, least=2)
        self.models: tuple[Pair, ...] = pairs_of("models", models, least=1)
        counts = [self.principal, *(members for _, members in self.models)]
        if any(after < before for before, after in pairwise(counts)):
            raise ValueError(
                f"members {counts} of the record's dynamics and of models=: expected numbers that do not decrease, as "
                "a low-fidelity model runs all members of the models before it; sort the models by their members"
            )
        super().__init__([(None, self.principal), *self.models], inflation, spin_up)
        self.weights = _weights(weights, len(self.models))

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters."""
        held = {"principal": self.principal, "models": described(self.models), "weights": self.weights}
        return {**held, "inflation": self.inflation, "spin_up": self.spin_up} | self.asked_candidates()

    def check_dynamics(self, dynamics: Dynamics) -> None:
        """Refuse models that do not fit the record's dynamics, and cheap models with a Q.

        The method measures the errors of cheap models against the costly model.
        """
        super().check_dynamics(dynamics)
        for model, _ in self.models:
            if model is not None and model.model_error is not None:
                raise ValueError(
                    f"the low-fidelity model {model.label!r} of models= is known to err by {model.model_error.word} in "
                    "an interval: expected no such error, as it is compared with the record's dynamics; give "
                    "model.with_model_error(0.0)"
                )

    def start(self, record: Record) -> State:
        """Members of the record's climatology."""
        state = super().start(record)
        x = state["x"]
        return {**state, "mean": x.mean(1), "covariance": torch.diag_embed(x.var(1))}

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Move each member towards the first observations. The last model's members are the sample of all models."""
        state = super().first(state, observation, observed, observing)
        return self._state_at_analysis(state, state["x"][:, -self._all :])

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the members of each model, and estimate mean and covariance."""
        parts = self.split(self.advanced(state["x"], dynamics, steps))
        weights = self._weights(parts)
        covariance = control_variate_covariance(parts, weights)
        if dynamics.model_error is not None:
            covariance = dynamics.model_error.added_to(covariance)
        mean = control_variate_mean(parts, weights)
        return {**state, "x": torch.cat(parts, 1), "mean": mean, "covariance": covariance}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Assimilate the observations into the estimates of mean and covariance."""
        anomalies, error = self._anomalies(state), self.dynamics.model_error
        if error is not None:
            noise = self.draw(state, anomalies[0].numel(), Purpose.MODEL_NOISE).reshape(anomalies.shape)
            anomalies = with_draws(anomalies, error, noise)
        mean, kept = self.analysed(state, state["covariance"], anomalies, observation, observed, observing)
        return self._state_at_analysis({**state, "mean": mean}, mean[:, None] + kept)

    def mean(self, state: State) -> Tensor:
        """Control variate estimate of the forecast, or the mean of the analysis, shape (B, N)."""
        return state["mean"]

    def forecast_outputs(self, state: State) -> dict[str, Tensor]:
        """Standard deviations of the control variate estimate of the covariance."""
        return {"forecast_spread": state["covariance"].diagonal(dim1=1, dim2=2).clamp_min(0.0).sqrt()}

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Spread of the sample of all models."""
        return {"spread": state["x"][:, -self._all :].std(1)}

    @property
    def _all(self) -> int:
        """Size N_K of the sample."""
        return self.blocks[-1][1]

    def _state_at_analysis(self, state: State, sample: Tensor) -> State:
        """State after an analysis: each model restarts from its first members of the sample (B, N_K, N)."""
        x = torch.cat([sample[:, :members] for _, members in self.blocks], 1)
        return {**state, "x": x, "mean": sample.mean(1)}

    def _weights(self, parts: tuple[Tensor, ...]) -> list[Tensor]:
        """Weight a_k of each low-fidelity model, broadcastable to (B, N)."""
        high, *low = parts
        if not isinstance(self.weights, str):
            return [high.new_full((1, 1), weight) for weight in self.weights]
        scalar = self.weights == "scalar"
        return [regression_weights(high, part[:, : self.principal], scalar) for part in low]

    def _anomalies(self, state: State) -> Tensor:
        """Anomalies of the sample (B, N_K, N) from the forecast mean. Each comes from the best model that ran it.

        Model k gives a_k (u - m_k) + sum_{l > k} a_l (m'_l - m_l), a_0 = 1, because m_k is the mean of N_k members
        only. Anomalies of cheap models get the residual of the costly model. The mean over the sample is zero.
        """
        parts = self.split(state["x"])
        weights, counts = [weight[:, None] for weight in self._weights(parts)], [part.shape[1] for part in parts]
        means = [part.mean(1, keepdim=True) for part in parts]
        offsets = [
            weight * (part[:, :fewer].mean(1, keepdim=True) - mean)
            for weight, part, fewer, mean in zip(weights, parts[1:], counts, means[1:], strict=False)
        ]
        high, rest = parts[0] - means[0], self._all - self.principal
        rows = [high + sum(offsets)]
        if not rest:
            return rows[0]
        noise = self.draw(state, rest * self.principal, Purpose.PERTURBATION).reshape(len(high), rest, self.principal)
        residuals = []
        for k, (weight, part) in enumerate(zip(weights, parts[1:], strict=True)):
            rows.append(weight * (part - means[k + 1])[:, counts[k] :] + sum(offsets[k + 1 :]))
            residual = high - weight * centre(part[:, : self.principal])[1]
            drawn = noise[:, counts[k] - self.principal : counts[k + 1] - self.principal]
            residuals.append(drawn @ residual / (self.principal - 1) ** 0.5)
        drawn = torch.cat(residuals, 1)
        if rest > 1:
            drawn = centre(drawn)[1] * (rest / (rest - 1)) ** 0.5
        return torch.cat([rows[0], torch.cat(rows[1:], 1) + drawn], 1)


def _weights(weights: Any, models: int) -> str | list[float]:
    """Check the weights: the name of an estimate, or one weight for each model."""
    if isinstance(weights, str):
        return choice("weights", weights, WEIGHTS)
    try:
        listed = [real(f"weights[{k}]", weight) for k, weight in enumerate(weights)]
    except TypeError:
        raise TypeError(f"weights={shown(weights)}: expected one of {list(WEIGHTS)} or a list of numbers") from None
    if len(listed) != models:
        raise ValueError(f"{len(listed)} weights for {models} models: expected one for each")
    return listed
