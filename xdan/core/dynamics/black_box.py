"""A model that is no torch function: its step is a function of NumPy arrays, which may call any program."""

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
from ..keywords import constructor_checks_keywords
from ..pieces import Moment, OfFields, call_on
from ..spaces import StateSpace
from ..user_functions import in_transform
from .custom import CustomDynamics, State
from .guards import check_distances

_IDLE = 30  # seconds after which a helper process without work ends
_one_at_a_time = threading.RLock()


@constructor_checks_keywords
class NumpyDynamics(CustomDynamics, pure=True):
    """A user's model from a NumPy function: a program in Fortran, an emulator, or anything that steps an array.

    Torch cannot differentiate such a model. All methods that need no derivative of the model can use it. Other methods,
    and training through several cycles, are refused before they begin; messages name methods that work.

    Parameters
    ----------
    step : callable
        Advances a float64 array of states over one `timestep`, and returns an array of the same shape. If the model
        depends on time, a second argument t, a number, is the model time at the beginning. The function must treat each
        state separately and give the same answer at every call. If the model cannot go on, the function returns NaN:
        this trajectory is lost, and the others go on. The function never gets states that are not finite.
    state
        Fields of the state; see `CustomDynamics`. With several fields, functions map dicts of arrays to dicts.
    timestep : float
        Internal step in model time units.
    batched : bool
        Whether `step` and `rest` take many states at once, (B, *shape), or one state, (*shape).
    workers : int
        Number of calls of `step` that run at the same time. A batch is divided into as many parts, or each call gets
        one state. With 1, no two calls of such models run at the same time in one process, whatever the scheduler.
    executor : {"threads", "processes"}
        Where the workers are. Threads suit a function that waits for another program or releases Python's lock, and
        that may run several times at once. Processes suit all other functions: the function is sent to them, and they
        end after half a minute without work. A worker of dask with a nanny cannot start processes. There the calls run
        one after another, because dask's workers already run at the same time.
    name : str
        Name in stores. A store with this name is opened with `dynamics=`, because functions are not stored.
    spin_up_time : float, optional
        Model time after which a random start is on the attractor. By default 20 units and at least 400 steps; 0 for no
        spin-up. A model that is too expensive for a spin-up, or cannot start from noise, takes states of its climate
        instead: `climatology=` of the verbs, or `with_climatology`.
    units : str
        Units of the state.
    rest : callable, optional
        Turns standard normal noise into states for spin-ups, as NumPy arrays. By default the noise itself.
    distance : callable, optional
        Distances (n, N) between components of the flattened state, from component indices of shapes (n, 1) and (1, N).
        Localised methods need them.
    time_unit : numpy.timedelta64 or datetime.timedelta, optional
        Length of one unit of model time; None if time has no dimension.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If the state has no dims, a dim has no length or a name that records use, labels are not distinct, or a number
        is out of range.

    See Also
    --------
    CustomDynamics : a model from a torch function, which all methods can use.

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
        """Advance states of shape (..., *shape). A worker makes all steps of its states."""
        assert self._step is not None
        moments: list[Moment] = [()] * steps
        if not self.autonomous:
            moments = [(self._time_at(step),) for step in range(self.model_step, self.model_step + steps)]
        return self._through_numpy(self._step, x, self._part("step"), moments, self._spread)

    def advance_along(self, x: Tensor, directions: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Refuse: the model has no tangent linear model.

        Raises
        ------
        ValueError
        """
        raise self._no_derivative()

    def distances(self, sites: Tensor) -> Tensor | None:
        """Distances from some components to all components."""
        if self._distance is None:
            return super().distances(sites)
        size, label = int(np.prod(self.shape)), self._part("distance=")
        indices = sites.cpu().numpy()[:, None].copy(), np.arange(size)[None]
        apart = torch.from_numpy(np.array(self._distance(*indices), dtype=np.float64))  # type: ignore[arg-type]
        return check_distances(apart.to(sites.device), sites, size, label)

    def _of_fields(self, space: StateSpace, function: Callable[..., Any] | None, part: str) -> Any:
        """A function of flat arrays, from a function of dicts of fields."""
        shapes = {field.name: field.geometry.shape for field in space.fields}
        return None if function is None else OfFields(function, shapes)

    def _isolated(self, function: Any, x: Tensor, part: str) -> Tensor:
        """Call the step or `rest` for states of shape (..., *shape)."""
        return self._through_numpy(function, x, self._part(part), [()], _alone if part == "rest=" else self._spread)

    def _through_numpy(self, function: Any, x: Tensor, label: str, moments: list[Moment], spread: Any) -> Tensor:
        """Apply a NumPy function to states at some moments, in double precision on the CPU, and return tensors.

        Raises
        ------
        ValueError
            If torch records derivatives.
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
        """Apply a job to all states, by this model's workers."""
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
            # If a function cannot be sent, the last line of the queue's traceback says why.
            words = str(reason.__cause__).strip('\n "').split("\n")[-1:] if isinstance(reason, PicklingError) else []
            raise ValueError(
                f"{self._part('step')} does not run in processes ({[*words, *str(reason).splitlines()][0]}): expected "
                "a function that can be sent, without open files and locks, that returns, and memory for "
                f"workers={self.workers}; executor='threads' and workers=1 stay in this process"
            ) from reason


def _alone(job: Callable[[NDArray[np.float64]], Any], states: NDArray[np.float64]) -> Any:
    """Do a job in this process, never two at a time: programs share the process's folder and global variables."""
    with _one_at_a_time:
        return job(states)
