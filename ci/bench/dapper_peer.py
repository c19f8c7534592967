"""DAPPER's part of the benchmarks. The other scripts run it with the interpreter of DAPPER's environment."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import dapper
import numpy as np
from dapper.da_methods import LETKF, EnKF, EnKF_N, iEnKS
from dapper.mods.Lorenz96 import step
from dapper.mods.Lorenz96.sakov2008 import HMM


def lorenz96(states: int, steps: int) -> float:
    """Steps x states per second of its Runge-Kutta 4."""
    x = 8.0 + np.random.default_rng(0).standard_normal((states, 40))
    for _ in range(50):
        x = step(x, np.nan, 0.05)
    begin = time.perf_counter()
    for _ in range(steps):
        x = step(x, np.nan, 0.05)
    return states * steps / (time.perf_counter() - begin)


METHODS: dict[str, Callable[[int], Any]] = {
    "enkf-n": lambda members: EnKF_N(N=members),
    "etkf": lambda members: EnKF("Sqrt", N=members, infl=1.01),
    # Its tolerance is on the mean square of the step.
    "ienkf-n": lambda members: iEnKS("Sqrt", N=members, Lag=1, nIter=10, wtol=1e-6, xN=1.0),
    "letkf": lambda members: LETKF(N=members, loc_rad=4, infl=1.02),
}


def cycling(name: str, members: int, cycles: int) -> float:
    """Cycles per second of one of its methods, one trajectory."""
    HMM.tseq.T = cycles * 0.05
    truth, observations = HMM.simulate()
    method = METHODS[name](members)
    begin = time.perf_counter()
    method.assimilate(HMM, truth, observations, liveplots=False)
    return cycles / (time.perf_counter() - begin)


def scores(folder: str, cycles: int, seeds: list[int]) -> dict[str, list[float]]:
    """Mean analysis RMSE of its methods after 100 cycles, for every record; truth and observations into the folder."""
    truths, records = [], []
    by_method: dict[str, list[float]] = {}
    HMM.tseq.T = cycles * 0.05
    for seed in seeds:
        dapper.set_seed(seed)
        truth, observations = HMM.simulate()
        truths.append(np.asarray([truth[k] for k in range(1, cycles + 1)]))
        records.append(np.asarray([observations[k] for k in range(cycles)]))
        for title, make in SCORED.items():
            method = make()
            method.assimilate(HMM, truth, observations, liveplots=False)
            by_method.setdefault(title, []).append(float(np.mean(method.stats.err.rms.a[100:])))
    np.savez(f"{folder}/records.npz", truth=np.array(truths), observation=np.array(records))
    return by_method


SCORED: dict[str, Callable[[], Any]] = {
    "ETKF, inflation 1.01": lambda: EnKF("Sqrt", N=40, infl=1.01),
    "EnKF-N": lambda: EnKF_N(N=40),
    "IEnKF-N": lambda: iEnKS("Sqrt", N=40, Lag=1, nIter=10, wtol=1e-6, xN=1.0),
    "IEnKS-N, lag 5": lambda: iEnKS("Sqrt", N=40, Lag=5, nIter=10, wtol=1e-6, xN=1.0),
    "IEnKS-N, lag 10": lambda: iEnKS("Sqrt", N=40, Lag=10, nIter=10, wtol=1e-6, xN=1.0),
}


if __name__ == "__main__":
    name, *sizes = sys.argv[1:]
    if name == "scores":
        folder, length, *labels = sizes
        print(json.dumps(scores(folder, int(length), [int(label) for label in labels])))
        sys.exit()
    dapper.set_seed(3000)
    numbers = [int(size) for size in sizes]
    rate = lorenz96(*numbers) if name == "lorenz96" else cycling(name, *numbers)
    print(json.dumps({"rate": rate}))
