"""Parameters by state augmentation: an ensemble filter over a record whose states end with the parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import torch
import xarray as xr
from dask.delayed import Delayed
from torch import Tensor

from ..assimilation.cycling import Run, run_over
from ..assimilation.run_layout import Variable
from ..core.dynamics import Dynamics
from ..core.estimation.augmented import AugmentedDynamics, observing_augmented
from ..core.estimation.priors import Priors
from ..core.methods import EnsembleMethod
from ..core.progress import Work
from ..core.spaces import STATE
from ..records.fields import observed_parts
from ..records.record import LabelledRecord
from ..records.schema import TIME, TRAJECTORY, attributes
from ..records.store import sealed
from ..records.streams import Stream
from ..records.watch import RATIO
from .parameter_labels import (
    DIVERGED,
    ESTIMATE,
    SPREAD,
    STANDARD_ERROR,
    attributes_of,
    coordinates_of_parameters,
    dims_of,
)

_TRIED = 64  # number of trajectories whose extreme members are tried
_MEMBERS = "standard deviation of the members"
_POOLED = "mean over trajectories at the last time"
_SCATTER = "from the scatter of trajectories; of a single one the ensemble's spread"


def estimate_by_augmentation(
    ds: xr.Dataset,
    labelled: LabelledRecord,
    priors: Priors,
    ensemble: EnsembleMethod,
    walk: Tensor,
    **settings: Any,
) -> xr.Dataset:
    """Run an ensemble method over the record, with the parameters as components of the state.

    Parameters
    ----------
    ds : xarray.Dataset
        The Dataset that the record was read from.
    labelled : LabelledRecord
    priors : Priors
    ensemble : EnsembleMethod
    walk : Tensor, shape (p,)
        Standard deviation of the parameters' random walk in one interval.
    **settings
        seed, store, mode, device, progress: arguments of `cycle`.

    Raises
    ------
    ValueError
        If members with extreme parameters become infinite in their spin-up.
    """
    augmented = AugmentedDynamics(labelled.setup.dynamics, priors, walk)
    like = torch.zeros((), dtype=torch.float64 if labelled.setup.dtype == np.float64 else torch.float32)
    labels = torch.tensor(labelled.setup.trajectory[:_TRIED].tolist())
    augmented.try_draws(labels, settings["seed"], ensemble.members, like)
    kind = partial(_ParameterRun, labelled.setup.dynamics, priors)
    return run_over(ds, augmented_record(labelled, augmented), ensemble, members=False, kind=kind, **settings)


def augmented_record(labelled: LabelledRecord, augmented: AugmentedDynamics) -> LabelledRecord:
    """Make the record of the augmented model from a record of the model. The parameters are not observed."""
    setup, size, count = labelled.setup, augmented.size, len(augmented.priors.mean)
    observing = observing_augmented(setup.observing, size, count)
    observation = labelled.observation
    if setup.observing.direct:
        data = observation.data.reshape(*observation.shape[:2], size)
        blank = (*observation.shape[:2], count)
        if isinstance(data, da.Array):
            data = data.rechunk({2: -1})
            nothing = da.full(blank, np.nan, dtype=data.dtype, chunks=(*data.chunks[:2], -1))
            data = da.concatenate([data, nothing], axis=2).rechunk({2: -1})
        else:
            data = np.concatenate([data, np.full(blank, np.nan, dtype=data.dtype)], axis=2)
        kept = {name: one for name, one in observation.coords.items() if set(one.dims) <= {TRAJECTORY, TIME}}
        observation = xr.DataArray(data, kept, (TRAJECTORY, TIME, STATE), observation.name, observation.attrs)
    names = augmented.model.space.names
    return replace(
        labelled,
        setup=replace(setup, dynamics=augmented, observing=observing),
        observation=observation,
        truth=None,
        observed_parts=observed_parts(augmented, observing, names),
        labels={name: one for name, one in labelled.labels.items() if set(one.dims) <= {TRAJECTORY, TIME}},
    )


@dataclass(frozen=True)
class _Components(Variable):
    """A variable that holds some components of a state, from `first` on, in another shape."""

    first: int = 0

    def of(self, output: Tensor) -> Tensor:
        """Components (B, K, ...) of an output (B, K, N)."""
        shape = self.shape[2:]
        return output[..., self.first : self.first + math.prod(shape)].reshape((*output.shape[:2], *shape))


class _ParameterRun(Run):
    """A run of an augmented model that keeps the parameters but not the states."""

    def __init__(self, model: Dynamics, priors: Priors, labelled: LabelledRecord, *arguments: Any, **words: Any):
        super().__init__(labelled, *arguments, **words)
        self.model, self.priors = model, priors
        sizes, start = self.observations.shape[:2], math.prod(model.shape)
        of_state: dict[str, Variable] = {}
        for (name, dims), shape, size in zip(dims_of(model, priors).items(), priors.shapes, priors.sizes, strict=True):
            for suffix, stem, how in (("", "analysis", "ensemble mean"), (SPREAD, "spread", _MEMBERS)):
                of_state[name + suffix] = _Components(
                    (TRAJECTORY, TIME, *dims),
                    (*sizes, *shape),
                    labelled.setup.dtype,
                    attributes_of(name, suffix, how),
                    stem,
                    first=start,
                )
            start += size
        self.layout = of_state | {name: self.layout[name] for name in (RATIO, DIVERGED)}

    def _labelled(self, arrays: Mapping[str, Any]) -> xr.Dataset:
        variables = {name: (one.dims, arrays[name], one.attrs) for name, one in (self.layout | self.choices).items()}
        coordinates: dict[Any, Any] = dict(self.labelled.labels) | coordinates_of_parameters(self.model, self.priors)
        result = xr.Dataset(variables, coordinates)
        said = attributes(
            self.model,
            title="parameters estimated by state augmentation",
            method="augmented",
            ensemble=self.method.name,
            ensemble_parameters=self.method.config(),
            parameters=self.priors.described(),
            seed=self.seed,
        )
        return sealed(result.assign(_estimates(result, self.priors)).assign_attrs(said))

    def _fill(self, stream: Stream, ready: Delayed, work: Work) -> None:
        super()._fill(stream, ready, work)
        filled = xr.open_zarr(stream.store, consolidated=False)
        estimates = xr.Dataset(_estimates(filled, self.priors)).compute()
        stream.write_scalars({str(name): one.values for name, one in estimates.items()})


def _estimates(result: xr.Dataset, priors: Priors) -> dict[str, xr.DataArray]:
    """Final value of each parameter, from all trajectories, and its uncertainty."""
    estimates = {}
    for name in priors.names:
        last, spread = (
            result[label].isel({TIME: -1}).drop_vars(TIME, errors="ignore") for label in (name, name + SPREAD)
        )
        count = last.notnull().sum(TRAJECTORY)
        scatter = last.std(TRAJECTORY, ddof=1) / np.sqrt(count) if last.sizes[TRAJECTORY] > 1 else np.nan * last.mean()
        one = spread.mean(TRAJECTORY)
        estimates[name + ESTIMATE] = last.mean(TRAJECTORY).assign_attrs(attributes_of(name, ESTIMATE, _POOLED))
        error = xr.where(count > 1, scatter, one).astype(last.dtype)
        estimates[name + STANDARD_ERROR] = error.assign_attrs(attributes_of(name, STANDARD_ERROR, _SCATTER))
    return estimates
