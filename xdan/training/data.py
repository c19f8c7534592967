"""What training sees: windows to train on and a record apart to validate on, from a Dataset or an endless twin."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from ..core.dynamics import Dynamics, dynamics_to_json
from ..core.learning.imitation import TaughtTwin
from ..core.learning.online_twin import EndlessTwin
from ..core.learning.trainer import Source
from ..core.methods import Method, Record, method_by_name, tune
from ..core.observing import ObservingSystem, Sites
from ..records.blocks import RecordWindows, make_record, read_lanes
from ..records.observing import error_from, operator_from
from ..records.observing import identity as observing_identity
from ..records.record import (
    LabelledRecord,
    check_follows,
    check_observed,
    leading,
    refuse_fill_values,
)
from ..records.schema import TIME, TRAJECTORY, XdanWarning
from ..records.store import digest
from ..records.watch import far_from_truth, tell

_VALIDATION_LANES, _VALIDATION_CYCLES = 64, 250
_CLIMATE_STATES = 256
_BURN_IN = 50  # cycles left out of a validation
_FEWEST_SEEN = 10  # observations that a validation is made on, at least
_SCARCE = 0.05  # share of the observations in validation, relative to training, that is too small to choose by
_ROUNDING = 1e-6  # a deviation that small beside the mean is rounding in single precision
_NEAR = 0.05  # relative difference of an interval, an error or a share that counts as none
# First labels of an endless twin's trajectories: no record has those, whatever its seed.
_ENDLESS_VALIDATION, _ENDLESS_TRAINING = 1_000_000_000, 2_000_000_000


@dataclass(frozen=True)
class TrainingData:
    """What a loop trains and validates on.

    Attributes
    ----------
    dynamics : Dynamics
    observing : ObservingSystem
    windows : Source
    validation : Record
    moments : tuple of float
        Climatological mean and deviation of a site.
    about : mapping
        JSON that tells these data from others.
    setting : mapping
        JSON of the setting, which a trained network keeps: "interval", "error_std", "observing", "climate" and
        "dynamics".
    """

    dynamics: Dynamics
    observing: ObservingSystem
    windows: Source
    validation: Record
    moments: tuple[float, float]
    about: Mapping[str, Any]
    setting: Mapping[str, Any]

    def climate(self) -> torch.Tensor:
        """Some states of the dynamics' climate, shape (B, N); none where the observing system has no operator."""
        like = self.validation.observation
        if self.observing.operator is None:
            return like.new_zeros(0, math.prod(self.dynamics.shape))
        labels = range(_CLIMATE_STATES)
        return self.dynamics.climatology(labels, self.validation.seed, like=like).flatten(2)[:, 0]


def burn_in(cycles: int) -> int:
    """Cycles that a validation of so many leaves out at the beginning."""
    return min(_BURN_IN, cycles // 3)


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
    """Endless twin to train on, and a short one apart to validate on.

    Raises
    ------
    ValueError
        If the dynamics leaves the finite numbers, or nothing is observed.
    """
    like = torch.zeros((), dtype=torch.float32, device=device)
    model_steps = dynamics.steps_in(interval)
    seeing = None if operator is None else operator_from(operator, dynamics)
    shape = dynamics.shape if seeing is None else (seeing.size,)
    observing = error_from(torch.as_tensor(np.asarray(error_std), dtype=torch.float64), shape, seeing)
    windows = EndlessTwin(
        dynamics,
        observe,
        observing.to(like.dtype, device),
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
        observing.to(like.dtype, device),
        steps=model_steps,
        trajectories=_VALIDATION_LANES,
        batch=_VALIDATION_LANES,
        cycles=_VALIDATION_CYCLES,
        seed=seed,
        like=like,
        first=_ENDLESS_VALIDATION,
    )
    part = held.window(0)
    held_truth = part.truth
    record = Record(
        dynamics,
        held.observing,
        part.observation,
        [0, *part.steps[1:]],
        held.trajectory,
        seed,
        held_truth if supervised else None,
    )
    about = {
        "endless": dynamics_to_json(dynamics),
        "interval": interval,
        "observing": observe.to_json(),
        "error_std": np.asarray(error_std).tolist(),
        "fingerprint": digest(*observing_identity(observing, dynamics)),
        "trajectories": trajectories,
        "teacher": None,
    }
    assert held_truth is not None
    lost = ~held_truth.isfinite().flatten(1).all(1)
    if bool(lost.any()):
        raise ValueError(
            f"{int(lost.sum())} of {len(lost)} trajectories of {dynamics.name!r} leave the finite numbers within "
            f"{_VALIDATION_CYCLES} cycles after spin-up: expected a dynamics that stays finite from its start. Give it "
            "rest= (from noise to a state that it can bear), or a smaller timestep="
        )
    if not bool((~part.observation.isnan()).any()):
        raise ValueError(f"observe={observe!r} observes nothing: expected at least one site")
    moments = _moments(record)
    setting = _setting(record, observing, [model_steps], observe, moments)
    return TrainingData(dynamics, held.observing, windows, record, moments, about, setting)


def taught(data: TrainingData, method: Method, anew: bool) -> TrainingData:
    """Put an ensemble method beside the endless twin, for its covariance to be imitated; `anew` as in `TaughtTwin`."""
    assert isinstance(data.windows, EndlessTwin)
    about = {**data.about, "teacher": {"method": method.name, **method.config()}}
    return replace(data, windows=TaughtTwin(data.windows, tune(method, data.validation), anew), about=about)


def ensemble_method(teacher: Any) -> Method:
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
    if not method.ensemble:
        raise ValueError(f"teacher {name!r} has no members to take a covariance from; take 'etkf' or 'enkf-n'")
    return method


def _moments(record: Record) -> tuple[float, float]:
    """Climatological mean and deviation of a site, from the truth or from observations without their errors' part.

    Observations by another operator say little of the state: then the dynamics' own climate is taken.

    Raises
    ------
    ValueError
        If they are not finite, or nothing varies.
    """
    states = record.truth
    if states is None and record.observing.operator is not None:
        states = record.dynamics.climatology(range(_CLIMATE_STATES), record.seed, like=record.observation)
    if states is not None:
        mean, std = float(states.double().mean()), float(states.double().std(correction=0))
        source = "states"
    else:
        seen = record.observation[~record.observation.isnan()].double()
        observing = float(record.observing.error_variance().mean())
        # Where errors are larger than the climate, a tenth of the observations' variance is a guess.
        variance = max(float(seen.var(correction=0)) - observing, 0.1 * float(seen.var(correction=0)))
        mean, std = float(seen.mean()), math.sqrt(variance) if variance >= 0 else math.nan
        source = "observations"
    single = np.finfo(np.float32)  # in which networks compute with the variance
    if not (math.isfinite(mean) and single.tiny < std**2 < single.max and std > _ROUNDING * abs(mean)):
        raise ValueError(
            f"the {source} that validation reads have the mean {mean:.6g} and the deviation {std:.6g}: expected finite "
            "ones that vary by more than rounding in single precision, as a network is normalised by them. Take a "
            "record that moves, or other units"
        )
    return mean, std


def _setting(
    record: Record,
    observing: ObservingSystem,
    steps: Sequence[int],
    sites: Sites | None,
    moments: tuple[float, float],
) -> dict[str, Any]:
    """The setting, as in `TrainingData`; `error` is in double precision, for all times."""
    timestep = record.dynamics.timestep
    share = float((~record.observation.isnan()).double().mean())
    by_rule = sites is not None and observing.operator is None and _follows(sites, share, record.observation.shape[-1])
    return {
        "dynamics": dynamics_to_json(record.dynamics),
        "interval": _range([step * timestep for step in (min(steps), max(steps))]),
        "error_std": _range(observing.error_variance().sqrt().flatten().tolist()),
        "observing": sites.to_json() if sites is not None and by_rule else round(share, 4),
        "climate": [_short(moment) for moment in moments],
    }


def _follows(sites: Sites, share: float, size: int) -> bool:
    """Whether a rule of observing gives such a share of observations; a record with gaps has fewer."""
    if sites.kind == "random":
        return sites.low - 0.5 <= share * size <= sites.high + 0.5
    step = sites.step if sites.kind == "every" else 1
    return math.isclose(share * size, len(range(sites.offset, size, step)), rel_tol=1e-6)


def _short(number: float) -> float:
    return float(f"{number:.6g}")


def _range(numbers: Sequence[float]) -> float | list[float]:
    """The number where all are equal, else the smallest and the largest."""
    least, most = (_short(number) for number in (min(numbers), max(numbers)))
    return least if math.isclose(least, most, rel_tol=1e-5) else [least, most]


def data_from_record(
    labelled: LabelledRecord, *, validation: float, window: int, batch: int, seed: int, device: str
) -> TrainingData:
    """Lanes of a record to train on, and others to validate on.

    Raises
    ------
    ValueError
        If the record is too short, holds values that are not finite, or has nothing observed to train or validate on.
    """
    setup, whole_truth = replace(labelled.setup, dtype=np.dtype(np.float32)), labelled.truth
    labelled = replace(labelled, setup=setup)
    if whole_truth is not None:
        if labelled.forecast is None:
            check_follows(labelled)
        else:
            _check_finite(labelled.forecast)
        _check_finite(whole_truth)
        refuse_fill_values(leading(whole_truth).to_numpy(), str(whole_truth.name))
    check_observed(labelled.observation)
    lanes, length = _lanes(labelled, window, batch, validation)
    held_count = min(len(lanes) - 1, max(1, round(validation * len(lanes))))
    # The last lanes are held back: in the store they are blocks of their own.
    kept, held = lanes[: len(lanes) - held_count], lanes[len(lanes) - held_count :]
    held = held[:: max(1, len(held) // _VALIDATION_LANES)][:_VALIDATION_LANES]
    stop = min(length, _VALIDATION_CYCLES)
    _check_seen(labelled.observation, kept, held, length, stop)
    truth = None if whole_truth is None else read_lanes(whole_truth, held, 0, stop)
    start = held[0][1]
    record = make_record(
        setup,
        read_lanes(labelled.observation, held, 0, stop),
        rows=slice(0, len(held)),
        columns=slice(start, start + stop),
        seed=seed,
        truth=truth,
        device=device,
    )
    if truth is not None and labelled.forecast is None:
        tell([far_from_truth(record)])
    windows = RecordWindows(
        labelled, kept, length, batch=min(batch, len(kept)), cycles=window, seed=seed, device=device
    )
    about = {
        "dynamics": dynamics_to_json(setup.dynamics),
        "sizes": {str(dim): size for dim, size in labelled.observation.sizes.items()},
        # What the record holds, by the part that validation reads: a resumed run must be on the same one.
        "fingerprint": digest(
            *observing_identity(setup.observing, setup.dynamics),
            record.observation.cpu().numpy(),
            *(() if truth is None else (truth,)),
        ),
        "teacher": labelled.forecast is not None,
        "training_lanes": len(kept),
        "validation_lanes": len(held),
    }
    observing = setup.observing.to(record.observation.dtype, device)
    moments = _moments(record)
    setting = _setting(record, setup.observing, setup.steps[1:].tolist(), labelled.sites, moments)
    return TrainingData(setup.dynamics, observing, windows, record, moments, about, setting)


def _check_seen(
    observation: xr.DataArray,
    kept: Sequence[tuple[int, int]],
    held: Sequence[tuple[int, int]],
    length: int,
    stop: int,
) -> None:
    """Refuse lanes to train on, or to validate on, in which hardly anything is observed; warn where some are empty."""
    per_time = observation.notnull().sum(observation.dims[2:]).to_numpy()
    size = math.prod(observation.shape[2:])
    first = burn_in(stop)
    trained = np.array([per_time[row, start : start + length].sum() for row, start in kept])
    read = np.array([per_time[row, start + first : start + stop].sum() for row, start in held])
    remedy = (
        "Leave out what is not observed, for example ds.isel(trajectory=slice(...)) or ds.isel(time=slice(...)); or "
        "choose another validation= or another order, as the last trajectories, or the end of the record, are held back"
    )
    wanted = size * (stop - first) * len(held)
    share = float(trained.sum()) / (size * length * len(kept))
    if not trained.any():
        raise ValueError(
            f"none of the {size * length * len(kept)} values to train on is observed, all that is observed is held "
            f"back for validation: expected observations in both. {remedy}"
        )
    fewest = max(min(_FEWEST_SEEN, wanted), math.ceil(_SCARCE * share * wanted))
    if read.sum() < fewest:
        raise ValueError(
            f"{int(read.sum())} of the {wanted} values held back for validation are observed ({len(held)} trajectories "
            f"or segments, without {first} cycles of burn-in), of those to train on {share:.1%}: expected at least "
            f"{fewest}, to choose the best weights by. {remedy}"
        )
    for count, words in ((int((trained == 0).sum()), "to train on"), (int((read == 0).sum()), "held back")):
        if count:
            total = len(kept) if words == "to train on" else len(held)
            warnings.warn(
                f"{count} of the {total} trajectories or segments {words} have no observations at all: they say "
                f"nothing of an analysis. {remedy}",
                XdanWarning,
                stacklevel=2,
            )


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


def _lanes(labelled: LabelledRecord, window: int, batch: int, validation: float) -> tuple[list[tuple[int, int]], int]:
    """Cut a record into lanes (row, start) of one length: its trajectories, or segments where they are too few."""
    count, cycles = labelled.observation.shape[:2]
    steps = labelled.setup.steps
    wanted = math.ceil((batch + 1) / (1 - validation))
    pieces = 1
    if count < wanted and len(np.unique(steps[1:])) <= 1 and not labelled.setup.observing.in_time:
        pieces = max(1, min(math.ceil(wanted / count), cycles // (8 * window)))
    length = cycles // pieces
    if length < 2 * window or count * pieces < 2:
        raise ValueError(
            f"the record has {count} trajectories of {cycles} cycles: too little for windows of {window} cycles. "
            f"Expected at least 2 trajectories of {2 * window} cycles, or one of {32 * window}; or a shorter window="
        )
    return [(row, piece * length) for piece in range(pieces) for row in range(count)], length
