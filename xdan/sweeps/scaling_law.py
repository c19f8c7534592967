"""A scaling law of the test RMSE: its dependence on the number of trajectories and the batch, fitted to a sweep."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ..core.checks import choice, integer, shown
from ..core.extras import optional
from ..core.formats import data_format
from ..core.keywords import checks_keywords
from ..core.random import check_seed
from ..records.schema import Array

PUBLISHED_RATIO = 0.58  # beta / alpha for Lorenz-96, every site observed, interval 0.05
_PARAMETERS = 6  # number of parameters of a fit: three exponents and three coefficients
_MOST_FITS = 100_000  # largest number of fits, which takes some hours
_STARTS = list(itertools.product((0.05, 0.2, 0.6), (0.2, 0.6, 1.2), (0.6, 1.5)))  # alpha, ratio, gamma
_OUTSIDE = 0.16  # share of the fits beyond each end of an error bar
# Bounds of the search, for alpha, ratio and gamma.
_LOWEST, _HIGHEST = np.array([0.01, -1.0, 0.2]), np.array([2.0, 3.0, 5.0])


@checks_keywords
def scaling_law(
    cube: xr.Dataset | xr.DataArray,
    *,
    size: str = "trajectories",
    batch: str = "batch",
    value: str = "rmse",
    bootstrap: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """Fit RMSE^(1/gamma) = f(N_r^alpha / S_b^beta), where f is a polynomial of second order, with its uncertainty.

    Parameters
    ----------
    cube : xarray.Dataset or DataArray
        Result of `sweep` over `size` and `batch` for one scheme, or an RMSE with these dims. A dim `seed` is averaged.
    size, batch : str
        Dims of N_r (trajectories) and S_b (batch). Their labels are the values.
    value : str
        Score of the Dataset to fit.
    bootstrap : int
        Number of fits to cells that are drawn anew. They give the uncertainties.
    seed : int
        Key of the draws.

    Returns
    -------
    xarray.Dataset
        `alpha`, `beta`, `gamma`, `ratio` (beta / alpha), and the `coefficient` of f along `power`. For the exponents
        also `..._low` and `..._high`, between which 68 % of the fits lie, and `..._standard_error`, half of the
        distance between them. `fitted` and `observed` are the RMSE of every cell. Only the ratio is well determined:
        a change of alpha can be compensated by gamma and f. The search goes over alpha from 0.01 to 2, gamma from 0.2
        to 5, and the ratio from -1 to 3. If fits reach the edge of the search, the cells do not determine the
        parameter: its error bars are NaN, and the attribute `undetermined` names it.

    Raises
    ------
    ValueError
        If the dims are missing, there are fewer cells than 8, or fewer than two values of N_r or of S_b.

    References
    ----------
    Bocquet et al., Eq. A1 and Fig. A3: alpha = 0.103, beta = 0.060, gamma = 1.435, ratio 0.58.

    Examples
    --------
    >>> import numpy as np, xarray as xr, xdan
    >>> sizes, batches = np.array([64, 256, 1024, 4096]), np.array([4, 16, 64])
    >>> z = sizes[:, None] ** 0.103 / batches ** 0.060
    >>> dims, labels = ("trajectories", "batch"), {"trajectories": sizes, "batch": batches}
    >>> rmse = xr.DataArray((1.0 + 0.5 / z) ** 1.4, labels, dims)
    >>> law = xdan.scaling_law(rmse, bootstrap=0)
    >>> bool(abs(law.ratio - 0.060 / 0.103) < 0.1)
    True
    """
    bootstrap = integer("bootstrap", bootstrap, least=0, most=_MOST_FITS)
    rng = np.random.default_rng(check_seed(seed))
    if not isinstance(value, str):
        raise TypeError(f"value={shown(value)}: expected the name of a score")
    observed = _cells(cube, size, batch, value)
    grid = np.meshgrid(observed[size].values, observed[batch].values, indexing="ij")
    present = np.isfinite(observed.values)
    n, s, y = (np.asarray(a, dtype=np.float64)[present] for a in (*grid, observed.values))
    if len(y) < _PARAMETERS + 2 or len(set(n)) < 2 or len(set(s)) < 2:
        raise ValueError(
            f"{len(y)} cells of {len(set(n))} values of {size!r} and {len(set(s))} of {batch!r}: expected at least "
            f"{_PARAMETERS + 2} cells, to determine {_PARAMETERS} parameters, and two values of each"
        )
    if not (y > 0).all() or not (n > 0).all() or not (s > 0).all():
        raise ValueError(f"expected positive {value}, {size} and {batch}; some are zero or negative")
    best = min((_fit(n, s, y, np.array(start)) for start in _STARTS), key=lambda fit: fit.cost)
    draws = []
    for _ in range(bootstrap):
        chosen = rng.integers(0, len(y), len(y))
        if len(set(chosen.tolist())) > _PARAMETERS and len(set(n[chosen])) > 1 and len(set(s[chosen])) > 1:
            draws.append(_fit(n[chosen], s[chosen], y[chosen], best.exponents).exponents)
    return _label(best, np.array(draws), observed, present, (n, s))


@dataclass(frozen=True)
class _Fit:
    """Exponents alpha, ratio and gamma; coefficients of f; half the sum of squared relative residuals."""

    exponents: Array
    coefficients: Array
    cost: float

    def __call__(self, n: Array, s: Array) -> Array:
        """RMSE."""
        alpha, ratio, gamma = self.exponents
        u = (n / s**ratio) ** alpha
        answer: Array = np.maximum(np.polynomial.polynomial.polyval(u, self.coefficients), 1e-12) ** gamma
        return answer


def _fit(n: Array, s: Array, y: Array, start: Array) -> _Fit:
    """Least squares of relative residuals. The problem is linear in f, which is solved for at every step."""

    def solve(exponents: Array) -> tuple[Array, Array]:
        alpha, ratio, gamma = exponents
        u, z = (n / s**ratio) ** alpha, y ** (1.0 / gamma)
        # A relative residual of the RMSE is gamma times the relative residual of z.
        matrix = np.stack([np.ones_like(u), u, u**2], 1) * (gamma / z)[:, None]
        scale = np.linalg.norm(matrix, axis=0)
        coefficients = np.linalg.lstsq(matrix / scale, np.full(len(z), gamma), rcond=1e-12)[0] / scale
        return coefficients, matrix @ coefficients - gamma

    start = np.clip(start, _LOWEST + 1e-6, _HIGHEST - 1e-6)
    optimize = optional("scipy.optimize", "statistics", "fits of a scaling law")
    best = optimize.least_squares(lambda e: solve(e)[1], start, bounds=(_LOWEST, _HIGHEST), x_scale=(0.1, 0.3, 0.5))
    return _Fit(best.x, solve(best.x)[0], float(best.cost))


def _cells(cube: xr.Dataset | xr.DataArray, size: str, batch: str, value: str) -> xr.DataArray:
    """Mean over seeds, dims (size, batch)."""
    if not isinstance(cube, (xr.Dataset, xr.DataArray)):
        raise TypeError(f"cube={shown(cube)}: expected an xarray Dataset, as sweep() gives, or DataArray")
    data_format(cube.attrs, "the cube")
    if isinstance(cube, xr.Dataset):
        cube = cube[choice("value", value, {str(name) for name in cube.data_vars})]
    dims = {str(dim) for dim in cube.dims}
    choice("size", size, dims)
    choice("batch", batch, dims)
    if size == batch:
        raise ValueError(f"size={size!r}, batch={batch!r}: expected two dims of the cube")
    if cube.dtype.kind not in "fiu":
        raise TypeError(f"{cube.name!r} is of {cube.dtype}: expected real numbers")
    many = [str(dim) for dim in cube.dims if dim not in (size, batch, "seed") and cube.sizes[dim] > 1]
    if many:
        raise ValueError(f"the cube has the dims {many} too: expected one value of each, cube.sel({many[0]}=...)")
    cube = cube.squeeze([d for d in cube.dims if d not in (size, batch, "seed")], drop=True)
    mean: xr.DataArray = cube.mean("seed") if "seed" in cube.dims else cube
    return mean.transpose(size, batch).load()


def _undetermined(exponents: Array) -> list[str]:
    """Names of exponents that many fits put at the edge of the search, and of exponents that compensate them."""
    edge = np.minimum(exponents - _LOWEST, _HIGHEST - exponents) < 1e-3 * (_HIGHEST - _LOWEST)
    alpha, ratio, gamma = edge.mean(0) > _OUTSIDE
    return [*(["alpha", "beta", "gamma"] if alpha or ratio or gamma else []), *(["ratio"] if ratio else [])]


def _label(best: _Fit, draws: Array, observed: xr.DataArray, present: Array, cells: tuple[Array, Array]) -> xr.Dataset:
    alpha, ratio, gamma = best.exponents
    named = {"alpha": alpha, "beta": alpha * ratio, "gamma": gamma, "ratio": ratio}
    drawn = {} if not len(draws) else {
        "alpha": draws[:, 0], "beta": draws[:, 0] * draws[:, 1], "gamma": draws[:, 2], "ratio": draws[:, 1]
    }  # fmt: skip
    fitted = np.full(observed.shape, np.nan)
    fitted[present] = best(*cells)
    variables: dict[str, Any] = {
        "coefficient": ("power", best.coefficients, {"long_name": "coefficient of f", "units": "1"}),
        "observed": (observed.dims, observed.values, {"long_name": "RMSE, mean over seeds"}),
        "fitted": (observed.dims, fitted, {"long_name": "RMSE by the scaling law"}),
    }
    loose = _undetermined(np.vstack([best.exponents[None], draws])) if drawn else []
    for name, number in named.items():
        variables[name] = ((), number, {"long_name": f"exponent {name}" if name != "ratio" else "beta / alpha"})
        if drawn:
            low, high = (np.nan, np.nan) if name in loose else np.quantile(drawn[name], [_OUTSIDE, 1 - _OUTSIDE])
            ends = {"low": low, "high": high, "standard_error": (high - low) / 2}
            variables |= {f"{name}_{end}": ((), v, {"long_name": f"{name}, {end}"}) for end, v in ends.items()}
    coordinates = {dim: observed[dim] for dim in observed.dims} | {"power": [0, 1, 2]}
    error = float(np.sqrt(np.nanmean((fitted / observed.values - 1) ** 2)))
    attributes = {
        "cells": int(present.sum()),
        "relative_error": error,
        "bootstrap": len(draws),
        "published_ratio": PUBLISHED_RATIO,
        "undetermined": loose,
    }
    return xr.Dataset(variables, coordinates, attributes)
