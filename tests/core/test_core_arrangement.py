"""Fields joined as channels on one grid: every component keeps its place, and comes back."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from xdan.core.networks.arrangement import Arrangement
from xdan.core.spaces import Components, Field, FixedInput, Interval, Plane, Ring, Sphere, StateSpace, Unstated


def space_on(*geometries) -> StateSpace:
    return StateSpace([Field(f"f{k}", geometry) for k, geometry in enumerate(geometries)])


@st.composite
def joined_spaces(draw) -> StateSpace:
    """One to three fields that can be joined on one grid."""
    count, fold = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["ring", "interval", "plane", "sphere", "components"]))
    n, m = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    if kind == "components":
        return space_on(*(Components(n + k, dim=f"c{k}") for k in range(count)))
    if kind == "sphere":
        return space_on(*[Sphere(n + 1, 2 * m)] * count)
    if kind == "plane":
        closed = (draw(st.booleans()), draw(st.booleans()))
        finer = Plane((fold * n, 2 * m), closed, dims=("y_fine", "x_fine"))
        return space_on(*[*[Plane((n, m), closed)] * count, finer][-count:])
    line = Ring if kind == "ring" else Interval
    return space_on(*[*[line(n)] * count, line(fold * n, dim="x_fine")][-count:])


@given(joined_spaces(), st.integers(1, 2), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_channels_and_states_are_one_anothers_inverse(space, count, batch):
    arrangement = Arrangement(space)
    x = torch.arange(float(count * batch * space.size)).reshape(count, batch, space.size)
    features = arrangement.to_channels(x)
    assert features.shape == (count * arrangement.channels, *arrangement.sites, batch)
    assert torch.equal(arrangement.from_channels(features), x)
    assert math.prod(arrangement.sites) * arrangement.channels == space.size


def test_a_ring_of_any_length_is_one_channel():
    arrangement, x = Arrangement(None), torch.randn(2, 3, 7)
    assert torch.equal(arrangement.to_channels(x), x.mT)
    assert torch.equal(arrangement.from_channels(x.mT), x)


def test_a_finer_ring_is_folded_site_by_site():
    """Two-scale Lorenz-96: the 4 fast sites of each of 3 slow ones are 4 channels beside the slow one's."""
    space = space_on(Ring(3), Ring([k / 4 for k in range(12)], 3.0, "fast"))
    arrangement = Arrangement(space)
    assert (arrangement.channels, arrangement.sites) == (5, (3,))
    slow, fast = torch.tensor([100.0, 200.0, 300.0]), torch.arange(12.0)
    features = arrangement.to_channels(torch.cat([slow, fast])[None, None])[..., 0]
    expected = torch.stack([slow, fast[0::4], fast[1::4], fast[2::4], fast[3::4]])
    assert torch.equal(features, expected)


def test_a_finer_plane_is_folded_in_both_axes():
    space = space_on(Plane((2, 2)), Plane((4, 6), dims=("v", "u")))
    fine = torch.arange(24.0).reshape(4, 6)
    features = Arrangement(space).to_channels(torch.cat([torch.zeros(4), fine.flatten()])[None, None])[..., 0]
    for row in range(2):
        for column in range(3):
            assert torch.equal(features[1 + 3 * row + column], fine[row::2, column::3])


def test_components_are_channels_of_one_site():
    features = Arrangement(space_on(Components(3), Components(2, "other"))).to_channels(torch.arange(5.0)[None, None])
    assert torch.equal(features, torch.arange(5.0)[:, None, None])


def test_scales_of_fields_are_those_of_their_channels():
    arrangement = Arrangement(space_on(Ring(3), Ring(6, dim="fast")))
    assert arrangement.per_channel(torch.tensor(2.0)).shape == ()
    assert_close(arrangement.per_channel(torch.tensor([2.0, 5.0])), torch.tensor([2.0, 5.0, 5.0])[:, None, None])


def test_fixed_inputs_stand_where_their_points_are():
    coarse, fine = Ring(2), Ring(4, dim="fast")
    space = StateSpace(
        [Field("a", coarse), Field("b", fine)], [FixedInput("height", fine, torch.tensor([1.0, 2.0, 3.0, 4.0]))]
    )
    assert torch.equal(Arrangement(space).fixed(space.inputs), torch.tensor([[1.0, 3.0], [2.0, 4.0]]))


@pytest.mark.parametrize(
    "geometries",
    [
        (Ring(4), Ring(6, dim="fast")),
        (Ring(4), Interval(4, dim="z")),
        (Ring(4), Components(2)),
        (Sphere(4, 8), Plane((4, 8))),
        (Plane((4, 4)), Plane((4, 4), (True, False), dims=("z", "w"))),
        (Unstated({"x": range(3)}), Ring(3, dim="z")),
    ],
)
def test_what_cannot_be_joined_is_refused_with_the_remedy(geometries):
    with pytest.raises(ValueError, match=r"cannot be joined: expected one geometry, or a finer.*network of your own"):
        Arrangement(space_on(*geometries))
