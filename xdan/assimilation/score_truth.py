"""Scores of a run against the truth: over the state, at each site, and scores of the caller."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from ..core import batch_means, ensemble_scores
from ..core import scores as kernels
from ..core.checks import choice, shown
from ..records.schema import MEMBER, TIME, TRAJECTORY
from .score_causes import Cause, Score, unsettled
from .score_fields import FIELD, OVER_ALL, TOTAL, FieldMeans, FieldPart
from .score_many import CRPS_NAME, METHOD

if TYPE_CHECKING:
    from .score_pair import Pair

BY_SITE = "root of the mean square over the dims averaged, at each site"


class _Crps(NamedTuple):
    """A CRPS: its kernel, the variables of the run that the kernel takes beside the truth, and a name in words."""

    kernel: Callable[..., Any]
    inputs: tuple[str, ...]
    long_name: str


_CRPS = {
    "members": _Crps(
        ensemble_scores.members_crps, ("members",), "members, the same in the mean for any number of them"
    ),
    "Gaussian": _Crps(kernels.gaussian_crps, ("analysis", "spread"), "Gaussian of analysis and spread"),
}


def against_truth(pair: Pair, dims: list[Hashable]) -> dict[str, Score]:
    """RMSE and mean absolute error; also the CRPS if the run has members or a spread. Empty without a truth."""
    x, run, means = pair.labelled.truth, pair.run, pair.means
    if x is None:
        return {}
    causes: tuple[Cause, ...] = (pair.diverged, pair.record.gaps_of_truth)
    of_analysis = (*causes, pair.gaps_of("analysis"))
    by_time = _rmse(means, x, run["analysis"])
    whole = means.over_all(by_time, pair.scales, root=True) if means.several else by_time
    start = Cause(partial(unsettled, burn_in=pair.record.burn_in), lambda: (whole.transpose(TRAJECTORY, TIME),))
    always = [*pair.record.of_truth, *([start] if TIME in dims else [])]
    convention = means.convention()
    what = pair.names["analysis"]
    label = f"{what} RMSE: {convention}"
    scores = pair.averaged(dims, "rmse", by_time, label, of_analysis, always=always, root=True)
    scores |= _standard_errors(pair, by_time, whole, dims, of_analysis)
    if "forecast" in run:
        of_forecast = _rmse(means, x, run["forecast"])
        label, gaps = f"forecast RMSE: {convention}", (*causes, pair.gaps_of("forecast"))
        scores |= pair.averaged(dims, "forecast_rmse", of_forecast, label, gaps, root=True)
    of_site = _of_site(kernels.absolute_error, x, [run["analysis"]])
    scores |= pair.averaged(dims, "mean_absolute_error", means.mean(of_site), _absolute(pair), of_analysis)
    if pair.crps_of:
        crps = _CRPS[pair.crps_of]
        of_site = _of_site(crps.kernel, x, [run[name] for name in crps.inputs])
        of_crps = (*causes, *map(pair.gaps_of, crps.inputs))
        scores |= pair.averaged(dims, "crps", means.mean(of_site), _label(pair, crps), of_crps)
    return scores


def _absolute(pair: Pair) -> str:
    return f"mean absolute error of the {pair.names['analysis']}"


def _label(pair: Pair, crps: _Crps) -> str:
    return f"{CRPS_NAME} of the {crps.long_name.replace('analysis', pair.names['analysis'])}"


def _standard_errors(
    pair: Pair, by_time: xr.DataArray, whole: xr.DataArray, dims: list[Hashable], causes: Sequence[Cause]
) -> dict[str, Score]:
    """Standard errors of the RMSE and of its mean over fields: over trajectories, or over blocks of a single one."""
    alone = pair.labelled.observation.sizes[TRAJECTORY] == 1
    if (TIME if alone else TRAJECTORY) not in dims:
        return {}
    of = {"": (by_time, pair.means.units)} | ({TOTAL: (whole, "1")} if pair.means.several else {})
    scores: dict[str, Score] = {}
    for end, (values, units) in of.items():
        more = f"; {OVER_ALL}" if end else ""
        if alone:
            error = _over_blocks(pair, values, dims)
            label = f"standard error of the mean over time, by batch means{more}"
            explained = xr.zeros_like(error, dtype=bool)  # the comment says why an error is missing
            scores[f"rmse_standard_error{end}"] = Score(error, label, units, broken=explained, comment=_blocks(pair))
        else:
            error, label = _over_trajectories(pair, values, dims), f"standard error of the mean over trajectories{more}"
            scores[f"rmse_standard_error{end}"] = pair.as_score(error, label, units, causes)
    return scores


def _blocks(pair: Pair) -> str:
    """The blocks of cycles in words."""
    cycles = pair.labelled.observation.sizes[TIME]
    if pair.left_out is None:
        return batch_means.in_words(cycles)
    if pair.left_out.chunks is None:
        return batch_means.in_words(cycles - int(pair.left_out.sum()))
    return f"blocks of the cycles that have a smoothed state, at most {cycles}, one trajectory"


def _over_trajectories(pair: Pair, by_time: xr.DataArray, dims: list[Hashable]) -> xr.DataArray:
    """Standard error over trajectories."""
    by_run = pair.mean(by_time, [d for d in dims if d != TRAJECTORY])
    error: xr.DataArray = by_run.std(TRAJECTORY, ddof=1, skipna=False) / np.sqrt(by_run.sizes[TRAJECTORY])
    return error


def _over_blocks(pair: Pair, by_time: xr.DataArray, dims: list[Hashable]) -> xr.DataArray:
    """Standard error over blocks of the cycles of a single trajectory."""
    left_out = xr.DataArray(np.zeros(by_time.sizes[TIME], dtype=bool), dims=TIME)
    if pair.left_out is not None:
        left_out = pair.left_out
    series = [one.drop_vars(TIME, errors="ignore") for one in (by_time, left_out)]
    error: xr.DataArray = xr.apply_ufunc(
        batch_means.series_error,
        *(one if one.chunks is None else one.chunk({TIME: -1}) for one in series),  # a number for each time
        input_core_dims=[[TIME], [TIME]],
        dask="parallelized",
        output_dtypes=[by_time.dtype],
    )
    return error.isel({TRAJECTORY: 0}, drop=True) if TRAJECTORY in dims else error


def by_site(pair: Pair, dims: list[Hashable]) -> dict[str, Score]:
    """Scores at each site."""
    x, run, units = pair.labelled.truth, pair.run, pair.means.units
    scores: dict[str, Score] = {}
    if x is not None:
        causes = (pair.diverged, pair.record.gaps_of_truth)
        for name, prefix in (("analysis", ""), ("forecast", "forecast_")):
            if name not in run:
                continue
            error = run[name] - x
            of_run = (*causes, pair.gaps_of(name))
            root = xr.ufuncs.sqrt(pair.mean(error**2, dims))
            always = pair.record.of_truth if not prefix else ()
            in_run = pair.names[name]
            scores[f"{prefix}rmse"] = pair.as_score(root, f"{in_run} RMSE: {BY_SITE}", units, of_run, always)
            bias = pair.mean(error, dims)
            scores[f"{prefix}bias"] = pair.as_score(bias, f"mean of {in_run} minus truth", units, of_run)
        gaps = (*causes, pair.gaps_of("analysis"))
        value = pair.mean(_of_site(kernels.absolute_error, x, [run["analysis"]]), dims)
        scores["mean_absolute_error"] = pair.as_score(value, _absolute(pair), units, gaps)
        if pair.crps_of:
            crps = _CRPS[pair.crps_of]
            value = pair.mean(_of_site(crps.kernel, x, [run[name] for name in crps.inputs]), dims)
            of_crps = (*causes, *map(pair.gaps_of, crps.inputs))
            scores["crps"] = pair.as_score(value, _label(pair, crps), units, of_crps)
    for name in pair.spreads:
        root = xr.ufuncs.sqrt(pair.mean(run[name] ** 2, dims))
        label = f"{run[name].attrs.get('long_name', name)}: {BY_SITE}"
        scores[name] = pair.as_score(root, label, units, (pair.diverged, pair.gaps_of(name)))
    if "forecast" in run and pair.labelled.setup.observing.direct:
        y = pair.labelled.observation
        observed = y.notnull()
        count = observed.sum(dims)
        for name, of in (("innovation", "forecast"), ("residual", "analysis")):
            difference = (y - run[of]).where(observed, 0.0).sum(dims, skipna=False) / count.where(count > 0)
            broken = ~xr.ufuncs.isfinite(difference) & (count > 0)  # with a count of 0 nothing is observed
            label = f"mean of observation minus {of}"
            scores[f"{name}_mean"] = Score(difference, label, units, (pair.diverged, pair.gaps_of(of)), broken=broken)
    return scores


def also_scored(
    pair: Pair, dims: list[Hashable], also: Sequence[kernels.StateScore | str], taken: Mapping[str, Score]
) -> dict[str, Score]:
    """Scores that the caller adds."""
    scores: dict[str, Score] = {}
    for one in also:
        more = NAMED[one](pair, dims) if isinstance(one, str) else {one.name: _of_states(pair, dims, one, taken)}
        if again := scores.keys() & more.keys():
            raise ValueError(f"also holds a score {min(again)!r}: expected another name, as one is called so already")
        scores |= more
    return scores


def check_also(also: Any) -> None:
    """Refuse `also` if it is no list of scores.

    Raises
    ------
    TypeError, ValueError
        If `also` is no list, or an entry is neither a StateScore nor the name of a score.
    """
    if not isinstance(also, (list, tuple)):
        raise TypeError(f"also={shown(also)}: expected a list of xdan.StateScore(function, long_name)")
    for one in also:
        if isinstance(one, str):
            choice("also", one, NAMED)
        elif not isinstance(one, kernels.StateScore):
            raise TypeError(f"also holds {shown(one)}: expected xdan.StateScore(function, long_name) or {list(NAMED)}")


def _of_states(pair: Pair, dims: list[Hashable], one: kernels.StateScore, taken: Mapping[str, Score]) -> Score:
    """A score that the caller defines."""
    variables = {str(name): values for name, values in pair.run.items()}
    if pair.labelled.truth is not None:
        variables["truth"] = pair.labelled.truth
    if one.name in {*taken, "diverged", "crps_of", METHOD, *pair.labelled.observation.dims}:
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
    causes = [pair.record.gaps_of_truth if name == "truth" else pair.gaps_of(name) for name in one.inputs]
    units = pair.labelled.setup.dynamics.units if one.units is None else one.units
    return pair.as_score(pair.mean(by_time, dims), one.long_name, units, (pair.diverged, *causes))


def _energy(pair: Pair, dims: list[Hashable]) -> dict[str, Score]:
    """Energy score of the members; for several fields, of each field and of all fields together."""
    x, means, run = pair.labelled.truth, pair.means, pair.run
    if x is None or "members" not in run:
        lacks = "the truth, which the record lacks" if x is None else f"the run's {pair.names['members']!r}"
        raise ValueError(
            f"also holds 'energy', which takes {lacks}: expected baseline(..., keep_members=True) on a twin"
        )
    causes = (pair.diverged, pair.record.gaps_of_truth, pair.gaps_of("members"))
    label = "energy score of the members, distances are roots of mean squares over the state"

    def of(x: xr.DataArray, members: xr.DataArray, weights: xr.DataArray) -> xr.DataArray:
        score: xr.DataArray = xr.apply_ufunc(
            partial(ensemble_scores.energy_score, axes=len(means.dims)),
            x,
            members,
            weights,
            input_core_dims=[means.dims, [*means.dims, MEMBER], means.dims],
            dask="parallelized",
            output_dtypes=[np.float64],
        )
        return score

    def of_field(part: FieldPart, x: xr.DataArray, members: xr.DataArray) -> xr.DataArray:
        return of(x, members, _shares(part, x.isel({TRAJECTORY: 0, TIME: 0}, drop=True)))

    by_time = pair.mean(means.each(of_field, x, run["members"]), dims)
    scores = {"energy_score": pair.as_score(by_time, label, means.units, causes)}
    if means.several:
        state = x.isel({TRAJECTORY: 0, TIME: 0}, drop=True)
        shares = xr.concat(
            [
                _shares(part, means.of(state, part)) / pair.scales.isel({FIELD: k}, drop=True) ** 2
                for k, part in enumerate(means.parts)
            ],
            means.dims[0],
        ) / len(means.parts)
        together = pair.mean(of(x, run["members"], shares), dims)
        scores[f"energy_score{TOTAL}"] = pair.as_score(together, f"{label}; {OVER_ALL}", "1", causes)
    return scores


def _shares(part: FieldPart, state: xr.DataArray) -> xr.DataArray:
    """Weight of each point of a field in a mean, on the dims of one state."""
    even = np.full(state.shape, 1 / part.size)
    return xr.DataArray(even if part.weights is None else part.weights, dims=state.dims)


NAMED: dict[str, Callable[[Pair, list[Hashable]], dict[str, Score]]] = {"energy": _energy}


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


def _of_site(kernel: Callable[..., Any], x: xr.DataArray, inputs: list[xr.DataArray]) -> xr.DataArray:
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


def spreads(pair: Pair, dims: list[Hashable]) -> dict[str, Score]:
    """Root of the mean variance that the run states for its errors."""
    scores: dict[str, Score] = {}
    for name in pair.spreads:
        spread = pair.run[name]
        by_time = xr.ufuncs.sqrt(pair.means.mean(spread**2))
        label = f"{spread.attrs.get('long_name', name)}: {pair.means.convention(' variance')}"
        scores |= pair.averaged(dims, name, by_time, label, (pair.diverged, pair.gaps_of(name)), root=True)
    return scores
