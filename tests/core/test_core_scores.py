"""Kernels of scores against their definitions, closed forms, and integrals of distribution functions."""

import numpy as np
import pytest
from scipy import integrate, stats

from xdan.core import ensemble_scores, scores


def all_pairs(truth, members):
    """The fair CRPS as it is written."""
    count = members.shape[-1]
    pairs = np.abs(members[..., :, None] - members[..., None, :]).sum((-1, -2))
    return np.abs(members - truth[..., None]).mean(-1) - pairs / (2 * count * max(count - 1, 1))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 41])
def test_members_crps_is_the_sum_over_pairs(rng, count):
    truth, members = rng.normal(size=(4, 5)), rng.normal(size=(4, 5, count))
    expected = all_pairs(truth, members) if count > 1 else np.abs(members[..., 0] - truth)
    np.testing.assert_allclose(ensemble_scores.members_crps(truth, members), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("count", [2, 5, 50])
def test_fair_crps_does_not_depend_on_the_number_of_members(rng, count):
    """Members and truth from one normal distribution: the mean is 1 / sqrt(pi) for any count."""
    crps = ensemble_scores.members_crps(rng.normal(size=200_000), rng.normal(size=(200_000, count)))
    assert crps.mean() == pytest.approx(1 / np.sqrt(np.pi), abs=6 * crps.std() / np.sqrt(crps.size))


def test_members_far_from_zero_keep_their_digits(rng):
    """Kelvin in single precision."""
    truth, members = 280 + rng.normal(size=(50, 8)), 280 + rng.normal(size=(50, 8, 20))
    truth, members = truth.astype(np.float32), members.astype(np.float32)
    crps = ensemble_scores.members_crps(truth, members)
    assert crps.dtype == np.float32
    np.testing.assert_allclose(crps, all_pairs(truth.astype(float), members.astype(float)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("error", "spread"), [(0.0, 1.0), (0.7, 0.4), (-3.0, 2.0), (1.0, 0.05)])
def test_gaussian_crps_is_the_integral_of_its_definition(error, spread):
    """Integral of (F(u) - 1{u >= x})^2 over u."""
    below, _ = integrate.quad(
        lambda u: stats.norm.cdf(u, scale=spread) ** 2, error - 12, error, points=[0.0, -0.1, 0.1], limit=200
    )
    above, _ = integrate.quad(
        lambda u: stats.norm.sf(u, scale=spread) ** 2, error, error + 12, points=[0.0, -0.1, 0.1], limit=200
    )
    crps = scores.gaussian_crps(np.array([error]), np.zeros(1), np.array([spread]))
    np.testing.assert_allclose(crps, below + above, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spread", [0.0, 1e-40, 1e-30])
def test_gaussian_crps_without_spread_is_the_absolute_error(dtype, spread):
    truth = np.array([-2.0, 0.0, 1e10], dtype)
    crps = scores.gaussian_crps(truth, np.zeros(3, dtype), np.full(3, spread, dtype))
    np.testing.assert_allclose(crps, np.abs(truth), rtol=1e-6, atol=1e-29)


def test_what_is_no_number_stays_none(rng):
    truth, members = rng.normal(size=3), rng.normal(size=(3, 5))
    members[1, 2] = np.nan
    truth[2] = np.nan
    assert np.isnan(ensemble_scores.members_crps(truth, members)).tolist() == [False, True, True]
    assert np.isnan(scores.gaussian_crps(truth, 0 * truth, np.array([0.0, -1.0, 0.0]))).tolist() == [False, True, True]
    assert np.isnan(scores.gaussian_crps(np.ones(1), np.ones(1), np.array([np.nan]))).all()
    assert np.isnan(scores.rmse(truth[None], truth[None])).all()


@pytest.mark.parametrize("state", [(7,), (2, 3)])
def test_rmse(rng, state):
    truth, estimate = rng.normal(size=(4, 5, *state)), rng.normal(size=(4, 5, *state))
    expected = np.sqrt(((truth - estimate) ** 2).reshape(4, 5, -1).mean(-1))
    np.testing.assert_allclose(scores.rmse(truth, estimate, axes=len(state)), expected, rtol=1e-14)


@pytest.mark.parametrize("bound", [1, 7, 100, 2**20])
def test_pieces_change_nothing(rng, monkeypatch, bound):
    """Of whatever size, and of arrays that are views in another order and of another byte order."""
    truth = rng.normal(size=(3, 4, 6))
    members = np.moveaxis(rng.normal(size=(9, 6, 4, 3)), (0, 1, 2, 3), (3, 2, 1, 0)).astype(">f8")
    expected = (
        ensemble_scores.members_crps(truth, members),
        ensemble_scores.rank_counts(truth, members),
        scores.rmse(truth, members[..., 0]),
    )
    monkeypatch.setattr(scores, "_VALUES", bound)
    values = (
        ensemble_scores.members_crps(truth, members),
        ensemble_scores.rank_counts(truth, members),
        scores.rmse(truth, members[..., 0]),
    )
    for one, other in zip(values, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13)
        assert one.dtype == np.float64
        assert one.dtype.isnative


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float16", "float32"), ("float32", "float32"), ("int64", "float64"), ("longdouble", "float64"), (">f4", "=f4")],
)
def test_working_dtype(dtype, expected):
    truth, estimate = np.full((1, 2), 30_000).astype(dtype), np.zeros((1, 2), dtype)
    error = scores.rmse(truth, estimate)
    assert error.dtype == np.dtype(expected)
    assert float(error[0]) == pytest.approx(30_000, rel=1e-3)  # its square is beyond half precision


def test_rank_counts_with_ties():
    """A truth that equals t members counts 1 / (t + 1) in each of its ranks; NaN is not counted."""
    members = np.array([[1.0, 2.0, 3.0]] * 5 + [[1.0, np.nan, 3.0]])
    truth = np.array([0.0, 2.5, 2.0, np.nan, 4.0, 0.0])
    counts = ensemble_scores.rank_counts(truth[None], members[None])
    np.testing.assert_array_equal(counts, [[1.0, 0.5, 1.5, 1.0]])
    collapsed = ensemble_scores.rank_counts(np.ones((1, 4)), np.ones((1, 4, 3)))
    np.testing.assert_array_equal(collapsed, [[1.0, 1.0, 1.0, 1.0]])


def test_ranks_of_rounded_members_are_flat(rng):
    """Coarse rounding makes ties in most states."""
    draws = np.round(rng.normal(size=(100, 500, 6)) * 2)
    counts = ensemble_scores.rank_counts(draws[..., 0], draws[..., 1:]).sum(0)
    assert counts.sum() == pytest.approx(50_000)
    np.testing.assert_allclose(counts / 50_000, 1 / 6, atol=0.01)


def squared_norm(truth, members):
    """A function that knows only rows: (B, N) and (B, M, N)."""
    assert truth.ndim == 2
    assert members.shape == (len(truth), 5, truth.shape[1])
    return np.square(members.mean(1) - truth).sum(-1)


@pytest.mark.parametrize("state", [(3,), (2, 3)])
@pytest.mark.parametrize("lead", [(), (4,), (2, 7)])
def test_a_score_of_ones_own_sees_rows_of_flat_states(rng, monkeypatch, state, lead):
    monkeypatch.setattr(scores, "_VALUES", 40)  # several pieces
    truth, members = rng.normal(size=(*lead, *state)), rng.normal(size=(*lead, *state, 5))
    score = scores.StateScore(squared_norm, "squared distance")
    axes = tuple(range(len(lead), len(lead) + len(state)))
    expected = np.square(members.mean(-1) - truth).sum(axes)
    np.testing.assert_allclose(score.values(truth, members, axes=len(state)), expected, rtol=1e-12)
    swapped = scores.StateScore(lambda members, truth: squared_norm(truth, members), "the same", name="swapped")
    np.testing.assert_allclose(swapped.values(members, truth, axes=len(state)), expected, rtol=1e-12)


def test_a_score_of_ones_own_has_a_name_and_inputs():
    score = scores.StateScore(squared_norm, "squared distance", "m2")
    assert (score.name, score.inputs, score.units) == ("squared_norm", ("truth", "members"), "m2")
    with pytest.raises(TypeError, match="function=3: expected a function of arrays named"):
        scores.StateScore(3, "three")
    for function in (lambda truth, guess: 0, lambda: 0, lambda *arrays: 0):
        with pytest.raises(TypeError, match=r"the score '<lambda>' takes .*: expected parameters with names of"):
            scores.StateScore(function, "wrong")
    with pytest.raises(ValueError, match=r"gave shape \(4, 3\) for arrays of shapes \[\(4, 3\)\]: expected \(4,\)"):
        scores.StateScore(lambda truth: truth, "too many numbers").values(np.ones((4, 3)))
