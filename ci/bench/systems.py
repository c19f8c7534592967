"""Classical methods and Lyapunov exponents of the systems beyond Lorenz-96, against known numbers.

    python ci/bench/systems.py [--only WORD ...] [--cycles 300] [--trajectories 8] [--out systems]

Each row is cycled once, for `--cycles` cycles after its burn-in on each trajectory, and saved in a Zarr store: a second
call computes only what is missing. With `--minutes`, networks are trained for so long each, and saved there, too. Known
numbers are those of DAPPER 1.7 for equal set-ups (mods/KS, LorenzUV/wilks05, Lorenz63/sakov2012), over some 10,000
cycles.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import xdan

SEED = 3
RING = xdan.KuramotoSivashinsky()
POINT = RING.length / RING.sites  # radii are known in grid points


@dataclass(frozen=True)
class System:
    """A model, and its observations."""

    title: str
    dynamics: xdan.Dynamics
    interval: float
    variance: float
    burn_in: int
    observed: int | None = None  # the first so many components; all by default
    dtype: str = "float32"

    def record(self, cycles: int, trajectories: int) -> xr.Dataset:
        size = math.prod(self.dynamics.shape)
        return xdan.twin(
            self.dynamics,
            interval=self.interval,
            cycles=self.burn_in + cycles,
            trajectories=trajectories,
            error_std=math.sqrt(self.variance),
            operator=None if self.observed is None else np.eye(self.observed, size),
            seed=SEED,
            dtype=self.dtype,
        ).compute()


SYSTEMS = {
    "ks": System("Kuramoto-Sivashinsky", RING, 1.0, 1.0, 150),
    "two-scale": System("two-scale Lorenz-96, U observed", xdan.TwoScaleLorenz96(), 0.05, 0.1, 200, observed=8),
    "lorenz63": System("Lorenz-63", xdan.Lorenz63(), 0.25, 2.0, 100, dtype="float64"),
}


@dataclass(frozen=True)
class Row:
    """A method on a system, and the known value of its RMSE, if there is one."""

    system: str
    title: str
    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    known: float | None = None

    @property
    def slug(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", f"{self.system} {self.title}".lower()).strip("-")


ROWS = [
    Row(
        "ks",
        "ETKF, 20 members, inflation 1.03, rotated",
        "etkf",
        {"members": 20, "inflation": 1.03, "rotate": True},
        0.115,
    ),
    Row(
        "ks",
        "LETKF, 16 members, 28 points, inflation 1.02",
        "letkf",
        {"members": 16, "radius": 51 / 1.82 * POINT, "inflation": 1.02},
        0.11,
    ),
    Row(
        "ks",
        "LETKF, 6 members, 13.7 points, inflation 1.06",
        "letkf",
        {"members": 6, "radius": 25 / 1.82 * POINT, "inflation": 1.06},
        0.14,
    ),
    Row("ks", "EnKF-N, 20 members", "enkf-n", {"members": 20}),
    Row("ks", "second-order Kalman filter, c2 = 4", "second-order-kalman", {"c2": 4.0}),
    Row("ks", "3D-Var, trained B", "3d-var", {"background": "trained"}),
    Row("ks", "climatology", "climatology"),
    Row("two-scale", "EnKF-N, 20 members", "enkf-n", {"members": 20}, 0.29),  # DAPPER's, run; its list says 0.27
    Row("two-scale", "3D-Var", "3d-var", {}, 0.39),
    Row("two-scale", "3D-Var, trained B", "3d-var", {"background": "trained"}),
    Row("two-scale", "climatology", "climatology", {}, 0.93),
    Row("lorenz63", "EnKF-N, 3 members", "enkf-n", {"members": 3}, 0.60),
    Row("lorenz63", "EnKF-N, 10 members, rotated", "enkf-n", {"members": 10, "rotate": True}, 0.54),
    Row(
        "lorenz63",
        "ETKF, 10 members, inflation 1.02, rotated",
        "etkf",
        {"members": 10, "inflation": 1.02, "rotate": True},
        0.60,
    ),
    Row(
        "lorenz63",
        "IEnKS, 10 members, lag 1, inflation 1.02",
        "ienks",
        {"members": 10, "lag": 1, "inflation": 1.02},
        0.31,
    ),
    Row(
        "lorenz63",
        "extended KF, inflation tuned",
        "extended-kalman",
        {"inflation": "tune", "candidates": {"inflation": [1.25, 1.5, 2.0, 3.0, 5.0]}},
        0.92,
    ),
    Row("lorenz63", "3D-Var", "3d-var", {}, 1.03),
    Row("lorenz63", "climatology", "climatology", {}, 7.6),
]


@dataclass(frozen=True)
class Trained:
    """A network for a system, and the RMSE that it should not exceed."""

    system: str
    title: str
    network: xdan.AnalysisNetwork
    most: float
    settings: dict[str, Any] = field(default_factory=dict)

    def compute(self, folder: Path, minutes: float, cycles: int, trajectories: int) -> xr.Dataset:
        """Train the network for some minutes, unless it exists, and score it on the system's record."""
        path = folder / f"{re.sub(r'[^a-z0-9]+', '-', f'{self.system} {self.title}'.lower())}.zarr"
        system, truth = SYSTEMS[self.system], record(self.system, cycles, trajectories)
        if not path.exists():
            experiment = xdan.TwinExperiment(system.dynamics, system.interval, error_std=math.sqrt(system.variance))
            settings = {"objective": "mse", "window": 12, "batch": 24, "seed": 2, "validate_every": 100}
            xdan.train(experiment, self.network, minutes=minutes, **{**settings, **self.settings}).to_zarr(path)
        net = xdan.open_network(path)
        begin = time.perf_counter()
        score = truth.dan.score(truth.dan.cycle(net, progress=False), burn_in=system.burn_in).compute()
        length = f"{net.description['training']['minutes']:g} minutes, {int(net.history.step[-1])} steps"
        return score[["rmse", "rmse_standard_error", "diverged"]].assign_attrs(
            seconds=time.perf_counter() - begin, cycles=int(score.attrs["cycles"]), tuned=length
        )


NETWORKS = [
    Trained("ks", "network", xdan.ResidualCNN(filters=24, kernel=7, blocks=5), 0.14),
    Trained("ks", "network with memory", xdan.ResidualCNN(filters=24, kernel=7, blocks=5, memory=8), 0.125),
    Trained(
        "ks",
        "network beside a Kalman filter",
        xdan.KalmanCNN(filters=24, blocks=4, kernel=5, memory=8, c2=3.0),
        0.10,
        {"window": 8, "batch": 16, "optimiser": xdan.Optimiser(0.008, 0.0016, weight_decay=0.1)},
    ),
    Trained("lorenz63", "network with memory", xdan.ResidualCNN(filters=48, kernel=1, blocks=4, memory=12), 0.54),
]


@cache
def record(system: str, cycles: int, trajectories: int) -> xr.Dataset:
    return SYSTEMS[system].record(cycles, trajectories)


def compute(row: Row, cycles: int, trajectories: int) -> xr.Dataset:
    """Run one row and score it; if the state has several fields, score each field."""
    system, truth = SYSTEMS[row.system], record(row.system, cycles, trajectories)
    begin = time.perf_counter()
    run = truth.dan.baseline(row.method, **row.parameters, progress=False)
    seconds = time.perf_counter() - begin
    score = truth.dan.score(run, burn_in=system.burn_in).compute()
    result = over_all(system, truth, run).assign(diverged=score.diverged)
    tuned = [name for name in run.data_vars if str(name).startswith("tuned_")]
    parameters = {"title": row.title, "seed": SEED, "cycles": int(score.attrs["cycles"]), "seconds": seconds}
    return result.assign_attrs(parameters, tuned=", ".join(f"{float(run[name]):.3g}" for name in tuned))


def over_all(system: System, truth: xr.Dataset, run: xr.Dataset) -> xr.Dataset:
    """RMSE over all components of all fields with equal weights, as in the known numbers."""
    total, names = 0.0, [str(name) for name in truth.data_vars if str(name).split("_")[0] == "truth"]
    for name in names:
        error = run[name.replace("truth", "analysis")] - truth[name]
        total = total + (error**2).sum([dim for dim in error.dims if dim not in ("trajectory", "time")])
    rmse = np.sqrt(total / math.prod(system.dynamics.shape)).isel(time=slice(system.burn_in, None)).mean("time")
    deviation = rmse.std("trajectory", ddof=1) / math.sqrt(rmse.sizes["trajectory"])
    return xr.Dataset({"rmse": rmse.mean("trajectory"), "rmse_standard_error": deviation})


def exponents(trajectories: int, model_time: float) -> xr.Dataset:
    """Exponents of the Kuramoto-Sivashinsky model: as many as the Kaplan-Yorke dimension needs."""
    begin = time.perf_counter()
    result = xdan.lyapunov_spectrum(RING, vectors=32, time=model_time, interval=2.0, trajectories=trajectories)
    return result.assign_attrs(seconds=time.perf_counter() - begin, model_time=model_time, trajectories=trajectories)


def in_words(spectrum: xr.Dataset) -> str:
    first, error = float(spectrum.exponent[0]), float(spectrum.exponent_standard_error[0])
    dimension, doubt = float(spectrum.kaplan_yorke_dimension), float(spectrum.kaplan_yorke_dimension_standard_error)
    return (
        f"first exponent {first:.4f} +- {error:.4f} (known: 0.090 to 0.097), {int(spectrum.positive)} positive and "
        f"{int(spectrum.zero)} zero (known: 11 to 14 positive), Kaplan-Yorke dimension {dimension:.2f} +- {doubt:.2f}; "
        f"{spectrum.attrs['trajectories']} x {spectrum.attrs['model_time']:g} units of time"
    )


def kept(store: Path, name: str, make: Any, **settings: Any) -> xr.Dataset:
    """Open the results with a name, or make them with these settings and save them."""
    try:
        result = xr.open_zarr(store, group=name, consolidated=False).load()
    except FileNotFoundError:
        result = make().assign_attrs(settings)
        result.to_zarr(store, group=name, mode="w", consolidated=False)
    if differs := [label for label, value in settings.items() if result.attrs.get(label) != value]:
        raise SystemExit(f"{store}/{name} has other {differs}: choose another --out, or remove it")
    return result


def line(system: str, title: str, known: str, result: xr.Dataset) -> str:
    """A row of the table."""
    score = f"{float(result.rmse):.4f} +- {float(result.rmse_standard_error):.4f}"
    score += f", {int(result.diverged)} lost" if int(result.diverged) else ""
    cells = (SYSTEMS[system].title, title, known, score, f"{result.attrs['cycles']:,}", result.attrs["tuned"])
    return f"| {' | '.join(cells)} | {result.attrs['seconds']:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="rows whose system or title contains one of these words")
    parser.add_argument("--cycles", type=int, default=300, help="after the burn-in, on each trajectory")
    parser.add_argument("--trajectories", type=int, default=8)
    parser.add_argument("--time", type=float, default=1000.0, help="model time of the exponents")
    parser.add_argument("--minutes", type=float, default=0.0, help="that each network is trained for; 0 for none")
    parser.add_argument("--out", type=Path, default=Path("systems"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    store, lines = options.out / "systems.zarr", []

    def wanted(*words: str) -> bool:
        return options.only is None or any(part.lower() in " ".join(words).lower() for part in options.only)

    if wanted("ks", "exponents"):
        settings = {"model_time": options.time, "trajectories": options.trajectories}
        spectrum = kept(store, "ks-exponents", lambda: exponents(options.trajectories, options.time), **settings)
        lines.append(f"Kuramoto-Sivashinsky: {in_words(spectrum)}\n")
        print(lines[-1], flush=True)
    lines += ["| system | method | known | RMSE | cycles | tuned to | seconds |", "|---|---|---|---|---|---|---|"]
    print("\n".join(lines[-2:]), flush=True)
    size = options.cycles, options.trajectories
    total = options.cycles * options.trajectories
    for row in ROWS:
        if wanted(row.system, row.title):
            result = kept(store, row.slug, lambda row=row: compute(row, *size), cycles=total)
            lines.append(line(row.system, row.title, "" if row.known is None else f"{row.known:g}", result))
            print(lines[-1], flush=True)
    for one in NETWORKS if options.minutes else []:
        if wanted(one.system, one.title):
            result = one.compute(options.out, options.minutes, *size)
            lines.append(line(one.system, one.title, f"at most {one.most:g}", result))
            print(lines[-1], flush=True)
    (options.out / "systems.md").write_text("\n".join(lines) + "\n")
    print(f"\nseed {SEED}; in {options.out}")


if __name__ == "__main__":
    main()
