"""Strong-constraint 4D-Var over a sliding window, and an ensemble of 4D-Vars."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..checks import choice, integer, real
from ..derivative_checks import Mode
from ..dynamics import Dynamics
from ..observing import ObservingSystem
from .advancing import advance
from .arguments import background_or_name, fitted, number_or_tune
from .base import Differentiated, Method
from .climate import climate_moments
from .declarations import ITERATIONS, SPREADS, UNCONVERGED, Output, Tunable
from .ensemble import EnsembleMethod
from .minimisers import MINIMISERS, Window
from .record import Record, State
from .registry import register_method
from .windowed import SlidingWindow, pushed

W = TypeVar("W", bound=Window)
SCALES = Tunable(tuple(10.0 ** (-k / 4) for k in range(-1, 14)), long_name="scales that were tried")
_WINDOW_STATE = ("x", "begin", "steps", "clock", "window", "kept", "smoothed", "iterations", "unconverged")


@register_method
class FourDVar(Method):
    """Strong-constraint 4D-Var. Its window of several intervals moves by one interval in each cycle.

    The background of a window is the state at the start of the window, on the trajectory of the previous window. The
    analysis is the state at the end of the new trajectory.

    Parameters
    ----------
    window : int
        Number of intervals, at least 1. The observations of an interval are at its end.
    background : {"climatology"} or array of shape (N, N)
        Background error covariance B: the covariance of the dynamics' climatology, or a matrix.
    scale : float or "tune"
        Factor by which B is multiplied.
    solver : {"gauss-newton", "l-bfgs"}
        "gauss-newton" uses the whole tangent linear model, in N directions. "l-bfgs" uses gradients alone, for large
        states.
    tolerance : float
        Smallest step: the minimisation stops if the root mean square step of the control variable L^{-1} (x - x_b) is
        below it. B = L L^T.
    iterations : int
        Largest number of iterations. An analysis that reaches it is flagged `unconverged`.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If a solver or background is unknown, a background is no covariance, or a size or number is not positive.

    References
    ----------
    Le Dimet and Talagrand (1986), doi:10.3402/tellusa.v38i2.11706; Courtier et al. (1994),
    doi:10.1002/qj.49712051912.
    """

    name: ClassVar[str] = "4d-var"
    windowed: ClassVar[bool] = True
    differentiates_model: ClassVar[bool] = True
    perfect_model = True
    tunable: ClassVar[Mapping[str, Tunable]] = {"scale": SCALES}

    def __init__(
        self,
        window: int = 4,
        background: Any = "climatology",
        scale: float | str = "tune",
        solver: str = "gauss-newton",
        tolerance: float = 1e-3,
        iterations: int = 10,
    ) -> None:
        self.window, self.scale = integer("window", window, least=1), number_or_tune("scale", scale)
        self.background = background_or_name(background, ("climatology",))
        self.solver = choice("solver", solver, MINIMISERS)
        self.tolerance = real("tolerance", tolerance, above=0.0)
        self.iterations = integer("iterations", iterations, least=1)
        self._root: Tensor | None = None
        self._mean: Tensor | None = None
        self._sliding = SlidingWindow(self.window)
        self.outputs = (self._sliding.output, ITERATIONS, UNCONVERGED)

    @property
    def derivatives(self) -> tuple[tuple[Differentiated, Mode], ...]:
        """Derivatives of the model and of the observation operator, in the direction that the solver needs."""
        mode: Mode = "backward" if self.solver == "l-bfgs" else "forward"
        return ("model", mode), ("operator", mode)

    def _instead(self, mode: Mode) -> str:
        """What to do without a derivative: the other solver needs the other kind of derivative."""
        other = "gauss-newton" if mode == "backward" else "l-bfgs"
        return f"try solver={other!r}, which goes the other way, or {super()._instead(mode)}"

    def check_record(self, record: Record) -> None:
        """Refuse a record that is shorter than the window."""
        times = record.observation.shape[1]
        if times <= self.window:
            raise ValueError(f"window={self.window}: the record has {times} times; expected more than the window")
        super().check_record(record)

    def set_up(self, record: Record) -> None:
        """Factorise B, and compute the climatological mean.

        Raises
        ------
        ValueError
            If B does not fit the record, or is not positive definite.
        """
        self._root, self._mean = background_root(self.background, record)

    def start(self, record: Record) -> State:
        """Begin at the climatological mean; the window has no intervals yet."""
        assert self._mean is not None
        return self.window_state(self._mean.expand(record.shape), record)

    def window_state(self, x: Tensor, record: Record) -> State:
        """State of a window that starts at x, (B, N), and will hold observations of several times of a record."""
        zero = x.new_zeros(len(x))
        nothing = x.new_full((len(x), record.observation.shape[-1]), torch.nan)
        kept = record.observing.at(0).kept(nothing)
        return {
            **({} if kept is None else {"kept": self._sliding.buffer(torch.zeros_like(kept))}),
            "x": x,
            "begin": x,
            **self._sliding.opened(x),
            "window": self._sliding.buffer(nothing),
            "smoothed": torch.full_like(x, torch.nan),
            "iterations": zero,
            "unconverged": zero,
        }

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the state. If the window is full, advance its start too."""
        return {
            **state,
            **self._sliding.slid(state, dynamics, steps),
            "x": advance(dynamics, state["x"], steps),
            "begin": self._sliding.begin_after(state, dynamics),
        }

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """First analysis: the background is the climatological mean, and its error has the climate's covariance."""
        return self._fit(state, observation, observed, observing, 1.0)

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Fit the observations of the window."""
        return self._fit(state, observation, observed, observing, self.number("scale"))

    def _fit(
        self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem, scale: float
    ) -> State:
        assert self._root is not None
        problem, entries = self._problem(state, observation, observed, observing, Window)
        root = math.sqrt(scale) * self._root
        least = MINIMISERS[self.solver](problem, state["begin"], root, self.tolerance, self.iterations)
        return {
            **state,
            **entries,
            "x": advance(problem.dynamics, least.x, sum(problem.steps)),
            "begin": least.x,
            "smoothed": self._sliding.smoothed(state, least.x),
            "iterations": least.iterations,
            "unconverged": least.unconverged.to(least.iterations.dtype),
        }

    def _problem(
        self,
        state: State,
        observation: Tensor,
        observed: Tensor,
        observing: ObservingSystem,
        kind: type[W],
    ) -> tuple[W, State]:
        """The minimisation problem, and the entries of the state that hold the window's observations."""
        window = pushed(state["window"], torch.where(observed, observation, torch.full_like(observation, torch.nan)))
        steps, dynamics = self._sliding.counts(state), self._sliding.at_begin(state, self.dynamics)
        now = observing.kept(observation)
        kept = None if now is None else pushed(state["kept"], now)
        entries = {"window": window} if kept is None else {"window": window, "kept": kept}
        return kind(dynamics, observing, window, steps, kept), entries


def background_root(background: Tensor | str, record: Record) -> tuple[Tensor, Tensor]:
    """Cholesky factor of B, (N, N), and the climatological mean, (N,)."""
    like = record.observation
    mean, covariance = climate_moments(record.dynamics, record.seed, like)
    sample = record.dynamics.given_climate
    if isinstance(background, str) and sample is not None and len(sample) <= len(mean):
        raise ValueError(
            f"the covariance of the {len(sample)} states of climatology= has no full rank in {len(mean)} components: "
            f"expected more than {len(mean)} states, or background= as a matrix"
        )
    if not isinstance(background, str):
        covariance = fitted(background, len(mean), like)
    factor, info = torch.linalg.cholesky_ex(covariance)
    if int(info):
        raise ValueError("the background error covariance is not positive definite; expected one of full rank")
    return factor, mean


@register_method
class EnsembleOf4DVar(EnsembleMethod):
    """Ensemble of 4D-Vars. Each member has perturbed observations, so the analysis has a spread.

    Parameters
    ----------
    members : int
        Ensemble size M, at least 2.
    window, background, scale, solver, tolerance, iterations
        See "4d-var"; the scale must be a number.

    Raises
    ------
    TypeError, ValueError
        See "4d-var"; also if the scale is "tune".

    References
    ----------
    Isaksen et al. (2010), ECMWF Technical Memorandum 636.
    """

    name: ClassVar[str] = "eda"
    windowed: ClassVar[bool] = True
    differentiates_model: ClassVar[bool] = True
    first_cycle: ClassVar[int] = 1
    perfect_model = True
    outputs: tuple[Output, ...] = (*SPREADS, ITERATIONS, UNCONVERGED)

    def __init__(
        self,
        members: int = 10,
        window: int = 4,
        background: Any = "climatology",
        scale: float | str = 0.1,
        solver: str = "gauss-newton",
        tolerance: float = 1e-3,
        iterations: int = 10,
    ) -> None:
        super().__init__(members)
        if isinstance(scale, str):
            raise ValueError(f"scale={scale!r}: expected a number; scale='tune' goes with '4d-var': tune that first")
        self._inner = FourDVar(window, background, scale, solver, tolerance, iterations)

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters."""
        return {"members": self.members, **self._inner.config()}

    def set_up(self, record: Record) -> None:
        """Prepare the 4D-Var that the members share."""
        self._inner = self._inner.prepare(record)

    @property
    def derivatives(self) -> tuple[tuple[Differentiated, Mode], ...]:
        """None besides the derivatives of the 4D-Var that the members share."""
        return ()

    def start(self, record: Record) -> State:
        """Members from the climatology; each member has a window."""
        state = super().start(record)
        del state["noise"]  # every analysis draws new numbers
        inner = self._inner.window_state(state["x"].flatten(0, 1), record)
        return {**self._outside(inner), **state}

    def _inside(self, state: State) -> State:
        """The state with members in the place of trajectories."""
        return {name: state[name].flatten(0, 1) for name in _WINDOW_STATE if name in state}

    def _outside(self, state: State) -> State:
        return {name: value.unflatten(0, (-1, self.members)) for name, value in state.items()}

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance all members and their windows."""
        return {**state, **self._outside(self._inner.forecast(self._inside(state), dynamics, steps))}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One 4D-Var for each member. The perturbations have zero mean."""
        return self._fit(state, observation, observed, observing, self._inner.analyse)

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """First analysis of each member, with the climate's whole covariance."""
        return self._fit(state, observation, observed, observing, self._inner.first)

    def _fit(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem, fit: Any) -> State:
        b, m, p = len(observation), self.members, observation.shape[1]
        noise = observing.errors_from(self.draw(state, m * p).reshape(b, m, p))
        noise = (noise - noise.mean(1, keepdim=True)) * math.sqrt(m / (m - 1))
        perturbed = (observation[:, None] + noise).flatten(0, 1)
        after = fit(self._inside(state), perturbed, observed.repeat_interleave(m, 0), observing)
        return {**state, **self._outside(after)}

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Spread; of the members' iterations the mean; and `unconverged` if one member did not converge."""
        iterations, flag = state["iterations"].mean(1), state["unconverged"].amax(1)
        return {**super().analysis_outputs(state), "iterations": iterations, "unconverged": flag}
