"""Pictures of labelled results, with hvplot."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import xarray as xr

from ..assimilation.scoring import score
from ..core.checks import choice, real, shown, switch
from ..core.keywords import checks_keywords
from ..records.record import RecordWords, read
from ..records.schema import TIME, TRAJECTORY
from ..records.wording import shares_words
from .axes import (
    HEIGHT,
    LEGEND_WIDTH,
    WIDTH,
    axis_label,
    cycle_colours,
    cycles_of,
    dataset,
    in_units,
    log_ticks,
    mapping,
    placed,
    text,
)
from .libraries import holoviews, panel
from .state_panels import WITHOUT_TRUTH

# The shaded band, in the words of the title.
_BANDS = {"error": " and its standard error", "quantiles": " and 10 % to 90 % of them", "none": ""}
_QUANTILES = [0.1, 0.9]
_SHADE = 0.25  # opacity


@checks_keywords
@shares_words
def rmse_in_time(
    ds: xr.Dataset,
    runs: Mapping[str, xr.Dataset],
    *,
    cycles: slice | None = None,
    log: bool = False,
    band: str = "error",
    levels: Mapping[str, float] | None = None,
    **words: Unpack[RecordWords],
) -> Any:
    """Draw the analysis RMSE of several runs in time, averaged over trajectories.

    Parameters
    ----------
    ds : xarray.Dataset
        A twin.
    runs : mapping
        Runs by their names.
    cycles : slice, optional
        Positions along `time`; by default all cycles.
    log : bool
        Whether the axis of the RMSE is logarithmic.
    band : {"error", "quantiles", "none"}
        The shaded band: one standard error of the mean on each side, or the 10 % to 90 % quantiles of the trajectories.
        A single trajectory has no band.
    levels : mapping, optional
        RMSE of dashed lines by their names, such as the `rmse` of `lyapunov_floor`.
    {words}

    Returns
    -------
    holoviews.Overlay
        The picture. Several fields give a holoviews.Layout with one Overlay for each field.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, there is no truth, or a run was made on another record.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=10, trajectories=4, seed=0).compute()
    >>> run = ds.dan.baseline("enkf-n", members=5)
    >>> type(ds.dan.rmse_in_time({"EnKF-N": run})).__name__
    'Overlay'
    """
    hv = holoviews()

    band = choice("band", band, tuple(_BANDS))
    heights = {name: real(f"levels[{name!r}]", level, above=0.0) for name, level in (levels or {}).items()}
    cut, log = {TIME: cycles_of(cycles, slice(None))}, switch("log", log)
    runs = mapping("runs", runs, xr.Dataset, "a run, of cycle() or baseline()")
    labelled = read(dataset("ds", ds), needs_truth="a picture of the error", instead=WITHOUT_TRUTH, **words)
    xlabel = axis_label(labelled.observation[TIME])
    panels: dict[str, list[Any]] = {}
    errors: dict[str, list[Any]] = {}
    for (name, run), colour in zip(runs.items(), cycle_colours(len(runs)), strict=True):
        scores = score(ds, run, dim=TRAJECTORY, **words)
        rmse = scores["rmse"].isel(cut).drop_vars(["crps_of", "field_units"], errors="ignore").load()
        if not rmse.size:
            raise ValueError(f"cycles={cycles}: expected some of the record's cycles")
        rmse = rmse.where(rmse > 0) if log else rmse
        when, xticks = placed(rmse[TIME], "x")
        options = {"color": colour, "label": name, "logy": log, "xlabel": xlabel, **xticks}
        of_fields = {"": rmse}
        if "field" in rmse.dims:
            units = scores["field_units"].values
            fields = [str(field) for field in rmse["field"].values]
            headings = [f" of {in_units(field, unit)}" for field, unit in zip(fields, units, strict=True)]
            of_fields = {heading: rmse.isel(field=k, drop=True) for k, heading in enumerate(headings)}
        shades = _band(ds, run, rmse, scores, band, cut, words)
        for number, (field, curve) in enumerate(of_fields.items()):
            title = f"analysis RMSE{field}, mean over trajectories{_BANDS[band] if shades is not None else ''}"
            lines = _rmse_line(curve.assign_coords({TIME: when}), TIME, title=title, **options)
            if shades is not None:
                ends = shades.isel(field=number) if "field" in shades.dims else shades
                shade = hv.Area((when, *_clipped(ends.values, curve.values, log)), TIME, ["low", "high"])
                panels[field] = [*panels.get(field, []), shade.opts(color=colour, alpha=_SHADE, line_alpha=0)]
            panels[field] = [*panels.get(field, []), *lines]
            errors[field] = [*errors.get(field, []), curve.values]
    overlays = []
    span = list(np.asarray(when)[[0, -1]])
    dashed = [
        hv.Curve((span, [height] * 2), label=name).opts(color="black", line_dash="dashed")
        for name, height in heights.items()
    ]
    for field, lines in panels.items():
        yticks = {"yticks": log_ticks(np.concatenate(errors[field]))} if log else {}
        overlays.append(hv.Overlay([*lines, *dashed]).opts(legend_position="right", **yticks))
    return overlays[0] if len(overlays) == 1 else hv.Layout(overlays).cols(1).opts(shared_axes=False)


def _band(
    ds: xr.Dataset,
    run: xr.Dataset,
    mean: xr.DataArray,
    scores: xr.Dataset,
    band: str,
    cut: Mapping[str, slice],
    words: RecordWords,
) -> xr.DataArray | None:
    """Lower and upper ends of the band, along `end`; None if there is no band."""
    if band == "none" or "rmse_standard_error" not in scores or not mean.sizes[TIME] > 1:
        return None
    if band == "error":
        error = scores["rmse_standard_error"].isel(cut).load()
        ends: xr.DataArray = xr.concat([mean - error, mean + error], "end", coords="minimal", compat="override")
        return ends.transpose("end", ...)
    each = score(ds, run, dim=(), **words)["rmse"].isel(cut).load()
    return each.quantile(_QUANTILES, TRAJECTORY, skipna=False).rename(quantile="end").transpose("end", ...)


def _clipped(ends: Any, mean: Any, log: bool) -> tuple[Any, Any]:
    """The ends of a band. On a logarithmic axis they are at least a tenth of the mean, far below the visible range."""
    low, high = ends
    return (np.maximum(low, 0.1 * mean) if log else low), high


def _rmse_line(curve: xr.DataArray, along: str, *, color: str, **options: Any) -> list[Any]:
    """A line of RMSE; with a mark for a single point, as a line through one point is invisible."""
    hv = holoviews()

    mark = [hv.Scatter((curve[along].values, curve.values)).opts(color=color)] if curve.size == 1 else []
    size = {"width": WIDTH + LEGEND_WIDTH, "height": HEIGHT + 60}
    options = {"ylabel": "analysis RMSE", **size, **options}
    return [*mark, curve.hvplot.line(x=along, color=color, **options)]


def training_history(histories: Mapping[str, xr.Dataset] | xr.Dataset) -> Any:
    """Draw validation and training RMSE against training time; of a training without the truth the RMS innovation.

    Parameters
    ----------
    histories : Dataset or mapping of name to Dataset
        `Network.history` of one or several networks.

    Returns
    -------
    holoviews.Overlay

    Raises
    ------
    TypeError, ValueError
        If a value is no history.

    Examples
    --------
    >>> import xdan
    >>> net = xdan.open_network("lorenz96-single")
    >>> type(xdan.training_history(net.history)).__name__
    'Overlay'
    """
    hv = holoviews()

    named = {"network": histories} if isinstance(histories, xr.Dataset) else histories
    named = mapping("histories", named, xr.Dataset, "the history of a network")
    for name, history in named.items():
        if missing := {"seconds", "validation_rmse", "rmse"} - set(history.variables):
            raise ValueError(f"histories[{name!r}] lacks {sorted(missing)}: expected the history of a network")
    curves, errors = [], []
    blind = ["innovation" in history["validation_rmse"].attrs.get("long_name", "") for history in named.values()]
    words = ["analysis RMSE"] * (not all(blind)) + ["RMS innovation"] * any(blind)
    for (name, history), colour in zip(named.items(), cycle_colours(len(named)), strict=True):
        against = history.assign_coords(minutes=("step", history["seconds"].values / 60)).swap_dims(step="minutes")
        for variable, label, dash in (
            ("validation_rmse", "validation", "solid"),
            ("rmse", "training", "dotted"),
        ):
            errors.append(history[variable].values)
            curves += _rmse_line(
                against[variable],
                "minutes",
                color=colour,
                label=f"{name}, {label}",
                line_dash=dash,
                logy=True,
                xlabel="training time (minutes)",
                ylabel=" or ".join(words),
                title="training",
            )
    return hv.Overlay(curves).opts(legend_position="right", yticks=log_ticks(np.concatenate(errors)))


@checks_keywords
def save_page(path: str | Path, sections: Mapping[str, Any], title: str = "xdan", notes: str = "") -> None:
    """Save figures as one HTML page that needs no network.

    Parameters
    ----------
    path : path
        Path of the HTML file, in a folder that exists.
    sections : mapping
        Figures by their headings, from top to bottom.
    title : str
        Title of the page.
    notes : str
        Text in Markdown above the figures.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    TypeError, ValueError
        If an argument is wrong.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=10, trajectories=4, seed=0).compute()
    >>> run = ds.dan.baseline("enkf-n", members=5)
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = pathlib.Path(folder) / "page.html"
    ...     xdan.save_page(page, {"EnKF-N": ds.dan.hovmoller(run)}, title="A first run")
    ...     page.stat().st_size > 10_000
    True
    """
    pn = panel()
    from bokeh.resources import INLINE

    if not isinstance(path, (str, Path)):
        raise TypeError(f"path={shown(path)}: expected a path")
    title, notes = text("title", title), text("notes", notes)
    sections = mapping("sections", sections, object, "a figure")
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {Path(path).parent} to save {Path(path).name} in: expected one, make it first"
        )
    # Headings are HTML: a heading in Markdown has a mark for links that only a style sheet from the network would hide.
    column = pn.Column(pn.pane.HTML(f"<h1>{escape(title)}</h1>"), pn.pane.Markdown(notes, width=WIDTH + 300))
    for heading, figure in sections.items():
        column.append(pn.pane.HTML(f"<h2>{escape(heading)}</h2>"))
        column.append(pn.pane.HoloViews(figure, linked_axes=False))
    column.save(str(path), title=title, resources=INLINE)
