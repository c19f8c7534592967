"""Covariances in patches: what they keep of the whole matrix, and what they cost."""

import pytest
import torch
from test_core_kalman_network import network
from test_core_methods import DOUBLE, normals, record_of
from torch.testing import assert_close

import xdan
from xdan.core.dynamics import CustomDynamics, Lorenz96
from xdan.core.methods import method_of, run
from xdan.core.methods.covariance_forms import OneMatrix
from xdan.core.methods.gaussian_forecast import forecast_moments
from xdan.core.methods.patch_cutting import patches_of, warn_of_reach
from xdan.core.methods.patches import check_observing
from xdan.core.observing import LinearOperator, ObservingSystem, Sites
from xdan.core.spaces import Field, Plane, Ring, StateSpace


def shifting(geometry) -> CustomDynamics:
    """Linear: a share of each component moves on along every dim in a step."""
    dims = range(-len(geometry.shape), 0)
    return CustomDynamics(
        step=lambda x: 0.9 * x + sum(0.1 * x.roll(1, dim) for dim in dims),
        state=StateSpace(Field("x", geometry)),
        timestep=1.0,
        spin_up_time=0.0,
    )


def banded(size: int, width: float) -> torch.Tensor:
    """A covariance of a ring whose correlations end at some distance."""
    apart = (torch.arange(size)[:, None] - torch.arange(size)).abs()
    apart = torch.minimum(apart, size - apart).to(torch.float64)
    return (1 - apart / width).clamp_min(0.0).square() * (1 + 0.5 * torch.cos(apart))


def cut(patches, covariance):
    """A whole covariance (B, N, N) in patches."""
    rows, columns = patches.sites[:, :, None], patches.sites[:, None, :]
    inside = patches.inside[:, :, None] & patches.inside[:, None, :]
    return covariance[:, rows, columns] * inside


@pytest.mark.parametrize(
    ("dynamics", "radius"),
    [(Lorenz96(61), 6.0), (shifting(Plane((14, 18))), 2.0), (shifting(Ring(50, length=5.0)), 0.6)],
)
def test_patches_cover_a_state(dynamics, radius):
    patches = patches_of(dynamics, radius)
    size = dynamics.space.size
    apart = dynamics.distances(torch.arange(size))
    x = normals(3, size)
    assert_close(patches.cores(patches.of(x)), x, rtol=0, atol=0)
    # All that is within the radius of a component is in the patch of its core.
    width = patches.sites.shape[1]
    for site in range(0, size, 7):
        patch = int(patches.core[site]) // width
        members = set(patches.sites[patch][patches.inside[patch]].tolist())
        assert set((apart[site] <= radius + 1e-9).nonzero()[:, 0].tolist()) <= members
    # Components of one colour, and patches of one group, are far apart.
    for colour in range(int(patches.colours.max()) + 1):
        of_colour = (patches.colours == colour).nonzero()[:, 0]
        between = apart[of_colour][:, of_colour] + torch.eye(len(of_colour)) * 1e9
        assert len(of_colour) == 1 or between.min() > 2 * radius
    for group in range(int(patches.groups.max()) + 1):
        members = [patches.sites[k][patches.inside[k]] for k in (patches.groups == group).nonzero()[:, 0].tolist()]
        for k, one in enumerate(members):
            for other in members[:k]:
                assert apart[one][:, other].min() > radius


def test_a_state_of_one_patch_has_none():
    assert patches_of(Lorenz96(40), 20.0) is None


def test_patches_agree_with_the_whole_matrix_at_one_analysis_and_forecast():
    """Where correlations and the model end within the radius, patches are exact between neighbours."""
    dynamics = Lorenz96(104)
    patches = patches_of(dynamics, 25.0)
    x = 8.0 + normals(2, 104)
    p = 0.3 * banded(104, 4.0).expand(2, 104, 104)
    observed = normals(2, 104, seed=1) < 0.7
    observing = ObservingSystem(std=0.5 + normals(104, seed=2).abs())
    inside = cut(patches, p)
    most = torch.tensor(1e9, dtype=torch.float64)
    for _ in range(2):
        p, inside = OneMatrix().analysed(x, p, observed, observing), patches.analysed(inside, observed, observing)
        whole, parts = forecast_moments(dynamics, x, p, 1), forecast_moments(dynamics, x, inside, 1, patches)
        assert_close(parts.x, whole.x, rtol=0, atol=0)
        for name in ("covariance", "second"):
            one, other = (
                cut(patches, getattr(whole, name)) * patches.near,
                patches.agreed(getattr(parts, name)) * patches.near,
            )
            assert_close(other, one, rtol=1e-6, atol=1e-7)
        x, p, inside = whole.x, whole.inflated(8.0, most), parts.inflated(8.0, most)
    vector = normals(2, 104, seed=3)
    here = torch.arange(104)
    assert_close(patches.variances(inside), p.diagonal(dim1=1, dim2=2), rtol=1e-5, atol=1e-7)
    assert_close(patches.times(inside, vector), (p @ vector[..., None])[..., 0], rtol=1e-3, atol=1e-4)
    two_on = patches.pairs(((here + 2) % 104)[:, None])
    assert_close(inside.flatten(1)[:, two_on[:, 0]], p[:, here, (here + 2) % 104], rtol=1e-5, atol=1e-7)


def test_second_derivatives_in_patches_are_those_of_the_closed_form():
    """Of a covariance with one direction for each patch, whose root has no other columns."""

    class Slow(Lorenz96):
        name = "slow-lorenz96"

        def second_order_tendency(self, covariance):
            return None

    quick, slow = Lorenz96(90, timestep=0.01), Slow(90, timestep=0.01)
    patches = patches_of(quick, 10.0)
    x = 8.0 + normals(1, 90)
    p = torch.zeros(1, 90, 90, dtype=torch.float64)
    bump = normals(4)
    p[0, 40:44, 40:44] = torch.outer(bump, bump)
    inside = cut(patches, p)
    answer = forecast_moments(slow, x, inside, 2, patches)
    expected = forecast_moments(quick, x, inside, 2, patches)
    reach = 1e-6 * float(p.abs().max())  # the model reaches farther in two steps than in one, by so little
    assert_close(*(patches.agreed(one.covariance) for one in (answer, expected)), rtol=0, atol=reach)
    assert_close(answer.second, expected.second, rtol=0.02, atol=0.01 * float(expected.second.abs().max()))
    assert expected.second.abs().max() > 0


def test_a_plane_is_filtered_in_patches_as_in_one_matrix():
    """The same Kalman filter, but for what lies beyond the radius; the second-order term of a linear model is zero."""
    dynamics, radius = shifting(Plane((20, 22))), 2.0
    dynamics = dynamics.with_climatology(normals(4, 20, 22))
    patches = patches_of(dynamics, radius)
    observing, most = ObservingSystem(std=DOUBLE + 0.5), torch.tensor(1e9, dtype=torch.float64)
    x = normals(1, 440)
    variance = torch.ones_like(x)
    whole, parts = torch.diag_embed(variance), patches.diagonal(variance)
    for k in range(5):
        observed = normals(1, 440, seed=k) < 0.3
        whole = OneMatrix().analysed(x, whole, observed, observing)
        parts = patches.analysed(parts, observed, observing)
        whole = forecast_moments(dynamics, x, whole, 1).inflated(1.0, most)
        parts = forecast_moments(dynamics, x, parts, 1, patches).inflated(1.0, most)
    expected = whole.diagonal(dim1=1, dim2=2)
    assert expected.max() > 2 * expected.min()
    assert_close(patches.variances(parts), expected, rtol=0.02, atol=0.0)


def test_negative_eigenvalues_that_a_cut_leaves_do_no_harm():
    dynamics = Lorenz96(60)
    patches = patches_of(dynamics, 5.0)
    p = patches.diagonal(torch.full((1, 60), 1.0, dtype=torch.float64))
    p = p - 3.0 * torch.where(patches.near & ~torch.eye(15, dtype=torch.bool), 1.0, 0.0)
    observing = ObservingSystem(std=torch.full((60,), 0.1, dtype=torch.float64))
    after = patches.analysed(p, torch.ones(1, 60, dtype=torch.bool), observing)
    assert bool(after.isfinite().all())
    assert bool((patches.variances(after) <= 0.0101).all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"operator": True}, "observations of an operator"),
        ({"covariance": True}, "correlated observation errors"),
    ],
)
def test_observations_that_patches_cannot_take(changes, message):
    if "operator" in changes:
        observing = ObservingSystem(std=torch.ones(3), operator=LinearOperator(torch.eye(3, 6)))
    else:
        observing = ObservingSystem(covariance=torch.eye(3) + 0.1)
    with pytest.raises(ValueError, match=message):
        check_observing(observing, "the method 'x'")


def test_patches_need_distances():
    dynamics = CustomDynamics(step=lambda x: 0.5 * x, state={"x": 300}, timestep=1.0, spin_up_time=0.0)
    with pytest.raises(ValueError, match="patches need a distance"):
        patches_of(dynamics, 3.0)


@pytest.mark.parametrize("settings", [{}, {"past": 3}])
def test_a_network_with_patches_is_that_of_one_matrix(settings):
    record = record_of(Lorenz96(90), ObservingSystem(std=DOUBLE + 1.0), 8, sites=Sites.random(60, 90))
    net = network(**settings)
    whole, parts = (run(method_of(one), record)[0] for one in (net, network(**settings, radius=20.0)))
    assert_close(parts["analysis"], whole["analysis"], rtol=0, atol=1e-2)
    assert_close(parts["spread"], whole["spread"], rtol=1e-2, atol=0)
    assert not torch.equal(parts["analysis"], whole["analysis"])


def test_a_large_ring_costs_no_more_for_each_site():
    """As many tangent directions, and matrices of the same size, for any length of the ring."""
    short, long = (patches_of(Lorenz96(size), 12.0) for size in (1_000, 100_000))
    assert short.sites.shape[1] == long.sites.shape[1] == 36
    assert max(int(short.colours.max()), int(long.colours.max())) <= 26
    assert long.sites.shape[0] <= 101 * short.sites.shape[0]


def test_a_covariance_in_patches_is_neither_kept_nor_differentiated():
    with pytest.raises(ValueError, match="60 components, whose covariance is kept with radius=12: expected one"):
        method_of(network(radius=12.0)).check_kept(Lorenz96(60))
    method_of(network()).check_gains(Lorenz96(60))
    with pytest.raises(ValueError, match=r"radius=12\.0, columns=None, lag=2: the covariance of a window"):
        network(radius=12.0, lag=2)


def test_a_radius_that_does_not_fit():
    for dynamics in (Lorenz96(60), shifting(Plane((14, 18)))):
        with pytest.raises(ValueError, match=r"radius=0\.5: no component has another within it"):
            patches_of(dynamics, 0.5)
    record = record_of(Lorenz96(60), ObservingSystem(std=DOUBLE + 1.0), 2)
    with pytest.raises(ValueError, match="farther away than radius=2, the halo of its patches"):
        run(method_of(network(radius=2.0, diagonals=7)), record)


def test_a_model_that_reaches_beyond_the_radius_warns():
    far = CustomDynamics(
        step=lambda x: 0.5 * x + 0.5 * x.roll(20, -1), state={"x": Ring(80)}, timestep=1.0, spin_up_time=0.0
    )
    patches = patches_of(far, 5.0)
    with pytest.warns(xdan.XdanWarning, match=r"radius=5: after an interval 50 % .* lies beyond the radius"):
        warn_of_reach(far, patches, normals(1, 80), 1)
    warn_of_reach(Lorenz96(80), patches_of(Lorenz96(80), 12.0), normals(1, 80), 2)
