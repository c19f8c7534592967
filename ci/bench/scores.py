"""Memory and time of the score of a run with members, beyond its input, in memory and in chunks.

    python ci/bench/scores.py [--members 40]

Each row is a separate process, on Linux, which makes the record and the run and scores them. Memory is the largest
resident size while scoring, minus the size before. Seconds are processor time of all cores, so that other programs
matter little; for chunks they include the reading of stores.

The second table has the CRPS alone, of these members: sorted, as in xdan; as the mean over all pairs of members, in
pieces that stay in a core's cache; and as this mean at once, as xskillscore and properscoring compute it without numba,
trajectory by trajectory because the whole does not fit. The last two use a part of the trajectories, and their seconds
are scaled to all. The limit is one reading of the members.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

import xdan
from xdan.core.ensemble_scores import members_crps

TRAJECTORIES, CYCLES, SITES = 64, 400, 40
CHUNKS = {"trajectory": 16, "time": 100}


def record_and_run(members: int) -> tuple[xr.Dataset, xr.Dataset]:
    """A twin of noise and an ensemble about its truth, in single precision."""
    rng = np.random.default_rng(0)
    dims, shape = ("trajectory", "time", "x"), (TRAJECTORIES, CYCLES, SITES)

    def noise(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    truth = noise(*shape)
    ds = xr.Dataset(
        {"truth": (dims, truth), "observation": (dims, truth + noise(*shape)), "observation_error": 1.0},
        {"trajectory": np.arange(TRAJECTORIES), "time": 0.05 * np.arange(CYCLES), "x": np.arange(SITES)},
        xdan.twin(xdan.Lorenz96(sites=SITES), cycles=1).attrs,
    )
    ensemble = noise(TRAJECTORIES, CYCLES, members, SITES)
    ensemble += truth[:, :, None]
    mean = ensemble.mean(2)
    run = xr.Dataset(
        {
            "forecast": (dims, mean),
            "analysis": (dims, mean),
            "members": (("trajectory", "time", "member", "x"), ensemble),
        }
    )
    return ds, run.assign_coords(ds.coords)


def resident(what: str) -> float:
    """Memory of this process in MiB: VmRSS is the resident size now, VmHWM the largest since `clear_refs`."""
    return (
        int(next(line for line in Path("/proc/self/status").read_text().splitlines() if what in line).split()[1])
        / 2**10
    )


VERBS: dict[str, Callable[[xr.Dataset, xr.Dataset], xr.Dataset | xr.DataArray]] = {
    "score": xdan.score,
    "score with energy": lambda ds, run: xdan.score(ds, run, also=["energy"]),
    "rank_histogram": xdan.rank_histogram,
    "reliability": lambda ds, run: xdan.reliability(ds, run, threshold=1.0),
    "spread_error": lambda ds, run: xdan.spread_error(ds, run.assign(spread=abs(run.analysis) + 0.1)),
}


def of_pairs(truth: np.ndarray, members: np.ndarray) -> np.ndarray:
    """The fair CRPS by its formula: a mean over all pairs of members."""
    count = members.shape[-1]
    apart = np.abs(members[..., :, None] - members[..., None, :]).sum((-1, -2))
    return np.abs(members - truth[..., None]).mean(-1) - apart / (2 * count * (count - 1))


def of_pairs_at_once(truth: np.ndarray, members: np.ndarray) -> np.ndarray:
    """The CRPS as properscoring computes it, which checks for NaN, too."""
    apart = np.expand_dims(members, -1) - np.expand_dims(members, -2)
    score: np.ndarray = np.nanmean(np.abs(members - truth[..., None]), -1)
    return score - 0.5 * np.nanmean(np.abs(apart), axis=(-2, -1))


def kernels(members: int) -> dict[str, float]:
    """Seconds of the CRPS of all members in several ways, and of reading them."""
    ds, run = record_and_run(members)
    truth, ensemble = ds["truth"].values, run["members"].transpose(..., "member").values
    rows, few = max(1, 2**17 // (SITES * members**2)), 4

    def in_pieces(x: np.ndarray, all_members: np.ndarray) -> None:
        for row in range(len(x)):
            for start in range(0, CYCLES, rows):
                piece = row, slice(start, start + rows)
                of_pairs(x[piece], np.ascontiguousarray(all_members[piece]))

    def by_trajectory(x: np.ndarray, all_members: np.ndarray) -> None:
        for row in range(len(x)):
            of_pairs_at_once(x[row], np.ascontiguousarray(all_members[row]))

    ways = {
        "members read once": (lambda x, all_members: all_members.sum(), TRAJECTORIES),
        "sorted": (members_crps, TRAJECTORIES),
        "all pairs, in pieces": (in_pieces, few),
        "all pairs, at once": (by_trajectory, few),
    }
    seconds = {}
    for name, (way, count) in ways.items():
        times = []
        for _ in range(3):
            begin = time.process_time()
            way(truth[:count], ensemble[:count])
            times.append((time.process_time() - begin) * TRAJECTORIES / count)
        seconds[name] = min(times)
    return seconds


def measure(members: int, where: str, what: str) -> dict[str, float]:
    """Peak memory and time of one score."""
    ds, run = record_and_run(members)
    folder = Path(tempfile.mkdtemp())
    if where != "memory":
        ds.chunk(CHUNKS).to_zarr(folder / "ds.zarr", consolidated=False)
        run.chunk(CHUNKS).to_zarr(folder / "run.zarr", consolidated=False)
        ds, run = (xr.open_zarr(folder / name, consolidated=False) for name in ("ds.zarr", "run.zarr"))
    Path("/proc/self/clear_refs").write_text("5")
    before, begin = resident("VmRSS"), time.process_time()
    VERBS[what](ds, run).load()
    seconds = time.process_time() - begin
    return {"seconds": seconds, "MiB beyond the input": resident("VmHWM") - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=40)
    parser.add_argument("--only", nargs=2, metavar=("WHERE", "WHAT"), help="one row, in this process, as JSON")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.members, *options.only)))
        return
    size = 4 * TRAJECTORIES * CYCLES * SITES * options.members / 2**20
    print(f"{TRAJECTORIES} x {CYCLES} cycles, {SITES} sites, {options.members} members in float32: {size:.0f} MiB")
    rows = {}
    for what in VERBS:
        for where in ("memory", "chunks"):
            command = [sys.executable, __file__, "--members", str(options.members), "--only", where, what]
            rows[f"{what}, in {where}"] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    print(pd.DataFrame(rows).T.round(2).to_string())
    seconds = pd.Series(kernels(options.members), name="seconds").to_frame()
    seconds["times the sorted one"] = seconds["seconds"] / seconds.loc["sorted", "seconds"]
    print(f"\nCRPS of these members\n{seconds.round(2).to_string()}")


if __name__ == "__main__":
    main()
