"""Pictures of fits: the scaling law, and the values that tuning tried."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from .axes import HEIGHT, LEGEND_WIDTH, PADDING, WIDTH, axis_label, cycle_colours, dataset, log_ticks
from .libraries import holoviews

_TRIED, _CHOSEN = "candidate_", "tuned_"


def scaling_law_curves(law: xr.Dataset) -> Any:
    """Draw the RMSE against the number of trajectories: points are the sweep's, and lines are the scaling law's.

    Parameters
    ----------
    law : xarray.Dataset
        Result of `scaling_law`.

    Returns
    -------
    holoviews.Overlay
        The picture, with a colour for each label of the second dim.

    Raises
    ------
    TypeError, ValueError
        If `law` is no scaling law.

    References
    ----------
    Bocquet et al., Fig. A3.

    Examples
    --------
    >>> import numpy as np, xarray as xr, xdan
    >>> sizes, batches = np.array([64, 256, 1024, 4096]), np.array([4, 16, 64])
    >>> dims, labels = ("trajectories", "batch"), {"trajectories": sizes, "batch": batches}
    >>> rmse = xr.DataArray((1.0 + 0.5 * batches**0.060 / sizes[:, None] ** 0.103) ** 1.4, labels, dims)
    >>> law = xdan.scaling_law(rmse, bootstrap=0)
    >>> type(xdan.scaling_law_curves(law)).__name__
    'Overlay'
    """
    hv = holoviews()

    law = dataset("law", law)
    if not {"observed", "fitted"} <= set(law.data_vars) or law["observed"].ndim != 2:
        raise ValueError(f"law holds {sorted(map(str, law.data_vars))}: expected what xdan.scaling_law gives")
    size, batch = map(str, law["observed"].dims)
    law = law.load()
    drawn = []
    for k, colour in enumerate(cycle_colours(law.sizes[batch])):
        one = law.isel({batch: k}).sortby(size)
        label = f"{axis_label(law[batch])} {law[batch].values[k]}"
        curve = hv.Curve((one[size].values, one["fitted"].values), size, "RMSE", label=label)
        points = hv.Scatter((one[size].values, one["observed"].values), size, "RMSE", label=label)
        drawn += [curve.opts(color=colour), points.opts(color=colour, size=6)]
    fit = f"alpha {float(law['alpha']):.3g}, beta {float(law['beta']):.3g}, gamma {float(law['gamma']):.3g}"
    return hv.Overlay(drawn).opts(
        title=f"scaling law (lines): {fit}", xlabel=axis_label(law[size]), ylabel="RMSE", logx=True, logy=True,
        xticks=[(label, f"{label:g}") for label in law[size].values.tolist()],
        yticks=log_ticks(law["observed"].values), width=WIDTH + LEGEND_WIDTH, height=HEIGHT + 100, padding=PADDING,
        legend_position="right",
    )  # fmt: skip


def tuning_curve(run: xr.Dataset) -> Any:
    """Draw the values that tuning tried, their scores, and the chosen value.

    Parameters
    ----------
    run : xarray.Dataset
        Run of `baseline` with one or two parameters that were "tune".

    Returns
    -------
    holoviews.Overlay
        The score against the first parameter, with a line for each value of a second one. The dashed line marks the
        chosen value. A candidate with which the method lost the truth has no point.

    Raises
    ------
    TypeError, ValueError
        If the run was not tuned, or more than two parameters were.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> tried = {"inflation": [1.0, 1.05, 1.1, 1.5]}
    >>> run = ds.dan.baseline("etkf", members=10, inflation="tune", candidates=tried, progress=False)
    >>> type(xdan.tuning_curve(run)).__name__
    'Overlay'
    """
    hv = holoviews()

    run = dataset("run", run)
    scores = [
        str(name)
        for name, one in run.data_vars.items()
        if one.ndim and all(str(dim).startswith(_TRIED) for dim in one.dims) and name not in one.dims
        and not str(name).startswith(_TRIED)
    ]  # fmt: skip
    if len(scores) != 1 or run[scores[0]].ndim > 2:
        raise ValueError(
            f"the run holds {sorted(map(str, run.data_vars))}: expected a score along one or two of {_TRIED}..., as of "
            'baseline(..., inflation="tune")'
        )
    score = run[scores[0]].load()
    first, *second = map(str, score.dims)
    tried = run[first].values
    name = first.removeprefix(_TRIED)
    rows = [("", score)] if not second else [
        (f"{second[0].removeprefix(_TRIED)} {label:g}", score.isel({second[0]: k}))
        for k, label in enumerate(run[second[0]].values.tolist())
    ]  # fmt: skip
    drawn = []
    for (label, one), colour in zip(rows, cycle_colours(len(rows)), strict=True):
        values = np.where(np.isfinite(one.values), one.values, np.nan)
        points = tried, values
        drawn += [
            hv.Curve(points, name, scores[0], label=label).opts(color=colour),
            hv.Scatter(points, name, scores[0], label=label).opts(color=colour, size=6),
        ]
    chosen = float(run[f"{_CHOSEN}{name}"])
    drawn.append(hv.VLine(chosen).opts(color="black", line_dash="dashed", line_width=1))
    return hv.Overlay(drawn).opts(
        title=f"tuning: {name} {chosen:g} was chosen", xlabel=name, ylabel=scores[0].replace("_", " "),
        width=WIDTH + LEGEND_WIDTH, height=HEIGHT + 60, padding=PADDING, legend_position="right",
        show_legend=len(rows) > 1,
    )  # fmt: skip
