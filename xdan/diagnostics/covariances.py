"""Error covariances of networks and ensembles: spectra, angles between subspaces, and the bias without innovation."""

from __future__ import annotations

from functools import partial
from typing import Unpack

import numpy as np
import xarray as xr

from ..core.checks import choice, integer, real, shown
from ..core.keywords import checks_keywords
from ..network import Network
from ..records.fields import ROLE_ATTRIBUTE, pack_by_attributes
from ..records.record import RecordWords
from ..records.schema import MEMBER, TIME, TRAJECTORY, Array, to_power
from ..records.store import check_contents, check_whole, sealed
from ..records.watch import warn_of
from .evaluation import evaluate
from .evaluation_points import check_labelled, read_points
from .kernels import zero_innovation_increment
from .wording import shares_points


@checks_keywords
def ensemble_covariance(run: xr.Dataset, *, of: str = "members") -> xr.DataArray:
    """Compute the covariance of a run's members at every time, lazily.

    Parameters
    ----------
    run : xarray.Dataset
        Run of an ensemble method that keeps its members, `baseline(..., keep_members=True)`.
    of : {"members", "forecast_members"}
        Members of the analysis, or of the forecast.

    Returns
    -------
    xarray.DataArray, dims (trajectory, time, i, j)
        Covariance with the divisor M - 1 for M members, in squared units of the state.

    Raises
    ------
    ValueError
        If the run holds no members, or a single member.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=10, trajectories=4, seed=0).compute()
    >>> run = ds.dan.baseline("enkf-n", members=5, keep_members=True)
    >>> dict(xdan.ensemble_covariance(run).sizes)
    {'trajectory': 4, 'time': 10, 'i': 8, 'j': 8}
    """
    check_labelled("run", run, xr.Dataset)
    choice("of", of, ("members", "forecast_members"))
    members = run[of] if of in run else pack_by_attributes(run, of)
    if members is None or MEMBER not in members.dims:
        raise ValueError(f"the run holds no {of!r}: expected one made with baseline(..., keep_members=True)")
    check_contents(run)
    for name, variable in run.data_vars.items():
        if name == of or variable.attrs.get(ROLE_ATTRIBUTE) == of:
            check_whole(run, variable)
    count = members.sizes[MEMBER]
    if count < 2:
        raise ValueError("one member has no covariance: expected at least 2")
    state = [dim for dim in members.dims if dim not in (TRAJECTORY, TIME, MEMBER)]
    anomalies = members - members.mean(MEMBER)
    if len(state) > 1:
        anomalies = anomalies.stack(site=state).drop_vars(["site", *map(str, state)])
        state = ["site"]
    pair = [anomalies.rename({state[0]: factor}) for factor in ("i", "j")]
    covariance: xr.DataArray = xr.dot(*pair, dim=MEMBER) / (count - 1)
    covariance.attrs = {
        "long_name": f"covariance of the {of.replace('_', ' ')}",
        "units": to_power(members.attrs.get("units", "1"), 2),
    }
    lead = [dim for dim in (TRAJECTORY, TIME) if dim in covariance.dims]
    return sealed(covariance.transpose(*lead, "i", "j").rename("ensemble_covariance"))


def covariance_spectrum(covariance: xr.DataArray) -> xr.Dataset:
    """Compute eigenvalues and eigenvectors of covariances, lazily.

    Parameters
    ----------
    covariance : xarray.DataArray, dims (..., i, j)
        Covariances from `gain(kind="covariance")` or `ensemble_covariance`.

    Returns
    -------
    xarray.Dataset
        `eigenvalue`: eigenvalues of the symmetric part (P + P^T) / 2 along `mode`, the largest first, in units of P.
        `eigenvector`: eigenvectors of length 1 along `mode` and `i`. `asymmetry`: the Frobenius norm of (P - P^T) / 2
        divided by the norm of the symmetric part.

    Raises
    ------
    ValueError
        If i and j are missing or of different sizes.

    Examples
    --------
    >>> import numpy as np, xarray as xr, xdan
    >>> covariance = xr.DataArray([[2.0, 1.0], [1.0, 2.0]], dims=("i", "j"))
    >>> xdan.covariance_spectrum(covariance).eigenvalue.values
    array([3., 1.])
    """
    _check_square(covariance)
    n = covariance.sizes["i"]
    values, vectors, asymmetry = xr.apply_ufunc(
        _spectrum,
        covariance,
        input_core_dims=[["i", "j"]],
        output_core_dims=[["mode"], ["mode", "i"], []],
        dask="parallelized",
        output_dtypes=[covariance.dtype] * 3,
        dask_gufunc_kwargs={"output_sizes": {"mode": n}},
    )
    units = covariance.attrs.get("units", "1")
    result = xr.Dataset({"eigenvalue": values, "eigenvector": vectors, "asymmetry": asymmetry})
    result = result.assign_coords(mode=np.arange(1, n + 1), i=covariance["i"])
    result["eigenvalue"].attrs = {"long_name": "eigenvalue of the symmetric part", "units": units}
    result["eigenvector"].attrs = {"long_name": "eigenvector of the symmetric part", "units": "1"}
    result["asymmetry"].attrs = {"long_name": "size of the antisymmetric over the symmetric part", "units": "1"}
    return result


@checks_keywords
def information_gain(covariance: xr.DataArray, *, error_std: float | xr.DataArray = 1.0) -> xr.DataArray:
    """Compute the information that observations give about the state, from the analysis error covariance, lazily.

    Every component is observed. The information -log det(I - K H) = -log det(I - P_a R^-1) says how much smaller the
    volume of the error is after the analysis. For a steady linear filter, the mean information is twice the sum of the
    positive Lyapunov exponents times the interval (`lyapunov_floor`). A covariance that is too small for its filter
    gives less information.

    Parameters
    ----------
    covariance : xarray.DataArray, dims (..., i, j)
        P_a from `gain(kind="covariance")` or `ensemble_covariance`. Its symmetric part is used.
    error_std : float or xarray.DataArray, dims (i,)
        Standard deviation of the observation errors, in units of the state.

    Returns
    -------
    xarray.DataArray, dims (...)
        Information in nats. It is NaN if P_a R^-1 has an eigenvalue of 1 or more, which is impossible for an analysis.

    Raises
    ------
    TypeError, ValueError
        If i and j are missing or of different sizes, or an error is not positive.

    Examples
    --------
    >>> import numpy as np, xarray as xr, xdan
    >>> covariance = xr.DataArray(0.5 * np.eye(2), dims=("i", "j"))
    >>> round(float(xdan.information_gain(covariance, error_std=1.0)), 4)  # 2 ln 2
    1.3863
    """
    _check_square(covariance)
    if isinstance(error_std, xr.DataArray):
        if error_std.dims != ("i",) or error_std.sizes["i"] != covariance.sizes["i"]:
            raise ValueError(f"error_std= has sizes {dict(error_std.sizes)}: expected i: {covariance.sizes['i']}")
        error = error_std.values.astype(np.float64)
    else:
        error = np.full(covariance.sizes["i"], real("error_std", error_std, above=0.0))
    if not (error > 0).all():
        raise ValueError("error_std= holds values that are not positive: expected standard deviations")
    result: xr.DataArray = xr.apply_ufunc(
        partial(_information, error=error),
        covariance,
        input_core_dims=[["i", "j"]],
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    result.attrs = {"long_name": "information gained by an analysis, -log det(I - K H)", "units": "nat"}
    return result.rename("information_gain")


def _information(p: Array, error: Array) -> Array:
    whole = _finite(p)
    p = np.where(whole[..., None, None], p, 0.0).astype(np.float64) / np.outer(error, error)
    shares = np.linalg.eigvalsh((p + p.swapaxes(-1, -2)) / 2)
    possible = whole & (shares < 1).all(-1)
    information: Array = -np.log1p(-np.where(possible[..., None], shares, np.nan)).sum(-1)
    return information


def _finite(p: Array) -> Array:
    """Which matrices are finite. Those of a lost trajectory are not."""
    return np.asarray(np.isfinite(p).all((-1, -2)))


def _spectrum(p: Array) -> tuple[Array, Array, Array]:
    whole = _finite(p)
    if not whole.all():
        gone = int((~whole).sum())
        text = f"{gone} of {whole.size} covariances are not finite and have no eigenvalues"
        warn_of([f"{text}: trajectories were lost, or a store was cut short"])
    p = np.where(whole[..., None, None], p, np.eye(p.shape[-1], dtype=p.dtype))
    symmetric, rest = (p + p.swapaxes(-1, -2)) / 2, (p - p.swapaxes(-1, -2)) / 2
    values, vectors = np.linalg.eigh(symmetric)
    asymmetry = np.linalg.norm(rest, axis=(-2, -1)) / np.linalg.norm(symmetric, axis=(-2, -1))
    vectors = np.where(whole[..., None, None], vectors[..., ::-1].swapaxes(-1, -2), np.nan)
    return np.where(whole[..., None], values[..., ::-1], np.nan), vectors, np.where(whole, asymmetry, np.nan)


@checks_keywords
def principal_angles(
    one: xr.DataArray, other: xr.DataArray, *, modes: int, other_modes: int | None = None
) -> xr.DataArray:
    """Compute the angles between two subspaces at every state, lazily.

    Parameters
    ----------
    one, other : xarray.DataArray
        Covariances, dims (..., i, j): their leading eigenvectors span the subspace. Or vectors, such as Lyapunov
        vectors, dims (..., vector, i) or (..., vector, state dim): the leading vectors span the subspace. Vectors need
        not be orthogonal.
    modes, other_modes : int
        Dimensions of the two subspaces. By default `other_modes` equals `modes`.

    Returns
    -------
    xarray.DataArray, dims (..., angle)
        Angles in degrees, the smallest first. There are as many as the smaller subspace has dimensions. All angles are
        0 if the smaller subspace lies within the other. An angle is 90 for a direction that the other lacks.

    Raises
    ------
    ValueError
        If there are fewer modes than `modes` or `other_modes`; or if neither variable has all states of the other.

    References
    ----------
    Bjorck and Golub (1973), doi:10.2307/2005662.

    Examples
    --------
    >>> import numpy as np, xarray as xr, xdan
    >>> one = xr.DataArray(np.diag([1.0, 0.1]), dims=("i", "j"))
    >>> other = xr.DataArray([[1.0, 1.0], [1.0, 1.0]], dims=("i", "j"))
    >>> xdan.principal_angles(one, other, modes=1).values.round(3)
    array([45.])
    """
    modes = integer("modes", modes, least=1)
    sizes = (modes, modes if other_modes is None else integer("other_modes", other_modes, least=1))
    spans = [
        _span(label, variable, count)
        for label, variable, count in zip(("one", "other"), (one, other), sizes, strict=True)
    ]
    spans.sort(key=lambda span: -span.sizes["mode"])
    # The modes get different dims, so that xarray does not match the two mode by mode.
    spans = [span.rename(mode=name) for span, name in zip(spans, ("wide", "narrow"), strict=True)]
    matched = list(xr.align(*spans, join="inner"))
    for dim in set(spans[0].dims) & set(spans[1].dims) - {"i"}:
        fewest, common = min(span.sizes[dim] for span in spans), matched[0].sizes[dim]
        if common < fewest:
            raise ValueError(
                f"the two share {common} of {fewest} labels along {dim!r}: expected covariances or vectors at the same "
                "states, or those of one at some of the other's"
            )
    spans = matched
    angles: xr.DataArray = xr.apply_ufunc(
        _angles,
        *spans,
        input_core_dims=[["wide", "i"], ["narrow", "i"]],
        output_core_dims=[["angle"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"angle": min(sizes)}},
    )
    angles = angles.assign_coords(angle=np.arange(1, min(sizes) + 1)).rename("principal_angle")
    angles.attrs = {"long_name": "principal angle", "units": "degree"}
    return angles


def _span(label: str, variable: xr.DataArray, modes: int) -> xr.DataArray:
    """Vectors that span a subspace, dims (..., mode, i), without labels of i."""
    check_labelled(label, variable, xr.DataArray)
    if {"i", "j"} <= set(variable.dims):
        vectors = covariance_spectrum(variable)["eigenvector"]
    elif "vector" in variable.dims:
        inside = [dim for dim in variable.dims if dim not in (TRAJECTORY, TIME, "vector")]
        if len(inside) != 1:
            raise ValueError(f"vectors with dims {variable.dims}: expected one dim of the state; stack the others")
        vectors = variable.rename({"vector": "mode", inside[0]: "i"})
    else:
        raise ValueError(
            f"{label}= has dims {variable.dims}: expected covariances (..., i, j) or vectors (..., vector, i)"
        )
    if modes > vectors.sizes["mode"]:
        argument = "modes" if label == "one" else "other_modes"
        raise ValueError(f"{argument}={modes}: expected 1 to {vectors.sizes['mode']}, as many as {label}= has")
    vectors = vectors.isel(mode=slice(0, modes))
    return vectors.drop_vars([c for c in ("mode", "i") if c in vectors.coords])


def _angles(wide: Array, narrow: Array) -> Array:
    whole = _finite(wide) & _finite(narrow)
    one, other = np.eye(*wide.shape[-2:]), np.eye(*narrow.shape[-2:])
    wide, narrow = (np.where(whole[..., None, None], v, unit) for v, unit in ((wide, one), (narrow, other)))
    q, p = (np.linalg.qr(v.swapaxes(-1, -2).astype(np.float64))[0] for v in (wide, narrow))
    inner = q.swapaxes(-1, -2) @ p
    cosines = np.linalg.svd(inner, compute_uv=False)
    # Small angles are computed from their sines: a cosine cannot tell a small angle from 0.
    sines = np.linalg.svd(p - q @ inner, compute_uv=False)[..., ::-1]
    angles: Array = np.degrees(
        np.where(cosines**2 > 0.5, np.arcsin(np.clip(sines, 0, 1)), np.arccos(np.clip(cosines, 0, 1)))
    )
    return np.where(whole[..., None], angles, np.nan)


@checks_keywords
@shares_points
def zero_innovation_bias(
    ds: xr.Dataset,
    network: Network,
    *,
    run: xr.Dataset | None = None,
    every: int = 1,
    burn_in: int = 0,
    device: str = "auto",
    **words: Unpack[RecordWords],
) -> xr.Dataset:
    """Compute the increment for an innovation of zero, lazily. It should be small compared with the analysis error.

    Parameters
    ----------
    {points}
    {run}
    {every}
    {burn_in}
    {device}
    {words}

    Returns
    -------
    xarray.Dataset
        `bias` (trajectory, time): the norm of a(x, 0) divided by sqrt(N), in units of the state. `mean` and
        `deviation`: its mean and standard deviation over trajectories and times.

    References
    ----------
    Bocquet et al. (2024), doi:10.1063/5.0230837.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> net = ds.dan.train(xdan.ResidualCNN(filters=4, blocks=1), steps=4, window=4, batch=2, progress=False)
    >>> bias = ds.dan.zero_innovation_bias(net, burn_in=18)
    >>> dict(bias.bias.sizes)
    {'trajectory': 4, 'time': 2}
    """
    points = read_points(
        ds,
        network,
        run=run,
        every=every,
        burn_in=burn_in,
        device=device,
        needs="the bias at the truth's states",
        **words,
    )
    values = evaluate(points, zero_innovation_increment, (), at_once=256)
    at_state = xr.DataArray(values, {dim: points.x[dim] for dim in (TRAJECTORY, TIME)}, (TRAJECTORY, TIME))
    at_state = points.labelled.with_its_dims(at_state)
    result = xr.Dataset({"bias": at_state, "mean": at_state.mean(), "deviation": at_state.std()})
    units = points.setup.dynamics.units
    for name, text in (("bias", "increment without innovation"), ("mean", "its mean"), ("deviation", "its deviation")):
        result[name].attrs = {"long_name": text, "units": units}
    result.attrs = {"title": "increment without innovation", **points.attributes}
    return result


def _check_square(covariance: xr.DataArray) -> None:
    check_labelled("covariance", covariance, xr.DataArray)
    if not {"i", "j"} <= set(covariance.dims) or covariance.sizes["i"] != covariance.sizes["j"]:
        raise ValueError(f"a covariance with sizes {dict(covariance.sizes)}: expected dims i and j of one size")
    for dim in {TRAJECTORY, TIME} & set(covariance.indexes):
        labels = covariance.indexes[dim]
        if labels.hasnans or not labels.is_unique:
            raise ValueError(
                f"a covariance whose labels of {dim!r} are missing or occur twice, {shown(labels.tolist())}: expected "
                "distinct ones; was the store cut short?"
            )
