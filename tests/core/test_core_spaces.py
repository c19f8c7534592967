"""Spaces and geometries, against loops over points, closed forms and invariances."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import xdan
from xdan.core.spaces import (
    Components,
    Field,
    FixedInput,
    Geometry,
    Interval,
    Plane,
    Ring,
    Sphere,
    StateSpace,
    Unstated,
    geometry_from_json,
    geometry_to_json,
    register_geometry,
)

LENGTHS = st.sampled_from([None, 1.0, 2.5, 360.0])
GAPS = st.lists(st.sampled_from([0.25, 0.5, 1.0, 3.0]), min_size=0, max_size=6)
WITH_DISTANCE = (Ring, Interval, Plane, Sphere)


@st.composite
def axes(draw, periodic: bool, dim: str = "x"):
    """A ring or an interval: points by their number, or at places with uneven gaps."""
    kind = Ring if periodic else Interval
    if draw(st.booleans()):
        return kind(draw(st.integers(1, 8)), draw(LENGTHS), dim)
    places = np.cumsum([draw(st.sampled_from([-3.0, 0.0, 2.0])), *draw(GAPS)]).tolist()
    return kind(places, places[-1] - places[0] + draw(st.sampled_from([0.25, 1.0])), dim) if periodic else kind(places)


@st.composite
def planes(draw):
    periodic = draw(st.tuples(st.booleans(), st.booleans()))
    rows, columns = (draw(axes(closed)) for closed in periodic)
    return Plane((rows.points, columns.points), periodic, (rows.length, columns.length))


@st.composite
def spheres(draw):
    rows, columns = draw(st.integers(2, 6)), 2 * draw(st.integers(1, 4))
    latitudes = np.linspace(-90.0, 90.0, rows).tolist() if draw(st.booleans()) else rows
    return Sphere(latitudes, columns, draw(st.sampled_from(["regular", "gaussian"])))


def geometries():
    return st.one_of(
        axes(True),
        axes(False),
        planes(),
        spheres(),
        st.integers(1, 6).map(Components),
        st.lists(st.sampled_from("abcdef"), min_size=1, unique=True).map(Components),
    )


@st.composite
def spaces(draw):
    """One to three fields; a dim of one name has one grid, so a geometry may come twice."""
    known: dict[str, Geometry] = {}
    fields = []
    for name in draw(st.lists(st.sampled_from(["u", "v", "h", "q"]), min_size=1, max_size=3, unique=True)):
        geometry = draw(geometries())
        geometry = next((known[dim] for dim in geometry.dims if dim in known), geometry)
        known |= dict.fromkeys(geometry.dims, geometry)
        fields.append(Field(name, geometry, draw(st.sampled_from(["1", "K", "m s-1"]))))
    return StateSpace(fields)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Fields and the flat vector.


@settings(max_examples=60)
@given(space=spaces(), lead=st.lists(st.integers(1, 3), max_size=2), seed=st.integers(0, 99))
def test_packing_and_unpacking_are_inverse(space, lead, seed):
    x = numbers(*lead, space.size, seed=seed)
    fields = space.unpack(x)
    assert {name: value.shape for name, value in fields.items()} == {
        field.name: (*lead, *field.geometry.shape) for field in space
    }
    assert torch.equal(space.pack(dict(reversed(fields.items()))), x)
    for name, part in space.slices.items():
        assert torch.equal(space.pack(fields)[..., part], fields[name].reshape(*lead, -1))
    assert space.size == sum(field.geometry.size for field in space) == math.prod(space.shape)
    assert tuple(len(space.coordinates[dim].values) for dim in space.dims) == space.shape


@settings(max_examples=60)
@given(space=spaces())
def test_a_space_survives_json(space):
    again = StateSpace.from_json(json.loads(json.dumps(space.to_json())))
    assert again == space
    assert hash(again) == hash(space)
    assert [field.geometry.coordinates for field in again] == [field.geometry.coordinates for field in space]


@settings(max_examples=40)
@given(geometry=geometries(), other=geometries())
def test_a_geometry_is_known_by_what_it_was_made_of(geometry, other):
    again = geometry_from_json(json.loads(json.dumps(geometry_to_json(geometry))))
    assert again == geometry
    assert hash(again) == hash(geometry)
    assert (geometry == other) == (geometry_to_json(geometry) == geometry_to_json(other))
    assert type(geometry).__name__ in repr(geometry)


def test_fixed_inputs_are_described_without_their_values():
    plane = Plane((2, 3))
    space = StateSpace([Field("psi", plane)], [FixedInput("coriolis", plane, torch.ones(2, 3))])
    again = StateSpace.from_json(space.to_json())
    assert again == space
    assert again.inputs[0].geometry == plane
    assert not again.inputs[0].values.any()


# Padding.


def beyond(axis: Geometry, i: int, count: int) -> int:
    """Which point of an axis stands at the place i, which may lie beyond its ends."""
    if isinstance(axis, Ring):
        while i < 0:
            i += count
        while i >= count:
            i -= count
        return i
    return 0 if i < 0 else count - 1 if i >= count else i


def over_the_poles(sphere: Sphere, i: int, j: int) -> tuple[int, int]:
    """Row and column of the sphere at a place that may lie beyond the poles: mirrored there, half around the axis."""
    rows, columns = sphere.shape
    at_pole = abs(sphere.coordinates["lat"].values[-1] - 90.0) < 1e-6
    if i < 0:
        i, j = (-i if at_pole else -1 - i), j + columns // 2
    elif i >= rows:
        i, j = (2 * rows - 2 - i if at_pole else 2 * rows - 1 - i), j + columns // 2
    return i, j % columns


@settings(max_examples=60)
@given(axis=st.one_of(axes(True), axes(False)), width=st.integers(0, 20), seed=st.integers(0, 99))
def test_an_axis_is_padded_point_by_point(axis, width, seed):
    x = numbers(2, axis.size, seed=seed)
    expected = torch.empty(2, axis.size + 2 * width, dtype=torch.float64)
    for place in range(-width, axis.size + width):
        expected[:, place + width] = x[:, beyond(axis, place, axis.size)]
    assert torch.equal(axis.pad(x, [width]), expected)


@settings(max_examples=60)
@given(plane=planes(), widths=st.tuples(st.integers(0, 9), st.integers(0, 9)), seed=st.integers(0, 99))
def test_a_plane_is_padded_point_by_point(plane, widths, seed):
    (rows, columns), x = plane.shape, numbers(2, *plane.shape, seed=seed)
    expected = torch.empty(2, rows + 2 * widths[0], columns + 2 * widths[1], dtype=torch.float64)
    for i in range(-widths[0], rows + widths[0]):
        for j in range(-widths[1], columns + widths[1]):
            source = x[:, beyond(plane.axes[0], i, rows), beyond(plane.axes[1], j, columns)]
            expected[:, i + widths[0], j + widths[1]] = source
    assert torch.equal(plane.pad(x, widths), expected)


@settings(max_examples=60)
@given(sphere=spheres(), data=st.data(), around=st.integers(0, 12), seed=st.integers(0, 99))
def test_a_sphere_is_padded_over_the_poles(sphere, data, around, seed):
    rows, columns = sphere.shape
    north = data.draw(st.integers(0, rows - 1))
    x = numbers(2, rows, columns, seed=seed)
    expected = torch.empty(2, rows + 2 * north, columns + 2 * around, dtype=torch.float64)
    for i in range(-north, rows + north):
        for j in range(-around, columns + around):
            row, column = over_the_poles(sphere, i, j)
            expected[:, i + north, j + around] = x[:, row, column]
    assert torch.equal(sphere.pad(x, [north, around]), expected)


def test_beyond_a_pole_lies_its_other_side():
    """Rows that are padded lead away from the pole again, on the meridian half around the axis."""
    for sphere in (Sphere(5, 8), Sphere(5, 8, "gaussian"), Sphere(np.linspace(-90, 90, 5).tolist(), 8)):
        places = sphere.positions().reshape(5, 8, 2)
        padded = torch.stack([sphere.pad(places[..., k], [2, 0]) for k in range(2)], -1)
        to_pole = _angle(padded.reshape(-1, 2), torch.tensor([[90.0, 0.0]])).reshape(9, 8)
        assert (to_pole.diff(dim=0)[2:6] < 0).all()
        assert (to_pole.diff(dim=0)[7:] > 0).all()
        assert_close(padded[7, 4:, 1], padded[2, :4, 1])
        assert_close(padded[1, :4, 1], padded[2, 4:, 1])


def _angle(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Degrees between places (n, 2), by the spherical law of cosines."""
    a, b = torch.deg2rad(one.double()), torch.deg2rad(other.double())
    cosine = a[:, 0].sin() * b[:, 0].sin() + a[:, 0].cos() * b[:, 0].cos() * (a[:, 1] - b[:, 1]).cos()
    return torch.rad2deg(cosine.clamp(-1, 1).acos())


def test_components_are_not_padded():
    x = numbers(2, 3)
    assert Components(3).pad(x, [0]) is x
    with pytest.raises(ValueError, match="the 3 components have no neighbours: expected a network that is dense"):
        Components(3).pad(x, [1])


def test_an_unstated_grid_is_padded_as_a_ring_or_not_at_all():
    x = numbers(2, 5)
    assert torch.equal(Unstated({"x": range(5)}).pad(x, [7]), Ring(5).pad(x, [7]))
    with pytest.raises(ValueError, match=r"says nothing of its grid \{'y': 2, 'x': 3\}: expected a geometry"):
        Unstated({"y": range(2), "x": range(3)}).pad(numbers(2, 3), [1, 1])


# Areas.


@settings(max_examples=80)
@given(geometry=geometries())
def test_weights_add_up_to_the_area(geometry):
    weights = geometry.weights()
    assert weights.shape == (geometry.size,)
    assert weights.dtype == torch.float64
    assert bool((weights > 0).all())
    assert float(weights.sum()) == pytest.approx(geometry.area, rel=1e-12)


@pytest.mark.parametrize(
    ("geometry", "weights"),
    [
        (Ring(4), [1.0] * 4),
        (Ring(4, 2.0), [0.5] * 4),
        (Ring([0.0, 1.0, 3.0], 6.0), [2.0, 1.5, 2.5]),
        (Interval(3, 6.0), [2.0] * 3),
        (Interval([0.0, 1.0, 3.0]), [1.0, 1.5, 2.0]),
        (Interval(1, 5.0), [5.0]),
        (Plane(([0.0, 1.0, 3.0], 2), (False, True), (None, 1.0)), [0.5, 0.5, 0.75, 0.75, 1.0, 1.0]),
        (Sphere(2, 4), [math.pi / 2] * 8),
        (Sphere([-90.0, 0.0, 90.0], 2), [math.pi * (1 - 0.5**0.5)] * 2 + [math.pi * 2**0.5] * 2),
        (Components(3), [1.0] * 3),
    ],
)
def test_areas_in_closed_form(geometry, weights):
    expected = torch.tensor(weights, dtype=torch.float64)
    assert_close(geometry.weights()[: len(expected)], expected, rtol=1e-12, atol=0)


def test_gaussian_weights_integrate_polynomials():
    """The integral of sin^2n of latitude over the sphere is 4 pi / (2 n + 1), exactly for 2 n below twice the rows."""
    sphere = Sphere(6, 8, "gaussian")
    height = torch.deg2rad(sphere.positions()[:, 0]).sin()
    for n in range(6):
        assert float((sphere.weights() * height ** (2 * n)).sum()) == pytest.approx(4 * math.pi / (2 * n + 1))


def test_a_space_has_the_areas_of_its_fields():
    space = StateSpace([Field("u", Ring(3, 6.0)), Field("h", Interval(2, 1.0, "y"))])
    assert space.weights().tolist() == [2.0, 2.0, 2.0, 0.5, 0.5]


# Distances and neighbours.


@settings(max_examples=60)
@given(geometry=st.one_of(axes(True), axes(False), planes(), spheres()))
def test_distances_are_a_metric(geometry):
    apart = geometry.distances(geometry.positions())
    assert apart.shape == (geometry.size, geometry.size)
    assert apart.dtype == torch.float64
    assert_close(apart, apart.T, rtol=1e-12, atol=1e-12)
    assert float(apart.diagonal().abs().max()) == 0.0
    assert bool((apart >= 0).all())
    detour = (apart[:, :, None] + apart[None]).amin(1)
    assert bool((apart <= detour + 1e-9 * (1 + apart)).all())


@pytest.mark.parametrize(
    ("geometry", "one", "expected"),
    [
        (Ring(10), [0.0], {7: 3.0, 5: 5.0, 9: 1.0}),
        (Ring(4, 360.0), [350.0], {0: 10.0, 3: 80.0}),
        (Interval(4), [3.0], {0: 3.0}),
        (Plane((10, 10)), [0.0, 0.0], {97: math.hypot(1, 3)}),
        (Plane((10, 10), (False, True)), [0.0, 0.0], {97: math.hypot(9, 3)}),
        (Sphere([-90.0, 0.0, 90.0], 4), [0.0, 0.0], {0: 90.0, 5: 90.0, 6: 180.0, 7: 90.0, 8: 90.0}),
        (Sphere([-90.0, 0.0, 90.0], 4), [90.0, 77.0], {4: 90.0, 0: 180.0, 9: 0.0}),
        (Sphere([-90.0, -45.0, 0.0, 45.0, 90.0], 4), [45.0, 0.0], {14: 90.0, 13: 60.0}),
    ],
)
def test_distances_in_closed_form(geometry, one, expected):
    apart = geometry.distances(torch.tensor([one], dtype=torch.float64))[0]
    for point, distance in expected.items():
        assert float(apart[point]) == pytest.approx(distance, abs=1e-9)


def test_a_sphere_measures_short_ways_exactly():
    sphere = Sphere(16, 32)
    place = sphere.positions()[100] + torch.tensor([1e-7, 0.0])
    assert float(sphere.distances(place[None])[0, 100]) == pytest.approx(1e-7, rel=1e-5)


@settings(max_examples=40)
@given(geometry=st.one_of(axes(True), axes(False), planes(), spheres()), share=st.floats(0.05, 1.0))
def test_neighbours_are_those_within_the_reach(geometry, share):
    apart = geometry.distances(geometry.positions())
    reach = share * float(apart.max())
    table = geometry.neighbours(reach)
    assert table.shape[1] == max(sum(float(d) <= reach for d in row) for row in apart)
    for point in range(geometry.size):
        listed = [i for i in table[point].tolist() if i >= 0]
        assert sorted(listed) == [i for i in range(geometry.size) if float(apart[point, i]) <= reach]
        ways = [float(apart[point, i]) for i in listed]
        assert ways == sorted(ways)
        assert table[point, len(listed) :].tolist() == [-1] * (table.shape[1] - len(listed))


@pytest.mark.parametrize("geometry", [Components(3), Unstated({"x": range(3)})])
def test_a_geometry_without_distances_says_so(geometry):
    assert geometry.positions() is None
    assert StateSpace(Field("x", geometry)).distances(torch.arange(2)) is None
    with pytest.raises(ValueError, match=f"the geometry {geometry.name!r} knows no distance: expected one whose"):
        geometry.neighbours(1.0)


def test_a_space_measures_between_fields_that_share_a_ring():
    coarse, fine = Ring([0.5, 3.5], 6.0, "y"), Ring(6)
    space = StateSpace([Field("x", coarse), Field("u", fine)])
    apart = space.distances(torch.tensor([1, 2, 7]))
    assert apart[0].tolist() == [3.0, 0.0, 2.5, 2.5, 1.5, 0.5, 0.5, 1.5]
    assert apart[1].tolist() == [0.5, 2.5, 0.0, 1.0, 2.0, 3.0, 2.0, 1.0]
    assert apart[2, 7] == 0.0
    whole = space.distances(torch.arange(8))
    assert torch.equal(whole, whole.T)
    apart_in_kind = StateSpace([Field("x", coarse), Field("u", Interval(6))])
    assert apart_in_kind.distances(torch.tensor([0])) is None


def test_staggered_spheres_stand_in_one_space():
    winds = Sphere(4, 8, dims=("lat_u", "lon_u"))
    space = StateSpace([Field("h", Sphere(np.linspace(-90, 90, 5).tolist(), 8)), Field("u", winds)])
    assert StateSpace.from_json(space.to_json()) == space
    apart = space.distances(torch.tensor([0]))[0]  # from the south pole
    assert_close(apart[40:], (winds.positions()[:, 0] + 90.0))
    assert space["u"].geometry.coordinates["lat_u"].attributes["standard_name"] == "latitude"


# Symmetries.


def neighbour_means(geometry: Geometry, x: torch.Tensor) -> torch.Tensor:
    """A convolution with a kernel that is the same from all sides: plain sums over 3, or 3 x 3, points."""
    padded = geometry.pad(x, [1] * len(geometry.dims))
    for axis in range(-len(geometry.dims), 0):
        padded = padded.unfold(axis, 3, 1).sum(-1) if axis == -1 else padded.mT.unfold(-1, 3, 1).sum(-1).mT
    return padded


@settings(max_examples=80)
@given(geometry=geometries(), seed=st.integers(0, 99))
def test_symmetries_are_isometries_that_commute_with_padding(geometry, seed):
    for name, g in geometry.symmetries().items():
        assert sorted(g.tolist()) == list(range(geometry.size)), name
        weights = geometry.weights()
        assert_close(weights[g], weights, rtol=1e-6, atol=0)
        if not isinstance(geometry, WITH_DISTANCE):
            continue
        apart = geometry.distances(geometry.positions())
        assert_close(apart[g][:, g], apart, rtol=1e-5, atol=1e-6)
        x = numbers(2, geometry.size, seed=seed)
        before = neighbour_means(geometry, x[:, g].unflatten(1, geometry.shape)).flatten(1)
        after = neighbour_means(geometry, x.unflatten(1, geometry.shape)).flatten(1)[:, g]
        assert_close(before, after)


def test_longitudes_of_any_name_are_found_from_any_meridian():
    for dims in (("lat", "lon"), ("latitude", "longitude")):
        sphere = Sphere(2, 4, dims=dims)
        assert sphere.order_of(dims[1], [-180.0, -90.0, 0.0, 90.0]) == [2, 3, 0, 1]
        assert sphere.order_of(dims[0], [45.0, -45.0]) == [1, 0]


def test_a_shift_moves_an_uneven_kernel_along():
    for geometry in (Ring(6), Plane((4, 6), (False, True)), Sphere(4, 6)):
        dim = geometry.dims[-1]
        g = geometry.symmetries()[f"shift along {dim}"]
        x = numbers(2, geometry.size)

        def lagged(x, geometry=geometry):
            padded = geometry.pad(x.unflatten(1, geometry.shape), [0] * (len(geometry.dims) - 1) + [2])
            return (padded[..., :-4] + 2 * padded[..., 3:-1]).flatten(1)

        assert torch.equal(lagged(x[:, g]), lagged(x)[:, g])
        assert torch.equal(x[:, g].unflatten(1, geometry.shape), x.unflatten(1, geometry.shape).roll(-1, -1))


@pytest.mark.parametrize(
    ("geometry", "names"),
    [
        (Ring(5), {"shift along x", "reflection of x"}),
        (Ring([0.0, 1.0, 4.0, 5.0], 8.0), set()),  # cells of one length, and yet no turn by one point
        (Ring(1), set()),
        (Interval(4), {"reflection of x"}),
        (Interval([0.0, 1.0, 3.0, 4.0]), {"reflection of x"}),
        (Interval([0.0, 1.0, 3.0]), set()),
        (Plane((3, 4)), {"shift along y", "reflection of y", "shift along x", "reflection of x"}),
        (Plane((3, 3), (False, True)), {"reflection of y", "shift along x", "reflection of x"}),
        (Plane((3, 3), (False, False)), {"reflection of y", "reflection of x", "exchange of y and x"}),
        (Sphere(3, 4), {"shift along lon", "reflection of lon", "reflection of lat"}),
        (Components(["x", "y", "z"]), {"exchange of x and y", "exchange of x and z", "exchange of y and z"}),
        (Components(33), set()),
        (Unstated({"y": range(2), "x": range(3)}), {"shift along y", "shift along x"}),
    ],
)
def test_which_symmetries_there_are(geometry, names):
    assert set(geometry.symmetries()) == names


def test_axes_of_other_gaps_are_not_exchanged():
    even, uneven = [0.0, 2.0, 4.0, 6.0], [0.0, 1.0, 4.0, 5.0]
    assert not any("exchange" in name for name in Plane((even, uneven), lengths=(8.0, 8.0)).symmetries())
    assert "exchange of y and x" in Plane((uneven, uneven), lengths=(8.0, 8.0)).symmetries()


# Interpolation.


def interpolated(geometry: Geometry, field: torch.Tensor, places: list) -> torch.Tensor:
    """Values at places of a field (size,)."""
    indices, weights = geometry.interpolation(torch.tensor(places, dtype=torch.float64))
    assert indices.shape == weights.shape
    assert_close(weights.sum(1), torch.ones(len(places), dtype=torch.float64), rtol=1e-12, atol=0)
    assert bool((weights >= 0).all())
    return (field[indices] * weights).sum(1)


@settings(max_examples=60)
@given(geometry=st.one_of(axes(True), axes(False), planes(), spheres()), seed=st.integers(0, 99))
def test_interpolation_at_the_points_gives_their_values(geometry, seed):
    places = geometry.positions()
    value = torch.where(places[:, 0].abs() > 90 - 1e-9, 1.0, numbers(geometry.size, seed=seed))  # one at a pole
    assert_close(interpolated(geometry, value, places.tolist()), value, rtol=1e-9, atol=1e-9)


@settings(max_examples=60)
@given(geometry=st.one_of(axes(True), axes(False), planes(), spheres()), shares=st.tuples(*[st.floats(0, 1)] * 2))
def test_interpolation_is_exact_for_linear_functions(geometry, shares):
    """Between the first and the last point along each dim: beyond them a ring comes back."""
    places = geometry.positions()
    low, high = places.amin(0), places.amax(0)
    place = low + (high - low) * torch.tensor(shares, dtype=torch.float64)[: places.shape[1]]
    slope = torch.tensor([0.3, -1.7], dtype=torch.float64)[: places.shape[1]]
    linear, expected = 2.0 + places @ slope, 2.0 + place @ slope
    assert_close(interpolated(geometry, linear, [place.tolist()])[0], expected, rtol=1e-9, atol=1e-9)
    assert_close(
        interpolated(geometry, linear + 0.1 * places.prod(1), [place.tolist()])[0],
        expected + 0.1 * place.prod(),
        rtol=1e-9,
        atol=1e-7,
    )


def test_interpolation_goes_around_and_over_the_poles():
    x = torch.arange(4.0, dtype=torch.float64)
    assert interpolated(Ring(4), x, [[3.75], [-0.25], [7.75], [1.5]]).tolist() == [0.75, 0.75, 0.75, 1.5]
    assert interpolated(Interval(4), x, [[-0.5], [3.5], [0.25]]).tolist() == [0.0, 3.0, 0.25]
    assert interpolated(Interval(1, 2.0), x[:1] + 5, [[0.0], [2.0]]).tolist() == [5.0, 5.0]
    closed = Plane((2, 4), (False, True))
    assert interpolated(closed, torch.cat([x, x + 8]), [[0.5, 3.75]]).tolist() == [4.75]
    for sphere in (Sphere(3, 8), Sphere(3, 8, "gaussian")):
        latitude, longitude = torch.deg2rad(sphere.positions()).unbind(1)
        wave = (longitude - 0.3).cos()  # changes its sign over the pole
        last = sphere.positions()[-1, 0]
        over = interpolated(sphere, wave, [[90.0, 0.0], [-90.0, 17.0], [float(90 + last) / 2, 45.0]])
        assert_close(over[:2], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)
        assert_close(over[2], 0.5 * wave[-7])  # a quarter of the way to the other side
        even = latitude.abs()
        assert float(interpolated(sphere, even, [[90.0, 123.0]])) == pytest.approx(float(even[-1]))


@pytest.mark.parametrize(
    ("geometry", "place", "message"),
    [
        (Interval(4), [3.6], "the place x=3.6 lies beyond the walls at -0.5 and 3.5: expected places between them"),
        (Interval(4), [math.nan], "expected places between them"),
        (Plane((4, 4), (False, True)), [9.0, 0.0], "the place y=9 lies beyond the walls"),
        (Sphere(4, 8), [91.0, 0.0], "the latitude 91: expected degrees from -90 to 90"),
        (Components(3), [1.0], "'components' has no interpolation between its points: expected a ring"),
    ],
)
def test_places_outside_are_refused(geometry, place, message):
    with pytest.raises(ValueError, match=message):
        geometry.interpolation(torch.tensor([place], dtype=torch.float64))


def test_a_space_interpolates_the_field_that_is_named():
    space = StateSpace([Field("u", Ring(3)), Field("h", Ring(3))])
    indices, weights = space.interpolation(torch.tensor([[0.25]]), "h")
    assert indices.tolist() == [[3, 4]]
    assert weights.tolist() == [[0.75, 0.25]]


# A geometry of the user's own.


@register_geometry
class Icosahedron(Geometry):
    """The twelve corners of an icosahedron on the unit sphere, each with five neighbours."""

    name = "icosahedron"
    dims = ("corner",)

    def __init__(self):
        self.coordinates = {"corner": xdan.Coordinate(tuple(range(12)), {"long_name": "corner", "units": "1"})}

    def positions(self):
        golden = (1 + 5**0.5) / 2
        signs = itertools.product((-1.0, 1.0), repeat=2)
        corners = torch.tensor([[0.0, a, b * golden] for a, b in signs], dtype=torch.float64)
        return torch.cat([corners.roll(k, 1) for k in range(3)]) / math.hypot(1.0, golden)

    def distances(self, points):
        return (points.double() @ self.positions().T).clamp(-1, 1).acos()

    def pad(self, x, widths):
        raise ValueError("corners of an icosahedron stand in no row: expected no convolution")


def test_a_geometry_of_the_users_own_has_the_defaults():
    corners = Icosahedron()
    table = corners.neighbours(1.2)
    assert table.shape == (12, 6)
    assert bool((table >= 0).all())
    assert corners.area == float(corners.weights().sum()) == 12.0
    assert corners.symmetries() == {}
    space = StateSpace([Field("h", corners), Field("u", corners)])
    assert StateSpace.from_json(space.to_json()) == space
    assert_close(space.distances(torch.tensor([13]))[0, :12], corners.distances(corners.positions())[1])


# What is refused.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ring([0.0, 1.0]), "points= holds positions and there is no length=: expected the length of the ring"),
        (lambda: Ring([0.0, 180.0, 360.0], 360.0), "expected less than the length; is the first point repeated"),
        (lambda: Ring([0.0, 2.0, 1.0], 3.0), "expected positions in ascending order, each once"),
        (lambda: Ring([0.0, 1.0, 1.0], 3.0), "expected positions in ascending order, each once"),
        (lambda: Ring(0), "points=0: expected at least 1"),
        (lambda: Ring([]), "points has 0 positions: expected at least 1"),
        (lambda: Ring(4, -1.0), "length=-1"),
        (lambda: Ring(4, dim=""), "dim='': expected a word"),
        (lambda: Interval([0.0, 1.0], 2.0), "points= holds positions, and length= is given: expected one of them"),
        (lambda: Interval([1.0, 0.0]), "expected positions in ascending order, each once"),
        (lambda: Plane((3, 4, 5)), "expected two, for the rows and the columns of the plane"),
        (lambda: Plane((3, 4), dims=("x", "x")), "expected two names"),
        (lambda: Plane((3, 4), dims="yx"), "expected two, for the rows and the columns"),
        (
            lambda: Sphere(np.linspace(-60, 60, 9).tolist(), 8),
            "9 rows from pole to pole, .* take xdan.Plane",
        ),
        (lambda: Sphere([90.0, 0.0, -90.0], 8), "expected positions in ascending order, each once"),
        (lambda: Sphere(4, 7), "7 longitudes: expected an even number, so that a row goes on at the other side"),
        (lambda: Sphere(4, np.linspace(0, 360, 9).tolist()), "40 degrees apart; is the first repeated at the end"),
        (lambda: Sphere(4, [0.0, 90.0, 180.0, 300.0]), "expected them evenly all around the axis, 90 degrees"),
        (lambda: Sphere(4, 8, dims=("lat", "lat")), "expected two names"),
        (lambda: Sphere(1, 8), "latitudes=1: expected at least 2"),
        (lambda: Sphere(4, 8, "octahedral"), "grid='octahedral': expected one of"),
        (lambda: Sphere(3, 4).pad(torch.zeros(3, 4), [4, 0]), "a padding of 4 rows on a sphere of 3: expected fewer"),
        (lambda: Components(["x", "x"]), "expected distinct names, at least one"),
        (lambda: Components([]), "expected distinct names, at least one"),
        (lambda: Field("2u", Ring(3)), "name='2u' of a field: expected letters, digits and underscores"),
        (lambda: StateSpace([]), r"fields \[\]: expected at least one field, and distinct"),
        (lambda: StateSpace([Field("u", Ring(3)), Field("u", Ring(3))]), "expected at least one field, and distinct"),
        (
            lambda: StateSpace([Field("u", Ring(3)), Field("h", Ring(4))]),
            "the field 'h' has a dim 'x' with other coordinates than the field before: expected one grid for a dim",
        ),
        (lambda: StateSpace(Field("h", Plane((4000, 4000)))), "expected at most 10000000"),
        (lambda: FixedInput("f", Ring(3), torch.ones(4)), r"'f' has shape \(4,\): expected finite numbers of shape"),
        (lambda: FixedInput("f", Ring(2), torch.tensor([1.0, math.nan])), "expected finite numbers of shape"),
        (
            lambda: StateSpace(Field("u", Ring(3)), [FixedInput("f", Ring(4), torch.ones(4))]),
            "expected FixedInputs on the geometry of a field",
        ),
        (lambda: StateSpace(Field("u", Ring(3)))["v"], r"no field 'v': expected one of \['u'\]"),
        (lambda: StateSpace(Field("u", Ring(3))).pack({"v": torch.ones(3)}), r"the fields \['v'\]: expected \['u'\]"),
        (lambda: StateSpace(Field("u", Ring(3))).pack({"u": torch.ones(4)}), r"'u' has shape \(4,\): expected"),
        (lambda: StateSpace(Field("u", Ring(3))).unpack(torch.ones(4)), "a state of 4 components: expected 3"),
        (lambda: geometry_from_json({"name": "torus", "parameters": {}}), "geometry 'torus' is unknown"),
        (lambda: geometry_from_json({"name": "ring", "parameters": {"holes": 1}}), "'ring' cannot be made as it is"),
        (lambda: geometry_from_json("ring"), "a geometry is described by 'ring': expected a name and its parameters"),
        (lambda: StateSpace.from_json({"fields": 3}), "a space is described by .* expected its fields"),
        (lambda: StateSpace.from_json([]), "a space is described by .* expected its fields"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ring("many"), "points='many'"),
        (lambda: Ring(2.5), "points=2.5: expected an integer"),
        (lambda: Ring(4, dim=3), "dim=3: expected a word"),
        (lambda: Plane((3, 4), (1, 0)), "periodic="),
        (lambda: Field("u", 3), "geometry=3 of the field 'u': expected a geometry such as xdan.Ring"),
        (lambda: StateSpace(3), "fields=3: expected Fields, such as xdan.Field"),
        (lambda: StateSpace(["u"]), "fields= holds 'u': expected Fields"),
        (lambda: FixedInput("f", Ring(3), [1.0, 2.0, 3.0]), "expected a tensor of real numbers"),
        (lambda: register_geometry(type("Nameless", (Ring,), {})), "name"),
    ],
)
def test_what_is_no_value_is_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()
