"""Symmetries of an experiment and of a network, and averages of the marginal gain over symmetries."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Unpack

import dask.array as da
import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..core.checks import integer, real, shown
from ..core.dynamics import Dynamics, dynamics_from_json
from ..core.keywords import checks_keywords
from ..core.observing import ObservingSystem
from ..core.random import Purpose, normal
from ..core.sensitivity import Points, increment
from ..core.symmetry import Group, commutes, invariant_group, spread_out
from ..core.tangent import identity_directions
from ..network import Network
from ..records.blocks import array_to_tensor, block, tensor_to_array
from ..records.record import LabelledRecord, RecordWords, read
from ..records.schema import TIME, TRAJECTORY, reference_site
from .evaluation import evaluate
from .evaluation_points import EvaluationPoints, check_labelled, read_points
from .kernels import EquivarianceKernel
from .wording import shares_points

# Number of elements of a group with which a network is tried; fewer if each runs the model along a past.
_TRIED, _TRIED_REBUILT = 64, 8
_LEADING = 100  # number of times that tell which sites are observed, if no rule tells it
# Largest relative difference of analyses that counts as rounding. Rounding grows if the model runs backward.
_SAME, _SAME_REBUILT = 1e-10, 1e-6


@checks_keywords
@shares_points
def symmetry_group(ds: xr.Dataset, **words: Unpack[RecordWords]) -> Group:
    """Find the permutations of the state's sites under which an experiment does not change.

    These permutations commute with the dynamics and do not change H^T R^-1 H. For Lorenz-96 that is observed at every
    site or at random sites, they are all turns of the ring. If every other site is observed, they are the turns by
    two. On a sphere they are the rotations about the axis. The function tries the products of `StateSpace.symmetries`:
    shifts along periodic dims, reflections, and exchanges of dims, components and fields. If a model names its dims but
    no geometry, every shift along every dim is tried.

    Parameters
    ----------
    ds : xarray.Dataset
        Twin or record. If its attributes say that observed sites are random, all sites count as equally likely.
    {words}

    Returns
    -------
    Group
        The group of these permutations.

    Raises
    ------
    ValueError
        If the observed sites change in time, and the attributes do not state the rule.

    References
    ----------
    Bocquet et al., Sect. 3.2.2 and App. E.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=3, observe=xdan.Sites.every(2))
    >>> ds.dan.symmetry_group()  # turns by two
    <xdan.Group: turns of the ring by 2, 4 elements on 8 sites>
    """
    check_labelled("ds", ds, xr.Dataset)
    return find_group(read(ds, **words))


def find_group(labelled: LabelledRecord) -> Group:
    """Find the group under which the experiment of a record does not change: the result of `symmetry_group`."""
    dynamics = labelled.setup.dynamics
    labels = torch.arange(2)
    noise = normal(0, Purpose.SENSITIVITY, labels, labels[:1], math.prod(dynamics.shape))[:, 0]
    x = dynamics.rest(noise.reshape(2, *dynamics.shape)).flatten(1)
    observed = _observed(labelled)
    if observed is None:
        raise ValueError(
            "the sites observed change in time, and no attribute 'observing' states the rule: pass group=, for example "
            f"xdan.Group.ring({x.shape[1]})"
        )

    def step(z: Tensor) -> Tensor:
        return dynamics.one_step(z.reshape(-1, *dynamics.shape)).flatten(1)

    with torch.no_grad():
        information = _information(labelled.setup.observing, observed, x)

        def unchanged(g: Tensor) -> bool:
            if information.ndim < 3:  # a diagonal does not depend on the state
                same = torch.allclose(information, information[..., g], rtol=1e-9, atol=1e-12)
                return same and commutes(step, x, g)
            if not commutes(step, x, g):
                return False
            moved = _information(labelled.setup.observing, observed, x[:, g])
            return bool(torch.allclose(moved, information[:, g][:, :, g], rtol=1e-9, atol=1e-12))

        return invariant_group(dynamics.space.symmetries(), x.shape[1], unchanged)


def _information(observing: ObservingSystem, observed: Tensor, x: Tensor) -> Tensor:
    """H^T R^-1 H for the observed components (P,), at states (B, N), shape (B * times, N, N).

    The times are those at which R differs, and some times of an H that changes in time. If H^T R^-1 H is diagonal, the
    result is its diagonal, shape (N,) or (times, N).
    """
    states, sites = x.shape
    if observing.direct and observing.std is not None:
        variance = observing.error_variance()
        return observed / variance.expand(*variance.shape[:-1], sites)
    repeated, projected = x.repeat_interleave(sites, 0), []
    for now in (observing.at(k) for k in observing.telling_times()):
        columns = now.tangent(x, identity_directions(x)).flatten(0, 1)
        projected.append(now.project_innovation(columns, observed.bool().expand(columns.shape), repeated))
    return torch.cat([information.unflatten(0, (states, sites)) for information in projected])


def fitting_group(points: EvaluationPoints, group: Group | None) -> Group:
    """Check a group on the sites of some points. By default take the group under which the experiment does not change.

    Raises
    ------
    ValueError
        If the group belongs to another number of sites.
    """
    if group is None:
        return find_group(points.labelled)
    if not isinstance(group, Group):
        raise TypeError(f"group={shown(group)}: expected an xdan.Group, such as xdan.Group.ring({points.sites})")
    if group.sites != points.sites:
        raise ValueError(f"group={group!r}: expected one on the state's {points.sites} sites")
    return group


def _observed(labelled: LabelledRecord) -> Tensor | None:
    """Which observations are made, 1 or 0, shape (P,); all are 1 if all are equally likely.

    None if they change in time and the attributes do not state the rule.
    """
    y = labelled.observation
    size = math.prod(y.shape[2:])
    rule = labelled.sites
    if rule is not None and rule.kind == "random":
        return torch.ones(size).double()
    if rule is not None and y.chunks is not None:  # lazy data are not read here
        zero = torch.zeros(1, dtype=torch.int64)
        return rule.mask(size, zero, zero, 0)[0, 0].double()
    leading = y.isel({TRAJECTORY: 0, TIME: slice(0, _LEADING)}).notnull()
    observed = leading.compute(scheduler="synchronous").to_numpy().reshape(-1, size)
    if not (observed == observed[0]).all():
        return None
    return array_to_tensor(observed[0], np.dtype(np.float64))


def commuting(points: EvaluationPoints, group: Group) -> bool:
    """Whether the network of the points commutes with a group, tried in float64 at some random states.

    A carried covariance of a filter beside the network is random here, and is permuted with the state. A rebuilt
    covariance is computed with the model and the sites that the record observes, which are not permuted: a group that
    moves the observed sites does not commute. If these sites change in time by an unknown rule, the group counts as
    one that does not commute.
    """
    network, method, setup = points.module, points.method, points.setup
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(2, *shape, group.sites, generator=generator, dtype=torch.float64)

    scales = (network.state_mean, network.state_std, network.error_std)
    mean, std, error_std = (network.per_component(scale) for scale in scales)
    state = Points(mean + std * draw(), draw() / error_std, draw(network.memory) if network.memory else None)
    root = error_std * draw(group.sites) if method.reads_covariance else None
    observed = _observed(points.labelled) if method.rebuilds_covariance else None
    if method.rebuilds_covariance and observed is None:
        return False

    def analysis(g: Tensor) -> Tensor:
        at, rows = state.permuted(g), None if root is None else root[..., g]
        carried = None if rows is None else rows.mT @ rows / group.sites
        seen = None if observed is None else observed.bool().expand(2, -1)
        covariance = method.covariance_at(at.x, carried, seen, setup.observing.at(0), points.steps)
        return at.x + increment(network, replace(at, covariance=covariance))

    with torch.no_grad():
        whole = analysis(torch.arange(group.sites))
        same, most = (_SAME_REBUILT, _TRIED_REBUILT) if method.rebuilds_covariance else (_SAME, _TRIED)
        tolerance = same * float(1.0 + whole.abs().max())
        return all(
            bool((analysis(g := group.permutation(index)) - whole[:, g]).abs().max() <= tolerance)
            for index in _some(group, most)
        )


def _some(group: Group, most: int) -> list[int]:
    """Indices of at most `most` elements: the first, the second, which may generate all, and others spread out."""
    if len(group) <= most:
        return list(range(len(group)))
    return sorted({0, 1, *np.linspace(2, len(group) - 1, most - 2).astype(int).tolist()})


@checks_keywords
@shares_points
def equivariance_error(
    ds: xr.Dataset,
    network: Network,
    *,
    group: Group | None = None,
    elements: int = 16,
    every: int = 1,
    burn_in: int = 0,
    run: xr.Dataset | None = None,
    innovation: str = "zero",
    seed: int = 0,
    device: str = "auto",
    **words: Unpack[RecordWords],
) -> xr.DataArray:
    """Compare the marginal gain at a transformed state with the transformed marginal gain, lazily.

    Gamma(g x, g zeta)[i, j, l] should be Gamma(x, zeta)[g(i), g(j), g(l)], Eq. 16. Both are compared along one random
    direction of zeta and one of x for each state. The mean square over directions is that of the tensor, so that no
    Gamma is formed.

    Parameters
    ----------
    {points}
    group : Group, optional
        The symmetries; by default the group of `symmetry_group`.
    elements : int
        Number of elements that are tried, spread over the group.
    {every}
    {burn_in}
    {run}
    {innovation}
    seed : int
        Key of the random directions.
    {device}
    {words}

    Returns
    -------
    xarray.DataArray, dims (element,)
        The root mean square difference divided by the root mean square. It is 0 for an equivariant network, and nearly
        1.4 for a network without the symmetry. The coordinate `image` is the site to which an element carries site 0.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> net = ds.dan.train(xdan.ResidualCNN(filters=4, blocks=1), steps=4, window=4, batch=2, progress=False)
    >>> error = ds.dan.equivariance_error(net, elements=2, burn_in=19)
    >>> bool((error < 1e-3).all())  # a circular CNN turns with the ring
    True
    """
    elements = integer("elements", elements, least=1)
    points = read_points(
        ds, network, run=run, innovation=innovation, every=every, burn_in=burn_in, seed=seed, device=device, **words
    )
    group = fitting_group(points, group)
    chosen = _some(group, max(elements, 3))
    kernel = EquivarianceKernel(tuple(group.permutation(index) for index in chosen))
    mean = evaluate(points, kernel, (len(chosen), 2), over=(TRAJECTORY, TIME), at_once=64)
    images = [int(g[0]) for g in kernel.permutations]
    attributes = {"long_name": "relative error of the marginal gain's equivariance", "units": "1", "group": repr(group)}
    attributes |= points.attributes
    coordinates = {"element": chosen, "image": ("element", images)}
    return xr.DataArray(da.sqrt(mean[:, 0] / mean[:, 1]), coordinates, ("element",), "equivariance_error", attributes)


@checks_keywords
def reconstruct_gain(*averages: xr.DataArray, group: Group) -> xr.DataArray:
    """Reconstruct the mean marginal gain along i, j and l from its symmetry averages, Eq. F5.

    Parameters
    ----------
    *averages : xarray.DataArray, dims (..., i, j)
        Results of `gain(kind="mean")`: one for a reference site in each orbit of the group.
    group : Group
        The group that they were averaged over.

    Returns
    -------
    xarray.DataArray, dims (..., i, j, l)
        The mean marginal gain, in the units of the averages.

    Raises
    ------
    ValueError
        If an orbit has no average; the message names its sites. If the averages are over another group, or do not
        belong together.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> net = ds.dan.train(xdan.ResidualCNN(filters=4, blocks=1), steps=4, window=4, batch=2, progress=False)
    >>> group = xdan.Group.ring(8)
    >>> omega = ds.dan.gain(net, group=group, burn_in=19)
    >>> dict(xdan.reconstruct_gain(omega, group=group).sizes)
    {'i': 8, 'j': 8, 'l': 8}
    """
    if not isinstance(group, Group):
        raise TypeError(f"group={shown(group)}: expected the xdan.Group that the averages are over")
    if not averages:
        raise ValueError("averages=(): expected at least one, as ds.dan.gain(net) gives")
    for average in averages:
        check_labelled("averages", average, xr.DataArray)
        reference_site(average)
        if average.sizes["i"] != group.sites:
            raise ValueError(f"group={group!r}: expected one on the {average.sizes['i']} sites of the averages")
    reached = {site for average in averages for site in group.images(reference_site(average))}
    for name, expected in (("group", {repr(group)}), ("network_digest", set()), ("states", set())):
        if len(values := expected | {average.attrs[name] for average in averages if name in average.attrs}) > 1:
            raise ValueError(
                f"{name} differs: {sorted(values)}. Expected averages over the group that is given, of one network at "
                "the same states"
            )
    if missing := sorted(set(range(group.sites)) - reached):
        raise ValueError(
            f"sites {missing[:8]} are carried to none of the references "
            f"{[int(a.attrs['reference']) for a in averages]}: expected an average with reference={missing[0]} too"
        )
    total: xr.DataArray | None = None
    for average in averages:
        spread = xr.apply_ufunc(
            block(spread_out),
            average,
            kwargs={"group": group, "reference": reference_site(average)},
            input_core_dims=[["i", "j"]],
            output_core_dims=[["i", "j", "l"]],
            dask="parallelized",
            output_dtypes=[average.dtype],
            dask_gufunc_kwargs={"output_sizes": {"l": group.sites}},
        )
        total = spread if total is None else total.fillna(spread)
    assert total is not None
    total = total.assign_coords(l=averages[0]["i"].values)
    total.attrs = {k: v for k, v in averages[0].attrs.items() if k != "reference"} | {"long_name": "mean marginal gain"}
    return total


@checks_keywords
def pattern_extent(omega: xr.DataArray, *, share: float = 0.95, dynamics: Dynamics | None = None) -> xr.Dataset:
    """Compute how far from the reference site a symmetry average reaches.

    Parameters
    ----------
    omega : xarray.DataArray, dims (i, j)
        Result of `gain(kind="mean")`.
    share : float
        Share of the mass within the radius, between 0 and 1. The mass is the sum of absolute values.
    dynamics : Dynamics, optional
        The dynamics that tells the distances. By default the attributes of `omega` name a registered one.

    Returns
    -------
    xarray.Dataset
        Along `distance`, the larger one of d(i, r) and d(j, r): `mass`, the share of the mass at this distance;
        `mass_within`, the share up to this distance, which reaches 1; and `largest`, the largest absolute value at this
        distance. `radius` is the smallest distance within which `share` of the mass lies.

    Raises
    ------
    ValueError
        If the dynamics knows no distances, or `share` is not between 0 and 1.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> net = ds.dan.train(xdan.ResidualCNN(filters=4, blocks=1), steps=4, window=4, batch=2, progress=False)
    >>> extent = xdan.pattern_extent(ds.dan.gain(net, burn_in=19).compute())
    >>> extent.distance.values  # on a ring of 8 sites
    array([0., 1., 2., 3., 4.])
    """
    share = real("share", share, above=0, below=1)
    reference = reference_site(omega, "omega")
    if dynamics is not None and not isinstance(dynamics, Dynamics):
        raise TypeError(f"dynamics={shown(dynamics)}: expected an xdan Dynamics such as xdan.Lorenz96()")
    if dynamics is None and not isinstance(omega.attrs.get("dynamics"), str):
        raise ValueError("the attributes of omega name no dynamics: expected dynamics=, for example xdan.Lorenz96()")
    model = dynamics if dynamics is not None else dynamics_from_json(json.loads(omega.attrs["dynamics"]))
    if len(omega["i"]) != math.prod(model.shape):
        raise ValueError(f"dynamics={model!r}: expected one of the {len(omega['i'])} sites that omega has")
    from_reference = model.distances(torch.tensor([reference]))
    if from_reference is None:
        raise ValueError(
            f"the dynamics {model.label!r} knows no distances: expected one that does; give CustomDynamics distance="
        )
    away = tensor_to_array(from_reference[0])
    farther = np.maximum(away[:, None], away[None, :])
    values = np.abs(omega.transpose("i", "j").to_numpy())
    distances, place = np.unique(farther, return_inverse=True)
    mass = np.bincount(place.ravel(), values.ravel(), len(distances)) / values.sum()
    largest = np.zeros(len(distances))
    np.maximum.at(largest, place.ravel(), values.ravel())
    within = np.cumsum(mass)
    variables = {
        "mass": ("distance", mass, {"long_name": "share of absolute values at this distance", "units": "1"}),
        "mass_within": ("distance", within, {"long_name": "share of absolute values up to it", "units": "1"}),
        "largest": ("distance", largest, {"long_name": "largest absolute value", "units": omega.attrs["units"]}),
        "radius": ((), distances[int(np.searchsorted(within, share))], {"long_name": f"radius of {share:.0%}"}),
    }
    return xr.Dataset(variables, {"distance": distances}, {"reference": reference, "share": share})
