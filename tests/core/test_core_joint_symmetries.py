"""Motions that several geometries have together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import xdan
from xdan.core.spaces import Field, StateSpace
from xdan.core.spaces.joint import joint_symmetries, period, power_of


@pytest.mark.parametrize(
    ("permutation", "length"),
    [([1, 2, 0], 3), ([0, 1, 2], 1), ([1, 0, 3, 2], 2), ([1, 0, 2], None), ([1, 2, 0, 4, 3], None), ([0], 1)],
)
def test_length_of_all_cycles(permutation, length):
    assert period(torch.tensor(permutation)) == length


@given(st.permutations(range(7)), st.integers(0, 20))
def test_powers(permutation, exponent):
    move, expected = torch.tensor(permutation), torch.arange(7)
    for _ in range(exponent):
        expected = move[expected]
    assert torch.equal(power_of(move, exponent), expected)


def isometric(space, g):
    """Whether a permutation of the flat vector leaves all distances as they are, between fields too."""
    apart = space.distances(torch.arange(space.size))
    return bool((apart[g][:, g] - apart).abs().max() < 1e-5 * apart.max())


@pytest.mark.parametrize(
    ("first", "second", "shift"),
    [
        (xdan.Ring(4, length=1.0, dim="x"), xdan.Ring(12, length=1.0, dim="y"), (1, 3)),
        (xdan.Ring(12, length=1.0, dim="x"), xdan.Ring(4, length=1.0, dim="y"), (3, 1)),
        (xdan.Ring(4, length=1.0, dim="x"), xdan.Ring(6, length=1.0, dim="y"), (2, 3)),
    ],
)
def test_rings_of_two_spacings_turn_by_what_both_have(first, second, shift):
    space = StateSpace([Field("X", first), Field("Y", second)])
    moves = space.symmetries()
    turn = moves["shift along x"]
    assert int(turn[0]) == shift[0]
    assert int(turn[first.size]) == first.size + shift[1]
    assert set(moves) == {"shift along x", "reflection of x"}
    assert all(isometric(space, g) for g in moves.values())


def test_no_common_turn_of_rings_whose_points_do_not_divide_one_another():
    first, second = xdan.Ring(4, length=1.0, dim="x"), xdan.Ring(9, length=1.0, dim="y")
    assert set(joint_symmetries([first, second])) == {"reflection of x"}


FIELDS = [
    xdan.Ring(4, length=2.0),
    xdan.Ring(8, length=2.0, dim="fine"),
    xdan.Interval(3, dim="z"),
    xdan.Plane((2, 4), dims=("a", "b")),
    xdan.Sphere(2, 4),
    xdan.Components(3),
]


@given(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=3))
def test_candidates_are_permutations_under_which_meeting_fields_keep_their_distances(geometries):
    fields = [Field(f"f{k}", one) for k, one in enumerate(geometries)]
    space = StateSpace(fields)
    for name, g in space.symmetries().items():
        assert torch.equal(g.sort().values, torch.arange(space.size)), name
        for one in fields:
            for other in fields:
                if not one.geometry.meets(other.geometry) or one.geometry.positions() is None:
                    continue
                apart = other.geometry.distances(one.geometry.positions())
                whole = torch.full((space.size, space.size), torch.nan, dtype=torch.float64)
                whole[space.slices[one.name], space.slices[other.name]] = apart
                moved = whole[g][:, g][space.slices[one.name], space.slices[other.name]]
                if not name.startswith("exchange of f"):
                    assert float((moved - apart).abs().max()) <= 1e-5 * float(apart.max()), name


def test_fields_on_one_grid_move_together_and_may_be_exchanged():
    ring = xdan.Ring(3)
    moves = StateSpace([Field("h", ring), Field("u", ring)]).symmetries()
    assert moves["shift along x"].tolist() == [1, 2, 0, 4, 5, 3]
    assert moves["exchange of h and u"].tolist() == [3, 4, 5, 0, 1, 2]


def test_fields_of_two_spaces_move_alone():
    moves = StateSpace([Field("h", xdan.Ring(3)), Field("c", xdan.Components(2))]).symmetries()
    assert moves["shift along x"].tolist() == [1, 2, 0, 3, 4]
    assert moves["exchange of 0 and 1"].tolist() == [0, 1, 2, 4, 3]
