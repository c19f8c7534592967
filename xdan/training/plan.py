"""The plan of a training. Its parts are built and checked before the values of a record are read."""

from __future__ import annotations

import math
import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import xarray as xr

from ..core.checks import shown
from ..core.derivative_checks import check_model, check_operator
from ..core.learning.gradient import check_travels
from ..core.networks import AnalysisNetwork, check_network, network_for, registered_name
from ..core.random import Purpose, uniform
from ..core.spaces import StateSpace
from ..network import Network
from .arguments import TrainingArguments
from .data import TrainingData, TrainingSource
from .record_source import RecordSource
from .twin_source import TwinSource

_NORMALISATION = ("state_mean", "state_std", "error_std")  # buffers that training sets
_LEAST_SHARE = 12  # least number of trajectories of a batch for each process
_BUILDING = threading.Lock()


@dataclass(frozen=True)
class TrainingPlan:
    """The parts of a training.

    Attributes
    ----------
    source : TrainingSource
    network : AnalysisNetwork
        Architecture. If a trained network is trained further, it has the weights of this network.
    trained : Network or None
        The network that is trained further.
    processes : int
        Number of processes that share the trajectories of a batch.
    seed : int
        Key of the first weights.
    """

    source: TrainingSource
    network: AnalysisNetwork
    trained: Network | None
    processes: int
    seed: int

    def module(self, data: TrainingData) -> AnalysisNetwork:
        """The network to train: a new one, normalised to the data, with weights drawn from the seed; or a trained one.

        Raises
        ------
        ValueError
            If weights or normalisation are not finite in single precision.
        """
        if self.trained is not None:
            return self.network
        with building(self.seed):  # a fresh module, so that the caller's is not changed
            module = self.network.made_anew()
        module.take_fixed_inputs(self.network)
        mean, std = data.moments
        module.normalise(mean, std, data.error_scale(module))
        _check_finite(module, self.network)
        return module


def plan(arguments: TrainingArguments, device: str = "cpu") -> TrainingPlan:
    """Build the parts of a training, and refuse arguments that cannot be trained with.

    Coordinates and attributes of a record are read, and a few states after all other checks.

    Parameters
    ----------
    arguments : TrainingArguments
    device : str
        Device of the training.

    Raises
    ------
    TypeError, ValueError
    """
    trained = arguments.network if isinstance(arguments.network, Network) else None
    processes = _processes(arguments.processes, arguments.batch, device)
    source = _source(arguments)
    dynamics = source.dynamics
    network = _network(arguments, dynamics.space)
    if trained is None:
        network.check_space(dynamics.space)
    else:
        network.check_state(dynamics.dims, dynamics.shape)
        trained.check(dynamics)
        _check_finite(network, trained)
    arguments.objective.check(network, source.contents)
    registered_name(network)  # a store must open as this network
    if trained is None:
        check_network(network, math.prod(dynamics.shape))
    if processes > 1:
        check_travels(network, dynamics, source.operator, arguments.objective)
    if arguments.objective.cycles_network:
        _check_differentiable(source, device)
    return TrainingPlan(source, network, trained, processes, arguments.seed)


def _network(arguments: TrainingArguments, space: StateSpace) -> AnalysisNetwork:
    """Module of the architecture, by name for a space; with the weights of a network that is trained further."""
    network = arguments.network
    with building():
        if isinstance(network, AnalysisNetwork):
            return network.made_for(space)
        if isinstance(network, Network):
            return network.module()
        assert isinstance(network, str)
        return network_for(space, network, {} if arguments.memory is None else {"memory": arguments.memory})


def _source(arguments: TrainingArguments) -> TrainingSource:
    sizes = {"window": arguments.window, "batch": arguments.batch, "seed": arguments.seed}
    teacher, objective = arguments.teacher, arguments.objective
    if not isinstance(arguments.source, xr.Dataset):
        return TwinSource.of(arguments.source, objective, teacher, trajectories=arguments.trajectories, **sizes)
    return RecordSource.of(
        arguments.source, arguments.words, objective, teacher, validation=arguments.validation, **sizes
    )


def _check_differentiable(source: TrainingSource, device: str) -> None:
    """Refuse a model or an observation operator whose derivative is missing or wrong.

    Raises
    ------
    ValueError
    """
    contents, operator = source.contents, source.operator
    through_the_model = contents.cycles > 1 and not contents.forecast
    if not through_the_model and operator is None:
        return
    if through_the_model:
        source.dynamics.require_derivatives(
            "training through windows of several cycles",
            "Imitate a baseline's run on a record, teacher=ds.dan.baseline('enkf-n', ...), or pass window=1: neither "
            "differentiates the model",
        )
    states = source.states(device)
    if through_the_model:
        check_model(source.dynamics, "backward", states, "windows of several cycles train through it: or pass window=1")
    check_operator(operator, "backward", states, "each analysis has its adjoint in it: or pass a matrix")


def _check_finite(module: AnalysisNetwork, network: AnalysisNetwork | Network) -> None:
    """Refuse weights and buffers that hold values which are not finite."""
    if names := not_finite(module):
        text = f"network={shown(network)}: {names} are not finite in single precision, expected numbers"
        buffers = {name for name, _ in module.named_buffers() if name.rpartition(".")[2] not in _NORMALISATION}
        if masks := sorted(buffers.intersection(names)):
            text += f"; a mask such as {masks[0]!r} stays out of the weights by register_buffer(..., persistent=False)"
        raise ValueError(text)


def not_finite(module: AnalysisNetwork) -> list[str]:
    """Names of weights and buffers that hold values which are not finite."""
    return sorted(name for name, value in module.state_dict().items() if not bool(value.isfinite().all()))


def _processes(processes: int | None, batch: int, device: str) -> int:
    """Number of processes that share a batch."""
    if torch.device(device).type != "cpu" or multiprocessing.current_process().daemon:
        if processes not in (None, 1):
            raise ValueError(
                f"processes={processes}: a batch is shared between processes on the CPU, and not within a daemonic "
                f"process such as a dask worker under a nanny; here the device is {device!r}, expected processes=1"
            )
        return 1
    most = torch.get_num_threads()
    return max(1, min(most, batch // _LEAST_SHARE)) if processes is None else min(processes, batch)


@contextmanager
def building(seed: int | None = None) -> Iterator[None]:
    """Make modules in single precision. The process's random state and default dtype are restored afterwards.

    With a seed, the weights follow from the seed. One thread at a time: random state and dtype belong to the process.
    """
    with _BUILDING, torch.random.fork_rng(devices=[]):
        if seed is not None:
            zero = torch.zeros(1, dtype=torch.int64)
            torch.manual_seed(int(uniform(seed, Purpose.NETWORK, zero, zero, 1) * 2**31))
        default = torch.get_default_dtype()
        if default != torch.float32:
            torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            if default != torch.float32:
                torch.set_default_dtype(default)
