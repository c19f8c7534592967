import numpy as np
import pytest
import torch
import xarray as xr

import xdan
from xdan.blocks import RecordWindows
from xdan.schema import read
from xdan.training_data import data_from_record


def weights(net):
    return np.concatenate([net.arrays[name].ravel() for name in sorted(net.arrays)])


def windows(ds, lanes, length, **settings):
    experiment = read(ds)
    return RecordWindows(experiment, lanes, length, **{"batch": 2, "cycles": 4, "seed": 0, "device": "cpu", **settings})


def test_a_seed_gives_a_network_and_another_seed_another(single, architecture, quick):
    first, again = (xdan.train(single, architecture, **quick, seed=5) for _ in range(2))
    np.testing.assert_array_equal(weights(first), weights(again))
    assert first == again
    assert first != xdan.train(single, architecture, **quick, seed=6)


def test_a_record_on_disk_trains_as_in_memory(single, architecture, quick, tmp_path):
    single.chunk(trajectory=3, time=7).to_zarr(tmp_path / "twin.zarr", consolidated=False)
    with xr.open_zarr(tmp_path / "twin.zarr", consolidated=False) as ds:
        assert xdan.train(ds, architecture, **quick) == xdan.train(single, architecture, **quick)


def test_double_precision_records_train_in_single(twin, single, architecture, quick):
    assert xdan.train(twin, architecture, **quick).arrays["weights.0"].dtype == np.float32


def test_history_says_what_was_seen(single, architecture, quick):
    net = xdan.train(single, architecture, **{**quick, "steps": 12})
    history = net.history
    assert history.step.values.tolist() == [4, 8, 12]
    for name in ("loss", "rmse", "validation_rmse", "rate", "restarts", "seconds"):
        assert history[name].dims == ("step",)
        assert {"long_name", "units"} <= set(history[name].attrs)
    assert (np.diff(history.seconds) > 0).all()
    assert (np.diff(history.rate) < 0).all()


def test_the_best_network_is_returned(single, architecture, quick):
    # A rate that destroys the network later leaves the early one as the best.
    net = xdan.train(single, architecture, **{**quick, "steps": 16, "validate_every": 1}, learning_rate=5.0)
    history = net.history.validation_rmse
    assert net.description["training"]["validation_rmse"] == float(history.min())
    data = data_from_record(read(single), validation=0.1, window=4, batch=2, seed=0, device="cpu")
    from xdan.core.methods import run

    outputs, _ = run(net.method(), data.validation)
    cycles = data.validation.observation.shape[1]
    square = (outputs["analysis"] - data.validation.truth)[:, min(50, cycles // 3) :].square().mean(-1)
    assert float(square.sqrt().mean()) == pytest.approx(float(history.min()), rel=1e-5)


def test_validation_trajectories_are_not_trained_on(model):
    ds = xdan.twin(model, cycles=16, trajectories=20, seed=2).compute(scheduler="synchronous")
    data = data_from_record(read(ds), validation=0.1, window=4, batch=4, seed=0, device="cpu")
    trained = {lane for batch in data.windows.batches for lane in batch}
    assert trained <= {(row, 0) for row in range(18)}
    np.testing.assert_array_equal(data.validation.truth.numpy(), ds.truth.values[18:].astype(np.float32))
    data.windows.close()


def test_a_single_long_trajectory_is_cut_into_segments(model, architecture, quick):
    ds = xdan.twin(model, cycles=400, seed=2).compute(scheduler="synchronous").isel(trajectory=0, drop=True)
    data = data_from_record(read(ds), validation=0.1, window=4, batch=6, seed=0, device="cpu")
    starts = sorted(start for batch in data.windows.batches for _, start in batch)
    assert len(starts) >= 6
    assert set(np.diff(starts)) == {data.windows.length}
    held = data.validation.truth.shape[0] * data.windows.length
    assert max(starts) + data.windows.length <= 400 - held
    data.windows.close()
    assert np.isfinite(xdan.train(ds, architecture, **{**quick, "batch": 6}).history.rmse).all()


def test_windows_follow_one_another_and_cover_the_lanes(single):
    source = windows(single, [(0, 0), (1, 0), (2, 0), (3, 0)], 24)
    seen, last = {}, {}
    for index in range(24):
        window = source.window(index)
        key = window.truth[:, 0].numpy().tobytes()
        place = next(
            (batch, k)
            for batch in range(2)
            for k in range(0, 24, 4)
            if single.truth.values[2 * batch : 2 * batch + 2, k].tobytes() == key
        )
        batch, k = place
        rows, times = slice(2 * batch, 2 * batch + 2), slice(k, k + 4)
        np.testing.assert_array_equal(window.truth, single.truth.values[rows, times])
        np.testing.assert_array_equal(window.observation, single.observation.values[rows, times])
        if not window.fresh:
            assert last[window.group] == (batch, k - 4)
        last[window.group] = place
        seen[place] = seen.get(place, 0) + 1
    source.close()
    # Two epochs, staggered: every window of every lane comes up, none far more often than another.
    assert len(seen) == 12
    assert max(seen.values()) - min(seen.values()) <= 1


def test_few_blocks_are_in_memory(model):
    ds = xdan.twin(model, cycles=64, trajectories=24, chunks={"trajectory": 4, "time": 8})
    source = windows(ds, [(row, 0) for row in range(24)], 64, batch=4)
    for index in range(60):
        source.window(index)
        assert len(source._loaded) <= 2 * source.groups
    source.close()


def test_carrying_on_leaves_the_first_network_as_it_is(single, net, quick):
    before = weights(net)
    further = xdan.train(single, net, **quick)
    np.testing.assert_array_equal(weights(net), before)
    assert further != net
    assert further.description["parameters"] == net.description["parameters"]


def test_the_callers_architecture_is_not_trained(single, architecture, quick):
    before = [p.detach().clone() for p in architecture.parameters()]
    xdan.train(single, architecture, **quick)
    assert all(torch.equal(p, q) for p, q in zip(architecture.parameters(), before, strict=True))


def test_memory_by_name(single, quick):
    assert xdan.train(single, memory=3, **{**quick, "steps": 1}).memory == 3
    assert xdan.train(single, **{**quick, "steps": 1}).memory == 0


def test_normalisation_is_that_of_the_record(single, architecture, quick):
    net = xdan.train(single.assign(observation_error=0.5), architecture, **{**quick, "steps": 1})
    held = single.truth[-1:]
    assert float(net.arrays["state_mean"]) == pytest.approx(float(held.mean()), rel=1e-5)
    assert float(net.arrays["state_std"]) == pytest.approx(float(held.std()), rel=1e-5)
    assert float(net.arrays["error_std"]) == pytest.approx(0.5)


@pytest.mark.parametrize("objective", ["mse", "rmse"])
def test_an_endless_twin_teaches(model, architecture, objective):
    net = xdan.train(
        model, architecture, objective=objective, steps=60, window=4, batch=8, validate_every=20, workers=2,
        progress=False,
    )  # fmt: skip
    scores = net.history.validation_rmse.values
    # Trusting the observations alone gives 1.
    assert scores[-1] < scores[0] < 1.0


@pytest.mark.parametrize("observe", [xdan.Sites.every(2), xdan.Sites.random(3, 8)])
def test_an_endless_twin_of_other_networks(model, architecture, quick, observe):
    net = xdan.train(model, architecture, observe=observe, error_std=0.5, interval=0.1, **quick)
    assert np.isfinite(net.history.loss).all()
    assert net.description["training"]["data"]["interval"] == 0.1


def test_minutes_end_a_training(model, architecture):
    net = xdan.train(model, architecture, minutes=0.02, window=4, batch=2, validate_every=50, progress=False)
    assert 1.0 < net.description["training"]["seconds"] < 10.0


def test_one_worker_or_two_give_the_same_network_to_rounding(single, architecture, quick):
    one, two = (xdan.train(single, architecture, **{**quick, "workers": w}) for w in (1, 2))
    np.testing.assert_allclose(weights(one), weights(two), rtol=1e-3, atol=1e-4)
