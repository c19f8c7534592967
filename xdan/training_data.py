"""What training sees: windows to train on and a record apart to validate on, from a Dataset or an endless twin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from .blocks import RecordWindows, make_record, read_lanes
from .core.dynamics import Dynamics, dynamics_to_json
from .core.endless import EndlessTwin
from .core.imitation import TaughtTwin
from .core.methods import EnsembleMethod, Record, method_by_name
from .core.observing import ErrorCovariance, Sites
from .core.training import Source
from .experiment import Experiment, check_follows, check_observed
from .observing import error_from, operator_from
from .observing import identity as observing_identity
from .schema import TIME, TRAJECTORY
from .store import digest

_VALIDATION_LANES, _VALIDATION_CYCLES = 64, 250
_CLIMATE_STATES = 256
# First labels of an endless twin's trajectories: no record has those, whatever its seed.
_ENDLESS_VALIDATION, _ENDLESS_TRAINING = 1_000_000_000, 2_000_000_000


@dataclass(frozen=True)
class TrainingData:
    """What a loop trains and validates on."""

    dynamics: Dynamics
    error: ErrorCovariance
    windows: Source
    validation: Record
    moments: tuple[float, float]
    about: Mapping[str, Any]

    def climate(self) -> torch.Tensor:
        """Some states of the dynamics' climate, shape (B, N); none where the observing system has no operator."""
        like = self.validation.observation
        if self.error.operator is None:
            return like.new_zeros(0, math.prod(self.dynamics.shape))
        labels = range(_CLIMATE_STATES)
        return self.dynamics.climatology(labels, self.validation.seed, like=like).flatten(2)[:, 0]


def data_from_dynamics(
    dynamics: Dynamics,
    *,
    interval: float,
    observe: Sites,
    error_std: float,
    operator: Any,
    trajectories: int,
    window: int,
    batch: int,
    seed: int,
    device: str,
    supervised: bool,
) -> TrainingData:
    """Endless twin to train on, and a short one apart to validate on."""
    like = torch.zeros((), device=device)
    model_steps = dynamics.steps_in(interval)
    seeing = None if operator is None else operator_from(operator, dynamics)
    shape = dynamics.shape if seeing is None else (seeing.size,)
    error = error_from(torch.as_tensor(np.asarray(error_std), dtype=torch.float64), shape, seeing)
    windows = EndlessTwin(
        dynamics,
        observe,
        error.to(like.dtype, device),
        steps=model_steps,
        trajectories=max(trajectories, batch),
        batch=batch,
        cycles=window,
        seed=seed,
        like=like,
        first=_ENDLESS_TRAINING,
        supervised=supervised,
    )
    held = EndlessTwin(
        dynamics,
        observe,
        error.to(like.dtype, device),
        steps=model_steps,
        trajectories=_VALIDATION_LANES,
        batch=_VALIDATION_LANES,
        cycles=_VALIDATION_CYCLES,
        seed=seed,
        like=like,
        first=_ENDLESS_VALIDATION,
        supervised=supervised,
    )
    part = held.window(0)
    record = Record(
        dynamics,
        held.error,
        part.observation,
        [0, *part.steps[1:]],
        held.trajectory,
        seed,
        part.truth,
    )
    about = {
        "endless": dynamics_to_json(dynamics),
        "interval": interval,
        "observing": observe.to_json(),
        "error_std": np.asarray(error_std).tolist(),
        "fingerprint": digest(*observing_identity(error, dynamics)),
        "trajectories": trajectories,
        "teacher": None,
    }
    return TrainingData(dynamics, held.error, windows, record, _moments(record), about)


def taught(data: TrainingData, method: EnsembleMethod, anew: bool) -> TrainingData:
    """Put an ensemble method beside the endless twin, for its covariance to be imitated; `anew` as in `TaughtTwin`."""
    assert isinstance(data.windows, EndlessTwin)
    about = {**data.about, "teacher": {"method": method.name, **method.parameters()}}
    return replace(data, windows=TaughtTwin(data.windows, method.prepare(data.validation), anew), about=about)


def ensemble_method(teacher: Any) -> EnsembleMethod:
    """Make the method that a name, or a mapping with the name as "method" and its parameters, asks for.

    Raises
    ------
    ValueError
        For what is neither, names and parameters that are unknown, and methods without members.
    """
    if not isinstance(teacher, (str, Mapping)) or isinstance(teacher, xr.Dataset):  # a Dataset is a mapping too
        raise ValueError(
            f"objective='covariance' with teacher={type(teacher).__name__}: expected the name of an ensemble "
            "method to imitate, such as teacher='etkf'"
        )
    asked = {"method": teacher} if isinstance(teacher, str) else dict(teacher)
    if "method" not in asked:
        raise ValueError(f"teacher={teacher!r}: expected the name of the method as 'method', beside its parameters")
    name = asked.pop("method")
    method = method_by_name(name, **asked)
    if not isinstance(method, EnsembleMethod):
        raise ValueError(f"teacher {name!r} has no members to take a covariance from; take 'etkf' or 'enkf-n'")
    return method


def _moments(record: Record) -> tuple[float, float]:
    """Climatological mean and deviation of a site, from the truth or from observations without their errors' part.

    Observations by another operator say little of the state: then the dynamics' own climate is taken.
    """
    states = record.truth
    if states is None and record.error.operator is not None:
        states = record.dynamics.climatology(range(_CLIMATE_STATES), record.seed, like=record.observation)
    if states is not None:
        return float(states.double().mean()), float(states.double().std(correction=0))
    seen = record.observation[~record.observation.isnan()].double()
    error = float(record.error.variance().mean())
    # Where errors drown the climate, a tenth of what is seen is as good a guess as any.
    variance = max(float(seen.var(correction=0)) - error, 0.1 * float(seen.var(correction=0)))
    return float(seen.mean()), math.sqrt(variance)


def data_from_record(
    experiment: Experiment, *, validation: float, window: int, batch: int, seed: int, device: str
) -> TrainingData:
    """Lanes of a record to train on, and others to validate on."""
    frame, whole_truth = replace(experiment.frame, dtype=np.dtype(np.float32)), experiment.truth
    experiment = replace(experiment, frame=frame)
    if whole_truth is not None:
        if experiment.forecast is None:
            check_follows(experiment)
        else:
            _check_finite(experiment.forecast)
        _check_finite(whole_truth)
    check_observed(experiment.observation)
    lanes, length = _lanes(experiment, window, batch, validation)
    held_count = min(len(lanes) - 1, max(1, round(validation * len(lanes))))
    # The last lanes are held back: in the store they are blocks of their own.
    kept, held = lanes[: len(lanes) - held_count], lanes[len(lanes) - held_count :]
    held = held[:: max(1, len(held) // _VALIDATION_LANES)][:_VALIDATION_LANES]
    stop = min(length, _VALIDATION_CYCLES)
    truth = None if whole_truth is None else read_lanes(whole_truth, held, 0, stop)
    start = held[0][1]
    record = make_record(
        frame,
        read_lanes(experiment.observation, held, 0, stop),
        rows=slice(0, len(held)),
        columns=slice(start, start + stop),
        seed=seed,
        truth=truth,
        device=device,
    )
    windows = RecordWindows(
        experiment, kept, length, batch=min(batch, len(kept)), cycles=window, seed=seed, device=device
    )
    about = {
        "dynamics": dynamics_to_json(frame.dynamics),
        "sizes": {str(dim): size for dim, size in experiment.observation.sizes.items()},
        # What the record holds, by the part that validation reads: a resumed run must be on the same one.
        "fingerprint": digest(
            *observing_identity(frame.error, frame.dynamics),
            record.observation.cpu().numpy(),
            *(() if truth is None else (truth,)),
        ),
        "teacher": experiment.forecast is not None,
        "training_lanes": len(kept),
        "validation_lanes": len(held),
    }
    error = frame.error.to(record.observation.dtype, device)
    return TrainingData(frame.dynamics, error, windows, record, _moments(record), about)


def _check_finite(truth: xr.DataArray) -> None:
    bad: xr.DataArray = ~xr.apply_ufunc(np.isfinite, truth, dask="allowed")
    count = int(bad.sum())
    if count:
        where = {
            dim: int(np.asarray(bad.any([d for d in bad.dims if d != dim])).argmax()) for dim in (TRAJECTORY, TIME)
        }
        raise ValueError(
            f"truth {truth.name!r} holds {count} values that are not finite, the first at indices {where}; was the "
            "store cut short? Training needs a whole truth: cut the record, or leave those trajectories out"
        )


def _lanes(experiment: Experiment, window: int, batch: int, validation: float) -> tuple[list[tuple[int, int]], int]:
    """Cut a record into lanes (row, start) of one length: its trajectories, or segments where they are too few."""
    count, cycles = experiment.observation.shape[:2]
    steps = experiment.frame.steps
    wanted = math.ceil((batch + 1) / (1 - validation))
    pieces = 1
    if count < wanted and len(np.unique(steps[1:])) <= 1 and not experiment.frame.error.in_time:
        pieces = max(1, min(math.ceil(wanted / count), cycles // (8 * window)))
    length = cycles // pieces
    if length < 2 * window or count * pieces < 2:
        raise ValueError(
            f"the record has {count} trajectories of {cycles} cycles: too little for windows of {window} cycles. "
            f"Expected at least 2 trajectories of {2 * window} cycles, or one of {32 * window}; or a shorter window="
        )
    return [(row, piece * length) for piece in range(pieces) for row in range(count)], length
