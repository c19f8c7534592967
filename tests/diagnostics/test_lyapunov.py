"""Lyapunov exponents and vectors as labelled arrays: what they say of known systems, laziness, errors."""

import json
import math

import numpy as np
import pytest
import torch
import xarray as xr

import xdan
from xdan.core.dynamics import dynamics_from_json
from xdan.core.lyapunov import orthonormal_directions, spectrum


def custom(tendency, size, **options):
    return xdan.CustomDynamics(tendency, state={"x": size}, **{"timestep": 0.1, "spin_up_time": 1.0, **options})


@pytest.fixture(scope="module")
def butterfly():
    """Two trajectories of Lorenz-63 over 12 units of time, in memory."""
    ds = xdan.twin(xdan.Lorenz63(), interval=0.1, cycles=121, trajectories=3, seed=4, dtype="float64")
    return ds.compute(scheduler="synchronous")


@pytest.fixture(scope="module")
def covariant(butterfly):
    return xdan.lyapunov_vectors(butterfly, kind="covariant", spin_up=50).compute(scheduler="synchronous")


def test_spectrum_of_lorenz63():
    model = xdan.Lorenz63()
    ds = xdan.lyapunov_spectrum(model, time=40.0, spin_up=10.0, trajectories=40, seed=3)
    assert ds.vector.values.tolist() == [1, 2, 3]
    assert (abs(ds.exponent - [0.9056, 0.0, -14.5723]) < 0.03).all()
    assert (ds.exponent_standard_error < 0.015).all()
    assert (int(ds.positive), int(ds.zero)) == (1, 1)
    assert ds.entropy == pytest.approx(float(ds.exponent[0]))
    assert ds.doubling_time == pytest.approx(math.log(2) / float(ds.exponent[0]))
    assert ds.kaplan_yorke_dimension == pytest.approx(2.062, abs=0.003)
    assert 0 < ds.kaplan_yorke_dimension_standard_error < 0.002
    assert dynamics_from_json(json.loads(ds.attrs["dynamics"])) == model
    assert (ds.attrs["time"], ds.attrs["spin_up"], ds.attrs["trajectories"]) == (pytest.approx(40), 10, 40)
    assert all(ds[name].attrs["units"] == "1" and ds[name].attrs["long_name"] for name in ds.variables)


@pytest.mark.slow
def test_spectrum_of_lorenz96():
    """1.690 +- 0.004 in a run ten times as long (1.67 is often quoted); 13 positive and one zero; dimension 27.07."""
    ds = xdan.lyapunov_spectrum(xdan.Lorenz96(), time=250.0, trajectories=32)
    assert ds.exponent[0] == pytest.approx(1.67, abs=0.03)
    assert (int(ds.positive), int(ds.zero)) == (13, 1)
    assert 27 < ds.kaplan_yorke_dimension < 28
    assert ds.exponent.sum() == pytest.approx(-40, abs=0.02)


def test_spectrum_is_the_mean_over_trajectories_and_their_spread(model):
    """Of those of more than one task, keyed by their numbers."""
    rates = xdan.lyapunov_spectrum(model, time=2.0, spin_up=1.0, interval=0.1, trajectories=70, vectors=2, seed=5)
    keys = torch.arange(70)
    x = model.climatology(keys, 5, like=torch.zeros((), dtype=torch.float64))[:, 0]
    start = orthonormal_directions(keys, 5, 2, 8)
    expected = spectrum(model, x, start, between=2, spin_up=10, repeats=20)[0].numpy()
    np.testing.assert_allclose(rates.exponent, expected.mean(0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        rates.exponent_standard_error, expected.std(0, ddof=1) / math.sqrt(70), rtol=0, atol=1e-12
    )


def test_spectrum_of_what_decays():
    ds = xdan.lyapunov_spectrum(custom(lambda x: -x, 2), time=5.0, trajectories=1)
    np.testing.assert_allclose(ds.exponent, math.log(1 - 0.1 + 0.1**2 / 2 - 0.1**3 / 6 + 0.1**4 / 24) / 0.1)
    assert (ds.kaplan_yorke_dimension, ds.entropy, ds.positive, ds.zero) == (0, 0, 0, 0)
    assert ds.doubling_time.isnull()
    assert ds.exponent_standard_error.isnull().all()


def test_spectrum_of_what_turns():
    """Two zeros, which the error of the steps puts a little below."""
    ds = xdan.lyapunov_spectrum(custom(lambda x: torch.stack([x[..., 1], -x[..., 0]], -1), 2), time=5.0)
    assert (ds.exponent < 0).all()
    assert (ds.positive, ds.zero, ds.kaplan_yorke_dimension) == (0, 2, 2)


@pytest.mark.slow
def test_too_few_vectors_leave_open_what_they_cannot_tell(model):
    ds = xdan.lyapunov_spectrum(xdan.Lorenz63(), time=20.0, vectors=1)
    assert ds.positive == 1
    assert ds.kaplan_yorke_dimension.isnull()
    assert ds.entropy.isnull()
    two = xdan.lyapunov_spectrum(xdan.Lorenz63(), time=20.0, vectors=2)
    assert two.entropy == pytest.approx(float(two.exponent[0]))


def test_spectrum_is_computed_at_once(computed):
    xdan.lyapunov_spectrum(xdan.Lorenz63(), time=0.2, spin_up=0.0, trajectories=70)
    assert computed.calls == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dynamics": "lorenz63"}, TypeError, r"dynamics='lorenz63': expected an xdan Dynamics"),
        ({"vectors": 4}, ValueError, r"vectors=4: expected at least 1 and at most 3"),
        ({"vectors": 0}, ValueError, "vectors=0: expected at least 1 and at most 3"),
        ({"vectors": 1.5}, TypeError, "vectors=1.5: expected an integer"),
        ({"time": 0.0}, ValueError, "time=0: expected a finite number, above 0"),
        ({"time": math.inf}, ValueError, "time=inf: expected a finite number, above 0"),
        ({"time": "long"}, TypeError, "time='long': expected a number"),
        ({"spin_up": -1.0}, ValueError, "spin_up=-1: expected a finite number, at least 0"),
        ({"interval": 0.015}, ValueError, "interval of 0.015 is not a positive multiple of the lorenz63 time step"),
        ({"interval": 0.0}, ValueError, "interval=0: expected a finite number, above 0"),
        ({"trajectories": 0}, ValueError, "trajectories=0: expected at least 1"),
        ({"seed": -1}, ValueError, "seed=-1: expected an integer"),
    ],
)
def test_spectrum_refuses_before_it_computes(changes, error, message, computed):
    with pytest.raises(error, match=message):
        xdan.lyapunov_spectrum(**{"dynamics": xdan.Lorenz63(), **changes})
    assert computed.calls == 0


def test_spectrum_of_what_blows_up():
    with pytest.raises(ValueError, match="grew beyond all numbers: expected a bounded attractor"):
        xdan.lyapunov_spectrum(custom(lambda x: x**3, 2, spin_up_time=0.0), time=20.0)


def test_covariant_vectors_lead_from_each_time_to_the_next(butterfly, covariant):
    """Vectors, growth, states and times belong together."""
    np.testing.assert_array_equal(covariant.time, butterfly.time[50:71])
    assert covariant.lyapunov_vector.dims == ("trajectory", "time", "vector", "component")
    states = torch.from_numpy(butterfly.truth.sel(time=covariant.time).values)
    vectors = torch.from_numpy(covariant.lyapunov_vector.values)
    _, ahead = xdan.Lorenz63().advance_along(states[:, :-1].flatten(0, 1), vectors[:, :-1].flatten(0, 1), 10)
    ahead, length = ahead.unflatten(0, (3, -1)).numpy(), ahead.norm(dim=-1).unflatten(0, (3, -1)).numpy()
    np.testing.assert_allclose(ahead / length[..., None], vectors[:, 1:], rtol=0, atol=1e-9)
    np.testing.assert_allclose(np.log(length) / 0.1, covariant.growth[:, 1:], rtol=0, atol=1e-9)


def test_backward_vectors_are_orthonormal_and_share_the_divergence(butterfly, covariant):
    ds = xdan.lyapunov_vectors(butterfly, spin_up=50)
    assert ds.sizes["time"] == 71
    vectors = ds.lyapunov_vector.values
    np.testing.assert_allclose(
        vectors @ vectors.swapaxes(-1, -2), np.broadcast_to(np.eye(3), (3, 71, 3, 3)), atol=1e-13
    )
    np.testing.assert_allclose(vectors[:, :21, 0], covariant.lyapunov_vector[:, :, 0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(ds.growth.sum("vector"), -(10 + 1 + 8 / 3), rtol=0, atol=0.02)


def test_two_seeds_tell_what_has_converged(butterfly, covariant):
    other = xdan.lyapunov_vectors(butterfly, kind="covariant", spin_up=50, seed=1)
    cosine = abs((other.lyapunov_vector * covariant.lyapunov_vector).sum("component"))
    assert cosine.isel(time=10).min() > 1 - 1e-2
    unsettled = [xdan.lyapunov_vectors(butterfly, kind="covariant", spin_up=1, seed=seed) for seed in (0, 1)]
    cosine = abs((unsettled[0].lyapunov_vector * unsettled[1].lyapunov_vector).sum("component")).compute()
    assert cosine.isel(time=0).min() < 0.99
    assert cosine.isel(time=-1).min() < 0.99


@pytest.mark.parametrize("kind", ["backward", "covariant"])
def test_any_chunks_give_the_same(twin, kind):
    whole = xdan.lyapunov_vectors(twin, kind=kind, spin_up=4)
    cut = xdan.lyapunov_vectors(twin.chunk(trajectory=1, time=5, x=3), kind=kind, spin_up=4)
    assert whole.lyapunov_vector.chunksizes["trajectory"] == (4,)
    assert cut.lyapunov_vector.chunksizes["trajectory"] == (1, 1, 1, 1)
    assert cut.growth.chunksizes["time"] == (cut.sizes["time"],)
    xr.testing.assert_allclose(cut, whole, rtol=0, atol=1e-12)
    part = xdan.lyapunov_vectors(twin.isel(trajectory=[2, 0]), kind=kind, spin_up=4)
    xr.testing.assert_allclose(part, whole.isel(trajectory=[2, 0]), rtol=0, atol=1e-12)


def test_nothing_is_read_until_it_is_wanted(twin, untouchable, computed):
    lazy = xdan.lyapunov_vectors(untouchable(twin, "truth", "observation"), kind="covariant", spin_up=4, vectors=2)
    assert computed.calls == 0
    assert lazy.lyapunov_vector.chunksizes["trajectory"] == (2, 2)
    with pytest.raises(AssertionError, match="data was read"):
        lazy.growth.compute()
    assert computed.calls == 1


def test_a_trajectory_asks_for_its_block_alone(twin):
    seen = set()

    def note(block, block_info=None):
        if block_info:
            seen.add(block_info[0]["chunk-location"][0])
        return block

    chunked = twin.chunk(trajectory=1, time=6)
    noted = chunked.assign(truth=chunked.truth.copy(data=chunked.truth.data.map_blocks(note)))
    xdan.lyapunov_vectors(noted, spin_up=4).growth.isel(trajectory=2, time=3).compute()
    assert seen == {2}


def test_only_the_truth_is_needed(twin, tmp_path):
    """Of any name, type and number of trajectories; what comes out goes into a store."""
    whole = xdan.lyapunov_vectors(twin, spin_up=4, vectors=3)
    nature = twin[["truth"]].rename(truth="nature").drop_attrs(deep=False)
    vectors = xdan.lyapunov_vectors(nature, truth="nature", dynamics=xdan.Lorenz96(sites=8), spin_up=4, vectors=3)
    np.testing.assert_array_equal(vectors.lyapunov_vector, whole.lyapunov_vector)
    bare = xdan.lyapunov_vectors(twin[["truth"]].isel(trajectory=0, drop=True), spin_up=4, vectors=3)
    np.testing.assert_allclose(bare.growth, whole.growth[0], rtol=0, atol=1e-12)
    matrix = xdan.twin(xdan.Lorenz96(sites=8), cycles=24, trajectories=4, seed=1, operator=np.eye(8)[:2])
    single = xdan.lyapunov_vectors(matrix, spin_up=4, vectors=3)
    assert single.growth.dtype == single.lyapunov_vector.dtype == "float64"
    single.to_zarr(tmp_path / "vectors.zarr", consolidated=False)
    with xr.open_zarr(tmp_path / "vectors.zarr", consolidated=False) as opened:
        xr.testing.assert_identical(opened.compute(), single.compute())


def test_uneven_intervals_grow_at_one_rate():
    """Of a linear map, the two exponents whatever the interval; spin-up counted in model time."""
    rates = torch.tensor([0.5, -1.0], dtype=torch.float64)
    linear = custom(lambda x: x * rates, 2, spin_up_time=6.0)
    intervals = [0.2, 0.5, 0.3] * 20
    time = np.concatenate([[0.0], np.cumsum(intervals)]).round(9)
    ds = xr.Dataset({"truth": (("time", "x"), np.zeros((61, 2)))}, {"time": time})
    vectors = xdan.lyapunov_vectors(ds, dynamics=linear, interval=0.2)
    assert vectors.time[0] == 6.0
    expected = [math.log(sum((0.1 * rate) ** k / math.factorial(k) for k in range(5))) / 0.1 for rate in (0.5, -1.0)]
    late = vectors.sel(time=slice(12, None))
    np.testing.assert_allclose(late.growth, np.broadcast_to(expected, late.growth.shape), rtol=0, atol=1e-6)
    np.testing.assert_allclose(abs(late.lyapunov_vector[-1]), np.eye(2), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kind": "forward"}, ValueError, "kind='forward': expected one of"),
        ({"vectors": 9}, ValueError, "vectors=9: expected at least 1 and at most 8"),
        ({"spin_up": 0}, ValueError, "spin_up=0: expected at least 1"),
        ({"spin_up": 2.0}, TypeError, "spin_up=2.0: expected an integer"),
        ({"spin_up": 24}, ValueError, "24 cycles.*leaves out the first 24.*expected at least 25 cycles"),
        ({"spin_up": 12, "kind": "covariant"}, ValueError, "the first and the last 12.*expected at least 25 cycles"),
        ({"spin_up": None}, ValueError, "24 cycles.*a longer record or a smaller spin_up="),
        ({"interval": 0.07}, ValueError, "interval of 0.07 is not a positive multiple"),
        ({"dynamics": "lorenz96"}, TypeError, r"expected an xdan Dynamics such as xdan.Lorenz96\(\); wrap"),
        ({"truth": "nature"}, ValueError, "truth='nature': expected one of"),
        ({"seed": 2**32}, ValueError, "seed=4294967296: expected an integer"),
    ],
)
def test_vectors_are_refused_before_anything_is_read(changes, error, message, twin, untouchable, computed):
    ds = untouchable(twin, "truth", "observation")
    with pytest.raises(error, match=message):
        xdan.lyapunov_vectors(ds, **{"spin_up": 4, **changes})
    assert computed.calls == 0


def test_record_without_a_truth(twin):
    with pytest.raises(ValueError, match=r"need the truth: expected a variable 'truth', found \['observation'"):
        xdan.lyapunov_vectors(twin.drop_vars("truth"), spin_up=4)


def test_truth_with_gaps(twin):
    gaps = twin.assign(truth=twin.truth.where((twin.trajectory != 2) | (twin.time != twin.time[5])))
    message = r"truth of trajectories \[2\] holds values that are not finite.*ds.dropna\('trajectory'"
    with pytest.raises(ValueError, match=message):
        xdan.lyapunov_vectors(gaps, spin_up=4)
    lazy = xdan.lyapunov_vectors(gaps.chunk(trajectory=1), spin_up=4)
    with pytest.raises(ValueError, match=message):
        lazy.growth.compute()
    assert np.isfinite(lazy.growth[:2]).all()
    assert xdan.lyapunov_vectors(gaps.dropna("trajectory", subset=["truth"]), spin_up=4).sizes["trajectory"] == 3


def test_directions_that_are_lost(twin):
    flat = xdan.CustomDynamics(step=lambda x: x * torch.eye(8)[0], state={"x": 8}, timestep=0.05)
    lazy = xdan.lyapunov_vectors(twin, dynamics=flat, kind="covariant", spin_up=4)
    with pytest.raises(ValueError, match="loses a direction altogether; ask for fewer with vectors="):
        lazy.growth.compute()


def exponents(*values: float) -> xr.Dataset:
    return xr.Dataset({"exponent": ("vector", np.array(values))})


def test_the_floor_is_the_kalman_filters_of_each_growing_direction():
    rates, interval, error = (1.2, 0.3, 0.0, -0.8), 0.5, 2.0
    variance, told = 0.0, 0.0
    for rate in rates[:3]:  # what decays is known without an observation
        p = 1.0
        for _ in range(2000):  # to the steady state of a scalar filter
            forecast = math.exp(2 * rate * interval) * p
            p = forecast * error**2 / (forecast + error**2)
        variance += p
        told += math.log(forecast / p)
    floor = xdan.lyapunov_floor(exponents(*rates), interval=interval, error_std=error)
    assert float(floor.rmse) == pytest.approx(math.sqrt(variance / 4), rel=1e-2)  # the neutral one decays slowly
    assert float(floor.information) == pytest.approx(told, rel=1e-2)
    wider = xdan.lyapunov_floor(exponents(*rates), interval=interval, error_std=error, components=16)
    assert float(wider.rmse) == pytest.approx(float(floor.rmse) / 2)


def test_a_floor_needs_all_growing_directions():
    with pytest.raises(ValueError, match=r"the last of 2 exponents is 0\.3.*more vectors="):
        xdan.lyapunov_floor(exponents(1.2, 0.3), interval=0.5)
    with pytest.raises(ValueError, match="expected the result of lyapunov_spectrum"):
        xdan.lyapunov_floor(xr.Dataset({"x": 1.0}), interval=0.5)
    with pytest.raises(ValueError, match="interval="):
        xdan.lyapunov_floor(exponents(1.2, -0.3), interval=0.0)
    with pytest.raises(ValueError, match="components=1"):
        xdan.lyapunov_floor(exponents(1.2, -0.3), interval=0.5, components=1)
