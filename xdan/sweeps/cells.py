"""One experiment of a sweep: a scheme is trained if it is a network to train, cycled over a test record and scored."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..assimilation.scoring import score
from ..assimilation.twins import twin
from ..core.dynamics import Dynamics, GivenClimate, dynamics_to_json
from ..core.twin import TwinExperiment
from ..network import Network
from ..records.location import StoreLike
from ..records.observing import identity
from ..records.store import digest
from ..records.twin_observing import observing_system
from .cube import SCORES

if TYPE_CHECKING:
    from .schemes import Scheme

TEST_SEEDS = 1_000_000  # added to a seed for test records, so that they differ from training records


def describe_dynamics(dynamics: Dynamics) -> dict[str, Any]:
    """JSON that identifies a dynamics: its name and parameters, one step of a state, and its start time."""
    described = {**dynamics_to_json(dynamics), "step": digest(dynamics.fingerprint().numpy()), "units": dynamics.units}
    return described if dynamics.autonomous else {**described, "model_time": dynamics.model_time}


def describe_observing(experiment: TwinExperiment) -> dict[str, Any]:
    """JSON that says when and how the truth is observed. A digest stands for an operator or an array of errors.

    Raises
    ------
    ValueError
        If the errors or the operator are impossible, or differ in time.
    """
    config = experiment.config()
    described: dict[str, Any] = {name: config[name] for name in ("interval", "observe")}
    described["error_std"] = experiment.error_std
    plain = experiment.operator is None and experiment.positions is None
    if not plain or not isinstance(experiment.error_std, float):
        observing = observing_system(experiment)
        described |= {"error_std": None, "observing": digest(*identity(observing, experiment.dynamics))}
    if experiment.truth_dynamics is not None:
        described["truth_dynamics"] = describe_dynamics(experiment.truth_dynamics)
    return described


@dataclass(frozen=True)
class Cell:
    """One experiment. It is small and plain, so that it can be sent to a worker.

    Attributes
    ----------
    scheme : Scheme
        Scheme with the parameters of this cell.
    experiment, trained_on : TwinExperiment
        Experiment of the test, and experiment of the training.
    test : mapping
        `cycles`, `trajectories` and `burn_in` of the test record.
    seed : int
    title : str
        Scheme, axes and seed in words. Nothing depends on it.
    """

    scheme: Scheme
    experiment: TwinExperiment
    trained_on: TwinExperiment
    test: Mapping[str, Any]
    seed: int
    title: str = ""

    @property
    def training_key(self) -> str:
        """Digest of everything that the training depends on. Cells with one training share its network."""
        dynamics, observing = describe_dynamics(self.trained_on.dynamics), describe_observing(self.trained_on)
        return digest([self.scheme.describe(), dynamics, observing, self.seed])

    @property
    def key(self) -> str:
        """Digest of everything that the experiment depends on."""
        dynamics, observing = describe_dynamics(self.experiment.dynamics), describe_observing(self.experiment)
        return digest([self.training_key, dynamics, observing, dict(self.test)])

    @property
    def minutes(self) -> float:
        """Minutes of training; 0 if another length is set, or nothing is trained."""
        return float(self.scheme.parameters.get("minutes") or 0.0) if self.scheme.trains else 0.0

    def with_climate(self, climate: GivenClimate | None) -> Cell:
        """The cell with another climatology of the caller, or without one. Tasks of one sweep share a climatology."""
        experiment, trained_on = (
            replace(one, dynamics=one.dynamics.with_climatology(climate)) for one in (self.experiment, self.trained_on)
        )
        return replace(self, experiment=experiment, trained_on=trained_on)

    def check(self) -> None:
        """Refuse a twin, a method, a network or a training that is impossible.

        Raises
        ------
        TypeError, ValueError
        """
        twin(self.experiment, cycles=2, trajectories=1, seed=TEST_SEEDS + self.seed)
        if self.scheme.trains:
            twin(self.trained_on, cycles=2, trajectories=1, seed=self.seed)
        self.scheme.check(self.trained_on, self.seed)

    def has_made(self, network: Network) -> bool:
        """Whether, by its description, a network comes from this cell's training and the training is complete."""
        return self.scheme.has_made(network, self.trained_on, self.seed)

    def train(self, checkpoint: StoreLike | None) -> Network:
        """Train the cell's network.

        Raises
        ------
        KeyboardInterrupt
            At Ctrl-C, after the checkpoint is saved: an unfinished network is no result.
        """
        return self.scheme.train(self.trained_on, self.seed, checkpoint)

    def score(self, network: Network | None) -> dict[str, Any]:
        """Cycle the test record and score the run."""
        sizes = {name: self.test[name] for name in ("cycles", "trajectories")}
        in_this_task = {"scheduler": "synchronous"}  # a keyword, as dask's configuration is that of the whole process
        record = twin(self.experiment, **sizes, seed=TEST_SEEDS + self.seed).compute(**in_this_task)
        # A record cannot hold a function.
        models = {"dynamics": self.experiment.dynamics, "operator": self.experiment.operator}
        begin = time.perf_counter()
        run = self.scheme.run(record.chunk(), network, seed=self.seed, **models).compute(**in_this_task)
        seconds = time.perf_counter() - begin
        scores = score(record, run, burn_in=self.test["burn_in"], **models)
        # For several fields, the score over all fields.
        values: dict[str, Any] = {
            name: float(scores.get(f"{name}_total", scores[name])) for name in SCORES if name in scores
        }
        if "crps_of" in scores.coords:
            values["crps_of"] = str(scores["crps_of"].values)
        if network is not None and self.scheme.trains:
            training = network.description["training"]
            values |= {"validation_rmse": training["validation_rmse"], "training_seconds": training["seconds"]}
        return {**values, "seconds": seconds, "failed": 0.0}
