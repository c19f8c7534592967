"""Classical methods by name: tuned, cycled, and against the formulas that they stand for."""

import numpy as np
import pytest
import torch
import xarray as xr

import xdan
from xdan.core.methods.tuning import vertex
from xdan.core.methods.variational import SCALES

_SCALES = SCALES.values


def test_baseline_is_cycle_with_the_method(twin):
    xr.testing.assert_identical(
        xdan.baseline(twin, "enkf-n", members=4, capped=False, seed=3),
        xdan.cycle(twin, xdan.FiniteSizeEnKF(members=4, capped=False), seed=3),
    )
    xr.testing.assert_identical(xdan.baseline(twin, "3d-var", scale=0.1), xdan.cycle(twin, xdan.ThreeDVar(scale=0.1)))


def test_three_d_var_by_its_formula(twin, model):
    """x_a = x_f + K (y - x_f), K = s B (s B + R)^{-1}, R correlated."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(8, 8))
    b, r = root @ root.T + np.eye(8), np.diag(np.linspace(0.5, 2, 8)) + 0.1
    run = xdan.baseline(twin, "3d-var", background=torch.from_numpy(b), scale=0.3, observation_error=r)
    gain = 0.3 * b @ np.linalg.inv(0.3 * b + r)
    later = run.isel(time=slice(1, None))
    innovation = twin.observation.values[:, 1:] - later.forecast.values
    np.testing.assert_allclose(later.analysis, later.forecast + innovation @ gain.T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(later.forecast_spread**2, np.broadcast_to(0.3 * np.diag(b), later.spread.shape))
    expected = np.diag(0.3 * (np.eye(8) - gain) @ b)
    np.testing.assert_allclose(later.spread**2, np.broadcast_to(expected, later.spread.shape))
    before = torch.from_numpy(run.analysis.values[:, :-1]).reshape(-1, 8)
    np.testing.assert_allclose(model.advance(before, 1).reshape(4, 23, 8), later.forecast, rtol=0, atol=1e-12)
    np.testing.assert_allclose(run.background_covariance, b)
    assert float(run.background_scale) == 0.3


def test_three_d_var_with_gaps_leaves_them_out(twin):
    """Unobserved sites move only by their covariance with the observed ones."""
    b = np.eye(8) + 0.5 * (np.eye(8, k=1) + np.eye(8, k=-1))
    seen = np.arange(8) % 4 == 0
    sparse = twin.assign(observation=twin.observation.where(xr.DataArray(seen, dims="x")))
    run = xdan.baseline(sparse, "3d-var", background=torch.from_numpy(b), scale=1.0).isel(time=slice(1, None))
    h = np.eye(8)[seen]
    gain = b @ h.T @ np.linalg.inv(h @ b @ h.T + np.eye(2))
    innovation = (sparse.observation.values[:, 1:] - run.forecast.values)[..., seen]
    np.testing.assert_allclose(run.analysis, run.forecast + innovation @ gain.T, rtol=0, atol=1e-12)


def test_tuning_takes_the_bottom_of_its_curve(model):
    ds = xdan.twin(model, cycles=200, trajectories=4, seed=5, dtype="float64").compute()
    tuned = xdan.baseline(ds, "3d-var")
    np.testing.assert_allclose(tuned.candidate_scale, _SCALES, rtol=1e-6)
    best = int(np.argmin(tuned.innovation_rms.values))
    assert 0 < best < len(_SCALES) - 1
    step = _SCALES[0] / _SCALES[1]
    assert _SCALES[best] / step <= float(tuned.background_scale) <= _SCALES[best] * step
    # The curve is what a run with that scale sees on the leading part, its burn-in left out.
    fixed = xdan.baseline(ds, "3d-var", scale=_SCALES[best])
    innovation = (ds.observation - fixed.forecast).isel(time=slice(50, 200))
    np.testing.assert_allclose(np.sqrt((innovation**2).mean()), tuned.innovation_rms[best], rtol=1e-6)


def test_the_best_scale_stands_beside_one_that_diverged():
    scale = torch.tensor([2.0, 1.0, 0.5, 0.25])
    assert float(vertex(scale, torch.tensor([torch.inf, 1.0, 1.5, 2.0]), 1)) == 1.0
    assert 0.5 < float(vertex(scale, torch.tensor([3.0, 1.0, 1.5, 2.0]), 1)) < 1.0


def test_a_static_scheme_is_tuned_on_the_truth_where_asked(model):
    ds = xdan.twin(model, cycles=200, trajectories=4, seed=5, dtype="float64").compute()
    tuned = xdan.baseline(ds, "3d-var", tune_on="truth")
    assert tuned.attrs["tuned_on"] == "truth"
    best = int(np.argmin(tuned.truth_rmse.values))
    fixed = xdan.baseline(ds, "3d-var", scale=_SCALES[best])
    np.testing.assert_allclose(xdan.score(ds, fixed, burn_in=50).rmse, tuned.truth_rmse[best], rtol=1e-6)
    assert "tuned_on" not in fixed.attrs
    with pytest.raises(ValueError, match="the record has no truth, expected one; use tune_on='innovation'"):
        xdan.baseline(ds.drop_vars("truth"), "3d-var", tune_on="truth").compute()


def test_trained_background_is_of_the_schemes_own_errors(model):
    ds = xdan.twin(model, cycles=200, trajectories=8, seed=5, dtype="float64").compute()
    trained = xdan.baseline(ds, "3d-var", background="trained")
    errors = (trained.forecast - ds.truth).isel(time=slice(50, None)).stack(sample=("trajectory", "time"))
    ratio = float(trained.background_scale) * np.trace(trained.background_covariance) / (errors**2).mean("sample").sum()
    assert 0.5 < float(ratio) < 2


def test_tuned_parameters_do_not_depend_on_chunks(twin):
    whole = xdan.baseline(twin, "3d-var", background="trained")
    cut = xdan.baseline(twin.chunk(time=5, trajectory=1), "3d-var", background="trained")
    assert cut.background_scale.chunks is not None
    for name in ("background_scale", "background_covariance", "innovation_rms"):
        np.testing.assert_allclose(cut[name], whole[name], rtol=1e-9)


def test_enkf_n_in_a_linear_gaussian_world(model):
    """With an ensemble this large the analysis variance is the Kalman filter's, for every site by itself."""
    a = 0.9
    still = xdan.CustomDynamics(step=lambda x: a * x, state={"x": 1}, timestep=1.0, spin_up_time=0.0)
    ds = xdan.twin(still, interval=1.0, cycles=12, trajectories=40, dtype="float64").compute()
    run = xdan.baseline(ds, "enkf-n", members=200, dynamics=still)
    variance = 1.0
    for k in range(12):
        variance = variance / (variance + 1.0)
        # Within five standard errors of 40 sample variances, and the 1 / members that the finite size adds.
        np.testing.assert_allclose((run.spread[:, k] ** 2).mean(), variance, rtol=5 * np.sqrt(2 / 200 / 40) + 0.01)
        variance = a**2 * variance


def test_enkf_n_capped_never_deflates(twin):
    capped, free = (xdan.baseline(twin, "enkf-n", members=5, capped=kind).inflation for kind in (True, False))
    assert (capped >= 1 - 1e-12).all()
    assert (free < 1 - 1e-3).any()


@pytest.mark.parametrize("members", [2, 9])
def test_members_are_as_many_as_asked(twin, members):
    kept = xdan.baseline(twin, "enkf-n", members=members, keep_members=True)
    assert kept.sizes["member"] == members
    assert "member" not in xdan.baseline(twin, "enkf-n", members=members).dims


def test_parameters_are_written_down(twin):
    run = xdan.baseline(twin, "enkf-n", members=3, capped=False)
    assert run.attrs["method"] == "enkf-n"
    assert '"members": 3' in run.attrs["method_parameters"]
    assert '"capped": false' in run.attrs["method_parameters"]


def test_lazy_even_where_it_is_tuned(twin, untouchable, computed):
    lazy = xdan.baseline(untouchable(twin, "truth", "observation"), "3d-var", background="trained")
    assert computed.calls == 0
    assert lazy.background_scale.chunks is not None
    assert lazy.innovation_rms.chunks is not None


def test_candidates_are_tried_and_written_down(twin):
    asked = {"inflation": "tune", "candidates": {"inflation": [1.2, 1.0, 1.05]}}
    tuned = xdan.baseline(twin, "etkf", members=6, **asked)
    np.testing.assert_array_equal(tuned.candidate_inflation, [1.0, 1.05, 1.2])
    assert '"candidates": {"inflation": [1.0, 1.05, 1.2]}' in tuned.attrs["method_parameters"]
    best = float(tuned.candidate_inflation[int(tuned.innovation_score.values.argmin())])
    assert float(tuned.tuned_inflation) == best
    fixed = xdan.baseline(twin, "etkf", members=6, inflation=best)
    np.testing.assert_array_equal(tuned.analysis, fixed.analysis)
    assert "candidates" not in fixed.attrs["method_parameters"]


def test_a_run_with_other_candidates_is_another_run(twin, tmp_path):
    ask = {"inflation": "tune", "store": tmp_path / "run.zarr", "progress": False}
    first = xdan.baseline(twin, "etkf", members=6, candidates={"inflation": [1.0, 1.05, 1.2]}, **ask)
    assert first.sizes["candidate_inflation"] == 3
    with pytest.raises(FileExistsError):
        xdan.baseline(twin, "etkf", members=6, candidates={"inflation": [1.0, 1.06, 1.2]}, **ask)


def test_tuning_that_ends_at_an_end_warns(twin):
    with pytest.warns(xdan.XdanWarning, match=r"tuning inflation of 'etkf' chose 3, an end .*smaller"):
        xdan.baseline(twin, "etkf", members=6, inflation="tune", candidates={"inflation": [3.0, 4.0]})


@pytest.mark.parametrize(
    ("name", "keep", "kind"), [("etkf", 2, TypeError), ("etkf", "yes", TypeError), ("3d-var", True, ValueError)]
)
def test_members_are_kept_by_the_argument_that_a_message_names(twin, name, keep, kind):
    with pytest.raises(kind, match=r"keep_members=.*expected"):
        xdan.baseline(twin, name, keep_members=keep)


def test_a_background_given_as_an_array_is_used(twin):
    ds = twin.compute()
    chosen = xdan.baseline(ds, "3d-var", background=np.eye(8), scale=0.5)
    np.testing.assert_array_equal(chosen.background_covariance, np.eye(8))
