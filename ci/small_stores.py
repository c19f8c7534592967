"""Small experiments that read and write stores, and their results, which are compared bit for bit."""

from __future__ import annotations

import json
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dask
import numpy as np
import xarray as xr

import xdan
from xdan.training import loop as training_loop
from xdan.training.fitting import train

Answer = dict[str, Any]
"""Named arrays, texts and bytes."""
Read = Callable[[Path, Path], Answer]
"""Asks a verb: from a store, and the folder of undamaged stores, to its answer."""

MODEL = xdan.Lorenz96(sites=8)
OTHER_EVERY_TIME = ("seconds", "training_seconds")  # times that no two calls share
TRAINING: Mapping[str, Any] = {"window": 2, "batch": 2, "progress": False, "processes": 1}
_INSIDE = str(Path(xdan.__file__).parent)
_NUMBERS = re.compile(r"[-+]?\d[-+.\de]*|\bnan\b|\binf\b")
CHUNKS = {"trajectory": 2, "time": 5}


class NotOpenedError(Exception):
    """Xarray or Zarr could not open a store, before xdan saw it."""


class Clock:
    """A clock that runs fast, so that a checkpoint is due every few steps.

    Parameters
    ----------
    stop_at : float
        Time in seconds at which the training is interrupted.
    """

    def __init__(self, stop_at: float = float("inf")) -> None:
        self.now, self.stop_at = 0.0, stop_at

    def perf_counter(self) -> float:
        self.now += 7.0
        if self.now > self.stop_at:
            raise BrokenOffError
        return self.now


class BrokenOffError(Exception):
    """A training was interrupted."""


@contextmanager
def flying_time(stop_at: float = float("inf")) -> Iterator[None]:
    with patch.object(training_loop, "clock", Clock(stop_at)):
        yield


def twin(**more: Any) -> xr.Dataset:
    return xdan.twin(MODEL, cycles=20, trajectories=4, seed=1, chunks=CHUNKS, **more)


def architecture() -> xdan.ResidualCNN:
    return xdan.ResidualCNN(filters=3, blocks=1, kernel=3)


def training(ds: xr.Dataset, checkpoint: Path) -> xdan.Network:
    """Train a few steps, with a checkpoint at every third step."""
    settings = {**TRAINING, "steps": 14, "validate_every": 5, "seed": 3}
    return train(ds, architecture(), checkpoint=checkpoint, **settings)


def sweep(store: Path) -> xr.Dataset:
    """Sweep over a network and a baseline."""
    schemes = {
        "network": {"network": "residual-cnn", "filters": 3, "blocks": 1, "kernel": 3, "steps": 2, "batch": 2}
        | {"window": 2},
        "ensemble": {"baseline": "etkf", "members": 5},
    }
    return xdan.sweep(MODEL, schemes, cycles=8, trajectories=2, burn_in=1, store=store, progress=False)


def opened(store: Path) -> xr.Dataset:
    """Open a store as a user does.

    Raises
    ------
    NotOpenedError
        If Xarray or Zarr cannot open the store.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # about metadata that are not consolidated
            return xr.open_zarr(store)
    except Exception as error:
        raise NotOpenedError(f"{type(error).__name__}: {error}") from error


def values(result: xr.Dataset | xr.DataArray) -> Answer:
    """Values of a result and its coordinates."""
    ds = result.to_dataset(name="value") if isinstance(result, xr.DataArray) else result
    return {str(name): v.values for name, v in ds.load().variables.items() if name not in OTHER_EVERY_TIME}


def network(net: xdan.Network, with_seconds: bool = False) -> Answer:
    """Digest, description and history of a network."""
    told = {
        name: value
        for name, value in net.description.get("training", {}).items()
        if with_seconds or name not in OTHER_EVERY_TIME
    }
    history = {"absent": True} if net.history is None else values(net.history)
    description = json.dumps({**net.description, "training": told}, sort_keys=True)
    return {"digest": net.digest, "description": description, **{f"history of {k}": v for k, v in history.items()}}


def tree(folder: Path) -> Answer:
    """Content of every file. JSON is parsed, so that its meaning is compared."""
    return {
        str(path.relative_to(folder)): json.dumps(json.loads(path.read_text()), sort_keys=True)
        if path.suffix == ".json"
        else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def differences(expected: Answer, answer: Answer) -> list[str]:
    """Say in words what differs; nothing if all is equal bit for bit."""
    missing = [f"no {name!r}" for name in expected.keys() - answer.keys()]
    added = [f"{name!r} is new" for name in answer.keys() - expected.keys()]
    both = [name for name in expected if name in answer]
    changed = [f"{name!r}: {how}" for name in both if (how := _difference(expected[name], answer[name]))]
    return sorted(missing) + sorted(added) + changed


def _difference(a: Any, b: Any) -> str:
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        return "" if type(a) is type(b) and a == b else f"{_short(b)} instead of {_short(a)}"
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return f"{b.dtype}{list(b.shape)} instead of {a.dtype}{list(a.shape)}"
    if a.dtype == object:
        return "" if a.tolist() == b.tolist() else f"{_short(b.tolist())} instead of {_short(a.tolist())}"
    if a.tobytes() == b.tobytes():
        return ""
    if not a.ndim:
        return f"{b} instead of {a}"
    differ = ~((a == b) | ((a != a) & (b != b)))
    lost = int((b != b).sum() - (a != a).sum())
    return f"{int(differ.sum())} of {a.size} values differ" + (f", {lost} more are NaN" if lost else "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _scored(ds: xr.Dataset, run: xr.Dataset) -> Answer:
    return values(ds.dan.score(run, dim=[]))


def _trained(ds: xr.Dataset, **settings: Any) -> Answer:
    return {"digest": ds.dan.train(architecture(), steps=1, **TRAINING, **settings).digest}


def _written(ds: xr.Dataset, store: Path) -> Answer:
    """Cycle an ensemble into a store beside the store that is read."""
    ds.dan.baseline("etkf", members=5, store=store.with_name("written"), progress=False)
    return values(xr.open_zarr(store.with_name("written"), consolidated=False))


def _net(whole: Path) -> xdan.Network:
    return xdan.open_network(whole / "network")


def _run(whole: Path) -> xr.Dataset:
    return opened(whole / "run")


TWIN_READS: Mapping[str, Read] = {
    "score": lambda store, whole: _scored(opened(store), _run(whole)),
    "rank_histogram": lambda store, whole: values(opened(store).dan.rank_histogram(_run(whole))),
    "baseline(store=)": lambda store, whole: _written(opened(store), store),
    "cycle": lambda store, whole: values(opened(store).dan.cycle(_net(whole))),
    "train(rmse)": lambda store, whole: _trained(opened(store)),
    "train(forecast)": lambda store, whole: _trained(opened(store), objective="forecast"),
    "gain": lambda store, whole: values(opened(store).dan.gain(_net(whole))),
    "zero_innovation_bias": lambda store, whole: values(opened(store).dan.zero_innovation_bias(_net(whole))),
}
RUN_READS: Mapping[str, Read] = {
    "score": lambda store, whole: _scored(opened(whole / "twin"), opened(store)),
    "rank_histogram": lambda store, whole: values(opened(whole / "twin").dan.rank_histogram(opened(store))),
    "rank_histogram(forecast)": lambda store, whole: values(
        opened(whole / "twin").dan.rank_histogram(opened(store), of="forecast_members")
    ),
    "ensemble_covariance": lambda store, _: values(xdan.ensemble_covariance(opened(store))),
    "train(teacher=)": lambda store, whole: _trained(opened(whole / "twin"), objective="mse", teacher=opened(store)),
    "gain(run=)": lambda store, whole: values(
        opened(whole / "twin").dan.gain(_net(whole), kind="covariance", run=opened(store), innovation="run")
    ),
    "innovation_histogram": lambda store, whole: values(
        opened(whole / "twin").dan.innovation_histogram(_net(whole), opened(store))
    ),
}
GAIN_READS: Mapping[str, Read] = {
    "covariance_spectrum": lambda store, _: values(xdan.covariance_spectrum(opened(store)["analysis_covariance"]))
}


def covariances(ds: xr.Dataset, net: xdan.Network) -> xr.DataArray:
    """Covariances of a network at every state, in several chunks."""
    return ds.dan.gain(net, kind="covariance")


@dataclass(frozen=True)
class Kind:
    """A kind of store: the function that makes it from the folder of earlier stores, and the functions that read it."""

    make: Callable[[Path], None]
    reads: Mapping[str, Read]


def _make_twin(whole: Path) -> None:
    twin().to_zarr(whole / "twin", consolidated=False)


def _make_consolidated(whole: Path) -> None:
    twin(observe=xdan.Sites.every(2)).to_zarr(whole / "consolidated")


def _make_run(whole: Path) -> None:
    ds = opened(whole / "twin")
    ds.dan.baseline("etkf", members=5, keep_members=True, store=whole / "run", progress=False)


def _make_network(whole: Path) -> None:
    net = opened(whole / "twin").dan.train(architecture(), steps=4, **TRAINING)
    net.to_zarr(whole / "network")


def _make_checkpoint(whole: Path) -> None:
    try:
        with flying_time(stop_at=100.0):
            training(opened(whole / "twin"), whole / "checkpoint")
    except BrokenOffError:
        return
    raise RuntimeError("the training ended before it was broken off")


def _make_sweep(whole: Path) -> None:
    sweep(whole / "sweep")


def _make_gain(whole: Path) -> None:
    net = xdan.open_network(whole / "network")
    covariances(opened(whole / "twin"), net).to_zarr(whole / "gain", consolidated=False)


def _read_network(store: Path, _: Path) -> Answer:
    return network(xdan.open_network(store), with_seconds=True)


def _resume(store: Path, whole: Path) -> Answer:
    with flying_time():
        return network(training(opened(whole / "twin"), store))


def _read_sweep(store: Path, _: Path) -> Answer:
    cube = sweep(store)
    if cube["failed"].any():
        raise RuntimeError(f"cells failed: {cube.attrs['errors']}")
    return values(cube)


# Later ones are made from earlier ones.
STORES: Mapping[str, Kind] = {
    "twin": Kind(_make_twin, TWIN_READS),
    "consolidated": Kind(_make_consolidated, TWIN_READS),
    "run": Kind(_make_run, RUN_READS),
    "network": Kind(_make_network, {"open_network": _read_network}),
    "checkpoint": Kind(_make_checkpoint, {"train(checkpoint=)": _resume}),
    "sweep": Kind(_make_sweep, {"sweep(store=)": _read_sweep}),
    "gain": Kind(_make_gain, GAIN_READS),
}


def make(whole: Path, *names: str) -> None:
    """Make stores in a folder; by default of all kinds."""
    whole.mkdir()
    for name in names or STORES:
        STORES[name].make(whole)


def begin() -> None:
    """Compute on one thread, so that children can be forked at any time, and switch messages off."""
    dask.config.set(scheduler="synchronous")
    warnings.simplefilter("ignore")


OUTCOMES = {
    "SILENT": "other numbers, without a word",
    "hung": "no answer in time",
    "crashed": "the process died",
    "bare": "an error from inside, whose message is neither xdan's nor that of Zarr's checksum",
    "warned": "other numbers, with an XdanWarning that undamaged stores do not cause",
    "refused": "an error that xdan raises, or that of Zarr's checksum",
    "unopened": "xarray or Zarr opens no such store, before xdan sees it",
    "equal": "the same numbers",
}
"""What may become of a read, the worst first."""


@dataclass(frozen=True)
class Expected:
    """The answer and the warnings of a read of an undamaged store."""

    answer: Answer
    warned: frozenset[str]


def ask(read: Read, store: Path, whole: Path) -> tuple[Answer | Exception, dict[str, str]]:
    """Answer or error of a read, and the words of its XdanWarnings, without numbers."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        answer: Answer | Exception
        try:
            answer = read(store, whole)
        except Exception as error:
            answer = error
    said = [str(warning.message) for warning in caught if issubclass(warning.category, xdan.XdanWarning)]
    return answer, {without_numbers(text): text for text in said}


@dataclass(frozen=True)
class Outcome:
    """Outcome of a read: one of `OUTCOMES`, and how the answer differs or what the error says."""

    name: str
    detail: str = ""


def judge(answer: Answer | Exception, said: Mapping[str, str], expected: Expected) -> Outcome:
    """Compare a read of a damaged store with the read of the undamaged store."""
    if isinstance(answer, Exception):
        return Outcome(*_of_error(answer))
    differs = "; ".join(differences(expected.answer, answer)[:4])
    if not differs:
        return Outcome("equal")
    if new := [text for words, text in said.items() if words not in expected.warned]:
        return Outcome("warned", f"{differs}: {new[0]}")
    return Outcome("SILENT", differs)


def _of_error(error: Exception) -> tuple[str, str]:
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if "checksum" in str(error).lower():
        return "refused", text
    if isinstance(error, NotOpenedError):
        return "unopened", text
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if frame.filename.startswith(_INSIDE)]
    if inside[-1:] == frames[-1:] and (frames[-1].line or "").startswith("raise"):
        return "refused", text
    by = f", called by xdan at {Path(inside[-1].filename).name}:{inside[-1].lineno}" if inside else ""
    return "bare", f"{text} (raised in {Path(frames[-1].filename).name}{by})"


def without_numbers(text: str) -> str:
    """A message without its numbers: messages of one kind become equal."""
    return _NUMBERS.sub("#", text)
