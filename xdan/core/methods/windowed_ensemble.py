"""Ensembles over a window of intervals: they carry their members at the window's start and at its end."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..checks import integer
from ..dynamics import Dynamics
from ..observing import ObservingSystem
from .advancing import advance
from .ensemble import EnsembleMethod
from .record import Record, State
from .windowed import SlidingWindow


class WindowedEnsemble(EnsembleMethod):
    """An ensemble over a window of L intervals. Members at its start, `begin`, are fitted to observations at its end.

    A subclass gives `analyse`, and the entries `x`, `begin`, `smoothed` and `smoothed_spread` of its state.

    Parameters
    ----------
    members : int
        Ensemble size M, at least 2.
    lag : int
        Number of intervals L of the window, at least 1.
    """

    perfect_model = True
    windowed: ClassVar[bool] = True

    def __init__(self, members: int, lag: int) -> None:
        super().__init__(members)
        self.lag = integer("lag", lag, least=1)
        self._window = SlidingWindow(self.lag)

    def check_record(self, record: Record) -> None:
        """Refuse a record that is no longer than the lag."""
        if record.observation.shape[1] <= self.lag:
            raise ValueError(
                f"lag={self.lag}: the record has {record.observation.shape[1]} times; expected more than the lag"
            )
        super().check_record(record)

    def start(self, record: Record) -> State:
        """Members from the climatology; the window has no intervals yet."""
        state = super().start(record)
        x = state["x"]
        nothing = torch.full_like(x[:, 0], torch.nan)
        return {**state, "begin": x, **self._window.opened(x), "smoothed": nothing, "smoothed_spread": nothing}

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Make the first analysis as every ensemble does; the window begins here."""
        after = super().first(state, observation, observed, observing)
        return {**after, "begin": after["x"]}

    def forecast(self, state: State, dynamics: Dynamics, steps: int) -> State:
        """Advance the members. If the window is full, advance its start too."""
        begin = self._window.begin_after(state, dynamics)
        x = advance(dynamics, state["x"], steps)
        return {**state, **self._window.slid(state, dynamics, steps), "x": x, "begin": begin}
