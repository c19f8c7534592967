"""Blocks of forecasts: their variables, their computation, and the warnings about lost forecasts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.lead_times import ErrorDraws, states_by_lead
from ..core.progress import WorkKey, ticking, undisturbed
from ..records.blocks import Setup, block
from ..records.fields import parts_of
from ..records.leads import LEAD, VALID_TIME
from ..records.record import LabelledRecord
from ..records.schema import MEMBER, TIME, TRAJECTORY, Array
from ..records.streams import Stream
from ..records.watch import warn_of
from .run_layout import Layout, Variable


@dataclass(frozen=True)
class Settings:
    """The settings that determine the forecasts of a block, beside their starts and the record's set-up.

    Attributes
    ----------
    positions : array of int, shape (T,)
        Positions of all starts in the record.
    clocks : list of int, length T
        Model steps from the record's first analysis to each start.
    steps : list of int, length L
        Model steps in each lead time.
    interval : int
        Model steps in the record's shortest interval. Q adds an error after each such interval.
    seed : int
    members : bool
        Whether members are forecast.
    starts_from : str
        "analysis", "smoothed" or "truth".
    """

    positions: Array
    clocks: list[int]
    steps: list[int]
    interval: int
    seed: int
    members: bool
    starts_from: str


_OUTPUTS = {
    "forecast": "forecast from the analysis",
    "forecast_spread": "standard deviation of the members' forecasts",
    "forecast_members": "forecasts of the members",
}


def forecast_layout(labelled: LabelledRecord, starts: int, leads: int, members: int | None, keep: bool) -> Layout:
    """Describe every variable of the result, by name."""
    setup = labelled.setup
    if taken := sorted({LEAD, MEMBER, VALID_TIME} & {dim for part in parts_of(setup.dynamics) for dim in part.dims}):
        raise ValueError(f"the state has the dims {taken}, which forecasts use: expected other names in the dynamics")
    dims, sizes = (TRAJECTORY, TIME, LEAD), (len(setup.trajectory), starts, leads)
    names = ["forecast", *(["forecast_spread"] if members else []), *(["forecast_members"] if members and keep else [])]
    layout: Layout = {}
    for stem in names:
        inner = ((MEMBER,), (members,)) if stem == "forecast_members" else ((), ())
        words = "mean of the members' forecasts" if members and stem == "forecast" else _OUTPUTS[stem]
        for part in parts_of(setup.dynamics):
            shape = (*sizes, *inner[1], *part.shape)
            said = part.attributes(stem, words)
            layout[part.name(stem)] = Variable((*dims, *inner[0], *part.dims), shape, setup.dtype, said, stem, part)
    lost = {"long_name": "the forecast is not finite at or before this lead time", "units": "1"}
    return layout | {"diverged": Variable(dims, sizes, np.dtype(bool), lost, "diverged")}


def forecast_block(
    warns: bool,
    key: WorkKey | None,
    data: Sequence[Any],
    rows: slice,
    columns: slice,
    setup: Setup,
    settings: Settings,
    layout: Layout,
    device: str,
) -> dict[str, Array]:
    """Compute the forecasts of one block. With `warns`, the block warns, as nothing checks a lazy result as a whole."""
    outputs: dict[str, Array] = _forecast_tensors(
        data[0], rows, columns, setup, settings, layout, ticking(key), dtype=setup.dtype, device=device
    )
    if warns:
        warn_of(
            lost_texts(outputs["diverged"], settings.starts_from, np.array(settings.steps) * setup.dynamics.timestep)
        )
    return outputs


def stream_block(
    key: WorkKey,
    stream: Stream,
    place: tuple[int, int],
    starts: Array,
    setup: Setup,
    settings: Settings,
    layout: Layout,
    device: str,
) -> None:
    """Forecast from one block, and write the result."""
    rows, columns = stream.plan.rows(place[0]), stream.plan.columns(place[1])
    outputs = forecast_block(False, key, [starts], rows, columns, setup, settings, layout, device)
    with undisturbed(key):
        stream.write(*place, outputs, {})


@block
def _forecast_tensors(
    starts: Tensor,
    rows: slice,
    columns: slice,
    setup: Setup,
    settings: Settings,
    layout: Layout,
    tick: Callable[[], None] | None,
) -> dict[str, Tensor]:
    """Forecast from starts (B, T, [M,] *state); every variable has the shape (B, T, L, ...). A lead time is a tick."""
    stems = {one.stem for one in layout.values()}
    lead = 3 if settings.members else 2
    x = starts.flatten(lead)
    model, draws = setup.dynamics, None
    if settings.members and model.model_error is not None:
        positions = torch.tensor(settings.positions[columns].tolist(), device=x.device)
        keys = setup.keys(rows).to(x.device)
        draws = ErrorDraws(model.model_error, settings.interval, settings.seed, keys, positions)
    made: dict[str, list[Tensor]] = {stem: [] for stem in stems}
    for states, alive in states_by_lead(model, x, settings.clocks[columns], settings.steps, draws):
        made["diverged"].append(~alive)
        made["forecast"].append(states.mean(2) if settings.members else states)
        if "forecast_spread" in stems:
            made["forecast_spread"].append(states.std(2, correction=min(1, states.shape[2] - 1)))
        if "forecast_members" in stems:
            made["forecast_members"].append(states)
        if tick is not None:
            tick()
    stacked = {stem: torch.stack(values, 2) for stem, values in made.items()}
    return {name: one.of(stacked[one.stem]) for name, one in layout.items()}


def lost_texts(diverged: Array, starts_from: str, leads: Array) -> list[str]:
    """Say how many forecasts are not finite, and from which lead time on."""
    diverged = diverged.reshape(-1, *diverged.shape[-2:])  # a record of one run has no dim `trajectory`
    at_start, at_end = diverged[:, :, 0], diverged[:, :, -1]
    if starts_from == "smoothed":  # the last times of a run have no smoothed state
        later = np.logical_and.accumulate(np.flip(at_start.all(0)))[::-1]
        at_start, at_end = at_start & ~later, at_end & ~later
    texts, total = [], at_end.size
    if at_start.any():
        texts.append(
            f"{int(at_start.sum())} of {total} forecasts start from states that are not finite, as the run has "
            "diverged there: they are NaN"
        )
    if (blown := at_end & ~at_start).any():
        first = leads[int(np.argmax((diverged & blown[:, :, None]).any((0, 1))))]
        texts.append(
            f"{int(blown.sum())} of {total} forecasts leave all bounds, the first after {first:g} in model time, and "
            "are NaN from there on: look at the model's time step"
        )
    return texts
