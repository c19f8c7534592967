"""The gradient of a window's loss, in one process or with the trajectories divided between several processes.

The products of a small network keep one core busy and gain little from threads. The trajectories of a batch are
independent of each other, so that processes can divide them.
"""

from __future__ import annotations

import copy
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import cloudpickle
import loky
import numpy as np
import torch
from torch import Tensor

from ..checks import warn
from ..dynamics import Dynamics
from ..methods import State, method_of
from ..networks import AnalysisNetwork
from ..observing import ObservingSystem, Operator
from .objectives import Objective, WindowGradient
from .rollout import Window

_WARM_UPS = 3  # number of passes before a recording, as torch advises
_TENSORS = ("truth", "observation", "forecast", "covariance", "clock")  # entries of a window, trajectories first


class Gradient(Protocol):
    """Gradient of a network's loss over a window that starts from a state."""

    def __call__(self, window: Window, state: State | None) -> WindowGradient:
        """Compute the gradient."""

    def close(self) -> None:
        """End helper processes."""


class OneProcess:
    """The gradient, computed in this process.

    Parameters
    ----------
    network : AnalysisNetwork
    dynamics : Dynamics
    observing : ObservingSystem
    objective : Objective
    """

    def __init__(
        self, network: AnalysisNetwork, dynamics: Dynamics, observing: ObservingSystem, objective: Objective
    ) -> None:
        self.network, self.dynamics, self.observing, self.objective = network, dynamics, observing, objective
        self.method = method_of(network)
        self.parameters = list(network.parameters())

    def __call__(self, window: Window, state: State | None) -> WindowGradient:
        """Gradient of the objective."""
        self.network.train()
        return self.objective.window_gradient(self.method, self.dynamics, self.observing, window, state)

    def close(self) -> None:
        """Nothing to end."""


class CudaGraph(OneProcess):
    """The gradient on a GPU, recorded once as a CUDA graph and then replayed.

    A window of a small network needs some thousand small kernels, whose launches take longer than they run. A replay
    launches all of them together. `OneProcess` computes the windows that start trajectories, those of a model or an
    observing system that depends on time, and those of a method that is not `recordable`. If something cannot be
    recorded, `OneProcess` computes all windows, with a warning; a user's model or loss may read a number back from the
    GPU, for example.

    A graph belongs to one shape of windows, and to weights that change in place. The result of a call is valid until
    the next call.

    Parameters
    ----------
    network, dynamics, observing, objective
        See `OneProcess`.
    """

    def __init__(
        self, network: AnalysisNetwork, dynamics: Dynamics, observing: ObservingSystem, objective: Objective
    ) -> None:
        super().__init__(network, dynamics, observing, objective)
        self._key: Any = None
        self._recording: _Recording | None = None
        self._refused = not dynamics.autonomous or observing.in_time or not self.method.recordable(dynamics)

    def __call__(self, window: Window, state: State | None) -> WindowGradient:
        """Replay the graph. The first window of a shape is recorded."""
        if state is None or self._refused:
            return super().__call__(window, state)
        key = (window.steps, _shapes(_tensors_of(window)), _shapes(state))
        if key != self._key:
            self._recording = None  # frees its memory for the next recording
            try:
                self._recording, self._key = _Recording(super().__call__, window, state), key
            except RuntimeError as reason:
                self._refused = True
                torch.cuda.synchronize()
                warn(
                    "training goes on without a CUDA graph, several times slower, as the gradient of a window cannot "
                    f"be recorded ({str(reason).splitlines()[0]}): expected a dynamics, an operator and a loss that "
                    "read no number back from the GPU",
                )
                return super().__call__(window, state)
        assert self._recording is not None
        return self._recording.replay(window, state)

    def close(self) -> None:
        """Free the graph and its memory."""
        self._recording = self._key = None


class _Recording:
    """A CUDA graph of a window's gradient, with the tensors that it reads and writes."""

    def __init__(self, gradient: Callable[[Window, State], WindowGradient], window: Window, state: State) -> None:
        self._tensors = {name: value.clone() for name, value in _tensors_of(window).items()}
        self._state = {name: value.clone() for name, value in state.items()}
        still = replace(window, **self._tensors)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # buffers that the first call makes exist before the recording
            for _ in range(_WARM_UPS):
                gradient(still, self._state)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # Another thread may make the next window at the same time.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._result = gradient(still, self._state)

    def replay(self, window: Window, state: State) -> WindowGradient:
        """The gradient of another window with equal shapes. The state at the window's end is a copy."""
        for name, value in _tensors_of(window).items():
            self._tensors[name].copy_(value)
        for name, value in state.items():
            self._state[name].copy_(value)
        self._graph.replay()
        end = {name: value.clone() for name, value in self._result.state.items()}
        return replace(self._result, state=end)


def _tensors_of(window: Window) -> dict[str, Any]:
    """The entries of a window, by name."""
    return {name: value for name in _TENSORS if (value := getattr(window, name)) is not None}


def _shapes(tensors: Mapping[str, Tensor]) -> tuple[Any, ...]:
    return tuple((name, tuple(value.shape), value.dtype) for name, value in sorted(tensors.items()))


def check_travels(
    network: AnalysisNetwork, dynamics: Dynamics, operator: Operator | None, objective: Objective
) -> None:
    """Refuse what cannot be sent to another process.

    Raises
    ------
    ValueError
    """
    travellers = {
        f"network {network.name!r}": network,
        f"dynamics {dynamics.label!r}": dynamics,
        "observation operator": operator,
        f"objective {objective.name!r}": objective,
    }
    for label, value in travellers.items():
        try:
            cloudpickle.dumps(value)  # helpers get this form
        except Exception as reason:
            raise ValueError(
                f"the {label} cannot be sent to the processes that share a batch ({reason}); pass processes=1, or make "
                "its functions free of open files, locks and modules that refuse"
            ) from None


class SeveralProcesses:
    """The gradient, with trajectories divided between this process and helpers. On the CPU, with one thread each.

    Helpers start with the first window. They keep nothing between windows, so that a run can be killed and resumed as
    with one process. Until `close`, torch has one thread in this process.

    Parameters
    ----------
    network, dynamics, observing, objective
        See `OneProcess`.
    processes : int
        Number of processes, including this one.

    Raises
    ------
    ValueError
        If the dynamics, the observation operator or the objective cannot be sent to another process.
    loky.process_executor.TerminatedWorkerError
        From a call, if a helper was killed.
    """

    def __init__(
        self,
        network: AnalysisNetwork,
        dynamics: Dynamics,
        observing: ObservingSystem,
        objective: Objective,
        processes: int,
    ) -> None:
        check_travels(network, dynamics, observing.operator, objective)
        self.here = OneProcess(network, dynamics, observing, objective)
        self.processes = processes
        self._helpers: Any = None
        self._threads = torch.get_num_threads()

    def __call__(self, window: Window, state: State | None) -> WindowGradient:
        """Divide the trajectories, and put the results together, always in the same order."""
        if self._helpers is None:
            self._start()
        batch = len(window.observation)
        edges = [batch * part // self.processes for part in range(self.processes + 1)]
        rows = [slice(start, stop) for start, stop in itertools.pairwise(edges) if stop > start]
        parameters = [p.detach().numpy() for p in self.here.parameters]
        jobs = [self._helpers.submit(_share, parameters, _pack(window, state, some)) for some in rows[1:]]
        shares = [self.here(*_cut(window, state, rows[0]))]
        shares += [_unpack(*job.result()) for job in jobs]
        weights = [len(share.square) / batch for share in shares]
        gradients = shares[0].gradients
        for total, *rest in zip(*(share.gradients for share in shares), strict=True):
            total.mul_(weights[0])
            for weight, gradient in zip(weights[1:], rest, strict=True):
                total.add_(gradient, alpha=weight)
        return WindowGradient(
            sum(weight * float(share.loss) for weight, share in zip(weights, shares, strict=True)),
            gradients,
            torch.cat([share.square for share in shares]),
            torch.cat([share.lost for share in shares]),
            {name: torch.cat([share.state[name] for share in shares]) for name in shares[0].state},
        )

    def _start(self) -> None:
        here = self.here
        self._helpers = loky.ProcessPoolExecutor(
            self.processes - 1,
            initializer=_prepare,
            initargs=(os.getpid(), copy.deepcopy(here.network), here.dynamics, here.observing, here.objective),
            env={"OMP_NUM_THREADS": "1"},
        )
        torch.set_num_threads(1)  # waiting threads would spin, and take the helpers' cores

    def close(self) -> None:
        """Stop the helpers, and restore torch's number of threads."""
        if self._helpers is None:
            return
        try:
            self._helpers.shutdown(wait=True, kill_workers=True)
        finally:
            self._helpers = None
            torch.set_num_threads(self._threads)


_helper: OneProcess | None = None
"""In a helper: the object whose gradients are computed."""


def _prepare(parent: int, *task: Any) -> None:
    """In a helper, once: keep the object whose gradients are computed, and end with the parent process."""
    global _helper
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the run decides when helpers end
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    _helper = OneProcess(*task)


def _end_with(parent: int) -> None:
    """End this helper if the parent process was killed; otherwise the helper would wait for ever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _share(parameters: list[np.ndarray], packed: tuple[Any, ...]) -> tuple[Any, ...]:
    """In a helper: the gradient of some trajectories, as arrays for `_unpack`."""
    assert _helper is not None
    with torch.no_grad():
        for parameter, value in zip(_helper.parameters, parameters, strict=True):
            parameter.copy_(torch.from_numpy(value))
    arrays, steps, start, state = packed
    tensors: dict[str, Any] = {"truth": None, **_tensors(arrays)}
    window = Window(**tensors, steps=steps, start=start)
    share = _helper(window, None if state is None else _tensors(state))
    return (
        float(share.loss),
        [gradient.numpy() for gradient in share.gradients],
        share.square.numpy(),
        share.lost.numpy(),
        {name: value.numpy() for name, value in share.state.items()},
    )


def _cut(window: Window, state: State | None, rows: slice) -> tuple[Window, State | None]:
    """A window of some of the trajectories, and the state that it starts from."""
    cut = replace(window, **{name: value[rows] for name, value in _tensors_of(window).items()})
    return cut, None if state is None else {name: value[rows] for name, value in state.items()}


def _pack(window: Window, state: State | None, rows: slice) -> tuple[Any, ...]:
    """A window and a state of some of the trajectories, as arrays for `_share`."""
    window, state = _cut(window, state, rows)
    start = None if state is None else {name: value.numpy() for name, value in state.items()}
    arrays = {name: value.numpy() for name, value in _tensors_of(window).items()}
    return arrays, window.steps, window.start, start


def _unpack(loss: float, gradients: Any, square: Any, lost: Any, state: Any) -> WindowGradient:
    """Gradient from the arrays of `_share`."""
    tensors = [torch.from_numpy(gradient) for gradient in gradients]
    return WindowGradient(loss, tensors, torch.from_numpy(square), torch.from_numpy(lost), _tensors(state))


def _tensors(arrays: dict[str, np.ndarray]) -> State:
    return {name: torch.from_numpy(value) for name, value in arrays.items()}
