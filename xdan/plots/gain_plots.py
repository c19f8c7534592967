"""Pictures of a network's derivatives. Each is a function of labelled results."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ..core.checks import integer, switch
from ..core.keywords import checks_keywords
from ..records.schema import TIME, TRAJECTORY, reference_site
from .axes import LEGEND_WIDTH, PADDING, WIDTH, axis_label, cycle_colours, in_units, log_ticks, mapping, placed
from .libraries import holoviews

_PANEL = 330


@checks_keywords
def gain_map(
    averages: xr.DataArray | Mapping[str, xr.DataArray],
    *,
    together: bool = False,
    within: int | None = 15,
    columns: int = 2,
) -> Any:
    """Draw symmetry-averaged marginal gains about their reference sites, divided by the largest absolute value.

    Parameters
    ----------
    averages : DataArray or mapping of title to DataArray, dims (i, j)
        Results of `gain(kind="mean")`.
    together : bool
        Whether to divide by the largest value of all panels. By default each panel is divided by its largest value.
    within : int, optional
        Number of sites on each side of the reference that are shown on a ring; None shows all sites.
    columns : int
        Number of panels side by side.

    Returns
    -------
    holoviews.Layout
        A panel for each average. On a ring, i - r goes upwards and j - r to the right, with r in the middle. On an axis
        with ends, and for components, i and j have their labels. If i has two dims, the panel is a map of i for the
        innovation at j = r; if j lies on another grid, at the j with the largest gain. Red means that the gain grows
        with the forecast at r.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or a gain is no symmetry average.

    References
    ----------
    Bocquet et al., Fig. 1 and 2.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> net = ds.dan.train(xdan.ResidualCNN(filters=4, blocks=1), steps=4, window=4, batch=2, progress=False)
    >>> omega = ds.dan.gain(net, burn_in=19).compute()
    >>> type(xdan.gain_map(omega)).__name__
    'Layout'
    """
    hv = holoviews()

    named = {"": averages} if isinstance(averages, xr.DataArray) else averages
    named = mapping("averages", named, xr.DataArray, "a gain, a DataArray")
    together, columns = switch("together", together), integer("columns", columns, least=1)
    within = None if within is None else integer("within", within, least=0)
    drawn = {title: _about(omega, within) for title, omega in named.items()}
    largest = {title: float(np.abs(one.values).max()) for title, one in drawn.items()}
    overall = max(map(float, np.nan_to_num(list(largest.values()))))
    panels = []
    for title, one in drawn.items():
        scale = (overall if together else largest[title]) or 1.0  # a gain of zeros stays zero
        heading = f"{title} {one.words}".strip()
        options: dict[str, Any] = {"cmap": "RdBu_r", "clim": (-1, 1), "xlabel": one.labels[1], "ylabel": one.labels[0]}
        options |= {"title": f"{heading} (largest {largest[title]:.2g})".strip(), "clabel": "share of the largest"}
        vertical, horizontal = (str(dim) for dim in one.values.dims)
        if one.words:  # a map
            reach = [float(np.ptp(one.values[dim].values)) or 1.0 for dim in (vertical, horizontal)]
            width = _PANEL + 100  # titles are long
            options |= {"frame_width": width, "frame_height": max(_PANEL // 4, round(width * reach[0] / reach[1]))}
            options |= one.ticks
            panel = (one.values / scale).hvplot.quadmesh(x=horizontal, y=vertical, rasterize=False, **options)
        else:
            options |= {"width": _PANEL + 90, "height": _PANEL}
            panel = (one.values / scale).hvplot.heatmap(x=horizontal, y=vertical, C="value", **options)
        panels.append(panel)
    return hv.Layout(panels).cols(columns).opts(shared_axes=False)


class _Drawn(NamedTuple):
    """The content of a panel: values with two dims, labels of the axes, and for a map its j."""

    values: xr.DataArray
    labels: tuple[str, str]
    words: str = ""
    ticks: Mapping[str, Any] = MappingProxyType({})


def _about(omega: xr.DataArray, within: int | None) -> _Drawn:
    """A symmetry average as it is drawn: about r on a ring, as a map if i has two dims, and else by labels."""
    reference_site(omega)
    of = [f" of {field}" for field in str(omega.attrs.get("fields", "")).split()] or ["", "", ""]
    if len(grid := _grid(omega)) == 2:
        return _map(omega, grid, of)
    if on_ring(omega):
        labels = f"i - r, site of the increment{of[0]}", f"j - r, site of the projected innovation{of[1]}"
        return _Drawn(about_reference(omega, within), labels)
    names = [f"{f}{field}: {axis_label(omega[f])}" for f, field in zip(("i", "j"), of, strict=False)]
    plain = xr.DataArray(
        omega.transpose("i", "j").to_numpy(), {f: omega[f].values for f in ("i", "j")}, ("i", "j"), "value"
    )
    return _Drawn(plain, (names[0], names[1]))


def on_ring(omega: xr.DataArray) -> bool:
    """Whether i and j go around one ring. They do, unless their labels say otherwise."""
    closed = "i_field" not in omega.coords and all(omega[f].attrs.get("periodic", 1) for f in ("i", "j"))
    return closed and not _grid(omega) and omega.sizes["i"] == omega.sizes["j"]


def _grid(omega: xr.DataArray) -> list[str]:
    """Names of the labels of a field of several dims, the outer one first; a store does not keep their order."""

    def same(name: str) -> int:
        """Number of points before the label changes."""
        changed = np.flatnonzero(omega[name].values != omega[name].values[0])
        return int(changed[0]) if len(changed) else omega.sizes["i"]

    names = [str(name) for name in omega.coords if str(name).startswith("i_") and name != "i_field"]
    return sorted(names, key=same, reverse=True)


def _map(omega: xr.DataArray, grid: list[str], of: list[str]) -> _Drawn:
    """Increments on a map for the innovation at one j."""
    values = omega.transpose("i", "j").to_numpy()
    place, where = reference_site(omega), "r"
    if of[1] != of[2] or values.shape[0] != values.shape[1]:
        place, where = int(np.nanargmax(np.abs(values).sum(0))), "the largest gain"
    distinct = [list(dict.fromkeys(omega[name].values.tolist())) for name in grid]
    labels = [xr.DataArray(one, dims=name, attrs=omega[name].attrs) for one, name in zip(distinct, grid, strict=True)]
    table = values[:, place].reshape([len(one) for one in labels])
    rows, columns = (name.removeprefix("i_") for name in grid)
    names = axis_label(omega[grid[0]].rename(rows)), axis_label(omega[grid[1]].rename(columns))
    axes = {rows: placed(labels[0], "y"), columns: placed(labels[1], "x")}
    drawn = xr.DataArray(table, {dim: values for dim, (values, _) in axes.items()}, (rows, columns), "value")
    ticks = {key: value for _, options in axes.values() for key, value in options.items()}
    return _Drawn(drawn, names, f"increment{of[0]}, innovation{of[1]} at {where}", ticks)


def about_reference(omega: xr.DataArray, within: int | None) -> xr.DataArray:
    """Cut the ring open opposite to r, and label sites relative to r."""
    reference, sites = reference_site(omega), omega.sizes["i"]
    half = sites // 2
    values = np.roll(omega.transpose("i", "j").to_numpy(), half - reference, axis=(0, 1))
    away = np.arange(sites) - half
    centred = xr.DataArray(values, {"i": away, "j": away}, ("i", "j"), "value")
    if within is None or within >= half:
        return centred
    return centred.sel(i=slice(-within, within), j=slice(-within, within))


def spectrum_curves(spectra: Mapping[str, xr.Dataset]) -> Any:
    """Draw eigenvalues of covariances, averaged over states, against their rank.

    Parameters
    ----------
    spectra : mapping of name to Dataset
        Results of `covariance_spectrum`.

    Returns
    -------
    holoviews.Overlay
        The picture, with a logarithmic axis. Triangles show the absolute values of negative averages, and the legend
        says how many there are.

    Raises
    ------
    TypeError, ValueError
        If a value is no spectrum.

    Examples
    --------
    >>> import numpy as np, xarray as xr, xdan
    >>> covariance = xr.DataArray([[2.0, 1.0], [1.0, 2.0]], dims=("i", "j"))
    >>> type(xdan.spectrum_curves({"P": xdan.covariance_spectrum(covariance)})).__name__
    'Overlay'
    """
    hv = holoviews()

    spectra = mapping("spectra", spectra, xr.Dataset, "what xdan.covariance_spectrum gives")
    for name, spectrum in spectra.items():
        if "eigenvalue" not in spectrum:
            raise ValueError(f"{name!r} holds no eigenvalues: expected what xdan.covariance_spectrum gives")
    means = {name: _mean(spectrum["eigenvalue"]) for name, spectrum in spectra.items()}
    means = {name: mean.load() for name, mean in means.items()}
    shown = {name: mean.where(mean > 0) for name, mean in means.items()}
    sizes = np.concatenate([np.abs(mean.values) for mean in means.values()])
    curves = _curves(
        shown,
        "mode",
        logy=True,
        xlabel="rank",
        ylabel=in_units("eigenvalue", str(next(iter(spectra.values()))["eigenvalue"].attrs.get("units", "1"))),
        title="spectra of covariances, mean over trajectories and time",
        yticks=log_ticks(sizes),
    )
    triangles = []
    for (name, mean), colour in zip(means.items(), cycle_colours(len(means)), strict=True):
        below = mean[mean.values < 0]
        if below.size:
            label = f"{name}: {below.size} negative, size"
            points = hv.Scatter((below["mode"].values, -below.values), "mode", "value", label=label)
            triangles.append(points.opts(color=colour, marker="inverted_triangle", size=7, fill_color="white"))
    return curves if not triangles else hv.Overlay([*curves, *triangles]).opts(legend_position="right", logy=True)


def angle_curves(angles: Mapping[str, xr.DataArray]) -> Any:
    """Draw principal angles, averaged over states.

    Parameters
    ----------
    angles : mapping of name to DataArray
        Results of `principal_angles`.

    Returns
    -------
    holoviews.Overlay

    Raises
    ------
    TypeError, ValueError
        If a value holds no angles.

    Examples
    --------
    >>> import numpy as np, xarray as xr, xdan
    >>> covariance = xr.DataArray([[2.0, 1.0], [1.0, 2.0]], dims=("i", "j"))
    >>> angles = xdan.principal_angles(covariance, xr.DataArray(np.diag([2.0, 1.0]), dims=("i", "j")), modes=1)
    >>> type(xdan.angle_curves({"P": angles})).__name__
    'Overlay'
    """
    angles = mapping("angles", angles, xr.DataArray, "what xdan.principal_angles gives")
    means = {name: _mean(value) for name, value in angles.items()}
    return _curves(
        means, "angle", xlabel="angle", ylabel="principal angle (degrees)", title="alignment, time mean", ylim=(0, 90)
    )


def scaling_curves(scalings: Mapping[str, xr.Dataset]) -> Any:
    """Draw r(lambda), Eq. 23, with the straight line of a network that is linear in zeta.

    Parameters
    ----------
    scalings : mapping of name to Dataset
        Results of `scaling_of_increments`.

    Returns
    -------
    holoviews.Overlay

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    References
    ----------
    Bocquet et al., Fig. 6.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> net = ds.dan.train(xdan.ResidualCNN(filters=4, blocks=1), steps=4, window=4, batch=2, progress=False)
    >>> run = ds.dan.cycle(net)
    >>> growth = ds.dan.scaling_of_increments(net, run, [0.5, 2.0], burn_in=19)
    >>> type(xdan.scaling_curves({"network": growth})).__name__
    'Overlay'
    """
    hv = holoviews()

    scalings = mapping("scalings", scalings, xr.Dataset, "what xdan.scaling_of_increments gives")
    for name, scaling in scalings.items():
        if "ratio" not in scaling:
            raise ValueError(f"{name!r} holds no ratio: expected what xdan.scaling_of_increments gives")
    ratios = {name: _mean(value["ratio"]) for name, value in scalings.items()}
    scales = np.unique(np.concatenate([ratio["scale"].values for ratio in ratios.values()]))
    line = hv.Curve((scales, scales), label="linear").opts(color="black", line_dash="dashed")
    said: dict[str, Any] = {
        "xticks": log_ticks(scales),
        "yticks": log_ticks(np.concatenate([scales, *(ratio.values for ratio in ratios.values())])),
    }
    said |= {"xlabel": "lambda", "ylabel": "r(lambda)", "title": "scaling of increments"}
    return line * _curves(ratios, "scale", logx=True, logy=True, **said)


@checks_keywords
def histogram_curves(histograms: Mapping[str, xr.DataArray], *, logy: bool = False) -> Any:
    """Draw densities of projected innovations.

    Parameters
    ----------
    histograms : mapping of name to DataArray
        Results of `innovation_histogram`.
    logy : bool
        Whether the axis of the density is logarithmic.

    Returns
    -------
    holoviews.Overlay

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.

    References
    ----------
    Bocquet et al., Fig. 7.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> net = ds.dan.train(xdan.ResidualCNN(filters=4, blocks=1), steps=4, window=4, batch=2, progress=False)
    >>> run = ds.dan.cycle(net)
    >>> density = ds.dan.innovation_histogram(net, run, bins=20)
    >>> type(xdan.histogram_curves({"network": density})).__name__
    'Overlay'
    """
    logy = switch("logy", logy)
    histograms = mapping("histograms", histograms, xr.DataArray, "what xdan.innovation_histogram gives")
    shown = {name: value.where(value > 0) if logy else value for name, value in histograms.items()}
    ticks = {"yticks": log_ticks(np.concatenate([one.values for one in shown.values()]))} if logy else {}
    return _curves(
        shown,
        "zeta",
        **ticks,
        logy=logy,
        points=False,
        xlabel="projected innovation",
        ylabel="density",
        title="projected innovations",
    )


def _mean(variable: xr.DataArray) -> xr.DataArray:
    return variable.mean([dim for dim in (TRAJECTORY, TIME) if dim in variable.dims])


def _curves(values: Mapping[str, xr.DataArray], along: str, *, points: bool = True, **options: Any) -> Any:
    """A line with points for each array of one dim."""
    hv = holoviews()

    for name, value in values.items():
        if value.dims != (along,):
            raise ValueError(f"{name!r} has dims {value.dims} beside trajectory and time: expected {(along,)}")

    drawn = []
    for (name, value), colour in zip(values.items(), cycle_colours(len(values)), strict=True):
        frame = value.load().to_series().rename("value").reset_index()
        sizes = {"width": WIDTH + LEGEND_WIDTH, "height": 360, "padding": PADDING}
        drawn.append(frame.hvplot.line(along, "value", label=name, color=colour, **sizes, **options))
        if points:
            drawn.append(frame.hvplot.scatter(along, "value", label=name, color=colour, size=18, **options))
    return hv.Overlay(drawn).opts(legend_position="right")
