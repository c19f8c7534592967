"""The gradient of a window's loss: in this process, or with the trajectories shared between several.

The products of a small network keep one core busy and gain little from threads; the trajectories of a batch are
independent of each other.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import signal
import threading
import time
from dataclasses import dataclass, replace
from typing import Any, Protocol

import cloudpickle
import loky
import numpy as np
import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..methods import DataAssimilationNetwork, State
from ..networks import AnalysisNetwork, LinearInZeta
from ..observing import ObservingSystem
from .imitation import covariance_errors
from .objectives import OBJECTIVES
from .rollout import Window, roll_out

_TENSORS = ("truth", "observation", "forecast", "covariance")  # of a window
_CAP = 4.0  # bound on the gradient that cycles pass back, in units of what one cycle adds


@dataclass(frozen=True)
class WindowGradient:
    """What a window gave.

    Attributes
    ----------
    loss : float
        Mean over trajectories and cycles.
    gradients : list of Tensor
        Of the mean, for every parameter in turn.
    square : Tensor, shape (B, T)
        Mean square analysis error; without the truth, mean square innovation, NaN where nothing is observed; where a
        covariance is imitated, that loss.
    lost : Tensor of bool, shape (B, T)
        Where a trajectory was restarted.
    state : dict of Tensor
        Analysis state at the window's end.
    """

    loss: float
    gradients: list[Tensor]
    square: Tensor
    lost: Tensor
    state: State


class Gradient(Protocol):
    """Gradient of a network's loss over a window that starts from a state."""

    def __call__(self, window: Window, state: State | None) -> WindowGradient:
        """Compute it."""

    def close(self) -> None:
        """Give processes back."""


class OneProcess:
    """The gradient, computed here.

    Parameters
    ----------
    network : AnalysisNetwork
    dynamics : Dynamics
    observing : ObservingSystem
    objective : str
        A key of `OBJECTIVES`.
    """

    def __init__(
        self, network: AnalysisNetwork, dynamics: Dynamics, observing: ObservingSystem, objective: str
    ) -> None:
        self.network, self.dynamics, self.observing, self.objective = network, dynamics, observing, objective
        self.method = DataAssimilationNetwork.of(network)
        self.parameters = list(network.parameters())

    def __call__(self, window: Window, state: State | None) -> WindowGradient:
        """Through the cycles and back."""
        self.network.train()
        batch, cycles = window.observation.shape[:2]
        objective = OBJECTIVES[self.objective]
        if objective.loss is None:
            return self._imitate(window, state)
        size = math.prod(self.dynamics.shape) if objective.truth else window.observation.shape[-1]
        # One cycle's own share of an RMSE's gradient has the norm 1 / (batch * cycles * sqrt(sites)).
        unit = float(self.network.error_std) ** objective.power
        cap = _CAP * unit / (batch * cycles * math.sqrt(size))
        with torch.enable_grad():
            rollout = roll_out(self.method, self.dynamics, self.observing, window, state, cap, objective.divergence)
            # The first analysis of a record is not the network's.
            loss = objective.loss(rollout.since(1 if state is None and cycles > 1 else 0)).mean()
            if loss.requires_grad:
                found = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
            else:  # a window of one cycle that starts a record: nothing in it is the network's
                found = tuple(torch.zeros_like(parameter) for parameter in self.parameters)
        with torch.no_grad():
            if window.truth is not None:
                square = (rollout.analysis - window.truth).square().mean(-1)
            else:
                square = (self.observing.observe(rollout.forecast) - window.observation).square().nanmean(-1)
        return WindowGradient(float(loss.detach()), list(found), square.detach(), rollout.lost, rollout.state)

    def _imitate(self, window: Window, state: State | None) -> WindowGradient:
        """Of a teacher's covariance."""
        assert isinstance(self.network, LinearInZeta)
        with torch.enable_grad():
            errors, after = covariance_errors(self.network, window, state)
            loss = errors.mean()
            found = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
        errors = errors.detach()
        return WindowGradient(float(loss.detach()), list(found), errors, torch.zeros_like(errors).bool(), after)

    def close(self) -> None:
        """Nothing to give back."""


class Shards:
    """The gradient, its trajectories shared between this process and helpers; on the CPU, one thread each.

    Helpers start with the first window and keep nothing between windows, so a run can be killed and resumed as with
    one process. The number of torch's threads in this process is 1 until `close`.

    Parameters
    ----------
    network, dynamics, observing, objective
        As for `OneProcess`.
    processes : int
        This one included.

    Raises
    ------
    ValueError
        If the dynamics or the observation operator cannot be sent to another process.
    loky.process_executor.TerminatedWorkerError
        From a call, when a helper was killed.
    """

    def __init__(
        self, network: AnalysisNetwork, dynamics: Dynamics, observing: ObservingSystem, objective: str, processes: int
    ) -> None:
        for what, value in ((f"dynamics {dynamics.name!r}", dynamics), ("observation operator", observing)):
            try:
                cloudpickle.dumps(value)  # as it will travel
            except Exception as reason:
                raise ValueError(
                    f"the {what} cannot be sent to the processes that share a batch ({reason}); pass processes=1, or "
                    "make its functions free of open files, locks and modules that refuse"
                ) from None
        self.here = OneProcess(network, dynamics, observing, objective)
        self.processes = processes
        self._helpers: Any = None
        self._threads = torch.get_num_threads()

    def __call__(self, window: Window, state: State | None) -> WindowGradient:
        """Split the trajectories, and put together what comes back, always in the same order."""
        if self._helpers is None:
            self._start()
        batch = len(window.observation)
        edges = [batch * part // self.processes for part in range(self.processes + 1)]
        parts = [slice(start, stop) for start, stop in itertools.pairwise(edges) if stop > start]
        parameters = [p.detach().numpy() for p in self.here.parameters]
        jobs = [self._helpers.submit(_share, parameters, _pack(window, state, part)) for part in parts[1:]]
        found = [self.here(*_take(window, state, parts[0]))]
        found += [_unpack(*job.result()) for job in jobs]
        weights = [len(part.square) / batch for part in found]
        gradients = found[0].gradients
        for total, *rest in zip(*(part.gradients for part in found), strict=True):
            total.mul_(weights[0])
            for weight, gradient in zip(weights[1:], rest, strict=True):
                total.add_(gradient, alpha=weight)
        return WindowGradient(
            sum(weight * part.loss for weight, part in zip(weights, found, strict=True)),
            gradients,
            torch.cat([part.square for part in found]),
            torch.cat([part.lost for part in found]),
            {name: torch.cat([part.state[name] for part in found]) for name in found[0].state},
        )

    def _start(self) -> None:
        here = self.here
        self._helpers = loky.ProcessPoolExecutor(
            self.processes - 1,
            initializer=_prepare,
            initargs=(os.getpid(), copy.deepcopy(here.network), here.dynamics, here.observing, here.objective),
            env={"OMP_NUM_THREADS": "1"},
        )
        torch.set_num_threads(1)  # threads that wait for work spin, and would take the helpers' cores

    def close(self) -> None:
        """Stop the helpers, and give torch its threads back."""
        if self._helpers is None:
            return
        try:
            self._helpers.shutdown(wait=True, kill_workers=True)
        finally:
            self._helpers = None
            torch.set_num_threads(self._threads)


_helper: OneProcess | None = None
"""In a helper: what it computes gradients of."""


def _prepare(parent: int, *about: Any) -> None:
    global _helper
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the run decides when helpers end
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    _helper = OneProcess(*about)


def _end_with(parent: int) -> None:
    """Leave when the run was killed: its helpers would wait for ever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _share(parameters: list[np.ndarray], packed: tuple[Any, ...]) -> tuple[Any, ...]:
    assert _helper is not None
    with torch.no_grad():
        for parameter, value in zip(_helper.parameters, parameters, strict=True):
            parameter.copy_(torch.from_numpy(value))
    own, steps, start, state = packed
    tensors = {name: torch.from_numpy(value) for name, value in own.items()}
    window = Window(
        tensors.get("truth"),
        tensors["observation"],
        steps,
        start=start,
        forecast=tensors.get("forecast"),
        covariance=tensors.get("covariance"),
    )
    found = _helper(window, None if state is None else _tensors(state))
    return (
        found.loss,
        [gradient.numpy() for gradient in found.gradients],
        found.square.numpy(),
        found.lost.numpy(),
        {name: value.numpy() for name, value in found.state.items()},
    )


def _take(window: Window, state: State | None, part: slice) -> tuple[Window, State | None]:
    """Some of the trajectories."""
    own = {name: value for name in _TENSORS if (value := getattr(window, name)) is not None}
    cut = replace(window, **{name: value[part] for name, value in own.items()})
    return cut, None if state is None else {name: value[part] for name, value in state.items()}


def _pack(window: Window, state: State | None, part: slice) -> tuple[Any, ...]:
    window, state = _take(window, state, part)
    arrays = None if state is None else {name: value.numpy() for name, value in state.items()}
    own = {name: value.numpy() for name in _TENSORS if (value := getattr(window, name)) is not None}
    return own, window.steps, window.start, arrays


def _unpack(loss: float, gradients: Any, square: Any, lost: Any, state: Any) -> WindowGradient:
    tensors = [torch.from_numpy(gradient) for gradient in gradients]
    return WindowGradient(loss, tensors, torch.from_numpy(square), torch.from_numpy(lost), _tensors(state))


def _tensors(arrays: dict[str, np.ndarray]) -> State:
    return {name: torch.from_numpy(value) for name, value in arrays.items()}
