"""Training windows of a record, read ahead from its store or from memory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..core.learning.rollout import Window
from .blocks import array_to_tensor
from .schema import TIME, TRAJECTORY, Array

if TYPE_CHECKING:
    from .record import LabelledRecord


class RecordWindows:
    """Windows of a record in Zarr or in memory. Blocks are read ahead while the last windows are computed on.

    A lane is a trajectory, or a segment of a trajectory if a batch needs more lanes than there are trajectories. A
    batch holds lanes that lie together in the store. Every epoch draws a new order of the batches. A few batches take
    turns, so that consecutive steps see different weather.

    Parameters
    ----------
    labelled : LabelledRecord
        The record. Windows have a truth if the record has a truth.
    lanes : sequence of (row, start)
        First indices of the lanes in the record.
    length : int
        Cycles of a lane.
    batch, cycles : int
        Number of lanes and of cycles of a window.
    seed : int
    device : str
    """

    def __init__(
        self,
        labelled: LabelledRecord,
        lanes: Sequence[tuple[int, int]],
        length: int,
        *,
        batch: int,
        cycles: int,
        seed: int,
        device: str,
    ) -> None:
        self.labelled, self.length = labelled, length
        self.cycles, self.seed, self.device = cycles, seed, device
        count = -(-len(lanes) // batch)
        # The last batch is filled up with the first lanes.
        self.batches = [[lanes[i % len(lanes)] for i in range(b * batch, (b + 1) * batch)] for b in range(count)]
        self.windows = length // cycles
        self.per_epoch = self.windows * count
        self.groups = min(4, count)
        chunks = labelled.observation.chunksizes.get(TIME)
        per_block = max(1, (max(chunks) if chunks else 256) // cycles)
        self.block = min(per_block, self.windows)
        self._loaded: dict[tuple[int, int], Future[tuple[Array | None, Array, Array | None]]] = {}
        self._reader = ThreadPoolExecutor(1)

    def _place(self, index: int) -> tuple[int, int, int, bool]:
        """Group, batch and place in the lane of the index-th window, and whether the lanes start anew."""
        turn, group = divmod(index, self.groups)
        # Groups are staggered along the record, so that they do not all start anew together.
        pass_, window = divmod(turn + group * self.windows // self.groups, self.windows)
        epoch, position = divmod(pass_ * self.groups + group, len(self.batches))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.batches))
        return group, int(order[position]), window, window == 0 or turn == 0

    def _need(self, index: int) -> tuple[int, int]:
        _, batch, window, _ = self._place(index)
        return batch, window // self.block

    def window(self, index: int) -> Window:
        """Return the index-th window, and read ahead for the next windows."""
        wanted = list(dict.fromkeys(self._need(index + ahead) for ahead in range(2 * self.groups)))
        for key in wanted:
            if key not in self._loaded:
                self._loaded[key] = self._reader.submit(self._load, *key)
        for key in [key for key in self._loaded if key not in wanted]:
            del self._loaded[key]
        group, batch, window, fresh = self._place(index)
        truth, observation, forecast = self._loaded[wanted[0]].result()
        inside = slice((window % self.block) * self.cycles, (window % self.block + 1) * self.cycles)
        start = self.batches[batch][0][1] + window * self.cycles
        steps = self.labelled.setup.steps[start : start + self.cycles]
        setup = self.labelled.setup
        dtype, clock = setup.dtype, None
        if not setup.dynamics.autonomous:
            # The steps of the first lane are 0 before the record's first time. Other lanes do not begin there.
            firsts = [first + window * self.cycles for _, first in self.batches[batch]]
            clock = torch.tensor([setup.clock(first) for first in firsts]) - int(steps[0])

        def tensor(array: Array) -> Tensor:
            return array_to_tensor(array[:, inside], dtype, self.device).flatten(2)

        return Window(
            None if truth is None else tensor(truth),
            tensor(observation),
            tuple(steps.tolist()),
            group,
            fresh,
            start,
            None if forecast is None else tensor(forecast),
            clock=clock,
        )

    def _load(self, batch: int, block: int) -> tuple[Array | None, Array, Array | None]:
        first = block * self.block * self.cycles
        stop = min(first + self.block * self.cycles, self.windows * self.cycles)
        lanes = self.batches[batch]
        truth, forecast = self.labelled.truth, self.labelled.forecast
        return (
            None if truth is None else read_lanes(truth, lanes, first, stop),
            read_lanes(self.labelled.observation, lanes, first, stop),
            None if forecast is None else read_lanes(forecast, lanes, first, stop),
        )

    def arrays(self) -> dict[str, Tensor]:
        """Arrays that a checkpoint keeps of these windows: none, as each window follows from its index."""
        return {}

    def restore(self, arrays: dict[str, Tensor]) -> None:
        """Restore what `arrays` returned: nothing."""

    def close(self) -> None:
        """End the reader."""
        self._reader.shutdown(cancel_futures=True)


def read_lanes(variable: xr.DataArray, lanes: Sequence[tuple[int, int]], first: int, stop: int) -> Array:
    """Read the cycles first to stop of some lanes, in one read if the lanes lie side by side."""
    rows = [row for row, _ in lanes]
    starts = {start for _, start in lanes}

    def read(row: int | slice, start: int) -> Array:
        part = variable.isel({TRAJECTORY: row, TIME: slice(start + first, start + stop)})
        return part.compute(scheduler="synchronous").to_numpy()

    if len(starts) == 1 and rows == list(range(rows[0], rows[0] + len(rows))):
        return read(slice(rows[0], rows[-1] + 1), starts.pop())
    return np.stack([read(row, start) for row, start in lanes])
