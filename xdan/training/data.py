"""What a training sees: windows to train on, and a record apart to validate on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..core.derivative_checks import climate_states
from ..core.dynamics import Dynamics, dynamics_to_json
from ..core.learning import WindowContents
from ..core.learning.trainer import Windows
from ..core.methods import Record
from ..core.networks import AnalysisNetwork
from ..core.observing import FieldSites, ObservingSystem, Operator, Sites

VALIDATION_LANES, VALIDATION_CYCLES = 64, 250  # at most, of a validation
_CLIMATE_STATES = 256  # states that a mean over the climate is taken of
_LEAST_CLIMATE = 0.1  # share of the observations' variance that is the state's, at least
_BURN_IN = 50  # cycles left out of a validation
_ROUNDING = 1e-6  # a deviation that small beside the mean is rounding in single precision


@dataclass(frozen=True)
class TrainingData:
    """What a loop trains and validates on.

    Attributes
    ----------
    dynamics : Dynamics
    observing : ObservingSystem
    windows : Windows
    validation : Record
    moments : tuple of float
        Climatological mean and deviation of a site.
    identity : mapping
        JSON that tells these data from others.
    setting : mapping
        JSON of the setting, which a trained network keeps: "interval", "error_std", "observing", "climate" and
        "dynamics".
    """

    dynamics: Dynamics
    observing: ObservingSystem
    windows: Windows
    validation: Record
    moments: tuple[float, float]
    identity: Mapping[str, Any]
    setting: Mapping[str, Any]

    def climate(self) -> torch.Tensor:
        """Some states of the dynamics' climate, shape (B, N); none where the observing system has no operator."""
        like = self.validation.observation
        if self.observing.direct:
            return like.new_zeros(0, math.prod(self.dynamics.shape))
        labels = range(_CLIMATE_STATES)
        return self.dynamics.climatology(labels, self.validation.seed, like=like).flatten(2)[:, 0]


class TrainingSource(ABC):
    """Where the data of a training come from, understood before any of them is read.

    Attributes
    ----------
    seed : int
        Keys random draws.
    """

    seed: int

    @property
    @abstractmethod
    def dynamics(self) -> Dynamics:
        """The forecasts' model."""

    @property
    @abstractmethod
    def operator(self) -> Operator | None:
        """H, where it is not the state itself."""

    @property
    @abstractmethod
    def contents(self) -> WindowContents:
        """What the windows will hold."""

    def states(self, device: str) -> torch.Tensor:
        """A few states of the model, (S, N) in single precision, at which derivatives are checked."""
        return climate_states(self.dynamics, self.seed, torch.zeros((), dtype=torch.float32, device=device))

    @abstractmethod
    def data(self, network: AnalysisNetwork, device: str) -> TrainingData:
        """Read or make the data, for a network to be trained on a device."""


def burn_in(cycles: int) -> int:
    """Cycles that a validation of so many leaves out at the beginning."""
    return min(_BURN_IN, cycles // 3)


def climate_moments(record: Record) -> tuple[float, float]:
    """Climatological mean and deviation of a site, from the truth or from observations without their errors' part.

    Observations by another operator say little of the state: then the dynamics' own climate is taken.

    Raises
    ------
    ValueError
        If they are not finite, or nothing varies.
    """
    states = record.truth
    if states is None and not record.observing.direct:
        states = record.dynamics.climatology(range(_CLIMATE_STATES), record.seed, like=record.observation)
    if states is not None:
        mean, std = float(states.double().mean()), float(states.double().std(correction=0))
        source = "states"
    else:
        observed = record.observation[~record.observation.isnan()].double()
        total, errors = float(observed.var(correction=0)), float(record.observing.error_variance().mean())
        # Where errors are larger than the climate, a share of the observations' variance is a guess.
        variance = max(total - errors, _LEAST_CLIMATE * total)
        mean, std = float(observed.mean()), math.sqrt(variance) if variance >= 0 else math.nan
        source = "observations"
    single = np.finfo(np.float32)  # in which networks compute with the variance
    if not (math.isfinite(mean) and single.tiny < std**2 < single.max and std > _ROUNDING * abs(mean)):
        raise ValueError(
            f"the {source} that validation reads have the mean {mean:.6g} and the deviation {std:.6g}: expected finite "
            "ones that vary by more than rounding in single precision, as a network is normalised by them. Take a "
            "record that moves, or other units"
        )
    return mean, std


def describe_setting(
    record: Record,
    observing: ObservingSystem,
    steps: Sequence[int],
    sites: Sites | FieldSites | None,
    moments: tuple[float, float],
) -> dict[str, Any]:
    """The setting, as in `TrainingData`; `error` is in double precision, for all times."""
    timestep = record.dynamics.timestep
    share = float((~record.observation.isnan()).double().mean())
    by_rule = sites is not None and observing.direct and _follows(sites, share, record.observation.shape[-1])
    return {
        "dynamics": dynamics_to_json(record.dynamics),
        "interval": _range([step * timestep for step in (min(steps), max(steps))]),
        "error_std": _range(observing.error_variance().sqrt().flatten().tolist()),
        "observing": sites.to_json() if sites is not None and by_rule else round(share, 4),
        "climate": [_short(moment) for moment in moments],
    }


def _follows(sites: Sites | FieldSites, share: float, size: int) -> bool:
    """Whether a rule of observing gives such a share of observations; a record with gaps has fewer."""
    least, most = sites.counts(size)
    if least == most:
        return math.isclose(share * size, least, rel_tol=1e-6)
    return least - 0.5 <= share * size <= most + 0.5


def _short(number: float) -> float:
    return float(f"{number:.6g}")


def _range(numbers: Sequence[float]) -> float | list[float]:
    """The number where all are equal, else the smallest and the largest."""
    least, most = (_short(number) for number in (min(numbers), max(numbers)))
    return least if math.isclose(least, most, rel_tol=1e-5) else [least, most]
