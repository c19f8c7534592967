"""How linear a network is in zeta: scaling of increments, Stein's identity, and the zeta of a run."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Unpack

import dask.array as da
import numpy as np
import torch
import xarray as xr

from ..core.checks import integer, real, real_array, shown
from ..core.keywords import checks_keywords
from ..network import Network
from ..records.fields import factor_labels
from ..records.record import RecordWords
from ..records.schema import TIME, TRAJECTORY, Array, averaged_dims, to_power
from .evaluation import evaluate
from .evaluation_points import MOST_SAMPLES, check_samples, read_points
from .kernels import CovarianceKernel, HistogramKernel, ScalingKernel, SteinKernel
from .wording import shares_points

_MOST_BINS = 10**6


@checks_keywords
@shares_points
def scaling_of_increments(
    ds: xr.Dataset,
    network: Network,
    run: xr.Dataset,
    scales: Sequence[float],
    *,
    dim: str | Sequence[str] = (TRAJECTORY, TIME),
    method: str = "autodiff",
    samples: int | None = None,
    cutoff: float | None = None,
    every: int = 1,
    burn_in: int = 0,
    device: str = "auto",
    **words: Unpack[RecordWords],
) -> xr.Dataset:
    """Compute r(lambda): how increments grow if the projected innovation is multiplied by lambda, lazily.

    For a network that is linear in zeta, r(lambda) equals lambda. The computation is in float64.

    Parameters
    ----------
    {points}
    run : xarray.Dataset
        Run of the network on this record; its forecasts and innovations are used.
    scales : sequence of float
        Values of lambda, all positive.
    dim : str or sequence of str
        Dims to average over: `trajectory`, `time` or both.
    method : {"autodiff", "regression"}
        How P_a is computed: as the derivative at zeta = 0, or as slopes over samples with the observations' errors.
    samples : int, optional
        Number N_p of samples of the regression, by default 4 N.
    cutoff : float, optional
        Share of the largest singular value of P_a. Directions with smaller singular values are left out, because the
        standardised increment is large there even if the increment is small. By default, and with 0, no direction is
        left out, and a singular P_a is refused.
    {every}
    {burn_in}
    {device}
    {words}

    Returns
    -------
    xarray.Dataset
        `ratio` along `scale`. If both dims are averaged, also its `standard_error` over states, which counts states as
        independent. States without an innovation are left out.

    Raises
    ------
    ValueError
        If a scale is not positive, or there are too few samples. If P_a is singular, the error comes when it is
        computed.

    References
    ----------
    Bocquet et al., Eq. 23 and Fig. 6.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> net = ds.dan.train(xdan.ResidualCNN(filters=4, blocks=1), steps=4, window=4, batch=2, progress=False)
    >>> growth = ds.dan.scaling_of_increments(net, ds.dan.cycle(net), [0.5, 2.0], burn_in=18).compute()
    >>> bool(growth.ratio[0] < growth.ratio[1])
    True
    """
    values = np.atleast_1d(real_array("scales", scales))
    if values.ndim != 1 or not len(values) or not (values > 0).all():
        raise ValueError(f"scales={values.tolist()}: expected positive numbers, one or several")
    over, samples = averaged_dims(dim), check_samples(samples, method)
    cutoff = None if cutoff is None else real("cutoff", cutoff, least=0, below=1)
    points = read_points(ds, network, run=run, innovation="run", every=every, burn_in=burn_in, device=device, **words)
    count = points.sample_count(samples) if method == "regression" else None
    kernel = ScalingKernel(tuple(values.tolist()), CovarianceKernel(to_gain=False, samples=count), cutoff or None)
    means = evaluate(points, kernel, (len(values), 3), over=over, at_once=64, dtype=np.dtype(np.float64))
    share = means[..., 2]  # share of states with an innovation
    ratio, square = means[..., 0] / share, means[..., 1] / share
    dims = [d for d in (TRAJECTORY, TIME) if d not in over]
    coordinates = {**{d: points.x[d] for d in dims}, "scale": ("scale", values, {"long_name": "lambda", "units": "1"})}
    result = xr.Dataset({"ratio": ([*dims, "scale"], ratio)}, coordinates)
    result["ratio"].attrs = {"long_name": "size of the standardised increment over that at lambda = 1", "units": "1"}
    if not dims and points.count > 1:
        variance = da.maximum(square - ratio**2, 0.0) / da.maximum(share * points.count - 1, 1)
        result["standard_error"] = ("scale", da.sqrt(variance), {"long_name": "standard error", "units": "1"})
    result.attrs = {**points.attributes, "method": method, "cutoff": cutoff or 0.0}
    return result


@checks_keywords
@shares_points
def stein_identity(
    ds: xr.Dataset,
    network: Network,
    *,
    samples: int = 400,
    forecast_error: Any = None,
    run: xr.Dataset | None = None,
    every: int = 1,
    burn_in: int = 0,
    seed: int = 0,
    device: str = "auto",
    **words: Unpack[RecordWords],
) -> xr.Dataset:
    """Compute both sides of Stein's identity for a network, averaged over states, lazily.

    For Gaussian zeta, E[grad_zeta a] = Sigma^+ Cov[zeta, a]: the mean of the derivatives is the slope of a regression.
    If some sites are not observed, each derivative on the left is taken within the space that the samples span.

    Parameters
    ----------
    {points}
    samples : int
        Number of draws of zeta for each state, larger than the number of sites. The network is differentiated at each
        draw: 400 draws take some seconds for a state of 40 sites. So use few states, with `every`.
    {forecast_error}
    {run}
    {every}
    {burn_in}
    seed : int
        Key of the samples.
    {device}
    {words}

    Returns
    -------
    xarray.Dataset
        `mean_gradient` and `regression` (i, j), in squared units of the state; their `difference`, and its
        `standard_error` over the points. The regression has a bias of order 1 / samples.

    Raises
    ------
    ValueError
        If there are too few samples.

    References
    ----------
    Bocquet et al., Eq. 12, C3 and C4.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> net = ds.dan.train(xdan.ResidualCNN(filters=4, blocks=1), steps=4, window=4, batch=2, progress=False)
    >>> sides = ds.dan.stein_identity(net, samples=50, burn_in=18)
    >>> dict(sides.difference.sizes)
    {'i': 8, 'j': 8}
    """
    samples = integer("samples", samples, least=1, most=MOST_SAMPLES)
    points = read_points(
        ds,
        network,
        run=run,
        forecast_error=forecast_error,
        every=every,
        burn_in=burn_in,
        seed=seed,
        device=device,
        needs="Stein's identity at the truth's states",
        **words,
    )
    sites = points.sites
    if samples < sites + 2:
        raise ValueError(f"samples={samples}: expected at least {sites + 2} for a regression on {sites} sites")
    means = evaluate(
        points,
        SteinKernel(samples),
        (sites, sites, 4),
        over=(TRAJECTORY, TIME),
        at_once=1,
        observed=True,
        dtype=np.dtype(np.float64),
    )
    coordinates = factor_labels(points.setup.dynamics, "i") | factor_labels(points.setup.dynamics, "j")
    names = ("mean_gradient", "regression", "difference")
    result = xr.Dataset({name: (("i", "j"), means[..., k]) for k, name in enumerate(names)}, coordinates)
    if points.count > 1:
        difference, square = means[..., 2], means[..., 3]
        variance = da.maximum(square - difference**2, 0.0) / (points.count - 1)
        result["standard_error"] = (("i", "j"), da.sqrt(variance))
    units = points.setup.dynamics.units
    for name in result.data_vars:
        text = {"regression": "slope in the samples", "mean_gradient": "mean derivative"}.get(str(name), str(name))
        result[name].attrs = {"long_name": text.replace("_", " "), "units": to_power(units, 2)}
    result.attrs = {**points.attributes, "innovation": "sampled", "samples": samples, "seed": points.seed}
    return result


@checks_keywords
@shares_points
def innovation_histogram(
    ds: xr.Dataset,
    network: Network,
    run: xr.Dataset,
    *,
    bins: int | Sequence[float] = 80,
    limit: float | None = None,
    burn_in: int = 0,
    **words: Unpack[RecordWords],
) -> xr.DataArray:
    """Compute the density of a run's projected innovations over all observed sites, lazily.

    Parameters
    ----------
    ds : xarray.Dataset
        The twin or the record on which the run was made.
    network : Network
        The trained network.
    run : xarray.Dataset
        Run of the network; its innovations are counted.
    bins : int or sequence of float
        Number of bins between -limit and limit, or the edges of the bins.
    limit : float, optional
        Largest absolute value of the bins. By default six standard deviations of the zeta that observation errors
        alone give, with H linearised at zero.
    {burn_in}
    {words}

    Returns
    -------
    xarray.DataArray, dims (zeta,)
        The density. Its integral is the share of innovations within the edges.

    References
    ----------
    Bocquet et al., Fig. 7.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> net = ds.dan.train(xdan.ResidualCNN(filters=4, blocks=1), steps=4, window=4, batch=2, progress=False)
    >>> density = ds.dan.innovation_histogram(net, ds.dan.cycle(net), bins=20)
    >>> dict(density.sizes)
    {'zeta': 20}
    """
    limit = None if limit is None else real("limit", limit, above=0)
    number_or_edges = _check_bins(bins)
    points = read_points(ds, network, run=run, innovation="run", burn_in=burn_in, differentiates=False, **words)
    if isinstance(number_or_edges, int):
        if limit is None:
            at = torch.zeros(1, points.sites, dtype=torch.float64)
            limit = 6.0 / points.setup.observing.typical_error(at)
        edges = np.linspace(-limit, limit, number_or_edges + 1)
    else:
        edges = number_or_edges
    counts = evaluate(
        points,
        HistogramKernel(tuple(edges.tolist())),
        (len(edges),),
        over=(TRAJECTORY, TIME),
        at_once=1024,
    )
    density = counts[:-1] / counts[-1] / np.diff(edges)
    units = points.setup.dynamics.units
    inverse = to_power(units, -1)
    middle = ("zeta", (edges[:-1] + edges[1:]) / 2, {"long_name": "projected innovation", "units": inverse})
    attributes = {"long_name": "density of projected innovations", "units": units, **points.attributes}
    return xr.DataArray(density, {"zeta": middle, "width": ("zeta", np.diff(edges))}, ("zeta",), "density", attributes)


def _check_bins(bins: Any) -> int | Array:
    """A number of bins, or their edges."""
    if isinstance(bins, Integral):
        return integer("bins", bins, least=1, most=_MOST_BINS)
    edges = real_array("bins", bins)
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"bins={shown(bins)}: expected a number of bins, or their edges in increasing order")
    return edges
