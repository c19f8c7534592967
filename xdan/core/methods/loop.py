"""The one loop that cycles every method, and what the loop itself keeps of each trajectory."""

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

LOST = 1e6  # a trajectory has diverged once a component is so many times as large as the largest at the start


def run(
    method: Method,
    record: Record,
    state: State | None = None,
    members: bool = False,
    tick: Callable[[], object] | None = None,
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
        Also return the members of an ensemble method, or what a network with memory remembers and the covariance that
        its forecast carries.
    tick : callable, optional
        Called after each cycle.

    Returns
    -------
    outputs : dict of Tensor
        "forecast" and "analysis" of shape (B, K, N), "diverged" of shape (B, K), "restarted" of that shape where
        trajectories may start anew, the method's `outputs`, and where asked for "forecast_members", "members" of shape
        (B, K, M, N), or "memory", the latent channels that each analysis reads, of shape (B, K, n, N), and
        "analysis_covariance", P_a, of shape (B, K, N, N).
    state : dict of Tensor
        To carry on from: the method's state, and what the loop keeps of each trajectory.

    Raises
    ------
    ValueError
        If the method returns no state of its shape, takes a name that is the loop's, or gives other outputs than it
        declares.
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
        As `run`, but for outputs.
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
    """What the loop keeps of each trajectory, tensors of shape (B,).

    Attributes
    ----------
    label : Tensor of int64
        Of the record; keys random draws.
    cycle : Tensor of int64
        Number of the coming analysis.
    alive : Tensor of bool
        Whether the trajectory has not diverged.
    bound : Tensor
        The largest component with which it has not; of several fields one of each, (B, fields).
    parts : tuple of int
        Components of each of several fields; empty for one.
    unseen : Tensor of int64
        Model steps since it was last observed.
    whole : bool
        Whether all are alive.
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
        """Of trajectories at the start of a record.

        Raises
        ------
        ValueError
            If an entry of the state has a name that is the loop's.
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
        """As an earlier block left them; the blocks of methods without draws once held no `cycle`."""
        label = record.trajectory.to(state["x"].device)
        cycle = state.get("cycle", torch.full_like(label, method.first_cycle + 1))
        unseen = state.get("unseen", torch.zeros_like(label))
        return cls(label, cycle, state["alive"], state["bound"], unseen, bool(state["alive"].all()), _parts(record))

    def seen(self, method: Method, record: Record, steps: int, observed: Tensor) -> tuple[_Lanes, Tensor | None]:
        """Count the steps to what is observed (B, P), and say which start anew there, (B,); None where none does.

        A trajectory starts anew with the first observation after a gap that is longer than the record allows. A window
        of several times is shared by all: there a gap is a long interval.
        """
        some = observed.any(1)
        unseen = self.unseen + steps
        after = replace(self, unseen=torch.where(some, 0, unseen))
        if record.restart_after is None:
            return after, None
        most = record.restart_after / record.dynamics.timestep * (1 + 1e-9)  # rounding makes no gap
        anew = torch.full_like(some, steps > most) if method.windowed else some & (unseen > most)
        return after, anew if bool(anew.any()) else None

    def after(self, state: State) -> _Lanes:
        """Flag those that a state has lost."""
        bounded = _largest(state["x"], self.parts) <= self.bound
        if bool(bounded.all()):
            return self
        bounded = bounded.all(1) if self.parts else bounded
        return replace(self, alive=self.alive & bounded, whole=False)

    def handed(self, state: State) -> State:
        """A state as a method gets it.

        What a lost trajectory carries is zero, so that batched linear algebra stays finite for the others. Integers and
        flags stay: methods read those of a block from any of its trajectories.
        """
        entries = {name: value for name, value in state.items() if name not in KEPT}
        if not self.whole:
            entries = {
                name: torch.where(_rows(self.alive, value), value, 0.0) if value.is_floating_point() else value
                for name, value in entries.items()
            }
        return {**entries, "label": self.label, "cycle": self.cycle}

    def masked(self, value: Tensor) -> Tensor:
        """Values (B, ...), NaN where the trajectory is lost."""
        return value if self.whole else torch.where(_rows(self.alive, value), value, torch.nan)

    def carried(self, state: State) -> State:
        """A state with what the next block needs of the loop."""
        entries = {name: value for name, value in state.items() if name not in KEPT}
        return {**entries, **{name: getattr(self, name) for name in KEPT}}


@dataclass(frozen=True)
class Passed:
    """A cycle that a method has passed.

    Attributes
    ----------
    forecast, analysis : dict of Tensor
        States of the method; those of a lost trajectory are zero.
    observation : Tensor, shape (B, P)
        Zero where nothing is observed.
    lanes : _Lanes
        What the loop keeps of each trajectory.
    started : Tensor of bool, shape (B,)
        Trajectories that started anew with this forecast, so that the analysis before is not what it came from.
    steps : int
        Model steps from the analysis before.
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
        """Trajectories that have not diverged, bool of shape (B,)."""
        return self.lanes.alive

    def masked(self, value: Tensor) -> Tensor:
        """Values (B, ...), NaN where the trajectory is lost."""
        return self.lanes.masked(value)

    def carried(self) -> State:
        """The state to carry on from."""
        return replace(self.lanes, cycle=self.lanes.cycle + 1).carried(self.analysis)


def _parts(record: Record) -> tuple[int, ...]:
    """Components of each of several fields; empty for one."""
    space = record.dynamics.space
    return () if space.single else tuple(field.geometry.size for field in space)


def _largest(x: Tensor, parts: tuple[int, ...]) -> Tensor:
    """Largest size of a component, (B,), or of one of each field, (B, fields), of states (B, N) or (B, M, N)."""
    if not parts:
        return x.abs().flatten(1).amax(1)
    return torch.stack([part.abs().flatten(1).amax(1) for part in x.split(parts, -1)], 1)


def _row(method: Method, forecast: State, analysis: State, observation: Tensor, members: bool) -> dict[str, Tensor]:
    """What a run keeps of a cycle.

    Raises
    ------
    ValueError
        If the method gives other outputs than it declares, or one of another shape.
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
    """A record whose dynamics, if it depends on time, stands so many steps later."""
    if record.dynamics.autonomous:
        return record
    return replace(record, dynamics=record.dynamics.from_step(int(clock[0])))


def _merged(anew: Tensor, started: State, state: State) -> State:
    """A state in which some trajectories (B,) are those of another."""
    if bool(anew.all()):
        return {**state, **started}
    return {
        name: torch.where(_rows(anew, value), started[name], value) if name in started else value
        for name, value in state.items()
    }


def _writes(state: State) -> int | None:
    """How often `x` was written into; None where torch does not count."""
    x = state["x"]
    return None if x.is_inference() else x._version


def _checked(method: Method, call: str, state: State, shape: tuple[int, ...], dtype: torch.dtype) -> State:
    """Refuse what is no state: a dict of tensors, trajectories first, whose `x` has the shape (B, N) or (B, M, N).

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
    """A flag for each trajectory, shaped to broadcast against `like`."""
    return flag.reshape(-1, *(1 for _ in like.shape[1:]))
