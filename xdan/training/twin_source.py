"""An endless twin experiment as the source of a training. It is made while training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from ..core.checks import shown
from ..core.dynamics import Dynamics, dynamics_to_json
from ..core.learning import Objective, WindowContents
from ..core.learning.imitation import TaughtTwin
from ..core.learning.online_twin import EndlessTwin
from ..core.learning.trainer import Windows
from ..core.methods import Method, Record, method_by_name, tune
from ..core.networks import AnalysisNetwork
from ..core.observing import ObservingSystem, Operator
from ..core.twin import TwinExperiment
from ..records.observing import identity as observing_identity
from ..records.store import digest
from ..records.twin_observing import observing_system
from ..records.watch import warn_of
from .data import VALIDATION_CYCLES, VALIDATION_LANES, TrainingData, TrainingSource, climate_moments, describe_setting

# First labels of an endless twin's trajectories: no record has these labels, with any seed.
_VALIDATION_LABEL, _TRAINING_LABEL = 1_000_000_000, 2_000_000_000


@dataclass(frozen=True)
class TwinSource(TrainingSource):
    """A twin experiment whose trajectories go on as long as the training, and a separate short one for validation.

    Attributes
    ----------
    experiment : TwinExperiment
    observing : ObservingSystem
        H and R of the twin, in double precision, on the CPU.
    steps : int
        Model steps in an interval.
    teacher : Method or None
        Method that runs beside the twin; the network imitates its covariance.
    supervised : bool
        Whether windows and validation have the truth.
    trajectories, window, batch, seed : int
    """

    experiment: TwinExperiment
    observing: ObservingSystem
    steps: int
    teacher: Method | None
    supervised: bool
    trajectories: int
    window: int
    batch: int
    seed: int

    @classmethod
    def of(
        cls,
        experiment: TwinExperiment,
        objective: Objective,
        teacher: Any,
        *,
        trajectories: int | None,
        window: int,
        batch: int,
        seed: int,
    ) -> TwinSource:
        """Check a twin experiment. No model is run.

        Raises
        ------
        TypeError, ValueError
            If intervals, errors or operators are impossible, or a teacher has no covariance or is not used.
        """
        dynamics = experiment.dynamics
        if teacher is not None and not objective.needs_covariance:
            raise ValueError(
                "['teacher'] go with a Dataset: expected none of them, an endless twin has error_std= and operator= in "
                "its TwinExperiment, and a teacher by name with objective='covariance'"
            )
        method = teaching_method(teacher, objective) if objective.needs_covariance else None
        if not isinstance(experiment.interval, float):
            raise ValueError(
                f"interval={shown(experiment.interval)}: expected one interval, as networks are trained on an endless "
                "twin; train on a Dataset of twin() for intervals that differ"
            )
        steps = dynamics.steps_in(experiment.interval)
        observing = observing_system(experiment)
        count = 4 * batch if trajectories is None else trajectories
        return cls(experiment, observing, steps, method, objective.needs_truth, count, window, batch, seed)

    @property
    def dynamics(self) -> Dynamics:
        """The model of the forecasts."""
        return self.experiment.dynamics

    @property
    def operator(self) -> Operator | None:
        """H of the experiment; None if the state itself is observed."""
        return self.observing.operator

    @property
    def contents(self) -> WindowContents:
        """Windows have a truth if the objective needs it, and a covariance if a teacher runs beside the twin."""
        return WindowContents(self.window, self.supervised, covariance=self.teacher is not None)

    def data(self, network: AnalysisNetwork, device: str) -> TrainingData:
        """Start the twin, and run the short twin of the validation.

        Raises
        ------
        ValueError
            If the states become infinite or NaN, or nothing is observed.
        """
        warn_of([self.experiment.truth.dynamics.shortage(max(self.trajectories, self.batch))])
        twin = self._endless(device, _TRAINING_LABEL, max(self.trajectories, self.batch), self.batch, self.window)
        record, truth = self._validation(device)
        dynamics, sites = self.dynamics, self.experiment.observe
        lost = ~truth.isfinite().flatten(1).all(1)
        if bool(lost.any()):
            raise ValueError(
                f"{int(lost.sum())} of {len(lost)} trajectories of {dynamics.label!r} leave the finite numbers within "
                f"{VALIDATION_CYCLES} cycles after spin-up: expected a dynamics that stays finite from its start. Give "
                "it rest= (from noise to a state that it can bear), or a smaller timestep="
            )
        if not bool((~record.observation.isnan()).any()):
            raise ValueError(f"observe={sites!r} observes nothing: expected at least one site")
        windows: Windows = twin
        if self.teacher is not None:  # a network without memory cannot see whether an ensemble has settled
            windows = TaughtTwin(twin, tune(self.teacher, record), anew=network.memory > 0)
        moments = climate_moments(record, network.space)
        setting = describe_setting(record, self.observing, [self.steps], sites, moments)
        return TrainingData(dynamics, record.observing, windows, record, moments, self._identity(), setting)

    def _endless(
        self, device: str, label: int, trajectories: int, batch: int, cycles: int, supervised: bool | None = None
    ) -> EndlessTwin:
        like = torch.zeros((), dtype=torch.float32, device=device)
        truth = self.experiment.truth
        return EndlessTwin(
            self.dynamics,
            self.experiment.observe,
            self.observing.to(like.dtype, device),
            steps=self.steps,
            trajectories=trajectories,
            batch=batch,
            cycles=cycles,
            seed=self.seed,
            like=like,
            first=label,
            supervised=self.supervised if supervised is None else supervised,
            model=truth,
            truth_steps=truth.dynamics.steps_in(float(self.experiment.interval)),  # type: ignore[arg-type]
        )

    def _validation(self, device: str) -> tuple[Record, torch.Tensor]:
        """The record for validation, and its truth, even if the record has none."""
        twin = self._endless(
            device, _VALIDATION_LABEL, VALIDATION_LANES, VALIDATION_LANES, VALIDATION_CYCLES, supervised=True
        )
        window = twin.window(0)
        assert window.truth is not None
        steps, truth = [0, *window.steps[1:]], window.truth if self.supervised else None
        record = Record(self.dynamics, twin.observing, window.observation, steps, twin.trajectory, self.seed, truth)
        return record, window.truth

    def _identity(self) -> dict[str, Any]:
        experiment, teacher = self.experiment, self.teacher
        deviation = experiment.error_std
        if experiment.error_covariance is not None:
            deviation = self.observing.error_variance().sqrt().numpy()
        truth = experiment.truth_dynamics
        return {
            "endless": dynamics_to_json(self.dynamics),
            **({} if truth is None else {"truth_dynamics": dynamics_to_json(truth)}),
            "interval": float(experiment.interval),  # type: ignore[arg-type]
            "observing": experiment.observe.to_json(),
            "error_std": _plain(deviation),
            "fingerprint": digest(*observing_identity(self.observing, self.dynamics)),
            "trajectories": self.trajectories,
            "teacher": None if teacher is None else {"method": teacher.name, **teacher.config()},
        }


def _plain(deviation: Any) -> Any:
    """Standard deviations as plain numbers, by the names of fields or instruments if there are any."""
    if isinstance(deviation, dict):
        return {name: _plain(one) for name, one in deviation.items()}
    return np.asarray(deviation, dtype=np.float64).tolist()


def teaching_method(teacher: Any, objective: Objective) -> Method:
    """Make the teacher from its name, or from a mapping with the name as "method" and the parameters.

    Raises
    ------
    ValueError
        If `teacher` is neither, a name or parameter is unknown, or the method has neither members nor a covariance.
    """
    if not isinstance(teacher, (str, Mapping)) or isinstance(teacher, xr.Dataset):  # a Dataset is a mapping too
        raise ValueError(
            f"objective={objective.name!r} with teacher={type(teacher).__name__}: expected the name of a method "
            "to imitate that has a covariance, such as teacher='etkf'"
        )
    parameters = {"method": teacher} if isinstance(teacher, str) else dict(teacher)
    if "method" not in parameters:
        raise ValueError(f"teacher={teacher!r}: expected the name of the method as 'method', beside its parameters")
    name = parameters.pop("method")
    method = method_by_name(name, **parameters)
    if not (method.ensemble or method.keeps_covariance):
        raise ValueError(
            f"teacher {name!r} has no members to take a covariance from, nor one of its own; take 'etkf', 'enkf-n' or "
            "'second-order-kalman'"
        )
    return method
