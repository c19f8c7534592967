"""One protocol for every method, classical or learned, and the one loop that cycles them."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..checks import XdanWarning, choice, shown
from ..derivatives import Mode, check_model, check_operator, climate_states
from ..dynamics import Dynamics
from ..observing import ObservingSystem, split_observation
from ..progress import track
from ..user_functions import in_transform
from .arguments import checked_candidates

State = dict[str, Tensor]
"""What a method carries from cycle to cycle: named tensors, trajectories first; `x` holds the state or members."""

_CURVES = {"innovation": "innovation_score", "truth": "truth_rmse"}
_TUNE_TRAJECTORIES, _TUNE_CYCLES = 16, 400

Differentiated = Literal["model", "operator"]

LOST = 1e6  # a trajectory has diverged once a component is so many times as large as the largest at the start


@dataclass(frozen=True)
class Record:
    """Observations of some trajectories and what is known about them.

    Attributes
    ----------
    dynamics : Dynamics
    observing : ObservingSystem
        Of these times, where it differs in time.
    observation : Tensor, shape (B, K, P)
        NaN where nothing is observed.
    steps : sequence of int, length K
        Model steps before each analysis; 0 before the first of a record.
    trajectory : Tensor of int64, shape (B,)
        Labels that key random draws.
    seed : int
    truth : Tensor, shape (B, K, N), optional
    """

    dynamics: Dynamics
    observing: ObservingSystem
    observation: Tensor
    steps: Sequence[int]
    trajectory: Tensor
    seed: int
    truth: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Of a state of every trajectory, (B, N)."""
        return len(self.trajectory), math.prod(self.dynamics.shape)


class Method(ABC):
    """A sequential method: a forecast and an analysis of a state that is the method's own.

    A subclass gives `start` and `analyse`; `x` in its state has shape (B, N) or (B, M, N).

    Attributes
    ----------
    name : str
    ensemble : bool
        Whether `x` holds members.
    members : int
        How many.
    outputs : dict of str to str
        What `forecast_outputs` and `analysis_outputs` give: a name to "site" (shape (B, N)) or "cycle" (shape (B,)).
    tunable : dict of str to tuple of float
        Parameters that may be "tune", with the values to try.
    natural_ends : dict of str to float
        The value with which a parameter does nothing. Tuning that ends there does not warn: nothing lies beyond it.
    fixed : dict of str to object
        Parameters of a base that the class sets for good.
    tune_on : {"innovation", "truth"}
        What tuning looks at: the likelihood of the innovations, or the analysis RMSE.
    dynamics, seed
        Of the record that the method is prepared for.
    """

    name: ClassVar[str] = "method"
    ensemble: ClassVar[bool] = False
    outputs: ClassVar[dict[str, str]] = {}
    tunable: ClassVar[dict[str, tuple[float, ...]]] = {}
    natural_ends: ClassVar[dict[str, float]] = {"inflation": 1.0}
    fixed: ClassVar[dict[str, Any]] = {}
    tune_on: str = "innovation"
    members: int = 1
    dynamics: Dynamics
    seed: int
    _numbers: Mapping[str, float] | None = None
    _curve: Tensor | None = None
    _chosen: tuple[float, ...] = ()
    _candidates: Mapping[str, tuple[float, ...]] | None = None

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Plain JSON values that say which method this is; with `asked_candidates()` where something is tunable."""

    @property
    def lags(self) -> dict[str, int]:
        """Outputs that belong to an earlier cycle, and how many cycles earlier."""
        return {}

    @property
    def derivatives(self) -> tuple[tuple[Differentiated, Mode], ...]:
        """Derivatives that the method takes of the model and of the observation operator."""
        return ()

    def prepare(self, record: Record) -> Method:
        """Return the method ready for a record, tuned on its leading part where a parameter is "tune".

        Raises
        ------
        ValueError
            If a derivative that the method takes is missing or wrong, or no value tried follows the record.
        """
        self.check_derivatives(record)
        ready = copy.copy(self)
        ready.dynamics, ready.seed = record.dynamics, record.seed
        names = self.to_tune()
        if not names:
            return ready
        check_truth(self.tune_on, record)
        record = leading(record)
        grid = list(itertools.product(*(self.tried(name) for name in names)))
        what = f"tuning {' and '.join(names)} of {self.name}"
        curve = torch.stack([score(ready._at(names, values), record) for values in track(grid, what)])
        self._check_curve(curve)
        best = grid[int(torch.nan_to_num(curve, nan=math.inf).argmin())]
        for name, value in zip(names, best, strict=True):
            self._warn_at_an_end(name, value)
        ready = ready._at(names, best)
        ready._curve, ready._chosen = curve.reshape([len(self.tried(name)) for name in names]), best
        return ready

    def check_derivatives(self, record: Record) -> None:
        """Refuse a model or an observation operator whose derivative the method takes and that is missing or wrong.

        Raises
        ------
        ValueError
        """
        wanted = [pair for pair in self.derivatives if pair[0] == "model" or not record.observing.linear]
        if not wanted:
            return
        like = record.observation
        states = climate_states(record.dynamics, record.seed, like)
        observing = record.observing.to(torch.float64, like.device)
        for what, mode in wanted:
            if what == "model":
                check_model(record.dynamics, mode, states, self._instead(mode))
            else:
                check_operator(observing.operator, mode, states, f"the method {self.name!r} needs it")

    def _instead(self, mode: Mode) -> str:
        """What to do where the model has no derivative."""
        return "take a method that needs none, such as 'etkf'"

    def to_tune(self) -> list[str]:
        """Names of the parameters that are "tune"."""
        return [name for name in self.tunable if isinstance(getattr(self, name), str)]

    def tried(self, name: str) -> tuple[float, ...]:
        """Values to try for a parameter."""
        return (self._candidates or {}).get(name, self.tunable[name])

    def take_candidates(self, candidates: Any) -> None:
        """Set the values to try for parameters that are "tune".

        Parameters
        ----------
        candidates : mapping of str to sequence of float
            At least two distinct positive numbers each.

        Raises
        ------
        TypeError, ValueError
            For anything else, and parameters that are not to be tuned.
        """
        self._candidates = checked_candidates(candidates, self.to_tune())

    def asked_candidates(self) -> dict[str, Any]:
        """The candidates that were asked for, as a part of `config`; empty for the method's own."""
        if not self._candidates:
            return {}
        return {"candidates": {name: list(values) for name, values in self._candidates.items()}}

    def _check_curve(self, curve: Tensor) -> None:
        """Refuse a tuning in which no candidate has a finite score."""
        if not bool(torch.isfinite(curve).any()):
            raise ValueError(
                f"no value tried for {self.to_tune()} of {self.name!r} gave a finite score on the leading part of the "
                "record, expected one at least: every one diverged, or nothing is observed there; give candidates= "
                "or numbers instead of 'tune'"
            )

    def _warn_at_an_end(self, name: str, value: float) -> None:
        """Warn where the value chosen for a parameter has no candidate on one of its sides."""
        values = self.tried(name)
        if min(values) < value < max(values) or (value == self.natural_ends.get(name) and value == min(values)):
            return
        side = "smaller" if value == min(values) else "larger"
        warnings.warn(
            f"tuning {name} of {self.name!r} chose {value:g}, an end of its candidates ({min(values):g} to "
            f"{max(values):g}): a {side} value may be better; give others with candidates={{{name!r}: [...]}}, or a "
            "number",
            XdanWarning,
            stacklevel=2,
        )

    def _at(self, names: Sequence[str], values: Sequence[float]) -> Method:
        """Return a copy with some parameters at numbers; `config()` keeps what was asked for."""
        chosen = copy.copy(self)
        chosen._numbers = {**(self._numbers or {}), **dict(zip(names, values, strict=True))}
        return chosen

    def number(self, name: str) -> float:
        """Give a parameter's value, the tuned one where it was tuned.

        Raises
        ------
        RuntimeError
            If it is to be tuned and the method is not prepared.
        """
        value = (self._numbers or {}).get(name, getattr(self, name))
        if isinstance(value, str):
            raise RuntimeError(f"{name}={value!r} of {self.name!r}: call prepare(record) first")
        return float(value)

    def tuned(self) -> dict[str, tuple[tuple[str, ...], Any]]:
        """What `prepare` chose, as name to (dims, values); its names and shapes are known beforehand."""
        names = self.to_tune()
        if not names or self._curve is None:
            return {}
        chosen: dict[str, tuple[tuple[str, ...], Any]] = {}
        for name, value in zip(names, self._chosen, strict=True):
            chosen[f"tuned_{name}"] = ((), value)
            values = torch.tensor(self.tried(name), dtype=torch.float64)
            chosen[f"candidate_{name}"] = ((f"candidate_{name}",), values.numpy())
        chosen[_CURVES[self.tune_on]] = (tuple(f"candidate_{name}" for name in names), self._curve.cpu().numpy())
        return chosen

    def tuned_shapes(self) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
        """Names, dims and shapes of `tuned`; -1 stands for the number of sites."""
        names = self.to_tune()
        if not names:
            return {}
        shapes: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {}
        for name in names:
            shapes[f"tuned_{name}"] = ((), ())
            shapes[f"candidate_{name}"] = ((f"candidate_{name}",), (len(self.tried(name)),))
        dims = tuple(f"candidate_{name}" for name in names)
        shapes[_CURVES[self.tune_on]] = (dims, tuple(len(self.tried(name)) for name in names))
        return shapes

    @abstractmethod
    def start(self, record: Record) -> State:
        """Forecast state at the first time, before any observation."""

    @abstractmethod
    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Turn a forecast state into an analysis state.

        Parameters
        ----------
        state : dict of Tensor
        observation : Tensor, shape (B, N)
            Zero where nothing is observed.
        observed : Tensor of bool, shape (B, N)
        observing : ObservingSystem
        """

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Make the first analysis of a record, or of a trajectory that starts anew."""
        return self.analyse(state, observation, observed, observing)

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the state to the next analysis time, Eq. 3."""
        return {**state, "x": advance(dynamics, state["x"], steps)}

    def mean(self, state: State) -> Tensor:
        """Best estimate, shape (B, N)."""
        return state["x"].mean(1) if self.ensemble else state["x"]

    def forecast_outputs(self, state: State) -> dict[str, Tensor]:
        """What to keep of a forecast beside its mean."""
        return {}

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """What to keep of an analysis beside its mean."""
        return {}


def advance(dynamics: Dynamics, x: Tensor, steps: int) -> Tensor:
    """Advance flattened states of shape (..., N)."""
    if steps == 0:
        return x
    if not in_transform(x):
        dynamics.vet()
    return dynamics.advance(x.reshape(*x.shape[:-1], *dynamics.shape), steps).reshape(x.shape)


def advance_along(dynamics: Dynamics, x: Tensor, directions: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Advance flattened states (B, N), and directions (B, M, N) at them by the tangent linear model."""
    if steps == 0:
        return x, directions
    if not in_transform(x):
        dynamics.vet()
    shape = dynamics.shape
    after, pushed = dynamics.advance_along(x.unflatten(1, shape), directions.unflatten(2, shape), steps)
    return after.flatten(1), pushed.flatten(2)


def run(
    method: Method, record: Record, state: State | None = None, members: bool = False, what: str | None = None
) -> tuple[dict[str, Tensor], State]:
    """Cycle a method over a record, the forecast before the analysis at every time.

    A trajectory that becomes non-finite is lost from that cycle on: its output is NaN and `diverged` says so,
    while the others go on.

    Parameters
    ----------
    method : Method
        Prepared.
    record : Record
    state : dict of Tensor, optional
        What an earlier block of the same record left; None starts the record.
    members : bool
        Also return the members of an ensemble method, or what a network with memory remembers.
    what : str, optional
        Name of a bar over the cycles, where bars are shown.

    Returns
    -------
    outputs : dict of Tensor
        "forecast" and "analysis" of shape (B, K, N), "diverged" of shape (B, K), the method's `outputs`, and where
        asked for "forecast_members", "members" of shape (B, K, M, N), or "memory", the latent channels that each
        analysis reads, of shape (B, K, n, N).
    state : dict of Tensor
        To carry on from.
    """
    columns: dict[str, list[Tensor]] = {}
    keep = members and method.ensemble
    cycles = enumerate(record.steps)
    for k, steps in cycles if what is None else track(list(cycles), what):
        observation, observed = split_observation(record.observation[:, k])
        if state is None:
            state, analyse = method.start(record), method.first
            state["alive"] = torch.ones(len(observation), dtype=torch.bool, device=observation.device)
            state["bound"] = (LOST * state["x"].abs().flatten(1).amax(1).clamp_min(1.0)).clamp_max(1e30)
        else:
            state, analyse = _bury(method.forecast(state, record.dynamics, steps)), method.analyse
        forecast = state
        state = _bury(analyse(state, observation, observed, record.observing.at(k)))
        row = {"forecast": method.mean(forecast), "analysis": method.mean(state)}
        row |= method.forecast_outputs(forecast) | method.analysis_outputs(state)
        if keep:
            row["forecast_members"], row["members"] = forecast["x"], state["x"]
        if members and "memory" in forecast:
            row["memory"] = forecast["memory"]
        alive = state["alive"]
        for name, value in row.items():
            columns.setdefault(name, []).append(
                value if bool(alive.all()) else torch.where(_rows(alive, value), value, torch.nan)
            )
        columns.setdefault("diverged", []).append(~alive)
    assert state is not None
    return {name: torch.stack(column, 1) for name, column in columns.items()}, state


def leading(record: Record) -> Record:
    """Cut the part of a record that tuning looks at."""
    return replace(
        record,
        observing=record.observing.during(slice(0, _TUNE_CYCLES)),
        observation=record.observation[:_TUNE_TRAJECTORIES, :_TUNE_CYCLES],
        steps=record.steps[:_TUNE_CYCLES],
        trajectory=record.trajectory[:_TUNE_TRAJECTORIES],
        truth=None if record.truth is None else record.truth[:_TUNE_TRAJECTORIES, :_TUNE_CYCLES],
    )


def burn_in(record: Record) -> int:
    """Leading cycles that a tuning run leaves out."""
    return min(150, record.observation.shape[1] // 3)


def check_truth(tune_on: str, record: Record) -> None:
    """Refuse to tune on a truth that a record lacks.

    Raises
    ------
    ValueError
    """
    if tune_on == "truth" and record.truth is None:
        raise ValueError("tune_on='truth': the record has no truth, expected one; use tune_on='innovation'")


def score(method: Method, record: Record) -> Tensor:
    """Score of a method on a record, smaller is better; infinite where a trajectory diverged, shape ().

    By the truth: mean analysis RMSE. By the innovations: their negative log-likelihood, half the mean of
    log v + d^2 / v with v the forecast variance plus R's diagonal; without a spread, or through an operator: their mean
    square.

    Raises
    ------
    ValueError
        If the truth is asked for and the record has none.
    """
    outputs, _ = run(method, record)
    first = burn_in(record)
    if bool(outputs["diverged"].any()):
        return torch.full((), math.inf)
    if method.tune_on == "truth":
        check_truth(method.tune_on, record)
        assert record.truth is not None
        return (outputs["analysis"] - record.truth)[:, first:].square().mean(-1).sqrt().mean().cpu()
    innovation = (record.observation - record.observing.observe(outputs["forecast"]))[:, first:]
    if "forecast_spread" not in outputs or not record.observing.sees_sites:
        return innovation.square().nanmean().cpu()
    variance = outputs["forecast_spread"][:, first:] ** 2 + record.observing.during(slice(first, None)).error_variance()
    return (0.5 * (variance.log() + innovation.square() / variance)).nanmean().cpu()


def _rows(flag: Tensor, like: Tensor) -> Tensor:
    """A flag for each trajectory, shaped to broadcast against `like`."""
    return flag.reshape(-1, *(1 for _ in like.shape[1:]))


def _bury(state: State) -> State:
    """Zero what a lost trajectory carries, so that batched linear algebra stays finite for the others."""
    x = state["x"]
    alive = state["alive"] & (x.abs().flatten(1).amax(1) <= state["bound"])
    if bool(alive.all()):
        return state
    # Counters and flags stay: methods read those of a block from any of its trajectories.
    kept = {
        name: torch.where(_rows(alive, value), value, torch.zeros_like(value)) if value.is_floating_point() else value
        for name, value in state.items()
    }
    return {**kept, "alive": alive}


_METHODS: dict[str, type[Method]] = {}


def register_method(name: str) -> Callable[[type[Method]], type[Method]]:
    """Register a method's class under the name that `baseline` takes.

    Raises
    ------
    ValueError
        If the name is another class's. A class that is defined anew takes its own place.
    """

    def register(cls: type[Method]) -> type[Method]:
        known = _METHODS.get(name)
        if isinstance(known, type) and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"name={name!r} is that of {known.__module__}.{known.__qualname__}: expected another name for "
                f"{cls.__module__}.{cls.__qualname__}"
            )
        _METHODS[name] = cls
        cls.name = name
        return cls

    return register


def method_by_name(
    name: str,
    *,
    tune_on: str = "innovation",
    candidates: Any = None,
    **parameters: Any,
) -> Method:
    """Make a registered method.

    Parameters
    ----------
    name : str
    tune_on : {"innovation", "truth"}
    candidates : mapping of str to sequence of float, optional
        Values to try for parameters that are "tune", instead of the method's own.
    **parameters
        The method's.

    Raises
    ------
    TypeError
        If an argument is of another type.
    ValueError
        If the name is unknown, or a parameter is, or one is out of range.
    """
    accepted = accepted_parameters(name)
    if unknown := set(parameters) - accepted - set(_METHODS[name].fixed):
        raise ValueError(
            f"baseline {name!r} has no parameters {sorted(unknown)}; it takes {sorted(accepted)}, expected no others"
        )
    tune_on = choice("tune_on", tune_on, _CURVES)
    method = _METHODS[name](**parameters)
    method.tune_on = tune_on
    if candidates is not None:
        method.take_candidates(candidates)
    return method


def accepted_parameters(name: str) -> set[str]:
    """Names of a registered method's parameters, those of its bases too where it passes the rest on.

    Raises
    ------
    TypeError
        If the name is none.
    ValueError
        If the name is unknown.
    """
    if not isinstance(name, str):
        raise TypeError(f"name={shown(name)}: expected the name of a method, one of {sorted(_METHODS)}")
    if name not in _METHODS:
        raise ValueError(f"baseline {name!r} is unknown; known are {sorted(_METHODS)}, expected one of them")
    cls, names = _METHODS[name], set[str]()
    for base in inspect.getmro(cls):
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base).parameters
        names |= {n for n, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
        if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            break
    return names - set(cls.fixed)
