"""The effect of each guard of training if trajectories are easily lost: with long intervals and strong forcing.

python ci/bench/guards.py [--steps 800]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from torch import Tensor

import xdan
from xdan.core.learning import objectives, rollout, trainer

WORLDS: dict[str, tuple[xdan.Dynamics, float]] = {
    "interval 0.05": (xdan.Lorenz96(), 0.05),
    "interval 1.00": (xdan.Lorenz96(), 1.0),
    "interval 0.20, F = 16": (xdan.Lorenz96(forcing=16.0, timestep=0.025), 0.2),
}
WITHOUT = ("nothing", "clipping", "bound through cycles", "restarts", "return to the best", "alpha", "all of these")


def only_broken(method: Any, state: Any, *_: Any) -> Tensor:
    """Trajectories that are not finite any more; a training cannot learn from these."""
    return ~method.mean(state).detach().isfinite().all(1)


@contextmanager
def without(guard: str) -> Iterator[float]:
    """Switch a guard of training off; return the clipping to pass."""
    everything = guard == "all of these"
    patches = []
    if guard == "bound through cycles" or everything:
        patches.append(patch.object(objectives, "_CAP", float("inf")))
    if guard == "restarts" or everything:
        patches.append(patch.object(rollout, "_is_lost", only_broken))
    if guard == "return to the best" or everything:
        patches.append(patch.object(trainer, "_WORSE", float("inf")))
    for each in patches:
        each.start()
    try:
        yield 1e9 if guard == "clipping" or everything else 2.0
    finally:
        for each in patches:
            each.stop()


@xdan.register_network
class WithoutAlpha(xdan.ResidualCNN):
    """The update of Eq. 2 with alpha = 0, which is not trained."""

    name = "residual-cnn-without-alpha"

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        del self.relative_alpha
        self.register_buffer("relative_alpha", torch.tensor(0.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800, help="of each training")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = []
    for world, (model, interval) in WORLDS.items():
        for guard in WITHOUT:
            network = (WithoutAlpha if guard in ("alpha", "all of these") else xdan.ResidualCNN)()
            with without(guard) as clip:
                try:
                    net = xdan.train(
                        xdan.TwinExperiment(model, interval=interval), network, steps=options.steps, processes=1,
                        optimiser=xdan.Optimiser(clip=clip), validate_every=100, seed=options.seed, progress=False,
                    )  # fmt: skip
                except RuntimeError as error:
                    result = {"best": float("nan"), "note": str(error).split(":")[0]}
                else:
                    history = net.history
                    result = {
                        "best": net.description["training"]["validation_rmse"],
                        "last": float(history.validation_rmse[-1]),
                        "restarts": int(history.restarts.sum()),
                        "returns": int(history.rewinds[-1]),
                        "minutes": float(history.seconds[-1]) / 60,
                    }
            rows.append({"world": world, "without": guard, **result})
            print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1), flush=True)


if __name__ == "__main__":
    main()
