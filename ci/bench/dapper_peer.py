"""DAPPER's side of the benchmarks; run by the other scripts with the interpreter of DAPPER's own environment."""

from __future__ import annotations

import json
import sys
import time

import dapper
import numpy as np
from dapper.da_methods import EnKF_N
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


def enkf_n(members: int, cycles: int) -> float:
    """Cycles per second of its EnKF-N, one trajectory."""
    HMM.tseq.T = cycles * 0.05
    truth, observations = HMM.simulate()
    method = EnKF_N(N=members)
    begin = time.perf_counter()
    method.assimilate(HMM, truth, observations, liveplots=False)
    return cycles / (time.perf_counter() - begin)


if __name__ == "__main__":
    name, *sizes = sys.argv[1:]
    dapper.set_seed(3000)
    rate = {"lorenz96": lorenz96, "enkf_n": enkf_n}[name](*map(int, sizes))
    print(json.dumps({"rate": rate}))
