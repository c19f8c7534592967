"""What a network has learned: analysis covariance, gain and marginal gain at given states, lazily."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Unpack

import xarray as xr

from ..core.checks import choice, integer, shown, switch
from ..core.sensitivity import sites_that_matter
from ..core.symmetry import Group
from ..network import Network
from ..records.fields import factor_labels
from ..records.record import RecordWords
from ..records.schema import OBS, TIME, TRAJECTORY, XdanWarning, attributes, averaged_dims, to_power
from ..records.store import sealed
from .evaluation import evaluate
from .evaluation_points import INNOVATIONS, EvaluationPoints, check_samples, read_points
from .kernels import CovarianceKernel, CutKernel, Kernel, MarginalGainKernel, SymmetryAverageKernel
from .symmetries import commuting, fitting_group
from .wording import shares_points


class _Kind(NamedTuple):
    """How a kind of derivative is labelled; its units are the state's to a power."""

    long_name: str
    name: str
    power: int


KINDS = {
    "mean": _Kind("symmetry-averaged marginal gain", "marginal_gain", 1),
    "marginal": _Kind("marginal gain", "marginal_gain", 1),
    "covariance": _Kind("analysis error covariance of the network", "analysis_covariance", 2),
    "kalman": _Kind("gain of the network", "gain", 0),
}
_LARGE = 2**30  # bytes from which a lazy result warns
_COLUMNS_AT_ONCE = 480  # states times tangents in a pass: the working set stays in the cache


@shares_points
def gain(
    ds: xr.Dataset,
    network: Network,
    *,
    kind: str = "mean",
    method: str = "autodiff",
    dim: str | Sequence[str] | None = None,
    fields: str | Sequence[str] | None = None,
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
    **words: Unpack[RecordWords],
) -> xr.DataArray:
    """Derivatives of a network at the truth's states, or at a run's forecasts, lazily.

    The analysis covariance P_a[i, j] = d a_i / d zeta_j is how the network spreads a projected innovation at site j
    (Eq. 5); the gain is K = P_a H^T R^-1. The marginal gain Gamma[i, j, l] = d^2 a_i / (dx_l dzeta_j) is how that
    changes with the forecast at site l (Eq. 10). Averaged over the experiment's symmetries with l carried to one
    reference site r it is Omega_r[i, j] (Eq. G2); Gamma, of N^3 numbers a state, is then never formed.

    Parameters
    ----------
    {points}
    kind : {"mean", "marginal", "covariance", "kalman"}
        Omega_r, Gamma, P_a or K.
    method : {"autodiff", "regression"}
        Exact derivatives, or slopes in samples of zeta: of the increment (P_a and K), of its derivative by x_l
        (Omega_r and Gamma, Eq. H1 to H4).
    dim : str or sequence of str, optional
        What of `trajectory` and `time` to average over: both for "mean", none otherwise.
    fields : str or sequence of str, optional
        Of a state of several fields, those of i, j and l in this order, such as ("h", "u", "h"); of i and j for P_a and
        K; of i alone for K where there is an operator. One name stands for all. By default i, j and l go over the
        whole packed state.
    {run}
    {innovation}
    group : xdan.Group, optional
        Symmetries to average over; those found by `symmetry_group` by default.
    reference : int, optional
        r, the middle site by default; with `fields` a site of the field of l.
    all_sites : bool, optional
        Average over every site that the group carries r to, in each state, at as many times the cost. By default only
        where the network does not commute with the group; otherwise l = r alone has the same mean.
    samples : int, optional
        N_p of the regression; 4 N by default.
    {forecast_error}
    {every}
    {burn_in}
    seed : int
        Keys the samples.
    {device}
    {words}

    Returns
    -------
    xarray.DataArray
        Dask-backed, with the dims that are not averaged over, then (i, j), (i, j, l) for Gamma, (i, obs) for K where
        there is an operator. They have the labels of their field; for fields of several dims they count the flattened
        sites, and `i_lat`, `i_lon` and so on are the labels.

    Raises
    ------
    TypeError
        If an argument is of another type than expected.
    ValueError
        For unknown kinds, sites or dims; a group that does not fit; too few samples; a covariance that the run lacks,
        or that would be rebuilt over uneven intervals; a network with a lag; before anything is computed. For states
        that are not finite, when they are read.

    Warns
    -----
    XdanWarning
        Where the result is larger than 1 GiB.

    References
    ----------
    Bocquet et al., Eq. 5 to 15 and App. C to H. Regression for P_a: Bocquet et al. (2024), doi:10.1063/5.0230837.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> net = ds.dan.train(xdan.ResidualCNN(filters=4, blocks=1), steps=4, window=4, batch=2, progress=False)
    >>> covariance = ds.dan.gain(net, kind="covariance", burn_in=18)
    >>> dict(covariance.sizes)
    {'trajectory': 4, 'time': 2, 'i': 8, 'j': 8}
    >>> omega = ds.dan.gain(net, kind="mean", burn_in=18)
    >>> dict(omega.sizes)
    {'i': 8, 'j': 8}
    """
    choice("kind", kind, KINDS)
    choice("innovation", innovation, INNOVATIONS)
    samples, regression = check_samples(samples, method), method == "regression"
    all_sites = None if all_sites is None else switch("all_sites", all_sites)
    reference = None if reference is None else integer("reference", reference, least=0)
    if not regression and forecast_error is not None and innovation != "sampled":
        raise ValueError(
            f"forecast_error= widens samples; with innovation={innovation!r} and method='autodiff' there are none: "
            "expected innovation='sampled' or method='regression'"
        )
    averaging = {"group": group, "reference": reference, "all_sites": all_sites}
    if kind != "mean" and (names := [name for name, value in averaging.items() if value is not None]):
        raise ValueError(f"{names} go with the symmetry average: expected kind='mean', not kind={kind!r}")
    over = _dims(dim, kind)
    points = read_points(
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
        **words,
    )
    if regression and innovation != "zero":
        raise ValueError(
            f"innovation={innovation!r}: a regression is over samples about zero; expected method='autodiff'"
        )
    count = points.sample_count(samples) if regression else None
    factors = _factors(points, kind, fields)
    kernel, averaged = _kernel(points, kind, factors, count, group, reference, all_sites)
    tail = tuple(factor.size for factor in factors[: 2 if kind == "mean" else 3])
    values = evaluate(
        points,
        kernel,
        tail,
        over=over,
        at_once=max(1, _COLUMNS_AT_ONCE // (count or _tangents(points, kind))),
        observed=regression or kind == "kalman",
    )
    result = _label(values, points, over, factors, kind)
    result.attrs |= points.attributes | {"method": method} | averaged
    if regression:
        result.attrs |= {"innovation": "sampled", "samples": count}
    if result.attrs["innovation"] == "sampled":
        result.attrs["seed"] = points.seed
    if result.nbytes > _LARGE:
        warnings.warn(
            f"this lazy {KINDS[kind].long_name} has {result.nbytes / 2**30:.1f} GiB: take fewer states, with every= "
            "or of the record (whole blocks are computed, however few of their states are selected after), average "
            "with dim=, or write it with to_zarr; kind='mean' never forms it",
            XdanWarning,
            stacklevel=2,
        )
    return result


@dataclass(frozen=True)
class _Factor:
    """One of i, j and l.

    Attributes
    ----------
    name : str
        The dim.
    field : str or None
        Whose sites it counts; None for all sites, and for observations of an operator.
    place : slice
        In the flat state.
    size : int
    units : str
    """

    name: str
    field: str | None
    place: slice
    size: int
    units: str


def _factors(points: EvaluationPoints, kind: str, fields: str | Sequence[str] | None) -> list[_Factor]:
    """i, j and l of a kind of derivative.

    Raises
    ------
    TypeError, ValueError
        For what are no names of fields, or too many or too few.
    """
    space, dynamics = points.setup.dynamics.space, points.setup.dynamics
    names = ["i", "j"] if kind in ("covariance", "kalman") else ["i", "j", "l"]
    operator = kind == "kalman" and not points.setup.observing.direct
    chosen = names[:1] if operator else names
    if fields is None:
        of_field: list[str | None] = [None] * len(chosen)
    else:
        listed = [fields] * len(chosen) if isinstance(fields, str) else fields
        if not isinstance(listed, (list, tuple)) or not all(isinstance(name, str) for name in listed):
            raise TypeError(f"fields={shown(fields)}: expected names of fields, for {' and '.join(chosen)}")
        if len(listed) != len(chosen) or not set(listed) <= set(space.names):
            raise ValueError(
                f"fields={shown(fields)}: expected {len(chosen)} of {space.names}, for {' and '.join(chosen)} of "
                f"kind={kind!r}"
            )
        of_field = list(listed)
    factors = []
    for name, field in zip(chosen, of_field, strict=True):
        place = slice(0, points.sites) if field is None else space.slices[field]
        units = dynamics.units if field is None or space.single else space[field].units
        factors.append(_Factor(name, field, place, place.stop - place.start, units))
    if operator:
        count = points.labelled.observation[0, 0].size
        factors.append(_Factor(OBS, None, slice(0, count), count, dynamics.units))
    return factors


def _kernel(
    points: EvaluationPoints,
    kind: str,
    factors: Sequence[_Factor],
    samples: int | None,
    group: Group | None,
    reference: int | None,
    all_sites: bool | None,
) -> tuple[Kernel, dict[str, Any]]:
    """What is computed at each point, and the attributes that say what it is averaged over."""
    said: dict[str, Any] = {}
    if any(factor.field for factor in factors):
        said["fields"] = " ".join(factor.field or "" for factor in factors).strip()
    if kind == "mean":
        kernel, averaged = _symmetry_kernel(points, factors[2], group, reference, all_sites, samples)
        said |= averaged
    elif kind == "marginal":
        sites = factors[2].place
        kernel = MarginalGainKernel(tuple(range(sites.start, sites.stop)), samples)
    else:
        kernel = CovarianceKernel(kind == "kalman", samples)
    whole = all(factor.field is None for factor in factors)
    return kernel if whole else CutKernel(kernel, factors[0].place, factors[1].place), said


def _tangents(points: EvaluationPoints, kind: str) -> int:
    """How many directions of zeta are carried forward at a point."""
    return sites_that_matter(points.module, points.sites) if kind == "mean" else points.sites


def _symmetry_kernel(
    points: EvaluationPoints,
    about: _Factor,
    group: Group | None,
    reference: int | None,
    all_sites: bool | None,
    samples: int | None,
) -> tuple[Kernel, dict[str, Any]]:
    """The average over a group about a site of the factor l."""
    reference = about.size // 2 if reference is None else reference
    if reference >= about.size:
        raise ValueError(f"reference={reference}: expected a site from 0 to {about.size - 1}")
    site = about.place.start + reference
    group = fitting_group(points, group)
    if all_sites is None:
        all_sites = not commuting(points, group)
    elements = range(len(group)) if all_sites else [0]
    # The identity comes first in every group.
    permutations = sorted((group.permutation(index) for index in elements), key=lambda g: int(g[site]))
    averaged = {
        "group": repr(group),
        "group_size": len(group),
        "reference": reference,
        "sites_differentiated": len({int(g[site]) for g in permutations}),
    }
    return SymmetryAverageKernel(tuple(permutations), site, samples), averaged


def _dims(dim: str | Sequence[str] | None, kind: str) -> list[str]:
    if dim is None:
        return [TRAJECTORY, TIME] if kind == "mean" else []
    return averaged_dims(dim)


def _label(
    values: Any, points: EvaluationPoints, over: Sequence[str], factors: Sequence[_Factor], kind: str
) -> xr.DataArray:
    """Attach dims, coordinates and units to what was computed for i, j and l."""
    dynamics = points.setup.dynamics
    lead: list[str] = [d for d in (TRAJECTORY, TIME) if d not in over]
    dims = [*lead, *(factor.name for factor in factors[: 2 if kind == "mean" else 3])]
    coordinates: dict[str, Any] = {d: points.x[d] for d in lead}
    for factor in factors:
        if factor.name in dims and factor.name != OBS:
            coordinates |= factor_labels(dynamics, factor.name, factor.field)
    labels = KINDS[kind]
    described = attributes(dynamics, long_name=labels.long_name, units=_units(factors, labels.power))
    result = xr.DataArray(values, coordinates, dims, labels.name, described)
    return sealed(points.labelled.with_its_dims(result))


def _units(factors: Sequence[_Factor], power: int) -> str:
    """Units of a derivative: those of the state to a power, or of fields of different units their product."""
    units = [factor.units for factor in factors]
    if len(set(units)) == 1:
        return to_power(units[0], power)
    # An output by a projected innovation, whose units are one over those of its site; K by the innovation itself.
    powers = (1, -1) if power == 0 else (1, 1, -1)
    return " ".join(to_power(unit, k) for unit, k in zip(units, powers, strict=False) if unit != "1")
