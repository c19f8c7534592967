"""Bars appear where somebody asked for them, and only there."""

import pytest

from xdan.core import progress


def test_items_pass_unchanged():
    assert list(progress.track(range(5), "counting")) == [0, 1, 2, 3, 4]
    with progress.showing_bars(True):
        assert list(progress.track(range(5), "counting")) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("on", [True, False])
def test_a_bar_is_seen_where_it_was_asked_for(on, capsys, monkeypatch):
    monkeypatch.setattr(progress, "BAR_DELAY", 0.0)
    with progress.showing_bars(on):
        list(progress.track(range(3), "counting"))
    assert ("counting" in capsys.readouterr().err) == on


def test_short_work_shows_nothing(capsys):
    with progress.showing_bars(True):
        list(progress.track(range(3), "counting"))
    assert capsys.readouterr().err == ""
    with progress.showing_bars(False), progress.showing_bars(True):
        pass
    assert not isinstance(progress.track([1], "counting"), progress.tqdm)
