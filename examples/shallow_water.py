"""One-dimensional shallow water on a slope, h observed and u not: the model, an ensemble, 3D-Var and a network.

    python examples/shallow_water.py [--minutes 10] [--out shallow-water]

Water runs down a slope around a ring against the drag of its bed. Where it is fast (a Froude number above 2) the even
flow is unstable: roll waves form, overtake one another and merge, and new ones grow in the gaps. Nothing is drawn at
random, and the motion never stops: gravity drives it. Errors grow slowly, by a rate of about 0.014.

With depth and speed of the even flow as units (Balmforth and Mandre 2004, doi:10.1017/S0022112004009930, Eq. 2.9 and
2.10), F the Froude number and nu a viscosity:

    dh/dt = -d(h u)/dx
    du/dt = -u du/dx + (1 - u |u| / h - dh/dx) / F^2 + nu / h d(h du/dx)/dx

It prints a table: the analysis RMSE of h and u of each method, its standard error, its spread, what was tuned and the
seconds that the method took. The table, a page and its picture are kept in the folder --out. Training takes --minutes,
and 0 leaves the network out. The ensembles take longest, as their inflation is tuned on another record;
fewer --trajectories and --cycles are quicker.
"""

from __future__ import annotations

import torch

import xdan

from common import arguments, compare, save_pictures


@xdan.register_dynamics
class RollWaves(xdan.Dynamics, pure=True):
    """Depth h and speed u on a ring, centred differences of second order."""

    name = "roll-waves"
    spin_up_time = 150.0

    def __init__(
        self,
        points: int = 100,
        length: float = 100.0,
        froude: float = 3.0,
        viscosity: float = 0.3,
        timestep: float = 0.1,
    ) -> None:
        self.points, self.length, self.froude = points, length, froude
        self.viscosity, self.timestep = viscosity, timestep
        ring = xdan.Ring(points, length, long_name="way down the slope")
        self.space = xdan.StateSpace(
            [xdan.Field("h", ring, long_name="depth", conserved=True), xdan.Field("u", ring, long_name="speed")]
        )

    def rest(self, noise: torch.Tensor) -> torch.Tensor:
        """The even flow and small waves, each ring with the same volume of water."""
        wave = self.space.unpack(0.05 * noise)
        return self.space.pack({"h": 1.0 + wave["h"] - wave["h"].mean(-1, keepdim=True), "u": 1.0 + wave["u"]})

    def tendency(self, x: torch.Tensor) -> torch.Tensor:
        h, u = self.space.unpack(x).values()
        spacing = self.length / self.points

        def slope(f: torch.Tensor) -> torch.Tensor:
            return (f.roll(-1, -1) - f.roll(1, -1)) / (2 * spacing)

        def diffused(f: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            flux = (weight + weight.roll(-1, -1)) / 2 * (f.roll(-1, -1) - f) / spacing  # between a point and the next
            return self.viscosity * (flux - flux.roll(1, -1)) / spacing

        dh = -slope(h * u) + 0.3 * diffused(h, torch.ones_like(h))  # keeps jumps as wide as the grid
        du = -slope(u.square() / 2) + (1.0 - u * u.abs() / h - slope(h)) / self.froude**2 + diffused(u, h) / h
        return self.space.pack({"h": dh, "u": du})


METHODS = {
    "3D-Var, trained B": ("3d-var", {"background": "trained"}),
    "ETKF, 20 members": ("etkf", {"members": 20, "inflation": "tune", "rotate": True}),
    "LETKF, 20 members": ("letkf", {"members": 20, "radius": 8.0, "inflation": "tune"}),
}
SHOWN = ("ETKF, 20 members", "network")


def main() -> None:
    options = arguments(__doc__, "shallow-water", cycles=150, burn_in=100, archive=2048, points=100)
    model = RollWaves(options.points, length=float(options.points))
    experiment = xdan.TwinExperiment(model, interval=2.0, observe={"h": xdan.Sites.every(4)}, error_std=0.1)
    network = xdan.ResidualCNN(space=model.space, filters=24, blocks=5, kernel=5, memory=8)
    runs = compare(experiment, METHODS, options, network)
    test = runs.pop("truth")
    shown = [label for label in SHOWN if label in runs]
    pages = {f"A trajectory, {label}": test.dan.hovmoller(runs[label], title=label) for label in shown}
    pages["All methods"] = test.dan.rmse_in_time(runs, log=True)
    save_pictures(options.out / "shallow-water", pages, title="Shallow water on a slope")


if __name__ == "__main__":
    main()
