"""Stretches of states to fit a model, drawn from lazy arrays. One piece at a time is in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..core.random import Purpose, uniform
from ..records.blocks import array_to_tensor
from ..records.schema import TIME, TRAJECTORY, Array
from ..records.store import digest
from ..records.values import LEADING_CYCLES, LEADING_TRAJECTORIES

_BYTES = 1 << 28  # most bytes of a piece
_SHORTEST = 64  # least number of times in a piece
_TURN = 200  # number of draws in a row from one piece


@dataclass
class Stretches:
    """Consecutive states of one trajectory, or pairs of states that belong together.

    Attributes
    ----------
    arrays : sequence of xarray.DataArray, dims (trajectory, time, *state)
        One array: a stretch holds consecutive times. Two arrays: a stretch is a state of the first array and the state
        of the second at the same position.
    seed : int
        Key of the draws.
    device : str
    """

    arrays: Sequence[xr.DataArray]
    seed: int
    device: str
    _held: tuple[int, list[Array]] | None = field(default=None, init=False)

    @property
    def longest(self) -> int:
        """Largest number of intervals in a stretch."""
        return 1 if len(self.arrays) > 1 else int(self.arrays[0].sizes[TIME]) - 1

    def identity(self) -> list[str]:
        """Digests of the leading part of each array, by which the states of two records differ."""
        leading = (slice(0, LEADING_TRAJECTORIES), slice(0, LEADING_CYCLES))
        return [
            digest(list(array.shape), held[leading]) for array, held in zip(self.arrays, self._read(0), strict=True)
        ]

    def draw(self, step: int, batch: int, length: int) -> Tensor:
        """Draw some stretches, (B, length + 1, N), keyed by the step.

        Raises
        ------
        ValueError
            If no stretch of the piece is finite.
        """
        parts = self._pieces
        piece = self._read(step // _TURN % len(parts))
        starts = _starts(piece, length)
        keys = torch.zeros(1, dtype=torch.int64), torch.tensor([step])
        chosen = (
            (uniform(self.seed, Purpose.NETWORK, *keys, batch)[0, 0] * len(starts)).long().clamp_max(len(starts) - 1)
        )
        return self._taken(piece, starts[chosen.numpy()], length)

    def spaced(self, count: int, length: int) -> Tensor:
        """At most `count` stretches, evenly spaced over the first piece."""
        piece = self._read(0)
        starts = _starts(piece, length)
        chosen = np.unique(np.linspace(0, len(starts) - 1, min(count, len(starts))).round().astype(int))
        return self._taken(piece, starts[chosen], length)

    @property
    def _pieces(self) -> list[slice]:
        """Times of each piece. Pieces do not overlap."""
        first = self.arrays[0]
        times, wanted = first.sizes[TIME], -(-len(self.arrays) * first.nbytes // _BYTES)
        count = max(1, min(wanted, times // _SHORTEST))
        edges = np.linspace(0, times, count + 1).round().astype(int).tolist()
        return [slice(start, stop) for start, stop in pairwise(edges)]

    def _read(self, number: int) -> list[Array]:
        if self._held is None or self._held[0] != number:
            part = self._pieces[number]
            read = [one.isel({TIME: part}).transpose(TRAJECTORY, TIME, ...).to_numpy() for one in self.arrays]
            self._held = number, [one.reshape(*one.shape[:2], -1) for one in read]
        return self._held[1]

    def _taken(self, piece: list[Array], starts: Array, length: int) -> Tensor:
        rows, times = starts[:, 0], starts[:, 1]
        if len(piece) > 1:
            states = np.stack([one[rows, times] for one in piece], 1)
        else:
            states = np.stack([piece[0][rows, times + lead] for lead in range(length + 1)], 1)
        return array_to_tensor(states, np.dtype(np.float32), self.device)


def _starts(piece: list[Array], length: int) -> Array:
    """Rows and times (S, 2) at which stretches begin whose states are all finite."""
    whole = np.logical_and.reduce([np.isfinite(one).all(-1) for one in piece])
    if len(piece) == 1:
        times = whole.shape[1]
        whole = np.logical_and.reduce([whole[:, lead : times - length + lead] for lead in range(length + 1)])
    starts: Array = np.argwhere(whole)
    if not len(starts):
        raise ValueError(
            f"no stretch of {length + 1} states in a row is finite: expected states without gaps; are all trajectories "
            "of the run lost?"
        )
    return starts
