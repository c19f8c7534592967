"""Lorenz-96 by Runge-Kutta 4: 1,000 states on one thread, against DAPPER's.

python ci/bench/lorenz96.py
"""

from __future__ import annotations

import time

import peer
import torch

import xdan

STATES, STEPS = 1000, 2000


def ours(dtype: torch.dtype) -> float:
    """Steps x states per second."""
    model = xdan.Lorenz96()
    x = 8.0 + torch.randn(STATES, 40, dtype=dtype)
    x = model.advance(x, 50)
    begin = time.perf_counter()
    model.advance(x, STEPS)
    return STATES * STEPS / (time.perf_counter() - begin)


def main() -> None:
    repeats = peer.arguments(__doc__).parse_args().repeats
    torch.set_num_threads(1)
    pairs = [
        (ours(torch.float32), ours(torch.float64), peer.rates("lorenz96", STATES, STEPS)[0]) for _ in range(repeats)
    ]
    single, double, theirs = map(list, zip(*pairs, strict=True))
    peer.report("Lorenz-96 RK4, float32", single, theirs, "steps x states / s", 3.0)
    peer.report("Lorenz-96 RK4, float64 as DAPPER", double, theirs, "steps x states / s", 3.0)


if __name__ == "__main__":
    main()
