"""The training loop of `training.py` in JAX. That script runs it with the interpreter of JAX's environment.

    python jax_peer.py '{"batch": 24, "seconds": 4, "memory": 0}'

One jitted function makes a step: the window of cycles by `lax.scan`, its gradient by `jax.grad`, and Adam on all
weights, which costs less than the optimisers of xdan. Convolutions are written in two ways, as one product of shifted
copies and by `lax`; the faster one counts. The script prints samples x cycles per second of both, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

SITES, WINDOW, FILTERS, BLOCKS, KERNEL = 40, 12, 24, 6, 5
Weights = list[tuple[Any, Any]]


def shifted(x: Any, weight: Any, bias: Any) -> Any:
    """Circular convolution (C, N, B) as one product of shifted copies; weight (taps, O, C)."""
    columns = jnp.concatenate([jnp.roll(x, KERNEL // 2 - k, 1) for k in range(KERNEL)])
    matrix = weight.transpose(1, 0, 2).reshape(weight.shape[1], -1)
    return (matrix @ columns.reshape(len(columns), -1) + bias[:, None]).reshape(-1, *x.shape[1:])


def library(x: Any, weight: Any, bias: Any) -> Any:
    """Circular convolution (C, N, B) by the convolution of the library."""
    half = KERNEL // 2
    around = jnp.concatenate([x[:, -half:], x, x[:, :half]], 1)
    layout = ("CWN", "WOI", "CWN")
    return lax.conv_general_dilated(around, weight, (1,), "VALID", dimension_numbers=layout) + bias[:, None, None]


def tendency(x: Any) -> Any:
    return (jnp.roll(x, -1, 0) - jnp.roll(x, 2, 0)) * jnp.roll(x, 1, 0) - x + 8.0


def rk4(x: Any, h: float = 0.05) -> Any:
    k1 = tendency(x)
    k2 = tendency(x + h / 2 * k1)
    k3 = tendency(x + h / 2 * k2)
    k4 = tendency(x + h * k3)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def analysis(weights: Weights, alpha: Any, x: Any, zeta: Any, memory: Any, convolve: Callable[..., Any]) -> Any:
    """States (N, B), memory (n, N, B)."""
    h = convolve(jnp.concatenate([jnp.stack([(x - 2.3) / 3.6, zeta]), memory]), *weights[0])
    for weight, bias in weights[1:-1]:
        linear, gate = jnp.split(convolve(h, weight, bias), 2)
        h = h + linear * jnp.tanh(gate)
    out = convolve(h, *weights[-1])
    if len(memory):
        gate, candidate = jnp.split(out[1:], 2)
        gate = jax.nn.sigmoid(gate)
        memory = (1 - gate) * memory + gate * jnp.tanh(candidate)
    return x + alpha * zeta + out[0], memory


def stepper(memory: int, batch: int, convolve: Callable[..., Any]) -> Callable[[], None]:
    """One training step, as a function."""
    key = jax.random.key(0)
    channels = [(2 + memory, FILTERS), *[(FILTERS, 2 * FILTERS)] * BLOCKS, (FILTERS, 1 + 2 * memory)]
    weights: Weights = []
    for inside, outside in channels:
        key, draw = jax.random.split(key)
        scale = (0.02 if outside == channels[-1][1] else 1.0) / (KERNEL * inside) ** 0.5
        weights.append((scale * jax.random.normal(draw, (KERNEL, outside, inside)), jnp.zeros(outside)))
    parameters = (weights, jnp.array(0.4))
    moments = jax.tree.map(lambda p: (jnp.zeros_like(p), jnp.zeros_like(p)), parameters)

    def loss(parameters: Any, state: Any, key: Any) -> Any:
        weights, alpha = parameters

        def cycle(carry: Any, noise: Any) -> Any:
            truth, x, m = carry
            x, m = analysis(weights, alpha, x, truth + noise - x, m, convolve)
            error = jnp.sqrt(((x - truth) ** 2).mean(0)).mean()
            return (rk4(truth), rk4(x), m), error

        state, errors = lax.scan(cycle, state, jax.random.normal(key, (WINDOW, SITES, batch)))
        return errors.mean(), state

    @jax.jit
    def step(parameters: Any, moments: Any, state: Any, key: Any) -> Any:
        key, draw = jax.random.split(key)
        (_, state), gradient = jax.value_and_grad(loss, has_aux=True)(parameters, state, draw)
        norm = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
        clip = jnp.minimum(1.0, 1.0 / norm)

        def adam(p: Any, g: Any, moment: Any) -> Any:
            first, second = 0.9 * moment[0] + 0.1 * clip * g, 0.999 * moment[1] + 0.001 * (clip * g) ** 2
            return p - 2e-3 * first / (jnp.sqrt(second) + 1e-8), (first, second)

        flat, tree = jax.tree.flatten(parameters)
        leaves = zip(flat, jax.tree.leaves(gradient), tree.flatten_up_to(moments), strict=True)
        updated = [adam(p, g, m) for p, g, m in leaves]
        parameters, moments = (tree.unflatten([pair[k] for pair in updated]) for k in range(2))
        return parameters, moments, state, key

    truth = 8.0 + jax.random.normal(key, (SITES, batch))
    for _ in range(200):
        truth = rk4(truth)
    now = [parameters, moments, (truth, truth + 1.0, jnp.zeros((memory, SITES, batch))), key]

    def one() -> None:
        now[:] = jax.block_until_ready(step(*now))

    return one


def main() -> None:
    options = json.loads(sys.argv[1])
    rates = {}
    for convolve in (shifted, library):
        step = stepper(options["memory"], options["batch"], convolve)
        step(), step()
        count, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < options["seconds"]:
            step()
            count += 1
        rates[convolve.__name__] = count * options["batch"] * WINDOW / (time.perf_counter() - begin)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
