"""Observations at positions: where they lie, and an H that interpolates the state there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..checks import shown
from ..spaces import StateSpace
from .operators import Operator

_DISTANCES = 1 << 22  # number of distances in one batch


class Positions:
    """Where the observations of a time lie, and which field each of them observes.

    Parameters
    ----------
    space : StateSpace
        Space of the state.
    coordinates : mapping of str to Tensor, shape (P,) or (K, P)
        For each dim of the observed fields, a coordinate of every observation. If positions move, a coordinate for each
        of K times. NaN where there is no observation.
    fields : sequence of str, optional
        Name of the field of each observation. Not needed if the space has one field.

    Attributes
    ----------
    size : int
        Number P of observations.
    times : int or None
        Number K of times, if positions move; otherwise None.

    Raises
    ------
    ValueError
        If a coordinate is missing, belongs to no dim, or has another shape than the others; if a field is unknown; if
        the space has several fields and `fields` is missing.
    """

    def __init__(
        self, space: StateSpace, coordinates: Mapping[str, Tensor], fields: Sequence[str] | None = None
    ) -> None:
        self.space = space
        shapes = {dim: tuple(values.shape) for dim, values in coordinates.items()}
        if not shapes or len({shape[-1:] for shape in shapes.values()}) > 1:
            raise ValueError(f"positions have the shapes {shapes}: expected (P,), or (K, P) where they move in time")
        self.size = next(iter(shapes.values()))[-1]
        lengths = {shape[0] for shape in shapes.values() if len(shape) == 2}
        if not self.size or len(lengths) > 1 or any(len(shape) not in (1, 2) for shape in shapes.values()):
            raise ValueError(f"positions have the shapes {shapes}: expected (P,), or (K, P) where they move in time")
        self.times = lengths.pop() if lengths else None
        if fields is None:
            if space.single is None:
                raise ValueError(
                    f"the state has the fields {space.names}: expected the name of each observation's field, 'field'"
                )
            fields = [space.single.name] * self.size
        self.fields = [str(name) for name in fields]
        if len(self.fields) != self.size:
            raise ValueError(f"field names {len(self.fields)} observations: expected {self.size}")
        lead = () if self.times is None else (self.times,)
        self._groups: list[tuple[str, Tensor, Tensor]] = []  # field, its observations, their places (..., n, dims)
        for name in dict.fromkeys(self.fields):
            dims = space[name].geometry.dims
            if missing := [dim for dim in dims if dim not in coordinates]:
                raise ValueError(
                    f"positions along {list(coordinates)}: expected coordinates along {list(dims)} for observations "
                    f"of the field {name!r}; {missing} are missing"
                )
            which = torch.tensor([k for k, one in enumerate(self.fields) if one == name])
            places = [coordinates[dim].double().expand(*lead, self.size)[..., which] for dim in dims]
            self._groups.append((name, which, torch.stack(places, -1)))
        known = {dim for name, _, _ in self._groups for dim in space[name].geometry.dims}
        if unknown := sorted(set(coordinates) - known):
            raise ValueError(f"positions along {unknown}: expected coordinates along {sorted(known)} alone")

    def there(self) -> Tensor:
        """Which observations have a place, bool of shape (P,) or (K, P)."""
        lead = () if self.times is None else (self.times,)
        flags = torch.empty(*lead, self.size, dtype=torch.bool)
        for _, which, places in self._groups:
            flags[..., which] = ~places.isnan().any(-1)
        return flags

    def identity(self) -> list[Tensor]:
        """Tensors that distinguish the positions from others."""
        return [part for _, which, places in self._groups for part in (which, places)]

    def picked(self, times: int | slice | Tensor, in_time: bool) -> Positions:
        """Positions of some of the times, or of one."""
        if self.times is None:
            return self
        chosen = copy.copy(self)
        chosen._groups = [(name, which, places[times]) for name, which, places in self._groups]
        chosen.times = len(chosen._groups[0][2]) if in_time else None
        return chosen

    def interpolation(self) -> tuple[Tensor, Tensor]:
        """Indices of components and weights, shape (P, k) or (K, P, k). Weights are zero if there is no place.

        Raises
        ------
        ValueError
            If a geometry does not interpolate, or a place lies outside it.
        """
        parts = []
        for name, which, places in self._groups:
            flat = places.flatten(0, -2)
            there = ~flat.isnan().any(-1)
            one, weight = self.space.interpolation(flat[there], name)
            indices = torch.zeros(len(flat), one.shape[1], dtype=torch.int64)
            weights = torch.zeros(len(flat), one.shape[1], dtype=torch.float64)
            indices[there], weights[there] = one, weight
            shape = (*places.shape[:-1], one.shape[1])
            parts.append((which, indices.reshape(shape), weights.reshape(shape)))
        most = max(indices.shape[-1] for _, indices, _ in parts)
        lead = () if self.times is None else (self.times,)
        indices = torch.zeros(*lead, self.size, most, dtype=torch.int64)
        weights = torch.zeros(*lead, self.size, most, dtype=torch.float64)
        for which, some, weight in parts:
            indices[..., which, : some.shape[-1]] = some
            weights[..., which, : some.shape[-1]] = weight
        return indices, weights

    def distances(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Distances (n, N) to all components, in batches of observations (n,), for positions of one time.

        Raises
        ------
        ValueError
            If the space knows no distances.
        """
        for name, which, places in self._groups:
            there = ~places.isnan().any(-1)
            for some in which[there].split(max(1, _DISTANCES // self.space.size)):
                rows = torch.isin(which, some)
                apart = self.space.distances_from(places[rows], name)
                if apart is None:
                    raise ValueError(
                        f"localisation needs distances from places to all components, which the space {self.space!r} "
                        "does not know: expected geometries with distances, or take 'etkf'"
                    )
                yield some, apart


class InterpolationOperator(Operator, pure=True):
    """H that interpolates the state at positions: each observation is a weighted mean of a few components.

    Only these few components are stored and used, so that states may be large.

    Parameters
    ----------
    indices : Tensor of int64, shape (P, k), or (K, P, k) if positions move in time
    weights : Tensor, of the same shape

    Attributes
    ----------
    moves : bool
        Whether the first axis of indices and weights is time.
    """

    linear = True

    def __init__(self, indices: Tensor, weights: Tensor) -> None:
        if indices.shape != weights.shape or indices.ndim not in (2, 3):
            raise ValueError(
                f"indices have shape {tuple(indices.shape)}, weights {tuple(weights.shape)}: expected (P, k) or "
                "(K, P, k) of both"
            )
        self.indices, self.weights = indices, weights
        self.size, self.moves = indices.shape[-2], indices.ndim == 3

    @classmethod
    def at(cls, positions: Positions) -> InterpolationOperator:
        """H of observations at positions.

        Raises
        ------
        ValueError
            See `Positions.interpolation`.
        """
        return cls(*positions.interpolation())

    def picked(self, times: int | slice | Tensor, in_time: bool) -> InterpolationOperator:
        """See `Operator.picked`."""
        if not self.moves:
            return self
        chosen = InterpolationOperator(self.indices[times], self.weights[times])
        chosen.moves = in_time
        return chosen

    def repeat(self, count: int) -> InterpolationOperator:
        """See `Operator.repeat`."""
        if self.indices.ndim == 2:
            return self
        return self._of_rows(self.indices.repeat_interleave(count, 0), self.weights.repeat_interleave(count, 0))

    @property
    def times(self) -> int | None:
        """Number of times, if positions move; otherwise None."""
        return len(self.indices) if self.moves else None

    def kept(self, like: Tensor) -> list[Tensor]:
        """Indices and weights; see `Operator.kept`."""
        return [part.to(like).expand(*like.shape, -1) for part in (self.indices, self.weights)]

    def before(self, kept: Tensor) -> InterpolationOperator:
        """See `Operator.before`."""
        indices, weights = kept.chunk(2, -1)
        return self._of_rows(indices.round().long(), weights)

    def _of_rows(self, indices: Tensor, weights: Tensor) -> InterpolationOperator:
        """H for a batch whose rows have different H."""
        rows = InterpolationOperator(indices, weights)
        rows.moves = False
        return rows

    def __call__(self, x: Tensor) -> Tensor:
        """H x for x (..., N); (..., K, N) if positions move; (B, ..., N) if the rows of a batch have different H."""
        indices, weights = self.indices.to(x.device), self.weights.to(x)
        if indices.ndim == 2:
            return (x[..., indices] * weights).sum(-1)
        if not self.moves:  # rows first
            middle = (1,) * (x.ndim - 2)
            indices = indices.reshape(len(indices), *middle, *indices.shape[1:])
            weights = weights.reshape(indices.shape)
        places = indices.flatten(-2).expand(*x.shape[:-1], -1)
        seen: Tensor = x.gather(-1, places).unflatten(-1, indices.shape[-2:])
        return (seen * weights).sum(-1)

    def tangent(self, x: Tensor, directions: Tensor) -> Tensor:
        """H times the directions."""
        return self(directions)

    def adjoint(self, x: Tensor, v: Tensor) -> Tensor:
        """H^T v for v (B, P), at x (B, N). Only the size of x is used."""
        shares = (v[..., None] * self.weights.to(v)).flatten(-2)
        places = self.indices.to(v.device).flatten(-2).expand(shares.shape)
        return x.new_zeros(*v.shape[:-1], x.shape[-1]).scatter_add(-1, places, shares)

    def spread(self, x: Tensor, variance: Tensor, observed: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """See `Operator.spread`. Only the observed components are used."""
        indices, weights = self.indices.to(x.device), self.weights.to(x)
        seen, place = indices.unique(return_inverse=True)
        rows = x.new_zeros(*indices.shape[:-1], len(seen)).scatter_add(-1, place, weights) * observed[..., None]
        variance = variance.expand(x.shape)
        weighted = rows * variance[:, None, seen]

        def on_state(solved: Tensor) -> Tensor:
            values: Tensor = (weighted.mT @ solved).mT
            return values.new_zeros(*values.shape[:-1], x.shape[1]).index_add(-1, seen, values)

        return weighted @ rows.mT, on_state

    def identity(self, states: Tensor) -> list[Tensor]:
        """Indices and weights."""
        return [self.indices, self.weights]


def deviations_of(instruments: Sequence[str], errors: Mapping[str, float]) -> list[float]:
    """Standard deviation of each observation's instrument.

    Raises
    ------
    ValueError
        If an instrument has no error, or an error names an unknown instrument.
    """
    names = set(map(str, instruments))
    if missing := sorted(names - set(map(str, errors))):
        raise ValueError(
            f"observation errors are given for the instruments {shown(sorted(map(str, errors)))}: expected one for "
            f"each instrument; {missing} have none"
        )
    if unknown := sorted(set(map(str, errors)) - names):
        raise ValueError(f"observation errors of {unknown}: expected those of the instruments {sorted(names)}")
    return [float(errors[str(name)]) for name in instruments]
