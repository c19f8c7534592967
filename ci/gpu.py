"""Checks on a GPU: results against those of the CPU, the speed of training, and networks trained for some minutes.

    python ci/gpu.py --out gpu-out [--minutes 7] [--networks memory plain] [--on lorenz96-wide-memory] [--device cuda]

The parts are independent: a part that fails prints why, and the next part goes on. Each trained network is a store in a
tar file in the folder --out, which is saved when its training ends. With --device cpu and small numbers the script runs
on any machine; a test does this. Several networks share a GPU better if CUDA's multi-process service runs
(`nvidia-cuda-mps-control -d`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import xdan
from xdan.core import methods
from xdan.core.learning import Optimiser, objective_by_name
from xdan.core.learning.gradient import CudaGraph, OneProcess
from xdan.core.learning.online_twin import EndlessTwin
from xdan.core.methods import Record, method_of, run, smooth
from xdan.core.networks import (
    AnalysisNetwork,
    ConstantGain,
    EnsembleCNN,
    GaussianCNN,
    HyperGain,
    KalmanCNN,
    LearnedLETKF,
    LinearInZeta,
    ModuleNetwork,
    ResidualCNN,
)
from xdan.core.observing import ObservingSystem, Sites

sys.path.insert(0, str(Path(__file__).parent / "bench"))
from training import WINDOW, our_step, plain_step, rate

METHODS: dict[str, dict[str, Any]] = {
    "ThreeDVar": {},
    "ETKF": {"members": 20},
    "LETKF": {"members": 20},
    "StochasticEnKF": {"members": 20},
    "FiniteSizeEnKF": {"members": 20},
    "FiniteSizeIEnKF": {"members": 20},
    "FiniteSizeIEnKS": {"members": 20, "lag": 3},
    "ExtendedKalmanFilter": {"inflation": 1.05},
    "FourDVar": {"scale": 0.02},
    "EAKF": {"members": 20, "radius": 8.0},
    "RankHistogramFilter": {"members": 20, "radius": 8.0, "inflation": 1.1},
    "DEnKF": {"members": 20},
    "HybridEnVar": {"members": 20, "radius": 8.0},
    "ESMDA": {"members": 20},
    "EnsembleKalmanSmoother": {"members": 20, "lag": 3},
}
SMOOTHED = ("ETKF", "ExtendedKalmanFilter")  # by a backward pass
DECAYED = Optimiser(learning_rate=0.012, adam_learning_rate=0.0024, weight_decay=0.1)
NETWORKS: dict[str, dict[str, Any]] = {
    "memory": {"filters": 40, "blocks": 5, "kernel": 5, "memory": 16},
    "plain": {"filters": 40, "blocks": 5, "kernel": 5},
    "wide-memory": {"filters": 64, "blocks": 5, "kernel": 5, "memory": 24},
    "wide-plain": {"filters": 64, "blocks": 5, "kernel": 5},
    "wider-memory": {"filters": 96, "blocks": 5, "kernel": 5, "memory": 32},
}


class Attending(torch.nn.Module):
    """A network as users bring them: attention over the sites, with memory."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = torch.nn.Linear(4, 16)
        self.attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
        self.leave = torch.nn.Linear(16, 3)

    def forward(self, x: Tensor, zeta: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        features = self.enter(torch.cat([x[:, None], zeta[:, None], memory], 1).mT)
        out = self.leave(torch.tanh(features + self.attention(features, features, features, need_weights=False)[0])).mT
        return x + 0.1 * out[:, 0], torch.tanh(out[:, 1:])


def main() -> None:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.train:
        train(options.train, options)
        return
    begin = time.perf_counter()
    if options.device == "cuda":
        print(torch.__version__, torch.cuda.get_device_name(0), flush=True)
    part("CPU and device, float64", lambda: agreement(options.device))
    part("a CUDA graph and plain passes, float64", lambda: graphs(options.device))
    part("training speed", lambda: rates(options.device, options.batches, options.seconds))
    left = max(1.0, 60 * options.minutes - (time.perf_counter() - begin))
    part("training", lambda: side_by_side(options, left / 60))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-out"))
    parser.add_argument("--minutes", type=float, default=7.0, help="for all parts together")
    parser.add_argument("--networks", nargs="*", default=["memory", "plain"], choices=sorted(NETWORKS))
    parser.add_argument(
        "--on", nargs="*", default=[], help="trained networks, names or stores, to train on; A+B: a committee"
    )
    parser.add_argument("--rate", type=float, default=0.004, help="learning rate of those")
    parser.add_argument("--batches", type=int, nargs="*", default=[256, 1024, 4096])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each rate")
    parser.add_argument("--batch", type=int, default=256, help="of the networks that are trained")
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--train", help=argparse.SUPPRESS)  # of one process
    return parser.parse_args()


def part(title: str, work: Callable[[], None]) -> None:
    """Run a part. If it fails, print why."""
    begin = time.perf_counter()
    try:
        work()
    except Exception:
        print(f"[{title}] FAILED\n{traceback.format_exc(limit=-4)}", flush=True)
    print(f"[{title}] {time.perf_counter() - begin:.1f} s", flush=True)


def twin(batch: int, cycles: int, like: Tensor, groups: int = 1) -> EndlessTwin:
    """Lorenz-96, all sites observed with errors of 1."""
    observing = ObservingSystem(like.new_ones(()))
    sizes = {"trajectories": batch * groups, "batch": batch, "cycles": cycles}
    return EndlessTwin(xdan.Lorenz96(), Sites.all(), observing, steps=1, seed=0, like=like, **sizes)


def networks() -> dict[str, AnalysisNetwork]:
    """A small network of each kind, in double precision."""
    torch.manual_seed(0)
    small = {"filters": 8, "blocks": 2}
    made = {
        "residual CNN": ResidualCNN(**small),
        "residual CNN with memory": ResidualCNN(**small, memory=4),
        "linear in zeta": LinearInZeta(form="hypernetwork", **small),
        "beside a Kalman filter": KalmanCNN(**small, memory=4),
        "beside columns": KalmanCNN(**small, memory=4, columns=24, inflation=1.05),
        "Gaussian": GaussianCNN(**small, memory=4),
        "gain of a 3D-Var": HyperGain(**small),
        "constant gain": ConstantGain(),
        "ensemble CNN": EnsembleCNN(**small, members=6),
        "learned LETKF": LearnedLETKF(members=10, spin_up=5),
        "torch module": ModuleNetwork(Attending(), memory=2, normalised=True),
    }
    for network in made.values():
        network.double().normalise(2.3, 3.6, 1.0)
    return made


def agreement(device: str) -> None:
    """Print the largest difference between analyses on the CPU and on the device."""
    source = twin(4, 30, torch.zeros((), dtype=torch.float64))
    window = source.window(0)
    # What each device spins up for itself, from one noise, is another stretch of the attractor.
    model = source.dynamics.with_climatology(source.dynamics.climatology(range(1024), seed=1)[:, 0])

    def record(device: str) -> Record:
        observing = source.observing.to(torch.float64, device)
        tensors = window.observation.to(device), [0, *window.steps[1:]], source.trajectory, 0
        return Record(model, observing, *tensors, window.truth.to(device))  # type: ignore[union-attr]

    here, there = record("cpu"), record(device)
    for name, settings in METHODS.items():
        pair = [run(getattr(methods, name)(**settings).prepare(one), one)[0]["analysis"].cpu() for one in (here, there)]
        print(f"  {name:26s} {float((pair[0] - pair[1]).abs().max()):.1e}", flush=True)
    for name in SMOOTHED:
        pair = [smooth(getattr(methods, name)(**METHODS[name]).prepare(one), one)[0] for one in (here, there)]
        pair = [outputs["smoothed"].cpu() for outputs in pair]
        print(f"  {name + ', smoothed':26s} {float((pair[0] - pair[1]).abs().max()):.1e}", flush=True)
    for name, network in networks().items():
        with torch.no_grad():
            pair = [
                run(method_of(network.to(one)), record(one))[0]["analysis"][:, :10].cpu() for one in ("cpu", device)
            ]
        print(f"  {name:26s} {float((pair[0] - pair[1]).abs().nan_to_num().max()):.1e} in 10 cycles", flush=True)


def graphs(device: str) -> None:
    """Print how gradients that a CUDA graph replays differ from plain gradients, over consecutive windows."""
    for name, network in networks().items():
        source = twin(8, 6, torch.zeros((), dtype=torch.float64, device=device), groups=2)
        task = network.to(device), source.dynamics, source.observing, objective_by_name("mse")
        plain = OneProcess(*task)
        graph = CudaGraph(*task) if device == "cuda" else OneProcess(*task)
        states: dict[int, Any] = {}
        worst = 0.0
        for index in range(8):
            window = source.window(index)
            one, other = (gradient(window, states.get(window.group)) for gradient in (plain, graph))
            states[window.group] = one.state
            worst = max(
                worst, *(float((a - b).norm() / a.norm()) for a, b in zip(one.gradients, other.gradients, strict=True))
            )
            worst = max(worst, float((one.state["x"] - other.state["x"]).abs().max()))
        print(f"  {name:26s} {worst:.1e}, largest relative difference", flush=True)


def rates(device: str, batches: list[int], seconds: float) -> None:
    """Print samples x cycles a second: with replayed graphs, pass by pass, and for the plain loop of library layers."""
    ceiling = product_rate(device)
    print(f"  float32 products of this device: {ceiling / 1e12:.1f} TFLOP/s; windows of {WINDOW}")
    for batch in batches:
        network = ResidualCNN(**NETWORKS["memory"])
        # Six operations for each weight, site and sample: two forward, four backward.
        operations = 6 * 40 * sum(p.numel() for p in network.parameters())
        row = []
        ours, trainer = our_step(network, batch, device=device)
        row.append(("ours", timed(ours, batch, seconds)))
        task = trainer.network, xdan.Lorenz96(), trainer.gradient.observing, trainer.objective  # type: ignore[attr-defined]
        trainer.gradient.close()
        trainer.gradient = OneProcess(*task)
        row.append(("ours without a graph", timed(ours, batch, seconds)))
        for label, bfloat16 in (("plain", False), ("plain, bfloat16", True)):
            row.append(
                (label, timed(plain_step(ResidualCNN(**NETWORKS["memory"]), batch, device, bfloat16), batch, seconds))
            )
        text = "; ".join(f"{label} {value:,.0f}" for label, value in row)
        share = row[0][1] * operations / ceiling
        memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
        print(
            f"  batch {batch}: {text} samples x cycles / s; {share:.0%} of the products; {memory:.1f} GiB", flush=True
        )


def timed(step: Callable[[], None], batch: int, seconds: float) -> float:
    """Rate of a step that reads a number back from the device. The first few steps are not counted."""
    for _ in range(4):
        step()
    return rate(step, batch, seconds)


def product_rate(device: str) -> float:
    """Operations a second of large float32 matrix products."""
    size = 8192 if device == "cuda" else 512
    a = torch.randn(size, size, device=device)
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    (a @ a, wait())
    begin = time.perf_counter()
    for _ in range(5):
        a @ a
    wait()
    return 5 * 2 * size**3 / (time.perf_counter() - begin)


def side_by_side(options: argparse.Namespace, minutes: float) -> None:
    """Train every network in a separate process, as a single network does not use a GPU fully."""
    words = ["--out", options.out, "--device", options.device, "--batch", options.batch, "--window", options.window]
    words += ["--rate", options.rate]
    command = [sys.executable, __file__, *map(str, words), "--minutes", f"{minutes:.3f}"]
    children = [subprocess.Popen([*command, "--train", name]) for name in [*options.networks, *options.on]]
    for child in children:
        child.wait()


def train(name: str, options: argparse.Namespace) -> None:
    """Train a new network, or train one on, for the minutes; save it and print its history."""
    begin = time.perf_counter()
    torch.set_float32_matmul_precision("high")  # products in TF32 on a GPU: the gradient is noisier than that
    experiment = xdan.TwinExperiment(xdan.Lorenz96(), interval=0.05)
    network: Any
    if name in NETWORKS:
        network, optimiser = ResidualCNN(**NETWORKS[name]), DECAYED
    else:
        stores = name.split("+")
        parts = [xdan.open_network(store) for store in stores]
        network = parts[0] if len(parts) == 1 else xdan.committee(parts)
        optimiser = Optimiser(learning_rate=options.rate, adam_learning_rate=options.rate / 5, weight_decay=0.1)
        name = "+".join(Path(store).stem for store in stores) + "-on"
    spare = 0.3 if options.minutes > 1 else 0.0  # to start and to save
    net = xdan.train(
        experiment,
        network,
        objective="mse",
        window=options.window,
        batch=options.batch,
        minutes=options.minutes - spare,
        optimiser=optimiser,
        validate_every=1000,
        seed=1,
        device=options.device,
        progress=False,
    )
    store = options.out / f"{name}.zarr"
    net.to_zarr(store, mode="w")
    with tarfile.open(options.out / f"{name}.tar", "w") as archive:
        archive.add(store, f"{name}.zarr")
    history = net.history
    for step in range(0, history.sizes["step"], max(1, history.sizes["step"] // 8)):
        row = history.isel(step=step)
        print(
            f"  {name}: step {int(row.step)}, {float(row.seconds):.0f} s, {float(row.validation_rmse):.4f}", flush=True
        )
    seconds = time.perf_counter() - begin
    best = net.description["training"]["validation_rmse"]
    print(f"  {name}: best validation RMSE {best:.4f}, step {int(history.step[-1])}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
