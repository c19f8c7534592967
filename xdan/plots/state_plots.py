"""Pictures of states: space and time for fields of one dim, maps for two, lines for components; a panel a field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import xarray as xr

from ..core.checks import integer
from ..records.fields import Part, coordinates_of, parts_of, split
from ..records.record import LabelledRecord, RecordWords, read
from ..records.runs import read_run
from ..records.schema import TIME, TRAJECTORY
from ..records.wording import shares_words
from .axes import HEIGHT, LEGEND_WIDTH, WIDTH, axis_label, cycles_of, dataset, in_units, placed, position, text
from .libraries import holoviews

_SIDE = 380  # pixels of the longer side of a map
_MOST_LINES = 12  # components that are drawn


@dataclass(frozen=True)
class FieldPair:
    """Truth and analysis of one field along a trajectory, lazy where record and run are.

    Attributes
    ----------
    part : Part
    truth, analysis : xarray.DataArray, dims (time, *dims of the field)
    """

    part: Part
    truth: xr.DataArray
    analysis: xr.DataArray

    @property
    def kind(self) -> str:
        """What draws it: one of the keys of `KINDS`."""
        if len(self.part.dims) == 2:
            return "map"
        geometry = self.part.geometry
        return "lines" if geometry is not None and geometry.drawn_as == "lines" else "hovmoller"

    def at(self, times: slice) -> xr.Dataset:
        """Truth, analysis and error at some cycles, loaded, under the truth's labels."""
        truth = self.truth.isel({TIME: times}).load()
        analysis = self.analysis.isel({TIME: times}).load().assign_coords(truth.coords)
        return xr.Dataset({"truth": truth, "analysis": analysis, "error": analysis - truth})

    def heading(self, label: str, title: str) -> str:
        """Title of a panel."""
        of_method = f" of {title}" if title and label != "truth" else ""
        return f"{label}{of_method}" if self.part.field is None else f"{self.part.field.title}: {label}{of_method}"


def read_with_truth(ds: xr.Dataset, words: RecordWords, purpose: str) -> LabelledRecord:
    """Understand a record with a truth, whose fields have one or two dims.

    `purpose` says what the truth is needed for, as the subject of an error's sentence.

    Raises
    ------
    TypeError, ValueError
        For another record.
    """
    labelled = read(dataset("ds", ds), needs_truth=purpose, **words)
    for part in parts_of(labelled.setup.dynamics):
        if not 1 <= len(part.dims) <= 2:
            raise ValueError(f"{part.label} has dims {part.dims}: expected one or two, as pictures have")
    return labelled


def field_pairs(labelled: LabelledRecord, run: xr.Dataset, row: int, what: str = "run") -> list[FieldPair]:
    """The fields of the truth and of a run on it, along one trajectory; nothing is read.

    Raises
    ------
    ValueError
        If the run is of another record.
    """
    assert labelled.truth is not None
    model = labelled.setup.dynamics
    cut = {TRAJECTORY: row}
    truth = split(labelled.truth.isel(cut, drop=True), model, "truth")
    analysis = split(read_run(labelled, run, ("analysis",), what)["analysis"].isel(cut, drop=True), model, "analysis")
    pairs = []
    for part in parts_of(model):
        x = truth[part.name("truth")]
        own = {dim: labels for dim, labels in coordinates_of(part).items() if dim not in x.coords}
        x = x.assign_coords(own)
        for dim in part.dims:  # labels without attributes have the geometry's
            x[dim].attrs = {**part.coordinates[dim].attributes, **x[dim].attrs}
        pairs.append(FieldPair(part, x, analysis[part.name("analysis")]))
    return pairs


@shares_words
def hovmoller(
    ds: xr.Dataset,
    run: xr.Dataset,
    *,
    trajectory: int = 0,
    cycles: slice | None = None,
    title: str = "",
    **words: Unpack[RecordWords],
) -> Any:
    """Truth, analysis and error of one trajectory in space and time, for every field of one dim.

    Components are drawn so where there is no other field of one dim; `component_curves` draws them as lines.

    Parameters
    ----------
    ds, run : xarray.Dataset
        Twin, and a run on it.
    trajectory : int
        Position along `trajectory`.
    cycles : slice, optional
        Positions along `time`; the last 200 by default.
    title : str
        Of the method.
    {words}

    Returns
    -------
    holoviews.Layout
        Three panels for each field, that share their axes; truth and analysis share one colour scale.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, there is no truth, the run is of another record, or no field has one dim.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=10, trajectories=4, seed=0).compute()
    >>> run = ds.dan.baseline("enkf-n", members=5)
    >>> type(ds.dan.hovmoller(run, title="EnKF-N")).__name__
    'Layout'
    """
    options: dict[str, Any] = {"cycles": cycles, "title": title, "words": words}
    return _picture(_hovmoller, ds, run, trajectory, "a Hovmöller diagram shows one", dims=1, **options)


@shares_words
def field_maps(
    ds: xr.Dataset,
    run: xr.Dataset,
    *,
    trajectory: int = 0,
    cycle: int = -1,
    title: str = "",
    **words: Unpack[RecordWords],
) -> Any:
    """Maps of truth, analysis and error at one time, for every field of two dims.

    Parameters
    ----------
    ds, run : xarray.Dataset
        Twin, and a run on it.
    trajectory, cycle : int
        Positions along `trajectory` and `time`; the last cycle by default.
    title : str
        Of the method.
    {words}

    Returns
    -------
    holoviews.Layout
        A row for each field, with equal units along both axes; truth and analysis share one colour scale.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, there is no truth, the run is of another record, or no field has two dims.

    Examples
    --------
    >>> import xdan
    >>> model = xdan.CustomDynamics(lambda x: -x, state={"y": 3, "x": 4}, timestep=0.05, spin_up_time=1.0)
    >>> ds = xdan.twin(model, cycles=4, seed=0).compute()
    >>> run = ds.dan.baseline("enkf-n", members=5, dynamics=model)
    >>> type(ds.dan.field_maps(run, dynamics=model)).__name__
    'Layout'
    """
    chosen = slice(cycle, cycle + 1 or None) if isinstance(cycle, int) else cycle
    options: dict[str, Any] = {"cycles": chosen, "title": title, "words": words}
    integer("cycle", cycle)
    return _picture(_maps, ds, run, trajectory, "a map shows two", dims=2, **options)


@shares_words
def component_curves(
    ds: xr.Dataset,
    run: xr.Dataset,
    *,
    trajectory: int = 0,
    cycles: slice | None = None,
    title: str = "",
    **words: Unpack[RecordWords],
) -> Any:
    """Truth and analysis of single components in time, or where there are none, of the points of fields of one dim.

    Parameters
    ----------
    ds, run : xarray.Dataset
        Twin, and a run on it.
    trajectory : int
        Position along `trajectory`.
    cycles : slice, optional
        Positions along `time`; the last 200 by default.
    title : str
        Of the method.
    {words}

    Returns
    -------
    holoviews.Layout
        A panel for each component; of a field of more than 12, for 12 spread over it.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, there is no truth, the run is of another record, or no field has one dim.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz63(), interval=0.1, cycles=5, seed=0).compute()
    >>> run = ds.dan.baseline("enkf-n", members=3, climatology="record")
    >>> type(ds.dan.component_curves(run)).__name__
    'Layout'
    """
    options: dict[str, Any] = {"cycles": cycles, "title": title, "words": words}
    return _picture(_curves, ds, run, trajectory, "a line shows one component of one", dims=1, **options)


def state_pictures(pairs: list[FieldPair], cycles: slice, title: str) -> list[Any]:
    """A picture for every kind of field: each of its own kind, maps at the first of the cycles."""
    pictures = []
    for kind, draw in KINDS.items():
        if some := [pair for pair in pairs if pair.kind == kind]:
            times = slice(cycles.start, cycles.start + 1) if kind == "map" else cycles
            pictures.append(draw(some, times, title))
    return pictures


def _picture(
    draw: Callable[[list[FieldPair], slice, str], Any],
    ds: xr.Dataset,
    run: xr.Dataset,
    trajectory: int,
    shows: str,
    *,
    dims: int,
    cycles: slice | None,
    title: str,
    words: RecordWords,
) -> Any:
    title, times = text("title", title), cycles_of(cycles, slice(-200, None))
    labelled = read_with_truth(ds, words, "a picture of the error")
    assert labelled.truth is not None
    row = position("trajectory", trajectory, labelled.truth.sizes[TRAJECTORY])
    pairs = field_pairs(labelled, run, row)
    fitting = [pair for pair in pairs if len(pair.part.dims) == dims]
    # Beside fields that are usually drawn so, others of as many dims are left to their own picture.
    drawn = [pair for pair in fitting if KINDS[pair.kind] is draw] or fitting
    if not drawn:
        raise ValueError(f"the state has dims {pairs[0].part.dims}: {shows}, expected {dims}; see xdan.explore")
    if not labelled.truth[0, times].size:
        raise ValueError(f"cycles={cycles}: expected some of the {labelled.truth.sizes[TIME]} cycles")
    return draw(drawn, times, title)


def _colours(values: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Colours of each panel: about zero, or for a truth of one sign, from its least to its largest value."""
    truth = values["truth"].values
    finite = truth[np.isfinite(truth)]
    state = _about_zero(values["truth"], 1.0)
    if finite.size and np.ptp(finite) > 0 and (finite.min() > 0 or finite.max() < 0):
        state = {"cmap": "viridis", "clim": (float(finite.min()), float(finite.max()))}
    return {"truth": state, "analysis": state, "error": _about_zero(values["error"], 0.995)}


def _hovmoller(pairs: list[FieldPair], times: slice, title: str) -> Any:
    """Three rows, a column for each field."""
    hv = holoviews()

    columns = []
    for pair in pairs:
        (dim,), values = pair.part.dims, pair.at(times)
        heights, yticks = placed(values[dim], "y")
        when, xticks = placed(values[TIME], "x")
        labels = {"xlabel": axis_label(values[TIME]), "ylabel": axis_label(values[dim])}
        column = []
        for label, colours in _colours(values).items():
            field = values[label].assign_coords({dim: heights, TIME: when}).drop_attrs()
            panel = field.rename(in_units(label, pair.part.units)).hvplot.quadmesh(
                x=TIME,
                y=dim,
                title=pair.heading(label, title),
                width=WIDTH if len(pairs) == 1 else int(0.7 * WIDTH),
                height=HEIGHT,
                rasterize=False,
                **colours,
                **labels,
                **xticks,
                **yticks,
            )
            column.append(panel)
        columns.append(column)
    layout = hv.Layout([column[k] for k in range(3) for column in columns]).cols(len(columns))
    # Fields of two grids have axes of their own.
    return layout if len(columns) == 1 else layout.opts(shared_axes=False)


def _maps(pairs: list[FieldPair], times: slice, title: str) -> Any:
    """Three columns, a row for each field."""
    hv = holoviews()

    panels = []
    for pair in pairs:
        (rows, columns), values = pair.part.dims, pair.at(times).isel({TIME: 0})
        time = values[TIME].values
        when = f"time {time:g}" if time.dtype.kind in "iuf" else str(time)[:16]
        heights, yticks = placed(values[rows], "y")
        widths, xticks = placed(values[columns], "x")
        reach = float(np.ptp(widths)), float(np.ptp(heights))
        scale = _SIDE / max(*reach, 1e-300)
        # Equal units along both axes; a strip stays wide enough to be seen.
        width, height = (max(_SIDE // 4, round(scale * one)) for one in reach)
        for label, colours in _colours(values).items():
            field = values[label].drop_vars(TIME).assign_coords({rows: heights, columns: widths}).drop_attrs()
            panel = field.rename(in_units(label, pair.part.units)).hvplot.quadmesh(
                x=columns,
                y=rows,
                title=f"{pair.heading(label, title)} at {when}",
                xlabel=axis_label(values[columns]),
                ylabel=axis_label(values[rows]),
                frame_width=width,
                frame_height=height,
                rasterize=False,
                **colours,
                **xticks,
                **yticks,
            )
            panels.append(panel)
    return hv.Layout(panels).cols(3).opts(shared_axes=False)


def _curves(pairs: list[FieldPair], times: slice, title: str) -> Any:
    """A panel for each component."""
    hv = holoviews()

    panels = []
    for pair in pairs:
        (dim,), values = pair.part.dims, pair.at(times)
        when, xticks = placed(values[TIME], "x")
        labels = values[dim].values.tolist()
        shown = np.unique(np.linspace(0, len(labels) - 1, min(len(labels), _MOST_LINES)).round().astype(int))
        for k in shown:
            name = f"{labels[k]:g}" if isinstance(labels[k], float) else str(labels[k])
            field = "" if pair.part.field is None else f"{pair.part.field.title} "
            lines = []
            for label, colour in (("truth", "#000000"), ("analysis", "#D55E00")):
                # Panels share an axis where they share a dimension's name: that of time alone.
                curve = hv.Curve((when, values[label].isel({dim: k}).values), TIME, f"{field}{name}", label=label)
                lines.append(curve.opts(color=colour, line_dash="solid" if label == "truth" else "dashed"))
            panel = hv.Overlay(lines).opts(
                title=f"{field}{name}{', analysis of ' + title if title else ''}",
                xlabel=axis_label(values[TIME]),
                ylabel=in_units(f"{field}{name}", pair.part.units),
                legend_position="right",
                width=WIDTH + LEGEND_WIDTH // 2,
                height=HEIGHT - 60,
                **xticks,
            )
            panels.append(panel)
    return hv.Layout(panels).cols(1)


KINDS: dict[str, Callable[[list[FieldPair], slice, str], Any]] = {
    "hovmoller": _hovmoller,
    "map": _maps,
    "lines": _curves,
}


def _about_zero(values: xr.DataArray, quantile: float) -> dict[str, Any]:
    """Colours from minus to plus a quantile of the finite sizes: 1 where there are none, or all are zero."""
    sizes = np.abs(values.values[np.isfinite(values.values)])
    bound = (float(np.quantile(sizes, quantile)) if sizes.size else 0.0) or 1.0
    return {"cmap": "RdBu_r", "clim": (-bound, bound)}
