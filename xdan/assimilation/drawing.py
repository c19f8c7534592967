"""Draw members, lazily, for runs that have a distribution but no members."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
import xarray as xr
from torch import Tensor

from ..core.checks import integer, shown, warn
from ..core.drawing import draw_gaussian
from ..core.dynamics import Dynamics
from ..core.formats import data_format
from ..core.keywords import checks_keywords
from ..core.random import check_seed
from ..records.arranging import arrange_state
from ..records.blocks import block
from ..records.fields import ROLE_ATTRIBUTE, split, states_of
from ..records.record import read_dynamics
from ..records.schema import MEMBER, MEMBER_ATTRIBUTES, TIME, TRAJECTORY, Array, Role, dual_of
from ..records.store import check_contents, check_whole

_NAMES = ("analysis", "analysis_covariance", "spread", "members")


@checks_keywords
def draw_members(
    run: xr.Dataset, members: int, seed: int = 0, *, dynamics: Dynamics | None = None
) -> xr.DataArray | xr.Dataset:
    """Draw members from the analyses of a run and their error covariance or spread, lazily.

    Parameters
    ----------
    run : xarray.Dataset
        A run with `analysis_covariance` or with `spread`. `ds.dan.cycle(net, members=True)` gives the covariance for a
        network such as `xdan.GaussianCNN`, and for methods such as "second-order-kalman".
    members : int
        Number of members to draw, at least 1.
    seed : int
        Key of the draws, together with the labels of trajectory and time and the number of the member. So the draws do
        not depend on chunks, on the selected part of the run, or on the number of members.
    dynamics : Dynamics, optional
        The dynamics of a run of several fields. By default the attributes of the run name a registered dynamics.

    Returns
    -------
    xarray.DataArray or xarray.Dataset
        "members" (trajectory, time, member, *state), in the state's units: x_m = x_a + P_a^{1/2} e_m, where e_m is
        standard normal and P_a^{1/2} is the symmetric root. With `spread` alone: x_m = x_a + spread e_m. For several
        fields a Dataset with `members_u` and so on. Members are NaN where a trajectory has diverged. Assign them to the
        run, `run.assign(members=...)`, for `score` and `rank_histogram`.

    Raises
    ------
    TypeError
        If `run` is no Dataset, or `members` or `seed` is no integer.
    ValueError
        If the run holds members already, or holds neither covariance nor spread.

    Warns
    -----
    XdanWarning
        If the run holds `spread` alone: errors of different components are then drawn as if they were independent.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> run = ds.dan.baseline("second-order-kalman", c2=8.0, keep_members=True)
    >>> members = xdan.draw_members(run, 5)
    >>> dict(members.sizes)
    {'trajectory': 4, 'time': 20, 'member': 5, 'x': 8}
    """
    if not isinstance(run, xr.Dataset):
        raise TypeError(f"run={shown(run)}: expected the Dataset that cycle() returned")
    members, seed = integer("members", members, least=1), check_seed(seed)
    data_format(run.attrs, "the run")
    check_contents(run)
    model = None if "analysis" in run else read_dynamics(run, dynamics)
    held = _held(run, model)
    _check(run, held)
    errors = held["analysis_covariance"] if "analysis_covariance" in held else held["spread"]
    drawn = _drawn(held["analysis"], errors, members, seed)
    return drawn if model is None else xr.Dataset(split(drawn, model, "members"))


def _held(run: xr.Dataset, model: Dynamics | None) -> dict[str, xr.DataArray]:
    """The variables in `_NAMES` that the run holds; several fields of a model are packed."""
    if model is None:
        return {name: run[name] for name in _NAMES if name in run}
    states = {name: states_of(run, Role(name, "run", ()), model) for name in _NAMES}
    dual = {dual_of(model.dims): math.prod(model.shape)}
    extra = {"analysis_covariance": dual, "members": {MEMBER: run.sizes.get(MEMBER, 0)}}
    return {name: arrange_state(one, model, name, extra.get(name)) for name, one in states.items() if one is not None}


def _check(run: xr.Dataset, held: Mapping[str, xr.DataArray]) -> None:
    """Refuse a run that has members, or no distribution to draw from; warn if correlations are not known."""
    if "analysis" not in held:
        raise ValueError(f"the run lacks 'analysis'; found {sorted(map(str, run.data_vars))}")
    if "members" in held:
        raise ValueError("the run holds 'members': expected a run without, to draw some; take run['members']")
    if not {"analysis_covariance", "spread"} & set(held):
        raise ValueError(
            "the run has neither 'analysis_covariance' nor 'spread', and says nothing of the errors of its analyses: "
            "expected a run of a network with a spread, ds.dan.cycle(xdan.calibrate(net, ds), members=True)"
        )
    for variable in run.data_vars.values():
        if str(variable.name) in held or variable.attrs.get(ROLE_ATTRIBUTE) in held:
            check_whole(run, variable)
    if "analysis_covariance" not in held:
        warn(
            "the run has 'spread' and no 'analysis_covariance': members are drawn as if the errors of different "
            "components were independent. Keep the covariance with ds.dan.cycle(net, members=True), if it fits",
        )


def _drawn(analysis: xr.DataArray, errors: xr.DataArray, members: int, seed: int) -> xr.DataArray:
    """Members, dims (trajectory, time, member, *state)."""
    lead = [dim for dim in (TRAJECTORY, TIME) if dim in analysis.dims]
    state = [dim for dim in analysis.dims if dim not in lead]
    dual = [dim for dim in errors.dims if dim not in analysis.dims]
    missing = [dim for dim in (TRAJECTORY, TIME) if dim not in lead]
    whole = dict.fromkeys([*state, *dual], -1)
    mean, errors = (
        (one if one.chunks is None else one.chunk({dim: -1 for dim in whole if dim in one.dims}))
        for one in (analysis, errors)
    )
    labels = [_keys(analysis, dim) for dim in (TRAJECTORY, TIME)]
    drawn: xr.DataArray = xr.apply_ufunc(
        _draw_block,
        *(
            one.expand_dims(missing)
            for one in (mean.drop_vars(list(mean.coords)), errors.drop_vars(list(errors.coords)))
        ),
        *labels,
        input_core_dims=[state, [*dual, *state], [], []],
        output_core_dims=[[MEMBER, *state]],
        dask="parallelized",
        output_dtypes=[analysis.dtype],
        dask_gufunc_kwargs={"output_sizes": {MEMBER: members}},
        kwargs={"members": members, "seed": seed},
    )
    drawn = drawn.transpose(TRAJECTORY, TIME, MEMBER, *state).isel(dict.fromkeys(missing, 0))
    drawn = drawn.assign_coords(analysis.coords).rename("members")
    drawn = drawn.assign_coords({MEMBER: (MEMBER, np.arange(members), MEMBER_ATTRIBUTES)})
    drawn.attrs = {"long_name": "members drawn from the distribution of the analysis"}
    if "units" in analysis.attrs:
        drawn.attrs["units"] = analysis.attrs["units"]
    return drawn


def _draw_block(analysis: Array, errors: Array, trajectory: Array, time: Array, *, members: int, seed: int) -> Array:
    """Members of a block, shape (B, K, members, *state), from arrays (B, K, *state) and the block's labels."""
    lead, state = analysis.shape[:2], analysis.shape[2:]
    drawn: Array = _draw_tensors(
        [
            analysis.reshape(*lead, -1),
            errors.reshape(*lead, *([] if errors.ndim == analysis.ndim else [-1]), math.prod(state)),
        ],
        trajectory.reshape(-1),
        time.reshape(-1),
        members,
        seed,
    )
    return drawn.reshape(*lead, members, *state)


@block
def _draw_tensors(values: list[Tensor], trajectory: Tensor, time: Tensor, members: int, seed: int) -> Tensor:
    return draw_gaussian(values[0], values[1], trajectory, time, members, seed)


def _keys(analysis: xr.DataArray, dim: str) -> xr.DataArray:
    """A 32-bit number for each label of a dim: the label itself if it is an integer, else a checksum of its value."""
    if dim not in analysis.coords and dim not in analysis.dims:
        return xr.DataArray(np.zeros(1, dtype=np.int64), dims=dim)
    labels = np.atleast_1d(analysis[dim].values)
    if labels.dtype.kind in "iu":
        return xr.DataArray(labels.astype(np.int64), dims=dim)
    if labels.dtype.kind == "M":
        labels = labels.astype("datetime64[ns]").astype(np.int64)
    if labels.dtype.kind == "f":
        labels = labels.astype(np.float64)
    words = (str(label).encode() if labels.dtype.kind in "OUS" else label.tobytes() for label in labels)
    return xr.DataArray(np.array([zlib.crc32(word) for word in words], dtype=np.int64), dims=dim)
