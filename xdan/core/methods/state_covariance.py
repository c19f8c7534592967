"""A covariance built from the state alone: the classical rival of a network that sees a single forecast."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checks import choice, integer, real
from ..derivatives import Mode
from ..dynamics import Dynamics
from ..observing import ObservingSystem
from ..tangent import identity_directions
from .arguments import number_or_tune
from .base import Differentiated, Method, Record, State, advance, advance_along, register_method
from .climate import climate_moments
from .ensemble import INFLATIONS, Precision

ALGORITHMS = ("A1", "A2")
PASTS = ("analyses", "dynamics")


@register_method("state-covariance")
class CovarianceFromState(Method):
    """Kalman update with a forecast error covariance that follows from the recent past of a single state.

    Parameters
    ----------
    algorithm : {"A2", "A1"}
        "A1": perturbations epsilon I propagated from the past by the tangent linear model. "A2": a square-root
        Kalman filter from epsilon^2 I on, as if the past had been observed like the present.
    depth : int
        T, intervals that the past goes back.
    past : {"analyses", "dynamics"}
        Where the past trajectory comes from: the scheme's own analyses, or the dynamics integrated backward from the
        forecast, as in the paper; the latter blows up beyond a few tenths of a time unit.
    epsilon : float
        Initial standard deviation.
    inflation : float or "tune"
        Factor of the covariance's square root.

    Raises
    ------
    TypeError
        For arguments of another type.
    ValueError
        For unknown names, or numbers that are not positive.

    References
    ----------
    Sakov (2025), doi:10.48550/arXiv.2411.14809, Algorithms A1 and A2, as described by Bocquet et al., Sect. 3.1.3.
    """

    outputs: ClassVar[dict[str, str]] = {"forecast_spread": "site", "spread": "site"}
    tunable: ClassVar[dict[str, tuple[float, ...]]] = {
        "inflation": (*(0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85), *INFLATIONS, 1.6, 2.0),
    }
    natural_ends: ClassVar[dict[str, float]] = {}  # less than one is as natural as more
    _mean: Tensor | None = None

    def __init__(
        self,
        algorithm: str = "A2",
        depth: int = 10,
        past: str = "analyses",
        epsilon: float = 1.0,
        inflation: float | str = "tune",
    ) -> None:
        self.algorithm, self.past = choice("algorithm", algorithm, ALGORITHMS), choice("past", past, PASTS)
        self.depth, self.epsilon = integer("depth", depth, least=1), real("epsilon", epsilon, above=0.0)
        self.inflation = number_or_tune("inflation", inflation)

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters."""
        own = {name: getattr(self, name) for name in ("algorithm", "depth", "past", "epsilon", "inflation")}
        return own | self.asked_candidates()

    @property
    def derivatives(self) -> tuple[tuple[Differentiated, Mode], ...]:
        """Of the model along the past, and of the observation operator."""
        return ("model", "forward"), ("operator", "forward")

    def prepare(self, record: Record) -> Method:
        """Take the climatological mean, and tune."""
        ready = copy.copy(self)
        ready._mean = climate_moments(record.dynamics, record.seed, record.observation)[0]
        return super(CovarianceFromState, ready).prepare(record)

    def start(self, record: Record) -> State:
        """Climatological mean; an empty past.

        Raises
        ------
        RuntimeError
            If the method is not prepared.
        """
        if self._mean is None:
            raise RuntimeError(f"{self.name!r} is not prepared: call prepare(record) first")
        x = self._mean.expand(record.shape)
        return {
            "x": x,
            "steps": torch.zeros(len(x), self.depth, dtype=torch.int64, device=x.device),
            "analyses": x[:, None].expand(len(x), self.depth, x.shape[1]),
            "observed": torch.zeros(
                len(x), self.depth, record.observation.shape[-1], dtype=torch.bool, device=x.device
            ),
            "forecast_spread": torch.zeros_like(x),
            "spread": torch.zeros_like(x),
        }

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the state, and remember where it came from."""
        newest = torch.full_like(state["steps"][:, :1], steps)
        return {
            **state,
            "x": advance(dynamics, state["x"], steps),
            "steps": torch.cat([state["steps"][:, 1:], newest], 1),
            "analyses": torch.cat([state["analyses"][:, 1:], state["x"][:, None]], 1),
        }

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Build the covariance's root from the past, and update with it."""
        x = state["x"]
        # Where the past cannot be followed the root is not finite, and the trajectory is lost and flagged.
        root = self.number("inflation") * self._root(state, observing)
        innovation = observing.whiten(observation - observing.observe(x), observed)
        weights, inverse = Precision(observing.whiten(observing.tangent(x, root), observed), innovation).solve(1.0)
        after = inverse @ root
        return {
            **state,
            "x": x + (weights[:, None] @ root)[:, 0],
            "observed": torch.cat([state["observed"][:, 1:], observed[:, None]], 1),
            "forecast_spread": root.square().sum(1).sqrt(),
            "spread": after.square().sum(1).sqrt(),
        }

    def _root(self, state: State, observing: ObservingSystem) -> Tensor:
        """Rows whose outer products add up to the forecast error covariance, shape (B, N, N)."""
        x, steps = state["x"], state["steps"][0].tolist()
        dynamics = self.dynamics
        if self.past == "dynamics":
            points = [x]
            for count in reversed(steps):
                points.append(dynamics.retreat(points[-1].reshape(-1, *dynamics.shape), count).reshape(x.shape))
            past = points[:0:-1]
        else:
            past = list(state["analyses"].unbind(1))
        root = self.epsilon * identity_directions(x)
        for index, (count, point) in enumerate(zip(steps, past, strict=True)):
            if count == 0:
                continue
            observed = state["observed"][:, index]
            if self.algorithm == "A2":
                seen = observing.whiten(observing.tangent(point, root), observed)
                root = Precision(seen, torch.zeros_like(seen[:, 0])).solve(1.0)[1] @ root
            _, root = advance_along(dynamics, point, root, count)
        if self.algorithm == "A1":
            # As wide as epsilon, whatever it has grown to: the shape is what the past tells.
            root = self.epsilon * root / root.square().sum((1, 2), keepdim=True).div(x.shape[1]).sqrt()
        return root

    def forecast_outputs(self, state: State) -> dict[str, Tensor]:
        """Nothing: the covariance is built in the analysis."""
        return {}

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Spreads before and after."""
        return {name: state[name] for name in self.outputs}
