"""Pictures of forecasts by lead time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr

from ..core.checks import real, shown, switch
from ..core.keywords import checks_keywords
from ..records.leads import LEAD, lead_numbers
from .axes import HEIGHT, LEGEND_WIDTH, WIDTH, cycle_colours, dataset, in_units, log_ticks, text
from .libraries import holoviews

METHOD = "method"
_LEVELS = (("deviation of the climate", 1.0, "dotted"), ("sqrt(2) deviations", math.sqrt(2.0), "dashdot"))


@checks_keywords
def lead_time_curves(
    scores: xr.Dataset, *, value: str = "rmse", errors: float = 2.0, levels: bool = True, log: bool = False
) -> Any:
    """Draw a score of forecasts against lead time, with a curve for each method.

    Parameters
    ----------
    scores : xarray.Dataset
        Result of `score_forecasts`, averaged over trajectories and starts, with or without the dim `method`.
    value : str
        Name of the score, such as "rmse", "acc" or "crps".
    errors : float
        Half the width of the bands around curves, in standard errors over trajectories; 0 draws none.
    levels : bool
        Whether, for value="rmse", lines show the climate's standard deviation and sqrt(2) standard deviations.
    log : bool
        Whether the axis of the score is logarithmic.

    Returns
    -------
    holoviews.Overlay
        The picture. For value="rmse", a dashed line shows the `spread` of the members in the colour of their method.
        Several fields give a holoviews.Layout with one Overlay for each field.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the scores lack this score or have more dims.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> run = ds.dan.baseline("enkf-n", members=10)
    >>> scores = ds.dan.score_forecasts(ds.dan.forecast(run, lead=0.3, burn_in=5))
    >>> type(xdan.lead_time_curves(scores)).__name__
    'Overlay'
    """
    hv = holoviews()

    scores, value = dataset("scores", scores), text("value", value)
    errors, levels, log = real("errors", errors, least=0.0), switch("levels", levels), switch("log", log)
    if value not in scores.data_vars or LEAD not in scores[value].dims:
        curves = sorted(str(name) for name, one in scores.data_vars.items() if one.dims[-1:] == (LEAD,))
        raise ValueError(f"value={shown(value)}: expected a score along 'lead', one of {curves}, of score_forecasts()")
    if more := [str(dim) for dim in scores[value].dims if dim not in (METHOD, LEAD, "field")]:
        raise ValueError(
            f"{value!r} has the dims {more} too: expected scores that are averaged over trajectories and starts"
        )
    scores = scores.load()
    if not np.isfinite(scores[value]).any():
        raise ValueError(f"{value!r} is NaN at every lead time: expected numbers; a warning of the scores says why")
    if METHOD not in scores.dims:
        name = str(scores.attrs.get("title", "forecasts")).removeprefix("scores of forecasts of ")
        scores = scores.expand_dims({METHOD: [name.removesuffix(" by lead time")]})
    if "field" not in scores[value].dims:
        return _panel(scores, value, errors, levels, log, "")
    panels = []
    for k, (name, units) in enumerate(zip(scores["field"].values, scores["field_units"].values, strict=True)):
        one = scores.isel(field=k, drop=True)
        one[value].attrs["units"] = str(units)
        panels.append(_panel(one, value, errors, levels, log, f" of {name}"))
    return hv.Layout(panels).cols(1).opts(shared_axes=False)


def _panel(scores: xr.Dataset, value: str, errors: float, levels: bool, log: bool, of: str) -> Any:
    """The curves of one field."""
    hv = holoviews()

    leads, units = lead_numbers(scores[LEAD])
    labels = {
        "xlabel": "lead time (model time)" if units == "1" else f"lead time ({units})",
        "ylabel": in_units({"rmse": "RMSE", "acc": "anomaly correlation", "crps": "CRPS"}.get(value, value) + of,
                           str(scores[value].attrs.get("units", "1"))),
    }  # fmt: skip
    drawn: list[Any] = []
    tops: list[float] = []
    for name, colour in zip(scores[METHOD].values.tolist(), cycle_colours(scores.sizes[METHOD]), strict=True):
        one = scores.sel({METHOD: name})
        known = np.isfinite(one[value].values)  # methods may have different lead times
        if not known.any():
            continue
        one, lead = one.isel({LEAD: known}), leads[known]
        curve = _positive(one[value].values, log)
        tops.append(float(np.nanmax(curve, initial=0.0)))
        if errors and f"{value}_standard_error" in one:
            half = errors * one[f"{value}_standard_error"].values
            band = (lead, _positive(curve - half, log), curve + half)
            drawn.append(hv.Area(band, vdims=["low", "high"]).opts(color=colour, alpha=0.25, line_alpha=0.0))
        drawn.append(hv.Curve((lead, curve), label=str(name)).opts(color=colour, line_width=2))
        if value == "rmse" and "spread" in one and np.isfinite(one["spread"].values).any():
            spread = _positive(one["spread"].values, log)
            drawn.append(hv.Curve((lead, spread), label=f"{name}, spread").opts(color=colour, line_dash="dashed"))
    if value == "rmse" and levels and "deviation" in scores:
        deviation = float(scores["deviation"].max())  # equal for all methods
        for name, times, dash in _LEVELS:
            height = [times * deviation] * 2
            drawn.append(hv.Curve((leads[[0, -1]], height), label=name).opts(color="black", line_dash=dash))
            tops.append(height[0])
    sizes = {"width": WIDTH + LEGEND_WIDTH, "height": HEIGHT + 140}
    limits: dict[str, Any] = (
        {"yticks": log_ticks(scores[value].values)}
        if log
        else {"ylim": (min(0.0, float(np.nanmin(scores[value].values))), 1.05 * max(tops))}
    )
    title = f"forecasts by lead time{of}"
    return hv.Overlay(drawn).opts(
        hv.opts.Overlay(legend_position="right", title=title, logy=log, **labels, **sizes, **limits)
    )


def _positive(values: Any, log: bool) -> Any:
    """Values for an axis. A logarithmic axis has only values above zero."""
    return np.where(values > 0, values, np.nan) if log else values
