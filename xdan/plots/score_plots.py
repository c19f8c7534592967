"""Pictures of reliability: rank histograms, spread against error, and probabilities against frequencies."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from ..assimilation.ranks import rank_flatness
from ..core.checks import shown
from ..records.schema import TRAJECTORY
from .axes import LEGEND_WIDTH, PADDING, WIDTH, cycle_colours, dataset, in_units
from .libraries import holoviews

_HEIGHT, _SIDE = 260, 420
_METHOD, _FIELD, _BIN, _RANK = "method", "field", "bin", "rank"
_SMALL = 0.01  # smaller p values are written as "below" this number
_WITHIN = 2.0  # half width of the band of a flat histogram, in standard deviations: 95 % of ranks lie within


def rank_bars(histogram: xr.DataArray) -> Any:
    """Draw rank histograms as bars, relative to a flat histogram, with a panel for each run and field.

    Parameters
    ----------
    histogram : xarray.DataArray, dims (rank,), and trajectory, method or field
        Result of `rank_histogram`. With `dim="time"`, which keeps the trajectories, each panel shows a band in which 19
        of 20 ranks of a flat histogram lie. The band is two standard deviations wide on each side, from the effective
        counts (`rank_flatness`). The title has the p value.

    Returns
    -------
    holoviews.Layout
        A panel for each run and field.

    Raises
    ------
    TypeError, ValueError
        If `histogram` is no rank histogram, or has other dims.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> run = ds.dan.baseline("enkf-n", members=10, keep_members=True)
    >>> histogram = ds.dan.rank_histogram(run, burn_in=10, dim="time")
    >>> type(xdan.rank_bars(histogram)).__name__
    'Layout'
    """
    hv = holoviews()

    if not isinstance(histogram, xr.DataArray):
        raise TypeError(f"histogram={shown(histogram)}: expected the DataArray of xdan.rank_histogram")
    _check(histogram, {_RANK}, {TRAJECTORY}, "xdan.rank_histogram")
    verdicts = rank_flatness(histogram).compute()
    panels = []
    for title, place in _panels(histogram, _METHOD, _FIELD):
        counts, verdict = histogram.sel(place).load(), verdicts.sel(place)
        total = counts if TRAJECTORY not in counts.dims else counts.sum(TRAJECTORY)
        ranks = total.sizes[_RANK]
        heights = total.values / (total.values.sum() or 1.0) * ranks
        edges = np.arange(ranks + 1) + 0.5
        parts = [hv.Histogram((edges, heights)).opts(color="#56B4E9", line_color="white")]
        words = f"reliability index {float(verdict.reliability_index):.2f}"
        if "p_value" in verdict and np.isfinite(verdict.effective_counts):
            half = _WITHIN * math.sqrt((ranks - 1) / float(verdict.effective_counts))
            parts.append(hv.HSpan(1 - half, 1 + half).opts(color="#D55E00", alpha=0.25))
            words += f", p {p:.2f}" if (p := float(verdict.p_value)) >= _SMALL else f", p < {_SMALL:g}"
        parts.append(hv.HLine(1.0).opts(color="black", line_dash="dashed", line_width=1.5))
        panels.append(
            hv.Overlay(parts).opts(
                title=f"{title}: {words}" if title else words,
                xlabel="rank of the truth",
                ylabel="frequency, 1 if flat",
                width=WIDTH // 2 + 90,
                height=_HEIGHT,
                xlim=(0.5, ranks + 0.5),
                fontsize={"title": 10},
                ylim=(0, max(1.6, 1.05 * float(np.nanmax(heights)))),
            )
        )
    return hv.Layout(panels).cols(2).opts(shared_axes=False)


def spread_error_curves(table: xr.Dataset) -> Any:
    """Draw error against spread, with a line for each run and a panel for each field.

    Parameters
    ----------
    table : xarray.Dataset, dims (bin,), and method or field
        Result of `spread_error`.

    Returns
    -------
    holoviews.Layout
        A reliable run lies on the diagonal. Each point is a bin: to the right the RMSE that the spread predicts,
        upwards the RMSE of the bin. Bars are one standard error over trajectories.

    Raises
    ------
    TypeError, ValueError
        If it is no such table.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> run = ds.dan.baseline("enkf-n", members=10)
    >>> table = ds.dan.spread_error(run, bins=4, burn_in=10)
    >>> type(xdan.spread_error_curves(table)).__name__
    'Layout'
    """
    hv = holoviews()

    table = dataset("table", table)
    _check_variables(table, ("expected_rmse", "rmse", "rmse_standard_error"), "xdan.spread_error")
    _check(table["rmse"], {_BIN}, set(), "xdan.spread_error")
    panels = []
    for title, place in _panels(table["rmse"], _FIELD):
        one = table.sel(place).load()
        units = str(one["rmse"].attrs.get("units", one["field_units"].item() if "field_units" in one.coords else "1"))
        drawn, ends = _lines(one, "expected_rmse", "rmse", "rmse_standard_error")
        diagonal = hv.Curve([(end, end) for end in (0.0, 1.05 * ends)]).opts(color="black", line_dash="dashed")
        panels.append(
            hv.Overlay([diagonal, *drawn]).opts(
                title=title or "spread and error, by bins of the spread",
                xlabel=in_units("RMSE that the spread stands for", units),
                ylabel=in_units("RMSE", units),
                width=_SIDE + LEGEND_WIDTH,
                height=_SIDE,
                legend_position="right",
                xlim=(0, 1.05 * ends),
                ylim=(0, 1.05 * ends),
            )
        )
    return hv.Layout(panels).cols(1).opts(shared_axes=False)


def reliability_curves(table: xr.Dataset) -> Any:
    """Draw frequencies of an event against its probabilities, with a line for each run, and the number of forecasts.

    Parameters
    ----------
    table : xarray.Dataset, dims (bin,), and method or field
        Result of `reliability`.

    Returns
    -------
    holoviews.Layout
        For each field a reliability diagram. A reliable run lies on the diagonal, the dotted line is the frequency of
        the event, and bars are one standard error over trajectories. A panel below shows, on a logarithmic axis, how
        many forecasts had each probability.

    Raises
    ------
    TypeError, ValueError
        If it is no such table.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> run = ds.dan.baseline("enkf-n", members=10, keep_members=True)
    >>> table = ds.dan.reliability(run, threshold=6.0, burn_in=10)
    >>> type(xdan.reliability_curves(table)).__name__
    'Layout'
    """
    hv = holoviews()

    table = dataset("table", table)
    _check_variables(table, ("forecast_probability", "observed_frequency", "count", "base_rate"), "xdan.reliability")
    _check(table["count"], {_BIN}, set(), "xdan.reliability")
    panels = []
    event = str(table.attrs.get("event", "the event"))
    size = {"frame_width": _SIDE - 80, "legend_position": "right", "xlim": (-0.02, 1.02)}
    bare = size | {"show_legend": False}
    for title, place in _panels(table["count"], _FIELD):
        one = table.sel(place).load()
        drawn, _ = _lines(one, "forecast_probability", "observed_frequency", "observed_frequency_standard_error")
        rate = float(one["base_rate"].mean())
        lines = [
            hv.Curve([(0, 0), (1, 1)]).opts(color="black", line_dash="dashed"),
            hv.Curve([(0, rate), (1, rate)]).opts(color="black", line_dash="dotted"),
        ]
        heading = f"{title}: {event}" if title else f"truth {event}"
        labels = {"xlabel": "probability", "ylabel": "frequency", "title": heading}
        panels.append(hv.Overlay([*lines, *drawn]).opts(frame_height=_SIDE - 80, ylim=(-0.02, 1.02), **labels, **size))
        counts, _ = _lines(one.assign(count=one["count"].where(one["count"] > 0)), "forecast_probability", "count")
        most = float(one["count"].max())
        panels.append(
            hv.Overlay(counts).opts(
                frame_height=_HEIGHT // 2, logy=True, xlabel="probability", ylabel="cases", ylim=(0.5, 2 * most), **bare
            )
        )
    return hv.Layout(panels).cols(1).opts(shared_axes=False)


def _check(values: xr.DataArray, needed: set[str], allowed: set[str], verb: str) -> None:
    """Refuse a result whose dims are not those of the verb.

    Raises
    ------
    ValueError
    """
    dims = {str(dim) for dim in values.dims}
    if not needed <= dims or not dims <= needed | allowed | {_METHOD, _FIELD}:
        raise ValueError(
            f"dims {sorted(dims)}: expected what {verb} gives, with {sorted(needed)} and no others than "
            f"{sorted(allowed | {_METHOD, _FIELD})}; select one, or average over trajectories and times"
        )


def _check_variables(table: xr.Dataset, names: tuple[str, ...], verb: str) -> None:
    """Refuse a table without its columns.

    Raises
    ------
    ValueError
    """
    if missing := [name for name in names if name not in table]:
        raise ValueError(f"the table lacks {missing}: expected what {verb} gives")


def _panels(values: xr.DataArray, *dims: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Title and selection of each panel: every label of those dims that exist."""
    here = [dim for dim in dims if dim in values.dims]
    for index in np.ndindex(*(values.sizes[dim] for dim in here)):
        place = {dim: values[dim].values[k] for dim, k in zip(here, index, strict=True)}
        yield ", ".join(str(label) for label in place.values()), place


def _lines(table: xr.Dataset, x: str, y: str, error: str = "") -> tuple[list[Any], float]:
    """A line with points for each run, bars if there are errors, and the largest value on both axes."""
    hv = holoviews()

    runs = list(_panels(table[y], _METHOD))
    drawn: list[Any] = []
    largest = 0.0
    for (name, place), colour in zip(runs, cycle_colours(len(runs)), strict=True):
        one = table.sel(place)
        bars = one[error].values if error in one else np.full(one.sizes[_BIN], np.nan)
        known = np.isfinite(one[x].values) & np.isfinite(one[y].values)
        points = one[x].values[known], one[y].values[known]
        if not known.any():
            continue
        label = {"label": name} if name else {}
        drawn.append(hv.Curve(points, **label).opts(color=colour, padding=PADDING))
        drawn.append(hv.Scatter(points, **label).opts(color=colour, size=5))
        if np.isfinite(bars[known]).all():
            drawn.append(hv.ErrorBars((*points, bars[known])).opts(color=colour))
        largest = max(largest, *(float(values.max()) for values in points))
    return drawn, largest or 1.0
