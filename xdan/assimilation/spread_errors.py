"""The spread of a run compared with its error, in bins of the spread."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import dask.array as da
import numpy as np
import xarray as xr

from ..core import spread_scores as kernels
from ..core.checks import choice, integer, real_array, shown
from ..core.keywords import checks_keywords
from ..records.record import RecordWords
from ..records.schema import MEMBER, TIME, TRAJECTORY, Array
from ..records.wording import shares_words
from .score_causes import Score
from .score_counts import Run, called, counted, pairs, together, told
from .score_fields import FieldPart
from .score_pair import ESTIMATES, Pair

_BIN = "bin"
_GROUPS = 16  # number of groups of trajectories from which standard errors are computed


@checks_keywords
@shares_words
def spread_error(
    ds: xr.Dataset,
    run: Run,
    *,
    bins: int | Sequence[float] = 10,
    burn_in: int = 0,
    which: str = "analysis",
    **words: Unpack[RecordWords],
) -> xr.Dataset:
    """Compare a run's spread with its error, in bins of the spread. For a reliable run both are equal in every bin.

    Parameters
    ----------
    {scored}
    run : xarray.Dataset or mapping of name to Dataset
        Run of `cycle` or `baseline`, with a spread. With a mapping of names to runs, the result has the dim `method`.
    bins : int or sequence of float
        Number of bins, with nearly equal numbers of values; or the edges of the bins, ascending, in the state's units.
        With a number, each edge is a power of 2^(1/32), so that edges are 2.2 % apart. In this way lazy data are read
        only once. A bin may be empty if many spreads are nearly equal.
    {burn_in}
    which : {"analysis", "forecast", "smoothed"}
        The estimate whose spread and error are compared.
    {words}

    Returns
    -------
    xarray.Dataset
        Variables along `bin`, also along `field` for several fields and along `method` for several runs, in the state's
        units:

        - `spread`: the root of the mean square spread;
        - `rmse`: the root of the mean square error of the estimate;
        - `rmse_standard_error`: from up to 16 groups of trajectories; NaN for one trajectory;
        - `expected_rmse`: sqrt((m + 1) / m) times the spread for m members, the RMSE if the truth is one more draw of
          the ensemble; the spread itself for a run without members;
        - `count`: the number of values, weighted by area if areas differ;
        - `lower` and `upper`: the edges of the bin.

        Empty bins are NaN.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, a run has no spread, or the record has no truth.

    Warns
    -----
    XdanWarning
        If truth or run are NaN. These cases are not counted.

    References
    ----------
    Fortin et al. (2014), doi:10.1175/JHM-D-14-0008.1, for the factor; van den Dool (1989) and Wang and Bishop (2003),
    doi:10.1175/1520-0469(2003)060<1140:ACOBAE>2.0.CO;2, for the bins.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> run = ds.dan.baseline("enkf-n", members=10)
    >>> table = ds.dan.spread_error(run, bins=4, burn_in=10)
    >>> table[["spread", "rmse", "expected_rmse"]].sizes["bin"]
    4
    """
    which = choice("which", which, list(ESTIMATES))
    wanted, edges = _bins(bins)
    made: dict[str, xr.Dataset] = {}
    for name, pair in pairs(ds, run, burn_in, which, words, "a comparison of spread and error").items():
        if "spread" not in pair.run:
            raise ValueError(
                f"the {called(name)} holds no {pair.names['spread']!r}: expected a run of a method that tells of its "
                "errors"
            )
        made[name] = _spread_error(pair, wanted, edges, name, again=bool(made))
    return together(made, run)


def _bins(bins: Any) -> tuple[int, Array | None]:
    """The number of bins, and their edges if the caller passed edges.

    Raises
    ------
    TypeError, ValueError
        If `bins` is neither a positive integer nor ascending edges.
    """
    if isinstance(bins, (str, Mapping)) or not hasattr(bins, "__len__"):
        return integer("bins", bins, least=1), None
    edges = real_array("bins", bins)
    if edges.ndim != 1 or len(edges) < 2 or (np.diff(edges) <= 0).any() or edges[0] < 0:
        raise ValueError(f"bins={shown(bins)}: expected ascending edges of bins of spread, not negative, two at least")
    return len(edges) - 1, edges


def _spread_error(pair: Pair, bins: int, edges: Array | None, name: str, *, again: bool) -> xr.Dataset:
    """Spread and error of one run."""
    x, means, units = pair.labelled.truth, pair.means, pair.means.units
    assert x is not None
    rows = x.sizes[TRAJECTORY]
    groups = min(rows, _GROUPS)
    group = np.arange(rows) * groups // rows
    words = {
        "spread": ("root of the mean square spread", units),
        "rmse": (f"root of the mean square error of the {pair.names['analysis']}", units),
        "rmse_standard_error": ("standard error of the RMSE over groups of trajectories", units),
        "count": ("values in the bin", "1"),
        "lower": ("lower edge of the bin of spread", units),
        "upper": ("upper edge of the bin of spread", units),
    }
    bounds = kernels.fine_edges() if edges is None else edges

    def binned(sums: Array) -> tuple[Array, ...]:
        """The columns of the table, and the total count."""
        everything = np.full(bins, sums[..., 0].sum())
        if edges is None:
            sums, starts = kernels.merged_bins(sums, bins)
            ends = np.append(bounds, np.inf)[starts]
        else:
            sums, ends = sums[:, :-1], edges  # values above the last edge are in no bin
        made = kernels.spread_error(sums)
        made |= {"lower": ends[:-1], "upper": ends[1:]}
        if edges is None:  # an empty bin has no edges
            made |= {edge: np.where(made["count"] > 0, made[edge], np.nan) for edge in ("lower", "upper")}
        return (*(made[one] for one in words), everything)

    def of_field(part: FieldPart, *values: xr.DataArray) -> xr.DataArray:
        outputs = len(words) + 1
        results = xr.apply_ufunc(
            binned,
            _summed(part, values, group, groups, bounds, pair.state),
            input_core_dims=[["group", "fine", "sum"]],
            output_core_dims=[[_BIN]] * outputs,
            dask="parallelized",
            output_dtypes=[np.float64] * outputs,
            dask_gufunc_kwargs={"output_sizes": {_BIN: bins}},
        )
        table: xr.DataArray = xr.concat(results, "column")
        return table

    table = means.each(of_field, x, pair.run["analysis"], pair.run["spread"])
    columns = {one: table.isel(column=k, drop=True) for k, one in enumerate(words)}
    nowhere = xr.zeros_like(columns["count"], dtype=bool)  # an empty bin needs no warning
    scores = {one: Score(columns[one], *words[one], broken=nowhere) for one in words}
    everything, dims = table.isel(column=-1, drop=True), (TRAJECTORY, TIME)
    if edges is None:  # values beyond the caller's edges are left out on purpose
        scores["count"] = counted(pair, columns["count"], everything, dims, words["count"][0], ("analysis", "spread"))
    result = told(scores, pair, name, again=again)
    members = _members_of(pair)
    factor = 1.0 if members is None else math.sqrt((members + 1) / members)
    result["expected_rmse"] = (factor * result["spread"]).assign_attrs(
        {"long_name": "RMSE of a truth that is one more member"} | ({} if units is None else {"units": units})
    )
    more = {} if members is None else {"members": members}
    return result.assign_attrs(title="spread and error", burn_in=pair.record.burn_in, **more)


def _members_of(pair: Pair) -> int | None:
    """Number of members of the run's ensemble; None if it has none, or the attributes do not tell."""
    if MEMBER in pair.run.sizes:
        return int(pair.run.sizes[MEMBER])
    try:
        count = json.loads(str(pair.attributes.get("method_parameters", "{}"))).get("members")
    except (AttributeError, ValueError):  # attributes that the user wrote
        return None
    return count if isinstance(count, int) and count > 1 else None


def _summed(
    part: FieldPart,
    values: Sequence[xr.DataArray],
    group: Array,
    groups: int,
    edges: Array,
    state: list[Hashable],
) -> xr.DataArray:
    """Sums of a field by groups of trajectories and bins of spread, dims (group, fine, sum). Each block is a task."""
    weights = None if part.weights is None else part.weights * part.size
    kernel: Callable[..., Array] = partial(
        kernels.spread_sums, groups=groups, edges=edges, axes=len(state), weights=weights
    )
    ordered = [one.transpose(TRAJECTORY, TIME, *state) for one in values]
    dims = ("group", "fine", "sum")
    if all(one.chunks is None for one in ordered):
        return xr.DataArray(kernel(*(one.to_numpy() for one in ordered), group), dims=dims)
    first = next(one for one in ordered if one.chunks is not None)
    sizes = {dim: first.chunksizes[dim] for dim in (TRAJECTORY, TIME)} | dict.fromkeys(state, -1)
    arrays = [one.chunk(sizes).data for one in ordered]
    labels = da.from_array(group, chunks=(sizes[TRAJECTORY],))[:, None, *[None] * len(state)]

    def block(x: Array, estimate: Array, spread: Array, label: Array) -> Array:
        return kernel(x, estimate, spread, label.reshape(-1))[None, None]

    axes = list(range(2, 2 + len(state)))
    blocks = da.map_blocks(
        block,
        *arrays,
        labels,
        dtype=np.float64,
        drop_axis=axes,
        new_axis=[2, 3, 4],
        chunks=(*((1,) * count for count in arrays[0].numblocks[:2]), (groups,), (len(edges),), (3,)),
        meta=np.empty((0,) * 5),
    )
    return xr.DataArray(blocks.sum((0, 1)), dims=dims)
