"""Windows that are made ahead: those of the source, and checkpoints that fit the last one that was given."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from xdan.core.dynamics import Lorenz96
from xdan.core.learning.ahead import ReadAhead
from xdan.core.learning.online_twin import EndlessTwin
from xdan.core.observing import ObservingSystem, Sites


def twin() -> EndlessTwin:
    like = torch.zeros((), dtype=torch.float64)
    observing = ObservingSystem(std=torch.tensor(1.0, dtype=torch.float64))
    sizes = {"steps": 1, "trajectories": 6, "batch": 3, "cycles": 4, "seed": 0, "like": like}
    return EndlessTwin(Lorenz96(8), Sites.all(), observing, **sizes)


@pytest.fixture
def no_gpu(monkeypatch):
    """Streams that do nothing, so that the order of the work is tested anywhere."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda one: nullcontext())


def test_windows_are_those_of_the_source(no_gpu):
    source, ahead = twin(), ReadAhead(twin())
    for index in range(5):
        expected, window = source.window(index), ahead.window(index)
        assert torch.equal(window.truth, expected.truth)
        assert torch.equal(window.observation, expected.observation)
        assert (window.group, window.fresh) == (expected.group, expected.fresh)
    ahead.close()


def test_a_checkpoint_continues_with_the_next_window(no_gpu):
    source, ahead = twin(), ReadAhead(twin())
    for index in range(3):
        source.window(index), ahead.window(index)
    resumed = ReadAhead(twin())
    resumed.restore({name: value.clone() for name, value in ahead.arrays().items()})
    ahead.close()
    for index in (3, 4):
        assert torch.equal(resumed.window(index).truth, source.window(index).truth)
    resumed.close()


def test_an_error_in_the_thread_reaches_the_training(no_gpu):
    source = twin()
    source.truth[:] = torch.nan
    ahead = ReadAhead(source)
    with pytest.raises(ValueError, match="not finite"):
        ahead.window(0)
    ahead.close()
