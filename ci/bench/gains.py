"""Symmetry-averaged marginal gains: time for a state against the direct way, and error after a second of each way.

python ci/bench/gains.py [--sites 40 80 160 320] [--out gains]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import hvplot.pandas  # noqa: F401
import pandas as pd
import torch
from torch import Tensor
from torch.func import jacfwd, jacrev

import xdan
from xdan.core.networks import ResidualCNN
from xdan.core.sensitivity import Points, composite_marginal_gain, marginal_gain
from xdan.core.symmetry import symmetry_average

AT_ONCE = 16


def network() -> ResidualCNN:
    """Train the default architecture for two minutes; its derivatives are the most difficult ones."""
    return xdan.train(xdan.Lorenz96(), "residual-cnn", minutes=2, seed=0).module().requires_grad_(False)


def states(sites: int, count: int) -> Tensor:
    """Independent states of the attractor."""
    return xdan.Lorenz96(sites=sites).climatology(range(count), seed=3).flatten(0, 1)


def best(function: Callable[[], object], least: float = 1.0) -> float:
    """Shortest time of at least three runs, which take at least a second."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < least:
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
        if times[-1] > 30:
            break
    return min(times)


def plain(net: ResidualCNN, x: Tensor) -> Tensor:
    """Form the whole tensor of one state by torch.func, then average it over the ring."""

    def analysis(state: Tensor, zeta: Tensor) -> Tensor:
        answer: Tensor = net(state[None], zeta[None])[0][0]
        return answer

    chunk = max(1, 320 // len(x))  # more would not fit into memory on the larger rings
    gamma = jacfwd(jacrev(analysis, 1, chunk_size=chunk), 0)(x, torch.zeros_like(x))
    return symmetry_average(gamma, xdan.Group.ring(len(x)), len(x) // 2)


def cost(net: ResidualCNN, sizes: list[int]) -> pd.DataFrame:
    """Seconds for a state."""
    rows = []
    for sites in sizes:
        x = states(sites, AT_ONCE)
        with torch.no_grad():
            ours = best(lambda x=x, r=sites // 2: marginal_gain(net, Points.at_rest(x), r)) / AT_ONCE
            obvious = best(lambda x=x: plain(net, x[0]), least=0.0)
        rows.append({"sites": sites, "one site": ours, "whole tensor": obvious, "ratio": obvious / ours})
        print(
            f"{sites:4d} sites: {1e3 * ours:8.2f} ms a state, by the whole tensor {1e3 * obvious:10.1f} ms: "
            f"{obvious / ours:7.0f} times",
            flush=True,
        )
    return pd.DataFrame(rows)


def operations(net: ResidualCNN, sites: int) -> float:
    """Floating-point operations of the products of one state: value, x-direction, and two windows for each zeta_j."""
    total = 0.0
    for layer, weight in enumerate(net.weights):
        used = weight if layer < len(net.weights) - 1 else weight[:1]
        window = min(sites, 1 + 2 * (net.kernel // 2) * (layer + 1))
        total += 2.0 * used.numel() * (2 * sites + 2 * sites * window)
    return total


def peak(net: ResidualCNN, sites: int) -> float:
    """Operations a second of a product of the hidden layers' shape."""
    weight = net.weights[1]
    columns = torch.randn(weight.shape[1], sites * 2 * sites)
    return 2.0 * weight.numel() * columns.shape[1] / best(lambda: weight @ columns)


def roads(net: ResidualCNN, count: int) -> pd.DataFrame:
    """Variance of the mean for a second of computing, relative to exact derivatives at one site."""
    x, sites = states(40, count), 40
    r = sites // 2

    def one(part: Tensor) -> Tensor:
        return marginal_gain(net, Points.at_rest(part), r)

    def every(part: Tensor) -> Tensor:
        turned = [part.roll(r - site, 1) for site in range(sites)]
        return torch.stack([one(turn) for turn in turned]).mean(0)

    def composite(samples: int) -> Callable[[Tensor], Tensor]:
        def run(part: Tensor) -> Tensor:
            zeta = torch.randn(len(part), samples, sites)
            return composite_marginal_gain(net, Points.at_rest(part), zeta, r)

        return run

    named = {"exact, one site": one, "exact, all sites": every}
    named |= {f"regression, {n} samples": composite(n) for n in (48, 80, 160)}
    rows = []
    for name, road in named.items():
        few = x[: count // 8] if name == "exact, all sites" else x
        begin = time.perf_counter()
        estimates = torch.cat([road(part) for part in few.split(AT_ONCE)])
        seconds = (time.perf_counter() - begin) / len(few)
        variance = float(estimates.var(0).sum())
        rows.append({"road": name, "ms a state": 1e3 * seconds, "variance of a state": variance})
    table = pd.DataFrame(rows)
    price = table["ms a state"] * table["variance of a state"]
    table["seconds for the same error"] = price / price[0]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[40, 80, 160, 320])
    parser.add_argument("--states", type=int, default=320, help="of which each road's variance is taken")
    parser.add_argument("--out", type=Path, default=Path("gains"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    net = network()
    torch.manual_seed(0)
    table = cost(net, options.sites)
    with torch.no_grad():
        first = table.iloc[0]
        sites = int(first["sites"])
        done, possible = operations(net, sites) / first["one site"], peak(net, sites)
        print(
            f"products: {done / 1e9:.0f} of {possible / 1e9:.0f} GFLOP/s that a product of that shape reaches "
            f"({done / possible:.0%}), {torch.get_num_threads()} threads\n"
        )
        print(roads(net, options.states).to_string(index=False, float_format="{:.3g}".format))
    both = table.melt("sites", ["one site", "whole tensor"], "way", "seconds")
    plot = both.hvplot.line(
        "sites",
        "seconds",
        by="way",
        logx=True,
        logy=True,
        xlabel="sites",
        ylabel="seconds a state",
        width=760,
        height=420,
    ) * both.hvplot.scatter("sites", "seconds", by="way", size=40)
    xdan.save_page(options.out / "gains.html", {"Cost of a symmetry-averaged marginal gain": plot}, title="Gains")
    print(f"\npicture in {options.out}/gains.html")


if __name__ == "__main__":
    main()
