"""Particle filters, for low dimensions and to show their limit."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import real
from ..derivative_checks import Mode
from ..dynamics import Dynamics, ModelError
from ..observing import ObservingSystem
from ..random import Purpose, uniform
from ..roots import cholesky_solved
from .advancing import advance
from .backward import BackwardPass
from .base import Differentiated
from .declarations import SPREADS, Output
from .ensemble import EnsembleMethod
from .record import Record, State
from .registry import register_method

_NOISE = 0.1  # standard deviation of the noise that is added to the particles of a perfect model


class ParticleFilter(EnsembleMethod):
    """What particle filters have in common: weights, their effective number, and resampling.

    Parameters
    ----------
    members : int
        Number of particles, at least 2.
    noise : float, optional
        Standard deviation, in the state's units, of the Gaussian model noise that each interval adds. Without noise,
        resampled particles stay equal. By default the noise is Q of the model's errors, or 0.1 for a perfect model.
    threshold : float
        Resample if the effective sample size is below this share of the particles.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If there are fewer than 2 particles, the noise is negative, or the threshold is outside [0, 1].
    """

    first_cycle: ClassVar[int] = 1
    _q: ModelError | None = None
    backward: ClassVar[type[BackwardPass] | None] = None
    no_backward: ClassVar[str] = "its particles have weights, and do not keep their numbers where they are resampled"
    outputs: tuple[Output, ...] = (
        *SPREADS,
        Output("effective_sample_size", "number of particles that the weights stand for, before resampling"),
        Output("resampled", "1 where the particles were resampled"),
    )

    def __init__(self, members: int = 500, noise: float | None = None, threshold: float = 0.5) -> None:
        super().__init__(members)
        self.noise = None if noise is None else real("noise", noise, least=0.0)
        self.threshold = real("threshold", threshold, least=0.0, most=1.0)

    @property
    def derivatives(self) -> tuple[tuple[Differentiated, Mode], ...]:
        """None: the first analysis weighs the particles like every analysis."""
        return ()

    def start(self, record: Record) -> State:
        """Particles from the climatology, with equal weights."""
        state = super().start(record)
        x = state["x"]
        zero = x.new_zeros(len(x))
        more = {"effective_sample_size": zero + self.members, "resampled": zero}
        return {**state, "log_weights": x.new_full(x.shape[:2], -math.log(self.members)), **more}

    def mean(self, state: State) -> Tensor:
        """Weighted mean."""
        return (state["log_weights"].exp()[:, None] @ state["x"])[:, 0]

    def forecast_outputs(self, state: State) -> dict[str, Tensor]:
        """Forecast spread."""
        return {"forecast_spread": self._spread(state)}

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Spread, effective sample size before resampling, and whether the particles were resampled."""
        return {**super().analysis_outputs(state), "spread": self._spread(state)}

    def _spread(self, state: State) -> Tensor:
        deviation = state["x"] - self.mean(state)[:, None]
        return (state["log_weights"].exp()[:, None] @ deviation.square())[:, 0].sqrt()

    def _reweigh(self, state: State, x: Tensor, log_likelihood: Tensor) -> State:
        """Multiply the weights by likelihoods, shape (B, M), and resample if the effective number is small."""
        log_weights = torch.log_softmax(state["log_weights"] + log_likelihood, 1)
        weights = log_weights.exp()
        effective = 1 / weights.square().sum(1)
        few = effective < self.threshold * self.members
        # Systematic resampling: one uniform number for all particles of a trajectory.
        offset = uniform(self.seed, Purpose.RESAMPLING, state["label"], state["cycle"][:1], 1)[:, 0].to(weights)
        positions = (torch.arange(self.members, dtype=weights.dtype, device=weights.device) + offset) / self.members
        cumulative = weights.cumsum(1)
        chosen = torch.searchsorted(cumulative / cumulative[:, -1:], positions).clamp_max(self.members - 1)
        resampled = x.gather(1, chosen[..., None].expand(x.shape))
        uniform_weights = torch.full_like(log_weights, -math.log(self.members))
        return {
            **state,
            "x": torch.where(few[:, None, None], resampled, x),
            "log_weights": torch.where(few[:, None], uniform_weights, log_weights),
            "effective_sample_size": effective,
            "resampled": few.to(weights.dtype),
        }

    def _error(self, dynamics: Dynamics) -> ModelError | None:
        """Q that moves the particles; None for no noise."""
        if self.noise is None and dynamics.model_error is not None:
            return dynamics.model_error
        return dynamics.with_model_error(_NOISE if self.noise is None else self.noise).model_error

    def set_up(self, record: Record) -> None:
        """Keep Q of the record."""
        self._q = self._error(record.dynamics)

    def with_errors(self, state: State, error: ModelError) -> State:
        """Return the particles as they are: each filter adds the model's errors in its analysis or its forecast."""
        return state

    def _errors(self, state: State) -> Tensor:
        """An error of the model for every particle, (B, M, N)."""
        x = state["x"]
        if self._q is None:
            return torch.zeros_like(x)
        return self._q.from_noise(self.draw(state, x[0].numel(), Purpose.MODEL_NOISE).reshape(x.shape).to(x))

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Weigh the climatological particles, without model noise."""
        state = {name: value for name, value in state.items() if name != "noise"}
        return self._weigh(state, observation, observed, observing)

    def _weigh(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Weigh the particles without moving them."""
        misfit = observing.whiten(observation[:, None] - observing.observe(state["x"]), observed)
        return self._reweigh(state, state["x"], -0.5 * misfit.square().sum(2))


@register_method
class BootstrapParticleFilter(ParticleFilter):
    """Bootstrap particle filter: the particles follow the model and its noise; the likelihood gives the weights.

    References
    ----------
    Gordon, Salmond and Smith (1993), doi:10.1049/ip-f-2.1993.0015.
    """

    name: ClassVar[str] = "particle"

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the particles and add model noise."""
        x = advance(dynamics, state["x"], steps)
        return {**state, "x": x + self._errors(state)}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Weigh, and resample."""
        return self._weigh(state, observation, observed, observing)


@register_method
class OptimalParticleFilter(ParticleFilter):
    """Particle filter with the optimal proposal: the model noise is drawn conditional on the observation.

    Particles are drawn from N(M(x) + K (y - H M(x)), (I - K H) Q), where K = Q H^T (H Q H^T + R)^{-1}. Their weight is
    N(y; H M(x), H Q H^T + R).

    References
    ----------
    Doucet, Godsill and Andrieu (2000), doi:10.1023/A:1008935410038.
    """

    name: ClassVar[str] = "optimal-particle"

    def check_record(self, record: Record) -> None:
        """Refuse observations without an optimal proposal in this class."""
        if not record.observing.direct:
            raise ValueError(
                "the optimal proposal with observations of an operator: expected observations of the state's sites; "
                "take 'particle'"
            )
        super().check_record(record)

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Draw, weigh, and resample."""
        x = state["x"]
        pair = observed[:, :, None] & observed[:, None, :]
        q = x.new_zeros(x.shape[2], x.shape[2]) if self._q is None else self._q.matrix(x)
        total = observing.covariance_of(observed) + torch.where(pair, q, torch.zeros_like(q))
        factor = torch.linalg.cholesky(total)
        innovation = torch.where(observed[:, None], observation[:, None] - x, torch.zeros_like(x))
        white = torch.linalg.solve_triangular(factor, innovation.mT, upper=False).mT
        # With noise e ~ N(0, Q) and r ~ N(0, R), the vector e + K (y - H x - H e - r) has the moments of the proposal.
        e = self._errors(state)
        r = observing.errors_from(self.draw(state, x[0].numel()).reshape(x.shape))
        rest = torch.where(observed[:, None], innovation - e - r, torch.zeros_like(x))
        pulled = e + (cholesky_solved(rest.mT, factor).mT * observed[:, None]) @ q
        return self._reweigh(state, x + pulled, -0.5 * white.square().sum(2))
