"""A comparison of models: the skill of their forecasts by lead time, and their climates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import dask
import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..core.checks import integer, real, shown
from ..core.dynamics import Dynamics
from ..core.keywords import checks_keywords
from ..core.lead_times import states_by_lead
from ..core.random import check_seed
from ..core.spaces import StateSpace
from ..records.blocks import Plan, block, block_graph
from ..records.record import RecordWords, read
from ..records.schema import TIME, TRAJECTORY, Array, as_labels
from ..records.times import first_model_time
from ..records.wording import shares_words
from .learners import check_even

LEAD, MODEL, WAVENUMBER, FIELD = "lead", "model", "wavenumber", "field"
_BINS = 101  # number of bins of a histogram, from -5 to 5 standard deviations
_MOST = 10**6


@checks_keywords
@shares_words
def forecast_skill(
    ds: xr.Dataset,
    models: Mapping[str, Dynamics],
    *,
    leads: int = 40,
    every: int = 10,
    burn_in: int = 0,
    **words: Unpack[RecordWords],
) -> xr.Dataset:
    """Compare forecasts of several models with the truth, by lead time; lazily if the record is lazy.

    Parameters
    ----------
    ds : xarray.Dataset
        A record with a truth and even intervals.
    models : mapping of str to Dynamics
        The models by their names in the result. All must have the space of the record's states.
    leads : int
        Number of intervals that each forecast runs over.
    every : int
        Number of cycles between the starts of two forecasts of a trajectory.
    burn_in : int
        Number of cycles at the beginning in which no forecast starts.
    {words}

    Returns
    -------
    xarray.Dataset
        `rmse` (model, lead, field): root of the mean square error over forecasts and places, in the units of the field.
        `rmse_standard_error`: its standard error over trajectories, NaN for a single one. `correlation` (model, lead,
        field): of forecast and truth over forecasts and places. `deviation` (field): the standard deviation of the
        truth; the RMSE between two independent states is sqrt(2) times as large. `lead` is in model time. A state of
        one field has no dim `field`.

    Raises
    ------
    TypeError
        If `models` is no mapping of names to models.
    ValueError
        If the record has no truth or uneven intervals, a model has another space or a time step that does not divide
        the interval, or `leads` is longer than the record.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=40, trajectories=4, seed=0)
    >>> models = {"true": xdan.Lorenz96(sites=8), "wrong": xdan.Lorenz96(sites=8, forcing=8.5)}
    >>> skill = ds.dan.forecast_skill(models, leads=5)
    >>> bool((skill.rmse.sel(model="wrong") > 10 * skill.rmse.sel(model="true")).all())
    True
    """
    labelled = read(ds, **words, needs_truth="the skill of forecasts")
    assert labelled.truth is not None
    space = labelled.setup.dynamics.space
    interval = check_even(labelled) * labelled.setup.dynamics.timestep
    named = {
        name: one if one.autonomous else one.starting_at(first_model_time(labelled.observation, one))
        for name, one in _checked_models(models, space).items()
    }
    steps = {name: one.steps_in(interval) for name, one in named.items()}
    burn_in = integer("burn_in", burn_in, least=0)
    truth = labelled.truth.isel({TIME: slice(burn_in, None)})
    leads, every = integer("leads", leads, least=1, most=_MOST), integer("every", every, least=1)
    if truth.sizes[TIME] <= leads:
        raise ValueError(
            f"leads={leads} of a truth of {truth.sizes[TIME]} cycles after the burn-in: expected fewer leads than that"
        )
    starts = np.arange(0, truth.sizes[TIME] - leads, every)
    passed = burn_in + starts  # intervals since the record's first analysis; each model converts them to its steps
    # All times of a trajectory are one block, as forecasts run across times.
    whole = truth.chunk({TIME: -1}) if truth.chunks is not None else truth.chunk()
    data = whole.transpose(TRAJECTORY, TIME, ...).data
    sums = block_graph(
        _skill_block,
        Plan.from_chunks(data.chunks[0], data.chunks[1]),
        [data],
        {"sums": ((len(named), leads, len(space), 6), np.dtype(np.float64))},
        *(dask.delayed(one, traverse=False) for one in (list(named.values()), list(steps.values()), space)),
        starts.tolist(),
        passed.tolist(),
        leads,
        sizes=lambda rows, columns: (rows.stop - rows.start, 1),
        dtype=labelled.setup.dtype,
    )["sums"][:, 0]
    dims = (TRAJECTORY, MODEL, LEAD, FIELD, "moment")
    coordinates = {
        MODEL: as_labels(named),
        LEAD: (LEAD, interval * np.arange(1, leads + 1), {"long_name": "lead time, model time", "units": "1"}),
        FIELD: as_labels(space.names),
    }
    moments = xr.DataArray(sums if labelled.lazy else sums.compute(), coordinates, dims)
    return _label_skill(moments, space)


@checks_keywords
def model_climate(
    models: Mapping[str, Dynamics], *, time: float = 50.0, interval: float = 0.5, trajectories: int = 16, seed: int = 0
) -> xr.Dataset:
    """Compute the climates of several models: mean, standard deviation, histogram and spectrum; not lazily.

    Parameters
    ----------
    models : mapping of str to Dynamics
        The models by their names in the result. All must have one space.
    time, interval : float
        Model time of each run after the spin-up, and model time between two states that are used.
    trajectories : int
        Number of independent runs.
    seed : int
        Key of the random starts.

    Returns
    -------
    xarray.Dataset
        `mean` and `deviation` (model, field): mean and standard deviation over all places and times, in the field's
        units, with their standard errors over trajectories. `density` (model, field, value): the share of values in
        bins. A bin is a tenth of the first model's standard deviation wide; `value` is the distance from the first
        model's mean in such deviations. On a ring also `power` (model, wavenumber): the mean square in each wavenumber,
        without the mean. A state of one field has no dim `field`.

    Raises
    ------
    TypeError
        If `models` is no mapping of names to models.
    ValueError
        If the models have different spaces, their steps do not divide the times, or states do not stay finite.

    Examples
    --------
    >>> import xdan
    >>> model = xdan.Lorenz96(sites=8)
    >>> climate = xdan.model_climate({"F = 8": model}, time=5.0, trajectories=2)
    >>> bool(abs(climate["mean"].squeeze() - 2.4) < 0.8)
    True
    """
    named = _checked_models(models)
    space = next(iter(named.values())).space
    seed, trajectories = check_seed(seed), integer("trajectories", trajectories, least=1, most=_MOST)
    time, interval = real("time", time, above=0.0), real("interval", interval, above=0.0)
    steps = [one.steps_in(interval) for one in named.values()]
    count = max(1, round(time / interval))
    runs = [
        _free_run([], one, each, count, trajectories, seed) for one, each in zip(named.values(), steps, strict=True)
    ]
    if lost := [name for name, run in zip(named, runs, strict=True) if not np.isfinite(run).all()]:
        raise ValueError(f"states of {lost} are not finite after some time: expected models whose climate is bounded")
    return _label_climate(dict(zip(named, runs, strict=True)), space)


def _checked_models(models: Any, space: StateSpace | None = None) -> dict[str, Dynamics]:
    """Check that `models` is a mapping of names to models with one space."""
    if not isinstance(models, Mapping) or not models:
        raise TypeError(f"models={shown(models)}: expected a mapping such as {{'true': model, 'surrogate': surrogate}}")
    for name, one in models.items():
        if not isinstance(name, str) or not isinstance(one, Dynamics):
            raise TypeError(f"models[{shown(name)}]={shown(one)}: expected an xdan Dynamics under a name")
        space = one.space if space is None else space
        if one.space != space:
            raise ValueError(f"models[{name!r}] has the space {one.space!r}: expected {space!r}, that of all models")
    return dict(models)


@block
def _skill_block(
    data: Sequence[Tensor],
    rows: slice,
    columns: slice,
    models: Sequence[Dynamics],
    steps: Sequence[int],
    space: StateSpace,
    starts: Sequence[int],
    passed: Sequence[int],
    leads: int,
) -> dict[str, Tensor]:
    """Means over forecasts and places of e^2, x y, x^2, y^2, x and y, (B, 1, models, leads, fields, 6)."""
    truth = data[0].flatten(2)
    means = [
        _sums_of_model(truth, model, each, starts, passed, space, leads) / len(starts)
        for model, each in zip(models, steps, strict=True)
    ]
    return {"sums": torch.stack(means, 1)[:, None]}


def _sums_of_model(
    truth: Tensor,
    model: Dynamics,
    steps: int,
    starts: Sequence[int],
    passed: Sequence[int],
    space: StateSpace,
    leads: int,
) -> Tensor:
    """Sums over the starts of means over places, (B, leads, fields, 6)."""
    first, sizes = torch.tensor(list(starts)), [one.geometry.size for one in space]
    clocks = [intervals * steps for intervals in passed]
    forecasts = states_by_lead(model, truth[:, first], clocks, [lead * steps for lead in range(1, leads + 1)])
    rows = []
    for lead, (x, _) in enumerate(forecasts):
        forecast, actual = x.double(), truth[:, first + lead + 1].double()
        products = (forecast - actual).square(), forecast * actual, forecast.square(), actual.square(), forecast, actual
        fields = [[part.mean(2).sum(1) for part in product.split(sizes, -1)] for product in products]
        rows.append(torch.stack([torch.stack(field, -1) for field in zip(*fields, strict=True)], 1))
    return torch.stack(rows, 1)


@block
def _free_run(data: Any, model: Dynamics, steps: int, count: int, trajectories: int, seed: int) -> Tensor:
    """States (trajectory, time, N) of a free run on the attractor."""
    x = model.climatology(torch.arange(trajectories), seed, like=torch.zeros((), dtype=torch.float64))[:, 0]
    states = []
    for number in range(count):
        x = model.from_step(number * steps).advance(x, steps)
        states.append(x.flatten(1))
    return torch.stack(states, 1)


def _label_skill(moments: xr.DataArray, space: StateSpace) -> xr.Dataset:
    """The result of `forecast_skill` from means over forecasts and places, (trajectory, model, lead, field, moment)."""
    count = moments.sizes[TRAJECTORY]
    mean = moments.mean(TRAJECTORY)
    rmse = np.sqrt(mean.isel(moment=0))
    many = count > 1
    of_square = moments.isel(moment=0).std(TRAJECTORY, ddof=1) / np.sqrt(count) if many else np.nan
    units = [one.units for one in space]
    unit = units[0] if len(set(units)) == 1 else "of the field"
    forecast, actual = mean.isel(moment=4), mean.isel(moment=5)
    variances = mean.isel(moment=2) - forecast**2, mean.isel(moment=3) - actual**2
    variables: dict[str, tuple[Any, str, str]] = {
        "rmse": (rmse, "root mean square error of forecasts from the truth", unit),
        "rmse_standard_error": (of_square / (2 * rmse), "standard error of the RMSE over trajectories", unit),
        "correlation": (
            (mean.isel(moment=1) - forecast * actual) / np.sqrt(variances[0] * variances[1]),
            "correlation of forecast and truth over forecasts and places",
            "1",
        ),
        "deviation": (np.sqrt(variances[1].mean((MODEL, LEAD))), "standard deviation of the truth", unit),
    }
    result = xr.Dataset(
        {name: value.assign_attrs(long_name=label, units=one) for name, (value, label, one) in variables.items()}
    )
    return result.isel({FIELD: 0}, drop=True) if len(space) == 1 else result


def _label_climate(runs: Mapping[str, Array], space: StateSpace) -> xr.Dataset:
    """Make the result of `model_climate` from states (trajectory, time, N) of each model."""
    names, single = list(space.names), space.single
    parts = {name: space.slices[name] for name in names}
    first = next(iter(runs.values()))
    edges = np.linspace(-_BINS / 20, _BINS / 20, _BINS + 1)
    rows: dict[str, list[list[Any]]] = {
        name: [] for name in ("mean", "deviation", "mean_se", "deviation_se", "density")
    }
    for run in runs.values():
        each: dict[str, list[Any]] = {name: [] for name in rows}
        for part in parts.values():
            x, reference = run[..., part], first[..., part]
            means, stds = x.mean((1, 2)), x.std((1, 2))
            error = np.sqrt(max(1, len(x)))
            each["mean"].append(x.mean())
            each["deviation"].append(x.std())
            for name, values in (("mean_se", means), ("deviation_se", stds)):
                each[name].append(values.std(ddof=1) / error if len(x) > 1 else np.nan)
            scaled = (x - reference.mean()) / reference.std()
            each["density"].append(np.histogram(scaled, edges)[0] / scaled.size)
        for name, values in each.items():
            rows[name].append(values)
    dims = (MODEL, FIELD)
    long = {
        "mean": ("mean", "mean over places and times"),
        "deviation": ("deviation", "standard deviation over places and times"),
        "mean_standard_error": ("mean_se", "standard error of the mean, over trajectories"),
        "deviation_standard_error": ("deviation_se", "standard error of the deviation, over trajectories"),
    }
    unit = space.fields[0].units if len({one.units for one in space}) == 1 else "of the field"
    variables: dict[str, Any] = {
        name: (dims, rows[key], {"long_name": label, "units": unit}) for name, (key, label) in long.items()
    }
    variables["density"] = (
        (*dims, "value"),
        rows["density"],
        {"long_name": "share of values in a bin of a tenth of the first model's deviation", "units": "1"},
    )
    coordinates: dict[str, Any] = {
        MODEL: as_labels(runs),
        FIELD: as_labels(names),
        "value": (
            "value",
            (edges[:-1] + edges[1:]) / 2,
            {"long_name": "deviations from the first model's mean", "units": "1"},
        ),
    }
    if single is not None and single.geometry.is_ring:
        size = first.shape[-1]
        waves = [np.abs(np.fft.rfft(run, axis=-1) / size) ** 2 for run in runs.values()]
        power = np.stack([one.mean((0, 1)) for one in waves]) * 2
        if size % 2 == 0:
            power[:, -1] /= 2
        variables["power"] = (
            (MODEL, WAVENUMBER),
            power[:, 1:],
            {"long_name": "mean square in a wavenumber", "units": f"{single.units}^2" if single.units != "1" else "1"},
        )
        coordinates[WAVENUMBER] = (WAVENUMBER, np.arange(1, power.shape[1]), {"long_name": "wavenumber", "units": "1"})
    result = xr.Dataset(variables, coordinates)
    return result.isel({FIELD: 0}, drop=True) if len(names) == 1 else result
