"""Damage the files of small stores, read the stores by the verbs, and report wrong results that come without a word.

    python ci/corrupt.py [--count 300] [--seed 0] [--only run:17] [--stores twin run]

Every case damages a copy of a twin, a run, a network, a checkpoint, a sweep or a gain: one file is cut short, emptied
or deleted, one bit of a file is flipped, or one folder is deleted. Each verb that reads such a store is then called,
and ends in one of `OUTCOMES`. The exit status is 1 if a change is silent, or a read hangs or crashes.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from children import End, side_by_side
from small_stores import OUTCOMES, STORES, Expected, Outcome, ask, begin, judge, make, without_numbers

FAILURES = ("SILENT", "hung", "crashed")
_IN_DIGITS = 0.5  # share of the flips in JSON after which it is still JSON, with another number
LIMIT = 60.0  # seconds for the reads of one case


def _truncate(path: Path, rng: np.random.Generator) -> str:
    content = path.read_bytes()
    length = int(rng.integers(len(content)))
    path.write_bytes(content[:length])
    return f"cut to {length} of {len(content)} bytes"


def _flip(path: Path, rng: np.random.Generator) -> str:
    content = bytearray(path.read_bytes())
    place, bit = int(rng.integers(len(content))), int(rng.integers(8))
    digits = [index for index, byte in enumerate(content) if chr(byte).isdigit()] if path.suffix == ".json" else []
    if digits and rng.random() < _IN_DIGITS:
        place, bit = int(rng.choice(digits)), 0  # the last bit makes a digit another digit
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
    """One damage of one store. Store, number and seed determine the damage."""

    store: str
    number: int
    place: str
    damage: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.store}:{self.number}"

    def apply(self, store: Path) -> str:
        """Damage a copy of the store; return how."""
        rng = np.random.default_rng([self.seed, list(STORES).index(self.store), self.number])
        return DAMAGES[self.damage](store / self.place, rng)


def cases(store: str, whole: Path, count: int, seed: int) -> Iterator[Case]:
    """Damages of a store. Every file is damaged once before a file is damaged again, in another way."""
    root = whole / store
    rng = np.random.default_rng([seed, list(STORES).index(store)])
    paths = sorted(root.rglob("*"))
    files, folders = (
        rng.permutation([str(path.relative_to(root)) for path in paths if test(path) and path.stat().st_size])
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


def expect(store: str, whole: Path, scratch: Path) -> dict[str, Expected]:
    """Read an undamaged copy of a store.

    Raises
    ------
    Exception
        Any error of a read.
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


def run(
    case: Case | None, store: str, whole: Path, folder: Path, expected: Mapping[str, Expected]
) -> tuple[str, dict[str, Outcome]]:
    """Damage a copy of a store (or not, without a case), and read it; return how, and the outcome of each read."""
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
    begin()
    with tempfile.TemporaryDirectory(prefix="corrupt-") as folder:
        return _damage_all(asked, Path(folder), begun)


def _damage_all(asked: argparse.Namespace, folder: Path, begun: float) -> int:
    whole, scratch = folder / "whole", folder / "cases"
    scratch.mkdir()
    make(whole)
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
    """Print a table, then each case that needs attention; return the exit status."""
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
                bare.setdefault(without_numbers(outcome.detail), []).append(f"{case.name} {name}")
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
