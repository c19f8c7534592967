"""The backward pass over a block: run the method forward again, keep its states, and go back through them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .backward import BackwardPass
from .base import Method
from .loop import cycles, run
from .record import Record, State

BYTES = 1 << 28  # largest size of the states that are kept at once, in bytes
_FORECAST = "forecast_"  # prefix of the entries of the forecast state, in what the pass carries
_ALIVE, _STARTED, _STEPS = "alive", "started", "steps"


@dataclass(frozen=True)
class _Kept:
    """What a step back reads of one cycle.

    Attributes
    ----------
    forecast, analysis : dict of Tensor
        Entries of the method's states, as `BackwardPass` selects them.
    alive, started : Tensor of bool, shape (B,)
        Trajectories that are not lost, and trajectories that started anew with this forecast.
    steps : int
        Model steps since the previous analysis.
    clock : int
        Model steps from the record's first analysis to this one.
    """

    forecast: State
    analysis: State
    alive: Tensor
    started: Tensor
    steps: int
    clock: int

    def carried(self, smoothed: State) -> State:
        """What the earlier times need of this time."""
        return {
            **smoothed,
            **{f"{_FORECAST}{name}": value for name, value in self.forecast.items()},
            _ALIVE: self.alive,
            _STARTED: self.started,
            _STEPS: torch.full_like(self.started, self.steps, dtype=torch.int64),
        }


def smooth(
    method: Method,
    record: Record,
    state: State | None = None,
    after: State | None = None,
    members: bool = False,
    tick: Callable[[], object] | None = None,
) -> tuple[dict[str, Tensor], State]:
    """Smooth a block of a record: correct the states of a method's run by the observations of all times.

    The method runs forward again from the state at the start of the block. A run therefore need not store other states.
    If the states of a block would take more than `BYTES`, the pass goes back over it in stretches.

    The backward pass of a trajectory begins with the trajectory's analysis at the last time of the record. It begins
    again at the last time before the trajectory is lost, and at the last time before it starts anew. The results of a
    lost trajectory are NaN.

    Parameters
    ----------
    method : Method
        A prepared method that has a backward pass.
    record : Record
    state : dict of Tensor, optional
        State that `run` returned for the previous block; None at the start of the record.
    after : dict of Tensor, optional
        `after` that this function returned for the next block; None at the end of the record.
    members : bool
        Also return the members of an ensemble, or the covariance of a Kalman filter.
    tick : callable, optional
        Called after each cycle that is smoothed.

    Returns
    -------
    outputs : dict of Tensor
        "smoothed" and "smoothed_spread" of shape (B, K, N). With `members`, also "smoothed_members" (B, K, M, N) or
        "smoothed_covariance" (B, K, N, N).
    after : dict of Tensor
        The smoothed state and the forecast of the block's first time, for the previous block.

    Raises
    ------
    ValueError
        If the method has no backward pass.
    """
    method = method.bound(record.dynamics)
    back = method.backward_pass(record.dynamics)
    batch, size = record.shape
    each = 2 * batch * back.numbers(method.members, size) * record.observation.element_size()
    most, times = max(1, BYTES // each), len(record.steps)
    stretches = [slice(first, min(first + most, times)) for first in range(0, times, most)]
    states = [state]
    for stretch in stretches[:-1]:
        states.append(run(method, record.during(stretch), states[-1])[1])
    parts: list[dict[str, Tensor]] = []
    for stretch, begun in zip(reversed(stretches), reversed(states), strict=True):
        part, after = _stretch(method, back, record.during(stretch), begun, after, members, tick)
        parts.insert(0, part)
    assert after is not None
    return {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}, after


def _stretch(
    method: Method,
    back: BackwardPass,
    record: Record,
    state: State | None,
    after: State | None,
    members: bool,
    tick: Callable[[], object] | None,
) -> tuple[dict[str, Tensor], State]:
    """`smooth` for so few cycles that all their states can be kept."""
    kept = [
        _Kept(
            back.forecast(passed.forecast),
            back.analysis(passed.analysis),
            passed.alive,
            passed.started,
            passed.steps,
            int(passed.clock[0]),
        )
        for passed in cycles(method, record, state)
    ]
    columns: dict[str, list[Tensor]] = {}
    for cycle in reversed(kept):
        smoothed = _one_back(back, cycle, after, record)
        after = cycle.carried(smoothed)
        for name, value in back.outputs(smoothed, members).items():
            masked = torch.where(_rows(cycle.alive, value), value, torch.nan)
            columns.setdefault(name, []).insert(0, masked)
        if tick is not None:
            tick()
    assert after is not None
    return {name: torch.stack(column, 1) for name, column in columns.items()}, after


def _one_back(back: BackwardPass, cycle: _Kept, after: State | None, record: Record) -> State:
    """The smoothed state of a cycle. It is the analysis of the cycle if nothing comes after it."""
    if after is None:
        return cycle.analysis
    follows = after[_ALIVE] & ~after[_STARTED]
    forecast = {name: after[f"{_FORECAST}{name}"] for name in back.entries}
    smoothed = {name: after[name] for name in back.carried}
    dynamics = record.dynamics if record.dynamics.autonomous else record.dynamics.from_step(cycle.clock)
    stepped = back.step(cycle.analysis, forecast, smoothed, dynamics, int(after[_STEPS][0]))
    return {name: torch.where(_rows(follows, value), value, cycle.analysis[name]) for name, value in stepped.items()}


def _rows(flag: Tensor, like: Tensor) -> Tensor:
    """A flag for each trajectory, in a shape that broadcasts against `like`."""
    return flag.reshape(-1, *(1 for _ in like.shape[1:]))
