"""Speed of the flow on the sphere against a plain NumPy model with the same transforms, on one thread and on two.

    python ci/bench/sphere_qg.py [--truncation 21] [--batch 64] [--steps 24] [--repeats 5] [--threads 1 2]

Float32. The NumPy models follow textbooks: a Fourier transform along each circle of latitude, then a product with
Legendre functions for each m. One model takes one state after another, the other takes the whole batch. They run on
the threads of NumPy's library. Each row is the best of `--repeats`, in turns, so that a busy machine slows all equally.

The last lines are the rate of floating-point operations of the Legendre products alone, and of all products in a step,
as shares of that of a product of square matrices.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

import xdan
from xdan.core.dynamics import sphere_qg
from xdan.core.dynamics.spherical_harmonics import legendre_functions


class PlainModel:
    """The model by Fourier transforms and Legendre products, in NumPy; states of shape (..., rows, columns).

    A wave m is a complex number on each row, and its coefficients have the shape (..., m, n).
    """

    def __init__(self, model: xdan.SphereQG) -> None:
        self.count, (rows, self.columns) = model.truncation + 1, model.shape
        sine, weight = np.polynomial.legendre.leggauss(rows)
        values, slopes = legendre_functions(model.truncation, sine)
        values[:, :, 0] = 0.0  # psi has no mean
        m, n = np.arange(self.count)[:, None], np.arange(self.count)
        laplacian = n * (n + 1.0)
        stretched = laplacian + (sphere_qg.RADIUS / model.deformation_radius) ** 2
        wind = laplacian / stretched
        relaxing = np.where(m == 0, wind / model.relaxation, 0.0)
        flow = model._flow(torch.zeros((), dtype=torch.float64))
        jets = np.append(0.0, model._jets(flow)[0, :, 0].numpy())
        share = (weight / np.where(m == 0, 2.0, 4.0))[..., None]  # waves of m > 0 have two complex numbers
        curved = share / (1 - sine**2)[:, None] / stretched

        def single(array: np.ndarray) -> np.ndarray:
            return np.ascontiguousarray(array, dtype=np.float32)

        self.h, self.along_lon = np.float32(model.timestep), (1j * m).astype(np.complex64)
        self.values, self.slopes, self.q = single(values), single(slopes), single(-values * stretched)
        self.analysis = single((values * share).mT)
        self.flux_values, self.flux_slopes = single(-(values * curved).mT), single(-(slopes * curved).mT)
        self.damping = single(relaxing + wind / model.drag + (laplacian / laplacian[-1]) ** 4 / model.diffusion)
        self.force = single(relaxing * jets)
        self.planetary = single(flow.harmonics.from_halves(model._planetary)[0].numpy())

    def advance(self, states: np.ndarray, steps: int) -> np.ndarray:
        scale, h = np.float32(sphere_qg.SCALE), self.h
        waves = product(self.analysis, self.to_rows(states / scale))
        for _ in range(steps):
            k1 = self.tendency(waves)
            k2 = self.tendency(waves + h / 2 * k1)
            k3 = self.tendency(waves + h / 2 * k2)
            k4 = self.tendency(waves + h * k3)
            waves = waves + h / 6 * (k1 + 2 * (k2 + k3) + k4)
        return scale * self.to_grid(self.values, waves)

    def tendency(self, waves: np.ndarray) -> np.ndarray:
        q = self.to_grid(self.q, waves) + self.planetary
        along_lon = self.to_grid(self.values, self.along_lon * waves)
        along_lat = self.to_grid(self.slopes, waves)
        change = product(self.flux_values, self.along_lon * self.to_rows(along_lat * q))
        return change + product(self.flux_slopes, self.to_rows(along_lon * q)) + self.force - self.damping * waves

    def to_grid(self, legendre: np.ndarray, waves: np.ndarray) -> np.ndarray:
        rows = product(legendre, waves).swapaxes(-1, -2)
        return np.fft.irfft(rows, self.columns, norm="forward")

    def to_rows(self, fields: np.ndarray) -> np.ndarray:
        return np.fft.rfft(fields, norm="forward")[..., : self.count].swapaxes(-1, -2)


def product(matrices: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """Real matrices (m, i, j) times complex vectors (..., m, j)."""
    parts = np.ascontiguousarray(waves).view(np.float32).reshape(*waves.shape, 2)
    return np.ascontiguousarray(np.matmul(matrices, parts)).view(np.complex64)[..., 0]


def seconds(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Shortest time of some calls of each function, in turns."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def rates(model: xdan.SphereQG, batch: int, steps: int, repeats: int) -> dict[str, float]:
    """Operations a second, in 1e9: of a product of square matrices, of the Legendre products, of whole steps."""
    columns = min(batch, sphere_qg._COLUMNS)
    flow = model._flow(torch.zeros(()))
    synthesis, analysis = flow._synthesis, flow._by_lat
    square, x = torch.randn(768, 768), model.rest(torch.randn(batch, *model.shape))
    waves, rows = torch.randn(*synthesis.shape[::2], columns), torch.randn(*analysis.shape[::2], columns)
    legendre = 2 * columns * (synthesis.numel() + 2 * analysis.numel())
    fourier = 2 * columns * 5 * model.shape[0] * flow.harmonics.waves.numel()

    def products() -> None:
        for _ in range(20):
            torch.bmm(synthesis, waves)
            torch.baddbmm(torch.bmm(analysis, rows), analysis, rows)

    took = seconds(
        {
            "square matrices": lambda: [square @ square for _ in range(4)],
            "Legendre products": products,
            "whole steps": lambda: model.advance(x, steps),
        },
        repeats,
    )
    operations = {
        "square matrices": 4 * 2 * 768**3,
        "Legendre products": 20 * legendre,
        "whole steps": steps * batch / columns * 4 * (legendre + fourier),
    }
    return {name: operations[name] / took[name] / 1e9 for name in took}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truncation", type=int, default=21)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=24, help="of xdan in a timing; NumPy takes a quarter")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    model = xdan.SphereQG(options.truncation)
    plain = PlainModel(model)
    x = model.advance(model.rest(torch.randn(options.batch, *model.shape)), 48)
    states, few = x.numpy(), max(1, options.steps // 4)
    apart = np.abs(plain.advance(states[:4], 8) - model.advance(x[:4], 8).numpy()).max() / np.abs(states).max()
    print(f"T{options.truncation}, {options.batch} states; after 8 steps the two models differ by {apart:.1e} of psi\n")
    table = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        took = seconds(
            {
                "xdan": lambda: model.advance(x, options.steps),
                "NumPy, a state at a time": lambda: [plain.advance(state, few) for state in states],
                "NumPy, all at once": lambda: plain.advance(states, few),
            },
            options.repeats,
        )
        speed = {name: (options.steps if name == "xdan" else few) * len(x) / took[name] for name in took}
        for name, each in speed.items():
            table.append({"threads": threads, "model": name, "steps x states / s": f"{each:,.0f}"})
            table[-1]["xdan is faster by"] = f"{speed['xdan'] / each:.1f}"
    print(pd.DataFrame(table).to_string(index=False))
    for threads in options.threads:
        torch.set_num_threads(threads)
        speeds = rates(model, options.batch, options.steps, options.repeats)
        peak = speeds["square matrices"]
        shares = ", ".join(f"{name} {rate:.0f} ({rate / peak:.0%})" for name, rate in speeds.items())
        print(f"{threads} threads, 1e9 operations a second: {shares}")


if __name__ == "__main__":
    main()
