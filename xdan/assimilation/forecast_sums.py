"""Sums over the cases of a block of forecasts, and the climate with which forecasts are compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core import lead_scores as kernels
from ..core.ensemble_scores import rank_counts
from ..core.methods.climate import climate_moments, climate_variances
from ..core.user_functions import finest
from ..records.blocks import Setup, block
from ..records.schema import Array

_LARGE = 1024  # most components of a state for which a covariance of the climate is formed


@dataclass(frozen=True)
class Target:
    """The quantity with which forecasts are compared, and how its components are averaged.

    Attributes
    ----------
    setup : Setup
    observed : bool
        Whether forecasts are compared with observations, in the space of observations.
    parts : tuple of (slice, array or None)
        Components of each field, and their weights in the field's mean; None if all weights are equal.
    """

    setup: Setup
    observed: bool
    parts: tuple[tuple[slice, Array | None], ...]


def climate_of(setup: Setup) -> dict[str, Array]:
    """Mean and variance of the climatology, shape (N,) each, in double precision."""
    answer: dict[str, Array] = _climate(np.zeros(()), setup)
    return answer


@block
def _climate(_: Tensor, setup: Setup) -> dict[str, Tensor]:
    model = setup.dynamics
    size = math.prod(model.shape)
    replaced = model.given_climate is not None
    like = finest(model.one_step, model.start_states() if replaced else torch.zeros(1, *model.shape))
    if size > _LARGE:
        mean, variance = climate_variances(model, 0, like)
    else:
        mean, covariance = climate_moments(model, 0, like)
        variance = covariance.diagonal()
    return {"mean": mean.double(), "variance": variance.double()}


def sums_block(
    data: Mapping[str, Array],
    actual: Array,
    valid: Array,
    first: int,
    first_step: int,
    target: Target,
    climate: Mapping[str, Array],
    over_time: bool,
    smoothed: bool,
) -> dict[str, Array]:
    """Sums and ranks of a block of forecasts (B, T, L, *state), one lead time after another.

    Parameters
    ----------
    data : mapping of str to array
    actual : array, shape (B, K, ...)
        Truth or observations, from the position `first` of the record on.
    valid : array of int, shape (T, L)
    first_step : int
        Model steps in the first lead time. Step 0 is the start, which persistence keeps.
    """
    held = {name: np.reshape(values, (*values.shape[: 3 + (name == "forecast_members")], -1))
            for name, values in data.items()}  # fmt: skip
    y = np.reshape(actual, (*actual.shape[:2], -1))
    count, starts, leads = held["forecast"].shape[:3]
    members = held["forecast_members"].shape[3] if "forecast_members" in held else 0
    begin = held["forecast"][:, :, 0] if first_step == 0 else None
    sums = np.zeros((count, starts, leads, len(target.parts), len(kernels.MOMENTS)))
    ranks = np.zeros((count, starts, leads, len(target.parts), members + 1))
    started: Array = np.ones((count, starts), dtype=bool)
    if smoothed:
        started = np.all(np.isfinite(held["forecast"][:, :, 0]), axis=-1)
    for lead in range(leads):
        there = np.flatnonzero(valid[:, lead] >= 0)
        if not len(there):
            continue
        times = valid[there, lead]
        later = y[:, times - first].astype(np.float64)
        cases = {name: values[:, there, lead] for name, values in held.items()}
        if begin is not None:
            cases["start"] = begin[:, there]
        cases["mean"] = np.broadcast_to(climate["mean"], (1, len(there), climate["mean"].size))
        known: Array = np.isfinite(later)
        noise = None
        if target.observed:
            cases, noise = _observed(cases, times, target)
        else:
            known = np.broadcast_to(known.all(-1, keepdims=True), known.shape)
        known = known & started[:, there, None]
        for k, (place, share) in enumerate(target.parts):
            part = {name: values[..., place] for name, values in cases.items()}
            counts = known[..., place]
            size = counts.shape[-1]
            weights = counts * (1.0 if target.observed else np.full(size, 1 / size) if share is None else share)
            within = later[..., place]
            sums[:, there, lead, k] = kernels.case_sums(
                part["forecast"],
                within,
                weights,
                mean=part["mean"],
                start=part.get("start"),
                noise=None if noise is None else np.broadcast_to(noise[..., place], within.shape),
                spread=part.get("forecast_spread"),
                members=None if target.observed else part.get("forecast_members"),
            )
            if members and not target.observed:
                ranked = np.where(counts, within, np.nan)
                ranks[:, there, lead, k] = rank_counts(ranked, np.moveaxis(part["forecast_members"], -2, -1))
    if over_time:
        sums, ranks = sums.sum(1, keepdims=True), ranks.sum(1, keepdims=True)
    return {"sums": sums, "ranks": ranks}


def _observed(cases: Mapping[str, Array], times: Array, target: Target) -> tuple[dict[str, Array], Array]:
    """The cases in the space of the observations, and the variance of the observations' errors."""
    states = dict(cases)
    spread = states.pop("forecast_spread", None)
    made: dict[str, Array] = _in_observation_space(states, times, target.setup)
    variance = made.pop("variance")
    if target.setup.observing.direct and spread is not None:
        made["forecast_spread"] = spread
    elif "forecast_members" in made:
        members = made["forecast_members"]
        made["forecast_spread"] = members.std(2, ddof=min(1, members.shape[2] - 1))
    return made, variance


@block
def _in_observation_space(states: dict[str, Tensor], times: Tensor, setup: Setup) -> dict[str, Tensor]:
    """H of states (B, T, [M,] N) at positions in time, and the diagonal of R there, (T or 1, P)."""
    made = {}
    for name, x in states.items():
        x = x.double()
        observing = setup.observing.during(times).to(x.dtype, x.device)
        if x.ndim == 4:  # an H that changes in time expects time just before the components
            folded = x.movedim(2, 1).flatten(0, 1)
            made[name] = observing.observe(folded).unflatten(0, (x.shape[0], x.shape[2])).movedim(1, 2)
        else:
            made[name] = observing.observe(x)
    variance = observing.error_variance()
    made["variance"] = torch.broadcast_to(variance, (*variance.shape[:-1], made["forecast"].shape[-1]))
    return made
