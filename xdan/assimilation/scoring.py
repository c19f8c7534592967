"""Scores of a run: against the truth of a twin, and against the observations alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Unpack

import numpy as np
import xarray as xr

from ..core import scores as kernels
from ..core.checks import choice, shown
from ..records.fields import split, state_coordinates
from ..records.record import RecordWords
from ..records.schema import MEMBER, TIME, TRAJECTORY, averaged_dims
from ..records.wording import shares_words
from .score_causes import Cause, Score, fills, unsettled, with_warnings
from .score_fields import FIELD, OVER_ALL, TOTAL, FieldMeans, FieldPart
from .score_observations import against_observations
from .score_pair import MEMBERS, SPREADS, Pair, match

_BY_SITE = "root of the mean square over the dims averaged, at each site"


class _Crps(NamedTuple):
    """A CRPS: its kernel, the run's variables that it takes beside the truth, and what it is of in words."""

    kernel: Callable[..., Any]
    inputs: tuple[str, ...]
    long_name: str


_CRPS = {
    "members": _Crps(kernels.members_crps, ("members",), "members, the same in the mean for any number of them"),
    "Gaussian": _Crps(kernels.gaussian_crps, ("analysis", "spread"), "Gaussian of analysis and spread"),
    "analysis": _Crps(kernels.absolute_error, ("analysis",), "analysis, its absolute error"),
}


@shares_words
def score(
    ds: xr.Dataset,
    run: xr.Dataset,
    *,
    dim: str | Sequence[str] = (TRAJECTORY, TIME),
    along: str = "state",
    burn_in: int = 0,
    also: Sequence[kernels.StateScore] = (),
    **words: Unpack[RecordWords],
) -> xr.Dataset:
    """Score a run.

    Parameters
    ----------
    ds : xarray.Dataset
        The twin or the record that was cycled.
    run : xarray.Dataset
        Of `cycle` or `baseline`; or any `forecast` and `analysis` on the record's coordinates.
    dim : str or sequence of str
        Dims to average over, of `trajectory` and `time`.
    along : {"state", "site"}
        "state" takes the root of the mean over the state at each time, and averages that. "site" gives maps: the root
        of the mean over `dim` at each site.
    burn_in : int
        Leading cycles to leave out.
    also : sequence of StateScore
        Your scores of whole states, averaged beside the others.
    {words}

    Returns
    -------
    xarray.Dataset
        With a truth: `rmse` of the analysis, its standard error where trajectories are averaged,
        `forecast_rmse` and `crps`: of the members where the run keeps them, in its fair form, else of a Gaussian of its
        spread, else of the analysis alone, the mean absolute error. These are three scores: the coordinate `crps_of`,
        "members", "Gaussian" or "analysis", says which. With a spread: `spread`, `forecast_spread`. From observations
        alone: `innovation_mean` and `innovation_variance` of y - H x_f and, with a spread,
        `innovation_variance_expected` (where sites are observed); `residual_mean` and `residual_variance` of
        y - H x_a; and `error_variance_diagnosed`, the mean of (y - H x_a)(y - H x_f), which for a consistent method is
        `error_variance`. `diverged` counts lost trajectories: their scores, and means over them, are NaN.

        Means over the state are by area, where the points of a field's geometry differ in it; those of observations
        count each the same. Of several fields each score has the dim `field`, and beside it stands its mean over the
        fields, named `rmse_total` and so on, in units of each field's error: each field counts the same, however many
        points it has. A field's error is the root of the mean variance of its observations' errors; where nothing of
        it is observed, or observations are no sites, the deviation of its truth (of the analysis without a truth).

        With `along="site"`: `rmse`, `bias` (analysis minus truth), `forecast_rmse`, `forecast_bias`, `crps`, `spread`,
        `forecast_spread`, `innovation_mean` and `residual_mean` on the field's own dims; of several fields one variable
        for each, `rmse_h`.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, the run does not fit the record, burn-in leaves nothing, or a score in `also` takes
        what record and run lack.

    Warns
    -----
    XdanWarning
        Where a score is not finite, with the cause that is seen: trajectories that diverged, gaps in truth or run,
        nothing observed. Where the RMSE of the beginning is far from the rest, with a burn-in that leaves it out. For
        lazy data when the scores are computed.

    References
    ----------
    CRPS: Gneiting and Raftery (2007), doi:10.1198/016214506000001437; of members: Ferro (2014), doi:10.1002/qj.2270.
    Diagnosed error: Desroziers et al. (2005), doi:10.1256/qj.05.108.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> run = ds.dan.baseline("enkf-n", members=10)
    >>> score = ds.dan.score(run, burn_in=10)
    >>> bool(score.rmse < score.forecast_rmse)
    True
    """
    along = choice("along", along, ("state", "site"))
    if along == "site" and also:
        raise ValueError("also= holds scores of whole states: expected none of them with along='site'")
    pair = match(ds, run, burn_in, words)
    dims: list[Hashable] = list(averaged_dims(dim))
    with np.errstate(over="ignore", invalid="ignore"):  # a warning below names the cause of what is not finite
        if along == "site":
            scores = _by_site(pair, dims)
        else:
            scores = {**_against_truth(pair, dims), **_spreads(pair, dims), **against_observations(pair, dims)}
            scores |= _also(pair, dims, also, scores)
    lost = pair.lost().any(TIME)
    scores["diverged"] = Score(lost.sum(TRAJECTORY) if TRAJECTORY in dims else lost, "trajectories that diverged", "1")
    # A label left over from a selection gives way to a score of its name.
    values = {name: value.drop_vars(set(value.coords) & set(scores)) for name, value in with_warnings(scores).items()}
    result = xr.Dataset({name: value.drop_attrs() for name, value in values.items()})
    for name, one in scores.items():
        result[name].attrs = {"long_name": one.long_name} | ({} if one.units is None else {"units": one.units})
    if FIELD in result.dims:
        result = result.assign_coords(pair.means.labels)
    if along == "site":
        result = _unpacked(result, pair)
    if "crps" in scores:
        # A string as an object: Zarr has a specification for strings of any length only.
        of = xr.Variable((), np.array(pair.crps_of, dtype=object), {"long_name": "what the CRPS is of"})
        result = result.assign_coords(crps_of=of)
    return result.assign_attrs(
        title=f"scores of {run.attrs.get('method', 'a run')}",
        burn_in=pair.burn_in,
        cycles=pair.run.sizes[TIME] * pair.run.sizes[TRAJECTORY],
        rmse_convention=pair.means.convention() if along == "state" else _BY_SITE,
    )


@shares_words
def rank_histogram(
    ds: xr.Dataset,
    run: xr.Dataset,
    *,
    dim: str | Sequence[str] = (TRAJECTORY, TIME),
    burn_in: int = 0,
    of: str = "members",
    **words: Unpack[RecordWords],
) -> xr.DataArray:
    """Count the truth's rank among the members; flat for a reliable ensemble.

    Parameters
    ----------
    ds : xarray.Dataset
        The twin or the record that was cycled; its truth is read.
    run : xarray.Dataset
        A run with its members, from `baseline(..., keep_members=True)`.
    dim : str or sequence of str
        Dims to count over, of `trajectory` and `time`.
    burn_in : int
        Leading cycles to leave out.
    of : {"members", "forecast_members"}
        Rank in the analysis or in the forecast.
    {words}

    Returns
    -------
    xarray.DataArray
        Counts along `rank`, 1 to members + 1, for each field where there are several. A truth that equals t members
        counts as 1 / (t + 1) in each of the t + 1 ranks that it may have.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, the run holds no members or the record no truth.

    Warns
    -----
    XdanWarning
        Where truth or members are NaN: these are not counted.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> run = ds.dan.baseline("enkf-n", members=10, keep_members=True)
    >>> counts = ds.dan.rank_histogram(run, burn_in=10)
    >>> dict(counts.sizes), int(counts.sum())  # 4 trajectories, 10 times, 8 sites
    ({'rank': 11}, 320)
    """
    of = choice("of", of, MEMBERS)
    pair = match(ds, run, burn_in, words)
    dims: list[Hashable] = list(averaged_dims(dim))
    x = pair.labelled.truth
    if x is None:
        raise ValueError("a rank histogram needs the truth, which the record lacks: expected a variable 'truth'")
    if of not in pair.run:
        raise ValueError(
            f"the run holds no {of!r}: run baseline(..., keep_members=True), expected members of every cycle"
        )
    members = pair.run[of]

    def count(_: FieldPart, x: xr.DataArray, members: xr.DataArray) -> xr.DataArray:
        # Counted at each time, so that blocks stay apart; counts are small beside members.
        counts: xr.DataArray = xr.apply_ufunc(
            partial(kernels.rank_counts, axes=len(pair.state)),
            x,
            members,
            input_core_dims=[pair.state, [*pair.state, MEMBER]],
            output_core_dims=[["rank"]],
            dask="parallelized",
            output_dtypes=[np.float64],
            dask_gufunc_kwargs={"output_sizes": {"rank": members.sizes[MEMBER] + 1}},
        ).sum(dims)
        return counts

    counts = pair.means.each(count, x, members).transpose(..., "rank")
    cases = float(np.prod([x.sizes[name] for name in dims]))
    everything = cases * xr.DataArray([part.size for part in pair.means.parts], dims=FIELD)
    if not pair.means.several:
        everything = everything[0]
    histogram = Score(
        counts,
        f"rank of the truth among {of.replace('_', ' ')}",
        "1",
        (pair.diverged, pair.gaps_of_truth, pair.gaps_of(of)),
        always=() if pair.follows is None else (pair.follows,),
        broken=(counts.sum("rank") < everything - 0.5).broadcast_like(counts),
        trouble="some states are not counted",
    )
    result = with_warnings({"histogram_rank": histogram})["histogram_rank"].rename("histogram_rank")
    result = result.assign_coords(rank=np.arange(1, members.sizes[MEMBER] + 2))
    if pair.means.several:
        result = result.assign_coords(pair.means.labels)
    result.attrs = {"long_name": histogram.long_name, "units": histogram.units}
    return result


def _against_truth(pair: Pair, dims: list[Hashable]) -> dict[str, Score]:
    """RMSE and CRPS; none without a truth."""
    x, run, means = pair.labelled.truth, pair.run, pair.means
    if x is None:
        return {}
    causes = (pair.diverged, pair.gaps_of_truth)
    of_analysis = (*causes, pair.gaps_of("analysis"))
    by_time = _rmse(means, x, run["analysis"])
    whole = means.over_all(by_time, pair.scales, root=True) if means.several else by_time
    start = Cause(partial(unsettled, burn_in=pair.burn_in), lambda: (whole.transpose(TRAJECTORY, TIME),))
    always = [fills(x, "truth"), *([start] if TIME in dims else []), *([pair.follows] if pair.follows else [])]
    convention = means.convention()
    label = f"analysis RMSE: {convention}"
    scores = pair.averaged(dims, "rmse", by_time, label, of_analysis, always=always, root=True)
    if TRAJECTORY in dims and by_time.sizes[TRAJECTORY] > 1:
        label = "standard error of the mean over trajectories"
        error = _standard_error(by_time, dims)
        scores["rmse_standard_error"] = Score(error, label, means.units, of_analysis)
        if means.several:
            error = _standard_error(whole, dims)
            scores[f"rmse_standard_error{TOTAL}"] = Score(error, f"{label}; {OVER_ALL}", "1", of_analysis)
    of_forecast = _rmse(means, x, run["forecast"])
    label = f"forecast RMSE: {convention}"
    scores |= pair.averaged(dims, "forecast_rmse", of_forecast, label, (*causes, pair.gaps_of("forecast")), root=True)
    crps = _CRPS[pair.crps_of]
    of_site = _crps(x, [run[name] for name in crps.inputs], crps.kernel)
    label = f"continuous ranked probability score of the {crps.long_name}"
    scores |= pair.averaged(dims, "crps", means.mean(of_site), label, (*causes, *map(pair.gaps_of, crps.inputs)))
    return scores


def _standard_error(by_time: xr.DataArray, dims: list[Hashable]) -> xr.DataArray:
    """Standard error over trajectories."""
    by_run = by_time.mean([d for d in dims if d != TRAJECTORY], skipna=False)
    error: xr.DataArray = by_run.std(TRAJECTORY, ddof=1, skipna=False) / np.sqrt(by_run.sizes[TRAJECTORY])
    return error


def _by_site(pair: Pair, dims: list[Hashable]) -> dict[str, Score]:
    """Scores at each site."""
    x, run, units = pair.labelled.truth, pair.run, pair.means.units
    scores: dict[str, Score] = {}
    if x is not None:
        causes = (pair.diverged, pair.gaps_of_truth)
        for name, prefix in (("analysis", ""), ("forecast", "forecast_")):
            error = run[name] - x
            of_run = (*causes, pair.gaps_of(name))
            root = xr.ufuncs.sqrt((error**2).mean(dims, skipna=False))
            always = [fills(x, "truth"), *([pair.follows] if pair.follows else [])] if not prefix else []
            scores[f"{prefix}rmse"] = Score(root, f"{name} RMSE: {_BY_SITE}", units, of_run, always)
            bias = error.mean(dims, skipna=False)
            scores[f"{prefix}bias"] = Score(bias, f"mean of {name} minus truth", units, of_run)
        crps = _CRPS[pair.crps_of]
        value = _crps(x, [run[name] for name in crps.inputs], crps.kernel).mean(dims, skipna=False)
        label = f"continuous ranked probability score of the {crps.long_name}"
        scores["crps"] = Score(value, label, units, (*causes, *map(pair.gaps_of, crps.inputs)))
    for name in SPREADS:
        if name in run:
            root = xr.ufuncs.sqrt((run[name] ** 2).mean(dims, skipna=False))
            label = f"{run[name].attrs.get('long_name', name)}: {_BY_SITE}"
            scores[name] = Score(root, label, units, (pair.diverged, pair.gaps_of(name)))
    if pair.labelled.setup.observing.direct:
        y = pair.labelled.observation
        observed = y.notnull()
        count = observed.sum(dims)
        for name, of in (("innovation", "forecast"), ("residual", "analysis")):
            difference = (y - run[of]).where(observed, 0.0).sum(dims, skipna=False) / count.where(count > 0)
            broken = ~xr.ufuncs.isfinite(difference) & (count > 0)  # elsewhere nothing is observed
            label = f"mean of observation minus {of}"
            scores[f"{name}_mean"] = Score(difference, label, units, (pair.diverged, pair.gaps_of(of)), broken=broken)
    return scores


def _unpacked(scores: xr.Dataset, pair: Pair) -> xr.Dataset:
    """Scores of sites on the dims and coordinates of their fields; of several fields a variable for each."""
    labelled, means = pair.labelled, pair.means
    model = labelled.setup.dynamics
    if not means.several:
        coordinates: dict[Any, Any] = {**state_coordinates(model)}
        for source in (labelled.truth, labelled.observation):
            if source is not None:  # labels of the user's own, such as longitudes
                coordinates |= {dim: source[dim] for dim in means.dims if dim in source.coords}
        return scores.assign_coords({dim: coordinates[dim] for dim in means.dims})
    variables: dict[Hashable, xr.DataArray] = {}
    for name, score in scores.data_vars.items():
        packed = set(means.dims) <= set(score.dims)
        variables.update(split(score, model, str(name)) if packed else {name: score})
    return xr.Dataset(variables, attrs=scores.attrs)


def _also(
    pair: Pair, dims: list[Hashable], also: Sequence[kernels.StateScore], taken: Mapping[str, Score]
) -> dict[str, Score]:
    """Scores that the user adds."""
    variables = {str(name): values for name, values in pair.run.items()}
    if pair.labelled.truth is not None:
        variables["truth"] = pair.labelled.truth
    scores: dict[str, Score] = {}
    if not isinstance(also, (list, tuple)):
        raise TypeError(f"also={shown(also)}: expected a list of xdan.StateScore(function, long_name)")
    for one in also:
        if not isinstance(one, kernels.StateScore):
            raise TypeError(f"also holds {shown(one)}: expected xdan.StateScore(function, long_name)")
        if one.name in {*taken, *scores, "diverged", "crps_of", *pair.labelled.observation.dims}:
            raise ValueError(f"also holds a score {one.name!r}: expected another name, as one is called so already")
        if missing := [name for name in one.inputs if name not in variables]:
            raise ValueError(
                f"the score {one.name!r} takes {missing[0]!r}, which record and run lack: expected one of "
                f"{sorted(variables)}"
            )
        inputs = [variables[name] for name in one.inputs]
        by_time = xr.apply_ufunc(
            partial(one.values, axes=len(pair.state)),
            *inputs,
            input_core_dims=[[*pair.state, *([MEMBER] if one.of_members(name) else [])] for name in one.inputs],
            dask="parallelized",
            output_dtypes=[kernels.working_dtype(*(values.dtype for values in inputs))],
        )
        causes = [pair.gaps_of_truth if name == "truth" else pair.gaps_of(name) for name in one.inputs]
        units = pair.labelled.setup.dynamics.units if one.units is None else one.units
        scores[one.name] = Score(by_time.mean(dims, skipna=False), one.long_name, units, (pair.diverged, *causes))
    return scores


def _rmse(means: FieldMeans, x: xr.DataArray, estimate: xr.DataArray) -> xr.DataArray:
    """RMSE over each field at each time."""

    def of_field(part: FieldPart, x: xr.DataArray, estimate: xr.DataArray) -> xr.DataArray:
        root: xr.DataArray = xr.apply_ufunc(
            partial(kernels.rmse, axes=len(means.dims), weights=part.weights),
            x,
            estimate,
            input_core_dims=[means.dims, means.dims],
            dask="parallelized",
            output_dtypes=[kernels.working_dtype(x.dtype, estimate.dtype)],
        )
        return root

    return means.each(of_field, x, estimate)


def _crps(x: xr.DataArray, inputs: list[xr.DataArray], kernel: Callable[..., Any]) -> xr.DataArray:
    """Score of each variable of the state at each time."""
    score: xr.DataArray = xr.apply_ufunc(
        kernel,
        x,
        *inputs,
        input_core_dims=[[], *([dim for dim in value.dims if dim == MEMBER] for value in inputs)],
        dask="parallelized",
        output_dtypes=[kernels.working_dtype(x.dtype, *(value.dtype for value in inputs))],
    )
    return score


def _spreads(pair: Pair, dims: list[Hashable]) -> dict[str, Score]:
    """Root mean variance of what the run says of its errors."""
    scores: dict[str, Score] = {}
    for name in SPREADS:
        if name in pair.run:
            spread = pair.run[name]
            by_time = xr.ufuncs.sqrt(pair.means.mean(spread**2))
            label = f"{spread.attrs.get('long_name', name)}: {pair.means.convention(' variance')}"
            scores |= pair.averaged(dims, name, by_time, label, (pair.diverged, pair.gaps_of(name)), root=True)
    return scores
