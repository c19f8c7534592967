"""Training: samples x cycles per second, against the plainest loop with the same network and batch.

    python ci/bench/training.py [--jax PYTHON]

The plain loop is the first that one would write: `torch.nn.Conv1d` with circular padding, `torch.roll` in the model,
autograd through everything, xdan's optimisers, and torch's threads on all cores. xdan shares the trajectories of a
batch between as many processes. Both train on one endless twin. With --jax, the interpreter of an environment that has
JAX, they are compared with a jitted loop of this network (`jax_peer.py`), each on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import xdan
from xdan.core.learning import Optimiser, objective_by_name
from xdan.core.learning.online_twin import EndlessTwin
from xdan.core.learning.trainer import Trainer
from xdan.core.networks import ResidualCNN
from xdan.core.observing import ObservingSystem, Sites

WINDOW = 12


class PlainCNN(nn.Module):
    """The network made of library layers, with features (batch, channels, sites)."""

    def __init__(self, like: ResidualCNN) -> None:
        super().__init__()
        self.memory, self.filters = like.memory, like.filters
        sizes = [(2 + like.memory, like.filters), *[(like.filters, 2 * like.filters)] * like.blocks]
        sizes.append((like.filters, 1 + 2 * like.memory))
        pad = like.kernel // 2
        self.layers = nn.ModuleList(
            nn.Conv1d(a, b, like.kernel, padding=pad, padding_mode="circular") for a, b in sizes
        )
        with torch.no_grad():
            for layer, weight, bias in zip(self.layers, like.weights, like.biases, strict=True):
                layer.weight.copy_(weight.view(len(weight), like.kernel, -1).transpose(1, 2))
                layer.bias.copy_(bias)
        self.alpha = nn.Parameter(torch.tensor(0.4))

    def forward(self, x: Tensor, zeta: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        h = self.layers[0](torch.cat([torch.stack([(x - 2.3) / 3.6, zeta], 1), memory], 1))
        for layer in self.layers[1:-1]:
            linear, gate = layer(h).chunk(2, 1)
            h = h + linear * torch.tanh(gate)
        out = self.layers[-1](h)
        if self.memory:
            gate, candidate = torch.sigmoid(out[:, 1 : 1 + self.memory]), torch.tanh(out[:, 1 + self.memory :])
            memory = (1 - gate) * memory + gate * candidate
        return x + self.alpha * zeta + out[:, 0], memory


def tendency(x: Tensor) -> Tensor:
    return (x.roll(-1, -1) - x.roll(2, -1)) * x.roll(1, -1) - x + 8.0


def rk4(x: Tensor, h: float = 0.05) -> Tensor:
    k1 = tendency(x)
    k2 = tendency(x + h / 2 * k1)
    k3 = tendency(x + h / 2 * k2)
    k4 = tendency(x + h * k3)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def plain_step(network: ResidualCNN, batch: int, device: str = "cpu", bfloat16: bool = False) -> Callable[[], None]:
    """One gradient step of the plain loop, as a function; the network's products in bfloat16 on request."""
    net = PlainCNN(network).to(device)
    matrices = {id(layer.weight): layer.weight for layer in net.layers[:-1]}
    adam = torch.optim.Adam([p for p in net.parameters() if id(p) not in matrices], lr=2e-3)
    # torch's Muon takes matrices only.
    flat = [nn.Parameter(w.detach().flatten(1)) for w in matrices.values()]
    muon = torch.optim.Muon(flat, lr=0.01, weight_decay=0.0)
    truth = xdan.Lorenz96().climatology(torch.arange(batch), 0)[:, 0].to(device)
    state = {"truth": truth, "x": truth + torch.randn_like(truth), "m": truth.new_zeros(batch, net.memory, 40)}

    def step() -> None:
        truth, x, memory = state["truth"], state["x"], state["m"]
        loss = truth.new_zeros(())
        for _ in range(WINDOW):
            observation = truth + torch.randn_like(truth)
            with torch.autocast(truth.device.type, torch.bfloat16, enabled=bfloat16):
                x, memory = net(x, observation - x, memory)
            loss = loss + ((x - truth) ** 2).mean(-1).sqrt().mean()
            with torch.no_grad():
                truth = rk4(truth)
            x = rk4(x)
        net.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        for parameter, weight in zip(flat, matrices.values(), strict=True):
            parameter.grad = weight.grad.flatten(1)
        muon.step()
        with torch.no_grad():
            for parameter, weight in zip(flat, matrices.values(), strict=True):
                weight.copy_(parameter.view_as(weight))
        state.update(truth=truth, x=x.detach(), m=memory.detach())

    return step


def our_step(
    network: ResidualCNN, batch: int, processes: int = 1, device: str = "cpu"
) -> tuple[Callable[[], None], Trainer]:
    """One gradient step of the trainer, its batch shared between processes; and the trainer, to be closed."""
    model, observing = xdan.Lorenz96(), ObservingSystem(torch.tensor(1.0, device=device))
    network = network.to(device)
    network.normalise(2.3, 3.6, 1.0)
    source = EndlessTwin(
        model,
        Sites.all(),
        observing,
        steps=1,
        trajectories=batch,
        batch=batch,
        cycles=WINDOW,
        seed=0,
        like=torch.zeros((), device=device),
    )
    trainer = Trainer(network, model, observing, objective_by_name("rmse"), Optimiser(), processes)

    def step() -> None:
        trainer.step(source.window(trainer.step_count), 0.5)

    return step, trainer


def rate(step: Callable[[], None], batch: int, seconds: float) -> float:
    """Samples x cycles per second."""
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        step()
        count += 1
    return count * batch * WINDOW / (time.perf_counter() - begin)


def beside_jax(interpreter: str, memory: int, batch: int, seconds: float, repeats: int) -> None:
    """The loops of xdan and of JAX in turns, each on the first core alone."""
    peer = [interpreter, str(Path(__file__).with_name("jax_peer.py"))]
    peer.append(json.dumps({"batch": batch, "seconds": seconds, "memory": memory}))
    single = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "OMP_NUM_THREADS": "1"}
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ours, trainer = our_step(ResidualCNN(memory=memory), batch)
    ours()
    pairs = []
    for _ in range(repeats):
        answer = subprocess.run(peer, capture_output=True, text=True, check=True, env={**os.environ, **single})
        pairs.append((rate(ours, batch, seconds), max(json.loads(answer.stdout).values())))
    trainer.close()
    os.sched_setaffinity(0, cores)
    ratios = sorted(a / b for a, b in pairs)
    fast, slow = (sorted(side)[len(pairs) // 2] for side in zip(*pairs, strict=True))
    spread = f"{ratios[len(ratios) // 2]:.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})"
    print(
        f"memory {memory:2d}, batch {batch:3d}, one core: ours {fast:,.0f}, JAX {slow:,.0f}; ratio {spread}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--jax", help="interpreter of an environment with JAX")
    options = parser.parse_args()
    if options.jax:
        for memory, batch in ((0, 24), (8, 24), (0, 64)):
            beside_jax(options.jax, memory, batch, options.seconds, options.repeats)
    cores = os.cpu_count() or 1
    print(f"{cores} cores, window of {WINDOW} cycles, median of {options.repeats} pairs")
    for memory, batch in ((0, 24), (8, 24), (0, 32), (0, 64)):
        torch.manual_seed(0)
        network = ResidualCNN(memory=memory)
        weights = sum(p.numel() for p in network.parameters())
        torch.set_num_threads(cores)
        plain = plain_step(network, batch)
        ours, trainer = our_step(ResidualCNN(memory=memory), batch, cores)
        plain(), ours()
        pairs = []
        for _ in range(options.repeats):
            torch.set_num_threads(1)
            fast = rate(ours, batch, options.seconds)
            torch.set_num_threads(cores)
            pairs.append((fast, rate(plain, batch, options.seconds)))
        trainer.close()
        ratios = sorted(a / b for a, b in pairs)
        fast, slow = sorted(p[0] for p in pairs)[len(pairs) // 2], sorted(p[1] for p in pairs)[len(pairs) // 2]
        # Six operations for each weight, site and sample: two forward, four backward.
        flops = 6 * weights * 40 * fast
        print(
            f"memory {memory:2d}, batch {batch:3d}, {weights} weights: ours {fast:,.0f}, plain {slow:,.0f} "
            f"samples x cycles / s; ratio {ratios[len(ratios) // 2]:.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f}); "
            f"{flops / 1e9:.0f} GFLOP/s, {flops / gemm_limit(cores):.0%} of this machine's matrix products"
        )


def gemm_limit(cores: int) -> float:
    """Operations per second of large float32 matrix products."""
    torch.set_num_threads(cores)
    a = torch.randn(1024, 1024)
    a @ a
    begin = time.perf_counter()
    for _ in range(20):
        a @ a
    return 20 * 2 * 1024**3 / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
