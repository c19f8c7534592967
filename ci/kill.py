"""Kill small jobs by SIGKILL, call them again until they end, and compare them with unbroken jobs.

    python ci/kill.py [--count 200] [--seed 0] [--only cycle:17] [--verbs train cycle]

Half of the kills come at a file event (a file is opened for writing, renamed or removed, a folder is made, ...), half
at a random time. Some resumed calls are killed, too. The result must equal that of an unbroken call, bit for bit, with
no further file. If xarray writes the store, the half-written store is also read by the verbs that read the whole one:
each verb must refuse the store or return the right numbers. The exit status is 1 if anything differs.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import itertools
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from children import End, in_child, side_by_side
from small_stores import (
    GAIN_READS,
    TWIN_READS,
    Answer,
    Expected,
    Read,
    ask,
    begin,
    covariances,
    differences,
    flying_time,
    judge,
    make,
    network,
    opened,
    sweep,
    training,
    tree,
    twin,
    values,
)

import xdan

LIMIT = 60.0  # seconds for one call
_AT_EVENTS = 0.5  # share of the kills that hit a file event
_TORN = 0.5  # share of those that leave a file open and empty
_TWICE = 0.3  # share of the trials whose second call is killed too
_TRIES = 6  # calls that may end before they are killed
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_EVENTS = frozenset(
    ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")
)
_BY_FOLDER = {"os.remove": 1, "os.rmdir": 1}  # where the open folder stands that such a path may be relative to


@dataclass(frozen=True)
class Job:
    """A job that writes into a folder.

    Attributes
    ----------
    run : callable
        Function of the folder to write into and of the folder of the stores to read.
    left : callable
        Content that the folder must have at the end.
    half_written : str
        The store that is read after a kill, if there is one.
    reads : mapping
        Functions that read this store.
    """

    run: Callable[[Path, Path], Any]
    left: Callable[[Path], Answer]
    half_written: str = ""
    reads: Mapping[str, Read] = field(default_factory=dict)


def _train(folder: Path, whole: Path) -> None:
    with flying_time():
        training(opened(whole / "twin"), folder / "checkpoint").to_zarr(folder / "network", mode="w")


def _few_blocks(whole: Path) -> xr.Dataset:
    return opened(whole / "twin").chunk(time=10)


def _cycle(folder: Path, whole: Path) -> None:
    net = xdan.open_network(whole / "network")
    _few_blocks(whole).dan.cycle(net, store=folder / "run", progress=False)


def _baseline(folder: Path, whole: Path) -> None:
    settings = {"members": 5, "keep_members": True, "progress": False}
    _few_blocks(whole).dan.baseline("enkf", store=folder / "run", **settings)


def _smoothed(folder: Path, whole: Path) -> None:
    settings = {"members": 5, "keep_members": True, "progress": False}
    _few_blocks(whole).dan.reanalysis("etkf", store=folder / "run", **settings)


def _tuned(folder: Path, whole: Path) -> None:
    _few_blocks(whole).dan.baseline("3d-var", store=folder / "run", progress=False)


def _sweep(folder: Path, _: Path) -> None:
    sweep(folder / "sweep")


def _twin(folder: Path, _: Path) -> None:
    twin().to_zarr(folder / "twin", mode="w", consolidated=False)


def _gain(folder: Path, whole: Path) -> None:
    net = xdan.open_network(whole / "network")
    covariances(opened(whole / "twin"), net).to_zarr(folder / "gain", mode="w", consolidated=False)


def _files(folder: Path, *but: str) -> Answer:
    """Names of all files, except those in some folders."""
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {f"file {name}": True for name in names if name.parts[0] not in but}


def _trained(folder: Path) -> Answer:
    # The slots of a checkpoint depend on where a training was killed.
    return {**network(xdan.open_network(folder / "network")), **_files(folder, "checkpoint")}


def _cycled(folder: Path) -> Answer:
    return {**values(opened(folder / "run")), **tree(folder)}


def _swept(folder: Path) -> Answer:
    return {**values(xr.open_zarr(folder / "sweep", consolidated=False)), **_files(folder)}


JOBS: Mapping[str, Job] = {
    "train": Job(_train, _trained),
    "cycle": Job(_cycle, _cycled),
    "baseline": Job(_baseline, _cycled),
    "smoothed": Job(_smoothed, _cycled),
    "baseline-tuned": Job(_tuned, _cycled),
    "sweep": Job(_sweep, _swept),
    "twin": Job(_twin, tree, "twin", TWIN_READS),
    "gain": Job(_gain, tree, "gain", GAIN_READS),
}


@contextmanager
def fuse(folder: Path, at: int | None = None, torn: bool = False) -> Iterator[Callable[[], int]]:
    """Count file events under a folder, and die at one of them; return the count.

    Death comes just before the event; or, with `torn`, when a file has been opened for writing and is empty.
    """
    events, last, armed, under = itertools.count(1), [0], [True], str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not armed[0] or not (event in _EVENTS or (event == "open" and _writes(arguments))):
            return
        if not (str(arguments[0]).startswith(under) or _relative(event, arguments)):
            return
        last[0] = next(events)
        if last[0] == at:
            armed[0] = False
            if torn and event == "open":
                os.open(arguments[0], arguments[2])
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)  # for good: a child forgets it by its end
    yield lambda: last[0]
    armed[0] = False


def _writes(arguments: tuple[Any, ...]) -> bool:
    return isinstance(arguments[2], int) and bool(arguments[2] & _WRITING)


def _relative(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether a path is relative to an open folder, as in the removal of a tree; jobs remove nothing else."""
    place = _BY_FOLDER.get(event)
    return place is not None and isinstance(arguments[place], int) and arguments[place] >= 0


@dataclass(frozen=True)
class Unbroken:
    """The results of a job without a kill."""

    events: int
    seconds: float
    left: Answer
    answers: Mapping[str, Expected]


@dataclass
class Trial:
    """A job that is killed and called again.

    Attributes
    ----------
    kills : list of str
        The places of the kills.
    calls : int
        Number of calls after a kill.
    differs : list of str
        Differences from the unbroken job.
    half : list of str
        Outcome of each read of the half-written store.
    """

    verb: str
    number: int
    kills: list[str] = field(default_factory=list)
    calls: int = 0
    differs: list[str] = field(default_factory=list)
    half: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.verb}:{self.number}"

    @property
    def silent(self) -> list[str]:
        """Reads of the half-written store that returned wrong numbers without a warning, or crashed."""
        return [outcome for outcome in self.half if outcome.split()[0] in ("SILENT", "crashed")]

    @property
    def wrong(self) -> bool:
        """Whether there is a fault."""
        return bool(self.differs or self.silent)


def _burn(job: Job, folder: Path, whole: Path, at: int | None = None, torn: bool = False) -> int:
    with fuse(folder, at, torn) as count:
        job.run(folder, whole)
        return count()


def measure(verb: str, whole: Path, scratch: Path) -> Unbroken:
    """Run a job twice without a kill.

    Raises
    ------
    RuntimeError
        If the job fails, or its second result differs.
    """
    job, seconds = JOBS[verb], []
    ends, lefts = [], []
    for number in range(2):
        folder = scratch / f"{verb}-whole-{number}"
        folder.mkdir()
        started = time.monotonic()
        ends.append(_well(in_child(partial(_burn, job, folder, whole), LIMIT)))
        seconds.append(time.monotonic() - started)
        lefts.append(_well(in_child(partial(job.left, folder), LIMIT)))
    if differs := differences(*lefts):
        raise RuntimeError(f"{verb} is not reproducible: {differs[:4]}")
    reads = partial(_expected, job, scratch / f"{verb}-whole-0" / job.half_written, whole)
    return Unbroken(ends[0], min(seconds), lefts[0], _well(in_child(reads, LIMIT)))


def _expected(job: Job, store: Path, whole: Path) -> dict[str, Expected]:
    expected = {}
    for name, read in job.reads.items():
        answer, said = ask(read, store, whole)
        if isinstance(answer, Exception):
            raise answer
        expected[name] = Expected(answer, frozenset(said))
        shutil.rmtree(store.with_name("written"), ignore_errors=True)
    return expected


def _well(end: End) -> Any:
    if end.status:
        raise RuntimeError(f"an unbroken job ended with status {end.status}: {end.trouble}")
    return end.answer


def attempt(verb: str, number: int, seed: int, unbroken: Unbroken, whole: Path, scratch: Path) -> Trial:
    """Kill a job once or twice, call it until it ends, and compare."""
    rng = np.random.default_rng([seed, list(JOBS).index(verb), number])
    job, trial, folder = JOBS[verb], Trial(verb, number), scratch / f"{verb}-{number}"
    folder.mkdir()
    for _ in range(_TRIES):  # a kill at a time may come too late
        if not _killed(trial, job, rng, unbroken, folder, whole).killed:
            shutil.rmtree(folder)
            folder.mkdir()
            continue
        if job.half_written:
            trial.half = _read_half(job, unbroken, folder, whole)
        break
    else:
        return trial
    end = None
    trial.calls += 1
    if rng.random() < _TWICE:
        end = _killed(trial, job, rng, unbroken, folder, whole)
        trial.calls += end.killed
    if end is None or end.killed:
        end = in_child(partial(job.run, folder, whole), LIMIT)
    left = in_child(partial(job.left, folder), LIMIT)
    trial.differs = [_last_line(left)] if left.status else differences(unbroken.left, left.answer)
    was_whole = not trial.differs and _last_line(end).startswith("FileExistsError")
    if end.status and not was_whole:
        trial.differs.append(_last_line(end))
    shutil.rmtree(folder)
    return trial


def _killed(trial: Trial, job: Job, rng: np.random.Generator, unbroken: Unbroken, folder: Path, whole: Path) -> End:
    """Call a job, and kill it if it does not end before."""
    if rng.random() < _AT_EVENTS:
        at = int(rng.integers(1, unbroken.events + 1))
        torn = bool(rng.random() < _TORN)
        where = f"file event {at} of {unbroken.events}{' (torn)' if torn else ''}"
        end = in_child(partial(_burn, job, folder, whole, at, torn), LIMIT)
    else:
        after = float(rng.uniform(0, unbroken.seconds))
        where = f"{after:.3f} of {unbroken.seconds:.3f} s"
        end = in_child(partial(job.run, folder, whole), LIMIT, kill_after=after)
    if end.killed:
        trial.kills.append(where)
    return end


def _read_half(job: Job, unbroken: Unbroken, folder: Path, whole: Path) -> list[str]:
    """Read a half-written store by all verbs; return the outcomes."""
    if not (folder / job.half_written).exists():
        return []
    copy = Path(shutil.copytree(folder, folder.with_name(f"{folder.name}-half")))
    end = in_child(partial(_outcomes, job, unbroken, copy / job.half_written, whole), LIMIT)
    shutil.rmtree(copy)
    return [f"crashed {_last_line(end)}"] if end.status else end.answer


def _outcomes(job: Job, unbroken: Unbroken, store: Path, whole: Path) -> list[str]:
    judged = {name: judge(*ask(read, store, whole), unbroken.answers[name]) for name, read in job.reads.items()}
    return [f"{outcome.name} {name}: {outcome.detail}" for name, outcome in judged.items()]


def _last_line(end: End) -> str:
    return end.trouble.strip().splitlines()[-1] if end.trouble else f"ended with status {end.status}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="kills, over all verbs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--only", help="verb:number of one trial to run again")
    parser.add_argument("--workers", type=int, default=2, help="trials at once")
    asked = parser.parse_args()
    begun = time.monotonic()
    begin()
    with tempfile.TemporaryDirectory(prefix="kill-") as folder:
        trials = _kill_all(asked, Path(folder))
    return _report(trials, begun)


def _kill_all(asked: argparse.Namespace, scratch: Path) -> list[Trial]:
    whole = scratch / "whole"
    make(whole, "twin", "run", "network")
    for verb, job in JOBS.items():  # what a first call imports is imported here, not in every child
        (scratch / f"{verb}-first").mkdir()
        job.run(scratch / f"{verb}-first", whole)
    verbs = [asked.only.split(":")[0]] if asked.only else asked.verbs
    unbroken = {verb: measure(verb, whole, scratch) for verb in verbs}
    print(f"seed {asked.seed}: {asked.count} kills of {', '.join(verbs)}", flush=True)
    for verb, facts in unbroken.items():
        print(f"  {verb}: {facts.events} file events in {facts.seconds:.2f} s", flush=True)
    kills: Counter[str] = Counter()

    def wanted() -> Iterator[partial[Trial]]:
        """Trials of one verb after another, until the number of kills is reached."""
        numbers = [int(asked.only.split(":")[1])] if asked.only else itertools.count()
        for number in numbers:
            room = [verb for verb in verbs if kills[verb] * len(verbs) < asked.count]
            if not room or kills.total() >= asked.count:
                return
            for verb in room:
                yield partial(attempt, verb, number, asked.seed, unbroken[verb], whole, scratch)

    trials = []
    for action, end in side_by_side(wanted(), asked.workers, 6 * LIMIT):
        verb, number = action.args[:2]
        trial = end.answer or Trial(verb, number, differs=[_last_line(end)])
        kills[trial.verb] += len(trial.kills)
        trials.append(trial)
        _tell(trial, bool(asked.only))
    return trials


def _tell(trial: Trial, everything: bool) -> None:
    """Print the differences, or all results."""
    if trial.wrong or everything:
        print(f"\n{trial.name}, killed at {' and '.join(trial.kills)}", flush=True)
    for text in trial.differs[:6]:
        print(f"  different: {text}", flush=True)
    for text in trial.half if everything else trial.silent:
        print(f"  half-written: {text}", flush=True)


def _report(trials: list[Trial], begun: float) -> int:
    """Print a table; return the exit status."""
    table = pd.DataFrame(0, index=list(JOBS), columns=["kills", "at events", "resumed", "equal", "different"])
    half: Counter[tuple[str, str]] = Counter()
    for trial in trials:
        at_events = sum(where.startswith("file event") for where in trial.kills)
        equal = bool(trial.kills) and not trial.differs
        table.loc[trial.verb] += [len(trial.kills), at_events, trial.calls, equal, bool(trial.differs)]
        half.update((trial.verb, outcome.split()[0]) for outcome in trial.half)
    print(f"\n{table.loc[table['kills'] > 0].to_string()}")
    for (verb, outcome), times in sorted(half.items()):
        print(f"half-written {verb}: {times} reads {outcome}")
    wrong = sum(trial.wrong for trial in trials)
    print(f"\n{table['kills'].sum()} kills, {wrong} trials differ, in {time.monotonic() - begun:.0f} s", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
