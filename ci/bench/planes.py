"""The default network on a grid of two dims, against a plain torch Conv2d stack of equal sizes, in one run.

python ci/bench/planes.py [--rows 64 --columns 128 --fields 2 --trajectories 16]

A cycle is a step of a damped model, the projected innovation and the analysis. A training step is the gradient of a
window of two analyses. The stack has the network's convolutions with padding by zeros, its gates and its skips, and
nothing else, channels first and channels last. The exit status is 1 if a cycle takes over 1.3 times the faster stack.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import xdan
from xdan.core.learning.objectives import objective_by_name
from xdan.core.learning.rollout import Window
from xdan.core.methods import DataAssimilationNetwork, Record, run
from xdan.core.observing import ObservingSystem
from xdan.core.spaces import Field, Sphere, StateSpace

LIMIT, REPEATS, CYCLES = 1.3, 5, 3


class Stack(nn.Module):
    """Convolutions, gates and skips as in `xdan.ResidualCNN()`."""

    def __init__(self, fields: int, filters: int = 24, blocks: int = 6, kernel: int = 5) -> None:
        super().__init__()
        around = {"kernel_size": kernel, "padding": kernel // 2}
        self.first, self.last = nn.Conv2d(2 * fields, filters, **around), nn.Conv2d(filters, fields, **around)
        self.hidden = nn.ModuleList(nn.Conv2d(filters, 2 * filters, **around) for _ in range(blocks))

    def forward(self, features: Tensor) -> Tensor:
        """From (B, 2 fields, rows, columns) to (B, fields, rows, columns)."""
        h = self.first(features)
        for layer in self.hidden:
            one, other = layer(h).chunk(2, 1)
            h = h + one * other.tanh()
        answer: Tensor = self.last(h)
        return answer


def fastest(functions: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Shortest time of each function, in seconds. The functions are called in turns."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(REPEATS):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - begin)
    return {name: min(each) for name, each in times.items()}


def main() -> int:
    """Print the times; return 1 if the limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 64), ("columns", 128), ("fields", 2), ("trajectories", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    batch, fields, grid = options.trajectories, options.fields, Sphere(options.rows, options.columns)
    space = StateSpace([Field(f"f{k}", grid) for k in range(fields)])
    network = xdan.ResidualCNN(space=space)
    network.normalise([0.0] * fields, [1.0] * fields, [0.5] * fields)
    model = xdan.CustomDynamics(
        step=lambda state: {name: 0.99 * value for name, value in state.items()}, state=space, timestep=1.0
    )
    observing = ObservingSystem(std=torch.tensor(0.5))
    observation = torch.randn(batch, CYCLES + 1, space.size)
    record = Record(model, observing, observation, [0] + [1] * CYCLES, torch.arange(batch), 0, None)
    method = DataAssimilationNetwork(network)
    window = Window(torch.zeros(batch, 3, space.size), observation[:, :3], (1, 1, 1))
    objective, stack = objective_by_name("mse"), Stack(fields)
    shape = batch, 2 * fields, *grid.shape

    def cycle() -> None:
        network.eval()
        with torch.inference_mode():
            run(method, record)

    def train() -> None:
        network.train()
        objective.window_gradient(method, model, observing, window, None)

    def stacked(layout: torch.memory_format, gradient: bool) -> Callable[[], None]:
        features = torch.randn(shape).to(memory_format=layout)

        def call() -> None:
            stack.to(memory_format=layout)
            with torch.inference_mode(not gradient):
                for _ in range(2 if gradient else CYCLES):
                    loss = stack(features).square().mean()
                    if gradient:
                        loss.backward()

        return call

    layouts = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
    worst = 0.0
    for title, ours, gradient, count in (("a cycle", cycle, False, CYCLES), ("a training step", train, True, 2)):
        functions = {f"Conv2d stack, {name}": stacked(layout, gradient) for name, layout in layouts.items()}
        seconds = {name: each / count for name, each in fastest({"the network": ours, **functions}).items()}
        best = min(value for name, value in seconds.items() if name != "the network")
        for name, value in seconds.items():
            print(f"{title:16s} {name:28s} {1e3 * value:8.0f} ms  {value / best:5.2f}", flush=True)
        worst = max(worst, seconds["the network"] / best if not gradient else 0.0)
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
