"""Run every block of Python of README.md and docs/, check the commands of the other blocks, and every relative link.

python ci/docs_blocks.py [PAGE ...] [--jobs 2] [--verbose]

Each page runs in a process and a temporary folder of its own, its blocks one after another; a block that imports xdan
begins a namespace. What a user would see as a warning is an error. Long settings are cut to short ones by `_shorten`,
and stores that another page writes are there (`STORES`). A block below the comment `<!-- not run: reason -->` is not
run.
"""

from __future__ import annotations

import argparse
import ast
import atexit
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from page_blocks import blocks_of  # noqa: E402

# What Python does not show by default stays unseen.
HIDDEN = ("DeprecationWarning", "PendingDeprecationWarning", "ImportWarning", "ResourceWarning")
WARNINGS = ["-W", "error", *(part for name in HIDDEN for part in ("-W", f"ignore::{name}"))]

STEPS, STEPS_OF_A_SWEEP = 30, 5  # of a training of some minutes
VALIDATION = 100, 8  # cycles and trajectories that a training of a twin is validated on
VALUES, CYCLES, TRAJECTORIES = 20_000, 400, 8  # a record of more trajectories x cycles than VALUES is cut to the others
SWEPT = 2  # values of an axis of a sweep that has more
LIMIT = 900  # seconds for a page


def pages() -> list[Path]:
    """All pages, those with the most blocks first."""
    every = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    return sorted(every, key=lambda page: -len(blocks_of(page)))


# In the process of a page.


def _record(store: str) -> None:
    import xdan

    xdan.twin(xdan.Lorenz96(), cycles=300, trajectories=4, seed=0).to_zarr(store)


def _network(store: str) -> None:
    import xdan

    xdan.open_network("lorenz96").to_zarr(store)


def _sweep(store: str) -> None:
    import xdan

    schemes = {"EnKF-N": {"baseline": "enkf-n", "members": 10}, "3D-Var": {"baseline": "3d-var"}}
    axes = {"interval": [0.05, 0.1], "forcing": [6.0, 8.0]}
    xdan.sweep(xdan.Lorenz96(), schemes, axes, cycles=60, trajectories=2, burn_in=20, store=store, progress=False)


STORES: dict[str, Callable[[str], None]] = {"l96.zarr": _record, "net.zarr": _network, "intervals.zarr": _sweep}


def _lacking(code: str) -> list[str]:
    """Stores that a page opens before it writes them."""
    lacking = []
    for name in STORES:
        opened = re.search(rf'open_\w+\("{re.escape(name)}"', code)
        written = re.search(rf'(to_zarr\(|store=)"{re.escape(name)}"', code)
        if opened and not (written and written.start() < opened.start()):
            lacking.append(name)
    return lacking


def _shorten() -> None:
    """Cut what takes minutes: lengths of trainings, sizes of records, and axes of sweeps."""
    import xdan.assimilation.twins
    import xdan.sweeps.sweeps
    import xdan.training.fitting
    import xdan.training.twin_source

    def stepped(words: dict[str, Any], steps: int) -> dict[str, Any]:
        rest = {name: value for name, value in words.items() if name != "minutes"}
        return rest if rest.get("steps") or rest.get("epochs") else {**rest, "steps": steps}

    train, twin, sweep = xdan.training.fitting.train, xdan.assimilation.twins.twin, xdan.sweeps.sweeps.sweep

    def short_train(*args: Any, **words: Any) -> Any:
        return train(*args, **{"progress": False, **stepped(words, STEPS)})

    def short_twin(*args: Any, **words: Any) -> Any:
        if words.get("cycles", 1000) * words.get("trajectories", 1) > VALUES:
            words |= {"cycles": min(CYCLES, words.get("cycles", 1000)), "trajectories": TRAJECTORIES}
        return twin(*args, **words)

    def short_sweep(model: Any, schemes: Any, axes: Any = None, **words: Any) -> Any:
        schemes = {
            name: stepped(scheme, STEPS_OF_A_SWEEP) if "network" in scheme else scheme
            for name, scheme in schemes.items()
        }
        axes = {name: list(values)[:SWEPT] for name, values in (axes or {}).items()}
        words = {"cycles": 60, "trajectories": 4, "burn_in": 20, **words, "seeds": 1}
        return sweep(model, schemes, axes, **words)

    xdan.training.twin_source.VALIDATION_CYCLES, xdan.training.twin_source.VALIDATION_LANES = VALIDATION
    xdan.training.fitting.train = short_train
    xdan.assimilation.twins.twin = short_twin
    xdan.sweeps.sweeps.sweep = short_sweep


def _draw_without_a_browser() -> None:
    """`show()` of an explorer draws its pictures and returns."""
    from xdan.plots.explorer import Explorer

    Explorer.show = lambda self, **options: self.view().get_root()


def run(page: Path) -> None:
    """Run the blocks of a page in the folder where this process is, and say what each takes."""
    atexit.register(lambda: print(f"@ processor {sum(os.times()[:4]):.0f}", flush=True))
    blocks = blocks_of(page)
    code = "".join(block.code for block in blocks if not block.reason)
    for name in _lacking(code):
        STORES[name](name)
    _shorten()
    if ".show()" in code:
        _draw_without_a_browser()
    names: dict[str, Any] = {}
    for block in blocks:
        begin = time.perf_counter()
        if not block.reason:
            names = block.run(names)
        what = f"not run: {block.reason}" if block.reason else f"{time.perf_counter() - begin:.1f} s"
        print(f"@ line {block.line}: {what}", flush=True)


# In the first process.


@dataclass(frozen=True)
class Ran:
    """What came of a page."""

    page: Path
    seconds: float
    processor: float  # seconds of it, also on a busy machine
    blocks: list[str]
    fault: str


def run_in_new_process(page: Path) -> Ran:
    """Run a page in a process and a folder of its own."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=f"{page.stem}-") as folder:
        (Path(folder) / "gallery").mkdir()
        command = [sys.executable, *WARNINGS, str(Path(__file__).resolve()), "--run", str(page)]
        quiet = {**os.environ, "TQDM_DISABLE": "1"}
        with subprocess.Popen(
            command, cwd=folder, env=quiet, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            try:
                printed, complaints = child.communicate(timeout=LIMIT)
            except subprocess.TimeoutExpired:
                child.kill()
                printed, complaints = child.communicate()
                complaints += f"\nstopped after {LIMIT} s"
    done = [line for line in printed.splitlines() if line.startswith("@ line")]
    # A worker, or a thread, that warns cannot stop the page.
    fault = complaints if child.returncode or "Warning:" in complaints else ""
    processor = re.search(r"^@ processor (\d+)", printed, re.M)
    return Ran(page, time.perf_counter() - begin, float(processor[1]) if processor else 0.0, done, fault)


@cache
def _words_of(script: Path) -> frozenset[str]:
    """Strings and names of functions in a script and in those beside it that it imports."""
    words = {path.stem for path in script.parent.glob("*.py")}  # a script leaves a folder of its name
    for parts in script.parent.glob(f"{script.stem}_*.py"):
        words |= _words_of(parts)
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words.add(node.value)
        elif isinstance(node, ast.FunctionDef):
            words |= {node.name, node.name.replace("_", "-")}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            named = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
            for name in named:
                if (beside := script.with_name(f"{name}.py")).exists() and beside != script:
                    words |= _words_of(beside)
    return frozenset(words)


def wrong_commands(page: Path) -> Iterator[str]:
    """Scripts that a page calls and that are not there, and options and words that they do not know."""
    for call in re.finditer(r"(?:python\S* )?((?:examples|ci)/[\w/]+\.py)((?: [^`\n|;&)#]*)?)", page.read_text()):
        script = ROOT / call[1]
        if not script.exists():
            yield f"{call[1]} is not there"
            continue
        value = False
        for word in call[2].split() if call[0].startswith("python") else ():
            plain = word.rstrip(".,:]").lstrip("[")
            if plain.startswith("--"):
                if plain not in _words_of(script) | {"--help"}:
                    yield f"{call[1]} has no option {plain}"
            elif not value and plain.islower() and plain.isidentifier() and plain not in _words_of(script):
                yield f"{call[1]} knows no {plain}"
            value = plain.startswith("--")


def wrong_links(page: Path) -> Iterator[str]:
    """Relative links of a page to files that are not there, or to headings that a page does not have."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^()\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists():
            yield f"the link {target} leads to no file"
        elif anchor and path.suffix == ".md" and anchor not in _anchors(path):
            yield f"the link {target} leads to no heading"


@cache
def _anchors(page: Path) -> frozenset[str]:
    """Names of a page's headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.M)
    return frozenset(re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, help="pages to run; all of them by default")
    parser.add_argument("--jobs", type=int, default=2, help="pages at a time")
    parser.add_argument("--verbose", action="store_true", help="say what each block takes")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run is not None:
        run(options.run)
        return
    begin, chosen = time.perf_counter(), [page.resolve() for page in options.pages] or pages()
    faults, processor = 0, 0.0
    for page in chosen:
        for fault in (*wrong_commands(page), *wrong_links(page)):
            faults += 1
            print(f"{page.name}: {fault}", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        waiting = [pool.submit(run_in_new_process, page) for page in chosen if blocks_of(page)]
        for ran in (future.result() for future in as_completed(waiting)):
            print(
                f"{ran.page.name}: {len(ran.blocks)} blocks, {ran.seconds:.0f} s, {ran.processor:.0f} s of a core",
                flush=True,
            )
            shown = ran.blocks if options.verbose or ran.fault else [line for line in ran.blocks if "not run" in line]
            if shown:
                print(*(f"  {line}" for line in shown), sep="\n", flush=True)
            processor += ran.processor
            if ran.fault:
                faults += 1
                print(ran.fault, flush=True)
    taken = f"{time.perf_counter() - begin:.0f} s, {processor:.0f} s of a core"
    print(f"{len(chosen)} pages, {faults} faults, {taken}")
    if faults:
        sys.exit(1)


if __name__ == "__main__":
    main()
