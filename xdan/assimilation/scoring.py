"""Scores of runs against the truth of a twin, and against the observations alone."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import xarray as xr

from ..core import scores as kernels
from ..core.checks import choice
from ..core.keywords import checks_keywords
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


@checks_keywords
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
    """Score one run or several runs.

    Parameters
    ----------
    {scored}
    run : xarray.Dataset or mapping of name to Dataset
        Run of `cycle` or `baseline`, or any Dataset with `forecast` and `analysis` on the record's coordinates. With a
        mapping, the scores have the dim `method`: `.to_pandas()` makes a table with a row for each run, and
        `.sel({"method": name})` selects a run.
    {averaged}
    along : {"state", "site"}
        "state" takes the root of the mean square over the state at each time, and averages these roots. "site" makes
        maps: at each site, the root of the mean square over `dim`.
    {burn_in}
    also : sequence of StateScore or {"energy"}
        Further scores of whole states, which are averaged as the others are. "energy" is the `energy_score` of the
        members, in its fair form. Its distance between two states is the root of the mean square difference over the
        state. So the energy score of a single member is its RMSE. It takes O(m^2 N) operations for m members of N
        components.
    which : {"analysis", "smoothed"}
        The estimate that is scored. "smoothed" takes the run's `smoothed`, `smoothed_spread` and `smoothed_members` in
        the place of the analysis, and leaves out the scores of the forecast and those from observations alone. Times at
        the end of the record without a smoothed state are in no mean; `times_left_out` counts them.
    {words}

    Returns
    -------
    xarray.Dataset
        Scores in the state's units, or the units' square for a variance. With a truth:

        - `rmse` of the analysis and `forecast_rmse`;
        - `rmse_standard_error`, if trajectories are averaged. For a record of one trajectory it is from batch means in
          time: the means of 8 to 10 consecutive blocks, of at least 50 cycles each. It is NaN if there are fewer than
          400 cycles. The attribute `comment` names the blocks, or says why there are none;
        - `mean_absolute_error` of the analysis;
        - `crps`: the fair CRPS of the members if the run keeps them, else the CRPS of a Gaussian with the run's spread.
          These are two different scores: the coordinate `crps_of`, "members" or "Gaussian", says which it is.

        With a spread: `spread` and `forecast_spread`, the roots of the mean variances. From observations alone:

        - `innovation_mean` and `innovation_variance`: of y - H x_f;
        - `innovation_variance_expected`, if the run has a spread and sites are observed; and `consistency`, which is
          `innovation_variance` divided by its expected value, 1 for a consistent method;
        - `residual_mean` and `residual_variance`: of y - H x_a;
        - `error_variance_diagnosed`: the mean of (y - H x_a)(y - H x_f). For a consistent method it equals
          `error_variance`, the mean variance in R;
        - `forecast_variance_diagnosed`: the mean of (H x_a - H x_f)(y - H x_f). For a consistent method it equals
          `forecast_variance`, the mean variance in H P_f H^T, which is there with a spread if sites are observed.

        `diverged` is the number of lost trajectories. Their scores, and means over them, are NaN.

        Means over the state are weighted by area if the points of a field differ in area. All observations have equal
        weights. With several fields, each score has the dim `field`. The mean of a score over the fields is named
        `rmse_total` and so on. In this mean the score of each field is divided by the field's error, and all fields
        have equal weights. A field's error is the root of the mean variance of its observations' errors. If a field is
        not observed, or observations do not lie at sites, it is the standard deviation of the field's truth, or of its
        analysis if there is no truth.

        With `along="site"`: `rmse`, `bias` (mean of analysis minus truth), `mean_absolute_error`, `forecast_rmse`,
        `forecast_bias`, `crps`, `spread`, `forecast_spread`, `innovation_mean` and `residual_mean` on the dims of the
        field. Several fields have one variable each, such as `rmse_h`.

        With several runs, a score that a run lacks is NaN, and the run's `crps_of` is "". Attributes that differ
        between runs are left out.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, a run does not fit the record, no cycle is left after burn-in, or a score in `also`
        takes a variable that record and run lack.

    Warns
    -----
    XdanWarning
        If a score is not finite. The warning names the cause: trajectories that diverged, gaps in truth or run, or no
        observations. If the RMSE of the beginning is far from the rest; the warning names a burn-in that leaves the
        beginning out. If `smoothed` lies at the time of the analysis, as in runs of early versions. Lazy data warn
        when the scores are computed.

    References
    ----------
    CRPS: Gneiting and Raftery (2007), doi:10.1198/016214506000001437; of members: Ferro (2014), doi:10.1002/qj.2270.
    Diagnosed variances: Desroziers et al. (2005), doi:10.1256/qj.05.108. Batch means: Flegal and Jones (2010),
    doi:10.1214/09-AOS735; Vats and Flegal (2022), doi:10.1093/biomet/asab049.

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
    with np.errstate(over="ignore", invalid="ignore"):  # a warning below names the cause if a score is not finite
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
    # A scalar label that is left from a selection is dropped if a score has its name.
    made = with_warnings(scores, head, again=again)
    values = {name: value.drop_vars(set(value.coords) & set(scores)) for name, value in made.items()}
    result = xr.Dataset({name: value.drop_attrs() for name, value in values.items()})
    for name, one in scores.items():
        result[name].attrs = one.attrs
    if FIELD in result.dims:
        result = result.assign_coords(pair.means.labels)
    if along == "site":
        result = _unpacked(result, pair)
    if "crps" in scores:
        # The string is an object here: Zarr specifies only strings of any length.
        result = result.assign_coords(crps_of=xr.Variable((), np.array(pair.crps_of, dtype=object), CRPS_OF))
    return result.assign_attrs(
        title=f"scores of {pair.attributes.get('method', 'a run')}",
        burn_in=pair.record.burn_in,
        cycles=pair.run.sizes[TIME] * pair.run.sizes[TRAJECTORY],
        rmse_convention=pair.means.convention() if along == "state" else BY_SITE,
    )


def _unpacked(scores: xr.Dataset, pair: Pair) -> xr.Dataset:
    """Scores of sites on the dims and coordinates of their fields; several fields have one variable each."""
    labelled, means = pair.labelled, pair.means
    model = labelled.setup.dynamics
    if not means.several:
        coordinates: dict[Any, Any] = {**state_coordinates(model)}
        for source in (labelled.truth, labelled.observation):
            if source is not None:  # labels that the user chose, such as longitudes
                coordinates |= {dim: source[dim] for dim in means.dims if dim in source.coords}
        return scores.assign_coords({dim: coordinates[dim] for dim in means.dims})
    variables: dict[Hashable, xr.DataArray] = {}
    for name, score in scores.data_vars.items():
        packed = set(means.dims) <= set(score.dims)
        variables.update(split(score, model, str(name)) if packed else {name: score})
    return xr.Dataset(variables, attrs=scores.attrs)
