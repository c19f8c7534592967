"""The data of a training: windows for training, and a separate record for validation."""

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

VALIDATION_LANES, VALIDATION_CYCLES = 64, 250  # most lanes and cycles of a validation
_CLIMATE_STATES = 256  # number of states in a mean over the climate
_LEAST_CLIMATE = 0.1  # least share of the observations' variance that must come from the state
_BURN_IN = 50  # most cycles that a validation leaves out
_ROUNDING = 1e-6  # a smaller ratio of deviation to mean is rounding in single precision


@dataclass(frozen=True)
class TrainingData:
    """The data for training and validation.

    Attributes
    ----------
    dynamics : Dynamics
    observing : ObservingSystem
    windows : Windows
    validation : Record
    moments : tuple of float, or of list of float
        Climatological mean and standard deviation of a site; lists for several fields.
    identity : mapping
        JSON that identifies these data.
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

    @property
    def score(self) -> str:
        """Name of the number by which validations are compared. Without the truth it is the RMS of y - H x_f."""
        return "validation RMS innovation" if self.validation.truth is None else "validation RMSE"

    def climate(self) -> torch.Tensor:
        """Some states of the dynamics' climate, shape (B, N); no states if the observing system has no operator."""
        like = self.validation.observation
        if self.observing.direct:
            return like.new_zeros(0, math.prod(self.dynamics.shape))
        return _some_climate(self.validation).flatten(1)

    def error_scale(self, network: AnalysisNetwork) -> float | list[float]:
        """Typical observation error by which a network is normalised; for several fields one for each.

        A field that is never observed has no observation error. It gets a share of its climatological deviation. The
        share is the geometric mean of error / climatological deviation over the other fields. In this way the field is
        corrected by steps of a similar relative size.
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
    """The source of the data of a training. It is checked before any of the data are read.

    Attributes
    ----------
    seed : int
        Key of random draws.
    """

    seed: int

    @property
    @abstractmethod
    def dynamics(self) -> Dynamics:
        """The model of the forecasts."""

    @property
    @abstractmethod
    def operator(self) -> Operator | None:
        """H; None if the state itself is observed."""

    @property
    @abstractmethod
    def contents(self) -> WindowContents:
        """The contents of the windows."""

    def states(self, device: str) -> torch.Tensor:
        """A few states of the model, (S, N) in single precision, at which derivatives are checked."""
        return climate_states(self.dynamics, self.seed, torch.zeros((), dtype=torch.float32, device=device))

    @abstractmethod
    def data(self, network: AnalysisNetwork, device: str) -> TrainingData:
        """Read or make the data, for the training of a network on a device."""


def burn_in(cycles: int) -> int:
    """Number of cycles that a validation of `cycles` cycles leaves out at the beginning."""
    return min(_BURN_IN, cycles // 3)


def climate_moments(record: Record, space: StateSpace | None = None) -> Moments:
    """Climatological mean and standard deviation of a site, from the truth, or from observations without their errors.

    If an operator makes the observations, or a field is never observed, the climate of the dynamics is taken. If the
    caller passes a climatology, that climatology is always taken.

    Parameters
    ----------
    record : Record
    space : StateSpace, optional
        Space of the state. If it has several fields, each has its moments.

    Raises
    ------
    ValueError
        If the moments are not finite, or nothing varies.
    """
    if space is None or space.single:
        return _moments(record, slice(None), "")
    pairs = [_moments(record, space.slices[name], f" of the field {name!r}") for name in space.names]
    return [mean for mean, _ in pairs], [std for _, std in pairs]


def _moments(record: Record, part: slice, of_what: str) -> tuple[float, float]:
    """Climatological mean and standard deviation of some components."""
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
        # If errors are larger than the climate, a share of the observations' variance is taken as a guess.
        variance = max(total - errors, _LEAST_CLIMATE * total)
        mean, std = float(observed.mean()), math.sqrt(variance) if variance >= 0 else math.nan
        source = "observations"
    single = np.finfo(np.float32)  # networks compute with the variance in single precision
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
    """Error variances of some components that are observed directly; of all components as R has them."""
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
    """Describe the setting of a training, in the form of `TrainingData.setting`.

    Parameters
    ----------
    record : Record
        The record for validation.
    observing : ObservingSystem
        H and R at all times, in double precision.
    steps : sequence of int
        Model steps in each interval.
    sites : Sites, FieldSites or None
        The rule by which sites are observed. It is named only if the record has as many observations as the rule makes.
    moments : tuple
        Result of `climate_moments`.
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
    """Whether a rule makes this share of observations. A record with gaps has fewer."""
    least, most = sites.counts(size)
    if least == most:
        return math.isclose(share * size, least, rel_tol=1e-6)
    return least - 0.5 <= share * size <= most + 0.5


def _short(number: float) -> float:
    return float(f"{number:.6g}")


def _range(numbers: Sequence[float]) -> float | list[float]:
    """The number if all are equal, else the smallest and the largest."""
    least, most = (_short(number) for number in (min(numbers), max(numbers)))
    return least if math.isclose(least, most, rel_tol=1e-5) else [least, most]
