"""Tables, anatomies and transfers of the systems of system_networks.py."""

from __future__ import annotations

import argparse
import dataclasses
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from system_networks import SYSTEMS, System, kuramoto_sivashinsky

import xdan

from common import kept, markdown, save_pictures, slug


@dataclass(frozen=True)
class Dissected:
    """The part of a network that is studied.

    Attributes
    ----------
    ensemble : str
        The method with which the network is compared.
    references : mapping
        Reference sites r by their names.
    cycles, every : int
        Cycles of the record after the burn-in, and cycles between the states that are studied.
    group : Group, optional
        Symmetries over which marginal gains are averaged; by default those of the experiment.
    scales : sequence of float
        Values lambda of r(lambda); empty if P_a is too large for it.
    within : sequence of float
        Distances from r, in the units of the model, for the share of the squared gain within them.
    """

    ensemble: str
    references: Mapping[str, int]
    cycles: int
    every: int
    group: xdan.Group | None = None
    scales: tuple[float, ...] = ()
    within: tuple[float, ...] = ()


DISSECTED = {
    "kuramoto-sivashinsky": Dissected(
        "ETKF, 20 members", {"all turns of the ring": 64}, 400, 10, scales=(0.25, 0.5, 1.0, 1.5, 2.0)
    ),
    "sphere": Dissected(
        "ETKF, 60 members",
        {"r at 42 S, 180 E": 8 * 64 + 32, "r at 3 S, 180 E": 15 * 64 + 32},
        80,
        40,
        xdan.Group.trivial(32 * 64),
        within=(27.0, 40.0),  # degrees; the first is the deformation radius
    ),
}
LARGER = {"kuramoto-sivashinsky": kuramoto_sivashinsky(256), "sphere": xdan.SphereQG(42)}


def table(name: str, options: argparse.Namespace) -> None:
    """The RMSE of classical methods and networks, in units of the observation error; each row is saved."""
    system = SYSTEMS[name]
    cycles, trajectories = options.cycles or system.cycles, options.trajectories or system.trajectories
    seed = 1 if options.seed is None else options.seed
    test, rows = system.record(options.out, seed, cycles, trajectories), []
    settings = {"cycles": cycles, "burn_in": system.burn_in, "seed": seed, "rows": trajectories}
    for label, scheme, work in works(system, test, options):
        if options.only is not None and not any(word.lower() in label.lower() for word in options.only):
            continue
        path = options.out / f"{slug(label)}-score.zarr"
        score = kept(path, lambda work=work: scored(system, test, work), **settings, scheme=scheme)
        rows.append(
            {
                "scheme": label,
                "RMSE": float(score.rmse) / system.unit,
                "standard error": float(score.rmse_standard_error) / system.unit,
                "spread": float(score.spread) / system.unit if "spread" in score else math.nan,
                "lost": int(score.diverged),
                "seconds": round(score.attrs["seconds"]),
                "GiB of the process": round(score.attrs["memory"], 1),
            }
        )
        print(rows[-1], flush=True)
    heading = f"{system.title}; {trajectories} trajectories, {cycles} cycles after {system.burn_in}, seed {seed}"
    text = f"{heading}\n\n{markdown(pd.DataFrame(rows))}"
    (options.out / "table.md").write_text(text)
    print(f"\n{text}")


def works(
    system: System, test: xr.Dataset, options: argparse.Namespace
) -> Iterator[tuple[str, str, Callable[[], xr.Dataset]]]:
    """For each row: its name, the settings that identify its scheme, and a function that makes its run."""
    climatology = system.climatology(options.out)
    for label, (method, parameters) in system.methods.items():
        words = {**parameters, "climatology": climatology, "progress": False}
        scheme = f"{method} {parameters}"
        yield label, scheme, lambda method=method, words=words: test.dan.baseline(method, **words).compute()
    for label, member in system.members.items():
        if options.minutes or member.shipped:
            net = system.network(label, options.out, options.minutes)
            yield (
                label,
                net.digest,
                lambda net=net: test.dan.cycle(net, climatology=climatology, progress=False).compute(),
            )


def scored(system: System, test: xr.Dataset, work: Callable[[], xr.Dataset]) -> xr.Dataset:
    """The score of a run, with the seconds that it took and the largest memory of the process until then."""
    begin = time.perf_counter()
    run = work()
    seconds = time.perf_counter() - begin
    score = test.dan.score(run, burn_in=system.burn_in).compute()
    names = [one for one in ("rmse", "rmse_standard_error", "spread", "diverged") if one in score]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return score[names].assign_attrs(seconds=seconds, memory=memory)


def anatomy(name: str, options: argparse.Namespace) -> None:
    """P_a, marginal gains and r(lambda) of the network without memory at a few states, compared with an ensemble's."""
    system, dissected, out = SYSTEMS[name], DISSECTED[name], options.out
    seed, trajectories = 1 if options.seed is None else options.seed, options.trajectories or 2
    cycles = options.cycles or dissected.cycles
    test = system.record(out, seed, cycles, trajectories)
    net = system.network("network", out, options.minutes)
    settings = {"cycles": cycles, "rows": trajectories, "seed": seed, "every": dissected.every, "scheme": net.digest}
    run = kept(out / "run.zarr", lambda: test.dan.cycle(net, progress=False).compute(), **settings)
    words = {"every": dissected.every, "burn_in": system.burn_in}

    def covariances() -> xr.Dataset:
        return test.dan.gain(net, kind="covariance", run=run, **words).compute().to_dataset(name="p")

    def of_ensemble() -> xr.Dataset:
        method, parameters = system.methods[dissected.ensemble]
        more = {"climatology": system.climatology(out), "progress": False, "keep_members": True}
        ensemble = test.dan.baseline(method, **parameters, **more)
        late = ensemble.isel(time=slice(system.burn_in, None, dissected.every))
        return xdan.ensemble_covariance(late.drop_attrs()).compute().to_dataset(name="p")

    p = {
        "network": kept(out / "covariance.zarr", covariances, **settings).p,
        dissected.ensemble: kept(out / "ensemble-covariance.zarr", of_ensemble, **settings).p,
    }
    gains = {}
    for label, site in dissected.references.items():
        omega = test.dan.gain(net, run=run, reference=site, group=dissected.group, **words)
        gains[label] = kept(
            out / f"gain-{site}.zarr", lambda omega=omega: omega.compute().to_dataset(name="g"), **settings
        ).g
    rows = [{"quantity": label, "value": value} for label, value in likeness(system, *p.values()).items()]
    for label, gain in gains.items():
        extent = xdan.pattern_extent(gain, dynamics=system.experiment.dynamics)
        rows.append({"quantity": f"radius of 95 % of the gain, {label}", "value": f"{float(extent.radius):.3g}"})
        squared = xdan.pattern_extent((gain**2).assign_attrs(gain.attrs), dynamics=system.experiment.dynamics)
        for distance in dissected.within:
            inside = float(squared.mass_within.sel(distance=distance, method="ffill"))
            rows.append(
                {"quantity": f"share of the squared gain within {distance:g}, {label}", "value": f"{inside:.2f}"}
            )
    pages = {
        "Mean marginal gains about r": xdan.gain_map(gains, within=None if name == "sphere" else 20),
        "Eigenvalues of P_a": xdan.spectrum_curves({label: xdan.covariance_spectrum(one) for label, one in p.items()}),
    }
    if dissected.scales:
        scaling = kept(
            out / "scaling.zarr",
            lambda: test.dan.scaling_of_increments(net, run, dissected.scales, cutoff=0.01, **words).compute(),
            **settings,
        )
        for scale in dissected.scales:
            ratio, error = (float(scaling[label].sel(scale=scale)) for label in ("ratio", "standard_error"))
            rows.append({"quantity": f"r({scale:g})", "value": f"{ratio:.3f} +- {error:.3f}"})
        pages["r(lambda)"] = xdan.scaling_curves({"network": scaling})
    if len(system.experiment.dynamics.dims) == 2:
        pages = {"A state, and the network's analysis of it": test.dan.field_maps(run, title="network"), **pages}
    states = p["network"].sizes["time"] * trajectories
    text = f"{system.title}; {states} states, seed {seed}\n\n{markdown(pd.DataFrame(rows))}"
    (out / "anatomy.md").write_text(text)
    save_pictures(out / "anatomy", pages, title=system.title)
    print(f"\n{text}")


def likeness(system: System, network: xr.DataArray, ensemble: xr.DataArray) -> dict[str, str]:
    """Compare P_a of a network with an ensemble's: its size, its pattern about a site, and its change with the flow.

    The change is the correlation of P[j, j] over the states of a trajectory, and over all j after the mean of each j is
    subtracted. A covariance that does not follow the flow has no correlation.
    """
    one, other = (p.transpose("trajectory", "time", "i", "j").values for p in (network, ensemble))
    size = [np.trace(p, axis1=2, axis2=3) / p.shape[-1] for p in (one, other)]
    unit = system.unit**-2
    whole = [
        np.corrcoef(a.ravel(), b.ravel())[0, 1]
        for a, b in zip(*(p.reshape(-1, p[0, 0].size) for p in (one, other)), strict=True)
    ]
    flow = []
    for a, b in zip(one, other, strict=True):
        varying = [np.diagonal(p, axis1=1, axis2=2) for p in (a, b)]
        varying = [d - d.mean(0) for d in varying]
        flow.append(np.corrcoef(varying[0].ravel(), varying[1].ravel())[0, 1])
    return {
        "mean of P[j, j], network": f"{unit * size[0].mean():.4g}",
        "mean of P[j, j], ensemble": f"{unit * size[1].mean():.4g}",
        "correlation of the two matrices at a state": plus_minus(whole),
        "correlation of P[j, j] in time": plus_minus(flow),
    }


def plus_minus(values: list[Any]) -> str:
    """Mean and standard error."""
    return f"{np.mean(values):.3f} +- {np.std(values, ddof=1) / math.sqrt(len(values)):.3f}"


def transfer(name: str, options: argparse.Namespace) -> None:
    """Networks on a larger ring or a finer sphere, without further training."""
    system, model = SYSTEMS[name], LARGER[name]
    experiment = dataclasses.replace(system.experiment, dynamics=model)
    systems = {"trained on": system, "larger": dataclasses.replace(system, experiment=experiment)}
    seed, trajectories = 1 if options.seed is None else options.seed, options.trajectories or 6
    cycles, rows = options.cycles or 150, []
    tests = {grid: one.record(options.out, seed, cycles, trajectories) for grid, one in systems.items()}

    def cycled(grid: str, net: xdan.Network) -> xr.Dataset:
        climatology = systems[grid].climatology(options.out)
        return tests[grid].dan.cycle(net, climatology=climatology, progress=False).compute()

    for label, member in system.members.items():
        if member.shipped is None and not options.minutes:
            continue
        net = system.network(label, options.out, options.minutes)
        row: dict[str, Any] = {"network": label}
        for grid, one in {"trained on": net, "larger": net.for_space(model.space)}.items():
            score = kept(
                options.out / f"{slug(label)}-{slug(grid)}.zarr",
                lambda grid=grid, one=one: scored(system, tests[grid], lambda: cycled(grid, one)),
                cycles=cycles,
                seed=seed,
                rows=trajectories,
                scheme=one.digest,
            )
            row[f"{grid}, RMSE"] = float(score.rmse) / system.unit
            row[f"{grid}, standard error"] = float(score.rmse_standard_error) / system.unit
            row[f"{grid}, lost"] = int(score.diverged)
        rows.append({**row, "larger by": f"{row['larger, RMSE'] / row['trained on, RMSE'] - 1:.0%}"})
        print(rows[-1], flush=True)
    heading = f"{system.title}, and {model}; {trajectories} trajectories, {cycles} cycles after {system.burn_in}"
    text = f"{heading}, seed {seed}\n\n{markdown(pd.DataFrame(rows))}"
    (options.out / "transfer.md").write_text(text)
    print(f"\n{text}")
