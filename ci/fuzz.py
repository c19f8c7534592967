"""Call every verb with right and wrong arguments, and classify the outcome of each call.

python ci/fuzz.py [--calls 2000] [--seed 0] [--processes 2] [--only VERB] [--replay INDEX]

Seed and index determine a call. If the arguments are right, an oracle of `fuzz_verbs` checks the result. If a record
or a number is written in another form with the same meaning, the result must equal that of the plain form. A wrong
argument must be refused, or a warning must name it. The exit status is 1 if there is a wrong number, a wrong argument
without an error or warning, a hang, a crash, or too many places with bare tracebacks.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import decimal
import fractions
import linecache
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import dask
import numpy as np
import pandas as pd
import torch
import xarray as xr
import zarr.storage
from fuzz_verbs import (
    RECORDS,
    VERBS,
    Array,
    Call,
    Fresh,
    Kind,
    Mismatch,
    claim,
    close,
    network,
    prepare,
    run_of,
    source,
    unlisted,
)
from xarray import DataArray, Dataset

import xdan

LIMIT = 20.0  # most seconds of a call; an alarm within its process ends it
WATCHDOG = 60.0  # seconds after which a process that does not answer is killed
MEMORY = 4 << 30  # most bytes that a process may take in addition to those at its start
MOST_PLACES = 10  # most places of bare tracebacks
BATCH = 250  # number of calls of one process; then a new process starts, so that memory does not grow

CLASSES = {
    "right": "the result is its oracle's, or a doubtful argument was taken or warned about",
    "refused": "a message of xdan's own that says what was expected, or what to do",
    "curt": "a message of xdan's own that does neither",
    "spurned": "right arguments that were refused",
    "bare": "a traceback from inside",
    "taken": "wrong arguments that were taken without a word",
    "wrong": "a number that is not its oracle's",
    "hang": f"no end within {LIMIT:.0f} s",
    "crash": "the process died",
}
OWN = (TypeError, ValueError, OSError, RuntimeError)  # what xdan raises
REMEDY = re.compile(
    r"expected|known are|must|needs?\b|\b(pass|use|take|choose|give|check|make|name|run|rename|select|sort|call|train|"
    r"open|ask|bring|drop|leave|write|go on|convert|compute)\b"
)


# Wrong arguments.

VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "0": lambda: 0,
    "1": lambda: 1,
    "-1": lambda: -1,
    "3": lambda: 3,
    "10**12": lambda: 10**12,
    "2**64": lambda: 2**64,
    "0.0": lambda: 0.0,
    "0.5": lambda: 0.5,
    "2.0": lambda: 2.0,
    "-0.5": lambda: -0.5,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: float("-inf"),
    "1e300": lambda: 1e300,
    "5e-324": lambda: 5e-324,
    "1+2j": lambda: 1 + 2j,
    "''": str,
    "'x'": lambda: "x",
    "'8'": lambda: "8",
    "b'x'": lambda: b"x",
    "[]": list,
    "[1.0]": lambda: [1.0],
    "[nan]": lambda: [float("nan")],
    "['a', 1]": lambda: ["a", 1],
    "()": tuple,
    "{}": dict,
    "{'a': 1}": lambda: {"a": 1},
    "{1}": lambda: {1},
    "slice(None)": lambda: slice(None),
    "range(3)": lambda: range(3),
    "iter([1])": lambda: iter([1]),
    "object()": object,
    "lambda x: x": lambda: lambda x: x,
    "lambda: 'no tensor'": lambda: lambda *_: "no tensor",
    "int": lambda: int,
    "Ellipsis": lambda: Ellipsis,
    "ValueError('x')": lambda: ValueError("x"),
    "Path('/proc/nothing')": lambda: Path("/proc/nothing"),
    "Path('.')": lambda: Path(),
    "np.int64(3)": lambda: np.int64(3),
    "np.uint8(2)": lambda: np.uint8(2),
    "np.float16(0.5)": lambda: np.float16(0.5),
    "np.float32(0.5)": lambda: np.float32(0.5),
    "np.float64('nan')": lambda: np.float64("nan"),
    "np.longdouble(0.5)": lambda: np.longdouble(0.5),
    "np.bool_(True)": lambda: np.bool_(True),
    "np.str_('x')": lambda: np.str_("x"),
    "np.complex64(1j)": lambda: np.complex64(1j),
    "np.datetime64('2020-01-01')": lambda: np.datetime64("2020-01-01"),
    "np.timedelta64(1, 'h')": lambda: np.timedelta64(1, "h"),
    "datetime(2020, 1, 1)": lambda: datetime.datetime(2020, 1, 1),
    "timedelta(hours=1)": lambda: datetime.timedelta(hours=1),
    "Decimal('0.5')": lambda: decimal.Decimal("0.5"),
    "Fraction(1, 2)": lambda: fractions.Fraction(1, 2),
    "pd.Timestamp('2020')": lambda: pd.Timestamp("2020"),
    "pd.NaT": lambda: pd.NaT,
    "pd.NA": lambda: pd.NA,
    "np.array(3)": lambda: np.array(3),
    "np.array(0.5)": lambda: np.array(0.5),
    "np.array([1.0, 2.0])": lambda: np.array([1.0, 2.0]),
    "np.ones(8)": lambda: np.ones(8),
    "-np.ones((8, 8))": lambda: -np.ones((8, 8)),
    "np.array(['a'])": lambda: np.array(["a"]),
    "np.array([])": lambda: np.array([]),
    "np.array(None)": lambda: np.array(None),
    "torch.tensor(3)": lambda: torch.tensor(3),
    "torch.ones(8)": lambda: torch.ones(8),
    "DataArray(3.0)": lambda: DataArray(3.0),
    "DataArray(np.ones(8), dims='x')": lambda: DataArray(np.ones(8), dims="x"),
    "DataArray(['a'], dims='i')": lambda: DataArray(["a"], dims="i"),
    "Dataset()": Dataset,
    "Dataset({'a': 1})": lambda: Dataset({"a": 1}),
    "DataTree()": xr.DataTree,
    "DataTree(record)": lambda: xr.DataTree(source("whole").ds),
    "a record": lambda: source("whole").ds,
    "a network": lambda: network("cnn"),
    "Lorenz96(sites=9)": lambda: xdan.Lorenz96(sites=9),
    "Sites.every(50)": lambda: xdan.Sites.every(50),
    "Group.ring(5)": lambda: xdan.Group.ring(5),
    "MemoryStore()": zarr.storage.MemoryStore,
}
HUGE = frozenset(("10**12", "2**64", "1e300"))


def in_numpy(value: Any, draw: np.random.Generator) -> Any:
    """Write a plain number, bool or name as a NumPy value that equals it; None for other values."""
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, int):
        kinds = [np.int64, np.int32, np.int16] + ([np.uint16] if value >= 0 else [])
        return kinds[draw.integers(len(kinds))](value) if abs(value) < 2**15 else None
    if isinstance(value, float):
        exact = [kind for kind in (np.float32, np.float16, np.longdouble) if float(kind(value)) == value]
        return [np.float64, *exact][draw.integers(1 + len(exact))](value)
    return np.str_(value) if isinstance(value, str) else None


# Records in another form with the same meaning.


@dataclass(frozen=True)
class Change:
    """A change of a record, or of a run.

    Attributes
    ----------
    change : callable
        Takes a Dataset and a folder.
    touches : str
        The part that becomes wrong, a word of `Verb.reads`; empty if the meaning stays.
    plain : callable
        Makes the plain record from the drawn one, if the form cannot hold every value.
    match : callable
        Makes, from the plain result, the result that the changed record must give.
    alone : bool
        Whether the change fits only verbs that take trajectories one by one.
    both : bool
        Whether the run of the record is changed in the same way.
    exact : bool
        Whether the precision stays. In another precision, a spin-up from random numbers ends at another state.
    """

    change: Callable[[Dataset, Path], Dataset]
    touches: str = ""
    plain: Callable[[Dataset], Dataset] = lambda ds: ds
    match: Callable[[Any], Any] = lambda result: result
    alone: bool = False
    both: bool = False
    exact: bool = True


def values(ds: Dataset, change: Callable[[Array], Any], *names: str) -> Dataset:
    """Change the values of some variables; by default of all variables that hold states."""
    every = ("truth", "observation", "forecast", "analysis", "members", "forecast_members", "spread", "forecast_spread")
    return ds.assign(
        {n: ds[n].copy(data=change(ds[n].values)) for n in names or every if n in ds and ds[n].dtype.kind == "f"}
    )


def _through_zarr(ds: Dataset, folder: Path) -> Dataset:
    ds.to_zarr(folder / "record.zarr", zarr_format=3, consolidated=False)
    return xr.open_zarr(folder / "record.zarr", consolidated=False)


def _read_only(array: Array) -> Array:
    array = array.copy()
    array.setflags(write=False)
    return array


def _renamed(ds: Dataset, _: Path) -> Dataset:
    return ds.rename({name: f"my_{name}" for name in ("truth", "observation") if name in ds})


def _labelled_with(name: str, labels: Callable[[DataArray], Any]) -> Callable[[Dataset, Path], Dataset]:
    def change(ds: Dataset, _: Path) -> Dataset:
        return ds.assign_coords({name: (name, labels(ds[name]), ds[name].attrs)}) if name in ds.dims else ds

    return change


def _in_double(ds: Dataset) -> Dataset:
    return values(ds, lambda a: a.astype(np.float64))


def _second(result: Any) -> Any:
    return result.isel(trajectory=[-1]) if "trajectory" in result.dims else result


SAME: dict[str, Change] = {
    "dims in another order": Change(lambda ds, _: ds.transpose(*sorted(map(str, ds.dims), reverse=True))),
    "dask chunks": Change(lambda ds, _: ds.chunk({d: k for d, k in (("trajectory", 2), ("time", 5)) if d in ds.dims})),
    "dask chunks along the state": Change(lambda ds, _: ds.chunk({d: 1 + ds.sizes[d] // 3 for d in ds.dims})),
    "big-endian": Change(lambda ds, _: values(ds, lambda a: a.astype(a.dtype.newbyteorder(">")))),
    "float64": Change(lambda ds, _: _in_double(ds), exact=False),
    "longdouble": Change(lambda ds, _: values(ds, lambda a: a.astype(np.longdouble)), plain=lambda ds: _in_double(ds)),
    "negative strides": Change(lambda ds, _: values(ds, lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1])),
    "Fortran order": Change(lambda ds, _: values(ds, np.asfortranarray)),
    "read-only": Change(lambda ds, _: values(ds, _read_only)),
    "float16": Change(
        lambda ds, _: values(ds, lambda a: a.astype(np.float16), "observation"),
        plain=lambda ds: values(ds, lambda a: a.astype(np.float16).astype(np.float32), "observation"),
    ),
    "integers": Change(
        lambda ds, _: values(ds, lambda a: np.round(a).astype(np.int16) if np.isfinite(a).all() else a, "observation"),
        plain=lambda ds: values(ds, lambda a: np.round(a).astype(np.float32), "observation"),
    ),
    "no labels of the state": Change(lambda ds, _: ds.drop_vars("x", errors="ignore")),
    "scalar coordinates left over": Change(lambda ds, _: ds.assign_coords(expver=5, step=np.timedelta64(1, "h"))),
    "a coordinate along time": Change(lambda ds, _: ds.assign_coords(phase=("time", np.arange(ds.sizes["time"])))),
    "names changed": Change(_renamed),
    "attributes changed": Change(lambda ds, _: ds.assign_attrs(history="copied", title=3, tags=[1, 2])),
    "a variable more": Change(lambda ds, _: ds.assign(note=("time", ["a"] * ds.sizes["time"]), level=3.0)),
    "time from 100 on": Change(_labelled_with("time", lambda t: np.round(t.values + 100.0, 9)), both=True),
    "times in float32": Change(_labelled_with("time", lambda t: t.values.astype(np.float32))),
    "trajectory labels in uint8": Change(_labelled_with("trajectory", lambda t: t.values.astype(np.uint8))),
    "through Zarr": Change(_through_zarr),
    "encoding left over": Change(lambda ds, _: _encoded(ds)),
    "one trajectory of several": Change(lambda ds, _: _second(ds), match=_second, alone=True),
}


def _encoded(ds: Dataset) -> Dataset:
    ds = ds.copy()
    ds["observation" if "observation" in ds else "analysis"].encoding = {"scale_factor": 0.1, "dtype": "int16"}
    return ds


# Records that are wrong.


def _with_attributes(name: str, **attributes: Any) -> Callable[[Dataset, Path], Dataset]:
    return lambda ds, _: ds.assign({name: ds[name].assign_attrs(attributes)}) if name in ds else ds


def _cells(fill: float, name: str = "observation") -> Callable[[Dataset, Path], Dataset]:
    """A fill value in one site out of four."""

    def change(ds: Dataset, _: Path) -> Dataset:
        where = np.zeros(ds[name].shape, bool)
        where.flat[::4] = True
        return ds.assign({name: ds[name].copy(data=np.where(where, ds[name].dtype.type(fill), ds[name].values))})

    return change


def _observation(change: Callable[[Array], Any]) -> Callable[[Dataset, Path], Dataset]:
    return lambda ds, _: ds.assign(observation=ds["observation"].copy(data=change(ds["observation"].values)))


def _packed(ds: Dataset, _: Path) -> Dataset:
    packed = np.nan_to_num(ds["observation"].values * 100).astype(np.int16)
    return ds.assign(observation=ds["observation"].copy(data=packed).assign_attrs(scale_factor=0.01, add_offset=0.0))


def _kelvin(ds: Dataset, _: Path) -> Dataset:
    truth, y = _long(ds, "time")["truth"] + 273.15, ds["observation"].assign_attrs(units="degC")
    return ds.assign(truth=truth.assign_attrs(ds["truth"].attrs | {"units": "K"}), observation=y)


def _error(change: Callable[[Array], Any]) -> Callable[[Dataset, Path], Dataset]:
    """Change R, given as standard deviations or as a matrix."""

    def of(ds: Dataset, _: Path) -> Dataset:
        name = next(n for n in ("observation_error", "observation_error_covariance") if n in ds)
        return ds.assign({name: ds[name].copy(data=np.asarray(change(ds[name].values)))})

    return of


def _lost(ds: Dataset, name: str) -> Dataset:
    """Set one site of a variable to NaN at all times, so that the NaN stays if times are left out."""
    gone = ds[name].values.copy()
    gone[..., 0] = np.nan
    return ds.assign({name: ds[name].copy(data=gone)})


def _described(text: str) -> Change:
    return Change(lambda ds, _: ds.assign_attrs(dynamics=text) if "dynamics" in ds.attrs else _unread(ds), "dynamics")


def _unread(ds: Dataset) -> Dataset:
    raise LookupError("the record does not have what is to be changed")


def _long(ds: Dataset, dim: str) -> Dataset:
    """A change along a dim asks for several labels."""
    return ds if ds.sizes.get(dim, 0) > 1 else _unread(ds)


def _times(change: Callable[[Array], Any]) -> Callable[[Dataset, Path], Dataset]:
    return lambda ds, _: _long(ds, "time").assign_coords(time=("time", change(ds["time"].values), {"axis": "T"}))


WRONG: dict[str, Change] = {
    "time in hours": Change(lambda ds, _: ds.assign_coords(time=ds.time.assign_attrs(units="hours")), "time"),
    "time in days since 2000": Change(
        lambda ds, _: ds.assign_coords(time=ds.time.assign_attrs(units="days since 2000-01-01")), "time"
    ),
    "dates": Change(_times(lambda t: np.datetime64("2000-01-01", "ns") + np.arange(len(t)) * 86400 * 10**9), "time"),
    "dates as objects": Change(
        _times(lambda t: np.array([datetime.datetime(2000, 1, 1 + k) for k in range(len(t))], object)), "time"
    ),
    "timedeltas": Change(_times(lambda t: np.arange(len(t)) * np.timedelta64(3600 * 10**9, "ns")), "time"),
    "intervals of 10**9 steps": Change(_times(lambda t: t * 1e9), "time"),
    "time backward": Change(_times(lambda t: t[::-1]), "time"),
    "a time twice": Change(_times(lambda t: np.r_[t[:-1], t[-2]]), "time"),
    "a time of NaN": Change(_times(lambda t: np.r_[t[:-1], np.nan]), "time"),
    "times as text": Change(_times(lambda t: t.astype(str)), "time"),
    "intervals of half a step": Change(_times(lambda t: t / 2), "time"),
    "intervals twice as long": Change(_times(lambda t: t * 2), "follows"),
    "no times": Change(lambda ds, _: ds.drop_vars("time"), "time"),
    "fill values of -999": Change(_cells(-999.0), "observation"),
    "fill values of 1e20": Change(_cells(1e20), "observation"),
    "fill values of 9.96921e36": Change(_cells(9.96921e36), "observation"),
    "fill values of -9999 in the truth": Change(_cells(-9999.0, "truth"), "truth"),
    "fill values of 1e20 in the truth": Change(_cells(1e20, "truth"), "truth"),
    "an attribute _FillValue": Change(_with_attributes("observation", _FillValue=-999.0), "observation"),
    "an attribute missing_value": Change(_with_attributes("truth", missing_value=1e20), "truth"),
    "packed integers": Change(_packed, "observation"),
    "infinite observations": Change(_cells(np.inf), "observation"),
    "no observations": Change(_observation(lambda a: np.full_like(a, np.nan)), "observation"),
    "complex observations": Change(_observation(lambda a: a.astype(complex)), "observation"),
    "observations of bool": Change(_observation(lambda a: a > 2), "observation"),
    "observations as text": Change(_observation(lambda a: a.astype(str)), "observation"),
    "observations as objects": Change(_observation(lambda a: a.astype(object)), "observation"),
    "dates as observations": Change(_observation(lambda a: np.zeros(a.shape, "M8[ns]")), "observation"),
    "observations in kelvin": Change(
        lambda ds, _: _observation(lambda a: a + 273.15)(_long(ds, "time"), _), "innovations"
    ),
    "truth in kelvin, observations in degC": Change(_kelvin, "follows"),
    "a truth of NaN": Change(lambda ds, _: _lost(ds, "truth"), "truth whole"),
    "a trajectory label twice": Change(
        lambda ds, _: _long(ds, "trajectory").assign_coords(trajectory=[0] * ds.sizes["trajectory"]), "labels"
    ),
    "trajectory labels of float": Change(
        lambda ds, _: _long(ds, "trajectory").assign_coords(trajectory=ds.trajectory + 0.5), "labels"
    ),
    "trajectory labels as text": Change(
        lambda ds, _: _long(ds, "trajectory").assign_coords(trajectory=ds.trajectory.astype(str)), "labels"
    ),
    "sites backward": Change(lambda ds, _: _on_x(ds).isel(x=slice(None, None, -1)), "labels"),
    "sites left out": Change(lambda ds, _: _on_x(ds).isel(x=slice(0, -2)), "labels"),
    "another name of the state's dim": Change(lambda ds, _: _on_x(ds).rename(x="site"), "labels"),
    "a dim more": Change(lambda ds, _: ds.expand_dims(level=2), "labels"),
    "no dims": Change(lambda ds, _: ds.isel(dict.fromkeys(ds.dims, 0)), "labels"),
    "a dynamics that is no JSON": _described("{lorenz96"),
    "a dynamics that nobody knows": _described('{"name": "lorenz97", "parameters": {}}'),
    "a dynamics of other parameters": _described('{"name": "lorenz96", "parameters": {"site": 8}}'),
    "a dynamics of wrong types": _described('{"name": "lorenz96", "parameters": {"sites": "8"}}'),
    "a dynamics that is a list": _described("[1, 2]"),
    "a dynamics nested deep": _described("[" * 100_000),
    "a dynamics of 10**12 sites": _described('{"name": "lorenz96", "parameters": {"sites": 1000000000000}}'),
    "an unfinished record": Change(lambda ds, _: ds.assign_attrs(xdan_status="unfinished"), "dynamics"),
    "an error of 0": Change(_error(lambda a: 0 * a), "error"),
    "a negative error": Change(_error(lambda a: -a), "error"),
    "an error of NaN": Change(_error(lambda a: np.nan * a), "error"),
    "an error as text": Change(_error(lambda a: np.full(a.shape, "one")), "error"),
    "an infinite error": Change(_error(lambda a: a + np.inf), "error"),
    "a complex error": Change(_error(lambda a: a * 1j), "error"),
    "no error": Change(
        lambda ds, _: ds.drop_vars(["observation_error", "observation_error_covariance"], errors="ignore"), "error"
    ),
    "another interval than the network's": Change(lambda ds, _: source("slow").ds, "setting"),
    "another error than the network's": Change(lambda ds, _: source("loose").ds, "setting"),
}
WRONG_RUNS: dict[str, Change] = {
    "no analysis": Change(lambda ds, _: ds.drop_vars("analysis"), "analysis"),
    "other times": Change(_labelled_with("time", lambda t: t.values + 0.025), "run"),
    "dates": Change(lambda ds, _: _times(lambda t: np.arange(len(t)).astype("M8[D]").astype("M8[ns]"))(ds, _), "run"),
    "other trajectories": Change(
        lambda ds, _: _long(ds, "trajectory").assign_coords(trajectory=ds.trajectory + 5), "run"
    ),
    "fewer times": Change(lambda ds, _: _long(ds, "time").isel(time=slice(0, -1)), "run"),
    "fewer sites": Change(lambda ds, _: _on_x(ds).isel(x=slice(0, -1)), "run"),
    "sites backward": Change(lambda ds, _: _on_x(ds).isel(x=slice(None, None, -1)), "run"),
    "complex values": Change(lambda ds, _: ds.assign(analysis=ds.analysis.astype(complex)), "analysis"),
    "values as text": Change(lambda ds, _: ds.assign(analysis=ds.analysis.astype(str)), "analysis"),
    "an unfinished run": Change(lambda ds, _: ds.assign_attrs(xdan_status="unfinished"), "run"),
    "an analysis of NaN": Change(lambda ds, _: _lost(ds, "analysis"), "run values"),
}


def _on_x(ds: Dataset) -> Dataset:
    return ds if "x" in ds.dims else _unread(ds)


# Drawing a call.


def draw_call(seed: int, index: int, folder: Path, only: str = "") -> Call:
    """Draw the call of a seed and an index."""
    draw = np.random.default_rng([seed, index])
    verbs = [verb for name, verb in VERBS.items() if name.startswith(only)]
    weights = np.array([verb.weight for verb in verbs])
    verb = verbs[int(draw.choice(len(verbs), p=weights / weights.sum()))]
    call = Call(verb, record=str(draw.choice(verb.records)) if verb.records else "")
    call.plain = _right_arguments(call, draw, folder)
    call.arguments = dict(call.plain)
    call.shown = {name: _shown(value) for name, value in call.plain.items()}
    if call.record:
        call.shown[verb.record] = f"the record {call.record!r}"
    what = draw.random()
    if what < 0.2:
        return call
    if what < 0.45:
        return _same_meaning(call, draw, folder)
    if what < 0.65 and verb.reads:
        return _wrong_record(call, draw, folder)
    return _wrong_arguments(call, draw)


def _one(items: Any, draw: np.random.Generator) -> Any:
    return items[int(draw.integers(len(items)))]


def _fresh(value: Any, folder: Path) -> Any:
    return value.make(folder) if isinstance(value, Fresh) else value


def _right_arguments(call: Call, draw: np.random.Generator, folder: Path) -> dict[str, Any]:
    """Right arguments: all that are needed, and each other argument in two out of five calls."""
    verb, arguments = call.verb, {}
    for name, kind in verb.kinds.items():
        if kind.usual and (name in verb.needs or draw.random() < 0.4):
            value = _fresh(_one(kind.usual, draw), folder)
            if value is not None or name in verb.needs:
                arguments[name] = value
    chosen = str(draw.choice(verb.networks)) if verb.networks else ""
    if chosen:
        arguments["network"] = network(chosen)
    if call.record:
        made = source(call.record)
        arguments[verb.record] = made.ds
        arguments |= {name: value for name, value in made.roles.items() if name in verb.kinds}
        if verb.run:
            run = _one(verb.forms, draw)(run_of(call.record, chosen if verb.run == "network" else verb.run))
            arguments["runs" if "runs" in verb.kinds else "run"] = {"etkf": run} if "runs" in verb.kinds else run
    if "progress" in verb.kinds:
        arguments["progress"] = False
    return arguments


def _same_meaning(call: Call, draw: np.random.Generator, folder: Path) -> Call:
    """Write the record, or numbers, in another form."""
    target = "run" if "run" in call.plain and draw.random() < 0.3 else call.verb.record
    call.match = lambda result: result
    if target in call.plain and draw.random() < 0.75:
        names = [
            name
            for name, change in SAME.items()
            if (call.verb.alone and target != "run") or not change.alone
            if (target != "run" or not change.both) and (change.exact or not call.verb.draws)
        ]
        name = str(draw.choice(names))
        change = SAME[name]
        if change.alone and _tunes(call):
            return call
        call.plain[target] = change.plain(call.plain[target])
        call.arguments[target] = change.change(call.plain[target], folder)
        if change.both and "run" in call.plain:
            call.arguments["run"] = change.change(call.plain["run"], folder)
        call.match = change.match
        call.shown[target] += f" with {name}"
        call.tolerance = 2e-2 if _tunes(call) or "tolerance" in call.verb.kinds else 2e-3
        return call
    for name, value in call.plain.items():
        written = in_numpy(value, draw)
        if written is not None and draw.random() < 0.7:
            call.arguments[name] = written
            call.shown[name] = f"np.{type(written).__name__}({_shown(value)})"
    return call


def _tunes(call: Call) -> bool:
    return any(isinstance(value, str) and value == "tune" for value in call.plain.values())


def _wrong_record(call: Call, draw: np.random.Generator, folder: Path) -> Call:
    """Make the record, or the run, wrong."""
    of_run = "run" in call.plain and draw.random() < 0.4
    target, table = ("run", WRONG_RUNS) if of_run else (call.verb.record, WRONG)
    if not of_run:
        table = {name: c for name, c in table.items() if c.touches != "setting" or "setting" in call.verb.reads}
    name = str(draw.choice(list(table)))
    try:
        call.arguments[target] = table[name].change(call.plain[target], folder)
    except LookupError:
        return call
    call.shown[target] += f": {name}"
    call.verdict = "wrong" if table[name].touches in call.verb.reads else "unknown"
    if table[name].touches == "dynamics" and "dynamics" in call.arguments:
        call.verdict = "unknown"
    return call


def _wrong_arguments(call: Call, draw: np.random.Generator) -> Call:
    """Put arbitrary values in the place of one to three arguments."""
    names = list(call.verb.kinds)
    chosen = [str(n) for n in draw.choice(names, min(len(names), int(draw.choice([1, 1, 1, 2, 3]))), replace=False)]
    judged: list[bool | None] = []
    for name in chosen:
        kind: Kind = call.verb.kinds[name]
        label = str(draw.choice([v for v in VALUES if not (kind.work and v in HUGE)]))
        value = VALUES[label]()
        call.arguments[name], call.shown[name] = value, label
        judged.append(kind.judge(value))
    call.verdict = "wrong" if False in judged else "unknown"
    return call


def _shown(value: Any) -> str:
    if isinstance(value, (Dataset, DataArray, torch.nn.Module)):
        return f"<{type(value).__name__}>"
    if isinstance(value, Path) or (isinstance(value, str) and value.endswith(".zarr")):
        return repr(Path(value).name)
    if isinstance(value, zarr.storage.MemoryStore):
        return "MemoryStore()"
    text = " ".join(repr(value).split())
    return text if len(text) < 70 else f"{text[:67]}..."


def told(call: Call) -> str:
    """A call in one line."""
    return f"{call.verb.name}({', '.join(f'{name}={text}' for name, text in call.shown.items())})"


# Making a call.


class TimeUp(BaseException):
    """The alarm. It is no Exception, so that `except Exception` does not catch it."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a call: its class, its text, and the place of a bare traceback."""

    index: int
    verb: str
    kind: str
    call: str = ""
    text: str = ""
    place: str = ""
    seconds: float = 0.0


def make(seed: int, index: int, only: str = "", loud: bool = False) -> Outcome:
    """Draw a call, make it and classify its outcome."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        here = Path.cwd()
        os.chdir(name)
        try:
            call = draw_call(seed, index, Path(name), only)
            if loud:
                print(told(call), f"\n  arguments are {call.verdict}")
            kind, text, place = _outcome(call, loud)
        finally:
            os.chdir(here)
    return Outcome(index, call.verb.name, kind, told(call), text, place, time.monotonic() - started)


def _outcome(call: Call, loud: bool) -> tuple[str, str, str]:
    try:
        with _alarm():
            result = _called(call, call.arguments)
    except TimeUp:
        return "hang", "", ""
    except Exception as error:
        if loud:
            traceback.print_exc()
        return classify(error, call)
    if call.verdict == "wrong":
        return ("right", "warned", "") if call.warned else ("taken", f"gave {_shown(result)}", "")
    if call.verdict == "unknown":
        return "right", "", ""
    try:
        with _alarm():
            if call.match is None:
                call.verb.check(call, result)
            else:
                plain = _called(call, _elsewhere(call))
                compare(result, call.match(plain), call.tolerance)
    except TimeUp:
        return "hang", "in its oracle, or the same call on plain arguments", ""
    except Mismatch as error:
        return "wrong", str(error), ""
    except Exception as error:  # of the plain call
        return classify(error, call)
    return "right", "", ""


def _elsewhere(call: Call) -> dict[str, Any]:
    """Right arguments with another store, as the store of the call is full."""
    plain = dict(call.plain)
    for name in {"store", "checkpoint"} & set(plain):
        if name not in call.verb.needs:
            del plain[name]
        elif isinstance(plain[name], (Path, zarr.storage.MemoryStore)):
            plain[name] = zarr.storage.MemoryStore()
    return plain


def _called(call: Call, arguments: dict[str, Any]) -> Any:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            return call.verb.function(**arguments)
        finally:
            call.warned = any(issubclass(w.category, xdan.XdanWarning) for w in heard)


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def compare(result: Any, plain: Any, tolerance: float) -> None:
    """Check that two calls with one meaning give equal numbers, to rounding."""
    if isinstance(result, Dataset):
        names = {str(name) for name in result.data_vars} ^ {str(name) for name in plain.data_vars}
        if names:
            raise Mismatch(f"of two calls of one meaning only one gives {sorted(names)}")
        for name in plain.data_vars:
            _compare_arrays(str(name), result[name], plain[name], tolerance)
    elif isinstance(result, DataArray):
        _compare_arrays("the result", result, plain, tolerance)
    elif isinstance(result, xdan.Network):
        for name, value in plain.arrays.items():
            close(name, result.arrays[name], value, tolerance, tolerance)
    elif isinstance(result, (xdan.Sites, xdan.Dynamics)):
        claim(f"gives {result!r}, and {plain!r} for plain arguments", result == plain)
    elif isinstance(result, xdan.Group):
        claim(f"gives {result!r}, and {plain!r} for plain arguments", len(result) == len(plain))


def _compare_arrays(name: str, result: DataArray, plain: DataArray, tolerance: float) -> None:
    if plain.dtype.kind not in "fiub" or name in ("seconds", "training_seconds"):
        return
    one, other = (np.asarray(v.transpose(*sorted(map(str, v.dims))).values, np.float64) for v in (result, plain))
    if one.shape != other.shape and one.size == other.size:
        one = one.reshape(other.shape)
    size = float(np.abs(other[np.isfinite(other)]).max(initial=0.0))
    close(f"{name}, against the same call in plain form,", one, other, tolerance, tolerance * size + 1e-12)


def classify(error: Exception, call: Call) -> tuple[str, str, str]:
    """Class of an error, its text, and the place of a bare traceback."""
    frames = list(traceback.walk_tb(error.__traceback__))
    whole = f"{type(error).__name__}: {' '.join(str(error).split())}"
    text = whole[:300]
    inside = [(frame, line) for frame, line in frames if _of_xdan(frame.f_code.co_filename)]
    if not inside and isinstance(error, TypeError) and "argument" in whole:
        return "refused", text, ""  # Python's own, of the verb's signature
    if isinstance(error, MemoryError) or re.search(r"allocate|not enough memory|Unable to allocate", whole):
        return "refused", text, ""  # the machine's own
    if isinstance(error, OWN) and inside and inside[-1] == frames[-1] and _raises(*frames[-1]):
        if call.verdict == "right":
            return "spurned", text, ""
        return ("refused" if REMEDY.search(whole) else "curt"), text, ""
    where = (inside or frames)[-1][0]
    module = Path(where.f_code.co_filename)
    place = f"{module.parent.name}/{module.name}:{where.f_code.co_qualname} {type(error).__name__}"
    return "bare", text, place


_HOME = str(Path(xdan.__file__).parent)


def _raises(frame: FrameType, line: int) -> bool:
    """Whether a line is a `raise` statement of its own."""
    return linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise")


def _of_xdan(filename: str) -> bool:
    return filename.startswith(_HOME)


# Processes.


def serve(pipe: Connection, seed: int, only: str) -> None:
    """Make the calls whose indices come through a pipe, and send their outcomes back."""
    limit = MEMORY + int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    while (index := pipe.recv()) is not None:
        pipe.send(make(seed, index, only))


class Worker:
    """A forked process that makes one call at a time."""

    def __init__(self, seed: int, only: str) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("fork").Process(target=serve, args=(theirs, seed, only), daemon=True)
        self.process.start()
        theirs.close()
        self.index, self.since, self.made = -1, 0.0, 0

    def ask(self, index: int) -> None:
        """Send a call."""
        self.index, self.since, self.made = index, time.monotonic(), self.made + 1
        self.pipe.send(index)

    def answer(self) -> Outcome | None:
        """Outcome of the call, or None while it runs."""
        try:
            if self.pipe.poll():
                outcome: Outcome = self.pipe.recv()
                return outcome
        except (EOFError, ConnectionResetError):
            self.process.join()
            return self._lost("crash", f"exit code {self.process.exitcode}")
        if time.monotonic() - self.since > WATCHDOG:
            self.process.kill()
            self.process.join()
            return self._lost("hang", "killed")
        return None

    def _lost(self, kind: str, text: str) -> Outcome:
        return Outcome(self.index, "?", kind, "", text)

    def end(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self.pipe.send(None)
        self.process.join(5)
        self.process.kill()


def fuzz(indices: list[int], seed: int, processes: int, only: str) -> Iterator[Outcome]:
    """Make calls in several processes."""
    waiting = list(reversed(indices))
    workers: list[Worker] = []
    while waiting or workers:
        while waiting and len(workers) < processes:
            workers.append(Worker(seed, only))
            workers[-1].ask(waiting.pop())
        wait([worker.pipe for worker in workers], timeout=1.0)
        for worker in list(workers):
            outcome = worker.answer()
            if outcome is None:
                continue
            yield outcome if outcome.verb != "?" else _named(outcome, seed, only)
            if waiting and worker.process.is_alive() and worker.made < BATCH:
                worker.ask(waiting.pop())
            else:
                worker.end()
                workers.remove(worker)


def _named(outcome: Outcome, seed: int, only: str) -> Outcome:
    """Draw the call of a lost process again, to name it."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        call = draw_call(seed, outcome.index, Path(name), only)
    return Outcome(outcome.index, call.verb.name, outcome.kind, told(call), outcome.text)


# The report.


def report(outcomes: list[Outcome], seed: int, only: str) -> bool:
    """Print the outcomes of all calls; return whether there is no fault."""
    replay = f"python ci/fuzz.py --seed {seed}{f' --only {only!r}' if only else ''} --replay"
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in outcomes:
        table[outcome.verb][outcome.kind] += 1
    print(f"\n{'verb':<28}" + "".join(f"{kind:>9}" for kind in CLASSES))
    for verb in [*sorted(table), "all"]:
        counts = sum(table.values(), Counter()) if verb == "all" else table[verb]
        print(f"{verb:<28}" + "".join(f"{counts[kind] or '':>9}" for kind in CLASSES))
    print()
    for kind, meaning in CLASSES.items():
        print(f"{kind:>9}: {meaning}")
    for kind in ("wrong", "taken", "hang", "crash", "spurned", "curt"):
        listed = [outcome for outcome in outcomes if outcome.kind == kind]
        if listed:
            print(f"\n{kind}, {len(listed)} calls: {CLASSES[kind]}; again with {replay} INDEX")
        for outcome in sorted(listed, key=lambda o: o.call):
            print(f"  {outcome.index}: {outcome.call}\n      {outcome.text}")
    places: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.kind == "bare":
            places[outcome.place].append(outcome)
    print(f"\nbare tracebacks in {len(places)} places")
    for place, there in sorted(places.items(), key=lambda item: -len(item[1])):
        print(f"  {place}, {len(there)} calls; {replay} {there[0].index}\n      {there[0].call}\n      {there[0].text}")
    print("\nslowest")
    for outcome in sorted(outcomes, key=lambda o: -o.seconds)[:3]:
        print(f"  {outcome.seconds:.1f} s, {outcome.index}: {outcome.call}")
    bad = sum(outcome.kind in ("wrong", "taken", "hang", "crash") for outcome in outcomes)
    print(f"\nseed {seed}: {bad} silent wrong numbers, hangs and crashes; bare tracebacks in {len(places)} places")
    return not bad and len(places) <= MOST_PLACES


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", metavar="VERB", help="calls of verbs that begin so")
    parser.add_argument("--replay", type=int, metavar="INDEX", help="make one call here, with its traceback")
    return parser.parse_args()


def main() -> int:
    """Run the fuzzer; return the exit status."""
    asked, started = _arguments(), time.monotonic()
    torch.set_num_threads(1)
    dask.config.set(scheduler="synchronous")
    warnings.simplefilter("ignore")
    import holoviews as hv
    import hvplot.pandas
    import hvplot.xarray  # noqa: F401 - the processes need not
    import panel as pn

    hv.extension("bokeh", logo=False)
    pn.extension(notifications=False)
    prepare()
    if gone := unlisted():
        print(f"not called, as the tables of fuzz_verbs.py leave them out: {gone}")
    if asked.replay is not None:
        outcome = make(asked.seed, asked.replay, asked.only, loud=True)
        print(f"  {outcome.kind}: {outcome.text}\n  {outcome.place}")
        return int(outcome.kind in ("wrong", "taken", "hang", "crash"))
    print(f"seed {asked.seed}: {asked.calls} calls of {len(VERBS)} verbs on {len(RECORDS)} records")
    outcomes = []
    for outcome in fuzz(list(range(asked.calls)), asked.seed, asked.processes, asked.only):
        outcomes.append(outcome)
        if len(outcomes) % 200 == 0:
            print(f"  {len(outcomes)} calls in {time.monotonic() - started:.0f} s", flush=True)
    fine = report(sorted(outcomes, key=lambda o: o.index), asked.seed, asked.only)
    print(f"{len(outcomes)} calls in {time.monotonic() - started:.0f} s")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
