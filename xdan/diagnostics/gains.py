"""The derivatives of a network: analysis covariance, gain and marginal gain at chosen states, lazily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Unpack

import xarray as xr

from ..core.checks import choice, integer, shown, switch, warn
from ..core.keywords import checks_keywords
from ..core.sensitivity import sites_that_matter
from ..core.symmetry import Group
from ..network import Network
from ..records.fields import component_text, factor_labels
from ..records.record import RecordWords
from ..records.schema import OBS, TIME, TRAJECTORY, attributes, averaged_dims, to_power
from ..records.store import sealed
from .evaluation import evaluate
from .evaluation_points import INNOVATIONS, EvaluationPoints, check_samples, read_points
from .kernels import CovarianceKernel, CutKernel, Kernel, MarginalGainKernel, SymmetryAverageKernel
from .symmetries import commuting, fitting_group
from .wording import shares_points


class _Kind(NamedTuple):
    """Labels of a kind of derivative, and the power of the state's units in its units."""

    long_name: str
    name: str
    power: int


KINDS = {
    "mean": _Kind("symmetry-averaged marginal gain", "marginal_gain", 1),
    "marginal": _Kind("marginal gain", "marginal_gain", 1),
    "covariance": _Kind("analysis error covariance of the network", "analysis_covariance", 2),
    "kalman": _Kind("gain of the network", "gain", 0),
}
_LARGE = 2**30  # bytes above which a lazy result warns
_COLUMNS_AT_ONCE = 480  # states times tangents in a pass: the arrays of a pass stay in the cache


@checks_keywords
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
    """Compute derivatives of a network at the truth's states or at a run's forecasts, lazily.

    The analysis covariance P_a[i, j] = d a_i / d zeta_j says how the network spreads a projected innovation at site j
    (Eq. 5). The gain is K = P_a H^T R^-1. The marginal gain Gamma[i, j, l] = d^2 a_i / (dx_l dzeta_j) says how P_a
    changes with the forecast at site l (Eq. 10). Its average over the experiment's symmetries, each of which carries l
    to one reference site r, is Omega_r[i, j] (Eq. G2). Gamma has N^3 numbers for each state; it is not formed for
    Omega_r.

    Parameters
    ----------
    {points}
    kind : {"mean", "marginal", "covariance", "kalman"}
        The derivative: Omega_r, Gamma, P_a or K, in this order.
    method : {"autodiff", "regression"}
        "autodiff" computes exact derivatives. "regression" computes slopes over samples of zeta: of the increment (for
        P_a and K), or of its derivative by x_l (for Omega_r and Gamma, Eq. H1 to H4).
    dim : str or sequence of str, optional
        Dims to average over, `trajectory`, `time` or both. By default both for "mean" and none for the others.
    fields : str or sequence of str, optional
        For a state of several fields: the fields of i, j and l in this order, such as ("h", "u", "h"). P_a and K have i
        and j only; K with an operator has i only. One name stands for all. By default i, j and l count the components
        of the whole packed state.
    {run}
    {innovation}
    group : xdan.Group, optional
        Symmetries to average over; by default those of `symmetry_group`.
    reference : int, optional
        Reference site r, by default the middle site. With `fields` it is a site of the field of l. The attribute
        `reference_site` of the result says its field and coordinates, such as "slow, x = 0".
    all_sites : bool, optional
        Whether to average, in each state, over every site to which the group carries r. The cost grows by the number of
        these sites. By default this is done only if the network does not commute with the group. If it commutes, l = r
        alone has the same mean.
    samples : int, optional
        Number N_p of samples of the regression, by default 4 N.
    {forecast_error}
    {every}
    {burn_in}
    seed : int
        Key of the samples.
    {device}
    {words}

    Returns
    -------
    xarray.DataArray
        The derivative, lazy. Its dims are those that are not averaged over, then (i, j); (i, j, l) for Gamma; (i, obs)
        for K with an operator. i, j and l have the labels of their field. For a field of several dims they count the
        flattened sites, and `i_lat`, `i_lon` and so on hold the labels.

    Raises
    ------
    TypeError
        If an argument has another type.
    ValueError
        If a kind, a site or a dim is unknown; if the group does not fit or there are too few samples; if the run lacks
        the network's covariance, or the covariance would be rebuilt over uneven intervals; or if the network has a lag.
        These are checked before the computation. If states are not finite, the error comes when they are read.

    Warns
    -----
    XdanWarning
        If the result is larger than 1 GiB.

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
        warn(
            f"this lazy {KINDS[kind].long_name} has {result.nbytes / 2**30:.1f} GiB: take fewer states with every=, or "
            "select a part of the record before the call (a selection after it computes whole blocks), or average "
            "with dim=, or write the result with to_zarr. kind='mean' never forms it",
        )
    return result


@dataclass(frozen=True)
class _Factor:
    """One of the dims i, j and l.

    Attributes
    ----------
    name : str
        Name of the dim.
    field : str or None
        The field whose sites the dim counts; None for all sites, and for observations of an operator.
    place : slice
        Place in the flat state.
    size : int
    units : str
    """

    name: str
    field: str | None
    place: slice
    size: int
    units: str


def _factors(points: EvaluationPoints, kind: str, fields: str | Sequence[str] | None) -> list[_Factor]:
    """The dims i, j and l of a kind of derivative.

    Raises
    ------
    TypeError, ValueError
        If `fields` are no names of fields, or too many or too few names.
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
    """The kernel for each point, and the attributes that say what is averaged over."""
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
    """Number of directions of zeta that are carried forward at a point."""
    return sites_that_matter(points.module, points.sites) if kind == "mean" else points.sites


def _symmetry_kernel(
    points: EvaluationPoints,
    factor: _Factor,
    group: Group | None,
    reference: int | None,
    all_sites: bool | None,
    samples: int | None,
) -> tuple[Kernel, dict[str, Any]]:
    """The kernel of the average over a group, about a site of the dim l."""
    reference = factor.size // 2 if reference is None else reference
    if reference >= factor.size:
        raise ValueError(f"reference={reference}: expected a site from 0 to {factor.size - 1}")
    site = factor.place.start + reference
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
        "reference_site": component_text(points.setup.dynamics, site),
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
    """Attach dims, coordinates and units to a result for i, j and l."""
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
    """Units of a derivative: the state's units to a power, or the product of the units of different fields."""
    units = [factor.units for factor in factors]
    if len(set(units)) == 1:
        return to_power(units[0], power)
    # The units of zeta are one over those of its site: a derivative by zeta has a product of units, and K a ratio.
    powers = (1, -1) if power == 0 else (1, 1, -1)
    return " ".join(to_power(unit, k) for unit, k in zip(units, powers, strict=False) if unit != "1")
