"""Observing networks, error covariances and the projected innovation, against explicit matrices."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from xdan.core.observing import FunctionOperator, LinearOperator, ObservingSystem, Sites, observe, split_observation

SITES = 6
MASKS = st.lists(st.booleans(), min_size=SITES, max_size=SITES)
SEEDS = st.integers(0, 10_000)
POSITIONS = st.lists(st.integers(0, 4), min_size=1, max_size=6)
KINDS = ["scalar", "per-site", "full"]


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def full_covariance(size: int = SITES, seed: int = 0) -> torch.Tensor:
    root = normals(size, size, seed=seed)
    return root @ root.T + 0.5 * torch.eye(size, dtype=torch.float64)


def system_and_matrix(kind: str, seed: int = 0) -> tuple[ObservingSystem, torch.Tensor]:
    """An observing system and its R written as a matrix."""
    if kind == "full":
        matrix = full_covariance(seed=seed)
        return ObservingSystem(covariance=matrix), matrix
    std = 0.5 + normals(*(() if kind == "scalar" else (SITES,)), seed=seed).abs()
    return ObservingSystem(std=std), torch.diag((std**2).expand(SITES))


def selection(observed: torch.Tensor) -> torch.Tensor:
    """H as a matrix, one row for each observed site."""
    return torch.eye(len(observed), dtype=torch.float64)[observed]


def labels(count: int) -> torch.Tensor:
    return torch.arange(count)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(masks=st.lists(MASKS, min_size=1, max_size=3), seed=SEEDS)
def test_projected_innovation_is_the_matrix_product(kind, masks, seed):
    observing, r = system_and_matrix(kind, seed)
    observed = torch.tensor(masks)
    innovation = normals(len(masks), SITES, seed=seed + 1)
    expected = []
    for row, v in zip(observed, innovation, strict=True):
        h = selection(row)
        expected.append(h.T @ torch.linalg.inv(h @ r @ h.T) @ (h @ v))
    assert_close(observing.project_innovation(innovation, observed), torch.stack(expected), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(masks=st.lists(MASKS, min_size=1, max_size=3), seed=SEEDS)
def test_projection_is_whitening_and_its_adjoint(kind, masks, seed):
    observing, _ = system_and_matrix(kind, seed)
    observed = torch.tensor(masks)
    x, y = (
        normals(len(masks), SITES, seed=seed + 1),
        normals(len(masks), SITES, seed=seed + 2).requires_grad_(),
    )
    white, vector = observing.whiten(y, observed), observing.whiten(x, observed)
    (adjoint,) = torch.autograd.grad(white, y, vector)
    assert_close(adjoint, observing.project_innovation(x, observed), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(mask=MASKS, seed=SEEDS)
def test_selecting_sites_and_putting_back_are_adjoint(kind, mask, seed):
    # <H x, R^-1 y> = <x, H^T R^-1 y> with y on the observed sites.
    observing, r = system_and_matrix(kind, seed)
    observed = torch.tensor(mask)
    h = selection(observed)
    x, y = normals(SITES, seed=seed + 1), normals(len(h), seed=seed + 2)
    there = (h @ x) @ torch.linalg.solve(h @ r @ h.T, y)
    back = x @ observing.project_innovation((h.T @ y)[None], observed[None])[0]
    assert_close(there, back, rtol=1e-9, atol=1e-11)


def curved(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x[..., 0] * x[..., 1], x[..., 2].sin(), x[..., 3:].sum(-1)], -1)


@pytest.mark.parametrize("operator", [None, LinearOperator(normals(3, SITES)), FunctionOperator(curved, 3)])
def test_tangent_and_adjoint_are_transposes(operator):
    """<H'(x) u, v> = <u, H'(x)^T v>, and H'(x) u is the slope of H along u."""
    system = ObservingSystem(std=torch.ones((), dtype=torch.float64), operator=operator)
    size = system.size(SITES)
    assert size == (SITES if operator is None else 3)
    assert system.direct is (operator is None)
    assert system.linear is not isinstance(operator, FunctionOperator)
    x, u, v = normals(4, SITES), normals(4, 1, SITES, seed=1), normals(4, size, seed=2)
    along = system.tangent(x, u)[:, 0]
    back = system.adjoint(x, v)
    assert back.shape == x.shape
    assert_close((along * v).sum(-1), (u[:, 0] * back).sum(-1), rtol=1e-12, atol=1e-12)
    step = 1e-5
    slope = (system.observe(x + step * u[:, 0]) - system.observe(x - step * u[:, 0])) / (2 * step)
    assert_close(along, slope, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_whitened_errors_have_unit_covariance(kind):
    observing, r = system_and_matrix(kind)
    observed = torch.tensor([[True, False, True, True, False, True]])
    w = observing.whiten(torch.eye(SITES, dtype=torch.float64)[None], observed)[0].mT
    assert_close(w @ r @ w.T, torch.diag(observed[0].double()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_whitened_one_by_one(kind):
    observing, _ = system_and_matrix(kind)
    observed = torch.tensor([[True, False, True, True, False, True], [False, True, True, False, True, True]])
    v = normals(2, 3, SITES)
    alone = torch.stack([observing.whiten(v[:, m], observed) for m in range(3)], 1)
    assert_close(observing.whiten(v, observed), alone, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_values_at_unobserved_sites_are_not_read(kind):
    observing, _ = system_and_matrix(kind)
    observed = torch.tensor([[True, False, True, True, False, True]])
    innovation = normals(1, SITES)
    holes = torch.where(observed, innovation, torch.nan)
    assert torch.equal(
        observing.project_innovation(holes, observed), observing.project_innovation(innovation, observed)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_r_of_the_observed_sites_and_its_diagonal(kind):
    observing, r = system_and_matrix(kind)
    observed = torch.tensor([True, False, True, True, False, True])
    h, rest = selection(observed), selection(~observed)
    assert_close(observing.covariance_of(observed[None])[0], h.T @ h @ r @ h.T @ h + rest.T @ rest)
    assert_close(observing.error_variance().expand(SITES), r.diagonal())


@pytest.mark.parametrize("kind", KINDS)
def test_coloured_noise_has_covariance_r(kind):
    observing, r = system_and_matrix(kind)
    columns = observing.errors_from(torch.eye(SITES, dtype=torch.float64))
    assert_close(columns.T @ columns, r, rtol=1e-12, atol=1e-12)


def test_a_system_moves_to_another_dtype():
    for kind in KINDS:
        observing, r = system_and_matrix(kind)
        moved = observing.to(torch.float32, "cpu")
        observed = torch.ones(1, SITES, dtype=torch.bool)
        ones = torch.ones(1, SITES)
        assert moved.project_innovation(ones, observed).dtype == torch.float32
        expected = torch.linalg.solve(r, ones[0].double())
        assert_close(moved.project_innovation(ones, observed)[0].double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_standard_deviation_that_is_not_positive_and_finite_is_refused(bad):
    with pytest.raises(ValueError, match="expected positive finite values"):
        ObservingSystem(std=torch.tensor([1.0, bad]))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1.0, 2.0], [2.0, 1.0]], "not positive definite"),
        ([[1.0, 1.0], [1.0, 1.0]], "not positive definite"),
        ([[1.0, 0.0], [0.0, -1.0]], "not positive definite"),
        ([[1.0, 0.5], [0.0, 1.0]], "not symmetric"),
        ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], r"shape \(2, 3\)"),
        ([1.0, 1.0], r"shape \(2,\)"),
    ],
)
def test_a_matrix_that_is_no_covariance_is_refused(matrix, message):
    with pytest.raises(ValueError, match=message):
        ObservingSystem(covariance=torch.tensor(matrix))


def test_exactly_one_description_of_r_is_expected():
    with pytest.raises(ValueError, match="exactly one"):
        ObservingSystem()
    with pytest.raises(ValueError, match="exactly one"):
        ObservingSystem(std=torch.ones(()), covariance=torch.eye(2))


def test_all_sites_are_observed():
    assert Sites.all().mask(5, labels(2), labels(3), 0).all()


@pytest.mark.parametrize(("step", "offset"), [(1, 0), (2, 0), (2, 1), (3, 2), (7, 0)])
def test_every_nth_site_is_observed(step, offset):
    mask = Sites.every(step, offset).mask(7, labels(2), labels(3), 0)
    assert mask.shape == (2, 3, 7)
    for row in mask.reshape(-1, 7):
        assert row.nonzero().flatten().tolist() == list(range(offset, 7, step))


@settings(max_examples=25, deadline=None)
@given(sites=st.integers(1, 12), data=st.data(), seed=SEEDS)
def test_random_sites_stay_within_their_range(sites, data, seed):
    low = data.draw(st.integers(0, sites))
    high = data.draw(st.integers(low, sites))
    count = Sites.random(low, high).mask(sites, labels(20), labels(10), seed).sum(-1)
    assert low <= int(count.min())
    assert int(count.max()) <= high


def test_numbers_of_random_sites_are_even_and_reach_both_ends():
    draws = 20_000
    count = Sites.random(3, 7).mask(10, labels(200), labels(100), 0).sum(-1).flatten()
    frequency = torch.bincount(count, minlength=11)
    assert frequency[:3].sum() + frequency[8:].sum() == 0
    assert (frequency[3:8] - draws / 5).abs().max() < 4 * (draws * 0.2 * 0.8) ** 0.5


def test_a_fixed_number_of_random_sites():
    assert (Sites.random(4).mask(9, labels(30), labels(30), 0).sum(-1) == 4).all()


def test_random_sites_favour_none_and_come_independently():
    draws = 20_000
    mask = Sites.random(4).mask(10, labels(200), labels(100), 0).reshape(-1, 10).double()
    together = mask.T @ mask / draws
    single, pair = 4 / 10, (4 * 3) / (10 * 9)
    expected = torch.full_like(together, pair).fill_diagonal_(single)
    assert (together - expected).abs().max() < 4.5 * (single * (1 - single) / draws) ** 0.5


def test_random_sites_are_redrawn_for_every_time_and_trajectory():
    mask = Sites.random(20).mask(40, labels(10), labels(10), 0).reshape(100, 40)
    assert len(mask.unique(dim=0)) == 100


@settings(max_examples=15, deadline=None)
@given(rows=POSITIONS, columns=POSITIONS)
def test_random_sites_and_errors_are_keyed_by_label(rows, columns):
    sites, (observing, _) = Sites.random(1, SITES), system_and_matrix("per-site")
    truth = normals(5, 5, SITES)
    whole = observe(truth, sites, observing, 7 + labels(5), 9 + labels(5), 3)
    trajectory, time = 7 + torch.tensor(rows), 9 + torch.tensor(columns)
    some = observe(truth[rows][:, columns], sites, observing, trajectory, time, 3)
    assert_close(some, whole[rows][:, columns], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("sites", [Sites.all(), Sites.every(2, 1), Sites.random(0, SITES)])
def test_nan_stands_exactly_where_nothing_is_observed(sites):
    observing, _ = system_and_matrix("full")
    observation = observe(normals(5, 4, SITES), sites, observing, labels(5), labels(4), 3)
    mask = sites.mask(SITES, labels(5), labels(4), 3)
    assert torch.equal(~observation.isnan(), mask)
    values, observed = split_observation(observation)
    assert torch.equal(observed, mask)
    assert torch.equal(values, torch.where(mask, observation, 0.0))


@pytest.mark.parametrize("kind", KINDS)
def test_observation_errors_have_zero_mean_and_covariance_r(kind):
    observing, r = system_and_matrix(kind)
    truth = normals(200, 100, SITES)
    noise = (observe(truth, Sites.all(), observing, labels(200), labels(100), 0) - truth).reshape(-1, SITES)
    variance = r.diagonal()
    draws = len(noise)
    assert (noise.mean(0).abs() < 4 * (variance / draws).sqrt()).all()
    # Variance of a sample covariance: (R_ii R_jj + R_ij^2) / draws.
    spread = ((variance[:, None] * variance + r**2) / draws).sqrt()
    assert ((torch.cov(noise.T) - r).abs() < 4 * spread).all()


def test_observation_errors_do_not_know_which_sites_are_observed():
    observing, _ = system_and_matrix("full")
    truth = normals(5, 4, SITES)
    every = observe(truth, Sites.all(), observing, labels(5), labels(4), 0)
    some = observe(truth, Sites.random(2, 4), observing, labels(5), labels(4), 0)
    seen = ~some.isnan()
    assert torch.equal(some[seen], every[seen])


@pytest.mark.parametrize("sites", [Sites.all(), Sites.every(3, 1), Sites.random(2, 5), Sites.random(4)])
def test_sites_survive_the_round_trip_through_json(sites):
    assert Sites.from_json(sites.to_json()) == sites


def test_an_unknown_observing_network_is_refused():
    with pytest.raises(ValueError, match="'radar' is unknown"):
        Sites.from_json({"name": "radar", "parameters": {}})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sites("some"), "kind='some': expected one of"),
        (lambda: Sites.every(0), "step=0"),
        (lambda: Sites.every(2, 2), "offset=2"),
        (lambda: Sites.every(2, -1), "offset=-1"),
        (lambda: Sites.random(5, 3), "low=5, high=3"),
        (lambda: Sites.random(-1, 3), "low=-1"),
    ],
)
def test_sites_refuse_rules_that_make_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("sites", [Sites.every(8), Sites.random(2, 8)])
def test_more_sites_than_there_are_is_refused(sites):
    with pytest.raises(ValueError, match="of 7"):
        sites.mask(7, labels(1), labels(1), 0)


@pytest.mark.parametrize("value", [1.5, 2.0, "2", None, True, [2], 1j, math.nan])
def test_sites_are_counted_in_integers(value):
    for make in (Sites.every, lambda v: Sites.every(3, v), lambda v: Sites.random(v, 5)):
        with pytest.raises(TypeError, match=r"=.*expected an integer"):
            make(value)


@pytest.mark.parametrize(
    "description",
    [
        None,
        "sites",
        [],
        {"name": "sites"},
        {"name": ["sites"], "parameters": {"kind": "all"}},
        *({"name": "sites", "parameters": p} for p in (None, [], {}, {"kind": 3}, {"kind": "all", "step": 2})),
        *({"name": "sites", "parameters": {"kind": "every", "step": s, "offset": 0}} for s in (1.5, "2", [[[]]], None)),
        {"name": "sites", "parameters": {"kind": "random", "low": 5, "high": 3}},
    ],
)
def test_odd_descriptions_of_an_observing_network_are_refused(description):
    with pytest.raises(ValueError, match="expected"):
        Sites.from_json(description)


@pytest.mark.parametrize("units", [1.0, 1e-4, 1e-6, 1e4])
def test_symmetry_is_judged_by_the_size_of_r(units):
    skew = torch.eye(4, dtype=torch.float64) + 0.9 * torch.eye(4, dtype=torch.float64).roll(1, 1).triu()
    with pytest.raises(ValueError, match="R is not symmetric"):
        ObservingSystem(covariance=units**2 * skew)
    scales = torch.diag(torch.tensor([1.0, 1e-6, 1e3, 1.0], dtype=torch.float64))
    rounded = full_covariance(4)
    rounded[0, 1] *= 1 + 1e-12
    ObservingSystem(covariance=units**2 * scales @ rounded @ scales)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_covariance_of_no_numbers_is_refused(bad):
    matrix = full_covariance()
    matrix[1, 2] = matrix[2, 1] = bad
    with pytest.raises(ValueError, match="R holds values that are not finite: expected"):
        ObservingSystem(covariance=matrix)


@pytest.mark.parametrize(
    "value", [1.0, None, "1", torch.ones(2, dtype=torch.complex64), torch.ones(2, dtype=torch.bool)]
)
def test_errors_are_real_tensors(value):
    for label in ("std", "covariance"):
        if value is None:
            continue
        with pytest.raises(TypeError, match="expected a tensor of real"):
            ObservingSystem(**{label: value})


def nearly_singular(share: float) -> torch.Tensor:
    """Unit variances; the last error is known from the first but for a share of its deviation."""
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[0, 2] = matrix[2, 0] = math.sqrt(1 - share**2)
    return matrix


def test_a_covariance_near_singular_in_single_precision():
    with pytest.raises(ValueError, match=r"too near to a singular matrix for torch.float32: .* take float64"):
        ObservingSystem(covariance=nearly_singular(1e-6)).to(torch.float32, "cpu")
    matrix = nearly_singular(1e-4)  # rounded to single precision it is not positive definite
    assert int(torch.linalg.cholesky_ex(matrix.float()).info)
    rounded = ObservingSystem(covariance=matrix).to(torch.float32, "cpu")
    observed = torch.tensor([[True, False, True]])
    innovation = torch.tensor([[1.0, 0.0, -1.0]])
    rho = math.sqrt(1 - 1e-8)
    expected = torch.tensor([[1 / (1 - rho), 0.0, -1 / (1 - rho)]])
    assert_close(rounded.project_innovation(innovation, observed), expected, rtol=1e-2, atol=0)
    with pytest.raises(ValueError, match="R is not positive definite"):
        ObservingSystem(covariance=nearly_singular(1e-9))


@pytest.mark.parametrize("std", [1e-25, 1e25])
def test_a_deviation_whose_square_is_lost_in_single_precision(std):
    observing = ObservingSystem(std=torch.tensor([1.0, std], dtype=torch.float64))
    assert observing.to(torch.float64, "cpu").error_variance()[1] == std**2
    with pytest.raises(ValueError, match=r"expected a square that torch.float32 can hold"):
        observing.to(torch.float32, "cpu")


def test_an_operator_that_gives_no_numbers_is_refused():
    observing = ObservingSystem(std=torch.ones((), dtype=torch.float64), operator=FunctionOperator(torch.log, SITES))
    with pytest.raises(ValueError, match="observation operator gave values that are not finite at the truth: expected"):
        observe(normals(2, 3, SITES), Sites.all(), observing, labels(2), labels(3), 0)
