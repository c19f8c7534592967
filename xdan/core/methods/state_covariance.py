"""A covariance built from the state alone: the classical rival of a network that sees a single forecast."""

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
        forecast, as in the paper. The latter can be followed for a few tenths of a time unit; before that it is clipped
        to the size of the climate, or blows up where the model depends on time.
    epsilon : float
        Initial standard deviation.
    inflation : float or "tune"
        Factor of the covariance's square root.
    c2 : float
        With "A2", factor of the second-order term of every forecast, as in "second-order-kalman"; 0 for none. With
        past="dynamics" it makes a covariance of the forecast alone nearly as good as one that is carried: the depth is
        then a time unit and more.

    Raises
    ------
    TypeError
        For arguments of another type.
    ValueError
        For unknown names, numbers that are not positive, a negative c2, or one with "A1".

    References
    ----------
    Sakov (2025), doi:10.48550/arXiv.2411.14809, Algorithms A1 and A2, as described by Bocquet et al., Sect. 3.1.3.
    """

    name: ClassVar[str] = "state-covariance"
    windowed: ClassVar[bool] = True
    differentiates_model: ClassVar[bool] = True
    keeps_covariance: bool = True
    outputs: tuple[Output, ...] = SPREADS
    tunable: ClassVar[Mapping[str, Tunable]] = {  # less than one is as natural as more: there is no natural end
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
            raise ValueError(f"c2={c2} and algorithm='A1', which keeps no size: expected algorithm='A2', or c2=0")
        self.perfect_model = not self.c2  # the filter along the past has Q with c2 alone
        self._window = SlidingWindow(self.depth)

    @property
    def derivatives(self) -> tuple[tuple[Differentiated, Mode], ...]:
        """Of the model along the past, and of the observation operator."""
        return ("model", "forward"), ("operator", "forward")

    def set_up(self, record: Record) -> None:
        """Take the moments of the climatology."""
        self._climate = climate_moments(record.dynamics, record.seed, record.observation)

    def check_record(self, record: Record) -> None:
        """Refuse states whose covariance is too large."""
        check_size(record.shape[1], f"the method {self.name!r}")
        super().check_record(record)

    def start(self, record: Record) -> State:
        """Climatological mean; an empty past.

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
        """Advance the state, and remember where it came from."""
        return {
            **state,
            **self._window.slid(state, dynamics, steps),
            "x": advance(dynamics, state["x"], steps),
            "analyses": pushed(state["analyses"], state["x"]),
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
            "observed": pushed(state["observed"], observed),
            "covariance": after.mT @ after,
            "forecast_spread": root.square().sum(1).sqrt(),
            "spread": after.square().sum(1).sqrt(),
        }

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance that `prepare` took."""
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
            # As wide as epsilon, whatever it has grown to: the shape is what the past tells.
            root = self.epsilon * root / root.square().sum((1, 2), keepdim=True).div(x.shape[1]).sqrt()
        return root
