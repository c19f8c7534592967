"""Statistics of innovations and residuals that tell R, and the forecast's errors where they are observed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..methods import Method, Record, State, run
from ..observing import split_observation
from .gaussian_filter import part_of

_TIMES = 64  # of a run that are kept at once


@dataclass(frozen=True)
class Statistics:
    """Sums over the times of a group, of every trajectory.

    Attributes
    ----------
    observation : Tensor, shape (B, G, P, P), or (B, G, P)
        Sum of d_a d_f^T, with the residual d_a = y - H(x_a) and the innovation d_f = y - H(x_f), or its diagonal.
    forecast : Tensor, shape (B, G, P)
        Sum of the diagonal of (H(x_a) - H(x_f)) d_f^T.
    innovation : Tensor, shape (B, G, P)
        Sum of the squares of d_f.
    observed : Tensor, shape (B, G, P, P), or (B, G, P)
        How often each pair, or each observation, is made.
    """

    observation: Tensor
    forecast: Tensor
    innovation: Tensor
    observed: Tensor


def desroziers(
    method: Method, record: Record, *, burn_in: int = 0, groups: int = 1, whole: bool = False
) -> tuple[Statistics, Tensor]:
    """Cycle a method over a record, and sum the products of its residuals and innovations.

    Where the gain is the best one, E[d_a d_f^T] = R and E[(H(x_a) - H(x_f)) d_f^T] = H P_f H^T: what the analysis
    leaves over is the observation's error, and what it takes up is the forecast's.

    Parameters
    ----------
    method : Method
        Prepared.
    record : Record
    burn_in : int
        First times that the sums leave out.
    groups : int
        Groups of times one after another that the others are summed in.
    whole : bool
        Whether matrices are summed; otherwise their diagonals.

    Returns
    -------
    Statistics
        NaN for trajectories that diverged.
    diverged : Tensor of bool, shape (B,)

    References
    ----------
    Desroziers, Berre, Chapnik and Poli (2005), doi:10.1256/qj.05.108, Eq. 1 to 3.
    """
    count, size = record.observation.shape[1:]
    sums = {
        name: record.observation.new_zeros(len(record.trajectory), groups, *tail).double()
        for name, tail in {
            "observation": (size, size) if whole else (size,),
            "observed": (size, size) if whole else (size,),
            "forecast": (size,),
            "innovation": (size,),
        }.items()
    }
    state: State | None = None
    diverged = torch.zeros(len(record.trajectory), dtype=torch.bool, device=record.observation.device)
    for start in range(0, count, _TIMES):
        part = part_of(record, slice(start, min(start + _TIMES, count)))
        outputs, state = run(method, part, state)
        diverged = outputs["diverged"][:, -1]
        observation, observed = split_observation(part.observation)
        seen = [part.observing.observe(outputs[name]) for name in ("forecast", "analysis")]
        innovation, residual = (torch.where(observed, observation - one, 0.0).double() for one in seen)
        for k in range(observation.shape[1]):
            if start + k < burn_in:
                continue
            group = (start + k - burn_in) * groups // (count - burn_in)
            d, left, mask = innovation[:, k], residual[:, k], observed[:, k].double()
            sums["observation"][:, group] += left[:, :, None] * d[:, None, :] if whole else left * d
            sums["observed"][:, group] += mask[:, :, None] * mask[:, None, :] if whole else mask
            sums["forecast"][:, group] += (d - left) * d
            sums["innovation"][:, group] += d.square()
    return Statistics(**sums), diverged
