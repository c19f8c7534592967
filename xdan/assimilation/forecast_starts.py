"""States that forecasts start from: analyses, smoothed states, the truth, and members."""

from __future__ import annotations

import warnings

import dask
import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..core.checks import XdanWarning, choice
from ..core.methods.roots import eigh_or_nan
from ..core.random import Purpose, normal
from ..records.blocks import Plan, Setup, block, block_graph
from ..records.record import LabelledRecord
from ..records.runs import held_in, read_run, sizes_in
from ..records.schema import MEMBER, TIME, TRAJECTORY, Array, dual_of

COVARIANCE = "analysis_covariance"
STARTS = ("analysis", "smoothed", "truth")


def single_starts(labelled: LabelledRecord, run: xr.Dataset | None, which: str) -> xr.DataArray:
    """States at all times of the record, dims (trajectory, time, *state).

    Raises
    ------
    TypeError, ValueError
        For another word, a run that lacks the states or is of another record, and a record without a truth.
    """
    which = choice("which", which, STARTS)
    if which == "truth":
        if labelled.truth is None:
            raise ValueError("which='truth' starts from the truth, and the record has none: expected a twin")
        return labelled.truth
    if run is None:
        raise ValueError(f"which={which!r} starts from a run: expected the Dataset that cycle() or baseline() returned")
    return read_run(labelled, run, (which,))[which]


def member_starts(labelled: LabelledRecord, run: xr.Dataset, members: int, seed: int, positions: Array) -> xr.DataArray:
    """Members at some times of the record, dims (trajectory, time, member, *state).

    They are the first of the run's members. Without any they are drawn from the analysis's distribution.

    Raises
    ------
    ValueError
        If the run has fewer members, or says nothing of the errors of its analyses.
    """
    if held_in(labelled, run, ("members",)):
        there = sizes_in(labelled, run, "members").get(MEMBER, 0)
        if there < members:
            raise ValueError(f"members={members}: the run holds {there}; expected at most so many")
        held = read_run(labelled, run, ("members",), extra={MEMBER: there})["members"]
        return held.isel({MEMBER: slice(members), TIME: positions})
    return _drawn(labelled, run, members, seed, positions)


def _drawn(labelled: LabelledRecord, run: xr.Dataset, members: int, seed: int, positions: Array) -> xr.DataArray:
    """Draws from N(analysis, P_a) at some times, lazily, dims (trajectory, time, member, *state)."""
    state = labelled.setup.dynamics.dims
    mean = read_run(labelled, run, ("analysis",))["analysis"]
    size = int(np.prod(labelled.setup.dynamics.shape))
    if held_in(labelled, run, (COVARIANCE,)):
        dual = dual_of(state)
        error = read_run(labelled, run, (COVARIANCE,), extra={dual: size})[COVARIANCE]
    elif held_in(labelled, run, ("spread",)):
        error = read_run(labelled, run, ("spread",))["spread"]
        warnings.warn(
            "the run has a spread and no covariance of its analyses: members are drawn with independent errors, and "
            "correlations between components are left out. Keep the members or the covariance, where the method has "
            "them, with keep_members=True of baseline(), or members=True of cycle()",
            XdanWarning,
            stacklevel=5,
        )
    else:
        raise ValueError(
            f"members={members}: the run holds neither 'members' nor {COVARIANCE!r} nor 'spread', from which members "
            "could be drawn; expected a run of an ensemble method or of a Kalman filter, made with keep_members=True "
            "of baseline() or members=True of cycle(); or leave out members="
        )
    mean = mean.isel({TIME: positions})
    arrays = [mean.chunk().data, error.isel({TIME: positions}).chunk().data]
    plan = Plan.from_chunks(*arrays[0].chunks[:2])
    outputs = {"members": ((members, *mean.shape[2:]), labelled.setup.dtype)}
    setup = dask.delayed(labelled.setup, traverse=False)
    told = setup, members, seed, positions, error.ndim > mean.ndim
    drawn = block_graph(_draw_block, plan, arrays, outputs, *told, dtype=labelled.setup.dtype)["members"]
    labels = {name: mean[name] for name in (TRAJECTORY, TIME)}
    return xr.DataArray(drawn, labels, (TRAJECTORY, TIME, MEMBER, *state), "members")


@block
def _draw_block(
    data: list[Tensor],
    rows: slice,
    columns: slice,
    setup: Setup,
    members: int,
    seed: int,
    positions: Tensor,
    correlated: bool,
) -> dict[str, Tensor]:
    """Draws (B, T, M, *state); the error is a spread (B, T, *state) or a covariance (B, T, N, *state)."""
    mean, error = data[0].flatten(2), data[1]
    times, size = positions[columns], mean.shape[-1]
    keys = setup.keys(rows)
    noise = torch.stack(
        [normal(seed, Purpose.ANALYSIS_DRAW, keys, times, size, stream=member) for member in range(members)], 2
    ).to(mean)
    if not correlated:
        draws = noise * error.flatten(2)[:, :, None]
    else:
        values, vectors = eigh_or_nan(error.reshape(-1, size, size).double())
        root = (vectors * values.clamp_min(0.0).sqrt()[:, None]) @ vectors.mT  # symmetric: no sign is free
        draws = (noise.reshape(-1, members, size) @ root.to(mean)).reshape(noise.shape)
    x = mean[:, :, None] + draws
    return {"members": x.unflatten(-1, data[0].shape[2:])}
