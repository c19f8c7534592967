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
from ..core.random import Purpose
from ..core.spaces import StateSpace

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
    moments : tuple of float, or of list of float
        Climatological mean and deviation of a site; of each of several fields.
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
    moments: Moments
    identity: Mapping[str, Any]
    setting: Mapping[str, Any]

    def climate(self) -> torch.Tensor:
        """Some states of the dynamics' climate, shape (B, N); none where the observing system has no operator."""
        like = self.validation.observation
        if self.observing.direct:
            return like.new_zeros(0, math.prod(self.dynamics.shape))
        return _some_climate(self.validation).flatten(1)

    def error_scale(self, network: AnalysisNetwork) -> float | list[float]:
        """Typical observation error to normalise a network with, one for each of several fields.

        A field that is never observed has none. It gets the share of its climatological deviation that the errors of
        the other fields are of theirs, in the geometric mean: it is then corrected by steps of a size like theirs.
        """
        space, climate = network.space, self.climate()
        if space is None or space.single:
            return self.observing.typical_error(climate)
        errors = [self.observing.typical_error(climate, space.slices[name]) for name in space.names]
        if self.observing.direct:
            observed = (~self.validation.observation.isnan()).flatten(0, 1).any(0)
            seen = [bool(observed[space.slices[name]].any()) for name in space.names]
            errors = [error if is_seen else math.inf for error, is_seen in zip(errors, seen, strict=True)]
        stds = np.asarray(self.moments[1])
        shares = np.asarray(errors) / stds
        usual = float(np.exp(np.log(shares[np.isfinite(shares)]).mean()))
        return [float(one) for one in np.where(np.isfinite(shares), errors, usual * stds)]


Moments = tuple[float, float] | tuple[list[float], list[float]]
"""Mean and deviation, of the state or of each of its fields."""


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


def climate_moments(record: Record, space: StateSpace | None = None) -> Moments:
    """Climatological mean and deviation of a site, from the truth or from observations without their errors' part.

    Observations by another operator say little of the state, and those of a field that is never observed nothing: then
    the dynamics' own climate is taken. A climatology that was given comes before all of these.

    Parameters
    ----------
    record : Record
    space : StateSpace, optional
        Whose fields have moments of their own, where there are several.

    Raises
    ------
    ValueError
        If they are not finite, or nothing varies.
    """
    if space is None or space.single:
        return _moments(record, slice(None), "")
    pairs = [_moments(record, space.slices[name], f" of the field {name!r}") for name in space.names]
    return [mean for mean, _ in pairs], [std for _, std in pairs]


def _moments(record: Record, part: slice, of_what: str) -> tuple[float, float]:
    """Those of some components."""
    states = record.truth
    observed = record.observation[..., part] if record.observing.direct else record.observation[..., :0]
    observed = observed[~observed.isnan()].double()
    unseen = not record.observing.direct or (of_what and not len(observed))
    if record.dynamics.given_climate is not None or (states is None and unseen):
        states = _some_climate(record).flatten(1)
    if states is not None:
        states = states[..., part].double()
        mean, std = float(states.mean()), float(states.std(correction=0))
        source = "states"
    else:
        total, errors = float(observed.var(correction=0)), float(_part(record, part).mean())
        # Where errors are larger than the climate, a share of the observations' variance is a guess.
        variance = max(total - errors, _LEAST_CLIMATE * total)
        mean, std = float(observed.mean()), math.sqrt(variance) if variance >= 0 else math.nan
        source = "observations"
    single = np.finfo(np.float32)  # in which networks compute with the variance
    if not (math.isfinite(mean) and single.tiny < std**2 < single.max and std > _ROUNDING * abs(mean)):
        raise ValueError(
            f"the {source}{of_what} that validation reads have the mean {mean:.6g} and the deviation {std:.6g}: "
            "expected finite ones that vary by more than rounding in single precision, as a network is normalised by "
            "them. Take a record that moves, or other units"
        )
    return mean, std


def _some_climate(record: Record) -> torch.Tensor:
    """States of the climate of a record's dynamics, shape (S, *state)."""
    return record.dynamics.climate_sample(
        _CLIMATE_STATES, record.seed, purpose=Purpose.INITIAL_STATE, like=record.observation
    )


def _part(record: Record, part: slice) -> torch.Tensor:
    """Error variances of some components that are observed directly; of all as R has them."""
    variance = record.observing.error_variance()
    if part == slice(None):
        return variance
    return variance.expand(*variance.shape[:-1], record.observation.shape[-1])[..., part]


def describe_setting(
    record: Record,
    observing: ObservingSystem,
    steps: Sequence[int],
    sites: Sites | FieldSites | None,
    moments: Moments,
) -> dict[str, Any]:
    """Describe the setting, as `TrainingData` has it.

    Parameters
    ----------
    record : Record
        The one to validate on.
    observing : ObservingSystem
        In double precision, of all times.
    steps : sequence of int
        Model steps in each interval.
    sites : Sites, FieldSites or None
        The rule of observing; named where the record's observations are as many as it makes.
    moments : tuple
        As of `climate_moments`.
    """
    timestep = record.dynamics.timestep
    share = float((~record.observation.isnan()).double().mean())
    by_rule = sites is not None and observing.direct and _follows(sites, share, record.observation.shape[-1])
    return {
        "dynamics": dynamics_to_json(record.dynamics),
        "interval": _range([step * timestep for step in (min(steps), max(steps))]),
        "error_std": _range(observing.error_variance().sqrt().flatten().tolist()),
        "observing": sites.to_json() if sites is not None and by_rule else round(share, 4),
        "climate": [[*map(_short, one)] if isinstance(one, list) else _short(one) for one in moments],
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
