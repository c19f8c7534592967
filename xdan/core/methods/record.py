"""The input of a method: observations of some trajectories. And its state, which goes from cycle to cycle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..observing import ObservingSystem

State = dict[str, Tensor]
"""What a method carries from cycle to cycle: named tensors, trajectories first. `x` holds the state or the members."""

KEPT = ("label", "cycle", "alive", "bound", "unseen")
"""Entries that the loop keeps for each trajectory and leaves to the next block, beside the method's state."""


@dataclass(frozen=True)
class Record:
    """Observations of some trajectories, and what is known of these trajectories.

    Attributes
    ----------
    dynamics : Dynamics
        The model. If it depends on time, it stands at the first analysis of the whole record.
    observing : ObservingSystem
        H and R. If they differ in time, these are those of the record's times.
    observation : Tensor, shape (B, K, P)
        NaN where nothing is observed.
    steps : sequence of int, length K
        Model steps before each analysis; 0 before the first of a record.
    trajectory : Tensor of int64, shape (B,)
        Labels of the trajectories, the keys of random draws.
    seed : int
    truth : Tensor, shape (B, K, N), optional
    clock : int or Tensor of int64, shape (B,)
        Model steps from the first analysis of the whole record to where the first of `steps` begin; 0 at its start.
    restart_after : float, optional
        Model time without an observation after which a trajectory starts anew from the climatology. By default never.
    """

    dynamics: Dynamics
    observing: ObservingSystem
    observation: Tensor
    steps: Sequence[int]
    trajectory: Tensor
    seed: int
    truth: Tensor | None = None
    clock: int | Tensor = 0
    restart_after: float | None = None

    @property
    def clocks(self) -> Tensor:
        """`clock` of every trajectory, int64 of shape (B,)."""
        return torch.as_tensor(self.clock).expand(len(self.trajectory))

    def during(self, columns: slice) -> Record:
        """A part of the record: some consecutive times."""
        return replace(
            self,
            observing=self.observing.during(columns),
            observation=self.observation[:, columns],
            steps=self.steps[columns],
            truth=None if self.truth is None else self.truth[:, columns],
            clock=self.clocks + int(sum(self.steps[: columns.start])),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of a state of every trajectory, (B, N)."""
        return len(self.trajectory), math.prod(self.dynamics.shape)
