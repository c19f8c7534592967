"""Small records by name, for examples, first steps and reports of faults. They are computed, not downloaded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..core.checks import perhaps, shown
from ..core.dynamics import KuramotoSivashinsky, Lorenz63, Lorenz96, TwoScaleLorenz96
from ..core.observing import FieldSites, Sites
from ..core.twin import TwinExperiment
from .twins import twin


@dataclass(frozen=True)
class _Tutorial:
    """What a record is made from.

    Parameters
    ----------
    what : str
        What it shows, one sentence.
    experiment : callable
        Makes the TwinExperiment.
    cycles, trajectories, seed : int
    start : numpy.datetime64, optional
    change : callable, optional
        Makes the record from the twin.
    """

    what: str
    experiment: Callable[[], TwinExperiment]
    cycles: int = 200
    trajectories: int = 8
    seed: int = 0
    start: Any = None
    change: Callable[[xr.Dataset], xr.Dataset] | None = None

    def make(self) -> xr.Dataset:
        record = twin(
            self.experiment(), cycles=self.cycles, trajectories=self.trajectories, seed=self.seed, start=self.start
        )
        return record if self.change is None else self.change(record)


def _one_trajectory_without_april(ds: xr.Dataset) -> xr.Dataset:
    """A record as a file of observations has it: no dim `trajectory`, and no times of one month."""
    seen = (ds.time < np.datetime64("2010-04-01")) | (ds.time >= np.datetime64("2010-05-01"))
    return ds.isel(trajectory=0, drop=True).isel(time=np.flatnonzero(seen))


_RECORDS = {
    "lorenz96": _Tutorial(
        "Lorenz-96 on a ring, every site observed: the record that every method begins with.",
        lambda: TwinExperiment(Lorenz96()),
    ),
    "lorenz96-sparse": _Tutorial(
        "Lorenz-96 where every fourth site is observed: the others are NaN in `observation`.",
        lambda: TwinExperiment(Lorenz96(), interval=0.15, observe=Sites.every(4)),
    ),
    "dates": _Tutorial(
        "Lorenz-96 with six-hourly dates in 2010, no rows for April, up to 8 of the 40 sites missing at each time, "
        "and no dim `trajectory`.",
        lambda: TwinExperiment(Lorenz96(time_unit=np.timedelta64(5, "D")), observe=Sites.random(32, 40)),
        cycles=640,
        trajectories=1,
        seed=1,
        start=np.datetime64("2010-01-01"),
        change=_one_trajectory_without_april,
    ),
    "wrong-model": _Tutorial(
        "Lorenz-96 whose truth has the forcing 9, where the model of the forecasts has 8.",
        lambda: TwinExperiment(Lorenz96(), truth_dynamics=Lorenz96(forcing=9.0)),
    ),
    "two-fields": _Tutorial(
        "Two-scale Lorenz-96: the slow field U is observed, the fast field V is not.",
        lambda: TwinExperiment(
            TwoScaleLorenz96(),
            observe=FieldSites(TwoScaleLorenz96().space, {"U": Sites.all()}),
            error_std=math.sqrt(0.1),
        ),
        cycles=100,
        trajectories=2,
    ),
    "lorenz63": _Tutorial(
        "Lorenz-63: a state of three components, which lie on no grid.",
        lambda: TwinExperiment(Lorenz63(), interval=0.1, error_std=2.0),
    ),
    "kuramoto-sivashinsky": _Tutorial(
        "The Kuramoto-Sivashinsky equation on a ring of 128 points, a partial differential equation.",
        lambda: TwinExperiment(KuramotoSivashinsky(), interval=1.0),
        cycles=100,
        trajectories=4,
    ),
}


def tutorial(name: str) -> xr.Dataset:
    """Small record of a twin experiment by its name, in memory.

    A name always stands for the same record: setting and seed are fixed. Each takes about a second or less.

    Parameters
    ----------
    name : str
        One of the names in `xdan.tutorials()`.

    Returns
    -------
    xarray.Dataset
        As `xdan.twin` makes it: `truth` and `observation` (trajectory, time, *state), in the units of the state, and
        `observation_error`. The model and the observing network are in the attributes. "dates" has no `trajectory`,
        and "two-fields" has one variable for each role and field, such as `truth_U`.

    Raises
    ------
    TypeError
        If the name is no string.
    ValueError
        If no record has the name.

    See Also
    --------
    tutorials : the names, and what each record shows.
    twin : records of any size and setting.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.tutorial("lorenz96")
    >>> dict(ds.truth.sizes)
    {'trajectory': 8, 'time': 200, 'x': 40}
    >>> float(ds.observation_error)
    1.0
    """
    if not isinstance(name, str):
        raise TypeError(f"name={shown(name)}: expected one of the names {list(_RECORDS)}")
    if name not in _RECORDS:
        raise ValueError(
            f"name={shown(name)} is no record: expected one of {list(_RECORDS)}{perhaps(name, _RECORDS)}; "
            "print(xdan.tutorials()) says what each shows"
        )
    record: xr.Dataset = _RECORDS[name].make().load()
    return record


def tutorials() -> pd.DataFrame:
    """Table of the small records that `tutorial` makes by their names. Nothing is computed.

    Returns
    -------
    pandas.DataFrame
        A row for each name, with the columns `what`, what the record shows; `model`, the class of its model; `sites`,
        the number of values of a state; `cycles`, the number of times; and `trajectories`.
        `print(xdan.tutorials().to_string())` shows it whole.

    See Also
    --------
    tutorial : the record of a name.

    Examples
    --------
    >>> import xdan
    >>> int(xdan.tutorials().loc["lorenz96", "cycles"])
    200
    """
    rows = {}
    for name, record in _RECORDS.items():
        dynamics = record.experiment().dynamics
        rows[name] = {
            "what": record.what,
            "model": type(dynamics).__name__,
            "sites": dynamics.space.size,
            "cycles": record.cycles,
            "trajectories": record.trajectories,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")
