"""Ensembles whose members are advanced by several models, and an analysis with a covariance matrix."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import integer, shown
from ..dynamics import Dynamics, dynamics_from_json, dynamics_to_json
from ..observing import ObservingSystem
from ..roots import eigh_or_nan
from ..spaces import Unstated
from .advancing import advance
from .backward import BackwardPass
from .finite_size import InflatedEnsemble
from .record import Record, State

_EXPECTED = "expected pairs such as [(xdan.Lorenz96(forcing=7.0), 20)], a model and a number of members"
_MOST_RAISED = 100.0  # largest factor of the forecast error covariance in the first cycles
Pair = tuple[Dynamics | None, int]


class FidelitiesMethod(InflatedEnsemble):
    """An ensemble in blocks: each block has a model, which advances the members of the block.

    `x` of shape (B, M, N) holds the blocks one after another. All models have the state of the record's dynamics. A
    model with another time step takes as many steps as fill the interval.

    Parameters
    ----------
    blocks : sequence of (Dynamics or None, int)
        Model and number of members of each block; None stands for the record's dynamics.
    inflation : float or "tune"
        Factor by which the analysis anomalies are multiplied.
    spin_up : int
        Number of first cycles that raise the forecast error covariance if innovations are larger than it explains.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If `spin_up` is negative, or the inflation is not positive.
    """

    backward: ClassVar[type[BackwardPass] | None] = None
    no_backward: ClassVar[str] = "its members belong to several models, and are not the members that it analyses"

    def __init__(self, blocks: Sequence[Pair], inflation: float | str, spin_up: int) -> None:
        super().__init__(sum(members for _, members in blocks), inflation, spin_up)
        self.blocks: tuple[Pair, ...] = tuple(blocks)

    def check_dynamics(self, dynamics: Dynamics) -> None:
        """Refuse models with another state than the record's dynamics.

        Raises
        ------
        ValueError
            If dims, sizes, fields or geometries differ, or a model depends on time and the record's dynamics does not.
        """
        super().check_dynamics(dynamics)
        for model, _ in self.blocks:
            if model is None:
                continue
            if not _same_state(model, dynamics):
                raise ValueError(
                    f"the model {model.label!r} of models= has the state {_state_of(model)}: expected that of "
                    f"the record's dynamics {dynamics.label!r}, {_state_of(dynamics)}, because members of all models "
                    "are averaged; write the model on the grid of the record"
                )
            if dynamics.autonomous and not model.autonomous:
                raise ValueError(
                    f"the model {model.label!r} of models= depends on time, and the record's dynamics "
                    f"{dynamics.label!r} does not: expected models without a time, or dynamics= with one"
                )
            model.vet()

    def check_steps(self, dynamics: Dynamics, steps: Sequence[int]) -> None:
        """Refuse models whose time step does not divide these intervals."""
        for model, _ in self.blocks:
            for some in steps:
                self._steps(model, dynamics, some)

    def check_record(self, record: Record) -> None:
        """Refuse models whose time step does not divide the intervals of the record."""
        super().check_record(record)
        self.check_steps(record.dynamics, sorted(set(record.steps) - {0}))

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Blocks (B, M_k, N) of members (B, M, N)."""
        parts: tuple[Tensor, ...] = torch.split(x, [members for _, members in self.blocks], 1)
        return parts

    def advanced(self, x: Tensor, dynamics: Dynamics, steps: int) -> Tensor:
        """Members (B, M, N) after an interval: each model advances its block. `steps` counts the record's dynamics'."""
        parts = [
            advance(self._standing(model, dynamics), part, self._steps(model, dynamics, steps))
            for (model, _), part in zip(self.blocks, self.split(x), strict=True)
        ]
        return torch.cat(parts, 1)

    def analysed(
        self,
        state: State,
        covariance: Tensor,
        anomalies: Tensor,
        observation: Tensor,
        observed: Tensor,
        observing: ObservingSystem,
    ) -> tuple[Tensor, Tensor]:
        """Analysis mean (B, N) and inflated anomalies (B, M, N) of a forecast state with a mean and a covariance."""
        mean = state["mean"]
        forecast = ObservedForecast(mean, covariance, observation, observed, observing)
        if self.spins_up(state):
            factor = forecast.consistent_factor()
            covariance, anomalies = covariance * factor[:, None, None], anomalies * factor.sqrt()[:, None, None]
            forecast = ObservedForecast(mean, covariance, observation, observed, observing)
        after, kept = forecast.analysis(anomalies)
        return after, self.number("inflation") * kept

    def _standing(self, model: Dynamics | None, dynamics: Dynamics) -> Dynamics:
        """A model at the time at which the record's dynamics stands."""
        if model is None:
            return dynamics
        return model if model.autonomous else model.starting_at(dynamics.model_time)

    def _steps(self, model: Dynamics | None, dynamics: Dynamics, steps: int) -> int:
        """Steps of a model in an interval of `steps` steps of the record's dynamics.

        Raises
        ------
        ValueError
            If the number of steps is not whole.
        """
        if model is None or steps == 0:
            return steps
        count = steps * dynamics.timestep / model.timestep
        if round(count) < 1 or abs(count - round(count)) > 1e-6 * count:
            raise ValueError(
                f"the model {model.label!r} of models= has a time step of {model.timestep:g}, and the record an "
                f"interval of {steps * dynamics.timestep:g}: expected a step that divides the interval"
            )
        return round(count)


class ObservedForecast:
    """A forecast and its error covariance in observation space, whitened by R: what an analysis needs.

    Parameters
    ----------
    mean : Tensor, shape (B, N)
    covariance : Tensor, shape (B, N, N)
        P.
    observation, observed : Tensor, shape (B, P)
    observing : ObservingSystem
        H and R of one time. A nonlinear H is linearised at the mean.
    """

    def __init__(
        self, mean: Tensor, covariance: Tensor, observation: Tensor, observed: Tensor, observing: ObservingSystem
    ) -> None:
        rows, square = observing.observed_covariances(mean, covariance, observed)
        self.mean, self.observed, self.observing = mean, observed, observing
        self.to_state = observing.whiten(rows.mT, observed)  # P H^T R^{-T/2}, (B, N, P)
        half = observing.whiten(square, observed)
        self.square = observing.whiten(half.mT.contiguous(), observed)  # R^{-1/2} H P H^T R^{-T/2}
        self.innovation = observing.whiten(observation - observing.observe(mean), observed)

    def consistent_factor(self) -> Tensor:
        """Factor of the covariance, at least 1, with which |d|^2 has the size that the covariance says, shape (B,).

        References
        ----------
        Wang and Bishop (2003), doi:10.1175/1520-0469(2003)060<1140:ACOBAE>2.0.CO;2, Eq. 15.
        """
        missing = self.innovation.square().sum(1) - self.observed.sum(1)
        trace = self.square.diagonal(dim1=1, dim2=2).sum(1)
        return (missing / trace.clamp_min(torch.finfo(trace.dtype).tiny)).clamp(1.0, _MOST_RAISED)

    def analysis(self, anomalies: Tensor) -> tuple[Tensor, Tensor]:
        """Mean x + K d, and anomalies (I - K' H) X. Their covariance is (I - K H) P if X has the covariance P.

        References
        ----------
        Whitaker and Hamill (2002), doi:10.1175/1520-0493(2002)130<1913:EDAWPO>2.0.CO;2, Eq. 10.
        """
        values, vectors = eigh_or_nan(self.square)
        gain = self.to_state @ vectors
        total = 1.0 + values.clamp_min(0.0)
        innovation = (vectors.mT @ self.innovation[..., None])[..., 0]
        after = self.mean + (gain @ (innovation / total)[..., None])[..., 0]
        at_sites = self.observing.whiten(self.observing.tangent(self.mean, anomalies), self.observed)
        kept = anomalies - (at_sites @ vectors / (total + total.sqrt())[:, None]) @ gain.mT
        return after, kept


def covariance_of(anomalies: Tensor, freedom: int) -> Tensor:
    """X^T X / freedom of anomalies (B, M, N), shape (B, N, N)."""
    return anomalies.mT @ anomalies / freedom


def pairs_of(label: str, models: Any, least: int) -> tuple[Pair, ...]:
    """Check pairs of a model and a number of members. They are objects, or descriptions from a store.

    Parameters
    ----------
    label : str
        The argument's name.
    models : sequence of (Dynamics, int)
        A model may be None, for the record's dynamics, or a plain description of a model.
    least : int
        Smallest number of members of each model.

    Raises
    ------
    TypeError
        If `models` is not such a sequence.
    ValueError
        If there are too few members, or a description names a dynamics that is not registered or holds a digest.
    """
    if isinstance(models, (str, Mapping, Dynamics)) or not isinstance(models, Sequence):
        raise TypeError(f"{label}={shown(models)}: {_EXPECTED} each")
    pairs = []
    for number, pair in enumerate(models):
        if isinstance(pair, (str, Mapping)) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise TypeError(f"{label}[{number}]={shown(pair)}: {_EXPECTED}")
        model, members = pair
        if isinstance(model, Mapping):
            model = _model_from_json(f"{label}[{number}]", model)
        if model is not None and not isinstance(model, Dynamics):
            raise TypeError(f"{label}[{number}]={shown(pair)}: {_EXPECTED}; the model is no xdan.Dynamics")
        pairs.append((model, integer(f"members of {label}[{number}]", members, least=least)))
    return tuple(pairs)


def _model_from_json(label: str, description: Mapping[str, Any]) -> Dynamics:
    """Make the model that a description names, including the standard deviation of its errors.

    Raises
    ------
    ValueError
        If the description has a digest of the step or of Q, or if `dynamics_from_json` refuses it.
    """
    digests = {name: word for name in ("step", "model_error") if isinstance(word := description.get(name), str)}
    if digests:
        raise ValueError(
            f"{label}: the model {shown(description.get('name'))} is described with {shown(digests)}, a digest from "
            "which no model can be made: expected the model itself; pass models= again, with the models of the run"
        )
    return dynamics_from_json(description).with_model_error(description.get("model_error"))


def described(pairs: Sequence[Pair]) -> list[list[Any]]:
    """Models with members as plain JSON. A model that stores cannot open again has a digest of its step in addition."""
    return [[None if model is None else _description(model), members] for model, members in pairs]


def _description(model: Dynamics) -> dict[str, Any]:
    description = dynamics_to_json(model)
    try:
        opens = type(dynamics_from_json(description)) is type(model)
    except ValueError:
        opens = False
    if not opens:
        step = model.fingerprint().double().numpy().tobytes()
        description["step"] = f"sha256 {hashlib.sha256(step).hexdigest()[:16]}"
    return description


def _same_state(model: Dynamics, other: Dynamics) -> bool:
    """Whether the fields of two models lie on the same points. A grid without coordinates fits every grid."""
    if len(model.space) != len(other.space):
        return False
    for one, two in zip(model.space, other.space, strict=True):
        known = not isinstance(one.geometry, Unstated) and not isinstance(two.geometry, Unstated)
        if (one.geometry.dims, one.geometry.shape) != (two.geometry.dims, two.geometry.shape) or (
            known and one.geometry != two.geometry
        ):
            return False
    return model.space.single is not None or model.space.names == other.space.names


def _state_of(model: Dynamics) -> str:
    """Dims and sizes of a model's fields, in words."""
    return ", ".join(
        f"{field.name} {dict(zip(field.geometry.dims, field.geometry.shape, strict=True))}" for field in model.space
    )
