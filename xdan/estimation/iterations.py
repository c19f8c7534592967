"""Parameters by an iteration over the whole record: its history, its store and its result."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr
import zarr
from torch import Tensor

from ..core.dynamics import Dynamics, dynamics_to_json
from ..core.estimation.priors import Priors
from ..core.log import RUNS
from ..core.methods import EnsembleMethod, Record, tune
from ..core.progress import bar_of, showing_bars
from ..core.user_functions import finest
from ..records.blocks import array_to_tensor, make_record, tensor_to_array
from ..records.checkpoint import Checkpoint, OtherRunError
from ..records.location import StoreLike, check_rewritable, exists, locate, replacing, writing
from ..records.observing import identity as observing_identity
from ..records.record import LabelledRecord
from ..records.schema import ITERATION, Array, attributes, to_json
from ..records.store import DAMAGE, MISSING, check_apart, check_writable, consolidate, digest, sealed
from ..records.values import check_observed
from ..records.watch import attribute, warn_of
from .parameter_labels import (
    CONVERGED,
    DIVERGED,
    ESTIMATE,
    STANDARD_ERROR,
    attributes_of,
    coordinates_of_parameters,
    dims_of,
)

_FARTHEST = 30.0  # standard deviations of the prior: an estimate that is farther from the prior's mean has diverged
_LEFT = {
    "em": "more than half a standard error may be left of its way",
    "likelihood": "the likelihood has no maximum within a deviation of the prior from where it ended",
}
_MARK = "xdan_checkpoint"  # attribute of a store whose iteration is unfinished


class Iteration(Protocol):
    """An estimate that improves from iteration to iteration."""

    @property
    def parameters(self) -> Tensor:
        """Newest estimate, (p,)."""

    def iterate(self) -> tuple[float, Tensor]:
        """Do one iteration; return a number that rates the estimate, and which trajectories are lost, (B,)."""

    def finish(self) -> tuple[Tensor, Tensor, bool]:
        """The estimate and its uncertainty, (p,), and whether the iteration has converged."""

    def saved(self) -> dict[str, Tensor]:
        """The state from which a later process goes on."""

    def restore(self, saved: dict[str, Tensor], done: int) -> None:
        """Go on from a saved state."""


Begin = Callable[[EnsembleMethod, Record, Dynamics, Priors], Iteration]
"""Makes an iteration, not yet begun, from a prepared method and a record."""


def estimate_by_iterations(
    ds: xr.Dataset,
    labelled: LabelledRecord,
    priors: Priors,
    ensemble: EnsembleMethod,
    begin: Begin,
    *,
    kind: str,
    told: tuple[str, str],
    iterations: int,
    options: dict[str, Any],
    seed: int,
    store: StoreLike | None,
    mode: str,
    device: str,
    progress: bool,
) -> xr.Dataset:
    """Iterate an estimate over a record, and label its history. The record is read into memory.

    Parameters
    ----------
    ds : xarray.Dataset
        The Dataset that the record was read from.
    labelled : LabelledRecord
    priors : Priors
    ensemble : EnsembleMethod
    begin : callable
    kind : {"likelihood", "em"}
    told : tuple of str
        Name and description of the number that an iteration returns.
    iterations : int
    options : dict
        Further settings that determine the estimate, as plain values.
    seed, store, mode, device, progress
        Arguments of `cycle`.
    """
    if store is not None:
        store = locate(store)
        check_rewritable(store)
        check_apart(ds, store, labelled.observed)
        if exists(store) and not _is_unfinished(store):
            check_writable(store, mode)
    check_observed(labelled)
    setup = labelled.setup
    double = finest(setup.dynamics.one_step, setup.dynamics.start_states()).dtype == torch.float64
    setup = replace(setup, dtype=np.dtype(np.float64 if double else np.float32))
    observation = labelled.observation.compute().to_numpy()
    rows, columns = (slice(0, size) for size in observation.shape[:2])
    record = make_record(setup, observation, rows=rows, columns=columns, seed=seed, device=device)
    with torch.no_grad(), showing_bars(progress):
        method = tune(ensemble, record)
    assert isinstance(method, EnsembleMethod)
    iteration = begin(method, record, setup.dynamics, priors)
    history = _History(priors, iterations)
    description = {
        "kind": kind,
        "ensemble": [method.name, method.config()],
        "dynamics": dynamics_to_json(setup.dynamics),
        "parameters": priors.described(),
        "seed": seed,
        "iterations": iterations,
        **options,
    }

    def made() -> xr.Dataset:
        return _labelled(history, iteration, labelled, setup.dynamics, told, description)

    if store is None:
        _iterate(iteration, history, None, progress)
        return made()
    experiment = observing_identity(setup.observing, setup.dynamics)
    parts = (observation, setup.steps, setup.trajectory, str(setup.dtype), *experiment)
    identity = description | {"record": digest(*parts)}
    with writing(store):
        checkpoint = _opened(store, json.loads(to_json(identity)), mode)
        if (saved := checkpoint.load()) is not None:
            history.restore(saved[0], saved[1]["done"])
            carried = {name.removeprefix("carry_"): v for name, v in saved[0].items() if name.startswith("carry_")}
            iteration.restore({name: array_to_tensor(v, device=device) for name, v in carried.items()}, history.done)
        _iterate(iteration, history, checkpoint, progress)
        with replacing(store) as place:
            made().to_zarr(place, mode="w", consolidated=False, zarr_format=3)
            consolidate(place)
    opened: xr.Dataset = xr.open_zarr(store, consolidated=False)
    return opened


class _History:
    """The results of all iterations. Iteration 0 is the prior's mean."""

    def __init__(self, priors: Priors, iterations: int) -> None:
        self.priors, self.iterations, self.done = priors, iterations, 0
        self.parameters = np.full((iterations + 1, len(priors.mean)), np.nan)
        self.parameters[0] = priors.mean.numpy()
        self.told, self.lost = np.full(iterations + 1, np.nan), np.zeros(iterations + 1, dtype=np.int64)
        self.diverged = np.zeros(iterations + 1, dtype=bool)

    def add(self, parameters: Tensor, told: float, lost: int) -> None:
        """Keep the result of one more iteration. After an iteration that has diverged there are no more."""
        self.done += 1
        self.parameters[self.done], self.told[self.done], self.lost[self.done] = parameters.cpu().numpy(), told, lost
        apart = (parameters.cpu() - self.priors.mean).abs() / self.priors.deviation
        if not bool((apart < _FARTHEST).all()):  # also for NaN
            self.diverged[self.done :] = True

    @property
    def ended(self) -> bool:
        """Whether no iteration is left to do."""
        return self.done == self.iterations or bool(self.diverged[-1])

    def arrays(self) -> dict[str, Array]:
        """Arrays that a store keeps."""
        return {name: getattr(self, name) for name in ("parameters", "told", "lost", "diverged")}

    def restore(self, arrays: dict[str, Array], done: int) -> None:
        """Restore the arrays of a store."""
        self.done = done
        for name in self.arrays():
            getattr(self, name)[...] = arrays[name]


def _iterate(iteration: Iteration, history: _History, checkpoint: Checkpoint | None, progress: bool) -> None:
    """Iterate until the end, or until the estimate diverges; every iteration is saved."""
    if history.done:
        RUNS.info("the estimate goes on at iteration %d of %d", history.done, history.iterations)
    bar = bar_of(history.iterations, "estimating", shown=progress, initial=history.done, unit="iteration")
    with bar:
        while not history.ended:
            told, lost = iteration.iterate()
            history.add(iteration.parameters, told, int(lost.sum()))
            if checkpoint is not None:
                carried = {f"carry_{name}": tensor_to_array(value) for name, value in iteration.saved().items()}
                checkpoint.save(history.arrays() | carried, {"done": history.done})
            bar.update()
            RUNS.info("iteration %d of %d of the estimate is done: %.6g", history.done, history.iterations, told)


def _is_unfinished(store: StoreLike) -> bool:
    try:
        return _MARK in zarr.open_group(store, mode="r").attrs
    except (*MISSING, *DAMAGE):
        return False


def _opened(store: StoreLike, identity: dict[str, Any], mode: str) -> Checkpoint:
    """The checkpoint in a store. Other content that may be overwritten is removed."""
    checkpoint = Checkpoint(store, identity)
    if not exists(store):
        return checkpoint
    if _is_unfinished(store):
        try:
            checkpoint.load()
            return checkpoint
        except OtherRunError as reason:
            if mode != "w":
                raise FileExistsError(
                    f"{store} holds an unfinished estimate of other settings; pass mode='w' to overwrite it, or "
                    f"another path ({reason})"
                ) from None
    with replacing(store) as place:
        marked: dict[str, Any] = {_MARK: to_json(checkpoint.identity)}
        zarr.open_group(place, mode="w", zarr_format=3, attributes=marked)
    return checkpoint


def _labelled(
    history: _History,
    iteration: Iteration,
    labelled: LabelledRecord,
    model: Dynamics,
    told: tuple[str, str],
    description: dict[str, Any],
) -> xr.Dataset:
    """Make the Dataset of a history that has ended. Warn if the estimate diverged."""
    priors, texts, converged = history.priors, [], False
    if history.diverged[-1]:
        estimate = error = torch.full_like(priors.mean, torch.nan)
        texts.append(
            f"the estimate of {list(priors.names)} diverged in iteration {history.done}: it went more than "
            f"{_FARTHEST:g} deviations from the prior's mean, or the filter lost all trajectories. Its history is "
            "kept. Take a smaller rate=, more members=, or a narrower prior"
        )
    else:
        estimate, error, converged = iteration.finish()
        estimate, error = estimate.cpu(), error.cpu()
        if not converged:
            texts.append(
                f"the estimate of {list(priors.names)} by {description['kind']!r} has not converged in {history.done} "
                f"iterations: {_LEFT[description['kind']]}. Look at its history, and give more iterations="
            )
    if history.lost[-1]:
        texts.append(
            f"the filter lost {int(history.lost[-1])} of {len(labelled.setup.trajectory)} trajectories in the last "
            "iteration, which count no more there: take more members=, or another ensemble="
        )
    warn_of(texts)
    variables: dict[str, Any] = {}
    dims, said = dims_of(model, priors), "observed Fisher information" if description["kind"] == "likelihood" else ""
    said = said or "from what each trajectory, or block of time, would make of it"
    for name, past in priors.split(array_to_tensor(history.parameters)).items():
        variables[name] = ((ITERATION, *dims[name]), past.numpy(), attributes_of(name, ""))
    for suffix, value, how in ((ESTIMATE, estimate, ""), (STANDARD_ERROR, error, said)):
        for name, part in priors.split(value).items():
            variables[name + suffix] = (dims[name], part.numpy(), attributes_of(name, suffix, how))
    variables[told[0]] = (ITERATION, history.told, {"long_name": told[1], "units": "1"})
    variables["lost"] = (ITERATION, history.lost, {"long_name": "trajectories that the filter lost", "units": "1"})
    variables[CONVERGED] = ((), converged, {"long_name": "the estimate has converged", "units": "1"})
    flag = {"long_name": "the estimate has diverged in or before this iteration", "units": "1"}
    variables[DIVERGED] = (ITERATION, history.diverged, flag)
    coordinates = coordinates_of_parameters(model, priors)
    coordinates[ITERATION] = (
        ITERATION,
        np.arange(history.iterations + 1),
        {"long_name": "iteration; 0 is the prior's mean", "units": "1"},
    )
    described = {key: value for key, value in description.items() if key not in ("dynamics", "kind", "ensemble")}
    name, parameters = description["ensemble"]
    attrs = attributes(
        model,
        title="estimated parameters",
        method=description["kind"],
        ensemble=name,
        ensemble_parameters=parameters,
        **described,
    )
    return sealed(xr.Dataset(variables, coordinates)).assign_attrs(attrs | attribute(texts))
