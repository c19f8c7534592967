"""How a state is cut into patches: cores, halos and colours, around a ring or by distance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import warn
from ..dynamics import Dynamics
from .advancing import advance_along
from .patches import MOST_SITES, Patches

_DISTANCES = 1 << 24  # number of distances between sites in one batch
_MOST = 20_000  # largest number of components whose distances are all in memory at once: some gibibytes
_TRIED, _BEYOND = 4, 0.01  # number of perturbations to try, and the largest share of one beyond the radius
_ROUND = 1e-9  # relative to a radius: sites at exactly this distance count as within the radius


def warn_of_reach(dynamics: Dynamics, patches: Patches, x: Tensor, steps: int) -> None:
    """Warn if the tangent linear model reaches beyond the radius. Patches do not represent what lies there.

    Parameters
    ----------
    dynamics : Dynamics
    patches : Patches
    x : Tensor, shape (1, N)
        A state of the climate, or the climate's mean.
    steps : int
        Model steps of an interval.

    Warns
    -----
    XdanWarning
        If more than `_BEYOND` of the mean square of a unit perturbation lies beyond the radius after the interval.
    """
    size = x.shape[1]
    sites = torch.linspace(0, size - 1, _TRIED).round().long()
    apart = dynamics.distances(sites)
    if apart is None or not steps:
        return
    unit = torch.nn.functional.one_hot(sites, size)[None].to(x)
    squares = advance_along(dynamics, x, unit, steps)[1][0].square()
    far = (apart > patches.radius * (1 + _ROUND)).to(x)
    share = float((squares * far).sum() / squares.sum())
    if share > _BEYOND:
        warn(
            f"radius={patches.radius:g}: after an interval {100 * share:.2g} % of the mean square of a perturbation of "
            f"the dynamics {dynamics.label!r} lies beyond the radius, where patches do not follow it: expected "
            f"less than {100 * _BEYOND:g} %; take a larger radius, or 'letkf'",
        )


def patches_of(dynamics: Dynamics, radius: float) -> Patches | None:
    """Cover a dynamics' states with patches. None if one patch would be no smaller than the state.

    Parameters
    ----------
    dynamics : Dynamics
    radius : float
        Width of the halos, in the units of the coordinates. Covariances between components that are farther apart are
        not kept, except inside a patch.

    Raises
    ------
    ValueError
        If the dynamics knows no distance.
    """
    space = dynamics.space
    single = space.single
    if single is not None and single.geometry.is_ring and (spacing := _even_spacing(dynamics)) is not None:
        if radius * (1 + _ROUND) < spacing:
            raise ValueError(_too_small(radius))
        return _around_ring(space.size, math.floor(radius / spacing * (1 + _ROUND)), radius)
    return _by_distance(dynamics, radius)


def _even_spacing(dynamics: Dynamics) -> float | None:
    """Distance between neighbours on a ring with evenly spaced points; None for other spaces."""
    size = dynamics.space.size
    apart = None if size < 4 else dynamics.distances(torch.arange(2))
    if apart is None:
        return None
    spacing = float(apart[0, 1])
    along = torch.minimum(torch.arange(size), size - torch.arange(size)) * spacing
    return spacing if torch.allclose(apart[0], along.to(apart[0]), rtol=1e-6) else None


def _too_small(radius: float) -> str:
    return (
        f"radius={radius:g}: no component has another within it; expected several grid lengths, in the units of the "
        "coordinates"
    )


def _around_ring(size: int, halo: int, radius: float) -> Patches | None:
    """Patches as wide as three halos, the core in the middle. The ends of a patch are no neighbours on the ring."""
    width = 3 * halo
    if width + halo > size:
        return None
    count = math.ceil(size / halo)
    starts = (torch.arange(count) * size) // count  # each core is about as wide as a halo
    sites = (starts[:, None] - halo + torch.arange(width)) % size
    whose = torch.bucketize(torch.arange(size), starts, right=True) - 1
    within = torch.arange(size) - starts[whose] + halo
    core = whose * width + within
    apart = (torch.arange(width)[:, None] - torch.arange(width)).abs()
    near = (apart <= halo).expand(count, width, width)
    colours, groups = _in_turn(size, 2 * halo + 1), _in_turn(count, 5)
    inside = torch.ones(count, width, dtype=torch.bool)
    steps = torch.arange(width)[None, None, :] - torch.arange(width)[None, :, None]  # from first to second component
    place = core[sites]
    partner = (place * width + place % width)[:, :, None] + steps
    return Patches(sites, inside, core, near, colours, _own_where_far(partner, near), groups, radius, contiguous=True)


def _in_turn(count: int, least: int) -> Tensor:
    """Colours of the places of a ring, (count,). Places of one colour are at least `least` places apart."""
    blocks = max(1, count // least)
    first = (torch.arange(blocks) * count + blocks - 1) // blocks
    return torch.arange(count) - first[torch.bucketize(torch.arange(count), first, right=True) - 1]


def _own_where_far(partner: Tensor, near: Tensor) -> Tensor:
    """`partner` for pairs within the radius; for other pairs, the place of the pair itself."""
    return torch.where(near, partner, torch.arange(partner.numel()).reshape(partner.shape))


def _by_distance(dynamics: Dynamics, radius: float) -> Patches | None:
    """Patches of any space. A core is what is left within half a radius of a component; a halo is what is near it."""
    size = dynamics.space.size
    if size > _MOST:
        raise ValueError(
            f"radius={radius:g} and states of {size:,} components that are not evenly spaced on a ring: patches are "
            f"cut by the distances of all pairs, expected at most {_MOST:,} components; take 'letkf'"
        )
    reach = radius * (1 + _ROUND)
    rows = []
    for some in torch.arange(size).split(max(1, _DISTANCES // size)):
        apart = dynamics.distances(some)
        if apart is None:
            raise ValueError(
                f"radius={radius:g} and the dynamics {dynamics.label!r}: patches need a distance, expected a dynamics "
                "that knows one; pass distance= to CustomDynamics, or radius=None for at most 2,000 components"
            )
        rows.append(apart)
    distance = torch.cat(rows)
    if int((distance <= reach).sum(1).min()) < 2:
        raise ValueError(_too_small(radius))
    near_core, cores = distance <= reach / 2, []
    left = torch.ones(size, dtype=torch.bool)
    while bool(left.any()):
        candidates = (near_core[int(left.to(torch.int8).argmax())] & left).nonzero()[:, 0]
        best = candidates[(near_core[candidates] & left).sum(1).argmax()]
        cores.append((near_core[best] & left).nonzero()[:, 0])
        left[cores[-1]] = False
    members = [(distance[core] <= reach).any(0).nonzero()[:, 0] for core in cores]
    width = max(len(one) for one in members)
    count = len(members)
    if width >= size or (count * width**2 >= size**2 and size <= MOST_SITES):
        return None
    sites, inside = torch.zeros(count, width, dtype=torch.int64), torch.zeros(count, width, dtype=torch.bool)
    place = torch.full((count, size), -1, dtype=torch.int64)  # place of each component in each patch
    core = torch.empty(size, dtype=torch.int64)
    for k, (one, mine) in enumerate(zip(members, cores, strict=True)):
        sites[k, : len(one)], inside[k, : len(one)] = one, True
        place[k, one] = torch.arange(len(one))
        core[mine] = k * width + place[k, mine]
    near = (distance[sites[:, :, None], sites[:, None, :]] <= reach) & inside[:, :, None] & inside[:, None, :]
    first = core[sites]
    second = place[(first // width)[:, :, None], sites[:, None, :]]
    partner = (first * width)[:, :, None] + second
    member = (place >= 0).to(torch.float32)
    touched = member @ (distance <= reach).to(member) @ member.T > 0
    colours, groups = _colours(distance <= 2 * reach), _colours(touched)
    return Patches(sites, inside, core, near, colours, _own_where_far(partner, near), groups, radius, contiguous=False)


def _colours(near: Tensor) -> Tensor:
    """Colours of a graph (N, N) by a greedy algorithm: neighbours have different colours."""
    colours = torch.full((len(near),), -1, dtype=torch.int64)
    for k, row in enumerate(near):
        taken = set(colours[row].tolist())
        colours[k] = next(c for c in range(len(near)) if c not in taken)
    return colours
