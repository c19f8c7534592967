"""Localisation tapers."""

from __future__ import annotations

import torch
from torch import Tensor


def gaspari_cohn(distance: Tensor, radius: float) -> Tensor:
    """Taper of Gaspari and Cohn (1999), Eq. 4.10, doi:10.1002/qj.49712555417: 5/24 at `radius`, zero from twice it."""
    z = distance.abs() / radius
    near = 1 - z**2 * (5 / 3 - z * (5 / 8 + z * (1 / 2 - z / 4)))
    far = 4 - z * (5 - z * (5 / 3 + z * (5 / 8 - z * (1 / 2 - z / 12)))) - 2 / (3 * z.clamp_min(0.5))
    return torch.where(z < 1, near, torch.where(z < 2, far.clamp_min(0.0), torch.zeros_like(z)))
