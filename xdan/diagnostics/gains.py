"""What a network has learned: analysis covariance, gain and marginal gain at given states, lazily."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from ..core.checks import choice, integer, switch
from ..core.networks import AnalysisNetwork
from ..core.sensitivity import (
    Points,
    analysis_covariance,
    composite_marginal_gain,
    marginal_gain,
    regressed_covariance,
    sites_that_matter,
)
from ..core.symmetry import Group
from ..network import Network
from ..records.schema import OBS, TIME, TRAJECTORY, XdanWarning, attributes, averaged_dims
from ..records.store import sealed
from .evaluation_points import INNOVATIONS, States, read_states
from .kernels import Batch, Kernel
from .symmetries import commuting, fitting_group

KINDS = {
    "mean": "symmetry-averaged marginal gain",
    "marginal": "marginal gain",
    "covariance": "analysis error covariance of the network",
    "kalman": "gain of the network",
}
METHODS = ("autodiff", "regression")
MOST_SAMPLES = 10**7  # at a state
_LARGE = 2**30  # bytes from which a lazy result warns
_COLUMNS_AT_ONCE = 480  # states times tangents in a pass: the working set stays in the cache


def gain(
    ds: xr.Dataset,
    network: Network,
    *,
    kind: str = "mean",
    method: str = "autodiff",
    dim: str | Sequence[str] | None = None,
    run: xr.Dataset | None = None,
    innovation: str = "zero",
    group: Group | None = None,
    reference: int | None = None,
    all_sites: bool | None = None,
    samples: int | None = None,
    forecast_error: Any = None,
    every: int = 1,
    burn_in: int = 0,
    seed: int = 0,
    device: str = "auto",
    **roles: Any,
) -> xr.DataArray:
    """Derivatives of a network at the truth's states, or at a run's forecasts, lazily.

    The analysis covariance P_a[i, j] = d a_i / d zeta_j is how the network spreads a projected innovation at site j
    (Eq. 5); the gain is K = P_a H^T R^-1. The marginal gain Gamma[i, j, l] = d^2 a_i / (dx_l dzeta_j) is how that
    changes with the forecast at site l (Eq. 10). Averaged over the experiment's symmetries with l carried to one
    reference site r it is Omega_r[i, j] (Eq. G2); Gamma, of N^3 numbers a state, is then never formed.

    Parameters
    ----------
    ds : xarray.Dataset
        Twin or record. Its truth is where derivatives are taken, unless a run is given.
    network : Network
    kind : {"mean", "marginal", "covariance", "kalman"}
        Omega_r, Gamma, P_a or K.
    method : {"autodiff", "regression"}
        Exact derivatives, or slopes in samples of zeta: of the increment (P_a and K), of its derivative by x_l
        (Omega_r and Gamma, Eq. H1 to H4).
    dim : str or sequence of str, optional
        What of `trajectory` and `time` to average over: both for "mean", none otherwise.
    run : xarray.Dataset, optional
        Of `cycle(network)`; its forecasts are the states. With a network with memory it must hold the memory,
        `cycle(network, members=True)`; at the truth's states memory is taken as empty.
    innovation : {"zero", "sampled", "run"}
        Where in zeta the exact derivatives are taken: at 0 (Gamma-bar, Eq. 11), at a draw for every state
        (Gamma-tilde, Eq. 14), at the run's own (Gamma-hat, Eq. D2).
    group : xdan.Group, optional
        Symmetries to average over; those found by `symmetry_group` by default.
    reference : int, optional
        r, the middle site by default.
    all_sites : bool, optional
        Average over every site that the group carries r to, in each state, at as many times the cost. By default only
        where the network does not commute with the group; otherwise l = r alone has the same mean.
    samples : int, optional
        N_p of the regression; 4 N by default.
    forecast_error : float or array, shape (N, N), optional
        Deviation or covariance P_f of forecast errors: samples then have the covariance H^T R^-1 (R + H P_f H^T) R^-1
        H, without it H^T R^-1 H (App. H).
    every : int
        Take every so many-th time.
    burn_in : int
        Leading times to leave out.
    seed : int
        Keys the samples.
    device : str
        "auto" takes the GPU where there is one.
    **roles
        `dynamics`, `truth`, `observation`, `observation_error`, `operator` as for `cycle`.

    Returns
    -------
    xarray.DataArray
        Dask-backed, with the dims that are not averaged over, then (i, j), (i, j, l) for Gamma, (i, obs) for K where
        there is an operator. For states of several dims i, j and l count the flattened sites.

    Raises
    ------
    TypeError
        If an argument is of another type than expected.
    ValueError
        For unknown kinds, sites or dims; a group that does not fit; too few samples; before anything is computed. For
        states that are not finite, when they are read.

    Warns
    -----
    XdanWarning
        Where the result is larger than 1 GiB.

    References
    ----------
    Bocquet et al., Eq. 5 to 15 and App. C to H. Regression for P_a: Bocquet et al. (2024), doi:10.1063/5.0230837.
    """
    choice("kind", kind, KINDS)
    choice("innovation", innovation, INNOVATIONS)
    samples = check_samples(samples, method)
    all_sites = None if all_sites is None else switch("all_sites", all_sites)
    reference = None if reference is None else integer("reference", reference, least=0)
    if method == "autodiff" and forecast_error is not None and innovation != "sampled":
        raise ValueError(
            f"forecast_error= widens samples; with innovation={innovation!r} and method='autodiff' there are none: "
            "expected innovation='sampled' or method='regression'"
        )
    averaging = {"group": group, "reference": reference, "all_sites": all_sites}
    if kind != "mean" and (asked := [name for name, value in averaging.items() if value is not None]):
        raise ValueError(f"{asked} go with the symmetry average: expected kind='mean', not kind={kind!r}")
    over = _dims(dim, kind)
    states = read_states(
        ds,
        network,
        run=run,
        innovation=innovation,
        forecast_error=forecast_error,
        every=every,
        burn_in=burn_in,
        seed=seed,
        device=device,
        needs=f"gain(kind={kind!r}) without run=",
        **roles,
    )
    regresses = method == "regression"
    if regresses and innovation != "zero":
        raise ValueError(
            f"innovation={innovation!r}: a regression is over samples about zero; expected method='autodiff'"
        )
    count = sample_count(samples, states) if regresses else None
    sites = states.sites
    square = (sites, sites)
    kernel: Kernel
    more: dict[str, Any] = {"method": method}
    if kind == "mean":
        kernel, cost, group, reference = _symmetry_kernel(states, group, reference, all_sites, count)
        more |= {"group": repr(group), "group_size": len(group), "reference": reference}
        more |= {"sites_differentiated": len({int(g[reference]) for g in kernel.permutations})}
        tail: tuple[int, ...] = square
    elif kind == "marginal":
        kernel, cost, tail = MarginalGain(tuple(range(sites)), count), sites, (*square, sites)
    else:
        size = states.labelled.observation[0, 0].size if kind == "kalman" else sites
        kernel, cost, tail = Covariance(kind == "kalman", count), count or sites, (sites, size)
    found = states.mean(
        kernel, tail, over, at_once=max(1, _COLUMNS_AT_ONCE // (count or cost)), observed=regresses or kind == "kalman"
    )
    result = _label(found, states, over, tail, kind)
    result.attrs |= states.about | more
    if regresses:
        result.attrs |= {"innovation": "sampled", "samples": count}
    if result.attrs["innovation"] == "sampled":
        result.attrs["seed"] = states.seed
    if result.nbytes > _LARGE:
        warnings.warn(
            f"this lazy {KINDS[kind]} has {result.nbytes / 2**30:.1f} GiB: take fewer states, with every= or of the "
            "record (whole blocks are computed, however few of their states are selected after), average with dim=, "
            "or write it with to_zarr; kind='mean' never forms it",
            XdanWarning,
            stacklevel=2,
        )
    return result


@dataclass(frozen=True)
class Covariance:
    """Kernel of P_a or of K, shape (B, N, N) or (B, N, P)."""

    to_gain: bool
    samples: int | None

    def __call__(self, network: AnalysisNetwork, batch: Batch) -> Tensor:
        """Compute."""
        if self.samples is None:
            covariance = analysis_covariance(network, batch.points)
        else:
            covariance = regressed_covariance(network, batch.points, batch.samples(self.samples))
        return covariance @ _projection(batch) if self.to_gain else covariance


def _projection(batch: Batch) -> Tensor:
    """H^T R^-1 of every state, shape (B, N, P)."""
    assert batch.observed is not None
    states, size = batch.observed.shape
    unit = torch.eye(size, dtype=batch.points.x.dtype, device=batch.points.x.device).repeat(states, 1)
    x, observed = batch.points.x.repeat_interleave(size, 0), batch.observed.repeat_interleave(size, 0)
    columns: Tensor = batch.observing.repeat(size).project_innovation(unit, observed, x).unflatten(0, (states, size)).mT
    return columns


@dataclass(frozen=True)
class MarginalGain:
    """Kernel of Gamma at some sites l, shape (B, N, N, len(sites))."""

    sites: tuple[int, ...]
    samples: int | None

    def __call__(self, network: AnalysisNetwork, batch: Batch) -> Tensor:
        """Compute."""
        samples = None if self.samples is None else batch.samples(self.samples)
        return torch.stack([_at_site(network, batch.points, site, samples) for site in self.sites], -1)


@dataclass(frozen=True)
class SymmetryAverage:
    """Kernel of Omega_r, one Gamma[:, :, g(r)] at a time, shape (B, N, N).

    Attributes
    ----------
    permutations : tuple of Tensor
        Elements g of the group, those with the same g(r) side by side; the identity alone where the network commutes
        with all.
    """

    permutations: tuple[Tensor, ...]
    reference: int
    samples: int | None

    def __call__(self, network: AnalysisNetwork, batch: Batch) -> Tensor:
        """Compute."""
        x = batch.points.x
        samples = None if self.samples is None else batch.samples(self.samples)
        total = x.new_zeros(*x.shape, x.shape[1])
        last, gamma = -1, total
        for permutation in self.permutations:
            g = permutation.to(x.device)
            site = int(g[self.reference])
            if site != last:  # one site's gain at a time: all of them are the tensor that is not formed
                last, gamma = site, _at_site(network, batch.points, site, samples)
            total += gamma[:, g][:, :, g]
        return total / len(self.permutations)


def _at_site(network: AnalysisNetwork, points: Points, site: int, samples: Tensor | None) -> Tensor:
    if samples is None:
        return marginal_gain(network, points, site)
    return composite_marginal_gain(network, points, samples, site)


def _symmetry_kernel(
    states: States, group: Group | None, reference: int | None, all_sites: bool | None, samples: int | None
) -> tuple[SymmetryAverage, int, Group, int]:
    sites = states.sites
    reference = sites // 2 if reference is None else reference
    if reference >= sites:
        raise ValueError(f"reference={reference}: expected a site from 0 to {sites - 1}")
    group = fitting_group(states, group)
    if all_sites is None:
        all_sites = not commuting(states.module, group)
    elements = range(len(group)) if all_sites else [0]
    # The identity comes first in every group.
    permutations = sorted((group.permutation(index) for index in elements), key=lambda g: int(g[reference]))
    kernel = SymmetryAverage(tuple(permutations), reference, samples)
    return kernel, sites_that_matter(states.module, sites), group, reference


def check_samples(samples: int | None, method: str) -> int | None:
    """Take the number of samples of a method, None where it takes none or by default.

    Raises
    ------
    TypeError, ValueError
        For what is no number of samples or no method, or a number that goes with the other method.
    """
    choice("method", method, METHODS)
    if samples is None:
        return None
    samples = integer("samples", samples, least=1, most=MOST_SAMPLES)
    if method == "autodiff":
        raise ValueError(f"samples={samples} go with method='regression': expected none for exact derivatives")
    return samples


def sample_count(samples: int | None, states: States) -> int:
    """N_p of a regression.

    Raises
    ------
    ValueError
        If there are fewer than the directions that are sampled and one, for the mean.
    """
    size = states.labelled.observation[0, 0].size
    rank = min(size, states.sites)
    if samples is None:
        return 4 * states.sites
    if samples < rank + 1:
        raise ValueError(
            f"samples={samples}: up to {rank} directions are sampled and the mean is subtracted: expected at "
            f"least {rank + 1} for a regression"
        )
    return samples


def _dims(dim: str | Sequence[str] | None, kind: str) -> list[str]:
    if dim is None:
        return [TRAJECTORY, TIME] if kind == "mean" else []
    return averaged_dims(dim)


def _label(found: Any, states: States, over: Sequence[str], tail: Sequence[int], kind: str) -> xr.DataArray:
    """Attach dims, coordinates and units to what was computed for i, j and l."""
    dynamics, setup = states.setup.dynamics, states.setup
    dims: list[str] = [d for d in (TRAJECTORY, TIME) if d not in over]
    factors = ["i", "j", "l"][: len(tail)]
    if kind == "kalman" and setup.observing.operator is not None:
        factors[1] = OBS
    coordinates: dict[str, Any] = {d: states.x[d] for d in dims}
    for factor, size in zip(factors, tail, strict=True):
        if size == states.sites and factor != OBS:
            coordinates |= site_labels(dynamics, factor)
    units = dynamics.units
    powers = {"covariance": 2, "marginal": 1, "mean": 1, "kalman": 0}[kind]
    spelled = "1" if units == "1" or not powers else units if powers == 1 else f"({units}){powers}"
    about = attributes(dynamics, long_name=KINDS[kind], units=spelled)
    result = xr.DataArray(found, coordinates, [*dims, *factors], _kind_name(kind), about)
    return sealed(states.labelled.as_given(result))


def _kind_name(kind: str) -> str:
    """Name of the variable of a kind."""
    return {"covariance": "analysis_covariance", "kalman": "gain"}.get(kind, "marginal_gain")


def site_labels(dynamics: Any, factor: str) -> dict[str, Any]:
    """Coordinates of a factor: the state's own, or for several dims the sites' numbers with a label from each dim."""
    dims, shape = dynamics.dims, dynamics.shape
    if len(dims) == 1:
        return {factor: (factor, list(dynamics.coordinates[dims[0]].values))}
    number = torch.arange(math.prod(shape)).reshape(shape)
    found: dict[str, Any] = {factor: (factor, number.flatten().tolist())}
    for axis, dim in enumerate(dims):
        index = (number // math.prod(shape[axis + 1 :])) % shape[axis]
        values = dynamics.coordinates[dim].values
        found[f"{factor}_{dim}"] = (factor, [values[k] for k in index.flatten().tolist()])
    return found
