"""What a network has learned: the symmetry-averaged mean marginal gain, lazily."""

from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import numpy as np
import torch
import xarray as xr

from .blocks import Array, array_to_tensor, in_block, pick_device, tensor_to_array
from .core.dynamics import Dynamics
from .core.sensitivity import symmetry_average
from .experiment import read
from .network import Network
from .schema import TIME, TRAJECTORY

_STATES_AT_ONCE = 16


def gain(
    ds: xr.Dataset,
    network: Network,
    *,
    kind: str = "mean",
    reference: int | None = None,
    all_sites: bool = False,
    every: int = 1,
    device: str = "auto",
    dynamics: Dynamics | None = None,
    truth: str | None = None,
) -> xr.DataArray:
    """Symmetry-averaged mean marginal gain over the truth's states, lazily.

    The marginal gain Gamma[i, j, l] says how the response of site i to a projected innovation at site j changes with
    the forecast at site l. On a ring it is averaged after turning every l to one reference site r; the mean Gamma, of
    N^3 numbers, is never formed.

    Parameters
    ----------
    ds : xarray.Dataset
        Twin or record with truth, whose states are averaged over.
    network : Network
        One that commutes with turning the ring, as every circular network does. Its memory is taken as empty.
    kind : {"mean"}
        What to average to.
    reference : int, optional
        r, the middle site by default.
    all_sites : bool
        Average over all N sites l of every state, at N times the cost. Otherwise over l = r alone, which has the same
        mean, since no site is special.
    every : int
        Take every so many-th time.
    device : str
        "auto" takes the GPU where there is one.
    dynamics, truth
        As for `cycle`.

    Returns
    -------
    xarray.DataArray, dims (i, j)
        Dask-backed; in increments per unit of state and of projected innovation.

    Raises
    ------
    ValueError
        For another kind, a reference off the ring, or dims that are not the network's.

    References
    ----------
    Bocquet et al., Eq. 10 and 11, App. F and G (Eq. G2).
    """
    if kind != "mean":
        raise ValueError(f"kind={kind!r} is unknown; known is 'mean'")
    if every < 1:
        raise ValueError(f"every={every}: expected at least 1")
    experiment = read(ds, dynamics=dynamics, truth=truth, needs_truth="the mean over states")
    assert experiment.truth is not None
    network.check(experiment)
    if network.ensemble:
        raise ValueError("the marginal gain is that of a network of one forecast; this one takes members")
    frame, (dim,) = experiment.frame, experiment.frame.dynamics.dims
    sites = frame.dynamics.shape[0]
    reference = sites // 2 if reference is None else reference
    if not 0 <= reference < sites:
        raise ValueError(f"reference={reference}: expected a site from 0 to {sites - 1}")
    device = pick_device(device)
    states = experiment.truth.isel({TIME: slice(None, None, every)})
    lanes = list(range(sites)) if all_sites else [reference]
    block = dask.delayed(_block_sum, pure=False)
    pieces = [
        da.from_delayed(block(part, network, reference, lanes, frame.dtype, device), (sites, sites), frame.dtype)
        for part in states.chunk().data.to_delayed().ravel()
    ]
    mean = da.stack(pieces).sum(0) / (states.sizes[TRAJECTORY] * states.sizes[TIME])
    labels = frame.dynamics.coordinates[dim].values
    units = frame.dynamics.units
    attributes: dict[str, Any] = {
        "long_name": "symmetry-averaged mean marginal gain",
        "units": units if units == "1" else f"({units})2",
        "reference": reference,
        "states": states.sizes[TRAJECTORY] * states.sizes[TIME],
        "network_digest": network.digest,
    }
    coordinates = {"i": list(labels), "j": list(labels)}
    return xr.DataArray(mean, coordinates, ("i", "j"), "marginal_gain", attributes)


def _block_sum(
    states: Array, network: Network, reference: int, sites: list[int], dtype: np.dtype[Any], device: str
) -> Array:
    """Sum over the states of one block, a few at a time so that memory stays flat."""
    in_block()
    x = array_to_tensor(states, dtype, device).flatten(0, 1)
    if not bool(torch.isfinite(x).all()):
        raise ValueError("the truth holds values that are not finite: no gain can be computed there; leave them out")
    module = network.method(x.dtype, device).network
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    with torch.no_grad():
        for part in x.split(_STATES_AT_ONCE):
            total += len(part) * symmetry_average(module, part, reference, sites)
    return tensor_to_array(total.to(x.dtype))
