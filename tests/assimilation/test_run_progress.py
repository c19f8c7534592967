"""What runs show and say while they go on, and that nothing goes on once their call has been left."""

import logging
import re
import subprocess
import sys
import threading

import dask
import numpy as np
import pytest
import xarray as xr

import xdan
from xdan.assimilation import cycling, forecasts
from xdan.core import progress

TUNED = {"members": 5, "inflation": "tune", "candidates": {"inflation": [1.0, 1.1, 1.2, 1.4]}}
AT_AN_END = "ignore:tuning inflation"


@pytest.fixture
def bars(monkeypatch):
    """Bars appear at once, and are kept here."""
    made, initialize = [], progress.Bar.__init__

    def kept(self, *arguments, **options):
        initialize(self, *arguments, **options)
        if not self.disable:
            made.append(self)

    monkeypatch.setattr(progress.Bar, "__init__", kept)
    for module in (progress, cycling, forecasts):
        monkeypatch.setattr(module, "BAR_DELAY", 0.0)
    return made


def told(made):
    return [(bar.desc, bar.n, bar.total) for bar in made]


@pytest.mark.filterwarnings(AT_AN_END)
@pytest.mark.parametrize("name", ["etkf", "3d-var"])
def test_a_lazy_run_is_not_tuned_early(twin, computed, name):
    words = TUNED if name == "etkf" else {}
    run = twin.chunk(trajectory=2).dan.baseline(name, **words)
    assert computed.calls == 0
    xr.testing.assert_allclose(run.compute(), twin.dan.baseline(name, **words))


@pytest.mark.filterwarnings(AT_AN_END)
@pytest.mark.parametrize("place", ["memory", "store"])
def test_every_candidate_is_logged_once(twin, tmp_path, caplog, place):
    with caplog.at_level(logging.INFO, logger="xdan.tuning"):
        store = {} if place == "memory" else {"store": tmp_path / "run.zarr"}
        run = twin.dan.baseline("etkf", **TUNED, **store, progress=False)
    lines = [record.message for record in caplog.records if record.name == "xdan.tuning"]
    values, scores = run.candidate_inflation.values, run.innovation_score.values
    assert lines[:-1] == [
        f"etkf, candidate {k + 1} of 4: inflation={values[k]:g}: innovation_score {scores[k]:.4g}" for k in range(4)
    ]
    assert lines[-1] == f"etkf: chose inflation={float(run.tuned_inflation):g}"


@pytest.mark.filterwarnings(AT_AN_END)
@pytest.mark.parametrize(("name", "words"), [("etkf", TUNED), ("letkf", {**TUNED, "radius": 2.0})])
def test_a_run_in_memory_has_bars_over_cycles(twin, bars, name, words):
    twin.dan.baseline(name, **words)
    assert told(bars)[-1] == (f"{name}", 24, 24)
    (tuning,) = [bar for bar in bars if bar.desc.startswith(f"tuning inflation of {name}")]
    assert tuning.n == tuning.total == 24 * (1 if "together" in tuning.desc else 4)


def test_a_run_that_is_smoothed_has_a_bar_over_both_passes(twin, bars, tmp_path):
    twin.dan.baseline("etkf", members=5, smooth=True)
    assert told(bars) == [("etkf", 48, 48)]
    bars.clear()
    twin.chunk(trajectory=2, time=10).dan.baseline("etkf", members=5, smooth=True, store=tmp_path / "run.zarr")
    assert told(bars) == [("etkf", 96, 96)]  # of two rows of blocks


def test_forecasts_have_a_bar_over_lead_times(twin, run, bars, tmp_path, monkeypatch):
    words = {"lead": 0.3, "every": 4}
    twin.dan.forecast(run, **words)
    assert told(bars) == [("forecasts", 7, 7)]
    bars.clear()
    chunked = [ds.chunk(trajectory=2) for ds in (twin, run)]
    chunked[0].dan.forecast(chunked[1], **words, store=tmp_path / "whole.zarr")
    assert told(bars) == [("forecasts", 14, 14)]
    bars.clear()
    monkeypatch.setattr("xdan.assimilation.forecast_blocks.ticking", lambda key: None)  # as in another process
    chunked[0].dan.forecast(chunked[1], **words, store=tmp_path / "again.zarr")
    assert told(bars) == [("forecasts", 14, 14)]


def test_no_bar_where_it_was_not_asked_for(twin, net, bars, tmp_path, capfd):
    twin.dan.baseline("enkf-n", members=5, progress=False)
    run = twin.dan.cycle(net, progress=False, store=tmp_path / "run.zarr")
    twin.dan.forecast(run.load(), lead=0.3, progress=False)
    lazy = twin.chunk(time=6).dan.baseline("enkf-n", members=5)
    lazy.compute()
    assert told(bars) == []
    assert capfd.readouterr() == ("", "")


def test_blocks_of_processes_are_counted_as_they_come_back(twin, bars, tmp_path, monkeypatch):
    monkeypatch.setattr(cycling, "ticking", lambda key: None)  # as in another process
    twin.chunk(trajectory=2, time=10).dan.baseline("enkf-n", members=5, store=tmp_path / "run.zarr")
    assert told(bars) == [("enkf-n", 48, 48)]


def test_calibrating_has_a_bar(twin, net, bars):
    constant = xdan.calibrate(net, twin, kind="constant", validation=0.5, progress=True)
    assert [one for one in told(bars) if one[0] == "calibrating"] == [("calibrating", 12, 12)]
    bars.clear()
    quiet = xdan.calibrate(net, twin, kind="constant", validation=0.5, progress=False)
    assert told(bars) == []
    assert quiet == constant


def broken(monkeypatch, at):
    """Raise KeyboardInterrupt in the block that begins at this row and column."""
    cycle_block = cycling._cycle_block

    def breaking(warns, key, arrays, carry, rows, columns, *rest):
        if (rows.start, columns.start) == at:
            raise KeyboardInterrupt
        return cycle_block(warns, key, arrays, carry, rows, columns, *rest)

    monkeypatch.setattr(cycling, "_cycle_block", breaking)


def test_rows_of_blocks_are_logged(twin, tmp_path, caplog, monkeypatch):
    place = tmp_path / "run.zarr"

    def stored():
        return twin.chunk(trajectory=2, time=10).dan.baseline("enkf-n", members=5, store=place, progress=False)

    with caplog.at_level(logging.INFO, logger="xdan.runs"):
        with monkeypatch.context() as patched:
            broken(patched, (2, 10))
            with pytest.raises(KeyboardInterrupt):
                stored()
        assert [re.sub(r", \S+ s$", "", line) for line in caplog.messages] == [f"{place}: 2 of 6 blocks are done"]
        caplog.clear()
        stored()
    first, *rest = caplog.messages
    # Of the second row of blocks one is broken, and the thread of the other may have come to its end.
    later = {f"{place} goes on: {done} of 6 blocks are done, and 0 of the way back": done for done in (2, 3)}
    assert [re.sub(r", \S+ s$", "", line) for line in rest] == [
        f"{place}: {done} of 6 blocks are done" for done in (later[first] + 2, 6)
    ]


@pytest.mark.parametrize("moment", ["while it cycles", "before it writes"])
def test_threads_end_with_the_call_that_was_interrupted(twin, tmp_path, monkeypatch, moment):
    """One row of blocks breaks while the thread of the other one is at work."""
    ds, call = twin.chunk(trajectory=2, time=10), {"members": 5, "progress": False}
    at_work, left, over, ends = threading.Event(), threading.Event(), threading.Event(), []
    functions = {name: getattr(cycling, name) for name in ("_cycle_block", "run_method", "_stream_block")}

    def waits():
        at_work.set()
        assert left.wait(20)

    def cycle_block(warns, key, arrays, carry, rows, columns, *rest):
        if rows.start == 2:
            assert at_work.wait(20)
            raise KeyboardInterrupt
        outputs = functions["_cycle_block"](warns, key, arrays, carry, rows, columns, *rest)
        if moment == "before it writes":
            waits()
        return outputs

    def run_method(*arguments):
        *others, tick = arguments

        def slow():
            if moment == "while it cycles":
                waits()
            tick()

        return functions["run_method"](*others, slow)

    def stream_block(*arguments):
        try:
            return functions["_stream_block"](*arguments)
        except BaseException as error:
            ends.append(type(error))
            raise
        finally:
            if len(ends) == 2:
                over.set()

    with monkeypatch.context() as patched:
        patched.setattr(cycling, "_cycle_block", cycle_block)
        patched.setattr(cycling, "run_method", run_method)
        patched.setattr(cycling, "_stream_block", stream_block)
        with dask.config.set(scheduler="threads", num_workers=2), pytest.raises(KeyboardInterrupt):
            ds.dan.baseline("enkf-n", store=tmp_path / "run.zarr", **call)
        left.set()
        assert over.wait(20)
    assert ends == [KeyboardInterrupt, progress.WorkEndedError]
    with xr.open_zarr(tmp_path / "run.zarr", consolidated=False) as begun:
        assert not np.isfinite(begun.analysis).any()  # nothing was written afterwards
    resumed = ds.dan.baseline("enkf-n", store=tmp_path / "run.zarr", **call)
    xr.testing.assert_identical(resumed.load(), twin.dan.baseline("enkf-n", **call))


INTERRUPTED = """
import signal, sys, threading
import dask, xarray as xr, xdan
from xdan.core.progress import Work

signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have it ignored
dask.config.set(scheduler="threads", num_workers=2)
folder, at = sys.argv[1], int(sys.argv[2])
ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=60, trajectories=4, seed=1).compute()
tick, ticks, thread = Work.tick, [], threading.main_thread().ident


def ticking(self, parts=1):
    ticks.append(parts)
    if len(ticks) == at:
        signal.pthread_kill(thread, signal.SIGINT)
    return tick(self, parts)

def run(name):
    cut = ds.chunk(trajectory=2, time=10)
    return cut.dan.baseline("enkf-n", members=5, store=f"{folder}/{name}", progress=False)

Work.tick = ticking
try:
    run("broken")
except KeyboardInterrupt:
    reached = len(ticks)
    assert at <= reached < 120, reached
else:
    raise AssertionError("it was not interrupted")
Work.tick = tick
xr.testing.assert_identical(run("broken").load(), run("whole").load())
print("DONE")
"""


@pytest.mark.slow
@pytest.mark.parametrize("at", [3, 25, 71, 118])
def test_ctrl_c_breaks_no_store(tmp_path, at):
    answer = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path), str(at)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert answer.stdout.strip() == "DONE", answer.stderr


def test_the_bar_of_a_run_has_the_networks_name(twin, net, bars):
    twin.dan.cycle(net)
    assert [bar.desc for bar in bars if bar.unit == "cycle"] == [net.description["name"]]
    assert net.description["name"] != "dan"
