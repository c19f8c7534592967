"""Barotropic vorticity on a doubly periodic plane of 32 x 32 points: the model, an ensemble, 3D-Var and a network.

    python examples/barotropic_vorticity.py [--minutes 10] [--out barotropic-vorticity]

A steady force drives four unstable jets (a Kolmogorov flow). Drag limits the eddies, and a diffusion of fourth order
removes the smallest scales of the grid. The motion is chaotic: small errors grow at a rate of about 0.25.

    dw/dt = -J(psi, w) + A cos(n y) - r w - nu laplacian^2 w,   laplacian psi = w

J is computed on the grid and de-aliased by the two-thirds rule. Steps are Runge-Kutta 4. The flow is statistically
steady: from t = 0 to 160 after the spin-up, four trajectories have a mean energy of 0.172 to 0.176 in each quarter.

The program prints a table: for each method the analysis RMSE, its standard error, the spread, the tuned parameters and
the time in seconds. The table, a page and its picture are written into the folder --out. Training takes --minutes; 0
leaves the network out. Fewer --trajectories and --cycles are faster.
"""

from __future__ import annotations

import math

import torch

import xdan

from common import arguments, compare, save_pictures


@xdan.register_dynamics
class BarotropicVorticity(xdan.Dynamics, pure=True):
    """Vorticity on a plane of 2 pi x 2 pi, spectral."""

    name = "barotropic-vorticity"
    spin_up_time = 40.0

    def __init__(
        self,
        points: int = 32,
        jets: int = 4,
        amplitude: float = 1.0,
        drag: float = 0.1,
        diffusion: float = 3e-5,
        timestep: float = 0.1,
    ) -> None:
        self.points, self.jets, self.amplitude = points, jets, amplitude
        self.drag, self.diffusion, self.timestep = drag, diffusion, timestep
        plane = xdan.Plane((points, points), lengths=(2 * math.pi, 2 * math.pi))
        self.space = xdan.StateSpace(xdan.Field("vorticity", plane, conserved=True))
        down = torch.fft.fftfreq(points, 1 / points, dtype=torch.float64)[:, None]
        across = torch.fft.rfftfreq(points, 1 / points, dtype=torch.float64)[None]
        square = down**2 + across**2
        self._kept = (
            (down.abs() <= points // 3) & (across <= points // 3)
        ).double()  # without waves that would be aliased
        self._inverse = torch.where(square > 0, -1.0 / square.clamp(min=1.0), 0.0)
        self._damping = drag + diffusion * square**2
        x, y = 1j * across * self._kept, 1j * down * self._kept
        self._derivatives = torch.stack([x * self._inverse, y * self._inverse, x, y])  # derivatives of psi and of w
        place = torch.arange(points, dtype=torch.float64) * (2 * math.pi / points)
        self._force = (amplitude * torch.cos(jets * place))[:, None]

    def rest(self, noise: torch.Tensor) -> torch.Tensor:
        """Vorticity with mean zero, as the mean vorticity of a periodic plane is zero."""
        return noise - noise.mean((-2, -1), keepdim=True)

    def tendency(self, w: torch.Tensor) -> torch.Tensor:
        modes, size = torch.fft.rfft2(w), (self.points, self.points)
        kept, damping, force = (one.to(w) for one in (self._kept, self._damping, self._force))
        gradients = torch.fft.irfft2(modes.unsqueeze(-3) * self._derivatives.to(modes), s=size)
        psi_x, psi_y, w_x, w_y = gradients.unbind(-3)
        advected = torch.fft.rfft2(psi_y * w_x - psi_x * w_y) * kept
        return torch.fft.irfft2(advected - damping * modes, s=size) + force


METHODS = {
    "3D-Var, trained B": ("3d-var", {"background": "trained", "candidates": {"scale": [0.01, 0.03, 0.1, 0.3, 1.0]}}),
    "LETKF, 20 members": ("letkf", {"members": 20, "radius": 1.0, "inflation": 1.05}),
}
SHOWN = ("LETKF, 20 members", "network")


def main() -> None:
    options = arguments(
        __doc__,
        "barotropic-vorticity",
        cycles=100,
        burn_in=100,
        trajectories=8,
        archive=2048,
        points=32,
        batch=16,
        window=8,
    )
    model = BarotropicVorticity(options.points)
    experiment = xdan.TwinExperiment(model, interval=0.5, observe=xdan.Sites.every(2), error_std=0.5)
    network = xdan.ResidualCNN(space=model.space, filters=24, blocks=4, kernel=3, memory=6)
    runs = compare(experiment, METHODS, options, network)
    test = runs.pop("truth")
    shown = [label for label in SHOWN if label in runs]
    pages = {f"A trajectory, {label}": test.dan.field_maps(runs[label], title=label) for label in shown}
    pages["All methods"] = test.dan.rmse_in_time(runs, log=True)
    save_pictures(options.out / "barotropic-vorticity", pages, title="Barotropic vorticity")


if __name__ == "__main__":
    main()
