"""What comes before and after the trunk of a network: bounded inputs, bounded increments, new memory."""

from __future__ import annotations

from torch import Tensor

FAR = 5.0  # inputs saturate at so many standard deviations
WIDEST = 2.0  # increments saturate at so many climatological standard deviations


def soften(x: Tensor) -> Tensor:
    """Bound inputs by a few deviations; the identity to third order. Inputs stay in the range of the training."""
    return FAR * (x / FAR).tanh()


def saturate(step: Tensor, state_std: Tensor, error_std: Tensor) -> Tensor:
    """Bound increments, in units of `error_std`, by the width of the climate, so that a wrong network can recover."""
    widest = WIDEST * state_std / error_std
    return widest * (step / widest).tanh()


def renew(memory: Tensor, gate: Tensor, candidate: Tensor) -> Tensor:
    """New latent channels m <- (1 - g) m + g c. g is a sigmoid and c a tanh of the last layer's output."""
    return memory + gate.sigmoid() * (candidate.tanh() - memory)
