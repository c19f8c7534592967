"""A model that is no torch function: a step of NumPy arrays, whatever it calls."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from functools import partial
from pickle import PicklingError
from typing import Any, ClassVar, Literal

import loky
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..checks import choice, integer, shown, switch
from ..pieces import Moment, OfFields, call_on
from ..spaces import StateSpace
from ..user_functions import in_transform
from .custom import CustomDynamics, State
from .guards import check_distances

_IDLE = 30  # seconds after which a helper process without work ends
_one_at_a_time = threading.RLock()


class NumpyDynamics(CustomDynamics, pure=True):
    """A user's own model from a NumPy function: a program in Fortran, an emulator, anything that steps an array.

    Torch cannot differentiate it. Every method that needs no derivative of the model takes it; the others, and training
    through several cycles, are refused before they begin, with the names of those that work.

    Parameters
    ----------
    step : callable
        The advance over one `timestep`, from a float64 array of states to one of the same shape. With a second
        argument, t, a number: the model time at its beginning, for a model that depends on it. It treats every state
        by itself and gives the same answer at every call. Where the model cannot go on, it returns NaN: that trajectory
        is lost, the others go on. States that are not finite are never handed to it.
    state
        As of `CustomDynamics`. The functions of a model of several fields take and give mappings of names to arrays.
    timestep : float
        Internal step in model time units.
    batched : bool
        Whether `step` and `rest` take many states at once, (B, *shape), or one, (*shape).
    workers : int
        How many calls of `step` run side by side: a batch is cut into as many parts, or its states are handed out one
        by one. With 1, no two calls of any such model run together in one process, whatever the scheduler.
    executor : {"threads", "processes"}
        Where the workers are. Threads suit a function that waits for another program, or leaves Python's lock free, and
        may run several times at once. Processes suit all others; their function is sent to them, and they end after
        half a minute without work. A worker of dask under a nanny may have no processes of its own: there calls come
        one at a time, as dask's workers run side by side already.
    name : str
        Written into stores. A store that names it is opened with `dynamics=`, as functions are not stored.
    spin_up_time : float, optional
        Model time after which a random start lies on the attractor; by default 20 units and at least 400 steps. 0 is
        none. A model that costs too much for that, or does not spin up from noise, takes states of its climate instead:
        `climatology=` of the verbs, or `with_climatology`.
    units : str
        Units of the state.
    rest : callable, optional
        From standard normal noise to states to spin up from, NumPy arrays too.
    distance : callable, optional
        From component indices of shapes (n, 1) and (1, N) of the flattened state to their distances, (n, N);
        localised methods need it.
    time_unit : numpy.timedelta64 or datetime.timedelta, optional
        How long one unit of model time lasts; None where time has no dimension.

    Raises
    ------
    TypeError
        For an argument of another type.
    ValueError
        For a state without dims, a dim without length or with a name that records need, labels that are not distinct,
        or a number out of range.

    See Also
    --------
    CustomDynamics : a model from a torch function, which every method takes.

    Examples
    --------
    >>> def decay(x):  # one state
    ...     return 0.9 * x
    >>> model = NumpyDynamics(decay, state={"x": 3}, timestep=0.1, spin_up_time=0.0, batched=False)
    >>> model.advance(torch.ones(2, 3, dtype=torch.float64), 2)[0]
    tensor([0.8100, 0.8100, 0.8100], dtype=torch.float64)
    """

    name = "numpy"
    has_derivatives: ClassVar[bool] = False
    _vetted = False

    def __init__(
        self,
        step: Callable[[Any], Any],
        *,
        state: State,
        timestep: float,
        batched: bool = True,
        workers: int = 1,
        executor: Literal["threads", "processes"] = "threads",
        name: str = "numpy",
        spin_up_time: float | None = None,
        units: str = "1",
        rest: Callable[[Any], Any] | None = None,
        distance: Callable[[NDArray[np.int64], NDArray[np.int64]], Any] | None = None,
        time_unit: Any = None,
    ) -> None:
        for label, function in {"step": step, "rest": rest, "distance": distance}.items():
            if not callable(function) and not (function is None and label != "step"):
                raise TypeError(f"{label}={shown(function)}: expected a NumPy function")
        self.batched, self.workers = switch("batched", batched), integer("workers", workers, least=1)
        self.executor = choice("executor", executor, ("threads", "processes"))
        super().__init__(
            step=step,
            state=state,
            timestep=timestep,
            name=name,
            spin_up_time=spin_up_time,
            units=units,
            rest=rest,
            distance=distance,  # type: ignore[arg-type]
            time_unit=time_unit,
        )

    def advance(self, x: Tensor, steps: int) -> Tensor:
        """Advance states of shape (..., *shape); a worker makes all steps of its states."""
        assert self._step is not None
        moments: list[Moment] = [()] * steps
        if not self.autonomous:
            moments = [(self._time_at(step),) for step in range(self.model_step, self.model_step + steps)]
        return self._through_numpy(self._step, x, self._part("step"), moments, self._spread)

    def advance_along(self, x: Tensor, directions: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Refuse: there is no tangent linear model.

        Raises
        ------
        ValueError
        """
        raise self._no_derivative()

    def distances(self, sites: Tensor) -> Tensor | None:
        """Distances from some components to all."""
        if self._distance is None:
            return super().distances(sites)
        size, label = int(np.prod(self.shape)), self._part("distance=")
        indices = sites.cpu().numpy()[:, None].copy(), np.arange(size)[None]
        apart = torch.from_numpy(np.array(self._distance(*indices), dtype=np.float64))  # type: ignore[arg-type]
        return check_distances(apart.to(sites.device), sites, size, label)

    def _of_fields(self, space: StateSpace, function: Callable[..., Any] | None, part: str) -> Any:
        """A function of flat arrays, from one of mappings of fields."""
        shapes = {field.name: field.geometry.shape for field in space.fields}
        return None if function is None else OfFields(function, shapes)

    def _isolated(self, function: Any, x: Tensor, part: str) -> Tensor:
        """Call the step or the rest, for states of shape (..., *shape)."""
        return self._through_numpy(function, x, self._part(part), [()], _alone if part == "rest=" else self._spread)

    def _through_numpy(self, function: Any, x: Tensor, label: str, moments: list[Moment], spread: Any) -> Tensor:
        """Apply a NumPy function to states at some moments, in double precision on the CPU, and bring them back.

        Raises
        ------
        ValueError
            Where torch records derivatives.
        """
        if in_transform(x) or (x.requires_grad and torch.is_grad_enabled()):
            raise self._no_derivative()
        if not x.numel():
            return x.clone()
        states = x.detach().reshape(-1, *self.shape).to("cpu", torch.float64).numpy()
        job = partial(call_on, function, moments=moments, batched=self.batched, label=label)
        return torch.from_numpy(spread(job, states)).to(x).reshape(x.shape)

    def _no_derivative(self) -> ValueError:
        return ValueError(
            f"no derivative passes through the dynamics {self.label!r}, as its step is a function of NumPy arrays: "
            "expected a torch function, as xdan.CustomDynamics takes; or take methods that need no derivative of the "
            "model, such as 'enkf-n', and call the model under torch.no_grad()"
        )

    def _spread(self, job: Callable[[NDArray[np.float64]], Any], states: NDArray[np.float64]) -> Any:
        """Do a job for all states, by this model's workers."""
        parts = min(len(states), self.workers) if self.batched else len(states)
        nested = self.executor == "processes" and multiprocessing.current_process().daemon
        if min(parts, self.workers) < 2 or nested:
            return _alone(job, states)
        pieces = np.array_split(states, parts)
        if self.executor == "threads":
            with ThreadPoolExecutor(min(parts, self.workers)) as threads:
                return np.concatenate(list(threads.map(job, pieces)))
        processes = loky.get_reusable_executor(self.workers, timeout=_IDLE, env={"OMP_NUM_THREADS": "1"})
        try:
            return np.concatenate(list(processes.map(job, pieces)))
        except (BrokenExecutor, PicklingError) as reason:
            # Of a function that cannot be sent, the last line of the queue's traceback says why.
            words = str(reason.__cause__).strip('\n "').split("\n")[-1:] if isinstance(reason, PicklingError) else []
            raise ValueError(
                f"{self._part('step')} does not run in processes ({[*words, *str(reason).splitlines()][0]}): expected "
                "a function that can be sent, without open files and locks, that returns, and memory for "
                f"workers={self.workers}; executor='threads' and workers=1 stay in this process"
            ) from reason


def _alone(job: Callable[[NDArray[np.float64]], Any], states: NDArray[np.float64]) -> Any:
    """Do a job here, no two at a time: a program's working folder and global variables are the whole process's."""
    with _one_at_a_time:
        return job(states)
