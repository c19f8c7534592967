"""Scores of a run against the observations alone."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from torch import Tensor

from ..core.observing import ObservingSystem
from ..records.blocks import Setup, block
from ..records.schema import OBS, TIME, to_power
from .score_causes import Cause, Score, gaps, unobserved
from .score_fields import FIELD, OVER_ALL, TOTAL

if TYPE_CHECKING:
    from .score_pair import Pair


def against_observations(pair: Pair, dims: list[Hashable]) -> dict[str, Score]:
    """Mean and variance of innovations and residuals, and the variances of errors that follow from them.

    The run must have a forecast and an analysis.

    Parameters
    ----------
    pair : Pair
    dims : list of str
        Dims to average over: trajectory, time or both.
    """
    y, setup, run, scores = pair.labelled.observation, pair.labelled.setup, pair.run, _Scores(pair, dims)
    means: dict[str, xr.DataArray] = {}
    forecast, analysis = _in_observation_space(run["forecast"], setup), _in_observation_space(run["analysis"], setup)
    innovation, residual = y - forecast, y - analysis
    of_forecast = pair.gaps_of("forecast", lambda: (forecast, scores.observed))
    of_analysis = pair.gaps_of("analysis", lambda: (analysis, scores.observed))
    for name, value, label, cause in (
        ("innovation", innovation, "forecast", of_forecast),
        ("residual", residual, "analysis", of_analysis),
    ):
        mean = scores.mean(value)
        always = pair.record.of_observation if name == "innovation" else ()
        scores.add(f"{name}_mean", mean, f"mean of observation minus {label}", 1, cause, always=always)
        squares = scores.mean(value**2)
        means |= {name: squares, f"{name}_variance": squares - mean**2}
        scores.add(f"{name}_variance", means[f"{name}_variance"], f"variance of observation minus {label}", 2, cause)
    if "forecast_spread" in run and setup.observing.direct:
        squares = run["forecast_spread"] ** 2
        expected = scores.mean(squares + pair.record.error_variance)
        cause = pair.gaps_of("forecast_spread", lambda: (run["forecast_spread"], scores.observed))
        label = "forecast variance plus observation error variance"
        scores.add("innovation_variance_expected", expected, label, 2, cause)
        ratio = means["innovation_variance"] / expected
        scores.add("consistency", ratio, "innovation variance over its expected value", 0, of_forecast, cause)
        scores.add("forecast_variance", scores.mean(squares), "forecast variance of what is observed", 2, cause)
    used = scores.mean(pair.record.error_variance * xr.ones_like(y))
    scores.add("error_variance", used, "observation error variance in use", 2)
    diagnosed = scores.mean(innovation * residual)
    label = "mean of innovation times residual"
    scores.add("error_variance_diagnosed", diagnosed, label, 2, of_forecast, of_analysis)
    # (H x_a - H x_f) d = d^2 - (y - H x_a) d
    of_increments, label = means["innovation"] - diagnosed, "mean of observed increment times innovation"
    scores.add("forecast_variance_diagnosed", of_increments, label, 2, of_forecast, of_analysis)
    return scores.made


class _Scores:
    """Means over the observations, made into scores; one for each field if several fields are observed at their sites.

    Attributes
    ----------
    made : dict of str to Score
    observed : xarray.DataArray of bool, dims of the observations
    count : xarray.DataArray of int
        Number of observations in each mean.
    """

    def __init__(self, pair: Pair, dims: list[Hashable]) -> None:
        y, self.pair, self.means = pair.labelled.observation, pair, pair.means
        self.over = [*dims, *y.dims[2:]]
        self.by_field = self.means.several and pair.labelled.setup.observing.direct
        self.made: dict[str, Score] = {}
        self.observed = observed = y.notnull()
        self.count = count = self._total(observed)
        # A time or a field without an observation has no score. It needs no warning if others have a score.
        self.without = xr.zeros_like(count, dtype=bool) if TIME in dims else count == 0
        if self.by_field:
            self.without = self.without | ~self.means.each(lambda _, of_field: of_field.any(), observed)
        nothing = Cause(unobserved, lambda: (observed.any(y.dims[2:]),))
        infinite = Cause(
            gaps("the observations have infinite values", "expected numbers, and NaN where nothing is observed"),
            lambda: (xr.ufuncs.isinf(y).any(y.dims[2:]),),
        )
        self.causes = (pair.diverged, nothing, infinite)

    def _total(self, value: xr.DataArray) -> xr.DataArray:
        if not self.by_field:
            return value.sum(self.over, skipna=False)
        return self.means.each(lambda _, of_field: of_field.sum(self.over, skipna=False), value)

    def mean(self, value: xr.DataArray) -> xr.DataArray:
        """Mean over the observations. What is not observed is left out; where a run is lost, the mean is NaN."""
        return self._total(value.where(self.observed, 0.0)) / self.count.where(self.count > 0)

    def add(
        self, name: str, value: xr.DataArray, long_name: str, power: int, *causes: Cause, always: Sequence[Cause] = ()
    ) -> None:
        """Make a score of a mean, in the state's units to a power; for several fields also of the mean over fields."""
        units = to_power(self.means.units or "", power) if self.means.units or not power else None
        broken = ~xr.ufuncs.isfinite(value) & ~(self.without & self.observed.any())
        causes = (*self.causes, *causes)
        self.made[name] = Score(value, long_name, units, causes, always, broken)
        if self.by_field:
            fields = (self.count > 0).sum(FIELD)
            relative = (value / self.pair.scales**power).where(self.count > 0, 0.0).sum(FIELD, skipna=False)
            together = relative / fields.where(fields > 0)
            broken = ~xr.ufuncs.isfinite(together) & ~self.without.all(FIELD)
            self.made[name + TOTAL] = Score(together, f"{long_name}; {OVER_ALL}", "1", causes, broken=broken)


def _in_observation_space(states: xr.DataArray, setup: Setup) -> xr.DataArray:
    """H of labelled states, lazily; the states themselves if sites are observed."""
    if setup.observing.direct:
        return states
    dims, observing = setup.dynamics.dims, setup.observing
    # H may change in time: each block gets the positions of its times.
    index = xr.DataArray(np.arange(states.sizes[TIME]), dims=[TIME])
    observed: xr.DataArray = xr.apply_ufunc(
        _observe,
        states,
        index.chunk({TIME: states.chunksizes[TIME]}) if states.chunks is not None else index,
        kwargs={"observing": observing, "state_dims": len(dims)},
        input_core_dims=[dims, []],
        output_core_dims=[[OBS]],
        dask="parallelized",
        output_dtypes=[states.dtype],
        dask_gufunc_kwargs={"output_sizes": {OBS: observing.size(math.prod(setup.dynamics.shape))}},
    )
    return observed


@block
def _observe(states: Tensor, times: Tensor, observing: ObservingSystem, state_dims: int) -> Tensor:
    """H of states (trajectory, time, *state) at the positions `times` in time, shape (trajectory, time, P)."""
    return observing.during(times.flatten()).observe(states.flatten(-state_dims))
