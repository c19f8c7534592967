"""Damages the files of small stores, reads them back through the verbs, and tells what changed without a word.

    python ci/corrupt.py [--count 300] [--seed 0] [--only run:17] [--stores twin run]

Every case is one file cut short, with one bit flipped, emptied or deleted, or one folder deleted, in a copy of a twin,
a run, a network, a checkpoint, a sweep or a gain. Each verb that reads such a store is then asked, and ends in one of
`OUTCOMES`. The exit status is 1 where any change is silent, or a read hangs or crashes.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import itertools
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import answers
import numpy as np
import pandas as pd
from answers import Answer, NotOpenedError, Read
from children import End, side_by_side

import xdan

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
FAILURES = ("SILENT", "hung", "crashed")
LIMIT = 60.0  # seconds for the reads of one case
_INSIDE = str(Path(xdan.__file__).parent)
_WITHOUT_NUMBERS = re.compile(r"[-+]?\d[-+.\de]*|\bnan\b|\binf\b")


@dataclass(frozen=True)
class Kind:
    """A kind of store: how it is made, from the folder of those made before, and who reads it."""

    make: Callable[[Path], None]
    reads: Mapping[str, Read]


def _make_twin(whole: Path) -> None:
    answers.twin().to_zarr(whole / "twin", consolidated=False)


def _make_consolidated(whole: Path) -> None:
    answers.twin(observe=xdan.Sites.every(2)).to_zarr(whole / "consolidated")


def _make_run(whole: Path) -> None:
    ds = answers.opened(whole / "twin")
    ds.dan.baseline("etkf", members=5, keep_members=True, store=whole / "run", progress=False)


def _make_network(whole: Path) -> None:
    net = answers.opened(whole / "twin").dan.train(answers.architecture(), steps=4, **answers.TRAINING)
    net.to_zarr(whole / "network")


def _make_checkpoint(whole: Path) -> None:
    try:
        with answers.flying_time(stop_at=70.0):
            answers.training(whole / "checkpoint")
    except answers.BrokenOffError:
        return
    raise RuntimeError("the training ended before it was broken off")


def _make_sweep(whole: Path) -> None:
    answers.sweep(whole / "sweep")


def _make_gain(whole: Path) -> None:
    net = xdan.open_network(whole / "network")
    answers.covariances(answers.opened(whole / "twin"), net).to_zarr(whole / "gain", consolidated=False)


def _read_network(store: Path, _: Path) -> Answer:
    return answers.network(xdan.open_network(store), with_seconds=True)


def _resume(store: Path, _: Path) -> Answer:
    with answers.flying_time():
        return answers.network(answers.training(store))


def _read_sweep(store: Path, _: Path) -> Answer:
    cube = answers.sweep(store)
    if cube["failed"].any():
        raise RuntimeError(f"cells failed: {cube.attrs['errors']}")
    return answers.values(cube)


# Later ones are made from earlier ones.
STORES: Mapping[str, Kind] = {
    "twin": Kind(_make_twin, answers.TWIN_READS),
    "consolidated": Kind(_make_consolidated, answers.TWIN_READS),
    "run": Kind(_make_run, answers.RUN_READS),
    "network": Kind(_make_network, {"open_network": _read_network}),
    "checkpoint": Kind(_make_checkpoint, {"train(checkpoint=)": _resume}),
    "sweep": Kind(_make_sweep, {"sweep(store=)": _read_sweep}),
    "gain": Kind(_make_gain, answers.GAIN_READS),
}


def _truncate(path: Path, rng: np.random.Generator) -> str:
    content = path.read_bytes()
    length = int(rng.integers(len(content)))
    path.write_bytes(content[:length])
    return f"cut to {length} of {len(content)} bytes"


def _flip(path: Path, rng: np.random.Generator) -> str:
    content = bytearray(path.read_bytes())
    place, bit = int(rng.integers(len(content))), int(rng.integers(8))
    before = bytes(content[max(0, place - 12) : place + 12])
    content[place] ^= 1 << bit
    path.write_bytes(content)
    after = bytes(content[max(0, place - 12) : place + 12])
    return f"bit {bit} of byte {place}" + (f": {before!r} -> {after!r}" if path.suffix == ".json" else "")


def _empty(path: Path, _: np.random.Generator) -> str:
    path.write_bytes(b"")
    return "emptied"


def _delete(path: Path, _: np.random.Generator) -> str:
    path.unlink()
    return "deleted"


def _delete_folder(path: Path, _: np.random.Generator) -> str:
    shutil.rmtree(path)
    return "folder deleted"


DAMAGES: Mapping[str, Callable[[Path, np.random.Generator], str]] = {
    "truncate": _truncate,
    "flip": _flip,
    "empty": _empty,
    "delete": _delete,
    "delete folder": _delete_folder,
}
_OF_FILES = ("truncate", "flip", "empty", "delete")


@dataclass(frozen=True)
class Case:
    """One damage of one store; store, number and seed determine it."""

    store: str
    number: int
    place: str
    damage: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.store}:{self.number}"

    def apply(self, store: Path) -> str:
        """Damage a copy of the store; tell how."""
        rng = np.random.default_rng([self.seed, list(STORES).index(self.store), self.number])
        return DAMAGES[self.damage](store / self.place, rng)


def cases(store: str, whole: Path, count: int, seed: int) -> Iterator[Case]:
    """Damages of a store: every file is hit before one is hit again, and then it is damaged in another way."""
    root = whole / store
    rng = np.random.default_rng([seed, list(STORES).index(store)])
    found = sorted(root.rglob("*"))
    files, folders = (
        rng.permutation([str(path.relative_to(root)) for path in found if test(path)])
        for test in (Path.is_file, Path.is_dir)
    )
    of_files = itertools.count()
    for number in range(count):
        lap, rest = divmod(number, len(DAMAGES))
        if rest == len(_OF_FILES):
            yield Case(store, number, str(folders[lap % len(folders)]), "delete folder", seed)
        else:
            k = next(of_files)
            damage = _OF_FILES[(k + k // len(files)) % len(_OF_FILES)]
            yield Case(store, number, str(files[k % len(files)]), damage, seed)


@dataclass(frozen=True)
class Expected:
    """What a read answers from an undamaged store, and of what it warns."""

    answer: Answer
    warned: frozenset[str]


def ask(read: Read, store: Path, whole: Path) -> tuple[Answer | Exception, dict[str, str]]:
    """Answer or error of a read, and its XdanWarnings by their words, without numbers."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        answer: Answer | Exception
        try:
            answer = read(store, whole)
        except Exception as error:
            answer = error
    said = [str(warning.message) for warning in caught if issubclass(warning.category, xdan.XdanWarning)]
    return answer, {_WITHOUT_NUMBERS.sub("#", text): text for text in said}


def expect(store: str, whole: Path, scratch: Path) -> dict[str, Expected]:
    """Read an undamaged copy of a store.

    Raises
    ------
    Exception
        Whatever a read raises.
    """
    expected = {}
    for name, read in STORES[store].reads.items():
        copy = _copied(store, whole, scratch / f"{store}-whole-{len(expected)}")
        answer, said = ask(read, copy, whole)
        if isinstance(answer, Exception):
            raise answer
        expected[name] = Expected(answer, frozenset(said))
    return expected


def _copied(store: str, whole: Path, folder: Path) -> Path:
    folder.mkdir()
    return Path(shutil.copytree(whole / store, folder / store))


@dataclass(frozen=True)
class Outcome:
    """What became of a read: one of `OUTCOMES`, and how the answer differs or what the error says."""

    name: str
    detail: str = ""


def judge(answer: Answer | Exception, said: Mapping[str, str], expected: Expected) -> Outcome:
    """Compare a read of a damaged store with that of the undamaged one."""
    if isinstance(answer, Exception):
        return Outcome(*_of_error(answer))
    differs = "; ".join(answers.differences(expected.answer, answer)[:4])
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
    last = traceback.extract_tb(error.__traceback__)[-1]
    if last.filename.startswith(_INSIDE) and (last.line or "").startswith("raise"):
        return "refused", text
    return "bare", f"{text} ({Path(last.filename).name}:{last.lineno} in {last.name})"


def run(
    case: Case | None, store: str, whole: Path, folder: Path, expected: Mapping[str, Expected]
) -> tuple[str, dict[str, Outcome]]:
    """Damage a copy of a store, none where there is no case, and read it; tell how, and what became of each read."""
    copy = _copied(store, whole, folder)
    how = "undamaged" if case is None else case.apply(copy)
    outcomes = {}
    for name, read in STORES[store].reads.items():
        outcomes[name] = judge(*ask(read, copy, whole), expected[name])
    shutil.rmtree(folder)
    return how, outcomes


def worst(end: End) -> str:
    """The worst outcome of a case."""
    if end.status:
        return "hung" if end.killed else "crashed"
    return min((outcome.name for outcome in end.answer[1].values()), key=list(OUTCOMES).index)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300, help="damages, over all stores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stores", nargs="+", choices=list(STORES), default=list(STORES))
    parser.add_argument("--only", help="store:number of one case to run again; every read of it is shown")
    parser.add_argument("--workers", type=int, default=2, help="processes at work at once")
    asked = parser.parse_args()
    begun = time.monotonic()
    answers.begin()
    with tempfile.TemporaryDirectory(prefix="corrupt-") as folder:
        return _damage_all(asked, Path(folder), begun)


def _damage_all(asked: argparse.Namespace, folder: Path, begun: float) -> int:
    whole, scratch = folder / "whole", folder / "cases"
    whole.mkdir()
    scratch.mkdir()
    for kind in STORES.values():
        kind.make(whole)
    names = [asked.only.split(":")[0]] if asked.only else asked.stores
    expected = {store: expect(store, whole, scratch) for store in names}
    share = -(-asked.count // len(names))
    planned = [case for store in names for case in cases(store, whole, share, asked.seed)]
    if asked.only:
        number = int(asked.only.split(":")[1])
        planned = list(itertools.islice(cases(names[0], whole, number + 1, asked.seed), number, None))
    work = [(None, store) for store in names] + [(case, case.store) for case in planned[: asked.count]]
    actions = {
        partial(
            run, case, store, whole, scratch / f"{store}-{'control' if case is None else case.number}", expected[store]
        ): case
        for case, store in work
    }
    print(f"seed {asked.seed}: {len(planned[: asked.count])} damages of {', '.join(names)}", flush=True)
    rows: list[tuple[Case, End]] = []
    for action, end in side_by_side(actions, asked.workers, LIMIT):
        case = actions[action]
        if case is None and worst(end) != "equal":
            raise RuntimeError(f"an undamaged store does not give the same answers twice: {end}")
        if case is not None:
            rows.append((case, end))
    return _report(sorted(rows, key=lambda row: planned.index(row[0])), bool(asked.only), begun)


def _report(rows: list[tuple[Case, End]], everything: bool, begun: float) -> int:
    """Print a table, then each case that is to be looked at; the exit status."""
    frame = pd.DataFrame(
        [(case.store, case.damage, worst(end)) for case, end in rows], columns=["store", "damage", "outcome"]
    )
    frame["outcome"] = pd.Categorical(frame["outcome"], list(OUTCOMES))
    print(pd.crosstab([frame["store"], frame["damage"]], frame["outcome"], dropna=False, margins=True).to_string())
    print("\n".join(f"{name}: {meaning}" for name, meaning in OUTCOMES.items()))
    bare: dict[str, list[str]] = {}
    for case, end in rows:
        how, outcomes = end.answer or ("", {})
        if worst(end) in FAILURES or everything:
            print(f"\n{worst(end)} {case.name} {case.place} ({case.damage}; {how})")
            print(end.trouble, end="")
        for name, outcome in outcomes.items():
            if outcome.name in ("SILENT", "warned") or everything:
                print(f"  {outcome.name:8s} {case.name} {name}: {outcome.detail}")
            if outcome.name == "bare":
                bare.setdefault(_WITHOUT_NUMBERS.sub("#", outcome.detail), []).append(f"{case.name} {name}")
    if bare:
        print("\nErrors from inside:")
        for text, where in sorted(bare.items(), key=lambda item: -len(item[1])):
            print(f"  {len(where)} x {text}\n      such as {', '.join(where[:: max(1, len(where) // 3)][:3])}")
    failed = [case.name for case, end in rows if worst(end) in FAILURES]
    print(
        f"\n{len(rows)} damages, {len(failed)} silent, hung or crashed, in {time.monotonic() - begun:.0f} s", flush=True
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
