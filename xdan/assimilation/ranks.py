"""Ranks of the truth among members, and how flat their histogram is."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Unpack

import numpy as np
import xarray as xr

from ..core import ensemble_scores as kernels
from ..core.checks import choice, shown
from ..core.keywords import checks_keywords
from ..records.record import RecordWords
from ..records.schema import MEMBER, TIME, TRAJECTORY, Array, averaged_dims
from ..records.wording import shares_words
from .score_counts import Run, called, counted, pairs, together, told
from .score_fields import FieldPart
from .score_pair import ESTIMATES, Pair

_RANK = "rank"
_WHICH = {names.members: which for which, names in ESTIMATES.items()}


@checks_keywords
@shares_words
def rank_histogram(
    ds: xr.Dataset,
    run: Run,
    *,
    dim: str | Sequence[str] = (TRAJECTORY, TIME),
    burn_in: int = 0,
    of: str = "members",
    **words: Unpack[RecordWords],
) -> xr.DataArray:
    """Count the ranks of the truth among the members. The histogram of a reliable ensemble is flat.

    Parameters
    ----------
    {scored}
    run : xarray.Dataset or mapping of name to Dataset
        A run with members, from `baseline(..., keep_members=True)` or `draw_members`. With a mapping of names to runs,
        the counts have the dim `method`; all runs must have the same number of members.
    {averaged}
    {burn_in}
    of : {"members", "forecast_members", "smoothed_members"}
        The members among which the truth is ranked: of the analysis, of the forecast or of the smoothed state.
    {words}

    Returns
    -------
    xarray.DataArray
        Counts along `rank`, from 1 to the number of members + 1; also along `field` for several fields and along
        `method` for several runs. A truth that equals t members adds 1 / (t + 1) to each of its t + 1 possible ranks.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, a run holds no members, the record has no truth, or runs have different numbers of
        members.

    Warns
    -----
    XdanWarning
        If truth or members are NaN. These cases are not counted.

    See Also
    --------
    rank_flatness : how flat the histogram is.

    References
    ----------
    Hamill (2001), doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> run = ds.dan.baseline("enkf-n", members=10, keep_members=True)
    >>> histogram = ds.dan.rank_histogram(run, burn_in=10)
    >>> histogram.sizes["rank"]  # one more than members
    11
    >>> float(histogram.sum())  # 4 trajectories, 10 times, 8 sites
    320.0
    """
    which = _WHICH[choice("of", of, _WHICH)]
    dims: list[Hashable] = list(averaged_dims(dim))
    matched = pairs(ds, run, burn_in, which, words, "a rank histogram")
    counts = {name: pair.run.sizes.get(MEMBER, 0) for name, pair in matched.items()}
    for name, pair in matched.items():
        if "members" not in pair.run:
            raise ValueError(
                f"the {called(name)} holds no {of!r}: run baseline(..., keep_members=True), expected members of every "
                "cycle"
            )
    if len(set(counts.values())) > 1:
        raise ValueError(f"the runs have {counts} members: expected as many in each, as ranks are counted among them")
    made = {name: _ranks(pair, dims, name, again=k > 0) for k, (name, pair) in enumerate(matched.items())}
    return together(made, run)["histogram_rank"]


def _ranks(pair: Pair, dims: list[Hashable], name: str, *, again: bool) -> xr.Dataset:
    x, members = pair.record.labelled.truth, pair.run["members"]
    assert x is not None

    def count(_: FieldPart, x: xr.DataArray, members: xr.DataArray) -> xr.DataArray:
        # Counted at each time, so that blocks stay apart; counts are small beside members.
        counts: xr.DataArray = xr.apply_ufunc(
            partial(kernels.rank_counts, axes=len(pair.state)),
            x,
            members,
            input_core_dims=[pair.state, [*pair.state, MEMBER]],
            output_core_dims=[[_RANK]],
            dask="parallelized",
            output_dtypes=[np.float64],
            dask_gufunc_kwargs={"output_sizes": {_RANK: members.sizes[MEMBER] + 1}},
        ).sum(dims)
        return counts

    counts = pair.means.each(count, x, members).transpose(..., _RANK)
    members_name = pair.names["members"].replace("_", " ")
    score = counted(pair, counts, counts.sum(_RANK), dims, f"rank of the truth among {members_name}", ("members",))
    result = told({"histogram_rank": score}, pair, name, again=again)
    return result.assign_coords({_RANK: np.arange(1, members.sizes[MEMBER] + 2)})


def rank_flatness(histogram: xr.DataArray) -> xr.Dataset:
    """Say how flat a rank histogram is, and whether chance explains the differences from a flat one.

    The ranks of neighbouring sites and times are not independent. A test that takes all counts as independent would
    refuse every ensemble. Trajectories are independent: their histograms tell the number of independent counts.

    Parameters
    ----------
    histogram : xarray.DataArray
        Result of `rank_histogram(..., dim="time")`. Only the reliability index can be computed without `trajectory`.

    Returns
    -------
    xarray.Dataset
        Variables on the dims of the histogram without `rank` and `trajectory`. `reliability_index` is the sum of
        ``|p_k - 1/K|`` over the K ranks, where p_k is the share of rank k; it is 0 for a flat histogram. With at least
        3 trajectories there are three more. `effective_counts` is the number of independent counts whose shares would
        scatter as those of the trajectories do. `chi_square` is the statistic for this number of counts. `p_value` is
        the probability that chance makes a histogram less flat than this one, if the true histogram is flat.

    Raises
    ------
    TypeError, ValueError
        If `histogram` is no rank histogram.

    References
    ----------
    Reliability index: Delle Monache et al. (2006), doi:10.1029/2005JD006917. Statistics of clusters: Rao and Scott
    (1984), doi:10.1214/aos/1176346391.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> run = ds.dan.baseline("enkf-n", members=10, keep_members=True)
    >>> flatness = xdan.rank_flatness(ds.dan.rank_histogram(run, burn_in=10, dim="time"))
    >>> sorted(flatness)
    ['chi_square', 'effective_counts', 'p_value', 'reliability_index']
    """
    if not isinstance(histogram, xr.DataArray):
        raise TypeError(f"histogram={shown(histogram)}: expected the DataArray of xdan.rank_histogram")
    if _RANK not in histogram.dims:
        raise ValueError(
            f"the histogram has dims {histogram.dims}: expected what xdan.rank_histogram gives, with 'rank'"
        )
    counts = histogram if TRAJECTORY in histogram.dims else histogram.expand_dims(TRAJECTORY)
    if counts.chunks is not None:
        counts = counts.chunk({TRAJECTORY: -1, _RANK: -1})
    names = ("reliability_index", "effective_counts", "chi_square", "p_value")

    def all_of_them(values: Array) -> tuple[Array, ...]:
        made = kernels.flatness(values)
        return tuple(made[name] for name in names)

    results = xr.apply_ufunc(
        all_of_them,
        counts,
        input_core_dims=[[TRAJECTORY, _RANK]],
        output_core_dims=[[]] * len(names),
        dask="parallelized",
        output_dtypes=[np.float64] * len(names),
    )
    words = (
        "sum of the differences of shares of ranks from even ones",
        "independent counts that scatter as the trajectories' do",
        "chi-square of the effective counts",
        "probability of a histogram that is less flat where the true one is flat",
    )
    shown_names = names if TRAJECTORY in histogram.dims else names[:1]
    result = xr.Dataset(dict(zip(shown_names, results, strict=False)))
    for name, word in zip(shown_names, words, strict=False):
        result[name].attrs = {"long_name": word, "units": "1"}
    return result.assign_attrs(title="flatness of a rank histogram")
