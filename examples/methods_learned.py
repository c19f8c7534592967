"""Figures of learned parts of filters: the gain, the inflation and the localisation. Run by examples/methods.py.

Lorenz-96 with 40 sites, F = 8 and unit errors. By default the networks come from the folder `trained` beside this file.
With --minutes, each network is trained anew for at most so long. docs/learned-filters.md shows the results.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import holoviews as hv
import numpy as np
import pandas as pd
import torch
import xarray as xr

import xdan

from common import kept, markdown, save_pictures, slug, trained

BURN_IN, CYCLES, TRAJECTORIES, SEED = 200, 300, 32, 1
DENSE = xdan.TwinExperiment(xdan.Lorenz96(), interval=0.05)
SPARSE = xdan.TwinExperiment(xdan.Lorenz96(), interval=0.15, observe=xdan.Sites.every(4))
COUNTS = {"localisation": (7, 10, 20), "sparse": (10, 20, 40)}
TUNED: dict[str, dict[int, dict[str, float]]] = {
    "localisation": {
        7: {"radius": 7.5, "inflation": 1.04},
        10: {"radius": 7.5, "inflation": 1.02},
        20: {"radius": 7.5, "inflation": 1.02},
    },
    "sparse": {
        20: {"radius": 4.0, "inflation": 1.08},  # the start of the training
    },
}


@dataclass(frozen=True)
class Stage:
    """A part of a training: parameters of the network that it changes, and settings of `xdan.train`."""

    steps: int
    rate: float
    settings: Mapping[str, Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)


def gain(options: argparse.Namespace) -> None:
    """A constant gain: compared with Riccati's gain on a linear model, and with that of 3D-Var on Lorenz-96."""
    model, experiment, errors = _linear()
    network = xdan.ConstantGain("matrix", sites=len(model))
    settings = {"objective": "mse", "window": 6, "batch": 3000, "validate_every": 10**6}
    net = _learned("linear-gain", experiment, network, [Stage(2500, 2e-3, settings)], options)
    expected = _steady_gain(model, errors, experiment)
    seen = np.asarray(experiment.operator)
    matrix = net.module().covariance(torch.zeros(1, len(model)))[0][0].detach().numpy()
    learned = matrix @ seen.T / float(np.asarray(experiment.error_std)) ** 2
    distance = np.linalg.norm(learned - expected) / np.linalg.norm(expected)
    print(f"linear model: |K - K_Riccati| / |K_Riccati| = {distance:.2e}\n")
    settings = {"objective": "mse", "window": 8}
    stages = [Stage(3000, 5e-3, settings), Stage(1500, 1e-3, {**settings, "window": 12, "batch": 96})]
    net = _learned("lorenz96-constant-gain", DENSE, xdan.ConstantGain(), stages, options)
    test = _record(DENSE, options)
    rows = [
        _row("constant gain, learned", test, lambda: test.dan.cycle(net, progress=False), options),
        _row(
            "3D-Var, trained B",
            test,
            lambda: test.dan.baseline("3d-var", background="trained", progress=False),
            options,
        ),
    ]
    _print(rows, options)
    hv.extension("bokeh", logo=False)
    sites = np.arange(-(net.arrays["weights"].size // 2), net.arrays["weights"].size // 2 + 1)
    kernel = hv.Curve((sites, net.arrays["weights"]), "offset, sites", "gain").opts(width=700, show_grid=True)
    save_pictures(options.out / "gain", {"Gain of Lorenz-96 by the distance": kernel}, title="A constant gain")


def inflation(options: argparse.Namespace) -> None:
    """The inflation of an ETKF of 40 members: one number."""
    network = xdan.LearnedLETKF(40, "scalar", "none", first_inflation=1.02)
    settings = {"objective": "rmse", "window": 16, "batch": 8, "trajectories": 8, "validate_every": 10**6}
    net = _learned("lorenz96-inflation", DENSE, network, [Stage(120, 1e-3, settings)], options)
    print(f"learned inflation {np.exp(net.arrays['log_inflation']):.4f}")
    test = _record(DENSE, options)
    rows = [_row("ETKF 40, inflation learned", test, lambda: test.dan.cycle(net, progress=False), options)]
    for number in (1.005, 1.01, 1.02):
        run = lambda number=number: test.dan.baseline("etkf", inflation=number, progress=False)  # noqa: E731
        rows.append(_row(f"ETKF 40, inflation {number}", test, run, options))
    _print(rows, options)


def localisation(options: argparse.Namespace) -> None:
    """Inflation and localisation of an LETKF: one network for 7, 10 and 20 members."""
    objective = xdan.AcrossMembers(COUNTS["localisation"])
    settings = {"objective": objective, "window": 10, "batch": 8, "trajectories": 8, "validate_every": 10**6}
    network = xdan.LearnedLETKF(10, first_inflation=1.025, radius=7.5)
    longer = {**settings, "window": 12, "batch": 12, "trajectories": 12}
    stages = [Stage(120, 5e-4, settings), Stage(80, 1.5e-3, settings), Stage(160, 4e-4, longer)]
    _any_count("localisation", DENSE, _learned("lorenz96-letkf", DENSE, network, stages, options), options)


def sparse(options: argparse.Namespace) -> None:
    """Inflation and localisation at intervals of 0.15, every fourth site observed: one network for 10 to 40 members."""
    settings = {"objective": "rmse", "window": 8, "batch": 12, "trajectories": 12, "validate_every": 75}
    network = xdan.LearnedLETKF(20, first_inflation=1.08, radius=4.0, farthest=16.0, nodes=9)
    rounds = ((20, 150, 5e-3), (10, 100, 3e-3), (40, 100, 3e-3))
    stages = [Stage(steps, rate, settings, {"members": count}) for count, steps, rate in rounds]
    _any_count("sparse", SPARSE, _learned("lorenz96-sparse-letkf", SPARSE, network, stages, options), options)


def _any_count(figure: str, experiment: xdan.TwinExperiment, net: xdan.Network, options: argparse.Namespace) -> None:
    """Scores of one network and of the LETKF for several numbers of members, and the tapers."""
    test = _record(experiment, options)
    rows = []
    for count in COUNTS[figure]:
        one = net.with_parameters(members=count)
        rows.append(
            _row(f"{count} members, learned", test, lambda one=one: test.dan.cycle(one, progress=False), options)
        )
    for count, numbers in TUNED[figure].items():
        words = ", ".join(f"{name} {value:g}" for name, value in numbers.items())
        one = _tuned(count, net, **numbers)
        title = f"{count} members, {words}"
        rows.append(_row(title, test, lambda one=one: test.dan.cycle(one, progress=False), options))
    _print(rows, options)
    hv.extension("bokeh", logo=False)
    distance = torch.arange(0.0, 20.0, 0.25)
    taper = net.module().taper
    first = xdan.LearnedLETKF(**net.description["parameters"]).taper
    with torch.no_grad():
        curves = hv.Overlay(
            [
                hv.Curve((distance.numpy(), one(distance).numpy()), "distance, sites", "taper", label=label)
                for label, one in (("learned, without the correction by the state", taper), ("at the start", first))
            ]
        ).opts(width=700, show_grid=True)
    save_pictures(options.out / "taper", {"Taper by the distance": curves}, title="A learned localisation")


def _tuned(members: int, like: xdan.Network, radius: float, inflation: float) -> xdan.Network:
    """The LETKF with this radius and inflation, as a network before any training; it decomposes smaller matrices."""
    module = xdan.LearnedLETKF(members, "scalar", "fixed", first_inflation=inflation, radius=radius)
    module.normalise(*(like.arrays[name].tolist() for name in ("state_mean", "state_std", "error_std")))
    return xdan.Network.from_module(module, like.state_dims, {})


def _learned(
    name: str,
    experiment: xdan.TwinExperiment,
    network: xdan.AnalysisNetwork,
    stages: Sequence[Stage],
    options: argparse.Namespace,
) -> xdan.Network:
    """The network in the folder beside this file, or a new one, trained in several stages."""
    beside = Path(__file__).with_name("trained") / f"{name}.zarr"
    if beside.exists() and not options.minutes:
        return xdan.open_network(beside)
    net: Any = network
    for number, stage in enumerate(stages):
        if number:
            net = net.with_parameters(**stage.parameters)
        elif stage.parameters:
            net = type(network)(**{**network.config(), **stage.parameters})
        length = {"minutes": options.minutes / len(stages)} if options.minutes else {"steps": stage.steps}
        optimiser = xdan.Optimiser(adam_learning_rate=stage.rate)
        words = {**stage.settings, **length, "optimiser": optimiser, "seed": number, "progress": False}
        net = trained(options.out / f"{name}-{number}.zarr", experiment, net, **words)
        training = net.description["training"]
        print(f"{name}, stage {number}: {training['seconds']:.0f} s, validation {training['validation_rmse']:.4f}")
    return net


def _record(experiment: xdan.TwinExperiment, options: argparse.Namespace) -> xr.Dataset:
    """The test record."""
    cycles, seed = BURN_IN + (options.cycles or CYCLES), SEED if options.seed is None else options.seed
    return xdan.twin(experiment, cycles=cycles, trajectories=options.trajectories or TRAJECTORIES, seed=seed).compute()


def _row(title: str, test: xr.Dataset, run: Callable[[], xr.Dataset], options: argparse.Namespace) -> dict[str, Any]:
    """Scores of a run on the test record; they are saved."""
    settings = {"cycles": test.sizes["time"], "trajectories": test.sizes["trajectory"], "record": int(test.seed)}
    path = options.out / f"{slug(title)}-score.zarr"
    score = kept(path, lambda: test.dan.score(run(), burn_in=BURN_IN).drop_attrs().compute(), **settings)
    row = {
        "scheme": title,
        "RMSE": float(score.rmse),
        "standard error": float(score.rmse_standard_error),
        "spread": float(score.spread) if "spread" in score else float("nan"),
        "lost": int(score.diverged),
    }
    print(row, flush=True)
    return row


def _print(rows: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> None:
    text = markdown(pd.DataFrame(rows))
    (options.out / "table.md").write_text(text)
    cycles, lanes = options.cycles or CYCLES, options.trajectories or TRAJECTORIES
    print(f"\n{lanes} trajectories, {cycles} cycles after {BURN_IN}, seed {options.seed or SEED}\n\n{text}")


def _linear() -> tuple[np.ndarray, xdan.TwinExperiment, float]:
    """A linear model of 4 components, three of them observed, its experiment, and the deviation of its errors."""
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    model, errors = 0.95 * turned, 0.3
    matrix = torch.tensor(model)
    dynamics = xdan.CustomDynamics(step=lambda x: x @ matrix.to(x).T, state={"x": 4}, timestep=1.0, spin_up_time=0.0)
    seen = np.eye(4)[[0, 1, 3]]
    setting: dict[str, Any] = {"operator": seen, "error_std": 0.5, "model_error_std": errors}
    return model, xdan.TwinExperiment(dynamics, interval=1.0, **setting), errors


def _steady_gain(model: np.ndarray, errors: float, experiment: xdan.TwinExperiment) -> np.ndarray:
    """The Kalman filter's gain after many rounds of Riccati's recursion."""
    h, r = np.asarray(experiment.operator), float(np.asarray(experiment.error_std)) ** 2
    p = np.eye(len(model))
    for _ in range(2000):
        p = model @ p @ model.T + errors**2 * np.eye(len(model))
        k = p @ h.T @ np.linalg.inv(h @ p @ h.T + r * np.eye(len(h)))
        p = p - k @ h @ p
    return k


FIGURES = {"constant-gain": gain, "inflation": inflation, "localisation": localisation, "sparse": sparse}
