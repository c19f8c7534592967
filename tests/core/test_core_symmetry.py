"""Groups of permutations and what averaging over them does."""

import pytest
import torch

import xdan
from xdan.core.symmetry import Group, commutes, invariant_group, spread_out, symmetry_average


def elements(group):
    return {tuple(group.permutation(k).tolist()) for k in range(len(group))}


GROUPS = {
    "ring": Group.ring(6),
    "ring by two": Group.ring(6, 2),
    "torus": Group.grid((2, 3), (1, 1)),
    "sphere": Group.rotations(2, 3),
    "trivial": Group.trivial(6),
    "permutations": Group.generated_by([1, 0, 2, 3, 4, 5], [0, 1, 3, 4, 2, 5]),
}


@pytest.mark.parametrize("name", GROUPS)
def test_products_and_inverses_are_in_the_group(name):
    permutations = elements(GROUPS[name])
    assert len(permutations) == len(GROUPS[name])
    assert GROUPS[name].permutation(0).tolist() == list(range(6))
    for g in permutations:
        assert tuple(torch.tensor(g).argsort().tolist()) in permutations
        for h in permutations:
            assert tuple(g[k] for k in h) in permutations


@pytest.mark.parametrize("name", GROUPS)
def test_orbits_are_the_images_of_a_site(name):
    group = GROUPS[name]
    orbits = group.orbits()
    assert sorted(site for orbit in orbits for site in orbit) == list(range(6))
    for orbit in orbits:
        assert all(set(group.images(site)) == set(orbit) for site in orbit)


def test_known_orbits():
    assert GROUPS["ring by two"].orbits() == [[0, 2, 4], [1, 3, 5]]
    assert GROUPS["sphere"].orbits() == [[0, 1, 2], [3, 4, 5]]
    assert len(GROUPS["permutations"]) == 6


def test_average_on_the_ring_is_the_sum_that_is_written_out():
    gamma = torch.randn(2, 5, 5, 5, dtype=torch.float64)
    r = 1
    average = symmetry_average(gamma, Group.ring(5), r)
    for i in range(5):
        for j in range(5):
            terms = [gamma[:, (i + site - r) % 5, (j + site - r) % 5, site] for site in range(5)]
            torch.testing.assert_close(average[:, i, j], torch.stack(terms).mean(0))


@pytest.mark.parametrize("name", GROUPS)
def test_invariant_gain_follows_from_one_average_for_each_orbit(name):
    group = GROUPS[name]
    gamma = torch.randn(6, 6, 6, dtype=torch.float64)
    invariant = torch.stack([gamma[g][:, g][:, :, g] for g in map(group.permutation, range(len(group)))]).mean(0)
    rebuilt = torch.full_like(gamma, torch.nan)
    for orbit in group.orbits():
        part = spread_out(symmetry_average(gamma, group, orbit[0]), group, orbit[0])
        rebuilt = torch.where(rebuilt.isnan(), part, rebuilt)
    torch.testing.assert_close(rebuilt, invariant, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "pattern", "size"),
    [
        ((12,), [0] * 12, 12),
        ((12,), [1, 0] * 6, 6),
        ((12,), [1, 0, 0] * 4, 4),
        ((12,), [1, *[0] * 11], 1),
        ((3, 4), [0] * 12, 12),
        ((3, 4), [0] * 4 + [1] * 4 + [2] * 4, 4),
        ((4, 4), [0, 1, 0, 1, 1, 0, 1, 0] * 2, 8),
    ],
)
def test_shifts_that_leave_a_pattern_as_it_is(shape, pattern, size):
    values = torch.tensor(pattern)
    shifts = xdan.core.spaces.Unstated({f"dim{k}": range(size) for k, size in enumerate(shape)}).symmetries()
    group = invariant_group(shifts, len(pattern), lambda g: bool((values[g] == values).all()))
    assert len(group) == size
    assert all((values[g] == values).all() for g in map(group.permutation, range(size)))


def brute_force(candidates, sites, unchanged):
    """Every product of the candidates, tried by itself."""
    everything = Group.generated_by(list(range(sites)), *candidates.values())
    return {g for g in elements(everything) if unchanged(torch.tensor(g))}


PATTERNS = {
    "all alike": lambda n: torch.zeros(n),
    "every other": lambda n: torch.arange(n) % 2,
    "every third from the second": lambda n: (torch.arange(n) % 3 == 1).int(),
    "one apart": lambda n: (torch.arange(n) == n // 3).int(),
    "all apart": lambda n: torch.arange(n),
    "two kinds": lambda n: (torch.arange(n) < n // 2).int(),
}
GEOMETRIES = {
    "ring": xdan.Ring(6),
    "odd ring": xdan.Ring(5),
    "two points": xdan.Ring(2),
    "one point": xdan.Ring(1),
    "interval": xdan.Interval(4),
    "torus": xdan.Plane((4, 4)),
    "channel": xdan.Plane((2, 4), periodic=(False, True)),
    "box": xdan.Plane((3, 3), periodic=(False, False)),
    "sphere": xdan.Sphere(2, 4),
    "components": xdan.Components(4),
    "a grid of which no more is known": xdan.core.spaces.Unstated({"a": range(2), "b": range(3)}),
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_group_is_all_that_leaves_a_pattern_as_it_is(geometry, pattern):
    where = GEOMETRIES[geometry]
    values = PATTERNS[pattern](where.size)

    def unchanged(g):
        return bool((values[g] == values).all())

    group = invariant_group(where.symmetries(), where.size, unchanged)
    assert group.permutation(0).tolist() == list(range(where.size))
    assert len(group) == len(elements(group))
    assert elements(group) == brute_force(where.symmetries(), where.size, unchanged)


def test_too_many_exchanges_still_give_a_group():
    """40,320 products of eight components: as many of the first as make a thousand."""
    space = xdan.Components(8)
    group = invariant_group(space.symmetries(), 8, lambda g: True)
    known = elements(group)
    assert 100 < len(known) == len(group) <= 1024
    assert all(tuple(g[k] for k in h) in known for g in list(known)[:20] for h in list(known)[:20])


@pytest.mark.parametrize("step", [1, 2, 6])
def test_turns_of_a_ring_keep_their_order_and_name(step):
    """Averages and stores have them."""
    turns = Group.ring(12, step)
    group = invariant_group(xdan.Ring(12).symmetries(), 12, lambda g: tuple(g.tolist()) in elements(turns))
    assert repr(group) == repr(turns)
    assert all(torch.equal(group.permutation(k), turns.permutation(k)) for k in range(len(turns)))


def test_commuting_functions():
    x = torch.randn(2, 6, dtype=torch.float64)
    shift = Group.ring(6).permutation(1)
    assert commutes(lambda z: z.roll(2, 1) * z, x, shift)
    assert not commutes(lambda z: z * torch.arange(6.0), x, shift)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Group.ring(6, 4), "divisor of the 6 sites"),
        (lambda: Group.grid((4, 6), (3, 1)), "divisors of the grid"),
        (lambda: Group.generated_by([0, 0, 1]), "expected the numbers of 3 sites, each once"),
        (lambda: Group.generated_by(), "at least one permutation"),
        (lambda: Group.translations((6,), [(0,), (1,)]), "expected a group"),
        (lambda: Group.generated_by([1, 0, *range(2, 12)], [*range(1, 12), 0]), "more than 100000"),
    ],
)
def test_what_is_no_group_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
