"""The loop that cycles every method, and the numbers that the loop keeps for each trajectory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..checks import shown
from ..observing import split_observation
from .advancing import forecast_from
from .base import Method
from .record import KEPT, Record, State

LOST = 1e6  # a trajectory has diverged if a component exceeds so many times the largest one at the start


def run(
    method: Method,
    record: Record,
    state: State | None = None,
    members: bool = False,
    tick: Callable[[], object] | None = None,
) -> tuple[dict[str, Tensor], State]:
    """Cycle a method over a record. At every time, the forecast comes before the analysis.

    A trajectory that becomes non-finite or too large is lost from that cycle on: its outputs are NaN and `diverged`
    flags it. The other trajectories go on.

    Parameters
    ----------
    method : Method
        A prepared method.
    record : Record
    state : dict of Tensor, optional
        State at the end of an earlier block of the same record; None at the start of the record.
    members : bool
        Also return the members of an ensemble method, or what a network with memory remembers and the covariance that
        its forecast carries.
    tick : callable, optional
        Called after each cycle.

    Returns
    -------
    outputs : dict of Tensor
        "forecast" and "analysis" of shape (B, K, N), "diverged" of shape (B, K), and the method's `outputs`. If
        trajectories may start anew, also "restarted" of shape (B, K). With `members`, also "forecast_members" and
        "members" of shape (B, K, M, N); or "memory", the latent channels that each analysis reads, of shape
        (B, K, n, N), and "analysis_covariance", P_a, of shape (B, K, N, N).
    state : dict of Tensor
        State to go on from: the method's state, and the numbers that the loop keeps for each trajectory.

    Raises
    ------
    ValueError
        If the method returns a state of the wrong shape, uses a name that the loop keeps, or gives outputs that it does
        not declare.
    """
    method = method.bound(record.dynamics)
    columns: dict[str, list[Tensor]] = {}
    passed = None
    for passed in cycles(method, record, state):
        row = _row(method, passed.forecast, passed.analysis, passed.observation, members)
        for name, value in row.items():
            columns.setdefault(name, []).append(passed.masked(value))
        columns.setdefault("diverged", []).append(~passed.alive)
        if record.restart_after is not None:
            columns.setdefault("restarted", []).append(passed.started)
        if tick is not None:
            tick()
    assert passed is not None
    return {name: torch.stack(column, 1) for name, column in columns.items()}, passed.carried()


def cycles(method: Method, record: Record, state: State | None = None) -> Iterator[Passed]:
    """Cycle a method over a record, and give each cycle as it has passed.

    Parameters
    ----------
    method : Method
        Prepared, and bound to the record's dynamics.
    record, state
        As for `run`.

    Yields
    ------
    Passed

    Raises
    ------
    ValueError
        See `run`. Outputs are not checked here.
    """
    shape = (*record.shape[:1], *([method.members] if method.ensemble else []), *record.shape[1:])
    lanes = None if state is None else _Lanes.resumed(method, record, state)
    dtype, clock = record.observation.dtype, record.clocks
    for k, steps in enumerate(record.steps):
        observation, observed = split_observation(record.observation[:, k])
        if state is None or lanes is None:
            state = _checked(method, "start", method.start(record), shape, dtype)
            lanes, call, analyse = _Lanes.started(method, record, state), "first", method.first
        else:
            ahead = forecast_from(method, lanes.handed(state), record.dynamics, steps, clock)
            state = _checked(method, "forecast", ahead, shape, dtype)
            lanes, call, analyse = lanes.after(state), "analyse", method.analyse
        clock = clock + steps
        lanes, anew = lanes.seen(method, record, steps, observed)
        started = None
        if anew is not None:
            started = {**state, **_checked(method, "start", method.start(_at(record, clock)), shape, dtype)}
            state = _merged(anew, started, state)
        forecast, observing = lanes.handed(state), record.observing.at(k)
        written = _writes(forecast)
        state = _checked(method, call, analyse(forecast, observation, observed, observing), shape, dtype)
        if started is not None and anew is not None:
            after = method.first(lanes.handed(started), observation, observed, observing)
            state = _merged(anew, _checked(method, "first", after, shape, dtype), state)
        if _writes(forecast) != written:
            raise ValueError(
                f"{call}() of the method {method.name!r} wrote into the forecast that it got: expected new tensors, as "
                "a run keeps the forecast too"
            )
        lanes = lanes.after(state)
        analysis = lanes.handed(state)
        started_anew = torch.zeros_like(lanes.alive) if anew is None else anew
        yield Passed(forecast, analysis, observation, lanes, started_anew, steps, clock)
        state, lanes = analysis, replace(lanes, cycle=lanes.cycle + 1)


@dataclass(frozen=True)
class _Lanes:
    """The numbers that the loop keeps for each trajectory, tensors of shape (B,).

    Attributes
    ----------
    label : Tensor of int64
        Label of the trajectory in the record. It is the key of random draws.
    cycle : Tensor of int64
        Number of the coming analysis.
    alive : Tensor of bool
        Whether the trajectory has not diverged.
    bound : Tensor
        The largest size of a component with which the trajectory is not lost. With several fields: one for each field,
        (B, fields).
    parts : tuple of int
        Number of components of each field; empty if there is one field.
    unseen : Tensor of int64
        Model steps since the trajectory was last observed.
    whole : bool
        Whether all trajectories are alive.
    """

    label: Tensor
    cycle: Tensor
    alive: Tensor
    bound: Tensor
    unseen: Tensor
    whole: bool
    parts: tuple[int, ...] = ()

    @classmethod
    def started(cls, method: Method, record: Record, state: State) -> _Lanes:
        """The numbers at the start of a record.

        Raises
        ------
        ValueError
            If an entry of the state has a name that the loop keeps.
        """
        if taken := sorted(set(state) & set(KEPT)):
            raise ValueError(
                f"start() of the method {method.name!r} returned the entries {taken}, which the loop itself keeps: "
                "expected other names"
            )
        x = state["x"]
        label = record.trajectory.to(x.device)
        alive = torch.ones(len(x), dtype=torch.bool, device=x.device)
        parts = _parts(record)
        bound = (LOST * _largest(x, parts).clamp_min(1.0)).clamp_max(1e30)
        first, unseen = torch.full_like(label, method.first_cycle), torch.zeros_like(label)
        return cls(label, first, alive, bound, unseen, True, parts)

    @classmethod
    def resumed(cls, method: Method, record: Record, state: State) -> _Lanes:
        """The numbers at the end of an earlier block. Old blocks of methods without random draws have no `cycle`."""
        label = record.trajectory.to(state["x"].device)
        cycle = state.get("cycle", torch.full_like(label, method.first_cycle + 1))
        unseen = state.get("unseen", torch.zeros_like(label))
        return cls(label, cycle, state["alive"], state["bound"], unseen, bool(state["alive"].all()), _parts(record))

    def seen(self, method: Method, record: Record, steps: int, observed: Tensor) -> tuple[_Lanes, Tensor | None]:
        """Count the steps since the last observation, and flag the trajectories that start anew, (B,); None if none do.

        A trajectory starts anew with the first observation after a gap that is longer than the record allows. All
        trajectories share a window of several times, if there is one. Then a gap is a long interval.
        """
        some = observed.any(1)
        unseen = self.unseen + steps
        after = replace(self, unseen=torch.where(some, 0, unseen))
        if record.restart_after is None:
            return after, None
        most = record.restart_after / record.dynamics.timestep * (1 + 1e-9)  # rounding must not make a gap
        anew = torch.full_like(some, steps > most) if method.windowed else some & (unseen > most)
        return after, anew if bool(anew.any()) else None

    def after(self, state: State) -> _Lanes:
        """Flag the trajectories that are lost in a state."""
        bounded = _largest(state["x"], self.parts) <= self.bound
        if bool(bounded.all()):
            return self
        bounded = bounded.all(1) if self.parts else bounded
        return replace(self, alive=self.alive & bounded, whole=False)

    def handed(self, state: State) -> State:
        """A state for the method.

        Entries of a lost trajectory are zero, so that batched linear algebra stays finite for the other trajectories.
        Integers and flags stay: methods may read the integers of a block from any of its trajectories.
        """
        entries = {name: value for name, value in state.items() if name not in KEPT}
        if not self.whole:
            entries = {
                name: torch.where(_rows(self.alive, value), value, 0.0) if value.is_floating_point() else value
                for name, value in entries.items()
            }
        return {**entries, "label": self.label, "cycle": self.cycle}

    def masked(self, value: Tensor) -> Tensor:
        """Values (B, ...), with NaN where the trajectory is lost."""
        return value if self.whole else torch.where(_rows(self.alive, value), value, torch.nan)

    def carried(self, state: State) -> State:
        """A state with the numbers that the loop needs in the next block."""
        entries = {name: value for name, value in state.items() if name not in KEPT}
        return {**entries, **{name: getattr(self, name) for name in KEPT}}


@dataclass(frozen=True)
class Passed:
    """One cycle of a method.

    Attributes
    ----------
    forecast, analysis : dict of Tensor
        States of the method. Entries of a lost trajectory are zero.
    observation : Tensor, shape (B, P)
        Zero where nothing is observed.
    lanes : _Lanes
        The numbers that the loop keeps for each trajectory.
    started : Tensor of bool, shape (B,)
        Trajectories that started anew with this forecast. Their forecast does not come from the previous analysis.
    steps : int
        Model steps since the previous analysis.
    clock : Tensor of int64, shape (B,)
        Model steps from the record's first analysis to this one.
    """

    forecast: State
    analysis: State
    observation: Tensor
    lanes: _Lanes
    started: Tensor
    steps: int
    clock: Tensor

    @property
    def alive(self) -> Tensor:
        """Trajectories that are not lost, bool of shape (B,)."""
        return self.lanes.alive

    def masked(self, value: Tensor) -> Tensor:
        """Values (B, ...), with NaN where the trajectory is lost."""
        return self.lanes.masked(value)

    def carried(self) -> State:
        """The state to go on from."""
        return replace(self.lanes, cycle=self.lanes.cycle + 1).carried(self.analysis)


def _parts(record: Record) -> tuple[int, ...]:
    """Number of components of each field; empty if there is one field."""
    space = record.dynamics.space
    return () if space.single else tuple(field.geometry.size for field in space)


def _largest(x: Tensor, parts: tuple[int, ...]) -> Tensor:
    """Largest size of a component of states (B, N) or (B, M, N): shape (B,), or with several fields (B, fields)."""
    if not parts:
        return x.abs().flatten(1).amax(1)
    return torch.stack([part.abs().flatten(1).amax(1) for part in x.split(parts, -1)], 1)


def _row(method: Method, forecast: State, analysis: State, observation: Tensor, members: bool) -> dict[str, Tensor]:
    """What a run stores of a cycle.

    Raises
    ------
    ValueError
        If the method gives outputs that it does not declare, or an output of the wrong shape.
    """
    outputs = method.forecast_outputs(forecast) | method.analysis_outputs(analysis)
    if outputs.keys() != (declared := {output.name for output in method.outputs}):
        raise ValueError(
            f"the method {method.name!r} gave the outputs {sorted(outputs)}: expected those that it declares in "
            f"`outputs`, {sorted(declared)}"
        )
    row = {"forecast": method.mean(forecast), "analysis": method.mean(analysis), **outputs}
    shapes = {"state": row["analysis"].shape, "observations": observation.shape, "cycle": observation.shape[:1]}
    for output in method.outputs:
        value: Any = outputs[output.name]
        if not isinstance(value, Tensor) or value.shape != shapes[output.place]:
            entry = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else shown(value)
            raise ValueError(
                f"the output {output.name!r} of the method {method.name!r} has {entry}: expected a tensor of shape "
                f"{tuple(shapes[output.place])}, as its place is {output.place!r}"
            )
    if members and method.ensemble:
        row |= {"forecast_members": forecast["x"], "members": analysis["x"]}
    if members and method.channels:
        row["memory"] = forecast["memory"]
    if members and method.keeps_covariance:
        row["analysis_covariance"] = method.kept_covariance(analysis)
    return row


def _at(record: Record, clock: Tensor) -> Record:
    """A record whose dynamics, if it depends on time, stands `clock` steps later."""
    if record.dynamics.autonomous:
        return record
    return replace(record, dynamics=record.dynamics.from_step(int(clock[0])))


def _merged(anew: Tensor, started: State, state: State) -> State:
    """A state in which the trajectories flagged by `anew` (B,) come from the state `started`."""
    if bool(anew.all()):
        return {**state, **started}
    return {
        name: torch.where(_rows(anew, value), started[name], value) if name in started else value
        for name, value in state.items()
    }


def _writes(state: State) -> int | None:
    """How often `x` was written into; None if torch does not count."""
    x = state["x"]
    return None if x.is_inference() else x._version


def _checked(method: Method, call: str, state: State, shape: tuple[int, ...], dtype: torch.dtype) -> State:
    """Refuse a wrong state. A state is a dict of tensors, trajectories first; `x` has the shape (B, N) or (B, M, N).

    Raises
    ------
    ValueError
    """
    x = state.get("x") if isinstance(state, dict) else None
    if isinstance(x, Tensor) and x.shape == shape and x.dtype == dtype:
        for name, value in state.items():
            if not isinstance(value, Tensor) or value.shape[:1] != shape[:1]:
                entry = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else shown(value)
                raise ValueError(
                    f"{call}() of the method {method.name!r} returned an entry {name!r} {entry}: expected a "
                    f"tensor with {shape[0]} trajectories first"
                )
        return state
    if isinstance(x, Tensor) and x.shape == shape:
        raise ValueError(
            f"{call}() of the method {method.name!r} returned x of {x.dtype}: expected {dtype}, like the observations"
        )
    what = type(state).__name__ if not isinstance(state, dict) else "a dict without a tensor 'x'"
    what = f"x of shape {tuple(x.shape)}" if isinstance(x, Tensor) else what
    raise ValueError(
        f"{call}() of the method {method.name!r} returned {what}: expected a dict of tensors with x of shape {shape}"
    )


def _rows(flag: Tensor, like: Tensor) -> Tensor:
    """A flag for each trajectory, in a shape that broadcasts against `like`."""
    return flag.reshape(-1, *(1 for _ in like.shape[1:]))
