"""How nonlinear networks are: scaling of increments, innovations, and their covariance compared with an ensemble's.

    python examples/nonlinearity.py [--minutes 4] [--out nonlinearity]

For each interval between analyses, a network is trained on an endless twin, for `--minutes` and on all cores. It then
cycles a test record that no network has seen. Networks and results stay in Zarr stores under `--out`: a second call
computes only what is missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import xdan

from common import kept, markdown, save_pictures, trained

INTERVALS = (0.05, 0.10, 0.20, 0.40)
SCALES = np.geomspace(0.1, 10.0, 21)
CUTOFF = 0.05
TRAJECTORIES, CYCLES, BURN_IN, EVERY = 32, 300, 100, 20
MODES, UNSTABLE = (1, 3, 5, 10), 14  # 13 exponents of Lorenz-96 are positive, one is zero


def title(interval: float) -> str:
    """Name of a network."""
    return f"interval {interval:.2f}"


def at_interval(interval: float, out: Path, training: Mapping[str, Any], seed: int) -> xr.Dataset:
    """Scaling of increments and histogram of innovations of a network trained at an interval."""
    settings = {name: value for name, value in training.items() if name != "network"}
    return kept(
        out / f"interval-{interval:.2f}.zarr", lambda: examine(interval, out, training, seed), seed=seed, **settings
    )


def examine(interval: float, out: Path, training: Mapping[str, Any], seed: int) -> xr.Dataset:
    """Open the network, or train it, and compute how it responds to innovations."""
    net = trained(
        out / f"network-{interval:.2f}.zarr",
        xdan.TwinExperiment(xdan.Lorenz96(), interval=interval),
        **{"network": xdan.ResidualCNN(), **training},
        seed=seed,
        progress={"desc": title(interval)},
    )
    record = test_record(interval, seed)
    run = record.dan.cycle(net)
    states: dict[str, Any] = {"every": EVERY, "burn_in": BURN_IN}
    results = xr.Dataset(
        {
            "ratio": record.dan.scaling_of_increments(net, run, SCALES, cutoff=CUTOFF, **states).ratio,
            "ratio_all": record.dan.scaling_of_increments(net, run, SCALES, cutoff=0.0, **states).ratio,
            "density": record.dan.innovation_histogram(net, run, burn_in=BURN_IN, bins=np.linspace(-25.0, 25.0, 201)),
            "rmse": record.dan.score(run, burn_in=BURN_IN).rmse,
            "bias": record.dan.zero_innovation_bias(net, run=run, burn_in=BURN_IN)["mean"],
        }
    )
    return results.drop_vars("width").compute()


def test_record(interval: float, seed: int) -> xr.Dataset:
    """A record that no network has seen."""
    return xdan.twin(
        xdan.Lorenz96(), interval=interval, cycles=CYCLES, trajectories=TRAJECTORIES, seed=seed + 1
    ).compute()


def covariances(out: Path, seed: int) -> xr.Dataset:
    """Spectra of the network's and the EnKF-N's covariances, and angles with its modes and the unstable subspace."""
    return kept(out / "covariances.zarr", lambda: compare(out, seed), seed=seed)


def compare(out: Path, seed: int) -> xr.Dataset:
    """Covariances of the network, of the EnKF-N, and the directions in which the dynamics is unstable."""
    record = test_record(INTERVALS[0], seed)
    net = xdan.open_network(out / f"network-{INTERVALS[0]:.2f}.zarr")
    covariance = record.dan.gain(net, kind="covariance", run=record.dan.cycle(net), burn_in=BURN_IN, every=EVERY)
    ensemble = record.dan.baseline("enkf-n", members=40, keep_members=True)
    theirs = xdan.ensemble_covariance(ensemble).isel(time=slice(BURN_IN, None, EVERY))
    vectors = record.dan.lyapunov_vectors(vectors=UNSTABLE, spin_up=BURN_IN).lyapunov_vector
    comparison = {
        "network": xdan.covariance_spectrum(covariance).eigenvalue,
        "ensemble": xdan.covariance_spectrum(theirs).eigenvalue,
        "unstable": xdan.principal_angles(covariance, vectors, modes=max(MODES), other_modes=UNSTABLE),
    }
    comparison |= {
        f"modes_{k}": xdan.principal_angles(covariance, theirs, modes=k).rename(angle=f"angle_{k}") for k in MODES
    }
    return xr.Dataset(comparison).compute()


def spectra_of(compared: xr.Dataset) -> dict[str, xr.Dataset]:
    """Eigenvalues of the network's and of the ensemble's covariances."""
    return {
        name: compared[[key]].rename({key: "eigenvalue"})
        for name, key in (("network", "network"), ("EnKF-N, 40 members", "ensemble"))
    }


def notes_on(by_interval: dict[str, xr.Dataset], compared: xr.Dataset) -> str:
    """Tables of the networks, and of the leading eigenvalues."""
    rows = [
        {
            "network": name,
            "test RMSE": float(value.rmse),
            "bias": float(value.bias),
            **{f"r({scale:g})": float(value.ratio.sel(scale=scale, method="nearest")) for scale in (0.1, 10.0)},
            "deviation of zeta": float(
                np.sqrt((value.density * value.zeta**2).sum() * (value.zeta[1] - value.zeta[0]))
            ),
        }
        for name, value in by_interval.items()
    ]
    means = {name: value.eigenvalue.mean(["trajectory", "time"]) for name, value in spectra_of(compared).items()}
    leading = [
        {"rank": k, **{name: float(mean.sel(mode=k)) for name, mean in means.items()}} for k in (1, 2, 3, 5, 10, 15, 20)
    ]
    return f"{markdown(pd.DataFrame(rows))}\n{markdown(pd.DataFrame(leading))}"


def pictures(by_interval: dict[str, xr.Dataset], compared: xr.Dataset) -> dict[str, Any]:
    """Scaling as in Fig. 6, histograms as in Fig. 7, spectra and angles."""
    angles = {f"{k} modes, with the EnKF-N's": compared[f"modes_{k}"].rename({f"angle_{k}": "angle"}) for k in MODES}
    angles[f"{max(MODES)} modes, with {UNSTABLE} unstable or neutral directions"] = compared.unstable
    return {
        f"Directions of P_a above {CUTOFF:.0%} of the largest": xdan.scaling_curves(
            {name: value[["ratio"]] for name, value in by_interval.items()}
        ),
        "All directions, as Eq. 23 is written": xdan.scaling_curves(
            {name: value[["ratio_all"]].rename(ratio_all="ratio") for name, value in by_interval.items()}
        ),
        "Projected innovations": xdan.histogram_curves({n: v.density for n, v in by_interval.items()}, logy=True),
        "Analysis error covariance of the network and of an ensemble": xdan.spectrum_curves(spectra_of(compared)),
        "Angles between their leading eigenvectors": xdan.angle_curves(angles),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="training time of each network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("nonlinearity"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    training = {"minutes": options.minutes}
    by_interval = {title(i): at_interval(i, options.out, training, options.seed) for i in INTERVALS}
    compared = covariances(options.out, options.seed)
    notes = notes_on(by_interval, compared)
    (options.out / "nonlinearity.md").write_text(notes)
    save_pictures(
        options.out / "nonlinearity",
        pictures(by_interval, compared),
        title="Linear and nonlinear in the innovation: Lorenz-96",
        notes=notes,
    )
    print(f"\n{notes}\nin {options.out}")


if __name__ == "__main__":
    main()
