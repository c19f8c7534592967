"""Random numbers with keys that say what they are for. No chunking, order or device changes them."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from .checks import integer, shown

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_BLOCK = 1 << 15  # number of counters in one pass on a CPU, so that the working set stays in the cache


class Purpose(IntEnum):
    """What a stream of random numbers is for. Two purposes never share a number."""

    INITIAL_STATE = 1
    OBSERVATION_ERROR = 2
    OBSERVED_SITES = 3
    ENSEMBLE = 4
    NETWORK = 5
    CLIMATOLOGY = 6
    PERTURBATION = 7
    ROTATION = 8
    MODEL_NOISE = 9
    RESAMPLING = 10
    BACKGROUND = 11
    DIRECTION = 12
    SENSITIVITY = 13
    TRUTH_NOISE = 14
    ANALYSIS_DRAW = 15
    FORECAST_NOISE = 20


def check_seed(seed: Any) -> int:
    """Refuse a seed that is not a 32-bit integer; return it as a plain int.

    Raises
    ------
    TypeError
        If it is not an integer.
    ValueError
        If it is not from 0 to 2**32 - 1.
    """
    try:
        return integer("seed", seed, least=0, most=_WORD)
    except (TypeError, ValueError) as reason:
        raise type(reason)(f"seed={shown(seed)}: expected an integer from 0 to 2**32 - 1") from None


def philox(counter: Tensor, key: tuple[int, int], rounds: int = 10) -> Tensor:
    """Philox4x32 counter-based generator.

    Parameters
    ----------
    counter : Tensor of int64, shape (4, ...)
        Four 32-bit words for each counter.
    key : tuple of int
        Two 32-bit words.
    rounds : int
        Number of rounds; 10 is the published safe choice.

    Returns
    -------
    Tensor of int64, shape (4, ...)
        Four random 32-bit words for each counter.

    References
    ----------
    Salmon et al. (2011), Parallel random numbers: as easy as 1, 2, 3. SC11, doi:10.1145/2063384.2063405.
    """
    c0, c1, c2, c3 = counter.unbind(0)
    k0, k1 = key
    for _ in range(rounds):
        # int64 wraps modulo 2**64, so the bit pattern is that of the unsigned product.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _WORD) ^ c1 ^ k0,
            p1 & _WORD,
            ((p0 >> 32) & _WORD) ^ c3 ^ k1,
            p0 & _WORD,
        )
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return torch.stack([c0, c1, c2, c3])


def uniform(seed: int, purpose: Purpose, trajectory: Tensor, time: Tensor, size: int, stream: int = 0) -> Tensor:
    """Uniform numbers in (0, 1), one row for every trajectory and time.

    Parameters
    ----------
    seed : int
        From 0 to 2**32 - 1.
    purpose : Purpose
        It separates streams with one seed.
    trajectory, time : Tensor of int64, shape (R,) and (K,)
        Integer labels. The numbers depend on labels, not on positions.
    size : int
        How many numbers there are for each pair of labels.
    stream : int
        A further label, such as the ensemble member.

    Returns
    -------
    Tensor of float64, shape (R, K, size)

    Raises
    ------
    ValueError
        If the seed does not fit 32 bits.
    """
    check_seed(seed)
    words = -(-size // 4)
    trajectory, time = trajectory.to(torch.int64), time.to(torch.int64)
    index = torch.arange(words, dtype=torch.int64, device=trajectory.device)
    shape = (len(trajectory), len(time), words)
    labels = torch.broadcast_tensors(
        index, time[:, None] & _WORD, trajectory[:, None, None] & _WORD, torch.full_like(index[:1], stream)
    )
    counter = torch.stack([label.expand(shape).reshape(-1) for label in labels])
    key = (seed, int(purpose))
    block = _BLOCK if counter.device.type == "cpu" else max(1, counter.shape[1])
    parts = [philox(counter[:, i : i + block], key) for i in range(0, counter.shape[1], block)]
    bits = torch.cat(parts, 1) if parts else counter
    number = (bits.to(torch.float64) + 0.5) / 2.0**32
    return number.movedim(0, -1).reshape(len(trajectory), len(time), 4 * words)[..., :size]


def normal(seed: int, purpose: Purpose, trajectory: Tensor, time: Tensor, size: int, stream: int = 0) -> Tensor:
    """Standard normal numbers by the Box-Muller transform. See `uniform` for arguments and shape."""
    even = size + size % 2
    u = uniform(seed, purpose, trajectory, time, even, stream)
    radius = torch.sqrt(-2.0 * torch.log(u[..., 0::2]))
    angle = 2.0 * math.pi * u[..., 1::2]
    pair = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return pair.reshape(*u.shape[:2], even)[..., :size]
