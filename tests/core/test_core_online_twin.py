"""The endless twin: one trajectory that goes on, from window to window and over a restart."""

import pytest
import torch
from torch.testing import assert_close

from xdan.core.dynamics import CustomDynamics, Lorenz96
from xdan.core.learning.online_twin import EndlessTwin
from xdan.core.observing import ObservingSystem, Sites

DYNAMICS = Lorenz96(6)
ERROR = ObservingSystem(std=torch.tensor(0.7, dtype=torch.float64))


def twin(sites: Sites | None = None, **options) -> EndlessTwin:
    defaults = {"steps": 2, "cycles": 4, "trajectories": 6, "batch": 3, "seed": 0}
    like = torch.zeros((), dtype=torch.float64)
    return EndlessTwin(DYNAMICS, sites or Sites.random(2, 5), ERROR, like=like, **{**defaults, **options})


def copies(window) -> list[torch.Tensor]:
    return [window.truth.clone(), window.observation.clone()]


def assert_equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_groups_take_turns_and_are_fresh_once():
    source = twin()
    windows = [source.window(index) for index in range(6)]
    assert [w.group for w in windows] == [0, 1, 0, 1, 0, 1]
    assert [w.fresh for w in windows] == [True, True, False, False, False, False]
    assert windows[0].steps == (2, 2, 2, 2)
    assert windows[0].truth.shape == windows[0].observation.shape == (3, 4, 6)


def test_the_truth_follows_the_dynamics_within_and_between_windows():
    source = twin()
    windows = [source.window(index) for index in range(6)]
    for group in (0, 1):
        truth = torch.cat([w.truth for w in windows if w.group == group], 1)
        for k in range(1, 12):
            assert torch.equal(truth[:, k], DYNAMICS.advance(truth[:, k - 1], 2))


def test_windows_that_were_handed_out_do_not_change():
    source = twin()
    windows = [source.window(index) for index in range(2)]
    before = [copies(w) for w in windows]
    for index in range(2, 6):
        source.window(index)
    for window, saved in zip(windows, before, strict=True):
        assert_equal([window.truth, window.observation], saved)


def test_the_truth_starts_on_the_attractor_keyed_by_label():
    source, later = twin(), twin(first=3)
    start = DYNAMICS.climatology(range(6), 0, like=source.truth).flatten(1)
    assert torch.equal(torch.cat([source.window(0).truth[:, 0], source.window(1).truth[:, 0]]), start)
    assert_equal(copies(later.window(0)), copies(twin().window(1)))


def test_windows_do_not_depend_on_how_they_are_cut():
    long, short = twin(cycles=8), twin(cycles=4)
    pieces = [copies(short.window(index)) for index in (0, 1, 2)]
    whole = copies(long.window(0))
    assert_equal([torch.cat([a, b], 1) for a, b in zip(pieces[0], pieces[2], strict=True)], whole)


def test_errors_and_sites_are_drawn_anew_in_every_window():
    source = twin(trajectories=3, sites=Sites.all())
    errors = torch.stack([(w.observation - w.truth) for w in (source.window(index) for index in range(50))])
    assert len(errors.flatten().unique()) == errors.numel()
    draws = errors.numel()
    assert abs(errors.mean()) < 4 * 0.7 / draws**0.5
    assert abs(errors.std() - 0.7) < 4 * 0.7 / (2 * draws) ** 0.5


def test_another_seed_is_another_twin():
    one, other = twin(seed=0).window(0), twin(seed=1).window(0)
    assert (one.truth[:, 0] - other.truth[:, 0]).abs().amin(0).max() > 0.1


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_restored_twin_carries_on(stop):
    source = twin()
    for index in range(stop):
        source.window(index)
    saved = {name: value.clone() for name, value in source.arrays().items()}
    expected = [copies(source.window(index)) for index in range(stop, stop + 4)]
    restored = twin()
    restored.restore(saved)
    for index, window in enumerate(expected, stop):
        assert_equal(copies(restored.window(index)), window)


def test_a_restored_twin_leaves_the_stored_arrays_alone():
    source = twin()
    saved = {name: value.clone() for name, value in source.arrays().items()}
    source.restore(saved)
    source.window(0)
    assert_equal([saved["truth"]], [twin().truth])


def test_a_truth_that_blows_up_is_refused():
    growing = CustomDynamics(step=lambda x: 1e3 * x, state={"x": 6}, timestep=1.0, spin_up_time=0.0)
    like = torch.zeros((), dtype=torch.float32)
    source = EndlessTwin(
        growing, Sites.all(), ERROR.to(like.dtype, "cpu"), steps=1, trajectories=2, batch=2, cycles=8, seed=0, like=like
    )
    source.window(0)
    with pytest.raises(ValueError, match=r"the truth of trajectory \d is not finite from time index 1\d on: expected"):
        source.window(1)
