"""Lyapunov vectors at the states of a truth, labelled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import dask
import dask.array as da
import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..core.checks import choice, integer, shown
from ..core.dynamics import Dynamics
from ..core.keywords import checks_keywords
from ..core.lyapunov import backward_vectors, covariant_vectors, orthonormal_directions, random_coefficients
from ..core.random import check_seed
from ..records.blocks import Plan, Setup, block, block_graph
from ..records.fields import each, find_fields, split
from ..records.record import LabelledRecord, read, read_dynamics
from ..records.schema import TIME, TRAJECTORY, TRUTH, Array, attributes
from ..records.store import check_whole, sealed
from .evaluation_points import check_labelled
from .exponents import VECTOR, VECTOR_ATTRIBUTES, steps_between, trajectories_together, vector_count

_BYTES = 1 << 27  # most bytes of a block of vectors, and of the arrays that one pass keeps


@checks_keywords
def lyapunov_vectors(
    ds: xr.Dataset,
    *,
    kind: str = "backward",
    vectors: int | None = None,
    spin_up: int | None = None,
    interval: float | None = None,
    dynamics: Dynamics | None = None,
    truth: str | Mapping[str, str] | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Compute Lyapunov vectors at the states of a truth, lazily.

    The tangent linear model carries vectors from each record time to the next. Every interval starts from the state of
    the truth. Backward vectors are orthonormal: the first m of them span the space into which m perturbations of the
    distant past have grown. The tangent linear model maps each covariant vector onto a multiple of the same vector at
    the next time; each grows at the rate of its exponent. The sign of a vector is arbitrary, but constant along a
    trajectory.

    Parameters
    ----------
    ds : xarray.Dataset
        A record with a truth. Observations are not needed.
    kind : {"backward", "covariant"}
        The kind of the vectors, as above.
    vectors : int, optional
        Number of vectors, the fastest growing first; by default all N.
    spin_up : int, optional
        Number of cycles in which vectors converge. So many times are left out at the beginning. For covariant vectors,
        which depend on the future too, so many times are also left out at the end. By default the cycles of the
        dynamics' spin-up. Two neighbouring vectors separate at the rate by which their exponents differ: for a
        difference of 0.1, an error of 1e-4 takes some 100 units of model time.
    interval : float, optional
        Longest model time between orthonormalisations, by default 10 steps.
    dynamics : Dynamics, optional
        The model. By default the attribute `dynamics` of the Dataset names a registered model.
    truth : str, or mapping of fields' names to str, optional
        Name of the truth's variable. By default its attributes or its name tell the role.
    seed : int
        Key of the random directions at the first time and, for covariant vectors, at the last time. Except for signs,
        converged vectors do not depend on the seed: two seeds show how well the vectors have converged.

    Returns
    -------
    xarray.Dataset
        Lazy, in float64: `lyapunov_vector` (trajectory, time, vector, *state), of length 1; and `growth` (trajectory,
        time, vector), the finite-time exponent of each vector over the interval that ends at this time, per unit of
        model time. A task computes some trajectories with all their K times. It takes a few trajectories at once, and
        keeps K M (N + M) numbers for each of them, for M vectors.

    Raises
    ------
    TypeError
        If `dynamics` is not a Dynamics, or an argument has another type.
    ValueError
        If `kind` is unknown, there are more vectors than components of the state, no cycle is left after the spin-up,
        or there is no truth. If the truth is not finite; for a lazy truth, this error comes when it is computed.

    References
    ----------
    Ginelli et al. (2007), doi:10.1103/PhysRevLett.99.130601; Kuptsov and Parlitz (2012),
    doi:10.1007/s00332-012-9126-5.

    Examples
    --------
    >>> import xdan
    >>> truth = xdan.twin(xdan.Lorenz63(), interval=0.1, cycles=300, trajectories=2, dtype="float64")
    >>> dict(xdan.lyapunov_vectors(truth, kind="covariant", spin_up=100).lyapunov_vector.sizes)
    {'trajectory': 2, 'time': 100, 'vector': 3, 'component': 3}
    """
    check_labelled("ds", ds, xr.Dataset)
    if truth is not None and not isinstance(truth, (str, Mapping)):
        raise TypeError(f"truth={shown(truth)}: expected the name of a variable, or a mapping of fields to names")
    choice("kind", kind, ("backward", "covariant"))
    spin_up = None if spin_up is None else integer("spin_up", spin_up, least=1)
    seed = check_seed(seed)
    labelled = _read_truth(ds, dynamics, truth)
    setup, states = labelled.setup, labelled.truth
    assert states is not None
    setup.dynamics.require_derivatives("the method of Lyapunov vectors", "Write the model in torch")
    count, between = vector_count(setup.dynamics, vectors), steps_between(setup.dynamics, interval)
    kept = _kept(setup, kind, spin_up)
    if states.chunks is None:
        _check_finite(np.isfinite(states.values).all(axis=tuple(range(1, states.ndim))), setup.trajectory)
    size, times = math.prod(setup.dynamics.shape), states.sizes[TIME]
    array = states.chunk().data
    rows = min(max(array.chunks[0]), max(1, _BYTES // (8 * times * count * size)))
    array = array.rechunk((rows, *(-1 for _ in array.shape[1:])))
    double = np.dtype(np.float64)
    arrays = block_graph(
        _vectors_block,
        Plan.from_chunks(array.chunks[0], (times,)),
        [array],
        {"lyapunov_vector": ((count, *setup.dynamics.shape), double), "growth": ((count,), double)},
        *(dask.delayed(setup, traverse=False), kind, count, between, kept, seed),
        sizes=lambda rows, columns: (rows.stop - rows.start, kept.stop - kept.start),
        dtype=double,
    )
    result = _label_vectors(arrays["lyapunov_vector"], arrays["growth"], labelled, kind, kept, seed)
    return sealed(labelled.with_its_dims(result))


def _read_truth(ds: xr.Dataset, dynamics: Dynamics | None, name: Any) -> LabelledRecord:
    if isinstance(name, str) and name not in ds.variables:
        raise ValueError(f"truth={shown(name)}: expected one of {sorted(map(str, ds.data_vars))}")
    states = find_fields(ds, TRUTH, read_dynamics(ds, dynamics), name)
    if states is None:
        raise ValueError(
            f"Lyapunov vectors need the truth: expected a variable 'truth', found {sorted(map(str, ds.data_vars))}; "
            "name it with truth="
        )
    # Only the states are needed. The truth stands in the place of the observations, so that every check passes.
    names = [str(one.name) for one in each(states)]
    words: Any = dict(zip(states, names, strict=True)) if isinstance(states, dict) else names[0]
    labelled = read(ds[names], dynamics=dynamics, truth=words, observation=words, observation_error=1.0)
    check_whole(ds, labelled.truth)
    return labelled


def _kept(setup: Setup, kind: str, spin_up: int | None) -> slice:
    """Times at which the vectors have converged."""
    model, total = setup.dynamics, len(setup.steps)
    if spin_up is None:
        enough = np.cumsum(setup.steps) * model.timestep >= model.spin_up_time - 1e-9
        spin_up = max(1, int(np.argmax(enough)) if enough.any() else total)
    stop = total - spin_up if kind == "covariant" else total
    if spin_up >= stop:
        ends, needed = ("first and the last", 2 * spin_up) if kind == "covariant" else ("first", spin_up)
        raise ValueError(
            f"the record has {total} cycles, and kind={kind!r} leaves out the {ends} {spin_up}, in which the vectors "
            f"converge: expected at least {needed + 1} cycles; take a longer record or a smaller spin_up="
        )
    return slice(spin_up, stop)


def _check_finite(finite: Array, labels: Array) -> None:
    """Refuse trajectories that are not finite at all times."""
    lost = ~finite
    if lost.any():
        raise ValueError(
            f"the truth of trajectories {labels[lost][:8].tolist()} holds values that are not finite: no vectors can "
            "be carried through them; leave these trajectories or times out, for example with "
            "ds.dropna('trajectory', subset=['truth']) or ds.isel(time=...)"
        )


@block
def _vectors_block(
    tensors: Sequence[Tensor],
    rows: slice,
    columns: slice,
    setup: Setup,
    kind: str,
    vectors: int,
    between: int,
    kept: slice,
    seed: int,
) -> dict[str, Tensor]:
    """Vectors (B, K, M, *state) and growth (B, K, M) of some trajectories at the times that are kept."""
    x, keys = tensors[0].flatten(2), setup.keys(rows)
    finite = [bool(trajectory.isfinite().all()) for trajectory in x]
    _check_finite(np.array(finite, dtype=bool), setup.trajectory[rows])
    steps = setup.steps.tolist()
    span = torch.tensor(steps[1:], dtype=torch.float64) * setup.dynamics.timestep
    fitting = max(1, _BYTES // (8 * x.shape[1] * vectors * (x.shape[2] + vectors)))
    together = min(trajectories_together(setup.dynamics, vectors), fitting)
    pieces, rates = [], []
    for part, key in zip(x.split(together), keys.split(together), strict=True):
        start = orthonormal_directions(key, seed, vectors, x.shape[2])
        directions, factors = backward_vectors(setup.dynamics, part, steps, start, between=between)
        growth = factors.diagonal(dim1=-2, dim2=-1).log()
        if kind == "covariant":
            directions, growth = covariant_vectors(directions, factors, random_coefficients(key, seed, vectors))
        pieces.append(directions[:, kept].clone())
        rates.append((growth / span[:, None])[:, kept.start - 1 : kept.stop - 1])
    directions = torch.cat(pieces)
    if not bool(torch.isfinite(directions).all()):
        raise ValueError(
            f"some of the {vectors} vectors are not finite: the tangent linear model loses a direction altogether; "
            "ask for fewer with vectors=, or orthonormalise more often with interval="
        )
    return {"lyapunov_vector": directions.unflatten(-1, setup.dynamics.shape), "growth": torch.cat(rates)}


def _label_vectors(
    vectors: da.Array, growth: da.Array, labelled: LabelledRecord, kind: str, kept: slice, seed: int
) -> xr.Dataset:
    """Attach coordinates and attributes."""
    assert labelled.truth is not None
    dynamics, lead = labelled.setup.dynamics, (TRAJECTORY, TIME, VECTOR)
    rate = "finite-time Lyapunov exponent over the interval that ends at this time, per unit of model time"
    said = {"long_name": f"{kind} Lyapunov vector of length 1", "units": "1"}
    packed = xr.DataArray(vectors, dims=(*lead, *dynamics.dims), attrs=said)
    variables: dict[str, Any] = {
        **{name: one.drop_vars(list(one.coords)) for name, one in split(packed, dynamics, "lyapunov_vector").items()},
        "growth": (lead, growth, {"long_name": rate, "units": "1"}),
    }
    coordinates: dict[Any, Any] = {name: one for name, one in labelled.labels.items() if TIME not in one.dims}
    coordinates |= dict(labelled.truth.isel({TIME: kept}).coords)
    coordinates[VECTOR] = (VECTOR, np.arange(1, vectors.shape[2] + 1), VECTOR_ATTRIBUTES)
    title = f"{kind} Lyapunov vectors"
    return xr.Dataset(
        variables, coordinates, attributes(dynamics, title=title, kind=kind, spin_up=kept.start, seed=seed)
    )
