"""Lyapunov exponents of a dynamics, labelled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..core.checks import integer, real, shown
from ..core.dynamics import Dynamics
from ..core.keywords import checks_keywords
from ..core.lyapunov import kaplan_yorke_dimension, orthonormal_directions, spectrum
from ..core.random import check_seed
from ..records.blocks import Plan, block, block_graph
from ..records.schema import Array, attributes
from .evaluation_points import check_labelled

VECTOR = "vector"
VECTOR_ATTRIBUTES = {"long_name": "Lyapunov vector, the fastest growing first", "units": "1"}
_TOGETHER = 64  # most trajectories of a pass
_NUMBERS = 1 << 14  # most numbers in the vectors of a pass: these stay in the cache
_MOST_TRAJECTORIES = 10**6
_MOST_STEPS = 10**8  # most steps of a trajectory: a larger number comes from a time in other units
_STEPS_BETWEEN = 10  # steps between orthonormalisations: far fewer than it takes for the vectors to become parallel
_ZERO = "an exponent within three standard errors plus one e-folding over the whole time of 0 is taken as zero"


@checks_keywords
def lyapunov_spectrum(
    dynamics: Dynamics,
    *,
    vectors: int | None = None,
    time: float = 500.0,
    spin_up: float | None = None,
    interval: float | None = None,
    trajectories: int = 8,
    seed: int = 0,
) -> xr.Dataset:
    """Compute the Lyapunov exponents of a dynamics, its attractor's dimension and its entropy; not lazily.

    The tangent linear model carries orthonormal vectors along trajectories on the attractor. The vectors are
    orthonormalised again and again. The exponents are the mean rates at which the vectors stretch. Trajectories run
    side by side on dask's scheduler, several in one task. An exponent counts as zero if it differs from 0 by less than
    three standard errors plus 1 / `time`: over the whole time a vector then grows by less than a factor e.

    Parameters
    ----------
    dynamics : Dynamics
        The model. Its step must be differentiable.
    vectors : int, optional
        Number of exponents, the largest first; by default all N. The work grows faster than their number.
    time : float
        Model time of the average, on every trajectory. It is rounded up to whole intervals.
    spin_up : float, optional
        Model time before the average, in which the vectors converge. By default the spin-up of the dynamics.
    interval : float, optional
        Model time between orthonormalisations, by default 10 steps. The result does not depend on it, unless it is so
        long that the vectors become parallel in float64.
    trajectories : int
        Number of independent runs. Standard errors are computed over them; they are NaN for a single run.
    seed : int
        Key of the random starts and directions.

    Returns
    -------
    xarray.Dataset
        Along `vector`: `exponent` and `exponent_standard_error`, per unit of model time. Without dims, each with a
        standard error: `kaplan_yorke_dimension`; `entropy`, the sum of the positive exponents, an upper bound of the
        Kolmogorov-Sinai entropy; and `doubling_time`, ln 2 divided by the first exponent, NaN if this exponent is not
        positive. `positive` and `zero` are the numbers of such exponents. Dimension and entropy are NaN if `vectors`
        is too small to compute them.

    Raises
    ------
    TypeError
        If `dynamics` is not a Dynamics, or an argument is no number.
    ValueError
        If a time or a count is impossible; this is checked before the computation. Or if a trajectory blows up.

    References
    ----------
    Benettin et al. (1980), doi:10.1007/BF02128236; Shimada and Nagashima (1979), doi:10.1143/PTP.61.1605;
    Kaplan and Yorke (1979), doi:10.1007/BFb0064319; Ruelle (1978), doi:10.1007/BF02584795 (entropy).

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.lyapunov_spectrum(xdan.Lorenz63(), time=10.0, trajectories=2)
    >>> float(ds.exponent.sum().round(2))  # the divergence of the flow, -(sigma + 1 + beta)
    -13.67
    """
    if not isinstance(dynamics, Dynamics):
        raise TypeError(
            f"dynamics={shown(dynamics)}: expected an xdan Dynamics such as xdan.Lorenz96(); "
            "wrap a torch function as xdan.CustomDynamics(tendency, state=..., timestep=...)"
        )
    dynamics.require_derivatives("the Lyapunov spectrum", "Write the model in torch")
    seed, count, between = check_seed(seed), vector_count(dynamics, vectors), steps_between(dynamics, interval)
    trajectories, time = (
        integer("trajectories", trajectories, least=1, most=_MOST_TRAJECTORIES),
        real("time", time, above=0),
    )
    spin_up = real("spin_up", dynamics.spin_up_time if spin_up is None else spin_up, least=0)
    step = between * dynamics.timestep
    for label, span in (("time", time), ("spin_up", spin_up)):
        if span / dynamics.timestep > _MOST_STEPS:
            raise ValueError(
                f"{label}={span:g} takes {span / dynamics.timestep:.3g} steps of {dynamics.timestep:g}: expected at "
                f"most {_MOST_STEPS}; is it in other units than the model's time?"
            )
    lead, repeats = (math.ceil(round(span / step, 6)) for span in (spin_up, time))
    together = trajectories_together(dynamics, count)
    sizes = [min(together, trajectories - start) for start in range(0, trajectories, together)]
    exponents = block_graph(
        _spectrum_block,
        Plan.from_chunks(sizes, (1,)),
        [],
        {"exponent": ((count,), np.dtype(np.float64))},
        *(dynamics, seed, count, between, lead, repeats),
    )["exponent"].compute()[:, 0]
    settings = {"time": repeats * step, "spin_up": lead * step, "interval": step, "trajectories": trajectories}
    title = "Lyapunov exponents"
    return _label_spectrum(exponents, dynamics, repeats * step).assign_attrs(
        attributes(dynamics, title=title, seed=seed, zero=_ZERO, **settings)
    )


@checks_keywords
def lyapunov_floor(
    spectrum: xr.Dataset, *, interval: float, error_std: float = 1.0, components: int | None = None
) -> xr.Dataset:
    """Compute the error of the best linear filter from the exponents alone, if every component is observed.

    A direction that grows by exp(lambda dt) between observations has an analysis error variance of at least
    R (1 - exp(-2 lambda dt)): the variance of a Kalman filter for this direction alone. In a steady filter the
    observations give exactly 2 lambda dt nats of information in a cycle for each such direction.

    Parameters
    ----------
    spectrum : xarray.Dataset
        Result of `lyapunov_spectrum` that holds all positive exponents.
    interval : float
        Model time dt between analyses.
    error_std : float
        Standard deviation of the observation errors, in units of the state.
    components : int, optional
        Number N of components of the state. By default the number of exponents in the spectrum.

    Returns
    -------
    xarray.Dataset
        `rmse`: the root of the mean square error over the components, in the units of `error_std`. `information`: in
        nats a cycle, to compare with `information_gain`.

    Raises
    ------
    TypeError
        If `spectrum` is no spectrum, or another argument is no number.
    ValueError
        If a number is not positive, or the last exponent of the spectrum is positive.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.lyapunov_spectrum(xdan.Lorenz63(), time=10.0, trajectories=2)
    >>> floor = xdan.lyapunov_floor(ds, interval=0.1)
    >>> bool(0 < floor.rmse < 1)
    True
    """
    check_labelled("spectrum", spectrum, xr.Dataset)
    if "exponent" not in spectrum or spectrum["exponent"].dims != (VECTOR,):
        raise ValueError(f"spectrum= holds {sorted(map(str, spectrum))}: expected the result of lyapunov_spectrum")
    interval, error_std = real("interval", interval, above=0.0), real("error_std", error_std, above=0.0)
    exponents = spectrum["exponent"].values
    count = exponents.size if components is None else integer("components", components, least=exponents.size)
    if exponents[-1] > 0:
        raise ValueError(
            f"the last of {exponents.size} exponents is {exponents[-1]:.3g}: expected all positive ones; give "
            "lyapunov_spectrum more vectors="
        )
    growth = np.clip(exponents, 0.0, None) * interval
    rmse = error_std * math.sqrt(float((1 - np.exp(-2 * growth)).sum()) / count)
    text = "least RMSE of a linear filter, from the Lyapunov exponents"
    return xr.Dataset(
        {
            "rmse": ((), rmse, {"long_name": text}),
            "information": ((), 2 * float(growth.sum()), {"long_name": "information of a cycle", "units": "nat"}),
        },
        attrs={"interval": interval, "error_std": error_std, "components": count},
    )


def vector_count(dynamics: Dynamics, vectors: int | None) -> int:
    """Number of vectors to compute; by default all N."""
    size = math.prod(dynamics.shape)
    return size if vectors is None else integer("vectors", vectors, least=1, most=size)


def trajectories_together(dynamics: Dynamics, vectors: int) -> int:
    """Number of trajectories along which vectors are carried at a time."""
    return max(1, min(_TOGETHER, _NUMBERS // (vectors * math.prod(dynamics.shape))))


def steps_between(dynamics: Dynamics, interval: float | None) -> int:
    """Steps between orthonormalisations."""
    return _STEPS_BETWEEN if interval is None else dynamics.steps_in(real("interval", interval, above=0))


@block
def _spectrum_block(
    data: Sequence[Tensor],
    rows: slice,
    columns: slice,
    dynamics: Dynamics,
    seed: int,
    vectors: int,
    between: int,
    spin_up: int,
    repeats: int,
) -> dict[str, Tensor]:
    """Exponents of some trajectories, (B, 1, M). There are no input data: trajectories start from the climatology."""
    keys = torch.arange(rows.start, rows.stop)
    x = dynamics.climatology(keys, seed, like=torch.zeros((), dtype=torch.float64))[:, 0].flatten(1)
    start = orthonormal_directions(keys, seed, vectors, x.shape[1])
    exponents, _ = spectrum(dynamics, x, start, between=between, spin_up=spin_up, repeats=repeats)
    if bool(exponents.isnan().any()):
        raise ValueError(
            f"the exponents of {dynamics!r} are not numbers: expected finite derivatives of its step; ask for fewer "
            "with vectors=, or orthonormalise more often with interval="
        )
    return {"exponent": exponents[:, None]}


def _label_spectrum(values: Array, dynamics: Dynamics, time: float) -> xr.Dataset:
    """Make the result of `lyapunov_spectrum` from the exponents of each trajectory, (trajectory, vector)."""
    size, count = math.prod(dynamics.shape), values.shape[1]
    rate, one = "per unit of model time", "1"

    def error(value: Array) -> Any:
        many = len(value) > 1
        return value.std(0, ddof=1) / math.sqrt(len(value)) if many else np.full(value.shape[1:], np.nan)

    def dimension(exponents: Array) -> Array:
        dimensions: Array = block(kaplan_yorke_dimension)(exponents, whole=count == size)
        return dimensions

    mean, spread = values.mean(0), error(values)
    tolerance = 3 * np.nan_to_num(spread) + 1 / time
    positive, zero = mean > tolerance, np.abs(mean) <= tolerance
    entropies = values[:, positive].sum(1) if count == size or not positive[-1] else np.full(len(values), np.nan)
    doubling = math.log(2) / mean[0] if positive[0] else math.nan
    error_of = "standard error over trajectories of the"
    variables: dict[str, tuple[Any, str]] = {
        "exponent": (mean, f"Lyapunov exponent, {rate}"),
        "exponent_standard_error": (spread, f"{error_of} exponent"),
        "kaplan_yorke_dimension": (dimension(np.where(zero, 0.0, mean)), "Kaplan-Yorke dimension of the attractor"),
        "kaplan_yorke_dimension_standard_error": (error(dimension(values)), f"{error_of} dimension"),
        "entropy": (
            entropies.mean(),
            f"sum of positive exponents, upper bound of the Kolmogorov-Sinai entropy, {rate}",
        ),
        "entropy_standard_error": (error(entropies), f"{error_of} entropy"),
        "doubling_time": (doubling, "time in which small errors double: ln 2 over the first exponent, model time"),
        "doubling_time_standard_error": (doubling * spread[0] / mean[0], f"{error_of} doubling time"),
        "positive": (int(positive.sum()), "number of positive exponents"),
        "zero": (int(zero.sum()), "number of exponents taken as zero"),
    }
    return xr.Dataset(
        {
            name: ((VECTOR,) if np.ndim(value) else (), value, {"long_name": label, "units": one})
            for name, (value, label) in variables.items()
        },
        {VECTOR: (VECTOR, np.arange(1, count + 1), VECTOR_ATTRIBUTES)},
    )
