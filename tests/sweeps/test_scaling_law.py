"""A scaling law is found where there is one."""

import numpy as np
import pytest
import xarray as xr

import xdan

SIZES, BATCHES = 2.0 ** np.arange(10, 19), 2.0 ** np.arange(3, 9)
ALPHA, BETA, GAMMA, COEFFICIENTS = 0.103, 0.060, 1.435, (0.62, -0.135, 0.0135)


def synthetic(noise=0.0, seed=0, seeds=3, alpha=ALPHA, beta=BETA):
    u = SIZES[:, None] ** alpha / BATCHES**beta
    rmse = np.polynomial.polynomial.polyval(u, COEFFICIENTS) ** GAMMA
    rng = np.random.default_rng(seed)
    values = rmse[..., None] * np.exp(noise * rng.normal(size=(*rmse.shape, seeds)))
    return xr.Dataset(
        {"rmse": (("trajectories", "batch", "seed"), values)},
        {"trajectories": SIZES, "batch": BATCHES},
    )


def test_exact_data_give_the_exponents_back():
    law = xdan.scaling_law(synthetic(), bootstrap=0)
    assert float(law.ratio) == pytest.approx(BETA / ALPHA, rel=1e-4)
    assert float(law.alpha) == pytest.approx(ALPHA, rel=0.02)
    assert float(law.gamma) == pytest.approx(GAMMA, rel=0.05)
    np.testing.assert_allclose(law.fitted, law.observed, rtol=1e-6)


@pytest.mark.parametrize(("alpha", "beta"), [(0.103, 0.060), pytest.param(0.2, 0.05, marks=pytest.mark.slow)])
def test_the_ratio_lies_within_its_error_bars(alpha, beta):
    deviations = []
    for seed in range(4):
        law = xdan.scaling_law(synthetic(0.01, seed, alpha=alpha, beta=beta), bootstrap=60, seed=seed)
        assert 0.001 < float(law.ratio_standard_error) < 0.2
        deviations.append(float((law.ratio - beta / alpha) / law.ratio_standard_error))
    assert max(map(abs, deviations)) < 3.5
    assert np.abs(deviations).mean() > 0.1  # and the bars are not too wide to be wrong


def test_every_exponent_lies_within_its_error_bars():
    """Where N_r^alpha spans enough to tell the exponents apart."""
    deviations = []
    for seed in range(4):
        law = xdan.scaling_law(synthetic(0.01, seed, alpha=0.2, beta=0.05), bootstrap=60, seed=seed)
        assert law.attrs["undetermined"] == []
        truth = {"alpha": 0.2, "beta": 0.05, "gamma": GAMMA}
        deviations += [float((law[n] - value) / law[f"{n}_standard_error"]) for n, value in truth.items()]
    assert max(map(abs, deviations)) < 3.5
    assert np.abs(deviations).mean() > 0.1


def test_exponents_that_trade_have_no_bars():
    """With one percent of noise the published exponents cannot be told from others of the same ratio."""
    law = xdan.scaling_law(synthetic(0.01), bootstrap=60)
    assert law.attrs["undetermined"] == ["alpha", "beta", "gamma"]
    assert all(bool(law[f"{name}_{end}"].isnull()) for name in ("alpha", "gamma") for end in ("low", "high"))
    assert float(law.ratio_low) < BETA / ALPHA < float(law.ratio_high)


def test_missing_cells_and_one_scheme():
    cube = synthetic().expand_dims(scheme=["network"])
    holes = cube.where((cube.trajectories > 2000) | (cube.batch < 100))
    law = xdan.scaling_law(holes, bootstrap=0)
    assert law.attrs["cells"] == 9 * 6 - 2
    assert float(law.ratio) == pytest.approx(BETA / ALPHA, rel=1e-3)
    assert int(law.fitted.isnull().sum()) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.rename(batch="b"), "batch='batch': expected one of"),
        (lambda d: d.isel(trajectories=[0]), "two values of each"),
        (lambda d: d.isel(trajectories=[0, 1], batch=[0, 1, 2]), "at least 8 cells"),
        (lambda d: xr.concat([d, d], xr.Variable("scheme", ["a", "b"])), "expected one value of each"),
        (lambda d: d.rename(rmse="crps"), "value='rmse': expected one of"),
        (lambda d: -d, "expected positive rmse"),
    ],
)
def test_what_cannot_be_fitted(change, message):
    with pytest.raises(ValueError, match=message):
        xdan.scaling_law(change(synthetic()))
