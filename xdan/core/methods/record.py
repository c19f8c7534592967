"""What a method takes: the observations of some trajectories, and a state from cycle to cycle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..observing import ObservingSystem

State = dict[str, Tensor]
"""What a method carries from cycle to cycle: named tensors, trajectories first; `x` holds the state or members."""

KEPT = ("label", "cycle", "alive", "bound", "unseen")
"""What the loop keeps of each trajectory and leaves to the next block, beside the method's state."""


@dataclass(frozen=True)
class Record:
    """Observations of some trajectories and what is known about them.

    Attributes
    ----------
    dynamics : Dynamics
        One that depends on time stands at the first analysis of the whole record.
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
    clock : int or Tensor of int64, shape (B,)
        Model steps from the first analysis of the whole record to where the first of `steps` begin; 0 at its start.
    restart_after : float, optional
        Model time without an observation after which a trajectory starts anew from the climatology.
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
        """Some times of the record, one after another."""
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
        """Of a state of every trajectory, (B, N)."""
        return len(self.trajectory), math.prod(self.dynamics.shape)
