"""States from which forecasts start: analyses, smoothed states, the truth, or members."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ..core.checks import choice
from ..records.record import LabelledRecord
from ..records.runs import held_in, read_run, sizes_in
from ..records.schema import MEMBER, TIME, TRAJECTORY, Array, dual_of
from .drawing import draw_members

COVARIANCE = "analysis_covariance"
STARTS = ("analysis", "smoothed", "truth")


def single_starts(labelled: LabelledRecord, run: xr.Dataset | None, which: str) -> xr.DataArray:
    """States from which single forecasts start, at all times of the record, dims (trajectory, time, *state).

    Raises
    ------
    TypeError, ValueError
        If `which` is another word, the run lacks the states or belongs to another record, or the record has no truth.
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
    """Members from which forecasts start, at some times of the record, dims (trajectory, time, member, *state).

    They are the first members of the run. If the run has none, they are drawn from the distribution of the analysis.

    Raises
    ------
    ValueError
        If the run has fewer members, or neither members nor a distribution.
    """
    if held_in(labelled, run, ("members",)):
        there = sizes_in(labelled, run, "members").get(MEMBER, 0)
        if there < members:
            raise ValueError(f"members={members}: the run holds {there}; expected at most so many")
        held = read_run(labelled, run, ("members",), extra={MEMBER: there})["members"]
        return held.isel({MEMBER: slice(members), TIME: positions})
    known = read_run(labelled, run, ("analysis",))
    if held_in(labelled, run, (COVARIANCE,)):
        setup = labelled.setup
        extra = {dual_of(setup.dynamics.dims): int(np.prod(setup.dynamics.shape))}
        known |= read_run(labelled, run, (COVARIANCE,), extra=extra)
    elif held_in(labelled, run, ("spread",)):
        known |= read_run(labelled, run, ("spread",))
    else:
        raise ValueError(
            f"members={members}: the run holds neither 'members' nor {COVARIANCE!r} nor 'spread', from which members "
            "could be drawn; expected a run of an ensemble method, a Kalman filter or a network with a spread, such as "
            "xdan.calibrate(net, ds) gives; or leave out members="
        )
    labels = {name: labelled.observation[name] for name in (TRAJECTORY, TIME)}
    unlabelled = {name: one.drop_vars(list(one.coords)).drop_attrs() for name, one in known.items()}
    drawn = draw_members(xr.Dataset(unlabelled, labels).isel({TIME: positions}), members, seed)
    assert isinstance(drawn, xr.DataArray)
    return drawn
