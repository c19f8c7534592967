"""How the error of a network depends on its observations and its training: ten sweeps, ten pictures.

    python examples/sweeps.py [FIGURE ...] [--minutes 2] [--seeds 1] [--out sweeps]

Figures: noise, density, window, filters, channels, members, sites, forcing, intervals, fine. Each is one call of
`xdan.sweep` into a separate Zarr store: a second call computes only what is missing. Networks, trained for `--minutes`
each, are compared with an EnKF-N with 40 members.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xarray as xr

import xdan

ENKF = {"baseline": "enkf-n", "members": 40}


def noise(minutes: float, common: dict[str, Any]) -> xr.Dataset:
    """Networks trained on each noise level, and one trained on unit noise only."""
    network = {"network": "residual-cnn", "minutes": minutes}
    schemes = {"EnKF-N": ENKF, "network": network, "trained on noise 1": {**network, "trained_on": {"error_std": 1.0}}}
    return xdan.sweep(xdan.Lorenz96(), schemes, {"error_std": [0.25, 0.5, 1.0, 2.0]}, **common)


def density(minutes: float, common: dict[str, Any]) -> xr.Dataset:
    """A number of random sites, new ones at every time; and one network that was trained with 20 to 40 sites."""
    network = {"network": "residual-cnn", "minutes": minutes, "memory": 8, "window": 16}
    anything = {**network, "trained_on": {"observe": xdan.Sites.random(20, 40)}}
    schemes = {"EnKF-N": ENKF, "network with memory": network, "trained on 20 to 40 sites": anything}
    return xdan.sweep(
        xdan.Lorenz96(), schemes, {"observe": {n: xdan.Sites.random(n) for n in (20, 25, 30, 40)}}, **common
    )


def window(minutes: float, common: dict[str, Any]) -> xr.Dataset:
    """N_iter, the number of cycles through which the gradient goes back."""
    network = {"network": "residual-cnn", "minutes": minutes}
    schemes = {"EnKF-N": ENKF, "network": network, "with memory": {**network, "memory": 8}}
    return xdan.sweep(xdan.Lorenz96(), schemes, {"window": [1, 2, 4, 8, 16]}, **common)


def filters(minutes: float, common: dict[str, Any]) -> xr.Dataset:
    """N_f, the width."""
    network = {"network": "residual-cnn", "minutes": minutes}
    return xdan.sweep(xdan.Lorenz96(), {"EnKF-N": ENKF, "network": network}, {"filters": [4, 8, 16, 24, 40]}, **common)


def channels(minutes: float, common: dict[str, Any]) -> xr.Dataset:
    """Latent channels of the memory."""
    network = {"network": "residual-cnn", "minutes": minutes, "window": 16, "objective": "mse"}
    return xdan.sweep(xdan.Lorenz96(), {"EnKF-N": ENKF, "network": network}, {"memory": [0, 1, 2, 4, 8, 16]}, **common)


def members(minutes: float, common: dict[str, Any]) -> xr.Dataset:
    """N_e, the number of members that a network corrects together."""
    schemes = {"EnKF-N": {"baseline": "enkf-n"}, "ensemble network": {"network": "ensemble-cnn", "minutes": minutes}}
    return xdan.sweep(xdan.Lorenz96(), schemes, {"members": [2, 5, 10, 20, 40]}, **common)


def sites(minutes: float, common: dict[str, Any]) -> xr.Dataset:
    """Rings of several sizes: a network trained on each, and one network trained on 40 sites only."""
    network = {"network": "residual-cnn", "minutes": minutes}
    schemes = {"EnKF-N": ENKF, "retrained": network, "trained on 40 sites": {**network, "trained_on": {"sites": 40}}}
    return xdan.sweep(xdan.Lorenz96(), schemes, {"sites": [20, 40, 80, 160]}, **common)


def forcing(minutes: float, common: dict[str, Any]) -> xr.Dataset:
    """F, from a single wave to strong chaos. All models are stable with steps of 0.025."""
    schemes = {"EnKF-N": ENKF, "network": {"network": "residual-cnn", "minutes": minutes}}
    return xdan.sweep(xdan.Lorenz96(timestep=0.025), schemes, {"forcing": [4.0, 6.0, 8.0, 12.0, 16.0]}, **common)


def intervals(minutes: float, common: dict[str, Any]) -> xr.Dataset:
    """Time between analyses, up to more than two Lyapunov times."""
    network = {"network": "residual-cnn", "minutes": minutes}
    schemes = {"EnKF-N": ENKF, "network": network, "with memory": {**network, "memory": 8}}
    times = [0.05, 0.1, 0.2, 0.4, 0.6, 1.0, 1.4]
    return xdan.sweep(xdan.Lorenz96(), schemes, {"interval": times}, cycles=300, burn_in=100, **common)


def fine(minutes: float, common: dict[str, Any]) -> xr.Dataset:
    """Short times between analyses, in steps of 0.01."""
    network = {"network": "residual-cnn", "minutes": minutes, "window": 24}
    schemes = {"EnKF-N": ENKF, "network": network, "with memory": {**network, "memory": 8}}
    times = {"interval": [0.01, 0.02, 0.05]}
    return xdan.sweep(xdan.Lorenz96(timestep=0.01), schemes, times, cycles=1200, burn_in=800, **common)


FIGURES: dict[str, tuple[Callable[[float, dict[str, Any]], xr.Dataset], str, bool]] = {
    "noise": (noise, "error_std", True),
    "density": (density, "observe", False),
    "window": (window, "window", True),
    "filters": (filters, "filters", True),
    "channels": (channels, "memory", False),
    "members": (members, "members", True),
    "sites": (sites, "sites", True),
    "forcing": (forcing, "forcing", False),
    "intervals": (intervals, "interval", True),
    "fine": (fine, "interval", True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"some of {', '.join(FIGURES)}; all by default")
    parser.add_argument("--minutes", type=float, default=2.0, help="training time of each network")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--retry", action="store_true", help="run failed experiments again")
    parser.add_argument("--out", type=Path, default=Path("sweeps"))
    options = parser.parse_args()
    if unknown := sorted(set(options.figures) - set(FIGURES)):
        parser.error(f"no figures {unknown}; expected some of {sorted(FIGURES)}")
    options.out.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for name in options.figures or FIGURES:
        draw, along, logx = FIGURES[name]
        cube = draw(
            options.minutes, {"seeds": options.seeds, "store": options.out / f"{name}.zarr", "retry": options.retry}
        )
        pictures[str(draw.__doc__)] = picture = xdan.sweep_curves(cube, along, logx=logx, logy=True)
        xdan.save_page(options.out / f"{name}.html", {str(draw.__doc__): picture}, title=f"Lorenz-96: {name}")
        table = cube.rmse.mean("seed", skipna=False).to_pandas()
        print(f"{draw.__doc__}\n{table.to_string(float_format='{:.4f}'.format)}\n")
    xdan.save_page(options.out / "sweeps.html", pictures, title="Lorenz-96: sweeps")


if __name__ == "__main__":
    main()
