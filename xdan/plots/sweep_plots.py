"""Pictures of sweeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from ..core.checks import switch
from ..core.keywords import checks_keywords
from .axes import (
    COLOURS,
    HEIGHT,
    LEGEND_WIDTH,
    PADDING,
    WIDTH,
    axis_label,
    cycle_colours,
    dataset,
    log_ticks,
    text,
)
from .libraries import holoviews


@checks_keywords
def sweep_curves(cube: xr.Dataset, along: str, *, value: str = "rmse", logx: bool = False, logy: bool = False) -> Any:
    """Draw a score of a sweep against one of its axes, with a line for each scheme.

    Parameters
    ----------
    cube : xarray.Dataset
        Result of `sweep` with a single axis: select a label of every other axis first.
    along : str
        Name of the axis.
    value : str
        Name of the score.
    logx, logy : bool
        Whether the axes are logarithmic.

    Returns
    -------
    holoviews.Overlay
        Means over the seeds. Bars are one standard error over seeds; for a single seed, over its trajectories.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, the cube lacks the axis or the score, or has more axes.

    Examples
    --------
    >>> import numpy as np, xarray as xr, xdan
    >>> dims, labels = ("scheme", "forcing", "seed"), {"scheme": ["EnKF-N"], "forcing": [7.0, 8.0], "seed": [0, 1]}
    >>> cube = xr.Dataset({"rmse": xr.DataArray([[[0.18, 0.19], [0.20, 0.21]]], labels, dims)})
    >>> type(xdan.sweep_curves(cube, "forcing")).__name__
    'Overlay'
    """
    hv = holoviews()

    cube, along, value = dataset("cube", cube), text("along", along), text("value", value)
    logx, logy = switch("logx", logx), switch("logy", logy)
    wanted = {"scheme", along, "seed"}
    if value not in cube.data_vars or not wanted <= set(cube[value].dims):
        raise ValueError(
            f"value={value!r}, along={along!r}: the cube has scores {sorted(map(str, cube.data_vars))} and axes "
            f"{[str(d) for d in cube.dims]}, expected a score and one of its axes"
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
    labels = {"xlabel": axis_label(cube[along]), "ylabel": axis_label(cube[value])}
    sizes: dict[str, Any] = {"width": WIDTH + LEGEND_WIDTH, "height": HEIGHT + 100, "padding": PADDING}
    sizes |= {"logx": logx, "logy": logy}
    if cube[along].dtype.kind in "iuf":
        # Ticks have labels, as a logarithmic axis would write 256 and 4096 as powers of ten.
        sizes["xticks"] = [(label, f"{label:g}") for label in cube[along].values.tolist()]
    if logy:
        sizes["yticks"] = log_ticks(mean.values)
    drawn = []
    for number, (scheme, colour) in enumerate(
        zip(cube["scheme"].values.tolist(), cycle_colours(cube.sizes["scheme"]), strict=True)
    ):
        dash, marker = ("solid", "circle") if number < len(COLOURS) else ("dashed", "square")
        frame = mean.sel(scheme=scheme).to_series().rename(value).reset_index()
        frame["bar"] = error.sel(scheme=scheme).values
        frame = frame.dropna(subset=[value])  # cells that were lost or not run
        if frame.empty:
            continue
        line = frame.hvplot.line(along, value, label=scheme, color=colour, line_dash=dash, **labels, **sizes)
        points = frame.hvplot.scatter(along, value, label=scheme, color=colour, size=30, marker=marker)
        drawn += [line, points, hv.ErrorBars(frame, along, [value, "bar"]).opts(color=colour, padding=PADDING)]
    return hv.Overlay(drawn).opts(legend_position="right")
