"""Groups of permutations of the sites; those that do not change a model and its observing system."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import integer, shown
from .spaces.joint import period, power_of
from .tables import html_table

_ALL_SHIFTS = 4096  # largest number of products of shifts that are all tested; with more, powers of each shift alone
_MOST_SITES = 10**8  # a permutation of more sites would take gigabytes
_LARGEST = 100_000  # largest number of elements of a group that permutations generate
_MOST_PRODUCTS = 1024  # largest number of products of candidates that are not shifts
_LISTED = 2**24  # largest number of sites times elements of a group whose elements are all compared
_NAMED = 4  # number of elements that the name of a group lists
_TRIED = 64  # number of shifts that are added to all others, as a test whether shifts are a group
_TOLERANCE = 1e-9


class Group:
    """A group of permutations of the N sites of a flattened state, acting by (g x)_i = x_{g(i)}.

    `translations`, `ring`, `grid`, `rotations`, `trivial` and `generated_by` make groups.

    Parameters
    ----------
    name : str
        Description of the group.
    sites : int
        Number N of sites.
    permutation : callable
        permutation(k) gives the sites g(i) of element k, from 0 to size - 1: a Tensor of integers, shape (N,).
    size : int
        Number of elements of the group.

    References
    ----------
    Bocquet et al., Eq. F1.

    Examples
    --------
    >>> import xdan
    >>> group = xdan.Group.ring(12, step=3)
    >>> len(group), group.sites
    (4, 12)
    """

    def __init__(self, name: str, sites: int, permutation: Callable[[int], Tensor], size: int) -> None:
        self.name, self.sites, self._permutation, self._size = name, sites, permutation, size

    @classmethod
    def translations(cls, shape: Sequence[int], offsets: Sequence[Sequence[int]], name: str = "") -> Group:
        """Group of shifts of a periodic grid.

        Parameters
        ----------
        shape : sequence of int
            Shape of the grid.
        offsets : sequence of sequences of int
            All shifts of the group. A shift has a number for each dim of the grid.
        name : str
            Description of the group. By default it lists some shifts.
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
                    raise ValueError(
                        f"the shifts by {one} and {other} are given, and their sum, the shift by {both}, is missing: "
                        "expected a group, with all sums of its shifts"
                    )

        def permutation(index: int) -> Tensor:
            grid = torch.arange(math.prod(shape)).reshape(shape)
            return grid.roll([-o for o in shifts[index]], list(range(len(shape)))).flatten()

        return cls(name or f"{len(shifts)} translations", math.prod(shape), permutation, len(shifts))

    @classmethod
    def ring(cls, sites: int, step: int = 1) -> Group:
        """Shifts of a ring by multiples of a step.

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
        """Shifts of a periodic grid by multiples of a step along every dim. A step of the whole length is no shift.

        Raises
        ------
        ValueError
            If a step does not divide the length of its dim.
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
        """Rotations of a (lat, lon) grid around the axis."""
        latitudes, longitudes = integer("latitudes", latitudes, least=1), integer("longitudes", longitudes, least=1)
        step = integer("step", step, least=1)
        return cls.grid((latitudes, longitudes), (latitudes, step))

    @classmethod
    def trivial(cls, sites: int) -> Group:
        """The group with the identity alone."""
        sites = integer("sites", sites, least=1, most=_MOST_SITES)
        return cls("the identity alone", sites, lambda index: torch.arange(sites), 1)

    @classmethod
    def generated_by(cls, *permutations: Sequence[int] | Tensor, name: str = "") -> Group:
        """All products of some permutations.

        Raises
        ------
        ValueError
            If one is not a permutation, they have different lengths, or they generate too many elements.
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
        """Element number `index`, as the tensor of int64 of g(0), ..., g(N - 1). The identity is the first."""
        return self._permutation(index)

    def images(self, site: int) -> list[int]:
        """g(site) for each element g."""
        return [int(self.permutation(index)[site]) for index in range(len(self))]

    def orbits(self) -> list[list[int]]:
        """Sets of sites that the elements map to each other, each as an ascending list."""
        covered: set[int] = set()
        orbits = []
        for site in range(self.sites):
            if site not in covered:
                orbits.append(sorted(set(self.images(site))))
                covered |= set(orbits[-1])
        return orbits

    def __repr__(self) -> str:
        return f"<xdan.Group: {self.name}, {len(self)} elements on {self.sites} sites>"

    def _repr_html_(self) -> str:
        return html_table("xdan.Group", [("group", self.name), ("elements", len(self)), ("sites", self.sites)])


def _items(label: str, values: Any) -> list[Any]:
    """The items of a sequence, also of NumPy or torch."""
    if not isinstance(values, (Sequence, range, np.ndarray, Tensor)) or isinstance(values, (str, bytes)):
        raise TypeError(f"{label}={shown(values)}: expected a sequence of integers")
    try:
        return list(values)
    except TypeError:
        raise TypeError(f"{label}={shown(values)}: expected a sequence of integers") from None


def _integers(label: str, values: Any, least: int | None = None) -> tuple[int, ...]:
    items = values.tolist() if isinstance(values, (np.ndarray, Tensor)) else values
    return tuple(integer(label, item, least=least) for item in _items(label, items))


def invariant_group(candidates: Mapping[str, Tensor], sites: int, unchanged: Callable[[Tensor], bool]) -> Group:
    """Find the largest group of products of some candidates that leave something unchanged.

    Some candidates are shifts s, s^2, ...: all their cycles have one length, and they commute. Their powers by divisors
    of the length are tested. If there are at most 4096 shifts, all products of shifts are tested. Every product q of
    the other candidates is tested. With at most 4096 shifts, it is also tested after each shift s: a reflection around
    another site may leave an observing system unchanged if the reflection around the first site does not. If the
    candidates have too many products, like the exchanges of many components, they are tested one by one.

    Parameters
    ----------
    candidates : mapping of str to Tensor of int64, shape (N,)
        Permutations by name, for example from `StateSpace.symmetries`.
    sites : int
        Number N of sites.
    unchanged : callable
        Whether a permutation changes nothing. If it is true of two permutations, it must be true of their product.

    Returns
    -------
    Group
        The elements are s q; q varies slowest.
    """
    shifts, others = _sorted_out(candidates)
    counts = [count for _, _, count in shifts]

    def shift(powers: Sequence[int]) -> Tensor:
        order = torch.arange(sites)
        for (_, move, _), power in zip(shifts, powers, strict=True):
            order = order[power_of(move, power)]
        return order

    along = [
        next((d for d in range(1, count) if count % d == 0 and unchanged(power_of(move, d))), count)
        for _, move, count in shifts
    ]
    powers = [list(o) for o in itertools.product(*(range(0, n, d) for n, d in zip(counts, along, strict=True)))]
    steps = ", ".join(f"{name} by {d}" for (name, _, n), d in zip(shifts, along, strict=True) if d < n)
    if counts == [sites]:
        steps = steps and f"turns of the ring by {along[0]}"
    if len(shifts) > 1 and math.prod(along) > 1 and math.prod(counts) <= _ALL_SHIFTS:
        every = [list(o) for o in itertools.product(*map(range, counts)) if unchanged(shift(o))]
        if len(every) > len(powers):
            powers, steps = every, f"{len(every)} shifts"
    turns = {"": torch.arange(sites)}
    products = list(_products(others, sites).items())[1:]
    # One shift is enough from each coset of the shifts that change nothing.
    apart = [[0] * len(counts)]
    if len(products) * math.prod(along) <= _ALL_SHIFTS:
        apart = [list(o) for o in itertools.product(*map(range, along))]
    for name, product in products:
        for offset in apart:
            turn = shift(offset)[product]
            if unchanged(turn):
                turns[name if not any(offset) else f"{name} after a shift"] = turn
                break
    if len(turns) > 1:
        turns = _generated(turns, sites)
    names = [steps, *list(turns)[1:_NAMED]] + (["..."] if len(turns) > _NAMED else [])
    element, count = _joined(shift, powers, list(turns.values()))
    return Group(", ".join(filter(None, names)), sites, element, count) if count > 1 else Group.trivial(sites)


def _sorted_out(candidates: Mapping[str, Tensor]) -> tuple[list[tuple[str, Tensor, int]], dict[str, Tensor]]:
    """Shifts that commute, with the lengths of their cycles; and the other permutations."""
    shifts: list[tuple[str, Tensor, int]] = []
    others: dict[str, Tensor] = {}
    for name, move in candidates.items():
        count = period(move)
        if count == 1:
            continue
        if count is None or any(not torch.equal(move[other], other[move]) for _, other, _ in shifts):
            others[name] = move
        else:
            shifts.append((name, move, count))
    return shifts, others


def _products(generators: Mapping[str, Tensor], sites: int) -> dict[str, Tensor]:
    """All products, with the identity first under an empty name. If there are too many, the permutations alone."""
    known = _closed({}, generators, sites)
    return {"": torch.arange(sites), **generators} if known is None else known


def _generated(turns: Mapping[str, Tensor], sites: int) -> dict[str, Tensor]:
    """The group of all products of some permutations. If it is too large, that of as many of the first as possible."""
    chosen: dict[str, Tensor] = {}
    known = {"": torch.arange(sites)}
    for name, turn in turns.items():
        more = _closed(known, {**chosen, name: turn}, sites)
        if more is not None:
            chosen[name], known = turn, more
    return known


def _closed(known: Mapping[str, Tensor], generators: Mapping[str, Tensor], sites: int) -> dict[str, Tensor] | None:
    """All products of some permutations by name; None if there are more than a thousand."""
    products = dict(known) or {"": torch.arange(sites)}
    keys = {_key(one) for one in products.values()}
    newest = dict(products)
    while newest:
        words = {f"{name} {word}".strip(): g[one] for word, g in newest.items() for name, one in generators.items()}
        newest = {}
        for word, g in words.items():
            if _key(g) not in keys:
                keys.add(_key(g))
                newest[word] = g
        products |= newest
        if len(products) > _MOST_PRODUCTS:
            return None
    return products


def _joined(shift: Callable[[Sequence[int]], Tensor], powers: Sequence[Sequence[int]], turns: Sequence[Tensor]) -> Any:
    """Number of elements, and their function: every shift before every turn, the identity first, each once."""
    count = len(powers) * len(turns)

    def element(index: int) -> Tensor:
        return shift(powers[index % len(powers)])[turns[index // len(powers)]]

    if len(turns) == 1 or count * len(turns[0]) > _LISTED:
        return element, count
    distinct = list({_key(one): one for one in map(element, range(count))}.values())
    return distinct.__getitem__, len(distinct)


def _key(permutation: Tensor) -> bytes:
    return permutation.numpy().tobytes()


def commutes(function: Callable[[Tensor], Tensor], x: Tensor, permutation: Tensor) -> bool:
    """Whether a function of states (B, N) commutes with a permutation at some states, except for rounding."""
    expected, of_permuted = function(x)[:, permutation], function(x[:, permutation])
    return bool((of_permuted - expected).abs().max() <= _TOLERANCE * (1.0 + expected.abs().max()))


def symmetry_average(gain: Tensor, group: Group, reference: int) -> Tensor:
    """Average a marginal gain over a group, Eq. G2a.

    Omega_r[i, j] = mean_g Gamma[g(i), g(j), g(r)]. On a ring: Gamma[i + l - r, j + l - r, l], averaged over l.

    Parameters
    ----------
    gain : Tensor, shape (..., N, N, N)
        Gamma along i, j and l.
    group : Group
    reference : int
        Reference site r.

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
    """Spread a symmetry average to all sites l to which the group maps the reference, Eq. F5.

    Gamma[g(i), g(j), g(r)] = Omega_r[i, j].

    Parameters
    ----------
    omega : Tensor, shape (..., N, N)
    group : Group
    reference : int

    Returns
    -------
    Tensor, shape (..., N, N, N)
        NaN at sites l to which the group does not map the reference.
    """
    gamma = torch.full((*omega.shape, group.sites), torch.nan, dtype=omega.dtype, device=omega.device)
    for index in range(len(group)):
        g = group.permutation(index).to(omega.device)
        target = torch.empty_like(omega)
        target[..., g[:, None], g[None, :]] = omega
        gamma[..., int(g[reference])] = target
    return gamma
