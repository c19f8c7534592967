"""One protocol for every method, classical or learned, and the one loop that cycles them."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..observing import ErrorCovariance, split_observation
from ..user_functions import in_transform

State = dict[str, Tensor]
"""What a method carries from cycle to cycle: named tensors, trajectories first; `x` holds the state or members."""

_CURVES = {"innovation": "innovation_score", "truth": "truth_rmse"}
_TUNE_TRAJECTORIES, _TUNE_CYCLES = 16, 400

LOST = 1e6  # a component so many times as large as those at the start is of a trajectory that has diverged


@dataclass(frozen=True)
class Record:
    """Observations of some trajectories and what is known about them.

    Attributes
    ----------
    dynamics : Dynamics
    error : ErrorCovariance
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
    error: ErrorCovariance
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
    tune_on : {"innovation", "truth"}
        What tuning looks at: the likelihood of the innovations, or the analysis RMSE.
    dynamics, seed
        Of the record that the method is prepared for.
    """

    name: ClassVar[str] = "method"
    ensemble: ClassVar[bool] = False
    outputs: ClassVar[dict[str, str]] = {}
    tunable: ClassVar[dict[str, tuple[float, ...]]] = {}
    tune_on: str = "innovation"
    members: int = 1
    dynamics: Dynamics
    seed: int
    _numbers: Mapping[str, float] | None = None
    _curve: Tensor | None = None
    _chosen: tuple[float, ...] = ()

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """Plain JSON values that say which method this is."""

    def prepare(self, record: Record) -> Method:
        """Return the method ready for a record, tuned on its leading part where a parameter is "tune"."""
        ready = copy.copy(self)
        ready.dynamics, ready.seed = record.dynamics, record.seed
        names = self._to_tune()
        if not names:
            return ready
        record = leading(record)
        grid = list(itertools.product(*(self.tunable[name] for name in names)))
        curve = torch.stack([score(ready._at(names, values), record) for values in grid])
        if not bool(torch.isfinite(curve).any()):
            raise ValueError(
                f"no value tried for {names} of {self.name!r} gave a finite score on the leading part of the record: "
                "every one diverged, or nothing is observed there; give numbers instead of 'tune'"
            )
        best = grid[int(torch.nan_to_num(curve, nan=math.inf).argmin())]
        ready = ready._at(names, best)
        ready._curve, ready._chosen = curve.reshape([len(self.tunable[name]) for name in names]), best
        return ready

    def _to_tune(self) -> list[str]:
        return [name for name in self.tunable if isinstance(getattr(self, name), str)]

    def _at(self, names: Sequence[str], values: Sequence[float]) -> Method:
        """Return a copy with some parameters at numbers; `parameters()` keeps what was asked for."""
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
        names = self._to_tune()
        if not names or self._curve is None:
            return {}
        chosen: dict[str, tuple[tuple[str, ...], Any]] = {}
        for name, value in zip(names, self._chosen, strict=True):
            chosen[f"tuned_{name}"] = ((), value)
            chosen[f"candidate_{name}"] = ((f"candidate_{name}",), torch.tensor(self.tunable[name]).numpy())
        chosen[_CURVES[self.tune_on]] = (tuple(f"candidate_{name}" for name in names), self._curve.cpu().numpy())
        return chosen

    def tuned_shapes(self) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
        """Names, dims and shapes of `tuned`; -1 stands for the number of sites."""
        names = self._to_tune()
        if not names:
            return {}
        shapes: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {}
        for name in names:
            shapes[f"tuned_{name}"] = ((), ())
            shapes[f"candidate_{name}"] = ((f"candidate_{name}",), (len(self.tunable[name]),))
        dims = tuple(f"candidate_{name}" for name in names)
        shapes[_CURVES[self.tune_on]] = (dims, tuple(len(self.tunable[name]) for name in names))
        return shapes

    @abstractmethod
    def start(self, record: Record) -> State:
        """Forecast state at the first time, before any observation."""

    @abstractmethod
    def analyse(self, state: State, observation: Tensor, observed: Tensor, error: ErrorCovariance) -> State:
        """Turn a forecast state into an analysis state.

        Parameters
        ----------
        state : dict of Tensor
        observation : Tensor, shape (B, N)
            Zero where nothing is observed.
        observed : Tensor of bool, shape (B, N)
        error : ErrorCovariance
        """

    def first(self, state: State, observation: Tensor, observed: Tensor, error: ErrorCovariance) -> State:
        """Make the first analysis of a record, or of a trajectory that starts anew."""
        return self.analyse(state, observation, observed, error)

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
    method: Method, record: Record, state: State | None = None, members: bool = False
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
    for k, steps in enumerate(record.steps):
        observation, observed = split_observation(record.observation[:, k])
        if state is None:
            state, analyse = method.start(record), method.first
            state["alive"] = torch.ones(len(observation), dtype=torch.bool, device=observation.device)
            state["bound"] = (LOST * state["x"].abs().flatten(1).amax(1).clamp_min(1.0)).clamp_max(1e30)
        else:
            state, analyse = _bury(method.forecast(state, record.dynamics, steps)), method.analyse
        forecast = state
        state = _bury(analyse(state, observation, observed, record.error.at(k)))
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
        error=record.error.during(slice(0, _TUNE_CYCLES)),
        observation=record.observation[:_TUNE_TRAJECTORIES, :_TUNE_CYCLES],
        steps=record.steps[:_TUNE_CYCLES],
        trajectory=record.trajectory[:_TUNE_TRAJECTORIES],
        truth=None if record.truth is None else record.truth[:_TUNE_TRAJECTORIES, :_TUNE_CYCLES],
    )


def burn_in(record: Record) -> int:
    """Leading cycles that a tuning run leaves out."""
    return min(150, record.observation.shape[1] // 3)


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
        if record.truth is None:
            raise ValueError("tune_on='truth': the record has no truth; use tune_on='innovation'")
        return (outputs["analysis"] - record.truth)[:, first:].square().mean(-1).sqrt().mean().cpu()
    innovation = (record.observation - record.error.seen(outputs["forecast"]))[:, first:]
    if "forecast_spread" not in outputs or record.error.operator is not None:
        return innovation.square().nanmean().cpu()
    variance = outputs["forecast_spread"][:, first:] ** 2 + record.error.during(slice(first, None)).variance()
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


_METHODS: dict[str, Callable[..., Method]] = {}


def register_method(name: str) -> Callable[[type[Method]], type[Method]]:
    """Register a method's class under the name that `baseline` takes."""

    def register(cls: type[Method]) -> type[Method]:
        _METHODS[name] = cls
        cls.name = name
        return cls

    return register


def method_by_name(name: str, *, tune_on: str = "innovation", **parameters: Any) -> Method:
    """Make a registered method.

    Raises
    ------
    ValueError
        If the name is unknown, or a parameter is.
    """
    accepted = accepted_parameters(name)
    if unknown := set(parameters) - accepted:
        raise ValueError(f"baseline {name!r} has no parameters {sorted(unknown)}; it takes {sorted(accepted)}")
    if tune_on not in _CURVES:
        raise ValueError(f"tune_on={tune_on!r}: expected one of {sorted(_CURVES)}")
    method = _METHODS[name](**parameters)
    method.tune_on = tune_on
    return method


def accepted_parameters(name: str) -> set[str]:
    """Names of a registered method's parameters, those of its bases too where it passes the rest on.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    if name not in _METHODS:
        raise ValueError(f"baseline {name!r} is unknown; known are {sorted(_METHODS)}")
    cls, names = _METHODS[name], set[str]()
    for base in inspect.getmro(cls) if isinstance(cls, type) else ():
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base).parameters
        names |= {n for n, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
        if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            break
    return names
