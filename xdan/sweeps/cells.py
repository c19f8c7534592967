"""One experiment of a sweep: a scheme, trained where it is a network, cycled over a test record and scored."""

from __future__ import annotations

import inspect
import json
import multiprocessing
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..assimilation.baselines import baseline
from ..assimilation.cycling import cycle
from ..assimilation.scoring import score
from ..assimilation.twins import twin
from ..core.checks import shown
from ..core.dynamics import Dynamics, dynamics_to_json
from ..core.learning import Optimiser, objective_by_name
from ..core.methods import accepted_parameters, method_by_name
from ..core.networks import AnalysisNetwork, network_by_name, network_parameters
from ..core.observing import Sites
from ..core.twin import TwinExperiment
from ..network import Network
from ..records.location import StoreLike
from ..records.schema import to_json
from ..records.store import digest
from ..training.arguments import TrainingArguments
from ..training.fitting import fit, train
from ..training.plan import building, plan

TEST_SEEDS = 1_000_000  # test records are keyed apart from training
TWIN = ("interval", "observe", "error_std")
_OPTIMISER = frozenset(entry.name for entry in fields(Optimiser))
_TRAINING = (frozenset(inspect.signature(train).parameters) | _OPTIMISER) - {
    # Given by the cell, or of no use to an endless twin.
    *("source", "network", "memory", "seed", "checkpoint", "progress", "teacher", "validation", "optimiser", "words"),
}
SCORES = {
    "rmse": "analysis RMSE",
    "rmse_standard_error": "standard error of the RMSE over trajectories",
    "forecast_rmse": "forecast RMSE",
    "spread": "standard deviation of the analysis",
    "crps": "continuous ranked probability score of the analysis",
    "innovation_variance": "variance of observation minus forecast",
    "diverged": "trajectories that diverged",
    "validation_rmse": "RMSE on the trajectories that training kept for validation",
    "training_seconds": "time spent training",
    "seconds": "time spent cycling",
    "failed": "1 where the experiment ended in an error",
}


def plain(value: Any) -> Any:
    """JSON that says which value this is."""
    if isinstance(value, Sites):
        return value.to_json()
    if isinstance(value, Architecture):
        return {"name": value.kind.name, "parameters": dict(value.parameters)}
    if isinstance(value, Trained):
        return {"network": value.digest}
    if isinstance(value, Mapping):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return np.asarray(value).tolist()
    return value.item() if isinstance(value, np.generic) else value


def check_plain(label: str, value: Any) -> None:
    """Refuse what has no JSON to be known by.

    Raises
    ------
    TypeError
        For values other than numbers, names, switches, Sites, and lists and mappings of them.
    """
    try:
        to_json(plain(value))
    except (TypeError, ValueError, RecursionError):
        raise TypeError(
            f"{label}={shown(value)}: expected a number, a name, a switch, Sites, or a list of them"
        ) from None


@dataclass(frozen=True)
class Architecture:
    """What a network is made from, without its weights."""

    kind: type[AnalysisNetwork]
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """Stands for a trained network, which travels by itself."""

    digest: str


def known_by(dynamics: Dynamics) -> dict[str, Any]:
    """JSON that says which dynamics this is: its name, its parameters, and where a step takes a state."""
    return {**dynamics_to_json(dynamics), "step": digest(dynamics.fingerprint().numpy()), "units": dynamics.units}


@dataclass(frozen=True)
class Scheme:
    """A classical method or a network, its parameters, and the names of all that it takes.

    Attributes
    ----------
    kind : {"baseline", "network"}
    what : str, Architecture or Trained
    parameters : mapping
    accepts : frozenset of str
    trained_on : mapping
        Parameters of the twin that training has instead of the test's.
    """

    kind: str
    what: Any
    parameters: Mapping[str, Any]
    accepts: frozenset[str]
    trained_on: Mapping[str, Any]

    @classmethod
    def of(cls, label: str, given: Mapping[str, Any]) -> Scheme:
        """Understand what a caller gave.

        Raises
        ------
        TypeError
            If it is no mapping, or a value of it has no plain form.
        ValueError
            If it names both or none of the two kinds, or a parameter that it does not take.
        """
        if not isinstance(given, Mapping):
            raise TypeError(f"scheme {label!r} is {shown(given)}: expected a mapping such as {{'baseline': 'enkf-n'}}")
        kinds = [kind for kind in ("baseline", "network") if kind in given]
        if len(kinds) != 1:
            raise ValueError(
                f"scheme {label!r} has the keys {sorted(given)}: expected 'baseline' or 'network' among them"
            )
        (kind,), what = kinds, given[kinds[0]]
        parameters = {key: value for key, value in given.items() if key not in (kind, "trained_on")}
        trained_on = given.get("trained_on", {})
        if not isinstance(trained_on, Mapping):
            raise TypeError(f"scheme {label!r}: trained_on={shown(trained_on)}: expected a mapping of parameters")
        if kind == "baseline":
            if not isinstance(what, str):
                raise TypeError(f"scheme {label!r}: baseline={shown(what)}: expected the name of a method")
            accepts = frozenset(accepted_parameters(what) | {"tune_on", "candidates"})
        elif isinstance(what, Network):
            what, accepts = Trained(what.digest), frozenset()
        elif isinstance(what, AnalysisNetwork):
            what = Architecture(type(what), what.config())
            accepts = frozenset(_TRAINING | set(what.parameters))
        elif isinstance(what, str):
            accepts = frozenset(_TRAINING | network_parameters(what))
        else:
            raise TypeError(
                f"scheme {label!r}: network={shown(what)}: expected a registered name, an architecture or a Network"
            )
        for name, value in {**parameters, **trained_on}.items():
            check_plain(f"scheme {label!r}: {name}", value)
        if unknown := set(parameters) - accepts:
            raise ValueError(f"scheme {label!r} takes no {sorted(unknown)}; it takes {sorted(accepts)}")
        if "trained_on" in given and (kind == "baseline" or isinstance(what, Trained)):
            raise ValueError(f"scheme {label!r} trains nothing: trained_on= goes with a network to train")
        return cls(kind, what, parameters, accepts, dict(trained_on))

    def about(self) -> dict[str, Any]:
        """JSON that tells it from another."""
        return {self.kind: plain(self.what), **plain(self.parameters)}


@dataclass(frozen=True)
class Cell:
    """One experiment, small and plain, so that it travels.

    Attributes
    ----------
    scheme : Scheme
        With the parameters of this cell.
    dynamics, trained_dynamics : Dynamics
        Of the test, and of training.
    twin, trained_twin : mapping
    test : mapping
        Sizes of the test record.
    seed : int
    """

    scheme: Scheme
    dynamics: Dynamics
    trained_dynamics: Dynamics
    twin: Mapping[str, Any]
    trained_twin: Mapping[str, Any]
    test: Mapping[str, Any]
    seed: int

    @property
    def training_key(self) -> str:
        """Tells trainings apart; experiments that share one share its network."""
        return digest([self.scheme.about(), known_by(self.trained_dynamics), plain(self.trained_twin), self.seed])

    @property
    def key(self) -> str:
        """Tells experiments apart."""
        return digest([self.training_key, known_by(self.dynamics), plain(self.twin), dict(self.test)])

    @property
    def trains(self) -> bool:
        """Whether there is something to train."""
        return self.scheme.kind == "network" and not isinstance(self.scheme.what, Trained)

    @property
    def minutes(self) -> float:
        """Time to train, where it is given."""
        return float(self.scheme.parameters.get("minutes") or 0.0) if self.trains else 0.0

    def check(self) -> None:
        """Refuse a twin, a method, a network or a training that cannot be.

        Raises
        ------
        ValueError
        """
        twin(self.dynamics, **self.twin, cycles=2, trajectories=1, seed=TEST_SEEDS + self.seed)
        if self.trains:
            twin(self.trained_dynamics, **self.trained_twin, cycles=2, trajectories=1, seed=self.seed)
        if self.scheme.kind == "baseline":
            method_by_name(self.scheme.what, **self.scheme.parameters)
        elif self.trains:
            plan(self._arguments())

    def made(self, network: Network) -> bool:
        """Whether a network is of this cell's training, which ended as it should, by what its description says."""
        training = network.description.get("training", {})
        data = training.get("data", {})
        architecture, asked = self._asked()
        if "objective" in asked:
            asked["objective"] = objective_by_name(asked["objective"]).to_json()
        said = {
            "architecture": training.get("architecture"),
            "seed": training.get("seed"),
            "dynamics": data.get("endless"),
            "interrupted": training.get("interrupted", False),
            **{name: training[name] for name in asked if name in training},
        }
        expected = {
            "architecture": {"name": architecture.name, **architecture.config()},
            "seed": self.seed,
            "dynamics": dynamics_to_json(self.trained_dynamics),
            "interrupted": False,
            **{name: plain(asked[name]) for name in asked if name in training},
        }
        if "steps" in said and asked["steps"] is None:
            del said["steps"], expected["steps"]  # what was the default, or followed from epochs
        return bool(json.loads(to_json(said)) == json.loads(to_json(expected)))

    def _asked(self) -> tuple[AnalysisNetwork, dict[str, Any]]:
        """Architecture, and arguments of training."""
        own = self.scheme.parameters
        training = {name: value for name, value in own.items() if name in _TRAINING}
        shape = {name: value for name, value in own.items() if name not in _TRAINING}
        what = self.scheme.what
        with building():
            if isinstance(what, Architecture):
                return what.kind(**{**what.parameters, **shape}), training
            return network_by_name(what, shape), training

    def _arguments(self, checkpoint: StoreLike | None = None, **defaults: Any) -> TrainingArguments:
        """Arguments of its training."""
        network, training = self._asked()
        rates = {name: training.pop(name) for name in _OPTIMISER & set(training)}
        return TrainingArguments(
            source=TwinExperiment(self.trained_dynamics, **self.trained_twin),
            network=network,
            optimiser=Optimiser(**rates),
            **{**defaults, **training},
            seed=self.seed,
            checkpoint=checkpoint,
            progress=False,
        )

    def train(self, checkpoint: StoreLike | None) -> Network:
        """Train its network.

        Raises
        ------
        KeyboardInterrupt
            At Ctrl-C, once the checkpoint is saved: a network that is not done is no result.
        """
        alone = threading.current_thread() is threading.main_thread() and not multiprocessing.parent_process()
        processes = {} if alone else {"processes": 1}  # the scheduler has others at work already
        arguments = self._arguments(checkpoint, **processes)
        network, interruption = fit(arguments)
        if interruption is not None:
            raise KeyboardInterrupt(interruption)
        return network

    def score(self, network: Network | None) -> dict[str, Any]:
        """Cycle the test record and score the run."""
        sizes = {name: self.test[name] for name in ("cycles", "trajectories")}
        here = {"scheduler": "synchronous"}  # said in every call: the configuration is the whole process's
        record = twin(self.dynamics, **self.twin, **sizes, seed=TEST_SEEDS + self.seed).compute(**here)
        begin = time.perf_counter()
        own: dict[str, Any] = {"dynamics": self.dynamics, "seed": self.seed}
        if network is None:
            run = baseline(record.chunk(), self.scheme.what, **self.scheme.parameters, **own).compute(**here)
        else:
            own["device"] = self.scheme.parameters.get("device", "auto")
            run = cycle(record.chunk(), network, **own).compute(**here)
        seconds = time.perf_counter() - begin
        found = score(record, run, burn_in=self.test["burn_in"], dynamics=self.dynamics)
        values: dict[str, Any] = {name: float(found[name]) for name in SCORES if name in found}
        if "crps_of" in found.coords:
            values["crps_of"] = str(found["crps_of"].values)
        if network is not None and self.trains:
            training = network.description["training"]
            values |= {"validation_rmse": training["validation_rmse"], "training_seconds": training["seconds"]}
        return {**values, "seconds": seconds, "failed": 0.0}
