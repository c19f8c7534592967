"""Points at which a network is studied: states of a truth, or forecasts of a run, with their memory and covariance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Unpack

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..core.checks import choice, integer, real_array, shown
from ..core.formats import data_format
from ..core.methods import DataAssimilationNetwork
from ..core.networks import AnalysisNetwork
from ..core.random import check_seed
from ..network import Network
from ..records.blocks import Setup, pick_device, tensor_to_array
from ..records.record import LabelledRecord, RecordWords, read
from ..records.runs import held_in, read_run
from ..records.schema import CHANNEL, TIME, TRAJECTORY, dual_of
from ..records.store import digest

INNOVATIONS = ("zero", "sampled", "run")
METHODS = ("autodiff", "regression")
MOST_SAMPLES = 10**7  # most samples at one state


@dataclass(frozen=True)
class EvaluationPoints:
    """Points at which a network is studied. Each point is a state, a projected innovation and a memory.

    Attributes
    ----------
    labelled : LabelledRecord
    network : Network
    x : xarray.DataArray, dims (trajectory, time, *state)
    memory : xarray.DataArray, dims (trajectory, time, channel, *state), or None
    covariance : xarray.DataArray, dims (trajectory, time, x_dual, *state), or None
        P_a that a filter beside the network carried at these points.
    steps : int
        Model steps of the interval before each point if the network rebuilds a covariance from the past; else 0.
    positions : numpy.ndarray of int
        Positions of the times in the record.
    innovation : {"zero", "sampled", "run"}
        The zeta of the points.
    background : Tensor, shape () or (N, N), or None
        Standard deviation of forecast errors, or a Cholesky factor of their covariance. Samples have these errors
        beside those of R.
    seed : int
        Key of the samples.
    device : str
    states_of : str
        Origin of the states, for the attribute `states_of`.
    """

    labelled: LabelledRecord
    network: Network
    x: xr.DataArray
    memory: xr.DataArray | None
    covariance: xr.DataArray | None
    steps: int
    positions: np.ndarray[Any, np.dtype[np.int64]]
    innovation: str
    background: Tensor | None
    seed: int
    device: str
    states_of: str

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes that say which states and innovations these are."""
        attributes: dict[str, Any] = {
            "network_digest": self.network.digest,
            "states_of": self.states_of,
            "states": self.count,
            "burn_in": int(self.positions[0]),
            "every": self.times.step,
            "innovation": self.innovation,
        }
        if self.background is not None:
            scalar = self.background.ndim == 0
            values = float(self.background) if scalar else digest(tensor_to_array(self.background))
            attributes["forecast_error"] = values
        return attributes

    @property
    def setup(self) -> Setup:
        """The record's dynamics, observing system, steps, labels and dtype."""
        return self.labelled.setup

    @property
    def times(self) -> slice:
        """Positions of the points' times in the record."""
        step = int(self.positions[1] - self.positions[0]) if len(self.positions) > 1 else 1
        return slice(int(self.positions[0]), int(self.positions[-1]) + 1, step)

    @property
    def sites(self) -> int:
        """Number N of components of the state."""
        return math.prod(self.setup.dynamics.shape)

    @property
    def count(self) -> int:
        """Number of states."""
        return self.x.sizes[TRAJECTORY] * self.x.sizes[TIME]

    @cached_property
    def method(self) -> DataAssimilationNetwork:
        """The network in float64, as a method on the record's dynamics; it tells the network's properties."""
        return self.network.method(torch.float64).bound(self.setup.dynamics)

    @property
    def module(self) -> AnalysisNetwork:
        """The network in float64."""
        return self.method.network

    def sample_count(self, samples: int | None) -> int:
        """Number of samples N_p of a regression.

        Raises
        ------
        ValueError
            If there are fewer samples than sampled directions plus one; the one is for the mean.
        """
        size = self.labelled.observation[0, 0].size
        rank = min(size, self.sites)
        if samples is None:
            return 4 * self.sites
        if samples < rank + 1:
            raise ValueError(
                f"samples={samples}: up to {rank} directions are sampled and the mean is subtracted: expected at "
                f"least {rank + 1} for a regression"
            )
        return samples


def read_points(
    ds: xr.Dataset,
    network: Network,
    *,
    run: xr.Dataset | None = None,
    innovation: str = "zero",
    forecast_error: Any = None,
    every: int = 1,
    burn_in: int = 0,
    seed: int = 0,
    device: str = "auto",
    needs: str = "the mean over states",
    differentiates: bool = True,
    **words: Unpack[RecordWords],
) -> EvaluationPoints:
    """Choose the points at which a network is studied, by the arguments of `gain`; no values are read.

    `needs` says in a message what the truth is needed for. Where the network is not to be differentiated, neither its
    memory nor its covariance is read.

    Raises
    ------
    TypeError
        If an argument is of another type than expected.
    ValueError
        If the record or the run lacks something or does not fit the network, or a number cannot be.
    """
    check_labelled("ds", ds, xr.Dataset)
    if not isinstance(network, Network):
        raise TypeError(f"network={shown(network)}: expected a Network, as train() and open_network() give")
    choice("innovation", innovation, INNOVATIONS)
    if run is not None:
        check_labelled("run", run, xr.Dataset)
    elif innovation == "run":
        raise ValueError("run=None: expected the run whose innovations are taken, as ds.dan.cycle(network) gives")
    if not isinstance(device, str):
        raise TypeError(f"device={shown(device)}: expected 'auto', or a device of torch such as 'cpu' or 'cuda'")
    every, burn_in = integer("every", every, least=1), integer("burn_in", burn_in, least=0)
    background, seed = _background(forecast_error), check_seed(seed)
    if network.ensemble:
        raise ValueError("derivatives are those of a network of one forecast; this one takes members")
    method = network.method(torch.float64)
    if differentiates and run is None and method.reads_covariance:
        raise ValueError(
            f"the network {method.network.name!r} analyses with a covariance that its forecast carries, and run=None: "
            "expected a run that keeps it, run=ds.dan.cycle(network, members=True); a network with past=36, as "
            "network.with_parameters(past=36) gives, makes it from the state alone"
        )
    labelled = read(ds, **words, needs_truth=needs if run is None else None)
    network.check(labelled.setup.dynamics)
    if differentiates:
        method.check_gains(labelled.setup.dynamics)
    cycles = labelled.observation.sizes[TIME]
    if burn_in >= cycles:
        raise ValueError(f"burn_in={burn_in}: expected fewer than the record's {cycles} cycles")
    later = slice(burn_in, None, every)
    x, memory, covariance = (
        None if one is None else one.isel({TIME: later})
        for one in _states(labelled, network, method, run, differentiates)
    )
    assert x is not None
    positions = np.arange(cycles)[later]
    return EvaluationPoints(
        labelled,
        network,
        x,
        memory,
        covariance,
        _interval(labelled.setup, positions) if differentiates and method.rebuilds_covariance else 0,
        positions,
        innovation,
        _factor(background, math.prod(labelled.setup.dynamics.shape)),
        seed,
        pick_device(device),
        "truth" if run is None else f"forecasts of {run.attrs.get('method', 'a run')}",
    )


def _states(
    labelled: LabelledRecord,
    network: Network,
    method: DataAssimilationNetwork,
    run: xr.Dataset | None,
    differentiates: bool,
) -> tuple[xr.DataArray, xr.DataArray | None, xr.DataArray | None]:
    """The truth's states; or a run's forecasts, with the memory and the covariance that the network had there."""
    if run is None:
        assert labelled.truth is not None
        return labelled.truth, None, None

    def kept(name: str, what: str, extra: dict[str, int]) -> xr.DataArray:
        if not held_in(labelled, run, [name]):
            raise ValueError(
                f"the run lacks the network's {what}, {name!r}; found {sorted(map(str, run.data_vars))}: make it with "
                "ds.dan.cycle(network, members=True)"
            )
        return read_run(labelled, run, [name], extra=extra)[name]

    if not differentiates:
        return read_run(labelled, run, ["forecast"])["forecast"], None, None
    dims, shape = labelled.setup.dynamics.dims, labelled.setup.dynamics.shape
    memory = kept("memory", "memory", {CHANNEL: network.memory}) if network.memory else None
    covariance = None
    if method.reads_covariance:
        covariance = kept("analysis_covariance", "covariance", {dual_of(dims): math.prod(shape)})
    return read_run(labelled, run, ["forecast"])["forecast"], memory, covariance


def _interval(setup: Setup, positions: np.ndarray[Any, np.dtype[np.int64]]) -> int:
    """Model steps of the interval before each time, which must be equal. The first time takes the interval after it.

    Raises
    ------
    ValueError
        If intervals differ, or there is a single time, which has no interval.
    """
    if len(setup.steps) < 2:
        raise ValueError(
            "the record has a single time, and the network rebuilds its covariance over intervals as long as the last "
            "one: expected at least two times"
        )
    steps = np.unique(setup.steps[np.maximum(positions, 1)])
    if len(steps) > 1:
        raise ValueError(
            f"the record has intervals of {steps.tolist()} model steps before the states that are looked at, and the "
            "network rebuilds its covariance over intervals as long as the last one: expected even intervals; take an "
            "even part of the record, ds.isel(time=slice(...)), or states after even ones with every= and burn_in="
        )
    return int(steps[0])


def check_labelled(label: str, value: Any, kind: type[xr.Dataset] | type[xr.DataArray]) -> None:
    """Refuse what is not of a class of xarray, and what a later xdan wrote.

    Raises
    ------
    TypeError, ValueError
    """
    if not isinstance(value, kind):
        raise TypeError(f"{label}={shown(value)}: expected an xarray {kind.__name__}")
    data_format(value.attrs, label)


def _background(forecast_error: Any) -> Tensor | None:
    """The standard deviation or the covariance of forecast errors, as a tensor."""
    if forecast_error is None:
        return None
    values = torch.as_tensor(real_array("forecast_error", forecast_error))
    if values.ndim == 0 and bool(values < 0):
        raise ValueError(f"forecast_error={float(values)}: expected a standard deviation, zero or positive")
    return values


def _factor(values: Tensor | None, sites: int) -> Tensor | None:
    """The standard deviation, or a Cholesky factor of the covariance."""
    if values is None or values.ndim == 0:
        return values
    if values.shape != (sites, sites):
        raise ValueError(
            f"forecast_error has shape {tuple(values.shape)}: expected a standard deviation, or a covariance "
            f"({sites}, {sites})"
        )
    factor, info = torch.linalg.cholesky_ex(values)
    if int(info):
        raise ValueError("forecast_error is not positive definite: expected a covariance matrix of full rank")
    lower: Tensor = factor
    return lower


def check_samples(samples: int | None, method: str) -> int | None:
    """Check the number of samples; None stands for the default, and for a method without samples.

    Raises
    ------
    TypeError, ValueError
        If `samples` is no number of samples, `method` is unknown, or the method takes no samples.
    """
    choice("method", method, METHODS)
    if samples is None:
        return None
    samples = integer("samples", samples, least=1, most=MOST_SAMPLES)
    if method == "autodiff":
        raise ValueError(f"samples={samples} go with method='regression': expected none for exact derivatives")
    return samples
