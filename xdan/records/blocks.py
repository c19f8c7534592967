"""Where labelled blocks become tensors and back: graphs over trajectories and time, and the reading of windows."""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import torch
import xarray as xr
from dask.delayed import Delayed
from torch import Tensor

from ..core.checks import shown
from ..core.learning.rollout import Window
from ..core.methods import Method, Record, run
from .record import LabelledRecord, Setup
from .schema import OBS, TIME, TRAJECTORY, Array
from .watch import RATIO, Watch

Carry = dict[str, Array]
Block = Callable[..., tuple[dict[str, Array], Carry]]


def array_to_tensor(array: Any, dtype: np.dtype[Any] | None = None, device: str = "cpu") -> Tensor:
    """Give a tensor of the native byte order, contiguous and writable, whatever the array was."""
    array = np.asarray(array)
    wanted = np.dtype(dtype) if dtype is not None else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, dtype=wanted, order="C", copy=True)).to(device)


def tensor_to_array(tensor: Tensor) -> Array:
    """Give a NumPy array."""
    array: Array = tensor.detach().cpu().numpy()
    return array


def pick_device(device: str = "auto") -> str:
    """Resolve "auto" to the GPU where there is one.

    Raises
    ------
    TypeError
        If it is no name.
    ValueError
        If the device that is asked for is not there.
    """
    if not isinstance(device, str):
        raise TypeError(f"device={shown(device)}: expected 'auto', 'cpu', 'cuda' or 'cuda:0' and so on")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError):
        raise ValueError(f"device={device!r}: expected 'auto', 'cpu', 'cuda' or 'cuda:0' and so on") from None
    if kind == "meta":
        raise ValueError("device='meta' holds no numbers: expected 'auto', 'cpu', 'cuda' or 'cuda:0' and so on")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: this machine has no CUDA device; use device='auto' or 'cpu'")
    return device


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_thread = threading.local()
# A thread that has not asked yet takes the number that another set last: the main one asks before blocks set theirs.
torch.get_num_threads()


@functools.cache
def _keep_memory() -> None:
    """Let glibc use freed memory again, in the workers of dask's nanny.

    The nanny sets MALLOC_TRIM_THRESHOLD_ to 64 KiB, which also pins the size from which every allocation is mapped anew
    to 128 KiB: two thirds of the time of a gain would go into page faults. These are the bounds that glibc itself
    would come to.
    """
    told = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & set(os.environ)
    if sys.platform == "linux" and told == {"MALLOC_TRIM_THRESHOLD_"}:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl does not
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, 32 << 20)
            mallopt(_M_TRIM_THRESHOLD, 64 << 20)


def in_block() -> None:
    """Prepare a thread to compute: dask runs blocks side by side, so each keeps to one core."""
    _keep_memory()
    helps = threading.current_thread() is not threading.main_thread() or multiprocessing.parent_process() is not None
    if helps and not getattr(_thread, "ready", False):
        torch.set_num_threads(1)
        _thread.ready = True


@dataclass(frozen=True)
class Plan:
    """How a record is cut into blocks: edges along trajectory and time."""

    trajectory: tuple[int, ...]
    time: tuple[int, ...]

    @classmethod
    def from_chunks(cls, trajectory: Sequence[int], time: Sequence[int]) -> Plan:
        """Take sizes of chunks."""
        return cls(tuple(np.cumsum([0, *trajectory]).tolist()), tuple(np.cumsum([0, *time]).tolist()))

    def rows(self, i: int) -> slice:
        """Trajectories of the i-th block."""
        return slice(self.trajectory[i], self.trajectory[i + 1])

    def columns(self, t: int) -> slice:
        """Times of the t-th block."""
        return slice(self.time[t], self.time[t + 1])

    @property
    def shape(self) -> tuple[int, int]:
        """Blocks along trajectory and along time."""
        return len(self.trajectory) - 1, len(self.time) - 1

    def cut(self, array: da.Array) -> list[list[Delayed]]:
        """Delayed blocks of an array of dims (trajectory, time, ...), its other dims whole."""
        sizes = tuple(tuple(np.diff(edges).tolist()) for edges in (self.trajectory, self.time))
        whole = array.rechunk((*sizes, *(-1 for _ in array.shape[2:])))
        delayed = whole.to_delayed()
        return [
            [delayed[(i, t, *(0 for _ in array.shape[2:]))] for t in range(self.shape[1])] for i in range(self.shape[0])
        ]


def scan(
    block: Block,
    plan: Plan,
    inputs: Sequence[da.Array],
    outputs: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
    *shared: Any,
) -> dict[str, da.Array]:
    """Lazy arrays from a block function that carries state along time; trajectories are independent.

    Parameters
    ----------
    block : callable
        block(carry, rows, columns, arrays, *shared) -> (outputs, carry); carry is None at the start.
    plan : Plan
    inputs : sequence of dask arrays, dims (trajectory, time, ...)
    outputs : mapping
        Name to (shape beyond trajectory and time, dtype).
    *shared : object or Delayed
        Passed to every block.
    """
    task = dask.delayed(block, nout=2, pure=False)
    cut = [plan.cut(array) for array in inputs]
    pieces: dict[str, list[list[da.Array]]] = {name: [] for name in outputs}
    for i in range(plan.shape[0]):
        carry: Any = None
        row: dict[str, list[da.Array]] = {name: [] for name in outputs}
        for t in range(plan.shape[1]):
            rows, columns = plan.rows(i), plan.columns(t)
            found, carry = task(carry, rows, columns, [c[i][t] for c in cut], *shared)
            size = (rows.stop - rows.start, columns.stop - columns.start)
            for name, (tail, dtype) in outputs.items():
                row[name].append(da.from_delayed(found[name], (*size, *tail), dtype=dtype))
        for name in outputs:
            pieces[name].append(row[name])
    return {
        name: da.concatenate([da.concatenate(row, axis=1) for row in rows], axis=0) for name, rows in pieces.items()
    }


def make_record(
    setup: Setup,
    observation: Any,
    *,
    rows: slice,
    columns: slice,
    seed: int,
    truth: Any = None,
    device: str = "cpu",
) -> Record:
    """Tensors of one block of a record, states flattened."""
    dtype = setup.dtype
    y = array_to_tensor(observation, dtype, device).flatten(2)
    return Record(
        dynamics=setup.dynamics,
        observing=setup.observing.during(columns).to(y.dtype, y.device),
        observation=y,
        steps=setup.steps[columns].tolist(),
        trajectory=torch.from_numpy(setup.trajectory[rows].copy()),
        seed=seed,
        truth=None if truth is None else array_to_tensor(truth, dtype, device).flatten(2),
    )


def see(states: xr.DataArray, setup: Setup) -> xr.DataArray:
    """H of labelled states, lazily; the states themselves where sites are observed."""
    operator, dims = setup.observing.operator, setup.dynamics.dims
    if operator is None:
        return states

    def block(x: Array) -> Array:
        return tensor_to_array(operator(array_to_tensor(x).flatten(x.ndim - len(dims))))

    seen: xr.DataArray = xr.apply_ufunc(
        block,
        states,
        input_core_dims=[dims],
        output_core_dims=[[OBS]],
        dask="parallelized",
        output_dtypes=[states.dtype],
        dask_gufunc_kwargs={"output_sizes": {OBS: operator.size}},
    )
    return seen


def cycle_block(
    carry: Carry | None,
    rows: slice,
    columns: slice,
    arrays: Sequence[Any],
    setup: Setup,
    method: Method,
    watch: Watch,
    seed: int,
    members: bool,
    device: str,
) -> tuple[dict[str, Array], Carry]:
    """Cycle a prepared method over one block."""
    in_block()
    record = make_record(setup, arrays[0], rows=rows, columns=columns, seed=seed, device=device)
    state = None if carry is None else {name: array_to_tensor(value, device=device) for name, value in carry.items()}
    with torch.no_grad():
        outputs, state = run(method, record, state, members)
        outputs[RATIO] = watch.ratio(record, outputs["forecast"], outputs.get("forecast_spread"))
    shape, operator = setup.dynamics.shape, setup.observing.operator
    flat = {output.name for output in method.outputs if output.place == "observations" and operator is not None}
    shaped = {
        name: tensor_to_array(value if value.ndim == 2 or name in flat else value.unflatten(-1, shape))
        for name, value in outputs.items()
    }
    return shaped, {name: tensor_to_array(value) for name, value in state.items()}


class RecordWindows:
    """Windows of a record in Zarr or in memory, read ahead block by block while the last ones are computed on.

    A lane is a trajectory, or a segment of one where there are fewer trajectories than a batch wants. Batches of
    lanes that lie together in the store are drawn in an order that is new in every epoch; a few of them take turns,
    so that consecutive steps see different weather.

    Parameters
    ----------
    labelled : LabelledRecord
        Windows have a truth where it has one.
    lanes : sequence of (row, start)
        First indices of the lanes in the record.
    length : int
        Cycles of a lane.
    batch, cycles : int
        Lanes and cycles of a window.
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
        # The last batch is filled from the front.
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
        """Group, batch and window-in-lane of the index-th window, and whether the lanes start anew."""
        turn, group = divmod(index, self.groups)
        # Groups are staggered along the record, so that not all of them start anew together.
        pass_, window = divmod(turn + group * self.windows // self.groups, self.windows)
        epoch, position = divmod(pass_ * self.groups + group, len(self.batches))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.batches))
        return group, int(order[position]), window, window == 0 or turn == 0

    def _need(self, index: int) -> tuple[int, int]:
        _, batch, window, _ = self._place(index)
        return batch, window // self.block

    def window(self, index: int) -> Window:
        """Give the index-th window, and read ahead for those that follow."""
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
        dtype = self.labelled.setup.dtype

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
        """Nothing: a window follows from its index."""
        return {}

    def restore(self, arrays: dict[str, Tensor]) -> None:
        """Nothing to restore."""

    def close(self) -> None:
        """End the reader."""
        self._reader.shutdown(cancel_futures=True)


def read_lanes(variable: xr.DataArray, lanes: Sequence[tuple[int, int]], first: int, stop: int) -> Array:
    """Cycles first to stop of some lanes, in one read where the lanes lie side by side."""
    rows = [row for row, _ in lanes]
    starts = {start for _, start in lanes}

    def read(row: int | slice, start: int) -> Array:
        part = variable.isel({TRAJECTORY: row, TIME: slice(start + first, start + stop)})
        return part.compute(scheduler="synchronous").to_numpy()

    if len(starts) == 1 and rows == list(range(rows[0], rows[0] + len(rows))):
        return read(slice(rows[0], rows[-1] + 1), starts.pop())
    return np.stack([read(row, start) for row, start in lanes])
