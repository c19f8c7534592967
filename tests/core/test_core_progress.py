"""Bars appear where somebody asked for them, and only there."""

import io
import threading

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


def test_the_time_left_follows_from_the_recent_rate():
    rate = progress.RecentRate()
    rate.see(0.0, 0)
    assert rate.value == 0.0  # unknown
    rate.see(50.0, 1)  # compilation
    assert rate.value == 0.0
    rate.see(52.0, 2)
    assert rate.value == pytest.approx(0.5)
    for part in range(3, 60):
        rate.see(46.0 + 2 * part + 2, part)
    assert rate.value == pytest.approx(0.5)
    seconds = 46.0 + 2 * 59 + 2
    for part in range(60, 300):  # slower, for long
        seconds += 8.0
        rate.see(seconds, part)
    assert rate.value == pytest.approx(0.125)


def test_work_that_goes_on_does_not_start_at_nothing():
    rate = progress.RecentRate()
    rate.see(0.0, 500)
    rate.see(10.0, 501)
    rate.see(20.0, 503)
    assert rate.value == pytest.approx(0.2)


def test_the_rate_is_that_of_the_last_half_of_the_time():
    rate = progress.RecentRate()
    for seconds, done in ((0.0, 0), (2.0, 10), (10.0, 12), (15.0, 20), (20.0, 22)):
        rate.see(seconds, done)
    assert rate.value == pytest.approx((22 - 12) / (20 - 10))  # neither of the whole time nor of the last part


def test_a_first_part_that_takes_long_is_measured():
    rate = progress.RecentRate()
    rate.see(0.0, 0)
    rate.see(600.0, 2)
    assert rate.value == pytest.approx(2 / 600)


@pytest.mark.parametrize("parts", [3, 1000, 5000])
def test_few_measurements_are_kept(parts):
    rate = progress.RecentRate()
    for part in range(parts):
        rate.see(3.0 * part, part)
    assert rate.value == pytest.approx(1 / 3)
    assert len(rate._seen) <= progress._KEPT + 1


def test_a_line_of_a_bar_has_the_recent_rate():
    now = [0.0]
    with progress.bar_of(10, "counting", shown=True) as bar:
        bar._time = lambda: now[0]
        bar.start_t = 0.0
        for now[0] in (100.0, 102.0, 104.0):
            bar.n += 1
            line = str(bar)
    assert "00:14" in line  # seven parts of two seconds: the first one took 100


def test_work_that_has_ended_takes_no_more():
    key = progress.WorkKey.new()
    with progress.working(key) as work:
        tick = progress.ticking(key)
        tick()
        with progress.undisturbed(key):
            pass
        with progress.showing_bars(False, key):
            assert list(progress.track([1, 2], "counting")) == [1, 2]
    for late in (tick, work.tick, lambda: progress.ticking(key), progress.undisturbed(key).__enter__):
        with pytest.raises(progress.WorkEndedError, match="has been left"):
            late()
    with progress.showing_bars(False, key), pytest.raises(progress.WorkEndedError):
        list(progress.track([1, 2], "counting"))


def test_work_ends_once_what_is_being_written_is_written():
    key, written = progress.WorkKey.new(), []
    begun, go = threading.Event(), threading.Event()

    def write():
        with progress.undisturbed(key):
            begun.set()
            go.wait(10)
            written.append(True)

    thread = threading.Thread(target=write)
    with progress.working(key):
        thread.start()
        begun.wait(10)
        threading.Timer(0.1, go.set).start()
    assert written
    thread.join()


def test_tasks_in_another_process_count_nothing():
    here = progress.WorkKey.new()
    for process in (("another machine", here.process[1]), (here.process[0], -1)):
        away = progress.WorkKey(process, here.name)
        assert progress.ticking(away) is None
        with progress.undisturbed(away):
            pass


def test_a_bar_counts_the_parts_of_tasks_here_and_elsewhere():
    key = progress.WorkKey.new()
    bars = []

    def make():
        bars.append(progress.bar_of(10, "counting", shown=True, file=io.StringIO()))
        return bars[0]

    with progress.working(key) as work:
        work.bar = make
        assert not bars  # nothing is done yet
        progress.ticking(key)()
        work.reach(1)
        assert bars[0].n == 1
        work.reach(5)
        assert bars[0].n == 5
    assert len(bars) == 1


@pytest.mark.parametrize(("user", "expected"), [({}, progress._IN_FILES), ({"mininterval": 5.0}, 5.0)])
def test_a_bar_in_a_file_writes_a_line_every_half_minute(user, expected, capsys):
    with progress.bar_of(10, "counting", shown=True, seconds=1.0, **user) as bar:
        assert bar.mininterval == expected


def test_a_bar_on_a_screen_writes_as_often_as_asked(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress.bar_of(10, "counting", shown=True, seconds=1.0) as bar:
        assert bar.mininterval == 1.0
