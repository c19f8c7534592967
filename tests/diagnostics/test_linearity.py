"""Scaling of increments, Stein's identity and histograms."""

import numpy as np
import pytest
import torch

import xdan
from xdan.core.networks import LinearInZeta, ResidualCNN
from xdan.network import Network

SMALL = {"filters": 4, "blocks": 1, "kernel": 3}


def frozen(module, factor=2.0):
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(factor)
    module.normalise(2.3, 3.6, 1.0)
    return Network.from_module(module.double(), ("x",), {})


@pytest.fixture(scope="module")
def linear():
    torch.manual_seed(0)
    return frozen(LinearInZeta(rank=3, radius=1.5, **SMALL), 1.0)


@pytest.fixture(scope="module")
def curved():
    torch.manual_seed(0)
    return frozen(ResidualCNN(**SMALL))


def test_linear_network_scales_exactly(twin, linear):
    run = twin.dan.cycle(linear)
    scaling = twin.dan.scaling_of_increments(linear, run, [0.01, 1.0, 3.0, 100.0], burn_in=5).compute()
    np.testing.assert_allclose(scaling.ratio, scaling.scale, rtol=1e-6)
    assert float(scaling.standard_error.max()) < 1e-4
    sampled = twin.dan.scaling_of_increments(linear, run, [3.0], method="regression", samples=12, dim="time")
    assert sampled.ratio.dims == ("trajectory", "scale")
    np.testing.assert_allclose(sampled.ratio, 3.0, rtol=1e-5)


def test_curved_network_follows_its_definition(twin, curved):
    run = twin.dan.cycle(curved)
    scaling = twin.dan.scaling_of_increments(curved, run, [2.0], every=6, burn_in=2).compute()
    module = curved.module(torch.float64)
    taken = {"time": slice(2, None, 6)}
    x, y = (torch.from_numpy(v.isel(taken).values.reshape(-1, 8).copy()) for v in (run.forecast, twin.observation))
    covariance = torch.from_numpy(
        twin.dan.gain(curved, kind="covariance", run=run, every=6, burn_in=2).values.reshape(-1, 8, 8).copy()
    )
    with torch.no_grad():
        rest = module(x, 0 * x)[0]
        sizes = [
            torch.linalg.solve(covariance, module(x, scale * (y - x))[0] - rest).norm(dim=1) for scale in (2.0, 1.0)
        ]
    ratio = sizes[0] / sizes[1]
    assert scaling.ratio.item() == pytest.approx(float(ratio.mean()), rel=1e-6)
    error = float(ratio.std()) / np.sqrt(len(ratio))
    assert scaling.standard_error.item() == pytest.approx(error, rel=1e-6)
    assert abs(scaling.ratio.item() - 2.0) > 0.01


@pytest.mark.parametrize("observe", [xdan.Sites.all(), xdan.Sites.every(2)])
def test_stein_holds_to_sampling_error(model, curved, observe):
    ds = xdan.twin(model, cycles=3, trajectories=20, observe=observe, seed=3, dtype="float64").compute()
    stein = ds.dan.stein_identity(curved, samples=200).compute()
    assert float(abs(stein.mean_gradient).max()) > 0.1
    normed = stein.difference / stein.standard_error
    inside = np.isfinite(normed)  # directions that nothing observes are zero on both sides
    assert float(abs(normed.where(inside)).max()) < 5.0
    assert 0.5 < float((normed.where(inside) ** 2).mean()) < 2.0
    assert float(abs(stein.regression.where(~inside)).max()) in (0.0, pytest.approx(0.0, abs=1e-9)) or inside.all()
    # At zeta = 0 the derivative is another one: the identity is about the mean over zeta.
    at_zero = ds.dan.gain(curved, kind="covariance", dim=["trajectory", "time"])
    if observe.kind == "all":
        far = abs(stein.mean_gradient - at_zero) / stein.standard_error
        assert float(far.max()) > 8.0


def test_histogram_is_that_of_numpy(twin, linear):
    gappy = twin.assign(observation=twin.observation.where(twin.x != 3))
    run = gappy.dan.cycle(linear)
    histogram = gappy.dan.innovation_histogram(linear, run, bins=20, limit=3.0, burn_in=4)
    zeta = (gappy.observation - run.forecast).isel(time=slice(4, None)).values.ravel()
    zeta = zeta[np.isfinite(zeta)]
    counts, edges = np.histogram(zeta, bins=20, range=(-3.0, 3.0))
    np.testing.assert_allclose(histogram, counts / len(zeta) / np.diff(edges), rtol=1e-12)
    np.testing.assert_allclose(histogram.zeta, (edges[1:] + edges[:-1]) / 2)
    default = gappy.dan.innovation_histogram(linear, run)
    assert 0.9 < float((default * default.width).sum()) <= 1.0


def test_refusals(twin, curved, linear):
    run = twin.dan.cycle(curved)
    for scales in ([0.0], [-1.0, 2.0], [], [np.nan]):
        with pytest.raises(ValueError, match=r"expected (positive|finite) numbers"):
            twin.dan.scaling_of_increments(curved, run, scales)
    with pytest.raises(ValueError, match="at least 10"):
        twin.dan.stein_identity(curved, samples=9)
    with pytest.raises(ValueError, match="edges in increasing order"):
        twin.dan.innovation_histogram(curved, run, bins=[1.0, 0.0])
    with pytest.raises(ValueError, match="at least 1"):
        twin.dan.innovation_histogram(curved, run, bins=0)
    with pytest.raises(ValueError, match="cutoff=2: expected a finite number, at least 0 and below 1"):
        twin.dan.scaling_of_increments(curved, run, [1.0], cutoff=2.0)
    torch.manual_seed(1)
    flat = frozen(LinearInZeta(form="low-rank", rank=2, **SMALL), 1.0)
    for cutoff in (None, 0.0):
        lazy = twin.dan.scaling_of_increments(flat, twin.dan.cycle(flat), 2.0, cutoff=cutoff)
        with pytest.raises(ValueError, match="P_a is singular"):
            lazy.compute()
    with pytest.raises(ValueError, match="samples=40 go with method='regression'"):
        twin.dan.scaling_of_increments(curved, run, [2.0], samples=40)


def test_states_without_an_innovation_say_nothing(twin, net, run):
    sparse = twin.assign(observation=twin.observation.where(twin.time > twin.time[3]))
    blind = sparse.dan.cycle(net, members=True)
    scales = [0.5, 1.0, 2.0]
    scaling = sparse.dan.scaling_of_increments(net, blind, scales, cutoff=0.01).compute()
    seen = sparse.isel(time=slice(4, None)).dan.scaling_of_increments(
        net, blind.isel(time=slice(4, None)), scales, cutoff=0.01
    )
    np.testing.assert_allclose(scaling.ratio, seen.ratio, rtol=1e-6)
    np.testing.assert_allclose(scaling.standard_error, seen.standard_error, rtol=1e-4, atol=1e-7)
