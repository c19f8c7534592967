"""Schemes of a sweep: a classical method, a trained network, or a network to train, each with its parameters."""

from __future__ import annotations

import json
import multiprocessing
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import xarray as xr

from ..assimilation.baselines import baseline
from ..assimilation.cycling import cycle
from ..core.checks import shown
from ..core.dynamics import dynamics_to_json
from ..core.interruption import TrainingInterrupted
from ..core.learning import Optimiser, objective_by_name
from ..core.methods import accepted_parameters, method_by_name
from ..core.networks import AnalysisNetwork, network_for, network_parameters
from ..core.observing import Sites
from ..core.twin import TwinExperiment
from ..network import Network
from ..records.location import StoreLike
from ..records.schema import to_json
from ..training.arguments import LENGTHS, TrainingArguments
from ..training.fitting import fit
from ..training.plan import building, plan

_OPTIMISER = tuple(parameter.name for parameter in fields(Optimiser))
# Parameters of training that a scheme may set. The cell sets the others, or an endless twin does not need them.
TRAINING = frozenset(
    (
        *("objective", "window", "batch", "trajectories", "validate_every", "patience", "device", "processes"),
        *LENGTHS,
        *_OPTIMISER,
    )
)


def plain(value: Any) -> Any:
    """Turn a value into JSON that identifies the value."""
    if isinstance(value, Sites):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return np.asarray(value).tolist()
    return value.item() if isinstance(value, np.generic) else value


def check_plain(label: str, value: Any) -> None:
    """Refuse a value that JSON cannot identify.

    Raises
    ------
    TypeError
        If a value is no number, name, bool or Sites, and no list or mapping of these.
    """
    try:
        to_json(plain(value))
    except (TypeError, ValueError, RecursionError):
        raise TypeError(
            f"{label}={shown(value)}: expected a number, a name, a switch, Sites, or a list of them"
        ) from None


@dataclass(frozen=True, kw_only=True)
class Scheme(ABC):
    """The method or network of an experiment. It is small and plain, so that it can be sent to a worker.

    Attributes
    ----------
    trains : bool
        Whether there is a network to train.
    parameters : mapping
        Parameters of the method, or of the network and its training.
    trained_on : mapping
        Parameters of the twin experiment that differ in training from those of the test.
    """

    trains: ClassVar[bool] = False

    parameters: Mapping[str, Any]
    trained_on: Mapping[str, Any] = field(default_factory=dict)

    @property
    @abstractmethod
    def accepts(self) -> frozenset[str]:
        """Names of the parameters that the scheme takes."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON that identifies the scheme."""

    @abstractmethod
    def check(self, experiment: TwinExperiment, seed: int) -> None:
        """Refuse parameters that are impossible for training on this experiment.

        Raises
        ------
        TypeError, ValueError
        """

    @abstractmethod
    def run(self, record: xr.Dataset, network: Network | None, **options: Any) -> xr.Dataset:
        """Cycle a record; the options are those of `cycle`."""

    def trained_network(self, networks: Mapping[str, Any]) -> Any | None:
        """Pick the scheme's network, by digest, from the trained networks of the sweep; None for other schemes."""
        return None

    def train(self, experiment: TwinExperiment, seed: int, checkpoint: StoreLike | None) -> Network:
        """Train the network; only a scheme with `trains` can."""
        raise NotImplementedError(f"{type(self).__name__} trains nothing")

    def has_made(self, network: Network, experiment: TwinExperiment, seed: int) -> bool:
        """Whether, by its description, a network comes from this training and the training is complete."""
        return False


@dataclass(frozen=True, kw_only=True)
class BaselineScheme(Scheme):
    """A classical method, by its name."""

    method: str

    @property
    def accepts(self) -> frozenset[str]:
        """Names of the parameters that the scheme takes."""
        return frozenset(accepted_parameters(self.method) | {"tune_on", "candidates"})

    def describe(self) -> dict[str, Any]:
        """JSON that identifies the scheme."""
        return {"baseline": self.method, **plain(self.parameters)}

    def check(self, experiment: TwinExperiment, seed: int) -> None:
        """Refuse parameters that the method does not take, and a model that it cannot work with."""
        method_by_name(self.method, **self.parameters).check_dynamics(experiment.dynamics)

    def run(self, record: xr.Dataset, network: Network | None, **options: Any) -> xr.Dataset:
        """Tune the method on the record, and cycle it."""
        return baseline(record, self.method, **self.parameters, **options)


@dataclass(frozen=True, kw_only=True)
class TrainedScheme(Scheme):
    """A trained network. The network is sent to workers apart from the scheme, which holds the network's digest."""

    digest: str

    @property
    def accepts(self) -> frozenset[str]:
        """No parameters."""
        return frozenset()

    def describe(self) -> dict[str, Any]:
        """JSON that identifies the scheme."""
        return {"network": {"network": self.digest}}

    def check(self, experiment: TwinExperiment, seed: int) -> None:
        """Check nothing: `cycle` checks whether the network fits a record."""

    def run(self, record: xr.Dataset, network: Network | None, **options: Any) -> xr.Dataset:
        """Cycle the network."""
        assert network is not None
        return cycle(record, network, **options)

    def trained_network(self, networks: Mapping[str, Any]) -> Any | None:
        """The network with the scheme's digest."""
        return networks[self.digest]


@dataclass(frozen=True, kw_only=True)
class TrainingScheme(Scheme):
    """A network to train: a registered name, or an architecture without its weights.

    Attributes
    ----------
    name : str
    kind : type of AnalysisNetwork, optional
        Class of the architecture. By default the class with the registered name.
    architecture : mapping
        Parameters of an architecture. `parameters` replace them.
    """

    trains: ClassVar[bool] = True

    name: str
    kind: type[AnalysisNetwork] | None = None
    architecture: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accepts(self) -> frozenset[str]:
        """Names of the parameters of the network and of its training."""
        return TRAINING.union(network_parameters(self.name) if self.kind is None else self.architecture)

    def describe(self) -> dict[str, Any]:
        """JSON that identifies the scheme."""
        architecture = {"name": self.name, "parameters": dict(self.architecture)}
        return {"network": self.name if self.kind is None else architecture, **plain(self.parameters)}

    def check(self, experiment: TwinExperiment, seed: int) -> None:
        """Refuse a network or a training that is impossible."""
        plan(self._training_arguments(experiment, seed, None))

    def run(self, record: xr.Dataset, network: Network | None, **options: Any) -> xr.Dataset:
        """Cycle the network that was trained."""
        assert network is not None
        return cycle(record, network, device=self.parameters.get("device", "auto"), **options)

    def train(self, experiment: TwinExperiment, seed: int, checkpoint: StoreLike | None) -> Network:
        """Train the network on an endless twin.

        Raises
        ------
        TrainingInterrupted
            At Ctrl-C, once the checkpoint is saved: a network that is not done is no result.
        """
        network, interruption = fit(self._training_arguments(experiment, seed, checkpoint))
        if interruption is not None:
            raise TrainingInterrupted(interruption, network)
        return network

    def has_made(self, network: Network, experiment: TwinExperiment, seed: int) -> bool:
        """Whether, by its description, a network comes from this training and the training is complete."""
        training = network.description.get("training", {})
        architecture = self._network(experiment)
        settings = {name: plain(value) for name, value in self._settings().items() if name in training}
        if "objective" in settings:
            settings["objective"] = objective_by_name(settings["objective"]).to_json()
        if settings.get("steps", 0) is None:
            del settings["steps"]  # the description has the default, or the number that epochs gave
        described = {name: training[name] for name in settings} | {
            "architecture": training.get("architecture"),
            "seed": training.get("seed"),
            "dynamics": training.get("data", {}).get("endless"),
            "interrupted": training.get("interrupted", False),
        }
        expected = settings | {
            "architecture": {"name": architecture.name, **architecture.config()},
            "seed": seed,
            "dynamics": dynamics_to_json(experiment.dynamics),
            "interrupted": False,
        }
        return bool(json.loads(to_json(described)) == json.loads(to_json(expected)))

    def _settings(self) -> dict[str, Any]:
        """Parameters of training that are set."""
        return {name: value for name, value in self.parameters.items() if name in TRAINING}

    def _network(self, experiment: TwinExperiment) -> AnalysisNetwork:
        """Architecture with the parameters of this scheme."""
        sizes = {name: value for name, value in self.parameters.items() if name not in TRAINING}
        with building():
            if self.kind is None:
                return network_for(experiment.dynamics.space, self.name, sizes)
            return self.kind(**{**self.architecture, **sizes}).made_for(experiment.dynamics.space)

    def _training_arguments(
        self, experiment: TwinExperiment, seed: int, checkpoint: StoreLike | None
    ) -> TrainingArguments:
        """Arguments of training, as `train` takes them."""
        settings = self._settings()
        rates = {name: settings.pop(name) for name in _OPTIMISER if name in settings}
        if threading.current_thread() is not threading.main_thread() or multiprocessing.parent_process():
            settings.setdefault("processes", 1)  # the scheduler runs other processes already
        return TrainingArguments(
            source=experiment,
            network=self._network(experiment),
            optimiser=Optimiser(**rates),
            **settings,
            seed=seed,
            checkpoint=checkpoint,
            progress=False,
        )


def scheme_from(label: str, description: Mapping[str, Any]) -> Scheme:
    """Make a scheme from a caller's description.

    Raises
    ------
    TypeError
        If the description is no mapping, or one of its values has no plain form.
    ValueError
        If the description has both or neither of 'baseline' and 'network', or a parameter that the scheme lacks.
    """
    if not isinstance(description, Mapping):
        raise TypeError(
            f"scheme {label!r} is {shown(description)}: expected a mapping such as {{'baseline': 'enkf-n'}}"
        )
    kinds = [kind for kind in ("baseline", "network") if kind in description]
    if len(kinds) != 1:
        raise ValueError(
            f"scheme {label!r} has the keys {sorted(description)}: expected 'baseline' or 'network' among them"
        )
    (kind,) = kinds
    parameters = {key: value for key, value in description.items() if key not in (kind, "trained_on")}
    trained_on = description.get("trained_on", {})
    if not isinstance(trained_on, Mapping):
        raise TypeError(f"scheme {label!r}: trained_on={shown(trained_on)}: expected a mapping of parameters")
    scheme = _scheme(label, kind, description[kind], {"parameters": parameters, "trained_on": dict(trained_on)})
    accepts = scheme.accepts
    if unknown := set(parameters) - accepts:
        raise ValueError(f"scheme {label!r} takes no {sorted(unknown)}; it takes {sorted(accepts)}")
    for name, value in {**parameters, **trained_on}.items():
        check_plain(f"scheme {label!r}: {name}", value)
    if "trained_on" in description and not scheme.trains:
        raise ValueError(
            f"scheme {label!r} trains nothing: expected no trained_on=, which goes with a network to train"
        )
    return scheme


def _scheme(label: str, kind: str, value: Any, options: Mapping[str, Any]) -> Scheme:
    if kind == "baseline":
        if not isinstance(value, str):
            raise TypeError(f"scheme {label!r}: baseline={shown(value)}: expected the name of a method")
        return BaselineScheme(method=value, **options)
    if isinstance(value, Network):
        return TrainedScheme(digest=value.digest, **options)
    if isinstance(value, AnalysisNetwork):
        if not value.follows_from_config:
            raise TypeError(
                f"scheme {label!r}: network={type(value).__name__} holds a torch module, which no sweep can make anew "
                "for each cell: expected a class with @xdan.register_network, or a trained Network"
            )
        return TrainingScheme(name=value.name, kind=type(value), architecture=value.config(), **options)
    if isinstance(value, str):
        return TrainingScheme(name=value, **options)
    raise TypeError(
        f"scheme {label!r}: network={shown(value)}: expected a registered name, an architecture or a Network; a torch "
        "module goes in once it is trained, or as a class with @xdan.register_network"
    )
