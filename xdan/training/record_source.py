"""A Dataset as the source of a training. It is checked without its data, then read for windows and a validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import xarray as xr

from ..core.checks import shown, warn
from ..core.derivative_checks import STATES
from ..core.dynamics import Dynamics, dynamics_to_json
from ..core.learning import Objective, WindowContents
from ..core.methods import Record
from ..core.networks import AnalysisNetwork
from ..core.observing import Operator
from ..records.blocks import array_to_tensor, make_record
from ..records.following import check_follows
from ..records.observing import identity as observing_identity
from ..records.record import LabelledRecord, RecordWords, read
from ..records.runs import imitate
from ..records.schema import TIME, TRAJECTORY, Array
from ..records.store import digest
from ..records.values import check_observed, leading, refuse_fill_values
from ..records.watch import far_from_truth, warn_of
from ..records.windows import RecordWindows, read_lanes
from .data import (
    VALIDATION_CYCLES,
    VALIDATION_LANES,
    TrainingData,
    TrainingSource,
    burn_in,
    climate_moments,
    describe_setting,
)

Lanes = Sequence[tuple[int, int]]
"""First row and time of each lane in the record."""

_BEGINNING = 64  # number of cycles from which the first states are taken
_FEWEST_OBSERVED = 10  # least number of observations of a validation
_SCARCE = 0.05  # least ratio of the observed share in validation to that in training, to choose the best weights


@dataclass(frozen=True)
class RecordSource(TrainingSource):
    """Lanes of a record: its trajectories, or segments of these if there are few.

    Attributes
    ----------
    labelled : LabelledRecord
        The record. It has no truth if the objective needs none. If a run is imitated, it holds the teacher's forecasts
        and analyses.
    lanes : sequence of (row, start)
        First row and time of each lane in the record.
    length : int
        Cycles of a lane.
    validation : float
        Share of the lanes that is held back.
    window, batch, seed : int
    """

    labelled: LabelledRecord
    lanes: Lanes
    length: int
    validation: float
    window: int
    batch: int
    seed: int

    @classmethod
    def of(
        cls,
        ds: xr.Dataset,
        words: RecordWords,
        objective: Objective,
        teacher: Any,
        *,
        validation: float,
        window: int,
        batch: int,
        seed: int,
    ) -> RecordSource:
        """Check a Dataset. Its coordinates and attributes are read, but none of its data.

        Raises
        ------
        TypeError, ValueError
            If `read` refuses the Dataset, the teacher is no run on this record, or trajectories are too few or short.
        """
        run = teacher if isinstance(teacher, xr.Dataset) else None
        if teacher is not None and run is None and not objective.needs_covariance:
            raise TypeError(f"teacher={shown(teacher)} on a record: expected the Dataset that baseline() returned")
        supervised = objective.needs_truth
        needs = (
            "pass truth=, the name of a variable, or objective='forecast', which reads observations alone. The "
            f"objective {objective.name!r}"
        )
        labelled = read(ds, **words, needs_truth=needs if supervised and teacher is None else None)
        if not supervised:
            labelled = replace(labelled, truth=None)
        if run is not None:
            labelled = imitate(labelled, run)
        labelled = replace(labelled, setup=replace(labelled.setup, dtype=np.dtype(np.float32)))
        lanes, length = _lanes(labelled, window, batch, validation)
        return cls(labelled, lanes, length, validation, window, batch, seed)

    @property
    def dynamics(self) -> Dynamics:
        """The dynamics that the record names."""
        return self.labelled.setup.dynamics

    @property
    def operator(self) -> Operator | None:
        """As the record has it."""
        return self.labelled.setup.observing.operator

    @property
    def contents(self) -> WindowContents:
        """Windows have a truth if the objective needs it, and a teacher's forecasts if a run is imitated."""
        labelled = self.labelled
        return WindowContents(self.window, labelled.truth is not None, labelled.forecast is not None)

    def states(self, device: str) -> torch.Tensor:
        """A few states from the beginning of the record, the only values read before the rest is checked."""
        truth = self.labelled.truth
        if truth is None:
            return super().states(device)
        last = min(truth.sizes[TIME], _BEGINNING)
        step = max(1, last // STATES)
        some = truth.isel({TRAJECTORY: slice(0, STATES), TIME: slice(0, last, step)}).to_numpy()
        states = array_to_tensor(some, self.labelled.setup.dtype, device).flatten(2).flatten(0, 1)
        return states[:: max(1, len(states) // STATES)][:STATES]

    def data(self, network: AnalysisNetwork, device: str) -> TrainingData:
        """Read the record: lanes for training, and other lanes for validation.

        Raises
        ------
        ValueError
            If the record holds values that are not finite, or has nothing observed to train or validate on.
        """
        labelled, length = self.labelled, self.length
        setup = labelled.setup
        self._check_values()
        kept, held = self._kept_and_held()
        cycles = min(length, VALIDATION_CYCLES)
        _check_lanes_observed(labelled.observation, kept, held, length, cycles)
        record, truth = self._validation(held, cycles, device)
        if truth is not None and labelled.forecast is None:
            warn_of([far_from_truth(record)])
        batch = min(self.batch, len(kept))
        windows = RecordWindows(labelled, kept, length, batch=batch, cycles=self.window, seed=self.seed, device=device)
        observing = setup.observing.to(record.observation.dtype, device)
        moments = climate_moments(record, network.space)
        inside = [setup.steps[start + 1 : start + length] for start in {start for _, start in self.lanes}]
        setting = describe_setting(record, setup.observing, np.concatenate(inside).tolist(), labelled.sites, moments)
        identity = {
            "dynamics": dynamics_to_json(setup.dynamics),
            "sizes": {str(dim): size for dim, size in labelled.observation.sizes.items()},
            # The part that validation reads stands for the record: a resumed run must use an equal record.
            "fingerprint": digest(
                *observing_identity(setup.observing, setup.dynamics),
                record.observation.cpu().numpy(),
                *(() if truth is None else (truth,)),
            ),
            "teacher": labelled.forecast is not None,
            "training_lanes": len(kept),
            "validation_lanes": len(held),
        }
        return TrainingData(setup.dynamics, observing, windows, record, moments, identity, setting)

    def _check_values(self) -> None:
        """Refuse a truth, forecasts or observations whose values cannot be trained on."""
        labelled, truth = self.labelled, self.labelled.truth
        if truth is not None:
            if labelled.forecast is None:
                check_follows(labelled)
            else:
                _check_finite(labelled.forecast)
            _check_finite(truth)
            refuse_fill_values(leading(truth).to_numpy(), str(truth.name), True, labelled.setup.dynamics)
        check_observed(labelled)

    def _kept_and_held(self) -> tuple[Lanes, Lanes]:
        """Lanes for training, and lanes for validation: the last ones, which are separate blocks in a store."""
        count = len(self.lanes)
        split = count - min(count - 1, max(1, round(self.validation * count)))
        held = self.lanes[split:]
        return self.lanes[:split], held[:: max(1, len(held) // VALIDATION_LANES)][:VALIDATION_LANES]

    def _validation(self, held: Lanes, cycles: int, device: str) -> tuple[Record, Array | None]:
        """The record for validation, and its truth as it was read."""
        labelled, start = self.labelled, held[0][1]
        truth = None if labelled.truth is None else read_lanes(labelled.truth, held, 0, cycles)
        record = make_record(
            labelled.setup,
            read_lanes(labelled.observation, held, 0, cycles),
            rows=slice(0, len(held)),
            columns=slice(start, start + cycles),
            seed=self.seed,
            truth=truth,
            device=device,
        )
        clock = torch.tensor([labelled.setup.clock(first) for _, first in held]) - record.steps[0]
        # There may be more segments than trajectories.
        label = record.trajectory[torch.arange(len(held)) % len(record.trajectory)]
        return replace(record, clock=clock, trajectory=label), truth


def _check_lanes_observed(
    observation: xr.DataArray,
    kept: Lanes,
    held: Lanes,
    length: int,
    cycles: int,
) -> None:
    """Refuse lanes with too few observations for training or validation; warn of lanes without observations."""
    per_time = observation.notnull().sum(observation.dims[2:]).to_numpy()
    size = math.prod(observation.shape[2:])
    first = burn_in(cycles)
    trained = np.array([per_time[row, start : start + length].sum() for row, start in kept])
    read = np.array([per_time[row, start + first : start + cycles].sum() for row, start in held])
    remedy = (
        "Leave out what is not observed, for example ds.isel(trajectory=slice(...)) or ds.isel(time=slice(...)); or "
        "choose another validation= or another order, as the last trajectories, or the end of the record, are held back"
    )
    wanted = size * (cycles - first) * len(held)
    share = float(trained.sum()) / (size * length * len(kept))
    if not trained.any():
        raise ValueError(
            f"none of the {size * length * len(kept)} values to train on is observed, all that is observed is held "
            f"back for validation: expected observations in both. {remedy}"
        )
    fewest = max(min(_FEWEST_OBSERVED, wanted), math.ceil(_SCARCE * share * wanted))
    if read.sum() < fewest:
        raise ValueError(
            f"{int(read.sum())} of the {wanted} values held back for validation are observed ({len(held)} trajectories "
            f"or segments, without {first} cycles of burn-in), of those to train on {share:.1%}: expected at least "
            f"{fewest}, to choose the best weights by. {remedy}"
        )
    for counts, purpose in ((trained, "to train on"), (read, "held back")):
        if empty := int((counts == 0).sum()):
            warn(
                f"{empty} of the {len(counts)} trajectories or segments {purpose} have no observations at all: they "
                f"say nothing of an analysis. {remedy}",
            )


def _check_finite(truth: xr.DataArray) -> None:
    """Refuse a truth, or a teacher's forecasts, with values that are not finite."""
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


def _lanes(labelled: LabelledRecord, window: int, batch: int, validation: float) -> tuple[Lanes, int]:
    """Cut a record into lanes (row, start) of one length: its trajectories, or segments where they are too few.

    Lanes of a batch share their intervals, so a segment has a single interval. A single trajectory with different
    intervals is cut where they change.
    """
    count, cycles = labelled.observation.shape[:2]
    steps = labelled.setup.steps
    wanted = math.ceil((batch + 1) / (1 - validation))
    regular = len(np.unique(steps[1:])) <= 1
    starts, length = [0], cycles
    if count < wanted and (regular or count == 1) and not labelled.setup.observing.in_time:
        stretches = _stretches(steps)
        usable = sum(stop - start for start, stop in stretches)
        pieces = max(1, min(math.ceil(wanted / count), usable // (8 * window)))
        length = min(usable // pieces, max(stop - start for start, stop in stretches))
        starts = [first for start, stop in stretches for first in range(start, stop - length + 1, length)][:pieces]
    if length < 2 * window or count * len(starts) < 2:
        raise ValueError(
            f"the record has {count} trajectories of {cycles} cycles: too little for windows of {window} cycles. "
            f"Expected at least 2 trajectories of {2 * window} cycles, or one of {32 * window}; or a shorter window="
        )
    return [(row, start) for start in starts for row in range(count)], length


def _stretches(steps: Array) -> list[tuple[int, int]]:
    """First and last position, the last excluded, of the longest parts of a record that have its commonest interval."""
    values, counts = np.unique(steps[1:], return_counts=True)
    if not len(values):
        return [(0, len(steps))]
    edges = [0, *(np.flatnonzero(steps[1:] != values[counts.argmax()]) + 1).tolist(), len(steps)]
    return list(pairwise(edges))
