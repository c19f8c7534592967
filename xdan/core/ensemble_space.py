"""Analyses in the space of an ensemble's members, for filters and for networks that are parts of filters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .eigen import eigh


def centre(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, shape (B, 1, N), and anomalies, shape (B, M, N), of members."""
    mean = x.mean(1, keepdim=True)
    return mean, x - mean


class InverseRoot(torch.autograd.Function):
    """P^{-1/2} of symmetric positive matrices from their eigendecomposition.

    Its gradient has no difference of eigenvalues in a denominator. Equal eigenvalues are therefore harmless (Daleckii
    and Krein).
    """

    @staticmethod
    def forward(ctx: Any, p: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
        """Compute the root from P (..., M, M), and its eigenvalues and eigenvectors."""
        ctx.save_for_backward(values, vectors)
        return (vectors * values.rsqrt()[..., None, :]) @ vectors.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        """Gradient by divided differences of 1 / sqrt in the eigenbasis."""
        values, vectors = ctx.saved_tensors
        root = values.sqrt()
        rows, columns = root[..., :, None], root[..., None, :]
        inner = -(vectors.mT @ g @ vectors) / (rows * columns * (rows + columns))
        return vectors @ inner @ vectors.mT, None, None


class Precision:
    """Precision P = zeta I + S S^T of the weights of an ensemble's members, for analyses.

    Parameters
    ----------
    s : Tensor, shape (..., M, P)
        Whitened anomalies.
    innovation : Tensor, shape (..., P)
        Whitened innovation of the mean.
    """

    def __init__(self, s: Tensor, innovation: Tensor) -> None:
        self.gram = s @ s.mT
        self.projected = (s @ innovation[..., None])[..., 0]
        with torch.no_grad():
            if not bool(self.gram.isfinite().all()):  # a lost trajectory must not stop the decomposition of the others
                fine = self.gram.isfinite().all(-1).all(-1)[..., None]
                self.projected = torch.where(fine, self.projected, torch.nan)
                self.gram = torch.where(fine[..., None], self.gram, 0.0)
            self.values, self.vectors = eigh(self.gram)
            self.values = self.values.clamp_min(0.0)

    def rotated(self) -> Tensor:
        """S d in the eigenbasis, shape (..., M)."""
        turned: Tensor = self.vectors.mT @ self.projected.detach()[..., None]
        return turned[..., 0]

    def at(self, zeta: Tensor | float) -> Tensor:
        """P for zeta, which is a number or has the shape (...)."""
        identity = torch.eye(self.gram.shape[-1], dtype=self.gram.dtype, device=self.gram.device)
        return self.gram + (zeta[..., None, None] if isinstance(zeta, Tensor) else zeta) * identity

    def solve(self, zeta: Tensor | float) -> tuple[Tensor, Tensor]:
        """Weights P^{-1} S d, shape (..., M), and P^{-1/2}, for zeta, which is a number or has the shape (...)."""
        shift = zeta.detach()[..., None] if isinstance(zeta, Tensor) else zeta
        root: Tensor = InverseRoot.apply(self.at(zeta), self.values + shift, self.vectors)  # type: ignore[no-untyped-call]
        return (root @ (root @ self.projected[..., None]))[..., 0], root
