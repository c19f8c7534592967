"""Scores of runs: against the truth of a twin, and against the observations alone."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import xarray as xr

from ..core import scores as kernels
from ..core.checks import choice
from ..records.fields import split, state_coordinates
from ..records.record import RecordWords
from ..records.schema import TIME, TRAJECTORY, averaged_dims
from ..records.wording import shares_words
from .score_causes import Score, with_warnings
from .score_fields import FIELD
from .score_many import CRPS_OF, joined, several
from .score_observations import against_observations
from .score_pair import Pair, match, read_scored
from .score_truth import BY_SITE, against_truth, also_scored, by_site, check_also, spreads


@shares_words
def score(
    ds: xr.Dataset,
    run: xr.Dataset | Mapping[str, xr.Dataset],
    *,
    dim: str | Sequence[str] = (TRAJECTORY, TIME),
    along: str = "state",
    burn_in: int = 0,
    also: Sequence[kernels.StateScore | str] = (),
    which: str = "analysis",
    **words: Unpack[RecordWords],
) -> xr.Dataset:
    """Score a run, or several.

    Parameters
    ----------
    {scored}
    run : xarray.Dataset or mapping of name to Dataset
        Of `cycle` or `baseline`; or any `forecast` and `analysis` on the record's coordinates. Of a mapping the scores
        have the dim `method`, and `.to_pandas()` is a table with a row for each run; one is `.sel({"method": name})`.
    {averaged}
    along : {"state", "site"}
        "state" takes the root of the mean over the state at each time, and averages that. "site" gives maps: the root
        of the mean over `dim` at each site.
    {burn_in}
    also : sequence of StateScore or {"energy"}
        Your scores of whole states, averaged beside the others. "energy" is the `energy_score` of the members, in its
        fair form. Its distance of two states is the root of the mean square over the state, so that one member has its
        RMSE. It takes O(m^2 N) operations for m members of N variables.
    which : {"analysis", "smoothed"}
        What is scored. "smoothed" takes the run's `smoothed`, `smoothed_spread` and `smoothed_members` in the
        analysis's place, and leaves out what is of the forecast or of observations alone. Times at the end of the
        record for which the run has no smoothed state are in no mean; `times_left_out` counts them.
    {words}

    Returns
    -------
    xarray.Dataset
        With a truth: `rmse` of the analysis, its standard error where trajectories are averaged, `forecast_rmse`, and
        `mean_absolute_error` of the analysis. A run that tells of its errors has `crps`: of the members where it keeps
        them, in its fair form, else of a Gaussian of its spread. These are two scores: the coordinate `crps_of`,
        "members" or "Gaussian", says which. With a spread: `spread`, `forecast_spread`. From observations
        alone: `innovation_mean` and `innovation_variance` of y - H x_f and, with a spread,
        `innovation_variance_expected` (where sites are observed) and `consistency`, the variance over the expected one,
        1 for a consistent method; `residual_mean` and `residual_variance` of y - H x_a; and two diagnosed variances,
        which for a consistent method are those in use: `error_variance_diagnosed`, the mean of
        (y - H x_a)(y - H x_f), of R (`error_variance`), and `forecast_variance_diagnosed`, the mean of
        (H x_a - H x_f)(y - H x_f), of H P_f H^T (`forecast_variance`, with a spread where sites are observed).
        `diverged` counts lost trajectories: their scores, and means over them, are NaN.

        Means over the state are by area, where the points of a field's geometry differ in it; those of observations
        count each the same. Of several fields each score has the dim `field`, and beside it stands its mean over the
        fields, named `rmse_total` and so on, in units of each field's error: each field counts the same, however many
        points it has. A field's error is the root of the mean variance of its observations' errors; where nothing of
        it is observed, or observations are no sites, the deviation of its truth (of the analysis without a truth).

        With `along="site"`: `rmse`, `bias` (analysis minus truth), `mean_absolute_error`, `forecast_rmse`,
        `forecast_bias`, `crps`, `spread`, `forecast_spread`, `innovation_mean` and `residual_mean` on the field's own
        dims; of several fields one variable for each, `rmse_h`.

        A score that some of several runs lack is NaN for these, and their `crps_of` is "". Attributes that differ are
        left out.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, a run does not fit the record, burn-in leaves nothing, or a score in `also` takes
        what record and run lack.

    Warns
    -----
    XdanWarning
        Where a score is not finite, with the cause that is seen: trajectories that diverged, gaps in truth or run,
        nothing observed. Where the RMSE of the beginning is far from the rest, with a burn-in that leaves it out. Where
        `smoothed` lies at the time of the analysis, as in runs of early versions. For lazy data when the scores are
        computed.

    References
    ----------
    CRPS: Gneiting and Raftery (2007), doi:10.1198/016214506000001437; of members: Ferro (2014), doi:10.1002/qj.2270.
    Diagnosed variances: Desroziers et al. (2005), doi:10.1256/qj.05.108.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> run = ds.dan.baseline("enkf-n", members=10)
    >>> score = ds.dan.score(run, burn_in=10)
    >>> bool(score.rmse < score.forecast_rmse)
    True
    """
    along, which = choice("along", along, ("state", "site")), choice("which", which, ("analysis", "smoothed"))
    check_also(also)
    if along == "site" and also:
        raise ValueError("also= holds scores of whole states: expected none of them with along='site'")
    dims: list[Hashable] = list(averaged_dims(dim))
    runs = several("run", run)
    record = read_scored(ds, burn_in, words)
    scored: dict[str, xr.Dataset] = {}
    for name, one in runs.items():
        what = f"run {name!r}" if name else "run"
        pair = match(record, one, which, forecast=which == "analysis", what=what)
        head = f"{what}: " if name else ""
        scored[name] = _scored(pair, dims, along, also, head, again=bool(scored))
    if isinstance(run, xr.Dataset):
        return scored[""]
    return joined(scored).assign_attrs(title="scores of several runs")


def _scored(
    pair: Pair, dims: list[Hashable], along: str, also: Sequence[kernels.StateScore | str], head: str, *, again: bool
) -> xr.Dataset:
    """Scores of one run."""
    with np.errstate(over="ignore", invalid="ignore"):  # a warning below names the cause of what is not finite
        if along == "site":
            scores = by_site(pair, dims)
        else:
            scores = {**against_truth(pair, dims), **spreads(pair, dims)}
            if "forecast" in pair.run:
                scores |= against_observations(pair, dims)
            scores |= also_scored(pair, dims, also, scores)
    lost = pair.lost().any(TIME)
    scores["diverged"] = Score(lost.sum(TRAJECTORY) if TRAJECTORY in dims else lost, "trajectories that diverged", "1")
    if pair.left_out is not None:
        label = "times at the end without a smoothed state"
        scores["times_left_out"] = Score(pair.left_out.sum(), label, "1")
    # A label left over from a selection gives way to a score of its name.
    made = with_warnings(scores, head, again=again)
    values = {name: value.drop_vars(set(value.coords) & set(scores)) for name, value in made.items()}
    result = xr.Dataset({name: value.drop_attrs() for name, value in values.items()})
    for name, one in scores.items():
        result[name].attrs = {"long_name": one.long_name} | ({} if one.units is None else {"units": one.units})
    if FIELD in result.dims:
        result = result.assign_coords(pair.means.labels)
    if along == "site":
        result = _unpacked(result, pair)
    if "crps" in scores:
        # A string as an object: Zarr has a specification for strings of any length only.
        result = result.assign_coords(crps_of=xr.Variable((), np.array(pair.crps_of, dtype=object), CRPS_OF))
    return result.assign_attrs(
        title=f"scores of {pair.attributes.get('method', 'a run')}",
        burn_in=pair.record.burn_in,
        cycles=pair.run.sizes[TIME] * pair.run.sizes[TRAJECTORY],
        rmse_convention=pair.means.convention() if along == "state" else BY_SITE,
    )


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
