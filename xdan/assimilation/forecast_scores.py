"""Scores of forecasts by lead time: errors, the growth of errors, and the longest lead time with skill."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import dask
import dask.array as da
import numpy as np
import xarray as xr

from ..core import batch_means
from ..core import lead_scores as kernels
from ..core.checks import choice, real
from ..core.keywords import checks_keywords
from ..records.leads import LEAD, lead_numbers
from ..records.record import LabelledRecord, RecordWords, read
from ..records.schema import TIME, TRAJECTORY, Array, as_labels, averaged_dims, to_power
from ..records.wording import shares_words
from .forecast_pair import AGAINST, MOMENT, RANK, ForecastPair
from .forecast_sums import Target, climate_of
from .score_causes import Cause, Score, with_warnings
from .score_many import CRPS_OF, METHOD

_NOT_REACHED = "NaN: not reached within the lead times"
_NO_GROWTH = "NaN: fewer than three lead times to fit, or the error does not grow"
_OVER = "root of the mean over the state, the starts and the trajectories averaged"


@checks_keywords
@shares_words
def score_forecasts(
    ds: xr.Dataset,
    forecasts: xr.Dataset | Mapping[str, xr.Dataset],
    *,
    against: str = "truth",
    dim: str | Sequence[str] = (TRAJECTORY, TIME),
    fraction: float = 0.5,
    correlation: float = 0.6,
    small: float = 0.2,
    **words: Unpack[RecordWords],
) -> xr.Dataset:
    """Score forecasts by their lead time, lazily if record or forecasts are lazy.

    Parameters
    ----------
    ds : xarray.Dataset
        The record. It may go on after the last start: each forecast is compared at its valid time. Valid times that
        the record lacks are left out.
    forecasts : xarray.Dataset, or mapping of str to Dataset
        Result of `forecast`. A mapping of names to forecasts with equal lead times gives scores along the dim `method`.
        Select a method by `scores.sel({"method": name})`, as `sel` has an argument with the name `method`.
    against : {"truth", "observations"}
        "truth" compares the forecast with the truth, "observations" compares H of the forecast with the observations.
    dim : str or sequence of str
        Dims to average over: `trajectory`, `time` (the starts) or both.
    fraction : float
        `skill_horizon` ends where the RMSE reaches this fraction of sqrt(2) standard deviations of the climate.
    correlation : float
        `acc_horizon` ends where the anomaly correlation falls to this number.
    small : float
        Doubling times are fitted to the lead times before the error exceeds this fraction of sqrt(2) standard
        deviations of the climate.
    {words}

    Returns
    -------
    xarray.Dataset
        Scores along `lead`, in the state's units if no other units are named; for several fields also along `field`:

        - `rmse`: root of the mean square error over the state (weighted by area), the starts and the trajectories;
        - `rmse_standard_error`: standard error of `rmse`, from the mean square errors of the trajectories. For a record
          of one trajectory, blocks of consecutive starts take the places of trajectories: 8 to 10 blocks, each at least
          as long as 50 cycles and as the longest lead time. It is NaN for fewer blocks. The attribute `comment` names
          the blocks, or says why there are none;
        - `geometric_rmse`: the RMSE of each forecast over the state, and the geometric mean of these over starts and
          trajectories. It is the error of a typical forecast. The worst forecasts dominate `rmse`;
        - `bias`: mean of forecast minus truth; `mean_absolute_error`;
        - `acc`: the correlation of f - c and x - c over all cases, where f is the forecast, x the truth and c the mean
          of the climatology: that of the dynamics, or `climatology=`;
        - `spread`: root of the mean variance of the members; and `crps`: the fair CRPS of the members if the forecasts
          keep them, else the CRPS of a Gaussian. The coordinate `crps_of` says which. Forecasts without members have
          neither score;
        - `rank_histogram` (lead, rank): how often the truth takes each rank among the members;
        - `persistence_rmse`: the RMSE of the start in the place of the forecast, if the lead times begin with 0;
        - `climatology_rmse`: the RMSE of c in the place of the forecast;
        - `cases`: the number of pairs of a trajectory and a start that are scored.

        Without `lead`:

        - `deviation`: the climate's standard deviation. The RMSE of a random state of the climate is sqrt(2) times as
          large. The RMSE of c equals `deviation`;
        - `skill_horizon`: the lead time at which `rmse` reaches `fraction` of sqrt(2) `deviation`, by linear
          interpolation;
        - `acc_horizon`: the lead time at which `acc` falls to `correlation`;
        - `doubling_time` and `rmse_doubling_time`: ln 2 divided by the slope of a line. The line is fitted to the
          logarithm of `geometric_rmse` or of `rmse`, from the first lead time to `doubling_fitted_to` or
          `rmse_doubling_fitted_to`. The geometric mean of small errors grows at the rate of the first Lyapunov
          exponent. The root of their mean square grows faster if the rate differs from state to state;
        - the standard errors of these, by the jackknife over trajectories, or over the blocks of one trajectory. A
          value that the lead times do not reach is NaN, and its attribute `comment` says so.

        Scores against observations y: `departure_rms` is the root of the mean square of y - H(f). `error_variance` is
        the mean of R's diagonal; it is subtracted from the mean square to give `rmse`, an estimate of the difference
        between H(f) and H of the truth. `persistence_rmse` and `climatology_rmse` are made in the same way. There are
        also `bias`, `spread`, `cases` and the scores that follow from `rmse`. The errors of the observations must be
        independent of the forecast. So lead time 0 is left out: the analysis has used the observations of its time.

    Raises
    ------
    TypeError
        For arguments of another type.
    ValueError
        If forecasts have no dim `lead`, have other trajectories than the record, or start at no time of the record; if
        lead times reach beyond the record, are no whole numbers of the dynamics' steps, or have other units; if the
        lead times differ between the forecasts of a mapping; or if the record has no truth.

    Warns
    -----
    XdanWarning
        If a score is not finite. The warning names the cause: forecasts that diverged, a lead time without a case, or
        an R that is larger than the departures. Lazy data warn when the scores are computed. Also if forecasts from
        smoothed states are compared with observations, as these states have used some of the observations.

    References
    ----------
    Anomaly correlation: Wilks (2011), Statistical Methods in the Atmospheric Sciences, Sect. 8.6.4. Fair CRPS: Ferro
    (2014), doi:10.1002/qj.2270. Batch means: Flegal and Jones (2010), doi:10.1214/09-AOS735.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=60, trajectories=3, seed=0)
    >>> run = ds.dan.baseline("enkf-n", members=10)
    >>> forecasts = ds.dan.forecast(run, lead=1.0, every=5, burn_in=20)
    >>> scores = ds.dan.score_forecasts(forecasts)
    >>> bool(scores.rmse[-1] > 2 * scores.rmse[0])
    True
    """
    against = choice("against", against, AGAINST)
    dims: list[Hashable] = list(averaged_dims(dim))
    levels = (
        real("fraction", fraction, above=0.0),
        real("correlation", correlation, least=-1.0, most=1.0),
        real("small", small, above=0.0),
    )
    needs = "a score against the truth" if against == "truth" else None
    labelled = read(ds, **words, needs_truth=needs, instead='pass against="observations"')
    if not isinstance(forecasts, Mapping) or isinstance(forecasts, xr.Dataset):
        return _scores(ForecastPair(labelled, forecasts, against), dims, levels)
    return _of_methods(labelled, forecasts, against, dims, levels)


def _of_methods(
    labelled: LabelledRecord,
    forecasts: Mapping[str, xr.Dataset],
    against: str,
    dims: list[Hashable],
    levels: tuple[float, float, float],
) -> xr.Dataset:
    """Scores along `method`. A score that a method lacks is NaN."""
    if not forecasts:
        raise ValueError("forecasts is an empty mapping: expected names and what forecast() returned")
    pairs = {str(name): ForecastPair(labelled, one, against) for name, one in forecasts.items()}
    first_name, first = next(iter(pairs.items()))
    for name, pair in pairs.items():
        if not np.array_equal(pair.steps, first.steps):
            raise ValueError(
                f"forecasts[{name!r}] has other lead times than forecasts[{first_name!r}], {pair.lead.size} up to "
                f"{pair.lead.values[-1]} and {first.lead.size} up to {first.lead.values[-1]}: expected the same"
            )
    made = {name: _scores(pair, dims, levels) for name, pair in pairs.items()}
    names = xr.DataArray(as_labels(made), dims=METHOD, name=METHOD)
    of = [str(one.coords["crps_of"].item()) if "crps_of" in one.coords else "" for one in made.values()]
    together = xr.concat(
        [one.drop_vars("crps_of", errors="ignore") for one in made.values()],
        names,
        data_vars="all",
        coords="minimal",
        compat="override",
        join="outer",
        combine_attrs="drop_conflicts",
    )
    said = {str(name): one.attrs for scores in made.values() for name, one in scores.data_vars.items()}
    for name, attrs in said.items():
        together[name].attrs = attrs
    if any(of):
        crps_of = (METHOD, as_labels(of), CRPS_OF)
        together = together.assign_coords(crps_of=crps_of)
    return together.assign_attrs(title="scores of forecasts by lead time")


def _scores(pair: ForecastPair, dims: list[Hashable], levels: tuple[float, float, float]) -> xr.Dataset:
    """Scores of one method's forecasts."""
    alone = pair.alone and {TRAJECTORY, TIME} <= set(dims)  # blocks of its starts take the places of trajectories
    sums, ranks, deviation = _summed(pair, TIME in dims, alone)
    fine = sums if alone and sums.sizes[TRAJECTORY] > 1 else None  # thirds of these blocks
    sums = sums if fine is None else _in_blocks(fine)
    observed = pair.observed
    values = _moments(sums, observed)
    finer = None if fine is None else _moments(fine, observed)
    weight = values["weight"]
    units, scores = pair.means.units, dict[str, Score]()
    by, comment = ("by batch means", pair.groups_in_words) if alone else ("over trajectories", "")

    def average(name: str) -> tuple[xr.DataArray, xr.DataArray | None]:
        if TRAJECTORY not in dims:
            return values[name] / weight.where(weight > 0), None
        mean, error = _mean_and_error(values[name], weight)
        if finer is not None:
            error = batch_means.lugsail(error, _mean_and_error(finer[name], finer["weight"])[1])
        return mean, error if alone or sums.sizes[TRAJECTORY] > 1 else None

    def add(name: str, value: xr.DataArray, long_name: str, power: int = 1, **more: Any) -> None:
        said = None if units is None else to_power(units, power) if power else "1"
        scores[name] = Score(value, long_name, said, **more)

    def add_root(name: str, of: str, long_name: str, **more: Any) -> None:
        mean, error = average(of)
        root = xr.ufuncs.sqrt(mean)
        add(name, root, long_name, **more)
        if error is not None and name == "rmse":
            add("rmse_standard_error", error / (2 * root), f"standard error of the RMSE {by}", comment=comment)

    with np.errstate(invalid="ignore", divide="ignore"):
        end = "_of_states" if observed else ""
        less = ", the variance of the observations' errors subtracted" if observed else ""
        causes = [Cause(_diverged, lambda: (_lost(pair),)), Cause(_without, lambda: (_no_cases(pair),))]
        if observed:
            negative = _over(values["square_of_states"], dims) < 0
            causes.append(Cause(_below, lambda: (negative,)))
            add_root("departure_rms", "square", "root mean square of observation minus H of the forecast")
            add("error_variance", average("noise")[0], "mean variance of the observations' errors", 2)
        add_root("rmse", f"square{end}", f"forecast RMSE: {_OVER}{less}", causes=causes)
        add("bias", average("error")[0], f"mean of forecast minus {'observation' if observed else 'truth'}")
        held = pair.held
        if not observed:
            logarithm, number = (_over(values[name], dims) for name in ("logarithm", "cases"))
            typical = xr.ufuncs.exp(logarithm / number.where(number > 0))
            add("geometric_rmse", typical, "geometric mean of the RMSE of each forecast over the state")
            add("mean_absolute_error", average("absolute")[0], "mean absolute error of the forecast")
            product, f, x = (_over(values[name], dims) for name in ("product", "forecast", "actual"))
            label = "anomaly correlation of forecast and truth about the climate's mean"
            add("acc", product / xr.ufuncs.sqrt(f * x), label, 0)
        in_space = not observed or pair.labelled.setup.observing.direct
        if "forecast_members" in held or ("forecast_spread" in held and in_space):
            add_root("spread", "variance", "root of the mean variance of the members' forecasts")
        if "forecast_spread" in held and not observed:
            mean, error = average("crps")
            add("crps", mean, f"continuous ranked probability score of the {_crps_words(pair)}")
            if error is not None:
                add("crps_standard_error", error, f"standard error of the CRPS {by}", comment=comment)
        if int(pair.steps[0]) == 0:
            add_root("persistence_rmse", f"persistence{end}", f"RMSE of the start as the forecast{less}")
        add_root("climatology_rmse", f"actual{end}", f"RMSE of the climate's mean as the forecast{less}")
        cases = _over(values["cases"], dims).astype(np.int64)
        add("cases", cases, "pairs of a trajectory and a start that are scored", 0)
        if deviation is not None:
            add("deviation", deviation, "standard deviation of the climate")
            scores |= _horizons(pair, sums, fine, deviation, dims, levels, comment)
        if ranks is not None and not observed:
            add("rank_histogram", _over(ranks, dims), "rank of the truth among the members' forecasts", 0)
    result = _labelled(pair, scores)
    if "crps" in scores:
        of = xr.Variable((), np.array(_crps_of(pair), dtype=object), CRPS_OF)
        result = result.assign_coords(crps_of=of)
    replaced = pair.labelled.setup.dynamics.given_climate is not None
    origin = "climatology=" if replaced else "the dynamics' climatology"
    return result.assign_attrs(
        title=f"scores of forecasts of {pair.forecasts.attrs.get('forecasts_of', 'a run')} by lead time",
        against="observations" if observed else "truth",
        rmse_convention=_OVER,
        anomalies_about=f"the mean of {origin}",
    )


def _summed(
    pair: ForecastPair, over_time: bool, alone: bool
) -> tuple[xr.DataArray, xr.DataArray | None, xr.DataArray | None]:
    """Sums over the cases of each trajectory, ranks, and the climate's deviation; computed if nothing is lazy.

    With `alone`, sums are over the cases of each third of a block of starts, along `trajectory`.
    """
    sums, ranks = pair.sums(over_time, pair.groups if alone else None)
    parts = len(pair.target.parts)
    direct = not pair.observed or pair.labelled.setup.observing.direct
    deviation = None
    if direct:
        made = dask.delayed(_deviation, pure=False)(pair.labelled.setup, pair.target)
        deviation = xr.DataArray(da.from_delayed(made, (parts,), np.float64), dims=["field"])
    if alone:
        sums = sums.isel({TRAJECTORY: 0}).rename({TIME: TRAJECTORY})
        ranks = None if ranks is None else ranks.sum(TIME)
    elif over_time:
        sums = sums.isel({TIME: 0})
        ranks = None if ranks is None else ranks.sum(TIME)
    scored = slice(pair.first_scored, None)
    sums, ranks = sums.isel({LEAD: scored}), None if ranks is None else ranks.isel({LEAD: scored})
    if pair.lazy:
        sums = sums.chunk({TRAJECTORY: -1, LEAD: -1})
    else:
        sums, ranks, deviation = dask.compute(sums, ranks, deviation)
    trajectories = pair.labelled.observation[TRAJECTORY].variable
    labels = {LEAD: pair.lead.isel({LEAD: scored}).variable}
    if not over_time:
        labels[TIME] = pair.held["forecast"][TIME].variable
    sums = sums.assign_coords(labels if alone else labels | {TRAJECTORY: trajectories})
    labels[TRAJECTORY] = trajectories
    ranks = None if ranks is None else ranks.assign_coords(labels | {RANK: np.arange(1, ranks.sizes[RANK] + 1)})
    if not pair.by_field:
        sums = sums.isel(field=0)
        ranks = None if ranks is None else ranks.isel(field=0)
        deviation = None if deviation is None else deviation.isel(field=0)
    return sums, ranks, deviation


def _deviation(setup: Any, target: Target) -> Array:
    """The climate's standard deviation of each field: the root of the mean variance, weighted by area."""
    variance = climate_of(setup)["variance"]
    means = [
        variance[place].mean() if share is None else (variance[place] * share).sum() for place, share in target.parts
    ]
    deviation: Array = np.sqrt(np.array(means))
    return deviation


def _moments(sums: xr.DataArray, observed: bool) -> dict[str, xr.DataArray]:
    """The sums by their names; against observations also squares without the variance of the observations' errors."""
    values = {name: sums.isel({MOMENT: place}) for name, place in kernels.AT.items()}
    if observed:
        for name in ("square", "persistence", "actual"):
            values[f"{name}_of_states"] = values[name] - values["noise"]
    return values


def _in_blocks(parts: xr.DataArray) -> xr.DataArray:
    """Sums of blocks from the sums of their parts."""
    size = batch_means.PARTS
    blocks = parts.isel({TRAJECTORY: slice(None, None, size)})
    for k in range(1, size):
        blocks = blocks + parts.isel({TRAJECTORY: slice(k, None, size)})
    return blocks


def _mean_and_error(values: xr.DataArray, weight: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Weighted mean over trajectories, or over blocks in their places, and its standard error."""
    mean, error = xr.apply_ufunc(
        kernels.mean_and_error,
        values,
        weight,
        input_core_dims=[[TRAJECTORY]] * 2,
        output_core_dims=[[], []],
        dask="parallelized",
        output_dtypes=[np.float64] * 2,
    )
    return mean, error


def _over(values: xr.DataArray, dims: list[Hashable]) -> xr.DataArray:
    """The sum over trajectories, if these are averaged. The sums over starts are taken already."""
    total: xr.DataArray = values.sum(TRAJECTORY, skipna=False) if TRAJECTORY in dims else values
    return total


def _horizons(
    pair: ForecastPair,
    sums: xr.DataArray,
    fine: xr.DataArray | None,
    deviation: xr.DataArray,
    dims: list[Hashable],
    levels: tuple[float, ...],
    comment: str,
) -> dict[str, Score]:
    """Doubling times and horizons, with their standard errors. `comment` names the blocks of a single trajectory."""
    lead, units = lead_numbers(sums[LEAD])
    runs = TRAJECTORY
    if TRAJECTORY not in dims:
        sums, runs = sums.expand_dims("alone"), "alone"
    fraction, correlation, small = levels

    def made_of(sums: xr.DataArray) -> xr.DataArray:
        made: xr.DataArray = xr.apply_ufunc(
            partial(kernels.horizons, lead=lead, fraction=fraction, correlation=correlation, small=small),
            sums,
            deviation,
            input_core_dims=[[runs, LEAD, MOMENT], []],
            output_core_dims=[["statistic", "part"]],
            vectorize=True,
            dask="parallelized",
            output_dtypes=[np.float64],
            dask_gufunc_kwargs={"output_sizes": {"statistic": 6, "part": 2}},
        )
        return made

    made = made_of(sums)
    of_parts = None if fine is None else made_of(fine)
    slow = f"while it is below {small:g} of sqrt(2) deviations"
    words = {
        "doubling_time": f"doubling time of the geometric mean of RMSEs, {slow}",
        "rmse_doubling_time": f"doubling time of the RMSE, {slow}",
        "skill_horizon": f"lead time at which the RMSE reaches {fraction:g} of sqrt(2) deviations",
        "acc_horizon": f"lead time at which the anomaly correlation falls to {correlation:g}",
        "doubling_fitted_to": "longest lead time that the doubling time is fitted to",
        "rmse_doubling_fitted_to": "longest lead time that the doubling time of the RMSE is fitted to",
    }
    scores: dict[str, Score] = {}
    for k, (name, label) in enumerate(words.items()):
        if pair.observed and name in ("doubling_time", "acc_horizon", "doubling_fitted_to"):
            continue
        value, error = (made.isel(statistic=k, part=part) for part in (0, 1))
        if of_parts is not None:
            error = batch_means.lugsail(error, of_parts.isel(statistic=k, part=1))
        fitted = name.endswith("fitted_to")
        scores[name] = Score(value, label, units, comment=_why_missing(value, name))
        if runs == TRAJECTORY and (comment or sums.sizes[runs] > 1) and not fitted:
            label = f"standard error of the {name.replace('_', ' ')}"
            scores[f"{name}_standard_error"] = Score(error, label, units, comment=comment)
    return scores


def _why_missing(value: xr.DataArray, name: str) -> str:
    """Why a horizon or doubling time may be NaN; "" if it is known to be a number."""
    if value.chunks is None and not value.isnull().any():
        return ""
    return _NOT_REACHED if name.endswith("horizon") else _NO_GROWTH


def _labelled(pair: ForecastPair, scores: Mapping[str, Score]) -> xr.Dataset:
    """Label the scores with names and units, and warn of scores that are broken."""
    values = with_warnings({"rmse": scores["rmse"]}) | {n: one.value for n, one in scores.items() if n != "rmse"}
    values = {name: values[name].drop_vars(set(values[name].coords) & set(scores)) for name in scores}
    result = xr.Dataset({name: value.drop_attrs() for name, value in values.items()})
    for name, one in scores.items():
        result[name].attrs = one.attrs
    result[LEAD].attrs = dict(pair.lead.attrs)
    if "field" in result.dims:
        result = result.assign_coords(pair.means.labels)
    return result


def _crps_of(pair: ForecastPair) -> str:
    return "members" if "forecast_members" in pair.held else "Gaussian"


def _crps_words(pair: ForecastPair) -> str:
    return {"members": "members, fair", "Gaussian": "Gaussian of the members' mean and spread"}[_crps_of(pair)]


def _lost(pair: ForecastPair) -> xr.DataArray:
    """Forecasts that are not finite at some lead time within the record, dims (trajectory, time)."""
    broken = ~xr.ufuncs.isfinite(pair.held["forecast"])
    state = [dim for dim in broken.dims if dim not in (TRAJECTORY, TIME, LEAD)]
    by_lead = broken.any(state) & xr.DataArray(pair.valid >= 0, dims=(TIME, LEAD))
    lost: xr.DataArray = by_lead.any(LEAD).transpose(TRAJECTORY, TIME)
    if pair.smoothed:
        lost = lost & ~broken.isel({LEAD: 0}).any(state)
    return lost


def _no_cases(pair: ForecastPair) -> xr.DataArray:
    """Lead times that, for every start, end at no time of the record, dims (lead, one)."""
    none: Array = np.all(pair.valid < 0, axis=0)
    return xr.DataArray(none[:, None], dims=(LEAD, "one"))


def _diverged(lost: Array) -> str:
    if not lost.any():
        return ""
    runs: Array = np.any(lost, axis=1)
    return (
        f"{int(lost.sum())} of {lost.size} forecasts are NaN at some lead time, those of {int(runs.sum())} of "
        f"{len(runs)} trajectories (the first at position {int(runs.argmax())}), as their run or their model has "
        "diverged, and a mean over them is no number; leave the trajectories out of record and forecasts with "
        ".isel(trajectory=...)"
    )


def _below(negative: Array) -> str:
    if not negative.any():
        return ""
    return (
        f"{int(negative.sum())} of {negative.size} mean square departures are smaller than R's diagonal: look whether "
        "R is too large; or the forecasts are better than so few cases can tell, as `departure_rms` shows"
    )


def _without(none: Array) -> str:
    if not none.any():
        return ""
    return (
        f"{int(none.sum())} of {len(none)} lead times end at no time of the record, whatever the start, as its "
        "intervals are uneven or longer than the step of the forecasts: these have no case"
    )
