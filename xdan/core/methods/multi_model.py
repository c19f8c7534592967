"""The multi-model ensemble Kalman filter: it combines forecasts of several wrong models by their model errors."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import choice, integer
from ..dynamics import Dynamics
from ..observing import ObservingSystem
from ..random import Purpose
from ..roots import eigh_or_nan
from .declarations import SPREADS, Output
from .ensemble import centre
from .error_estimates import KINDS, ErrorEstimate
from .fidelities import FidelitiesMethod, Pair, covariance_of, described, pairs_of
from .record import Record, State
from .registry import register_method

_LEAST = 1e-4  # smallest model error that is assumed, as a share of the ensemble's mean variance
ERRORS = (*KINDS, "known")


@register_method
class MultiModelEnKF(FidelitiesMethod):
    """Multi-model ensemble Kalman filter: it assimilates the forecasts of several models into each other.

    All models start from one analysis. The forecast of model k counts as an observation of the truth. It has two
    errors: the error of the analysis, which all forecasts share, and the error of model k with the covariance Q_k. Q_k
    is estimated from the innovations of model k, cycle by cycle. The forecasts are combined by weights that follow from
    these errors. Then the observations are assimilated into the combined forecast.

    Parameters
    ----------
    models : sequence of (Dynamics or None, int)
        Models, and the number of members of each, at least 2. None is the record's dynamics.
    inflation : float or "tune"
        Factor by which the analysis anomalies are multiplied.
    model_errors : {"diagonal", "scalar", "known"}
        What is estimated of each Q_k: "diagonal" estimates a variance for each component, "scalar" one for all
        components. "known" estimates nothing: it takes the errors that `Dynamics.with_model_error` gave to each model.
    averaging : int
        Number of cycles over which innovations are averaged; earlier cycles fade out.
    spin_up : int
        Number of first cycles that raise the forecast error covariance if innovations are larger than it explains.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If there are fewer than 2 members, a number is out of range, or a name is unknown. In a run: if a model has
        another state than the record, a time step does not divide the intervals, or a model has a known error and
        `model_errors` is not "known".

    Notes
    -----
    Let m_k be the forecast mean of model k, and P the covariance of all members around the means of their models. The
    combination starts with S = Q_1 and m = m_1. Each further model is assimilated by

        K = S (S + Q_k)^-1,  m <- m + K (m_k - m),  S <- (I - K) S (I - K)^T + K Q_k K^T,

    The combination has the error covariance P + S: before its analysis, errors with the covariance S are drawn for the
    members. The analysis is that of a square-root filter. The estimate of Q_k is the mean of d_k d_k^T - R - H P H^T.

    References
    ----------
    Bach and Ghil (2023), doi:10.1029/2022MS003123. There all forecasts have independent errors; here they share P.

    Examples
    --------
    >>> from xdan import Lorenz96
    >>> method = MultiModelEnKF([(Lorenz96(forcing=7.0), 20), (Lorenz96(forcing=9.0), 20)])
    >>> method.members
    40
    """

    name: ClassVar[str] = "multi-model-enkf"

    def __init__(
        self,
        models: Any = ((None, 40),),
        inflation: float | str = 1.0,
        model_errors: str = "diagonal",
        averaging: int = 200,
        spin_up: int = 100,
    ) -> None:
        self.models: tuple[Pair, ...] = pairs_of("models", models, least=2)
        if not self.models:
            raise ValueError("models=[]: expected at least one pair of a model and a number of members")
        super().__init__(self.models, inflation, spin_up)
        self.model_errors = choice("model_errors", model_errors, ERRORS)
        self.averaging = integer("averaging", averaging, least=2)
        count = range(1, len(self.models) + 1)
        self.outputs: tuple[Output, ...] = (
            *SPREADS,
            *(Output(f"weight_{k}", f"weight of model {k} in the combined forecast", "state") for k in count),
            *(
                Output(f"model_error_{k}", f"standard deviation of the error of model {k}", "state", "state")
                for k in count
            ),
        )

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters."""
        held = {name: getattr(self, name) for name in ("inflation", "model_errors", "averaging", "spin_up")}
        return {"models": described(self.models), **held} | self.asked_candidates()

    def check_dynamics(self, dynamics: Dynamics) -> None:
        """Refuse models that do not fit the record's dynamics, and known errors that would be estimated."""
        super().check_dynamics(dynamics)
        for model in (dynamics if model is None else model for model, _ in self.blocks):
            if model.model_error is not None and self.model_errors != "known":
                raise ValueError(
                    f"the model {model.label!r} of models= is known to err by {model.model_error.word} in an interval, "
                    f"and model_errors={self.model_errors!r} estimates its error: expected model_errors='known', or "
                    "model.with_model_error(0.0)"
                )

    def check_record(self, record: Record) -> None:
        """Refuse to estimate an error for each component if an operator observes the state."""
        super().check_record(record)
        if self.model_errors == "diagonal" and not record.observing.direct:
            raise ValueError(
                f"model_errors={self.model_errors!r}: the record is observed through an operator, and its innovations "
                "do not tell the errors of each component; expected model_errors='scalar', or 'known'"
            )

    def start(self, record: Record) -> State:
        """Members of the record's climatology. There are no innovations of the models yet."""
        state = super().start(record)
        x = state["x"]
        zero = x.new_zeros(len(x), len(self.blocks), x.shape[2])
        combined = {"mean": x.mean(1), "error": torch.diag_embed(zero[:, 0]), "weights": zero + 1 / len(self.blocks)}
        return {**state, **self._estimate.start(zero), **combined}

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Move each member towards the first observations. All models begin with the same mean."""
        state = super().first(state, observation, observed, observing)
        mean = state["x"].mean(1)
        return {**state, "x": mean[:, None] + self._parts(state["x"])[1], "mean": mean}

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the members of each model, and combine the forecasts."""
        x = self.advanced(state["x"], dynamics, steps)
        means, anomalies = self._parts(x)
        floor = _LEAST * anomalies.square().sum(1).mean(1) / self._freedom
        mean, error, weights = combine_forecasts(means, self._model_errors(state), floor)
        return {**state, "x": x, "mean": mean, "error": error, "weights": weights}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Update the error estimates by the innovations of each model, and assimilate the observations."""
        x, error = state["x"], state["error"]
        means, anomalies = self._parts(x)
        shared = covariance_of(anomalies, self._freedom)
        if self.model_errors != "known":
            state = {**state, **self._estimate.updated(state, means, shared, observation, observed, observing)}
        drawn = self.draw(state, anomalies[0].numel(), Purpose.MODEL_NOISE).reshape(anomalies.shape)
        noise = self._parts(drawn)[1]  # M - K degrees of freedom, the same number as the anomalies have
        anomalies = anomalies + noise @ _root(error).mT
        mean, kept = self.analysed(state, shared + error, anomalies, observation, observed, observing)
        return {**state, "x": mean[:, None] + kept, "mean": mean}

    def mean(self, state: State) -> Tensor:
        """Combined forecast, or mean of the analysis, shape (B, N)."""
        return state["mean"]

    def forecast_outputs(self, state: State) -> dict[str, Tensor]:
        """Standard deviation of the combined forecast, from P + S."""
        _, anomalies = self._parts(state["x"])
        variance = anomalies.square().sum(1) / self._freedom + state["error"].diagonal(dim1=1, dim2=2)
        return {"forecast_spread": variance.sqrt()}

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Analysis spread, and weight and error of each model."""
        _, anomalies = self._parts(state["x"])
        outputs = {"spread": (anomalies.square().sum(1) / self._freedom).sqrt()}
        variances = self._model_errors(state).diagonal(dim1=2, dim2=3)
        for k in range(len(self.blocks)):
            outputs |= {f"weight_{k + 1}": state["weights"][:, k], f"model_error_{k + 1}": variances[:, k].sqrt()}
        return outputs

    @property
    def _estimate(self) -> ErrorEstimate:
        """Estimate of the model errors. If the errors are known, its entries of the state stay empty."""
        return ErrorEstimate("scalar" if self.model_errors == "known" else self.model_errors, self.averaging)

    @property
    def _freedom(self) -> int:
        """Degrees of freedom of all anomalies from the means of their models."""
        return self.members - len(self.blocks)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means of the models, (B, K, N), and anomalies of all members from these means, (B, M, N)."""
        parts = [centre(part) for part in self.split(x)]
        return torch.cat([mean for mean, _ in parts], 1), torch.cat([anomalies for _, anomalies in parts], 1)

    def _model_errors(self, state: State) -> Tensor:
        """Q_k of every model, (B, K, N, N)."""
        if self.model_errors != "known":
            return torch.diag_embed(self._estimate.variances(state))
        x = state["x"]
        models = [self.dynamics if model is None else model for model, _ in self.blocks]
        zero = x.new_zeros(x.shape[2], x.shape[2])
        matrices = [zero if model.model_error is None else model.model_error.matrix(x) for model in models]
        return torch.stack(matrices).expand(len(x), -1, -1, -1)


def combine_forecasts(means: Tensor, errors: Tensor, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Assimilate forecasts of one truth into each other, one after another.

    Parameters
    ----------
    means : Tensor, shape (B, K, N)
    errors : Tensor, shape (B, K, N, N)
        Error covariance of each forecast. The errors of different forecasts are independent.
    floor : Tensor, shape (B,)
        Variance that is added to each error in the computation of the weights.

    Returns
    -------
    mean : Tensor, shape (B, N)
        The best linear unbiased estimate.
    error : Tensor, shape (B, N, N)
        Error covariance of this estimate, for the weights in use.
    weights : Tensor, shape (B, K, N)
        Weight of each model's forecast at each component: the diagonal of its weight matrix.

    References
    ----------
    Bach and Ghil (2023), doi:10.1029/2022MS003123.
    """
    size = means.shape[2]
    identity = torch.eye(size, dtype=means.dtype, device=means.device)
    least = floor.clamp_min(torch.finfo(floor.dtype).tiny)  # the loop sets lost trajectories to zero
    lifted = errors + least[:, None, None, None] * identity
    mean, error, lifted_error = means[:, 0], errors[:, 0], lifted[:, 0]
    matrices = [identity.expand(len(means), size, size)]
    for k in range(1, means.shape[1]):
        gain = torch.linalg.solve(lifted_error + lifted[:, k], lifted_error).mT
        rest = identity - gain
        mean = mean + (gain @ (means[:, k] - mean)[..., None])[..., 0]
        error = rest @ error @ rest.mT + gain @ errors[:, k] @ gain.mT
        lifted_error = rest @ lifted_error
        lifted_error = 0.5 * (lifted_error + lifted_error.mT)
        matrices = [*(rest @ matrix for matrix in matrices), gain]
    return mean, error, torch.stack([matrix.diagonal(dim1=1, dim2=2) for matrix in matrices], 1)


def _root(covariance: Tensor) -> Tensor:
    """A matrix A with A A^T = S, (B, N, N). S may be zero in some directions."""
    if bool((covariance == torch.diag_embed(covariance.diagonal(dim1=1, dim2=2))).all()):
        return torch.diag_embed(covariance.diagonal(dim1=1, dim2=2).clamp_min(0.0).sqrt())
    values, vectors = eigh_or_nan(covariance)
    return vectors * values.clamp_min(0.0).sqrt()[:, None]
