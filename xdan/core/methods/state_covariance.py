"""A covariance that is computed from the state alone: the classical rival of a network with a single forecast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import choice, integer, real
from ..derivative_checks import Mode
from ..dynamics import Dynamics
from ..observing import ObservingSystem
from ..roots import root_of
from ..tangent import identity_directions
from .advancing import advance, advance_along
from .arguments import number_or_tune
from .base import Differentiated, Method
from .climate import climate_moments
from .declarations import SPREADS, Output, Tunable
from .ensemble import INFLATIONS, Precision
from .gaussian_forecast import check_size
from .rebuilding import past_of, rebuilt_covariance, views_of
from .record import Record, State
from .registry import register_method
from .windowed import SlidingWindow, pushed

ALGORITHMS = ("A1", "A2")
PASTS = ("analyses", "dynamics")


@register_method
class CovarianceFromState(Method):
    """Kalman update with a forecast error covariance that is computed from the recent past of a single state.

    Parameters
    ----------
    algorithm : {"A2", "A1"}
        "A1": the tangent linear model propagates the perturbations epsilon I from the past. "A2": a square-root Kalman
        filter runs from epsilon^2 I on, as if the past had the observing system of the present.
    depth : int
        Number T of intervals that the past goes back.
    past : {"analyses", "dynamics"}
        Where the past trajectory comes from. "analyses": the method's earlier analyses. "dynamics": the model runs
        backward from the forecast, as in the paper. This is exact for a few tenths of a time unit. Before that the
        states are clipped to the size of the climate, or grow without bound if the model depends on time.
    epsilon : float
        Standard deviation of the first perturbations.
    inflation : float or "tune"
        Factor by which the covariance's square root is multiplied.
    c2 : float
        For "A2": factor of the second-order term of each forecast, as in "second-order-kalman"; 0 leaves the term out.
        With past="dynamics" and c2, a covariance from the forecast alone is nearly as good as one that is carried. The
        depth must then be a time unit or more.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If a name is unknown, a number is not positive, c2 is negative, or c2 is combined with "A1".

    References
    ----------
    Sakov (2025), doi:10.48550/arXiv.2411.14809, Algorithms A1 and A2, as described by Bocquet et al., Sect. 3.1.3.
    """

    name: ClassVar[str] = "state-covariance"
    windowed: ClassVar[bool] = True
    differentiates_model: ClassVar[bool] = True
    keeps_covariance: bool = True
    outputs: tuple[Output, ...] = SPREADS
    tunable: ClassVar[Mapping[str, Tunable]] = {  # numbers below 1 are as natural as above: no natural end
        "inflation": Tunable((*(0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85), *INFLATIONS.values, 1.6, 2.0)),
    }
    _climate: tuple[Tensor, Tensor] | None = None

    def __init__(
        self,
        algorithm: str = "A2",
        depth: int = 10,
        past: str = "analyses",
        epsilon: float = 1.0,
        inflation: float | str = "tune",
        c2: float = 0.0,
    ) -> None:
        self.algorithm, self.past = choice("algorithm", algorithm, ALGORITHMS), choice("past", past, PASTS)
        self.depth, self.epsilon = integer("depth", depth, least=1), real("epsilon", epsilon, above=0.0)
        self.inflation, self.c2 = number_or_tune("inflation", inflation), real("c2", c2, least=0.0)
        if self.c2 and self.algorithm == "A1":
            raise ValueError(f"c2={c2} and algorithm='A1', which uses no c2: expected algorithm='A2', or c2=0")
        self.perfect_model = not self.c2  # the filter along the past includes Q only if it has c2
        self._window = SlidingWindow(self.depth)

    @property
    def derivatives(self) -> tuple[tuple[Differentiated, Mode], ...]:
        """Derivatives of the model along the past, and of the observation operator."""
        return ("model", "forward"), ("operator", "forward")

    def set_up(self, record: Record) -> None:
        """Compute the mean and covariance of the climatology."""
        self._climate = climate_moments(record.dynamics, record.seed, record.observation)

    def check_record(self, record: Record) -> None:
        """Refuse states whose covariance is too large."""
        check_size(record.shape[1], f"the method {self.name!r}")
        super().check_record(record)

    def start(self, record: Record) -> State:
        """Climatological mean, with an empty past.

        Raises
        ------
        RuntimeError
            If the method is not prepared.
        """
        x = self._moments()[0].expand(record.shape)
        return {
            "x": x,
            **self._window.opened(x),
            "analyses": self._window.buffer(x),
            "observed": self._window.buffer(torch.zeros_like(record.observation[:, 0], dtype=torch.bool)),
            "covariance": torch.zeros_like(x)[..., None].expand(*x.shape, x.shape[1]),
            "forecast_spread": torch.zeros_like(x),
            "spread": torch.zeros_like(x),
        }

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the state, and remember the previous analysis."""
        return {
            **state,
            **self._window.slid(state, dynamics, steps),
            "x": advance(dynamics, state["x"], steps),
            "analyses": pushed(state["analyses"], state["x"]),
        }

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Compute the covariance's root from the past, and update with it."""
        x = state["x"]
        # If the past cannot be followed, the root is not finite; the trajectory is then lost and flagged.
        root = self.number("inflation") * self._root(state, observing)
        innovation = observing.whiten(observation - observing.observe(x), observed)
        weights, inverse = Precision(observing.whiten(observing.tangent(x, root), observed), innovation).solve(1.0)
        after = inverse @ root
        return {
            **state,
            "x": x + (weights[:, None] @ root)[:, 0],
            "observed": pushed(state["observed"], observed),
            "covariance": after.mT @ after,
            "forecast_spread": root.square().sum(1).sqrt(),
            "spread": after.square().sum(1).sqrt(),
        }

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the climatology, which `prepare` computed."""
        if self._climate is None:
            raise RuntimeError(f"{self.name!r} is not prepared: call prepare(record) first")
        return self._climate

    def _root(self, state: State, observing: ObservingSystem) -> Tensor:
        """Rows whose outer products add up to the forecast error covariance, shape (B, N, N)."""
        x, steps = state["x"], self._window.counts(state)
        mean, covariance = self._moments()
        views = views_of(self._window.at_begin(state, self.dynamics), steps)
        if self.past == "dynamics":
            past = past_of(views, x, steps, (mean, covariance.diagonal().sqrt()))
        else:
            past = list(state["analyses"].unbind(1))
        if self.c2:
            start = torch.diag_embed(torch.full_like(x, self.epsilon**2))
            seen_then, most = state["observed"].unbind(1), covariance.trace()
            return root_of(rebuilt_covariance(views, past, steps, seen_then, start, observing, self.c2, most))
        root: Tensor = self.epsilon * identity_directions(x)
        for index, (count, point) in enumerate(zip(steps, past, strict=True)):
            if count == 0:
                continue
            observed = state["observed"][:, index]
            if self.algorithm == "A2":
                seen = observing.whiten(observing.tangent(point, root), observed)
                root = Precision(seen, torch.zeros_like(seen[:, 0])).solve(1.0)[1] @ root
            _, root = advance_along(views[index], point, root, count)
        if self.algorithm == "A1":
            # The root is scaled to epsilon, however much it has grown: the past gives its shape only.
            root = self.epsilon * root / root.square().sum((1, 2), keepdim=True).div(x.shape[1]).sqrt()
        return root
