"""One-dimensional shallow water on a slope, with observed h and unobserved u: an ensemble, 3D-Var and a network.

    python examples/shallow_water.py [--minutes 10] [--out shallow-water]

Water runs down a slope around a ring against the drag of its bed. If it is fast (a Froude number above 2), the even
flow is unstable: roll waves form, overtake one another and merge, until two to four waves are left, which go round for
ever. Errors then neither grow nor decay, except for errors in the waves' places. So methods differ by how well they use
the past.

Depth and speed of the even flow are the units (Balmforth and Mandre 2004, doi:10.1017/S0022112004009930, Eq. 2.9 and
2.10), F is the Froude number and nu a viscosity:

    dh/dt = -d(h u)/dx
    du/dt = -u du/dx + (1 - u |u| / h - dh/dx) / F^2 + nu / h d(h du/dx)/dx

The program prints a table: for each method the analysis RMSE of h and u, its standard error, the spread, the tuned
parameters and the time in seconds. The table, a page and its picture are written into the folder --out. Training takes
--minutes; 0 leaves the network out. Fewer --trajectories and --cycles are faster.
"""

from __future__ import annotations

import torch

import xdan

from common import arguments, compare, save_pictures


@xdan.register_dynamics
class RollWaves(xdan.Dynamics, pure=True):
    """Depth h and speed u on a ring, centred differences of second order."""

    name = "roll-waves"
    spin_up_time = 1200.0

    def __init__(
        self,
        points: int = 100,
        length: float = 100.0,
        froude: float = 3.0,
        viscosity: float = 0.3,
        timestep: float = 1.0,
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
        film = h.clamp_min(0.2)  # depth for pressure and drag: an analysis may remove more water than exists
        per_length, gravity = self.points / self.length, 1.0 / self.froude**2
        all_three = torch.stack([h, u, film])
        ring = torch.cat([all_three[..., -1:], all_three, all_three[..., :1]], -1)
        (h_left, u_left, film_left), (h_right, u_right, film_right) = ring[..., :-1], ring[..., 1:]  # a point, the next
        depth, viscosity = 0.5 * (film_left + film_right), self.viscosity * per_length
        # The last term makes jumps wider.
        volume = 0.5 * (h_left * u_left + h_right * u_right) - 0.3 * viscosity * (h_right - h_left)
        energy = 0.25 * (u_left.square() + u_right.square()) + gravity * depth
        friction = viscosity * depth * (u_right - u_left)
        volume, energy, friction = (torch.stack([volume, energy, friction]) * per_length).diff(dim=-1)
        return self.space.pack({"h": -volume, "u": gravity * (1.0 - u * u.abs() / film) - energy + friction / film})


METHODS = {
    "3D-Var, trained B": ("3d-var", {"background": "trained", "candidates": {"scale": [0.01, 0.03, 0.1, 0.3, 1.0]}}),
    "ETKF, 40 members": ("etkf", {"members": 40, "inflation": 1.02, "rotate": True}),
}
SHOWN = ("ETKF, 40 members", "network")


def main() -> None:
    options = arguments(
        __doc__, "shallow-water", cycles=150, burn_in=100, archive=2048, points=100, batch=16, window=12
    )
    model = RollWaves(options.points, length=float(options.points))
    experiment = xdan.TwinExperiment(model, interval=5.0, observe={"h": xdan.Sites.every(10)}, error_std=0.1)
    network = xdan.ResidualCNN(space=model.space, filters=16, blocks=4, kernel=5, memory=6)
    # The root of the error is drawn, so that trajectories that have lost a wave do not hide the others.
    slow = {"objective": "rmse", "optimiser": xdan.Optimiser(learning_rate=0.005, adam_learning_rate=0.001)}
    runs = compare(experiment, METHODS, options, network, **slow)
    test = runs.pop("truth")
    shown = [label for label in SHOWN if label in runs]
    pages = {f"A trajectory, {label}": test.dan.hovmoller(runs[label], title=label) for label in shown}
    pages["All methods"] = test.dan.rmse_in_time(runs, log=True)
    save_pictures(options.out / "shallow-water", pages, title="Shallow water on a slope")


if __name__ == "__main__":
    main()
