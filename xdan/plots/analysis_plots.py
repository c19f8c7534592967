"""A picture of one analysis: the states, the innovation with the increment, and the errors."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np
import xarray as xr

from ..core.checks import shown
from ..core.keywords import checks_keywords
from ..records.fields import parts_of
from ..records.record import RecordWords
from ..records.runs import read_run
from ..records.schema import TIME, TRAJECTORY
from ..records.wording import shares_words
from .axes import COLOURS, HEIGHT, LEGEND_WIDTH, WIDTH, axis_label, in_units, placed, position
from .libraries import holoviews
from .state_panels import read_states


@checks_keywords
@shares_words
def one_analysis(
    ds: xr.Dataset,
    run: xr.Dataset,
    *,
    trajectory: int = 0,
    cycle: int = -1,
    **words: Unpack[RecordWords],
) -> Any:
    """Draw one analysis: states, innovation and increment, and the errors of forecast and analysis.

    Parameters
    ----------
    ds, run : xarray.Dataset
        A twin, and a run on it that holds its forecast.
    trajectory, cycle : int
        Positions along `trajectory` and `time`; by default the last cycle.
    {words}

    Returns
    -------
    holoviews.Layout
        Three panels. The first has truth, forecast, analysis and observations; the second has the innovation
        y - H x_f, as points, and the increment x_a - x_f; the third has the errors of forecast and analysis.
        Innovations are drawn only if points of the state are observed, not for other operators.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, there is no truth, the run was made on another record, or the state is not one field
        of one dim.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> run = ds.dan.baseline("enkf-n", members=10)
    >>> len(ds.dan.one_analysis(run, trajectory=1, cycle=15))
    3
    """
    hv = holoviews()

    labelled = read_states(ds, words, "a picture of the error")
    assert labelled.truth is not None
    (part, *others), truth = parts_of(labelled.setup.dynamics), labelled.truth
    if others or len(part.dims) != 1:
        raise ValueError(
            f"the state has dims {tuple(truth.dims[2:])}: a line shows one field of one dim, expected that"
        )
    place = {
        TRAJECTORY: position("trajectory", trajectory, truth.sizes[TRAJECTORY]),
        TIME: position("cycle", cycle, truth.sizes[TIME]),
    }
    states = read_run(labelled, run, ("forecast", "analysis"))
    x = {"truth": truth.isel(place).load()}
    x |= {name: states[name].isel(place).load() for name in ("forecast", "analysis")}
    (dim,) = part.dims
    labels = truth[dim] if dim in truth.coords else xr.DataArray(np.arange(truth.sizes[dim]), dims=dim, name=dim)
    labels.attrs = {**part.coordinates[dim].attributes, **labels.attrs}
    at, xticks = placed(labels, "x")
    values = {name: one.values for name, one in x.items()}
    observed = labelled.observation.isel(place).values if labelled.setup.observing.direct else None
    colours = {"truth": COLOURS[-1], "forecast": COLOURS[0], "analysis": COLOURS[1]}

    def line(numbers: Any, label: str, colour: str, axis: str) -> Any:
        return hv.Curve((at, numbers), dim, axis, label=label).opts(color=colour)

    def points(numbers: Any, label: str, axis: str) -> Any:
        seen = np.isfinite(numbers)
        return hv.Scatter((at[seen], numbers[seen]), dim, axis, label=label).opts(color=COLOURS[2], size=6)

    first = [line(values[name], name, colours[name], "state") for name in values]
    second = [line(values["analysis"] - values["forecast"], "increment", COLOURS[3], "change")]
    if observed is not None:
        first.append(points(observed, "observation", "state"))
        second.append(points(observed - values["forecast"], "innovation", "change"))
    third = [
        line(values[name] - values["truth"], f"error of the {name}", colours[name], "error")
        for name in ("forecast", "analysis")
    ]
    time = truth[TIME].values[place[TIME]]
    when = f"{float(time):g}" if np.asarray(time).dtype.kind in "iuf" else shown(str(time))
    headings = {f"states at time {when}": first, "innovation and increment": second, "errors": third}
    names = ("state", "change", "error")
    panels = [
        hv.Overlay(lines).opts(
            title=heading, xlabel=axis_label(labels), ylabel=in_units(name, part.units), legend_position="right",
            width=WIDTH + LEGEND_WIDTH, height=HEIGHT - 20, **xticks,
        )
        for (heading, lines), name in zip(headings.items(), names, strict=True)
    ]  # fmt: skip
    return hv.Layout(panels).cols(1)
