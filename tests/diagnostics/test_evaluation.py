"""Kernels at evaluation points: every state once, whatever the batch, the blocks and what is averaged over."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import xdan
from xdan.diagnostics.evaluation import evaluate
from xdan.diagnostics.evaluation_points import read_points
from xdan.network import Network


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    module = xdan.ResidualCNN(filters=2, blocks=1, kernel=3)
    module.normalise(2.3, 3.6, 1.0)
    return Network.from_module(module, ("x",), {})


def state_and_innovation(network, batch):
    return torch.stack([batch.points.x, batch.points.zeta], -1)


@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 24),
    at_once=st.integers(1, 40),
    over=st.sets(st.sampled_from(["trajectory", "time"])),
    every=st.integers(1, 5),
)
def test_every_state_is_seen_once(twin, network, rows, columns, at_once, over, every):
    points = read_points(twin.chunk(trajectory=rows, time=columns), network, every=every, burn_in=2)
    values = evaluate(points, state_and_innovation, (8, 2), over=sorted(over), at_once=at_once)
    x = twin.truth.isel(time=slice(2, None, every)).values
    axes = tuple(axis for axis, dim in enumerate(("trajectory", "time")) if dim in over)
    np.testing.assert_allclose(values[..., 0], x.mean(axes) if axes else x, rtol=1e-13, atol=1e-14)
    assert not values[..., 1].any().compute()


def test_samples_are_keyed_by_trajectory_and_time(twin, network):
    """A draw for some states is the draw that they have among all."""
    whole, part = (
        evaluate(
            read_points(ds, network, innovation="sampled", seed=3, every=every),
            state_and_innovation, (8, 2), at_once=5,
        )[..., 1].compute()
        for ds, every in ((twin, 1), (twin.isel(trajectory=[3, 1]), 4))
    )  # fmt: skip
    np.testing.assert_array_equal(part, whole[[3, 1], ::4])
    assert len(np.unique(whole)) == whole.size
    # Unit errors at every site: H^T R^-1 is the identity.
    assert abs(whole.mean()) < 4 / np.sqrt(whole.size)
    assert abs(whole.var() - 1) < 4 * np.sqrt(2 / whole.size)


def test_innovations_of_a_run_are_its_own(twin, net, run):
    with_memory = xdan.cycle(twin, net, members=True)
    points = read_points(twin, net, run=with_memory, innovation="run")
    values = evaluate(points, state_and_innovation, (8, 2), at_once=7).compute()
    np.testing.assert_array_equal(values[..., 0], run.forecast)
    np.testing.assert_allclose(values[..., 1], (twin.observation - run.forecast).values, rtol=1e-12, atol=1e-12)
