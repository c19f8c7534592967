"""EnKF-N with 40 members over 64 trajectories on two cores, against two processes of DAPPER.

python ci/bench/enkf_n.py
"""

from __future__ import annotations

import time

import dask
import peer

import xdan

TRAJECTORIES, CYCLES, MEMBERS = 64, 120, 40
PEER_CYCLES = 1500


def main() -> None:
    repeats = peer.arguments(__doc__).parse_args().repeats
    record = xdan.twin(xdan.Lorenz96(), cycles=CYCLES, trajectories=TRAJECTORIES, seed=0).compute()
    # Two blocks of trajectories: dask's threads run one on each core.
    halves = record.chunk(trajectory=TRAJECTORIES // 2, time=CYCLES)
    # The spin-up of the first ensemble is not cycling: a second, longer run tells what the cycles alone take.
    half = halves.isel(time=slice(0, CYCLES // 4))

    def seconds(ds: object) -> float:
        begin = time.perf_counter()
        with dask.config.set(scheduler="threads", num_workers=2):
            xdan.baseline(ds, "enkf-n", members=MEMBERS)["analysis"].compute()  # type: ignore[arg-type]
        return time.perf_counter() - begin

    seconds(half)
    ours, theirs = [], []
    for _ in range(repeats):
        cycles = TRAJECTORIES * (CYCLES - CYCLES // 4)
        ours.append(cycles / (seconds(halves) - seconds(half)))
        theirs.append(sum(peer.rates("enkf_n", MEMBERS, PEER_CYCLES, processes=2)))
    peer.report(f"EnKF-N, {MEMBERS} members", ours, theirs, "cycles / s", 4.0)


if __name__ == "__main__":
    main()
