"""What stands before and behind the trunk of a network: bounded inputs, bounded increments, renewed memory."""

from __future__ import annotations

from torch import Tensor

FAR = 5.0  # deviations at which an input saturates
WIDEST = 2.0  # climatological deviations at which an increment saturates


def soften(x: Tensor) -> Tensor:
    """Identity to third order, bounded by a few deviations: far inputs do not leave the range that was trained on."""
    return FAR * (x / FAR).tanh()


def saturate(step: Tensor, state_std: Tensor, error_std: Tensor) -> Tensor:
    """Bound increments, in units of `error_std`, by the width of the climate: a wrong network can recover."""
    widest = WIDEST * state_std / error_std
    return widest * (step / widest).tanh()


def renew(memory: Tensor, gate: Tensor, candidate: Tensor) -> Tensor:
    """New latent channels m <- (1 - g) m + g c, g a sigmoid and c a tanh of what the last layer gives."""
    return memory + gate.sigmoid() * (candidate.tanh() - memory)
