"""One protocol for every method, classical or learned, and the one loop that cycles them."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..observing import ErrorCovariance, split_observation

State = dict[str, Tensor]
"""What a method carries from cycle to cycle: named tensors, trajectories first; `x` holds the state or members."""

LOST = 1e6  # a component beyond this is a trajectory that has diverged


@dataclass(frozen=True)
class Record:
    """Observations of some trajectories and what is known about them.

    Attributes
    ----------
    dynamics : Dynamics
    error : ErrorCovariance
    observation : Tensor, shape (B, K, N)
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


class Method(ABC):
    """A sequential method: a forecast and an analysis of a state that is the method's own.

    A subclass gives `start` and `analyse`; `x` in its state has shape (B, N) or (B, M, N).

    Attributes
    ----------
    name : str
    ensemble : bool
        Whether `x` holds members.
    outputs : dict of str to str
        What `forecast_outputs` and `analysis_outputs` give: a name to "site" (shape (B, N)) or "cycle" (shape (B,)).
    """

    name: ClassVar[str] = "method"
    ensemble: ClassVar[bool] = False
    outputs: ClassVar[dict[str, str]] = {}

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """Plain JSON values that say which method this is."""

    def prepare(self, record: Record) -> Method:
        """Return the method ready for a record; the place to tune on its leading part."""
        return self

    def tuned(self) -> dict[str, tuple[tuple[str, ...], Any]]:
        """What `prepare` chose, as name to (dims, values); its names and shapes are known beforehand."""
        return {}

    def tuned_shapes(self) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
        """Names, dims and shapes of `tuned`."""
        return {}

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
    return dynamics.advance(x.reshape(*x.shape[:-1], *dynamics.shape), steps).reshape(x.shape)


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
        Also return the members of an ensemble method.

    Returns
    -------
    outputs : dict of Tensor
        "forecast" and "analysis" of shape (B, K, N), "diverged" of shape (B, K), the method's `outputs`, and
        "forecast_members", "members" of shape (B, K, M, N) where asked for.
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
        else:
            state, analyse = _bury(method.forecast(state, record.dynamics, steps)), method.analyse
        forecast = state
        state = _bury(analyse(state, observation, observed, record.error))
        row = {"forecast": method.mean(forecast), "analysis": method.mean(state)}
        row |= method.forecast_outputs(forecast) | method.analysis_outputs(state)
        if keep:
            row["forecast_members"], row["members"] = forecast["x"], state["x"]
        alive = state["alive"]
        for name, value in row.items():
            columns.setdefault(name, []).append(
                value if bool(alive.all()) else torch.where(_rows(alive, value), value, torch.nan)
            )
        columns.setdefault("diverged", []).append(~alive)
    assert state is not None
    return {name: torch.stack(column, 1) for name, column in columns.items()}, state


def _rows(flag: Tensor, like: Tensor) -> Tensor:
    """A flag for each trajectory, shaped to broadcast against `like`."""
    return flag.reshape(-1, *(1 for _ in like.shape[1:]))


def _bury(state: State) -> State:
    """Zero what a lost trajectory carries, so that batched linear algebra stays finite for the others."""
    x = state["x"]
    alive = state["alive"] & (x.abs() <= LOST).flatten(1).all(1)
    if bool(alive.all()):
        return state
    kept = {name: torch.where(_rows(alive, value), value, torch.zeros_like(value)) for name, value in state.items()}
    return {**kept, "alive": alive}


_METHODS: dict[str, Callable[..., Method]] = {}


def register_method(name: str) -> Callable[[type[Method]], type[Method]]:
    """Register a method's class under the name that `baseline` takes."""

    def register(cls: type[Method]) -> type[Method]:
        _METHODS[name] = cls
        cls.name = name
        return cls

    return register


def method_by_name(name: str, **parameters: Any) -> Method:
    """Make a registered method.

    Raises
    ------
    ValueError
        If the name is unknown, or a parameter is.
    """
    if name not in _METHODS:
        raise ValueError(f"baseline {name!r} is unknown; known are {sorted(_METHODS)}")
    cls = _METHODS[name]
    accepted = set(inspect.signature(cls).parameters)
    if unknown := set(parameters) - accepted:
        raise ValueError(f"baseline {name!r} has no parameters {sorted(unknown)}; it takes {sorted(accepted)}")
    return cls(**parameters)
