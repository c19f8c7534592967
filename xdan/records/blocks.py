"""The crossing between arrays and tensors: a block's arrays become tensors and come back; lazy graphs of blocks."""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import torch
from dask.delayed import Delayed
from numpy.typing import NDArray
from torch import Tensor

from ..core.checks import shown
from ..core.dynamics import Dynamics
from ..core.methods import Record
from ..core.observing import ObservingSystem

Carry = dict[str, NDArray[Any]]
"""What a block hands to the next block in time: a method's state as arrays."""


@dataclass(frozen=True)
class Setup:
    """What is known of a record beside its data. It is small, so that every block can take it along.

    Attributes
    ----------
    dynamics : Dynamics
        The forecast model. If the model depends on time, its clock stands at the first analysis.
    observing : ObservingSystem
        H and R, in float64, on the CPU.
    steps : numpy.ndarray of int, shape (K,)
        Model steps from the analysis before to each analysis; 0 for the first.
    trajectory : numpy.ndarray of int, shape (R,)
        Labels of the trajectories; they key random draws.
    dtype : numpy.dtype
        Floating type of the computation.
    restart_after : float, optional
        Model time without an observation after which a trajectory starts anew.
    other_truth : bool
        Whether the record says that a model other than `dynamics` made its truth.
    """

    dynamics: Dynamics
    observing: ObservingSystem
    steps: NDArray[np.int64]
    trajectory: NDArray[np.int64]
    dtype: np.dtype[Any]
    restart_after: float | None = None
    other_truth: bool = False

    @property
    def start(self) -> float:
        """Model time of the first analysis; 0 for a model that does not depend on time."""
        return self.dynamics.model_time

    def dynamics_at(self, time: int) -> Dynamics:
        """The dynamics with its clock at an analysis; `time` is the position of this analysis."""
        return self.dynamics.from_step(self.clock(time))

    def clock(self, time: int) -> int:
        """Model steps from the first analysis to another analysis; `time` is the position of the other."""
        return int(self.steps[: time + 1].sum())

    def keys(self, rows: slice) -> Tensor:
        """Labels of some trajectories, int64, shape (B,)."""
        return torch.from_numpy(self.trajectory[rows].copy())

    def record(
        self, observation: Tensor, *, rows: slice, columns: slice, seed: int, truth: Tensor | None = None
    ) -> Record:
        """A block of the record as methods take it, with flat states.

        Parameters
        ----------
        observation : Tensor, shape (B, K, *state) or (B, K, P)
        rows, columns : slice
            Positions of the block's trajectories and times in the whole record.
        seed : int
        truth : Tensor, shape (B, K, *state), optional
        """
        y = observation.flatten(2)
        return Record(
            dynamics=self.dynamics,
            observing=self.observing.during(columns).to(y.dtype, y.device),
            observation=y,
            steps=self.steps[columns].tolist(),
            trajectory=self.keys(rows),
            seed=seed,
            truth=None if truth is None else truth.flatten(2),
            clock=int(self.steps[: columns.start].sum()),
            restart_after=self.restart_after,
        )


def array_to_tensor(array: Any, dtype: np.dtype[Any] | None = None, device: str = "cpu") -> Tensor:
    """Make a tensor that is contiguous, writable and of the native byte order, from any array."""
    array = np.asarray(array)
    wanted = np.dtype(dtype) if dtype is not None else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, dtype=wanted, order="C", copy=True)).to(device)


def tensor_to_array(tensor: Tensor) -> NDArray[Any]:
    """Make a NumPy array of a tensor."""
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array


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
    """`Setup.record` of arrays: tensors of the type to compute in, on a device."""
    y = array_to_tensor(observation, setup.dtype, device)
    x = None if truth is None else array_to_tensor(truth, setup.dtype, device)
    return setup.record(y, rows=rows, columns=columns, seed=seed, truth=x)


def pick_device(device: str = "auto") -> str:
    """Name the device: "auto" is the GPU if there is one, and else the CPU.

    Raises
    ------
    TypeError
        If `device` is not a string.
    ValueError
        If the machine does not have the device.
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


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names of parameters in mallopt(3)
_thread = threading.local()
# torch fixes a thread's number of cores when it is first asked for: the main thread asks before blocks set it to one.
torch.get_num_threads()


@functools.cache
def _keep_memory() -> None:
    """Let glibc use freed memory again, in workers that dask's nanny has started.

    The nanny sets MALLOC_TRIM_THRESHOLD_ to 64 KiB. This setting also fixes another bound at 128 KiB: glibc maps every
    larger allocation anew, and a gain would spend two thirds of its time on page faults. The bounds here are those
    that glibc itself would reach.
    """
    pinned = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & set(os.environ)
    if sys.platform == "linux" and pinned == {"MALLOC_TRIM_THRESHOLD_"}:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl does not
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, 32 << 20)
            mallopt(_M_TRIM_THRESHOLD, 64 << 20)


def in_block() -> None:
    """Prepare a thread to compute. dask runs blocks side by side, so each block uses one core."""
    _keep_memory()
    helps = threading.current_thread() is not threading.main_thread() or multiprocessing.parent_process() is not None
    if helps and not getattr(_thread, "ready", False):
        torch.set_num_threads(1)
        _thread.ready = True


def block(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function of arrays from a function of tensors, so that a task of dask can run it; a decorator.

    The decorated function takes `dtype` and `device` beside the arguments of the function. Arrays become tensors on the
    device, also inside lists, tuples and dicts. Those in the first argument, the block's data, get this dtype; all
    others keep their type. Tensors in the result become arrays. No gradients are recorded, and a thread of dask uses
    one core.

    Examples
    --------
    >>> import numpy as np
    >>> @block
    ... def total(x, weights):
    ...     return (weights * x).sum()
    >>> total(np.ones(3, dtype="f4"), np.arange(3.0), dtype=np.dtype("f8"))
    array(3.)
    """

    @functools.wraps(function)
    def crossing(
        data: Any, *arguments: Any, dtype: np.dtype[Any] | None = None, device: str = "cpu", **named: Any
    ) -> Any:
        in_block()
        inside = [_across(value, np.ndarray, lambda a: array_to_tensor(a, device=device)) for value in arguments]
        inside_named = _across(named, np.ndarray, lambda a: array_to_tensor(a, device=device))
        with torch.no_grad():
            answer = function(
                _across(data, np.ndarray, lambda a: array_to_tensor(a, dtype, device)), *inside, **inside_named
            )
        return _across(answer, Tensor, tensor_to_array)

    return crossing


def _across(value: Any, kind: type, convert: Callable[[Any], Any]) -> Any:
    """Convert every value of a type, also inside lists, tuples and dicts."""
    if isinstance(value, kind):
        return convert(value)
    if type(value) in (list, tuple):
        return type(value)(_across(item, kind, convert) for item in value)
    if type(value) is dict:
        return {key: _across(item, kind, convert) for key, item in value.items()}
    return value


@dataclass(frozen=True)
class Plan:
    """How a record is cut into blocks: the edges of the blocks along trajectory and time."""

    trajectory: tuple[int, ...]
    time: tuple[int, ...]

    @classmethod
    def from_chunks(cls, trajectory: Sequence[int], time: Sequence[int]) -> Plan:
        """Make the plan whose blocks have these sizes."""
        return cls(tuple(np.cumsum([0, *trajectory]).tolist()), tuple(np.cumsum([0, *time]).tolist()))

    def rows(self, i: int) -> slice:
        """Trajectories of the i-th block."""
        return slice(self.trajectory[i], self.trajectory[i + 1])

    def columns(self, t: int) -> slice:
        """Times of the t-th block."""
        return slice(self.time[t], self.time[t + 1])

    def first(self, count: int) -> int:
        """Times of the first so many blocks."""
        return self.time[count]

    def last(self, count: int) -> int:
        """Times of the last so many blocks."""
        return self.time[-1] - self.time[-1 - count]

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


def block_graph(
    function: Callable[..., Any],
    plan: Plan,
    inputs: Sequence[da.Array | None],
    outputs: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
    *shared: Any,
    carries: bool = False,
    sizes: Callable[[slice, slice], tuple[int, int]] | None = None,
    **options: Any,
) -> dict[str, da.Array]:
    """Make lazy arrays from a function of one block; each block is a task.

    Parameters
    ----------
    function : callable
        function(data, rows, columns, *shared, **options) -> outputs. The list `data` holds the block's part of every
        input, the slices `rows` and `columns` are the block's place, and outputs are arrays by name. With `carries`:
        function(data, carry, rows, columns, *shared, **options) -> (outputs, carry).
    plan : Plan
    inputs : sequence of dask arrays, dims (trajectory, time, ...), or None
    outputs : mapping
        (shape beyond trajectory and time, dtype) of each output, by name.
    *shared : object or Delayed
        Objects that every block takes.
    carries : bool
        Whether a block hands a state to the next block in time. `carry` is None at the first time. Trajectories are
        independent.
    sizes : callable, optional
        sizes(rows, columns) -> numbers of trajectories and times of a block's outputs; by default those of the block.
    **options
        Arguments that every block takes by name.

    Returns
    -------
    dict of dask arrays, dims (trajectory, time, ...)
    """
    return carried_graph(function, plan, inputs, outputs, *shared, carries=carries, sizes=sizes, **options)[0]


def carried_graph(
    function: Callable[..., Any],
    plan: Plan,
    inputs: Sequence[da.Array | None],
    outputs: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
    *shared: Any,
    carries: bool = True,
    begun: Sequence[Sequence[Any]] | None = None,
    sizes: Callable[[slice, slice], tuple[int, int]] | None = None,
    **options: Any,
) -> tuple[dict[str, da.Array], list[list[Any]]]:
    """Make what `block_graph` makes, and the state that each block begins with; also backward along time.

    Parameters
    ----------
    function, plan, inputs, outputs, shared, carries, sizes, options
        As for `block_graph`.
    begun : sequence of sequence, optional
        The `begun` of another graph on the same plan. Blocks are then taken from the last time to the first. Their
        carry is a list: what the block began with in the other graph, and what the block after it handed back.

    Returns
    -------
    arrays : dict of dask arrays, dims (trajectory, time, ...)
    begun : list of list
        The state that each block begins with, None or Delayed, by the block's place.
    """
    task = dask.delayed(function, nout=2 if carries else None, pure=False)
    cut = [None if array is None else plan.cut(array) for array in inputs]
    pieces: dict[str, list[list[da.Array]]] = {name: [] for name in outputs}
    starts: list[list[Any]] = []
    times = range(plan.shape[1])
    for i in range(plan.shape[0]):
        carry: Any = None
        row: dict[str, dict[int, da.Array]] = {name: {} for name in outputs}
        starts.append([None] * plan.shape[1])
        for t in times if begun is None else reversed(times):
            rows, columns = plan.rows(i), plan.columns(t)
            data = [None if blocks is None else blocks[i][t] for blocks in cut]
            starts[i][t] = carry
            if carries:
                handed = carry if begun is None else [begun[i][t], carry]
                answer, carry = task(data, handed, rows, columns, *shared, **options)
            else:
                answer = task(data, rows, columns, *shared, **options)
            size = (rows.stop - rows.start, columns.stop - columns.start) if sizes is None else sizes(rows, columns)
            for name, (tail, dtype) in outputs.items():
                row[name][t] = da.from_delayed(answer[name], (*size, *tail), dtype=dtype)
        for name in outputs:
            pieces[name].append([row[name][t] for t in times])
    arrays = {
        name: da.concatenate([da.concatenate(row, axis=1) for row in rows], axis=0) for name, rows in pieces.items()
    }
    return arrays, starts
