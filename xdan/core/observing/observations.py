"""Observations of a truth: how they are made with errors, checked, and divided into values and a mask."""

from __future__ import annotations

import torch
from torch import Tensor

from .field_sites import FieldSites
from .sites import Sites
from .system import ObservingSystem


def split_observation(observation: Tensor) -> tuple[Tensor, Tensor]:
    """Values, with zeros in the place of NaN, and the mask of observations; both in the observation's shape."""
    observed = ~torch.isnan(observation)
    return torch.nan_to_num(observation, nan=0.0), observed


def observe(
    truth: Tensor,
    sites: Sites | FieldSites,
    observing: ObservingSystem,
    trajectory: Tensor,
    time: Tensor,
    seed: int,
) -> Tensor:
    """Observations y = H x + noise of Eq. 1b, NaN where nothing is observed.

    Parameters
    ----------
    truth : Tensor, shape (R, K, N)
        Flattened states.
    trajectory, time : Tensor of int64, shape (R,) and (K,)
        Labels that are the keys of the noise and of random sites.

    Returns
    -------
    Tensor, shape (R, K, P)

    Raises
    ------
    ValueError
        If the operator gives values that are not finite.
    """
    observed_truth = observing.observe(truth)
    if not observing.direct and not bool(observed_truth.isfinite().all()):
        raise ValueError(
            "the observation operator gave values that are not finite at the truth: expected finite ones, as NaN says "
            "that nothing is observed; choose with observe= which observations are made"
        )
    size = observed_truth.shape[-1]
    noise = sites.noise(size, trajectory, time, seed)
    observation = observed_truth + observing.errors_from(noise.to(truth))  # standard deviations are (K, P) in time
    there = None if observing.positions is None else observing.positions.there().to(truth.device)
    if sites.kind == "all" and (there is None or bool(there.all())):
        return observation
    mask = sites.mask(size, trajectory, time, seed)
    if there is not None:
        mask = mask & there
    return torch.where(mask, observation, torch.full((), torch.nan, dtype=truth.dtype, device=truth.device))
