"""Pictures of states: space and time for fields of one dim, maps for two dims, and lines for components."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import xarray as xr

from ..core.checks import integer
from ..core.keywords import checks_keywords
from ..records.record import RecordWords
from ..records.schema import TIME, TRAJECTORY
from ..records.wording import shares_words
from .axes import COLOURS, HEIGHT, LEGEND_WIDTH, WIDTH, cycles_of, position, text
from .libraries import holoviews
from .state_panels import (
    FieldPair,
    colours_of,
    component_panels,
    field_pairs,
    map_panel,
    read_states,
    space_and_time,
)

_SIDE = 380  # pixels of the longer side of a map


@checks_keywords
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
    """Draw truth, analysis and error of one trajectory in space and time, for every field of one dim.

    Components are drawn in this way if there is no other field of one dim. `component_curves` draws them as lines.

    Parameters
    ----------
    ds, run : xarray.Dataset
        A record, and a run on it. Without a truth the analysis is drawn alone.
    trajectory : int
        Position along `trajectory`.
    cycles : slice, optional
        Positions along `time`; by default the last 200.
    title : str
        Name of the method, for the titles of panels.
    {words}

    Returns
    -------
    holoviews.Layout
        Three panels for each field, or one without a truth. The panels share their axes; truth and analysis share a
        colour scale.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, the run was made on another record, or no field has one dim.

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


@checks_keywords
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
    """Draw maps of truth, analysis and error at one time, for every field of two dims.

    Parameters
    ----------
    ds, run : xarray.Dataset
        A record, and a run on it. Without a truth the analysis is drawn alone.
    trajectory, cycle : int
        Positions along `trajectory` and `time`; by default the last cycle.
    title : str
        Name of the method, for the titles of panels.
    {words}

    Returns
    -------
    holoviews.Layout
        A row for each field, with equal units along both axes. Truth and analysis share a colour scale.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, the run was made on another record, or no field has two dims.

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


@checks_keywords
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
    """Draw truth and analysis of single components in time; if there are none, of the points of fields of one dim.

    Parameters
    ----------
    ds, run : xarray.Dataset
        A record, and a run on it. Without a truth the analysis is drawn alone.
    trajectory : int
        Position along `trajectory`.
    cycles : slice, optional
        Positions along `time`; by default the last 200.
    title : str
        Name of the method, for the titles of panels.
    {words}

    Returns
    -------
    holoviews.Layout
        A panel for each component. A field of more than 12 components has panels for 12 of them, spread over the field.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, the run was made on another record, or no field has one dim.

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
    labelled = read_states(ds, words)
    sizes = labelled.observation.sizes
    row = position("trajectory", trajectory, sizes[TRAJECTORY])
    pairs = field_pairs(labelled, run, row)
    fitting = [pair for pair in pairs if len(pair.part.dims) == dims]
    # If some fields are usually drawn in this way, other fields with as many dims are left to another picture.
    drawn = [pair for pair in fitting if KINDS[pair.kind] is draw] or fitting
    if not drawn:
        raise ValueError(f"the state has dims {pairs[0].part.dims}: {shows}, expected {dims}; see xdan.explore")
    if not len(range(sizes[TIME])[times]):
        raise ValueError(f"cycles={cycles}: expected some of the {sizes[TIME]} cycles")
    return draw(drawn, times, title)


def _hovmoller(pairs: list[FieldPair], times: slice, title: str) -> Any:
    """Truth, analysis and error below each other, and a column for each field."""
    hv = holoviews()

    columns = []
    for pair in pairs:
        values, width = pair.at(times), WIDTH if len(pairs) == 1 else int(0.7 * WIDTH)
        columns.append(
            [
                space_and_time(
                    pair, values, label, title=pair.heading(label, title), width=width, height=HEIGHT, **colours
                )
                for label, colours in colours_of(values).items()
            ]
        )
    layout = hv.Layout([column[k] for k in range(len(columns[0])) for column in columns]).cols(len(columns))
    # Fields of different grids have separate axes.
    return layout if len(columns) == 1 else layout.opts(shared_axes=False)


def _maps(pairs: list[FieldPair], times: slice, title: str) -> Any:
    """Truth, analysis and error side by side, and a row for each field."""
    hv = holoviews()

    panels = []
    for pair in pairs:
        values = pair.at(times)
        for label, colours in colours_of(values).items():
            heading = pair.heading(label, title)
            panels.append(map_panel(pair, values, label, title=heading, most=(_SIDE, _SIDE), **colours))
    return hv.Layout(panels).cols(len(panels) // len(pairs)).opts(shared_axes=False)


def _curves(pairs: list[FieldPair], times: slice, title: str) -> Any:
    """A panel for each component."""
    hv = holoviews()

    sizes = {"width": WIDTH + LEGEND_WIDTH // 2, "height": HEIGHT - 60}
    of_method = f", analysis of {title}" if title else ""
    colours = {"analysis": COLOURS[1]}
    panels = [
        panel
        for pair in pairs
        for panel in component_panels(pair, {"analysis": pair.at(times)}, colours, title=of_method, **sizes)
    ]
    return hv.Layout(panels).cols(1)


KINDS: dict[str, Callable[[list[FieldPair], slice, str], Any]] = {
    "hovmoller": _hovmoller,
    "map": _maps,
    "lines": _curves,
}
