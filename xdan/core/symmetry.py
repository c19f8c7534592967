"""Groups of permutations of the sites, and those under which a model and its observing system do not change."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import integer, shown

_ALL_SHIFTS = 4096  # states with more sites are tried along their dims only
_MOST_SITES = 10**8  # a permutation of more would take gigabytes
_LARGEST = 100_000  # elements of a group that permutations generate
_TRIED = 64  # shifts of a group that are added to all others, to see that it is one
_TOLERANCE = 1e-9


class Group:
    """A group of permutations of the N sites of a flattened state, acting by (g x)_i = x_{g(i)}.

    Made by `translations`, `ring`, `rotations`, `trivial` or `generated_by`.

    Attributes
    ----------
    name : str
    sites : int
        N.

    References
    ----------
    Bocquet et al., Eq. F1.
    """

    def __init__(self, name: str, sites: int, permutation: Callable[[int], Tensor], size: int) -> None:
        self.name, self.sites, self._permutation, self._size = name, sites, permutation, size

    @classmethod
    def translations(cls, shape: Sequence[int], offsets: Sequence[Sequence[int]], name: str = "") -> Group:
        """Group of shifts of a periodic grid.

        Parameters
        ----------
        shape : sequence of int
            Of the grid.
        offsets : sequence of sequences of int
            All shifts of the group, as many numbers each as the grid has dims.
        name : str
        """
        shape = _integers("shape", shape, least=1)
        if math.prod(shape) > _MOST_SITES:
            raise ValueError(f"shape={shape}: expected at most {_MOST_SITES} sites")
        if not isinstance(name, str):
            raise TypeError(f"name={shown(name)}: expected a string")
        turns = [_integers("offsets", offset) for offset in _items("offsets", offsets)]
        if not turns or any(len(turn) != len(shape) for turn in turns):
            raise ValueError(f"offsets={shown(turns)}: expected shifts of {len(shape)} numbers each")
        shifts = sorted({tuple(o % n for o, n in zip(turn, shape, strict=True)) for turn in turns})
        members = set(shifts)
        for one in shifts[:_TRIED]:
            for other in shifts:
                both = tuple((a + b) % n for a, b, n in zip(one, other, shape, strict=True))
                if both not in members:
                    raise ValueError(f"shifts by {one} and {other} are given, by {both} is not: expected a group")

        def permutation(index: int) -> Tensor:
            grid = torch.arange(math.prod(shape)).reshape(shape)
            return grid.roll([-o for o in shifts[index]], list(range(len(shape)))).flatten()

        return cls(name or f"{len(shifts)} translations", math.prod(shape), permutation, len(shifts))

    @classmethod
    def ring(cls, sites: int, step: int = 1) -> Group:
        """Turns of a ring by multiples of a step.

        Raises
        ------
        ValueError
            If the step does not divide the number of sites.
        """
        sites, step = integer("sites", sites, least=1, most=_MOST_SITES), integer("step", step, least=1)
        if sites % step:
            raise ValueError(f"step={step}: expected a divisor of the {sites} sites")
        return cls.translations((sites,), [(o,) for o in range(0, sites, step)], f"turns of the ring by {step}")

    @classmethod
    def grid(cls, shape: Sequence[int], steps: Sequence[int]) -> Group:
        """Shifts of a periodic grid by multiples of a step along every dim; a step of the whole length is none.

        Raises
        ------
        ValueError
            If a step does not divide its dim.
        """
        shape, steps = _integers("shape", shape, least=1), _integers("steps", steps, least=1)
        if len(steps) != len(shape) or any(size % step for step, size in zip(steps, shape, strict=True)):
            raise ValueError(f"steps={steps}: expected divisors of the grid {shape}, one for each dim")
        if math.prod(size // step for step, size in zip(steps, shape, strict=True)) > _LARGEST:
            raise ValueError(f"shape={shape}, steps={steps}: expected a group of at most {_LARGEST} shifts")
        ranges = [range(0, size, step) for step, size in zip(steps, shape, strict=True)]
        name = f"translations of the grid {shape} by {steps}"
        return cls.translations(shape, list(itertools.product(*ranges)), name)

    @classmethod
    def rotations(cls, latitudes: int, longitudes: int, step: int = 1) -> Group:
        """Rotations of a (lat, lon) grid about the axis."""
        latitudes, longitudes = integer("latitudes", latitudes, least=1), integer("longitudes", longitudes, least=1)
        step = integer("step", step, least=1)
        return cls.grid((latitudes, longitudes), (latitudes, step))

    @classmethod
    def trivial(cls, sites: int) -> Group:
        """The identity alone."""
        sites = integer("sites", sites, least=1, most=_MOST_SITES)
        return cls("the identity alone", sites, lambda index: torch.arange(sites), 1)

    @classmethod
    def generated_by(cls, *permutations: Sequence[int] | Tensor, name: str = "") -> Group:
        """All products of some permutations.

        Raises
        ------
        ValueError
            If one is no permutation, they differ in length, or generate too many.
        """
        if not permutations:
            raise ValueError("permutations=(): expected at least one permutation of the sites")
        if not isinstance(name, str):
            raise TypeError(f"name={shown(name)}: expected a string")
        generators = [torch.tensor(_integers("permutations", p), dtype=torch.int64) for p in permutations]
        identity = torch.arange(len(generators[0]))
        for p in generators:
            if not len(p) or len(p) != len(identity) or not torch.equal(p.sort().values, identity):
                raise ValueError(
                    f"permutations={shown(p.tolist())}: expected the numbers of {len(identity)} sites, each once"
                )
        products = {tuple(identity.tolist()): identity}
        newest = [identity]
        while newest:
            once_more = {tuple(product.tolist()): product for p in generators for g in newest for product in [g[p]]}
            new = {key: product for key, product in once_more.items() if key not in products}
            products |= new
            newest = list(new.values())
            if len(products) > _LARGEST:
                raise ValueError(f"the permutations generate more than {_LARGEST} elements: expected a smaller group")
        elements = list(products.values())
        return cls(name or "permutations", len(identity), lambda index: elements[index], len(elements))

    def __len__(self) -> int:
        return self._size

    def permutation(self, index: int) -> Tensor:
        """The index-th element g, as the tensor of int64 of g(0), ..., g(N - 1); the identity comes first."""
        return self._permutation(index)

    def images(self, site: int) -> list[int]:
        """g(site) for every element."""
        return [int(self.permutation(index)[site]) for index in range(len(self))]

    def orbits(self) -> list[list[int]]:
        """Sites that are carried into one another, each list in ascending order."""
        covered: set[int] = set()
        orbits = []
        for site in range(self.sites):
            if site not in covered:
                orbits.append(sorted(set(self.images(site))))
                covered |= set(orbits[-1])
        return orbits

    def __repr__(self) -> str:
        return f"<xdan.Group: {self.name}, {len(self)} elements on {self.sites} sites>"


def _items(label: str, values: Any) -> list[Any]:
    """The items of a sequence, NumPy's or torch's too."""
    if not isinstance(values, (Sequence, range, np.ndarray, Tensor)) or isinstance(values, (str, bytes)):
        raise TypeError(f"{label}={shown(values)}: expected a sequence of integers")
    try:
        return list(values)
    except TypeError:
        raise TypeError(f"{label}={shown(values)}: expected a sequence of integers") from None


def _integers(label: str, values: Any, least: int | None = None) -> tuple[int, ...]:
    items = values.tolist() if isinstance(values, (np.ndarray, Tensor)) else values
    return tuple(integer(label, item, least=least) for item in _items(label, items))


def invariant_shifts(shape: Sequence[int], unchanged: Callable[[Tensor], bool]) -> Group:
    """Find the largest group of shifts of a periodic grid that leave something unchanged.

    Parameters
    ----------
    shape : sequence of int
        Of the state.
    unchanged : callable
        Whether a permutation, a tensor of int64 of shape (N,), changes nothing.

    Returns
    -------
    Group
        Of all shifts of the grid; on states of more than 4096 sites and several dims, of shifts along the dims.
    """
    shape = tuple(shape)
    sites = math.prod(shape)

    def holds(offset: tuple[int, ...]) -> bool:
        grid = torch.arange(sites).reshape(shape)
        return unchanged(grid.roll([-o for o in offset], list(range(len(shape)))).flatten())

    steps = []
    for axis, size in enumerate(shape):
        divisors = [d for d in range(1, size) if size % d == 0]
        along = (tuple(d if a == axis else 0 for a in range(len(shape))) for d in divisors)
        steps.append(next((max(offset) for offset in along if holds(offset)), size))
    if len(shape) == 1:
        return Group.ring(sites, steps[0]) if steps[0] < sites else Group.trivial(sites)
    if math.prod(steps) > 1 and sites <= _ALL_SHIFTS:
        offsets = [offset for offset in itertools.product(*map(range, shape)) if holds(offset)]
        if len(offsets) > sites // math.prod(steps):
            return Group.translations(shape, offsets, f"{len(offsets)} translations of the grid {shape}")
    return Group.grid(shape, steps) if math.prod(steps) < sites else Group.trivial(sites)


def commutes(function: Callable[[Tensor], Tensor], x: Tensor, permutation: Tensor) -> bool:
    """Whether a function of states (B, N) commutes with a permutation, to rounding, at some states."""
    expected, of_permuted = function(x)[:, permutation], function(x[:, permutation])
    return bool((of_permuted - expected).abs().max() <= _TOLERANCE * (1.0 + expected.abs().max()))


def symmetry_average(gain: Tensor, group: Group, reference: int) -> Tensor:
    """Average a marginal gain over a group, Eq. G2a.

    Omega_r[i, j] = mean_g Gamma[g(i), g(j), g(r)]; on the ring Gamma[i + l - r, j + l - r, l] averaged over l.

    Parameters
    ----------
    gain : Tensor, shape (..., N, N, N)
        Gamma along i, j and l.
    group : Group
    reference : int
        r.

    Returns
    -------
    Tensor, shape (..., N, N)
    """
    total = torch.zeros_like(gain[..., 0])
    for index in range(len(group)):
        g = group.permutation(index).to(gain.device)
        total += gain[..., int(g[reference])][..., g, :][..., g]
    return total / len(group)


def spread_out(omega: Tensor, group: Group, reference: int) -> Tensor:
    """Carry a symmetry average back to all sites l that the reference is carried to, Eq. F5.

    Gamma[g(i), g(j), g(r)] = Omega_r[i, j].

    Parameters
    ----------
    omega : Tensor, shape (..., N, N)
    group : Group
    reference : int

    Returns
    -------
    Tensor, shape (..., N, N, N)
        NaN at sites l that the group does not carry the reference to.
    """
    gamma = torch.full((*omega.shape, group.sites), torch.nan, dtype=omega.dtype, device=omega.device)
    for index in range(len(group)):
        g = group.permutation(index).to(omega.device)
        target = torch.empty_like(omega)
        target[..., g[:, None], g[None, :]] = omega
        gamma[..., int(g[reference])] = target
    return gamma
