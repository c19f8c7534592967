"""Pictures of labelled results, with hvplot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from .experiment import read, read_run
from .schema import TIME, TRAJECTORY

WIDTH, _HEIGHT, LEGEND_WIDTH = 760, 260, 210
PADDING = 0.04  # share of a picture's axes beyond its points
# Okabe and Ito's colours, told apart with every kind of colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def hovmoller(
    ds: xr.Dataset,
    run: xr.Dataset,
    *,
    trajectory: int = 0,
    cycles: slice | None = None,
    title: str = "",
    **roles: Any,
) -> Any:
    """Truth, analysis and error of one trajectory in space and time.

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
    **roles
        `dynamics`, `truth`, `observation`, `observation_error`, `operator` as for `cycle`.

    Returns
    -------
    holoviews.Layout
        Three panels that share their axes; truth and analysis share one colour scale.

    Raises
    ------
    ValueError
        If there is no truth, the run is of another record, or the state has more than one dim.
    """
    import hvplot.xarray  # noqa: F401

    experiment = read(ds, **roles, needs_truth="a picture of the error")
    assert experiment.truth is not None
    dims, units = experiment.frame.dynamics.dims, experiment.frame.dynamics.units
    if len(dims) != 1:
        raise ValueError(f"the state has dims {dims}: a Hovmöller diagram shows one")
    cut = {TIME: cycles if cycles is not None else slice(-200, None)}
    x = experiment.truth.isel({TRAJECTORY: trajectory}, drop=True).isel(cut)
    analysis = read_run(experiment, run, ("analysis",))["analysis"].isel({TRAJECTORY: trajectory}, drop=True)
    if dims[0] not in x.coords:
        x = x.assign_coords({dims[0]: list(experiment.frame.dynamics.coordinates[dims[0]].values)})
    x, analysis = x.load(), analysis.isel(cut).load().assign_coords(x.coords)
    bound = float(np.abs(x).max())
    error = analysis - x
    size = np.abs(error.values[np.isfinite(error.values)])  # a lost run is NaN
    reach = (float(np.quantile(size, 0.995)) if size.size else 0.0) or 1.0
    suffix = "" if units == "1" else f" ({units})"
    panels = []
    for label, field, limit in (("truth", x, bound), ("analysis", analysis, bound), ("error", error, reach)):
        heading = f"{label}{' of ' + title if title and label != 'truth' else ''}"
        panel = (
            field.drop_attrs()
            .rename(label + suffix)
            .hvplot.quadmesh(
                x=TIME,
                y=dims[0],
                cmap="RdBu_r",
                clim=(-limit, limit),
                title=heading,
                xlabel="model time",
                ylabel="site",
                width=WIDTH,
                height=_HEIGHT,
                rasterize=False,
            )
        )
        panels.append(panel)
    return (panels[0] + panels[1] + panels[2]).cols(1)


def rmse_in_time(
    ds: xr.Dataset,
    runs: Mapping[str, xr.Dataset],
    *,
    cycles: slice | None = None,
    log: bool = False,
    **roles: Any,
) -> Any:
    """Analysis RMSE of several runs in time, mean over the trajectories.

    Parameters
    ----------
    ds : xarray.Dataset
        Twin.
    runs : mapping
        Name to run.
    cycles : slice, optional
        Positions along `time`.
    log : bool
        Logarithmic RMSE.
    **roles
        `dynamics`, `truth`, `observation`, `observation_error`, `operator` as for `cycle`.

    Returns
    -------
    holoviews.Overlay
    """
    import holoviews as hv
    import hvplot.xarray  # noqa: F401

    from .scoring import score

    curves = []
    for (name, run), colour in zip(runs.items(), cycle_colours(len(runs)), strict=True):
        curve = score(ds, run, dim=TRAJECTORY, **roles)["rmse"].isel({TIME: cycles or slice(None)})
        curves.append(
            curve.hvplot.line(
                x=TIME,
                label=name,
                color=colour,
                logy=log,
                xlabel="model time",
                ylabel="analysis RMSE",
                title="analysis RMSE, mean over trajectories",
                width=WIDTH + LEGEND_WIDTH,
                height=_HEIGHT + 60,
            )
        )
    return hv.Overlay(curves).opts(legend_position="right")


def training_history(histories: Mapping[str, xr.Dataset] | xr.Dataset) -> Any:
    """Validation and training RMSE against training time.

    Parameters
    ----------
    histories : Dataset or mapping of name to Dataset
        `Network.history` of one or several networks.

    Returns
    -------
    holoviews.Overlay
    """
    import holoviews as hv
    import hvplot.xarray  # noqa: F401

    named = {"network": histories} if isinstance(histories, xr.Dataset) else histories
    curves = []
    for (name, history), colour in zip(named.items(), cycle_colours(len(named)), strict=True):
        against = history.assign_coords(minutes=("step", history["seconds"].values / 60)).swap_dims(step="minutes")
        for variable, label, dash in (
            ("validation_rmse", "validation", "solid"),
            ("rmse", "training", "dotted"),
        ):
            if history.sizes["step"] == 1:  # a line through one point is invisible
                curves.append(hv.Scatter((against["minutes"].values, against[variable].values)).opts(color=colour))
            curves.append(
                against[variable].hvplot.line(
                    x="minutes",
                    label=f"{name}, {label}",
                    color=colour,
                    line_dash=dash,
                    logy=True,
                    xlabel="training time (minutes)",
                    ylabel="analysis RMSE",
                    title="training",
                    width=WIDTH + LEGEND_WIDTH,
                    height=_HEIGHT + 60,
                )
            )
    return hv.Overlay(curves).opts(legend_position="right")


def sweep_curves(cube: xr.Dataset, along: str, *, value: str = "rmse", logx: bool = False, logy: bool = False) -> Any:
    """A score of a sweep against one of its axes, a line for each scheme.

    Parameters
    ----------
    cube : xarray.Dataset
        Of `sweep`, with no more axes than the one that is drawn: select first.
    along : str
        The axis.
    value : str
        Which score.
    logx, logy : bool
        Logarithmic axes.

    Returns
    -------
    holoviews.Overlay
        Means over the seeds; bars are a standard error, over seeds, or where there is one over its trajectories.

    Raises
    ------
    ValueError
        If the cube lacks the axis or the score, or has more axes.
    """
    import holoviews as hv
    import hvplot.pandas  # noqa: F401

    if value not in cube or along not in cube.dims:
        raise ValueError(
            f"value={value!r}, along={along!r}: the cube has scores {sorted(map(str, cube.data_vars))} and axes "
            f"{[str(d) for d in cube.dims]}"
        )
    more = [str(dim) for dim in cube[value].dims if dim not in ("scheme", along, "seed") and cube.sizes[dim] > 1]
    if more:
        raise ValueError(f"the cube has the axes {more} too: choose one value of each, cube.sel({more[0]}=...)")
    cube = cube.squeeze([d for d in cube.dims if d not in ("scheme", along, "seed")], drop=True).load()
    # A scheme that failed for one seed has no mean.
    mean, seeds = cube[value].mean("seed", skipna=False), cube.sizes["seed"]
    if seeds > 1:
        error = cube[value].std("seed", ddof=1, skipna=False) / np.sqrt(seeds)
    else:
        error = cube[f"{value}_standard_error"].isel(seed=0) if f"{value}_standard_error" in cube else 0 * mean
    labels = {"xlabel": _axis_label(cube[along]), "ylabel": _axis_label(cube[value])}
    sizes: dict[str, Any] = {"width": WIDTH + LEGEND_WIDTH, "height": _HEIGHT + 100, "padding": PADDING}
    sizes |= {"logx": logx, "logy": logy}
    if cube[along].dtype.kind in "iuf":
        # With their labels: a logarithmic axis would write powers of ten under 256 and 4096.
        sizes["xticks"] = [(label, f"{label:g}") for label in cube[along].values.tolist()]
    if logy:
        sizes["yticks"] = _log_ticks(mean.values)
    drawn = []
    for number, (scheme, colour) in enumerate(
        zip(cube["scheme"].values.tolist(), cycle_colours(cube.sizes["scheme"]), strict=True)
    ):
        dash, marker = ("solid", "circle") if number < len(_COLOURS) else ("dashed", "square")
        frame = mean.sel(scheme=scheme).to_series().rename(value).reset_index()
        frame["bar"] = error.sel(scheme=scheme).values
        frame = frame.dropna(subset=[value])  # where it was lost, or was not run
        if frame.empty:
            continue
        line = frame.hvplot.line(along, value, label=scheme, color=colour, line_dash=dash, **labels, **sizes)
        points = frame.hvplot.scatter(along, value, label=scheme, color=colour, size=30, marker=marker)
        drawn += [line, points, hv.ErrorBars(frame, along, [value, "bar"]).opts(color=colour, padding=PADDING)]
    return hv.Overlay(drawn).opts(legend_position="right")


def _axis_label(values: xr.DataArray) -> str:
    """What an axis shows, and in which units."""
    name, units = str(values.attrs.get("long_name", values.name)), values.attrs.get("units", "1")
    return name if units == "1" else f"{name} ({units})"


def _log_ticks(values: Any) -> list[float]:
    """Round numbers over the range of values, closer where it is narrow."""
    seen = values[np.isfinite(values) & (values > 0)]
    if not len(seen):
        return [1.0]
    low, high = float(seen.min()), float(seen.max())
    steps: tuple[float, ...] = (1.0, 2.0, 5.0)
    if high < 2 * low:
        steps = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 2.6, 2.8, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0)
    elif high < 12 * low:
        steps = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**power for power in powers for step in steps]


def save_page(path: str | Path, sections: Mapping[str, Any], title: str = "xdan", notes: str = "") -> None:
    """Save figures as one HTML page that needs no network.

    Parameters
    ----------
    path : path
    sections : mapping
        Heading to figure, top to bottom.
    title : str
    notes : str
        Markdown, shown first.
    """
    import panel as pn
    from bokeh.resources import INLINE

    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"there is no folder {Path(path).parent} to save {Path(path).name} in; make it first")
    # Headings as HTML: Markdown's carry a mark for links that only a style sheet from the network would hide.
    column = pn.Column(pn.pane.HTML(f"<h1>{escape(title)}</h1>"), pn.pane.Markdown(notes, width=WIDTH + 300))
    for heading, figure in sections.items():
        column.append(pn.pane.HTML(f"<h2>{escape(heading)}</h2>"))
        column.append(pn.pane.HoloViews(figure, linked_axes=False))
    column.save(str(path), title=title, resources=INLINE)


def cycle_colours(count: int) -> list[str]:
    """Colours for so many curves."""
    return [_COLOURS[k % len(_COLOURS)] for k in range(count)]
