"""Pictures of covariances, gains, Lyapunov exponents and vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..core.checks import integer, switch
from ..core.keywords import checks_keywords
from ..records.schema import TIME, TRAJECTORY
from .axes import (
    HEIGHT,
    LEGEND_WIDTH,
    PADDING,
    WIDTH,
    axis_label,
    cycle_colours,
    cycles_of,
    dataset,
    in_units,
    mapping,
    placed,
    position,
)
from .libraries import holoviews

_PANEL = 330  # pixels of a panel
_VECTOR, _VECTORS, _GROWTH = "vector", "lyapunov_vector", "growth"


@checks_keywords
def matrix_map(matrices: xr.DataArray | Mapping[str, xr.DataArray], *, together: bool = True, columns: int = 2) -> Any:
    """Draw matrices, such as the analysis error covariance P_a or a gain K, averaged over states.

    Parameters
    ----------
    matrices : DataArray or mapping of title to DataArray, dims ([trajectory, time,] i, j)
        Results of `gain(kind="covariance")`, `ensemble_covariance` or `gain(kind="marginal")`, or a run's
        `analysis_covariance`. The last dim goes to the right.
    together : bool
        Whether all panels share a colour scale.
    columns : int
        Number of panels side by side.

    Returns
    -------
    holoviews.Layout
        A panel for each matrix. Rows go down, as on paper. White is zero.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or a matrix does not have two dims beside trajectory and time.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> run = ds.dan.baseline("enkf-n", members=10, keep_members=True)
    >>> covariance = xdan.ensemble_covariance(run)
    >>> type(xdan.matrix_map({"P_a of EnKF-N": covariance})).__name__
    'Layout'
    """
    hv = holoviews()

    named = {"": matrices} if isinstance(matrices, xr.DataArray) else matrices
    named = mapping("matrices", named, xr.DataArray, "a matrix, a DataArray")
    together, columns = switch("together", together), integer("columns", columns, least=1)
    means = {}
    for title, matrix in named.items():
        dims = [str(dim) for dim in matrix.dims if dim not in (TRAJECTORY, TIME)]
        if len(dims) != 2:
            raise ValueError(f"matrices[{title!r}] has dims {matrix.dims}: expected two beside trajectory and time")
        means[title] = matrix.mean([dim for dim in (TRAJECTORY, TIME) if dim in matrix.dims], keep_attrs=True).load()
    bounds = {title: float(np.nanmax(np.abs(mean.values), initial=0.0)) or 1.0 for title, mean in means.items()}
    panels = []
    for title, mean in means.items():
        rows, across = map(str, mean.dims)
        heights, yticks = placed(mean[rows], "y")
        widths, xticks = placed(mean[across], "x")
        name = in_units("value", str(mean.attrs.get("units", "1")))
        bound = max(bounds.values()) if together else bounds[title]
        # Dims without labels are used, as i and j may be one grid with two names.
        plain = xr.DataArray(mean.values, {"row": heights, "column": widths}, ("row", "column"), name)
        panel = plain.hvplot.quadmesh(
            x="column", y="row", title=title, xlabel=axis_label(mean[across]), ylabel=axis_label(mean[rows]),
            frame_width=_PANEL, frame_height=_PANEL, cmap="RdBu_r", clim=(-bound, bound), rasterize=False,
            **xticks, **yticks,
        )  # fmt: skip
        panels.append(panel.opts(invert_yaxis=True))
    return hv.Layout(panels).cols(columns).opts(shared_axes=False)


def exponent_curves(spectra: xr.Dataset | Mapping[str, xr.Dataset]) -> Any:
    """Draw Lyapunov exponents against their number, with bars of two standard errors.

    Parameters
    ----------
    spectra : Dataset or mapping of name to Dataset
        Results of `lyapunov_spectrum`.

    Returns
    -------
    holoviews.Overlay
        The picture, with a dashed line at zero.

    Raises
    ------
    TypeError, ValueError
        If a value is no spectrum.

    Examples
    --------
    >>> import xdan
    >>> spectrum = xdan.lyapunov_spectrum(xdan.Lorenz63(), time=10.0, trajectories=2)
    >>> type(xdan.exponent_curves({"Lorenz-63": spectrum})).__name__
    'Overlay'
    """
    hv = holoviews()

    named = {"": spectra} if isinstance(spectra, xr.Dataset) else spectra
    named = mapping("spectra", named, xr.Dataset, "what xdan.lyapunov_spectrum gives")
    drawn: list[Any] = [hv.HLine(0.0).opts(color="black", line_dash="dashed", line_width=1)]
    for (name, spectrum), colour in zip(named.items(), cycle_colours(len(named)), strict=True):
        if "exponent" not in spectrum:
            raise ValueError(f"spectra[{name!r}] holds no exponents: expected what xdan.lyapunov_spectrum gives")
        points = spectrum[_VECTOR].values, spectrum["exponent"].values
        twice = 2 * spectrum["exponent_standard_error"].values
        drawn += [
            hv.Curve(points, "number", "exponent", label=name).opts(color=colour),
            hv.Scatter(points, "number", "exponent", label=name).opts(color=colour, size=5),
            hv.ErrorBars((*points, twice), "number", ["exponent", "twice the standard error"]).opts(color=colour),
        ]
    return hv.Overlay(drawn).opts(
        title="Lyapunov exponents", xlabel="number of the exponent", ylabel="exponent (per unit of model time)",
        width=WIDTH + LEGEND_WIDTH, height=HEIGHT + 100, padding=PADDING, legend_position="right",
        show_legend=len(named) > 1,
    )  # fmt: skip


@checks_keywords
def lyapunov_vector_maps(
    vectors: xr.Dataset, *, trajectory: int = 0, cycles: slice | None = None, numbers: int | tuple[int, ...] = (1, 2)
) -> Any:
    """Draw absolute values of Lyapunov vectors in space and time, which show where errors grow.

    Parameters
    ----------
    vectors : xarray.Dataset
        Result of `lyapunov_vectors` for a state of one field with one dim.
    trajectory : int
        Position along `trajectory`.
    cycles : slice, optional
        Positions along `time`; by default the last 200.
    numbers : int or tuple of int
        Numbers of the vectors to draw. Number 1 grows fastest.

    Returns
    -------
    holoviews.Layout
        A panel for each vector. Its title has the vector's mean growth over these cycles. Signs are left out, because
        they are arbitrary.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the state does not have one field with one dim.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=60, trajectories=1, seed=0, dtype="float64").compute()
    >>> vectors = ds.dan.lyapunov_vectors(vectors=2, spin_up=20)
    >>> len(xdan.lyapunov_vector_maps(vectors, cycles=slice(30)))
    2
    """
    hv = holoviews()

    vectors = dataset("vectors", vectors)
    if _VECTORS not in vectors or vectors[_VECTORS].ndim != 4:
        raise ValueError(
            f"vectors holds {sorted(map(str, vectors.data_vars))}: expected {_VECTORS!r} (trajectory, time, vector, x)"
            ", of lyapunov_vectors, of a state of one dim"
        )
    row = position("trajectory", trajectory, vectors.sizes[TRAJECTORY])
    times = cycles_of(cycles, slice(-200, None))
    wanted = (numbers,) if isinstance(numbers, int) else tuple(numbers)
    places = [integer("numbers", one, least=1, most=vectors.sizes[_VECTOR]) - 1 for one in wanted]
    part = vectors.isel({TRAJECTORY: row, TIME: times, _VECTOR: places}).load()
    if not part.sizes[TIME]:
        raise ValueError(f"cycles={cycles}: expected some of the {vectors.sizes[TIME]} cycles")
    dim = str(vectors[_VECTORS].dims[-1])
    heights, yticks = placed(part[dim], "y")
    when, xticks = placed(part[TIME], "x")
    panels = []
    for number, one in enumerate(wanted):
        values = np.abs(part[_VECTORS].isel({_VECTOR: number}).transpose(dim, TIME).values)
        growth = float(part[_GROWTH].isel({_VECTOR: number}).mean())
        field = xr.DataArray(values, {dim: heights, TIME: when}, (dim, TIME), "size")
        panels.append(
            field.hvplot.quadmesh(
                x=TIME, y=dim, title=f"vector {one}, mean growth {growth:.2g} per unit of model time", cmap="viridis",
                clim=(0.0, float(np.nanmax(values)) or 1.0), width=WIDTH, height=HEIGHT, rasterize=False,
                xlabel=axis_label(part[TIME]), ylabel=axis_label(part[dim]), **xticks, **yticks,
            )
        )  # fmt: skip
    return hv.Layout(panels).cols(1)
