"""How far an analysis looks: the share of a filter's increment P_a zeta that comes from sites beyond a distance.

    python ci/bench/reach.py [--intervals 0.05 0.2] [--cycles 200]

Lorenz-96, 40 sites, F = 8, R = I, every site observed; P_a is that of the second-order Kalman filter. The share is

    sum_i (sum over |i - j| > w of P_ij zeta_j)^2 / sum_i (P zeta)_i^2

over all cycles after half of them, for each w. A residual network of b blocks of s convolutions with kernel f reaches
(f // 2) (b s + 1) sites to each side in one analysis: 14 by default (kernel 5, 6 blocks), 6 with kernel 3 and 5 blocks.
"""

from __future__ import annotations

import argparse

import torch

import xdan
from xdan.core.methods import method_by_name
from xdan.core.methods.record import Record
from xdan.core.observing import ObservingSystem

SITES, TRAJECTORIES, SEED = 40, 16, 1
FACTORS = {0.05: 8.0, 0.2: 2.0}  # c2 of each interval
WIDTHS = (1, 2, 3, 5, 7, 9, 12, 14)


def shares(interval: float, cycles: int) -> list[float]:
    """The share beyond each width."""
    model = xdan.Lorenz96(SITES)
    experiment = xdan.TwinExperiment(model, interval=interval)
    ds = xdan.twin(experiment, cycles=cycles, trajectories=TRAJECTORIES, seed=SEED).compute()
    observation = torch.tensor(ds.observation.values)
    steps, observing = model.steps_in(interval), ObservingSystem(std=torch.ones(()))
    record = Record(model, observing, observation, [0] + [steps] * (cycles - 1), torch.arange(TRAJECTORIES), SEED, None)
    method = method_by_name("second-order-kalman", c2=FACTORS.get(interval, 2.0)).prepare(record)
    state = method.start(record)
    everything = torch.ones_like(observation[:, 0], dtype=torch.bool)
    apart = (torch.arange(SITES)[:, None] - torch.arange(SITES)).abs()
    apart = torch.minimum(apart, SITES - apart)
    beyond, whole = torch.zeros(len(WIDTHS)), torch.zeros(())
    for k in range(cycles):
        if k:
            state = method.forecast(state, model, steps)
        innovation = observation[:, k] - state["x"]
        state = method.analyse(state, observation[:, k], everything, observing)
        if k >= cycles // 2:
            parts = [torch.where(apart > width, state["covariance"], 0.0) for width in (-1, *WIDTHS)]
            squares = torch.stack([(part @ innovation[..., None]).square().sum() for part in parts])
            whole, beyond = whole + squares[0], beyond + squares[1:]
    return [float(value) for value in beyond / whole]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--intervals", type=float, nargs="*", default=[0.05, 0.2])
    parser.add_argument("--cycles", type=int, default=200)
    options = parser.parse_args()
    print("| interval | " + " | ".join(f"beyond {width}" for width in WIDTHS) + " |")
    print("|---" * (len(WIDTHS) + 1) + "|")
    for interval in options.intervals:
        row = " | ".join(f"{100 * share:.2g} %" for share in shares(interval, options.cycles))
        print(f"| {interval:g} | {row} |", flush=True)


if __name__ == "__main__":
    main()
