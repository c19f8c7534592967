"""Networks with a wrong forecast model: how much of its error do they correct, and do they need the truth for this?

Lorenz-96 with 40 sites, all observed every 0.05 with unit errors. In "forcing" the truth has F = 8 and the forecast
model has F = 8.5: a bias. In "noise" the truth has errors N(0, 0.1 I) in every interval, and the model has none.

Networks are trained through cycles of the wrong model, against the truth ("mse"), or on observations alone
("forecast", the misfit of each forecast to the next observations). By default the networks come from the folder
`trained` beside this file. A GPU trained them in 5.2 minutes each (3.4 minutes for networks that correct the model).
With --minutes, each network is trained anew for so long.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import holoviews as hv
import pandas as pd
import torch
import xarray as xr

import xdan

from common import kept, markdown, save_pictures, slug, trained

TITLES = {"forcing": "Truth F = 8, model F = 8.5", "noise": "Truth with errors N(0, 0.1 I) in every interval"}
BURN_IN, CYCLES, TRAJECTORIES = 200, 500, 16
MODEL_ERRORS = (0.05, 0.1, 0.15, 0.2, 0.3)  # standard deviations in Q that are tried against a bias
DECAYED = xdan.Optimiser(learning_rate=0.008, adam_learning_rate=0.0016, weight_decay=0.1)
EXPERIMENTS = {
    "forcing": xdan.TwinExperiment(xdan.Lorenz96(forcing=8.5), truth_dynamics=xdan.Lorenz96()),
    "noise": xdan.TwinExperiment(xdan.Lorenz96(), model_error_std=0.1**0.5),
}


@dataclass(frozen=True)
class Trained:
    """A network of a table.

    Attributes
    ----------
    name : str
        Name of its store.
    experiment : TwinExperiment
    network : AnalysisNetwork
    objective : str
    """

    name: str
    experiment: xdan.TwinExperiment
    network: xdan.AnalysisNetwork
    objective: str

    def training(self) -> dict[str, Any]:
        """Further settings of its training."""
        window = 12 if self.network.guides else 16
        return {"objective": self.objective, "window": window, "batch": 64, "optimiser": DECAYED, "seed": 11}


def plain() -> xdan.AnalysisNetwork:
    """A network of a single forecast, with memory."""
    return xdan.ResidualCNN(filters=40, blocks=5, kernel=5, memory=16)


def correcting() -> xdan.AnalysisNetwork:
    """The network of `plain`, with a learned constant that is added to the model's tendency."""
    sizes = {"filters": 40, "blocks": 5, "kernel": 5, "memory": 16}
    return xdan.CorrectingCNN(**sizes, correction_kernel=1, correction_degree=0)


def beside_filter() -> xdan.AnalysisNetwork:
    """A network beside a Kalman filter of second order."""
    return xdan.KalmanCNN(filters=32, blocks=4, kernel=5, memory=8, diagonals=9, c2=5.0)


NETWORKS: dict[str, dict[str, Trained]] = {
    "forcing": {
        "network, truth known": Trained("lorenz96-wrong-memory", EXPERIMENTS["forcing"], plain(), "mse"),
        "network, observations alone": Trained("lorenz96-wrong-observed", EXPERIMENTS["forcing"], plain(), "forecast"),
        "correcting network, truth known": Trained(
            "lorenz96-wrong-correcting", EXPERIMENTS["forcing"], correcting(), "mse"
        ),
        "correcting network, observations alone": Trained(
            "lorenz96-wrong-correcting-observed", EXPERIMENTS["forcing"], correcting(), "forecast"
        ),
        "network beside a filter, truth known": Trained(
            "lorenz96-wrong-kalman", EXPERIMENTS["forcing"], beside_filter(), "mse"
        ),
    },
    "noise": {
        "network, truth known": Trained("lorenz96-noisy-memory", EXPERIMENTS["noise"], plain(), "mse"),
        "network, observations alone": Trained("lorenz96-noisy-observed", EXPERIMENTS["noise"], plain(), "forecast"),
        "network beside a filter with Q, truth known": Trained(
            "lorenz96-noisy-kalman", EXPERIMENTS["noise"], beside_filter(), "mse"
        ),
    },
}
TUNED = {"members": 40, "inflation": "tune"}
EXTENDED = {"inflation": "tune"}
WEAK = {"window": 3, "scale": "tune", "candidates": {"scale": [0.005, 0.01, 0.02, 0.04]}}


def forcing(options: argparse.Namespace) -> None:
    """A model whose forcing is not that of the truth."""
    test = _record("forcing", options)
    # The record names the model of its truth. These runs use that model.
    right = {"dynamics": xdan.Lorenz96()}
    schemes: dict[str, Callable[[], xr.Dataset]] = {
        "EnKF-N 40, the true model": lambda: test.dan.baseline("enkf-n", members=40, **right, progress=False),
        "EnKF-N 40": lambda: test.dan.baseline("enkf-n", members=40, progress=False),
        "ETKF 40, inflation tuned": lambda: test.dan.baseline("etkf", **TUNED, progress=False),
        "ETKF 40 with Q, chosen by innovations": lambda: _with_best_q(test, "etkf", members=40),
        "second-order Kalman filter, c2 = 8": lambda: test.dan.baseline("second-order-kalman", c2=8.0, progress=False),
        "second-order Kalman filter with Q, chosen by innovations": lambda: _with_best_q(
            test, "second-order-kalman", c2=8.0
        ),
    }
    for title in ("correcting network, truth known", "correcting network, observations alone"):
        model = network(NETWORKS["forcing"][title], options).corrected(EXPERIMENTS["forcing"].dynamics)
        print(f"{title}: adds {float(model.correction(torch.zeros(40))[0]):.3f} to the tendency, -0.5 is missing")
        schemes[f"EnKF-N 40, the model of the {title}"] = lambda model=model: test.dan.baseline(
            "enkf-n", members=40, dynamics=model, progress=False
        )
    table(test, "forcing", schemes, options)


def noise(options: argparse.Namespace) -> None:
    """A truth with random model errors, with a known and an unknown Q."""
    test = _record("noise", options)
    perfect = {"model_error": 0.0}
    schemes: dict[str, Callable[[], xr.Dataset]] = {}
    for title, name, parameters in (
        ("EnKF-N 40", "enkf-n", {"members": 40}),
        ("ETKF 40, inflation tuned", "etkf", TUNED),
        ("weak-constraint 4D-Var", "weak-4d-var", WEAK),
        ("extended Kalman filter", "extended-kalman", EXTENDED),
    ):
        schemes[f"{title}, no Q"] = lambda name=name, parameters=parameters: test.dan.baseline(
            name, **parameters, **perfect, progress=False
        )
        schemes[f"{title}, Q"] = lambda name=name, parameters=parameters: test.dan.baseline(
            name, **parameters, progress=False
        )
        if name == "enkf-n":
            schemes[f"{title}, Q by sqrt-core"] = lambda: test.dan.baseline(
                "enkf-n", members=40, model_noise="sqrt-core", progress=False
            )
    table(test, "noise", schemes, options)


def table(
    test: xr.Dataset, name: str, schemes: Mapping[str, Callable[[], xr.Dataset]], options: argparse.Namespace
) -> None:
    """Print and save the RMSE of schemes and networks on a record."""
    hv.extension("bokeh", logo=False)
    networks = NETWORKS[name]
    runs: dict[str, Callable[[], xr.Dataset]] = dict(schemes)
    for title, one in networks.items():
        net = network(one, options)
        runs[title] = lambda net=net: test.dan.cycle(net, progress=False)
    settings = {"cycles": test.sizes["time"], "trajectories": test.sizes["trajectory"], "record": int(test.seed)}
    rows = []
    for title, make in runs.items():
        path = options.out / f"{slug(title)}.zarr"
        run = kept(path, lambda make=make: _small(make()), **settings)
        score = test.dan.score(run, burn_in=BURN_IN).compute()
        innovation = (test.observation - run.forecast).isel(time=slice(BURN_IN, None)).mean(("time", "x"))
        rows.append(
            {
                "scheme": title,
                "RMSE": float(score.rmse),
                "standard error": float(score.rmse_standard_error),
                "mean innovation": float(innovation.mean()),
                "its error": float(innovation.std(ddof=1) / innovation.size**0.5),
                "lost": int(score.diverged),
                "Q": run.attrs.get("chosen_q", ""),
            }
        )
        print(rows[-1], flush=True)
    text = markdown(pd.DataFrame(rows))
    (options.out / "table.md").write_text(text)
    title = f"{TITLES[name]}; {settings['trajectories']} trajectories, {settings['cycles'] - BURN_IN} cycles"
    print(f"\n{title}\n\n{text}")
    save_pictures(options.out / "rmse", {title: picture(pd.DataFrame(rows))}, title="Networks where the model is wrong")


def picture(table: pd.DataFrame) -> hv.Overlay:
    """RMSE of each scheme, with bars of three standard errors; schemes that lose the truth are left out."""
    whole = table[(table["lost"] == 0) & (table["RMSE"] < 1.0)][::-1]
    colours = ["#999999" if "EnKF" in scheme or "network" not in scheme else "#0072B2" for scheme in whole["scheme"]]
    bars = hv.Bars((whole["scheme"], whole["RMSE"], colours), "scheme", ["RMSE", "colour"])
    bars = bars.opts(color="colour", invert_axes=True, line_color=None)
    errors = hv.ErrorBars((whole["scheme"], whole["RMSE"], 3 * whole["standard error"])).opts(invert_axes=True)
    sizes = {"width": 1000, "height": 28 * len(whole) + 90, "show_grid": True}
    return (bars * errors).opts(xlabel="", ylabel="analysis RMSE", **sizes)


def network(one: Trained, options: argparse.Namespace) -> xdan.Network:
    """The network in the folder beside this file, or, with --minutes, a new one."""
    if not options.minutes:
        return xdan.open_network(Path(__file__).with_name("trained") / f"{one.name}.zarr")
    settings = {**one.training(), "minutes": options.minutes}
    return trained(options.out / f"{one.name}.zarr", one.experiment, one.network, **settings)


def _small(run: xr.Dataset) -> xr.Dataset:
    """The part of a run that scores and innovations need."""
    parts = ["forecast", "analysis", "diverged", "innovation_ratio"]
    del run.attrs["xdan_whole"]  # other variables are left out
    return run[parts]


def _record(name: str, options: argparse.Namespace) -> xr.Dataset:
    """The test record."""
    cycles, seed = BURN_IN + (options.cycles or CYCLES), 1 if options.seed is None else options.seed
    sizes = {"cycles": cycles, "trajectories": options.trajectories or TRAJECTORIES, "seed": seed}
    return xdan.twin(EXPERIMENTS[name], **sizes).compute()


def _with_best_q(test: xr.Dataset, method: str, **parameters: Any) -> xr.Dataset:
    """The run whose Q = q^2 I has the smallest mean square innovation; this choice needs no truth."""
    squares, runs = {}, {}
    for q in MODEL_ERRORS:
        runs[q] = test.dan.baseline(method, **parameters, model_error=q, progress=False)
        innovation = (test.observation - runs[q].forecast).isel(time=slice(BURN_IN, None))
        squares[q] = float((innovation**2).mean())
    best = min(squares, key=lambda q: squares[q])
    return runs[best].assign_attrs(chosen_q=f"{best:g}^2 I")


FIGURES = {"forcing": forcing, "noise": noise}
