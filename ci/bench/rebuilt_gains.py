"""Smoothness of a rebuilt covariance: its derivative by one site of the forecast, and finite differences.

python ci/bench/rebuilt_gains.py [--states 8]
"""

from __future__ import annotations

import argparse
from typing import cast

import torch
from torch import Tensor

import xdan
from xdan.core.guided_analysis import FilterCovariance
from xdan.core.methods import DataAssimilationNetwork
from xdan.core.observing import ObservingSystem

SITES, SITE = 40, 20


def size(matrices: Tensor) -> float:
    """Median over states of the root mean square."""
    return float(matrices.square().mean((1, 2)).sqrt().median())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=8)
    options = parser.parse_args()
    model, one = xdan.Lorenz96(SITES), torch.ones((), dtype=torch.float64)
    x = model.climatology(range(options.states), 3, like=one)[:, 0]
    observing, observed = ObservingSystem(std=one), torch.ones(x.shape, dtype=torch.bool)
    direction = torch.eye(SITES, dtype=torch.float64)[SITE]
    single = xdan.open_network("lorenz96-single")
    print("past  derivative  over +-0.01   +-0.1     +-1")
    for past in (4, 8, 12, 16, 20, 28, 36):
        method = single.with_parameters(past=past).method(torch.float64).bound(model)

        def rebuilt(at: Tensor, method: DataAssimilationNetwork = method) -> FilterCovariance:
            return cast(FilterCovariance, method.covariance_at(at, None, observed, observing, 1))

        sizes = [size(rebuilt(x).along(direction))]
        for step in (0.01, 0.1, 1.0):
            high, low = (rebuilt(x + sign * step * direction).matrices() for sign in (1, -1))
            sizes.append(size((high - low) / (2 * step)))
        print(f"{past:4d}  " + "  ".join(f"{value:9.5f}" for value in sizes))


if __name__ == "__main__":
    main()
