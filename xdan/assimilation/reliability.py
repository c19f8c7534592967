"""Probabilities of an event, compared with its frequency, and the Brier score with its parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..core import event_scores as kernels
from ..core.checks import choice, integer, real, shown
from ..core.dynamics import Dynamics
from ..core.keywords import checks_keywords
from ..core.random import Purpose
from ..records.blocks import block
from ..records.record import RecordWords
from ..records.schema import MEMBER, TIME, TRAJECTORY, Array, averaged_dims
from ..records.wording import shares_words
from .score_causes import Score
from .score_counts import Run, called, counted, pairs, together, told
from .score_fields import FIELD, FieldPart
from .score_pair import ESTIMATES, Pair

_BIN = "bin"
# Number of states from which quantiles of a climate are computed. They are sorted in memory: large states take fewer.
_CLIMATE_STATES, _FEWEST_STATES, _ENTRIES = 4096, 64, 1 << 26


class _Event(NamedTuple):
    """An event: the threshold of each component of the state, and what it is in words."""

    threshold: xr.DataArray
    words: str


@checks_keywords
@shares_words
def reliability(
    ds: xr.Dataset,
    run: Run,
    *,
    threshold: float | Mapping[str, float] | None = None,
    quantile: float | None = None,
    bins: int = 10,
    dim: str | Sequence[str] = (TRAJECTORY, TIME),
    burn_in: int = 0,
    which: str = "analysis",
    **words: Unpack[RecordWords],
) -> xr.Dataset:
    """Compare probabilities of an event with its frequency. The event: the truth is above a threshold.

    If the run keeps members, the probability is the share of members above the threshold. Otherwise it is the
    probability of a Gaussian with the run's spread. For a reliable run, the event occurs in 30 % of the cases to which
    the run gives a probability of 30 %.

    Parameters
    ----------
    {scored}
    run : xarray.Dataset or mapping of name to Dataset
        Run of `cycle` or `baseline`, with members or a spread. With a mapping of names to runs, the result has the dim
        `method`.
    threshold : float or mapping of field to float, optional
        The threshold, in the state's units. For several fields a mapping; fields that the mapping leaves out are not
        scored.
    quantile : float, optional
        A quantile of the climatology, between 0 and 1, in the place of a threshold. Each component has its threshold,
        so that the event is equally frequent everywhere. The quantile is that of 4096 states of the model's
        climatology, or of the states in `climatology=`.
    bins : int
        Number of bins of equal width into which probabilities are sorted.
    {averaged}
    {burn_in}
    which : {"analysis", "forecast", "smoothed"}
        The estimate whose probabilities are compared.
    {words}

    Returns
    -------
    xarray.Dataset
        Variables along `bin`: `forecast_probability`, the mean probability in the bin; `observed_frequency`; its
        standard error `observed_frequency_standard_error`, if trajectories are averaged; and `count`, weighted by area
        if areas differ. The Brier score `brier_score`, the mean of (p - o)^2 over probabilities p and outcomes o (1 or
        0), equals `reliability` - `resolution` + `uncertainty` + `within_bins`: a small `reliability` and a large
        `resolution` are good. With members there is `brier_score_fair`, whose mean does not depend on the number of
        members. `base_rate` is the frequency of the event in the truth. Several fields have the dim `field`, several
        runs the dim `method`.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, a run has neither members nor a spread, or the record has no truth.

    Warns
    -----
    XdanWarning
        If truth or run are NaN. These cases are not counted.

    References
    ----------
    Murphy (1973), doi:10.1175/1520-0450(1973)012<0595:ANVPOT>2.0.CO;2; thresholds of a climate: Hamill and Juras
    (2006), doi:10.1256/qj.06.25; the fair score: Ferro (2014), doi:10.1002/qj.2270.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> run = ds.dan.baseline("enkf-n", members=10, keep_members=True)
    >>> table = ds.dan.reliability(run, threshold=6.0, burn_in=10)
    >>> parts = table.reliability - table.resolution + table.uncertainty + table.within_bins
    >>> bool(abs(parts - table.brier_score) < 1e-6)
    True
    """
    which, bins = choice("which", which, list(ESTIMATES)), integer("bins", bins, least=1)
    dims: list[Hashable] = list(averaged_dims(dim))
    if (threshold is None) == (quantile is None):
        raise ValueError(f"threshold={shown(threshold)}, quantile={shown(quantile)}: expected one of the two")
    matched = pairs(ds, run, burn_in, which, words, "a comparison of probabilities and events")
    for name, pair in matched.items():
        if not pair.crps_of:
            raise ValueError(
                f"the {called(name)} holds neither {pair.names['members']!r} nor {pair.names['spread']!r}: expected "
                "a run that tells of its errors"
            )
    event = _event(next(iter(matched.values())), threshold, quantile)
    made = {
        name: _reliability(pair, event, bins, dims, name, again=k > 0) for k, (name, pair) in enumerate(matched.items())
    }
    result = together(made, run)
    if isinstance(threshold, Mapping) and FIELD in result.dims:
        result = result.sel({FIELD: [name for name in result[FIELD].values.tolist() if name in threshold]})
    return result


@block
def _climate_quantile(share: Tensor, model: Dynamics) -> Tensor:
    """A quantile of the climatology for each component, shape (*state)."""
    count = max(_FEWEST_STATES, min(_CLIMATE_STATES, _ENTRIES // math.prod(model.shape)))
    states = model.climate_sample(count, 0, purpose=Purpose.CLIMATOLOGY, like=share).sort(0).values
    place = float(share) * (len(states) - 1)
    below = min(int(place), len(states) - 2)
    return torch.lerp(states[below], states[below + 1], place - below)


def _event(pair: Pair, threshold: Any, quantile: Any) -> _Event:
    """Read the caller's event.

    Raises
    ------
    TypeError, ValueError
    """
    setup, means = pair.labelled.setup, pair.means
    model = setup.dynamics
    if quantile is not None:
        share = real("quantile", quantile, above=0.0, below=1.0)
        levels = _climate_quantile(np.float64(share), model)
        words = f"above the quantile {share:g} of the climatology"
        return _Event(xr.DataArray(levels, dims=means.dims), words)
    if not means.several:
        level = real("threshold", threshold)
        return _Event(xr.DataArray(np.full(model.shape, level), dims=means.dims), f"above {level:g}")
    names = [part.field.name for part in means.parts]
    if not isinstance(threshold, Mapping) or not threshold or not set(threshold) <= set(names):
        raise ValueError(f"threshold={shown(threshold)}: expected a mapping of some of the fields {names} to numbers")
    levels = np.full(model.shape, np.nan)
    for part in means.parts:
        if part.field.name in threshold:
            levels[part.place] = real(f"threshold[{part.field.name!r}]", threshold[part.field.name])
    return _Event(xr.DataArray(levels, dims=means.dims), f"above {dict(threshold)}")


def _reliability(pair: Pair, event: _Event, bins: int, dims: list[Hashable], name: str, *, again: bool) -> xr.Dataset:
    """Probabilities and frequencies of one run."""
    x, run, means, of_members = pair.labelled.truth, pair.run, pair.means, pair.crps_of == "members"
    assert x is not None
    inputs = ("members",) if of_members else ("analysis", "spread")
    kernel: Callable[..., Array] = kernels.members_event_sums if of_members else kernels.gaussian_event_sums

    def sums_of(part: FieldPart, level: xr.DataArray, x: xr.DataArray, *values: xr.DataArray) -> xr.DataArray:
        weights = None if part.weights is None else part.weights * part.size

        def of_block(*arrays: Array) -> Array:
            return kernel(*arrays, level.to_numpy(), bins=bins, axes=len(pair.state), weights=weights)

        sums: xr.DataArray = xr.apply_ufunc(
            of_block,
            x,
            *values,
            input_core_dims=[pair.state, *([*pair.state, *([MEMBER] if of_members else [])] for _ in values)],
            output_core_dims=[[_BIN, "sum"]],
            dask="parallelized",
            output_dtypes=[np.float64],
            dask_gufunc_kwargs={"output_sizes": {_BIN: bins, "sum": len(kernels.EVENT_SUMS)}},
        )
        return sums.sum([one for one in dims if one != TRAJECTORY])

    by_run = means.each(sums_of, event.threshold, x, *(run[name] for name in inputs)).transpose(..., _BIN, "sum")
    sums = by_run.sum(TRAJECTORY) if TRAJECTORY in dims else by_run
    column = {one: sums.isel(sum=k, drop=True) for k, one in enumerate(kernels.EVENT_SUMS)}
    looked_at = means.each(lambda _, level: level.notnull().any(), event.threshold)
    count = column["count"].where(column["count"] > 0)
    total = counted(pair, column["count"], column["count"].sum(_BIN).where(looked_at, np.inf), dims, "cases", inputs)
    none = xr.zeros_like(column["count"], dtype=bool)
    scores = {
        "forecast_probability": Score(column["probability"] / count, "mean probability in the bin", "1", broken=none),
        "observed_frequency": Score(column["events"] / count, "frequency of the event in the bin", "1", broken=none),
        "count": total,
    }
    if TRAJECTORY in dims and by_run.sizes[TRAJECTORY] > 1:
        error = _frequency_error(by_run, column["events"] / count, count)
        label = "standard error of the frequency over trajectories"
        scores["observed_frequency_standard_error"] = Score(error, label, "1", broken=none)
    members = run.sizes[MEMBER] if of_members else None
    scores |= _brier(sums.chunk({_BIN: -1, "sum": -1}) if sums.chunks is not None else sums, members)
    probability = "share of members" if of_members else "of a Gaussian"
    return told(scores, pair, name, again=again).assign_attrs(
        title="reliability", event=event.words, probability=probability, burn_in=pair.record.burn_in
    )


def _frequency_error(by_run: xr.DataArray, frequency: xr.DataArray, count: xr.DataArray) -> xr.DataArray:
    """Standard error of a ratio of sums over trajectories, as trajectories have different counts in a bin."""
    rows = by_run.sizes[TRAJECTORY]
    events, counts = by_run.isel(sum=3, drop=True), by_run.isel(sum=0, drop=True)
    scatter = ((events - frequency * counts) ** 2).sum(TRAJECTORY) * rows / (rows - 1)
    error: xr.DataArray = xr.ufuncs.sqrt(scatter) / count
    return error


_BRIER = {
    "brier_score": "mean square difference of probability and outcome",
    "reliability": "part of the Brier score by which frequencies differ from probabilities",
    "resolution": "part of the Brier score by which frequencies of bins differ from the base rate",
    "uncertainty": "Brier score of the base rate",
    "within_bins": "part of the Brier score of what varies inside of the bins",
    "base_rate": "frequency of the event",
    "brier_score_fair": "Brier score, the same in the mean for any number of members",
}


def _brier(sums: xr.DataArray, members: int | None) -> dict[str, Score]:
    """The Brier score and its parts. They are NaN if nothing is counted; `count` tells this."""
    names = [one for one in _BRIER if one != "brier_score_fair" or (members is not None and members > 1)]

    def parts(values: Array) -> tuple[Array, ...]:
        made = kernels.brier_parts(values, members)
        return tuple(made[one] for one in names)

    results = xr.apply_ufunc(
        parts,
        sums,
        input_core_dims=[[_BIN, "sum"]],
        output_core_dims=[[]] * len(names),
        dask="parallelized",
        output_dtypes=[np.float64] * len(names),
    )
    return {
        one: Score(value, _BRIER[one], "1", broken=xr.zeros_like(value, dtype=bool))
        for one, value in zip(names, results, strict=True)
    }
