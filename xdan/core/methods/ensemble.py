"""What ensemble methods have in common."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import choice, integer
from ..derivative_checks import Mode
from ..dynamics import Dynamics, ModelError
from ..ensemble_space import InverseRoot, Precision, centre
from ..observing import ObservingSystem
from ..random import Purpose, normal
from .backward import BackwardPass, EnsembleBackward
from .base import Differentiated, Method
from .declarations import SPREADS, Output, Tunable
from .model_noise import WAYS, sqrt_core, with_draws
from .record import Record, State

__all__ = ["INFLATIONS", "EnsembleMethod", "InverseRoot", "Precision", "centre", "compare", "rotation"]

INFLATIONS = Tunable(
    (1.0, 1.005, 1.01, 1.015, 1.02, 1.03, 1.04, 1.06, 1.08, 1.11, 1.15, 1.2, 1.3, 1.45), natural_end=1.0
)


class EnsembleMethod(Method):
    """A method whose state is an ensemble, `x` of shape (B, M, N).

    A subclass gives `analyse`. The members are drawn from the dynamics' climatology, and `first` moves each member
    towards the first observations. This class computes the mean, the forecast of every member and both spreads. An
    example: an analysis with perturbed observations, for each member separately::

        @xdan.register_method
        class Perturbed(xdan.EnsembleMethod):
            name = "perturbed"

            def __init__(self, members: int = 20, inflation: float = 1.05) -> None:
                super().__init__(members)
                self.inflation = inflation

            def analyse(self, state, observation, observed, observing):
                x, (b, m, _) = state["x"], state["x"].shape
                noise = observing.errors_from(self.draw(state, m * observation.shape[1]).reshape(b, m, -1))
                innovation = observation[:, None] + noise - observing.observe(x)
                x = x + observing.interpolate(x.mean(1), x.var(1), innovation, observed)
                mean = x.mean(1, keepdim=True)
                return {"x": mean + self.inflation * (x - mean)}

    The backward pass of `cycle(..., smooth=True)` relies on members that keep their order from an analysis to the next
    forecast. A method whose forecast reorders or remakes members sets `backward = None`.

    The functions `compare` and `centre` and the class `Precision` help to write ensemble transform filters.

    Parameters
    ----------
    members : int
        Ensemble size M, at least 2.
    model_noise : {"draws", "sqrt-core"}
        How the forecast includes the covariance Q of the model's errors, if the model has one. "draws" draws an error
        for each member. "sqrt-core" transforms the anomalies within the space of the members.

    Raises
    ------
    TypeError
        If `members` is not an integer.
    ValueError
        If there are fewer than 2 members, or `model_noise` is unknown.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=10, trajectories=4, seed=0).compute()
    >>> class FreeEnsemble(xdan.EnsembleMethod):
    ...     name = "free-ensemble"
    ...     def __init__(self, members=5):
    ...         super().__init__(members)
    ...     def analyse(self, state, observation, observed, observing):
    ...         return {"x": state["x"]}
    >>> run = ds.dan.cycle(FreeEnsemble(), members=True)
    >>> dict(run.members.sizes)
    {'trajectory': 4, 'time': 10, 'member': 5, 'x': 8}
    """

    ensemble: ClassVar[bool] = True
    backward: ClassVar[type[BackwardPass] | None] = EnsembleBackward
    outputs: tuple[Output, ...] = SPREADS
    model_noise: str = "draws"

    def __init__(self, members: int, model_noise: str = "draws") -> None:
        self.members = integer("members", members)
        if self.members < 2:
            raise ValueError(f"members={self.members}: expected at least 2, a spread needs them")
        self.model_noise = choice("model_noise", model_noise, WAYS)

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters. The default of `model_noise` is left out, so that old runs can resume."""
        return {name: value for name, value in super().config().items() if (name, value) != ("model_noise", "draws")}

    @property
    def derivatives(self) -> tuple[tuple[Differentiated, Mode], ...]:
        """Derivatives of the observation operator, for the first analysis."""
        return (("operator", "forward"),)

    def start(self, record: Record) -> State:
        """Members drawn from the dynamics' climatology."""
        x = record.dynamics.climatology(
            record.trajectory,
            record.seed,
            members=self.members,
            purpose=Purpose.ENSEMBLE,
            like=record.observation,
        )
        labels = record.trajectory.to(x.device)
        size = self.members * record.observation.shape[-1]
        noise = normal(record.seed, Purpose.PERTURBATION, labels, torch.zeros_like(labels[:1]), size)
        return {"x": x.flatten(2), "noise": noise.to(x).reshape(len(x), self.members, -1)}

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Move each member towards the first observations, site by site: optimal interpolation with perturbations.

        A few members cannot hold the climatology's covariance. This start has every direction, with the right size.
        """
        state = dict(state)
        x, noise = state["x"], observing.errors_from(state.pop("noise"))
        innovation = observation[:, None] + noise - observing.observe(x)
        return {**state, "x": x + observing.interpolate(x.mean(1), x.var(1), innovation, observed)}

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the members, and include the model's errors."""
        after = super().forecast(state, dynamics, steps)
        return after if dynamics.model_error is None or not steps else self.with_errors(after, dynamics.model_error)

    def with_errors(self, state: State, error: ModelError) -> State:
        """A forecast state whose members' covariance is larger by Q."""
        x = state["x"]
        if self.model_noise == "sqrt-core":
            return {**state, "x": sqrt_core(x, error)}
        noise = self.draw(state, x[0].numel(), Purpose.MODEL_NOISE).reshape(x.shape)
        return {**state, "x": with_draws(x, error, noise)}

    def turned(self, root: Tensor, state: State) -> Tensor:
        """Rotate a square root (B, M, M) at random, such that the members keep their mean.

        References
        ----------
        Sakov and Oke (2008), doi:10.1175/2007MWR2021.1.
        """
        size = self.members - 1
        return rotation(self.draw(state, size**2, Purpose.ROTATION).reshape(-1, size, size)) @ root

    def forecast_outputs(self, state: State) -> dict[str, Tensor]:
        """Forecast spread."""
        return {"forecast_spread": state["x"].std(1)}

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Analysis spread, and the entries of the state that are outputs."""
        return {"spread": state["x"].std(1), **super().analysis_outputs(state)}


def compare(x: Tensor, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> tuple[Tensor, Tensor]:
    """Members in observation space: whitened anomalies of H(x), (B, M, P), and whitened mean innovation, (B, P)."""
    mean, anomalies = centre(observing.observe(x))
    return observing.whiten(anomalies, observed), observing.whiten(observation - mean[:, 0], observed)


def rotation(noise: Tensor) -> Tensor:
    """Random orthogonal matrices that keep the mean of the members, from standard normal numbers (B, M - 1, M - 1)."""
    m = noise.shape[-1] + 1
    q, r = torch.linalg.qr(noise)
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    inside = torch.eye(m, dtype=noise.dtype, device=noise.device).repeat(len(noise), 1, 1)
    inside[:, 1:, 1:] = q
    # An orthonormal basis whose first vector is uniform: a Householder reflection.
    v = torch.full((m,), 1 / math.sqrt(m), dtype=noise.dtype, device=noise.device)
    v[0] -= 1.0
    basis = torch.eye(m, dtype=noise.dtype, device=noise.device) - 2 * torch.outer(v, v) / v.dot(v)
    answer: Tensor = basis @ inside @ basis
    return answer
