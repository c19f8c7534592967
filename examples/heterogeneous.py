"""A season, and a ring with two different halves: do networks read the covariance from one state there, too?

    python examples/heterogeneous.py [seasonal] [two-halves] [--minutes 10] [--out heterogeneous]

seasonal: Lorenz-96 whose forcing goes from 8 to 10, to 6 and back. Every site is observed. The model depends on time,
but networks do not see the time: one is trained through the season, one at a forcing of 8.

two-halves: F is 8 on one half of the ring, where every site is observed, and 4 on the other, where every fourth is.
Three instruments have different errors. One network gets forcing and precision at each site as inputs, one does not.

Each figure has two tables. The second table compares the P_a of a network with that of an EnKF-N of 40 members on the
same record: the correlation in time of P[j, j], and of P[j - 1, j], at each observed site j. A covariance that does not
follow the flow has no correlation. Networks, runs and gains are saved under --out, and a second call computes only
what is missing.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

import xdan

from common import kept, markdown, save_pictures, trained

SITES, BURN_IN, EVERY = 40, 200, 4  # EVERY: cycles between the states that marginal gains are averaged over
CANDIDATES = {"radius": [7.5, 10.0, 14.0, 20.0], "inflation": [1.0, 1.01, 1.02]}
TUNED = {"radius": "tune", "inflation": "tune", "candidates": CANDIDATES, "tune_on": "truth"}
ENSEMBLE, AGAIN = "EnKF-N, 40 members", "EnKF-N, 40 other members"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "3D-Var": ("3d-var", {}),
    "LETKF, 20 members": ("letkf", {"members": 20, **TUNED}),
    ENSEMBLE: ("enkf-n", {"members": 40, "keep_members": True}),
    AGAIN: ("enkf-n", {"members": 40, "keep_members": True, "seed": 1}),
}
AMPLITUDE, PERIOD = 2.0, 10.0  # of the season
ERRORS = {"A": 0.7, "B": 1.0, "C": 1.5}  # of three instruments
ALL, Runs = slice(None), dict[str, xr.Dataset]


@xdan.register_dynamics
class SeasonalLorenz96(xdan.Lorenz96, pure=True):
    """Lorenz-96 whose forcing at time t is F + 2 sin(2 pi t / 10)."""

    name = "seasonal-lorenz96"

    def tendency(self, x: torch.Tensor, t: float) -> torch.Tensor:
        return super().tendency(x) + AMPLITUDE * math.sin(2 * math.pi * t / PERIOD)


def two_halves() -> tuple[xdan.TwinExperiment, xdan.StateSpace]:
    """The experiment, and the space of a network whose inputs say how sites differ."""
    forcing = np.where(np.arange(SITES) < SITES // 2, 8.0, 4.0)
    observed = np.r_[: SITES // 2, SITES // 2 + 2 : SITES : 4]
    instruments = [list(ERRORS)[k % len(ERRORS)] for k in range(len(observed))]
    positions = {"x": observed.astype(float), "instrument": instruments}
    model = xdan.Lorenz96(SITES, forcing)
    (x,) = model.space.fields
    precision = np.zeros(SITES)
    precision[observed] = [ERRORS[name] ** -2 for name in instruments]
    inputs = {"forcing": (forcing - 6.0) / 2.0, "precision of the observations": precision}
    told = [xdan.FixedInput(name, x.geometry, torch.tensor(values)) for name, values in inputs.items()]
    return xdan.TwinExperiment(model, positions=positions, error_std=ERRORS), xdan.StateSpace(x, told)


def network(name: str, experiment: xdan.TwinExperiment, options: argparse.Namespace, **more: Any) -> xdan.Network:
    """Open the network, or train it."""
    settings = {"objective": "mse", "window": 16, "batch": 32, "minutes": options.minutes, "seed": 2}
    architecture = xdan.ResidualCNN(filters=32, kernel=5, blocks=5, **more)
    return trained(options.out / f"{name}.zarr", experiment, architecture, **settings)


def record(experiment: xdan.TwinExperiment, options: argparse.Namespace) -> xr.Dataset:
    """The test record."""
    cycles, seed = BURN_IN + (options.cycles or 400), 1 if options.seed is None else options.seed
    return xdan.twin(experiment, cycles=cycles, trajectories=options.trajectories or 16, seed=seed).compute()


def run_all(name: Path, test: xr.Dataset, schemes: Mapping[str, Any]) -> Runs:
    """Runs of methods and networks, with P_a[j, j] and P_a[j - 1, j] of networks and ensembles."""

    def run_of(scheme: Any) -> xr.Dataset:
        if isinstance(scheme, xdan.Network):
            run = test.dan.cycle(scheme, progress=False).compute()
            return run.assign(near_diagonal(test.dan.gain(scheme, kind="covariance", run=run)))
        method, parameters = scheme
        run = test.dan.baseline(method, **parameters, progress=False).compute()
        if "members" not in run:
            return run
        del run.attrs["xdan_whole"]  # members take much space and are left out
        return run.drop_vars(["members", "forecast_members"]).assign(near_diagonal(xdan.ensemble_covariance(run)))

    runs, settings = {}, {"cycles": test.sizes["time"], "trajectories": len(test.trajectory), "record": test.seed}
    for label, scheme in schemes.items():
        path = name.with_name(f"{name.name} {label}.zarr".replace(",", "").replace(" ", "-"))
        runs[label] = kept(path, lambda scheme=scheme: run_of(scheme), **settings)
        print(f"{name.name}, {label}: RMSE {shown(rmse(runs[label], test), 4)}", flush=True)
    return runs


def near_diagonal(covariance: xr.DataArray) -> xr.Dataset:
    """P[j, j] and P[j - 1, j] around the ring, dims (trajectory, time, j)."""
    j = xr.DataArray(np.arange(SITES), dims="j")
    p = covariance.drop_vars(["i", "j"], errors="ignore").compute()
    return xr.Dataset({f"p{k}": p.isel(i=(j - k) % SITES, j=j) for k in (0, 1)})


def rmse(run: xr.Dataset, test: xr.Dataset, sites: slice = ALL, times: Any = ALL) -> xr.DataArray:
    """RMSE over some sites and some of the times after the burn-in, of each trajectory."""
    square = ((run.analysis - test.truth) ** 2).isel(x=sites, time=slice(BURN_IN, None)).isel(time=times)
    return np.sqrt(square.mean("x", skipna=False)).mean("time", skipna=False)


def shown(by_trajectory: xr.DataArray, digits: int = 3) -> str:
    """Mean and standard error over trajectories."""
    error = float(by_trajectory.std(ddof=1)) / math.sqrt(by_trajectory.size)
    return f"{float(by_trajectory.mean()):.{digits}f} +- {error:.{digits}f}"


def scores(title: str, runs: Runs, test: xr.Dataset, parts: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each run: the tuned parameters, and the RMSE of parts of the record (sites and times)."""
    rows = []
    for label, run in runs.items():
        tuned = [f"{n} {float(run[f'tuned_{n}']):.3g}" for n in CANDIDATES if f"tuned_{n}" in run]
        row = {"record": title, "method": label, "tuned to": ", ".join(tuned)}
        rows.append(row | {part: shown(rmse(run, test, *where), 4) for part, where in parts.items()})
    return pd.DataFrame(rows)


def agreement(title: str, runs: Runs, parts: Mapping[str, tuple[Any, bool]]) -> pd.DataFrame:
    """Correlations in time of P_a[j, j] and P_a[j - 1, j] with those of the ensemble, averaged over some sites j.

    A part says which sites are taken, and whether the season (the mean over trajectories at each time) is kept.
    """
    columns = {}
    for part, (sites, season) in parts.items():
        for k, name in enumerate(("P[j, j]", "P[j - 1, j]")):
            p = {n: run[f"p{k}"].isel(time=slice(BURN_IN, None), j=sites) for n, run in runs.items() if "p0" in run}
            p = p if season else {n: one - one.mean("trajectory") for n, one in p.items()}
            reference = p.pop(ENSEMBLE)
            columns[name + part] = {n: shown(xr.corr(one, reference, "time").mean("j")) for n, one in p.items()}
    table = pd.DataFrame(columns).rename_axis("P_a of").assign(record=title)
    return table.set_index("record", append=True).swaplevel().reset_index()


def curves(by_label: Mapping[str, xr.DataArray], ylabel: str, kind: str = "line") -> Any:
    """Lines or points of one dim, by label."""
    import hvplot.pandas  # noqa: F401

    table = pd.DataFrame({label: one.to_series() for label, one in by_label.items()})
    return table.hvplot(kind=kind, value_label=ylabel, width=1000, height=300, legend="right", grid=True)


def finish(name: str, tables: list[pd.DataFrame], pages: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Write the tables and the page."""
    text = "\n".join(markdown(table) for table in tables)
    (options.out / "table.md").write_text(text)
    save_pictures(options.out / name, pages, title=f"Lorenz-96, {name.replace('-', ' ')}")
    print(f"\n{text}\nin {options.out}")


def seasonal(options: argparse.Namespace) -> None:
    """Networks through a season that they do not see."""
    season, constant = xdan.TwinExperiment(SeasonalLorenz96()), xdan.TwinExperiment(xdan.Lorenz96())
    networks = {"lorenz96 of xdan": xdan.open_network("lorenz96")}
    networks["network, F = 8"] = network("constant", constant, options)
    networks["network, season"] = network("seasonal", season, options)
    plain, test = record(constant, options), record(season, options)
    runs_plain = run_all(options.out / "constant", plain, {n: METHODS[n] for n in (ENSEMBLE, AGAIN)} | networks)
    runs = run_all(options.out / "season", test, METHODS | networks)
    raised = np.sin(2 * np.pi * test.time.values[BURN_IN:] / PERIOD) > 0
    parts = {"RMSE": (), "RMSE, F > 8": (ALL, np.flatnonzero(raised)), "RMSE, F < 8": (ALL, np.flatnonzero(~raised))}
    of = {"": (ALL, True), ", season left out": (ALL, False)}
    errors = [scores("F = 8", runs_plain, plain, {"RMSE": ()}), scores("season", runs, test, parts)]
    tables = [pd.concat(errors), pd.concat([agreement("F = 8", runs_plain, of), agreement("season", runs, of)])]
    p = {n: runs[n].p0.isel(time=slice(BURN_IN, None)) for n in (ENSEMBLE, "network, F = 8", "network, season")}
    mean = {label: np.sqrt(every.mean(["trajectory", "j"])) for label, every in p.items()}
    one = {label: every[0, :200, 20].reset_coords(drop=True) for label, every in p.items()}
    pages = {
        "Root of the mean P_a[j, j], through two seasons": curves(mean, "deviation"),
        "P_a[20, 20] of one trajectory": curves(one, "variance"),
        "All methods": test.dan.rmse_in_time({label: run for label, run in runs.items() if label != AGAIN}, log=True),
    }
    finish("seasonal", tables, pages, options)


def halves(options: argparse.Namespace) -> None:
    """Networks on a ring whose halves differ in forcing, density and errors of the observations."""
    experiment, space = two_halves()
    told = network("told", experiment, options, space=space)
    networks = {"network, told": told, "network, not told": network("not-told", experiment, options)}
    test, plain = record(experiment, options), record(xdan.TwinExperiment(xdan.Lorenz96()), options)
    runs = run_all(options.out / "halves", test, METHODS | networks)
    middle, observed = SITES // 2, test.obs_x.values.astype(int)
    parts = {"RMSE": (), "RMSE, F = 8": (slice(0, middle),), "RMSE, F = 4": (slice(middle, None),)}
    of = {", F = 8": (observed[observed < middle], True), ", F = 4": (observed[observed >= middle], True)}
    gains = {"F = 8 everywhere": pattern("plain", plain, xdan.open_network("lorenz96"), middle, options)}
    for title, site in {"F = 8, r observed": 10, "F = 4, r observed": 30, "F = 4, r not observed": 28}.items():
        gains[title] = pattern("halves", test, told, site, options).where(np.isin(np.arange(SITES), observed), 0.0)
        pair = gains[title].values, gains["F = 8 everywhere"].roll(i=site - middle, j=site - middle).values
        like = np.corrcoef(*(gain[pair[0] != 0] for gain in pair))[0, 1]
        print(f"{title}, {gains[title].group}: correlation {like:.3f} with the pattern of F = 8 everywhere")
    late = {label: run.isel(time=slice(BURN_IN, None)) for label, run in runs.items() if "p0" in run}
    p = {label: run.p0.isel(j=observed).assign_coords(j=observed) for label, run in late.items()}
    over = ["trajectory", "time"]
    error = {n: np.sqrt(((r.analysis - test.truth) ** 2).mean(over)).reset_coords(drop=True) for n, r in late.items()}
    spread = {n: np.sqrt(one.mean(over)) for n, one in p.items()}
    follow = {n: xr.corr(one, p[ENSEMBLE], "time").mean("trajectory") for n, one in p.items() if n != ENSEMBLE}
    pages = {
        "Mean marginal gains about a site r; j that nothing observes is left blank": xdan.gain_map(gains),
        "RMSE at each site": curves(error, "RMSE"),
        "Root of the mean P_a[j, j], at observed sites": curves(spread, "deviation", "scatter"),
        "Correlation in time of P_a[j, j] with that of the EnKF-N": curves(follow, "correlation", "scatter"),
    }
    finish("two-halves", [scores("halves", runs, test, parts), agreement("halves", runs, of)], pages, options)


def pattern(name: str, test: xr.Dataset, net: xdan.Network, site: int, options: argparse.Namespace) -> xr.DataArray:
    """The marginal gain about a site, averaged over the group that the experiment leaves, and over states."""
    omega, path = test.dan.gain(net, reference=site, every=EVERY, burn_in=BURN_IN), f"gain-{name}-{site}.zarr"
    return kept(options.out / path, lambda: omega.to_dataset(name="gain"), cycles=test.sizes["time"]).gain


FIGURES: dict[str, Callable[[argparse.Namespace], None]] = {"seasonal": seasonal, "two-halves": halves}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "figures", nargs="*", default=list(FIGURES), help=f"some of {', '.join(FIGURES)}; by default all"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="training time of each network")
    parser.add_argument("--cycles", type=int, help=f"cycles of the test record after {BURN_IN}")
    parser.add_argument("--trajectories", type=int)
    parser.add_argument("--seed", type=int, help="seed of the test record")
    parser.add_argument("--out", type=Path, default=Path("heterogeneous"))
    options = parser.parse_args()
    for figure in options.figures:
        (folder := options.out / figure).mkdir(parents=True, exist_ok=True)
        FIGURES[figure](argparse.Namespace(**{**vars(options), "out": folder}))


if __name__ == "__main__":
    main()
