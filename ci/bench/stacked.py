"""Trainings that differ only in their seed: all of them stacked under `torch.vmap`, against one after another.

    python ci/bench/stacked.py [--networks 8] [--threads 1]

One thread by default, as in a worker of a sweep, where the other cores run other trainings. Three ways to compute the
gradient of each network, without optimisers: stacked weights and plain autograd; plain autograd without stacking; and
the derivative of xdan's trainer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

import xdan
from xdan.core.learning import objective_by_name
from xdan.core.learning.gradient import OneProcess
from xdan.core.learning.online_twin import EndlessTwin
from xdan.core.networks import ResidualCNN
from xdan.core.observing import ObservingSystem, Sites

WINDOW = 12
MODEL, ERROR = xdan.Lorenz96(), ObservingSystem(torch.tensor(1.0))


def networks(count: int, filters: int) -> list[ResidualCNN]:
    """`count` networks with different weights."""
    nets = []
    for seed in range(count):
        torch.manual_seed(seed)
        net = ResidualCNN(filters=filters)
        net.normalise(2.3, 3.6, 1.0)
        nets.append(net)
    return nets


def window_loss(analyse: Callable[[Tensor, Tensor], Tensor], x: Tensor, truth: Tensor) -> Tensor:
    """Loss through a window; states of any leading dims."""
    loss = torch.zeros(())
    for _ in range(WINDOW):
        x = analyse(x, truth + torch.randn_like(truth) - x)
        loss = loss + ((x - truth) ** 2).mean(-1).sqrt().sum()
        with torch.no_grad():
            truth = MODEL.advance(truth.flatten(0, -2), 1).view_as(truth)
        x = MODEL.advance(x.flatten(0, -2), 1).view_as(x)
    return loss


def stacked(nets: list[ResidualCNN], batch: int) -> Callable[[], None]:
    """All networks in one graph."""
    for net in nets:
        net.eval()  # the hand-written derivative of training knows no stacks
    weights, buffers = stack_module_state(nets)  # type: ignore[arg-type]
    forward = vmap(lambda w, b, x, z: functional_call(nets[0], (w, b), (x, z))[0])
    truth = MODEL.climatology(torch.arange(len(nets) * batch), 0)[:, 0].unflatten(0, (len(nets), batch))

    def step() -> None:
        loss = window_loss(lambda x, z: forward(weights, buffers, x, z), truth + torch.randn_like(truth), truth)
        torch.autograd.grad(loss, list(weights.values()))

    return step


def one_by_one(nets: list[ResidualCNN], batch: int) -> Callable[[], None]:
    """A graph for each network."""
    truth = MODEL.climatology(torch.arange(batch), 0)[:, 0]

    def step() -> None:
        for net in nets:
            net.eval()
            loss = window_loss(lambda x, z, net=net: net(x, z)[0], truth + torch.randn_like(truth), truth)
            torch.autograd.grad(loss, list(net.parameters()))

    return step


def hand_written(nets: list[ResidualCNN], batch: int) -> Callable[[], None]:
    """The hand-written derivative, network by network."""
    steps = []
    for seed, net in enumerate(nets):
        source = EndlessTwin(
            MODEL,
            Sites.all(),
            ERROR,
            steps=1,
            trajectories=batch,
            batch=batch,
            cycles=WINDOW,
            seed=seed,
            like=torch.zeros(()),
        )
        steps.append((source.window(0), OneProcess(net.train(), MODEL, ERROR, objective_by_name("rmse"))))

    def step() -> None:
        for window, gradient in steps:
            gradient(window, None)

    return step


def rate(step: Callable[[], None], seconds: float) -> float:
    """Steps per second."""
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds or not count:
        step()
        count += 1
    return count / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.networks} networks, {options.threads} threads, window of {WINDOW}, {options.repeats} repeats")
    for filters, batch in ((4, 4), (8, 8), (24, 8), (24, 24)):
        three = (stacked, one_by_one, hand_written)
        ways = {way.__name__: way(networks(options.networks, filters), batch) for way in three}
        for step in ways.values():
            step()
        rates = [{name: rate(step, options.seconds) for name, step in ways.items()} for _ in range(options.repeats)]
        comparisons = []
        for other in ("one_by_one", "hand_written"):
            ratios = sorted(each["stacked"] / each[other] for each in rates)
            comparisons.append(
                f"{ratios[len(ratios) // 2]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) times {other.replace('_', ' ')}"
            )
        print(f"{filters} filters, batches of {batch}: stacked {' and '.join(comparisons)}", flush=True)


if __name__ == "__main__":
    main()
