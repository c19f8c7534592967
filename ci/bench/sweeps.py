"""Sweeps: two workers against one, and the time of a sweep against a bare loop of its experiments.

    python ci/bench/sweeps.py [--trainings 16] [--states 20000] [--repeats 3]

Each ratio is that of two consecutive runs. Every repeat reverses their order; clusters are started before.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask
import numpy as np
import torch
import xarray as xr
from distributed import Client, LocalCluster

import xdan

MODEL = xdan.Lorenz96()
TEST = {"cycles": 300, "trajectories": 32, "burn_in": 100}
_numbers = itertools.count()


def training(steps: int) -> dict[str, Any]:
    """A scheme that trains the default network."""
    return {"network": "residual-cnn", "steps": steps}


def clock(action: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def pairs(name: str, slow: Callable[[], Any], fast: Callable[[], Any], repeats: int) -> tuple[float, str]:
    """Median of slow / fast, and all of them in words."""
    times = []
    for turn in range(repeats):
        both = {action: clock(action) for action in ((slow, fast) if turn % 2 else (fast, slow))}
        times.append((both[slow] / both[fast], both[slow], both[fast]))
    ratio, first, second = sorted(times)[len(times) // 2]
    least, most = min(times)[0], max(times)[0]
    text = f"{name}: {first:.1f} s and {second:.1f} s, ratio {ratio:.2f} ({least:.2f} to {most:.2f})"
    return ratio, text


def sweep(folder: Path, scheme: dict[str, Any], seeds: int, model: xdan.Dynamics = MODEL, **test: int) -> xr.Dataset:
    """A sweep into a new store."""
    store = folder / f"sweep-{next(_numbers)}.zarr"
    return xdan.sweep(model, {"scheme": scheme}, seeds=seeds, store=store, progress=False, **(test or TEST))


def bare(scheme: dict[str, Any], seeds: int, model: xdan.Dynamics = MODEL, **test: int) -> None:
    """The experiments of the sweep in a loop; nothing is saved."""
    test = test or TEST
    for seed in range(seeds):
        sizes = {name: test[name] for name in ("cycles", "trajectories")}
        parameters = {name: value for name, value in scheme.items() if name not in ("network", "baseline")}
        here = {"scheduler": "synchronous"}
        if "network" in scheme:
            net = xdan.train(model, scheme["network"], **parameters, seed=seed, progress=False)
        record = xdan.twin(model, **sizes, seed=1_000_000 + seed).compute(**here)
        if "network" in scheme:
            run = record.chunk().dan.cycle(net, seed=seed).compute(**here)
        else:
            run = record.chunk().dan.baseline(scheme["baseline"], **parameters, seed=seed).compute(**here)
        record.dan.score(run, burn_in=test["burn_in"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainings", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40, help="of each training")
    parser.add_argument("--states", type=int, default=20_000)
    parser.add_argument("--cells", type=int, default=100, help="cheap ones, to see what a cell costs")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    scheme = training(options.steps)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        record = folder / "record.zarr"
        xdan.twin(MODEL, cycles=options.states // 100, trajectories=100, seed=7).to_zarr(record, consolidated=False)
        clients = {}
        for workers in (1, 2):
            cluster = stack.enter_context(LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0"))
            clients[workers] = stack.enter_context(Client(cluster, set_as_default=False))

        def on(workers: int, action: Callable[[], Any]) -> Callable[[], Any]:
            def run() -> None:
                with clients[workers].as_current():
                    action()

            return run

        def gain() -> None:
            xr.open_zarr(record, consolidated=False).dan.gain(xdan.open_network("lorenz96")).compute()

        for workers in (1, 2):  # imports
            on(workers, lambda workers=workers: sweep(folder, training(1), 4 * workers))()
        _, text = pairs(
            f"{options.trainings} trainings of {options.steps} steps, one worker against two",
            on(1, lambda: sweep(folder, scheme, options.trainings)),
            on(2, lambda: sweep(folder, scheme, options.trainings)),
            options.repeats,
        )
        print(text, flush=True)
        _, text = pairs(
            f"gain over {options.states} states, one worker against two", on(1, gain), on(2, gain), options.repeats
        )
        print(text, flush=True)
        few = max(2, options.trainings // 4)
        bare(scheme, 1)
        ratio, text = pairs(
            f"{few} trainings, a sweep without a cluster against the bare loop",
            lambda: sweep(folder, scheme, few),
            lambda: bare(scheme, few),
            2 * options.repeats,
        )
        print(f"{text}: {ratio - 1:.1%} on top")
        small, sizes = xdan.Lorenz96(sites=8), {"cycles": 4, "trajectories": 1, "burn_in": 1}
        cheap = {"baseline": "optimal-interpolation"}
        bare(cheap, 2, small, **sizes)
        per_cell: dict[str, list[float]] = {"without a cluster": [], "on one worker": []}
        for _ in range(2 * options.repeats):
            loop = clock(lambda: bare(cheap, options.cells, small, **sizes))
            with dask.config.set(scheduler=None):
                alone = clock(lambda: sweep(folder, cheap, options.cells, small, **sizes))
                across = clock(on(1, lambda: sweep(folder, cheap, options.cells, small, **sizes)))
            for seconds, name in zip((alone, across), per_cell, strict=True):
                per_cell[name].append(1000 * (seconds - loop) / options.cells)
        for name, extra in per_cell.items():
            print(
                f"{options.cells} cells, {name}: {np.median(extra):.0f} ms ({min(extra):.0f} to {max(extra):.0f}) on "
                f"top of each for scheduler and store, an experiment takes {1000 * loop / options.cells:.0f} ms"
            )


if __name__ == "__main__":
    main()
