"""Spectra and alignment of covariances, and the bias without innovation."""

import numpy as np
import pytest
import torch
import xarray as xr

import xdan


def covariance(matrix):
    return xr.DataArray(matrix, dims=("time", "i", "j"))


def rotation(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def test_members_have_the_covariance_of_numpy(ensemble):
    matrices = xdan.ensemble_covariance(ensemble)
    assert matrices.dims == ("trajectory", "time", "i", "j")
    expected = np.cov(ensemble.members.isel(trajectory=2, time=7).values.T)
    np.testing.assert_allclose(matrices.isel(trajectory=2, time=7), expected, rtol=1e-12, atol=1e-14)
    spread = ensemble.spread.isel(trajectory=2, time=7).values
    np.testing.assert_allclose(np.sqrt(np.diag(expected)), spread, rtol=1e-10)
    assert not np.allclose(xdan.ensemble_covariance(ensemble, of="forecast_members"), matrices)


def test_members_on_a_grid():
    members = xr.DataArray(np.random.default_rng(0).normal(size=(3, 9, 2, 4)), dims=("time", "member", "lat", "lon"))
    matrices = xdan.ensemble_covariance(members.to_dataset(name="members"))
    np.testing.assert_allclose(matrices.isel(time=1), np.cov(members[1].values.reshape(9, 8).T), rtol=1e-12)


def test_spectrum_of_known_matrices():
    turn = rotation(0.3)
    symmetric = turn @ np.diag([1.0, 4.0]) @ turn.T
    skew = np.array([[0.0, 1.0], [-1.0, 0.0]])
    spectrum = xdan.covariance_spectrum(covariance(np.stack([symmetric, symmetric + 0.5 * skew])))
    np.testing.assert_allclose(spectrum.eigenvalue, [[4.0, 1.0]] * 2)
    np.testing.assert_allclose(spectrum.asymmetry, [0.0, 0.5 * np.sqrt(2) / np.sqrt(17)], atol=1e-12)
    np.testing.assert_allclose(abs(spectrum.eigenvector[0].values @ turn[:, ::-1]), np.eye(2), atol=1e-12)


@pytest.mark.parametrize("angle", [0.0, 1e-7, 0.4, np.pi / 2])
def test_angles_between_known_planes(angle):
    turn = np.eye(4)
    turn[1:3, 1:3] = rotation(angle)
    values = np.diag([4.0, 3.0, 2.0, 1.0])
    one, other = covariance(values[None]), covariance((turn @ values @ turn.T)[None])
    angles = xdan.principal_angles(one, other, modes=2)
    np.testing.assert_allclose(np.radians(angles[0]), [0.0, angle], atol=1e-12)
    # Vectors, of any length and not orthogonal, that span the same planes.
    vectors = xr.DataArray((np.array([[3.0, 0.0], [5.0, -2.0]]) @ turn[:, :2].T)[None], dims=("time", "vector", "x"))
    np.testing.assert_allclose(xdan.principal_angles(one, vectors, modes=2), angles, atol=1e-6)


def test_a_line_and_a_plane():
    turn = rotation(0.3)
    plane = xr.DataArray(np.eye(3)[None, :2], dims=("time", "vector", "x"))
    line = xr.DataArray(np.array([[[turn[0, 0], 0.0, turn[1, 0]]]]), dims=("time", "vector", "x"))
    for one, other, modes in ((line, plane, (1, 2)), (plane, line, (2, 1))):
        angles = xdan.principal_angles(one, other, modes=modes[0], other_modes=modes[1])
        assert angles.sizes["angle"] == 1
        np.testing.assert_allclose(np.radians(angles), 0.3, atol=1e-12)


def test_lazy_input_stays_lazy(twin, net, ensemble, untouchable, computed):
    lazy = xdan.ensemble_covariance(ensemble.chunk(time=5))
    matrices = untouchable(twin, "truth").dan.gain(net, kind="covariance")
    spectrum = xdan.covariance_spectrum(matrices)
    angles = xdan.principal_angles(matrices, lazy, modes=3)
    assert spectrum.chunks
    assert angles.chunks
    assert untouchable(twin, "truth").dan.zero_innovation_bias(net).bias.chunks
    assert computed.calls == 0


def test_chunked_is_the_same(twin, net):
    whole = xdan.covariance_spectrum(twin.dan.gain(net, kind="covariance"))
    cut = xdan.covariance_spectrum(twin.chunk(trajectory=3, time=5).dan.gain(net, kind="covariance"))
    np.testing.assert_allclose(cut.eigenvalue, whole.eigenvalue, rtol=0, atol=1e-12)


def test_bias_and_its_moments(twin, net):
    biases = twin.dan.zero_innovation_bias(net).compute()
    module = net.module(torch.float64)
    x = torch.from_numpy(twin.truth.values.reshape(-1, 8).copy())
    step = (module(x, 0 * x)[0] - x).detach().numpy()
    expected = np.sqrt((step**2).mean(1)).reshape(biases.bias.shape)
    np.testing.assert_allclose(biases.bias, expected, rtol=1e-9)
    assert float(biases["mean"]) == pytest.approx(expected.mean())
    assert float(biases["deviation"]) == pytest.approx(expected.std())


def test_refusals(ensemble):
    with pytest.raises(ValueError, match="keep_members=True"):
        xdan.ensemble_covariance(ensemble.drop_vars("members"))
    with pytest.raises(ValueError, match="at least 2"):
        xdan.ensemble_covariance(ensemble.isel(member=[0]))
    with pytest.raises(ValueError, match="expected dims i and j"):
        xdan.covariance_spectrum(ensemble.spread)
    square = covariance(np.eye(3)[None])
    with pytest.raises(ValueError, match="modes=4: expected 1 to 3"):
        xdan.principal_angles(square, square, modes=4)
    with pytest.raises(ValueError, match="the two share 0 of"):
        xdan.principal_angles(square.assign_coords(time=[0]), square.assign_coords(time=[1]), modes=1)
    two = xr.concat([square.assign_coords(time=[0]), square.assign_coords(time=[1])], "time")
    assert xdan.principal_angles(two, square.assign_coords(time=[1]), modes=1).sizes["time"] == 1
    with pytest.raises(ValueError, match="the two share 1 of 2 labels along 'time'"):
        xdan.principal_angles(two, two.assign_coords(time=[1, 2]), modes=1)
    with pytest.raises(ValueError, match="expected covariances"):
        xdan.principal_angles(square, ensemble.spread, modes=1)


@pytest.mark.filterwarnings("ignore:.* covariances are not finite")
def test_matrices_of_a_lost_trajectory_are_left_out():
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(3, 2, 6, 6))
    matrices = xr.DataArray(
        roots @ roots.swapaxes(-1, -2), dims=("trajectory", "time", "i", "j"), coords={"i": range(6)}
    )
    lost = matrices.where(matrices.trajectory != 1)
    for diagnostic, expected in (
        (xdan.covariance_spectrum(lost), xdan.covariance_spectrum(matrices)),
        (xdan.principal_angles(lost, matrices, modes=3), xdan.principal_angles(matrices, matrices, modes=3)),
    ):
        whole = {"trajectory": [0, 2]}
        xr.testing.assert_allclose(diagnostic.isel(whole), expected.isel(whole))
        gone = diagnostic.isel(trajectory=1)
        assert bool(gone.isnull().all() if isinstance(gone, xr.DataArray) else gone.eigenvalue.isnull().all())


def test_information_is_that_of_the_forecast_covariance():
    """-log det(I - K H) = log det(I + P_f R^-1), where P_a = (P_f^-1 + R^-1)^-1."""
    rng = np.random.default_rng(0)
    root, error = rng.standard_normal((5, 4, 4)), np.array([0.5, 1.0, 2.0, 1.5])
    forecast = root @ root.swapaxes(1, 2)
    analysis = np.linalg.inv(np.linalg.inv(forecast) + np.diag(error**-2))
    covariance = xr.DataArray(analysis, dims=("time", "i", "j"), coords={"time": np.arange(5.0)})
    lopsided = covariance + 0.1 * xr.DataArray(
        [[0, 1, 2, 0], [-1, 0, 3, 0], [-2, -3, 0, 1], [0, 0, -1, 0]], dims=("i", "j")
    )
    expected = np.linalg.slogdet(np.eye(4) + forecast / error[:, None] ** 2)[1]
    stds = xr.DataArray(error, dims="i")
    for one in (covariance, covariance.chunk(time=2), lopsided):
        answer = xdan.information_gain(one, error_std=stds)
        np.testing.assert_allclose(answer.values, expected, rtol=1e-9)
    alike = xdan.information_gain(covariance, error_std=2.0)
    np.testing.assert_allclose(alike, -np.linalg.slogdet(np.eye(4) - analysis / 4.0)[1])


def test_information_of_no_analysis_is_refused_or_nan():
    covariance = xr.DataArray(
        np.stack([0.5 * np.eye(2), 1.5 * np.eye(2), np.full((2, 2), np.nan)]), dims=("time", "i", "j")
    )
    answer = xdan.information_gain(covariance).values
    assert answer[0] == pytest.approx(2 * np.log(2))
    assert np.isnan(answer[1:]).all()
    with pytest.raises(ValueError, match="expected i: 2"):
        xdan.information_gain(covariance, error_std=xr.DataArray([1.0, 1.0, 1.0], dims="i"))
    with pytest.raises(ValueError, match="not positive"):
        xdan.information_gain(covariance, error_std=xr.DataArray([1.0, 0.0], dims="i"))
    with pytest.raises(ValueError, match="expected dims i and j"):
        xdan.information_gain(covariance.isel(j=[0]))
