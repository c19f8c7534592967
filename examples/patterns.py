"""The patterns in a forecast to which networks respond: mean marginal gains on two rings and in four observing systems.

    python examples/patterns.py [--minutes 4] [--states 4000] [--out patterns]

Six networks are trained on endless twins, for `--minutes` each and on all cores. One of them is trained twice, to show
how similar two trainings are. The symmetry-averaged marginal gain of each is averaged over the states of a record that
no network has seen. Networks and gains stay in Zarr stores under `--out`: a second call computes only what is missing,
and a killed training goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from dask.diagnostics import ProgressBar

import xdan

from common import kept, markdown, save_pictures, trained

TRAJECTORIES = 40
EVERY = 4  # cycles between the states in an average, as neighbouring states are nearly equal


@dataclass(frozen=True)
class System:
    """A ring, its observed sites, and the reference site of the gain."""

    title: str
    sites: int
    observe: xdan.Sites
    reference: int
    trained_as: str = ""
    again: int = 0  # another seed of the training

    @property
    def slug(self) -> str:
        return self.title.replace(" ", "-").replace(",", "")


SYSTEMS = (
    System("all of 40 sites", 40, xdan.Sites.all(), 20),
    System("all of 40 sites, trained again", 40, xdan.Sites.all(), 20, again=1),
    System("all of 80 sites", 80, xdan.Sites.all(), 40),
    System("80 sites, trained on 40", 80, xdan.Sites.all(), 40, trained_as="all of 40 sites"),
    System("every other site, observed r", 40, xdan.Sites.every(2), 20, trained_as="every other site"),
    System("every other site, unobserved r", 40, xdan.Sites.every(2), 21, trained_as="every other site"),
    System("0 to 40 random sites", 40, xdan.Sites.random(0, 40), 20),
    System("20 to 40 random sites", 40, xdan.Sites.random(20, 40), 20),
)


def compute(system: System, out: Path, training: Mapping[str, Any], states: int, seed: int) -> xr.Dataset:
    """Open the network, or train it, and average its marginal gain."""
    settings = {name: value for name, value in training.items() if name != "network"}
    return kept(
        out / f"gain-{system.slug}.zarr",
        lambda: average(system, out, training, states, seed),
        title=system.title, states=states, seed=seed, **settings,
    )  # fmt: skip


def average(system: System, out: Path, training: Mapping[str, Any], states: int, seed: int) -> xr.Dataset:
    """The mean marginal gain, its standard error over trajectories, and the network's score."""
    name = system.trained_as or system.title
    sites = 40 if system.trained_as == "all of 40 sites" else system.sites
    settings = {"network": xdan.ResidualCNN(), "batch": 32 if system.observe.kind == "all" else 64, **training}
    net = trained(
        out / f"{name.replace(' ', '-')}.zarr",
        xdan.TwinExperiment(xdan.Lorenz96(sites=sites), observe=system.observe),
        **settings,
        seed=seed + 1000 * system.again,
        progress={"desc": f"{name:<24}"},
    )
    cycles = 1 + EVERY * (states // TRAJECTORIES - 1)
    record = xdan.twin(
        xdan.Lorenz96(sites=system.sites),
        cycles=cycles,
        trajectories=TRAJECTORIES,
        observe=system.observe,
        seed=seed + 1,
        chunks={"trajectory": 5, "time": 100},
    )
    group = record.dan.symmetry_group()
    by_trajectory = record.dan.gain(net, reference=system.reference, group=group, dim="time", every=EVERY)
    print(f"{system.title}: {group}")
    with ProgressBar():
        by_trajectory = by_trajectory.compute()
    run = record.isel(trajectory=slice(0, 10)).dan.cycle(net).compute()
    rmse = record.isel(trajectory=slice(0, 10)).dan.score(run, burn_in=cycles // 3).compute().rmse
    return xr.Dataset(
        {
            "gain": by_trajectory.mean("trajectory", keep_attrs=True),
            "standard_error": by_trajectory.std("trajectory", ddof=1) / np.sqrt(TRAJECTORIES),
            "rmse": rmse,
        }
    )


def row(system: System, result: xr.Dataset) -> dict[str, object]:
    """The extent of a pattern, and its uncertainty."""
    extent = xdan.pattern_extent(result.gain)
    return {
        "observed": system.title,
        "test RMSE": float(result.rmse),
        "largest": float(abs(result.gain).max()),
        "standard error": float(result.standard_error.max()),
        "mass within 3 sites": float(extent.mass_within.sel(distance=3)),
        "mass within 6 sites": float(extent.mass_within.sel(distance=6)),
        "radius of 95 %": float(extent.radius),
    }


def likeness(one: xr.Dataset, other: xr.Dataset, within: int = 8) -> tuple[float, float]:
    """Correlation of two patterns about their references, and their root mean square difference in standard errors."""
    pair = []
    for result in (one, other):
        shift = result.sizes["i"] // 2 - int(result.gain.attrs["reference"])
        middle = slice(result.sizes["i"] // 2 - within, result.sizes["i"] // 2 + within + 1)
        pair.append(
            [np.roll(result[name].values, shift, (0, 1))[middle, middle] for name in ("gain", "standard_error")]
        )
    (a, error_a), (b, error_b) = pair
    score = np.sqrt(np.mean((a - b) ** 2 / (error_a**2 + error_b**2)))
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1]), float(score)


def notes_on(by_system: dict[str, xr.Dataset]) -> str:
    """A table of extents, and the likeness of the patterns."""
    table = markdown(pd.DataFrame([row(system, by_system[system.title]) for system in SYSTEMS]))
    lines = []
    for title in list(by_system)[1:]:
        correlation, errors = likeness(by_system[SYSTEMS[0].title], by_system[title])
        lines.append(f"- {title}: correlation {correlation:.3f}, difference {errors:.1f} standard errors\n")
    return f"{table}\nLikeness to all of 40 sites, within 8 sites of r:\n\n{''.join(lines)}"


def pictures(by_system: dict[str, xr.Dataset]) -> dict[str, Any]:
    """Two rings as in Fig. 1, observing systems as in Fig. 2."""
    shown = {system.title: by_system[system.title].gain for system in SYSTEMS if not system.again}
    rings = dict(list(shown.items())[:3])
    systems = {title: gain for title, gain in shown.items() if "80" not in title}
    return {
        "Two rings, each normalised by its largest value": xdan.gain_map(rings),
        "Observing systems of 40 sites, normalised together": xdan.gain_map(systems, together=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="training time of each network")
    parser.add_argument("--states", type=int, default=4000, help="number of states over which each gain is averaged")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("patterns"))
    options = parser.parse_args()
    if options.states < 2 * TRAJECTORIES:
        parser.error(f"--states {options.states}: expected at least {2 * TRAJECTORIES}")
    options.out.mkdir(parents=True, exist_ok=True)
    by_system = {
        system.title: compute(system, options.out, {"minutes": options.minutes}, options.states, options.seed)
        for system in SYSTEMS
    }
    notes = notes_on(by_system)
    (options.out / "patterns.md").write_text(notes)
    save_pictures(options.out / "patterns", pictures(by_system), title="Mean marginal gains of Lorenz-96", notes=notes)
    print(f"\n{notes}\nin {options.out}")


if __name__ == "__main__":
    main()
