"""A window of the last intervals, which moves by one interval in each cycle. It is kept in entries of a state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..dynamics import Dynamics
from .advancing import advance
from .declarations import Output, smoothed, smoothed_spread
from .record import State


@dataclass(frozen=True)
class SlidingWindow:
    """The last L intervals of every trajectory.

    The state's entry `steps`, shape (B, L), holds the model steps of each interval, the newest last; 0 for intervals
    before the record began. If the model depends on time, the entry `clock`, shape (B,), holds the model steps from the
    record's first analysis to the window's end. A method that estimates the state at the window's start has this state
    in `begin`. Buffers, shape (B, L, ...), hold one value for each interval.

    Attributes
    ----------
    length : int
        Number of intervals L.
    """

    length: int

    @property
    def output(self) -> Output:
        """Declaration of the estimate at the window's start, L cycles earlier."""
        return smoothed(self.length)

    @property
    def spread(self) -> Output:
        """Declaration of the standard deviation of the estimate at the window's start."""
        return smoothed_spread(self.length)

    def opened(self, x: Tensor) -> State:
        """The entry `steps` of a window without intervals, for states x of shape (B, ...)."""
        return {"steps": torch.zeros(len(x), self.length, dtype=torch.int64, device=x.device)}

    def buffer(self, value: Tensor) -> Tensor:
        """A buffer (B, L, ...) that holds a value (B, ...) for every interval."""
        return value[:, None].expand(len(value), self.length, *value.shape[1:])

    def counts(self, state: State) -> list[int]:
        """Model steps of each interval, the same for all trajectories."""
        counts: list[int] = state["steps"][0].tolist()
        return counts

    def slid(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """The entries `steps` and `clock` after one more interval. The dynamics stands at the interval's start."""
        count = torch.full_like(state["steps"][:, 0], steps)
        after = {"steps": pushed(state["steps"], count)}
        return after if dynamics.autonomous else {**after, "clock": count + dynamics.model_step}

    def begin_after(self, state: State, dynamics: Dynamics) -> Tensor:
        """State at the start of the next window. If the window is full, it has run through the oldest interval.

        The dynamics stands at the end of the present window.
        """
        counts = self.counts(state)
        return advance(dynamics.from_step(dynamics.model_step - sum(counts)), state["begin"], counts[0])

    def at_begin(self, state: State, dynamics: Dynamics) -> Dynamics:
        """The dynamics at the time of the window's start."""
        if dynamics.autonomous or "clock" not in state:  # at the first analysis the window has no intervals
            return dynamics
        return dynamics.from_step(int(state["clock"][0]) - sum(self.counts(state)))

    def smoothed(self, state: State, begin: Tensor) -> Tensor:
        """An estimate of the state at the window's start, or its standard deviation. NaN until the window is full."""
        return begin if self.counts(state)[0] else torch.full_like(begin, torch.nan)


def pushed(buffer: Tensor, newest: Tensor) -> Tensor:
    """Buffer (B, L, ...) without its oldest value, and with the newest value (B, ...) at its end."""
    return torch.cat([buffer[:, 1:], newest[:, None]], 1)
